"""Reversible layers: the gradients of a stack that keeps everything, from its outputs alone."""

import gc
import tracemalloc
from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.basics.chain import chain
from minitransformers.basics.dropout import dropout
from minitransformers.basics.feed_forward import feed_forward, init_feed_forward
from minitransformers.basics.gelu import gelu
from minitransformers.basics.linear import Linear, linear
from minitransformers.basics.residual import residual
from minitransformers.foundation import check_gradients, slot, trees
from minitransformers.norms.rms_norm import init_rms_norm, rms_norm
from minitransformers.sparse_attention.reformer_attention import init_reformer_attention, reformer_attention
from minitransformers.sparse_attention.reversible import Reversible, reversible, reversible_inputs


def squash(weight, x):
    """tanh of a product, as a part."""
    out = np.tanh(x @ weight)

    def backward(dout):
        dsum = dout * (1 - out * out)
        return x.reshape(-1, x.shape[-1]).T @ dsum.reshape(-1, dsum.shape[-1]), dsum @ weight.T

    return out, backward


def case(seed=0, layers=3, dtype=np.float64):
    rng = np.random.default_rng(seed)
    params = [Reversible(*rng.normal(size=(2, 4, 4)).astype(dtype)) for _ in range(layers)]
    return params, *rng.normal(size=(2, 2, 5, 4)).astype(dtype)


def textbook(params, first, second):
    """The two equations, everything kept."""
    for f, g in params:
        first = first + anp.tanh(anp.dot(second, f))
        second = second + anp.tanh(anp.dot(first, g))
    return first, second


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_it_is_the_two_equations_and_its_gradients_are_autograd_s(layers):
    args = case(layers=layers)
    out, backward = reversible(*args, f=squash, g=squash)
    for own, theirs in zip(out, textbook(*args), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-14)
    dout = np.random.default_rng(1).normal(size=(2, 2, 5, 4))
    leaves = [leaf for _, leaf in trees.leaves(args)]

    def loss(*leaves):
        return sum(anp.sum(d * o) for d, o in zip(dout, textbook(*trees.unflatten(args, leaves)), strict=True))

    expected = autograd.grad(loss, tuple(range(len(leaves))))(*leaves)
    for (path, own), theirs in zip(trees.leaves(backward(tuple(dout))), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10, err_msg=path)


def test_the_inputs_are_found_again_from_the_outputs():
    params, first, second = case(2, layers=8)
    found = reversible_inputs(params, *reversible(params, first, second, f=squash, g=squash)[0], f=squash, g=squash)
    np.testing.assert_allclose(found[0], first, rtol=0, atol=1e-13)
    np.testing.assert_allclose(found[1], second, rtol=0, atol=1e-13)


def test_in_float32_they_are_found_to_rounding_which_adds_up_slowly_with_depth():
    params, first, second = case(3, layers=32, dtype=np.float32)
    found = reversible_inputs(params, *reversible(params, first, second, f=squash, g=squash)[0], f=squash, g=squash)
    error = max(np.abs(found[0] - first).max(), np.abs(found[1] - second).max())
    assert 0 < error < 1e-2
    _, backward = reversible(params, first, second, f=squash, g=squash)
    wide = trees.cast((params, first, second), np.float64)
    dout = np.random.default_rng(4).normal(size=(2, 2, 5, 4))
    exact, rounded = reversible(*wide, f=squash, g=squash)[1](tuple(dout)), backward(tuple(dout.astype(np.float32)))
    largest = max(np.abs(leaf).max() for _, leaf in trees.leaves(exact))
    for (path, own), (_, theirs) in zip(trees.leaves(rounded), trees.leaves(exact), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-3 * largest, err_msg=path)


def test_parts_may_change_the_width_of_what_they_read():
    """A narrow stream beside a wide one: F goes from 2 features to 4, and G back."""
    rng = np.random.default_rng(5)
    params = [Reversible(*(Linear(rng.normal(size=s), None) for s in ((2, 4), (4, 2)))) for _ in range(2)]
    first, second = rng.normal(size=(3, 4)), rng.normal(size=(3, 2))
    assert check_gradients(reversible, params, first, second, f=linear, g=linear).passed


def test_attention_and_a_feed_forward_network_behind_norms_as_in_the_reformer():
    rng = np.random.default_rng(6)
    d = {"dtype": np.float64}
    params = [Reversible((init_rms_norm(rng, 4, **d), init_multi_head_attention(rng, 4, num_heads=2, **d)),
                         (init_rms_norm(rng, 4, **d), init_feed_forward(rng, 4, d_hidden=3, std=0.5, **d)))]  # fmt: skip
    f = partial(chain, parts=(rms_norm, partial(multi_head_attention, num_heads=2)))
    assert check_gradients(reversible, params, *rng.normal(size=(2, 3, 4)), f=f, g=partial(chain, parts=(rms_norm, feed_forward))).passed


