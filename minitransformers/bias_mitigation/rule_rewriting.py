"""Rewriting by rule: listed words and phrases of a finished text are replaced by neutral ones, and every edit is put on record.

Nothing but the text is needed, whoever wrote it. The words are read from left to right; in a tree of the lexicon's phrases the longest
that begins here is found. The new words take over the case of the old, and an article in front follows: a fireman, a firefighter; a
chairman, an elected chair. One step in the tree a word, for phrases of bounded length.

Source: the tree is Fredkin's trie, 1960, doi:10.1145/367390.367400; rewriting stands among what is done after the model in the
taxonomy of Gallegos et al. 2023, arXiv:2309.00770. A lexicon is accepted only if no pass over its own output could find anything:
then doing it twice does what doing it once does. w_i are the words, places those of characters in the text.

    trie: a node for each beginning of a phrase; the last word's node bears the target   (1)
    match at i: the longest phrase w_i .. w_j in the trie, with nothing but white space between its words   (2)
    new = target, with the case of the match                 (3)
    article before a match: a or an by the sound of new, if that of the old word called for the other one   (4)
    edit = (start, end, old, new), old = text[start:end]     (5)
    rewritten = text with each text[start:end] replaced by new   (6)
    undone, from left to right: old in the place of new, which begins at start   (7)
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from minitransformers.foundation import bad, example, invalid, procedure

NEUTRAL_FORMS = {"chairman": "chair", "fireman": "firefighter", "policeman": "police officer"}
# A possessive is a word and what follows it: the chairman's is the chair's.
_WORD = re.compile(r"\w+(?:['’-](?!s\b)\w+)*")
_QUOTED = re.compile(r'"[^"]*"|“[^”]*”')
_END = ""                                                    # no word is empty: the key of a target in a node


class Edit(NamedTuple):
    """Characters start to end of the source, old, have become new."""

    start: int
    end: int
    old: str
    new: str


class RewrittenText(NamedTuple):
    """The text as it is now, and what was done to it, from left to right."""

    text: str
    edits: list[Edit]


def begins_with_a_vowel(word: str) -> bool:
    """Whether English says "an" before it: by the first letter, with the usual exceptions for what is not said as it is written."""
    word = word.lower()
    if re.match(r"(hour|honest|honou?r|heir)", word):
        return True
    return word[:1] in tuple("aeiou") and not re.match(r"(uni([^nm]|$)|us[eu]|ut[ie]|eu|one\b|once\b)", word)


@procedure(
    title="Rewriting by rule",
    source="Fredkin 1960, Trie memory, doi:10.1145/367390.367400; the taxonomy of Gallegos et al. 2023, arXiv:2309.00770",
    example=lambda rng: example('The Chairman met a fireman. "A policeman", he wrote.', lexicon=NEUTRAL_FORMS),
    rejects=[
        bad(lexicon={}), bad(lexicon={"": "x"}), bad(lexicon={"x": ""}), bad(lexicon={"Fireman": "firefighter"}), bad(lexicon={"fireman ": "x"}),
        bad(lexicon={"x": "y", "y": "x"}), bad(lexicon={"x": "my x"}), bad(lexicon={"x y": "z", "w": "u x"}), bad(lexicon={"x y": "z", "w": "y u"}),
        bad(lexicon={"x y z": "u", "w": "y"}), bad(lexicon={"an actor": "x"}),
    ],
)  # fmt: skip
def rewrite(text: str, *, lexicon: dict, keep_quoted: bool = True, vowel: Callable = begins_with_a_vowel) -> RewrittenText:
    """The text with every phrase of the lexicon replaced, and the list of edits.

    lexicon has phrases in lower case, words apart by one space, and their targets. keep_quoted leaves what stands between double
    quotation marks as it is. vowel(word) says whether "an" stands before a word.
    Raises ValueError, naming the phrase, where a phrase or a target is empty or a phrase holds an article, and where a target holds a
    phrase or could become part of one, so that a second pass would change the text again.
    """
    trie = _trie(lexicon)
    quoted = [found.span() for found in _QUOTED.finditer(text)] if keep_quoted else []
    spans = [found.span() for found in _WORD.finditer(text)]
    words = [text[start:end].lower() for start, end in spans]
    edits: list[Edit] = []
    i = 0
    while i < len(spans):
        last, target = _longest(trie, text, words, spans, i)
        start, end = spans[i][0], spans[last][1]
        if target is None or any(a < end and start < b for a, b in quoted):
            i += 1
            continue
        old = text[start:end]
        new = _cased(old, target)                            # (3)
        if i and words[i - 1] in ("a", "an") and _adjacent(text, spans[i - 1], spans[i]):
            edits += _article(text, spans[i - 1], vowel(old), vowel(new))
        edits.append(Edit(start, end, old, new))             # (5)
        i = last + 1
    pieces, done = [], 0
    for edit in edits:
        pieces += [text[done : edit.start], edit.new]
        done = edit.end
    return RewrittenText("".join([*pieces, text[done:]]), edits)  # (6)


@procedure(
    title="Undo edits",
    source="bookkeeping of offsets; the inverse of rewrite",
    example=lambda rng: example("The Chair met us.", edits=[Edit(4, 12, "Chairman", "Chair")]),
    rejects=[bad(text="The clerk met us."), bad(edits=[Edit(5, 13, "Chairman", "Chair")]), bad(edits=[(4, 12)])],
)
def undo_edits(text: str, *, edits: Sequence[Edit]) -> str:
    """The source of a rewritten text. Raises ValueError where an edit's new words do not stand where they must."""
    for edit in edits:                                       # from left to right: what is before an edit is the source again
        start, end = edit.start, edit.start + len(edit.new)
        if text[start:end] != edit.new:
            raise invalid("edits", got=repr(text[start:end]), wants=f"{edit.new!r} at {start} of the text, once the edits before are undone")
        text = text[:start] + edit.old + text[end:]          # (7)
    return text


