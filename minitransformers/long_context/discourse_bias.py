"""Discourse bias: what two tokens are to each other in the document is added to the score between them.

Tokens of one sentence, of one paragraph, of one section: how close two words are in the structure of a text says more than how many words
lie between them. Each relation has a learned number for each head, so a head can keep to a sentence, or leave it. Any other
numbering of relations serves as well: cause, contrast and elaboration between sentences, from a discourse parser. Time and memory
O(heads queries keys) for the bias, relations x heads parameters.

Source: our own plain form, a table over relations as T5's is over distances (Raffel et al. 2020, arXiv:1910.10683, section 2.1);
relations of structure after Cao and Wang 2022, HIBRIDS, arXiv:2203.10741, who look a bias up by the path between two sections in
the tree of sections, its length and the difference of levels.

    relation_ij = the number of levels, from the outermost on, at which i and j stand in one unit   (1)
    out_hij = table of relation_ij and h                     (2)
    dtable_rh = sum over i, j with relation_ij = r of dout_hij   (3)

Relations are whole numbers that the text decides: nothing is differentiated through them.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, procedure


class DiscourseBias(NamedTuple):
    """What a relation adds to the score: a row for each relation, a column for each head."""

    table: Float[Array, "relations heads"]


@checked
def init_discourse_bias(
    rng: np.random.Generator, *, num_heads: Annotated[int, at_least(1)], num_relations: Annotated[int, at_least(1)] = 4,
    std: Annotated[float, at_least(0)] = 0.02, dtype: type = np.float32,
) -> DiscourseBias:  # fmt: skip
    """Normal numbers of deviation ``std``: at the start all relations are nearly alike."""
    return DiscourseBias((std * rng.standard_normal((num_relations, num_heads))).astype(dtype))


@concept(
    title="Discourse bias",
    source="After Raffel et al. 2020, arXiv:1910.10683, section 2.1, and Cao and Wang 2022, arXiv:2203.10741",
    example=lambda rng: example(DiscourseBias(rng.normal(size=(5, 3))), relations=rng.integers(4, size=(2, 5, 6))),
    rejects=[bad(relations=np.full((5, 6), 5))],
)
def discourse_bias(
    params: DiscourseBias, *, relations: Annotated[Int[Array, "*batch queries keys"], at_least(0)]
) -> tuple[Array, Backward]:
    """A bias (*batch, heads, queries, keys) for the scores, from the relation of each query to each key.

    relations are rows of the table; ``discourse_relations`` makes them from the units of a text.
    Returns out, and backward: dout -> DiscourseBias(dtable). Relations that do not occur get exactly 0.
    Raises ValueError where a relation is no row of the table.
    """
    count, heads = params.table.shape
    if relations.max() >= count:
        raise invalid("relations", got=f"{relations.min()} to {relations.max()}", wants=f"0 to {count - 1}, the rows of params.table")
    out = np.moveaxis(params.table[relations], -1, -3)       # (*batch, heads, queries, keys)  (2)

    def backward(dout):
        # A sum for each relation, as np.add.at would make it, but many times faster.
        sums = [np.bincount(relations.ravel(), weights=dout[..., h, :, :].ravel(), minlength=count) for h in range(heads)]
        return DiscourseBias(np.stack(sums, axis=1).astype(dout.dtype))  # (3)

    return out, backward


@procedure(
    title="Relations of structure",
    source="After Cao and Wang 2022, arXiv:2203.10741, section 3",
    example=lambda rng: example(np.array([[[0, 0, 0, 1, 1], [0, 0, 1, 2, 2]], [[0, 1, 1, 1, 1], [0, 1, 1, 2, 3]]])),
    rejects=[bad(units=np.array([[0, 1, 0]])), bad(units=np.array([[0, 0, 1], [0, 1, 1]]))],
)
def discourse_relations(units: Int[Array, "*batch levels positions"]) -> Int[Array, "*batch positions positions"]:
    """How many levels two tokens share: with sections, paragraphs and sentences 3 in one sentence, 2 in one paragraph, 1, or 0.

    units hold for each level, outermost first, the number of the unit that a token stands in. Numbers run on through the whole text
    and do not begin again within the unit above, so they never go backwards; they may leave some out.
    Raises ValueError where numbers go backwards, or a unit goes on where one above it ends.
    """
    steps = np.diff(units, axis=-1)
    if (steps < 0).any():
        raise invalid("units", got="numbers that go backwards", wants="units counted on through the text")
    begins = steps > 0
    if (begins[..., :-1, :] & ~begins[..., 1:, :]).any():
        raise invalid("units", got="a unit that goes on where one above it ends", wants="units that begin where one above them does")
    return np.sum(units[..., :, None] == units[..., None, :], axis=-3)  # units nest: shared inside, shared outside  (1)
