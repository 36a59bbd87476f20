"""Change the prose of a Markdown page and leave its code alone."""

import re
from collections.abc import Callable

_CODE = re.compile(
    r"^[ \t]*(?P<fence>`{3,}|~{3,})[^\n]*\n.*?^[ \t]*(?P=fence)[ \t]*$"  # fenced block
    r"|(?P<ticks>`+)(?!`)(?:(?!\n[ \t]*\n).)+?(?<!`)(?P=ticks)(?!`)",  # code in a line
    re.MULTILINE | re.DOTALL,
)
_HEADING = re.compile(r"^# +(.+?) *#*$", re.MULTILINE)


def outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Apply `change` to every piece of the page that is not code."""
    pieces, end = [], 0
    for code in _CODE.finditer(markdown):
        pieces += [change(markdown[end : code.start()]), code.group()]
        end = code.end()
    return "".join([*pieces, change(markdown[end:])])


def without_code(markdown: str) -> str:
    """The page's prose and formulas alone."""
    return _CODE.sub("", markdown)


def title(markdown: str, default: str) -> str:
    """The text of the page's `# Title`."""
    found = _HEADING.search(without_code(markdown))
    return found.group(1) if found else default
