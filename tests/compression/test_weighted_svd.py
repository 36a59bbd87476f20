"""Factors that change what a layer puts out least, over inputs that it has seen."""

import numpy as np
import pytest

from minitransformers.compression.low_rank_linear import svd_factors
from minitransformers.compression.weighted_svd import weighted_svd

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(6, 4))
X = RNG.normal(size=(3, 20, 6)) @ np.diag([5.0, 3.0, 1.0, 0.5, 0.2, 0.1]) @ RNG.normal(size=(6, 6))  # some directions are much larger


def missed(factors, x=X, weight=WEIGHT):
    return np.linalg.norm(x.reshape(-1, x.shape[-1]) @ (weight - factors.down @ factors.up))


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_what_is_missing_is_the_tail_of_the_weighted_weight(rank):
    """X W has the singular values of R W, and those left out are missing: no Cholesky factor in sight."""
    tail = np.linalg.svd(X.reshape(-1, 6) @ WEIGHT, compute_uv=False)[rank:]
    np.testing.assert_allclose(missed(weighted_svd(WEIGHT, X, rank=rank, damping=0.0)), np.sqrt(np.sum(tail**2)), rtol=0, atol=1e-10)


def test_no_map_of_the_rank_comes_nearer_on_these_inputs():
    """The best outputs of rank r are X W projected onto its first right singular vectors: a way that needs no gram."""
    outputs = X.reshape(-1, 6) @ WEIGHT
    V = np.linalg.svd(outputs, full_matrices=False)[2][:2]
    down, up = weighted_svd(WEIGHT, X, rank=2, damping=0.0)
    np.testing.assert_allclose(down @ up, WEIGHT @ V.T @ V, rtol=0, atol=1e-10)


def test_it_is_never_worse_than_plain_truncation_and_far_better_where_inputs_are_uneven():
    for rank in (1, 2, 3):
        assert missed(weighted_svd(WEIGHT, X, rank=rank)) <= missed(svd_factors(WEIGHT, rank=rank))
    assert missed(weighted_svd(WEIGHT, X, rank=3)) < 0.5 * missed(svd_factors(WEIGHT, rank=3))


def test_with_even_inputs_it_is_plain_truncation():
    even = np.linalg.qr(RNG.normal(size=(12, 6)))[0]
    own, plain = weighted_svd(WEIGHT, even, rank=2, damping=0.0), svd_factors(WEIGHT, rank=2)
    np.testing.assert_allclose(own.down @ own.up, plain.down @ plain.up, rtol=0, atol=1e-12)


def test_with_damping_the_weight_itself_counts_a_little():
    damping = 0.3
    own = weighted_svd(WEIGHT, X, rank=2, damping=damping)
    gram = X.reshape(-1, 6).T @ X.reshape(-1, 6)
    part = damping * np.trace(gram) / 6
    tail = np.linalg.svd(np.linalg.cholesky(gram + part * np.eye(6)).T @ WEIGHT, compute_uv=False)[2:]
    both = missed(own) ** 2 + part * np.linalg.norm(WEIGHT - own.down @ own.up) ** 2
    np.testing.assert_allclose(both, np.sum(tail**2), rtol=1e-12)


def test_much_damping_makes_it_plain_truncation():
    own, plain = weighted_svd(WEIGHT, X, rank=2, damping=1e10), svd_factors(WEIGHT, rank=2)
    np.testing.assert_allclose(own.down @ own.up, plain.down @ plain.up, rtol=0, atol=1e-8)  # damping 1e10: off by its inverse


def test_the_size_of_the_inputs_does_not_matter():
    one, other = weighted_svd(WEIGHT, X, rank=2), weighted_svd(WEIGHT, 1000 * X, rank=2)
    np.testing.assert_allclose(one.down @ one.up, other.down @ other.up, rtol=0, atol=1e-10)


def test_with_damping_fewer_positions_than_features_are_enough():
    few = X[0, :3]
    own = weighted_svd(WEIGHT, few, rank=3)
    assert missed(own, few) < 1e-4 * np.linalg.norm(few @ WEIGHT)  # three rows are matched by rank three, up to the damping


def test_float32_stays_float32():
    own = weighted_svd(WEIGHT.astype(np.float32), X.astype(np.float32), rank=2)
    assert own.down.dtype == own.up.dtype == np.float32


def test_scaling_by_the_size_of_each_feature_alone_is_not_as_near():
    """ASVD's own way, a diagonal in the place of the Cholesky factor: right only where features do not go together."""
    size = np.sqrt(np.mean(X.reshape(-1, 6) ** 2, axis=0))
    down, up = svd_factors(size[:, None] * WEIGHT, rank=2)
    diagonal = type(weighted_svd(WEIGHT, X, rank=2))(down / size[:, None], up)
    assert missed(weighted_svd(WEIGHT, X, rank=2, damping=0.0)) < 0.999 * missed(diagonal)


def test_what_cannot_be_used_is_refused():
    with pytest.raises(ValueError, match="rank: got 5, wants 1 to 4"):
        weighted_svd(WEIGHT, X, rank=5)
    with pytest.raises(ValueError, match="x: got 3 positions whose features depend on each other, wants more positions, or more damping"):
        weighted_svd(WEIGHT, X[0, :3], rank=2, damping=0.0)
    with pytest.raises(ValueError, match="x: got shape"):
        weighted_svd(WEIGHT, X[:, :0], rank=2)
    with pytest.raises(ValueError, match="x: got numbers from"):
        weighted_svd(WEIGHT, np.where(X > 10, np.nan, X), rank=2)
