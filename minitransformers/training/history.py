"""What a run was like: one record a step, as CSV, as JSON and as a curve."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minitransformers.foundation.atomic import write_atomically


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
    """The records of a history.csv."""
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    own = len(Record._fields) - 1
    measured = ({name: float(cell) for name, cell in zip(header[own:], row[own:], strict=True) if cell} or None for row in rows)
    return [Record._make([int(row[0]), *map(float, row[1:own]), found]) for row, found in zip(rows, measured, strict=True)]


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
