"""Banded attention in blocks: the textbook sum, the dense mask that it equals with everything a core takes, and what it does not compute."""

import tracemalloc
from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.banded_attention import banded_attention
from minitransformers.attention.banded_attention_blocks import banded_attention_blocks
from minitransformers.attention.core import softmax_attention
from minitransformers.attention.gaussian_kernel_attention import GaussianKernel, normalized_gaussian_kernel_attention
from minitransformers.attention.masks import band_mask, padding_mask, sliding_window_mask
from minitransformers.attention.scalable_softmax import ScalableSoftmax, scalable_softmax_attention
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.attention.soft_cap import soft_capped_attention
from minitransformers.foundation import check_gradients, trees

banded_softmax = partial(banded_attention_blocks, None)


def arrays(n, batch=((2, 3), (2, 1), (2, 1)), d_head=4, d_value=5, seed=0, queries=None):
    rng = np.random.default_rng(seed)
    lengths = (n if queries is None else queries, n, n)
    return [rng.normal(size=(*b, length, d)) for b, length, d in zip(batch, lengths, (d_head, d_head, d_value), strict=True)]


def dense_mask(queries, keys, window, ahead):
    """Position i, the queries being the last, sees i - window < j <= i + ahead."""
    i, j = np.arange(keys - queries, keys)[:, None], np.arange(keys)
    return (i - window < j) & (j <= i + ahead)


def textbook(q, k, v, window, ahead):
    """One position at a time, over the keys in its window."""
    rows = []
    for i in range(len(q)):
        near = range(max(0, i - window + 1), min(len(q), i + ahead + 1))
        powers = [anp.exp(anp.dot(q[i], k[j]) / q.shape[1] ** 0.5) for j in near]
        rows.append(sum(p * v[j] for p, j in zip(powers, near, strict=True)) / sum(powers))
    return anp.stack(rows)


@pytest.mark.parametrize("looks_back", [True, False])
@pytest.mark.parametrize("window", [1, 3, 20])
def test_it_is_the_textbook_sum_and_its_gradients_are_autograd_s(window, looks_back):
    args, ahead = arrays(8, batch=((), (), ())), 0 if looks_back else window - 1
    out, backward = banded_softmax(*args, window=window, ahead=ahead)
    dout = np.random.default_rng(1).normal(size=out.shape)
    np.testing.assert_allclose(out, textbook(*args, window, ahead), rtol=0, atol=1e-10)
    theirs = autograd.grad(lambda *a: anp.sum(dout * textbook(*a, window, ahead)), (0, 1, 2))(*args)
    for own, other in zip(backward(dout)[1:4], theirs, strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("queries", [1, 4, 7])
@pytest.mark.parametrize("window", [1, 3, 9])
def test_it_is_the_plain_form(window, queries):
    rng = np.random.default_rng(2)
    args = [None, *arrays(7, queries=queries), rng.normal(size=(3, queries, 7))]
    settings = {"window": window, "ahead": min(1, window), "mask": rng.random((2, 1, 1, 7)) < 0.7}
    (plain, plain_backward), (out, backward) = (form(*args, **settings) for form in (banded_attention, banded_attention_blocks))
    np.testing.assert_allclose(out, plain, rtol=0, atol=1e-12)
    dout = rng.normal(size=out.shape)
    for own, theirs in zip(backward(dout)[1:], plain_backward(dout)[1:], strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ahead", ["none", "one", "as many", "all"])
@pytest.mark.parametrize("n", [1, 2, 7, 12])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 7, 50])
def test_blocks_change_nothing_but_the_time_it_takes(n, window, ahead):
    args, ahead = arrays(n), {"none": 0, "one": 1, "as many": window - 1, "all": window}[ahead]
    mask = sliding_window_mask(n, window=window) if ahead == 0 else dense_mask(n, n, window, ahead)
    if ahead == window - 1:
        np.testing.assert_array_equal(mask, band_mask(n, reach=ahead))
    cores = partial(softmax_attention, scale=0.9), partial(soft_capped_attention, cap=0.5)
    for core in (softmax_attention, *cores):
        out, backward = banded_softmax(*args, window=window, ahead=ahead, core=core)
        dense, dense_backward = core(None, *args, mask=mask)
        np.testing.assert_allclose(out, dense, rtol=0, atol=1e-12)
        for own, other in zip(backward(np.cos(out))[1:4], dense_backward(np.cos(dense))[1:4], strict=True):
            np.testing.assert_allclose(own, other, rtol=0, atol=1e-12)


