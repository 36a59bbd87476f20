"""Importance told by the thin matrices alone: what it is, and how near it comes to what the whole gradient tells."""

import numpy as np
import pytest

from minitransformers.peft.lora import lora
from minitransformers.peft.lora_importance import lora_importance
from minitransformers.peft.lora_linear import Lora, init_lora

RNG = np.random.default_rng(0)
BASE = RNG.normal(size=(6, 4))
FACTORS = Lora(RNG.normal(size=(6, 3)), RNG.normal(size=(3, 4)))
GRADIENT = Lora(RNG.normal(size=(6, 3)), RNG.normal(size=(3, 4)))


def spearman(a, b):
    """The correlation of ranks."""
    return np.corrcoef(*(np.argsort(np.argsort(values.ravel())) for values in (a, b)))[0, 1]


def trained_layer(seed, rank, steps):
    """A regression whose weight has to change by a matrix of rank 2: base, factors after so many steps, and the true gradient."""
    rng = np.random.default_rng(seed)
    x, base = rng.normal(size=(256, 24)), rng.normal(size=(24, 16)) / 24**0.5
    target = x @ (base + 0.5 * rng.normal(size=(24, 2)) @ rng.normal(size=(2, 16)) / 24**0.5)
    params = init_lora(rng, 24, 16, rank=rank, dtype=np.float64)

    def dense(params):
        weight, backward = lora(params, base=base, scale=1.0)
        dweight = x.T @ (x @ weight - target) / len(x)
        return weight, dweight, backward(dweight)

    for _ in range(steps):
        ddown, dup = dense(params)[2]
        params = Lora(params.down - 0.05 * ddown, params.up - 0.05 * dup)
    return base, params, *dense(params)


def agreements(rank, steps, along=None):
    """Rank correlations with |weight x true gradient|, of the importance and of |weight| alone; summed along an axis; ten layers."""
    found = []
    for seed in range(10):
        base, params, weight, dweight, gradient = trained_layer(seed, rank, steps)
        scores = lora_importance(params, gradient, base=base, scale=1.0), np.abs(weight), np.abs(weight * dweight)
        guided, size, true = scores if along is None else (score.sum(axis=along) for score in scores)
        found.append((spearman(guided, true), spearman(size, true)))
    return np.array(found).T


@pytest.mark.parametrize("step", [0.0, 0.3, 1.0])
def test_it_is_the_sum_of_each_element_by_itself(step):
    expected = np.empty((6, 4))
    for i in range(6):
        for j in range(4):
            ranks = range(3)
            change = sum(GRADIENT.down[i, r] * FACTORS.up[r, j] + FACTORS.down[i, r] * GRADIENT.up[r, j] for r in ranks)
            change -= step * sum(GRADIENT.down[i, r] * GRADIENT.up[r, j] for r in ranks)
            weight = BASE[i, j] + 0.7 * sum(FACTORS.down[i, r] * FACTORS.up[r, j] for r in ranks)
            expected[i, j] = abs(change * weight)
    np.testing.assert_allclose(lora_importance(FACTORS, GRADIENT, base=BASE, scale=0.7, step=step), expected, rtol=0, atol=1e-12)


def test_the_step_is_one_where_nothing_is_said_as_published():
    published = GRADIENT.down @ FACTORS.up + FACTORS.down @ GRADIENT.up - GRADIENT.down @ GRADIENT.up
    expected = np.abs(published * (0.7 * FACTORS.down @ FACTORS.up + BASE))
    np.testing.assert_allclose(lora_importance(FACTORS, GRADIENT, base=BASE, scale=0.7), expected, rtol=0, atol=1e-12)


def test_it_is_what_a_step_of_gradient_descent_does_to_the_product():
    stepped = Lora(FACTORS.down - 0.3 * GRADIENT.down, FACTORS.up - 0.3 * GRADIENT.up)
    change = (FACTORS.down @ FACTORS.up - stepped.down @ stepped.up) / 0.3
    expected = np.abs(change * (BASE + 0.7 * FACTORS.down @ FACTORS.up))
    np.testing.assert_allclose(lora_importance(FACTORS, GRADIENT, base=BASE, scale=0.7, step=0.3), expected, rtol=0, atol=1e-12)


def test_to_first_order_the_true_gradient_is_seen_through_two_projections():
    dweight = RNG.normal(size=(6, 4))
    weight, backward = lora(FACTORS, base=BASE, scale=1.0)
    seen = dweight @ FACTORS.up.T @ FACTORS.up + FACTORS.down @ FACTORS.down.T @ dweight
    found = lora_importance(FACTORS, backward(dweight), base=BASE, scale=1.0, step=0)
    np.testing.assert_allclose(found, np.abs(seen * weight), rtol=0, atol=1e-12)


def test_where_nothing_is_projected_away_it_is_the_true_one():
    """A square down whose columns are orthonormal, and up still zero."""
    square, dweight = np.linalg.qr(RNG.normal(size=(4, 4)))[0], RNG.normal(size=(4, 5))
    base, params = RNG.normal(size=(4, 5)), Lora(square, np.zeros((4, 5)))
    gradient = lora(params, base=base, scale=1.0)[1](dweight)
    np.testing.assert_allclose(lora_importance(params, gradient, base=base, scale=1.0), np.abs(base * dweight), rtol=0, atol=1e-12)


def test_the_order_depends_on_the_size_of_the_loss_where_the_step_is_not_zero():
    larger = Lora(100 * GRADIENT.down, 100 * GRADIENT.up)
    for step, same in ((0.0, True), (1.0, False)):
        one, other = (lora_importance(FACTORS, gradient, base=BASE, scale=0.7, step=step) for gradient in (GRADIENT, larger))
        assert np.array_equal(np.argsort(one, axis=None), np.argsort(other, axis=None)) is same


def test_after_training_at_rank_eight_it_ranks_weights_as_the_true_gradient_does_better_than_size_alone():
    guided, size = agreements(rank=8, steps=20)
    assert guided.mean() > 0.75 > size.mean() and np.sum(guided > size) >= 9


def test_at_the_start_it_ranks_outputs_but_not_inputs():
    """up is zero, so the gradient is seen through a projection of its inputs alone: those are mixed, and the outputs kept."""
    guided, size = agreements(rank=4, steps=0, along=0)
    assert guided.mean() > 0.7 and np.sum(guided > size) >= 9
    guided, size = agreements(rank=4, steps=0, along=1)
    assert guided.mean() < size.mean() and np.sum(guided < size) >= 7


def test_a_single_rank_tells_less_than_size_alone():
    guided, size = agreements(rank=1, steps=0)
    assert guided.mean() < size.mean() and np.sum(guided < size) >= 7


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="gradient"):
        lora_importance(FACTORS, Lora(GRADIENT.down[:, :1], GRADIENT.up[:1]), base=BASE, scale=1.0)
    with pytest.raises(ValueError, match="rank: got 5, wants 1 to 4"):
        five = Lora(np.ones((6, 5)), np.ones((5, 4)))
        lora_importance(five, five, base=BASE, scale=1.0)
    with pytest.raises(ValueError, match="step"):
        lora_importance(FACTORS, GRADIENT, base=BASE, scale=1.0, step=-1.0)
