"""Longformer's window, global columns and global rows: the textbook sum, the dense mask, the block forms, and the reference."""

import tracemalloc
from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.banded_attention import banded_attention
from minitransformers.attention.core import causal, softmax_attention
from minitransformers.attention.grouped_query_attention import GroupedQueryAttention, grouped_query_attention
from minitransformers.attention.masks import padding_mask
from minitransformers.attention.multi_head_attention import MultiHeadAttention, multi_head_attention, multi_head_attention_step
from minitransformers.attention.prepare import on_both
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.basics.linear import Linear
from minitransformers.foundation import check_gradients
from minitransformers.positional.rope import rope
from minitransformers.sparse_attention import local_global_attention_blocks as blocks_module
from minitransformers.sparse_attention.local_global_attention_blocks import local_global_attention_blocks
from minitransformers.sparse_attention.longformer import local_global_attention, longformer, pattern
from minitransformers.sparse_attention.longformer_blocks import longformer_blocks

CORES = {"plain": local_global_attention, "blocks": local_global_attention_blocks}
KERNELS = {"plain": longformer, "blocks": longformer_blocks}
every_core = pytest.mark.parametrize("core", CORES.values(), ids=CORES)
every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


def arrays(n, globals_=None, lead=(2, 3), seed=0):
    """q, k, v, and with a number of globals the three of the global rows as well."""
    rng = np.random.default_rng(seed)
    shapes = [(n, 4), (n, 4), (n, 5)] + ([] if globals_ is None else [(globals_, 4), (n, 4), (n, 5)])
    return [rng.normal(size=(*lead, *shape)) for shape in shapes]


def sees(i, j, window, global_positions, dilation, looks_back):
    """Whether position i sees position j, in words."""
    near = abs(i - j) in [dilation * steps for steps in range(window + 1)]
    return (near or j in global_positions) and (j <= i or not looks_back)


def textbook(q, k, v, who_sees):
    """One query at a time, a softmax over the keys that it sees."""
    rows = []
    for i in range(len(q)):
        keys = [j for j in range(len(k)) if who_sees(i, j)]
        powers = [anp.exp(anp.dot(q[i], k[j]) / q.shape[1] ** 0.5) for j in keys]
        rows.append(sum(p * v[j] for p, j in zip(powers, keys, strict=True)) / sum(powers) if keys else anp.zeros(v.shape[1]))
    return anp.stack(rows)


def textbook_longformer(q, k, v, gq, gk, gv, *, window, global_positions, dilation, real):
    local = textbook(q, k, v, lambda i, j: real[j] and sees(i, j, window, global_positions, dilation, False))
    rows = textbook(gq, gk, gv, lambda i, j: real[j])
    return anp.stack([rows[global_positions.index(i)] if i in global_positions else local[i] for i in range(len(q))])


def assert_all_close(ours, theirs, atol):
    for own, other in zip(ours, theirs, strict=True):
        assert (own is None) == (other is None)
        if own is not None:
            np.testing.assert_allclose(own, other, rtol=0, atol=atol)


@every_kernel
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("global_positions", [(0,), (6, 2)])
def test_it_is_the_textbook_sum_and_its_gradients_are_autograd_s(kernel, global_positions, dilation):
    args = arrays(9, len(global_positions), lead=())
    settings = {"window": 2, "global_positions": global_positions, "dilation": dilation}
    real = np.arange(9) < 8
    out, backward = kernel(*args, **settings, mask=real[None])
    expected = partial(textbook_longformer, **settings, real=real)
    np.testing.assert_allclose(out, expected(*args), rtol=0, atol=1e-12)
    dout = np.random.default_rng(1).normal(size=out.shape)
    assert_all_close(backward(dout), autograd.grad(lambda *a: anp.sum(dout * expected(*a)), tuple(range(6)))(*args), 1e-12)


