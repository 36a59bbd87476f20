"""Trees of parameters: NamedTuples, lists, tuples, arrays and None, nested as the model is.

A tree mirrors the model that it parameterises, so a gradient tree can be added to it leaf by leaf. The path
of a leaf is what one would type to reach it: ``blocks.3.mixer.query.weight``. ``None`` (a bias that is not
there) is a tree without leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

Tree = Any


def _children(tree: Tree) -> list[tuple[str, Tree]] | None:
    """The named children of an inner node, or None where the tree is a leaf."""
    if tree is None:
        return []
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return list(zip(tree._fields, tree, strict=True))
    if isinstance(tree, (list, tuple)):
        return [(str(i), child) for i, child in enumerate(tree)]
    return None


def _like(node: Tree, children: list[Tree]) -> Tree:
    """A node of the same type as ``node`` with other children."""
    if node is None:
        return None
    if hasattr(node, "_fields"):
        return type(node)(*children)
    return type(node)(children)


def leaves(tree: Tree, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``(path, leaf)`` from left to right."""
    children = _children(tree)
    if children is None:
        yield path, tree
    else:
        for name, child in children:
            yield from leaves(child, f"{path}.{name}" if path else name)


def map(function: Callable, tree: Tree, *others: Tree, path: str = "") -> Tree:
    """Apply ``function(leaf, *leaves_of_the_others)`` to every leaf.

    Raises ValueError, naming the place, where another tree has not the structure of the first.
    """
    children = _children(tree)
    if children is None:
        return function(tree, *others)
    others_children = []
    for other in others:
        found = _children(other)
        if found is None or [name for name, _ in found] != [name for name, _ in children] or (tree is None) != (other is None):
            raise ValueError(f"{path or 'tree'}: the trees differ in structure: {_kind(tree)} beside {_kind(other)}")
        others_children.append([child for _, child in found])
    return _like(
        tree,
        [
            map(function, child, *(columns[i] for columns in others_children), path=f"{path}.{name}" if path else name)
            for i, (name, child) in enumerate(children)
        ],
    )


def _kind(tree: Tree) -> str:
    children = _children(tree)
    if tree is None:
        return "None"
    if children is None:
        return f"a leaf ({type(tree).__name__})"
    return f"{type(tree).__name__}({', '.join(name for name, _ in children)})"


def unflatten(tree: Tree, new_leaves: Iterable[Any]) -> Tree:
    """A tree shaped like ``tree`` with the leaves given, from left to right."""
    supply = iter(new_leaves)
    return map(lambda _: next(supply), tree)


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
