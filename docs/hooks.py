"""What the site adds to plain Markdown, in the order in which MkDocs asks for it.

The modules beside page docs/<chapter>/<name>.md come from the catalogue (see _hooks/exhibits.py). Everything that is wrong
with a page (a formula without its line, a number that was never measured) is a warning, and the strict build fails.
"""

import logging
import posixpath
import re
from collections.abc import Callable
from functools import cache, partial
from html import escape, unescape
from pathlib import Path, PurePosixPath

from _hooks import (
    book,
    code_panel,
    equations,
    exhibits,
    figures,
    measured,
    museum,
    navigation,
    parts,
    practice,
    results,
    shapes,
    words,
)
from _hooks.prose import outside_code
from _hooks.statements import in_words
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from minitransformers import catalogue
from minitransformers.foundation.catalogue import Entry

_log = logging.getLogger("mkdocs.hooks.minitransformers")
_FORMULA = re.compile(r'<div class="arithmatex">(.*?)</div>', re.DOTALL)
_TAG = re.compile(r"\\tag\{(\d+)\}")
_ANCHOR = re.compile(r'<[^>]+\bid="([^"]+)"')
GLOSSARY = "glossary.md"
_SOURCE = "<!-- source -->"
_panels: dict[str, str] = {}
_content: dict[str, book.Chapter] = {}
_JUMP = '<a class="jump" href="#source" data-search-exclude>Code</a>'


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the navigation from the folders."""
    config.nav = navigation.build(Path(config.docs_dir))
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """A page for each section of a chapter that measured something."""
    docs = Path(config.docs_dir)
    for name in measured.titles(docs):
        chapter, section = name.split("/")
        source = _root(config) / "chapters" / chapter / f"{section}.py"
        content = measured.page(results.load(docs, chapter), section, source)
        files.append(File.generated(config, measured.page_of(chapter, section), content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, **_: object) -> str:
    """Put in measured numbers, tables and figures, and hold the page's equations against its modules."""
    docs, warn = Path(config.docs_dir), partial(_warn, page)
    exhibit = exhibit_of(page, config)
    if exhibit is not None:
        page.meta["hide"] = ["toc"]
        problems = equations.problems(_text(exhibit.main), markdown)
        for form in exhibit.forms:
            problems += equations.problems_of_form(_text(form), markdown, _path(form, config))
        for problem in problems:
            warn(problem)
        markdown = shapes.put_in(practice.put_in(markdown, exhibit.subjects), exhibit.subjects)
    if Path(page.file.src_uri).name == "index.md" and (docs / page.file.src_uri).with_name("results").joinpath("results.json").is_file():
        markdown = results.with_verdicts(markdown)
    furnished = outside_code(markdown, lambda prose: _furnish(prose, docs, Path(page.file.src_uri), warn))
    return measured.credit(furnished, PurePosixPath(page.file.src_uri), {} if _is_section(page) else measured.titles(docs))


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, **_: object) -> str:
    """Inline the figures and name the parts; where the page has a module, set the source beside the derivation."""
    html = parts.name_parts(figures.fill(html, (Path(config.docs_dir) / page.file.src_uri).parent))
    if page.file.src_uri != GLOSSARY:
        html = words.explain(html, words.explained(Path(config.docs_dir) / GLOSSARY))
    exhibit = exhibit_of(page, config)
    if exhibit is not None:
        forms = _forms(exhibit, config)
        text = _link_formulas(html, forms[0].listing).replace("</h1>", "</h1>" + _museum_line(page, config, exhibit), 1)
        html = f'<div class="beside"><div class="beside__text">{text}</div>{_SOURCE}{_JUMP}</div>'
        _panels[page.file.src_uri] = code_panel.render(forms)
    found = _ANCHOR.findall(html + _panels.get(page.file.src_uri, ""))
    page.present_anchor_ids = {*(page.present_anchor_ids or ()), *found}  # equations and lines can be linked to
    return html


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """Set the source in its place, and remember the page's content for the book; sections stand there by what pages show of them.

    The source comes so late because the search would otherwise read all of it, to leave it out.
    """
    if not _is_section(page):
        _content[page.file.src_uri] = book.Chapter(page.file.dest_uri, page.title or page.file.name, (page.content or "").replace(_SOURCE, ""))
    return output.replace(_SOURCE, _panels.pop(page.file.src_uri, ""))


def on_post_build(*, config: MkDocsConfig) -> None:
    """Write the book, its pages in the order of the navigation."""
    docs = Path(config.docs_dir)
    chapters = [path for chapter in navigation.chapters(docs) for path in navigation.pages(docs, chapter)]
    order = ["one_step_by_hand.md", *chapters, *sorted(set(_content) - {"index.md", "one_step_by_hand.md", *chapters})]  # the book has contents of its own
    book.write(Path(config.site_dir), [_content[path] for path in order if path in _content], config.site_name)
    _content.clear()


