"""What a chapter that is one script reports through: its arguments, numbers, tables, figures and claims.

    chapter = Chapter("norms", __doc__)            # --quick --seed N --json --out DIR
    chapter.value("rms_norm.cost.ratio", 0.71)
    chapter.table("speed", ["norm", "microseconds"], rows)
    with chapter.figure("speed") as (fig, ax):
        ax.plot(sizes, times)
    chapter.claim("RMSNorm is cheaper", paper="7 to 64 % less time", expect="some", measured="29 % less", holds=True)
    chapter.finish()

A full run writes docs/<chapter>/results, which the pages show; a quick one writes nothing unless --out is given. Same
seed, same bytes. In a notebook or an editor's cells nothing is written and figures are displayed.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import minitransformers
from minitransformers.console import prepare_streams
from minitransformers.foundation.atomic import write_atomically
from minitransformers.reporting.arguments import Parser, natural
from minitransformers.reporting.figures import drawing, show_in_notebook
from minitransformers.reporting.progress import progress
from minitransformers.reporting.tables import aligned, plain

T = TypeVar("T")

HOLDS, NOT_AT_THIS_SCALE, FAILS = "holds", "does not hold at this scale", "fails"
NOT_IN_QUICK_MODE = "not measured in quick mode"

_PATH = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)+")
_NAME = re.compile(r"[A-Za-z0-9][\w-]*")


class Chapter:
    """One run of a chapter script.

    name is the chapter's; description its docstring, shown by --help; argv replaces the command line.
    quick and seed are what was asked for.
    """

    def __init__(self, name: str, description: str | None = None, *, argv: Sequence[str] | None = None) -> None:
        script = _calling_script()
        self.name = name
        self._as_script = script is not None or argv is not None
        parser = Parser(prog=f"chapters/{name}.py", description=(description or "").strip(), example=f"python chapters/{name}.py --quick")
        parser.add_argument("--quick", action="store_true", help="a few seconds: smaller sizes, nothing written")
        parser.add_argument("--seed", type=natural, default=0, metavar="N", help="seed of every random number (default: 0)")
        parser.add_argument("--json", action="store_true", help="print the results as JSON to stdout, everything else to stderr")
        parser.add_argument("--out", type=Path, metavar="DIR", help=f"where to write (default: docs/{name}/results, with --quick nowhere)")
        if self._as_script:
            prepare_streams()
        given = parser.parse_args(argv if argv is not None else (sys.argv[1:] if self._as_script else []))
        self.quick: bool = given.quick
        self.seed: int = given.seed
        self.out: Path | None = given.out
        if self.out is None and script is not None and not self.quick:
            self.out = script.parent.parent / "docs" / name / "results"
        self._json: bool = given.json
        self._stdout = sys.stdout
        if self._json:
            sys.stdout = sys.stderr  # so that print() in a script cannot get between the JSON
        if script is not None:
            sys.excepthook = _quiet_when_interrupted
        self._started = time.perf_counter()
        self._values: dict[str, Any] = {}
        self._claims: dict[str, dict[str, Any]] = {}
        self._tables: dict[str, dict[str, Any]] = {}
        self._figures: dict[str, bytes] = {}
        title = (description or name).strip().splitlines()[0]
        print(f"{title}\n{'=' * len(title)}")

    def rng(self) -> np.random.Generator:
        """A new generator, always in the same state for the same seed."""
        return np.random.default_rng(self.seed)

    def progress(self, iterable: Iterable[T], text: str = "", *, total: int | None = None) -> Iterable[T]:
        """The iterable with a progress bar on stderr, which appears where it takes more than two seconds."""
        return progress(iterable, text, total=total)

    def value(self, path: str, number: Any) -> None:
        """Store a number (or text, or a list of numbers) that pages show as [[path]]; path is dotted: "rope.error".

        Raises ValueError for a path without a dot, for a number that is not finite, and where a path runs through a number.
        """
        if not _PATH.fullmatch(path):
            raise ValueError(f"path: got {path!r}, wants names joined by dots, such as 'rope.error'")
        *folders, last = path.split(".")
        place = self._values
        for folder in folders:
            place = place.setdefault(folder, {})
            if not isinstance(place, dict):
                raise ValueError(f"path: got {path!r}, but {folder!r} is a number already")
        if isinstance(place.get(last), dict):
            raise ValueError(f"path: got {path!r}, which holds other values already")
        place[last] = plain(number, path)

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Print an aligned table with few digits, and store it for [[table:name]]."""
        _check_name(name)
        kept = [[plain(cell, f"table {name}") for cell in row] for row in rows]
        for row in kept:
            if len(row) != len(columns):
                raise ValueError(f"rows: got {len(row)} cells in table {name}, wants {len(columns)}, one a column")
        self._tables[name] = {"columns": list(columns), "rows": kept}
        print(f"\n{aligned(columns, kept)}")

    @contextmanager
    def figure(self, name: str, *, size: tuple[float, float] = (6, 3.2), **subplots: Any) -> Iterator[tuple[Any, Any]]:
        """A figure and its axes to draw on: ``with chapter.figure("loss") as (fig, ax)``; stored as name.svg at the end.

        size is in inches; further settings are those of matplotlib's ``Figure.subplots`` (nrows, ncols, sharex, ...).
        """
        _check_name(name)
        with drawing(size=size, **subplots) as (fig, axes, made):
            yield fig, axes
        self._figures[name] = made[0]
        if not self._as_script:
            show_in_notebook(made[0])

    def claim(
        self,
        name: str,
        *,
        paper: str,
        expect: str,
        measured: str,
        holds: bool,
        toy_scale: str | None = None,
        full_only: bool = False,
    ) -> None:
        """State a claim of the paper and what became of it.

        paper is what the paper says, expect what to expect at this scale, measured what was found, holds whether it did.
        toy_scale says why the claim cannot show at this scale; without it a claim that does not hold fails the script.
        A claim that is full_only is not judged in a quick run.
        """
        verdict = HOLDS if holds else NOT_AT_THIS_SCALE if toy_scale else FAILS
        if full_only and self.quick:
            verdict, measured = NOT_IN_QUICK_MODE, ""
        if verdict == NOT_AT_THIS_SCALE:
            measured = f"{measured} ({toy_scale})"
        self._claims[name] = {"name": name, "paper": paper, "expect": expect, "measured": measured, "verdict": verdict}

    def results(self) -> dict[str, Any]:
        """Everything that was measured, as results.json has it."""
        return {
            "chapter": self.name,
            "seed": self.seed,
            "quick": self.quick,
            "environment": {
                "python": ".".join(platform.python_version_tuple()[:2]),
                "numpy": np.__version__,
                "minitransformers": minitransformers.__version__,
            },
            "values": self._values,
            "claims": list(self._claims.values()),
            "tables": self._tables,
            "figures": sorted(self._figures),
        }

    def finish(self) -> int:
        """Print the claims, write the results, and exit with status 1 where a claim fails (in a notebook: return it)."""
        verdicts = [claim["verdict"] for claim in self._claims.values()]
        status = int(FAILS in verdicts)
        for claim in self._claims.values():
            print(f"\n[{claim['verdict']}] {claim['name']}")
            for label, key in (("paper", "paper"), ("expected", "expect"), ("measured", "measured")):
                if claim[key]:
                    print(f"  {label:<9} {claim[key]}")
        counts = ", ".join(f"{verdicts.count(v)} {v}" for v in (HOLDS, NOT_AT_THIS_SCALE, FAILS, NOT_IN_QUICK_MODE) if v in verdicts)
        text = json.dumps(self.results(), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            for name, svg in self._figures.items():
                write_atomically(self.out / f"{name}.svg", [svg])
            write_atomically(self.out / "results.json", [text.encode()])
        print(f"\n{self.name}: claims: {counts or 'none'}; {time.perf_counter() - self._started:.1f} s"
              f"{f'; written to {os.path.relpath(self.out)}' if self.out else ''}")  # fmt: skip
        if self._json:
            sys.stdout = self._stdout
            sys.stdout.write(text)
        if status and self._as_script:
            sys.exit(status)
        return status


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"name: got {name!r}, wants letters, digits, - and _ (it becomes a file name)")


def _quiet_when_interrupted(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)


def _calling_script() -> Path | None:
    """The file that was started as ``python FILE`` and makes the Chapter, or None in a notebook or an editor's cells."""
    caller = sys._getframe(2).f_globals
    file = caller.get("__file__")
    if caller.get("__name__") != "__main__" or not file or not sys.argv[0]:
        return None
    return Path(file).resolve() if Path(file).resolve() == Path(sys.argv[0]).resolve() else None
