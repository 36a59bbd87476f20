"""FlashAttention: softmax attention in tiles, exact, with never more than one tile of the scores in memory.

A softmax needs the sum over all keys before it can divide. Here the division is left for the end: a block of queries goes over
the keys tile by tile and corrects what it has summed so far whenever a larger score turns up. The backward computes each tile
again from log_total, one number a query. Time O(queries keys (d_head + d_value)), half of it where queries look back only, as
tiles above the diagonal are skipped; memory O(queries + keys) and one tile.
Sources: Dao et al. 2022, arXiv:2205.14135, algorithms 1 and 4; Dao 2023, arXiv:2307.08691, algorithms 1 and 2: the order of the
loops, one division, one number kept. Differs from the papers: leading axes broadcast, bias and mask, log_total has a gradient,
and one order of the loops serves both passes. For a block of queries, which starts from largest = -inf, total = 0, mixed = 0
and goes over its tiles of keys, with the right side of (5) and (6) as it was before the tile:

    scores = scale q k^T + bias, and -inf where a key is hidden       (1)
    largest = max(largest before, max over the tile's keys of scores) (2)
    powers = exp(scores - largest)                                    (3)
    fade = exp(largest before - largest)                              (4)
    total = fade total + sum over the tile's keys of powers           (5)
    mixed = fade mixed + powers v                                     (6)
    out = mixed / total                                               (7)
    log_total = largest + log(total)                                  (8)
    shared = sum over features of dout out, - dlog_total              (9)
    weights = exp(scores - log_total)                                 (10)
    dv += weights^T dout                                              (11)
    dweights = dout v^T                                               (12)
    dscores = weights (dweights - shared)                             (13)
    dbias += dscores                                                  (14)
    dq += scale dscores k                                             (15)
    dk += scale dscores^T q                                           (16)

(9) is made once, (10) to (16) for every tile, after (1) once more.
"""

from functools import partial
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import sum_over_keys
from minitransformers.attention.scaled_dot_product_attention import check_bias
from minitransformers.efficient.tiles import add_to, beyond, part, tiles
from minitransformers.foundation import Backward, at_least, bad, concept, example, finite, invalid


@concept(
    title="FlashAttention with its log-total",
    source="Dao 2023, arXiv:2307.08691, algorithms 1 and 2",
    example=lambda rng: example(*_arrays(rng), diagonal=1, tile=2),
    rejects=[bad(bias=np.full((2, 3, 5), np.inf)), bad(bias=np.full((2, 3, 5), np.nan))],
    form_of="flash_attention",
)
def flash_attention_with_total(
    query: Float[Array, "*#batch queries d_head"], key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"], bias: Float[Array, "*#batch #queries #keys"] | None = None, *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None, scale: Annotated[float, finite] | None = None,
    diagonal: int | None = None, tile: Annotated[int, at_least(1)] = 256,
) -> tuple[tuple[Array, Array], Backward]:  # fmt: skip
    """What queries read of these keys, and log_total, with which merge_attention joins it to what they read of others.

    With a diagonal, query i sees key j where j <= i + diagonal: keys - queries where they end together, 0 where they begin
    together. tile^2 scores exist at once: tile queries by tile keys, or more keys and heads where there are fewer queries.
    The other arguments are those of scaled_dot_product_attention; mask and bias are the caller's and used a tile at a time.
    Returns (out, log_total), (*batch, queries, d_value) and (*batch, queries), and backward: (dout, dlog_total) -> dquery, dkey,
    dvalue, dbias (None without a bias). A query that sees no key has out 0, log_total -inf and no gradient.
    Raises ValueError when axes do not broadcast or the bias holds NaN or +inf.
    """
    check_bias(bias)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    batch = np.broadcast_shapes(*(a.shape[:-2] for a in (query, key, value, bias, mask) if a is not None))
    work = partial(tiles, batch, query.shape[-2], key.shape[-2], tile=tile, diagonal=diagonal, mask=mask)
    out = np.zeros((*batch, query.shape[-2], value.shape[-1]), query.dtype)
    log_total = np.empty(out.shape[:-1], query.dtype)
    lowest = np.finfo(query.dtype).min                       # stands for -inf where that would be subtracted from itself

    def block(rows):                                         # of queries, with all leading axes of the result
        q = part(query, rows)
        return np.broadcast_to(q, (*log_total[rows[:-1]].shape, q.shape[-1]))

    def scores_of(q, columns, both):
        scores = q @ part(key, columns).swapaxes(-1, -2)     # (..., queries of the block, keys of the tile)
        if bias is not None:
            scores += part(bias, both)
        if mask is not None:
            np.copyto(scores, -np.inf, where=~part(mask, both))
        hidden = beyond(diagonal, both)
        if hidden is not None:
            np.copyto(scores, -np.inf, where=hidden)
        return scores

    for rows, seen in work():
        q, mixed = scale * block(rows), out[rows]            # a view: what is mixed already stands in its place
        largest, total = np.full(q.shape[:-1], -np.inf, q.dtype), np.zeros(q.shape[:-1], q.dtype)
        for columns, both in seen:
            scores = scores_of(q, columns, both)             # (1)
            before, largest = largest, np.maximum(np.maximum(largest, scores.max(-1)), lowest)  # (2)
            scores -= largest[..., None]
            powers = np.exp(scores, out=scores)              # (3)
            fade = np.exp(before - largest)                  # (4)
            total = fade * total + sum_over_keys(powers)[..., 0]  # (5)
            mixed *= fade[..., None]
            mixed += powers @ part(value, columns)           # (6)
        some = np.maximum(total, 1)                          # the largest power is exp(0) = 1, so a total below 1 is 0: then 0 / 1 = 0
        mixed /= some[..., None]                             # (7)
        with np.errstate(divide="ignore"):                   # log 0 = -inf is right
            log_total[rows[:-1]] = largest + np.log(total)   # (8)

    def backward(dresult):
        dout, dlog_total = dresult
        dquery, dkey, dvalue = (np.zeros(a.shape, a.dtype) for a in (query, key, value))
        dbias = None if bias is None else np.zeros(bias.shape, bias.dtype)
        shared = np.vecdot(dout, out) - dlog_total           # every score of a query moves its log_total, too  (9)
        finite = np.maximum(log_total, lowest)
        for rows, seen in work():
            q, dmixed = scale * block(rows), dout[rows]
            for columns, both in seen:
                scores = scores_of(q, columns, both)         # made again, not kept
                scores -= finite[rows[:-1]][..., None]
                weights = np.exp(scores, out=scores)         # (10)
                add_to(dvalue, columns, weights.swapaxes(-1, -2) @ dmixed)  # (11)
                dweights = dmixed @ part(value, columns).swapaxes(-1, -2)  # (12)
                dweights -= shared[rows[:-1]][..., None]
                dscores = np.multiply(weights, dweights, out=dweights)  # (13)
                if dbias is not None:
                    add_to(dbias, both, dscores)             # (14)
                add_to(dquery, rows, dscores @ part(key, columns))
                add_to(dkey, columns, dscores.swapaxes(-1, -2) @ q)  # q is scaled already  (16)
        dquery *= scale                                      # (15)
        return dquery, dkey, dvalue, dbias

    return (out, log_total), backward


