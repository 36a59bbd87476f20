"""Commands about whole chapters: run, tour."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from minitransformers.cli import repository
from minitransformers.reporting.arguments import UsageError, known
from minitransformers.reporting.progress import progress
from minitransformers.training.threads import hold_blas


def run(arguments: argparse.Namespace) -> int:
    """``minitransformers run``: 1 where a chapter or a section fails."""
    scripts = repository.scripts()
    chosen = list(dict.fromkeys(arguments.chapters)) or list(scripts)
    for name in chosen:
        chapter, slash, _ = name.partition("/")
        known(chapter, scripts, kind="chapter")
        if slash:
            sections = repository.sections(scripts[chapter])
            scripts[name] = sections[known(name, sections, kind="section")]
    options = ["--seed", str(arguments.seed), *(["--quick"] if arguments.quick else [])]
    if arguments.quick:
        hold_blas()
    results, failed = {}, []
    for i, name in enumerate(chosen, 1):
        if len(chosen) > 1:
            print(f"{'' if i == 1 else chr(10)}[{i}/{len(chosen)}] {name}", file=sys.stderr, flush=True)
        if arguments.json:
            status, results[name], _ = _measure(scripts[name], options, stderr=None)
        else:
            status, _, _ = _finished(subprocess.Popen([sys.executable, str(scripts[name]), *options], env=_environment()))
        if status:
            failed.append(name)
    if arguments.json:
        print(json.dumps(results, indent=2, ensure_ascii=False))
    if failed:
        print(f"minitransformers: failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def tour(arguments: argparse.Namespace) -> int:
    """``minitransformers tour``: every chapter, then the site; a chapter that fails is reported and the tour goes on."""
    from minitransformers.cli import site

    scripts = repository.scripts()
    if not scripts:
        raise UsageError("there are no chapter scripts in chapters/")
    site.require_tools()
    if not arguments.full:
        hold_blas()
    failed = []
    width = max(map(len, scripts))
    for name in progress(list(scripts), "chapters"):
        start = time.perf_counter()
        status, results, errors = _measure(scripts[name], [] if arguments.full else ["--quick"], stderr=subprocess.PIPE)
        verdicts = [claim["verdict"] for claim in results["claims"]] if results else []
        counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts)) or "no result"
        _above_the_bar(f"{name:<{width}}  {time.perf_counter() - start:5.1f} s  {'FAILED: ' if status else ''}{counts}")
        if status:
            failed.append(name)
            _above_the_bar("\n".join(f"    {line}" for line in _why(results, errors)))
    start = time.perf_counter()
    folder = repository.root() / "site"
    built = site.build(folder)
    print(f"{'the site':<{width}}  {time.perf_counter() - start:5.1f} s  {folder if built else 'FAILED'}")
    if built:
        print(f"\nOpen {folder / 'index.html'} in a browser, or run `minitransformers docs` and open http://127.0.0.1:8000")
    if failed:
        print(f"minitransformers: failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed) or not built)


def _why(results: Any, errors: str) -> list[str]:
    """The claims that fail or are not as recorded, by name; without one, the end of what the script had to say."""
    claims = results["claims"] if results else []
    lines = [f"fails: {claim['name']}" for claim in claims if claim["state"] == "fails"]
    lines += [line for line in errors.splitlines() if line.startswith("not as recorded: ")]
    return lines or errors.strip().splitlines()[-5:]


def _environment() -> dict[str, str]:
    """For a script that prints where we print: what the console cannot show, it replaces as we do."""
    return {**os.environ, "PYTHONIOENCODING": f"{sys.stdout.encoding or 'utf-8'}:{sys.stdout.errors or 'replace'}"}


def _measure(script: Path, options: list[str], *, stderr: int | None) -> tuple[int, Any, str]:
    """Exit code, results (None where there are none) and stderr of a script."""
    command = [sys.executable, str(script), "--json", *options]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}  # whatever the console shows, a pipe takes all
    status, out, errors = _finished(
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, encoding="utf-8", errors="replace", env=environment)
    )
    try:
        return status, json.loads(out), errors or ""
    except json.JSONDecodeError:
        return status or 1, None, errors or ""


def _finished(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; KeyboardInterrupt where Ctrl-C ended the script, which never outlives us."""
    try:
        out, errors = process.communicate()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    if process.returncode in (-signal.SIGINT, 128 + signal.SIGINT):
        raise KeyboardInterrupt
    return process.returncode, out, errors


def _above_the_bar(text: str) -> None:
    from tqdm import tqdm

    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()
