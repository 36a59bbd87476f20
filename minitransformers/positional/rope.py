"""Rotary position embedding (RoPE): turn each pair of features of q and k by an angle that grows with the position.

A query turned by p and a key turned by p' meet at the angle of p - p': their dot product knows how far apart they are
and not where. Values are not turned. Nothing is learned, and cached keys stay valid as the text grows.

Source: Su et al. 2021, arXiv:2104.09864, eq. 34.
Two layouts of the pairs (a, b) are in use. "interleaved": pair m is features 2m and 2m + 1, as in the paper, the first
Llama code and GPT-J. "half": pair m is features m and m + rotary_dim/2, as in Hugging Face's Llama and in GPT-NeoX. One
is the other with the features in another order, so weights must be permuted when they move between the two.
Only the first rotary_dim features are turned (all by default); the others pass.
For texts that are factor times as long as those of training, positions are squeezed: scaling "linear" has position / factor
in the place of position (Chen et al. 2023, arXiv:2306.15595, eq. 4), scaling "ntk" has base factor^(rotary_dim/(rotary_dim-2))
in the place of base (bloc97 2023; Peng et al. 2023, arXiv:2309.00071, section 3.1).

    frequency_m = base^(-2m / rotary_dim)  for m = 0 .. rotary_dim/2 - 1   (1)
    angle_pm = position_p frequency_m                                     (2)
    out_a = x_a cos(angle) - x_b sin(angle)                              (3)
    out_b = x_a sin(angle) + x_b cos(angle)                              (4)
    dx_a = dout_a cos(angle) + dout_b sin(angle)                         (5)
    dx_b = -dout_a sin(angle) + dout_b cos(angle)                        (6)
"""

import functools
import itertools
from typing import Literal

import numpy as np
from jaxtyping import Float, Real
from numpy import ndarray as Array

from minitransformers.foundation import bad, concept, example, invalid, positive_number


@concept(
    title="Rotary position embedding (RoPE)",
    source="Su et al. 2021, arXiv:2104.09864, eq. 34",
    example=lambda rng: example(rng.normal(size=(2, 3, 5, 8)), positions=np.array([3, 0, 1, 7, 1]), base=100.0, rotary_dim=6),
    roles=("position/rotation",),
    rejects=[
        bad(base=0.0),
        bad(layout="pairs"),
        bad(rotary_dim=3),
        bad(rotary_dim=10),
        bad(rotary_dim=0),
        bad("x", x=np.ones((2, 3, 5, 7)), rotary_dim=None),
        bad(positions=np.arange(4)),
        bad(positions=np.array([0.0, 1.0, np.nan, 3.0, 4.0])),
        bad(positions=np.array([0.0, 1.0, np.inf, 3.0, 4.0])),
        bad(base=float("inf")),
        bad("scaling", scaling="yarn", factor=2.0),
        bad("factor", scaling="linear", factor=0.5),
        bad("factor", scaling="ntk", factor=np.inf),
        bad("factor", scaling="ntk", factor=1e308),
        bad(factor=2.0),
        bad("rotary_dim", scaling="ntk", factor=2.0, rotary_dim=2),
    ],
)
def rope(
    x: Float[Array, "... length d_head"],
    *,
    positions: Real[Array, "length"] | None = None,
    base: float = 10_000.0,
    layout: Literal["half", "interleaved"] = "half",
    rotary_dim: int | None = None,
    scaling: Literal["linear", "ntk"] | None = None,
    factor: float = 1.0,
):
    """Turn the feature pairs of queries or keys by the angles of their positions.

    positions count tokens from the start (default 0, 1, ...); they may be negative or real, as when a long text is
    squeezed into a short range. base is about the number of positions that turn the slowest pair by one radian.
    scaling makes a model fit for texts factor times as long as those it was trained on: "linear" slows every pair by
    factor, "ntk" the slowest pair by factor and the fastest not at all.
    Returns out, shaped like x, and backward: dout -> dx.
    Raises ValueError when d_head or rotary_dim is odd, rotary_dim exceeds d_head, base is not a finite number above 0,
    a position is not finite, the layout or the scaling is unknown, factor is not finite and at least 1, stands without a
    scaling or lets the base overflow, or "ntk" has one pair only.
    """
    length, d_head = x.shape[-2:]
    if rotary_dim is None and d_head % 2:
        raise invalid("x", got=f"d_head = {d_head}", wants="an even d_head: features are turned in pairs")
    rotary_dim = d_head if rotary_dim is None else rotary_dim
    if rotary_dim % 2 or not 0 < rotary_dim <= d_head:
        raise invalid("rotary_dim", got=rotary_dim, wants=f"an even number from 2 to d_head = {d_head}")
    base = positive_number("base", base)
    if layout not in ("half", "interleaved"):
        raise invalid("layout", got=repr(layout), wants="'half' or 'interleaved'")
    if scaling not in (None, "linear", "ntk"):
        raise invalid("scaling", got=repr(scaling), wants="'linear', 'ntk' or None")
    if not 1 <= factor < np.inf or (scaling is None and factor != 1):
        raise invalid("factor", got=factor, wants="a finite number of at least 1, and 1 without a scaling")
    if scaling == "ntk" and rotary_dim == 2:
        raise invalid("rotary_dim", got=2, wants="at least 4 with scaling 'ntk': the slowest pair must not be the fastest, too")
    positions = (np.arange(length) if positions is None else positions).astype(np.float64)
    if scaling == "linear":
        positions = positions / factor
    elif scaling == "ntk":
        with np.errstate(over="ignore"):
            base *= float(np.float64(factor) ** (rotary_dim / (rotary_dim - 2)))
        if base == np.inf:
            raise invalid("factor", got=factor, wants="a number with which the base does not overflow")
    there, back = _tables(positions.tobytes(), rotary_dim, base, layout, x.dtype)

    def turn(features, tables):
        if rotary_dim == d_head:
            return _turn_pairs(features, tables, layout)
        turned = _turn_pairs(features[..., :rotary_dim], tables, layout)
        return np.concatenate([turned, features[..., rotary_dim:]], axis=-1)

    out = turn(x, there)                                     # (3) (4)

    def backward(dout):
        dx = turn(dout, back)                                # the same turn the other way: a rotation's transpose  (5) (6)
        return dx

    return out, backward