@every_core
@pytest.mark.parametrize("looks_back", [True, False])
@pytest.mark.parametrize("queries", [1, 4, 9])
def test_the_core_is_the_textbook_sum_also_for_the_last_queries(core, queries, looks_back):
    q, k, v = arrays(9, lead=())
    settings = {"window": 1, "global_positions": (7, 2), "dilation": 3}
    who_sees = lambda row, j: sees(row + 9 - queries, j, 1, (7, 2), 3, looks_back)  # noqa: E731
    args = q[9 - queries :], k, v
    out, backward = core(None, *args, **settings, causal=looks_back)
    np.testing.assert_allclose(out, textbook(*args, who_sees), rtol=0, atol=1e-12)
    dout = np.random.default_rng(1).normal(size=out.shape)
    theirs = autograd.grad(lambda *a: anp.sum(dout * textbook(*a, who_sees)), (0, 1, 2))(*args)
    assert_all_close(backward(dout)[1:4], theirs, 1e-12)


# Window, positions, dilation: blocks shorter and longer than the text, that divide it or do not, a text of one position.
@pytest.mark.parametrize("sizes", [(16, 128), (2, 3)], ids=str)
@pytest.mark.parametrize("dilation", [1, 2, 40])
@pytest.mark.parametrize("n", [1, 2, 12, 35])
@pytest.mark.parametrize("window", [1, 4, 50])
def test_blocks_change_nothing_but_the_time_it_takes(window, n, dilation, sizes, monkeypatch):
    monkeypatch.setattr(blocks_module, "_SIZES", sizes)
    rng = np.random.default_rng(2)
    args = arrays(n, lead=(1,), seed=3)
    for global_positions in ((), tuple(range(0, n, 3))):
        for looks_back in (True, False):
            settings = {"window": window, "global_positions": global_positions, "dilation": dilation, "causal": looks_back}
            (plain, plain_backward), (out, backward) = (core(None, *args, **settings) for core in CORES.values())
            np.testing.assert_allclose(out, plain, rtol=0, atol=1e-12)
            dout = rng.normal(size=out.shape)
            assert_all_close(backward(dout), plain_backward(dout), 1e-12)


RNG = np.random.default_rng(4)
BIASES = {"no bias": None, "each": RNG.normal(size=(2, 3, 9, 9)), "a key": RNG.normal(size=(3, 1, 9)), "a query": RNG.normal(size=(9, 1))}
MASKS = {
    "no mask": None,
    "padding": padding_mask(np.array([9, 4]), 9),
    "each": RNG.random((2, 3, 9, 9)) < 0.7,
    "a query": RNG.random((9, 1)) < 0.7,
}


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("mask", MASKS)
def test_with_bias_and_mask_the_blocks_are_the_plain_core(bias, mask):
    for queries, looks_back in ((9, False), (9, True), (3, True)):
        q, k, v = arrays(9)
        rows = [a if a is None or a.shape[-2] == 1 else a[..., 9 - queries :, :] for a in (BIASES[bias], MASKS[mask])]
        settings = {"window": 2, "global_positions": (8, 1), "causal": looks_back, "mask": rows[1]}
        (plain, plain_backward), (out, backward) = (core(None, q[..., 9 - queries :, :], k, v, rows[0], **settings) for core in CORES.values())
        np.testing.assert_allclose(out, plain, rtol=0, atol=1e-12)
        assert_all_close(backward(np.cos(plain)), plain_backward(np.cos(plain)), 1e-12)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("global_positions", [(), (0,), (8, 3)])
def test_the_kernel_in_blocks_is_the_plain_kernel(global_positions, mask):
    args = arrays(9, len(global_positions)) if global_positions else arrays(9)
    settings = {"window": 2, "global_positions": global_positions, "mask": MASKS[mask]}
    (plain, plain_backward), (out, backward) = (kernel(*args, **settings) for kernel in KERNELS.values())
    np.testing.assert_allclose(out, plain, rtol=0, atol=1e-12)
    both = [b(np.cos(plain)) for b in (backward, plain_backward)]
    assert_all_close(*(grads if global_positions else grads[:3] for grads in both), 1e-12)
    if not global_positions:
        assert both[0][3:] == both[1][3:] == (None, None, None)


@every_kernel
def test_a_window_over_the_whole_text_is_dense_attention(kernel):
    args = arrays(7)
    out, backward = kernel(*args, window=6)
    dense, dense_backward = scaled_dot_product_attention(*args)
    np.testing.assert_allclose(out, dense, rtol=0, atol=1e-12)
    assert_all_close(backward(out)[:3], dense_backward(out)[:3], 1e-12)


