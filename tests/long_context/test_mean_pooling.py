"""One answer out of many chunks: their mean, and their maximum."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.long_context.attentive_pooling import AttentivePooling, attentive_pooling
from minitransformers.long_context.mean_pooling import max_pooling, mean_pooling

RNG = np.random.default_rng(0)
X, DOUT = RNG.normal(size=(2, 4, 3)), RNG.normal(size=(2, 3))
MASK = np.array([[1, 1, 1, 1], [0, 1, 1, 0]], bool)


def that_count(text, counts):
    return [chunk for chunk, count in zip(text, counts, strict=True) if count]


def mean(x):
    return anp.stack([sum(that_count(text, counts)) / counts.sum() for text, counts in zip(x, MASK, strict=True)])


def largest(x):
    return anp.stack([anp.max(anp.stack(that_count(text, counts)), axis=0) for text, counts in zip(x, MASK, strict=True)])


@pytest.mark.parametrize(("pool", "textbook"), [(mean_pooling, mean), (max_pooling, largest)])
def test_mean_and_maximum_are_those_of_the_textbook_and_so_are_their_gradients(pool, textbook):
    out, backward = pool(X, mask=MASK)
    np.testing.assert_allclose(out, textbook(X), rtol=0, atol=1e-14)
    expected = autograd.grad(lambda x: anp.sum(DOUT * textbook(x)))(X)
    np.testing.assert_allclose(backward(DOUT), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("pool", [mean_pooling, max_pooling])
def test_the_order_of_the_chunks_does_not_matter(pool):
    np.testing.assert_allclose(pool(X[:, [2, 0, 3, 1]])[0], pool(X)[0], rtol=0, atol=1e-15)


@pytest.mark.parametrize("pool", [mean_pooling, max_pooling])
def test_what_does_not_count_may_hold_anything_and_gets_no_gradient(pool):
    out, backward = pool(np.where(MASK[..., None], X, np.nan), mask=MASK)
    np.testing.assert_array_equal(out, pool(X, mask=MASK)[0])
    assert not backward(DOUT)[~MASK].any()


@pytest.mark.parametrize("pool", [mean_pooling, max_pooling])
def test_one_chunk_is_its_own_answer(pool):
    np.testing.assert_array_equal(pool(X[:, :1])[0], X[:, 0])


def test_the_mean_is_attentive_pooling_that_finds_all_chunks_worth_the_same():
    params = AttentivePooling(RNG.normal(size=(3, 5)), np.zeros(5))
    out, backward = attentive_pooling(params, X, mask=MASK)
    other, other_backward = mean_pooling(X, mask=MASK)
    np.testing.assert_allclose(other, out, rtol=0, atol=1e-15)
    np.testing.assert_allclose(other_backward(DOUT), backward(DOUT)[1], rtol=0, atol=1e-15)


def test_the_mean_of_scores_is_the_score_of_the_mean_and_the_maximum_is_not():
    head = RNG.normal(size=(3, 2))
    np.testing.assert_allclose(mean_pooling(X @ head)[0], mean_pooling(X)[0] @ head, rtol=0, atol=1e-14)
    assert np.abs(max_pooling(X @ head)[0] - max_pooling(X)[0] @ head).max() > 0.1


def test_a_cue_in_one_chunk_fades_in_the_mean_with_their_number_and_not_in_the_maximum():
    for chunks in (1, 10, 100):
        x = np.zeros((chunks, 1))
        x[chunks // 2] = 1
        assert mean_pooling(x)[0] == pytest.approx(1 / chunks) and max_pooling(x)[0] == 1


def test_in_the_maximum_one_chunk_a_feature_learns_and_of_equals_the_first():
    dx = max_pooling(X)[1](DOUT)
    assert ((dx != 0).sum(axis=1) == 1).all()
    np.testing.assert_array_equal(max_pooling(np.ones((1, 4, 3)))[1](DOUT[:1])[0], [DOUT[0], *np.zeros((3, 3))])


def test_the_maximum_of_negative_numbers_is_not_the_zero_of_what_does_not_count():
    assert (max_pooling(-np.abs(X), mask=MASK)[0] < 0).all()


@pytest.mark.parametrize("pool", [mean_pooling, max_pooling])
def test_the_checker_refuses_a_backward_that_forgets_which_chunks_count(pool):
    everywhere = pool(X)[1]
    assert not check_gradients(lambda x: (pool(x, mask=MASK)[0], everywhere), X).passed


@pytest.mark.parametrize("pool", [mean_pooling, max_pooling])
def test_a_text_of_which_no_chunk_counts_is_refused(pool):
    with pytest.raises(ValueError, match="mask: got a text of which no chunk counts"):
        pool(X, mask=MASK & np.array([[True], [False]]))
