"""One flat array under a whole tree: the leaves are views of it, so one loop or one product reaches all parameters.

An optimiser that walks over sixty small arrays pays sixty times for the walk. Here the walk is over one long array, the
norm of all gradients is one dot product, and the model, which holds the views, sees every change at once.

Each leaf starts on a 64-byte line, as wide vector instructions like it; the few elements between leaves are zero
and stay zero. An array that stands in two places of the tree (a tied weight) lies in the flat array once.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy import ndarray as Array

from minitransformers.foundation import invalid, trees

_LINE = 64  # bytes


def aligned_zeros(size: int, dtype: np.typing.DTypeLike) -> Array:
    """A vector of zeros that starts on a 64-byte line; NumPy itself promises 16."""
    num_bytes = size * np.dtype(dtype).itemsize
    raw = np.zeros(num_bytes + _LINE, np.uint8)
    start = -raw.ctypes.data % _LINE
    return raw[start : start + num_bytes].view(dtype)


class FlatTree:
    """``flat``, a vector, and ``tree``, whose leaves are views of it.

    ``flat[:front]`` holds the leaves that pack was asked to put in front, ``flat[front:]`` the others.
    """

    def __init__(self, flat: Array, tree: trees.Tree, front: int) -> None:
        self.flat, self.tree, self.front = flat, tree, front
        self._views = dict(trees.leaves(tree))

    @classmethod
    def pack(cls, tree: trees.Tree, *, in_front: Collection[str] | None = None) -> FlatTree:
        """Copy a tree into a new flat array; leaves whose paths are in_front (None: all) come first.

        An array that stands in several places goes where its first place would.
        Raises ValueError for a tree without leaves and for leaves that are not of one floating dtype.
        """
        distinct = {id(leaf): (path, leaf) for path, leaf in reversed(list(trees.leaves(tree)))}
        if not distinct:
            raise invalid("tree", got="no arrays", wants="at least one")
        places = list(reversed(distinct.values()))
        dtype = places[0][1].dtype
        for path, leaf in places:
            if leaf.dtype != dtype or leaf.dtype.kind != "f":
                raise invalid(path, got=str(leaf.dtype), wants=f"one floating dtype for all parameters; {places[0][0]} is {dtype}")
        first = {path for path, _ in places} if in_front is None else set(in_front)
        places.sort(key=lambda place: place[0] not in first)  # stable: otherwise the order of the tree
        step, starts, front, size = _LINE // dtype.itemsize, {}, 0, 0
        for path, leaf in places:
            starts[id(leaf)] = size
            size += -(-leaf.size // step) * step
            if path in first:
                front = size
        flat = aligned_zeros(size, dtype)
        views = {id(leaf): flat[starts[id(leaf)] :][: leaf.size].reshape(leaf.shape) for _, leaf in places}
        packed = cls(flat, trees.map(lambda leaf: views[id(leaf)], tree), front)
        packed.assign(tree)
        return packed

    def zeros_like(self) -> FlatTree:
        """A flat tree of zeros with the same layout."""
        flat, start = aligned_zeros(self.flat.size, self.flat.dtype), self.flat.ctypes.data
        views: dict[int, Array] = {}

        def same_place(view: Array) -> Array:
            if id(view) not in views:
                begin = (view.ctypes.data - start) // flat.itemsize
                views[id(view)] = flat[begin : begin + view.size].reshape(view.shape)
            return views[id(view)]

        return FlatTree(flat, trees.map(same_place, self.tree), self.front)

    def assign(self, tree: trees.Tree) -> None:
        """Copy the values of a tree of the same structure. Raises ValueError where it differs."""
        for view, leaf in self._pairs(tree):
            view[...] = leaf

    def set_sum(self, tree: trees.Tree) -> None:
        """Like assign, for gradients: where one array stands in several places, its gradients are added."""
        seen = set()
        for view, leaf in self._pairs(tree):
            if id(view) in seen:
                view += leaf
            else:
                seen.add(id(view))
                view[...] = leaf

    def add_sum(self, tree: trees.Tree) -> None:
        """Add the gradients in a tree of the same structure. Raises ValueError where it differs."""
        for view, leaf in self._pairs(tree):
            view += leaf

    def _pairs(self, tree: trees.Tree) -> list[tuple[Array, Array]]:
        """Every view with the leaf that belongs to it, all checked before the first is touched."""
        leaves = dict(trees.leaves(tree))
        for path, view in self._views.items():
            if path not in leaves or leaves[path].shape != view.shape:
                raise invalid(path, got=f"shape {leaves[path].shape}" if path in leaves else "nothing", wants=f"shape {view.shape}")
        if len(leaves) != len(self._views):
            raise invalid(sorted(leaves.keys() - self._views.keys())[0], got="an array", wants="nothing: the tree has no such place")
        return [(view, leaves[path]) for path, view in self._views.items()]
