"""The command that writes a section as a notebook: its cells, and between them what the pages say of it."""

from __future__ import annotations

import argparse
import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minitransformers.cli import repository
from minitransformers.foundation.atomic import write_new
from minitransformers.reporting.arguments import UsageError, known

_CELL = re.compile(r"^# %%[ \t]*(.*)$", re.MULTILINE)
_PART = re.compile(r"^(?=## )", re.MULTILINE)
_VALUE = re.compile(r"\[\[([A-Za-z_][\w-]*(?:\.[\w-]+)+)(?:\|([^\]]+))?\]\]")
_EXHIBIT = re.compile(r"^(?:\[\[[^\]]+\]\]|!\[[^\]]*\]\([^)]*\))[ \t]*$\n?", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\([^)]+\)")


def notebook(arguments: argparse.Namespace) -> int:
    """``minitransformers notebook CHAPTER/SECTION``."""
    chapter, slash, name = arguments.section.partition("/")
    if not slash:
        raise UsageError(f"notebook: got {arguments.section!r}, wants CHAPTER/SECTION, such as norms/plane")
    scripts = repository.scripts()
    sections = repository.sections(scripts[known(chapter, scripts, kind="chapter")])
    source = sections[known(arguments.section, sections, kind="section")]
    path = arguments.out or Path(f"{chapter}_{name}.ipynb")
    write_new(path, json.dumps(made(source, repository.root() / "docs"), indent=1, ensure_ascii=False) + "\n")
    print(f"Wrote {path}. Its last cell runs the section quickly; section.measure() runs it in full.")
    return 0


def made(source: Path, docs: Path) -> dict[str, Any]:
    """The notebook in the format that Jupyter reads, version 4.5."""
    cells: list[dict[str, Any]] = [
        {"cell_type": kind, "id": f"cell-{i}", "metadata": {}, "source": text.strip("\n").splitlines(keepends=True)}
        | ({"execution_count": None, "outputs": []} if kind == "code" else {})
        for i, (kind, text) in enumerate(_cells(source, docs))
        if text.strip()
    ]
    python = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": python, "nbformat": 4, "nbformat_minor": 5}


def _cells(source: Path, docs: Path) -> Iterator[tuple[str, str]]:
    """Kind and text of each cell: the question first, the pages' words before what measures, each claim before its rule."""
    chapter, code = source.parent.name, source.read_text(encoding="utf-8")
    tree = ast.parse(code)
    title, _, text = (ast.get_docstring(tree) or source.stem).partition("\n")
    yield "markdown", f"# {title}\n{text}"
    yield "code", f'__file__ = "chapters/{chapter}/{source.name}"  # a notebook has none'
    results = _results(docs / chapter)
    first, said = True, False
    for heading, cell in _split(code):
        if heading:
            yield "markdown", f"## {heading}"
        if not said and "@section.experiment" in cell:
            yield from (("markdown", part) for part in _words(docs / chapter, source.stem, results))
            said = True
        yield from (("markdown", claim) for claim in _claims(cell, results, source.stem))
        yield "code", f'"""{title}"""\n{cell}' if first else cell
        first = False


def _split(code: str) -> Iterator[tuple[str, str]]:
    """Heading and code of each cell; the module's docstring stands before the first."""
    marks = list(_CELL.finditer(code))
    ends = [mark.start() for mark in marks[1:]] + [len(code)]
    for mark, end in zip(marks, ends, strict=True):
        body = code[mark.end() : end].strip("\n")
        main = body.find('\nif __name__ == "__main__":')
        yield mark.group(1), body if main < 0 else body[:main].rstrip("\n")
        if main >= 0:
            yield "Run it", "section.main()"


def _results(folder: Path) -> dict[str, Any]:
    path = folder / "results" / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"values": {}, "claims": [], "sections": {}}


def _claims(cell: str, results: dict[str, Any], section: str) -> Iterator[str]:
    """What was recorded of each claim whose rule stands in the cell."""
    for claim in results["claims"]:
        if claim["section"] == section and json.dumps(claim["name"], ensure_ascii=False) in cell:
            yield f"**{claim['name']}** On record: *{claim['verdict']}*. {claim['measured']}"


def _words(folder: Path, section: str, results: dict[str, Any]) -> Iterator[str]:
    """The parts of the chapter's pages that tell of the section, their numbers filled in."""
    tables = [name for name, table in results.get("tables", {}).items() if table.get("section") == section]
    own = results["sections"].get(section, {"values": {}, "figures": []})
    marks = [f"[[{name}" for name in own["values"]] + [f"[[table:{name}]]" for name in tables] + [f"results/{name}.svg" for name in own["figures"]]
    for page in sorted(folder.glob("*.md")):
        for part in _PART.split(page.read_text(encoding="utf-8"))[1:]:
            if not any(mark in part for mark in marks):
                continue
            prose = _VALUE.sub(lambda found: _number(results["values"], *found.groups()), _EXHIBIT.sub("", part))
            kept = [block for block in prose.split("\n\n") if not block.startswith(("```", "???", "!!!", "    ", ">>>"))]
            kept = [block for block in kept if block.strip()]
            yield f"*From the page {folder.name}/{page.name}:*\n\n" + _LINK.sub(r"\1", "\n\n".join(kept)).replace("## ", "### ", 1).strip()


def _number(values: dict[str, Any], path: str, form: str | None) -> str:
    value: Any = values
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return "?" if value is None else format(value, form or ("" if isinstance(value, str) else ".3g"))
