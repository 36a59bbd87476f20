"""Parts of a model by name: from the catalogue, with their options and what stands in their slots, ready to be used.

Every concept of a role takes the same first arguments, so a model needs to know no part by name. What a part takes
besides (heads, a window, a base) it gets in two ways: settings that the model offers to every part (``num_heads``,
``d_model``), of which each takes what its signature names; and options meant for this part, each of which it must take.
An option that names a slot puts a concept into it, and the options of that concept follow with a dot:

    {"core": "banded_attention", "core.window": 32, "prepare": "qk_norm"}
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minitransformers.attention.core import causal, causal_attention
from minitransformers.attention.prepare import on_both
from minitransformers.basics.chain import chain
from minitransformers.foundation import catalogue, invalid, slot
from minitransformers.foundation.shapes import InvalidArgument
from minitransformers.foundation.signature import check_arguments

# The slots that a name can be put into, and the role that fits each.
SLOTS = {
    "core": "core", "prepare": "prepare", "activation": "activation", "turn": "position/rotation", "recurrence": "recurrence",
    "feature_map": "feature_map",
}  # fmt: skip

# How forms are named that compute what the plain one does, and sooner.
_FAST_FORMS = ("_fast", "_blocks", "_chunked")

# What the model puts in itself: no options.
_THE_MODELS_OWN = {"rng", "d_model", "dtype", "mask", "positions", "num_queries", "num_keys"}

# What it offers to every part: no option that a part must be given.
_OFFERED = {"num_heads", "num_layers", "max_positions", "std", "residual_std", "d_head", "d_query"}


@functools.cache
def _arguments(function: Callable) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _options(entry: catalogue.Entry) -> dict[str, inspect.Parameter]:
    """What can be chosen for a concept in a configuration: its keywords and what its init takes, but for arrays and other functions."""
    named = {**(_arguments(entry.init) if entry.init else {}), **_arguments(entry.function)}
    no_options = _THE_MODELS_OWN | {name for name, a in _arguments(entry.function).items() if a.kind is not a.KEYWORD_ONLY}
    no_options |= {name for name, a in named.items() if a.annotation is Callable and name not in SLOTS}
    return {name: argument for name, argument in named.items() if name not in no_options}


def _find(name: str, role: str) -> catalogue.Entry:
    """The entry of that name, in its fast form where it has one. Raises ValueError that suggests the nearest name."""
    known = catalogue.entries(role=role)
    fast = next((known[name + form] for form in _FAST_FORMS if name + form in known), None)
    return fast or known.get(name) or catalogue.find(name, role=role)  # which says what is near


@dataclass(frozen=True)
class Part:
    """One concept in one role of a model, with the parts in its slots."""

    role: str
    entry: catalogue.Entry
    options: Mapping[str, Any] = field(default_factory=dict)
    slots: Mapping[str, Part] = field(default_factory=dict)

    @classmethod
    def of(cls, role: str, name: str, options: Mapping[str, Any]) -> Part:
        """The part of that name. Raises ValueError as alternating does."""
        return cls.alternating(role, [name], options)[0]

    @classmethod
    def alternating(cls, role: str, names: Sequence[str], options: Mapping[str, Any]) -> list[Part]:
        """The parts of those names, each with the options that it takes.

        Raises ValueError, naming the role, for an unknown name, an option that none of them takes, an option outside its
        range and one that a part needs and does not get.
        """
        entries = [_find(name, SLOTS.get(role.rpartition(".")[2], role)) for name in names]
        takes = [_options(entry).keys() for entry in entries]
        known = sorted(set().union(*takes))
        for option in options:
            name, dot, _ = option.partition(".")
            if name not in known or (dot and name not in SLOTS):
                raise ValueError(f"options.{role}.{option}: {_has_not(names, name, known)}")
        return [cls._of_entry(role, entry, {k: v for k, v in options.items() if k.partition(".")[0] in own})
                for entry, own in zip(entries, takes, strict=True)]  # fmt: skip

    @classmethod
    def _of_entry(cls, role: str, entry: catalogue.Entry, options: Mapping[str, Any]) -> Part:
        slots, own = {}, {}
        for option, value in options.items():
            name, dot, _ = option.partition(".")
            if name not in SLOTS:
                own[name] = value
            elif not isinstance(chosen := options.get(name), str):
                raise invalid(f"options.{role}.{name}", got=repr(chosen), wants="the name of a concept")
            elif not dot:
                inner = {k.partition(".")[2]: v for k, v in options.items() if k.startswith(f"{name}.")}
                slots[name] = cls.of(f"{role}.{name}", chosen, inner)
        for function in filter(None, (entry.init, entry.function)):
            try:
                own = check_arguments(function, (), own)[1]
            except InvalidArgument as error:
                raise ValueError(f"options.{role}.{error}") from None
        for name, argument in _options(entry).items():
            if argument.default is argument.empty and name not in own.keys() | slots.keys() | _OFFERED:
                raise ValueError(f"options.{role}.{name}: {entry.name} needs a value")
        return cls(role, entry, own, slots)

    @property
    def place(self) -> str:
        """Where the part acts: the role, for a position with its place ("position/input")."""
        return next(own for own in self.entry.roles if own == self.role or own.startswith(f"{self.role}/"))

    def takes(self, name: str) -> bool:
        """Whether the concept has an argument of that name."""
        return name in _arguments(self.entry.function)

    def init(self, rng: np.random.Generator, *, rotation: Part | None = None, **settings: Any) -> Any:
        """Fresh parameters, or None for a part that has none; what its slots learn is put into its fields."""
        init = self.entry.init
        params: Any = None if init is None else init(rng, **self._taken(init, settings))
        for name, inner in self.slots.items():
            width = settings["d_model"] // settings["num_heads"]
            learned = inner.init(rng, **{**settings, "d_head": width, "d_query": width})
            if learned is not None:
                if name not in getattr(params, "_fields", ()):
                    raise ValueError(f"options.{self.role}.{name}: {inner.entry.name} learns, and {self.entry.name} has no place for it")
                chained = (learned, None) if name == "prepare" and rotation is not None and self.takes("prepare") else learned
                params = params._replace(**{name: chained})
        return params

    def bind(self, *, rotation: Part | None = None, **settings: Any) -> Callable:
        """The concept as ``part(params, ...) -> out, backward``, its configuration and its slots filled in."""
        function = self._filled_in(self.entry.function, rotation, settings)
        return function if self.takes("params") else slot(function)

    def bind_step(self, *, rotation: Part | None = None, **settings: Any) -> Callable | None:
        """The decoding step with the same configuration, or None where the concept has none."""
        return None if self.entry.step is None else self._filled_in(self.entry.step, rotation, settings)

    def _filled_in(self, function: Callable, rotation: Part | None, settings: Mapping[str, Any]) -> Callable:
        return functools.partial(function, **self._taken(function, settings), **self._in_slots(rotation, settings))

    def _in_slots(self, rotation: Part | None, settings: Mapping[str, Any]) -> dict[str, Callable]:
        """What stands in the slots, as functions. A rotation comes after what else is prepared."""
        filled = {name: inner.bind(**settings) for name, inner in self.slots.items() if name != "turn"}
        if "turn" in self.slots:                             # has no parameters, and is called without
            filled["turn"] = self.slots["turn"]._filled_in(self.slots["turn"].entry.function, None, {})
        if "core" in filled and _arguments(self.entry.function)["core"].default is causal_attention:
            filled["core"] = causal(filled["core"])          # this mixer leaves it to its core to look back only
        if rotation is not None and self.takes("prepare"):
            turn = on_both(rotation._filled_in(rotation.entry.function, None, {}))
            filled["prepare"] = functools.partial(chain, parts=(filled["prepare"], turn)) if "prepare" in filled else turn
        return filled

    def _taken(self, function: Callable, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What the function takes of the settings and options."""
        return {name: value for name, value in {**settings, **self.options}.items() if name in _arguments(function)}


def _has_not(names: Sequence[str], option: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(option, known, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    has = f"{names[0]} has" if len(names) == 1 else f"{', '.join(names)} have"
    return f"{has} no such option{hint} (known: {', '.join(known) or 'none'})"
