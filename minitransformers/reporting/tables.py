"""Tables in plain text, and values in JSON's types: few digits, so that they are the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy import ndarray as Array

_DIGITS = 6  # significant: more would be rounding noise that differs from machine to machine


def mean_and_spread(values: Array, form: str = ".2f") -> str:
    """The mean over seeds and the standard deviation: "2.91 ± 0.02"; the number alone for one seed."""
    values = np.atleast_1d(values)
    return f"{values.mean():{form}}" + (f" ± {values.std():{form.removeprefix('+')}}" if len(values) > 1 else "")


def listed(points: Mapping[str, Mapping[Any, Array]], names: Iterable[str], at: Any = "all", form: str = ".2f") -> str:
    """Each name and its mean and spread: "GRU 2.08 ± 0.01, Mamba 1.92 ± 0.02"; with a list of xs at each of them, names apart by semicolons."""
    xs = at if isinstance(at, list) else [at]
    return ("; " if isinstance(at, list) else ", ").join(f"{name} {', '.join(mean_and_spread(points[name][x], form) for x in xs)}" for name in names)


def size_and_time(found: Mapping[str, Mapping[str, Mapping[Any, Array]]], name: str, at: Any = "all") -> tuple[int, float]:
    """The parameters and the processor seconds of a contestant, means over seeds, as a row of a table has them."""
    return int(np.mean(found["parameters"][name][at])), float(f"{np.mean(found['seconds'][name][at]):.1f}")


def aligned(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in plain text: numbers stand right, with three digits that matter."""
    cells = [[_written(cell) for cell in row] for row in rows]
    numeric = [all(isinstance(row[i], int | float | None) for row in rows) and bool(rows) for i in range(len(columns))]
    widths = [max([len(column), *(len(row[i]) for row in cells)]) for i, column in enumerate(columns)]

    def line(row: Sequence[str]) -> str:
        parts = (cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(row, widths, numeric, strict=True))
        return "  ".join(parts).rstrip()

    return "\n".join([line(columns), "  ".join("-" * width for width in widths), *map(line, cells)])


def _written(cell: Any) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return str(cell)
    if isinstance(cell, int) or 1000 <= abs(cell) < 1e6:
        return f"{cell:,.0f}"
    return f"{cell:.3g}"


def plain(value: Any, where: str) -> Any:
    """The value in JSON's types, floats rounded to what can be reproduced."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, where) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where}: got {value}, wants a finite number")
        return float(f"{value:.{_DIGITS}g}")
    raise ValueError(f"{where}: got {type(value).__name__}, wants a number, text or a list of them")
