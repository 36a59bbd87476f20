"""Transformer-XL's relative positions: scores of content and of distance, each asked by the query and on its own account.

The score of a sum of embeddings, (token + position) . (token + position), has four terms. Transformer-XL keeps them, puts
the distance in the place of the key's position, and a learned vector in the place of the query's: then keys know no place
of their own, and those of an earlier segment can be kept and read again.

Source: Dai et al. 2019, arXiv:1901.02860, section 3.3 and appendix B. u and w are the learned vectors, in each head what
attends to content and to distance whatever the query is (w is the paper's v); W_r makes a vector for each distance of its
sinusoids. The queries are the last of the positions that the keys span; what comes before is memory. The paper stops
gradients at the hidden states that it is made of, and not before: the projections still learn from them. So that is decided
where keys are made, by taking those hidden states by keyword.

    distance_ij = i + num_keys - num_queries - j             (1)
    r = sinusoids(0 .. num_keys - 1) W_r, row n for distance n   (2)
    content = (q + u) k^T                                    (3)
    by_distance = (q + w) r^T                                (4)
    logits_ij = (content_ij + by_distance_i,distance_ij) / sqrt(d_head) + bias  where distance_ij >= 0 and the mask allows, else -inf  (5)
    weights = softmax over the keys of logits                (6)
    out = weights v                                          (7)
    dv = weights^T dout                                      (8)
    dweights = dout v^T                                      (9)
    dlogits = weights (dweights - sum over keys of dweights weights), and dbias = dlogits   (10)
    dscores = dlogits / sqrt(d_head)                         (11)
    dby_distance_in = dscores_ij  where distance_ij = n, else 0          (12)
    dq = dscores k + dby_distance r                          (13)
    dk = dscores^T (q + u)                                   (14)
    dr = dby_distance^T (q + w), summed over the batch       (15)
    dW_r = sinusoids^T dr                                    (16)
    du = sum over batch and queries of dscores k             (17)
    dw = sum over batch and queries of dby_distance r        (18)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import by_head, check_scores, forbid, sum_to
from minitransformers.attention.scaled_dot_product_attention import check_bias
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, positive
from minitransformers.positional.offsets import offsets


class TransformerXlRelative(NamedTuple):
    """In each head a map from a distance's sinusoids to its vector, and what attends to content and distance by itself."""

    distance: Float[Array, "heads d_sinusoid d_head"]
    u: Float[Array, "heads d_head"]
    w: Float[Array, "heads d_head"]


@checked
def init_transformer_xl_relative(
    rng: np.random.Generator, d_model: Annotated[int, at_least(2)], *, num_heads: Annotated[int, at_least(1)],
    std: Annotated[float, at_least(0)] = 0.02, dtype: type = np.float32,
) -> TransformerXlRelative:  # fmt: skip
    """Normal numbers of deviation ``std``; sinusoids as wide as the model, which must be even, heads that divide it."""
    if d_model % 2 or d_model % num_heads:
        raise invalid("d_model", got=d_model, wants=f"an even number that {num_heads} heads divide")
    shapes = (num_heads, d_model, d_model // num_heads), (num_heads, d_model // num_heads), (num_heads, d_model // num_heads)
    return TransformerXlRelative(*((std * rng.standard_normal(shape)).astype(dtype) for shape in shapes))


@concept(
    title="Transformer-XL's relative positions",
    source="Dai et al. 2019, arXiv:1901.02860, section 3.3",
    example=lambda rng: _example(rng),
    roles=("core",),
    rejects=[
        bad("query", query=np.ones((2, 3, 7, 5)), bias=None, mask=None),
        bad(mask=np.ones((5, 1, 1, 4, 6), bool)),
        bad(bias=np.full((1, 3, 4, 6), np.nan)),
        bad("params.distance", params=TransformerXlRelative(np.ones((3, 3, 5)), np.ones((3, 5)), np.ones((3, 5)))),
        bad("params.distance", params=TransformerXlRelative(np.ones((2, 4, 5)), np.ones((2, 5)), np.ones((2, 5)))),
    ],
)
def transformer_xl_relative(
    params: TransformerXlRelative,
    query: Float[Array, "*#batch queries d_head"],
    key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"],
    bias: Float[Array, "*#batch #queries #keys"] | None = None,
    *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
) -> tuple[Array, Backward]:
    """Causal attention whose scores see content and distance apart. A core, causal by itself.

    The queries are the last of the positions that the keys span; what comes before is memory. mask is True where a query may
    attend to a key; a query that may attend to nothing reads zero and sends no gradient.
    Returns out (*batch, queries, d_value), and backward: dout -> TransformerXlRelative of gradients, dquery, dkey, dvalue,
    dbias (None without a bias).
    Raises ValueError when there are more queries than keys, params are for another number of heads or an odd number of
    sinusoids, or mask or bias do not fit the scores.
    """
    (num_queries, d_head), num_keys = query.shape[-2:], key.shape[-2]
    check_relative(params, query, key, bias, mask)
    check_bias(bias)
    scale = d_head**-0.5
    past = offsets(num_queries, num_keys) <= 0               # (queries, keys): where distance is not negative  (1)
    waves = sinusoids(num_keys, params.distance.shape[1], dtype=query.dtype.type)
    r = by_head("params.distance", waves @ params.distance, query)  # (heads, distances, d_head)  (2)
    u, w = (by_head(f"params.{name}", own[:, None], query) for name, own in (("u", params.u), ("w", params.w)))

    to_content, to_distance = query + u, query + w
    content = to_content @ key.swapaxes(-1, -2)              # (3)
    by_distance = to_distance @ r.swapaxes(-1, -2)           # (*batch, heads, queries, distances)  (4)
    # Distances fall from left to right, as keys come nearer: turned round, a row of by_distance has but to be shifted.
    scores = scale * (content + relative_shift(by_distance[..., ::-1]))
    logits = forbid(scores if bias is None else scores + bias, past if mask is None else past & mask)  # (5)
    weights = np.exp(logits - np.maximum(logits.max(-1, keepdims=True), np.finfo(logits.dtype).min))
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1)  # (6)
    out = weights @ value                                    # (7)

    def backward(dout):
        dvalue = sum_to(weights.swapaxes(-1, -2) @ dout, value.shape)  # (8)
        dweights = dout @ value.swapaxes(-1, -2)             # (9)
        shared = np.vecdot(dweights, weights)[..., None]
        dlogits = weights * (dweights - shared)              # 0 where a key is yet to come
        dbias = None if bias is None else sum_to(dlogits, bias.shape)  # (10)
        dscores = scale * dlogits                            # (11)
        dby_distance = _shifted_back(dscores)[..., ::-1]     # (12)
        dto_content, dto_distance = dscores @ key, dby_distance @ r
        dquery = dto_content + dto_distance                  # (13)
        dkey = sum_to(dscores.swapaxes(-1, -2) @ to_content, key.shape)  # (14)
        dr = sum_to(dby_distance.swapaxes(-1, -2) @ to_distance, r.shape).reshape(-1, num_keys, d_head)  # (15)
        ddistance = waves.T @ dr                             # (16)
        du = sum_to(dto_content, u.shape).reshape(params.u.shape)  # (17)
        dw = sum_to(dto_distance, w.shape).reshape(params.w.shape)  # (18)
        return TransformerXlRelative(ddistance, du, dw), sum_to(dquery, query.shape), dkey, dvalue, dbias

    return out, backward


