"""Every core in every attention: right gradients with what it learns, and decoding that equals the whole."""

from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
from attention_cases import CORES, labelled

from minitransformers.attention.core import causal, causal_attention, softmax_attention
from minitransformers.attention.cross_attention import CrossAttention, cross_attention, cross_attention_step
from minitransformers.attention.grouped_query_attention import (
    GroupedQueryAttention,
    grouped_query_attention,
    grouped_query_attention_step,
)
from minitransformers.attention.masks import causal_mask, padding_mask, sliding_window_mask
from minitransformers.attention.multi_head_attention import MultiHeadAttention, multi_head_attention, multi_head_attention_step
from minitransformers.attention.prepare import on_both
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.attention.sliding_window_attention import sliding_window_attention, sliding_window_attention_step
from minitransformers.attention.soft_cap import soft_capped_attention
from minitransformers.basics.linear import Linear
from minitransformers.foundation import check_gradients, trees, trusted
from minitransformers.positional.rope import rope

every = pytest.mark.parametrize("name", CORES)


def projections(kind, rng, widths):
    """Without biases, but for the output's."""
    weights = [Linear(rng.normal(size=w) / np.sqrt(w[0]), None) for w in widths]
    return kind(*weights[:3], weights[3]._replace(bias=rng.normal(size=widths[3][1])))


class Mixer(NamedTuple):
    """An attention over its own past, two heads of width two on three features, the core put in; and its step."""

    params: tuple
    whole: object
    step: object


def mixer(kind, name, seed=0):
    rng, (core, learn) = np.random.default_rng(seed), CORES[name]
    if kind == "multi-head":
        params = projections(MultiHeadAttention, rng, [(3, 4), (3, 4), (3, 4), (4, 3)])
        config = {"num_heads": 2, "core": causal(core)}
        found = Mixer(params, multi_head_attention, multi_head_attention_step)
    elif kind == "grouped":
        params = projections(GroupedQueryAttention, rng, [(3, 4), (3, 2), (3, 2), (4, 3)])
        config = {"num_heads": 2, "num_kv_heads": 1, "core": causal(core)}
        found = Mixer(params, grouped_query_attention, grouped_query_attention_step)
    else:
        params = projections(GroupedQueryAttention, rng, [(3, 4), (3, 2), (3, 2), (4, 3)])
        config = {"num_heads": 2, "window": 2, "core": core}
        found = Mixer(params, sliding_window_attention, sliding_window_attention_step)
    return Mixer(params._replace(core=learn(rng, 2)), partial(found.whole, **config), partial(found.step, **config))


MIXERS = ("multi-head", "grouped", "window")


def test_every_core_of_the_chapter_is_here():
    assert set(CORES) == labelled("core") | {"softmax_attention"}  # which is a form in a slot, without a label


def assert_right(function, *args, **config):
    report = trusted(check_gradients)(function, *args, second_opinion=False, **config)
    assert report.passed, str(report)
    return [argument.path for argument in report.arguments]


@every
@pytest.mark.parametrize("kind", MIXERS)
def test_gradients_are_right_and_what_the_core_learns_has_one(kind, name):
    rng, (params, whole, _) = np.random.default_rng(1), mixer(kind, name)
    x, bias = rng.normal(size=(1, 3, 3)), rng.normal(size=(2, 3, 3))
    paths = assert_right(whole, params, x, bias)
    if params.core is not None:
        assert {f"params.core.{field}" for field in params.core._fields} <= set(paths)
        dparams, _, _ = whole(params, x, bias)[1](rng.normal(size=x.shape))
        assert all(np.abs(part).max() > 1e-3 for part in dparams.core)


@every
def test_gradients_are_right_in_cross_attention(name):
    rng, (core, learn) = np.random.default_rng(2), CORES[name]
    params = projections(CrossAttention, rng, [(3, 4), (2, 4), (2, 4), (4, 3)])._replace(core=learn(rng, 2))
    x, memory = rng.normal(size=(1, 3, 3)), rng.normal(size=(1, 4, 2))
    paths = assert_right(cross_attention, params, x, memory, num_heads=2, core=core)
    assert params.core is None or f"params.core.{params.core._fields[0]}" in paths
    out, _ = cross_attention(params, x, memory, num_heads=2, core=core)
    outs, state = [], None
    for i in range(3):
        step, state = cross_attention_step(params, x[:, i : i + 1], state, num_heads=2, memory=memory, core=core)
        outs.append(step)
    if not name.startswith("banded"):                         # whose queries are the last positions: in steps each is the very last
        np.testing.assert_allclose(np.concatenate(outs, axis=1), out, rtol=0, atol=1e-12)
    if name != "softmax_attention":
        assert np.abs(out - cross_attention(params._replace(core=None), x, memory, num_heads=2)[0]).max() > 1e-3


