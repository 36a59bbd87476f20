"""A weight is a function of what is trained: any model runs on it, and none of its code is touched.

    tree, back = reparameterize(trained, base=frozen, change=low_rank)
    out, backward = model(tree, ...)
    dtrained = back(backward(dout))

The model sees an ordinary tree of parameters; what becomes of a leaf's gradient is the business of whoever made the leaf.
The price: the gradient of every leaf that is changed is made in full before it is taken apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minitransformers.foundation import trees
from minitransformers.foundation.shapes import InvalidArgument


def reparameterize(trained: trees.Tree, *shared: trees.Tree, base: trees.Tree, change: Callable | None = None) -> tuple[trees.Tree, Callable]:
    """A tree like base, some of whose leaves are made of what is trained; and backward: dtree -> dtrained, *dshared.

    trained mirrors base. In the place of a leaf (or of a whole part) it has None, and base's own stays as it is, frozen; an
    array, and that takes the leaf's place; or anything else, and ``change(own, *shared, base=leaf) -> leaf, backward`` makes
    the leaf. shared is what several leaves are made of: its gradients are sums over them.
    Raises ValueError, naming the place, where trained has not the structure of base, a leaf changes its shape or dtype, or
    something is to be made without a change to make it.
    """
    backwards: dict[str, Callable] = {}

    def make(own: Any, leaf: Any, path: str) -> Any:
        if own is None:
            return leaf
        inner = trees.children(leaf)
        if inner is not None and leaf is not None:
            mine = trees.children(own)
            if mine is None or [name for name, _ in mine] != [name for name, _ in inner]:
                raise InvalidArgument(f"trained{_dot(path)}: got {type(own).__name__}, wants {type(leaf).__name__} or None, as base has")
            pairs = zip(mine, inner, strict=True)
            return trees.like(leaf, [make(a, b, f"{path}.{name}" if path else name) for (name, a), (_, b) in pairs])
        if isinstance(own, np.ndarray):
            made = own
        elif change is None:
            raise InvalidArgument(f"trained{_dot(path)}: got {type(own).__name__}, wants an array, None, or a change that makes a leaf of it")
        else:
            try:
                made, backwards[path] = change(own, *shared, base=leaf)
            except InvalidArgument as error:                 # which names the factor, and not whose it is
                raise InvalidArgument(f"trained{_dot(path)}: {error}") from None
        if leaf is None or made.shape != leaf.shape or made.dtype != leaf.dtype:
            there = "nothing" if leaf is None else f"{leaf.dtype} of shape {leaf.shape}"
            raise InvalidArgument(f"trained{_dot(path)}: makes {made.dtype} of shape {made.shape}, wants {there}, as base has")
        return made

    tree = make(trained, base, "")

    def backward(dtree: trees.Tree) -> Any:
        dshared = [trees.zeros_like(part) for part in shared]

        def unmake(own: Any, dleaf: Any, path: str) -> Any:
            if own is None:
                return None
            if path in backwards:
                found = backwards[path](dleaf)
                down, *more = found if shared else (found,)
                dshared[:] = [trees.map(np.add, total, part) for total, part in zip(dshared, more, strict=True)]
                return down
            inner = trees.children(own)
            if inner is None:
                return dleaf
            pairs = zip(inner, trees.children(dleaf) or [], strict=True)
            return trees.like(own, [unmake(a, b, f"{path}.{name}" if path else name) for (name, a), (_, b) in pairs])

        dtrained = unmake(trained, dtree, "")
        return (dtrained, *dshared) if shared else dtrained

    return tree, backward


def _dot(path: str) -> str:
    return f".{path}" if path else ""
