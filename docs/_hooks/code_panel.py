"""The column beside the derivation: the module's real source, numbered and linked to the equations."""

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import PurePosixPath

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from _hooks.equations import split_comments
from _hooks.statements import Numbers, extent, is_check, is_docstring, lit_lines

_LABELS = ("concept", "procedure")


@dataclass(frozen=True)
class Fold:
    """Lines that are hidden until the reader asks for them; the first stays in view, or, of checks, the word alone."""

    first: int
    last: int
    label: str


@dataclass(frozen=True)
class Listing:
    """A module, line by line (lines count from 1)."""

    path: str
    anchor: str  # what stands before a line's number in its address
    first: int  # first line shown
    html: tuple[str, ...]  # one string for each line of the file
    indents: tuple[int, ...]  # its leading spaces, so that a long line wraps under itself
    marks: Numbers  # numbers written on a line
    lit: Numbers  # equations that a line helps to compute
    folds: dict[int, Fold]  # by first line
    functions: dict[str, int]  # where each begins, its label included

    def lines_of(self, number: int) -> list[int]:
        return [line for line, numbers in sorted(self.lit.items()) if number in numbers]

    def opening(self, functions: Iterable[str]) -> tuple[int, int]:
        """The first numbered line of the function of the file's name, or of the first of those given, after where its function begins.

        Where the function has none, a helper below it has, or one above.
        """
        known = [self.functions[name] for name in functions if name in self.functions]
        start = self.functions.get(PurePosixPath(self.path).stem, min(known, default=self.first))
        numbered = sorted(self.lit)
        first = next((line for line in numbered if line >= start), min(numbered, default=start))
        return max((line for line in self.functions.values() if line <= first), default=first), first


@dataclass(frozen=True)
class Form:
    """One way to write the idea of a page: what its tab is called, its source, and the functions that it is about."""

    name: str
    listing: Listing
    functions: tuple[str, ...] = ()


def read(source: str, path: str, anchor: str = "L") -> Listing:
    """Everything the page needs to know about a module."""
    tree = ast.parse(source)
    lines, marks = split_comments(source)
    return Listing(
        path=path,
        anchor=anchor,
        first=_first_line(tree, lines),
        html=_coloured(lines),
        indents=tuple(len(line) - len(line.lstrip(" ")) for line in lines),
        marks=marks,
        lit=lit_lines(tree, lines, marks),
        folds={fold.first: fold for fold in _folds(tree, marks) if fold.last > fold.first},
        functions={node.name: extent(node).start for node in tree.body if isinstance(node, ast.FunctionDef)},
    )


def render(forms: Sequence[Form]) -> str:
    """The panel: for each form of the idea its path and its scrolling source, and tabs where there are several."""
    tabs = ["" if len(forms) == 1 else _tab(form.name, place) for place, form in enumerate(forms)]
    bodies = "".join(tab + _body(form) for tab, form in zip(tabs, forms, strict=True))
    return f'<aside class="panel" id="source" data-search-exclude>{bodies}</aside>'


def excerpt(listing: Listing, number: int) -> str:
    """The lines of one equation, for screens where the code does not stand beside it."""
    lines = listing.lines_of(number)
    rows = "".join(_row(listing, line, anchor=False) for line in lines)
    return f'<div class="excerpt highlight" data-search-exclude><div class="panel__rows">{rows}</div></div>' if rows else ""


def _tab(name: str, place: int) -> str:
    checked = "" if place else " checked"
    return (
        f'<input class="panel__pick" type="radio" name="form" id="form-{place}"{checked}>'
        f'<label class="panel__tab" for="form-{place}">{escape(name)}</label>'
    )


