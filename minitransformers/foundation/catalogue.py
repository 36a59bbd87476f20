"""The catalogue: every concept and procedure in the package, made from the labels on the functions themselves.

Nobody keeps a second list. ``entries()`` imports the chapters once and maps each name to its entry; ``concepts()`` and
``procedures()`` are the two halves. The generic checks, the command line, the site's tables and the workbench read it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, NoReturn

import numpy as np

# What a concept can be to a model (see the table of roles in the documentation). A position acts in one of three places. A
# stack stands for all blocks at once: its layers share parameters, or read what no single block is given. prepare, core and
# weighting are slots of attention: what is done to queries and keys first, what moves the values, what makes weights of scores.
# recurrence and feature_map are slots of attention in linear time: what carries the past in a state, and what scores factor into.
ROLES = (
    "mixer", "stack", "channel", "activation", "norm", "position/input", "position/rotation", "position/bias", "prepare", "core", "weighting",
    "recurrence", "feature_map",
)  # fmt: skip

# The order in which a reader meets the chapters.
READING_ORDER = (
    "basics", "attention", "positional", "norms", "efficient", "sparse_attention", "linear_attention", "long_context",
    "state_space", "hybrids", "models", "peft", "compression", "bias_mitigation", "vision", "domains", "multimodal", "limits",
)  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A call of a concept: ``function(*args, **config)``."""

    args: tuple
    config: dict[str, Any]


@functools.cache
def _parameters(function: Callable) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


@dataclass(frozen=True)
class Rejection:
    """A bad call: the example with some arguments replaced, and the name that its ValueError must contain."""

    names: str
    changes: dict[str, Any]

    def spoil(self, function: Callable, example: Example) -> Example:
        """The example with the changes put in, each by position or by keyword as the function takes it."""
        args, config = list(example.args), dict(example.config)
        positions = _parameters(function)
        for name, value in self.changes.items():
            place = positions.index(name) if name in positions else len(args)
            if place < len(args):
                args[place] = value
            else:
                config[name] = value
        return Example(tuple(args), config)


@dataclass(frozen=True)
class Entry:
    """What the museum label of a concept or a procedure says."""

    name: str
    chapter: str
    title: str
    source: str
    function: Callable
    make_example: Callable[[np.random.Generator], Example]
    roles: tuple[str, ...] = ()
    rejects: tuple[Rejection, ...] = ()
    step: Callable | None = None
    form_of: str | None = None
    gradient_of: Callable | None = None
    make_large: Callable[[np.random.Generator], Example] | None = None
    is_procedure: bool = False

    @property
    def module(self) -> str:
        """The module's dotted name."""
        return self.function.__module__

    @property
    def page(self) -> str:
        """The name of the page that explains it: the plain form's for another form of it, otherwise the file's."""
        return self.form_of or self.module.rpartition(".")[2]

    @cached_property
    def init(self) -> Callable | None:
        """``init_<name>`` of the same module, or None where it has no parameters."""
        return getattr(sys.modules[self.module], f"init_{self.name}", None)

    def example(self, rng: np.random.Generator) -> Example:
        """A small float64 call with random arguments."""
        return self.make_example(rng)

    def large_example(self, rng: np.random.Generator) -> Example:
        """One whose arguments become a thousand times larger where large inputs are checked: the example, if the label has no other."""
        return (self.make_large or self.make_example)(rng)

    def has_role(self, role: str) -> bool:
        """Whether the concept fills the role; "position" stands for all three places."""
        return any(own == role or own.startswith(f"{role}/") for own in self.roles)


_entries: dict[str, Entry] = {}


def register(entry: Entry) -> None:
    """Add an entry. Raises ValueError where the label lacks a part or the name is taken."""
    what = f"{'procedure' if entry.is_procedure else 'concept'} {entry.name}"
    for part in ("title", "source"):
        if not getattr(entry, part).strip():
            raise ValueError(f"{what}: the label has no {part}")
    if not callable(entry.make_example):
        raise ValueError(f"{what}: example must be a function of a random generator")
    for role in entry.roles:
        if role not in ROLES:
            raise ValueError(f"{what}: unknown role {role!r}; the roles are {', '.join(ROLES)}")
    package, _, file = entry.module.rpartition(".")
    ours = package.split(".")[0] == "minitransformers"
    if ours and not entry.is_procedure and file not in (entry.name, entry.form_of):
        raise ValueError(f"{what}: its file must bear its name, not {file}.py")
    other = _entries.get(entry.name)
    if other is not None and _place(other.function) != _place(entry.function):
        raise ValueError(f"{what}: the name is taken by {other.module}")
    _entries[entry.name] = entry
    if ours and file == entry.name:
        sys.modules[entry.module].__class__ = ConceptModule


