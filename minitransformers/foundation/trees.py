"""Trees of parameters: NamedTuples, lists, tuples, arrays and None, nested as the model is.

A tree mirrors the model that it parameterises, so a gradient tree can be added to it leaf by leaf. The path
of a leaf is what one would type to reach it: ``blocks.3.mixer.query.weight``. ``None`` (a bias that is not
there) is a tree without leaves.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

Tree = Any


def parts(tree: Tree) -> tuple | list | None:
    """The children of an inner node, none for None, or None where the tree is a leaf."""
    if isinstance(tree, np.ndarray):
        return None
    if tree is None:
        return ()
    return tree if isinstance(tree, (tuple, list)) else None


def children(tree: Tree) -> list[tuple[str, Tree]] | None:
    """The same with their names, which are numbers in a list or a plain tuple."""
    inner = parts(tree)
    if inner is None:
        return None
    names = tree._fields if hasattr(tree, "_fields") else [str(i) for i in range(len(inner))]
    return list(zip(names, inner, strict=True))


def like(node: Tree, children: list[Tree]) -> Tree:
    """A node of the same type as ``node`` with other children."""
    if node is None:
        return None
    if hasattr(node, "_fields"):
        return type(node)(*children)
    return type(node)(children)


def leaves(tree: Tree, path: str = "") -> Iterator[tuple[str, Any]]:
    """``(path, leaf)`` from left to right."""
    found: list[tuple[str, Any]] = []

    def look(node: Tree, place: str) -> None:                # into one list: a generator for each level would hand every leaf up
        inner = children(node)
        if inner is None:
            found.append((place, node))
        else:
            for name, child in inner:
                look(child, f"{place}.{name}" if place else name)

    look(tree, path)
    return iter(found)


def map(function: Callable, tree: Tree, *others: Tree, path: str = "") -> Tree:
    """Apply ``function(leaf, *leaves_of_the_others)`` to every leaf.

    Raises ValueError, naming the place, where another tree has not the structure of the first.
    """
    inner = children(tree)
    if inner is None:
        return function(tree, *others)
    columns = []
    for other in others:
        found = children(other)
        if found is None or [name for name, _ in found] != [name for name, _ in inner] or (tree is None) != (other is None):
            raise ValueError(f"{path or 'tree'}: the trees differ in structure: {_kind(tree)} beside {_kind(other)}")
        columns.append([child for _, child in found])
    return like(
        tree,
        [
            map(function, child, *(column[i] for column in columns), path=f"{path}.{name}" if path else name)
            for i, (name, child) in enumerate(inner)
        ],
    )


def _kind(tree: Tree) -> str:
    inner = children(tree)
    if tree is None:
        return "None"
    if inner is None:
        return f"a leaf ({type(tree).__name__})"
    return f"{type(tree).__name__}({', '.join(name for name, _ in inner)})"


def partition(tree: Tree, where: Callable[[str, Any], bool]) -> tuple[Tree, Tree]:
    """Two trees of the same structure: the leaves for which ``where(path, leaf)`` holds, and the others; None elsewhere."""

    def part(node: Tree, path: str, wanted: bool) -> Tree:
        inner = children(node)
        if inner is None:
            return node if bool(where(path, node)) is wanted else None
        return like(node, [part(child, f"{path}.{name}" if path else name, wanted) for name, child in inner])

    return part(tree, "", True), part(tree, "", False)


def combine(one: Tree, other: Tree, path: str = "") -> Tree:
    """The tree that was cut in two: from each place the leaf of the tree that has one, None where neither has.

    Raises ValueError, naming the place, where both have a leaf or the structures differ.
    """
    if one is None or other is None:
        return other if one is None else one
    mine, theirs = children(one), children(other)
    if mine is None or theirs is None:
        raise ValueError(f"{path or 'tree'}: got {_kind(one)} beside {_kind(other)}, wants None in one of the trees")
    if [name for name, _ in mine] != [name for name, _ in theirs]:
        raise ValueError(f"{path or 'tree'}: the trees differ in structure: {_kind(one)} beside {_kind(other)}")
    return like(
        one, [combine(a, b, f"{path}.{name}" if path else name) for (name, a), (_, b) in zip(mine, theirs, strict=True)]
    )


class Decays:
    """The mark of a field that weight decay acts on: ``weight: Annotated[Float[Array, "d_in d_out"], decays]``."""


decays = Decays()


def decayed(tree: Tree, path: str = "") -> Iterator[str]:
    """The paths of the leaves that are marked, in their tuple, as what weight decay acts on."""
    inner = children(tree)
    marked = _decaying_fields(type(tree)) if isinstance(tree, tuple) and hasattr(tree, "_fields") else frozenset()
    for name, child in inner or []:
        place = f"{path}.{name}" if path else name
        if name in marked and child is not None:
            yield place
        yield from decayed(child, place)


@functools.cache
def _decaying_fields(cls: type) -> frozenset[str]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return frozenset(name for name, hint in hints.items() if any(extra is decays for extra in typing.get_args(hint)))


def unflatten(tree: Tree, new_leaves: Iterable[Any]) -> Tree:
    """A tree shaped like ``tree`` with the leaves given, from left to right."""
    supply = iter(new_leaves)

    def filled(node: Tree) -> Tree:                          # map, without the paths that its errors name: differences call this often
        inner = parts(node)
        return next(supply) if inner is None else like(node, [filled(child) for child in inner])

    return filled(tree)


def from_paths(template: Tree, arrays: Mapping[str, np.ndarray], *, what: str = "weights") -> Tree:
    """Fill a tree shaped like ``template`` from a dict of path to array, cast to the template's dtypes.

    Raises ValueError that lists the missing, unexpected and mis-shaped names; nothing is filled halfway.
    """
    wanted = dict(leaves(template))
    missing = sorted(wanted.keys() - arrays.keys())
    extra = sorted(arrays.keys() - wanted.keys())
    shapes = sorted(
        f"{name} is {arrays[name].shape}, should be {np.shape(leaf)}"
        for name, leaf in wanted.items()
        if name in arrays and arrays[name].shape != np.shape(leaf)
    )
    problems = [f"{label} {', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
                for label, names in (("missing:", missing), ("unexpected:", extra), ("wrong shape:", shapes)) if names]  # fmt: skip
    if problems:
        raise ValueError(f"{what}: {'; '.join(problems)}")
    return unflatten(template, [np.asarray(arrays[name], dtype=leaf.dtype) for name, leaf in wanted.items()])


def count_parameters(tree: Tree) -> int:
    """How many numbers the tree holds. An array that stands in two places counts once."""
    distinct = {id(leaf): np.size(leaf) for _, leaf in leaves(tree)}
    return sum(distinct.values())


def cast(tree: Tree, dtype: Any) -> Tree:
    """The same tree with every leaf as ``dtype`` (always a copy)."""
    return map(lambda leaf: np.array(leaf, dtype=dtype), tree)


def zeros_like(tree: Tree) -> Tree:
    """A tree of zeros with the shapes and dtypes of ``tree``."""
    return map(np.zeros_like, tree)
