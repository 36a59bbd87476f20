"""What a page offers to do: the exercise on its backward that the command writes and checks."""

import re
from collections.abc import Iterable
from functools import cache

from minitransformers.foundation import catalogue
from minitransformers.foundation.catalogue import Entry
from minitransformers.foundation.exercises import blank

_EXERCISES = re.compile(r"^## Exercises[ \t]*$\n", re.MULTILINE)
_NEXT = re.compile(r"^## ", re.MULTILINE)


def put_in(markdown: str, entries: Iterable[Entry]) -> str:
    """The page with a line about the command at the end of its exercises, where its concept has a backward that can be left out."""
    name = next((entry.name for entry in entries if _has_blank(entry.name)), None)
    heading = _EXERCISES.search(markdown)
    if name is None or heading is None:
        return markdown
    following = _NEXT.search(markdown, heading.end())
    end = following.start() if following else len(markdown)
    text = (
        f"**In code.** `minitransformers exercise {name}` writes a file that holds this forward and a blank where its backward was; "
        f"`minitransformers exercise --check exercise_{name}.py` says which gradient of yours is wrong, where, and what was probably forgotten."
    )
    return markdown[:end].rstrip() + f"\n\n{text}\n\n" + markdown[end:]


@cache
def _has_blank(name: str) -> bool:
    try:
        blank(catalogue.find(name))
    except ValueError:
        return False
    return True
