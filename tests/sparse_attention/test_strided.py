"""Strided and fixed attention: the textbook sum, the mask, the reshaped forms, and that two layers join every pair."""

import tracemalloc
from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.banded_attention import banded_attention
from minitransformers.attention.core import causal, causal_attention
from minitransformers.attention.grouped_query_attention import GroupedQueryAttention, grouped_query_attention
from minitransformers.attention.masks import padding_mask
from minitransformers.attention.multi_head_attention import MultiHeadAttention, multi_head_attention, multi_head_attention_step
from minitransformers.attention.prepare import on_both
from minitransformers.basics.linear import Linear
from minitransformers.foundation import check_gradients
from minitransformers.positional.rope import rope
from minitransformers.sparse_attention.fixed_attention_fast import fixed_attention_fast
from minitransformers.sparse_attention.strided import fixed_attention, fixed_pattern, strided, strided_pattern
from minitransformers.sparse_attention.strided_fast import strided_fast

PAIRS = {"strided": (strided, strided_fast), "fixed": (fixed_attention, fixed_attention_fast)}
SETTINGS = {
    "strided": [{}, {"local": False}],
    "fixed": [{}, {"local": False}, {"summary": 0}, {"summary": 2}, {"summary": 2, "local": False}],
}
EVERY = [pytest.param(name, form, more, id=f"{name}{'' if form == 0 else '-fast'}-{more}") for name in PAIRS for form in (0, 1) for more in SETTINGS[name]]
every = pytest.mark.parametrize(("name", "form", "more"), EVERY)
pattern = pytest.mark.parametrize(("name", "more"), [pytest.param(n, m, id=f"{n}-{m}") for n in PAIRS for m in SETTINGS[n]])
plain_and_fast = pytest.mark.parametrize("core", [core for pair in PAIRS.values() for core in pair])


def arrays(n, lead=(2, 3), seed=0, queries=None):
    rng = np.random.default_rng(seed)
    shapes = (n if queries is None else queries, 4), (n, 4), (n, 5)
    return [rng.normal(size=(*lead, *shape)) for shape in shapes]


def sees(name, i, j, *, stride, summary=1, local=True):
    """The paper's sets of connections, as sets."""
    if name == "strided":
        near, far = set(range(i - stride + 1, i + 1)), set(range(i, -1, -stride))
    else:
        near = set(range(i - i % stride, i + 1))
        far = {j for block in range(0, i + 1, stride) for j in range(block + stride - summary, block + stride) if j <= i}
    return j in ((near | far) if local else far)


def textbook(q, k, v, who_sees):
    """One query at a time, a softmax over the keys that it sees; the queries are the last positions."""
    rows, before = [], len(k) - len(q)
    for row in range(len(q)):
        keys = [j for j in range(len(k)) if who_sees(row + before, j)]
        powers = [anp.exp(anp.dot(q[row], k[j]) / q.shape[1] ** 0.5) for j in keys]
        rows.append(sum(p * v[j] for p, j in zip(powers, keys, strict=True)) / sum(powers) if keys else anp.zeros(v.shape[1]))
    return anp.stack(rows)


def assert_all_close(ours, theirs, atol=1e-12):
    for own, other in zip(ours, theirs, strict=True):
        assert (own is None) == (other is None)
        if own is not None:
            np.testing.assert_allclose(own, other, rtol=0, atol=atol)


@every
@pytest.mark.parametrize("queries", [10, 4, 1])
def test_it_is_the_textbook_sum_and_its_gradients_are_autograd_s(name, form, more, queries):
    args = arrays(10, lead=(), queries=queries)
    who_sees = lambda i, j: sees(name, i, j, stride=3, **more)  # noqa: E731
    out, backward = PAIRS[name][form](None, *args, stride=3, **more)
    np.testing.assert_allclose(out, textbook(*args, who_sees), rtol=0, atol=1e-12)
    dout = np.random.default_rng(1).normal(size=out.shape)
    assert_all_close(backward(dout)[1:4], autograd.grad(lambda *a: anp.sum(dout * textbook(*a, who_sees)), (0, 1, 2))(*args))


