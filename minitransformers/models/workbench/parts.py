"""Parts of a model by name: from the catalogue, with their options and what stands in their slots, ready to be used.

Every concept of a role takes the same first arguments, so a model needs to know no part by name. What a part takes
besides (heads, a window, a base) it gets in two ways: settings that the model offers to every part (``num_heads``,
``d_model``), of which each takes what its signature names; and options meant for this part, each of which it must take.
An option that names a slot puts a concept into it, and the options of that concept follow with a dot:

    {"core": "banded_attention", "core.window": 32, "prepare": "qk_norm"}
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minitransformers.attention.core import causal
from minitransformers.attention.prepare import on_both
from minitransformers.basics.chain import chain
from minitransformers.foundation import catalogue, slot

# The slots that a name can be put into, and the role that fits each.
SLOTS = {"core": "core", "prepare": "prepare", "activation": "activation", "turn": "position/rotation"}

# What the model itself puts in, and arrays that no configuration can hold: no options.
_THE_MODELS_OWN = {"params", "x", "rng", "d_model", "dtype", "mask", "positions", "num_queries", "num_keys"}


@functools.cache
def _keywords(function: Callable) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _options(entry: catalogue.Entry) -> frozenset[str]:
    """What can be chosen for a concept in a configuration."""
    call, start = _keywords(entry.function), _keywords(entry.init) if entry.init else frozenset[str]()
    scores = {"bias"} if "bias" in call else set()           # an array beside the scores, not whether a map has a bias
    return (call | start) - _THE_MODELS_OWN - scores


def _find(name: str, role: str) -> catalogue.Entry:
    """The entry of that name, in its fast form where it has one. Raises ValueError that suggests the nearest name."""
    entry = catalogue.find(name, role=role)
    return catalogue.entries(role=role).get(f"{name}_fast", entry)


@dataclass(frozen=True)
class Part:
    """One concept in one role of a model, with the parts in its slots."""

    role: str
    entry: catalogue.Entry
    options: Mapping[str, Any] = field(default_factory=dict)
    slots: Mapping[str, Part] = field(default_factory=dict)

    @classmethod
    def of(cls, role: str, name: str, options: Mapping[str, Any]) -> Part:
        """The part of that name. Raises ValueError, naming the role, for an unknown name or option."""
        return cls.alternating(role, [name], options)[0]

    @classmethod
    def alternating(cls, role: str, names: Sequence[str], options: Mapping[str, Any]) -> list[Part]:
        """The parts of those names, each with the options that it takes.

        Raises ValueError, naming the role, for an unknown name and for an option that none of them takes.
        """
        entries = [_find(name, SLOTS.get(role.rpartition(".")[2], role)) for name in names]
        takes = [_options(entry) for entry in entries]
        for option in options:
            head = option.partition(".")[0]
            if not any(head in own for own in takes) or (head != option and head not in SLOTS):
                known = sorted(frozenset[str]().union(*takes))
                has = f"{names[0]} has" if len(names) == 1 else f"{', '.join(names)} have"
                raise ValueError(f"options.{role}.{option}: {has} no such option (known: {', '.join(known) or 'none'})")
        return [cls._of_entry(role, entry, {k: v for k, v in options.items() if k.partition(".")[0] in own})
                for entry, own in zip(entries, takes, strict=True)]  # fmt: skip

    @classmethod
    def _of_entry(cls, role: str, entry: catalogue.Entry, options: Mapping[str, Any]) -> Part:
        slots = {}
        for name in SLOTS:
            inner = {k.partition(".")[2]: v for k, v in options.items() if k.startswith(f"{name}.")}
            if isinstance(chosen := options.get(name), str):
                slots[name] = cls.of(f"{role}.{name}", chosen, inner)
            elif inner:
                raise ValueError(f"options.{role}.{name}: got options for it and no name, wants the concept that takes them")
        own = {k: v for k, v in options.items() if k.partition(".")[0] not in slots}
        return cls(role, entry, own, slots)

    @property
    def place(self) -> str:
        """Where the part acts: the role, for a position with its place ("position/input")."""
        return next(own for own in self.entry.roles if own == self.role or own.startswith(f"{self.role}/"))

    def takes(self, name: str) -> bool:
        """Whether the concept has an argument of that name."""
        return name in _keywords(self.entry.function)

    def init(self, rng: np.random.Generator, *, rotation: Part | None = None, **settings: Any) -> Any:
        """Fresh parameters, or None for a part that has none; what its slots learn is put into its fields."""
        init = self.entry.init
        params = None if init is None else init(rng, **self._taken(init, settings))
        for name, inner in self.slots.items():
            learned = inner.init(rng, **settings)
            if learned is not None:
                if name not in getattr(params, "_fields", ()):
                    raise ValueError(f"options.{self.role}.{name}: {inner.entry.name} learns, and {self.entry.name} has no place for it")
                chained = (learned, None) if name == "prepare" and rotation is not None and self.takes("prepare") else learned
                params = params._replace(**{name: chained})
        return params

    def bind(self, *, rotation: Part | None = None, **settings: Any) -> Callable:
        """The concept as ``part(params, ...) -> out, backward``, its configuration and its slots filled in."""
        function = functools.partial(self.entry.function, **self._taken(self.entry.function, settings), **self._filled(rotation, settings))
        return function if next(iter(inspect.signature(self.entry.function).parameters)) == "params" else slot(function)

    def bind_step(self, *, rotation: Part | None = None, **settings: Any) -> Callable | None:
        """The decoding step with the same configuration, or None where the concept has none."""
        step = self.entry.step
        return None if step is None else functools.partial(step, **self._taken(step, settings), **self._filled(rotation, settings))

    def _filled(self, rotation: Part | None, settings: Mapping[str, Any]) -> dict[str, Callable]:
        """What stands in the slots, as functions. A core looks back only; a rotation comes after what else is prepared."""
        filled = {name: inner.bind(**settings) for name, inner in self.slots.items()}
        if "core" in filled and "core/causal" not in self.slots["core"].entry.roles:
            filled["core"] = causal(filled["core"])
        if rotation is not None and self.takes("prepare"):
            turn = on_both(functools.partial(rotation.entry.function, **rotation.options, **rotation._filled(None, settings)))
            filled["prepare"] = functools.partial(chain, parts=(filled["prepare"], turn)) if "prepare" in filled else turn
        return filled

    def _taken(self, function: Callable, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What the function takes of the settings and options. Raises ValueError for one that it needs and does not get."""
        offered = {**settings, **self.options}
        for name, parameter in inspect.signature(function).parameters.items():
            needed = parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
            if needed and name not in offered and name not in _THE_MODELS_OWN | self.slots.keys():
                raise ValueError(f"options.{self.role}.{name}: {self.entry.name} needs a value")
        return {name: value for name, value in offered.items() if name in _keywords(function)}
