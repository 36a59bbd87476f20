"""A picture of shapes for a page that has none: what goes into the concept, what comes out, and which gradients come back.

Drawn from the label's own call and the signature, so it cannot go stale. An array is a sheet as wide as its last axis and as
high as the one before; sheets behind it stand for the axes before those. Names of axes are the signature's; where an axis has
none, its size in the call stands there. What has no arrays, but texts, shows the values of the call themselves.
"""

import inspect
import re
import typing
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from _hooks.values import lines_of
from minitransformers.foundation import trees
from minitransformers.foundation.catalogue import Entry
from minitransformers.foundation.gradients import fresh

_PICTURE = re.compile(r"^!\[", re.MULTILINE)
Names = dict[int | tuple[int, ...], set[str]]  # of axes, by their size; of free axes in front, by their sizes
_MOST = 7  # arrays on one side; of more, the parameters stand as one
_UNIT, _LARGEST, _BEHIND = 7.0, 9, 4.0  # of a sheet: points for one number, numbers at most, points between sheets


class Sheet(NamedTuple):
    """One array of the picture."""

    name: str
    shape: tuple[int, ...]
    axes: str
    learns: bool


def put_in(markdown: str, entries: Iterable[Entry]) -> str:
    """The page with a picture after its first paragraphs, unless it has one: of its first entry with arrays to draw, or of the first of all."""
    entries = list(entries)
    if not entries or _PICTURE.search(markdown):
        return markdown
    drawn = next(filter(None, map(picture, entries)), "") or _in_words(min(entries, key=_line))
    blocks = markdown.split("\n\n")
    place = next((i for i, block in enumerate(blocks) if i and not _is_prose(block)), len(blocks))
    return "\n\n".join([*blocks[:place], drawn, *blocks[place:]])


def _is_prose(block: str) -> bool:
    return not block.lstrip("\n").startswith(("|", "!!!", "???", "```", "$$", "#", "- ", "1. ", "\\[", "[[", "<"))


def picture(entry: Entry) -> str:
    """The figure as HTML; empty where nothing that goes in, or nothing that comes out, is an array."""
    first, out = _called(entry)
    hints = typing.get_type_hints(inspect.unwrap(entry.function), include_extras=True)
    known: Names = {}
    for name, value, _ in first:
        _learn(value, hints.get(name), known)
    going_in = [sheet for name, value, by_place in first for sheet in _sheets(name, value, hints.get(name), known, by_place and not entry.is_procedure)]
    coming_out = _sheets("out", out, None, known, not entry.is_procedure)
    if not going_in or not coming_out:
        return ""
    gradients = [sheet for sheet in going_in if sheet.learns]
    return _drawn(entry.name, going_in, coming_out, bool(gradients), any(not sheet.learns for sheet in going_in) and not entry.is_procedure)


def _called(entry: Entry) -> tuple[list[tuple[str, Any, bool]], Any]:
    """What the label's own call gives by name, the value and whether it stands by position; and what comes out."""
    example = entry.example(np.random.default_rng(0))
    result = entry.function(*example.args, **fresh(example.config))
    given = zip(inspect.signature(entry.function).parameters, example.args, strict=False)
    first = [(name, value, True) for name, value in given] + [(name, value, False) for name, value in example.config.items()]
    return first, result if entry.is_procedure else result[0]


def _line(entry: Entry) -> int:
    return inspect.getsourcelines(inspect.unwrap(entry.function))[1]


def _in_words(entry: Entry) -> str:
    """The same figure of what has no arrays: the values themselves."""
    first, out = _called(entry)
    sides = ["".join(_card(name, value) for name, value, _ in first if value is not None), _card("out", out)]
    return _figure(entry.name, sides, "→", "A call, and what comes of it.")


def _card(name: str, value: Any) -> str:
    lines = "".join(f"<span>{escape(line)}</span>" for line in lines_of(value))
    return f'<div class="shapes__values">{lines}<code>{escape(name)}</code></div>'


def _dims(hint: Any) -> list[str] | None:
    """The names of the axes that an annotation gives, if it is that of one array."""
    parts = [hint, *typing.get_args(hint)]
    return next((part.dim_str.split() for part in parts if getattr(part, "dim_str", "")), None)


