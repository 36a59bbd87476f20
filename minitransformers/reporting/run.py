"""Running the sections of a chapter: arguments, what is kept in results.json, and the exit status.

``python chapters/positional/relative.py`` runs one section, ``python chapters/positional`` all. A full run writes
docs/<chapter>/results, which the pages show; a quick one writes nothing unless --out is given. The record is of the seeds from 0 on.
A full run from another seed (--seed 3) leaves it as it is, and puts beside each claim what these seeds say of it. A section that
cannot run here says so, and what is on record of it stays. The exit status says whether the verdicts are as they were recorded
there, not whether a paper was right.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import minitransformers
from minitransformers.console import prepare_streams
from minitransformers.foundation.atomic import write_atomically
from minitransformers.reporting.arguments import Parser, natural
from minitransformers.reporting.section import Section


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


def run_chapter(file: str | Path, description: str | None, *, order: Sequence[str], argv: Sequence[str] | None = None) -> int:
    """Run the sections beside a chapter's ``__main__.py``, in this order; returns the exit status.

    Raises ValueError where the order leaves out a section, or names one that is not there.
    """
    folder = Path(file).resolve().parent
    found = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    if sorted(order) != found:
        raise ValueError(f"{folder / '__main__.py'}: order has {', '.join(sorted(order))}; the folder {', '.join(found)}")
    sections = [load_section(folder / f"{name}.py") for name in order]
    return run_sections(sections, argv=argv, description=(description or folder.name).strip(), prog=f"chapters/{folder.name}", whole=True)


def run_sections(sections: list[Section], *, argv: Sequence[str] | None, description: str, prog: str, whole: bool = False) -> int:
    """Measure sections of one chapter and bring its results up to date. whole: results of sections that are gone are dropped."""
    chapter = sections[0].chapter
    home = sections[0].path.parent.parent.parent / "docs" / chapter / "results"
    given = _arguments(prog, description, chapter, argv)
    stdout = sys.stdout
    if given.json:
        sys.stdout = sys.stderr                              # so that print() in a section cannot get between the JSON
    try:
        started = time.perf_counter()
        recorded = _read(home / "results.json")
        measured, left_out = {}, set()
        for i, section in enumerate(sections):
            print("\n" if i else "", end="")
            if (reason := section.needs(given.quick)) is not None:
                print(f"{section.title}\n{'=' * len(section.title)}\nleft out: {reason}")
                left_out.add(section.name)
                continue
            tuned = recorded.get("sections", {}).get(section.name, {}).get("tuned")
            measured[section.name] = section.measure(quick=given.quick, seed=given.seed, tune=given.tune, recorded=tuned)
        claims = [claim for part in measured.values() for claim in part["claims"]]
        out = given.out or (None if given.quick or not measured else home)
        again = given.seed != 0 and out is home                  # other seeds' word on what is on record
        if again and (reason := _no_second_word(recorded, measured, given.seed)):
            print(f"\nnothing is written: {reason}")
            again, out = False, None
        others = _read(out / "results.json") if out is not None else {}
        kept = [name for name in others.get("sections", {}) if name not in measured and (name in left_out or not whole)]
        results = _with_other_seeds(recorded, claims, given.seed) if again else _results(chapter, others, kept, measured, given)
        text = json.dumps(results, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            for part in measured.values() if not again else ():
                for name, svg in part["figures"].items():
                    write_atomically(out / f"{name}.svg", [svg])
            write_atomically(out / "results.json", [text.encode()])
        changed = _changed(recorded, claims)
        for line in changed:
            print(f"\n{'not as recorded' if given.seed == 0 else 'with these seeds'}: {line}")
        states = [claim["state"] for claim in claims]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "none"
        written = f"; written to {os.path.relpath(out)}" if out else ""
        print(f"\n{chapter}: claims: {counts}; {time.perf_counter() - started:.1f} s{written}")
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    finally:
        sys.stdout = stdout
    if given.json:
        sys.stdout.write(text)
    return int(bool(changed and given.seed == 0) or "fails" in states)


def _arguments(prog: str, description: str, chapter: str, argv: Sequence[str] | None) -> Any:
    parser = Parser(prog=prog, description=description, example=f"python {prog} --quick")
    parser.add_argument("--quick", action="store_true", help="a few seconds: smaller sizes, one seed, nothing written")
    parser.add_argument("--tune", action="store_true", help="choose the learning rates anew, which the record keeps")
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="the first of the seeds (default: 0, of which the record is)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON to stdout, everything else to stderr")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"where to write (default: docs/{chapter}/results, with --quick nowhere)")
    prepare_streams()
    return parser.parse_args(argv)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _changed(recorded: dict[str, Any], claims: list[dict[str, Any]]) -> list[str]:
    """Claims in another state than the one on record. What was not judged, or goes by the clock, is not compared, and a state
    that rests on fewer seeds than the record's is not either."""
    before = {claim["name"]: claim for claim in recorded.get("claims", [])}
    found = []
    for claim in claims:
        old = before.get(claim["name"], {})
        if old.get("state") not in (None, "timed", "open", "mixed") and claim["state"] not in ("timed", "open", old["state"]):
            found.append(f"{claim['name']}: it was: {old['verdict']}; it is: {claim['verdict']}")
    return found


