"""Dropout on attention weights: the dropped sum written out, what dropout promises, and what its backward must not forget."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.attention_dropout import attention_dropout, attention_with_dropout
from minitransformers.attention.core import causal
from minitransformers.attention.masks import causal_mask
from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.foundation import check_gradients

pytestmark = pytest.mark.usefixtures("few_or_many_queries")


def case(seed=0):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(3, n, d)) for n, d in ((4, 5), (6, 5), (6, 2)))
    mask = rng.random((3, 4, 6)) < 0.7
    mask[-1, 2] = False                                      # a query that may attend to nothing
    return q, k, v, rng.normal(size=(3, 4, 6)), mask


def drop_of(rate, shape, seed=1):
    """What the draw of this seed multiplies the weights by."""
    return (np.random.default_rng(seed).random(shape, dtype=np.float32) >= rate) / (1 - rate)


def textbook(q, k, v, bias, mask, drop):
    """One query at a time over the keys that it may see, each weight times its drop."""
    heads = []
    for h in range(len(q)):
        rows = []
        for i in range(q.shape[1]):
            seen = np.flatnonzero(mask[h, i])
            powers = [anp.exp(anp.sum(q[h, i] * k[h, j]) / 5**0.5 + bias[h, i, j]) for j in seen]
            total = sum(powers) if powers else 1
            rows.append(sum((p / total * drop[h, i, j] * v[h, j] for p, j in zip(powers, seen, strict=True)), 0 * v[h, 0]))
        heads.append(anp.stack(rows))
    return anp.stack(heads)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9])
def test_it_is_the_textbook_sum_and_its_gradients_are_autograd_s(rate):
    *args, mask = case()
    out, backward = attention_with_dropout(None, *args, mask=mask, rate=rate, rng=np.random.default_rng(1))
    drop, dout = drop_of(rate, (3, 4, 6)), np.random.default_rng(2).normal(size=out.shape)
    np.testing.assert_allclose(out, textbook(*args, mask, drop), rtol=0, atol=1e-10)
    nothing, *gradients = backward(dout)
    assert nothing is None
    expected = autograd.grad(lambda *a: anp.sum(dout * textbook(*a, mask, drop)), (0, 1, 2, 3))(*args)
    for own, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)


def test_without_a_generator_it_is_plain_attention():
    *args, mask = case()
    out, backward = attention_with_dropout(None, *args, mask=mask, rate=0.9, rng=None)
    plain, plain_backward = scaled_dot_product_attention(*args, mask=mask)
    np.testing.assert_allclose(out, plain, rtol=0, atol=1e-14)
    for own, theirs in zip(backward(np.cos(out))[1:], plain_backward(np.cos(out)), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-14)


def test_its_mean_over_draws_is_plain_attention():
    *args, mask = case()
    rng = np.random.default_rng(3)
    outs = np.stack([attention_with_dropout(None, *args, mask=mask, rate=0.3, rng=rng)[0] for _ in range(500)])
    spread = outs.std(0) / 500**0.5
    assert np.all(np.abs(outs.mean(0) - scaled_dot_product_attention(*args, mask=mask)[0]) <= 5 * spread + 1e-12)


def test_the_others_do_not_share_what_was_dropped():
    _, _, _, scores, mask = case()
    plain = attention_dropout(None, scores, mask=mask, rate=0.3, rng=None)[0]
    kept = attention_dropout(None, scores, mask=mask, rate=0.3, rng=np.random.default_rng(1))[0]
    np.testing.assert_allclose(kept, plain * drop_of(0.3, scores.shape), rtol=1e-14)
    assert np.unique(kept.sum(-1).round(9)).size > 5         # rows sum to 1 no more


def test_a_score_whose_weight_was_dropped_has_a_gradient_still():
    _, _, _, scores, _ = case()
    kept, backward = attention_dropout(None, scores, rate=0.3, rng=np.random.default_rng(1))
    _, dscores = backward(np.random.default_rng(2).normal(size=kept.shape))
    assert np.all(dscores[kept == 0] != 0)                   # it still takes from the total


def test_what_every_weight_shares_is_the_product_of_output_and_its_gradient():
    q, k, v, _, _ = case()
    scores = q @ k.swapaxes(-1, -2) / 5**0.5
    out = attention_with_dropout(None, q, k, v, rate=0.3, rng=np.random.default_rng(1))[0]
    kept, weighting_backward = attention_dropout(None, scores, rate=0.3, rng=np.random.default_rng(1))
    weights = attention_dropout(None, scores, rate=0.3, rng=None)[0]
    dout = np.random.default_rng(2).normal(size=out.shape)
    dkept = dout @ v.swapaxes(-1, -2)
    expected = dkept * kept - weights * np.sum(dout * out, axis=-1, keepdims=True)
    np.testing.assert_allclose(weighting_backward(dkept)[1], expected, rtol=0, atol=1e-13)


def test_it_is_a_core_of_any_attention():
    rng = np.random.default_rng(0)
    params, x = init_multi_head_attention(rng, 6, num_heads=2, std=0.5, dtype=np.float64), rng.normal(size=(2, 5, 6))

    def attend(params, x):
        core = causal(partial(attention_with_dropout, rate=0.3, rng=np.random.default_rng(1)))
        return multi_head_attention(params, x, num_heads=2, core=core)

    assert check_gradients(attend, params, x).passed
    off = causal(partial(attention_with_dropout, rate=0.3, rng=None))
    np.testing.assert_allclose(multi_head_attention(params, x, num_heads=2, core=off)[0], multi_head_attention(params, x, num_heads=2)[0], atol=1e-14)


def test_a_mask_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="mask: got"):
        attention_dropout(None, case()[3], mask=np.ones((7, 3, 4, 6), bool), rate=0.1, rng=None)


def test_it_learns_nothing():
    with pytest.raises(ValueError, match="params: got"):
        attention_with_dropout(np.ones(2), *case()[:3], rate=0.1, rng=None)


def test_the_checker_refuses_a_backward_that_lets_a_dropped_weight_off():
    scores = case()[3]

    def wrong(scores):
        kept, _ = attention_dropout(None, scores, rate=0.3, rng=np.random.default_rng(1))
        return kept, lambda dkept: kept * (dkept - np.sum(dkept * kept, -1, keepdims=True))  # as if kept were the softmax

    assert not check_gradients(wrong, scores).passed


def test_the_scale_is_the_caller_s():
    q, k, v, _, _ = case()
    dropped = partial(attention_with_dropout, None, rate=0.3)
    half = dropped(q, k, v, scale=0.5 * 5**-0.5, rng=np.random.default_rng(1))[0]
    np.testing.assert_allclose(half, dropped(q / 2, k, v, rng=np.random.default_rng(1))[0], rtol=0, atol=1e-14)


@pytest.mark.parity
def test_it_is_what_pytorch_computes_with_the_same_draw():
    torch = pytest.importorskip("torch")
    q, k, v, bias, _ = case()
    mask, drop = np.broadcast_to(causal_mask(4, 6), (3, 4, 6)), drop_of(0.3, (3, 4, 6))
    tensors = [torch.tensor(a, requires_grad=True) for a in (q, k, v, bias)]
    scores = tensors[0] @ tensors[1].mT / 5**0.5 + tensors[3]
    theirs = (torch.softmax(scores.masked_fill(~torch.tensor(mask.copy()), -torch.inf), -1) * torch.tensor(drop)) @ tensors[2]
    out, backward = attention_with_dropout(None, q, k, v, bias, mask=mask, rate=0.3, rng=np.random.default_rng(1))
    np.testing.assert_allclose(out, theirs.detach(), rtol=0, atol=1e-9)
    theirs.backward(torch.tensor(np.cos(out)))
    for own, tensor in zip(backward(np.cos(out))[1:], tensors, strict=True):
        np.testing.assert_allclose(own, tensor.grad, rtol=0, atol=1e-9)
