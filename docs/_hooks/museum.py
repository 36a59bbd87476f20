"""The catalogue on the site: the line under a concept's title, and the tables of chapters and concepts."""

import importlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from _hooks.results import written
from minitransformers.foundation.catalogue import Entry

CATALOGUE = re.compile(r"^\[\[catalogue\]\][ \t]*$", re.MULTILINE)
CONCEPTS = re.compile(r"^\[\[concepts\]\][ \t]*$", re.MULTILINE)
_ARXIV = re.compile(r"arXiv:\s*((?:[a-z-]+(?:\.[A-Z]{2})?/\d{7}|\d{4}\.\d{4,5})(?:v\d+)?)")

Checks = Mapping[str, Mapping[str, float]]
Link = Callable[[Entry], str]  # an entry's title in Markdown, with a link to its page where it has one


def load_checks(docs: Path) -> Checks:
    """What the checks measured last, by concept: worst gradient error, parity error; empty before the first run."""
    path = docs / "checks.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def source_html(source: str) -> str:
    """The source with links to arXiv."""
    return _ARXIV.sub(r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>', escape(source))


def source_markdown(source: str) -> str:
    return _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", source).replace("|", "\\|")


class Measure(NamedTuple):
    """What a number of checks.json means: in words, as the head of a column, and exactly."""

    words: str
    head: str
    exactly: str


MEASURES = {
    "gradient": Measure(
        "of the gradient against central differences",
        "Gradient error",
        "each element of each argument, in float64, relative to the largest element of its gradient",
    ),
    "parity": Measure(
        "against a published implementation",
        "Parity error",
        "output and gradient for the same numbers, in float64, relative to the largest element, or to 1 where that is more",
    ),
}
_LEGEND = (
    "Errors are the largest relative ones, in float64. Gradient: the backward against central differences of the forward. "
    "Parity: output and gradient against a published implementation."
)


def errors(measured: Mapping[str, float]) -> dict[str, str]:
    """The errors that were measured, as people write numbers."""
    found = {name: measured[name] for name in MEASURES if measured.get(name) is not None}
    return {name: written(float(error), ".0e") if error else "0" for name, error in found.items()}


def checked(measured: Mapping[str, float]) -> str:
    """What was measured, in words; empty where nothing was."""
    found = errors(measured)
    return ", ".join(f'<span title="{MEASURES[name].exactly}">{text} {MEASURES[name].words}</span>' for name, text in found.items())


def museum_line(
    entries: Sequence[Entry], path: str, measured: Mapping[str, float], sections: Iterable[tuple[str, str]], made_of: Iterable[str] = ()
) -> str:
    """Source, errors, file and parts of what the page explains, and links to the page's sections."""
    facts = [("Source", "; ".join(dict.fromkeys(source_html(entry.source) for entry in entries)))]
    facts += [("Largest relative error", checked(measured))]
    if entries and all(entry.is_procedure for entry in entries):
        facts += [("Procedure", "it has no gradient" if len(entries) == 1 else "they have no gradient")]
    facts += [("Calls", ", ".join(made_of))]
    facts += [("File", f'<a class="museum__file" href="#source">{escape(path)}</a>')]
    line = " ".join(f'<span class="museum__fact"><b>{name}</b> {value}</span>' for name, value in facts if value)
    links = "".join(f'<a href="#{anchor}">{name}</a>' for name, anchor in sections)
    nav = f'<nav class="sections" aria-label="On this page" data-search-exclude>{links}</nav>' if links else ""
    return f'<p class="museum">{line}</p>{nav}'


def concept_table(entries: Iterable[Entry], checks: Checks, link: Link) -> str:
    """A chapter's concepts and procedures as a Markdown table; a column in which nothing stands is left out."""
    heads = [measure.head for measure in MEASURES.values()]
    columns: dict[str, list[str]] = {head: [] for head in ("Concept", "Role", "Source", *heads)}
    for entry in entries:
        found = errors(checks.get(entry.name, {}))
        roles = ["procedure"] * entry.is_procedure + list(entry.roles)
        cells = (link(entry), ", ".join(roles), source_markdown(entry.source), *(found.get(name, "") for name in MEASURES))
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(cell)
    shown = {head: cells for head, cells in columns.items() if any(cells) or head == "Concept"}
    rows = [tuple(shown), ("---",) * len(shown), *zip(*shown.values(), strict=True)]
    legend = ["", f'<p class="legend">{_LEGEND}</p>'] if shown.keys() & set(heads) else []
    return _framed("concepts", [f"| {' | '.join(row)} |" for row in rows] + legend)


def catalogue_table(chapters: Mapping[str, str], entries: Iterable[Entry], docs: Path, link: Link) -> str:
    """Chapters, their concepts and their procedures; `chapters` maps a chapter's name to its title, in reading order.

    A chapter is told in the sentence that its package begins with.
    """
    rows = ["| Chapter | Concepts |", "| --- | --- |"]
    by_chapter: dict[str, list[Entry]] = {}
    for entry in entries:
        by_chapter.setdefault(entry.chapter, []).append(entry)
    for chapter, title in chapters.items():
        head = f"[{title}]({chapter}/index.md)" if (docs / chapter / "index.md").is_file() else title
        said = (importlib.import_module(f"minitransformers.{chapter}").__doc__ or "").strip().partition("\n")[0]
        head += f'<br><span class="said">{said}</span>' if said else ""
        kinds = [[link(entry) for entry in by_chapter.get(chapter, []) if entry.is_procedure == kind] for kind in (False, True)]
        concepts, procedures = (" · ".join(links) for links in kinds)
        rows.append(f"| {head} | " + "<br>".join(filter(None, [concepts, procedures and f"*Procedures:* {procedures}"])) + " |")
    return _framed("catalogue", rows)


def _framed(name: str, rows: list[str]) -> str:
    return f'<div class="{name}" markdown="1">\n\n' + "\n".join(rows) + "\n\n</div>\n"
