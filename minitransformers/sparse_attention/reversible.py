"""Reversible layers: a residual layer whose input can be computed from its output, so that a deep stack keeps no activations.

A backward pass needs what its layer read, and a usual stack keeps that for every layer. Here the stream is two streams, and
each step adds to one of them something that depends on the other alone: to undo it, compute that again and take it away. The
stack keeps its last outputs, whatever its depth, and pays with one more forward pass of each part.

Source: Gomez, Ren, Urtasun and Grosse 2017 (RevNet), arXiv:1707.04585, section 3; Kitaev, Kaiser and Levskaya 2020 (Reformer),
arXiv:2001.04451, section 3: F is attention, G is the feed-forward network, each behind its norm. Stars are backwards.

    first_l = first_{l-1} + F(second_{l-1})                  (1)
    second_l = second_{l-1} + G(first_l), for l = 1 .. L     (2)
    second_{l-1} = second_l - G(first_l)                     (3)
    dG_l, dthrough = G*(dsecond), dfirst = dfirst + dthrough (4)
    first_{l-1} = first_l - F(second_{l-1})                  (5)
    dF_l, dthrough = F*(dfirst), dsecond = dsecond + dthrough, for l = L .. 1   (6)

(3) and (5) give the inputs back to rounding, not bit for bit, and what is added a thousand times larger than its stream costs
three digits. F and G must do the same when they run again: a dropout inside draws from a generator that is made in the call,
from a seed, and a hash must not stand so near a border that rounding takes it across.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.feed_forward import FeedForward, feed_forward
from minitransformers.basics.linear import Linear, linear
from minitransformers.foundation import Backward, bad, concept, example, invalid, procedure


class Reversible(NamedTuple):
    """What the two parts of one layer learn, None for nothing."""

    f: Any
    g: Any


@concept(
    title="Reversible layers",
    source="Gomez et al. 2017, arXiv:1707.04585, section 3; Kitaev, Kaiser and Levskaya 2020, arXiv:2001.04451, section 3",
    example=lambda rng: _example(rng),
    rejects=[bad(params=[]), bad("f", first=np.ones((2, 4, 2))), bad("g", second=np.ones((2, 1, 3)))],
)
def reversible(
    params: list[Reversible], first: Float[Array, "..."], second: Float[Array, "..."], *, f: Callable, g: Callable
) -> tuple[tuple[Array, Array], Backward]:
    """Two streams through a stack of layers, each ``part(its params, x) -> added, backward``; nothing in between is kept.

    params has what f and g learn in each layer. What f makes of second has the shape of first, what g makes of first that of second.
    Returns (first, second) after the last layer, and backward: (dfirst, dsecond) -> params, dfirst, dsecond. It runs f and g once
    more; do not write to the outputs before, as it starts from them.
    Raises ValueError where there is no layer, or a part returns another shape.
    """
    if not params:
        raise invalid("params", got="no layers", wants="at least one")
    for layer in params:
        first = _plus("f", first, f(layer.f, second)[0])     # its backward is let go, and with it what it keeps  (1)
        second = _plus("g", second, g(layer.g, first)[0])    # (2)
    last = first, second

    def backward(dout):
        (first, second), (dfirst, dsecond), dparams = last, dout, []
        for layer in reversed(params):
            added, part_backward = g(layer.g, first)
            second = second - added                          # (3)
            dg, dthrough, *_ = part_backward(dsecond)
            dfirst = dfirst + dthrough                       # (4)
            del part_backward                                # before the other part keeps its own
            added, part_backward = f(layer.f, second)
            first = first - added                            # (5)
            df, dthrough, *_ = part_backward(dfirst)
            dsecond = dsecond + dthrough                     # (6)
            del part_backward
            dparams.append(Reversible(df, dg))
        return dparams[::-1], dfirst, dsecond

    return last, backward


@procedure(
    title="Inputs of reversible layers",
    source="Gomez et al. 2017, arXiv:1707.04585, section 3",
    example=lambda rng: _example(rng),
    rejects=[bad(params=[])],
)
def reversible_inputs(
    params: list[Reversible], first: Float[Array, "..."], second: Float[Array, "..."], *, f: Callable, g: Callable
) -> tuple[Array, Array]:
    """What went into the stack whose outputs are first and second, to rounding.

    Raises ValueError where there is no layer, or a part returns another shape.
    """
    if not params:
        raise invalid("params", got="no layers", wants="at least one")
    for layer in reversed(params):
        second = _plus("g", second, -g(layer.g, first)[0])   # (3)
        first = _plus("f", first, -f(layer.f, second)[0])    # (5)
    return first, second


def _plus(argument: str, x: Array, added: Array) -> Array:
    """The sum of two arrays of one shape. Raises ValueError, naming the part, where a sum would broadcast."""
    if added.shape != x.shape:
        raise invalid(argument, got=f"an output of shape {added.shape}", wants=f"{x.shape}, that of the stream it is added to")
    return x + added


def _example(rng: np.random.Generator):
    def layer(*shapes):
        f, up, down = (Linear(rng.normal(size=shape) / 4, rng.normal(size=shape[1])) for shape in shapes)
        return Reversible(f, FeedForward(up, down))

    params = [layer((3, 3), (3, 5), (5, 3)) for _ in range(2)]
    return example(params, *rng.normal(size=(2, 2, 4, 3)), f=linear, g=feed_forward)
