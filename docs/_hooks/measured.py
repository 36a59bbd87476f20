"""The sections that measured what pages show: a page for each with its source, and links to it from where its numbers stand."""

import ast
import json
import posixpath
import re
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

_MARK = re.compile("\x02([\\w-]+)/([\\w-]+)\x03")
_HEADING = re.compile(r"^(?=## )", re.MULTILINE)


def mark(chapter: str, section: str | None) -> str:
    """What stands behind a number until `credit` turns it into a link."""
    return f"\x02{chapter}/{section}\x03" if section else ""


def section_of(results: dict[str, Any], kind: str, name: str) -> str | None:
    """The section that measured a value, a table or a figure; kind is "values" or "figures", or "tables"."""
    if kind == "tables":
        return results["tables"].get(name, {}).get("section")
    return next((section for section, part in results.get("sections", {}).items() if name in part[kind]), None)


def page_of(chapter: str, section: str) -> str:
    """The section's page, as its path in the documentation."""
    return f"{chapter}/measured/{section}.md"


def credit(markdown: str, page: PurePosixPath, titles: dict[str, str]) -> str:
    """Under each part of a page that shows what was measured a line that names and links the sections.

    titles maps "chapter/section" to the section's title.
    """

    def credited(part: str) -> str:
        found = dict.fromkeys("/".join(names) for names in _MARK.findall(part))
        part = _MARK.sub("", part)
        links = [f"[{titles[name]}]({posixpath.relpath(page_of(*name.split('/')), page.parent.as_posix())})" for name in found if name in titles]
        return f'{part.rstrip()}\n\n<p class="measured" markdown="span">Measured by {" · ".join(links)}</p>\n\n' if links else part

    return "".join(map(credited, _HEADING.split(markdown)))


def titles(docs: Path) -> dict[str, str]:
    """Of every section on record: "chapter/section" to title."""
    found: dict[str, str] = {}
    for path in sorted(docs.glob("*/results/results.json")):
        found |= _titles(path, path.stat().st_mtime_ns)
    return found


@cache
def _titles(path: Path, changed: int) -> dict[str, str]:
    """Of one record, parsed once for each state of the file."""
    results = json.loads(path.read_text(encoding="utf-8"))
    return {f"{results['chapter']}/{name}": part["title"] for name, part in results.get("sections", {}).items()}


def page(results: dict[str, Any], name: str, source: Path) -> str:
    """The page of a section in Markdown: its question, its claims, tables and figures, and its source."""
    part, path = results["sections"][name], f"chapters/{results['chapter']}/{name}.py"
    code = source.read_text(encoding="utf-8")
    _, _, text = (ast.get_docstring(ast.parse(code)) or "").partition("\n")
    seeds = "one seed" if part["seeds"] == 1 else f"{part['seeds']} seeds"
    tables = [f"[[table:{table}]]" for table, found in results["tables"].items() if found.get("section") == name]
    figures = [f"![](../results/{figure}.svg)" for figure in part["figures"]]
    return "\n\n".join([
        "---\ncode: false\n---", f"# {part['title']}", text.strip(), f"Rests on {seeds}. Run it: `python {path}`.",
        f"[[claims:{name}]]", *figures, *tables, "## The section", f"```python\n{code}```", "[[environment]]",
    ]) + "\n"  # fmt: skip
