"""FlashAttention: the textbook sum tile by tile, dense attention that it equals in everything, parts that merge, and memory."""

import tracemalloc
from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from scipy.special import logsumexp

from minitransformers.attention.core import causal_attention
from minitransformers.attention.grouped_query_attention import (
    GroupedQueryAttention,
    grouped_query_attention,
    grouped_query_attention_step,
)
from minitransformers.attention.masks import causal_mask, padding_mask, segment_mask
from minitransformers.attention.multi_head_attention import (
    init_multi_head_attention,
    multi_head_attention,
    multi_head_attention_step,
)
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.basics.linear import Linear
from minitransformers.efficient.flash_attention import causal_flash_attention, flash_attention, flash_attention_with_total
from minitransformers.efficient.merge_attention import merge_attention
from minitransformers.foundation import check_gradients, trees

TILES = (1, 2, 3, 4, 5, 7, 100)


def arrays(n, batch=((2, 3), (2, 1), (2, 1)), queries=None, seed=0, d_head=5, d_value=4):
    rng = np.random.default_rng(seed)
    lengths = n if queries is None else queries, n, n
    return [rng.normal(size=(*b, length, d)) for b, length, d in zip(batch, lengths, (d_head, d_head, d_value), strict=True)]


def textbook(q, k, v, bias, visible, scale):
    """One query at a time over the keys that it may see; out and log_total, which is -50 where it sees none."""
    outs, totals = [], []
    for i in range(len(q)):
        seen = np.flatnonzero(visible[i])
        powers = [anp.exp(scale * anp.sum(q[i] * k[j]) + bias[i, j]) for j in seen]
        outs.append(sum((p * v[j] for p, j in zip(powers, seen, strict=True)), 0 * v[0]) / (sum(powers) if powers else 1))
        totals.append(anp.log(sum(powers)) if powers else 0 * q[i, 0] - 50.0)
    return anp.stack(outs), anp.stack(totals)


def visible_to(queries, keys, diagonal, mask):
    i, j = np.arange(queries)[:, None], np.arange(keys)
    return mask & (j <= i + (keys if diagonal is None else diagonal))


@pytest.mark.parametrize("diagonal", [None, 2, -1])
@pytest.mark.parametrize("tile", TILES)
def test_it_is_the_textbook_sum_and_its_gradients_are_autograd_s(tile, diagonal):
    rng = np.random.default_rng(1)
    q, k, v = arrays(6, batch=((), (), ()), queries=4)
    bias, mask, scale = rng.normal(size=(4, 6)), rng.random((4, 6)) < 0.7, -0.4
    mask[2] = False                                          # a query that may attend to nothing
    visible = visible_to(4, 6, diagonal, mask)
    (out, log_total), backward = flash_attention_with_total(q, k, v, bias, mask=mask, scale=scale, diagonal=diagonal, tile=tile)
    wanted, totals = textbook(q, k, v, bias, visible, scale)
    np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(log_total, np.where(visible.any(-1), totals, -np.inf), rtol=0, atol=1e-12)
    dout, dlog_total = rng.normal(size=(4, 4)), rng.normal(size=4)

    def weighed(*args):
        outs, totals = textbook(*args, visible, scale)
        return anp.sum(dout * outs) + anp.sum(dlog_total * totals)

    for own, theirs in zip(backward((dout, dlog_total)), autograd.grad(weighed, (0, 1, 2, 3))(q, k, v, bias), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


def assert_equal_attention(core, dense, arrays, *config, atol=1e-12):
    """Outputs and all gradients of a core and of a dense one, (None, *arrays) under both configurations."""
    own_config, dense_config = config if len(config) == 2 else (config[0], {})
    (out, backward), (wanted, dense_backward) = core(None, *arrays, **own_config), dense(None, *arrays, **dense_config)
    np.testing.assert_allclose(out, wanted, rtol=0, atol=atol)
    dout = np.random.default_rng(8).normal(size=out.shape)
    for own, theirs in zip(backward(dout), dense_backward(dout), strict=True):
        assert (own is None) == (theirs is None)
        if own is not None:
            assert own.shape == theirs.shape
            np.testing.assert_allclose(own, theirs, rtol=0, atol=atol)


def dense_attention(params, *arrays, **config):
    out, backward = scaled_dot_product_attention(*arrays, **config)
    return out, lambda dout: (None, *backward(dout))


RNG = np.random.default_rng(0)
HIDDEN = np.where(RNG.random((3, 4, 6)) < 0.3, -np.inf, RNG.normal(size=(3, 4, 6)))
HIDDEN[1, 2] = -np.inf
BIASES = {
    "no bias": None,
    "each": RNG.normal(size=(2, 3, 4, 6)),
    "a head": RNG.normal(size=(3, 1, 1)),
    "a key": RNG.normal(size=(1, 6)),
    "a query of a text": RNG.normal(size=(2, 1, 4, 1)),
    "more axes": RNG.normal(size=(5, 1, 3, 4, 6)),
    "hides": HIDDEN,
}
MASKS = {
    "no mask": None,
    "padding": padding_mask(np.array([4, 0]), 6),
    "each": RNG.random((2, 3, 4, 6)) < 0.6,
    "a query": np.array([[True], [False], [True], [True]]),
    "more axes": RNG.random((5, 1, 1, 4, 6)) < 0.6,
}
BATCHES = {  # queries, keys, values
    "alike": ((2, 3), (2, 3), (2, 3)),
    "shared keys": ((2, 3), (2, 1), (2, 1)),
    "one text": ((2, 3), (3,), ()),
    "more queries": ((5, 2, 3), (2, 3), (2, 3)),
    "more keys": ((), (5, 2, 3), (3,)),
    "more values": ((3,), (2, 1), (5, 2, 3)),
}


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("mask", MASKS)
def test_it_equals_dense_attention_with_every_bias_mask_and_broadcast(bias, mask):
    config = {"mask": MASKS[mask], "scale": 0.3}
    for i, batch in enumerate(BATCHES.values()):
        given = [*arrays(6, batch=batch, queries=4), BIASES[bias]]
        tile, other = [(2, 9), (5, 2), (9, 5)][i % 3]        # one head at a time, some, and all
        assert_equal_attention(flash_attention, dense_attention, given, {**config, "tile": tile}, config)
        assert_equal_attention(causal_flash_attention, causal_attention, given, {**config, "tile": other}, config)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 7), (2, 7), (6, 7), (7, 7), (12, 12), (4, 12)])
