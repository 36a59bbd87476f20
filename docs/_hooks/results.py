"""What a chapter script measured, shown on a page: `[[rms_norm.cost.ratio|.2f]]`, `[[table:speed]]`, `[[claims]]`."""

import json
import re
from collections.abc import Callable
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from _hooks import measured

NUMBER = re.compile(r"\[\[(/?)([A-Za-z_][\w/-]*(?:\.[\w-]+)+)(?:\|([^\]]+))?\]\]")
EXHIBIT = re.compile(r"^\[\[(claims|verdicts|environment|table)(?::([\w-]+))?\]\][ \t]*$", re.MULTILINE)
_EXPONENT = re.compile(r"^(.*?)e([+-]\d+)$")
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Missing(KeyError):
    """A page asks for something that was not measured."""

    def __str__(self) -> str:
        return str(self.args[0])


def load(docs: Path, chapter: str) -> dict[str, Any]:
    """The chapter's results.json."""
    path = docs / chapter / "results" / "results.json"
    if not path.is_file():
        raise Missing(f"{path.relative_to(docs)} is missing: run the chapter's script")
    return _read(path, path.stat().st_mtime_ns)


@cache
def _read(path: Path, changed: int) -> dict[str, Any]:
    """Parsed once for each state of the file: a page asks for dozens of numbers."""
    return json.loads(path.read_text(encoding="utf-8"))


def look_up(values: dict[str, Any], path: str) -> Any:
    """The value at a dotted path."""
    value: Any = values
    for part in path.split("."):
        if not isinstance(value, dict) or part not in value:
            known = ", ".join(value) if isinstance(value, dict) else "nothing, it is a value"
            raise Missing(f"results.json has no value {path}: {part!r} is not among {known}")
        value = value[part]
    return value


def written(value: object, spec: str = "") -> str:
    """A number as people write it: 3·10⁻¹⁰ rather than 3e-10."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return format(value, spec) if spec else str(value)
    text = format(value, spec or _few_digits(value))
    if found := _EXPONENT.match(text):
        text = f"{found.group(1)}·10{str(int(found.group(2))).translate(_SUPERSCRIPTS)}"
    return "−" + text[1:] if text.startswith("-") else text


def _few_digits(value: float) -> str:
    if isinstance(value, int):
        return ""
    return ",.0f" if 1000 <= abs(value) < 1e6 else ".3g"


def fill(text: str, docs: Path, chapter: str, warn: Callable[[str], None]) -> str:
    """Replace every `[[...]]` in a piece of prose; warn of what is missing."""

    def number(found: re.Match[str]) -> str:
        absolute, path, spec = found.groups()
        where, name = path.split("/", 1) if absolute and "/" in path else (chapter, path)

        def value() -> str:
            results = load(docs, where)
            section = measured.section_of(results, "values", name)
            return written(look_up(results["values"], name), spec or "") + measured.mark(where, section)

        return _guarded(found, warn, value)

    def exhibit(found: re.Match[str]) -> str:
        kind, name = found.groups()
        return _guarded(found, warn, lambda: _exhibit(load(docs, chapter), kind, name))

    return NUMBER.sub(number, EXHIBIT.sub(exhibit, text))


def _guarded(found: re.Match[str], warn: Callable[[str], None], make: Callable[[], str]) -> str:
    try:
        return make()
    except (Missing, ValueError, KeyError) as error:
        reason = error if isinstance(error, Missing) else repr(error)
        warn(f"{found.group()}: {reason}")
        return f"`{found.group()}`"


def _exhibit(results: dict[str, Any], kind: str, name: str | None) -> str:
    if kind == "claims":
        return claims([claim for claim in results["claims"] if name in (None, claim.get("section"))])
    if kind == "verdicts":
        return verdicts(results)
    if kind == "environment":
        return environment(results)
    if name not in results.get("tables", {}):
        raise Missing(f"results.json has no table {name!r}, only {', '.join(results.get('tables', {})) or 'none'}")
    return markdown_table(results["tables"][name]) + measured.mark(results["chapter"], results["tables"][name].get("section"))


def claims(entries: list[dict[str, Any]]) -> str:
    """One card a claim: what the paper says, what to expect here, what was measured, the verdict."""
    return '<div class="claims" markdown="1">\n\n' + "\n".join(map(_claim, entries)) + "\n</div>\n"


# How a card looks, by what became of the claim.
_COUNTED = {"exact": "exact", "holds": "hold", "mixed": "mixed", "does not hold": "do not hold", "fails": "fail"}
_LOOKS = {"holds": "holds", "exact": "holds", "mixed": "scale", "does not hold": "scale", "fails": "fails"}


def verdicts(results: dict[str, Any]) -> str:
    """How many claims came out how, and behind it a row for each, under the question of its section."""
    rows = ["| Question | Claim | Verdict | Other seeds |", "| --- | --- | --- | --- |"]
    asked = ""
    for claim in results["claims"]:
        section = claim.get("section", "")
        title = results.get("sections", {}).get(section, {}).get("title", section)
        link = f"[{title}](measured/{section}.md)" if section != asked else ""
        shown = [_verdict(of) if of else "" for of in (claim, claim.get("again"))]
        rows.append(f"| {link} | {claim['name']} | {' | '.join(shown)} |".replace("||", "| |"))
        asked = section
    states = [str(claim.get("state", claim["verdict"])) for claim in results["claims"]]
    counts = ", ".join(f"{states.count(state)} {words}" for state, words in _COUNTED.items() if state in states)
    table = "\n".join(f"    {row}" for row in rows)
    return f'??? abstract "{len(states)} claims: {counts}"\n    <div class="verdicts" markdown="1">\n\n{table}\n\n    </div>\n'


def _verdict(of: dict[str, Any]) -> str:
    look = _LOOKS.get(of.get("state", str(of["verdict"])), "open")
    return f'<span class="verdict verdict--{look}">{escape(str(of["verdict"]))}</span>'


def with_verdicts(markdown: str) -> str:
    """A chapter's first page with the verdicts before its first heading."""
    return re.sub(r"^(?=## )", "[[verdicts]]\n\n", markdown, count=1, flags=re.MULTILINE)


