"""The same map in another order, and a count that says which is the cheaper."""

import itertools

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.compression.tt_linear import TensorTrain, TtLinear, init_tt_linear, tt_linear
from minitransformers.compression.tt_linear_by_core import (
    ContractionCosts,
    cheapest_tt_linear,
    contraction_costs,
    tt_linear_by_core,
)

RNG = np.random.default_rng(0)
SIDES = [((6,), (5,), (3,)), ((2, 3), (5, 2), (3, 2, 4)), ((2, 3, 2), (2, 1, 5), (3, 2, 4, 2, 3))]


def drawn(rows, columns, ranks):
    """Parameters whose gates are no ones."""
    params = init_tt_linear(RNG, rows, columns, ranks=ranks, std=1.0, dtype=np.float64)
    gates = [RNG.uniform(0.5, 1.5, size=len(own)) for own in params.train.gates]
    return TtLinear(TensorTrain(params.train.cores, gates), RNG.normal(size=params.bias.shape))


def by_loops(cores, gates, bias, x, half):
    """A sum over all digits and links, written out: no reshape."""
    sizes = [core.shape[1] for core in cores]
    outputs = []
    for row in x:
        for column in itertools.product(*map(range, sizes[half:])):
            total = 0.0
            for number, digits in enumerate(itertools.product(*map(range, sizes[:half]))):
                product = anp.ones((1, 1))
                for k, digit in enumerate((*digits, *column)):
                    product = anp.dot(product, cores[k][:, digit, :] * (gates[k] if k < len(gates) else 1.0))
                total = total + row[number] * product[0, 0]
            outputs.append(total)
    return anp.reshape(anp.array(outputs), (len(x), -1)) + bias


def test_it_is_the_sum_over_all_digits_and_its_gradients_are_autograd_s():
    params, x, dout = drawn(*SIDES[1]), RNG.normal(size=(3, 6)), RNG.normal(size=(3, 10))
    out, backward = tt_linear_by_core(params, x)
    np.testing.assert_allclose(out, by_loops(*params.train, params.bias, x, 2), rtol=0, atol=1e-10)
    expected = autograd.grad(lambda all_of: anp.sum(dout * by_loops(*all_of, 2)))((*params.train, params.bias, x))
    dparams, dx = backward(dout)
    own = [leaf for _, leaf in trees.leaves([dparams.train, dparams.bias, dx])]
    for one, (_, other) in zip(own, trees.leaves(list(expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("threshold", [None, 0.9])
def test_both_orders_give_the_same_forward_and_backward(sides, threshold):
    params = drawn(*sides)
    x = RNG.normal(size=(2, 3, int(np.prod(sides[0]))))
    dout = RNG.normal(size=(2, 3, int(np.prod(sides[1]))))
    (out, backward), (other, other_backward) = (form(params, x, threshold=threshold) for form in (tt_linear, tt_linear_by_core))
    np.testing.assert_allclose(other, out, rtol=0, atol=1e-12)
    for (path, one), (_, two) in zip(trees.leaves(list(backward(dout))), trees.leaves(list(other_backward(dout))), strict=True):
        np.testing.assert_allclose(two, one, rtol=0, atol=1e-11, err_msg=path)


class Counted(np.ndarray):
    """An array that counts the multiply-adds of its matrix products."""

    made = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        plain = [np.asarray(own) for own in inputs]
        if "out" in kwargs:
            kwargs["out"] = tuple(np.asarray(own) for own in kwargs["out"])
        result = getattr(ufunc, method)(*plain, **kwargs)
        if ufunc is np.matmul:
            Counted.made += result.size * plain[0].shape[-1]
        return np.asarray(result).view(Counted)


@pytest.mark.parametrize("sides", SIDES[1:])
@pytest.mark.parametrize("positions", [1, 7])
def test_the_costs_are_the_multiply_adds_that_are_made(sides, positions):
    params = drawn(*sides)
    counted = trees.map(lambda leaf: leaf.view(Counted), params)
    x = RNG.normal(size=(positions, int(np.prod(sides[0])))).view(Counted)
    costs = contraction_costs(rows=sides[0], columns=sides[1], ranks=sides[2], positions=positions)
    for form, cost in ((tt_linear, costs.cores_first), (tt_linear_by_core, costs.core_by_core)):
        Counted.made = 0
        form(counted, x)
        # The first and the last core are multiplied by a one, which the count leaves out.
        ones = params.train.cores[0].size + params.train.cores[-1].size if form is tt_linear else 0
        assert Counted.made - ones == cost, form.__name__


def test_the_costs_of_a_known_train():
    """By hand: 16 by 16, cores of 4, links 3. Builds 2 · 16 · 9, halves 3 · 32; by core 4 · 4 · 3 + 9 · 4 and the same back."""
    assert contraction_costs(rows=(4, 4), columns=(4, 4), ranks=(3, 3, 3), positions=10) == ContractionCosts(
        2 * 16 * 9 + 10 * 3 * 32, 10 * 2 * (48 + 36), 10 * 256
    )


def test_one_position_takes_core_by_core_and_many_take_cores_first():
    params = drawn((4, 4), (4, 4), (3, 3, 3))
    assert cheapest_tt_linear(params, RNG.normal(size=(1, 16))) is tt_linear_by_core
    assert cheapest_tt_linear(params, RNG.normal(size=(8, 64, 16))) is tt_linear
    chosen = [cheapest_tt_linear(params, np.ones((positions, 16))) for positions in range(1, 20)]
    turn = chosen.index(tt_linear)
    assert set(chosen[:turn]) == {tt_linear_by_core} and set(chosen[turn:]) == {tt_linear}
    costs = [contraction_costs(rows=(4, 4), columns=(4, 4), ranks=(3, 3, 3), positions=positions) for positions in (turn, turn + 1)]
    assert costs[0].core_by_core < costs[0].cores_first and costs[1].core_by_core >= costs[1].cores_first


def test_the_checker_refuses_a_backward_that_takes_the_cores_of_the_outputs_in_their_order():
    params, x = drawn((2, 3), (5, 5), (3, 2, 5)), RNG.normal(size=(4, 6))

    def wrong(params, x):
        out, backward = tt_linear_by_core(params, x)

        def swapped(dout):
            dparams, dx = backward(dout.reshape(4, 5, 5).swapaxes(1, 2).reshape(4, 25))
            return dparams, dx

        return out, swapped

    assert not check_gradients(wrong, params, x).passed


def test_what_does_not_fit_is_refused():
    params = drawn(*SIDES[1])
    with pytest.raises(ValueError, match="x: got 7 features, wants 6"):
        tt_linear_by_core(params, np.ones((3, 7)))
    with pytest.raises(ValueError, match="ranks: got 2, for 2 and 2 digits"):
        contraction_costs(rows=(2, 3), columns=(5, 2), ranks=(3, 2), positions=1)
    with pytest.raises(ValueError, match="positions"):
        contraction_costs(rows=(2, 3), columns=(5, 2), ranks=(3, 2, 4), positions=0)