# Lengths of one position, shorter than the stride, a multiple of it, and neither; strides of one, and far too large.
@pattern
@pytest.mark.parametrize("stride", [2, 3, 5, 40])
@pytest.mark.parametrize("n", [1, 2, 4, 12, 23])
def test_the_reshaped_form_is_the_masked_one(name, more, stride, n):
    args = arrays(n, lead=(2, 1))
    (plain, plain_backward), (out, backward) = (core(None, *args, stride=stride, **more) for core in PAIRS[name])
    np.testing.assert_allclose(out, plain, rtol=0, atol=1e-13)
    dout = np.random.default_rng(2).normal(size=out.shape)
    assert_all_close(backward(dout), plain_backward(dout), 1e-13)


RNG = np.random.default_rng(3)
BIASES = {"no bias": None, "each": RNG.normal(size=(2, 3, 11, 11)), "a key": RNG.normal(size=(3, 1, 11)), "a query": RNG.normal(size=(11, 1))}
MASKS = {"no mask": None, "padding": padding_mask(np.array([11, 4]), 11), "each": RNG.random((2, 3, 11, 11)) < 0.7}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("bias", BIASES)
@pattern
def test_with_bias_and_mask_as_well(name, more, bias, mask):
    for queries in (11, 3):
        rows = [a if a is None or a.shape[-2] == 1 else a[..., 11 - queries :, :] for a in (BIASES[bias], MASKS[mask])]
        args = arrays(11, queries=queries)
        (plain, plain_backward), (out, backward) = (core(None, *args, rows[0], stride=4, mask=rows[1], **more) for core in PAIRS[name])
        np.testing.assert_allclose(out, plain, rtol=0, atol=1e-13)
        assert_all_close(backward(np.cos(out)), plain_backward(np.cos(out)), 1e-12)


def joined(*layers, residual=True):
    """Who reaches whom through layers, the first one first, each with a residual or without: a boolean product."""
    own = np.eye(len(layers[0]), dtype=bool)
    reached = own
    for layer in layers:
        reached = (layer | own if residual else layer).astype(int) @ reached > 0
    return reached


def joins_all(*layers, **how):
    return np.array_equal(joined(*layers, **how), np.tri(len(layers[0]), dtype=bool))


@pytest.mark.parametrize("n", [16, 19, 23])
@pytest.mark.parametrize("residual", [True, False])
def test_two_layers_with_both_patterns_join_every_pair(n, residual):
    for layer in (strided_pattern(n, n, stride=4, local=True), fixed_pattern(n, n, stride=4, summary=1, local=True)):
        assert not joins_all(layer, residual=residual)
        assert joins_all(layer, layer, residual=residual)


@pytest.mark.parametrize("n", [16, 19, 23])
@pytest.mark.parametrize("residual", [True, False])
def test_one_pattern_a_layer_joins_every_pair_if_strided_in_any_order(n, residual):
    near, far = np.tri(n, dtype=bool) & ~np.tri(n, k=-4, dtype=bool), strided_pattern(n, n, stride=4, local=False)
    assert joins_all(near, far, residual=residual) and joins_all(far, near, residual=residual)
    assert not joins_all(near, near) and not joins_all(far, far)


@pytest.mark.parametrize("n", [16, 19, 23])
def test_one_pattern_a_layer_joins_every_pair_if_fixed_with_blocks_first_and_a_residual(n):
    """A summary reads its own block, and is read. What a position read of its own block only the residual keeps."""
    blocks, summaries = fixed_pattern(n, n, stride=4, summary=0, local=True), fixed_pattern(n, n, stride=4, summary=1, local=False)
    assert joins_all(blocks, summaries)
    assert not joins_all(blocks, summaries, residual=False)
    assert not joins_all(summaries, blocks)


@plain_and_fast
def test_gradients_of_two_layers_reach_every_earlier_position(core):
    x = np.random.default_rng(4).normal(size=(19, 4))
    first, first_backward = core(None, x, x, x, stride=4)
    middle = x + first
    _, second_backward = core(None, middle, middle, middle, stride=4)
    for i in range(19):
        dout = np.zeros((19, 4))
        dout[i] = 1
        dmiddle = sum(second_backward(dout)[1:4])
        dx = dmiddle + sum(first_backward(dmiddle)[1:4])
        assert np.flatnonzero(dx.any(-1)).tolist() == list(range(i + 1))


