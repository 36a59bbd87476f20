"""Hierarchical positions: a token stands in a section, a paragraph, a sentence, and has a learned vector for each level.

A flat position says "token 412". Levels say "section 2, paragraph 1, sentence 3, word 5", and each number is small: the
tables are short, every row is seen often, and a long document needs no row that a short one has not trained.

Source: our own plain form; the literature names the idea and has no one formula. BERT adds to each position the number
of its sentence, two levels of which one is flat (Devlin et al. 2018, arXiv:1810.04805, figure 2). HiBERT counts words
within sentences and sentences within documents, in two encoders (Zhang et al. 2019, arXiv:1905.06566). The weights of the
levels are ours: they say, after training, which level the model came to need.

    row_lt = table_l[id_lt]                                  (1)
    out_t = x_t + sum over levels l of weight_l row_lt       (2)
    dx = dout                                                (3)
    dweight_l = sum over t of dout_t . row_lt                (4)
    drow_lt = weight_l dout_t                                (5)
    dtable_lp = sum over all t with id_lt = p of drow_lt     (6)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.basics.embedding import Embedding, embedding
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid


class Hierarchical(NamedTuple):
    """For each level, outermost first, a table with a row for each place within the unit above, and a weight."""

    tables: list[Float[Array, "places d_model"]]
    weights: Float[Array, "levels"]


@checked
def init_hierarchical(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, places: list[Annotated[int, at_least(1)]],
    std: Annotated[float, at_least(0)] = 0.02, dtype: type = np.float32,
) -> Hierarchical:  # fmt: skip
    """Normal rows, places[l] of them at level l, and weights of 1. Raises ValueError where there is no level."""
    if not places:
        raise invalid("places", got="no level", wants="a number of places for each level")
    return Hierarchical([(std * rng.standard_normal((n, d_model))).astype(dtype) for n in places], np.ones(len(places), dtype))


@concept(
    title="Hierarchical positions",
    source="No one formula; after Devlin et al. 2018, arXiv:1810.04805, figure 2, where two levels are summed",
    example=lambda rng: _example(rng),
    rejects=[
        bad("params.tables.1", params=Hierarchical([np.ones((2, 3)), np.ones((6, 4)), np.ones((4, 3))], np.ones(3))),
        bad("params.tables", params=Hierarchical([np.ones((6, 3))] * 2, np.ones(3))),
        bad(ids=np.full((2, 3, 5), 2)),
    ],
)
def hierarchical(
    params: Hierarchical, x: Float[Array, "*batch positions d_model"], *, ids: Annotated[Int[Array, "*batch levels positions"], at_least(0)]
) -> tuple[Array, Backward]:
    """Add to every token, for each level, the weighted row of its place there.

    ids hold a token's place at each level, from 0, in the order of the tables; ``places_of`` makes them from the
    beginnings of units.
    Returns out, shaped like x, and backward: dout -> Hierarchical(dtables, dweights), dx. Rows of places that do not
    occur get exactly 0.
    Raises ValueError where tables, weights and ids differ in their number of levels, a table's rows are not as wide as x, or an
    id is not a row of its table.
    """
    levels = ids.shape[-2]
    if len(params.tables) != levels:
        raise invalid("params.tables", got=f"{len(params.tables)} tables", wants=f"one for every level in ids, {levels}")
    rows, scatters = [], []
    for level, table in enumerate(params.tables):
        here = ids[..., level, :]
        if table.shape[1] != x.shape[-1]:
            raise invalid(f"params.tables.{level}", got=f"rows of {table.shape[1]}", wants=f"d_model = {x.shape[-1]}, as x has")
        if here.max() >= len(table):
            raise invalid("ids", got=f"{here.min()} to {here.max()} at level {level}", wants=f"0 to {len(table) - 1}, the rows of its table")
        row, scatter = embedding(Embedding(table), ids=here)  # (*batch, positions, d_model)  (1)
        rows.append(row)
        scatters.append(scatter)
    out = x + sum(weight * row for weight, row in zip(params.weights, rows, strict=True))  # (2)

    def backward(dout):
        dx = dout                                            # (3)
        dweights = np.array([np.vdot(dout, row) for row in rows])  # (4)
        drows = [weight * dout for weight in params.weights]  # (5)
        dtables = [scatter(drow).weight for scatter, drow in zip(scatters, drows, strict=True)]  # (6)
        return Hierarchical(dtables, dweights), dx

    return out, backward


@checked
def places_of(begins: Bool[Array, "*batch levels positions"]) -> Int[Array, "*batch levels+1 positions"]:
    """The ids of a document from where its units begin: begins[l, t] where token t is the first of a unit of level l.

    Counts start again wherever a unit of the level above begins, and a unit that begins begins one of each level below.
    The level added at the end counts the tokens of the innermost unit.
    """
    begins = np.logical_or.accumulate(begins, axis=-2)
    above = np.concatenate([np.zeros_like(begins[..., :1, :]), begins], axis=-2)
    begins = np.concatenate([begins, np.ones_like(begins[..., :1, :])], axis=-2)
    above[..., 0], begins[..., 0] = True, True               # whatever the text begins with, it begins there
    count = begins.cumsum(axis=-1)
    return count - np.maximum.accumulate(np.where(above, count, 0), axis=-1)


def _example(rng: np.random.Generator):
    params = Hierarchical([rng.normal(size=(places, 3)) for places in (2, 6, 4)], rng.normal(size=3))
    return example(params, rng.normal(size=(2, 5, 3)), ids=np.stack([rng.integers(n, size=(2, 5)) for n in (2, 6, 4)], axis=1))