def decoded(step, params, x, sizes, bias=None, mask=None):
    """The outputs of a step, so many positions at a time; bias and mask are given as the rows of the new positions."""
    state, outs, start = None, [], 0
    for size in sizes:
        stop = start + size
        rows = {key: a[..., start:stop, :stop] for key, a in (("bias", bias), ("mask", mask)) if a is not None}
        out, state = step(params, x[..., start:stop, :], state, **rows)
        outs.append(out)
        start = stop
    return np.concatenate(outs, axis=-2), state


@every
@pytest.mark.parametrize("kind", MIXERS)
@pytest.mark.parametrize("sizes", [[1] * 7, [7], [3, 1, 3]])
def test_decoding_equals_the_whole_however_many_positions_a_step_takes(sizes, kind, name):
    rng, (params, whole, step) = np.random.default_rng(3), mixer(kind, name)
    x, bias = rng.normal(size=(2, 7, 3)), rng.normal(size=(2, 7, 7))
    np.testing.assert_allclose(decoded(step, params, x, sizes)[0], whole(params, x)[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(decoded(step, params, x, sizes, bias)[0], whole(params, x, bias)[0], rtol=0, atol=1e-12)


@every
def test_inside_a_window_a_core_is_what_it_is_under_the_dense_mask(name):
    rng, (params, whole, _) = np.random.default_rng(4), mixer("window", name)
    x, bias, dout = rng.normal(size=(2, 7, 3)), rng.normal(size=(2, 7, 7)), rng.normal(size=(2, 7, 3))
    mask = padding_mask(np.array([7, 4]), 7)
    dense = partial(grouped_query_attention, num_heads=2, num_kv_heads=1, core=CORES[name][0], mask=mask & sliding_window_mask(7, window=2))
    (out, backward), (wanted, wanted_backward) = whole(params, x, bias, mask=mask), dense(params, x, bias)
    np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-12)
    for (path, own), (_, theirs) in zip(trees.leaves(backward(dout)), trees.leaves(wanted_backward(dout)), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-11, err_msg=path)


@every
@pytest.mark.parametrize("kind", MIXERS)
def test_under_a_causal_core_the_future_has_no_influence(kind, name):
    rng, (params, whole, _) = np.random.default_rng(5), mixer(kind, name)
    x = rng.normal(size=(2, 6, 3))
    changed = np.concatenate([x[:, :4], rng.normal(size=(2, 2, 3))], axis=1)
    out, backward = whole(params, x)
    np.testing.assert_allclose(whole(params, changed)[0][:, :4], out[:, :4], rtol=0, atol=1e-14)
    dout = np.zeros_like(x)
    dout[:, 3] = rng.normal(size=(2, 3))
    assert not backward(dout)[1][:, 4:].any() and backward(dout)[1][:, 3].any()


def two_layers(run, layers, x):
    """Two attentions on a residual stream."""
    for layer in layers:
        x = x + run(layer, x)
    return x


@every
@pytest.mark.parametrize("how", ["bias", "mask"])
@pytest.mark.parametrize("kind", MIXERS)
def test_a_query_that_may_see_nothing_reads_zero_in_a_step_as_in_the_whole(kind, how, name):
    """The first text is padded on the left: its first query has one key, its own, and may not see it."""
    rng, (params, whole, step) = np.random.default_rng(6), mixer(kind, name)
    other, x = mixer(kind, name, seed=9).params, rng.normal(size=(2, 5, 3))
    hidden = np.zeros((2, 1, 5, 5), bool)
    hidden[0, ..., :2] = True                                # the first two keys of the first text
    given = {"bias": np.where(hidden, -np.inf, 0.3), "mask": None} if how == "bias" else {"bias": None, "mask": ~hidden}
    whole_of = lambda layer, x: whole(layer, x, given["bias"], mask=given["mask"])[0]  # noqa: E731
    for sizes in ([1] * 5, [2, 3], [1, 3, 1]):
        out = decoded(step, params, x, sizes, **given)[0]
        np.testing.assert_allclose(out, whole_of(params, x), rtol=0, atol=1e-12)
        np.testing.assert_array_equal(out[0, :2], np.broadcast_to(params.output.bias, (2, 3)))
        in_steps = lambda layer, x: decoded(step, layer, x, sizes, **given)[0]  # noqa: E731
        np.testing.assert_allclose(two_layers(in_steps, (params, other), x), two_layers(whole_of, (params, other), x), rtol=1e-12, atol=1e-12)


def test_causal_attention_is_softmax_attention_under_the_causal_mask():
    rng = np.random.default_rng(7)
    q, k, v = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 5, 4)), rng.normal(size=(2, 5, 4))
    mask = rng.random((2, 3, 5)) < 0.8
    for given, wanted in ((None, causal_mask(3, 5)), (mask, mask & causal_mask(3, 5))):
        out, backward = causal_attention(None, q, k, v, mask=given)
        expected, expected_backward = scaled_dot_product_attention(q, k, v, mask=wanted)
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-14)
        for own, theirs in zip(backward(out)[1:], expected_backward(out), strict=True):
            assert (own is None) == (theirs is None)
            if own is not None:
                np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-13)