@concept(
    title="FlashAttention",
    source="Dao et al. 2022, arXiv:2205.14135; Dao 2023, arXiv:2307.08691",
    example=lambda rng: example(None, *_arrays(rng), mask=_MASK, tile=2),
    roles=("core",),
    rejects=[bad(bias=np.full((2, 3, 5), np.nan))],
)
def flash_attention(
    params: None, query: Float[Array, "*#batch queries d_head"], key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"], bias: Float[Array, "*#batch #queries #keys"] | None = None, *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None, scale: Annotated[float, finite] | None = None,
    tile: Annotated[int, at_least(1)] = 256,
) -> tuple[Array, Backward]:  # fmt: skip
    """What scaled_dot_product_attention gives, in memory that grows with the length alone. A core; params is None.

    The other arguments are those of flash_attention_with_total.
    Returns out, and backward: dout -> None, dquery, dkey, dvalue, dbias (None without a bias).
    """
    return _core(params, query, key, value, bias, mask=mask, scale=scale, tile=tile)


@concept(
    title="FlashAttention that looks back",
    source="Dao 2023, arXiv:2307.08691, section 3.1 (causal masking)",
    example=lambda rng: example(None, *_arrays(rng), mask=_MASK, tile=2),
    roles=("core",),
    rejects=[bad("query", query=np.ones((2, 6, 4)), bias=None, mask=None), bad(bias=np.full((2, 3, 5), np.nan))],
    form_of="flash_attention",
)
def causal_flash_attention(
    params: None, query: Float[Array, "*#batch queries d_head"], key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"], bias: Float[Array, "*#batch #queries #keys"] | None = None, *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None, scale: Annotated[float, finite] | None = None,
    tile: Annotated[int, at_least(1)] = 256,
) -> tuple[Array, Backward]:  # fmt: skip
    """flash_attention in which each query sees its own position and those before it; no mask is made of that, and what lies ahead is skipped.

    Queries are the last of the positions that the keys span, so that the same core serves a text and the steps of decoding.
    Raises ValueError when there are more queries than keys.
    """
    ahead = key.shape[-2] - query.shape[-2]
    if ahead < 0:
        wants = f"at most as many as keys, {key.shape[-2]}: they are the last of their positions"
        raise invalid("query", got=f"{query.shape[-2]} queries", wants=wants)
    return _core(params, query, key, value, bias, mask=mask, scale=scale, diagonal=ahead, tile=tile)


def _core(params, *arrays, **config):
    if params is not None:                                   # inside an attention no annotation is checked
        raise invalid("params", got=type(params).__name__, wants="None: FlashAttention learns nothing")
    (out, log_total), flash_backward = flash_attention_with_total(*arrays, **config)

    def backward(dout):
        return None, *flash_backward((dout, np.zeros_like(log_total)))

    return out, backward


_MASK: Array = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 0, 1, 1]], bool)[None]  # one query may see nothing


def _arrays(rng: np.random.Generator) -> tuple[Array, ...]:
    """Two heads that share keys and values, and a bias."""
    return tuple(rng.normal(size=shape) for shape in ((2, 3, 4), (1, 5, 4), (1, 5, 6), (2, 3, 5)))
