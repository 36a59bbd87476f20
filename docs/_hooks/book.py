"""The book: every page of the site one after another, on one page, and each chapter on a page that prints well.

What a browser needs to print a page grows with the square of its length: a chapter takes seconds, and all of them far too long.

An address that occurs on several pages (``eq-1``) gets its page's name in front, in ids and in the links to them, and a link to
another page leads to its place in the book. The code beside a derivation is left to the site; each equation has its own lines.
"""

import posixpath
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

_ID = re.compile(r'(<[^>]*?\s(?:id|for|name|data-head|data-first)=")([^"]+)"')
_REFERENCE = re.compile(r'((?:\bhref|\bsrc)=")([^"]*)"')
_INSIDE = re.compile(r"url\(#([^)]+)\)")
_JUMP = re.compile(r'<a class="jump".*?</a>|<nav class="sections".*?</nav>', re.DOTALL)
_STYLED = re.compile(r"(<style[^>]*>\s*)#")
FILE = "book.html"


class Chapter(NamedTuple):
    """A page in the book: its address on the site, its title, and its content."""

    address: str
    title: str
    html: str


def bound(pages: Sequence[Chapter], title: str, parts: Mapping[str, str] | None = None) -> str:
    """The book as one document; formulas are set when it is opened, as on every page. parts are those to print: their files and titles."""
    places = {page.address: _name(page.address) for page in pages}
    content = "\n".join(f'<section class="book__page" id="{places[page.address]}">{_own(page, places)}</section>' for page in pages)
    links = ", ".join(f'<a href="{file}">{escape(name)}</a>' for file, name in (parts or {}).items())
    to_print = f'<p class="book__parts">To print, open a chapter: {links}. All of it at once keeps a browser busy for very long.</p>\n' if links else ""
    contents = "".join(f'<li><a href="#{places[page.address]}">{escape(page.title)}</a></li>' for page in pages)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="stylesheet" href="assets/katex/katex.min.css">
<link rel="stylesheet" href="{_theme()}">
<link rel="stylesheet" href="assets/site.css">
</head>
<body dir="ltr" data-md-color-scheme="default" class="book">
<main class="md-typeset">
<h1>{escape(title)}</h1>
{to_print}<ol class="book__contents">{contents}</ol>
{content}
</main>
<script src="assets/katex/katex.min.js"></script>
<script src="assets/site.js"></script>
</body>
</html>
"""


def write(site: Path, pages: Sequence[Chapter], title: str) -> None:
    """Beside the other pages of the site, and a part for each chapter."""
    styles = sorted(path.relative_to(site).as_posix() for path in (site / "assets" / "stylesheets").glob("main.*.min.css"))
    chapters: dict[str, list[Chapter]] = {}
    for page in pages:
        if folder := posixpath.dirname(page.address):
            chapters.setdefault(f"book-{folder}.html", []).append(page)
    books = {file: bound(of, f"{title}: {of[0].title}") for file, of in chapters.items()}
    books[FILE] = bound(pages, title, {file: of[0].title for file, of in chapters.items()})
    for file, text in books.items():
        (site / file).write_text(text.replace(_theme(), styles[0] if styles else "assets/site.css"), encoding="utf-8")


def _theme() -> str:
    return "assets/stylesheets/main.css"


def _name(address: str) -> str:
    return re.sub(r"[^\w-]+", "-", address.removesuffix(".html"))


def _own(page: Chapter, places: Mapping[str, str]) -> str:
    """The content with addresses that are its own in the book."""
    name, folder = places[page.address], posixpath.dirname(page.address)

    def link(found: re.Match[str]) -> str:
        target = found.group(2)
        if target.startswith("#"):
            return f'{found.group(1)}#{name}--{target[1:]}"'
        if ":" in target or not target:
            return found.group()
        path, _, fragment = target.partition("#")
        path = posixpath.normpath(posixpath.join(folder, path))
        if path in places:
            return f'{found.group(1)}#{places[path]}{f"--{fragment}" if fragment else ""}"'
        return f'{found.group(1)}{path}{f"#{fragment}" if fragment else ""}"'

    html = _JUMP.sub("", page.html)
    html = _ID.sub(rf'\1{name}--\2"', html)
    html = _INSIDE.sub(rf"url(#{name}--\1)", html)
    return _STYLED.sub(rf"\1#{name}--", _REFERENCE.sub(link, html))