RNG = np.random.default_rng(2)
BIASES = {
    "no bias": None,
    "each": RNG.normal(size=(2, 3, 9, 9)),
    "a head": RNG.normal(size=(3, 1, 1)),
    "a key": RNG.normal(size=(1, 9)),
    "a query of a text": RNG.normal(size=(2, 1, 9, 1)),
    "hides": np.where(RNG.random((3, 9, 9)) < 0.3, -np.inf, RNG.normal(size=(3, 9, 9))),
    "more axes": RNG.normal(size=(4, 1, 3, 9, 9)),
}
MASKS = {
    "no mask": None,
    "padding": padding_mask(np.array([9, 4]), 9),
    "each": RNG.random((2, 3, 9, 9)) < 0.7,
    "a query": RNG.random((9, 1)) < 0.7,
    "more axes": RNG.random((4, 1, 1, 9, 9)) < 0.7,
}


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("mask", MASKS)
def test_with_bias_and_mask_it_is_the_core_under_the_dense_mask_outputs_and_all_gradients(bias, mask):
    rng = np.random.default_rng(3)
    cores = [(softmax_attention, None), (scalable_softmax_attention, ScalableSoftmax(*rng.normal(size=(2, 3))))]
    for (core, params), window, ahead, queries in ((*cores[0:1], 3, 0, 9), (*cores[0:1], 4, 2, 9), (*cores[1:], 3, 0, 9), (*cores[1:], 3, 1, 4)):
        args = arrays(9, queries=queries)
        rows = [a if a is None or a.shape[-2] == 1 else a[..., 9 - queries :, :] for a in (BIASES[bias], MASKS[mask])]
        allowed = dense_mask(queries, 9, window, ahead)
        out, backward = banded_attention(params, *args, rows[0], mask=rows[1], window=window, ahead=ahead, core=core)
        dense, dense_backward = core(params, *args, rows[0], mask=allowed if rows[1] is None else allowed & rows[1])
        np.testing.assert_allclose(out, dense, rtol=0, atol=1e-12)
        dout = rng.normal(size=out.shape)
        for (path, own), (_, theirs) in zip(trees.leaves(backward(dout)), trees.leaves(dense_backward(dout)), strict=True):
            assert own.shape == theirs.shape
            np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-11, err_msg=path)


