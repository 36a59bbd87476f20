"""Parts of a model by name: from the catalogue, with their options, ready to be initialised and called.

Every concept of a role takes the same first arguments, so a model needs to know no part by name. What a part takes
besides (heads, a window, a base) it gets in two ways: settings that the model offers to every part (``num_heads``,
``d_model``), of which each takes what its signature names; and options meant for this part, each of which it must take.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minitransformers.foundation import catalogue

# What the model itself puts in, and arrays and functions that no configuration can hold: no options.
_THE_MODELS_OWN = {"params", "x", "rng", "d_model", "dtype", "mask", "causal", "rotate", "positions"}

_GIVEN_AT_THE_CALL = {"num_queries", "num_keys"}


@functools.cache
def _keywords(function: Callable) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _options(entry: catalogue.Entry) -> frozenset[str]:
    """What can be chosen for a concept in a configuration."""
    call, start = _keywords(entry.function), _keywords(entry.init) if entry.init else frozenset[str]()
    scores = {"bias"} if "bias" in call else set()           # an array beside the scores, not whether a map has a bias
    return (call | start) - _THE_MODELS_OWN - _GIVEN_AT_THE_CALL - scores


@dataclass(frozen=True)
class Part:
    """One concept in one role of a model."""

    role: str
    entry: catalogue.Entry
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, role: str, name: str, options: Mapping[str, Any]) -> Part:
        """The part of that name. Raises ValueError, naming the role, for an unknown name or option."""
        return cls.in_turn(role, [name], options)[0]

    @classmethod
    def in_turn(cls, role: str, names: Sequence[str], options: Mapping[str, Any]) -> list[Part]:
        """The parts of those names, each with the options that it takes.

        Raises ValueError, naming the role, for an unknown name and for an option that none of them takes.
        """
        entries = [catalogue.find(name, role=role) for name in names]
        takes = [_options(entry) for entry in entries]
        known = frozenset[str]().union(*takes)
        for option in options:
            if option not in known:
                offered = ", ".join(sorted(known)) or "none"
                has = f"{names[0]} has" if len(names) == 1 else f"{', '.join(names)} have"
                raise ValueError(f"options.{role}.{option}: {has} no such option (known: {offered})")
        for option, kind in (("weighting", "weighting"), ("normalize", "normalizer"), ("attend", "core")):
            if isinstance(named := options.get(option), str):
                catalogue.find(named, role=kind)             # an unknown one should fail here, not at the first call
        return [
            cls(role, entry, {option: value for option, value in options.items() if option in own})
            for entry, own in zip(entries, takes, strict=True)
        ]

    @property
    def place(self) -> str:
        """Where the part acts: the role, for a position with its place ("position/input")."""
        return next(own for own in self.entry.roles if own == self.role or own.startswith(f"{self.role}/"))

    def takes(self, name: str) -> bool:
        """Whether the concept has an argument of that name."""
        return name in _keywords(self.entry.function)

    def init(self, rng: np.random.Generator, **settings: Any) -> Any:
        """Fresh parameters, or None for a part that has none."""
        init = self.entry.init
        return None if init is None else init(rng, **self._taken(init, settings))

    def bind(self, **settings: Any) -> Callable:
        """The concept as ``part(params, x, ...) -> out, backward``, its configuration filled in.

        A concept without parameters is called as ``concept(x, ...)`` and gets the gradient None for them.
        """
        function = functools.partial(self.entry.function, **self._taken(self.entry.function, settings))
        if self.entry.init is not None:
            return function

        def without_params(params: None, x: np.ndarray, **config: Any) -> tuple[np.ndarray, Callable]:
            out, backward = function(x, **config)
            return out, lambda dout: (None, backward(dout))

        return without_params

    def bind_step(self, **settings: Any) -> Callable | None:
        """The decoding step with the same configuration, or None where the concept has none."""
        step = self.entry.step
        return None if step is None else functools.partial(step, **self._taken(step, settings))

    def _taken(self, function: Callable, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What the function takes of the settings and options. Raises ValueError for one that it needs and does not get."""
        offered = {**settings, **self.options}
        for name, parameter in inspect.signature(function).parameters.items():
            needed = parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
            if needed and name not in offered and name not in _GIVEN_AT_THE_CALL:
                raise ValueError(f"options.{self.role}.{name}: {self.entry.name} needs a value")
        return {name: value for name, value in offered.items() if name in _keywords(function)}