def test_a_single_query_is_the_last_position_and_needs_no_mask():
    masks = []

    def spy(params, query, key, value, bias=None, *, mask=None):
        masks.append(mask)
        return softmax_attention(params, query, key, value, bias, mask=mask)

    q, k = np.ones((2, 1, 3)), np.ones((2, 4, 3))
    causal(spy)(None, q, k, k)
    causal(spy)(None, q, k, k, mask=np.ones((1, 4), bool))
    assert masks[0] is None and masks[1].shape == (1, 4)


def test_settings_are_the_same_inside_and_outside_of_causal():
    rng = np.random.default_rng(8)
    q, k, v = (rng.normal(size=(2, 5, 4)) for _ in range(3))
    inside, outside = causal(partial(soft_capped_attention, cap=0.5)), partial(causal(soft_capped_attention), cap=0.5)
    np.testing.assert_array_equal(inside(None, q, k, v)[0], outside(None, q, k, v)[0])


@pytest.mark.parametrize(
    ("core", "named"),
    [
        (partial(softmax_attention, scale=np.nan), "core.scale: got nan"),
        (causal(partial(softmax_attention, scale="large")), "core.scale: got 'large'"),
        (causal(partial(soft_capped_attention, cap=-1.0)), "core.cap: got -1.0"),
        (partial(causal_attention, scale=np.inf), "core.scale: got inf"),
        (softmax_attention(None, *np.ones((3, 2, 2)))[0], "core: got"),
    ],
)
def test_a_setting_of_a_core_that_cannot_be_is_named(core, named):
    params = mixer("multi-head", "softmax_attention").params
    with pytest.raises(ValueError, match=named):
        multi_head_attention(params, np.ones((1, 3, 3)), num_heads=2, core=core)


@pytest.mark.parametrize("name", ["softmax_attention", "sparsemax_attention", "relu_attention", "soft_capped_attention"])
def test_what_was_learned_is_not_dropped_in_silence_by_a_core_that_learns_nothing(name):
    for kind in MIXERS:
        params, whole, _ = mixer(kind, name)
        learned = CORES["scalable_softmax_attention"][1](np.random.default_rng(0), 2)
        with pytest.raises(ValueError, match="params: got ScalableSoftmax, wants None"):
            whole(params._replace(core=learned), np.ones((1, 3, 3)))


@pytest.mark.parametrize("name", [name for name, (_, learn) in CORES.items() if hasattr(learn(np.random.default_rng(0), 3), "_fields")])
def test_what_is_learned_is_of_the_core_s_own_kind_and_for_as_many_heads(name):
    (params, whole, _), x = mixer("multi-head", name), np.ones((1, 3, 3))
    if name != "polynomial_attention":                       # whose coefficients all heads share
        with pytest.raises(ValueError, match=rf"params\.core\.{params.core._fields[0]}: got 3 heads"):
            whole(params._replace(core=CORES[name][1](np.random.default_rng(0), 3)), x)
    with pytest.raises(ValueError, match="params: got Linear, wants"):
        whole(params._replace(core=params.query), x)


@pytest.mark.parametrize("kind", ["multi-head", "grouped"])
def test_rotated_keys_are_decoded_with_every_core_that_scores_them(kind):
    for name in CORES:
        rng, (params, whole, step) = np.random.default_rng(10), mixer(kind, name)
        x, turn = rng.normal(size=(1, 5, 3)), {"prepare": on_both(partial(rope, base=50.0))}
        out = decoded(partial(step, **turn), params, x, [2, 1, 2])[0]
        np.testing.assert_allclose(out, whole(params, x, **turn)[0], rtol=0, atol=1e-12, err_msg=name)


def test_the_checker_refuses_a_core_that_keeps_what_it_learned_to_itself():
    """As a window or cross-attention would that hands no gradient on to the parameters of the core inside."""
    params, whole, _ = mixer("window", "softmax_off_by_one_attention")

    def wrong(params, x):
        out, backward = whole(params, x)

        def forgetful(dout):
            dparams, dx, _ = backward(dout)
            return dparams._replace(core=trees.zeros_like(dparams.core)), dx

        return out, forgetful

    report = trusted(check_gradients)(wrong, params, np.random.default_rng(11).normal(size=(1, 3, 3)), second_opinion=False)
    assert [a.path for a in report.arguments if a.cause] == ["params.core.sink"]