class ConceptModule(ModuleType):
    """A module that bears the name of the concept in it, and says so where it is called in the concept's place.

    ``from minitransformers.positional import rope`` gives the module: Python says only that a module is not callable.
    """

    def __call__(self, *args: Any, **config: Any) -> NoReturn:
        """Raise TypeError that says where the concept is."""
        name = self.__name__.rpartition(".")[2]
        place = self.__name__ if name in READING_ORDER else "minitransformers"  # at the top, a chapter's name is the chapter
        raise TypeError(f"{self.__name__} is the module of {name}, not {name} itself: from {place} import {name}")


_NUMBERED = re.compile(r"^ {4,}\S.*\(\d+\)$", re.MULTILINE)


def equations(module: str) -> str:
    """The blocks of a module's header whose lines end in numbers, as they stand there; empty where it has none."""
    header = inspect.cleandoc(getattr(sys.modules.get(module), "__doc__", None) or "")
    return "\n\n".join(block for block in header.split("\n\n") if _NUMBERED.search(block))


def explained(function: Callable) -> str | None:
    """A function's docstring, after the equations that it computes: what ``help`` shows of a concept."""
    own, displayed = inspect.getdoc(function), equations(function.__module__)
    return f"{textwrap.dedent(displayed)}\n\n{own}" if own and displayed else own


def _place(function: Callable) -> tuple:
    # A module that is loaded again (a reload, a notebook cell that runs twice) may label its function again.
    code = inspect.unwrap(function).__code__
    return (code.co_filename, code.co_firstlineno)


@functools.cache
def _import_chapters() -> None:
    import minitransformers

    for module in pkgutil.walk_packages(minitransformers.__path__, "minitransformers."):
        if module.name.split(".")[1] in READING_ORDER:
            importlib.import_module(module.name)


def entries(*, role: str | None = None, chapter: str | None = None) -> dict[str, Entry]:
    """Every concept and procedure in reading order: name to entry; only those of a role or a chapter, where one is given."""
    _import_chapters()
    order = {name: i for i, name in enumerate(READING_ORDER)}
    found = sorted(_entries.values(), key=lambda entry: (order.get(entry.chapter, len(order)), entry.name))
    return {
        entry.name: entry
        for entry in found
        if (role is None or entry.has_role(role)) and (chapter is None or entry.chapter == chapter)
    }


def concepts(*, role: str | None = None, chapter: str | None = None) -> dict[str, Entry]:
    """The entries that have a gradient."""
    return {name: entry for name, entry in entries(role=role, chapter=chapter).items() if not entry.is_procedure}


def procedures(*, chapter: str | None = None) -> dict[str, Entry]:
    """The entries that have none."""
    return {name: entry for name, entry in entries(chapter=chapter).items() if entry.is_procedure}


def find(name: str, *, role: str | None = None) -> Entry:
    """The entry of that name. Raises ValueError that suggests the nearest, and where a role is asked for names all that fill it."""
    known = entries(role=role)
    if name not in known:
        raise _unknown(role or "concept or procedure", name, known, every=f"known: {', '.join(known)}" if role else _TOO_MANY)
    return known[name]


def choose(names: Iterable[str]) -> dict[str, Entry]:
    """The entries of those names, in that order; a chapter's name stands for all that is in it. Raises ValueError as find does."""
    known = entries()
    chapters = dict.fromkeys(entry.chapter for entry in known.values())
    chosen: dict[str, Entry] = {}
    for name in names:
        if name not in chapters and name not in known:
            raise _unknown("chapter, concept or procedure", name, [*chapters, *known], every=_TOO_MANY)
        chosen |= entries(chapter=name) if name in chapters else {name: known[name]}
    return chosen


_TOO_MANY = "`minitransformers list` shows all"


def _unknown(kind: str, name: str, known: Iterable[str], *, every: str) -> ValueError:
    import difflib

    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown {kind} {name!r}{hint} ({every})")
