"""The numbered equations of a concept: in the module's header, on its code lines, on its page.

The three are one set. A header line is indented and ends in `(3)`; a code line ends in a comment that ends
in `# (3)`, or `# why (3)`, or `# (3) (4)`; the page has one display formula with `\\tag{3}`.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterable

from _hooks.prose import without_code

_HEADER_LINE = re.compile(r"^[ \t]+\S.*?((?:\(\d{1,3}\)[ \t]*)+)$", re.MULTILINE)
_COMMENT_END = re.compile(r"[ \t]*((?:\(\d{1,3}\)[ \t]*)+)$")
_FOR_TOOLS = re.compile(r"[ \t]*#[ \t]*(?:fmt|noqa|type|pragma)\b.*$")  # says nothing to a reader
_DISPLAY = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
_TAG = re.compile(r"\\tag\{(\d+)\}")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", text))


def header_numbers(source: str) -> set[int]:
    """Numbers at the ends of the indented lines of the module's docstring."""
    header = ast.get_docstring(ast.parse(source), clean=False) or ""
    return {n for line in _HEADER_LINE.finditer(header) for n in _numbers(line.group(1))}


def split_comments(source: str) -> tuple[list[str], dict[int, tuple[int, ...]]]:
    """The source's lines without their equation numbers, and the numbers by line (lines count from 1)."""
    lines, marks = source.splitlines(), {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        row, column = token.start
        comment = _FOR_TOOLS.sub("", token.string)
        if found := _COMMENT_END.search(comment):
            marks[row] = _numbers(found.group(1))
            comment = comment[: found.start()]
        if comment != token.string:
            lines[row - 1] = (lines[row - 1][:column] + (comment if comment != "#" else "")).rstrip()
    return lines, marks


def line_numbers(source: str) -> set[int]:
    """Numbers at the ends of the module's comments."""
    return {n for marked in split_comments(source)[1].values() for n in marked}


def page_numbers(markdown: str) -> set[int]:
    """Numbers of the page's tagged display formulas."""
    return {int(n) for formula in _DISPLAY.findall(without_code(markdown)) for n in _TAG.findall(formula)}


def crowded_formulas(markdown: str) -> list[str]:
    """Display formulas with more than one tag, which cannot be set."""
    tags = (_TAG.findall(formula) for formula in _DISPLAY.findall(without_code(markdown)))
    return [", ".join(numbers) for numbers in tags if len(numbers) > 1]


def problems(source: str, markdown: str) -> list[str]:
    """One sentence for each place that lacks numbers the others have; empty when the three sets are one."""
    places = {
        "the module's header": header_numbers(source),
        "the code lines": line_numbers(source),
        "the page": page_numbers(markdown),
    }
    every = set().union(*places.values())
    found = []
    for place, numbers in places.items():
        if missing := every - numbers:
            holders = [other for other in places if places[other] & missing]
            found.append(f"{_listed(missing)} missing from {place}, but in {' and '.join(holders)}")
    found += [f"one formula has the tags {tags}: give each its own $$ block" for tags in crowded_formulas(markdown)]
    return found


def problems_of_form(source: str, markdown: str, path: str) -> list[str]:
    """What is wrong with the numbers of another form of the page's idea: its lines may bear the page's numbers only."""
    strange = line_numbers(source) - page_numbers(markdown)
    return [f"{_listed(strange)} on the code lines of {path}, but not on the page"] if strange else []


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(f"({n})" for n in sorted(numbers))