@every_kernel
def test_with_all_positions_global_and_projections_alike_it_is_dense_attention(kernel):
    q, k, v = arrays(6)
    order = [3, 0, 5, 1, 4, 2]
    out, _ = kernel(q, k, v, q[..., order, :], k, v, window=1, global_positions=order)
    np.testing.assert_allclose(out, scaled_dot_product_attention(q, k, v)[0], rtol=0, atol=1e-12)


@every_kernel
def test_local_rows_use_the_local_projections_of_global_keys_and_global_rows_their_own(kernel):
    args = arrays(9, 1, lead=())
    names = ("query", "key", "value", "global_query", "global_key", "global_value")
    before, _ = kernel(*args, window=2, global_positions=(4,))
    for i, name in enumerate(names):
        changed = [a + (i == place) for place, a in enumerate(args)]
        after, _ = kernel(*changed, window=2, global_positions=(4,))
        moved = np.flatnonzero((np.abs(before - after) > 1e-9).any(-1)).tolist()
        assert moved == ([4] if "global" in name and name != "global_key" else [] if "key" in name else [i for i in range(9) if i != 4]), name
    args[4][3] += 1                                          # adding to every key alike changes no weight: to one, it does
    moved = np.flatnonzero((before != kernel(*args, window=2, global_positions=(4,))[0]).any(-1)).tolist()
    assert moved == [4]


@every_core
def test_a_key_that_is_near_and_global_counts_once(core):
    q, k, v = arrays(5)
    out, _ = core(None, q, k, v, window=4, global_positions=(2, 3))
    np.testing.assert_allclose(out, scaled_dot_product_attention(q, k, v)[0], rtol=0, atol=1e-13)


@every_core
@pytest.mark.parametrize("looks_back", [True, False])
def test_without_globals_it_is_banded_attention(core, looks_back):
    args = arrays(11)
    out, _ = core(None, *args, window=3, causal=looks_back)
    wanted, _ = banded_attention(None, *args, window=4, ahead=0 if looks_back else 3)
    np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-13)


@every_core
def test_a_dilated_window_is_a_window_in_each_residue_class(core):
    q, k, v = arrays(11)
    out, _ = core(None, q, k, v, window=2, dilation=3)
    for r in range(3):
        part, _ = core(None, *(a[..., r::3, :] for a in (q, k, v)), window=2)
        np.testing.assert_allclose(out[..., r::3, :], part, rtol=0, atol=1e-13)


def influence(kernel, layers, n, position, **settings):
    """Which positions the output at one position depends on, after so many layers with a residual."""
    args = arrays(n, len(settings.get("global_positions", ())) or None, lead=())
    x, backwards = args[0], []
    rng = np.random.default_rng(5)
    maps = rng.normal(size=(layers, 6, 4, 4)) / 2
    chosen = list(settings.get("global_positions", ()))
    for m in maps:
        streams = [x @ m[0], x @ m[1], x @ m[2]] + ([(x @ m[3])[chosen], x @ m[4], x @ m[5]] if chosen else [])
        out, backward = kernel(*streams, **settings)
        backwards.append((backward, m))
        x = x + out
    dx = np.zeros_like(x)
    dx[position] = 1
    for backward, m in reversed(backwards):
        gradients = list(backward(dx)[: 6 if chosen else 3])
        if chosen:
            rows = np.zeros_like(dx)
            rows[chosen] = gradients[3]
            gradients[3] = rows
        dx = dx + sum(g @ w.T for g, w in zip(gradients, m, strict=False))
    return np.flatnonzero((dx != 0).any(-1)).tolist()


@every_kernel
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_layers_reach_exactly_layers_times_window_to_each_side(kernel, layers):
    assert influence(kernel, layers, 19, 9, window=2) == list(range(9 - 2 * layers, 9 + 2 * layers + 1))


@every_kernel
def test_a_global_token_joins_all_in_two_layers(kernel):
    assert influence(kernel, 1, 19, 15, window=1, global_positions=(3,)) == [3, 14, 15, 16]
    assert influence(kernel, 1, 19, 3, window=1, global_positions=(3,)) == list(range(19))
    assert influence(kernel, 2, 19, 15, window=1, global_positions=(3,)) == list(range(19))