def test_it_equals_dense_attention_at_every_length_and_tile(queries, keys, tile):
    given = arrays(keys, queries=queries)
    assert_equal_attention(flash_attention, dense_attention, given, {"tile": tile}, {})
    assert_equal_attention(causal_flash_attention, causal_attention, given, {"tile": tile}, {})


def test_more_queries_than_keys_are_no_positions_but_a_plain_attention():
    given = arrays(3, queries=7)
    assert_equal_attention(flash_attention, dense_attention, given, {"tile": 2}, {})
    with pytest.raises(ValueError, match="query: got 7 queries, wants at most as many as keys, 3"):
        causal_flash_attention(None, *given)


@pytest.mark.parametrize("tile", TILES)
def test_the_log_total_is_the_logarithm_of_what_a_softmax_divides_by(tile):
    q, k, v = arrays(7)
    log_total = flash_attention_with_total(q, k, v, tile=tile)[0][1]
    np.testing.assert_allclose(log_total, logsumexp(q @ k.swapaxes(-1, -2) * 5**-0.5, axis=-1), rtol=0, atol=1e-14)


@pytest.mark.parametrize("cut", range(7))
def test_keys_cut_in_two_anywhere_merge_into_the_whole_with_all_gradients(cut):
    """Causally, too: the diagonal of the second part counts from its first key."""
    q, k, v = arrays(6)
    whole, whole_backward = flash_attention_with_total(q, k, v, diagonal=0, tile=2)
    dout = tuple(np.random.default_rng(3).normal(size=a.shape) for a in whole)
    parts, ranges = [], [r for r in (slice(0, cut), slice(cut, 6)) if r.start < r.stop]
    for r in ranges:
        parts.append(flash_attention_with_total(q, k[..., r, :], v[..., r, :], diagonal=-r.start, tile=2))
    if len(parts) == 1:
        for own, theirs in zip(parts[0][0], whole, strict=True):
            np.testing.assert_array_equal(own, theirs)
        return
    merged, merge_backward = merge_attention(*parts[0][0], *parts[1][0])
    for own, theirs in zip(merged, whole, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-14)
    upstream = merge_backward(dout)
    (dq1, dk1, dv1, _), (dq2, dk2, dv2, _) = (back(d) for (_, back), d in zip(parts, (upstream[:2], upstream[2:]), strict=True))
    gradients = dq1 + dq2, np.concatenate([dk1, dk2], axis=-2), np.concatenate([dv1, dv2], axis=-2)
    for own, theirs in zip(gradients, whole_backward(dout), strict=False):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("tile", [1, 2, 100])