def _trie(lexicon: dict) -> dict:
    if not lexicon:
        raise invalid("lexicon", got="no phrases", wants="at least one")
    phrases = {}
    for phrase, target in lexicon.items():
        if not target.strip() or phrase != " ".join(_WORD.findall(phrase.lower())) or not phrase:
            raise invalid("lexicon", got=f"{phrase!r} to {target!r}", wants="words in lower case with one space between, and a target")
        phrases[phrase] = phrase.split()
        if {"a", "an"} & set(phrases[phrase]):
            raise invalid("lexicon", got=f"the phrase {phrase!r}", wants="phrases without an article, which may be changed itself")
    trie: dict = {}
    for phrase, target in lexicon.items():
        found = _WORD.findall(target.lower())
        for other, words in phrases.items():
            if _meet(found, words):
                raise invalid("lexicon", got=f"{phrase!r} to {target!r}, from which {other!r} could arise", wants="targets that stay")
        node = trie
        for word in phrases[phrase]:
            node = node.setdefault(word, {})                 # (1)
        node[_END] = target
    return trie


def _meet(target: list[str], phrase: list[str]) -> bool:
    """Whether a text that has these words can have the phrase in a place that touches them."""
    for shift in range(1 - len(phrase), len(target)):        # where the phrase would begin, counted from the target's first word
        common = range(max(0, shift), min(len(target), shift + len(phrase)))
        if common and all(target[k] == phrase[k - shift] for k in common):
            return True
    return False


def _longest(trie: dict, text: str, words: list[str], spans: list[tuple[int, int]], first: int) -> tuple[int, str | None]:
    node, last, target = trie, first, None
    for i in range(first, len(words)):
        if words[i] not in node or (i > first and not _adjacent(text, spans[i - 1], spans[i])):
            break
        node = node[words[i]]
        if _END in node:
            last, target = i, node[_END]                     # (2)
    return last, target


def _adjacent(text: str, one: tuple[int, int], next_one: tuple[int, int]) -> bool:
    return text[one[1] : next_one[0]].isspace()


def _cased(old: str, target: str) -> str:
    if len(old) > 1 and old.isupper():
        return target.upper()
    return target[:1].upper() + target[1:] if old[:1].isupper() else target


def _article(text: str, span: tuple[int, int], before: bool, after: bool) -> list[Edit]:
    """The edit that makes an article fit, none where both words want the same: a slip of the author's is left."""
    if before == after:
        return []
    old = text[slice(*span)]
    return [Edit(*span, old, _cased(old, "an" if after else "a"))]  # (4)
