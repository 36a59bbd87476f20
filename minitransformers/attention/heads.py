"""Heads side by side in the features, or on an axis of their own: what every multi-head mixer does to its arrays."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import catalogue, invalid, trees


def split_heads(x: Float[Array, "... length d_heads"], num_heads: int) -> Float[Array, "... heads length d_head"]:
    """Cut the features into heads: a view, nothing is copied."""
    return x.reshape(*x.shape[:-1], num_heads, -1).swapaxes(-2, -3)


def merge_heads(x: Float[Array, "... heads length d_head"]) -> Float[Array, "... length d_heads"]:
    """Put the heads' features side by side again."""
    x = x.swapaxes(-2, -3)
    return x.reshape(*x.shape[:-2], -1)


def check_heads(argument: str, heads: int, total: int) -> None:
    """Raise ValueError, naming the argument, unless that many heads share the total evenly."""
    if not isinstance(heads, (int, np.integer)) or heads < 1 or total % heads:
        raise invalid(argument, got=heads, wants=f"a whole number of heads that divides {total}")


def check_scores(argument: str, array: Array | None, shape: tuple[int, ...]) -> None:
    """Raise ValueError, naming the argument, unless the array broadcasts to scores of that shape."""
    if array is None:
        return
    pairs = zip(reversed(array.shape), reversed(shape), strict=False)
    if array.ndim > len(shape) or any(size not in (1, wanted) for size, wanted in pairs):
        raise invalid(argument, got=f"shape {array.shape}", wants=f"a shape that broadcasts to the scores, {shape}")


@functools.cache
def named_weighting(name: str) -> catalogue.Entry:
    """The catalogue's weighting of that name. Raises ValueError that suggests the nearest one."""
    return catalogue.find(name, role="weighting")


def as_weighting(weighting: str | Callable | None) -> Callable | None:
    """A weighting by itself or by its name; None is the softmax."""
    return named_weighting(weighting).function if isinstance(weighting, str) else weighting


def named_core(name: str, mask: Array | None) -> Callable:
    """The catalogue's core of that name, core(query, key, value) -> heads, backward, under a mask."""
    return functools.partial(catalogue.find(name, role="core").function, mask=mask)


def init_weighting(rng: np.random.Generator, weighting: str | None, *, num_heads: int, context: int, dtype: type) -> tuple | None:
    """What the weighting of that name learns, as it starts for contexts of that many positions; None for nothing."""
    init = named_weighting(weighting).init if isinstance(weighting, str) else None
    return None if init is None else init(rng, num_heads=num_heads, context=context, dtype=dtype)


@functools.cache
def named_normalizer(name: str) -> catalogue.Entry:
    """The catalogue's normaliser of queries and keys of that name. Raises ValueError that suggests the nearest one."""
    return catalogue.find(name, role="normalizer")


def init_normalizer(rng: np.random.Generator, normalize: str | None, d_head: int, *, dtype: type) -> Any:
    """What the normaliser of that name starts with; None for none."""
    init = named_normalizer(normalize).init if isinstance(normalize, str) else None
    return None if init is None else init(rng, d_head, dtype=dtype)


def as_normalizer(normalize: str | Callable | None, learned: Any, d_head: int) -> Callable | None:
    """(query, key) -> (query, key), backward, with what it learns filled in; None for none.

    Raises ValueError where either comes without the other, or it learns anything but one number for each feature of a head.
    """
    function = named_normalizer(normalize).function if isinstance(normalize, str) else normalize
    if function is not None and not callable(function):
        raise invalid("normalize", got=repr(normalize), wants='a function or its name, "qk_norm"')
    if (function is None) != (learned is None):
        got = "a normaliser without params.normalizer" if learned is None else "params.normalizer without a normaliser"
        raise invalid("normalize", got=got, wants="both or neither")
    if function is None:
        return None
    for path, leaf in trees.leaves(learned, "params.normalizer"):
        if leaf.shape != (d_head,):
            raise invalid(path, got=f"shape {leaf.shape}", wants=f"({d_head},), one number for each feature of a head")
    return functools.partial(function, learned)


def sum_to(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum a gradient over the axes along which an array of this shape was broadcast."""
    if gradient.shape == shape:
        return gradient
    gradient = gradient.sum(axis=tuple(range(gradient.ndim - len(shape))))
    return gradient.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)


def count_keys(mask: Array | None, keys: int) -> Array:
    """The number of keys that each query may see, (..., queries, 1), as small as the mask is; 1 where it may see none."""
    if mask is None:
        return np.array([[keys]])
    return np.maximum(np.broadcast_to(mask, (*mask.shape[:-1], keys)).sum(-1, keepdims=True), 1)


def forbid(scores: Array, mask: Array | None) -> Array:
    """The scores, with -inf added where the mask forbids, as a new array that may be written to.

    The sum takes half the time of np.where over all scores; it keeps the order in which they lie in memory. It forbids
    numbers only: a score that is +inf or NaN is NaN afterwards, and is seen.
    """
    return scores + (scores.dtype.type(0) if mask is None else np.where(mask, scores.dtype.type(0), scores.dtype.type(-np.inf)))


def sum_over_keys(a: Float[Array, "... queries keys"]) -> Float[Array, "... queries 1"]:
    """The sum over the keys. A product with ones adds in blocks: in a row of many thousand keys, all of about one size, a
    running sum in float32 loses three digits. float16 is added up in float32, as it counts to 2048 only.
    """
    if a.dtype.itemsize < 4:
        return a.sum(-1, keepdims=True, dtype=np.float32)
    return (a @ np.ones(a.shape[-1], a.dtype))[..., None]


def check_core(attend: Any, learned: tuple | None, weighting: Any, **held: Any) -> None:
    """Raise ValueError for a core beside what it would have to hold itself, and for learned arrays that nothing takes."""
    found = [name for name, value in {**held, "weighting": weighting}.items() if value is not None]
    if attend is not None and found:
        raise invalid("attend", got=f"a core together with {' and '.join(found)}", wants="a core that holds them itself")
    if learned and weighting is None:
        raise invalid("params.learned", got=f"{len(learned)} arrays", wants="a weighting that takes them, or None")


def dot_over_keys(a: Float[Array, "... queries keys"], b: Float[Array, "... queries keys"]) -> Float[Array, "... queries"]:
    """The sum over the keys of a b, without their product as an array.

    Attention keeps scores as (..., keys, queries) in memory and hands out a transposed view. There np.vecdot, which takes
    one query after the other, is thirty times slower; einsum goes along the memory.
    """
    return np.einsum("...k,...k->...", a, b)