def test_a_query_that_sees_no_key_reads_zero_and_sends_no_gradient(tile):
    q, k, v = arrays(5, batch=((2,),) * 3)
    mask = np.ones((2, 5, 5), bool)
    mask[0, 3], mask[1] = False, False
    bias = np.zeros((5, 5))
    bias[1] = -np.inf
    (out, log_total), backward = flash_attention_with_total(q, k, v, bias, mask=mask, tile=tile)
    blind = ~mask.any(-1) | (bias == -np.inf).all(-1)
    assert not out[blind].any() and np.array_equal(log_total == -np.inf, blind)
    dquery, dkey, dvalue, dbias = backward((np.ones_like(out), np.ones_like(log_total)))
    assert not dquery[blind].any() and not dkey[1].any() and not dvalue[1].any() and not dbias[1].any()
    assert dquery[~blind].all() and not any(np.isnan(g).any() for g in (dquery, dkey, dvalue, dbias))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_of_thousands_neither_overflow_nor_spoil_the_result(dtype):
    rng = np.random.default_rng(4)
    q, k, v = (rng.normal(size=(9, 4)).astype(dtype) for _ in range(3))
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        out, backward = causal_flash_attention(None, 1e4 * q, k, v, tile=2)
        gradients = backward(out)
    np.testing.assert_allclose(out, causal_attention(None, 1e4 * q.astype(float), k.astype(float), v.astype(float))[0], atol=2e-3)
    assert all(np.isfinite(g).all() for g in gradients[1:4])


def test_falling_and_rising_scores_come_out_alike():
    """The order in which the largest score turns up decides which sums are corrected, and nothing else."""
    q, k, v = np.ones((1, 1)), np.linspace(-400, 400, 41)[:, None], np.arange(41.0)[:, None]
    for order in (slice(None), slice(None, None, -1)):
        out = flash_attention(None, q, k[order], v[order], tile=1)[0]
        np.testing.assert_allclose(out, 40, rtol=0, atol=1e-6)


def test_the_order_of_the_keys_changes_nothing():
    q, k, v = arrays(11)
    order = np.random.default_rng(5).permutation(11)
    plain, shuffled = (flash_attention(None, q, a, b, tile=3)[0] for a, b in ((k, v), (k[..., order, :], v[..., order, :])))
    np.testing.assert_allclose(shuffled, plain, rtol=0, atol=1e-14)


def test_segments_and_padding_are_masks_like_any_other():
    q, k, v = arrays(8, batch=((2, 3),) * 3)
    mask = segment_mask(np.array([[0, 0, 1, 1, 1, 2, 2, 2], [0] * 5 + [1] * 3])) & padding_mask(np.array([7, 8]), 8)
    assert_equal_attention(causal_flash_attention, causal_attention, (q, k, v), {"mask": mask, "tile": 2}, {"mask": mask})


def test_in_float32_it_is_as_close_to_the_truth_as_dense_attention():
    rng = np.random.default_rng(6)
    exact = [rng.normal(size=(300, 16)) for _ in range(4)]
    single = [a.astype(np.float32) for a in exact]
    errors = []
    for core in (causal_flash_attention, causal_attention):
        (truth, truth_backward), (out, backward) = core(None, *exact[:3]), core(None, *single[:3])
        pairs = zip((out, *backward(single[3])[1:4]), (truth, *truth_backward(exact[3])[1:4]), strict=True)
        errors.append(max(np.abs(a - b).max() for a, b in pairs))
        assert out.dtype == np.float32
    assert errors[0] < 3 * errors[1] < 3e-5


def test_what_nobody_sees_is_not_even_read():
    """NaN in tiles that lie beyond the diagonal, or that the mask rules out, reaches nothing, forward or backward."""
    q, k, v = arrays(6, batch=((2,),) * 3)
    k[:, 4:], v[:, 4:] = np.nan, np.nan
    mask = np.arange(6) < 4
    for config in ({"diagonal": -2}, {"mask": mask[None]}, {"mask": mask[None], "diagonal": 3}):
        result, backward = flash_attention_with_total(q, k, v, tile=2, **config)
        gradients = backward(tuple(map(np.ones_like, result)))
        assert not any(np.isnan(a).any() for a in (*result, *gradients[:3]))
        assert not gradients[1][:, 4:].any() and not gradients[2][:, 4:].any()