def check_relative(params: TransformerXlRelative, query: Array, key: Array, bias: Array | None, mask: Array | None) -> None:
    """Raise ValueError for more queries than keys, an odd number of sinusoids, and a mask or a bias that does not fit the scores."""
    num_queries, num_keys = query.shape[-2], key.shape[-2]
    if num_queries > num_keys:
        raise invalid("query", got=f"{num_queries} queries", wants=f"at most as many as keys, {num_keys}: they are the last of their positions")
    if params.distance.shape[1] % 2:
        raise invalid("params.distance", got=f"{params.distance.shape[1]} sinusoids", wants="an even number: sines and cosines come in pairs")
    batch = np.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    for argument, array in (("mask", mask), ("bias", bias)):
        check_scores(argument, array, (*batch, num_queries, num_keys))


def relative_shift(x: Float[Array, "... queries keys"]) -> Float[Array, "... queries keys"]:
    """Shift row i of x left by queries - 1 - i places, by writing it down once and reading it with other line breaks.

    With distances keys - 1, ..., 0 along each row, column j of the result is for the distance of key j. What comes in
    from the right belongs to keys that are yet to come, and is of no use.
    """
    *batch, queries, keys = x.shape
    padded = np.concatenate([np.zeros_like(x[..., :1]), x], axis=-1)       # each row one longer: the next begins one later
    return padded.reshape(*batch, keys + 1, queries)[..., 1:, :].reshape(*batch, queries, keys)


def _shifted_back(dx):
    """The transpose of relative_shift: every element returns to where it came from."""
    *batch, queries, keys = dx.shape
    rows = np.concatenate([np.zeros((*batch, queries), dx.dtype), dx.reshape(*batch, -1)], axis=-1)
    return rows.reshape(*batch, queries, keys + 1)[..., 1:]


@checked
def sinusoids(
    num_distances: Annotated[int, at_least(1)], d_model: Annotated[int, at_least(2)], *, base: Annotated[float, positive] = 10_000.0,
    dtype: type = np.float32,
) -> Float[Array, "num_distances d_model"]:  # fmt: skip
    """Sines, then cosines, of each distance: what r is made of. Raises ValueError unless d_model is even."""
    if d_model % 2:
        raise invalid("d_model", got=d_model, wants="an even number: sines and cosines come in pairs")
    angle = np.outer(np.arange(num_distances), base ** (-2 * np.arange(d_model // 2) / d_model))
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1).astype(dtype)


def _example(rng: np.random.Generator):
    params = TransformerXlRelative(rng.normal(size=(3, 4, 5)), rng.normal(size=(3, 5)), rng.normal(size=(3, 5)))
    shapes = (2, 3, 4, 5), (2, 1, 6, 5), (2, 1, 6, 7), (1, 3, 4, 6)
    return example(params, *(rng.normal(size=shape) for shape in shapes), mask=rng.random((2, 1, 4, 6)) < 0.9)
