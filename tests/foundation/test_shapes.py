"""Shape checks: every message names the argument, what it got and what it wants."""

from typing import Annotated, NamedTuple

import numpy as np
import pytest
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.foundation.contract import _guarded
from minitransformers.foundation.signature import check_arguments, check_like


class Map(NamedTuple):
    weight: Float[Array, "d_in d_out"]
    bias: Float[Array, "d_out"] | None


class TwoMaps(NamedTuple):
    up: Annotated[Map, "d_model d_hidden"]
    down: Annotated[Map, "d_hidden d_model"]


class Tower(NamedTuple):
    blocks: list[TwoMaps]


def attention(
    q: Float[Array, "*batch queries d"],
    k: Float[Array, "*batch keys d"],
    bias: Float[Array, "*#batch #queries #keys"] | None = None,
    *,
    mask: Bool[Array, "... queries keys"] | None = None,
    ids: Int[Array, "*batch"] | None = None,
):
    pass


def layer(params: TwoMaps, x: Float[Array, "... d_model"], *, packed: Float[Array, "2*d_model"] | None = None):
    pass


def tower(params: Tower, x: Float[Array, "..."]):
    pass


class Table(NamedTuple):
    rows: Float[Array, "names d_row"]


class Either(NamedTuple):
    part: Map | Table


class Square(NamedTuple):
    map: Annotated[Map, "d_model d_model"]


def square(params: Square):
    pass


def either(params: list[Either], x: Float[Array, "..."]):
    pass


def two_maps(d_model=3, d_hidden=5, **changes):
    parts = TwoMaps(Map(np.ones((d_model, d_hidden)), None), Map(np.ones((d_hidden, d_model)), np.ones(d_model)))
    return parts._replace(**changes)


Q, K = np.ones((2, 3, 4)), np.ones((2, 5, 4))


@pytest.mark.parametrize(
    ("function", "args", "config"),
    [
        (attention, (Q, K), {}),
        (attention, (Q[0], K[0]), {}),
        (attention, (Q, K, np.ones((3, 5))), {}),
        (attention, (Q, K, np.ones((2, 1, 5))), {}),
        (attention, (Q, K), {"mask": np.ones((3, 5), bool), "ids": np.ones(2, int)}),
        (layer, (two_maps(), np.ones((7, 3))), {"packed": np.ones(6)}),
        (tower, (Tower([two_maps(3, 5), two_maps(4, 2)]), np.ones(2)), {}),
    ],
)
def test_what_fits_passes(function, args, config):
    check_arguments(function, args, config)


