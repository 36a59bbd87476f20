"""Longformer: a window for every token, and a few global tokens that see all and are seen by all.

The global tokens are chosen by position (a classification token, the question of a text), and read the text with query, key and
value maps of their own. Time and memory grow with positions times (window + globals); this plain form has all positions^2
scores under a mask, and longformer_blocks, the same map, computes only what the pattern allows.
Source: Beltagy, Peters and Cohan 2020, arXiv:2004.05150, section 3.1. ``window`` counts the positions to each side: the paper's
w is 2 window. Differs from the paper: padding is hidden exactly, where implementations add -10000; dilation is one for all heads.

    near_ij = |i - j| <= dilation window, and dilation divides i - j; j <= i where causal   (1)
    sees_ij = near_ij, or j is global (and j <= i where causal)   (2)
    local = softmax attention of q, k, v under sees          (3)
    rows_g = softmax attention of global_q_g, global_k, global_v, over all positions, for g global   (4)
    out = local, with rows_g in the place of row g           (5)
    dlocal = dout, zero at the rows g                        (6)
    dq, dk, dv, dbias = the backward of (3), of dlocal       (7)
    dglobal_q, dglobal_k, dglobal_v = the backward of (4), of dout at the rows g   (8)

(1) to (3) are a core, local_global_attention, of which local_global_attention_blocks is the fast form. It alone can be causal: a
global row sees the future, so a text that is written from left to right has global columns only (causal_longformer_attention).
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.core import softmax_attention
from minitransformers.attention.scaled_dot_product_attention_fast import scaled_dot_product_attention_fast
from minitransformers.foundation import Backward, at_least, bad, concept, example, invalid

Positions = Sequence[Annotated[int, at_least(0)]]


@concept(
    title="Window and global columns",
    source="Beltagy, Peters and Cohan 2020, arXiv:2004.05150, section 3.1",
    example=lambda rng: core_example(rng),
    roles=("core",),
    rejects=[bad(global_positions=(-1,)), bad(global_positions=(1, 1)), bad("query", query=np.ones((2, 2, 9, 3)), bias=None)],
    form_of="longformer",
)
def local_global_attention(
    params: None,
    query: Float[Array, "*#batch queries d_head"],
    key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"],
    bias: Float[Array, "*#batch #queries #keys"] | None = None,
    *,
    window: Annotated[int, at_least(1)],
    global_positions: Positions = (),
    dilation: Annotated[int, at_least(1)] = 1,
    causal: bool = False,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
) -> tuple[Array, Backward]:
    """Each position attends to ``window`` positions on each side, dilation apart, and to the global ones. A core.

    With causal only to those that are no later than its own. Queries are the last of the positions that the keys span, as in
    decoding; positions count from the first key, and a global one beyond the keys has not come yet. mask and bias are those
    of scaled_dot_product_attention; params is None.
    Returns out (*batch, queries, d_value), and backward: dout -> None, dquery, dkey, dvalue, dbias (None without a bias).
    Raises ValueError when axes do not fit, there are more queries than keys, or a global position is named twice.
    """
    check_core(params, query, key, global_positions)
    sees = pattern(query.shape[-2], key.shape[-2], window=window, global_positions=global_positions, dilation=dilation, causal=causal)
    out, core_backward = softmax_attention(params, query, key, value, bias, mask=sees if mask is None else sees & mask)  # (3)

    def backward(dout):
        return core_backward(dout)                           # the pattern is a constant  (7)

    return out, backward


@concept(
    title="Longformer",
    source="Beltagy, Peters and Cohan 2020, arXiv:2004.05150, section 3.1",
    example=lambda rng: kernel_example(rng),
    rejects=[
        bad(global_positions=(1, 8)), bad(global_positions=(3, 3)), bad("global_query", global_positions=(1,)),
        bad("global_query", global_query=None), bad("global_key", global_key=None), bad("global_value", global_value=None),
    ],
)  # fmt: skip
def longformer(
    query: Float[Array, "*#batch positions d_head"],
    key: Float[Array, "*#batch positions d_head"],
    value: Float[Array, "*#batch positions d_value"],
    global_query: Float[Array, "*#batch globals d_head"] | None = None,
    global_key: Float[Array, "*#batch positions d_head"] | None = None,
    global_value: Float[Array, "*#batch positions d_value"] | None = None,
    *,
    window: Annotated[int, at_least(1)],
    global_positions: Positions = (),
    dilation: Annotated[int, at_least(1)] = 1,
    mask: Bool[Array, "*#batch #positions #positions"] | None = None,
    core: Callable = local_global_attention,
) -> tuple[Array, Backward]:
    """A window on both sides and global columns for every position; for the global ones a row over all in its place.

    global_query has a row for each of the global_positions, in their order, global_key and global_value one for every
    position; all three are None where no position is global. The texts of a batch share the global positions. mask is True
    where a query may see a key, and may be one row for all (padding). core is the local part: this file's, or its fast form.
    Returns out (*batch, positions, d_value), and backward: dout -> a gradient for each of the six arrays.
    Raises ValueError when axes do not fit, a global position is beyond the text or twice there, or rows and positions are
    not of one number.
    """
    check_positions(global_positions, query.shape[-2])
    for name, array in (("global_query", global_query), ("global_key", global_key), ("global_value", global_value)):
        if (array is None) != (not global_positions):
            wants = f"{len(global_positions)} rows, one a global position" if global_positions else "None: no position is global"
            raise invalid(name, got="None" if array is None else f"shape {array.shape}", wants=wants)
    if global_query is not None and global_query.shape[-2] != len(global_positions):
        raise invalid("global_query", got=f"{global_query.shape[-2]} rows", wants=f"{len(global_positions)}, one a global position")
    chosen = list(global_positions)
    local, local_backward = core(None, query, key, value, mask=mask, window=window, global_positions=global_positions, dilation=dilation)
    out = local
    if global_query is not None and global_key is not None and global_value is not None:
        row_mask = mask if mask is None or mask.shape[-2] == 1 else mask[..., chosen, :]
        rows, rows_backward = scaled_dot_product_attention_fast(global_query, global_key, global_value, mask=row_mask)  # (4)
        leading = np.broadcast_shapes(local.shape[:-2], rows.shape[:-2])
        out = np.array(np.broadcast_to(local, leading + local.shape[-2:]))
        out[..., chosen, :] = rows                           # (5)

    def backward(dout):
        dlocal = dout.copy()
        dlocal[..., chosen, :] = 0                           # what the window gave there was not used  (6)
        _, dquery, dkey, dvalue, _ = local_backward(dlocal)
        drows = rows_backward(dout[..., chosen, :])[:3] if chosen else (None, None, None)  # (8)
        return dquery, dkey, dvalue, *drows

    return out, backward


def pattern(
    queries: int, keys: int, *, window: int, global_positions: Positions, dilation: int, causal: bool
) -> Bool[Array, "queries keys"]:
    """Who sees whom, as a mask over all pairs; the queries are the last of the keys' positions."""
    i, j = np.arange(keys - queries, keys)[:, None], np.arange(keys)
    sees = (abs(i - j) <= dilation * window) & ((i - j) % dilation == 0)  # (1)
    sees[:, [g for g in global_positions if g < keys]] = True  # (2)
    return sees & (j <= i) if causal else sees


