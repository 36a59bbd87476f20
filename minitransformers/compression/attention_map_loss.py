"""Attention-map loss: each head of a student shall score its keys as the same head of its teacher does.

What is compared are the scores before the softmax. They depend on no width, so the student may be as narrow as it likes; only the
numbers of heads must agree.

Source: Jiao et al. 2019 (TinyBERT), arXiv:1909.10351, Transformer-layer distillation. Differs from the published code: that sets scores of padded keys to 0 on
both sides and divides by all pairs; here only pairs that count are in the sum, and in n. Costs three operations a pair.

    apart = scores - teacher where a pair counts, else 0     (1)
    out = (1/n) sum of apart^2, over n pairs and heads       (2)
    dscores = (2/n) dout apart                               (3)

Attention keeps its scores to itself. They are made again from a layer's parameters and its input x as the layer makes them; P is
its prepare, P* the backward of that, i stands for query, key and value.

    query, key, value = P(split(x W_i + b_i))                (4)
    scores = q k^T / sqrt(d_head)                            (5)
    dq = dscores k / sqrt(d_head), dk = dscores^T q / sqrt(d_head)   (6)
    dW_i = x^T merge(P*(di)), db_i = its sum, dx = sum over i of merge(P*(di)) W_i^T   (7)
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import check_heads, check_scores, merge_heads, split_heads
from minitransformers.attention.multi_head_attention import MultiHeadAttention
from minitransformers.attention.prepare import unprepared
from minitransformers.basics.linear import Linear, linear
from minitransformers.compression.counted import check_finite, counted_by_mask
from minitransformers.foundation import Backward, at_least, bad, concept, example, trees
from minitransformers.norms.qk_norm import QkNorm, qk_norm


class AttentionHeads(NamedTuple):
    """What one layer's attention works on."""

    query: Float[Array, "*batch heads positions d_head"]
    key: Float[Array, "*batch heads positions d_head"]
    value: Float[Array, "*batch heads positions d_value"]


@concept(
    title="Attention-map loss",
    source="Jiao et al. 2019 (TinyBERT), arXiv:1909.10351, Transformer-layer distillation",
    example=lambda rng: _example(rng),
    rejects=[
        bad(teacher=np.ones((2, 4, 4, 5))), bad(mask=np.zeros((1, 5), bool)), bad(mask=np.ones((3, 1, 1, 5), bool)),
        bad(scores=np.full((2, 3, 4, 5), -np.inf)), bad(teacher=np.full((2, 3, 4, 5), np.nan)),
    ],
)  # fmt: skip
def attention_map_loss(
    scores: Float[Array, "*batch heads queries keys"], *, teacher: Float[Array, "*batch heads queries keys"],
    mask: Bool[Array, "*#scores #queries #keys"] | None = None,
) -> tuple[np.floating, Backward]:  # fmt: skip
    """Mean squared difference of two models' scores before the softmax.

    teacher gets no gradient. mask is True where a pair of query and key counts, and broadcasts to the scores; scores of the others
    may be anything, -inf as well.
    Returns out, a scalar in squared logits, and backward: dout -> dscores.
    Raises ValueError where heads differ in number, no pair counts, or one that does holds NaN or infinity.
    """
    check_scores("mask", mask, scores.shape)
    counts = np.broadcast_to(counted_by_mask(scores.shape, mask), scores.shape)
    s, t = scores[counts], teacher[counts]                   # (pairs)
    check_finite("scores", s)
    check_finite("teacher", t)
    apart = s - t                                            # (1)
    out = np.vecdot(apart, apart) / apart.size               # (2)

    def backward(dout):
        dscores = np.zeros_like(scores)
        dscores[counts] = apart * (dout * (2 / apart.size))  # (3)
        return dscores

    return out, backward


@concept(
    title="Queries, keys and values of a layer",
    source="Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2",
    example=lambda rng: _layer_example(rng),
    rejects=[bad(num_heads=4)],
    form_of="attention_map_loss",
)
def projected_heads(
    params: MultiHeadAttention, x: Float[Array, "*batch positions d_model"], *, num_heads: Annotated[int, at_least(1)],
    prepare: Callable = unprepared,
) -> tuple[AttentionHeads, Backward]:  # fmt: skip
    """What multi_head_attention hands to its core, from the same parameters and the same x.

    prepare is that of the layer. What the layer does afterwards has no part in it: its output map and its core get zeros.
    Returns AttentionHeads, and backward: dheads -> MultiHeadAttention, dx.
    Raises ValueError when num_heads does not divide the projections.
    """
    for projection in params[:3]:
        check_heads("num_heads", num_heads, projection.weight.shape[1])
    query, query_backward = linear(params.query, x)
    key, key_backward = linear(params.key, x)
    value, value_backward = linear(params.value, x)
    query, key, value = (split_heads(part, num_heads) for part in (query, key, value))
    (query, key), prepare_backward = prepare(params.prepare, query, key)  # (4)

    def backward(dheads):
        dprepare, dquery, dkey = prepare_backward((dheads[0], dheads[1]))
        dparams_query, dx_query = query_backward(merge_heads(dquery))
        dparams_key, dx_key = key_backward(merge_heads(dkey))
        dparams_value, dx_value = value_backward(merge_heads(dheads[2]))
        dparams = trees.zeros_like(params)._replace(query=dparams_query, key=dparams_key, value=dparams_value, prepare=dprepare)
        return dparams, dx_query + dx_key + dx_value         # (7)

    return AttentionHeads(query, key, value), backward


@concept(
    title="Attention scores",
    source="Vaswani et al. 2017, arXiv:1706.03762, eq. 1",
    example=lambda rng: example(rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 3, 6, 5))),
    form_of="attention_map_loss",
)
def attention_scores(
    query: Float[Array, "*batch queries d_head"], key: Float[Array, "*batch keys d_head"]
) -> tuple[Float[Array, "*batch queries keys"], Backward]:
    """Every query's product with every key, divided by sqrt(d_head); and backward: dscores -> dquery, dkey."""
    scale = query.shape[-1] ** -0.5
    scores = scale * (query @ key.swapaxes(-1, -2))          # (*batch, queries, keys)  (5)

    def backward(dscores):
        dquery = scale * (dscores @ key)
        dkey = scale * (dscores.swapaxes(-1, -2) @ query)
        return dquery, dkey                                  # (6)

    return scores, backward


def _example(rng: np.random.Generator):
    mask = np.array([[1, 1, 1, 0, 1], [0, 0, 0, 0, 0], [1, 0, 1, 1, 0], [0, 0, 0, 1, 0]], bool)[None, None]
    return example(rng.normal(size=(2, 3, 4, 5)), teacher=rng.normal(size=(2, 3, 4, 5)), mask=mask)


def _layer_example(rng: np.random.Generator):
    shapes = (5, 4), (5, 4), (5, 6), (6, 5)
    params = MultiHeadAttention(*(Linear(rng.normal(size=s), rng.normal(size=s[1])) for s in shapes))
    norm = QkNorm(rng.uniform(1, 2, size=2), rng.uniform(1, 2, size=2))
    return example(params._replace(prepare=norm), rng.normal(size=(2, 3, 5)), num_heads=2, prepare=qk_norm)