# Memory ------------------------------------------------------------------------------------------------------------------


def peak(core, n, **config):
    """Bytes at the peak of forward and backward, and those that are kept between, of one head of width 16 in float32."""
    rng = np.random.default_rng(0)
    q, k, v, dout = (rng.standard_normal((n, 16), np.float32) for _ in range(4))
    tracemalloc.start()
    result = core(None, q, k, v, **config)
    kept = tracemalloc.get_traced_memory()[0]
    result[1](dout)
    size = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return size, kept


@pytest.mark.parametrize("core", [flash_attention, causal_flash_attention])
def test_no_array_of_all_pairs_is_ever_made_not_even_of_booleans(core):
    dense = {flash_attention: dense_attention, causal_flash_attention: causal_attention}[core]
    peak(core, 64), peak(dense, 64)                          # what the first call imports and caches
    size, kept = peak(core, 2048, tile=128)
    assert size < 2048**2 / 4                                # a quarter of a byte for each pair
    assert size < 0.03 * peak(dense, 2048)[0]
    assert kept < 1.1 * 4 * 2048 * 17 + 20_000               # out and log_total, besides what was given


@pytest.mark.parametrize("core", [flash_attention, causal_flash_attention])
def test_memory_grows_with_the_length_and_not_with_its_square(core):
    peak(core, 64)
    sizes = [peak(core, n, tile=128)[0] for n in (512, 1024, 2048)]
    assert sizes[2] - sizes[1] < 2.2 * (sizes[1] - sizes[0])  # a straight line doubles the step, a square makes it fourfold
    assert sizes[2] / sizes[0] < 4.2


def test_a_mask_and_a_bias_of_the_caller_are_used_a_tile_at_a_time():
    mask, bias = causal_mask(1024), np.zeros((1, 1024), np.float32)
    peak(flash_attention, 64)
    core = lambda params, q, k, v, **config: flash_attention(params, q, k, v, bias, **config)  # noqa: E731
    assert peak(core, 1024, mask=mask, tile=64)[0] < 1024**2 / 2


# In the attentions -------------------------------------------------------------------------------------------------------


def small_grouped():
    rng = np.random.default_rng(7)
    params = GroupedQueryAttention(*(Linear(rng.normal(size=s) / 2, None) for s in ((5, 8), (5, 4), (5, 4), (8, 5))))
    return params, rng.normal(size=(2, 7, 5)), {"num_heads": 4, "num_kv_heads": 2}


@pytest.mark.parametrize("tile", [1, 2, 3, 100])
def test_as_a_core_it_is_the_dense_core_of_multi_head_and_of_grouped_query_attention(tile):
    rng, core = np.random.default_rng(7), partial(causal_flash_attention, tile=tile)
    params, x = init_multi_head_attention(rng, 6, num_heads=2, dtype=np.float64), rng.normal(size=(2, 7, 6))
    grouped, y, heads = small_grouped()
    for attention, args, config in ((multi_head_attention, (params, x), {"num_heads": 2}), (grouped_query_attention, (grouped, y), heads)):
        bias, mask = rng.normal(size=(config["num_heads"], 7, 7)), padding_mask(np.array([7, 4]), 7)
        (out, backward), (wanted, dense_backward) = (attention(*args, bias, mask=mask, core=c, **config) for c in (core, causal_attention))
        np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-12)
        dout = rng.normal(size=out.shape)
        for (path, own), (_, theirs) in zip(trees.leaves(backward(dout)), trees.leaves(dense_backward(dout)), strict=True):
            np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12, err_msg=path)


@pytest.mark.parametrize("sizes", [[1] * 7, [7], [3, 1, 3], [5, 2]])
def test_decoding_equals_the_whole_however_many_positions_a_step_takes(sizes):
    rng, core = np.random.default_rng(7), partial(causal_flash_attention, tile=2)
    params, x = init_multi_head_attention(rng, 6, num_heads=2, dtype=np.float64), rng.normal(size=(2, 7, 6))
    grouped, y, heads = small_grouped()
    cases = [
        (multi_head_attention, multi_head_attention_step, params, x, {"num_heads": 2}),
        (grouped_query_attention, grouped_query_attention_step, grouped, y, heads),
    ]
    for attention, step, p, z, config in cases:
        outs, state, start = [], None, 0
        for size in sizes:
            out, state = step(p, z[:, start : start + size], state, core=core, **config)
            outs.append(out)
            start += size
        np.testing.assert_allclose(np.concatenate(outs, axis=1), attention(p, z, **config)[0], rtol=0, atol=1e-12)


