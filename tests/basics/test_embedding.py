"""Embedding: a lookup forward, a sum over repeats backward."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.foundation import assert_gradients, check_gradients

rng = np.random.default_rng(1)
params = Embedding(rng.normal(size=(7, 3)))
ids = np.array([[4, 0, 4, 2, 4], [2, 6, 0, 1, 4]])               # 3 and 5 never occur, 4 occurs four times
dout = rng.normal(size=(2, 5, 3))


def test_output_and_gradient_agree_with_a_one_hot_product():
    def naive(weight):
        onehot = np.array([[[float(v == i) for v in range(7)] for i in row] for row in ids])
        return anp.einsum("btv,vd->btd", onehot, weight)

    out, backward = embedding(params, ids=ids)
    np.testing.assert_allclose(out, naive(params.weight), atol=1e-12)
    expected = autograd.grad(lambda weight: anp.sum(dout * naive(weight)))(params.weight)
    np.testing.assert_allclose(backward(dout).weight, expected, atol=1e-10)


def test_a_repeated_id_receives_the_sum_and_an_absent_one_exactly_zero():
    dweight = embedding(params, ids=ids)[1](dout).weight
    np.testing.assert_allclose(dweight[4], dout[0, 0] + dout[0, 2] + dout[0, 4] + dout[1, 4], atol=1e-14)
    assert not dweight[[3, 5]].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradient_equals_add_at_for_many_repeats(dtype):
    table = init_embedding(rng, 50, 4, dtype=dtype)
    many, grad = rng.integers(50, size=(9, 111)), rng.integers(-8, 9, size=(9, 111, 4)).astype(dtype)
    expected = np.zeros_like(table.weight)
    np.add.at(expected, many, grad)
    np.testing.assert_array_equal(embedding(table, ids=many)[1](grad).weight, expected)   # whole numbers: no rounding


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64])
def test_any_integers_index_the_table(kind):
    out, backward = embedding(params, ids=ids.astype(kind))
    np.testing.assert_array_equal(out, params.weight[ids])
    np.testing.assert_array_equal(backward(dout).weight, embedding(params, ids=ids)[1](dout).weight)


@pytest.mark.parametrize("mark", [2, -100, 99])
def test_padding_is_zero_and_teaches_nothing(mark):
    marked = np.where(ids == 2, mark, ids)
    out, backward = embedding(params, ids=marked, padding_idx=mark)
    plain, plain_backward = embedding(params, ids=ids)
    np.testing.assert_array_equal(out, np.where(marked[..., None] == mark, 0, plain))
    expected = plain_backward(np.where(marked[..., None] == mark, 0, dout)).weight
    np.testing.assert_array_equal(backward(np.where(marked[..., None] == mark, np.nan, dout)).weight, expected)


def test_a_row_of_nothing_but_padding():
    out, backward = embedding(params, ids=np.array([9, 9]), padding_idx=9)
    assert not out.any() and not backward(np.ones((2, 3))).weight.any()


def test_an_id_outside_the_table_is_refused_beside_padding():
    with pytest.raises(ValueError, match="ids: got ids from 0 to 8"):
        embedding(params, ids=np.array([9, 0, 8]), padding_idx=9)


def test_the_checker_refuses_padding_that_learns():
    def wrong(params):
        return embedding(params, ids=ids, padding_idx=2)[0], embedding(params, ids=ids)[1]

    assert not check_gradients(wrong, params).passed


@pytest.mark.parity
def test_padding_is_pytorch_s_while_its_row_is_zero():
    torch = pytest.importorskip("torch")
    table = params.weight.copy()
    table[2] = 0
    theirs = torch.tensor(table, requires_grad=True)
    result = torch.nn.functional.embedding(torch.tensor(ids), theirs, padding_idx=2)
    out, backward = embedding(Embedding(table), ids=ids, padding_idx=2)
    np.testing.assert_array_equal(out, result.detach())
    result.backward(torch.tensor(dout))
    np.testing.assert_allclose(backward(dout).weight, theirs.grad, rtol=0, atol=1e-9)


def test_a_single_id_gives_a_vector():
    out, backward = embedding(params, ids=np.array(2))
    assert out.shape == (3,)
    assert backward(np.ones(3)).weight.sum() == 3


@pytest.mark.parametrize("wrong", [-1, 7])
def test_ids_outside_the_table_are_named(wrong):
    with pytest.raises(ValueError, match=r"^ids: got ids from .* wants 0 to 6"):
        embedding(params, ids=np.array([3, wrong]))


def test_default_rows_have_the_spread_of_gpt2():
    assert abs(init_embedding(np.random.default_rng(0), 300, 40).weight.std() / 0.02 - 1) < 0.05


def tied(params, *, ids, forget=None):
    """The table as input and as output: logits = embedding(ids) weight^T."""
    rows, rows_backward = embedding(params, ids=ids)

    def backward(dlogits):
        as_input = rows_backward(dlogits @ params.weight).weight
        as_output = dlogits.reshape(-1, 7).T @ rows.reshape(-1, 3)
        return Embedding({"input": as_output, "output": as_input}.get(forget, as_input + as_output))

    return rows @ params.weight.T, backward


def test_a_tied_table_receives_the_sum_of_two_gradients():
    assert_gradients(tied, params, ids=ids)


@pytest.mark.parametrize("forget", ["input", "output"])
def test_checker_refuses_a_tied_table_with_one_of_them(forget):
    assert not check_gradients(tied, params, ids=ids, forget=forget).passed


def test_checker_refuses_a_backward_in_which_the_last_repeat_wins():
    def last_wins(params, *, ids):
        def backward(dout):
            dweight = np.zeros_like(params.weight)
            dweight[ids] += dout                                # an indexed += writes each row once
            return Embedding(dweight)

        return embedding(params, ids=ids)[0], backward

    report = check_gradients(last_wins, params, ids=ids)
    assert not report.passed
    assert report.worst.index[0] in (0, 2, 4)                    # the ids that repeat
    assert check_gradients(last_wins, params, ids=np.arange(7)).passed


@pytest.mark.parity
def test_parity_with_pytorch():
    torch = pytest.importorskip("torch")
    weight = torch.tensor(params.weight, requires_grad=True)
    out, backward = embedding(params, ids=ids)
    reference = torch.nn.functional.embedding(torch.tensor(ids), weight)
    reference.backward(torch.tensor(dout))
    np.testing.assert_allclose(out, reference.detach(), atol=1e-9)
    np.testing.assert_allclose(backward(dout).weight, weight.grad, atol=1e-9)
