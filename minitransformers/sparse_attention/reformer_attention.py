"""Reformer attention: the mixer of the Reformer. One projection makes queries and keys, hashed buckets say who meets whom.

Source: Kitaev, Kaiser and Levskaya 2020 (Reformer), arXiv:2001.04451, section 2. split and merge cut features into heads and
undo it, as in multi_head_attention; A is lsh_attention, sorted and causal, a star its backward. Differs from the paper in what
lsh_attention and lsh_chunks say, and in this: the directions of the hash come from the seed and stay what they are, one
set for all heads, where the paper draws new ones at every call. So a text has one set of buckets, and can be written on.

    shared, value = split(x W_s + b_s), split(x W_v + b_v)   (1)
    chunks = those of the hash buckets of shared, in every round and head   (2)
    heads = A(shared, value), among those who meet           (3)
    out = merge(heads) W_o + b_o                             (4)
    dheads = split(dout W_o^T)                               (5)
    dshared, dvalue = A*(dheads)                             (6)
    dx = merge(dshared) W_s^T + merge(dvalue) W_v^T          (7)

(2) chooses and has no gradient: it is held fixed. Where two buckets are equally near the output jumps, which no gradient tells.

The step keeps, for every head, round and bucket, the last two chunks: at most 2 rounds num_buckets chunk rows, however long the
text is, and reads 2 rounds chunk of them. What it keeps is bounded, and what it computes equals the whole, as chunks are
counted in each bucket: a position's chunk is settled when it comes, and who leaves the last two chunks is never met again.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.attention.heads import check_heads, merge_heads, split_heads
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, trusted
from minitransformers.sparse_attention.lsh_attention import lsh_buckets, lsh_chunks, unit_vectors
from minitransformers.sparse_attention.lsh_attention_sorted import lsh_attention_sorted


class ReformerAttention(NamedTuple):
    """Projections of all heads side by side: to what is both query and key, to values, and back."""

    shared: Annotated[Linear, "d_model d_heads"]
    value: Annotated[Linear, "d_model d_values"]
    output: Annotated[Linear, "d_values d_model"]


class ReformerState(NamedTuple):
    """Directions and values of each bucket's last members, and how many members it has had.

    A bucket has 2 chunk slots, and all buckets' slots stand side by side; the member of rank r is in slot r mod (2 chunk) of its own.
    """

    keys: Float[Array, "*batch heads rounds slots d_head"]
    values: Float[Array, "*batch heads rounds slots d_value"]
    members: Int[Array, "*batch heads rounds buckets"]


@checked
def init_reformer_attention(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, num_heads: Annotated[int, at_least(1)],
    std: Annotated[float, at_least(0)] | None = None, residual_std: Annotated[float, at_least(0)] | None = None, bias: bool = False,
    dtype: type = np.float32,
) -> ReformerAttention:  # fmt: skip
    """Normal weights of deviation ``std`` (default 1/sqrt(d_model)), the output's of ``residual_std`` (default std)."""
    check_heads("num_heads", num_heads, d_model)
    stds = (std, std, std if residual_std is None else residual_std)
    return ReformerAttention(*(init_linear(rng, d_model, d_model, std=s, bias=bias, dtype=dtype) for s in stds))