def _claim(claim: dict[str, Any]) -> str:
    verdict = str(claim["verdict"])
    kind = _LOOKS.get(claim.get("state", verdict), "open")
    again = f"{of['verdict']}: {of['measured']}" if (of := claim.get("again")) else ""
    rows = (("The paper", claim.get("paper")), ("Expected here", claim.get("expect")), ("Measured", claim.get("measured")), ("Other seeds", again))
    parts = "".join(
        f'<div class="claim__part" markdown="1">\n<span class="claim__key">{key}</span>\n<div markdown="span">{written(said)}</div>\n</div>\n'
        for key, said in rows
        if said not in (None, "")
    )
    return (
        f'<section class="claim claim--{kind}" markdown="1">\n'
        f'<div class="claim__head" markdown="1">\n<div class="claim__name" markdown="span">{claim["name"]}</div>\n'
        f'<span class="claim__verdict">{escape(verdict)}</span>\n</div>\n{parts}</section>\n'
    )


def environment(results: dict[str, Any]) -> str:
    """Versions and seed in one small line."""
    facts = [f"{key} {value}" for key, value in results.get("environment", {}).items()]
    if "seed" in results and not any(fact.startswith("seed ") for fact in facts):
        facts.append(f"seed {results['seed']}")
    if results.get("quick"):
        facts.append("quick run")
    return f'<p class="environment">Measured with {escape(" · ".join(facts))}</p>\n'


def markdown_table(table: dict[str, Any]) -> str:
    """A Markdown table; columns of numbers stand right."""
    rows: list[list[object]] = table["rows"]
    numeric = [all(isinstance(cell, int | float | None) for cell in column) for column in zip(*rows, strict=True)]
    align = ["---:" if right else "---" for right in numeric] or ["---"] * len(table["columns"])
    lines = [[_cell(name) for name in table["columns"]], align, *([_cell(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return written(value, ",")
    return written("–" if value is None else value).replace("|", "\\|")
