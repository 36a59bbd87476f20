"""A linear map on an N:M weight without its zeros: what the dense one computes, and not a product more."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import Linear, check_gradients, linear
from minitransformers.compression.masked_weight import MaskedWeight, masked_weight
from minitransformers.compression.n_m_linear import NmLinear, n_m_linear
from minitransformers.compression.n_m_sparsity import NmWeight, compress_n_m, decompress_n_m, n_m_mask

RNG = np.random.default_rng(0)
DENSE = RNG.normal(size=(12, 5))
MASK = n_m_mask(DENSE, n=2, m=4)
VALUES, PLACES = compress_n_m(DENSE * MASK, n=2, m=4)
PARAMS = NmLinear(VALUES, RNG.normal(size=5))
X, DOUT = RNG.normal(size=(2, 3, 12)), RNG.normal(size=(2, 3, 5))


def one_by_one(values, bias, x):
    """Each output as a sum over its groups and over what is stored of each, the place read off the dense mask."""
    outs = []
    for j in range(5):
        total = bias[j]
        for group in range(3):
            places = [i for i in range(4) if MASK[4 * group + i, j]]
            for slot, place in enumerate(places):
                total = total + values[group, slot, j] * x[..., 4 * group + place]
        outs.append(total)
    return anp.stack(outs, axis=-1)


def test_it_is_each_sum_over_what_is_stored_and_its_gradients_are_autograd_s():
    out, backward = n_m_linear(PARAMS, X, places=PLACES, m=4)
    np.testing.assert_allclose(out, one_by_one(*PARAMS, X), rtol=0, atol=1e-10)
    expected = autograd.grad(lambda *args: anp.sum(DOUT * one_by_one(*args)), (0, 1, 2))(*PARAMS, X)
    (dvalues, dbias), dx = backward(DOUT)
    for own, their in zip((dvalues, dbias, dx), expected, strict=True):
        np.testing.assert_allclose(own, their, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (2, 3), (4, 4)])
def test_it_is_the_masked_dense_map_forward_and_backward(n, m):
    mask = n_m_mask(DENSE, n=n, m=m)
    values, places = compress_n_m(DENSE * mask, n=n, m=m)
    out, backward = n_m_linear(NmLinear(values, PARAMS.bias), X, places=places, m=m)
    weight, weight_backward = masked_weight(MaskedWeight(DENSE), mask=mask)
    dense, dense_backward = linear(Linear(weight, PARAMS.bias), X)
    np.testing.assert_allclose(out, dense, rtol=0, atol=1e-12)
    (dvalues, dbias), dx = backward(DOUT)
    (dweight, dbias_dense), dx_dense = dense_backward(DOUT)
    np.testing.assert_allclose(decompress_n_m(NmWeight(dvalues, places), m=m), weight_backward(dweight).weight, rtol=0, atol=1e-12)
    np.testing.assert_allclose(dbias, dbias_dense, rtol=0, atol=1e-12)
    np.testing.assert_allclose(dx, dx_dense, rtol=0, atol=1e-12)


def test_a_zero_of_the_weight_is_not_multiplied_with():
    x = X.copy()
    x[..., 3] = np.inf
    out = n_m_linear(PARAMS, x, places=PLACES, m=4)[0]
    assert 0 < MASK[3].sum() < 5
    np.testing.assert_array_equal(np.isfinite(out), np.broadcast_to(~MASK[3], out.shape))  # 0 times infinity would be NaN


def test_without_a_bias_there_is_no_gradient_for_one():
    out, backward = n_m_linear(NmLinear(VALUES, None), X, places=PLACES, m=4)
    np.testing.assert_allclose(out + PARAMS.bias, n_m_linear(PARAMS, X, places=PLACES, m=4)[0], rtol=0, atol=1e-14)
    assert backward(DOUT)[0].bias is None


def test_one_position_needs_no_batch():
    np.testing.assert_allclose(n_m_linear(PARAMS, X[0, 0], places=PLACES, m=4)[0], n_m_linear(PARAMS, X, places=PLACES, m=4)[0][0, 0], rtol=0, atol=1e-14)


def overwriting(params, x, *, places, m):
    """The plausible wrong backward: an input that several outputs read gets what the last of them says."""
    out, backward = n_m_linear(params, x, places=places, m=m)

    def wrong(dout):
        dparams, _ = backward(dout)
        weight = decompress_n_m(NmWeight(params.values, places), m=m)
        last = np.array([np.flatnonzero(row)[-1] if row.any() else 0 for row in weight])
        return dparams, dout[..., last] * weight[np.arange(len(weight)), last]

    return out, wrong


def test_the_checker_refuses_an_input_gradient_that_is_overwritten():
    assert check_gradients(n_m_linear, PARAMS, X, places=PLACES, m=4).passed
    assert not check_gradients(overwriting, PARAMS, X, places=PLACES, m=4).passed


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"x: got shape \(2, 3, 11\), wants \(\.\.\., d_in\) with d_in = 12, 3 groups of 4"):
        n_m_linear(PARAMS, X[..., :-1], places=PLACES, m=4)
    with pytest.raises(ValueError, match=r"places: got uint8 of shape \(7,\), wants uint8 of shape \(8,\)"):
        n_m_linear(PARAMS, X, places=PLACES[:-1], m=4)
    with pytest.raises(ValueError, match="places: got places that do not ascend"):
        n_m_linear(PARAMS, X, places=0 * PLACES, m=4)


@pytest.mark.parity
def test_output_and_gradients_are_those_of_pytorch_on_the_masked_weight():
    torch = pytest.importorskip("torch")
    weight, x, bias = (torch.tensor(array, requires_grad=True) for array in (DENSE * MASK, X, PARAMS.bias))
    theirs = torch.nn.functional.linear(x, weight.T, bias)
    theirs.backward(torch.tensor(DOUT))
    out, backward = n_m_linear(PARAMS, X, places=PLACES, m=4)
    (dvalues, dbias), dx = backward(DOUT)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(decompress_n_m(NmWeight(dvalues, PLACES), m=4), weight.grad.numpy() * MASK, rtol=0, atol=1e-9)
    np.testing.assert_allclose(dbias, bias.grad.numpy(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(dx, x.grad.numpy(), rtol=0, atol=1e-9)
