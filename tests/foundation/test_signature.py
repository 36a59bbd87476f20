"""Settings: what the signature says they may be is checked at the door, and they come in as Python's own numbers."""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pytest
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import (
    InvalidArgument,
    above,
    at_least,
    at_most,
    bad,
    below,
    between,
    checked,
    example,
    finite,
    from_to_below,
    negative,
    positive,
)
from minitransformers.foundation.bad_calls import bad_calls, resized
from minitransformers.foundation.signature import check_arguments, wanted


class Gain(NamedTuple):
    gain: Float[Array, "d_model"]


class Block(NamedTuple):
    first: Any
    second: Any


def settings(
    x: Float[Array, "... d_model"],
    rates: Annotated[Float[Array, "d_model"], negative] | None = None,
    *,
    window: Annotated[int, at_least(1)] = 3,
    eps: Annotated[float, positive] = 1e-5,
    shift: float = 0.0,
    causal: bool = True,
    layout: Literal["half", "interleaved"] = "half",
    core: Callable | None = None,
    rng: np.random.Generator | None = None,
    name: str = "a",
):
    return window, eps, shift, causal


X = np.ones((2, 3))


@pytest.mark.parametrize(
    ("allowed", "inside", "outside"),
    [
        (positive, [1e-300, 5], [0, -1]),
        (negative, [-1e-300], [0, 1]),
        (finite, [-1e308, 0], []),
        (at_least(2), [2, 3.5], [1.9]),
        (at_most(2), [2, -3.5], [2.1]),
        (above(2), [2.1], [2]),
        (below(2), [1.9], [2]),
        (between(0, 1), [0, 0.5, 1], [-0.1, 1.1]),
        (from_to_below(0, 1), [0, 0.999], [1, -1]),
    ],
)
def test_ranges(allowed, inside, outside):
    assert all(allowed.allows(n, n) for n in inside)
    assert not any(allowed.allows(n, n) for n in [*outside, math.nan, math.inf, -math.inf])
    assert not any(allowed.allows(n, n) for n in allowed.outside)
    if inside and outside:
        low, high = sorted([inside[0], outside[0]])
        assert not allowed.allows(low, high)                 # one of the two is not


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"window": 0}, "window: got 0, wants a whole number of at least 1"),
        ({"window": 2.0}, "window: got 2.0, wants a whole number of at least 1"),
        ({"window": True}, "window: got True, wants a whole number of at least 1"),
        ({"window": None}, "window: got None"),
        ({"eps": 0}, "eps: got 0, wants a finite number above 0"),
        ({"eps": math.nan}, "eps: got nan"),
        ({"eps": "small"}, "eps: got 'small'"),
        ({"eps": 10**400}, "eps: got 1000"),
        ({"eps": np.ones(2)}, "eps: got float64 of shape (2,)"),
        ({"shift": math.inf}, "shift: got inf, wants a finite number"),
        ({"causal": 1}, "causal: got 1, wants True or False"),
        ({"layout": "both"}, "layout: got 'both', wants 'half' or 'interleaved'"),
        ({"core": "softmax"}, "core: got 'softmax', wants a function"),
        ({"rng": 7}, "rng: got 7, wants a Generator"),
        ({"name": 7}, "name: got 7, wants text"),
    ],
)
def test_what_a_setting_may_not_be_is_refused_by_name(config, message):
    with pytest.raises(InvalidArgument) as caught:
        check_arguments(settings, (X,), config)
    assert str(caught.value).startswith(message)


def test_a_number_must_lie_in_its_range_in_the_dtype_of_the_call():
    check_arguments(settings, (X,), {"eps": 1e-300})
    with pytest.raises(ValueError, match=r"eps: got 1e-300, which is 0.0 in float32, wants a finite number above 0"):
        check_arguments(settings, (X.astype(np.float32),), {"eps": 1e-300})
    with pytest.raises(ValueError, match=r"shift: got 1e\+39, which is inf in float32"):
        check_arguments(settings, (X.astype(np.float32),), {"shift": 1e39})


def test_an_array_must_lie_in_its_range_as_a_whole():
    check_arguments(settings, (X, -np.ones(3)), {})
    with pytest.raises(ValueError, match="rates: got numbers from -1 to 0, wants finite numbers below 0"):
        check_arguments(settings, (X, np.array([-1.0, 0.0, -1.0])), {})
    with pytest.raises(ValueError, match="rates: got numbers from nan"):
        check_arguments(settings, (X, np.array([-1.0, np.nan, -1.0])), {})


def test_numpys_numbers_become_pythons():
    given = {"window": np.uint8(100), "eps": np.float32(0.5), "shift": np.int64(2), "causal": np.True_}
    _, config = check_arguments(settings, (X,), given)
    assert [type(config[name]) for name in given] == [int, float, float, bool]
    assert checked(settings)(X, **given) == (100, 0.5, 2.0, True)
    assert type(given["window"]) is np.uint8                 # the caller's own dict is as it was
    assert check_arguments(settings, (X,), {"eps": np.array(0.25)})[1]["eps"] == 0.25


