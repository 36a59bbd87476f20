"""FixNorm: the textbook loops, one table in two places, logits that lengths cannot move, and rows under the floor."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.embedding import Embedding, embedding
from minitransformers.basics.linear import Linear, linear
from minitransformers.foundation import check_gradients
from minitransformers.norms.fix_norm import fix_norm
from minitransformers.norms.scale_norm import ScaleNorm, scale_norm

IDS = np.array([[1, 4, 1], [0, 2, 4]])


def textbook_fix_norm(weight, eps=1e-12):
    """One row at a time; the floor as a case."""
    rows = []
    for row in weight:
        square = sum(value**2 for value in row)
        rows.append(row / anp.sqrt(square) if square > eps**2 else row / eps)
    return anp.stack(rows)


def tied_logits(weight, *, ids):
    """Unit rows read at the input, one map between, the same unit rows at the output."""
    unit, fix_backward = fix_norm(weight)
    read, embedding_backward = embedding(Embedding(unit), ids=ids)
    hidden, norm_backward = scale_norm(ScaleNorm(np.array(3.0)), np.tanh(2 * read))
    logits, head_backward = linear(Linear(unit.T, None), hidden)

    def backward(dlogits):
        dhead, dhidden = head_backward(dlogits)
        _, dtanh = norm_backward(dhidden)
        dread = 2 * dtanh * (1 - np.tanh(2 * read) ** 2)
        return fix_backward(embedding_backward(dread).weight + dhead.weight.T)

    return logits, backward


def textbook_tied_logits(weight, ids):
    unit = weight / anp.sqrt(anp.sum(weight**2, axis=1, keepdims=True))
    hidden = anp.tanh(2 * unit[ids])
    return 3.0 * hidden / anp.sqrt(anp.sum(hidden**2, axis=-1, keepdims=True)) @ unit.T


@pytest.mark.parametrize("shape", [(5, 4), (1, 3), (3, 1)])
@pytest.mark.parametrize("eps", [1e-12, 0.5])
def test_equals_the_textbook_loops_and_their_gradients(shape, eps):
    rng = np.random.default_rng(0)
    weight, dout = rng.normal(size=shape), rng.normal(size=shape)
    weight[0] *= 1e-2
    out, backward = fix_norm(weight, eps=eps)
    np.testing.assert_allclose(out, textbook_fix_norm(weight, eps), rtol=0, atol=1e-12)
    expected = autograd.grad(lambda weight: anp.sum(dout * textbook_fix_norm(weight, eps)))(weight)
    np.testing.assert_allclose(backward(dout), expected, rtol=1e-12, atol=1e-12)


def test_every_row_is_one_long():
    out, _ = fix_norm(np.random.default_rng(1).normal(size=(5, 4)) * np.array([[1e-6], [0.1], [1], [10], [1e6]]))
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, rtol=1e-14)


def test_the_length_of_a_row_changes_nothing_and_each_row_counts_alone():
    weight = np.random.default_rng(2).normal(size=(5, 4))
    longer = weight * np.array([[3.0], [1], [0.2], [1], [50]])
    np.testing.assert_allclose(fix_norm(longer)[0], fix_norm(weight)[0], rtol=1e-14)


def test_a_shift_of_a_row_changes_it_and_a_rotation_goes_through():
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(5, 4))
    rotation, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    assert np.abs(fix_norm(weight + 1)[0] - fix_norm(weight)[0]).max() > 0.1
    np.testing.assert_allclose(fix_norm(weight @ rotation)[0], fix_norm(weight)[0] @ rotation, atol=1e-14)


def test_one_table_in_two_places_gets_the_sum_of_two_gradients():
    rng = np.random.default_rng(4)
    weight, dlogits = rng.normal(size=(5, 4)), rng.normal(size=(2, 3, 5))
    logits, backward = tied_logits(weight, ids=IDS)
    np.testing.assert_allclose(logits, textbook_tied_logits(weight, IDS), atol=1e-12)
    expected = autograd.grad(lambda weight: anp.sum(dlogits * textbook_tied_logits(weight, IDS)))(weight)
    np.testing.assert_allclose(backward(dlogits), expected, atol=1e-11)
    assert check_gradients(tied_logits, weight, ids=IDS).passed


def test_after_scale_norm_a_logit_is_g_times_a_cosine():
    weight = np.random.default_rng(5).normal(size=(5, 4)) * np.array([[1.0], [9], [0.1], [2], [40]])
    logits, _ = tied_logits(weight, ids=IDS)
    assert np.abs(logits).max() <= 3 + 1e-14
    np.testing.assert_allclose(tied_logits(100 * weight, ids=IDS)[0], logits, atol=1e-13)


def test_the_gradient_of_a_row_is_at_right_angles_to_it_and_shrinks_as_it_grows():
    rng = np.random.default_rng(6)
    weight, dout = rng.normal(size=(5, 4)), rng.normal(size=(5, 4))
    dweight = fix_norm(weight)[1](dout)
    np.testing.assert_allclose(np.vecdot(dweight, weight), 0, atol=1e-14)
    np.testing.assert_allclose(fix_norm(10 * weight)[1](dout), dweight / 10, rtol=1e-12)


def test_a_step_of_gradient_descent_never_makes_a_row_shorter():
    rng = np.random.default_rng(7)
    weight = rng.normal(size=(5, 4))
    stepped = weight - 0.5 * fix_norm(weight)[1](rng.normal(size=(5, 4)))
    assert np.all(np.linalg.norm(stepped, axis=1) > np.linalg.norm(weight, axis=1))


def test_under_the_floor_the_map_is_linear_and_zeros_stay_zero():
    rng = np.random.default_rng(8)
    weight, dout = rng.normal(size=(3, 4)) * 1e-3, rng.normal(size=(3, 4))
    weight[1] = 0
    out, backward = fix_norm(weight, eps=0.5)
    np.testing.assert_allclose(out, 2 * weight, rtol=1e-15)
    np.testing.assert_allclose(backward(dout), 2 * dout, rtol=1e-15)
    assert np.isfinite(fix_norm(np.zeros((2, 3), np.float32))[1](np.ones((2, 3), np.float32))).all()


@pytest.mark.parametrize("eps", [1e-50, 1e50])
def test_an_eps_that_float32_rounds_to_zero_or_infinity_is_refused(eps):
    with pytest.raises(ValueError, match="eps: got"):
        fix_norm(np.zeros((2, 3), np.float32), eps=eps)
    assert not fix_norm(np.zeros((2, 3)), eps=eps)[0].any()


def with_the_length_taken_for_a_constant(weight):
    out, _ = fix_norm(weight)
    return out, lambda dout: dout / np.linalg.norm(weight, axis=1, keepdims=True)


def tied_logits_that_forget_the_output(weight, *, ids):
    logits, backward = tied_logits(weight, ids=ids)
    unit, fix_backward = fix_norm(weight)
    hidden, _ = scale_norm(ScaleNorm(np.array(3.0)), np.tanh(2 * unit[ids]))

    def wrong(dlogits):
        of_the_output = dlogits.reshape(-1, len(unit)).T @ hidden.reshape(-1, unit.shape[1])
        return backward(dlogits) - fix_backward(of_the_output)

    return logits, wrong


def test_the_checker_refuses_lengths_taken_for_constants_and_a_use_forgotten():
    weight = np.random.default_rng(9).normal(size=(5, 4))
    for report in (
        check_gradients(with_the_length_taken_for_a_constant, weight),
        check_gradients(tied_logits_that_forget_the_output, weight, ids=IDS),
    ):
        assert not report.passed and report.error > 1e-2


@pytest.mark.parametrize("size", [1e-18, 1e18])
def test_float32_stays_finite_as_far_as_its_squares_do(size):
    weight = (np.random.default_rng(10).normal(size=(5, 64)) * size).astype(np.float32)
    out, backward = fix_norm(weight, eps=1e-20)
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, rtol=1e-4)
    assert np.isfinite(backward(np.ones_like(weight))).all()


@pytest.mark.parity
def test_parity_with_torch_also_for_zeros():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(11)
    weight, dout = rng.normal(size=(5, 4)), rng.normal(size=(5, 4))
    weight[1], weight[3] = 0, weight[3] * 1e-3
    for eps in (1e-12, 0.1):
        theirs_in = torch.tensor(weight, requires_grad=True)
        theirs = torch.nn.functional.normalize(theirs_in, dim=-1, eps=eps)
        theirs.backward(torch.tensor(dout))
        out, backward = fix_norm(weight, eps=eps)
        np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-13)
        np.testing.assert_allclose(backward(dout), theirs_in.grad.numpy(), rtol=1e-12, atol=1e-12)
