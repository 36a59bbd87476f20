"""Low-rank changes to the weights of whole models, whose code is not touched: what is trained gets its gradient."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
from workbench_models import NEEDED, checked, model

from minitransformers import trees
from minitransformers.foundation import reparameterize
from minitransformers.models.gpt2 import gpt2, init_gpt2
from minitransformers.models.workbench.language_model import language_model


class LowRank(NamedTuple):
    down: Any
    up: Any


def low_rank(own, *, base):
    """base + down up, and where its gradient goes."""
    return base + own.down @ own.up, lambda dleaf: LowRank(dleaf @ own.up.T, own.down.T @ dleaf)


def changes(rng, base, where):
    """Factors of rank one in the place of the matrices for which ``where(path)`` holds, None in the place of all else."""

    def change(leaf):
        return LowRank(rng.normal(size=(leaf.shape[0], 1)), rng.normal(size=(1, leaf.shape[1])))

    return trees.map(change, trees.partition(base, lambda path, leaf: where(path) and leaf.ndim == 2)[0])


def adapted(run, base):
    """``run(params) -> out, backward`` as a function of the changes alone."""

    def with_changes(trained):
        tree, back = reparameterize(trained, base=base, change=low_rank)
        out, backward = run(tree)
        return out, lambda dout: back(backward(dout))

    return with_changes


@pytest.mark.parametrize("mixer", ["mamba", "grouped_query_attention", "bmojo"])
def test_low_rank_changes_of_any_mixer_are_trained_and_the_rest_is_frozen(mixer):
    base, config = model(1, mixer=mixer, position="none", num_layers=1, options={"mixer": NEEDED[mixer]})
    rng = np.random.default_rng(2)
    trained = changes(rng, base, lambda path: ".mixer." in path and path.endswith(".weight") and "conv" not in path)
    assert len(list(trees.leaves(trained))) >= 8
    ids = rng.integers(5, size=(2, 4))
    run = partial(language_model, ids=ids, config=config)
    report = checked(adapted(run, base), trained, second_opinion=False)
    assert report.passed, str(report)
    assert {argument.path.rpartition(".")[2] for argument in report.arguments} == {"down", "up"}


def test_low_rank_changes_of_gpt2_are_trained():
    rng = np.random.default_rng(3)
    base = init_gpt2(rng, vocabulary=5, context=4, d_model=4, num_layers=1, num_heads=2, std=0.5, dtype=np.float64)
    trained = changes(rng, base, lambda path: path.startswith("blocks.") and path.endswith(".weight"))
    run = partial(gpt2, ids=rng.integers(5, size=(2, 4)), num_heads=2)
    report = checked(adapted(run, base), trained, second_opinion=False)
    assert report.passed, str(report)
    assert len(report.arguments) == 2 * 6


def test_a_change_is_the_model_on_changed_weights():
    base, config = model(4, num_layers=1)
    trained = changes(np.random.default_rng(5), base, lambda path: path.endswith(("query.weight", "down.weight")))
    tree, back = reparameterize(trained, base=base, change=low_rank)
    block, own = base.blocks[0], trained.blocks[0]
    query = block.mixer.query._replace(weight=block.mixer.query.weight + own.mixer.query.weight.down @ own.mixer.query.weight.up)
    down = block.channel.down._replace(weight=block.channel.down.weight + own.channel.down.weight.down @ own.channel.down.weight.up)
    by_hand = block._replace(mixer=block.mixer._replace(query=query), channel=block.channel._replace(down=down))
    ids = np.array([[1, 2, 3]])
    logits, backward = language_model(tree, ids=ids, config=config)
    expected, expected_backward = language_model(base._replace(blocks=[by_hand]), ids=ids, config=config)
    np.testing.assert_array_equal(logits, expected)
    dquery = expected_backward(logits).blocks[0].mixer.query.weight
    np.testing.assert_array_equal(back(backward(logits)).blocks[0].mixer.query.weight.down, dquery @ own.mixer.query.weight.up.T)


def test_a_change_that_forgets_a_factor_is_refused():
    base, config = model(6, num_layers=1)
    trained = changes(np.random.default_rng(7), base, lambda path: path.endswith("query.weight"))

    def forgetful(own, *, base):
        made, backward = low_rank(own, base=base)
        return made, lambda dleaf: backward(dleaf)._replace(up=np.zeros_like(own.up))

    def with_changes(trained):
        tree, back = reparameterize(trained, base=base, change=forgetful)
        out, backward = language_model(tree, ids=np.array([[1, 2, 3]]), config=config)
        return out, lambda dout: back(backward(dout))

    assert not checked(with_changes, trained, second_opinion=False).passed