def check_core(params: None, query: Array, key: Array, global_positions: Positions) -> None:
    """Raise ValueError where queries are more than keys, a global position is named twice, or something was learned."""
    if params is not None:                                   # inside an attention no annotation is checked
        raise invalid("params", got=type(params).__name__, wants="None: a pattern learns nothing")
    queries, keys = query.shape[-2], key.shape[-2]
    if queries > keys:
        raise invalid("query", got=f"{queries} queries", wants=f"at most as many as keys, {keys}: they are the last of their positions")
    check_positions(global_positions)


def check_positions(global_positions: Positions, positions: int | None = None) -> None:
    """Raise ValueError where a global position is none of a text of so many positions (None: of any text), or is named twice."""
    if len(set(global_positions)) < len(global_positions) or any(g < 0 or (positions is not None and g >= positions) for g in global_positions):
        wants = f"different positions, from 0 {'on' if positions is None else f'to {positions - 1}'}"
        raise invalid("global_positions", got=tuple(global_positions), wants=wants)


def core_example(rng: np.random.Generator):
    """The small call of both forms of the core."""
    shapes = (2, 2, 8, 3), (2, 1, 8, 3), (2, 1, 8, 5), (1, 2, 8, 8)
    arrays = (rng.normal(size=shape) for shape in shapes)
    return example(None, *arrays, window=1, global_positions=(4, 1), dilation=2, mask=rng.random((2, 1, 1, 8)) < 0.8)


def kernel_example(rng: np.random.Generator):
    """The small call of both forms."""
    shapes = (2, 2, 8, 3), (2, 1, 8, 3), (2, 1, 8, 5), (2, 2, 2, 3), (2, 1, 8, 3), (2, 1, 8, 5)
    arrays = (rng.normal(size=shape) for shape in shapes)
    return example(*arrays, window=1, global_positions=(4, 1), dilation=2, mask=rng.random((2, 1, 1, 8)) < 0.8)
