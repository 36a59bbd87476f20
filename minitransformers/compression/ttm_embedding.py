"""Tensor-train embedding: the rows of a table are products of small cores, and only those that are asked for are multiplied out.

A token's number is written as digits, and so are the features of its row. Core k reads digit k of the number and holds the digits k of
the features: a slice of it is a matrix of matrices, and a row is the product of one slice of each core. Tokens that stand several times
in a text are looked up once, and so is what several tokens have in common, the product of their first digits.

Source: Khrulkov et al. 2019, arXiv:1901.10787 (tensor-train matrices for embeddings); Yang et al. 2024 (CoMERA), arXiv:2405.14377,
section 4.1, for looking every token up once. Differs from the paper: there, of four cores, the first two and the last two are multiplied
out for all digits beforehand; here the digits that are asked for alone, for any number of cores. And cores have no gates. v_k and e_k are
the values that digit k of a token and of a feature have, d the number of cores, one core after the other:

    heads_k = the different (i_1 .. i_k) among the tokens; up says which of heads_(k-1) one begins with, i_k is its last digit   (1)
    part_k[p] = part_(k-1)[up(p)] core_k[:, i_k(p)], part_0 = 1, as (e_1 .. e_k, rank_k)   (2)
    out[n] = part_d[the head of token n]                     (3)
    dpart_d[p] = sum of dout[n] over the tokens n whose head is p   (4)
    dcore_k[:, i] = sum of part_(k-1)[up(p)]^T dpart_k[p] over the p with i_k(p) = i   (5)
    dpart_(k-1)[q] = sum of dpart_k[p] core_k[:, i_k(p)]^T over the p with up(p) = q   (6)
"""

import math
from itertools import pairwise
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.compression.tensor_train import Digits
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid


class TtmEmbedding(NamedTuple):
    """Cores, each with the values of a token's digit and those of a feature's."""

    cores: list[Float[Array, "left tokens features right"]]


@checked
def init_ttm_embedding(
    rng: np.random.Generator, tokens: Digits, features: Digits, *, ranks: Digits, std: Annotated[float, at_least(0)] = 0.02, dtype: type = np.float32
) -> TtmEmbedding:
    """Normal cores whose products have the standard deviation std. The vocabulary is the product of tokens, d_model that of features.

    ranks are how many links there are between each two cores. Raises ValueError where they are not one fewer than both.
    """
    if not len(tokens) == len(features) == len(ranks) + 1:
        raise invalid("ranks", got=f"{len(ranks)}, for {len(tokens)} and {len(features)} digits", wants="as many features as tokens, and a rank between each two")
    links = pairwise((1, *ranks, 1))
    shapes = [(left, v, e, right) for (left, right), v, e in zip(links, tokens, features, strict=True)]
    return TtmEmbedding([(std ** (1 / len(shapes)) / shape[3] ** 0.5 * rng.standard_normal(shape)).astype(dtype) for shape in shapes])


@concept(
    title="Tensor-train embedding",
    source="Khrulkov et al. 2019, arXiv:1901.10787; Yang et al. 2024 (CoMERA), arXiv:2405.14377, section 4.1",
    example=lambda rng: example(
        TtmEmbedding([rng.normal(size=shape) for shape in ((1, 3, 2, 4), (4, 2, 3, 2), (2, 4, 2, 1))]), ids=np.array([[4, 0, 23, 4, 6], [15, 6, 20, 14, 4]])
    ),
    rejects=[bad(ids=np.array([[0, 24]])), bad(ids=np.array([[0, -1]])), bad("params.cores.1", params=TtmEmbedding([np.ones((1, 3, 2, 4)), np.ones((3, 8, 3, 1))]))],
)  # fmt: skip
def ttm_embedding(params: TtmEmbedding, *, ids: Int[Array, "*batch"]) -> tuple[Array, Backward]:
    """The row of every id, whole numbers from 0 to the product of the token digits - 1, in any shape.

    Returns out (*batch, d_model), and backward: dout -> TtmEmbedding(dcores).
    Raises ValueError where neighbouring cores do not fit each other, and for an id that is no row; a negative one does not count
    from the end.
    """
    cores = params.cores
    _check_cores(cores)
    tokens, d_model = (math.prod(core.shape[axis] for core in cores) for axis in (1, 2))
    if ids.size and (ids.min() < 0 or ids.max() >= tokens):
        raise invalid("ids", got=f"ids from {ids.min()} to {ids.max()}", wants=f"0 to {tokens - 1}, the rows of the table")
    ups, digits, place = heads(ids, [core.shape[1] for core in cores])
    parts = [np.ones((1, 1, 1), cores[0].dtype)]
    slices = [core.transpose(1, 0, 2, 3).reshape(core.shape[1], len(core), -1) for core in cores]  # a digit first
    for up, digit, core, own in zip(ups, digits, cores, slices, strict=True):
        parts.append((parts[-1][up] @ own[digit]).reshape(len(up), -1, core.shape[3]))  # (heads, features so far, rank)  (2)
    out = parts[-1].reshape(-1, d_model)[place].reshape(*ids.shape, d_model)  # (3)

    def backward(dout):
        dpart = _sums(place, dout.reshape(-1, d_model), len(ups[-1]))  # (4)
        dcores = []
        for k in reversed(range(len(cores))):
            up, digit, (left, v, e, right) = ups[k], digits[k], cores[k].shape
            wide = dpart.reshape(len(up), -1, e * right)
            each = parts[k][up].transpose(0, 2, 1) @ wide    # (heads, left, e right)
            dcores.append(_sums(digit, each, v).reshape(v, left, e, right).transpose(1, 0, 2, 3))  # (5)
            dpart = _sums(up, wide @ slices[k][digit].transpose(0, 2, 1), len(parts[k]))  # (6)
        return TtmEmbedding(dcores[::-1])

    return out, backward


def heads(ids: Array, sizes: list[int]) -> tuple[list[Array], list[Array], Array]:
    """Of every length the different beginnings of ids, as digits: which shorter one each extends, and by what; and which is each id's."""
    numbers, place = np.unique(ids.reshape(-1), return_inverse=True)
    found = [numbers]
    for size in reversed(sizes):
        found.append(np.unique(found[-1] // size))
    found.reverse()                                          # the first is the empty beginning
    ups = [np.searchsorted(before, own // size) for (before, own), size in zip(pairwise(found), sizes, strict=True)]
    return ups, [own % size for own, size in zip(found[1:], sizes, strict=True)], place  # (1)


def _sums(places: Array, parts: Array, count: int) -> Array:
    """The sum of the parts that have each place, from 0 to count - 1. np.add.at says the same and is many times slower."""
    from scipy.sparse import csc_array  # takes a tenth of a second to import, and only training needs it

    ones, starts = np.ones(len(places), parts.dtype), np.arange(len(places) + 1)
    onehot = csc_array((ones, places, starts), shape=(count, len(places)))
    return (onehot @ parts.reshape(len(places), -1)).reshape(count, *parts.shape[1:])


def _check_cores(cores: list[Array]) -> None:
    """Raise ValueError where cores do not fit each other, 1 wide at both ends."""
    if not cores:
        raise invalid("params.cores", got="none", wants="at least one")
    for k, (right, core) in enumerate(zip([1, *(core.shape[3] for core in cores)], [*cores, None], strict=True)):
        left = 1 if core is None else len(core)
        if left != right:
            raise invalid(f"params.cores.{min(k, len(cores) - 1)}", got=f"{left} links beside {right}", wants="as many as its neighbour, and 1 at the ends")