@functools.lru_cache(maxsize=8)  # queries and keys of all layers turn by the same angles
def _tables(positions: bytes, rotary_dim: int, base: float, layout: str, dtype: np.dtype) -> list[tuple[Array, ...]]:
    """What _turn_pairs multiplies with, for a turn there and one back; read-only, as all calls with these positions share it."""
    # In float64 whatever x is: a float32 angle is off by 0.002 radians at position 100,000.
    frequency = base ** (-2 * np.arange(rotary_dim // 2) / rotary_dim)     # (1)
    angle = np.outer(np.frombuffer(positions), frequency)    # (2)
    if not np.isfinite(angle).all():
        raise invalid("positions", got="NaN or infinity among their angles", wants="numbers whose angles are finite")
    cos, sin = np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)
    tables: list[tuple[Array, ...]]
    if layout == "half":
        twice = np.concatenate([cos, cos], axis=-1)
        tables = [(twice, np.concatenate([-sin, sin], axis=-1)), (twice, np.concatenate([sin, -sin], axis=-1))]
    else:
        tables = [(cos + 1j * sin,), (cos - 1j * sin,)]
    for table in itertools.chain(*tables):
        table.setflags(write=False)
    return tables


def _turn_pairs(x: Array, tables: tuple[Array, ...], layout: str) -> Array:
    """Every pair (a, b) becomes (a cos - b sin, a sin + b cos)."""
    if layout == "half":
        cos, sin = tables                                    # (cos, cos) and (-sin, sin)
        half = x.shape[-1] // 2
        out = np.concatenate([x[..., half:], x[..., :half]], axis=-1)  # (b, a), which is ours to write to
        out *= sin
        out += x * cos
        return out
    # Neighbours a, b in memory are the complex number a + ib, and turning it is one product: six times faster than slices.
    (turns,) = tables
    pairs = np.ascontiguousarray(x, turns.real.dtype).view(turns.dtype)  # float16 has no complex kin: float32's serves
    return (pairs * turns).view(turns.real.dtype).astype(x.dtype, copy=False)