@pytest.mark.parametrize(
    ("function", "args", "config", "message"),
    [
        (attention, (Q, np.ones((2, 5, 3))), {}, "k: got shape (2, 5, 3), wants (*batch, keys, d) with d = 4 as in q"),
        (attention, (Q, np.ones((3, 5, 4))), {}, "k: got shape (3, 5, 4), wants (*batch, keys, d) with batch = (2,) as in q"),
        (attention, (Q, K[0]), {}, "k: got shape (5, 4), wants (*batch, keys, d) with batch = (2,) as in q"),
        (attention, (Q, np.ones(4)), {}, "k: got shape (4,), wants (*batch, keys, d)"),
        (attention, (Q, K, np.ones((3, 3, 5))), {}, "bias: got shape (3, 3, 5)"),
        (attention, (Q, K, np.ones((2, 2, 5))), {}, "bias: got shape (2, 2, 5), wants (*#batch, #queries, #keys) with queries = 3 as in q"),
        (attention, (Q, K), {"mask": np.ones((3, 4), bool)}, "mask: got shape (3, 4), wants (..., queries, keys) with keys = 5 as in k"),
        (attention, (Q, K), {"mask": np.ones((3, 5))}, "mask: got float64, wants a boolean array"),
        (attention, (Q, K), {"ids": np.ones(2)}, "ids: got float64, wants a integer array"),
        (attention, ([1.0], K), {}, "q: got list, wants a NumPy array (floating)"),
        (attention, (Q, K.astype(np.float32)), {}, "k: got float32, wants float64, as q is"),
        (attention, (Q.astype(int), K), {}, "q: got int64, wants a floating array"),
        (attention, (np.ones((2, 0, 4)), K), {}, "q: got shape (2, 0, 4), wants no empty axis"),
        (layer, (two_maps(), np.ones((7, 4))), {}, "x: got shape (7, 4), wants (..., d_model) with d_model = 3 as in params.up.weight"),
        (
            layer, (two_maps(down=Map(np.ones((4, 3)), None)), np.ones(3)), {},
            "params.down.weight: got shape (4, 3), wants (d_in, d_out) with d_in = 5 as in params.up.weight",
        ),
        (layer, (two_maps(up=Map(np.ones(3), None)), np.ones(3)), {}, "params.up.weight: got shape (3,), wants (d_in, d_out)"),
        (layer, (Map(np.ones((3, 3)), None), np.ones(3)), {}, "params: got Map, wants TwoMaps"),
        (layer, (two_maps(), np.ones(3)), {"packed": np.ones(7)}, "packed: got shape (7,), wants (2*d_model) with 2*d_model = 6"),
        (tower, (Tower((two_maps(),)), np.ones(2)), {}, "params.blocks: got tuple, wants a list"),
        (square, (Square(Map(np.ones((3, 2)), None)),), {}, "params.map.weight: got d_out = 2, wants d_model = 3 as in params.map.weight"),
        (
            tower, (Tower([two_maps(), two_maps(down=Map(np.ones((5, 4)), None))]), np.ones(2)), {},
            "params.blocks.1.down.weight: got shape (5, 4), wants (d_in, d_out) with d_out = 3 as in params.blocks.1.up.weight",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(function, args, config, message):
    with pytest.raises(ValueError) as caught:
        check_arguments(function, args, config)
    assert str(caught.value).startswith(message)


def test_a_part_of_one_kind_or_another_is_checked_as_what_it_is():
    check_arguments(either, ([Either(Table(np.ones((2, 3)))), Either(Map(np.ones((2, 3)), np.ones(3)))], np.ones(1)), {})
    with pytest.raises(ValueError, match=r"params\.0\.part\.bias: got shape \(1,\), wants \(d_out\)"):
        check_arguments(either, ([Either(Map(np.ones((2, 3)), np.ones(1)))], np.ones(1)), {})
    with pytest.raises(ValueError, match=r"params\.0\.part: got TwoMaps, wants Map or Table"):
        check_arguments(either, ([Either(two_maps())], np.ones(1)), {})


def test_dout_must_have_the_structure_shape_and_dtype_of_the_output():
    check_like("dout", (np.ones(2), np.ones(3)), (np.ones(2), np.ones(3)))
    with pytest.raises(ValueError, match=r"dout\.1: got float64 of shape \(4,\), wants float64 of shape \(3,\)"):
        check_like("dout", (np.ones(2), np.ones(4)), (np.ones(2), np.ones(3)))
    with pytest.raises(ValueError, match="dout: got float32 of shape"):
        check_like("dout", np.ones(2, np.float32), np.ones(2))
    with pytest.raises(ValueError, match="dout: got float, wants float64"):
        check_like("dout", 1.0, np.ones(()))


def test_only_the_outermost_call_is_checked():
    from minitransformers.basics.linear import Linear, linear

    wrong = Linear(np.ones((3, 2)), None), np.ones((2, 4))
    with pytest.raises(ValueError, match="x: got shape"):
        linear(*wrong)
    with pytest.raises(ValueError, match="matmul"):  # inside another concept nothing is looked at twice
        _guarded(linear, wrong, {})
    with pytest.raises(ValueError, match="x: got shape"):  # and an error inside leaves the door as it was
        linear(*wrong)
