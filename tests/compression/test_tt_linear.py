"""A map whose weight is a chain of small cores, with gates between them."""

import itertools

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from changed_models import MODELS, PATTERNS, changed, checked, whole_model

from minitransformers import check_gradients, trees
from minitransformers.basics.linear import Linear, linear
from minitransformers.compression.tensor_train import tt_matrix, tt_svd
from minitransformers.compression.tt_linear import TensorTrain, TtLinear, init_tt_linear, tt_linear, tt_weight
from minitransformers.foundation import trusted
from minitransformers.peft.targets import at_targets

RNG = np.random.default_rng(0)
ROWS, COLUMNS, RANKS = (2, 3, 2), (2, 1, 5), (3, 2, 4, 2, 3)
SHAPES = tuple(zip((1, *RANKS), (*ROWS, *COLUMNS), (*RANKS, 1), strict=True))
TRAIN = TensorTrain([RNG.normal(size=shape) for shape in SHAPES], [RNG.uniform(0.5, 1.5, size=rank) for rank in RANKS])
PARAMS = TtLinear(TRAIN, RNG.normal(size=10))
X, DOUT = RNG.normal(size=(4, 12)), RNG.normal(size=(4, 10))


def dense(cores, gates):
    """The weight, element by element: a product of one matrix for each digit, gates as diagonals between them."""
    rows = []
    for row in itertools.product(*map(range, ROWS)):
        for column in itertools.product(*map(range, COLUMNS)):
            product = anp.ones((1, 1))
            for k, digit in enumerate((*row, *column)):
                product = anp.dot(product, cores[k][:, digit, :])
                if k < len(gates):
                    product = anp.dot(product, anp.diag(gates[k]))
            rows.append(product[0, 0])
    return anp.reshape(anp.array(rows), (12, 10))


def test_it_is_the_map_of_the_written_out_matrix_and_its_gradients_are_autograd_s():
    out, backward = tt_linear(PARAMS, X)
    np.testing.assert_allclose(out, X @ dense(*TRAIN) + PARAMS.bias, rtol=0, atol=1e-10)
    expected = autograd.grad(lambda all_of: anp.sum(DOUT * (anp.dot(all_of[2], dense(all_of[0], all_of[1])) + PARAMS.bias)))((*TRAIN, X))
    dparams, dx = backward(DOUT)
    for own, their in zip((*dparams.train.cores, *dparams.train.gates, dx), (*expected[0], *expected[1], expected[2]), strict=True):
        np.testing.assert_allclose(own, their, rtol=0, atol=1e-10)
    np.testing.assert_allclose(dparams.bias, DOUT.sum(axis=0), rtol=0, atol=1e-12)


def test_it_is_an_ordinary_map_with_the_weight_that_the_train_makes():
    weight, weight_backward = tt_weight(TRAIN, base=np.zeros((12, 10)))
    np.testing.assert_allclose(weight, dense(*TRAIN), rtol=0, atol=1e-12)
    (out, backward), (own, own_backward) = linear(Linear(weight, PARAMS.bias), X), tt_linear(PARAMS, X)
    np.testing.assert_allclose(own, out, rtol=0, atol=1e-12)
    (dlinear, dx), (dparams, own_dx) = backward(DOUT), own_backward(DOUT)
    np.testing.assert_allclose(own_dx, dx, rtol=0, atol=1e-12)
    pairs = zip(trees.leaves(weight_backward(dlinear.weight)), trees.leaves(dparams.train), strict=True)
    for (_, one), (_, other) in pairs:
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-11)


def test_a_change_of_basis_between_two_cores_changes_nothing():
    """R behind one core and its inverse before the next: the gauge of a train. It needs gates of one between them."""
    plain = TensorTrain(TRAIN.cores, [*TRAIN.gates[:1], np.ones(2), *TRAIN.gates[2:]])
    R, cores = RNG.normal(size=(2, 2)), list(TRAIN.cores)
    cores[1], cores[2] = cores[1] @ R, np.tensordot(np.linalg.inv(R), cores[2], axes=1)
    one, other = (tt_linear(TtLinear(train, None), X)[0] for train in (plain, TensorTrain(cores, plain.gates)))
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-11)


def test_half_the_gates_and_twice_the_core_are_the_same_map():
    """Which is why a penalty on gates alone could be cheated."""
    cores, gates = list(TRAIN.cores), list(TRAIN.gates)
    cores[1], gates[1] = 2 * cores[1], gates[1] / 2
    np.testing.assert_allclose(tt_linear(TtLinear(TensorTrain(cores, gates), None), X)[0], tt_linear(PARAMS._replace(bias=None), X)[0], rtol=0, atol=1e-12)


def test_from_full_ranks_it_is_any_matrix():
    weight = RNG.normal(size=(12, 10))
    cores = tt_svd(weight, rows=ROWS, columns=COLUMNS)
    train = TensorTrain(cores, [np.ones(core.shape[2]) for core in cores[:-1]])
    np.testing.assert_allclose(tt_linear(TtLinear(train, None), X)[0], X @ weight, rtol=0, atol=1e-12)