@pytest.mark.parametrize("core", PAIRS["fixed"])
def test_before_the_first_summary_there_is_nothing_to_see_and_zero_is_read(core):
    q, k, v = arrays(11, lead=())
    out, backward = core(None, q, k, v, stride=5, summary=2, local=False)
    np.testing.assert_array_equal(out[:3], 0)
    assert np.abs(out[3:]).min() > 0
    np.testing.assert_array_equal(backward(np.ones_like(out))[1][:3], 0)
    first, first_backward = core(None, q[:3], k[:3], v[:3], stride=5, summary=2, local=False)
    assert not any(a.any() for a in (first, *first_backward(np.ones_like(first))[1:4]))


@pytest.mark.parametrize("core", PAIRS["strided"])
def test_near_keys_alone_are_a_band_and_a_stride_of_one_is_causal_attention(core):
    args = arrays(11)
    out, _ = core(None, *args, stride=20)
    np.testing.assert_allclose(out, causal_attention(None, *args)[0], rtol=0, atol=1e-13)
    for settings in ({"stride": 1}, {"stride": 1, "local": False}):
        np.testing.assert_allclose(core(None, *args, **settings)[0], causal_attention(None, *args)[0], rtol=0, atol=1e-13)
    far = [[i > j and (i - j) % 6 == 0 for j in range(11)] for i in range(11)]
    hidden = core(None, *args, stride=6, mask=~np.array(far))[0]
    np.testing.assert_allclose(hidden, banded_attention(None, *args, window=6)[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("core", PAIRS["fixed"])
def test_a_block_over_the_whole_text_is_causal_attention(core):
    args = arrays(11)
    for settings in ({"stride": 11}, {"stride": 30}, {"stride": 3, "summary": 3}, {"stride": 3, "summary": 3, "local": False}):
        np.testing.assert_allclose(core(None, *args, **settings)[0], causal_attention(None, *args)[0], rtol=0, atol=1e-13)


@plain_and_fast
def test_the_future_has_no_influence(core):
    q, k, v = arrays(11, lead=())
    out, backward = core(None, q, k, v, stride=3)
    np.testing.assert_allclose(core(None, q[:6], k[:6], v[:6], stride=3)[0], out[:6], rtol=0, atol=1e-13)
    dout = np.zeros_like(out)
    dout[5] = 1
    assert not any(gradient[6:].any() for gradient in backward(dout)[1:4])


@plain_and_fast
@pytest.mark.parametrize("rotated", [True, False])
def test_it_is_a_core_of_multi_head_attention_and_decodes(core, rotated):
    rng = np.random.default_rng(5)
    params = MultiHeadAttention(*(Linear(rng.normal(size=(8, 8)) / 2, None) for _ in range(4)))
    x, bias = rng.normal(size=(2, 11, 8)), rng.normal(size=(2, 11, 11))
    mask = padding_mask(np.array([11, 10]), 11) & ~padding_mask(np.array([0, 2]), 11)  # the second text is padded on both sides
    parts = {"core": partial(core, stride=3)} | ({"prepare": on_both(rope)} if rotated else {})
    whole, _ = multi_head_attention(params, x, bias, num_heads=2, mask=mask, **parts)
    in_causal, _ = multi_head_attention(params, x, bias, num_heads=2, mask=mask, **parts | {"core": causal(partial(core, stride=3))})
    np.testing.assert_allclose(in_causal, whole, rtol=0, atol=1e-12)
    for sizes in ([1] * 11, [4, 5, 1, 1]):
        state, start = None, 0
        for size in sizes:
            stop = start + size
            rows = {"bias": bias[:, start:stop, :stop], "mask": mask[..., :stop]}
            out, state = multi_head_attention_step(params, x[:, start:stop], state, num_heads=2, **rows, **parts)
            np.testing.assert_allclose(out, whole[:, start:stop], rtol=0, atol=1e-12)
            start = stop


@pattern
def test_grouped_queries_share_their_keys(name, more):
    rng = np.random.default_rng(6)
    params = GroupedQueryAttention(*(Linear(rng.normal(size=shape), None) for shape in ((5, 8), (5, 4), (5, 4), (8, 5))))
    x = rng.normal(size=(2, 10, 5))
    (plain, plain_backward), (out, backward) = (
        grouped_query_attention(params, x, num_heads=4, num_kv_heads=2, core=partial(core, stride=4, **more)) for core in PAIRS[name]
    )
    np.testing.assert_allclose(out, plain, rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(x)[1], plain_backward(x)[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("core", [strided_fast, fixed_attention_fast])
def test_memory_grows_with_the_power_one_and_a_half(core):
    def peak(n):
        args = arrays(n, lead=(1,))
        tracemalloc.start()
        out, backward = core(None, *args, stride=round(n**0.5))
        backward(out)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(4096) / peak(1024) < 9                       # 4^1.5 = 8, and a square would be 16


@plain_and_fast
def test_the_checker_refuses_a_backward_of_the_near_keys_alone(core):
    q, k, v = arrays(7, lead=())

    def wrong(q, k, v):
        out, _ = core(None, q, k, v, stride=3)
        return out, lambda dout: banded_attention(None, q, k, v, window=3)[1](dout)[1:4]

    report = check_gradients(wrong, q, k, v, second_opinion=False)
    assert not report.passed and report.error > 1e-2


@plain_and_fast
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"stride": 0}, "stride: got 0, wants a whole number of at least 1"),
        ({"stride": 2.5}, r"stride: got 2\.5"),
        ({"local": 1}, "local: got 1"),
        ({"mask": np.ones((9, 8), bool)}, "mask: got shape"),
        ({"params": np.ones(3)}, "params: got"),
        ({"query": np.ones((10, 4))}, "query: got 10 queries, wants at most as many as keys, 9"),
    ],
)
def test_what_cannot_be_is_refused(core, changes, named):
    given = dict(zip(("params", "query", "key", "value"), (None, *arrays(9, lead=())), strict=True)) | {"stride": 3} | changes
    args = [given.pop(name) for name in ("params", "query", "key", "value")]
    with pytest.raises(ValueError, match=named):
        core(*args, **given)


