"""What the site adds to plain Markdown, in the order in which MkDocs asks for it.

Page docs/<chapter>/<concept>.md belongs to module minitransformers/<chapter>/<concept>.py. Everything that is wrong
with a page (a formula without its line, a number that was never measured) is a warning, and the strict build fails.
"""

import logging
import re
from collections.abc import Callable
from functools import partial
from html import unescape
from pathlib import Path

from _hooks import code_panel, equations, figures, museum, navigation, results
from _hooks.prose import outside_code
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.pages import Page

from minitransformers import catalogue

_log = logging.getLogger("mkdocs.hooks.minitransformers")
_FORMULA = re.compile(r'<div class="arithmatex">(.*?)</div>', re.DOTALL)
_TAG = re.compile(r"\\tag\{(\d+)\}")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the navigation from the folders."""
    config.nav = navigation.build(Path(config.docs_dir))
    return config


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, **_: object) -> str:
    """Put in measured numbers, tables and figures, and hold the page's equations against the module's."""
    docs, warn = Path(config.docs_dir), partial(_warn, page)
    module = module_of(page, config)
    if module is not None:
        page.meta["hide"] = ["toc"]
        for problem in equations.problems(module.read_text(encoding="utf-8"), markdown):
            warn(problem)
    return outside_code(markdown, lambda prose: _furnish(prose, docs, Path(page.file.src_uri), warn))


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, **_: object) -> str:
    """Inline the figures; where the page has a module, set the source beside the derivation."""
    html = figures.fill(html, (Path(config.docs_dir) / page.file.src_uri).parent)
    module = module_of(page, config)
    if module is None:
        return html
    path = module.relative_to(_root(config)).as_posix()
    listing = code_panel.read(module.read_text(encoding="utf-8"), path)
    text = _link_formulas(html, listing).replace("</h1>", "</h1>" + _museum_line(page, config, path), 1)
    return f'<div class="beside"><div class="beside__text">{text}</div>{code_panel.render(listing)}</div>'


def module_of(page: Page, config: MkDocsConfig) -> Path | None:
    """The module that a page explains, or None."""
    name = page.file.src_uri.removesuffix(".md")
    path = _root(config) / "minitransformers" / f"{name}.py"
    return path if path.is_file() and page.meta.get("code", True) else None


def _root(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path).parent


def _warn(page: Page, problem: str) -> None:
    _log.warning("docs/%s: %s", page.file.src_uri, problem)


def _furnish(prose: str, docs: Path, page: Path, warn: Callable[[str], None]) -> str:
    chapter = page.parent.name
    prose = results.fill(prose, docs, chapter, warn)
    prose = figures.mark(prose, docs / page.parent, warn)
    prose = museum.CATALOGUE.sub(lambda _: _catalogue_table(docs), prose)
    return museum.CONCEPTS.sub(lambda _: _concept_table(docs, chapter), prose)


def _catalogue_table(docs: Path) -> str:
    return museum.catalogue_table(navigation.chapters(docs), catalogue.concepts().values(), docs)


def _concept_table(docs: Path, chapter: str) -> str:
    order = navigation.pages(docs, chapter)
    pages = {f"{chapter}/{name}.md": entry for name, entry in catalogue.concepts(chapter=chapter).items()}
    ordered = [pages[page] for page in order if page in pages] + [pages[page] for page in pages if page not in order]
    return museum.concept_table(ordered, museum.load_checks(docs), docs)


def _museum_line(page: Page, config: MkDocsConfig, path: str) -> str:
    name = Path(page.file.src_uri).stem
    entry = catalogue.concepts(chapter=Path(page.file.src_uri).parent.name).get(name)
    measured = museum.load_checks(Path(config.docs_dir)).get(name, {})
    headings = [item for title in page.toc for item in title.children]
    return museum.museum_line(entry, path, measured, [(item.title, item.id) for item in headings])


def _link_formulas(html: str, listing: code_panel.Listing) -> str:
    """Give each numbered formula its number, a place in the tab order, and its lines of code."""
    seen: set[int] = set()

    def link(found: re.Match[str]) -> str:
        tags = _TAG.findall(unescape(found.group(1)))
        if not tags:
            return found.group()
        number = int(tags[0])
        anchor = "" if number in seen else f' id="eq-{number}"'
        seen.add(number)
        lines = ", ".join(map(str, listing.lines_of(number)))
        return (
            f'<div class="equation"{anchor} data-eq="{number}" tabindex="0" role="group" '
            f'aria-label="Equation {number}, code line {lines}">{found.group()}{code_panel.excerpt(listing, number)}</div>'
        )

    return _FORMULA.sub(link, html)
