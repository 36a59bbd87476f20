"""No positions: the identity; looking both ways a set, looking back an order that the mask alone makes."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.basics.feed_forward import feed_forward, init_feed_forward
from minitransformers.foundation import check_gradients
from minitransformers.positional.none import none
from minitransformers.positional.sinusoidal import sinusoidal


def layers(x, depth, *, causal, position=none):
    """Attention on itself, with a residual, several times: all that here could tell an order."""
    x, _ = position(x)
    mask = np.tri(len(x), dtype=bool) if causal else None
    for _ in range(depth):
        x = x + scaled_dot_product_attention(x, x, x, mask=mask)[0]
    return x


def test_equals_the_identity_matrix_and_its_gradient():
    rng = np.random.default_rng(0)
    x, dout = rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 5, 3))
    out, backward = none(x)
    np.testing.assert_array_equal(out, anp.dot(x, anp.eye(3)))
    np.testing.assert_array_equal(backward(dout), autograd.grad(lambda x: anp.sum(dout * anp.dot(x, anp.eye(3))))(x))
    assert out is x                                          # no time, no memory


@pytest.mark.parametrize("depth", [1, 3])
def test_looking_both_ways_outputs_are_shuffled_as_inputs_are(depth):
    rng = np.random.default_rng(1)
    x, order = rng.normal(size=(6, 4)), rng.permutation(6)
    np.testing.assert_allclose(layers(x[order], depth, causal=False), layers(x, depth, causal=False)[order], atol=1e-12)
    with_positions = layers(x[order], depth, causal=False, position=sinusoidal), layers(x, depth, causal=False, position=sinusoidal)[order]
    assert np.abs(with_positions[0] - with_positions[1]).max() > 0.1
    assert np.abs(layers(x[order], depth, causal=True) - layers(x, depth, causal=True)[order]).max() > 0.1


def test_one_layer_that_looks_back_sees_a_set_and_two_see_an_order():
    rng = np.random.default_rng(2)
    x, order = rng.normal(size=(6, 4)), np.array([3, 0, 4, 1, 2, 5])                  # the last stays
    one, two = (np.abs(layers(x[order], d, causal=True)[-1] - layers(x, d, causal=True)[-1]).max() for d in (1, 2))
    assert one < 1e-12 and two > 1e-2


def test_even_weights_over_a_marked_first_token_read_the_position():
    values = np.eye(9)[:, :1]                                # 1 for the mark, 0 for the others
    means, _ = scaled_dot_product_attention(*np.zeros((2, 9, 2)), none(values)[0], mask=np.tri(9, dtype=bool))
    np.testing.assert_allclose(1 / means[:, 0], np.arange(1, 10), rtol=1e-14)


def test_where_all_tokens_are_equal_there_is_nothing_to_count_from():
    rng = np.random.default_rng(3)
    tokens = rng.normal(size=(7, 4))
    mixers = [init_multi_head_attention(rng, 4, num_heads=2, std=0.5, dtype=np.float64) for _ in range(3)]
    channels = [init_feed_forward(rng, 4, std=0.5, dtype=np.float64) for _ in range(3)]

    def three_layers(ids):
        x, _ = none(tokens[ids])
        for mix, work in zip(mixers, channels, strict=True):
            x = x + multi_head_attention(mix, x, num_heads=2)[0]
            x = x + feed_forward(work, x)[0]
        return x

    equal, marked = three_layers([2] * 6), three_layers([5] + [2] * 5)
    np.testing.assert_allclose(equal, np.broadcast_to(equal[:1], equal.shape), atol=1e-12)
    assert np.abs(np.diff(marked, axis=0)).max(axis=1).min() > 1e-6


def treated_as_a_constant(x):
    return x, np.zeros_like


def test_the_checker_refuses_a_backward_that_takes_positions_for_constants():
    report = check_gradients(treated_as_a_constant, np.random.default_rng(4).normal(size=(5, 3)))
    assert not report.passed and report.error > 0.9