@every_core
def test_under_causal_the_future_has_no_influence(core):
    q, k, v = arrays(9, lead=())
    settings = {"window": 2, "global_positions": (6, 1), "causal": True}
    out, backward = core(None, q, k, v, **settings)
    np.testing.assert_array_equal(core(None, q[:5], k[:5], v[:5], **settings)[0].round(13), out[:5].round(13))
    dout = np.zeros_like(out)
    dout[4] = 1
    _, _, dk, dv, _ = backward(dout)
    assert np.flatnonzero(dv.any(-1)).tolist() == np.flatnonzero(dk.any(-1)).tolist() == [1, 2, 3, 4]


@every_core
def test_a_position_that_may_see_nothing_reads_zero(core):
    q, k, v = arrays(7, lead=())
    out, backward = core(None, q, k, v, window=1, global_positions=(0,), mask=np.array([[0, 0, 0, 0, 0, 1, 1]], bool))
    np.testing.assert_array_equal(out[:4], 0)
    assert np.abs(out[4:]).min() > 0
    _, dq, dk, dv, _ = backward(np.ones_like(out))
    assert not dq[:4].any() and not dk[:5].any() and not dv[:5].any()


@every_core
@pytest.mark.parametrize("rotated", [True, False])
def test_it_is_a_core_of_multi_head_attention_and_decodes(core, rotated):
    """Global position 5 has not come yet in the first steps."""
    rng = np.random.default_rng(6)
    params = MultiHeadAttention(*(Linear(rng.normal(size=(8, 8)) / 2, None) for _ in range(4)))
    x, bias = rng.normal(size=(2, 8, 8)), rng.normal(size=(2, 8, 8))
    pieces = {"core": partial(core, window=2, global_positions=(5, 0), causal=True)} | ({"prepare": on_both(rope)} if rotated else {})
    whole, _ = multi_head_attention(params, x, bias, num_heads=2, **pieces)
    in_causal, _ = multi_head_attention(params, x, bias, num_heads=2, **pieces | {"core": causal(partial(core, window=2, global_positions=(5, 0)))})
    np.testing.assert_allclose(in_causal, whole, rtol=0, atol=1e-12)
    for sizes in ([1] * 8, [3, 4, 1], [8]):
        state, start = None, 0
        for size in sizes:
            rows = bias[:, start : start + size, : start + size]
            out, state = multi_head_attention_step(params, x[:, start : start + size], state, num_heads=2, bias=rows, **pieces)
            np.testing.assert_allclose(out, whole[:, start : start + size], rtol=0, atol=1e-12)
            start += size


def test_grouped_queries_share_their_keys():
    rng = np.random.default_rng(7)
    params = GroupedQueryAttention(*(Linear(rng.normal(size=shape), None) for shape in ((5, 8), (5, 4), (5, 4), (8, 5))))
    x = rng.normal(size=(2, 9, 5))
    settings = {"window": 2, "global_positions": (0,), "causal": True}
    (plain, plain_backward), (out, backward) = (
        grouped_query_attention(params, x, num_heads=4, num_kv_heads=2, core=partial(core, **settings)) for core in CORES.values()
    )
    np.testing.assert_allclose(out, plain, rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(x)[1], plain_backward(x)[1], rtol=0, atol=1e-12)


def peak(n):
    args = arrays(n, 2, lead=(2,))
    tracemalloc.start()
    out, backward = longformer_blocks(*args, window=16, global_positions=(0, 5), dilation=2)
    backward(out)
    size = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return size


def test_memory_grows_with_positions_and_not_with_their_square():
    assert peak(4096) / peak(1024) < 4.2                     # a square would be 16


def test_no_array_of_all_pairs_is_made(monkeypatch):
    """At 100,000 positions such an array would have 10^10 numbers."""
    n = 100_000
    rng = np.random.default_rng(8)
    arrays = [rng.normal(size=(rows, 2)).astype(np.float32) for rows in (n, n, n, 1, n, n)]
    out, _ = longformer_blocks(*arrays, window=4, global_positions=(0,), mask=np.arange(n)[None] < n - 1)
    few = [a[:50] for a in arrays]
    np.testing.assert_allclose(out[1:40], longformer(*few, window=4, global_positions=(0,))[0][1:40], rtol=0, atol=1e-5)


