"""Biases alone: which arrays they are, how many, that they are trained in any model, and that nothing else is."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest

from minitransformers import trees
from minitransformers.basics.causal_convolution import init_causal_convolution
from minitransformers.basics.embedding import init_embedding
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.foundation import assert_gradients, check_gradients, reparameterize
from minitransformers.models.gpt2 import gpt2, init_gpt2
from minitransformers.models.llama import init_llama
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model, language_model
from minitransformers.norms.layer_norm import init_layer_norm
from minitransformers.norms.rms_norm import init_rms_norm
from minitransformers.peft.bitfit import biases, bitfit
from minitransformers.state_space.mamba import init_mamba
from minitransformers.state_space.mamba2 import init_mamba2

RNG = np.random.default_rng(0)
IDS = RNG.integers(5, size=(2, 4))


class Misleading(NamedTuple):
    """Names that promise a bias where there is none, and the other way round."""

    bias: Any                  # a whole linear map in a slot of that name
    position_bias: Any         # a vector that its tuple does not say more of
    plain: Any
    bias_network: Any
    norm: Any
    parts: list[Any]


def misleading():
    return Misleading(
        bias=init_linear(RNG, 4, 3), position_bias=np.ones(4), plain=init_linear(RNG, 4, 3, bias=False), bias_network=init_embedding(RNG, 5, 4),
        norm=init_layer_norm(RNG, 4), parts=[init_rms_norm(RNG, 4), init_causal_convolution(RNG, 4, width=3), init_mamba(RNG, 4), init_mamba2(RNG, 4, d_head=4)],
    )  # fmt: skip


def test_exactly_the_vectors_that_a_layer_adds_whatever_the_path_says():
    assert set(biases(misleading())) == {
        "bias.bias", "norm.bias", "parts.1.bias", "parts.2.conv.bias", "parts.2.dt_proj.bias", "parts.3.conv.bias", "parts.3.dt_bias",
    }  # fmt: skip


def naive(base):
    """By type, layer by layer, for GPT-2."""
    found = []
    for i, block in enumerate(base.blocks):
        for part in ("attention_norm", "attention.query", "attention.key", "attention.value", "attention.output", "feed_forward_norm",
                     "feed_forward.up", "feed_forward.down"):  # fmt: skip
            at = block
            for name in part.split("."):
                at = getattr(at, name)
            found.append((f"blocks.{i}.{part}.bias", at.bias))
    return [*found, ("norm.bias", base.norm.bias)]


def a_gpt2(d_model=4, num_layers=2, dtype=np.float64):
    return init_gpt2(np.random.default_rng(1), vocabulary=5, context=6, d_model=d_model, num_layers=num_layers, num_heads=2, std=0.5, dtype=dtype)


def test_of_gpt2_it_takes_what_a_walk_by_hand_takes():
    base = trees.map(lambda leaf: leaf + RNG.normal(size=leaf.shape), a_gpt2())
    trained = bitfit(base)
    for (path, own), (expected_path, expected) in zip(trees.leaves(trained), naive(base), strict=True):
        assert path == expected_path
        np.testing.assert_array_equal(own, expected)
        assert not np.shares_memory(own, expected)


@pytest.mark.parametrize(("d_model", "num_layers"), [(4, 2), (6, 3), (8, 1)])
def test_a_block_has_seven_widths_and_the_hidden_one(d_model, num_layers):
    base = a_gpt2(d_model, num_layers)
    hidden = base.blocks[0].feed_forward.up.weight.shape[1]
    of_last_norm = d_model
    assert trees.count_parameters(bitfit(base)) == num_layers * (7 * d_model + hidden) + of_last_norm


def a_mamba():
    config = LanguageModelConfig(5, context=6, d_model=4, num_layers=2, mixer="mamba,multi_head_attention", position="none",
                                 options={"mixer": {"d_state": 2, "d_conv": 2}, "channel": {"d_hidden": 3}})  # fmt: skip
    return init_language_model(np.random.default_rng(2), config, std=0.5, dtype=np.float64), partial(language_model, config=config)


MODELS = {"gpt2": lambda: (a_gpt2(), partial(gpt2, num_heads=2)), "mamba and attention": a_mamba}


def with_biases(base, run):
    def of_the_biases(trained):
        tree, back = reparameterize(trained, base=base)
        logits, backward = run(tree, ids=IDS)
        return logits, lambda dlogits: back(backward(dlogits))

    return of_the_biases


@pytest.mark.parametrize("name", MODELS)
def test_it_starts_as_the_model_and_is_trained(name):
    base, run = MODELS[name]()
    trained = bitfit(base)
    np.testing.assert_array_equal(with_biases(base, run)(trained)[0], run(base, ids=IDS)[0])
    moved = trees.map(lambda leaf: leaf + 0.3 * RNG.normal(size=leaf.shape), trained)
    report = assert_gradients(with_biases(base, run), moved, second_opinion=False)
    assert {argument.path for argument in report.arguments} == {f"trained.{path}" for path in biases(base)}


@pytest.mark.parametrize("name", MODELS)
def test_a_step_changes_the_biases_and_nothing_else(name):
    base, run = MODELS[name]()
    before = trees.map(np.copy, base)
    trained = bitfit(base)
    logits, backward = with_biases(base, run)(trained)
    gradient = backward(np.cos(logits))
    stepped, _ = reparameterize(trees.map(lambda leaf, dleaf: leaf - 0.1 * dleaf, trained, gradient), base=base)
    changed = {path for (path, now), (_, was) in zip(trees.leaves(stepped), trees.leaves(before), strict=True) if (now != was).any()}
    dead = {path for path in biases(base) if path.endswith("key.bias")}
    assert changed | dead == set(biases(base))
    for (path, now), (_, was) in zip(trees.leaves(base), trees.leaves(before), strict=True):
        np.testing.assert_array_equal(now, was, err_msg=path)


def test_the_key_s_bias_learns_nothing_in_a_softmax():
    """It adds one number to all scores of a query: d of the 7 d + f numbers stay where they are."""
    base, run = MODELS["gpt2"]()
    logits, backward = with_biases(base, run)(bitfit(base))
    gradient = dict(trees.leaves(backward(np.cos(logits))))
    for path, dleaf in gradient.items():
        assert (np.abs(dleaf).max() < 1e-13) == path.endswith("key.bias"), path


def test_the_gradient_is_the_sum_of_what_arrives_and_asks_for_no_input():
    rng = np.random.default_rng(3)
    base, dout = Linear(rng.normal(size=(4, 3)), np.zeros(3)), rng.normal(size=(2, 5, 3))
    trained = bitfit(base)
    for x in rng.normal(size=(2, 2, 5, 4)):
        tree, back = reparameterize(trained, base=base)
        gradient = back(linear(tree, x)[1](dout)[0])
        assert gradient.weight is None
        np.testing.assert_allclose(gradient.bias, dout.sum((0, 1)), rtol=0, atol=1e-13)


def test_the_checker_refuses_a_norm_whose_shift_is_forgotten():
    base, run = MODELS["gpt2"]()

    def wrong(trained):
        logits, backward = with_biases(base, run)(trained)
        return logits, lambda dlogits: trees.map(lambda leaf: leaf, backward(dlogits)._replace(norm=trees.map(np.zeros_like, trained.norm)))

    assert not check_gradients(wrong, bitfit(base), second_opinion=False).passed


def test_the_head_of_the_task_is_trained_with_them_if_it_is_asked_for():
    config = LanguageModelConfig(5, context=6, d_model=4, num_layers=1, tied=False)
    base = init_language_model(np.random.default_rng(4), config, dtype=np.float64)
    trained = bitfit(base, also=["head.weight"])
    assert {path for path, _ in trees.leaves(trained)} == {*biases(base), "head.weight"}
    assert trained.head.weight is not base.head.weight
    with pytest.raises(ValueError, match=r"patterns: got 'lm_head', wants .*head\.weight"):
        bitfit(base, also=["lm_head"])


def test_a_model_without_biases_is_refused():
    base = init_llama(np.random.default_rng(5), vocabulary=5, d_model=4, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="base: got a model without a bias"):
        bitfit(base)
