"""Tempered attention: the softmax of scaled scores, from even weights to the best key alone."""

from functools import partial
from itertools import pairwise

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.attention.core import causal, causal_attention
from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.attention.scalable_softmax import ScalableSoftmax, scalable_softmax
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.bias_mitigation.tempered_attention import InverseTemperature, tempered_attention, tempered_softmax

RNG = np.random.default_rng(0)
SCORES, BETA, DWEIGHTS = 2 * RNG.normal(size=(3, 4, 5)), RNG.uniform(0.2, 2, size=3), RNG.normal(size=(3, 4, 5))
MASK = RNG.random((3, 4, 5)) < 0.6
MASK[1, 2], MASK[0, 0] = False, True
QUERY, KEY, VALUE = RNG.normal(size=(2, 3, 4, 6)), RNG.normal(size=(2, 3, 5, 6)), RNG.normal(size=(2, 3, 5, 7))


def row_by_row(scores, beta):
    heads = []
    for h in range(3):
        rows = []
        for i in range(4):
            powers = [anp.exp(beta[h] * scores[h, i, j]) if MASK[h, i, j] else 0.0 * scores[h, i, j] for j in range(5)]
            rows.append(anp.stack([power / (sum(powers) if MASK[h, i].any() else 1.0) for power in powers]))
        heads.append(anp.stack(rows))
    return anp.stack(heads)


def test_it_is_the_softmax_of_scaled_scores_and_its_gradients_are_autograd_s():
    weights, backward = tempered_softmax(InverseTemperature(BETA), SCORES, mask=MASK)
    np.testing.assert_allclose(weights, row_by_row(SCORES, BETA), rtol=0, atol=1e-14)
    dscores, dbeta = autograd.grad(lambda *parts: anp.sum(DWEIGHTS * row_by_row(*parts)), (0, 1))(SCORES, BETA)
    found = backward(DWEIGHTS)
    np.testing.assert_allclose(found[0].beta, dbeta, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found[1], dscores, rtol=0, atol=1e-12)


def test_at_one_it_is_the_attention_it_was():
    mask = MASK[None, :, :, :]
    own, own_backward = tempered_attention(InverseTemperature(np.ones(1)), QUERY, KEY, VALUE, mask=mask)
    plain, plain_backward = scaled_dot_product_attention(QUERY, KEY, VALUE, mask=mask)
    np.testing.assert_allclose(own, plain, rtol=0, atol=1e-13)
    dout = RNG.normal(size=own.shape)
    for mine, theirs in zip(own_backward(dout)[1:4], plain_backward(dout)[:3], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-12)


def test_one_number_for_all_heads_is_another_scale():
    own, _ = tempered_attention(InverseTemperature(np.array([0.4])), QUERY, KEY, VALUE)
    np.testing.assert_allclose(own, scaled_dot_product_attention(QUERY, KEY, VALUE, scale=0.4 * 6**-0.5)[0], rtol=0, atol=1e-13)


def test_beta_multiplies_what_scale_made():
    own, _ = tempered_attention(InverseTemperature(np.array([0.5])), QUERY, KEY, VALUE, scale=0.8)
    np.testing.assert_allclose(own, scaled_dot_product_attention(QUERY, KEY, VALUE, scale=0.4)[0], rtol=0, atol=1e-13)


def test_it_is_the_scalable_softmax_whose_scale_is_zero():
    own, own_backward = tempered_softmax(InverseTemperature(BETA), SCORES, mask=MASK)
    other, other_backward = scalable_softmax(ScalableSoftmax(np.zeros(3), BETA), SCORES, mask=MASK)
    np.testing.assert_allclose(own, other, rtol=0, atol=1e-14)
    np.testing.assert_allclose(own_backward(DWEIGHTS)[0].beta, other_backward(DWEIGHTS)[0].offset, rtol=0, atol=1e-13)


def test_at_zero_the_weights_are_even_and_high_up_the_best_key_has_all():
    even, _ = tempered_softmax(InverseTemperature(np.zeros(1)), SCORES, mask=MASK)
    np.testing.assert_allclose(even, MASK / np.maximum(MASK.sum(-1, keepdims=True), 1), rtol=0, atol=1e-15)
    sharp, _ = tempered_softmax(InverseTemperature(np.full(1, 1e4)), SCORES, mask=MASK)
    best = np.where(MASK, SCORES, -np.inf).argmax(-1)[..., None] == np.arange(5)
    np.testing.assert_allclose(sharp, best & MASK, rtol=0, atol=1e-12)


