"""A penalty that has the slope which the size of a train has not, and the two objectives that it stands in."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.compression.prune_ranks import train_size
from minitransformers.compression.rank_penalty import early_objective, late_objective, rank_penalty
from minitransformers.compression.tt_linear import TensorTrain

RNG = np.random.default_rng(0)
SIZES, RANKS = (2, 3, 5, 2), (4, 3, 5)
GATES = [RNG.normal(size=rank) for rank in RANKS]
SHAPES = list(zip((1, *RANKS), SIZES, (*RANKS, 1), strict=True))


def train():
    """Some gates lie below 0.3, the second of each below zero."""
    gates = [np.where(np.arange(rank) == 1, -1, 1) * RNG.uniform(0.1, 1.5, size=rank) for rank in RANKS]
    return TensorTrain([RNG.normal(size=shape) for shape in SHAPES], gates)


TRAINS = [train(), train()]
LOSS = np.array(1.7)


def in_words(gates, sizes):
    """A sum over all pairs of links of neighbouring gates, one by one."""
    columns = [[1.0], *gates, [1.0]]
    return sum(n * abs(a) * abs(b) for k, n in enumerate(sizes) for a in columns[k] for b in columns[k + 1])


def test_it_is_a_sum_over_all_pairs_of_neighbouring_links_and_its_gradient_is_autograd_s():
    penalty, backward = rank_penalty(GATES, sizes=SIZES)
    np.testing.assert_allclose(penalty, in_words(GATES, SIZES), rtol=1e-12)
    expected = autograd.grad(lambda gates: 1.3 * in_words(gates, SIZES))(GATES)
    for own, their in zip(backward(np.array(1.3)), expected, strict=True):
        np.testing.assert_allclose(own, their, rtol=0, atol=1e-10)


def test_where_every_gate_is_one_or_zero_it_is_the_size_of_the_train():
    gates = [np.array([1.0, 0, 1, 0]), np.array([0.0, 1, 0]), np.array([1.0, 1, 0, 1, 0])]
    assert rank_penalty(gates, sizes=SIZES)[0] == train_size(gates, sizes=SIZES) == 2 * 1 * 2 + 3 * 2 * 1 + 5 * 1 * 3 + 2 * 3 * 1


def test_all_gates_between_two_cores_are_pulled_alike_whatever_their_size():
    dgates = rank_penalty(GATES, sizes=SIZES)[1](np.array(1.0))
    for own, gates in zip(dgates, GATES, strict=True):
        np.testing.assert_allclose(np.abs(own), np.abs(own[0]), rtol=1e-12)
        np.testing.assert_array_equal(np.sign(own), np.sign(gates))


def test_it_counts_an_end_as_one():
    """One rank alone: n_1 |gates| + n_2 |gates|."""
    assert rank_penalty([np.array([2.0, -3.0])], sizes=(7, 4))[0] == 7 * 5 + 4 * 5


def test_halving_gates_and_doubling_cores_lowers_it_and_the_squares_of_the_cores_answer():
    gates = [GATES[0] / 2, *GATES[1:]]
    assert rank_penalty(gates, sizes=SIZES)[0] < rank_penalty(GATES, sizes=SIZES)[0]
    cores, own = TRAINS[0]
    cheated = TensorTrain([2 * cores[0], *cores[1:]], [own[0] / 2, *own[1:]])
    squares = [early_objective(LOSS, [one], weight=0.0, decay=1.0)[0] - LOSS for one in (TRAINS[0], cheated)]
    np.testing.assert_allclose(squares[1] - squares[0], 3 * np.sum(cores[0] ** 2), rtol=1e-12)


def early_in_words(loss, trains, weight, decay):
    penalty = sum(in_words(gates, SIZES) for _, gates in trains)
    return loss + weight * penalty + decay * sum(anp.sum(core**2) for cores, _ in trains for core in cores)


def same(own, their):
    for (path, one), (_, other) in zip(trees.leaves(list(own)), trees.leaves(list(their)), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-10, err_msg=path)


def test_the_early_objective_is_the_weighted_sum_and_its_gradients_are_autograd_s():
    early, backward = early_objective(LOSS, TRAINS, weight=0.3, decay=0.2)
    plain = [tuple(own) for own in TRAINS]
    np.testing.assert_allclose(early, early_in_words(LOSS, plain, 0.3, 0.2), rtol=1e-12)
    same(backward(np.array(1.3)), autograd.grad(lambda both: 1.3 * early_in_words(*both, 0.3, 0.2))((LOSS, plain)))


SETTINGS = {"loss_weight": 0.7, "size_weight": 0.01, "share": 0.1, "decay": 0.2, "threshold": 0.3}
OPEN = sum(train_size(own.gates, sizes=SIZES, threshold=0.3) for own in TRAINS)


def test_where_the_loss_is_further_the_late_objective_trains_the_loss():
    late, backward = late_objective(LOSS, TRAINS, target_loss=-5.0, target_size=OPEN, **SETTINGS)
    plain = [tuple(own) for own in TRAINS]

    def in_words_too(loss, trains):
        return 0.7 * (loss + 5.0) + 0.1 * early_in_words(loss, trains, 1.0, 2.0)

    np.testing.assert_allclose(late, in_words_too(LOSS, plain), rtol=1e-12)
    same(backward(np.array(1.3)), autograd.grad(lambda both: 1.3 * in_words_too(*both))((LOSS, plain)))


def test_where_the_size_is_further_it_counts_the_size_and_trains_the_penalty():
    late, backward = late_objective(LOSS, TRAINS, target_loss=5.0, target_size=OPEN - 20, **SETTINGS)
    plain = [tuple(own) for own in TRAINS]
    np.testing.assert_allclose(late, 0.01 * 20 + 0.1 * early_in_words(LOSS, plain, 1.0, 2.0), rtol=1e-12)

    def trained(loss, trains):
        return 0.01 * sum(in_words(gates, SIZES) for _, gates in trains) + 0.1 * early_in_words(loss, trains, 1.0, 2.0)

    same(backward(np.array(1.3)), autograd.grad(lambda both: 1.3 * trained(*both))((LOSS, plain)))


def test_at_both_targets_nothing_is_left_but_the_share_and_the_squares_and_the_loss_is_trained():
    late, backward = late_objective(LOSS, TRAINS, target_loss=float(LOSS), target_size=OPEN, **{**SETTINGS, "share": 0.0, "decay": 0.0})
    assert late == 0
    dloss, dtrains = backward(np.array(1.0))
    assert dloss == 0.7 and not any(leaf.any() for _, leaf in trees.leaves(dtrains))


def test_closing_gates_turns_the_late_objective_from_the_size_to_the_loss():
    """The counted size decides, so a train that has become small enough is trained for its loss alone."""
    small = [TensorTrain(own.cores, [np.where(np.arange(len(gates)) == 0, 1.0, 0.0) for gates in own.gates]) for own in TRAINS]
    targets = {"target_loss": 1.0, "target_size": 40}
    for trains_now, trained in ((TRAINS, "size"), (small, "loss")):
        dloss, dtrains = late_objective(LOSS, trains_now, **targets, threshold=0.01)[1](np.array(1.0))
        assert (float(dloss) == 0.0) is (trained == "size")
        assert bool(np.any(dtrains[0].gates[0])) is (trained == "size")


def test_float32_stays_float32_and_long_trains_do_not_overflow_on_the_way():
    gates = [np.full(1000, 1e3, np.float32) for _ in range(9)]
    penalty, backward = rank_penalty(gates, sizes=(10,) * 10)
    assert penalty.dtype == np.float32 and all(own.dtype == np.float32 for own in backward(np.float32(1.0)))
    np.testing.assert_allclose(penalty, 20 * 1e6 + 8 * 10 * 1e12, rtol=1e-6)


@pytest.mark.parametrize("forgotten", ["the core behind", "the sign", "the size of a digit"])
def test_the_checker_refuses_a_backward_that_forgets(forgotten):
    def wrong(gates):
        penalty, _ = rank_penalty(gates, sizes=SIZES)
        lengths = [1.0, *(np.sum(np.abs(own)) for own in gates), 1.0]

        def backward(dpenalty):
            found = []
            for k, own in enumerate(gates):
                before, behind = SIZES[k] * lengths[k], SIZES[k + 1] * lengths[k + 2]
                slope = {"the core behind": before, "the size of a digit": lengths[k] + lengths[k + 2]}.get(forgotten, before + behind)
                found.append(dpenalty * slope * (np.ones_like(own) if forgotten == "the sign" else np.sign(own)))
            return found

        return penalty, backward

    assert not check_gradients(wrong, GATES).passed


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="sizes: got 3 of them, wants 4, one more than gates"):
        rank_penalty(GATES, sizes=SIZES[:3])
    with pytest.raises(ValueError, match="weight"):
        early_objective(LOSS, TRAINS, weight=-1.0)
    with pytest.raises(ValueError, match="share"):
        late_objective(LOSS, TRAINS, target_loss=0.0, target_size=1.0, share=-0.5)
