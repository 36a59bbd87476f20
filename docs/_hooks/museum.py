"""The catalogue on the site: the line under a concept's title, and the tables of chapters and concepts."""

import json
import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from _hooks.results import written
from minitransformers.foundation.catalogue import Entry

CATALOGUE = re.compile(r"^\[\[catalogue\]\][ \t]*$", re.MULTILINE)
CONCEPTS = re.compile(r"^\[\[concepts\]\][ \t]*$", re.MULTILINE)
_ARXIV = re.compile(r"arXiv:\s*((?:[a-z-]+(?:\.[A-Z]{2})?/\d{7}|\d{4}\.\d{4,5})(?:v\d+)?)")

Checks = Mapping[str, Mapping[str, float]]


def load_checks(docs: Path) -> Checks:
    """What the checks measured last, by concept: worst gradient error, parity error; empty before the first run."""
    path = docs / "checks.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def source_html(source: str) -> str:
    """The source with links to arXiv."""
    return _ARXIV.sub(r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>', escape(source))


def source_markdown(source: str) -> str:
    return _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", source).replace("|", "\\|")


def checked(measured: Mapping[str, float]) -> str:
    """The two errors that matter, in words; empty where nothing was measured."""
    parts = {"gradient": "gradient", "parity": "parity"}
    found = [f"{word} {written(float(measured[key]), '.0e')}" for key, word in parts.items() if measured.get(key) is not None]
    return " · ".join(found)


def museum_line(entry: Entry | None, path: str, measured: Mapping[str, float], sections: Iterable[tuple[str, str]]) -> str:
    """Source, errors and file of a concept, and links to the page's sections."""
    facts = []
    if entry is not None:
        facts.append(("Source", source_html(entry.source)))
        if text := checked(measured):
            facts.append(("Checked", f'<span title="largest relative error">{text}</span>'))
    facts.append(("File", f'<a class="museum__file" href="#source">{escape(path)}</a>'))
    line = " ".join(f'<span class="museum__fact"><b>{name}</b> {value}</span>' for name, value in facts)
    links = "".join(f'<a href="#{anchor}">{name}</a>' for name, anchor in sections)
    nav = f'<nav class="sections" aria-label="On this page" data-search-exclude>{links}</nav>' if links else ""
    return f'<p class="museum">{line}</p>{nav}'


def concept_table(entries: Iterable[Entry], checks: Checks, docs: Path) -> str:
    """A chapter's concepts as a Markdown table; a column in which nothing stands is left out."""
    columns: dict[str, list[str]] = {"Concept": [], "Role": [], "Source": [], "Checked": []}
    for entry in entries:
        page = f"{entry.name}.md"
        name = f"[{entry.title}]({page})" if (docs / entry.chapter / page).is_file() else entry.title
        cells = (name, ", ".join(entry.roles), source_markdown(entry.source), checked(checks.get(entry.name, {})))
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(cell)
    shown = {head: cells for head, cells in columns.items() if any(cells) or head == "Concept"}
    rows = [tuple(shown), ("---",) * len(shown), *zip(*shown.values(), strict=True)]
    return _framed("concepts", [f"| {' | '.join(row)} |" for row in rows])


def catalogue_table(chapters: Mapping[str, str], entries: Iterable[Entry], docs: Path) -> str:
    """Chapters and their concepts; `chapters` maps a chapter's name to its title, in reading order."""
    rows = ["| Chapter | Concepts |", "| --- | --- |"]
    by_chapter: dict[str, list[Entry]] = {}
    for entry in entries:
        by_chapter.setdefault(entry.chapter, []).append(entry)
    for chapter, title in chapters.items():
        head = f"[{title}]({chapter}/index.md)" if (docs / chapter / "index.md").is_file() else title
        rows.append(f"| {head} | " + " · ".join(_link(entry, docs) for entry in by_chapter.get(chapter, [])) + " |")
    return _framed("catalogue", rows)


def _framed(name: str, rows: list[str]) -> str:
    return f'<div class="{name}" markdown="1">\n\n' + "\n".join(rows) + "\n\n</div>\n"


def _link(entry: Entry, docs: Path) -> str:
    page = f"{entry.chapter}/{entry.name}.md"
    return f"[{entry.title}]({page})" if (docs / page).is_file() else entry.title
