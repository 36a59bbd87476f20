"""An example in words, for a picture of what has no arrays to draw: a text, a lexicon, a list of hypotheses, each in a few short lines."""

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

_LINES, _WIDTH = 5, 64  # of a value: lines at most, characters of a line
_HASH = re.compile(r"\b([0-9a-f]{6})[0-9a-f]{26,}")  # of a hash its first digits are enough to tell it from another


def lines_of(value: Any) -> list[str]:
    """The value in a few lines; "…" stands for what is left out."""
    if callable(value):
        return ["a function"]
    if isinstance(value, (str, bytes)):
        return _few(_HASH.sub(r"\1…", line) for line in _text(value).splitlines() if line)
    if fields := _fields(value):
        return _few(f"{name}: {_short(getattr(value, name))}" for name in fields)
    if isinstance(value, Mapping):
        return _few(f"{_short(key)}: {_short(of)}" for key, of in value.items())
    if isinstance(value, Sequence) and value and not all(isinstance(item, (str, int, float)) for item in value):
        return _few(_short(item) for item in value)
    return _few([_short(value)])


def _few(lines: Any) -> list[str]:
    found = [line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1].rstrip()}…" for line in islice(lines, _LINES + 1)]
    return found if len(found) <= _LINES else [*found[: _LINES - 1], "…"]


def _short(value: Any) -> str:
    """On one line."""
    if callable(value):
        return "a function"
    if isinstance(value, (str, bytes)):
        return _HASH.sub(r"\1…", " ".join(_text(value).split()))
    if isinstance(value, (bool, np.bool_)) or value is None:
        return str(value)
    if isinstance(value, (int, float, np.generic)):
        return f"{value:.4g}" if isinstance(value, (float, np.floating)) else str(value)
    if isinstance(value, np.ndarray):
        return " ".join(_short(number) for number in value.reshape(-1).tolist())
    if fields := _fields(value):
        return ", ".join(f"{name} {_short(getattr(value, name))}" for name in fields)
    if isinstance(value, Mapping):
        return ", ".join(f"{_short(key)}: {_short(of)}" for key, of in value.items())
    if isinstance(value, (Sequence, set, frozenset)):
        return " ".join(map(_short, sorted(value) if isinstance(value, (set, frozenset)) else value)) or "none"
    return str(value)


def _fields(value: Any) -> Sequence[str]:
    """Of a named tuple or a data class."""
    return getattr(value, "_fields", None) or list(getattr(value, "__dataclass_fields__", ()))


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
