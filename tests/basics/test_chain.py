"""Chain: functions in a row, their gradients in the reverse order."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.chain import chain
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.relu import relu
from minitransformers.foundation import assert_gradients, check_gradients, slot, trees

rng = np.random.default_rng(0)
X = rng.normal(size=(4, 3))
MAPS = (init_linear(rng, 3, 5, dtype=np.float64), None, init_linear(rng, 5, 2, dtype=np.float64))
NETWORK = partial(chain, parts=(linear, slot(relu), linear))


def textbook(first, second, x):
    return anp.maximum(x @ first[0] + first[1], 0) @ second[0] + second[1]


def test_equals_the_formula_in_one_line_and_its_gradients():
    dout = rng.normal(size=(4, 2))
    out, backward = NETWORK(MAPS, X)
    plain = tuple(map(tuple, (MAPS[0], MAPS[2])))
    np.testing.assert_allclose(out, textbook(*plain, X), atol=1e-14)
    expected = autograd.grad(lambda *a: anp.sum(dout * textbook(*a)), (0, 1, 2))(*plain, X)
    (first, nothing, second), dx = backward(dout)
    assert nothing is None
    for (path, own), (_, theirs) in zip(trees.leaves((first, second, dx)), trees.leaves(expected), strict=True):
        np.testing.assert_allclose(own, theirs, atol=1e-13, err_msg=path)


def test_a_chain_of_one_is_the_part_itself():
    out, backward = chain((MAPS[0],), X, parts=(linear,))
    alone, alone_backward = linear(MAPS[0], X)
    np.testing.assert_array_equal(out, alone)
    (dpart,), dx = backward(out)
    np.testing.assert_array_equal(dpart.weight, alone_backward(out)[0].weight)
    np.testing.assert_array_equal(dx, alone_backward(out)[1])


def test_a_chain_of_chains_is_the_long_chain():
    front, back = partial(chain, parts=(linear, slot(relu))), partial(chain, parts=(linear,))
    out, backward = chain((MAPS[:2], MAPS[2:]), X, parts=(front, back))
    whole, whole_backward = NETWORK(MAPS, X)
    np.testing.assert_array_equal(out, whole)
    np.testing.assert_array_equal(backward(out)[1], whole_backward(out)[1])


def test_several_arrays_go_from_part_to_part():
    def turned(params, a, b):
        """A part with two inputs and two outputs, (2 a, a b)."""
        return (2 * a, a * b), lambda d: (None, 2 * d[0] + b * d[1], a * d[1])

    def summed(params, a, b):
        return a + b, lambda d: (None, d, d)

    a, b = rng.normal(size=(2, 3))
    report = assert_gradients(lambda p, a, b: chain(p, a, b, parts=(turned, turned, summed)), (None,) * 3, a, b)
    assert [argument.path for argument in report.arguments] == ["a", "b"]
    np.testing.assert_allclose(chain((None,) * 3, a, b, parts=(turned, turned, summed))[0], 4 * a + 2 * a * a * b)


def test_what_is_said_to_the_chain_is_said_to_every_part():
    def shifted(params, x, *, by):
        return x + by, lambda d: (None, d)

    assert chain((None, None), np.zeros(2), parts=(shifted, shifted), by=3)[0].tolist() == [6, 6]


def test_the_gradient_has_the_structure_of_the_parameters():
    for kind in (tuple, list):
        dparams, _ = NETWORK(kind(MAPS), X)[1](np.ones((4, 2)))
        assert type(dparams) is kind and isinstance(dparams[0], Linear)


def test_the_check_refuses_a_walk_in_the_order_of_the_forward():
    maps = tuple(init_linear(rng, 3, 3, bias=False, dtype=np.float64) for _ in range(2))

    def forwards(maps, x):
        out, _ = chain(maps, x, parts=(linear, linear))
        _, first = linear(maps[0], x)
        _, second = linear(maps[1], linear(maps[0], x)[0])

        def wrong(dout):
            dfirst, dmiddle = first(dout)
            dsecond, dx = second(dmiddle)
            return (dfirst, dsecond), dx

        return out, wrong

    assert not check_gradients(forwards, maps, X).passed


@pytest.mark.parametrize(
    ("params", "parts", "message"),
    [
        ((), (), "parts: got no parts"),
        ((None,), ("linear",), r"parts\.0: got 'linear', wants a function"),
        ((None,), (slot(relu), slot(relu)), "params: got 1 entries, wants a tuple with an entry for each of the 2 parts"),
        (np.ones(2), (slot(relu), slot(relu)), "params: got ndarray"),
    ],
)
def test_what_makes_no_chain_is_refused_by_name(params, parts, message):
    with pytest.raises(ValueError, match=message):
        chain(params, X, parts=parts)
