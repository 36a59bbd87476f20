"""Tiles of the scores: which there are, and what an array has at the place of one.

A place is an index for each axis of the scores, (*heads, i, j), or of what has features, (*heads, i, all): numbers for the leading
axes that are taken one after the other, slices for all others. Arrays need not have all axes, and one of 1 serves every place.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy import ndarray as Array

from minitransformers.attention.heads import sum_to

Place = tuple
_ALL = slice(None)


def tiles(
    batch: tuple[int, ...], queries: int, keys: int, *, tile: int, diagonal: int | None = None, mask: Array | None = None
) -> Iterator[tuple[Place, list[tuple[Place, Place]]]]:
    """(rows, [(columns, both), ...]): the places of a block of queries, and of the keys and the scores of each tile that it needs.

    No tile holds more than tile^2 scores: tile queries by tile keys of one head, or, where there are fewer queries, more keys and
    as many leading axes, from the last on, as fit in whole. With a diagonal, query a sees key b where b <= a + diagonal; tiles
    that lie beyond it are left out, and so are those in which the mask is True nowhere.
    """
    height, whole = min(tile, queries), len(batch)
    while whole and math.prod(batch[whole - 1 :]) * height * min(tile, keys) <= tile * tile:
        whole -= 1
    width = tile * tile // (math.prod(batch[whole:]) * height)
    for index in np.ndindex(batch[:whole]):
        heads = (*index, *[_ALL] * (len(batch) - whole))
        for first in range(0, queries, height):
            i = slice(first, min(first + height, queries))
            stop = keys if diagonal is None else min(i.stop + diagonal, keys)
            across = [slice(j, min(j + width, stop)) for j in range(0, stop, width)]
            seen = [((*heads, j, _ALL), (*heads, i, j)) for j in across]
            yield (*heads, i, _ALL), [(columns, both) for columns, both in seen if mask is None or part(mask, both).any()]


def beyond(diagonal: int | None, both: Place) -> Array | None:
    """Which scores of a tile lie beyond the diagonal, (queries, keys) of the tile; None where none does."""
    i, j = both[-2:]
    if diagonal is None or j.stop - 1 <= i.start + diagonal:
        return None
    return np.arange(j.start, j.stop) > np.arange(i.start, i.stop)[:, None] + diagonal


def part(a: Array, place: Place) -> Array:
    """What an array has at a place: a view."""
    axes = zip(a.shape, place[len(place) - a.ndim :], strict=True)
    return a[tuple(at if size > 1 else 0 if isinstance(at, int) else _ALL for size, at in axes)]


def add_to(whole: Array, place: Place, gradient: Array) -> None:
    """Add a gradient to the part of an array that it belongs to, summed over the places that this part has served at once."""
    own = part(whole, place)
    own += sum_to(gradient, own.shape)
