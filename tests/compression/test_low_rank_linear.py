"""Two thin matrices in the place of one: a map, the same as a weight, and the best of its rank."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from changed_models import MODELS, PATTERNS, changed, checked, whole_model

from minitransformers import check_gradients, trees
from minitransformers.basics.linear import Linear, linear
from minitransformers.compression.low_rank_linear import (
    LowRankFactors,
    LowRankLinear,
    break_even_rank,
    low_rank_linear,
    low_rank_weight,
    svd_factors,
)
from minitransformers.foundation import reparameterize, trusted
from minitransformers.peft.targets import at_targets, targets

RNG = np.random.default_rng(0)
PARAMS = LowRankLinear(RNG.normal(size=(5, 2)), RNG.normal(size=(2, 4)), RNG.normal(size=4))
X, DOUT = RNG.normal(size=(3, 5)), RNG.normal(size=(3, 4))
WEIGHT = RNG.normal(size=(7, 5))


def one_by_one(down, up, bias, x):
    """Each output as a sum over features and ranks."""
    rows = [
        [bias[j] + sum(x[n, i] * down[i, r] * up[r, j] for i in range(5) for r in range(2)) for j in range(4)] for n in range(3)
    ]
    return anp.array(rows)


def test_it_is_each_sum_and_its_gradients_are_autograd_s():
    out, backward = low_rank_linear(PARAMS, X)
    np.testing.assert_allclose(out, one_by_one(*PARAMS, X), rtol=0, atol=1e-10)
    expected = autograd.grad(lambda *all_of: anp.sum(DOUT * one_by_one(*all_of)), (0, 1, 2, 3))(*PARAMS, X)
    dparams, dx = backward(DOUT)
    for own, their in zip((*dparams, dx), expected, strict=True):
        np.testing.assert_allclose(own, their, rtol=0, atol=1e-10)


def test_without_a_bias_there_is_no_gradient_of_one():
    out, backward = low_rank_linear(PARAMS._replace(bias=None), X)
    np.testing.assert_allclose(out + PARAMS.bias, low_rank_linear(PARAMS, X)[0], rtol=0, atol=1e-12)
    assert backward(DOUT)[0].bias is None


def test_the_map_is_an_ordinary_one_with_the_weight_that_the_factors_make():
    factors = LowRankFactors(PARAMS.down, PARAMS.up)
    weight, weight_backward = low_rank_weight(factors, base=np.zeros((5, 4)))
    out, backward = linear(Linear(weight, PARAMS.bias), X)
    own, own_backward = low_rank_linear(PARAMS, X)
    np.testing.assert_allclose(own, out, rtol=0, atol=1e-12)
    (dlinear, dx), (dparams, own_dx) = backward(DOUT), own_backward(DOUT)
    np.testing.assert_allclose(own_dx, dx, rtol=0, atol=1e-12)
    for one, other in zip(weight_backward(dlinear.weight), (dparams.down, dparams.up), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_what_is_missing_is_the_singular_values_left_out(rank):
    down, up = svd_factors(WEIGHT, rank=rank)
    assert down.shape == (7, rank) and up.shape == (rank, 5)
    left_out = np.linalg.svd(WEIGHT, compute_uv=False)[rank:]
    np.testing.assert_allclose(np.linalg.norm(WEIGHT - down @ up), np.sqrt(np.sum(left_out**2)), rtol=0, atol=1e-12)


def test_no_other_product_of_the_rank_comes_nearer():
    """Alternating least squares, from many starts: each half of a turn is the best factor for the other."""
    least = np.linalg.norm(WEIGHT - np.matmul(*svd_factors(WEIGHT, rank=2)))
    for seed in range(10):
        down = np.random.default_rng(seed).normal(size=(7, 2))
        for _ in range(20):
            up = np.linalg.lstsq(down, WEIGHT, rcond=None)[0]
            down = np.linalg.lstsq(up.T, WEIGHT.T, rcond=None)[0].T
            assert np.linalg.norm(WEIGHT - down @ up) >= least - 1e-12


def test_columns_of_the_one_and_rows_of_the_other_are_orthogonal_and_equally_long():
    down, up = svd_factors(WEIGHT, rank=3)
    sigma = np.diag(np.linalg.svd(WEIGHT, compute_uv=False)[:3])
    np.testing.assert_allclose(down.T @ down, sigma, rtol=0, atol=1e-12)
    np.testing.assert_allclose(up @ up.T, sigma, rtol=0, atol=1e-12)


def test_a_root_on_one_side_alone_would_not_restore_the_weight():
    """A variant that is easily written: sigma^(1/2) left out of one factor. Eckart and Young tell it apart."""
    U, sigma, V = np.linalg.svd(WEIGHT, full_matrices=False)
    wrong = (U * np.sqrt(sigma)) @ V
    assert np.linalg.norm(WEIGHT - wrong) > 0.1
    np.testing.assert_allclose(np.matmul(*svd_factors(WEIGHT, rank=5)), WEIGHT, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("d_in", "d_out", "expected"), [(64, 32, 64 / 3), (32, 32, 16.0), (1, 9, 0.9)])
def test_below_the_break_even_rank_there_are_fewer_numbers(d_in, d_out, expected):
    even = break_even_rank(d_in, d_out)
    assert even == pytest.approx(expected, rel=1e-15)
    for rank in range(1, min(d_in, d_out) + 1):
        assert (rank * (d_in + d_out) < d_in * d_out) is (rank < even)


@pytest.mark.parametrize("name", MODELS)
def test_it_trains_a_model_whose_code_is_not_touched(name):
    base, run = whole_model(name)
    patterns, count = PATTERNS[name]
    trained = at_targets(lambda leaf: svd_factors(leaf, rank=1), base, patterns)
    assert len(list(trees.leaves(trained))) == 2 * count
    report = checked(changed(run, base, low_rank_weight), trained)
    assert report.passed, str(report)


def test_a_model_of_full_rank_factors_is_the_model():
    base, run = whole_model("gpt2")
    patterns, count = PATTERNS["gpt2"]
    assert len(targets(base, patterns)) == count
    trained = at_targets(lambda leaf: svd_factors(leaf, rank=min(leaf.shape)), base, patterns)
    tree, _ = reparameterize(trained, base=base, change=low_rank_weight)
    np.testing.assert_allclose(run(tree)[0], run(base)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("forgotten", ["the map down in dx", "the transpose of hidden"])
def test_the_checker_refuses_a_backward_that_forgets(forgotten):
    square = LowRankLinear(RNG.normal(size=(3, 3)), RNG.normal(size=(3, 3)), None)
    x = RNG.normal(size=(3, 3))

    def wrong(params, x):
        out, backward = low_rank_linear(params, x)

        def forgetful(dout):
            dparams, dx = backward(dout)
            if forgotten == "the map down in dx":
                return dparams, dout @ params.up.T
            return dparams._replace(up=(x @ params.down) @ dout), dx

        return out, forgetful

    assert not check_gradients(wrong, square, x).passed


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="rank: got 6, wants 1 to 5, the most that a weight of 7 by 5 can have"):
        svd_factors(WEIGHT, rank=6)
    with pytest.raises(ValueError, match="weight: got numbers from nan"):
        svd_factors(np.full((2, 2), np.nan), rank=1)
    factors = LowRankFactors(PARAMS.down, PARAMS.up)
    with pytest.raises(ValueError, match="base"):
        low_rank_weight(factors, base=np.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"base: got shape \(5, 3\), wants \(5, 4\), as the factors make"):
        trusted(low_rank_weight)(factors, base=np.zeros((5, 3)))  # as inside a model, where no annotation is checked
