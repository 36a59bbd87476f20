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

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.basics.embedding import Embedding, embedding
from minitransformers.foundation import bad, concept, example, invalid, whole_number


class Hierarchical(NamedTuple):
    """For each level, outermost first, a table with a row for each place within the unit above, and a weight."""

    tables: list[Float[Array, "places d_model"]]
    weights: Float[Array, "levels"]


def init_hierarchical(rng: np.random.Generator, d_model: int, *, places: list[int], std: float = 0.02, dtype: type = np.float32) -> Hierarchical:
    """Normal rows, places[l] of them at level l, and weights of 1.

    Raises ValueError unless there is a level, and all sizes are whole numbers from 1.
    """
    if not len(places):
        raise invalid("places", got="no level", wants="a number of places for each level")
    d_model = whole_number("d_model", d_model, least=1)
    places = [whole_number(f"places.{level}", number, least=1) for level, number in enumerate(places)]
    return Hierarchical([(std * rng.standard_normal((n, d_model))).astype(dtype) for n in places], np.ones(len(places), dtype))


def _example(rng):
    params = Hierarchical([rng.normal(size=(places, 3)) for places in (2, 6, 4)], rng.normal(size=3))
    return example(params, rng.normal(size=(2, 5, 3)), ids=np.stack([rng.integers(n, size=(2, 5)) for n in (2, 6, 4)], axis=1))


@concept(
    title="Hierarchical positions",
    source="No one formula; after Devlin et al. 2018, arXiv:1810.04805, figure 2, where two levels are summed",
    example=_example,
    rejects=[
        bad(x=np.ones((2, 6, 3))),
        bad("params.tables.1", params=Hierarchical([np.ones((2, 3)), np.ones((6, 4)), np.ones((4, 3))], np.ones(3))),
        bad("params.tables", params=Hierarchical([np.ones((6, 3))] * 2, np.ones(3))),
        bad("ids", ids=np.zeros((2, 2, 5), int)),
        bad("ids", ids=np.zeros((2, 3, 4), int)),
        bad("ids", ids=np.full((2, 3, 5), 2)),
        bad("ids", ids=np.full((2, 3, 5), -1)),
        bad("ids", ids=np.zeros((2, 3, 5))),
    ],
)
def hierarchical(params: Hierarchical, x: Float[Array, "*batch length d_model"], *, ids: Int[Array, "*batch levels length"]):
    """Add to every token, for each level, the weighted row of its place there.

    ids hold a token's place at each level, from 0, in the order of the tables; ``places_of`` makes them from the
    beginnings of units.
    Returns out, shaped like x, and backward: dout -> Hierarchical(dtables, dweights), dx. Rows of places that do not
    occur get exactly 0.
    Raises ValueError where tables, weights and ids differ in their number of levels, or an id is not a row of its table.
    """
    levels = ids.shape[-2]
    if not len(params.tables) == len(params.weights) == levels:
        got = f"{len(params.tables)} tables and {len(params.weights)} weights"
        raise invalid("params.tables", got=got, wants=f"one of each for every level in ids, {levels}")
    rows, scatters = [], []
    for level, table in enumerate(params.tables):
        here = ids[..., level, :]
        if table.shape[1] != x.shape[-1]:
            raise invalid(f"params.tables.{level}", got=f"rows of {table.shape[1]}", wants=f"d_model = {x.shape[-1]}, as x has")
        if here.min() < 0 or here.max() >= len(table):
            raise invalid("ids", got=f"{here.min()} to {here.max()} at level {level}", wants=f"0 to {len(table) - 1}, the rows of its table")
        row, scatter = embedding(Embedding(table), ids=here)  # (*batch, length, d_model)  (1)
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


def places_of(begins: Bool[Array, "*batch levels length"]) -> Int[Array, "*batch levels+1 length"]:
    """The ids of a document from where its units begin: begins[l, t] where token t is the first of a unit of level l.

    Counts start again wherever a unit of the level above begins, and a unit that begins begins one of each level below.
    The level added at the end counts the tokens of the innermost unit.
    Raises ValueError unless begins has the axes levels and length, neither of them empty.
    """
    if begins.ndim < 2 or not begins.size:
        raise invalid("begins", got=f"shape {begins.shape}", wants="(..., levels, length), and no empty axis")
    begins = np.logical_or.accumulate(begins, axis=-2)
    above = np.concatenate([np.zeros_like(begins[..., :1, :]), begins], axis=-2)
    begins = np.concatenate([begins, np.ones_like(begins[..., :1, :])], axis=-2)
    above[..., 0], begins[..., 0] = True, True               # whatever the text begins with, it begins there
    count = begins.cumsum(axis=-1)
    return count - np.maximum.accumulate(np.where(above, count, 0), axis=-1)
