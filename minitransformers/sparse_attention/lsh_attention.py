"""LSH attention: a position reads those that a random hash puts into its bucket, as these are likely to fit it best.

A softmax is decided by its largest scores, and vectors of a large product point the same way. Cut space by random directions,
and such vectors fall on the same side: they share a bucket, and scores within buckets are all that is needed. Queries and
keys are one vector, or their buckets would not match; as a position fits itself best, it reads itself only where it finds
nobody else. This is the plain form, under a mask of who meets whom; lsh_attention_sorted computes these pairs alone.

Source: Kitaev, Kaiser and Levskaya 2020 (Reformer), arXiv:2001.04451, section 2. Here ``chunks`` says who meets whom: in each
round a position reads its own chunk and the one with the number before. Differs from the paper: lsh_chunks counts chunks from
the start of each bucket, so that a later token moves none (lsh_chunks_across is the paper's, which cuts the sorted text); a
key that several rounds find counts as often as found, as in the authors' code, and once with ``once``, as in the paper; self
as a last resort is a rule, not a score of -10^5. Keys have length one and scores are not divided by sqrt(d_head), as there.

    turned = x R_r, R_r of normal numbers, for every round r (1)
    bucket = argmax of [turned, -turned]                     (2)
    rank_i = the number of earlier positions in i's bucket   (3)
    chunk_i = rank_i div chunk, counted in i's bucket        (4)
    unit_j = x_j / |x_j|                                     (5)
    scores_ij = scale x_i . unit_j, scale = 1                (6)
    times_ij = the number of rounds in which j is in i's chunk or in the one before   (7)
    times_ij = 0 where j = i, and where j > i if causal      (8)
    exps_ij = times_ij exp(scores_ij - top_i)                (9)
    shares_ij = exps_ij / sum over j of the same, or 0 if i is alone: all its times are 0   (10)
    out_i = sum over j of shares_ij v_j, or v_i if i is alone   (11)
    dv_j = sum over i of shares_ij dout_i, and dout_j if j is alone   (12)
    dscores_ij = shares_ij (dout_i . v_j - dout_i . out_i)   (13)
    dx_i = scale sum over j of dscores_ij unit_j             (14)
    dunit_j = scale sum over i of dscores_ij x_i             (15)
    dx_j = dx_j + (dunit_j - (unit_j . dunit_j) unit_j) / |x_j|   (16)

(1) to (4) choose, and a choice has no gradient: it is held fixed. top_i, the largest score that i sees, cancels in (10).
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.attention.heads import forbid
from minitransformers.foundation import Backward, at_least, bad, concept, example, finite, invalid, procedure


@procedure(
    title="Hash buckets (LSH)",
    source="Kitaev, Kaiser and Levskaya 2020, arXiv:2001.04451, section 2; Andoni et al. 2015, arXiv:1509.02897",
    example=lambda rng: example(rng.normal(size=(2, 7, 3)), rounds=2, num_buckets=6, seed=1),
    rejects=[bad(num_buckets=5)],
)
def lsh_buckets(
    x: Float[Array, "*batch positions d_head"], *, rounds: Annotated[int, at_least(1)], num_buckets: Annotated[int, at_least(2)],
    seed: Annotated[int, at_least(0)] = 0,
) -> Int[Array, "*batch rounds positions"]:  # fmt: skip
    """The bucket of every vector, 0 to num_buckets - 1, in every round.

    Only the direction of a vector counts. The seed decides the directions that space is cut by, the same for all of the batch.
    Raises ValueError for an odd number of buckets: each direction has its opposite.
    """
    if num_buckets % 2:
        raise invalid("num_buckets", got=num_buckets, wants="an even number: each direction has its opposite")
    directions = np.random.default_rng(seed).normal(size=(rounds, x.shape[-1], num_buckets // 2))
    turned = x[..., None, :, :] @ directions.astype(x.dtype)  # (..., rounds, positions, num_buckets / 2)  (1)
    return np.concatenate([turned, -turned], axis=-1).argmax(-1)  # (2)


@procedure(
    title="Chunks of each bucket",
    source="after Kitaev, Kaiser and Levskaya 2020, arXiv:2001.04451, section 2",
    example=lambda rng: example(rng.integers(3, size=(2, 7)), chunk=2),
)
def lsh_chunks(buckets: Int[Array, "*batch positions"], *, chunk: Annotated[int, at_least(1)]) -> Int[Array, "*batch positions"]:
    """The number of every position's chunk. The chunks of a bucket, of ``chunk`` positions each, follow each other in number.

    No chunk of one bucket follows one of another: their numbers are two or more apart. Who shares a chunk depends on the buckets
    up to there alone, so that a text may go on without changing it.
    """
    order, ordered, place = _sorted(buckets)
    begins = np.diff(ordered, axis=-1, prepend=ordered[..., :1]) != 0
    rank = place - np.maximum.accumulate(np.where(begins, place, 0), axis=-1)  # (3)
    number = rank // chunk + ordered * (len(place) // chunk + 2)  # (4)
    return _unsorted(number, order)


@procedure(
    title="Chunks of the sorted text",
    source="Kitaev, Kaiser and Levskaya 2020, arXiv:2001.04451, section 2, eqs. 4 and 5",
    example=lambda rng: example(rng.integers(3, size=(2, 7)), chunk=2),
)
def lsh_chunks_across(buckets: Int[Array, "*batch positions"], *, chunk: Annotated[int, at_least(1)]) -> Int[Array, "*batch positions"]:
    """The paper's chunks: the text, sorted by bucket, is cut every ``chunk`` positions, and within a cut only a bucket meets.

    A later token moves the cuts of all buckets behind its own: who meets whom depends on the future, though no value comes
    from there. Chunk numbers are as those of lsh_chunks.
    """
    order, ordered, place = _sorted(buckets)
    begins = np.diff(ordered, axis=-1, prepend=ordered[..., :1]) != 0
    number = np.cumsum(np.where(begins, 2, (place % chunk == 0) & (place > 0)), axis=-1)
    return _unsorted(number, order)


def _sorted(buckets: Array) -> tuple[Array, Array, Array]:
    """The order by bucket, and within a bucket by position; the buckets in that order; the places 0, 1, ... in it."""
    order = np.argsort(buckets, axis=-1, kind="stable")
    return order, np.take_along_axis(buckets, order, axis=-1), np.arange(buckets.shape[-1])


def _unsorted(ordered: Array, order: Array) -> Array:
    out = np.empty_like(ordered)
    np.put_along_axis(out, order, ordered, axis=-1)
    return out


@concept(
    title="LSH attention",
    source="Kitaev, Kaiser and Levskaya 2020, arXiv:2001.04451, section 2",
    example=lambda rng: example_call(rng),
)
def lsh_attention(
    shared: Float[Array, "*batch positions d_head"],
    value: Float[Array, "*batch positions d_value"],
    *,
    chunks: Int[Array, "*batch rounds positions"],
    causal: bool = True,
    once: bool = False,
    scale: Annotated[float, finite] = 1.0,
) -> tuple[Array, Backward]:
    """Mix the values, for each position, by the softmax over those that it meets of scale times its product with their direction.

    shared is both query and key; a zero vector has no direction, scores 0 as a key and gets no gradient as one. chunks are numbers
    such as lsh_chunks gives: in every round a position meets its own chunk and the one with the number before; all rounds are
    one softmax. once: a key that several rounds find counts once. A position that meets nobody else reads its own value.
    Returns out (*batch, positions, d_value), and backward: dout -> dshared, dvalue.
    """
    unit, unit_backward = unit_vectors(shared)               # (5)
    scores = scale * (shared @ unit.swapaxes(-1, -2))        # (..., queries, keys)  (6)
    back = chunks[..., :, None] - chunks[..., None, :]       # (..., rounds, queries, keys)
    times = np.sum((back == 0) | (back == 1), axis=-3)       # (7)
    positions = np.arange(shared.shape[-2])
    open_to = positions[:, None] > positions if causal else positions[:, None] != positions
    times = np.where(open_to, times, 0)                      # (8)
    times = np.minimum(times, 1) if once else times
    logits = forbid(scores, times > 0)
    top = np.maximum(logits.max(-1, keepdims=True), np.finfo(shared.dtype).min)  # finite where there is nobody
    exps = times.astype(shared.dtype) * np.exp(logits - top)  # (9)
    total = exps.sum(-1, keepdims=True)                      # the largest term is at least exp(0) = 1
    shares, alone = exps / np.maximum(total, 1), total < 1   # (10)
    out = shares @ value + np.where(alone, value, 0)         # (11)

    def backward(dout):
        dvalue = shares.swapaxes(-1, -2) @ dout + np.where(alone, dout, 0)  # (12)
        dweights = dout @ value.swapaxes(-1, -2)
        dscores = shares * (dweights - np.vecdot(dout, out)[..., None])  # (13)
        dshared = scale * (dscores @ unit)                   # (14)
        dunit = scale * (dscores.swapaxes(-1, -2) @ shared)  # (15)
        return dshared + unit_backward(dunit), dvalue        # each vector is a query and a key: two gradients  (16)

    return out, backward


def unit_vectors(x: Array):
    """x / |x|, and 0 for a zero vector; backward: dunit -> dx, 0 there as well."""
    length = np.sqrt(np.vecdot(x, x))[..., None]
    inverse = (length > 0) / np.where(length > 0, length, 1)
    unit = x * inverse

    def backward(dunit):
        return (dunit - np.vecdot(unit, dunit)[..., None] * unit) * inverse  # (16)

    return unit, backward


def example_call(rng: np.random.Generator):
    """The small call of both forms: two rounds of chunks of two; one position, in a bucket of its own in both, is alone."""
    buckets = rng.integers(3, size=(2, 2, 7))
    buckets[..., 4] = 3
    return example(rng.normal(size=(2, 7, 3)), rng.normal(size=(2, 7, 5)), chunks=lsh_chunks(buckets, chunk=2), scale=0.8)