@pytest.mark.parametrize("looks_back", [True, False])
@pytest.mark.parametrize("queries", [1, 2, 5, 8, 9])
@pytest.mark.parametrize("window", [1, 3, 20])
def test_fewer_queries_than_keys_are_the_last_positions(window, queries, looks_back):
    args, ahead = arrays(9, queries=queries), 0 if looks_back else window
    mask = dense_mask(queries, 9, window, ahead)
    if looks_back:
        np.testing.assert_array_equal(mask, sliding_window_mask(queries, 9, window=window))
    out, backward = banded_softmax(*args, window=window, ahead=ahead)
    dense, dense_backward = softmax_attention(None, *args, mask=mask)
    np.testing.assert_allclose(out, dense, rtol=0, atol=1e-12)
    for own, theirs in zip(backward(np.cos(out))[1:4], dense_backward(np.cos(out))[1:4], strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


def test_a_few_queries_look_at_the_few_keys_that_their_windows_reach():
    seen = []

    def spy(params, query, key, value, bias=None, *, mask=None):
        seen.append((key.shape[-2], None if bias is None else bias.shape[-1], mask))
        return softmax_attention(params, query, key, value, bias, mask=mask)

    q, k, v = arrays(100, queries=2)
    banded_softmax(q, k, v, np.zeros((2, 100)), window=5, core=spy)
    banded_softmax(q[..., 1:, :], k, v, window=5, core=spy)
    assert seen[0][:2] == (6, 6) and seen[0][2].sum() == 10
    assert seen[1] == (5, None, None)                        # one query sees all of its window: no mask


@pytest.mark.parametrize("core", ["scalable softmax", "kernel"])
def test_what_the_core_inside_learns_gets_its_gradient(core):
    rng = np.random.default_rng(4)
    core, params = {
        "scalable softmax": (scalable_softmax_attention, ScalableSoftmax(*rng.normal(size=(2, 2)))),
        "kernel": (normalized_gaussian_kernel_attention, GaussianKernel(np.exp(rng.normal(size=2)))),
    }[core]
    for queries in (5, 2):
        args = arrays(5, batch=((2,), (1,), (1,)), d_head=2, d_value=2, queries=queries)
        report = check_gradients(banded_attention_blocks, params, *args, rng.normal(size=(queries, 5)), window=2, ahead=1, core=core)
        assert report.passed, str(report)


def test_a_band_inside_a_band_is_the_narrower_one():
    """The keys near to a block end where its queries end: to the core inside they are the last positions."""
    args = arrays(9)
    out, backward = banded_softmax(*args, window=4, core=partial(banded_attention_blocks, window=2))
    wanted, wanted_backward = banded_softmax(*args, window=2)
    np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-12)
    for own, theirs in zip(backward(out)[1:4], wanted_backward(out)[1:4], strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


def test_a_token_is_forgotten_after_exactly_one_window():
    q, k, v = arrays(11, batch=((), (), ()))
    for j in range(11):
        k2, v2 = k.copy(), v.copy()
        k2[j] += 1
        v2[j] += 1
        before, after = (banded_softmax(q, *kv, window=3)[0] for kv in ((k, v), (k2, v2)))
        changed = np.flatnonzero((before != after).any(-1))
        assert changed.tolist() == [i for i in range(j, j + 3) if i < 11]


def test_memory_grows_with_positions_and_not_with_their_square():
    def peak(n):
        args = arrays(n, batch=((2,),) * 3, d_head=2, d_value=2)
        tracemalloc.start()
        out, backward = banded_softmax(*args, window=16)
        backward(out)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(2048) / peak(512) < 4.5                      # a square would be 16


def test_the_checker_refuses_a_backward_that_forgets_the_second_block_of_a_key():
    q, k, v = arrays(6, batch=((), (), ()))

    def wrong(q, k, v):
        out, backward = banded_softmax(q, k, v, window=3)

        def forgetful(dout):
            first, second = dout.copy(), dout.copy()
            first[3:], second[:3] = 0, 0
            _, _, dk_first, dv_first, _ = backward(first)
            _, dq, dk, dv, _ = backward(dout)
            _, _, dk_second, dv_second, _ = backward(second)
            for whole, one, two in ((dk, dk_first, dk_second), (dv, dv_first, dv_second)):
                whole[:3], whole[3:] = one[:3], two[3:]      # each key gets the gradient of its own block alone
            return dq, dk, dv

        return out, forgetful

    report = check_gradients(wrong, q, k, v)
    assert [a.error > 1e-3 for a in report.arguments] == [False, True, True]


def test_the_checker_refuses_a_bias_whose_gradient_comes_from_the_last_block_alone():
    """A bias that all queries share is read by every block: its gradient is the sum, and not what the last one leaves."""
    q, k, v = arrays(6, batch=((), (), ()))

    def wrong(bias):
        out, backward = banded_softmax(q, k, v, bias, window=3)

        def last(dout):
            return backward(np.where(np.arange(6)[:, None] < 3, 0, dout))[4]

        return out, last

    report = check_gradients(wrong, np.random.default_rng(5).normal(size=(1, 6)))
    assert not report.passed and report.error > 1e-3


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"ahead": 4}, "ahead: got 4, wants at most the window of 3"), ({"queries": 9}, "query: got 9 queries, wants at most as many as keys, 8")],
)
def test_what_no_window_can_be_is_refused(changes, named):
    args = arrays(8, queries=changes.pop("queries", None))
    with pytest.raises(ValueError, match=named):
        banded_softmax(*args, window=3, **changes)


@pytest.mark.parity
@pytest.mark.parametrize("window", [1, 4])
def test_it_is_pytorch_under_hugging_face_s_sliding_mask(window):
    torch = pytest.importorskip("torch")
    masking = pytest.importorskip("transformers.masking_utils")
    args = arrays(9, batch=((2, 3),) * 3)
    out, backward = banded_softmax(*args, window=window)
    allows = masking.sliding_window_causal_mask_function(window)
    mask = torch.tensor([[bool(allows(0, 0, torch.tensor(i), torch.tensor(j))) for j in range(9)] for i in range(9)])
    tensors = [torch.tensor(a, requires_grad=True) for a in args]
    theirs = torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=mask)
    np.testing.assert_allclose(out, theirs.detach(), rtol=0, atol=1e-9)
    theirs.backward(torch.tensor(np.cos(out)))
    for own, tensor in zip(backward(np.cos(out))[1:4], tensors, strict=True):
        np.testing.assert_allclose(own, tensor.grad, rtol=0, atol=1e-9)


def test_the_dense_mask_of_these_tests_is_the_plain_form_s():
    args = arrays(7)
    wanted = scaled_dot_product_attention(*args, mask=sliding_window_mask(7, window=3))[0]
    np.testing.assert_allclose(softmax_attention(None, *args, mask=dense_mask(7, 7, 3, 0))[0], wanted, rtol=0, atol=1e-13)
