"""What a run was like: one record a step, as CSV, as JSON and as a curve."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minitransformers.foundation import invalid
from minitransformers.foundation.atomic import write_atomically
from minitransformers.training.checkpoint import short


class Record(NamedTuple):
    """One step. The loss before the update; what the task measures after it, where it was measured."""

    step: int
    learning_rate: float
    loss: float                  # mean of this step's batch
    gradient_norm: float         # before clipping
    seconds: float               # of training since the run began, pauses between runs left out
    measured: dict[str, float] | None   # what the task's evaluate says; the first number is a loss

    @property
    def validation(self) -> float | None:
        """The first number that was measured."""
        return None if not self.measured else next(iter(self.measured.values()))


def write_history(folder: str | Path, history: Sequence[Record], summary: dict[str, Any]) -> None:
    """Write history.csv and history.json ({"summary", "history"}) into a folder, each atomically."""
    folder, table = Path(folder), io.StringIO()
    names = list(dict.fromkeys(name for record in history for name in record.measured or {}))
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow([*Record._fields[:-1], *names])
    rows.writerows([*record[:-1], *((record.measured or {}).get(name, "") for name in names)] for record in history)
    write_atomically(folder / "history.csv", [table.getvalue().encode()], durable=False)
    content = {"summary": summary, "history": [record._asdict() for record in history]}
    write_atomically(folder / "history.json", [json.dumps(content, indent=1, allow_nan=False).encode() + b"\n"], durable=False)


def read_history(path: str | Path) -> list[Record]:
    """The records of a history.csv. Raises ValueError that names the file, and the line, where it is not whole."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        header, *rows = csv.reader(io.StringIO(text))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, csv.Error) as error:                  # bytes that are no text, or nothing at all
        raise ValueError(f"{path}: is not a history: {error}") from None
    own = len(Record._fields) - 1
    if tuple(header[:own]) != Record._fields[:own]:
        raise ValueError(f"{path}: is not a history: it begins with {short(header)}, wants {', '.join(Record._fields[:own])}")
    if not text.endswith("\n"):
        raise ValueError(f"{path}: is cut off in line {len(rows) + 1}")
    return [_record_of_cells(row, header, f"{path}: line {i}") for i, row in enumerate(rows, 2)]


def _record_of_cells(row: Sequence[str], header: Sequence[str], place: str) -> Record:
    own = len(Record._fields) - 1
    try:
        numbers = [int(row[0]), *map(float, row[1:own])]
        measured = {name: float(cell) for name, cell in zip(header[own:], row[own:], strict=True) if cell}
        if all(map(is_finite, [*numbers, *measured.values()])):
            return Record._make([*numbers, measured or None])
    except (ValueError, TypeError, IndexError):              # a cell that is no number, too few cells
        pass
    raise ValueError(f"{place}: got {short(row)}, wants a finite number for each of {', '.join(header)}")


def records_of_json(rows: Any, *, steps: int) -> list[Record]:
    """The records that json wrote as lists, one for each of the steps. Raises ValueError that names the first that is none."""
    if not isinstance(rows, list) or len(rows) != steps:
        raise invalid("history", got=f"{len(rows)} records" if isinstance(rows, list) else short(rows), wants=f"{steps} records, one a step")
    for i, row in enumerate(rows):
        if not isinstance(row, list) or not _is_record(row, step=i + 1):
            raise invalid(f"history.{i}", got=short(row), wants=f"step {i + 1} and its {', '.join(Record._fields[1:])}")
    return [Record(*row) for row in rows]


def _is_record(row: list[Any], *, step: int) -> bool:
    if len(row) != len(Record._fields) or not all(map(is_finite, row[:-1])) or type(row[0]) is not int or row[0] != step:
        return False
    return row[-1] is None or (isinstance(row[-1], dict) and len(row[-1]) > 0 and all(map(is_finite, row[-1].values())))


def is_finite(value: Any) -> bool:
    """Whether it is a number of JSON's that float can hold."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def draw_curve(path: str | Path, history: Sequence[Record], *, per_nat: float = 1.0) -> bool:
    """Draw the training loss, times per_nat, and what is measured first, over the steps, as SVG. False where matplotlib is not installed."""
    try:
        import matplotlib
        from matplotlib.figure import Figure  # no window, no state that is shared
    except ImportError:
        return False
    grey = "#808080"  # reads on white and on black
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "minitransformers"} | dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), grey
    )
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([r.step for r in history], [r.loss * per_nat for r in history], color="#2f7ebf", linewidth=0.8, label="training batch")
        measured = [(r.step, r.validation) for r in history if r.validation is not None]
        unit = next((name for r in history for name in r.measured or {}), "loss")
        if measured:
            axes.plot(*zip(*measured, strict=True), color="#d0691f", marker="o", markersize=4, label="validation")
        axes.set(xlabel="step", ylabel=unit)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.15)
        axes.patch.set_alpha(0)
        axes.legend(frameon=False)
        drawing = io.BytesIO()
        figure.savefig(drawing, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    write_atomically(path, [drawing.getvalue()], durable=False)
    return True