@every_kernel
@pytest.mark.parametrize("forgotten", ["the rows that were replaced", "the columns"])
def test_the_checker_refuses_a_backward_that_forgets(kernel, forgotten):
    args = arrays(6, 1, lead=(), seed=9)

    def wrong(*args):
        out, backward = kernel(*args, window=1, global_positions=(2,))
        local_backward = local_global_attention(None, *args[:3], window=1, global_positions=(2,))[1]
        banded_backward = local_global_attention(None, *args[:3], window=1)[1]

        def careless(dout):
            if forgotten == "the columns":
                dout = np.where(np.arange(6)[:, None] == 2, 0, dout)
            return *(local_backward if forgotten != "the columns" else banded_backward)(dout)[1:4], *backward(dout)[3:]

        return out, careless

    report = check_gradients(wrong, *args, second_opinion=False)
    assert not report.passed and report.error > 1e-2


@every_kernel
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"window": 0}, "window: got 0"),
        ({"dilation": 0}, "dilation: got 0"),
        ({"global_positions": (1, 9)}, r"global_positions: got \(1, 9\), wants different positions, from 0 to 8"),
        ({"global_positions": (-1, 3)}, r"global_positions\.0: got -1"),
        ({"global_positions": (3, 3)}, r"global_positions: got \(3, 3\), wants different positions, from 0 to 8"),
        ({"global_positions": (1.0, 3)}, r"global_positions\.0: got 1\.0"),
        ({"global_positions": (1, 2, 3)}, "global_query: got 2 rows, wants 3"),
        ({"global_positions": ()}, "global_query: got shape .*, wants None"),
        ({"global_query": None}, "global_query: got None, wants 2 rows"),
        ({"global_key": None}, "global_key: got None"),
        ({"mask": np.ones((9, 8), bool)}, "mask: got shape"),
        ({"mask": np.ones((1, 9))}, "mask: got float64"),
    ],
)
def test_what_cannot_be_is_refused(kernel, changes, named):
    names = ("query", "key", "value", "global_query", "global_key", "global_value")
    given = dict(zip(names, arrays(9, 2), strict=True)) | {"window": 2, "global_positions": (1, 3)} | changes
    args = [given.pop(name) for name in names]
    with pytest.raises(ValueError, match=named):
        kernel(*args, **given)


@every_core
def test_a_core_refuses_what_it_would_lose(core):
    q, k, v = arrays(5)
    with pytest.raises(ValueError, match="params: got"):
        core(np.ones(3), q, k, v, window=1)
    with pytest.raises(ValueError, match="query: got 5 queries, wants at most as many as keys, 4"):
        core(None, q, k[..., :4, :], v[..., :4, :], window=1)
    with pytest.raises(ValueError, match=r"global_positions: got \(0, 0\), wants different positions, from 0 on"):
        core(None, q, k, v, window=1, global_positions=(0, 0))


def test_the_pattern_of_small_numbers_is_what_the_page_shows():
    rows = ["".join(".x"[int(s)] for s in row) for row in pattern(7, 7, window=1, global_positions=(2,), dilation=2, causal=False)]
    assert rows == ["x.x....", ".xxx...", "x.x.x..", ".xxx.x.", "..x.x.x", "..xx.x.", "..x.x.x"]
    assert pattern(1, 7, window=1, global_positions=(2,), dilation=2, causal=True).tolist() == [[False, False, True, False, True, False, True]]


@pytest.mark.parity
def test_the_softmax_is_pytorch_s_under_the_same_mask():
    torch = pytest.importorskip("torch")
    args = arrays(9)
    mask = [[sees(i, j, 2, (3,), 2, False) for j in range(9)] for i in range(9)]
    out, backward = local_global_attention_blocks(None, *args, window=2, global_positions=(3,), dilation=2)
    tensors = [torch.tensor(a, requires_grad=True) for a in args]
    theirs = torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=torch.tensor(mask))
    theirs.backward(torch.tensor(np.cos(out)))
    np.testing.assert_allclose(out, theirs.detach(), rtol=0, atol=1e-9)
    assert_all_close(backward(np.cos(out))[1:4], [t.grad for t in tensors], 1e-9)


def test_softmax_attention_under_the_pattern_is_the_plain_core():
    args = arrays(9)
    mask = pattern(9, 9, window=2, global_positions=(3,), dilation=2, causal=False)
    wanted = softmax_attention(None, *args, mask=mask)[0]
    np.testing.assert_array_equal(local_global_attention(None, *args, window=2, global_positions=(3,), dilation=2)[0], wanted)
