"""Reranking: the order, the price, and what it buys."""

import itertools

import numpy as np
import pytest

from minitransformers.bias_mitigation.reranking import rerank

RNG = np.random.default_rng(0)
LOG_PROBS, BIAS = RNG.normal(size=12), RNG.random(12)


@pytest.mark.parametrize("price", [0.0, 0.4, 3.0])
def test_the_order_is_that_of_a_sorted_list(price):
    out = rerank(LOG_PROBS, BIAS, price=price, n=5)
    best = sorted(range(12), key=lambda i: -(LOG_PROBS[i] - price * BIAS[i]))[:5]
    assert out.order.tolist() == best
    np.testing.assert_allclose(out.scores, [LOG_PROBS[i] - price * BIAS[i] for i in best], rtol=0, atol=1e-15)


def test_for_nothing_it_is_the_model_s_order_and_costs_nothing():
    out = rerank(LOG_PROBS, BIAS, price=0.0, n=12)
    np.testing.assert_array_equal(out.order, np.argsort(-LOG_PROBS))
    assert out.paid == out.saved == 0.0


def test_a_higher_price_never_chooses_a_more_biased_or_a_likelier_text():
    prices = np.geomspace(0.01, 1e4, 300)
    chosen = [int(rerank(LOG_PROBS, BIAS, price=p).order[0]) for p in prices]
    assert all(BIAS[b] <= BIAS[a] and LOG_PROBS[b] <= LOG_PROBS[a] for a, b in itertools.pairwise(chosen))
    assert chosen[-1] == np.argmin(BIAS) and len(set(chosen)) > 2


def test_what_is_paid_is_never_more_than_what_is_saved_is_worth():
    for price in (0.1, 1.0, 5.0):
        out = rerank(LOG_PROBS, BIAS, price=price)
        assert 0 <= out.paid <= price * out.saved + 1e-15


def test_it_cannot_find_what_was_not_among_the_candidates():
    assert rerank(LOG_PROBS, np.ones(12), price=100.0).order[0] == np.argmax(LOG_PROBS)


def test_of_equals_the_earlier_comes_first():
    assert rerank(np.array([-1.0, -1.0, -1.0]), np.array([0.5, 0.5, 0.0]), price=0.0, n=3).order.tolist() == [0, 1, 2]
    assert rerank(np.array([-1.0, -2.0]), np.array([1.0, 0.0]), price=1.0, n=2).order.tolist() == [0, 1]
    assert rerank(-np.ones(50), np.arange(50) % 2.0, price=1.0, n=50).order.tolist() == [*range(0, 50, 2), *range(1, 50, 2)]


def test_a_bonus_for_bias_would_be_told():
    """The negative control: with the sign turned round, a higher price makes the chosen text more biased."""
    chosen = [int(np.argmax(LOG_PROBS + price * BIAS)) for price in (0.0, 20.0)]
    assert BIAS[chosen[1]] > BIAS[chosen[0]]
    assert BIAS[rerank(LOG_PROBS, BIAS, price=20.0).order[0]] < BIAS[chosen[0]]
