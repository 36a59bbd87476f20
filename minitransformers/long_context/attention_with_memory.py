"""Attention with memory: the positions of a segment gather from the segment, and from rows that were kept from before it.

Memory and segment make one text. Only the segment has queries; keys and values are made of both, by the same maps and anew in
every segment. What tells the order is the core's affair: it takes the queries for the last of the positions that the keys span,
and sees relative positions only, so rows of any age fit. Source: Dai et al. 2019 (Transformer-XL), arXiv:1901.02860, sections 3.2
and 3.3. Differs from the paper: memory comes by position and gets its gradient; who wants it stopped does not send that on, as
``transformer_xl`` does not. [a; b] is a with b below it, split and merge are those of multi_head_attention, A the core, a star
the backward of what it stands on. Where maps have biases, these are added, and get sums.

    context = [memory; x]                                    (1)
    query = split(x W_q)                                     (2)
    key, value = split(context W_k), split(context W_v)      (3)
    heads = A(query, key, value), under the mask             (4)
    out = merge(heads) W_o                                   (5)
    dheads = split(dout W_o^T)                               (6)
    dquery, dkey, dvalue = A*(dheads)                        (7)
    dW_q = x^T merge(dquery), and dW_i = context^T merge(di), i = key, value, with the rows of memory   (8)
    dcontext = merge(dkey) W_k^T + merge(dvalue) W_v^T       (9)
    dmemory = dcontext in the rows of memory                 (10)
    dx = merge(dquery) W_q^T + dcontext in the rows of x     (11)

How much attention each row received: a core that is given the unit matrix for values returns its weights.

    received_j = mean over heads and queries i of A(query, key, 1)_ij   (12)
"""

from collections.abc import Callable
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import check_heads, check_per_head, merge_heads, split_heads
from minitransformers.attention.multi_head_attention import MultiHeadAttention
from minitransformers.basics.linear import Linear, linear
from minitransformers.foundation import Backward, at_least, bad, concept, example, invalid, procedure
from minitransformers.norms.qk_norm import QkNorm
from minitransformers.positional.transformer_xl_relative import TransformerXlRelative, transformer_xl_relative


@concept(
    title="Attention with memory",
    source="Dai et al. 2019, arXiv:1901.02860, sections 3.2 and 3.3",
    example=lambda rng: _example(rng),
    rejects=[
        bad("num_heads: got 3", num_heads=3), bad("params.core.distance", num_heads=1), bad(memory=np.ones((3, 4, 6))), bad(memory=np.ones((2, 4, 5))),
        bad(mask=np.ones((2, 1, 3, 3), bool)), bad(mask=np.ones((5, 2, 1, 3, 7), bool)),
        bad("params.prepare", params=MultiHeadAttention(*[Linear(np.ones((6, 6)), None)] * 4)._replace(prepare=QkNorm(*np.ones((2, 3))))),
    ],
)  # fmt: skip
def attention_with_memory(
    params: MultiHeadAttention, x: Float[Array, "*batch positions d_model"], memory: Float[Array, "*batch kept d_model"] | None = None, *,
    num_heads: Annotated[int, at_least(1)], mask: Bool[Array, "*#scores #positions #keys"] | None = None,
    core: Callable = transformer_xl_relative,
) -> tuple[Array, Backward]:  # fmt: skip
    """Every position of x gathers from the memory, and from the positions of x that the core lets it see.

    memory is what stood before x, None for nothing. mask is True where a query may see a key, and broadcasts to
    (..., heads, positions, kept + positions). core is any that looks back only: transformer_xl_relative with its parameters in
    params.core, or one without positions (causal_attention).
    Returns out, shaped like x, and backward: dout -> MultiHeadAttention, dx, dmemory (None without a memory).
    Raises ValueError when num_heads does not divide the projections, the mask does not fit, or params.prepare is not None:
    queries and keys are not the same positions, so nothing can be done to both of them alike.
    """
    _check(params, num_heads)
    query, key, value, projections_backward = _projected(params, x, memory, num_heads)
    heads, core_backward = core(params.core, query, key, value, mask=mask)  # (4)
    out, output_backward = linear(params.output, merge_heads(heads))  # (5)

    def backward(dout):
        doutput, dmerged = output_backward(dout)
        dheads = split_heads(dmerged, num_heads)             # (6)
        dcore, dquery, dkey, dvalue, *_ = core_backward(dheads)  # (7)
        (dparams_query, dparams_key, dparams_value), dx, dmemory = projections_backward(dquery, dkey, dvalue)
        return MultiHeadAttention(dparams_query, dparams_key, dparams_value, doutput, None, dcore), dx, dmemory

    return out, backward