def _learn(value: Any, hint: Any, known: Names) -> None:
    """Which names an axis of some size has, by the arrays and fields whose axes are named."""
    fields = next((part for part in (hint, *typing.get_args(hint)) if isinstance(part, type) and hasattr(part, "_fields")), None)
    if fields is not None and hasattr(value, "_fields"):
        hints = typing.get_type_hints(fields, include_extras=True)
        for field in value._fields:
            _learn(getattr(value, field), hints.get(field), known)
    elif isinstance(value, np.ndarray) and (dims := _dims(hint)) is not None:
        for name, size in _matched(dims, value.shape):
            if name.isidentifier():
                known.setdefault(size, set()).add(name)
        if (dims[0] == "..." or "*" in dims[0]) and len(value.shape) >= len(dims):
            known.setdefault(value.shape[: len(value.shape) - len(dims) + 1], set()).add("…")


def _matched(dims: list[str], shape: tuple[int, ...]) -> list[tuple[str, int]]:
    """Names beside sizes: from the left up to free axes, and from the right."""
    free = next((i for i, name in enumerate(dims) if name == "..." or "*" in name), len(dims))
    after = len(dims) - free - 1
    pairs = list(zip(dims[:free], shape, strict=False))
    return pairs + (list(zip(dims[free + 1 :], shape[len(shape) - after :], strict=False)) if after > 0 else [])


def _sheets(name: str, value: Any, hint: Any, known: Names, learns: bool) -> list[Sheet]:
    arrays = [(path, leaf) for path, leaf in trees.leaves(value, name) if isinstance(leaf, (np.ndarray, np.generic)) and np.asarray(leaf).dtype.kind in "fiub"]
    if len(arrays) > _MOST:
        count = sum(np.size(leaf) for _, leaf in arrays)
        return [Sheet(name, (5, 5, 5), f"{len(arrays)} arrays, {count:,} numbers", learns)]
    own = _dims(hint) if isinstance(value, np.ndarray) else None
    return [Sheet(path, np.shape(leaf), _axes(np.shape(leaf), own, known), learns) for path, leaf in arrays]


def _axes(shape: tuple[int, ...], own: list[str] | None, known: Names) -> str:
    """The axes in words: by the array's own annotation, or by sizes that only one name has."""
    if own is not None:
        words = [re.sub(r"^[*#?]+", "", dim) if dim != "..." else "…" for dim in own]
        return ", ".join("…" if "*" in dim else word for dim, word in zip(own, words, strict=True))
    free = max((len(key) for key in known if isinstance(key, tuple) and shape[: len(key)] == key), default=0)
    named = [next(iter(names)) if len(names := known.get(size, set())) == 1 else str(size) for size in shape[free:]]
    return ", ".join(["…"] * bool(free) + named) or "one number"


def _drawn(name: str, going_in: list[Sheet], coming_out: list[Sheet], gradients: bool, frozen: bool) -> str:
    says = "What goes in, and what comes out."
    if gradients:
        says += " Backward, the other way: for the output's gradient one for each blue array, of its shape."
        says += " A grey one is a setting and has none." if frozen else ""
    return _figure(name, ["".join(map(_sheet, side)) for side in (going_in, coming_out)], "⇄" if gradients else "→", says)


def _figure(name: str, sides: Sequence[str], arrow: str, says: str) -> str:
    return (
        f'<figure class="shapes"><div class="shapes__row"><div class="shapes__side">{sides[0]}</div>'
        f'<div class="shapes__last"><div class="shapes__name"><span aria-hidden="true">{arrow}</span><code>{escape(name)}</code><span aria-hidden="true">{arrow}</span></div>'
        f'<div class="shapes__side">{sides[1]}</div></div></div><figcaption>{says}</figcaption></figure>'
    )


def _sheet(sheet: Sheet) -> str:
    *before, high, wide = (1, 1, *sheet.shape)
    height, width = (_UNIT * min(max(n, 1), _LARGEST) + 3 for n in (high, wide))
    behind = min(int(np.prod(before)) - 1, 3) if len(sheet.shape) > 2 else 0
    shift = _BEHIND * behind
    rows = "".join(
        f'<rect x="{1 + _BEHIND * i:g}" y="{1 + shift - _BEHIND * i:g}" width="{width:g}" height="{height:g}"/>' for i in range(behind, -1, -1)
    )
    kind = "" if sheet.learns else " shapes__array--fixed"
    return (
        f'<div class="shapes__array{kind}"><svg width="{width + shift + 2:g}" height="{height + shift + 2:g}" aria-hidden="true">{rows}</svg>'
        f"<code>{escape(sheet.name)}</code><span>{escape(sheet.axes)}</span></div>"
    )
