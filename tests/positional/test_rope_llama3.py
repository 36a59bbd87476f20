"""RoPE slowed by parts: dense matrices pair by pair, which pairs keep their pace, and Hugging Face's frequencies."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.foundation import check_gradients
from minitransformers.positional.rope import rope
from minitransformers.positional.rope_linear import rope_linear
from minitransformers.positional.rope_llama3 import rope_llama3

SMALL = {"base": 100.0, "factor": 3.0, "context": 60, "least": 1.5, "most": 5.0}


def pace(m, d_head, *, base, factor, context, least, most):
    """The frequency of one pair by cases, in wavelengths, as the published code decides it."""
    frequency = base ** (-2 * m / d_head)
    length = 2 * np.pi / frequency
    if length < context / most:
        return frequency
    if length > context / least:
        return frequency / factor
    share = (context / length - least) / (most - least)
    return (1 - share) * frequency / factor + share * frequency


def textbook(x, positions, **config):
    rows, d_head = [], x.shape[-1]
    for i, position in enumerate(positions):
        matrix = np.zeros((d_head, d_head))
        for m in range(d_head // 2):
            angle, (a, b) = position * pace(m, d_head, **config), (m, m + d_head // 2)
            matrix[a, a] = matrix[b, b] = np.cos(angle)
            matrix[a, b], matrix[b, a] = -np.sin(angle), np.sin(angle)
        rows.append(anp.dot(x[..., i, :], matrix.T))
    return anp.stack(rows, axis=-2)


def frequencies(d_head, **config):
    pairs = np.repeat([[1.0, 0.0]], d_head // 2, axis=1)
    turned = rope_llama3(pairs, positions=np.array([1]), **config)[0][0]
    return np.arctan2(turned[d_head // 2 :], turned[: d_head // 2])


@pytest.mark.parametrize("positions", [[0, 1, 2], [7, -3, 7], [0.5, 1000.25, 0.0]])
@pytest.mark.parametrize("config", [SMALL, {**SMALL, "factor": 8.0, "context": 20}, {**SMALL, "least": 0.5, "most": 0.75}], ids=str)
def test_equals_dense_matrices_and_their_gradient(positions, config):
    rng = np.random.default_rng(0)
    x, dout = rng.normal(size=(2, 2, 5, 3, 12))
    out, backward = rope_llama3(x, positions=np.array(positions), **config)
    np.testing.assert_allclose(out, textbook(x, positions, **config), rtol=0, atol=1e-11)
    expected = autograd.grad(lambda x: anp.sum(dout * textbook(x, positions, **config)))(x)
    np.testing.assert_allclose(backward(dout), expected, rtol=0, atol=1e-11)


def test_fast_pairs_keep_their_pace_slow_ones_lose_factor_and_those_between_lie_between():
    ratio = 100.0 ** (-np.arange(16) / 16) / frequencies(32, **SMALL)
    turns = 60 * 100.0 ** (-np.arange(16) / 16) / (2 * np.pi)
    fast, slow = turns > 5, turns < 1.5
    between = ~fast & ~slow
    assert fast.any() and slow.any() and between.any()
    np.testing.assert_allclose(ratio[fast], 1, rtol=1e-12)
    np.testing.assert_allclose(ratio[slow], 3, rtol=1e-12)
    assert (np.diff(ratio[between]) > 0).all() and ratio[between].min() > 1 and ratio[between].max() < 3


def test_a_factor_of_one_is_rope_and_a_context_of_one_is_linear():
    x = np.random.default_rng(1).normal(size=(2, 5, 8))
    np.testing.assert_allclose(rope_llama3(x, **{**SMALL, "factor": 1.0})[0], rope(x, base=100.0)[0], rtol=0, atol=1e-13)
    everything_slow = {**SMALL, "context": 1}
    np.testing.assert_allclose(rope_llama3(x, **everything_slow)[0], rope_linear(x, base=100.0, factor=3.0)[0], rtol=0, atol=1e-13)


def test_only_the_distance_counts():
    query, key = np.random.default_rng(2).normal(size=(2, 1, 8))
    turn = partial(rope_llama3, **SMALL)
    scores = [
        float(turn(query, positions=np.array([7 + start]))[0][0] @ turn(key, positions=np.array([3 + start]))[0][0]) for start in (0, 5, 900)
    ]
    np.testing.assert_allclose(scores, scores[0], rtol=1e-11)


def test_a_backward_that_turns_on_is_refused():
    def careless(x):
        out, _ = rope_llama3(x, **SMALL)
        return out, lambda dout: rope_llama3(dout, **SMALL)[0]  # on, where it should turn back

    assert not check_gradients(careless, np.random.default_rng(3).normal(size=(2, 5, 8)), second_opinion=False).passed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"most": 1.5}, "most: got 1.5, wants more than least = 1.5"),
        ({"factor": 0.5}, "factor: got 0.5"),
        ({"context": 0}, "context: got 0"),
        ({"base": 0.0}, "base: got 0.0"),
        ({"least": 0.0}, "least: got 0.0"),
        ({"x": np.ones((2, 5, 7))}, "x: got d_head = 7, wants an even d_head"),
        ({"positions": np.arange(4)}, "positions"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    call = {"x": np.ones((2, 5, 8)), **SMALL, **changes}
    with pytest.raises(ValueError, match=message):
        rope_llama3(call.pop("x"), **call)


@pytest.mark.parity
@pytest.mark.parametrize(("factor", "d_head"), [(8.0, 128), (32.0, 64)], ids=["llama 3.1", "llama 3.2"])
def test_frequencies_equal_hugging_faces(factor, d_head):
    """Within their float32."""
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope_parameters = {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = transformers.LlamaConfig(hidden_size=4 * d_head, num_attention_heads=4, rope_parameters=rope_parameters)
    expected, attention_factor = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
    np.testing.assert_allclose(frequencies(d_head, factor=factor), expected.numpy(), rtol=1e-6)
    assert attention_factor == 1.0
