"""A linear map without its zeros: what the masked dense one computes, with gradients for what is stored and nothing else."""

import warnings

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import Linear, check_gradients, linear
from minitransformers.compression.magnitude_pruning import magnitude_mask
from minitransformers.compression.masked_weight import MaskedWeight, masked_weight
from minitransformers.compression.sparse_linear import SparseLinear, SparsePattern, sparse_from_dense, sparse_linear
from minitransformers.training.flat_tree import FlatTree
from minitransformers.training.optimizer import AdamW

RNG = np.random.default_rng(0)
DENSE, BIAS = RNG.normal(size=(7, 5)), RNG.normal(size=5)
MASK = magnitude_mask(DENSE, sparsity=0.6)
MASK[2] = False                                              # an input that nothing reads
PARAMS, PATTERN = sparse_from_dense(DENSE, bias=BIAS, mask=MASK)
X, DOUT = RNG.normal(size=(2, 4, 7)), RNG.normal(size=(2, 4, 5))


def one_by_one(values, bias, x):
    """Each number that is stored, in the order of rows, added to the output of its column."""
    outs, k = [bias[j] + 0 * x[..., 0] for j in range(5)], 0
    for i in range(7):
        for j in range(5):
            if MASK[i, j]:
                outs[j] = outs[j] + values[k] * x[..., i]
                k += 1
    return anp.stack(outs, axis=-1)


def test_it_is_each_sum_over_what_is_stored_and_its_gradients_are_autograd_s():
    out, backward = sparse_linear(PARAMS, X, pattern=PATTERN)
    np.testing.assert_allclose(out, one_by_one(*PARAMS, X), rtol=0, atol=1e-10)
    expected = autograd.grad(lambda *args: anp.sum(DOUT * one_by_one(*args)), (0, 1, 2))(*PARAMS, X)
    (dvalues, dbias), dx = backward(DOUT)
    for own, their in zip((dvalues, dbias, dx), expected, strict=True):
        np.testing.assert_allclose(own, their, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.97])
def test_it_equals_the_masked_dense_map_forward_and_backward(sparsity):
    mask = magnitude_mask(DENSE, sparsity=sparsity)
    params, pattern = sparse_from_dense(DENSE, bias=BIAS, mask=mask)
    assert params.values.size == mask.sum()
    out, backward = sparse_linear(params, X, pattern=pattern)
    weight, weight_backward = masked_weight(MaskedWeight(DENSE), mask=mask)
    dense, dense_backward = linear(Linear(weight, BIAS), X)
    np.testing.assert_allclose(out, dense, rtol=0, atol=1e-12)
    (dvalues, dbias), dx = backward(DOUT)
    (dweight, dbias_dense), dx_dense = dense_backward(DOUT)
    np.testing.assert_allclose(dvalues, weight_backward(dweight).weight[mask], rtol=0, atol=1e-12)
    np.testing.assert_allclose(dbias, dbias_dense, rtol=0, atol=1e-12)
    np.testing.assert_allclose(dx, dx_dense, rtol=0, atol=1e-12)


def test_the_pattern_is_scipy_s():
    from scipy.sparse import csr_array

    theirs = csr_array(DENSE * MASK)
    np.testing.assert_array_equal(PARAMS.values, theirs.data)
    np.testing.assert_array_equal(PATTERN.columns, theirs.indices)
    np.testing.assert_array_equal(PATTERN.starts, theirs.indptr)
    assert PATTERN.columns.dtype == PATTERN.starts.dtype == np.int32


def test_without_a_mask_zeros_are_not_stored_and_with_one_they_may_be():
    weight = np.array([[0.0, 2.0], [0.0, 0.0], [3.0, 0.0]])
    assert sparse_from_dense(weight)[0].values.tolist() == [2, 3]
    params, pattern = sparse_from_dense(weight, mask=np.array([[True, True], [False, False], [True, False]]))
    assert params.values.tolist() == [0, 2, 3]
    np.testing.assert_array_equal(sparse_linear(params, np.ones((1, 3)), pattern=pattern)[0], [[3, 2]])


def test_a_zero_of_the_weight_is_not_multiplied_with():
    x = X.copy()
    x[..., 2] = np.nan                                       # row 2 is empty
    np.testing.assert_array_equal(sparse_linear(PARAMS, x, pattern=PATTERN)[0], sparse_linear(PARAMS, X, pattern=PATTERN)[0])
    assert not sparse_linear(PARAMS, X, pattern=PATTERN)[1](DOUT)[1][..., 2].any()