def exhibit_of(page: Page, config: MkDocsConfig) -> exhibits.Exhibit | None:
    """What a page explains, or None."""
    if not page.meta.get("code", True):
        return None
    return exhibits.beside(PurePosixPath(page.file.src_uri), _entries(), _root(config) / "minitransformers")


def _is_section(page: Page) -> bool:
    return PurePosixPath(page.file.src_uri).parent.name == "measured"


@cache
def _entries() -> dict[str, Entry]:
    return catalogue.entries()


def _forms(exhibit: exhibits.Exhibit, config: MkDocsConfig) -> list[code_panel.Form]:
    """The sources of the panel, the page's own first; a line of another form has the form's name in its address."""
    main = code_panel.read(_text(exhibit.main), _path(exhibit.main, config))
    forms = [code_panel.Form("plain", main, exhibit.main.names)]
    for source in exhibit.forms:
        listing = code_panel.read(_text(source), _path(source, config), anchor=f"{source.file.stem}-L")
        short = source.file.stem.removeprefix(f"{exhibit.main.file.stem}_").replace("_", " ")
        forms.append(code_panel.Form(short, listing, source.names))
    return forms


def _root(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path).parent


def _path(source: exhibits.Source, config: MkDocsConfig) -> str:
    return source.file.relative_to(_root(config)).as_posix()


def _text(source: exhibits.Source) -> str:
    return source.file.read_text(encoding="utf-8")


def _warn(page: Page, problem: str) -> None:
    _log.warning("docs/%s: %s", page.file.src_uri, problem)


def _furnish(prose: str, docs: Path, page: Path, warn: Callable[[str], None]) -> str:
    chapter, link = page.parts[0] if len(page.parts) > 1 else "", partial(_link, docs, page.parent.as_posix())
    prose = results.fill(prose, docs, chapter, warn)

    def credit(figure: str) -> str:
        found = (docs / chapter / "results" / "results.json").is_file() and measured.section_of(results.load(docs, chapter), "figures", figure)
        return measured.mark(chapter, found or None)

    prose = figures.mark(prose, docs / page.parent, warn, credit)
    prose = museum.CATALOGUE.sub(lambda _: _catalogue_table(docs, link), prose)
    return museum.CONCEPTS.sub(lambda _: _concept_table(docs, chapter, link), prose)


def _link(docs: Path, folder: str, entry: Entry) -> str:
    """The entry's title, with a link from a page in the folder where the entry has a page."""
    page = exhibits.page_of(entry, _entries(), docs)
    return f"[{entry.title}]({posixpath.relpath(page, folder)})" if page else entry.title


def _catalogue_table(docs: Path, link: museum.Link) -> str:
    return museum.catalogue_table(navigation.chapters(docs), _entries().values(), docs, link)


def _concept_table(docs: Path, chapter: str, link: museum.Link) -> str:
    """In the order of the pages; on one page the entry of its name comes first."""
    order = {page: place for place, page in enumerate(navigation.pages(docs, chapter))}

    def place(entry: Entry) -> tuple[int, bool]:
        page = exhibits.page_of(entry, _entries(), docs) or ""
        return order.get(page, len(order)), PurePosixPath(page).stem != entry.name

    entries = sorted((entry for entry in _entries().values() if entry.chapter == chapter), key=place)
    return museum.concept_table(entries, museum.load_checks(docs), link)


def _museum_line(page: Page, config: MkDocsConfig, exhibit: exhibits.Exhibit) -> str:
    measured = museum.load_checks(Path(config.docs_dir)).get(Path(page.file.src_uri).stem, {})
    headings = [item for title in page.toc for item in title.children]
    sections = [(item.title, item.id) for item in headings]
    return museum.museum_line(exhibit.subjects, _path(exhibit.main, config), measured, sections, _calls(page, config, exhibit))


def _calls(page: Page, config: MkDocsConfig, exhibit: exhibits.Exhibit) -> list[str]:
    """Links to the pages of what the module calls; several on one page are one."""
    docs, own = Path(config.docs_dir), page.file.src_uri
    found: dict[str, str] = {}
    for entry in exhibits.called_by(exhibit.main, _entries()):
        where = exhibits.page_of(entry, _entries(), docs)
        if where and where != own:
            address = posixpath.relpath(where.removesuffix(".md") + ".html", posixpath.dirname(own))
            found.setdefault(where, f'<a href="{address}">{escape(entry.name)}</a>')
    return list(found.values())


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
        lines = listing.lines_of(number)
        words = in_words(lines)
        place = f'<a class="equation__lines" href="#{listing.anchor}{lines[0]}" data-search-exclude>{words}</a>' if lines else ""
        return (
            f'<div class="equation"{anchor} data-eq="{number}" tabindex="0" role="group" aria-label="Equation {number}, code {words}">'
            f'{found.group()}<span class="equation__no" aria-hidden="true" data-search-exclude>({number})</span>{place}'
            f"{code_panel.excerpt(listing, number)}</div>"
        )

    return _FORMULA.sub(link, html)