def below(rows: Float[Array, "*batch kept d_model"] | None, x: Float[Array, "*batch positions d_model"]) -> Float[Array, "*batch both d_model"]:
    """x below the rows that stood before it, None for none, as an array of its own."""
    return x.copy() if rows is None else np.concatenate([rows, x], axis=-2)


def _projected(params: MultiHeadAttention, x: Array, memory: Array | None, num_heads: int):
    """Queries of x, keys and values of memory and x, by heads; and backward: dquery, dkey, dvalue -> of the maps, dx, dmemory."""
    context = below(memory, x)                               # (*batch, kept + positions, d_model)  (1)
    query, query_backward = linear(params.query, x)
    query = split_heads(query, num_heads)                    # (*batch, heads, positions, d_head)  (2)
    key, key_backward = linear(params.key, context)
    value, value_backward = linear(params.value, context)
    key, value = split_heads(key, num_heads), split_heads(value, num_heads)  # (3)

    def backward(dquery, dkey, dvalue):
        dparams_query, dx_query = query_backward(merge_heads(dquery))
        dparams_key, dcontext_key = key_backward(merge_heads(dkey))
        dparams_value, dcontext_value = value_backward(merge_heads(dvalue))
        dprojections = dparams_query, dparams_key, dparams_value  # (8)
        dcontext = dcontext_key + dcontext_value             # read twice: two terms  (9)
        kept = context.shape[-2] - x.shape[-2]
        dmemory = None if memory is None else dcontext[..., :kept, :]  # (10)
        dx = dx_query + dcontext[..., kept:, :]              # x has queries as well  (11)
        return dprojections, dx, dmemory

    return query, key, value, backward


@procedure(
    title="Attention received",
    source="Rae et al. 2019 (Compressive Transformer), arXiv:1911.05507, section 3",
    example=lambda rng: _example(rng, with_mask=False),
    rejects=[bad("num_heads: got 3", num_heads=3), bad("params.core.distance", num_heads=1), bad(memory=np.ones((3, 4, 6)))],
)
def attention_received(
    params: MultiHeadAttention, x: Float[Array, "*batch positions d_model"], memory: Float[Array, "*batch kept d_model"] | None = None, *,
    num_heads: Annotated[int, at_least(1)], core: Callable = transformer_xl_relative,
) -> Float[Array, "*batch rows"]:  # fmt: skip
    """How much attention each row of memory and x receives, a mean over heads and queries: from 0 to 1, and 1 in sum.

    The arguments are those of attention_with_memory. Raises ValueError as that does.
    """
    _check(params, num_heads)
    query, key, _, _ = _projected(params, x, memory, num_heads)
    weights, _ = core(params.core, query, key, np.broadcast_to(np.eye(key.shape[-2], dtype=x.dtype), (*key.shape[:-1], key.shape[-2])))
    return weights.mean(axis=(-3, -2))                       # (12)


def _check(params: MultiHeadAttention, num_heads: int) -> None:
    for projection in (params.query, params.value):
        check_heads("num_heads", num_heads, projection.weight.shape[1])
    check_per_head("params.core", params.core, num_heads)
    if params.prepare is not None:
        raise invalid("params.prepare", got=type(params.prepare).__name__, wants="None: queries and keys are not the same positions")


def _example(rng: np.random.Generator, *, with_mask: bool = True):
    shapes = (6, 4), (6, 4), (6, 8), (8, 6)
    core = TransformerXlRelative(rng.normal(size=(2, 6, 2)), rng.normal(size=(2, 2)), rng.normal(size=(2, 2)))
    params = MultiHeadAttention(*(Linear(rng.normal(size=s) / 2, rng.normal(size=s[1])) for s in shapes))._replace(core=core)
    arrays = rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 4, 6))
    return example(params, *arrays, num_heads=2, **({"mask": rng.random((2, 1, 3, 7)) < 0.8} if with_mask else {}))
