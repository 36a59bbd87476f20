"""What stands beside a page: the modules of the catalogue's entries that the page explains.

A page explains the entry of its own name, else the entries whose file has that name, wherever in the chapter's package
the file lies; another form of a concept shares the plain one's page. A module without an entry has the page of its path.
"""

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from minitransformers.foundation.catalogue import Entry


@dataclass(frozen=True)
class Source:
    """A module, and the entries that are labelled in it."""

    file: Path
    entries: tuple[Entry, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.entries)


@dataclass(frozen=True)
class Exhibit:
    """What a page explains: its own module, and other forms of the same idea."""

    main: Source
    forms: tuple[Source, ...] = ()

    @property
    def subjects(self) -> tuple[Entry, ...]:
        """The entries that the page is about: the one of the file's name, where there is one, else all of the file."""
        return tuple(entry for entry in self.main.entries if entry.name == self.main.file.stem) or self.main.entries


def beside(page: PurePath, entries: Mapping[str, Entry], package: Path) -> Exhibit | None:
    """The exhibit of a page, given by its path in the documentation, or None where it explains no module."""
    own, path = page.stem, page.with_suffix(".md").as_posix()
    here = [entry for entry in entries.values() if path in pages_of(entry, entries)]
    here.sort(key=lambda entry: (entry.name != own, _file(entry, package).stem != own))
    files = [file for file in dict.fromkeys(_file(entry, package) for entry in here) if file.is_file()]
    if not files:
        file = package / page.with_suffix(".py")
        return Exhibit(Source(file)) if file.is_file() else None
    main, *forms = (Source(file, tuple(entry for entry in here if _file(entry, package) == file)) for file in files)
    return Exhibit(main, tuple(forms))


def pages_of(entry: Entry, entries: Mapping[str, Entry]) -> tuple[str, ...]:
    """Where a page that explains the entry may lie: one of its own, or the one that it shares."""
    plain = entries.get(entry.form_of or "", entry)
    return (f"{entry.chapter}/{entry.name}.md", f"{plain.chapter}/{entry.page}.md")


def page_of(entry: Entry, entries: Mapping[str, Entry], docs: Path) -> str | None:
    """The page that explains the entry, as its path in the documentation, or None where nobody has written it."""
    return next((page for page in pages_of(entry, entries) if (docs / page).is_file()), None)


def called_by(source: Source, entries: Mapping[str, Entry]) -> list[Entry]:
    """The entries of other modules that a module imports by name and uses, in the order of the imports."""
    tree = ast.parse(source.file.read_text(encoding="utf-8"))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    imported = [
        (node.module or "", alias.name, alias.asname or alias.name)
        for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]  # fmt: skip
    found = (entries[name] for module, name, local in imported if local in used and name in entries and entries[name].module == module)
    return list({entry.name: entry for entry in found}.values())


def missing_pages(entries: Iterable[Entry], known: Mapping[str, Entry], docs: Path) -> list[str]:
    """Where a page is wanted."""
    return sorted({pages_of(entry, known)[-1] for entry in entries if page_of(entry, known, docs) is None})


def _file(entry: Entry, package: Path) -> Path:
    return package.joinpath(*entry.module.split(".")[1:]).with_suffix(".py")