def test_hashed_attention_runs_again_with_the_same_buckets():
    rng = np.random.default_rng(7)
    params = [Reversible(init_reformer_attention(rng, 4, num_heads=2, dtype=np.float64), None) for _ in range(3)]
    first, second = rng.normal(size=(2, 12, 4))
    parts = {"f": partial(reformer_attention, num_heads=2, rounds=2, num_buckets=4, chunk=2), "g": slot(gelu)}
    found = reversible_inputs(params, *reversible(params, first, second, **parts)[0], **parts)
    np.testing.assert_allclose(found, (first, second), rtol=0, atol=1e-13)


# Memory --------------------------------------------------------------------------------------------------------------


def memory(run):
    """Bytes held after the forward pass, and the most at any time of forward and backward, over what was there before."""
    gc.collect()
    tracemalloc.start()
    out, backward = run()
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    backward(out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return held, peak


def test_a_deep_stack_keeps_no_more_than_a_shallow_one_and_one_that_keeps_its_activations_does():
    first, second = np.random.default_rng(8).normal(size=(2, 64, 64))
    squash_all = partial(squash, np.eye(64))

    def parameterless(params, x):
        out, backward = squash_all(x)
        return out, lambda dout: (None, backward(dout)[1])

    def turning(depth):
        return memory(lambda: reversible([Reversible(None, None)] * depth, first, second, f=parameterless, g=parameterless))

    def keeping(depth):
        parts = [partial(residual, part=parameterless)] * (2 * depth)
        return memory(lambda: chain([None] * len(parts), first, parts=parts))

    turning(1)
    one = first.nbytes
    assert turning(2)[0] < 2 * one + 20_000                  # the two outputs, and small change
    assert abs(turning(32)[0] - turning(2)[0]) < 0.1 * one
    assert abs(turning(32)[1] - turning(2)[1]) < 0.5 * one
    assert keeping(32)[1] - keeping(2)[1] > 30 * one


# Chance --------------------------------------------------------------------------------------------------------------


def dropping(weight, x, *, rng):
    mixed, mixed_backward = squash(weight, x)
    out, drop_backward = dropout(mixed, rate=0.5, rng=rng() if callable(rng) else rng)
    return out, lambda dout: mixed_backward(drop_backward(dout))


def test_dropout_from_a_seed_draws_the_same_when_it_runs_again():
    part = partial(dropping, rng=lambda: np.random.default_rng(3))
    assert check_gradients(reversible, *case(9, layers=2), f=part, g=part, second_opinion=False).passed


def test_the_checker_refuses_a_dropout_that_goes_on_with_its_generator():
    def hasty(params, first, second):
        part = partial(dropping, rng=np.random.default_rng(3))  # the same draws in every forward pass, and others on the way back
        return reversible(params, first, second, f=part, g=part)

    assert not check_gradients(hasty, *case(9, layers=2), second_opinion=False).passed


def test_the_checker_refuses_a_backward_that_forgets_that_g_has_read_the_new_first():
    def wrong(params, first, second):
        out, _ = reversible(params, first, second, f=squash, g=squash)

        def forgetful(dout):
            (df, dsecond_through), (dg, _) = squash(params[0].f, second)[1](dout[0]), squash(params[0].g, out[0])[1](dout[1])
            return [Reversible(df, dg)], dout[0], dout[1] + dsecond_through

        return out, forgetful

    report = check_gradients(wrong, *case(10, layers=1))
    assert [a.path for a in report.arguments if a.cause] == ["params.0.f", "first", "second"]


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "call"),
    [
        ("params: got no layers", lambda p, x, y: reversible([], x, y, f=squash, g=squash)),
        ("params: got no layers", lambda p, x, y: reversible_inputs([], x, y, f=squash, g=squash)),
        (r"f: got an output of shape \(2, 5, 4\), wants \(1, 5, 4\)", lambda p, x, y: reversible(p, x[:1], y, f=squash, g=squash)),
        (r"g: got an output of shape \(2, 5, 4\), wants \(1, 5, 4\)", lambda p, x, y: reversible(p, x, y[:1], f=lambda w, h: squash(w, np.concatenate([h, h])), g=squash)),
        ("f: got 3, wants a function", lambda p, x, y: reversible(p, x, y, f=3, g=squash)),
        ("second: got float32", lambda p, x, y: reversible(p, x, y.astype(np.float32), f=squash, g=squash)),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(named, call):
    with pytest.raises(ValueError, match=named):
        call(*case(11))