def test_a_number_by_position_is_converted_too():
    @checked
    def init(rng: np.random.Generator, d_model: Annotated[int, at_least(1)]):
        return d_model

    assert type(init(np.random.default_rng(0), np.int64(3))) is int
    with pytest.raises(ValueError, match="d_model: got 0"):
        init(np.random.default_rng(0), 0)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Annotated[int, at_least(1)], "a whole number of at least 1"),
        (Annotated[float, positive] | None, "a finite number above 0 or None"),
        (Literal["a", "b"], "'a' or 'b'"),
        (Callable, "a function"),
        (bool, "True or False"),
        (Annotated[Float[Array, "d"], negative], "finite numbers below 0"),
        (Float[Array, "d"], ""),
    ],
)
def test_a_range_in_words(hint, words):
    assert wanted(hint) == words


def test_parts_that_any_leaves_open_are_as_wide_as_what_they_are_a_part_of():
    def model(params: Block, x: Float[Array, "... d_model"]):
        pass

    check_arguments(model, (Block(Gain(np.ones(3)), [Gain(np.ones(3)), None]), X), {})
    check_arguments(model, (Block(Gain(np.ones(3)), (Gain(np.ones(2)), None)), X), {})  # a chain may narrow and widen again
    with pytest.raises(ValueError, match=r"params\.second\.0\.gain: got shape \(1,\), wants \(d_model\) with d_model = 3 as in params\.first\.gain"):
        check_arguments(model, (Block(Gain(np.ones(3)), [Gain(np.ones(1))]), X), {})
    with pytest.raises(ValueError, match=r"params\.second: got float32, wants float64, as params\.first\.gain is"):
        check_arguments(model, (Block(Gain(np.ones(3)), np.ones(3, np.float32)), X), {})
    with pytest.raises(ValueError, match=r"params\.second: got shape \(0,\), wants no empty axis"):
        check_arguments(model, (Block(Gain(np.ones(3)), np.ones(0)), X), {})


@pytest.mark.parametrize("dtype", [np.float16, np.longdouble, ">f8"])
def test_other_floats_are_refused_by_name(dtype):
    if np.dtype(dtype) == np.float64:
        pytest.skip("here a long double is a double")
    with pytest.raises(ValueError, match=r"x: got .*, wants float32 or float64"):
        check_arguments(settings, (X.astype(dtype),), {})


class TestBadCalls:
    def of(self, name):
        return {what.removeprefix(f"{name} = ") for what, _ in bad_calls(settings, example(X, -np.ones(3))) if what.startswith(f"{name} =")}

    def test_they_are_made_from_the_annotations(self):
        assert {"0", "nan", "inf", "'text'", "None", "True", "1.5"} <= self.of("window")
        assert {"0", "-1", "nan", "'text'", "None"} <= self.of("eps")
        assert {"2", "'yes'", "None"} == self.of("causal")
        assert {"'no such'", "7", "None", "[1]"} == self.of("layout")
        assert {"7", "[1]"} == self.of("core")               # None is allowed
        assert {"a list", "int64", "float16", "complex128", "bool", "an empty array", "float32 beside float64"} == self.of("x")
        assert {"0 in it", "nan in it", "one axis more"} <= self.of("rates")

    def test_all_of_them_are_refused(self):
        for _, rejection in bad_calls(settings, example(X, -np.ones(3))):
            spoiled = rejection.spoil(settings, example(X, -np.ones(3)))
            with pytest.raises(InvalidArgument, match=rejection.names):
                check_arguments(settings, spoiled.args, spoiled.config)

    def test_every_array_of_a_tree_is_spoiled_once(self):
        def layer(params: Block):
            pass

        params = Block(Gain(np.ones(2)), [Gain(np.ones(2)), Gain(np.ones(2))])
        found = [what for what, _ in bad_calls(layer, example(params)) if "int64" in what]
        assert found == ["params = first.gain, int64", "params = second.0.gain, int64"]

    def test_fields_are_taken_out_of_their_own_ranges_at_any_depth_and_that_is_refused(self):
        class Rates(NamedTuple):
            rate: Annotated[Float[Array, "heads"], negative]
            shift: Annotated[Float[Array, "heads"], at_least(0)] | None
            gain: Float[Array, "heads"]

        class Outer(NamedTuple):
            inner: Rates

        def layer(params: Outer):
            pass

        params = Outer(Rates(-np.ones(2), np.ones(2), np.ones(2)))
        found = {what: rejection for what, rejection in bad_calls(layer, example(params)) if " in inner" in what}
        assert {"params = 0 in inner.rate", "params = nan in inner.rate", "params = -1 in inner.shift"} <= found.keys()
        assert not any("gain" in what for what in found)
        for rejection in found.values():
            with pytest.raises(InvalidArgument, match=r"params\.inner\.(rate|shift): got numbers"):
                check_arguments(layer, rejection.spoil(layer, example(params)).args, {})

    def test_sizes_change_one_axis_at_a_time(self):
        found = {what: made.args[0].shape for what, made in resized(example(np.ones((2, 1))))}
        assert found == {"args.0, axis 0 longer": (3, 1), "args.0, axis 0 1": (1, 1), "args.0, axis 1 longer": (2, 2)}


def test_a_rejection_is_put_where_the_function_takes_it():
    assert bad(rates=7).spoil(settings, example(X)).config == {"rates": 7}
    assert bad(rates=7).spoil(settings, example(X, 1)).args[1] == 7
