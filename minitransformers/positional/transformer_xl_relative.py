"""Transformer-XL's relative positions: scores of content and of distance, each asked by the query and on its own account.

The score of a sum of embeddings, (token + position) . (token + position), has four terms. Transformer-XL keeps them, puts
the distance in the place of the key's position, and a learned vector in the place of the query's: then keys know no place
of their own, and those of an earlier segment can be kept and read again.

Source: Dai et al. 2019, arXiv:1901.02860, section 3.3 and appendix B. u and w are the learned vectors, in each head what
attends to content and to distance whatever the query is (w is the paper's v). Row n of r is for distance n: a linear layer
of sinusoids, which the caller makes (``sinusoids``, then ``linear``). The first num_keys - num_queries keys are memory. The
paper stops gradients at the hidden states that they are made of, and not before: the projections still learn from them. So
that is decided where keys are made, by taking those hidden states by keyword.

    distance_ij = i + num_keys - num_queries - j             (1)
    content = (q + u) k^T                                    (2)
    by_distance = (q + w) r^T                                (3)
    scores_ij = (content_ij + by_distance_i,distance_ij) / sqrt(d_head)  where distance_ij >= 0, else -inf  (4)
    weights = softmax over the keys of scores                (5)
    out = weights v                                          (6)
    dv = weights^T dout                                      (7)
    dweights = dout v^T                                      (8)
    dscores = weights (dweights - sum over keys of dweights weights) / sqrt(d_head)  (9)
    dby_distance_in = dscores_ij  where distance_ij = n, else 0          (10)
    dq = dscores k + dby_distance r                          (11)
    dk = dscores^T (q + u)                                   (12)
    dr = dby_distance^T (q + w), summed over the batch       (13)
    du = sum over batch and queries of dscores k             (14)
    dw = sum over batch and queries of dby_distance r        (15)
"""

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import bad, concept, example, invalid, positive_number, whole_number


def _example(rng):
    q, k, v = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 3, 6, 5)), rng.normal(size=(2, 3, 6, 7))
    return example(q, k, v, rng.normal(size=(3, 6, 5)), rng.normal(size=(3, 5)), rng.normal(size=(3, 5)))


@concept(
    title="Transformer-XL's relative positions",
    source="Dai et al. 2019, arXiv:1901.02860, section 3.3",
    example=_example,
    rejects=[
        bad(k=np.ones((2, 3, 6, 4))),
        bad(v=np.ones((2, 3, 5, 7))),
        bad(r=np.ones((3, 5, 5))),
        bad(r=np.ones((2, 6, 5))),
        bad(u=np.ones((5, 3))),
        bad(w=np.ones(5)),
        bad("q", q=np.ones((2, 3, 7, 5))),
    ],
)
def transformer_xl_relative(
    q: Float[Array, "*batch heads queries d_head"],
    k: Float[Array, "*batch heads keys d_head"],
    v: Float[Array, "*batch heads keys d_value"],
    r: Float[Array, "heads keys d_head"],
    u: Float[Array, "heads d_head"],
    w: Float[Array, "heads d_head"],
):
    """Causal attention whose scores see content and distance apart.

    The queries are the last of the positions that the keys span; what comes before is memory. r[:, n] is for a key n
    positions back, from 0 to keys - 1.
    Returns out (*batch, heads, queries, d_value), and backward: dout -> dq, dk, dv, dr, du, dw.
    Raises ValueError when there are more queries than keys.
    """
    (num_queries, d_head), num_keys = q.shape[-2:], k.shape[-2]
    if num_queries > num_keys:
        raise invalid("q", got=f"{num_queries} queries", wants=f"at most as many as keys, {num_keys}: they are the last of their positions")
    scale = d_head**-0.5
    query, key = np.arange(num_keys - num_queries, num_keys), np.arange(num_keys)
    past = query[:, None] >= key                             # (queries, keys): where distance is not negative  (1)

    to_content, to_distance = q + u[:, None], q + w[:, None]
    content = to_content @ k.swapaxes(-1, -2)                # (2)
    by_distance = to_distance @ r.swapaxes(-1, -2)           # (*batch, heads, queries, distances)  (3)
    # Distances fall from left to right, as keys come nearer: turned round, a row of by_distance has but to be shifted.
    scores = np.where(past, scale * (content + relative_shift(by_distance[..., ::-1])), -np.inf)  # (4)
    weights = np.exp(scores - scores.max(-1, keepdims=True))  # its own key every query sees: the maximum is finite
    weights /= weights.sum(-1, keepdims=True)                # (5)
    out = weights @ v                                        # (6)

    def backward(dout):
        dv = weights.swapaxes(-1, -2) @ dout                 # (7)
        dweights = dout @ v.swapaxes(-1, -2)                 # (8)
        shared = np.vecdot(dweights, weights)[..., None]
        dscores = scale * weights * (dweights - shared)      # 0 where a key is yet to come  (9)
        dby_distance = _shifted_back(dscores)[..., ::-1]     # (10)
        dto_content, dto_distance = dscores @ k, dby_distance @ r
        dq = dto_content + dto_distance                      # (11)
        dk = dscores.swapaxes(-1, -2) @ to_content           # (12)
        dr = _over_batch(dby_distance.swapaxes(-1, -2) @ to_distance)  # (13)
        du = _over_batch(dto_content.sum(axis=-2, keepdims=True))[:, 0]  # (14)
        dw = _over_batch(dto_distance.sum(axis=-2, keepdims=True))[:, 0]  # (15)
        return dq, dk, dv, dr, du, dw

    return out, backward


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


def _over_batch(x):
    """The sum over all axes before the last three, which are heads, positions and features."""
    return x.sum(axis=tuple(range(x.ndim - 3)))


def sinusoids(num_distances: int, d_model: int, *, base: float = 10_000.0, dtype: type = np.float32) -> Float[Array, "num_distances d_model"]:
    """Sines, then cosines, of each distance: what r is made of.

    Raises ValueError unless num_distances and d_model are whole numbers from 1, d_model even, and base is above 0 and finite.
    """
    num_distances, d_model = whole_number("num_distances", num_distances, least=1), whole_number("d_model", d_model, least=1)
    base = positive_number("base", base)
    if d_model % 2:
        raise invalid("d_model", got=d_model, wants="an even number: sines and cosines come in pairs")
    angle = np.outer(np.arange(num_distances), base ** (-2 * np.arange(d_model // 2) / d_model))
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1).astype(dtype)
