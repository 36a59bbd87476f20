r"""GPT-2's rule for where text is cut before bytes are merged: no token reaches over such a cut.

The rule was published as a regular expression. Python's re has no \p{L} (letters) and no \p{N} (numbers), and its \s has four
control characters too many:

    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+

But what it does depends on neighbours alone, so that a pass of comparisons over the whole text finds all cuts. Every character is of
one of four kinds, by Unicode's general categories: letters L, numbers N, white space, and others. A piece begins

- where the kind changes,
- and before the last of several spaces, if something follows them;
- not behind a blank, though, which goes with what it stands before;
- and an apostrophe that begins a piece takes s, t, m, d, re, ve or ll with it, behind which the next piece begins.

The kinds are those of Python's own Unicode tables (unicodedata.unidata_version). A character that is newer than these is of the
others; a program with newer tables may say it is a letter.
"""

import functools
import unicodedata

import numpy as np
from numpy import ndarray as Array

LETTER, NUMBER, SPACE, OTHER = range(4)
# Unicode's property White_Space. str.isspace() says the same of U+001C to U+001F besides.
WHITE_SPACE = frozenset("\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000")
_CONTRACTIONS = ("s", "t", "m", "d", "re", "ve", "ll")
_PLANE = 65_536  # code points


def cut(text: str, *, digits: bool = False) -> list[str]:
    """The pieces of a text, which joined are the text again. digits cuts every number out first, one piece a digit, as SmolLM2 does.

    What stands before such a digit ends there: spaces are then neither parted nor joined to the digit.
    """
    if not text:
        return []
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    planes, kind = codes // _PLANE, np.empty(len(codes), np.uint8)
    for plane in np.flatnonzero(np.bincount(planes)).tolist():
        here = planes == plane
        kind[here] = _kinds(plane)[codes[here] % _PLANE]

    begins = np.ones(len(codes), bool)
    begins[1:] = kind[1:] != kind[:-1]
    last = (kind[:-1] == SPACE) & (kind[1:] != SPACE)        # of several spaces, or the only one; something follows
    if digits:
        last &= kind[1:] != NUMBER
        begins |= kind == NUMBER
    begins[:-1] |= last
    begins[1:] &= ~(last & (codes[:-1] == ord(" ")))
    for i in np.flatnonzero(begins & (codes == ord("'"))).tolist():
        taken = next((len(ending) for ending in _CONTRACTIONS if text.startswith(ending, i + 1)), 0)
        if taken:
            begins[i + 1] = False
            begins[i + 1 + taken : i + 2 + taken] = True     # nothing at the end of the text
    places = np.flatnonzero(begins).tolist()
    return [text[start:end] for start, end in zip(places, [*places[1:], len(text)], strict=True)]


@functools.cache
def _kinds(plane: int) -> Array:
    """The kind of every character of a plane of Unicode. Nearly all texts need one or two of the 17."""
    characters, by_category = map(chr, range(plane * _PLANE, (plane + 1) * _PLANE)), {"L": LETTER, "N": NUMBER}
    return np.array([SPACE if c in WHITE_SPACE else by_category.get(unicodedata.category(c)[0], OTHER) for c in characters], np.uint8)
