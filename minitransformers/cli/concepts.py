"""Commands about single concepts and procedures: list, check, show, bench."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import os
import re
import textwrap
import time
import typing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from minitransformers.cli import repository
from minitransformers.foundation import catalogue, checks, signature, trees
from minitransformers.foundation.atomic import write_atomically
from minitransformers.foundation.catalogue import Entry
from minitransformers.reporting.arguments import known
from minitransformers.reporting.progress import progress
from minitransformers.reporting.tables import aligned
from minitransformers.training.threads import hold_blas

_ARXIV = re.compile(r"arXiv:\s*([a-z-]+(?:\.[A-Z]{2})?/\d{7}|\d{4}\.\d{4,5})")


def list_concepts(arguments: argparse.Namespace) -> int:
    """``minitransformers list``."""
    everything = catalogue.entries()
    if arguments.chapter is not None:
        known(arguments.chapter, dict.fromkeys(entry.chapter for entry in everything.values()), kind="chapter")
    if arguments.role is not None:
        known(arguments.role, dict.fromkeys([role.split("/")[0] for role in catalogue.ROLES] + list(catalogue.ROLES)), kind="role")
    wanted = catalogue.entries(role=arguments.role, chapter=arguments.chapter)
    found = [entry for entry in _chosen(arguments.names) if entry.name in wanted]
    if arguments.json:
        print(json.dumps([_label(entry) for entry in found], indent=2, ensure_ascii=False))
        return 0
    rows = [[e.name, e.chapter, "procedure" if e.is_procedure else ", ".join(e.roles), _title(e)] for e in found]
    print(aligned(["name", "chapter", "role", "title"], rows))
    procedures = sum(entry.is_procedure for entry in found)
    print(f"\n{len(found) - procedures} concepts, {procedures} procedures")
    return 0


def show(arguments: argparse.Namespace) -> int:
    """``minitransformers show NAME``."""
    entry = catalogue.find(arguments.name)
    paper = _ARXIV.search(entry.source)
    facts = [
        ("source", entry.source),
        ("paper", f"https://arxiv.org/abs/{paper.group(1)}" if paper else ""),
        ("kind", "procedure: it has no gradient" if entry.is_procedure else ""),
        ("form of", entry.form_of or ""),
        ("gradient", f"of {entry.gradient_of.__name__}, a surrogate" if entry.gradient_of else ""),
        ("roles", ", ".join(entry.roles)),
        ("file", str(_file(entry))),
    ]
    print(f"{entry.title}\n{'=' * len(entry.title)}\n")
    print("\n".join(f"{name:<9} {value}" for name, value in facts if value))
    print(f"signature {_signature(entry)}\n")
    print(textwrap.indent(inspect.getdoc(inspect.unwrap(entry.function)) or "", "  "))
    if ranges := _ranges(entry):
        print("\n" + aligned(["setting", "wants", "default"], ranges))
    if equations := catalogue.equations(entry.module):
        print("\n" + equations)
    return 0


def check(arguments: argparse.Namespace) -> int:
    """``minitransformers check``: one row a concept; 1 where one fails."""
    entries = _chosen(arguments.names)
    measured = _measured(entries, arguments.seed)
    failures = {name: found["failures"] for name, found in measured.items() if found["failures"]}
    if arguments.write:
        _write(measured, complete=not arguments.names)
    if arguments.json:
        print(json.dumps(measured, indent=2))
        return int(bool(failures))
    rows = [
        [name, _number(found["gradient"], ".1e"), _order(found), _number(found["autograd"], ".1e", found["no autograd"] or "–"), found["checks"],
         "FAILED" if found["failures"] else "passed"]
        for name, found in measured.items()
    ]  # fmt: skip
    print(aligned(["name", "gradient error", "Taylor order", "autograd", "checks", "verdict"], rows))
    for name, messages in failures.items():
        print("", *(f"{name}: {message}" for message in messages), sep="\n")
    errors = {name: found["gradient"] for name, found in measured.items() if found["gradient"] is not None}
    worst = max(errors, key=lambda name: errors[name], default="")
    known_worst = f"; worst gradient error {errors[worst]:.1e} ({worst})" if worst else ""
    print(f"\n{len(measured)} checked, {len(failures)} failed{known_worst}")
    return int(bool(failures))


def bench(arguments: argparse.Namespace) -> int:
    """``minitransformers bench``: time of one call, and its ratio to linear's."""
    entries = _chosen(arguments.names)
    measured = {entry.name: _time(entry, arguments.seed) for entry in progress(entries, "timing")}
    yardstick = measured["linear"] if "linear" in measured else _time(catalogue.find("linear"), arguments.seed)
    for found in measured.values():
        found["ratio to linear"] = (found["forward"] + found["backward"]) / (yardstick["forward"] + yardstick["backward"])
    if arguments.json:
        print(json.dumps(measured, indent=2))
        return 0
    columns = ["forward", "backward", "ratio to linear"]
    print(aligned(["name", "forward, µs", "backward, µs", "ratio to linear"], [[n, *(found[c] for c in columns)] for n, found in measured.items()]))
    print("\nmedian of repeated calls on each label's own small example, float32: sizes differ, and what a call itself costs is in it")
    return 0


def _chosen(names: list[str]) -> list[Entry]:
    return list((catalogue.choose(names) if names else catalogue.entries()).values())


