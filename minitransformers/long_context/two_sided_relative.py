"""Relative positions that look both ways: Transformer-XL's, with distances below zero for what is yet to come.

An encoder that reads a segment with memory before it has keys at distances from far back to a little ahead. The rows of r run
over all of them, and the rest is as in transformer_xl_relative. There the shift leaves rubbish for keys that are yet to come;
here every number that it picks is a score. Score by distance is a bias, so what is left is plain attention.

Source: Dai et al. 2019 (Transformer-XL), arXiv:1901.02860, section 3.3, for the terms; Yang et al. 2019 (XLNet),
arXiv:1906.08237, and Ding et al. 2020 (ERNIE-Doc), arXiv:2012.15688, for both sides. Differs from ERNIE-Doc: sinusoids, where its
code has a learned table, and no term for a task. The queries are the last of the positions that the keys span. u and w are in
each head what attends to content and to distance whatever the query is, W_r makes a vector of a distance's sinusoids; A is
attention, a star its backward.

    distance_ij = i + num_keys - num_queries - j             (1)
    r = sinusoids(num_keys - 1, ..., 0, ..., 1 - num_queries) W_r, a row for each distance   (2)
    by_distance = (q + w) r^T / sqrt(d_head)                 (3)
    position_ij = by_distance_i, in the column of distance_ij   (4)
    out = A(q + u, k, v), its bias bias + position, under the mask   (5)
    dto_content, dk, dv, dposition = A*(dout), and dbias = dposition   (6)
    dby_distance_in = dposition_ij / sqrt(d_head), where n is the column of distance_ij, else 0   (7)
    dto_distance = dby_distance r                            (8)
    dq = dto_content + dto_distance                          (9)
    dr = dby_distance^T (q + w), summed over the batch       (10)
    dW_r = sinusoids^T dr                                    (11)
    du, dw = dto_content, dto_distance, summed over batch and queries   (12)
"""

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.core import softmax_attention
from minitransformers.attention.heads import by_head, sum_to
from minitransformers.foundation import Backward, bad, concept, example
from minitransformers.positional.transformer_xl_relative import TransformerXlRelative, check_relative, relative_shift, sinusoids


@concept(
    title="Relative positions that look both ways",
    source="Ding et al. 2020 (ERNIE-Doc), arXiv:2012.15688, section 3; Dai et al. 2019, arXiv:1901.02860, section 3.3",
    example=lambda rng: _example(rng),
    rejects=[
        bad("query", query=np.ones((2, 3, 7, 5)), bias=None, mask=None),
        bad(mask=np.ones((5, 1, 1, 4, 6), bool)),
        bad(bias=np.full((1, 3, 4, 6), np.nan)),
        bad("params.distance", params=TransformerXlRelative(np.ones((3, 3, 5)), np.ones((3, 5)), np.ones((3, 5)))),
        bad("params.distance", params=TransformerXlRelative(np.ones((2, 4, 5)), np.ones((2, 5)), np.ones((2, 5)))),
    ],
)
def two_sided_relative(
    params: TransformerXlRelative,
    query: Float[Array, "*#batch queries d_head"],
    key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"],
    bias: Float[Array, "*#batch #queries #keys"] | None = None,
    *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
) -> tuple[Array, Backward]:
    """Attention whose scores see content and distance apart, before a query and behind it. A core, in the place of transformer_xl_relative.

    The queries are the last of the positions that the keys span; what comes before is memory. mask is True where a query may
    attend to a key; a query that may attend to nothing reads zero and sends no gradient.
    Returns out (*batch, queries, d_value), and backward: dout -> TransformerXlRelative of gradients, dquery, dkey, dvalue,
    dbias (None without a bias).
    Raises ValueError when there are more queries than keys, params are for another number of heads or an odd number of
    sinusoids, or mask or bias do not fit the scores.
    """
    (num_queries, d_head), num_keys = query.shape[-2:], key.shape[-2]
    check_relative(params, query, key, bias, mask)
    waves = _waves(num_queries, num_keys, params.distance)
    r = by_head("params.distance", waves @ params.distance, query)  # (heads, distances, d_head)  (2)
    u, w = (by_head(f"params.{name}", own[:, None], query) for name, own in (("u", params.u), ("w", params.w)))
    to_content, to_distance, scale = query + u, query + w, d_head**-0.5
    by_distance = scale * (to_distance @ r.swapaxes(-1, -2))  # (*batch, heads, queries, distances)  (3)
    position = relative_shift(by_distance)[..., :num_keys]   # row i moves left by queries - 1 - i: there is distance_i0  (1) (4)
    out, attention_backward = softmax_attention(None, to_content, key, value, position if bias is None else position + bias, mask=mask)  # (5)

    def backward(dout):
        _, dto_content, dkey, dvalue, dposition = attention_backward(dout)
        dbias = None if bias is None else sum_to(dposition, bias.shape)  # (6)
        dby_distance = scale * _shifted_back(dposition, by_distance.shape[-1])  # (7)
        dby_distance = sum_to(dby_distance, by_distance.shape)  # keys may have a batch that the queries lack
        dto_distance = dby_distance @ r                      # (8)
        dquery = sum_to(dto_content + dto_distance, query.shape)  # (9)
        dr = sum_to(dby_distance.swapaxes(-1, -2) @ to_distance, r.shape).reshape(-1, *r.shape[-2:])  # (10)
        ddistance = waves.T @ dr                             # (11)
        du, dw = (sum_to(part, u.shape).reshape(params.u.shape) for part in (dto_content, dto_distance))  # (12)
        return TransformerXlRelative(ddistance, du, dw), dquery, dkey, dvalue, dbias

    return out, backward


def _waves(num_queries: int, num_keys: int, distance: Array) -> Float[Array, "distances d_sinusoid"]:
    """Sinusoids of the distances from num_keys - 1 down to 1 - num_queries: a sine is odd, and a cosine even."""
    past = sinusoids(num_keys, distance.shape[1], dtype=distance.dtype.type)
    future = past[1:num_queries] * np.repeat([-1, 1], distance.shape[1] // 2).astype(distance.dtype)
    return np.concatenate([past[::-1], future])


def _shifted_back(dposition: Float[Array, "... queries keys"], distances: int) -> Float[Array, "... queries distances"]:
    """The transpose of shifting and cutting: every element returns to where it came from, and the others are 0."""
    *batch, queries, keys = dposition.shape
    rows = np.zeros((*batch, queries * (distances + 1)), dposition.dtype)
    rows[..., queries:].reshape(*batch, queries, distances)[..., :keys] = dposition
    return rows.reshape(*batch, queries, distances + 1)[..., 1:]


def _example(rng: np.random.Generator):
    params = TransformerXlRelative(rng.normal(size=(3, 4, 5)), rng.normal(size=(3, 5)), rng.normal(size=(3, 5)))
    shapes = (2, 3, 4, 5), (2, 1, 6, 5), (2, 1, 6, 7), (1, 3, 4, 6)
    return example(params, *(rng.normal(size=shape) for shape in shapes), mask=rng.random((2, 1, 4, 6)) < 0.9)
