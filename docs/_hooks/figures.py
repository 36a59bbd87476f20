"""Figures that read in light and dark: the SVG stands in the page and takes the text's colour."""

import os
import re
from collections.abc import Callable
from html import escape
from pathlib import Path

_IMAGE = re.compile(r"^(?P<indent>[ \t]*)!\[(?P<caption>.*?)\]\((?P<path>[^()\s]+\.svg)\)[ \t]*$", re.MULTILINE)
_PLATES = re.compile(r"(?:^[ \t]*!\[.*?\]\([^()\s]+\.svg\)[ \t]*(?:\n|\Z))+", re.MULTILINE)
_SLOT = re.compile(r'<div class="figure-slot" data-svg="([^"]+)"></div>')
_REFERENCE = re.compile(r'(\bid="|\bhref="#|url\(#|labelledby=")([^")]+)')
_SIZE = re.compile(r'\s(width|height)="([\d.]+)(?:pt|px)?"')
_POINT = 4 / 3  # CSS pixels


def mark(text: str, folder: Path, warn: Callable[[str], None], credit: Callable[[str], str] = lambda name: "") -> str:
    """Replace each image line by a figure with an empty slot; the caption stays Markdown. Lines that follow on each other stand side by side.

    credit of a figure's name, which says who measured it, stands behind the figure.
    """

    def figure(found: re.Match[str]) -> str:
        indent, caption, path = found["indent"], found["caption"], found["path"]
        if not _beside(folder, path).is_file():
            warn(f"the figure {path} is missing: run the chapter's script")
            return found.group()
        lines = ['<figure class="plate" markdown="1">', f'<div class="figure-slot" data-svg="{path}"></div>']
        lines += [f'<figcaption markdown="span">{caption}</figcaption>'] if caption else []
        return "\n".join(indent + line for line in [*lines, "</figure>"]) + credit(Path(path).stem)

    def plates(found: re.Match[str]) -> str:
        figures, count = _IMAGE.subn(figure, found.group())
        indent = figures[: len(figures) - len(figures.lstrip())]
        return figures if count == 1 else f'{indent}<div class="plates" markdown="1">\n{figures}{indent}</div>\n'

    return _PLATES.sub(plates, text)


def fill(html: str, folder: Path) -> str:
    """Put the SVG files into their slots, with ids that occur once on the page."""
    count = 0

    def inline(found: re.Match[str]) -> str:
        nonlocal count
        count += 1
        text = _beside(folder, found.group(1)).read_text(encoding="utf-8")
        return inline_svg(text, f"fig{count}", Path(found.group(1)).stem.replace("_", " "))

    return _SLOT.sub(inline, html)


def _beside(folder: Path, path: str) -> Path:
    return Path(os.path.normpath(folder / path))             # the folder of a page that is made need not exist


def inline_svg(text: str, prefix: str, label: str) -> str:
    """An SVG file as an element of the page: black becomes the text's colour, ids and styles stay inside."""
    text = re.sub(r"<\?xml.*?\?>|<!DOCTYPE[^>]*>|<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"#000000\b", "currentColor", text).replace("xlink:href", "href")
    text = _REFERENCE.sub(rf"\1{prefix}-\2", text)
    text = re.sub(r"(<style[^>]*>\s*)\*", rf"\1#{prefix} *", text)
    opening = re.search(r"<svg\b[^>]*>", text)
    if opening is None:
        raise ValueError(f"{label}: no <svg> element in the file")
    tag = _root(opening.group(), prefix, label)
    return (tag + text[opening.end() :]).strip()


def _root(tag: str, prefix: str, label: str) -> str:
    sizes = {name: float(value) for name, value in _SIZE.findall(tag)}
    unit = _POINT if 'pt"' in tag else 1.0
    tag = re.sub(r'\s(?:id|role|aria-label)="[^"]*"', "", _SIZE.sub("", tag))
    if "viewBox" not in tag and len(sizes) == 2:
        tag = tag.replace("<svg", f'<svg viewBox="0 0 {sizes["width"]:g} {sizes["height"]:g}"', 1)
    width = f' style="max-width:{sizes["width"] * unit:.0f}px"' if "width" in sizes else ""
    return tag.replace("<svg", f'<svg id="{prefix}" role="img" aria-label="{escape(label)}" fill="currentColor"{width}', 1)
