"""The navigation, made from the folders: nobody keeps a second list of pages."""

import re
from pathlib import Path

from _hooks import measured
from _hooks.prose import title
from minitransformers.foundation.catalogue import READING_ORDER

_LINK = re.compile(r"\]\(([\w-]+\.md)(?:#[^)]*)?\)")
_LAST = ("glossary.md", "how-to-add-a-concept.md")

Nav = list[str | dict[str, "str | Nav"]]


def chapters(docs: Path) -> dict[str, str]:
    """The chapters that have pages, in reading order: folder name to title."""
    present = {path.parent.name for path in docs.glob("*/*.md")} - {"assets", "_hooks"}
    ordered = [name for name in READING_ORDER if name in present]
    return {name: _title(docs / name / "index.md", name) for name in [*ordered, *sorted(present - set(ordered))]}


def pages(docs: Path, chapter: str) -> list[str]:
    """A chapter's pages: index first, then as the index links to them, then the rest by name."""
    folder = docs / chapter
    names = sorted(path.name for path in folder.glob("*.md"))
    index = folder / "index.md"
    linked = _LINK.findall(index.read_text(encoding="utf-8")) if index.is_file() else []
    order = {name: place for place, name in reversed(list(enumerate(["index.md", *linked])))}
    return [f"{chapter}/{name}" for name in sorted(names, key=lambda name: (order.get(name, len(order) + 1), name))]


def build(docs: Path) -> Nav:
    """Home, the chapters, and the pages at the top."""
    top = sorted(path.name for path in docs.glob("*.md") if path.name not in ("index.md", *_LAST))
    last = [name for name in _LAST if (docs / name).is_file()]
    return [{"Home": "index.md"}, *({heading: _chapter(docs, name)} for name, heading in chapters(docs).items()), *top, *last]


def _chapter(docs: Path, name: str) -> Nav:
    """Its pages, and behind them the sections that measured what they show."""
    sections: Nav = [measured.page_of(*section.split("/")) for section in measured.titles(docs) if section.startswith(f"{name}/")]
    return [*pages(docs, name), *([{"Measured": sections}] if sections else [])]


def _title(index: Path, name: str) -> str:
    default = name.replace("_", " ").capitalize()
    return title(index.read_text(encoding="utf-8"), default) if index.is_file() else default