def test_training_moves_what_is_stored_and_no_zero_can_grow_back():
    packed = FlatTree.pack(PARAMS)
    optimizer, gradient = AdamW(packed, weight_decay=0.1), packed.zeros_like()
    for _ in range(3):
        out, backward = sparse_linear(packed.tree, X, pattern=PATTERN)
        gradient.set_sum(backward(out - 1)[0])
        optimizer.step(gradient, learning_rate=0.05)
    whole = sparse_linear(packed.tree._replace(bias=None), np.eye(7), pattern=PATTERN)[0]
    np.testing.assert_array_equal(whole != 0, MASK)
    assert not whole[~MASK].view(np.uint64).any() and (whole != DENSE)[MASK].all()


def test_it_takes_a_value_and_a_column_for_each_number_and_a_start_for_each_row():
    weight = np.where(RNG.random((64, 32)) < 0.1, 1, 0).astype(np.float32)
    params, pattern = sparse_from_dense(weight)
    stored = np.count_nonzero(weight)
    assert params.values.nbytes + pattern.columns.nbytes + pattern.starts.nbytes == 8 * stored + 4 * 65


def in_the_wrong_order(params, x, *, pattern):
    """The plausible wrong backward: gradients in the order of columns, as a transposed weight would have them."""
    out, backward = sparse_linear(params, x, pattern=pattern)

    def wrong(dout):
        (dvalues, dbias), dx = backward(dout)
        return SparseLinear(dvalues[np.argsort(pattern.columns, kind="stable")], dbias), dx

    return out, wrong


def test_the_checker_refuses_gradients_in_the_order_of_columns():
    assert check_gradients(sparse_linear, PARAMS, X, pattern=PATTERN).passed
    assert not check_gradients(in_the_wrong_order, PARAMS, X, pattern=PATTERN).passed


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"x: got shape \(2, 4, 6\), wants \(\.\.\., d_in\) with d_in = 7"):
        sparse_linear(PARAMS, X[..., :6], pattern=PATTERN)
    with pytest.raises(ValueError, match=r"params\.values: got 3 numbers, wants \d+, as many as pattern has"):
        sparse_linear(SparseLinear(np.ones(3), None), X, pattern=PATTERN)
    with pytest.raises(ValueError, match=r"params\.bias: got shape \(4,\), wants \(5,\)"):
        sparse_linear(SparseLinear(PARAMS.values, np.ones(4)), X, pattern=PATTERN)
    with pytest.raises(ValueError, match="pattern: got None, wants a SparsePattern"):
        sparse_linear(PARAMS, X, pattern=None)
    with pytest.raises(ValueError, match="weight: got nothing but zeros"):
        sparse_from_dense(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="starts: got 3 that do not fit, wants one a row, and one more, ascending from 0 to 2"):
        SparsePattern(np.array([0, 1]), np.array([0, 3, 2]), 2)
    with pytest.raises(ValueError, match="columns: got numbers from 0 to 2, wants numbers from 0 to below 2"):
        SparsePattern(np.array([0, 2]), np.array([0, 1, 2]), 2)
    with pytest.raises(ValueError, match="columns: got float64, wants an array of whole numbers"):
        SparsePattern(np.array([0.0, 1.0]), np.array([0, 1, 2]), 2)


@pytest.mark.parity
def test_output_and_gradients_are_those_of_a_sparse_tensor_in_pytorch():
    torch = pytest.importorskip("torch")
    rows, columns = np.nonzero(MASK)
    values, x = torch.tensor(PARAMS.values, requires_grad=True), torch.tensor(X.reshape(-1, 7), requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                      # PyTorch calls its sparse tensors a beta
        weight = torch.sparse_coo_tensor(np.stack([columns, rows]), values, (5, 7), check_invariants=True)
        theirs = torch.sparse.mm(weight, x.T).T + torch.tensor(BIAS)
        theirs.backward(torch.tensor(DOUT.reshape(-1, 5)))
    out, backward = sparse_linear(PARAMS, X, pattern=PATTERN)
    (dvalues, _), dx = backward(DOUT)
    np.testing.assert_allclose(out.reshape(-1, 5), theirs.detach().numpy(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(dvalues, values.grad.numpy(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(dx.reshape(-1, 7), x.grad.numpy(), rtol=0, atol=1e-9)
