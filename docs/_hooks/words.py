"""The glossary's words, explained where a page first uses them: a mouse or a keyboard that rests on one shows what it means."""

import re
from functools import cache
from html import escape
from pathlib import Path

_ENTRY = re.compile(r"^(?P<word>[^\n|#:`$][^\n$`]*)\n:   (?P<text>(?:.+\n?(?:    .+\n?)*))", re.MULTILINE)
# Words of ordinary English that a page may mean as such; their entries are for who looks them up.
_PLAIN = {"error", "task", "step", "section", "form", "role", "claim", "catalogue", "concept"}
_TAG = re.compile(r"(<[^>]*>)")
_APART = re.compile(r"<(/?)(a|code|pre|h[1-6]|svg|script|style|summary|abbr|table|nav|figure|button)\b", re.IGNORECASE)
_MATHEMATICS = re.compile(r"<(div|span) class=\"arithmatex\">")


@cache
def explained(glossary: Path) -> dict[str, str]:
    """A word to the first sentence of its explanation, without marks of Markdown; none where there is no glossary."""
    found: dict[str, str] = {}
    if not glossary.is_file():
        return found
    for entry in _ENTRY.finditer(glossary.read_text(encoding="utf-8")):
        text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", " ".join(entry["text"].split()))
        text = re.sub(r"^\$[^$]+\$[:.]?\s*", "", text)        # a formula in front; those of one letter can be read as they are
        sentence = re.sub(r"\$([a-zA-Z])\$", r"\1", re.split(r"(?<=[.])\s", text)[0])
        if "$" not in sentence and entry["word"].strip().lower() not in _PLAIN:
            found[entry["word"].strip()] = re.sub(r"[`*]", "", sentence[:1].upper() + sentence[1:])
    return found


def explain(html: str, words: dict[str, str]) -> str:
    """Put an explanation around the first use of each word in running text."""
    if not words:
        return html
    open_words = {word.lower(): text for word, text in words.items()}
    pattern = re.compile(r"(?<![\w-])(" + "|".join(sorted(map(re.escape, open_words), key=len, reverse=True)) + r")(?![\w-])", re.IGNORECASE)
    pieces, depth, formula = [], 0, 0
    for piece in _TAG.split(html):
        if piece.startswith("<"):
            if tag := _APART.match(piece):
                depth += -1 if tag.group(1) else 1
            if _MATHEMATICS.match(piece):
                formula = 1
            elif formula and piece in ("</div>", "</span>"):
                formula = 0
            pieces.append(piece)
        elif depth or formula:
            pieces.append(piece)
        else:
            pieces.append(pattern.sub(lambda found: _once(found.group(), open_words), piece))
    return "".join(pieces)


def _once(word: str, open_words: dict[str, str]) -> str:
    text = open_words.pop(word.lower(), None)
    return word if text is None else f'<abbr title="{escape(text, quote=True)}" tabindex="0">{word}</abbr>'
