"""Balanced texts: every template with every filling of its slots, so that no group stands with one occupation more than with another.

Text that was found has its shares, and a model learns them. Text that is made can have equal ones: all combinations, each once. Then a
group tells nothing about what else is in the text, neither one slot alone nor several together. As many texts as the product of all
list lengths.

Source: full factorial design, Fisher 1935, The Design of Experiments; templates as in May et al. 2019, arXiv:1903.10561, and other
tests of bias. T templates, k slots with n_1 .. n_k words each.

    number of texts N = T n_1 .. n_k                         (1)
    factors of text i = the digits of i, in the bases T, n_1 .. n_k   (2)
    text i = the template of its first digit, each slot filled with the word of its digit   (3)
    table of two factors j, l: number of texts with j = a and l = b, N / (n_j n_l) for every a and b   (4)
    chi-square = sum over a, b of (table - expected)^2 / expected, expected = row sum times column sum / N   (5)
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.foundation import bad, example, invalid, procedure

_TEMPLATES = [["the", "{job}", "said", "that", "{who}", "left"], ["{who}", "met", "the", "{job}"]]


class BalancedTexts(NamedTuple):
    """The texts; for each the number of its template and of the word in each slot; and what these columns are called."""

    texts: list[list[str]]
    factors: Int[Array, "texts factors"]
    names: list[str]


class FactorTable(NamedTuple):
    """How often each pair of levels of two factors stands together, and the chi-square of their independence."""

    counts: Int[Array, "levels others"]
    chi_square: Float[Array, ""]


@procedure(
    title="Balanced texts",
    source="Fisher 1935, The Design of Experiments (the full factorial)",
    example=lambda rng: example(_TEMPLATES, slots={"job": ["nurse", "clerk", "cook"], "who": ["<g1>", "<g2>"]}),
    rejects=[
        bad(templates=[]), bad(templates=["the {job}"]), bad(templates=[_TEMPLATES[0], _TEMPLATES[0]]), bad(templates=[["{who}", "met"]]),
        bad(templates=[["{who}", "{job}", "{when}"]]), bad(slots={}), bad(slots={"job": ["clerk"], "who": []}),
        bad(slots={"job": ["clerk", "clerk"], "who": ["<g1>"]}), bad(slots={"job": "clerk", "who": ["<g1>"]}),
    ],
)  # fmt: skip
def balanced_texts(templates: Sequence[Sequence[str]], *, slots: dict) -> BalancedTexts:
    """All templates (lists of tokens) with all words of all slots. "{job}" is a slot; slots says its words: {"job": [...]}.

    Every slot stands in every template, else two fillings would give one text. The last slot changes fastest.
    Raises ValueError, naming it, for a slot without words or with one twice, one that a template lacks, and one that has no list.
    """
    if not templates:
        raise invalid("templates", got="none", wants="at least one")
    if len({tuple(template) for template in templates}) < len(templates):
        raise invalid("templates", got="one of them twice", wants="each once")
    if not slots:
        raise invalid("slots", got="none", wants="at least one")
    for slot, words in slots.items():
        if isinstance(words, str) or not words:
            raise invalid("slots", got=f"{words!r} for {slot!r}", wants="a list of at least one word")
        if len(set(words)) < len(words):
            raise invalid("slots", got=f"a word twice for {slot!r}", wants="each once")
    for template in templates:
        there = {token[1:-1] for token in template if token.startswith("{") and token.endswith("}")}
        if there != set(slots):
            slot = sorted(there ^ set(slots))[0]
            raise invalid("templates", got=f"{' '.join(template)!r}, which {'lacks' if slot in slots else 'has'} the slot {slot!r}", wants=f"{', '.join(slots)}")
    sizes = [len(templates), *map(len, slots.values())]
    factors = np.indices(sizes).reshape(len(sizes), -1).T    # (1) (2)
    texts: list[list[str]] = []
    for number, *digits in factors:
        filling = {f"{{{slot}}}": words[digit] for (slot, words), digit in zip(slots.items(), digits, strict=True)}
        template = templates[int(number)]
        texts.append([filling.get(token, token) for token in template])  # (3)
    return BalancedTexts(texts, np.ascontiguousarray(factors), ["template", *slots])


@procedure(
    title="Table of two factors",
    source="Pearson 1900, doi:10.1080/14786440009463897",
    example=lambda rng: example(np.array([[0, 1, 2, 0, 1, 2, 0]] * 2), np.array([[0, 0, 1, 1, 0, 1, 1], [1, 0, 0, 1, 0, 0, 0]])),
    rejects=[bad(rows=np.full((2, 7), -1)), bad(columns=np.full((2, 7), 2)), bad("columns", rows=np.zeros((2, 6), int))],
)
def factor_table(rows: Int[Array, "*texts"], columns: Int[Array, "*texts"]) -> FactorTable:
    """How often levels of two factors (numbers from 0, a text each) meet, and how far that is from independence: 0 is exactly there.

    Raises ValueError for a negative level and one that no text has.
    """
    for name, levels in (("rows", rows), ("columns", columns)):
        if levels.min() < 0 or not np.bincount(levels.ravel()).all():
            raise invalid(name, got=f"levels {np.unique(levels).tolist()}", wants="0, 1, .. without a gap")
    shape = int(rows.max()) + 1, int(columns.max()) + 1
    counts = np.bincount((rows * shape[1] + columns).ravel(), minlength=shape[0] * shape[1]).reshape(shape)  # (4)
    expected = counts.sum(1, keepdims=True) * counts.sum(0) / rows.size
    return FactorTable(counts, np.sum((counts - expected) ** 2 / expected))  # (5)