def test_it_learns_nothing():
    for core in (flash_attention, causal_flash_attention):
        with pytest.raises(ValueError, match="params: got"):
            core(np.ones(2), *arrays(3))
        params, x = init_multi_head_attention(np.random.default_rng(0), 4, num_heads=2), np.ones((3, 4), np.float32)
        with pytest.raises(ValueError, match="params: got ndarray, wants None"):
            multi_head_attention(params._replace(core=np.ones(2, np.float32)), x, num_heads=2, core=core)


@pytest.mark.parametrize("tile", [0, -1, 2.0])
def test_a_tile_that_is_none_is_refused(tile):
    for attention in (flash_attention_with_total, partial(flash_attention, None), partial(causal_flash_attention, None)):
        with pytest.raises(ValueError, match="tile: got"):
            attention(*arrays(3), tile=tile)


# Wrong ones --------------------------------------------------------------------------------------------------------------


def test_the_checker_refuses_a_backward_that_forgets_what_all_scores_of_a_query_share():
    """With dlog_total = out . dout in the place of 0 the shared number is gone."""

    def wrong(q, k, v):
        (out, log_total), backward = flash_attention_with_total(q, k, v, tile=2)
        return (out, log_total), lambda dout: backward((dout[0], np.vecdot(dout[0], out)))[:3]

    report = check_gradients(wrong, *arrays(4, batch=((), (), ())))
    assert [a.error > 1e-2 for a in report.arguments] == [True, True, False]


def test_the_checker_refuses_a_gradient_of_the_log_total_that_is_left_out():
    def wrong(q, k, v):
        result, backward = flash_attention_with_total(q, k, v, tile=2)
        return result, lambda dout: backward((dout[0], 0 * dout[1]))[:3]

    report = check_gradients(wrong, *arrays(4, batch=((), (), ())))
    assert [a.error > 1e-2 for a in report.arguments] == [True, True, False]


# Parity ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize("tile", [1, 4, 256])
@pytest.mark.parametrize("queries", [9, 4])
def test_it_is_pytorch_s_attention(queries, tile):
    torch = pytest.importorskip("torch")
    sdpa = torch.nn.functional.scaled_dot_product_attention
    given = arrays(9, batch=((2, 4), (2, 2), (2, 2)), queries=queries, d_value=5)
    groups = [a.reshape(2, 2, -1, *a.shape[-2:]) for a in given]
    allowed = torch.tensor(causal_mask(queries, 9).copy())   # its is_causal=True aligns to the first key
    for core, mask in ((flash_attention, None), (causal_flash_attention, allowed)):
        tensors = [torch.tensor(a, requires_grad=True) for a in given]
        theirs = sdpa(*tensors, attn_mask=mask, enable_gqa=True)
        out, backward = core(None, *groups, tile=tile)
        np.testing.assert_allclose(out.reshape(theirs.shape), theirs.detach(), rtol=0, atol=1e-9)
        dout = np.random.default_rng(3).normal(size=out.shape)
        theirs.backward(torch.tensor(dout.reshape(theirs.shape)))
        for own, tensor in zip(backward(dout)[1:4], tensors, strict=True):
            np.testing.assert_allclose(own.reshape(tensor.shape), tensor.grad, rtol=0, atol=1e-9)


@pytest.mark.parity
def test_its_log_total_is_pytorch_s_flash_kernel_s():
    torch = pytest.importorskip("torch")
    q, k, v = (a.reshape(1, *a.shape) for a in arrays(8, batch=((2,),) * 3, d_value=5))
    tensors = [torch.tensor(a) for a in (q, k, v)]
    out, log_total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*tensors, 0.0, True)
    (ours, own_total), _ = flash_attention_with_total(q, k, v, diagonal=0, tile=3)
    np.testing.assert_allclose(ours, out, rtol=0, atol=1e-9)
    np.testing.assert_allclose(own_total, log_total.reshape(own_total.shape), rtol=0, atol=1e-9)
