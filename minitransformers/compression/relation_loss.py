"""Relation loss: the last layer's attention of a student, and how alike its values are, shall be its teacher's.

Which key a query reads is one half of what an attention layer does; what it then takes from there is the other. Products of the
values with each other make it comparable: they are one number for a pair of positions, whatever the width. Only the last layer is
compared, so the student may have any number of layers and any width. The numbers of heads must agree.

Source: Wang et al. 2020 (MiniLM), arXiv:2002.10957, sections 3.1 and 3.2. Differs from the paper: positions that are padding are told, neither
read nor counted; positions may be told to see only earlier ones, as in a decoder. Costs four products of (positions, d_head) with its
transpose a head, and as much again backward. q are the student's weights, p the teacher's.

    S = Q K^T / sqrt(d_head), Z = V V^T / sqrt(d_value)      (1)
    log_q = log softmax over the keys that count, of S and of Z, log_p likewise of the teacher's   (2)
    row = sum over keys of p (log_p - log_q)                 (3)
    out = (1/n) sum over n heads and queries that count of both rows   (4)
    dS = (dout/n) (q - p), dZ likewise                       (5)
    dQ = dS K / sqrt(d_head), dK = dS^T Q / sqrt(d_head)     (6)
    dV = (dZ + dZ^T) V / sqrt(d_value)                       (7)
"""

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.masks import causal_mask
from minitransformers.basics.log_softmax import log_softmax
from minitransformers.compression.attention_map_loss import AttentionHeads, attention_scores
from minitransformers.compression.counted import check_finite, counted_by_mask
from minitransformers.foundation import Backward, bad, concept, example


@concept(
    title="Relation loss",
    source="Wang et al. 2020 (MiniLM), arXiv:2002.10957, sections 3.1 and 3.2",
    example=lambda rng: _example(rng),
    rejects=[
        bad("teacher.query", teacher=AttentionHeads(*np.ones((3, 2, 4, 5, 7)))), bad(mask=np.zeros((2, 5), bool)),
        bad(value=np.full((2, 3, 5, 6), np.nan)), bad("teacher.key", teacher=AttentionHeads(*(np.full((2, 3, 5, 7), x) for x in (1.0, np.inf, 1.0)))),
    ],
)  # fmt: skip
def relation_loss(
    query: Float[Array, "*batch heads positions d_student"], key: Float[Array, "*batch heads positions d_student"],
    value: Float[Array, "*batch heads positions d_student_value"], *, teacher: AttentionHeads, mask: Bool[Array, "*batch positions"] | None = None,
    causal: bool = False,
) -> tuple[np.floating, Backward]:  # fmt: skip
    """Divergence of the teacher's attention from the student's, and of its value relations, in nats for a query and head.

    query, key and value are what the last layer's attention works on, as projected_heads gives them; teacher holds the other
    model's, of any width, and gets no gradient. mask is True where a position is no padding (None: everywhere): the others are
    not read, do not count, and may hold anything. causal hides later positions from earlier ones.
    Returns out, a scalar, and backward: dout -> dquery, dkey, dvalue.
    Raises ValueError where batch, heads or positions differ, no position counts, or one that does holds NaN or infinity.
    """
    *batch, heads, positions, _ = query.shape
    counts = counted_by_mask((*batch, positions), mask)
    rows = counts[..., None, :, None]                        # (*batch, 1, positions, 1)
    names = ("query", "key", "value", *(f"teacher.{name}" for name in AttentionHeads._fields))
    parts = [np.where(rows, part, 0) for part in (query, key, value, *teacher)]
    for name, part in zip(names, parts, strict=True):
        check_finite(name, part)
    q, k, v, their_q, their_k, their_v = parts
    seen = rows.swapaxes(-1, -2) & (causal_mask(positions) if causal else True) | ~rows  # a row that counts not may see all
    weight = (rows[..., 0] / (heads * counts.sum())).astype(query.dtype)  # of a row, 0 where it does not count

    attention, attention_backward = _divergence(q, k, their_q, their_k, seen, weight)
    relation, relation_backward = _divergence(v, v, their_v, their_v, seen, weight)
    out = attention + relation                               # (4)

    def backward(dout):
        dquery, dkey = attention_backward(dout)
        dleft, dright = relation_backward(dout)
        return dquery, dkey, dleft + dright                  # the values stand on both sides  (7)

    return out, backward


def _divergence(left: Array, right: Array, their_left: Array, their_right: Array, seen: Array, weight: Array):
    """The weighted sum over rows of how far the student's weights are from the teacher's; backward: dout -> dleft, dright."""
    scores, scores_backward = attention_scores(left, right)
    theirs, _ = attention_scores(their_left, their_right)    # (1)
    log_q, _ = log_softmax(np.where(seen, scores, -np.inf))
    log_p, _ = log_softmax(np.where(seen, theirs, -np.inf))  # (2)
    p = np.exp(log_p)
    apart = np.where(seen, log_p, 0) - np.where(seen, log_q, 0)
    row = (p * apart).sum(axis=-1)                           # (*batch, heads, positions)  (3)

    def backward(dout):
        dscores = dout * weight[..., None] * (np.exp(log_q) - p)  # (5)
        return scores_backward(dscores)                      # (6)

    return (weight * row).sum(), backward


def _example(rng: np.random.Generator):
    shapes = (2, 3, 5, 4), (2, 3, 5, 4), (2, 3, 5, 6)
    theirs = AttentionHeads(*(rng.normal(size=(2, 3, 5, d)) for d in (7, 7, 2)))
    mask = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 1, 0]], bool)
    return example(*(rng.normal(size=shape) for shape in shapes), teacher=theirs, mask=mask)
