"""A price on what neutral words have along some directions: summed one by one, what is left alone, wrong backwards."""

import autograd
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.bias_mitigation.embedding_regularizer import embedding_regularizer

RNG = np.random.default_rng(0)
EMBEDDING, NEUTRAL = RNG.normal(size=(5, 4)), np.array([1, 0, 1, 1, 0], bool)
SUBSPACE = np.linalg.qr(RNG.normal(size=(4, 2)))[0]
ONE = np.float64(1)


def textbook(embedding, neutral=NEUTRAL):
    """A sum over words, directions and features."""
    total = 0.0
    for i in range(5):
        for j in range(2):
            along = sum(embedding[i, k] * SUBSPACE[k, j] for k in range(4))
            total = total + (along**2 if neutral[i] else 0.0)
    return total


def test_equals_the_textbook_formula_and_its_gradient():
    out, backward = embedding_regularizer(EMBEDDING, subspace=SUBSPACE, neutral=NEUTRAL)
    np.testing.assert_allclose(out, textbook(EMBEDDING), rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(np.float64(0.7)), 0.7 * autograd.grad(textbook)(EMBEDDING), rtol=0, atol=1e-12)


def test_words_that_are_not_neutral_have_no_gradient():
    assert not embedding_regularizer(EMBEDDING, subspace=SUBSPACE, neutral=NEUTRAL)[1](ONE)[~NEUTRAL].any()


def test_all_words_are_neutral_where_nothing_is_said():
    out, _ = embedding_regularizer(EMBEDDING, subspace=SUBSPACE)
    assert out == embedding_regularizer(EMBEDDING, subspace=SUBSPACE, neutral=np.full(5, True))[0]


def test_what_is_orthogonal_to_the_subspace_is_free_and_stays():
    free = EMBEDDING - EMBEDDING @ SUBSPACE @ SUBSPACE.T
    assert abs(embedding_regularizer(free, subspace=SUBSPACE)[0]) < 1e-28
    gradient = embedding_regularizer(EMBEDDING, subspace=SUBSPACE)[1](ONE)
    np.testing.assert_allclose(gradient @ free.T, 0, atol=1e-14)


def test_another_basis_of_the_same_subspace_is_the_same_price():
    turn = np.linalg.qr(RNG.normal(size=(2, 2)))[0]
    out, backward = embedding_regularizer(EMBEDDING, subspace=SUBSPACE)
    other, other_backward = embedding_regularizer(EMBEDDING, subspace=SUBSPACE @ turn)
    np.testing.assert_allclose(out, other, rtol=1e-14)
    np.testing.assert_allclose(backward(ONE), other_backward(ONE), rtol=0, atol=1e-14)


def test_one_step_of_half_its_gradient_is_the_projection():
    """With orthonormal directions and rate 1/2 the step takes out all that lies along them."""
    step = EMBEDDING - 0.5 * embedding_regularizer(EMBEDDING, subspace=SUBSPACE)[1](ONE)
    np.testing.assert_allclose(step, EMBEDDING - EMBEDDING @ SUBSPACE @ SUBSPACE.T, rtol=0, atol=1e-14)


def without_the_two(embedding):
    out, backward = embedding_regularizer(embedding, subspace=SUBSPACE)
    return out, lambda dout: backward(dout) / 2


def towards_the_length(embedding):
    """The gradient of the vectors' whole length, weight decay's."""
    return embedding_regularizer(embedding, subspace=SUBSPACE)[0], lambda dout: 2 * dout * embedding


@pytest.mark.parametrize("wrong", [without_the_two, towards_the_length])
def test_the_checker_refuses(wrong):
    assert not check_gradients(wrong, EMBEDDING).passed


def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(ValueError, match="neutral: got False everywhere"):
        embedding_regularizer(EMBEDDING, subspace=SUBSPACE, neutral=NEUTRAL & False)
    with pytest.raises(ValueError, match="subspace: got column 1 of length 0"):
        embedding_regularizer(EMBEDDING, subspace=SUBSPACE * [1, 0])


@pytest.mark.parity
def test_parity_with_torch():
    torch = pytest.importorskip("torch")
    theirs = torch.tensor(EMBEDDING, requires_grad=True)
    loss = torch.linalg.matrix_norm(theirs[torch.tensor(NEUTRAL)] @ torch.tensor(SUBSPACE)) ** 2
    loss.backward()
    out, backward = embedding_regularizer(EMBEDDING, subspace=SUBSPACE, neutral=NEUTRAL)
    np.testing.assert_allclose(out, loss.item(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(ONE), theirs.grad.numpy(), rtol=0, atol=1e-12)
