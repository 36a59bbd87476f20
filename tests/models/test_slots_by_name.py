"""A language model whose softmax is replaced by name: it is written down, stays causal, learns and decodes."""

import json

import numpy as np
import pytest

from minitransformers import catalogue, check_gradients, trees
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.models.generate import language_model_step
from minitransformers.models.language_model import LanguageModelConfig, init_language_model, language_model

WEIGHTINGS = list(catalogue.concepts(role="weighting"))


def model(weighting, mixer_options=(), **changes):
    settings = {"vocabulary_size": 5, "context": 6, "d_model": 4, "num_layers": 1, "num_heads": 2, "position": "alibi"}
    options = {"mixer": {"weighting": weighting, **dict(mixer_options)}, "channel": {"d_hidden": 3}}
    config = LanguageModelConfig(**{**settings, **changes}, options=options)
    rng = np.random.default_rng(0)
    params = init_language_model(rng, config, dtype=np.float64)
    return trees.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape), params), config


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_name_survives_json_and_makes_another_model(weighting):
    params, config = model(weighting)
    again = LanguageModelConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert again == config
    ids = np.array([[0, 1, 2, 3]])
    bare = params._replace(blocks=[block._replace(mixer=block.mixer._replace(learned=None)) for block in params.blocks])
    calls = ((params, config), (params, again), (bare, model(None)[1]))
    own, same, softmax_s = (language_model(p, ids=ids, config=c)[0] for p, c in calls)
    np.testing.assert_array_equal(own, same)
    assert np.abs(own - softmax_s).max() > 1e-4


GROUPED = {"mixer": "grouped_query_attention", "mixer_options": {"num_kv_heads": 1}}


@pytest.mark.parametrize("changes", [{}, GROUPED], ids=["multi_head", "grouped_query"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_future_changes_nothing_and_decoding_is_the_whole_pass(weighting, changes):
    params, config = model(weighting, num_layers=2, **changes)
    ids = np.random.default_rng(1).integers(5, size=(2, 6))
    whole = language_model(params, ids=ids, config=config)[0]
    np.testing.assert_allclose(language_model(params, ids=ids[:, :3], config=config)[0], whole[:, :3], rtol=0, atol=1e-13)
    state, parts = None, []
    for start, stop in ((0, 3), (3, 4), (4, 6)):
        part, state = language_model_step(params, ids[:, start:stop], state, config=config)
        parts.append(part)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=1e-12)


def test_its_gradients_are_right():
    params, config = model("softmax_off_by_one")
    report = check_gradients(language_model, params, ids=np.array([[1, 4, 1]]), config=config)
    assert report.passed, report


@pytest.mark.parametrize("changes", [{}, GROUPED], ids=["multi_head", "grouped_query"])
def test_training_moves_what_it_learns_and_lowers_the_loss(changes):
    params, config = model("scalable_softmax", **changes)
    ids, targets = np.random.default_rng(2).integers(5, size=(2, 3, 6))
    start, losses = params.blocks[0].mixer.learned[0], []
    for _ in range(20):
        logits, backward = language_model(params, ids=ids, config=config)
        loss, loss_backward = cross_entropy(logits, targets=targets)
        losses.append(float(loss))
        params = trees.map(lambda leaf, gradient: leaf - 0.1 * gradient, params, backward(loss_backward(np.ones_like(loss))))
    assert losses[-1] < losses[0] - 0.05
    assert np.abs(params.blocks[0].mixer.learned[0] - start).min() > 1e-4


def test_an_unknown_name_is_refused_at_once_with_those_that_exist():
    with pytest.raises(ValueError, match=r"weighting.*sparsemacks.*did you mean 'sparsemax'"):
        model("sparsemacks")
    with pytest.raises(ValueError, match="weighting"):
        model("rms_norm")


def test_a_mixer_that_cannot_take_it_says_so():
    with pytest.raises(ValueError, match=r"options\.mixer\.weighting"):
        model("sparsemax", mixer="mamba")
