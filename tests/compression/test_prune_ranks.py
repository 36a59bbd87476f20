"""A train without the links that its gates have closed is the same map, with fewer numbers."""

import numpy as np
import pytest

from minitransformers.compression.prune_ranks import prune_ranks, train_size
from minitransformers.compression.tt_linear import TensorTrain, TtLinear, tt_linear, tt_weight

RNG = np.random.default_rng(0)
SIZES, RANKS = (2, 3, 5, 2), (4, 3, 5)
SHAPES = list(zip((1, *RANKS), SIZES, (*RANKS, 1), strict=True))
GATES = [np.array([1.0, 0.0, 2.0, 3.0]), np.array([0.0, 1.0, 2.0]), np.array([2.0, 0.0, 0.0, 1.0, 1.0])]
X = RNG.normal(size=(7, 6))


def train(gates=GATES, whole=False):
    cores = [RNG.integers(-4, 5, size=shape).astype(float) if whole else RNG.normal(size=shape) for shape in SHAPES]
    return TensorTrain(cores, [own.copy() for own in gates])


def test_without_its_closed_links_the_map_is_the_same_to_the_last_bit():
    """With whole numbers, whose sums have no rounding: what BLAS adds in which order does not matter then."""
    before = train(whole=True)
    after = prune_ranks(before)
    assert [core.shape for core in after.cores] == [(1, 2, 3), (3, 3, 2), (2, 5, 3), (3, 2, 1)]
    x = RNG.integers(-5, 6, size=(7, 6)).astype(float)
    np.testing.assert_array_equal(tt_linear(TtLinear(after, None), x)[0], tt_linear(TtLinear(before, None), x)[0])
    assert tt_linear(TtLinear(after, None), x)[0].any()


def test_links_at_or_below_the_threshold_go_and_the_map_is_that_of_the_threshold():
    gates = [np.array([0.3, 0.31, -2.0, 1.0]), np.array([0.5, 0.1, 0.7]), np.array([0.0, 0.9, 0.4, 0.3, -0.1])]
    before = train(gates)
    after = prune_ranks(before, threshold=0.3)
    assert [len(own) for own in after.gates] == [2, 2, 2]
    out = tt_linear(TtLinear(after, None), X)[0]
    np.testing.assert_allclose(out, tt_linear(TtLinear(before, None), X, threshold=0.3)[0], rtol=0, atol=1e-12)
    assert np.abs(out - tt_linear(TtLinear(before, None), X)[0]).max() > 0.1


def test_the_gates_that_are_left_are_in_the_cores():
    before = train()
    after = prune_ranks(before)
    assert all((own == 1).all() for own in after.gates)
    np.testing.assert_array_equal(after.cores[0], (before.cores[0] * GATES[0])[:, :, [0, 2, 3]])
    np.testing.assert_array_equal(after.cores[3], before.cores[3][[0, 3, 4]])


def test_pruning_twice_is_pruning_once_and_the_train_stays_as_it_was():
    before = train()
    kept = [own.copy() for own in (*before.cores, *before.gates)]
    once = prune_ranks(before)
    for one, other in zip((*once.cores, *once.gates), (*prune_ranks(once).cores, *prune_ranks(once).gates), strict=True):
        np.testing.assert_array_equal(one, other)
    for own, was in zip((*before.cores, *before.gates), kept, strict=True):
        np.testing.assert_array_equal(own, was)


def test_the_size_is_how_many_numbers_the_pruned_cores_have():
    after = prune_ranks(train())
    assert train_size(GATES, sizes=SIZES) == sum(core.size for core in after.cores) == 1 * 2 * 3 + 3 * 3 * 2 + 2 * 5 * 3 + 3 * 2 * 1
    assert train_size([np.ones(rank) for rank in RANKS], sizes=SIZES) == sum(int(np.prod(shape)) for shape in SHAPES)


def test_a_train_without_a_link_somewhere_has_no_size():
    assert train_size([GATES[0], np.zeros(3), GATES[2]], sizes=SIZES) == 0


def test_leaving_the_gates_out_of_the_cores_is_told_apart():
    """A variant that is easily written: links are cut and gates forgotten."""
    before = train()
    after = prune_ranks(before)
    wrong = TensorTrain([before.cores[0][:, :, [0, 2, 3]], *after.cores[1:]], after.gates)
    base = np.zeros((6, 10))
    right = tt_weight(before, base=base)[0]
    np.testing.assert_allclose(tt_weight(after, base=base)[0], right, rtol=0, atol=1e-12)
    assert np.abs(tt_weight(wrong, base=base)[0] - right).max() > 0.1


def test_what_would_make_a_zero_map_is_refused():
    with pytest.raises(ValueError, match=r"train\.gates\.1: got 0\.005 at most, wants one above 0\.01: without a link the map is zero"):
        prune_ranks(train([GATES[0], np.full(3, 0.005), GATES[2]]))
    with pytest.raises(ValueError, match=r"train\.gates: got \[4, 3\] of them"):
        prune_ranks(TensorTrain(train().cores, GATES[:2]))
    with pytest.raises(ValueError, match="threshold"):
        prune_ranks(train(), threshold=-1.0)
    with pytest.raises(ValueError, match="sizes: got 3 of them, wants 4, one more than gates"):
        train_size(GATES, sizes=SIZES[:3])