def _no_second_word(recorded: dict[str, Any], measured: dict[str, dict[str, Any]], seed: int) -> str:
    """Why seeds from this one on cannot stand beside the record of these sections; empty where they can."""
    if missing := [name for name in measured if name not in recorded.get("sections", {})]:
        return f"{', '.join(missing)}: not on record yet, which is made by a run without --seed"
    seeds = max(part["section"]["seeds"] for part in measured.values())
    return f"seeds below {seeds} are those of the record; from {seeds} on they are others" if seed < seeds else ""


def _with_other_seeds(recorded: dict[str, Any], claims: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """The record, with what seeds from this one on say of its claims; what is true by construction, or goes by the clock, is not asked."""
    found = {claim["name"]: claim for claim in claims if claim["kind"] not in ("exact", "timed")}
    kept = recorded.get("claims", [])
    return {**recorded, "claims": [{**claim, "again": _again(found[claim["name"]], seed)} if claim["name"] in found else claim for claim in kept]}


def _still(before: dict[str, Any], claim: dict[str, Any]) -> dict[str, Any]:
    """Other seeds' word on a claim, as long as it is about the same experiment: one that finds what was on record."""
    same = all(before.get(key) == claim[key] for key in ("expect", "measured"))
    return {"again": before["again"]} if same and "again" in before else {}


def _again(claim: dict[str, Any], seed: int) -> dict[str, Any]:
    return {"seed": seed, **{key: claim[key] for key in ("state", "verdict", "measured")}}


def _results(chapter: str, others: dict[str, Any], kept: Sequence[str], measured: dict[str, Any], given: Any) -> dict[str, Any]:
    """Results of a chapter: those of the measured sections, and of others that are kept as they were."""
    sections = {name: others["sections"][name] for name in kept}
    tables = {name: table for name, table in others.get("tables", {}).items() if table.get("section") in sections}
    claims = [claim for claim in others.get("claims", []) if claim.get("section") in sections]
    before = {claim["name"]: claim for claim in others.get("claims", [])}
    for name, part in measured.items():
        sections[name] = {**part["section"], "values": part["values"]}
        tables |= part["tables"]
        claims += [{**claim, **_still(before.get(claim["name"], {}), claim)} for claim in part["claims"]]
    values: dict[str, Any] = {}
    for path, number in (item for section in sections.values() for item in section["values"].items()):
        *folders, last = path.split(".")
        place = values
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = number
    return {
        "chapter": chapter, "seed": given.seed, "quick": given.quick, "sections": sections, "values": values, "tables": tables,
        "claims": claims, "figures": sorted(name for section in sections.values() for name in section["figures"]),
        "environment": {
            "python": ".".join(platform.python_version_tuple()[:2]), "numpy": np.__version__, "minitransformers": minitransformers.__version__,
        },
    }  # fmt: skip
