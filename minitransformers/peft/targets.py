"""Which arrays of a model are changed: paths chosen by pattern, as ``query.weight`` or ``blocks.1.*.weight``.

A pattern matches whole names from the end of a path: ``query.weight`` is every query's, ``0.attention.query.weight`` the first
block's. ``*`` stands for any name or part of one, over dots as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from minitransformers.foundation import invalid, trees


def targets(base: trees.Tree, patterns: Sequence[str], *, ndim: int = 2) -> list[str]:
    """The paths of base's arrays of so many axes that a pattern matches, in the order of base.

    Raises ValueError for a pattern that matches none of them, saying which names there are.
    """
    if isinstance(patterns, str) or not patterns:
        raise invalid("patterns", got=repr(patterns), wants="a list of patterns, such as ['query.weight', 'value.weight']")
    paths = [path for path, leaf in trees.leaves(base) if leaf.ndim == ndim]
    for pattern in patterns:
        if not any(_matches(path, pattern) for path in paths):
            raise invalid("patterns", got=repr(pattern), wants=f"one that matches an array of {ndim} axes: {', '.join(_kinds(paths)) or 'there is none'}")
    return [path for path in paths if any(_matches(path, pattern) for pattern in patterns)]


def at_targets(make: Callable[[Any], Any], base: trees.Tree, patterns: Sequence[str], *, ndim: int = 2) -> trees.Tree:
    """A tree like base with ``make(leaf)`` in the place of each array that a pattern matches, and None in the place of all else.

    What reparameterize takes as trained. Raises ValueError as targets does.
    """
    chosen = set(targets(base, patterns, ndim=ndim))
    return trees.map(make, trees.partition(base, lambda path, leaf: path in chosen)[0])


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"*.{pattern}")


def _kinds(paths: Sequence[str]) -> list[str]:
    """The paths with a star for the number of a block, each once."""
    return list(dict.fromkeys(".".join("*" if name.isdigit() else name for name in path.split(".")) for path in paths))