@pytest.mark.parametrize("core", PAIRS["fixed"])
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"summary": 4}, "summary: got 4, wants at most the stride of 3"),
        ({"summary": -1}, "summary: got -1"),
        ({"summary": 0, "local": False}, "summary: got 0, wants at least 1 where local is False"),
    ],
)
def test_a_summary_that_is_none_is_refused(core, changes, named):
    with pytest.raises(ValueError, match=named):
        core(None, *arrays(9), **{"stride": 3, **changes})


def test_the_patterns_of_small_numbers_are_what_the_page_shows():
    def drawn(sees):
        return ["".join(".x"[int(s)] for s in row) for row in sees]

    assert drawn(strided_pattern(3, 9, stride=3, local=True)) == ["x..xxxx..", ".x..xxxx.", "..x..xxxx"]
    assert drawn(fixed_pattern(3, 9, stride=3, summary=1, local=True)) == ["..x..xx..", "..x..xxx.", "..x..xxxx"]


@pytest.mark.parity
@pattern
def test_the_softmax_is_pytorch_s_under_the_same_mask(name, more):
    torch = pytest.importorskip("torch")
    args = arrays(13)
    mask = torch.tensor([[sees(name, i, j, stride=4, **more) for j in range(13)] for i in range(13)])
    out, backward = PAIRS[name][1](None, *args, stride=4, **more)
    tensors = [torch.tensor(a, requires_grad=True) for a in args]
    theirs = torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=mask).nan_to_num()
    blind = ~mask.numpy().any(-1)                            # theirs is NaN there
    np.testing.assert_allclose(out[..., ~blind, :], theirs.detach().numpy()[..., ~blind, :], rtol=0, atol=1e-9)
    if not blind.any():
        theirs.backward(torch.tensor(np.cos(out)))
        assert_all_close(backward(np.cos(out))[1:4], [t.grad for t in tensors], 1e-9)
