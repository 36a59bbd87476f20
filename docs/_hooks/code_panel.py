"""The column beside the derivation: the module's real source, numbered and linked to the equations."""

import ast
from dataclasses import dataclass
from html import escape

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from _hooks.equations import split_comments


@dataclass(frozen=True)
class Fold:
    """Lines that are hidden until the reader asks for them; the first stays in view."""

    first: int
    last: int
    label: str


@dataclass(frozen=True)
class Listing:
    """A module, line by line (lines count from 1)."""

    path: str
    first: int  # first line shown
    html: tuple[str, ...]  # one string for each line of the file
    indents: tuple[int, ...]  # its leading spaces, so that a long line wraps under itself
    marks: dict[int, tuple[int, ...]]  # numbers written on a line
    lit: dict[int, tuple[int, ...]]  # equations whose statement a line belongs to
    folds: dict[int, Fold]  # by first line

    def lines_of(self, number: int) -> list[int]:
        return [line for line, numbers in sorted(self.lit.items()) if number in numbers]


def read(source: str, path: str) -> Listing:
    """Everything the page needs to know about a module."""
    tree = ast.parse(source)
    lines, marks = split_comments(source)
    return Listing(
        path=path,
        first=_first_line(tree, lines),
        html=_coloured(lines),
        indents=tuple(len(line) - len(line.lstrip(" ")) for line in lines),
        marks=marks,
        lit=_lit_lines(tree, marks),
        folds={fold.first: fold for fold in _folds(tree)},
    )


def render(listing: Listing) -> str:
    """The panel: a header with the path, and the scrolling source."""
    path = escape(listing.path)
    return (
        '<aside class="panel" id="source" data-search-exclude>'
        f'<div class="panel__path"><span>{path}</span></div>'
        f'<div class="panel__body highlight" role="region" aria-label="Source of {path}" tabindex="0">'
        f'<div class="panel__rows">{"".join(_rows(listing))}</div></div></aside>'
    )


def excerpt(listing: Listing, number: int) -> str:
    """The lines of one equation, for screens where the code does not stand beside it."""
    lines = listing.lines_of(number)
    rows = "".join(_row(listing, line, anchor=False) for line in lines)
    return f'<div class="excerpt highlight" data-search-exclude><div class="panel__rows">{rows}</div></div>' if rows else ""


def _rows(listing: Listing) -> list[str]:
    rows, line, end = [], listing.first, len(listing.html)
    while line <= end:
        fold = listing.folds.get(line)
        if fold is None:
            rows.append(_row(listing, line))
            line += 1
            continue
        hidden = "".join(_row(listing, inner) for inner in range(line + 1, fold.last + 1))
        button = f'<span class="fold__label">{fold.label}</span>'
        rows.append(f'<details class="fold"><summary>{_row(listing, line, button)}</summary>{hidden}</details>')
        line = fold.last + 1
    return rows


def _row(listing: Listing, line: int, margin: str = "", *, anchor: bool = True) -> str:
    numbers = " ".join(map(str, listing.lit.get(line, ())))
    attributes = (f' id="L{line}"' if anchor else "") + (f' data-eq="{numbers}"' if numbers else "")
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
        if isinstance(node, ast.Import | ast.ImportFrom) or _is_docstring(node):
            continue
        line = _start(node)
        while line > 1 and lines[line - 2].startswith("#"):
            line -= 1
        return line
    return 1


def _start(node: ast.stmt) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _folds(tree: ast.Module) -> list[Fold]:
    """Docstrings and `@concept(...)` labels that are longer than one line."""
    folds = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        label = [d for d in node.decorator_list if isinstance(d, ast.Call) and ast.unparse(d.func).endswith("concept")]
        folds += [Fold(d.lineno, d.end_lineno or d.lineno, "label") for d in label]
        if _is_docstring(node.body[0]):
            text = node.body[0]
            folds.append(Fold(text.lineno, text.end_lineno or text.lineno, "docstring"))
    return [fold for fold in folds if fold.last > fold.first]


def _lit_lines(tree: ast.Module, marks: dict[int, tuple[int, ...]]) -> dict[int, tuple[int, ...]]:
    """A number on one line of a long statement stands for the whole statement."""
    lit = dict(marks)
    simple = ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Return | ast.Expr
    for node in ast.walk(tree):
        if isinstance(node, simple) and not _is_docstring(node):
            span = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            marked = [line for line in span if line in marks]
            if len(marked) == 1:
                lit.update(dict.fromkeys(span, marks[marked[0]]))
    return lit