def test_a_gate_at_or_below_the_threshold_is_zero_and_learns_nothing():
    gates = [own.copy() for own in TRAIN.gates]
    gates[0][1], gates[2][3], gates[2][0] = 0.3, 0.1, -0.9
    low = PARAMS._replace(train=TensorTrain(TRAIN.cores, gates))
    closed = [np.where(own > 0.3, own, 0) for own in gates]
    out, backward = tt_linear(low, X, threshold=0.3)
    np.testing.assert_array_equal(out, tt_linear(low._replace(train=TensorTrain(TRAIN.cores, closed)), X)[0])
    dgates = backward(DOUT)[0].train.gates
    assert dgates[0][1] == dgates[2][3] == dgates[2][0] == 0
    assert np.count_nonzero(np.concatenate(dgates)) == sum(RANKS) - 3
    assert np.count_nonzero(np.concatenate(tt_linear(low, X)[1](DOUT)[0].train.gates)) == sum(RANKS)


def test_the_start_has_the_size_that_was_asked_for():
    """The mean square of all elements over many starts, for two numbers of cores."""
    for rows, columns, ranks in (((4, 4), (4, 4), (5, 3, 6)), ((2, 3, 2), (3, 2, 2), (4, 2, 3, 2, 3))):
        draws = [tt_matrix(init_tt_linear(np.random.default_rng(seed), rows, columns, ranks=ranks, dtype=np.float64).train.cores) for seed in range(2000)]
        squares = np.mean(np.square(draws), axis=(1, 2))
        wanted = 1 / sum(draws[0].shape)
        error = np.std(squares) / np.sqrt(len(squares))
        assert abs(np.mean(squares) - wanted) < 4 * error and error < 0.1 * wanted  # four standard errors


def test_the_start_has_open_gates_and_a_bias_of_zero_or_none():
    params = init_tt_linear(np.random.default_rng(1), (2, 3), (3, 5), ranks=(2, 4, 3), std=0.5)
    assert [core.shape for core in params.train.cores] == [(1, 2, 2), (2, 3, 4), (4, 3, 3), (3, 5, 1)]
    assert all((gates == 1).all() for gates in params.train.gates) and not params.bias.any()
    assert {leaf.dtype for _, leaf in trees.leaves(params)} == {np.dtype(np.float32)}
    assert init_tt_linear(np.random.default_rng(1), (2, 3), (3, 5), ranks=(2, 4, 3), bias=False).bias is None


def test_a_train_has_far_fewer_numbers_than_its_matrix():
    params = init_tt_linear(np.random.default_rng(2), (8, 12, 8), (8, 12, 8), ranks=(8, 16, 30, 16, 8), bias=False)
    assert trees.count_parameters(params.train.cores) == 2 * (8 * 8 + 8 * 12 * 16 + 16 * 8 * 30) < 768 * 768 / 50


@pytest.mark.parametrize("name", MODELS)
def test_it_trains_a_model_whose_code_is_not_touched(name):
    base, run = whole_model(name)
    patterns, count = PATTERNS[name]
    rng = np.random.default_rng(3)

    def as_train(leaf):
        cores = [rng.normal(size=(1, leaf.shape[0], 2)), rng.normal(size=(2, leaf.shape[1], 1))]
        return TensorTrain(cores, [rng.uniform(0.5, 1.5, size=2)])

    trained = at_targets(as_train, base, patterns)
    assert len(list(trees.leaves(trained))) == 3 * count
    report = checked(changed(run, base, tt_weight), trained)
    assert report.passed, str(report)


@pytest.mark.parametrize("forgotten", ["the gates", "the cores in the gates' gradient", "the suffix"])
def test_the_checker_refuses_a_backward_that_forgets(forgotten):
    def wrong(params, x):
        out, backward = tt_linear(params, x)

        def forgetful(dout):
            dparams, dx = backward(dout)
            cores, gates = dparams.train
            if forgotten == "the gates":
                cores = [*(dcore / own for dcore, own in zip(cores, params.train.gates, strict=False)), cores[-1]]
            elif forgotten == "the suffix":
                cores = [*cores[:-2], np.sum(cores[-2]) * np.ones_like(cores[-2]), cores[-1]]
            else:
                gates = [np.sum(dcore / own, axis=(0, 1)) for dcore, own in zip(cores, params.train.gates, strict=False)]
            return TtLinear(TensorTrain(cores, gates), dparams.bias), dx

        return out, forgetful

    assert not check_gradients(wrong, PARAMS, X).passed


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="x: got 11 features, wants 12, which the train's rows number"):
        tt_linear(PARAMS, X[:, :-1])
    with pytest.raises(ValueError, match=r"params\.bias: got 9 features, wants 10"):
        tt_linear(PARAMS._replace(bias=np.ones(9)), X)
    with pytest.raises(ValueError, match=r"params\.train\.gates: got \[3, 2, 4, 2\] of them, wants \[3, 2, 4, 2, 3\]"):
        tt_linear(TtLinear(TensorTrain(TRAIN.cores, TRAIN.gates[:-1]), None), X)
    with pytest.raises(ValueError, match=r"params\.train\.cores\.0: got 2 to the left, wants 1, at the end"):
        tt_linear(TtLinear(TensorTrain([np.ones((2, 12, 3)), np.ones((3, 10, 1))], [np.ones(3)]), None), X)
    with pytest.raises(ValueError, match="threshold"):
        tt_linear(PARAMS, X, threshold=-0.1)
    with pytest.raises(ValueError, match=r"base: got shape \(12, 9\), wants \(12, 10\), as the train makes"):
        trusted(tt_weight)(TRAIN, base=np.ones((12, 9)))
    with pytest.raises(ValueError, match="ranks: got 2, for 2 and 2 digits"):
        init_tt_linear(RNG, (2, 3), (3, 5), ranks=(2, 4))
