"""Heads side by side in the features, or on an axis of their own, and the sums that every attention takes over its scores."""

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import invalid
from minitransformers.foundation.signature import axis_sizes


def split_heads(x: Float[Array, "... positions d_heads"], num_heads: int) -> Float[Array, "... heads positions d_head"]:
    """Cut the features into heads: a view, nothing is copied."""
    return x.reshape(*x.shape[:-1], num_heads, -1).swapaxes(-2, -3)


def merge_heads(x: Float[Array, "... heads positions d_head"]) -> Float[Array, "... positions d_heads"]:
    """Put the heads' features side by side again."""
    x = x.swapaxes(-2, -3)
    return x.reshape(*x.shape[:-2], -1)


def check_heads(argument: str, heads: int, total: int) -> None:
    """Raise ValueError, naming the argument, unless that many heads share the total evenly."""
    if total % heads:
        raise invalid(argument, got=heads, wants=f"a number of heads that divides {total}")


def check_per_head(argument: str, params: Any, num_heads: int) -> None:
    """Raise ValueError, naming the place, where parameters have another number of heads than that, or 1 for all.

    A core cannot tell: of queries (2, 4, ...) it does not know whether they are 4 heads in a batch of 2, or 8 in 2 groups.
    """
    for place, heads in axis_sizes(params, "heads", argument):
        if heads not in (1, num_heads):
            raise invalid(place, got=f"{heads} heads", wants=f"num_heads = {num_heads}, or 1 for all")


def check_scores(argument: str, array: Array | None, shape: tuple[int, ...]) -> None:
    """Raise ValueError, naming the argument, unless the array broadcasts to scores of that shape."""
    if array is None:
        return
    pairs = zip(reversed(array.shape), reversed(shape), strict=False)
    if array.ndim > len(shape) or any(size not in (1, wanted) for size, wanted in pairs):
        raise invalid(argument, got=f"shape {array.shape}", wants=f"a shape that broadcasts to the scores, {shape}")


def by_head(argument: str, learned: Array, scores: Float[Array, "... queries keys"]) -> Array:
    """What is learned for each head, (heads,) or (heads, a, b), as it broadcasts with scores: (heads, 1, 1) or (heads, a, b).

    Grouped queries stand on two axes, (..., groups, heads of a group, queries, keys), and head h is number h of both together:
    then (groups, heads of a group, ...). Raises ValueError, naming the argument, where the scores have not that many heads.
    """
    heads, before = len(learned), scores.shape[:-2]
    learned = learned.reshape(heads, *(learned.shape[1:] or (1, 1)))
    if heads == 1:
        return learned[0]
    if before[-1:] == (heads,):
        return learned
    if len(before) > 1 and before[-1] * before[-2] == heads:
        return learned.reshape(*before[-2:], *learned.shape[1:])
    raise invalid(argument, got=f"{heads} heads", wants=f"a number for each head of scores of shape {scores.shape}")


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
    running sum in float32 loses three digits.
    """
    return (a @ np.ones(a.shape[-1], a.dtype))[..., None]


def dot_over_keys(a: Float[Array, "... queries keys"], b: Float[Array, "... queries keys"]) -> Float[Array, "... queries"]:
    """The sum over the keys of a b, without their product as an array.

    Attention keeps scores as (..., keys, queries) in memory and returns a transposed view. There np.vecdot, which takes
    one query after the other, is thirty times slower; einsum goes along the memory.
    """
    return np.einsum("...k,...k->...", a, b)
