"""A section of a chapter: one question, one file, that a reader can change.

    section = Section(__file__, __doc__, kind="trained")

    @section.experiment
    def experiment(rng):
        yield curve, x, {measure: number}                     # asked with three seeds

    @section.claim("RoPE loses at lengths it was not trained for", paper="Press et al. 2021, section 2.2: ...")
    def rule(found):
        '''At eight times the length at least half a bit more.'''   # the page's "expected"
        return found["bits"]["rope"][1024] > found["bits"]["rope"][128] + 0.5

    @section.figure("long_text")
    def curves(ax, found): ...

    if __name__ == "__main__":
        section.main()

kind says what a claim rests on. "exact": true by construction, to rounding; one seed. "arithmetic": random inputs, nothing is
trained. "trained": three seeds. "timed": this machine's pace, and never a reason to fail. ``python chapters/positional/relative.py``
runs one section, ``python chapters/positional`` all; a full run writes docs/<chapter>/results, which the pages show. Its exit
status says whether the verdicts are as they were recorded there, not whether a paper was right.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import minitransformers
from minitransformers.foundation.atomic import write_atomically
from minitransformers.reporting.arguments import Parser, natural
from minitransformers.reporting.figures import drawing, show_in_notebook
from minitransformers.reporting.progress import progress
from minitransformers.reporting.seeds import Found, collect, judge
from minitransformers.reporting.tables import aligned, plain

F = TypeVar("F", bound=Callable)
T = TypeVar("T")

KINDS = {"exact": 1, "arithmetic": 3, "trained": 3, "timed": 1}  # and on how many seeds each rests
_PATH = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)+")
_NAME = re.compile(r"[A-Za-z0-9][\w-]*")


@dataclass
class _Claim:
    name: str
    paper: str
    kind: str
    rule: Callable
    measured: Callable | None


class Section:
    """One section. kind is the default for its claims; quick and seed are what was asked for when it runs."""

    def __init__(self, file: str | Path, description: str | None, *, kind: str) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind: got {kind!r}, wants one of {', '.join(KINDS)}")
        path = Path(file).resolve()
        self.path, self.name, self.chapter, self.kind = path, path.stem, path.parent.name, kind
        self.title, _, self.text = (description or path.stem).strip().partition("\n")
        self.quick, self.seed = False, 0
        self._experiment: Callable | None = None
        self._reports: list[Callable] = []
        self._drawers: list[tuple[str, dict[str, Any], Callable]] = []
        self._claims: list[_Claim] = []
        self._values: dict[str, Any] = {}
        self._tables: dict[str, dict[str, Any]] = {}
        self._figures: dict[str, bytes] = {}

    # What a section is made of ------------------------------------------------------------------------------------------

    def experiment(self, function: F) -> F:
        """``experiment(rng)`` yields ``curve, x, {measure: number}``."""
        self._experiment = function
        return function

    def claim(self, name: str, *, paper: str, kind: str | None = None, measured: Callable[[Found], str] | None = None) -> Callable[[F], F]:
        """``rule(found)`` says whether it is so, asked of each seed alone; its docstring is what was expected.

        name states what was found, or asks. paper is what the paper says and where. measured(found), of all seeds, says in
        words what came out.
        """

        def register(rule: F) -> F:
            if not inspect.getdoc(rule):
                raise ValueError(f"claim {name!r}: the rule has no docstring, wants what is expected")
            self._claims.append(_Claim(name, paper, kind or self.kind, rule, measured))
            return rule

        return register

    def figure(self, name: str, *, size: tuple[float, float] = (6, 3.2), **subplots: Any) -> Callable[[F], F]:
        """``draw(axes, found)`` draws it; it becomes name.svg. size is in inches, subplots as in ``Figure.subplots``."""
        _check_name(name)

        def register(draw: F) -> F:
            self._drawers.append((name, {"size": size, **subplots}, draw))
            return draw

        return register

    def report(self, function: F) -> F:
        """``report(found)`` states values and tables."""
        self._reports.append(function)
        return function

    def value(self, path: str, number: Any) -> None:
        """Store a number (or text, or a list of numbers) that pages show as [[path]]; path is dotted: "rope.error"."""
        if not _PATH.fullmatch(path):
            raise ValueError(f"path: got {path!r}, wants names joined by dots, such as 'rope.error'")
        self._values[path] = plain(number, path)

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Print an aligned table with few digits, and store it for [[table:name]]."""
        _check_name(name)
        kept = [[plain(cell, f"table {name}") for cell in row] for row in rows]
        for row in kept:
            if len(row) != len(columns):
                raise ValueError(f"rows: got {len(row)} cells in table {name}, wants {len(columns)}, one a column")
        self._tables[name] = {"columns": list(columns), "rows": kept, "section": self.name}
        print(f"\n{aligned(columns, kept)}")

    def progress(self, iterable: Iterable[T], text: str = "") -> Iterable[T]:
        """The iterable with a progress bar on stderr."""
        return progress(iterable, text or self.name)

    # Running it ---------------------------------------------------------------------------------------------------------

    def measure(self, *, quick: bool = False, seed: int = 0) -> dict[str, Any]:
        """Run the experiment with its seeds and return what results.json holds of it; figures are bytes."""
        if self._experiment is None:
            raise ValueError(f"{self.path}: has no experiment")
        self.quick, self.seed = quick, seed
        self._values, self._tables, self._figures = {}, {}, {}
        print(f"{self.title}\n{'=' * len(self.title)}")
        count = 1 if quick else max([KINDS[self.kind], *(KINDS[claim.kind] for claim in self._claims)])
        found = collect(self._experiment, self.progress(range(seed, seed + count)))
        for report in self._reports:
            report(found)
        for name, settings, draw in self._drawers:
            with drawing(**settings) as (_, axes, made):
                draw(axes, found)
            self._figures[name] = made[0]
            show_in_notebook(made[0])
        claims = [self._judged(claim, found, count) for claim in self._claims]
        for claim in claims:
            print(f"\n[{claim['verdict']}] {claim['name']}")
            for label, key in (("paper", "paper"), ("expected", "expect"), ("measured", "measured")):
                if claim[key]:
                    print(f"  {label:<9} {claim[key]}")
        return {
            "section": {"title": self.title, "kind": self.kind, "seeds": count, "figures": sorted(self._figures)},
            "values": self._values, "tables": self._tables, "claims": claims, "figures": self._figures,
        }  # fmt: skip

    def _judged(self, claim: _Claim, found: Found, count: int) -> dict[str, Any]:
        stated = {"name": claim.name, "paper": claim.paper, "expect": " ".join((inspect.getdoc(claim.rule) or "").split()),
                  "kind": claim.kind, "section": self.name}  # fmt: skip
        if self.quick and claim.kind in ("trained", "timed"):
            return {**stated, "measured": "", "state": "open", "verdict": "not measured in quick mode"}
        number = min(count, KINDS[claim.kind])
        held = judge(claim.rule, found, number)
        measured = claim.measured(found) if claim.measured is not None else ""
        return {**stated, "measured": measured, **_verdict(claim.kind, held)}

    def main(self, argv: Sequence[str] | None = None) -> None:
        """Run as a script: --quick --seed N --json --out DIR; exits with 1 where a verdict is not as it was recorded."""
        raise SystemExit(run_sections([self], argv=argv, description=self.title, prog=f"chapters/{self.chapter}/{self.name}.py"))