def _number(value: float | None, form: str, without: str = "–") -> str:
    return without if value is None else format(value, form)


def _order(found: dict[str, Any]) -> str:
    if found["gradient"] is None:
        return "–"
    return "exact" if found["order"] is None else f"{found['order']:.2f}"  # a linear function leaves no remainder


def _title(entry: Entry) -> str:
    return f"{entry.title} (form of {entry.form_of})" if entry.form_of else entry.title


def _label(entry: Entry) -> dict[str, Any]:
    return {"name": entry.name, "chapter": entry.chapter, "kind": "procedure" if entry.is_procedure else "concept", "form_of": entry.form_of,
            "title": entry.title, "source": entry.source, "roles": list(entry.roles), "file": str(_file(entry))}  # fmt: skip


def _file(entry: Entry) -> Path:
    path = Path(inspect.getfile(inspect.unwrap(entry.function)))
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _signature(entry: Entry) -> str:
    """The signature as its author wrote it; at run time the shapes have lost their names."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(entry.function)))
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.FunctionDef)
    lines = source.splitlines()[definition.lineno - 1 : definition.body[0].lineno - 1]
    return "\n".join(lines).removeprefix("def ").removesuffix("  # fmt: skip").removesuffix(":")


def _ranges(entry: Entry) -> list[list[str]]:
    """Every setting with what its annotation asks for, in words, and its default."""
    function = inspect.unwrap(entry.function)
    hints = typing.get_type_hints(function, include_extras=True)
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        words = signature.wanted(hints[name]) if name in hints and parameter.kind is parameter.KEYWORD_ONLY else ""
        if words:
            default = parameter.default
            shown = "" if default is parameter.empty else getattr(default, "__name__", repr(default))
            found.append([name, words, shown])
    return found


_FEW = 8  # entries, which are checked before another process has started


def _measured(entries: Sequence[Entry], seed: int) -> dict[str, dict[str, Any]]:
    """What _check finds of each entry; of many, a process for each core works on one at a time."""
    hold_blas()
    names, cores = [entry.name for entry in entries], os.cpu_count() or 1
    if len(names) < _FEW or cores == 1:
        return {name: _check(entry, seed) for name, entry in zip(names, progress(entries, "checking"), strict=True)}
    with ProcessPoolExecutor(cores) as pool:
        found = pool.map(_check_named, names, [seed] * len(names))
        return dict(zip(names, progress(found, "checking", total=len(names)), strict=True))


def _check_named(name: str, seed: int) -> dict[str, Any]:
    return _check(catalogue.find(name), seed)


def _check(entry: Entry, seed: int) -> dict[str, Any]:
    """The gradient's three witnesses, why the third is missing where it is, how many of the checks passed, and what failed."""
    found: dict[str, Any] = {"gradient": None, "order": None, "autograd": None, "no autograd": "no gradient" if entry.is_procedure else None}
    failures: dict[str, str] = {}

    def gradients() -> str:
        report = checks.gradient_report(entry, seed=seed)
        found["gradient"] = float(report.error) if np.isfinite(report.error) else None
        found["order"] = float(report.order) if np.isfinite(report.order) else None  # infinite: only rounding was left to shrink
        found["autograd"] = None if report.autograd is None else float(report.autograd)
        found["no autograd"] = report.autograd_reason or None
        return "; ".join(report.failures())

    for name, generic in checks.checks_of(entry).items():
        try:
            failures[name] = gradients() if name == "gradients" else generic(entry, seed=seed).message
        except Exception as error:  # one broken concept must not hide the state of the others
            failures[name] = f"{type(error).__name__}: {error}"
    found["checks"] = f"{sum(not message for message in failures.values())} of {len(failures)}"
    found["failures"] = [f"{name}: {message}" for name, message in failures.items() if message]
    return found


def _write(measured: dict[str, dict[str, Any]], *, complete: bool) -> None:
    """Store what was measured beside what others store of a concept; a complete run drops concepts that are gone."""
    path = repository.root() / "docs" / "checks.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name, found in measured.items():
        # Two digits: the rest is rounding, which differs from machine to machine.
        witnesses = {key: None if found[key] is None else float(f"{found[key]:.2g}") for key in ("gradient", "order", "autograd")}
        stored[name] = {**stored.get(name, {}), **witnesses}
    if complete:
        stored = {name: stored[name] for name in measured}
    write_atomically(path, [(json.dumps(stored, indent=2, sort_keys=True) + "\n").encode()])


def _time(entry: Entry, seed: int) -> dict[str, float]:
    """Median microseconds of the forward and the backward, 0 of a procedure, on the label's example in float32."""
    example = checks._as_dtype(entry.example(np.random.default_rng(seed)), np.float32)

    def call() -> Any:
        return entry.function(*example.args, **example.config)

    if entry.is_procedure:
        return {"forward": _median_time(call), "backward": 0.0}
    out, backward = call()
    rng = np.random.default_rng(seed)
    dout = trees.map(lambda leaf: np.asarray(rng.normal(size=np.shape(leaf))).astype(leaf.dtype), out)
    return {"forward": _median_time(call), "backward": _median_time(lambda: backward(dout))}


def _median_time(call, *, seconds: float = 0.04) -> float:
    times: list[float] = []
    call()
    end = time.perf_counter() + seconds
    while len(times) < 5 or (time.perf_counter() < end and len(times) < 1000):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e6