def _body(form: Form) -> str:
    listing, path = form.listing, escape(form.listing.path)
    head, first = listing.opening(form.functions)
    places = sorted((listing.functions[name], name) for name in form.functions if name in listing.functions)
    links = "".join(f'<a href="#{listing.anchor}{line}">{name}</a>' for line, name in places) if len(places) > 1 else ""
    nav = f'<nav class="panel__functions" aria-label="Functions">{links}</nav>' if links else ""
    return (
        f'<div class="panel__form"><div class="panel__path"><span>{path}</span>{nav}</div>'
        f'<div class="panel__body highlight" role="region" aria-label="Source of {path}" tabindex="0" '
        f'data-head="{listing.anchor}{head}" data-first="{listing.anchor}{first}">'
        f'<div class="panel__rows">{"".join(_rows(listing))}</div></div></div>'
    )


def _rows(listing: Listing) -> Iterator[str]:
    line, end = listing.first, len(listing.html)
    while line <= end:
        fold = listing.folds.get(line)
        if fold is None:
            yield _row(listing, line)
            line += 1
            continue
        yield _folded(listing, fold)
        line = fold.last + 1


def _folded(listing: Listing, fold: Fold) -> str:
    if fold.label == "checks":
        indent = f' style="--indent:{listing.indents[fold.first - 1]}ch"'
        note = f'<span class="fold__note"{indent}><span class="fold__label">checks</span></span>'
        summary = f'<div class="row"><span class="row__no" data-no="{fold.first}"></span>{note}</div>'
        hidden = range(fold.first, fold.last + 1)
    else:
        summary = _row(listing, fold.first, f'<span class="fold__label">{fold.label}</span>')
        hidden = range(fold.first + 1, fold.last + 1)
    rows = "".join(_row(listing, line) for line in hidden)
    return f'<details class="fold fold--{fold.label}"><summary>{summary}</summary>{rows}</details>'


def _row(listing: Listing, line: int, margin: str = "", *, anchor: bool = True) -> str:
    numbers = " ".join(map(str, listing.lit.get(line, ())))
    attributes = (f' id="{listing.anchor}{line}"' if anchor else "") + (f' data-eq="{numbers}"' if numbers else "")
    links = "".join(f'<a href="#eq-{n}" aria-label="Equation {n}">({n})</a>' for n in listing.marks.get(line, ()))
    indent = f' style="--indent:{listing.indents[line - 1]}ch"' if listing.indents[line - 1] else ""
    return (
        f'<div class="row"{attributes}><span class="row__no" data-no="{line}"></span>'
        f'<span class="row__src"{indent}>{listing.html[line - 1] or " "}</span>'
        f'<span class="row__eq">{links}{margin}</span></div>'
    )


def _coloured(lines: list[str]) -> tuple[str, ...]:
    text = "\n".join(lines) + "\n"
    html = highlight(text, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True))
    return tuple(html.split("\n")[: len(lines)])


def _first_line(tree: ast.Module, lines: list[str]) -> int:
    """The first statement after docstring and imports, with the comment that stands right above it."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom) or is_docstring(node):
            continue
        line = extent(node).start
        while line > 1 and lines[line - 2].startswith("#"):
            line -= 1
        return line
    return 1


def _folds(tree: ast.Module, marks: Numbers) -> Iterator[Fold]:
    """Docstrings, labels such as `@concept(...)`, and checks of arguments before a function's first numbered line."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        labels = [d for d in node.decorator_list if isinstance(d, ast.Call) and ast.unparse(d.func).endswith(_LABELS)]
        yield from (Fold(label.lineno, label.end_lineno or label.lineno, "label") for label in labels)
        if is_docstring(node.body[0]):
            yield Fold(extent(node.body[0])[0], extent(node.body[0])[-1], "docstring")
        numbered = [line for line in extent(node) if line in marks]
        if isinstance(node, ast.FunctionDef) and numbered:
            yield from _check_runs(one for one in node.body if extent(one)[-1] < numbered[0])


def _check_runs(statements: Iterable[ast.stmt]) -> Iterator[Fold]:
    for checks, run in groupby(statements, is_check):
        if checks:
            spans = [extent(statement) for statement in run]
            yield Fold(spans[0][0], spans[-1][-1], "checks")
