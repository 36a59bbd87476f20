import tracemalloc

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.banded_attention import banded_attention
from minitransformers.attention.masks import band_mask, sliding_window_mask
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.foundation import check_gradients


def arrays(n, batch=((2, 3), (2, 1), (2, 1)), d_head=4, d_value=5, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(*b, n, d)) for b, d in zip(batch, (d_head, d_head, d_value), strict=True)]


def textbook(q, k, v, window, causal):
    """One position at a time, over the keys in its window."""
    rows = []
    for i in range(len(q)):
        near = range(max(0, i - window + 1), i + 1 if causal else min(len(q), i + window))
        powers = [anp.exp(anp.dot(q[i], k[j]) / q.shape[1] ** 0.5) for j in near]
        rows.append(sum(p * v[j] for p, j in zip(powers, near, strict=True)) / sum(powers))
    return anp.stack(rows)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [1, 3, 20])
def test_it_is_the_textbook_sum_and_its_gradients_are_autograd_s(window, causal):
    args = arrays(8, batch=((), (), ()))
    out, backward = banded_attention(*args, window=window, causal=causal)
    dout = np.random.default_rng(1).normal(size=out.shape)
    np.testing.assert_allclose(out, textbook(*args, window, causal), rtol=0, atol=1e-10)
    theirs = autograd.grad(lambda *a: anp.sum(dout * textbook(*a, window, causal)), (0, 1, 2))(*args)
    for own, other in zip(backward(dout), theirs, strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n", [1, 2, 7, 12])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 7, 50])
def test_blocks_change_nothing_but_the_time_it_takes(n, window, causal):
    args = arrays(n)
    mask = sliding_window_mask(n, window=window) if causal else band_mask(n, reach=window - 1)
    for settings in ({}, {"scale": 0.9, "soft_cap": 0.5}):
        out, backward = banded_attention(*args, window=window, causal=causal, **settings)
        dense, dense_backward = scaled_dot_product_attention(*args, mask=mask, **settings)
        np.testing.assert_allclose(out, dense, rtol=0, atol=1e-12)
        for own, other in zip(backward(np.cos(out)), dense_backward(np.cos(dense))[:3], strict=True):
            np.testing.assert_allclose(own, other, rtol=0, atol=1e-12)


def test_a_token_is_forgotten_after_exactly_one_window():
    q, k, v = arrays(11, batch=((), (), ()))
    for j in range(11):
        k2, v2 = k.copy(), v.copy()
        k2[j] += 1
        v2[j] += 1
        before, after = (banded_attention(q, *kv, window=3)[0] for kv in ((k, v), (k2, v2)))
        changed = np.flatnonzero((before != after).any(-1))
        assert changed.tolist() == [i for i in range(j, j + 3) if i < 11]


def test_memory_grows_with_positions_and_not_with_their_square():
    def peak(n):
        args = arrays(n, batch=((2,),) * 3, d_head=2, d_value=2)
        tracemalloc.start()
        out, backward = banded_attention(*args, window=16)
        backward(out)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(2048) / peak(512) < 4.5                      # a square would be 16


def test_the_checker_refuses_a_backward_that_forgets_the_second_block_of_a_key():
    q, k, v = arrays(6, batch=((), (), ()))

    def wrong(q, k, v):
        out, backward = banded_attention(q, k, v, window=3)

        def forgetful(dout):
            first, second = dout.copy(), dout.copy()
            first[3:], second[:3] = 0, 0
            _, dk_first, dv_first = backward(first)
            dq, dk, dv = backward(dout)
            _, dk_second, dv_second = backward(second)
            for whole, one, two in ((dk, dk_first, dk_second), (dv, dv_first, dv_second)):
                whole[:3], whole[3:] = one[:3], two[3:]      # each key hears from its own block alone
            return dq, dk, dv

        return out, forgetful

    report = check_gradients(wrong, q, k, v)
    assert [a.error > 1e-3 for a in report.arguments] == [False, True, True]


@pytest.mark.parity
@pytest.mark.parametrize("window", [1, 4])
def test_it_is_pytorch_under_hugging_face_s_sliding_mask(window):
    torch = pytest.importorskip("torch")
    masking = pytest.importorskip("transformers.masking_utils")
    args = arrays(9, batch=((2, 3),) * 3)
    out, backward = banded_attention(*args, window=window)
    allows = masking.sliding_window_causal_mask_function(window)
    mask = torch.tensor([[bool(allows(0, 0, torch.tensor(i), torch.tensor(j))) for j in range(9)] for i in range(9)])
    tensors = [torch.tensor(a, requires_grad=True) for a in args]
    theirs = torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=mask)
    np.testing.assert_allclose(out, theirs.detach(), rtol=0, atol=1e-9)
    theirs.backward(torch.tensor(np.cos(out)))
    for own, tensor in zip(backward(np.cos(out)), tensors, strict=True):
        np.testing.assert_allclose(own, tensor.grad, rtol=0, atol=1e-9)
