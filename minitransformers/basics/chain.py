"""Chain: one function after another, and the chain rule as the same walk backwards.

Most of a network is functions in a row, each with parameters of its own. The gradient of the last output goes to the
last function first; what that sends to its input is the gradient that arrives at the function before it. A part may
take and return several arrays (queries and keys): what one part returns the next one takes.

Source: Leibniz's rule; reverse accumulation, Linnainmaa 1970, and Rumelhart, Hinton and Williams 1986, Nature 323:533.
For the parts k = 1 .. K, with parameters p_k and backwards B_k, and x_0 = x:

    x_k = part_k(p_k, x_{k-1})                               (1)
    out = x_K                                                (2)
    dx_K = dout                                              (3)
    dp_k, dx_{k-1} = B_k(dx_k), from the last part to the first   (4)
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minitransformers.basics.gelu import gelu
from minitransformers.basics.linear import init_linear, linear
from minitransformers.foundation import Backward, bad, concept, example, invalid, slot, trees


@concept(
    title="Chain",
    source="Rumelhart, Hinton and Williams 1986, Nature 323:533",
    example=lambda rng: _example(rng),
    rejects=[bad(params=(None, None)), bad("parts", parts=(), params=()), bad(parts=(linear, "gelu", linear))],
)
def chain(params: Any, x: Any, *more: Any, parts: Sequence[Callable], **config: Any) -> tuple[Any, Backward]:
    """One part after the other, each called ``part(its params, x, **config) -> x, backward``.

    params holds the parameters of each part, in a tuple or a list: None for one that learns nothing. A concept without
    parameters is no part as it stands: ``slot`` of the foundation makes one of it, as in slot(gelu). A part that returns a
    tuple hands the next one its members as arrays of their own. config goes to every part.
    Returns what the last part returns, and backward: dout -> a gradient for params, dx and one for each of more.
    Raises ValueError unless there is a part, each of them is a function and has an entry in params.
    """
    if not parts:
        raise invalid("parts", got="no parts", wants="functions, at least one")
    if not isinstance(params, (tuple, list)) or len(params) != len(parts):
        got = f"{len(params)} entries" if isinstance(params, (tuple, list)) else type(params).__name__
        raise invalid("params", got=got, wants=f"a tuple with an entry for each of the {len(parts)} parts, None where it learns nothing")
    xs, backwards = (x, *more), []
    for part, own in zip(parts, params, strict=True):
        out, backward_of_part = part(own, *xs, **config)     # (1)
        backwards.append((backward_of_part, len(xs)))
        xs = out if isinstance(out, tuple) else (out,)       # (2)

    def backward(dout):
        dx, dparams = dout, []                               # (3)
        for backward_of_part, count in reversed(backwards):
            dpart, *dxs = backward_of_part(dx)               # (4)
            del dxs[count:]                                  # what was left out (a bias) has no gradient
            dparams.append(dpart)
            dx = dxs[0] if count == 1 else tuple(dxs)
        return trees.like(params, dparams[::-1]), *dxs

    return out, backward


def _example(rng: np.random.Generator):
    maps = (init_linear(rng, 3, 5, dtype=np.float64), None, init_linear(rng, 5, 2, dtype=np.float64))
    return example(maps, rng.normal(size=(2, 4, 3)), parts=(linear, slot(gelu), linear))
