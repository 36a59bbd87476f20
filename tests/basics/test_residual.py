"""Residual: x plus what a part makes of it, and the two gradients that add."""

from functools import partial

import numpy as np
import pytest

from minitransformers.basics.chain import chain
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.residual import residual
from minitransformers.foundation import assert_gradients, check_gradients

rng = np.random.default_rng(0)
X, PARAMS = rng.normal(size=(4, 3)), init_linear(rng, 3, 3, dtype=np.float64)


def test_a_linear_part_is_a_linear_map_with_ones_on_its_diagonal():
    dout = rng.normal(size=(4, 3))
    out, backward = residual(PARAMS, X, part=linear)
    same, same_backward = linear(Linear(PARAMS.weight + np.eye(3), PARAMS.bias), X)
    np.testing.assert_allclose(out, same, atol=1e-14)
    (dparams, dx), (theirs, their_dx) = backward(dout), same_backward(dout)
    np.testing.assert_allclose(dparams.weight, theirs.weight, atol=1e-14)
    np.testing.assert_allclose(dx, their_dx, atol=1e-14)


def test_a_part_of_zeros_lets_x_and_its_gradient_through_untouched():
    nothing = Linear(np.zeros((3, 3)), None)
    out, backward = residual(nothing, X, part=linear)
    np.testing.assert_array_equal(out, X)
    np.testing.assert_array_equal(backward(X)[1], X)


def test_through_any_depth_the_straight_way_carries_the_whole_gradient():
    """Twenty parts that hardly let anything through: the plain chain's gradient is gone, the residual one's is not."""
    weak = Linear(0.01 * np.eye(3), None)
    straight = partial(residual, part=linear)
    dout = np.ones((4, 3))
    plain = chain([weak] * 20, X, parts=[linear] * 20)[1](dout)[1]
    deep = chain([weak] * 20, X, parts=[straight] * 20)[1](dout)[1]
    np.testing.assert_allclose(plain, 0.01**20 * dout)
    np.testing.assert_allclose(deep, 1.01**20 * dout)


def test_the_scale_weighs_x_and_not_what_is_added():
    out, backward = residual(PARAMS, X, part=linear, scale=2.0)
    np.testing.assert_allclose(out, 2.0 * X + linear(PARAMS, X)[0], atol=1e-14)
    np.testing.assert_allclose(backward(out)[1], 2.0 * out + linear(PARAMS, X)[1](out)[1], atol=1e-13)


def test_what_the_part_takes_beside_x_gets_its_gradients():
    def gated(params, x, gate, *, power):
        return params * x * gate**power, lambda d: (np.sum(d * x * gate**power), params * d * gate**power, d * params * x * power * gate ** (power - 1))

    assert_gradients(partial(residual, part=gated, power=2), np.array(0.7), X, rng.normal(size=(4, 3)))


def test_the_check_refuses_a_backward_with_one_way_alone():
    for keep in (lambda straight, through: straight, lambda straight, through: through):

        def one_way(params, x, keep=keep):
            out, _ = residual(params, x, part=linear)

            def wrong(dout):
                dparams, dthrough = linear(params, x)[1](dout)
                return dparams, keep(dout, dthrough)

            return out, wrong

        report = check_gradients(one_way, PARAMS, X)
        assert not report.passed and [a.path for a in report.arguments if a.cause] == ["x"]


@pytest.mark.parametrize(("config", "message"), [({"scale": 0.0}, "scale: got 0.0"), ({"part": "linear"}, "part: got 'linear', wants a function")])
def test_bad_settings_are_refused_by_name(config, message):
    with pytest.raises(ValueError, match=message):
        residual(PARAMS, X, **{"part": linear, **config})


def test_a_part_that_changes_the_shape_is_refused():
    with pytest.raises(ValueError, match=r"part: got an output of shape \(4, 1\), wants \(4, 3\)"):
        residual(Linear(np.ones((3, 1)), None), X, part=linear)  # it would broadcast