def _verdict(kind: str, held: list[bool]) -> dict[str, str]:
    yes, number = sum(held), len(held)
    if kind == "exact":
        return {"state": "exact", "verdict": "exact"} if yes else {"state": "fails", "verdict": "fails"}
    if kind == "timed":
        return {"state": "timed", "verdict": "holds on this machine" if yes else "does not hold on this machine"}
    if yes == 0:
        return {"state": "does not hold", "verdict": f"does not hold: 0 of {number} seeds"}
    return {"state": "holds" if yes == number else "mixed", "verdict": f"holds in {yes} of {number} seeds"}


def load_section(path: Path) -> Section:
    """The section that a file makes. Raises ValueError where it makes none."""
    spec = importlib.util.spec_from_file_location(f"section_{path.parent.name}_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    section = getattr(module, "section", None)
    if not isinstance(section, Section):
        raise ValueError(f"{path}: makes no section, wants `section = Section(__file__, __doc__, kind=...)`")
    return section


def section_files(folder: Path, order: Sequence[str] = ()) -> list[Path]:
    """The sections of a chapter's folder: those named in order first, then the others by name."""
    found = {path.stem: path for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")}
    if unknown := [name for name in order if name not in found]:
        raise ValueError(f"{folder}: has no section {unknown[0]}")
    return [found[name] for name in [*order, *(name for name in found if name not in order)]]


def run_chapter(file: str | Path, description: str | None, *, order: Sequence[str], argv: Sequence[str] | None = None) -> int:
    """Run all sections of the folder in which ``__main__.py`` stands; returns the exit status."""
    folder = Path(file).resolve().parent
    sections = [load_section(path) for path in section_files(folder, order)]
    return run_sections(sections, argv=argv, description=(description or folder.name).strip(), prog=f"chapters/{folder.name}", whole=True)


def run_sections(sections: list[Section], *, argv: Sequence[str] | None, description: str, prog: str, whole: bool = False) -> int:
    """Measure sections of one chapter and bring its results up to date. whole: results of sections that are gone are dropped."""
    chapter, folder = sections[0].chapter, sections[0].path.parent.parent.parent / "docs" / sections[0].chapter / "results"
    parser = Parser(prog=prog, description=description, example=f"python {prog} --quick")
    parser.add_argument("--quick", action="store_true", help="a few seconds: smaller sizes, one seed, nothing written")
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="the first of the seeds (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON to stdout, everything else to stderr")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"where to write (default: docs/{chapter}/results, with --quick nowhere)")
    given = parser.parse_args(argv)
    stdout = sys.stdout
    if given.json:
        sys.stdout = sys.stderr                              # so that print() in a section cannot get between the JSON
    try:
        started = time.perf_counter()
        measured = {}
        for i, section in enumerate(sections):
            print("" if i == 0 else "\n")
            measured[section.name] = section.measure(quick=given.quick, seed=given.seed)
        out = given.out or (None if given.quick else folder)
        recorded = _read(folder / "results.json")
        results = _merged(chapter, {} if whole else _read(out / "results.json") if out else {}, measured, given.seed, given.quick)
        changed = _changed(recorded, measured) if given.seed == 0 else []
        for line in changed:
            print(f"\nnot as recorded: {line}")
        text = json.dumps(results, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            for part in measured.values():
                for name, svg in part["figures"].items():
                    write_atomically(out / f"{name}.svg", [svg])
            write_atomically(out / "results.json", [text.encode()])
        verdicts = [claim["state"] for part in measured.values() for claim in part["claims"]]
        counts = ", ".join(f"{verdicts.count(state)} {state}" for state in dict.fromkeys(verdicts)) or "none"
        print(f"\n{chapter}: claims: {counts}; {time.perf_counter() - started:.1f} s{f'; written to {os.path.relpath(out)}' if out else ''}")
    finally:
        sys.stdout = stdout
    if given.json:
        sys.stdout.write(text)
    return int(bool(changed) or "fails" in verdicts)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _changed(recorded: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    """Claims whose state is another than the one on record; what was not judged, or goes by the clock, is not compared."""
    before = {claim["name"]: claim for claim in recorded.get("claims", [])}
    found = []
    for claim in (claim for part in measured.values() for claim in part["claims"]):
        old = before.get(claim["name"], {}).get("state")
        if old not in (None, "timed", "open") and claim["state"] not in ("timed", "open", old):
            found.append(f"{claim['name']}: it was {before[claim['name']]['verdict']}, now {claim['verdict']}")
    return found


def _merged(chapter: str, before: dict[str, Any], measured: dict[str, Any], seed: int, quick: bool) -> dict[str, Any]:
    """Results of a chapter, those of the measured sections new, the others as they were."""
    kept = {name: part for name, part in before.get("sections", {}).items() if name not in measured}
    values: dict[str, Any] = {}
    for name, part in measured.items():
        kept[name] = {**part["section"], "values": part["values"]}
    for part in kept.values():
        for path, number in part["values"].items():
            *folders, last = path.split(".")
            place = values
            for folder in folders:
                place = place.setdefault(folder, {})
            place[last] = number
    tables = {n: t for n, t in before.get("tables", {}).items() if t.get("section") in kept and t["section"] not in measured}
    claims = [c for c in before.get("claims", []) if c.get("section") in kept and c["section"] not in measured]
    for part in measured.values():
        tables |= part["tables"]
        claims += part["claims"]
    return {
        "chapter": chapter, "seed": seed, "quick": quick, "sections": kept, "values": values, "tables": tables, "claims": claims,
        "figures": sorted(name for part in kept.values() for name in part["figures"]),
        "environment": {
            "python": ".".join(platform.python_version_tuple()[:2]), "numpy": np.__version__, "minitransformers": minitransformers.__version__,
        },
    }  # fmt: skip


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"name: got {name!r}, wants letters, digits, - and _ (it becomes a file name)")
