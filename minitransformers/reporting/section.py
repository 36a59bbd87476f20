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
trained. "trained": three seeds. "timed": this machine's pace, and never a reason to fail. A comparison of what learns gives each
side a learning rate of its own: see tuning. How sections are run, and what is kept of them, is in run.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from minitransformers.reporting.figures import drawing, show_in_notebook
from minitransformers.reporting.progress import counting
from minitransformers.reporting.seeds import Experiment, Found, collect, judge
from minitransformers.reporting.tables import aligned, plain

F = TypeVar("F", bound=Callable)

KINDS = {"exact": 1, "arithmetic": 3, "trained": 3, "timed": 1}  # and on how many seeds each rests
TUNING = 1000                                                # the seed of tuning, after that of the run: none that is reported
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
    """One section. kind is the default for its claims. ``needs(quick)`` says why it cannot run here ("needs PyTorch"), or None.

    quick and seed are what was asked for when it runs; rates the learning rate of each contestant, where it has tuning.
    """

    def __init__(self, file: str | Path, description: str | None, *, kind: str, needs: Callable[[bool], str | None] = lambda quick: None) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind: got {kind!r}, wants one of {', '.join(KINDS)}")
        path = Path(file).resolve()
        self.path, self.name, self.chapter, self.kind, self.needs = path, path.stem, path.parent.name, kind, needs
        self.title, _, self.text = (description or path.stem).strip().partition("\n")
        self.quick, self.seed = False, 0
        self.rates: dict[str, float] = {}
        self._experiment: Experiment | None = None
        self._tuning: Experiment | None = None
        self._reports: list[Callable] = []
        self._drawers: list[tuple[str, dict[str, Any], Callable]] = []
        self._claims: list[_Claim] = []
        self._values: dict[str, Any] = {}
        self._tables: dict[str, dict[str, Any]] = {}

    # What a section is made of ------------------------------------------------------------------------------------------

    def experiment(self, function: F) -> F:
        """``experiment(rng)`` yields ``curve, x, {measure: number}``."""
        self._experiment = function
        return function

    def tuning(self, function: F) -> F:
        """``tune(rng)`` yields ``contestant, rate, {"loss": number}``: rates holds for each the one that lost least.

        It runs with a seed that no claim rests on, where nothing is on record yet and with --tune; a run takes the record.
        """
        self._tuning = function
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
        for known in self._values:
            if known.startswith(f"{path}.") or path.startswith(f"{known}."):
                raise ValueError(f"path: got {path!r}, but {known} is a number already")
        self._values[path] = plain(number, path)

    def values(self, prefix: str, numbers: Mapping[str, Any]) -> None:
        """The same for several whose paths begin alike: [[prefix.name]]."""
        for name, number in numbers.items():
            self.value(f"{prefix}.{name}", number)

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Print an aligned table with few digits, and store it for [[table:name]]."""
        _check_name(name)
        kept = [[plain(cell, f"table {name}") for cell in row] for row in rows]
        for row in kept:
            if len(row) != len(columns):
                raise ValueError(f"rows: got {len(row)} cells in table {name}, wants {len(columns)}, one a column")
        self._tables[name] = {"columns": list(columns), "rows": kept, "section": self.name}
        print(f"\n{aligned(columns, kept)}")

    # Running it ---------------------------------------------------------------------------------------------------------

    def measure(
        self, *, quick: bool = False, seed: int = 0, tune: bool = False, recorded: Mapping[str, Mapping[str, float]] | None = None
    ) -> dict[str, Any]:
        """Run the experiment with its seeds and return what results.json holds of it; figures are bytes.

        recorded is what tuning found before, {contestant: {rate: loss}}.
        """
        if self._experiment is None:
            raise ValueError(f"{self.path}: has no experiment")
        self.quick, self.seed = quick, seed
        self._values, self._tables, figures = {}, {}, {}
        print(f"{self.title}\n{'=' * len(self.title)}")
        tuned = self._tuned(tune, recorded or {})
        count = 1 if quick else max([KINDS[self.kind], *(KINDS[claim.kind] for claim in self._claims)])
        found = self._found(self._experiment, range(seed, seed + count))
        for report in self._reports:
            report(found)
        for name, settings, draw in self._drawers:
            with drawing(**settings) as (_, axes, made):
                draw(axes, found)
            figures[name] = made[0]
            show_in_notebook(made[0])
        claims = [self._judged(claim, found, count) for claim in self._claims]
        for claim in claims:
            print(f"\n[{claim['verdict']}] {claim['name']}")
            for label, key in (("paper", "paper"), ("expected", "expect"), ("measured", "measured")):
                if claim[key]:
                    print(f"  {label:<9} {claim[key]}")
        stated = {"title": self.title, "kind": self.kind, "seeds": count, "figures": sorted(figures), "tuned": tuned}
        return {"section": stated, "values": self._values, "tables": self._tables, "claims": claims, "figures": figures}

    def _found(self, experiment: Experiment, seeds: Sequence[int]) -> Found:
        with counting(f"{self.chapter}/{self.name}") as watch:
            return collect(experiment, seeds, watch=watch)

    def _tuned(self, tune: bool, recorded: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
        """What each contestant loses at each rate; rates are the best of them."""
        if self._tuning is None:
            return {}
        losses = {name: dict(of) for name, of in recorded.items()}
        if tune or not losses:
            found = self._found(self._tuning, [self.seed + TUNING])["loss"]
            losses = {name: {f"{rate:g}": plain(float(loss[0]), name) for rate, loss in of.items()} for name, of in found.items()}
        self.rates = {name: float(min(of, key=lambda rate: of[rate])) for name, of in losses.items()}
        rates = sorted({rate for of in losses.values() for rate in of}, key=float)
        self.table(f"{self.name}_rates", ["loss at a learning rate of", *rates, "chosen"],
                   [[name, *(of.get(rate) for rate in rates), f"{self.rates[name]:g}"] for name, of in losses.items()])  # fmt: skip
        return losses

    def _judged(self, claim: _Claim, found: Found, count: int) -> dict[str, Any]:
        stated = {"name": claim.name, "paper": claim.paper, "expect": " ".join((inspect.getdoc(claim.rule) or "").split()),
                  "kind": claim.kind, "section": self.name}  # fmt: skip
        if self.quick and claim.kind in ("trained", "timed"):
            return {**stated, "measured": "", "state": "open", "verdict": "not measured in quick mode"}
        held = judge(claim.rule, found, min(count, KINDS[claim.kind]))
        measured = claim.measured(found) if claim.measured is not None else ""
        return {**stated, "measured": measured, **_verdict(claim.kind, held)}

    def main(self, argv: Sequence[str] | None = None) -> None:
        """Run as a script: --quick --tune --seed N --json --out DIR. In a notebook: show what a quick run finds, and write nothing."""
        if argv is None and Path(sys.argv[0]).resolve() != self.path:
            self.measure(quick=True)
            return
        from minitransformers.reporting.run import run_sections

        raise SystemExit(run_sections([self], argv=argv, description=self.title, prog=f"chapters/{self.chapter}/{self.name}.py"))


def _in_a_notebook() -> None:
    """A section begins with ``Section(__file__, ...)``, and a notebook that opens it as it stands has no such name: it gets one."""
    if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()) is not None:
        shell.user_ns.setdefault("__file__", "notebook/section.py")


_in_a_notebook()


def _verdict(kind: str, held: list[bool]) -> dict[str, str]:
    yes, number = sum(held), len(held)
    if kind == "exact":
        return {"state": "exact", "verdict": "exact"} if yes else {"state": "fails", "verdict": "fails"}
    if kind == "timed":
        return {"state": "timed", "verdict": "holds on this machine" if yes else "does not hold on this machine"}
    state = "holds" if yes == number else "mixed" if yes else "does not hold"
    return {"state": state, "verdict": f"{'holds' if yes else 'does not hold: holds'} in {yes} of {number}"}


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"name: got {name!r}, wants letters, digits, - and _ (it becomes a file name)")