def test_a_bias_of_minus_infinity_at_zero_is_no_nan():
    bias = np.where(np.arange(5) < 3, 0.0, -np.inf)[None, None] * np.ones((4, 1))
    out, _ = tempered_attention(InverseTemperature(np.zeros(1)), QUERY, KEY, VALUE, bias)
    np.testing.assert_allclose(out, np.broadcast_to(VALUE[:, :, None, :3].mean(-2), out.shape), rtol=0, atol=1e-14)


def test_the_entropy_falls_as_beta_rises():
    def entropy(beta):
        weights, _ = tempered_softmax(InverseTemperature(np.full(1, beta)), SCORES)
        return -(weights * np.log(weights)).sum(-1)

    entropies = [entropy(beta) for beta in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)]
    np.testing.assert_allclose(entropies[0], np.log(5), rtol=0, atol=1e-14)
    assert all(np.all(a > b) for a, b in pairwise(entropies))


def test_the_slope_at_one_is_the_covariance_of_scores_and_what_is_wanted():
    weights, backward = tempered_softmax(InverseTemperature(np.ones(1)), SCORES)
    mean = (weights * SCORES).sum(-1, keepdims=True)
    expected = np.sum(weights * (SCORES - mean) * (DWEIGHTS - (weights * DWEIGHTS).sum(-1, keepdims=True)))
    np.testing.assert_allclose(backward(DWEIGHTS)[0].beta, [expected], rtol=0, atol=1e-12)


def test_it_takes_the_place_of_a_trained_model_s_core():
    params = init_multi_head_attention(RNG, 6, num_heads=3, dtype=np.float64)
    x = RNG.normal(size=(2, 4, 6))
    plain, _ = multi_head_attention(params, x, num_heads=3, core=causal_attention)
    tempered = partial(multi_head_attention, num_heads=3, core=causal(tempered_attention))
    same, _ = tempered(params._replace(core=InverseTemperature(np.ones(3))), x)
    np.testing.assert_allclose(same, plain, rtol=0, atol=1e-13)
    flatter = params._replace(core=InverseTemperature(np.array([0.5, 1.0, 0.0])))
    assert np.abs(tempered(flatter, x)[0] - plain).max() > 1e-3
    report = check_gradients(tempered, flatter._replace(core=InverseTemperature(np.array([0.5, 1.0, 0.2]))), x)
    assert report.passed, str(report)


@pytest.mark.parametrize("forgotten", ["beta on the scores", "the shared term", "the scores of beta"])
def test_the_checker_refuses_a_backward_that_forgets(forgotten):
    def wrong(params, scores):
        weights, backward = tempered_softmax(params, scores)

        def back(dweights):
            (dbeta,), dscores = backward(dweights)
            if forgotten == "beta on the scores":
                return InverseTemperature(dbeta), dscores / params.beta[:, None, None]
            if forgotten == "the shared term":
                return InverseTemperature(dbeta), params.beta[:, None, None] * weights * dweights
            return InverseTemperature(np.sum(weights * dweights * scores, axis=(1, 2))), dscores

        return weights, back

    assert not check_gradients(wrong, InverseTemperature(BETA), SCORES).passed


def test_negative_temperatures_are_refused():
    with pytest.raises(ValueError, match=r"params\.beta: got numbers from -0\.1"):
        tempered_softmax(InverseTemperature(np.full(1, -0.1)), SCORES)


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="mask: got shape"):
        tempered_softmax(InverseTemperature(np.ones(1)), SCORES, mask=np.ones((7, 3, 4, 5), bool))


@pytest.mark.parity
def test_it_is_torch_s_attention_with_another_scale():
    torch = pytest.importorskip("torch")
    parts = [torch.tensor(part, requires_grad=True) for part in (QUERY, KEY, VALUE)]
    theirs = torch.nn.functional.scaled_dot_product_attention(*parts, scale=1.7 * 6**-0.5)
    dout = RNG.normal(size=theirs.shape)
    theirs.backward(torch.tensor(dout))
    own, backward = tempered_attention(InverseTemperature(np.array([1.7])), QUERY, KEY, VALUE)
    np.testing.assert_allclose(own, theirs.detach().numpy(), rtol=0, atol=1e-12)
    for mine, part in zip(backward(dout)[1:4], parts, strict=True):
        np.testing.assert_allclose(mine, part.grad.numpy(), rtol=0, atol=1e-12)