@trusted
def reformer_attention_step(
    params: ReformerAttention, x: Float[Array, "*batch new d_model"], state: ReformerState | None, *, num_heads: int, rounds: int = 4,
    num_buckets: int = 16, chunk: int = 32, seed: int = 0,
) -> tuple[Array, ReformerState]:  # fmt: skip
    """The outputs of a few new positions, given those before; ``state`` is None at the start.

    Returns out, shaped like x, and the state after them, which is as large from the start as it ever is. Forward only.
    """
    shared, value = (split_heads(linear(part, x)[0], num_heads) for part in params[:2])  # (1)
    unit, buckets = unit_vectors(shared)[0], lsh_buckets(shared, rounds=rounds, num_buckets=num_buckets, seed=seed)  # (2)
    held = 2 * chunk                                         # slots of a bucket
    if state is None:
        room = (*shared.shape[:-2], rounds, num_buckets)
        none = (np.zeros((*room[:-1], num_buckets * held, a.shape[-1]), x.dtype) for a in (unit, value))
        state = ReformerState(next(none), next(none), np.zeros(room, int))
    keys, values, members = (a.copy() for a in state)        # whoever continues the same state in another way has it as it was
    slots, heads = np.arange(held), np.empty_like(value)
    for t in range(x.shape[-2]):
        bucket = buckets[..., t, None]                       # (*batch, heads, rounds, 1)
        rank = np.take_along_axis(members, bucket, axis=-1)
        latest = rank - 1 - (rank - 1 - slots) % held        # the rank of the member that was last put into each slot
        meets = latest >= np.maximum(rank // chunk - 1, 0) * chunk
        near_keys, near_values = (np.take_along_axis(a, (held * bucket + slots)[..., None], axis=-2) for a in (keys, values))
        heads[..., t, :] = _mix(shared[..., t, :], near_keys, near_values, meets, value[..., t, :])  # (3)
        place = (held * bucket + rank % held)[..., None]
        np.put_along_axis(keys, place, unit[..., None, t, None, :], axis=-2)
        np.put_along_axis(values, place, value[..., None, t, None, :], axis=-2)
        np.put_along_axis(members, bucket, rank + 1, axis=-1)
    return linear(params.output, merge_heads(heads))[0], ReformerState(keys, values, members)  # (4)


def _mix(query: Array, keys: Array, values: Array, meets: Array, own: Array) -> Array:
    """One softmax over the slots of all rounds that meet, (*batch, heads, d_value); own where none does."""
    scores = (keys @ query[..., None, :, None])[..., 0]      # (*batch, heads, rounds, slots)
    logits = np.where(meets, scores, scores.dtype.type(-np.inf)).reshape(*own.shape[:-1], 1, -1)
    exps = np.exp(logits - np.maximum(logits.max(-1, keepdims=True), np.finfo(query.dtype).min))
    total = exps.sum(-1)
    mix = exps @ values.reshape(*own.shape[:-1], -1, values.shape[-1])
    return np.where(total < 1, own, mix[..., 0, :] / np.maximum(total, 1))


@concept(
    title="Reformer attention",
    source="Kitaev, Kaiser and Levskaya 2020, arXiv:2001.04451, section 2",
    example=lambda rng: _example(rng),
    roles=("mixer",),
    rejects=[bad(num_heads=3), bad(num_buckets=3)],
    step=reformer_attention_step,
)
def reformer_attention(
    params: ReformerAttention,
    x: Float[Array, "*batch positions d_model"],
    *,
    num_heads: Annotated[int, at_least(1)],
    rounds: Annotated[int, at_least(1)] = 4,
    num_buckets: Annotated[int, at_least(2)] = 16,
    chunk: Annotated[int, at_least(1)] = 32,
    seed: Annotated[int, at_least(0)] = 0,
) -> tuple[Array, Backward]:
    """Every position gathers from earlier ones that a hash finds to be like it, in rounds times num_heads ways.

    num_buckets, an even number, and rounds are those of lsh_buckets; chunk is in positions, and a position meets at most 2 chunk - 1
    others a round. With a seed of its own each layer looks through other cuts of space.
    Returns out, shaped like x, and backward: dout -> ReformerAttention, dx.
    Raises ValueError when num_heads does not divide the projections, or num_buckets is odd.
    """
    for projection in params[:2]:
        check_heads("num_heads", num_heads, projection.weight.shape[1])
    shared, shared_backward = linear(params.shared, x)
    value, value_backward = linear(params.value, x)
    shared, value = split_heads(shared, num_heads), split_heads(value, num_heads)  # (..., heads, positions, d)  (1)
    chunks = lsh_chunks(lsh_buckets(shared, rounds=rounds, num_buckets=num_buckets, seed=seed), chunk=chunk)  # (2)
    heads, attention_backward = lsh_attention_sorted(shared, value, chunks=chunks)  # (3)
    out, output_backward = linear(params.output, merge_heads(heads))  # (4)

    def backward(dout):
        doutput, dmerged = output_backward(dout)
        dshared, dvalue = attention_backward(split_heads(dmerged, num_heads))  # (5) (6)
        dparams_shared, dx_shared = shared_backward(merge_heads(dshared))
        dparams_value, dx_value = value_backward(merge_heads(dvalue))
        return ReformerAttention(dparams_shared, dparams_value, doutput), dx_shared + dx_value  # (7)

    return out, backward


def _example(rng: np.random.Generator):
    """Drawn again until no vector is so near to a border of its bucket that a difference could take it across."""
    while True:
        shapes = (6, 4), (6, 2), (2, 6)
        params = ReformerAttention(*(Linear(rng.normal(size=s) / 2, rng.normal(size=s[1])) for s in shapes))
        x, config = rng.normal(size=(2, 7, 6)), {"num_heads": 2, "rounds": 2, "num_buckets": 2, "chunk": 2, "seed": 3}
        shared = split_heads(linear(params.shared, x)[0], 2)[..., None, :, :]
        directions = np.random.default_rng(3).normal(size=(2, 2, 1))
        if np.abs(shared @ directions).min() > 0.05:
            return example(params, x, **config)
