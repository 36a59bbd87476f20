"""Strided and fixed attention: about 2 sqrt(positions) keys a query, such that two layers still join every pair.

A query sees the keys next to it, and far ones on a grid. ``strided``: the last ``stride`` positions, and every stride-th before
them. ``fixed_attention``: its own block of ``stride`` positions, and the last few positions of every block before, its summary.
Both look back only. With a stride of sqrt(positions) a query sees about 2 sqrt(positions) keys. This plain form puts the pattern
as a mask over all positions^2 scores; strided_fast and fixed_attention_fast compute O(positions sqrt(positions)) of them.
Source: Child, Gray, Radford and Sutskever 2019, arXiv:1904.10509, section 4. The paper has near and far keys in two heads (or in
one head, "merged", or in turns, section 5.1). Here they are merged, one softmax over both; local = False leaves the near keys out.
The near keys alone are banded_attention with that window, or fixed_attention with summary = 0. Differs from the paper: strided
sees exactly ``stride`` near keys, its own included, where the paper's l makes it one more.

    near_ij = i - stride < j <= i                            (1)
    far_ij = j <= i, and stride divides i - j                (2)
    near_ij = j <= i, and i and j are in one block, floor(i / stride) = floor(j / stride)   (3)
    far_ij = j <= i, and j mod stride >= stride - summary    (4)
    out = softmax attention of q, k, v under near or far: (1), (2) for strided, (3), (4) for fixed_attention   (5)
    dq, dk, dv, dbias = its backward(dout)                   (6)
"""

from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.core import softmax_attention
from minitransformers.foundation import Backward, at_least, bad, concept, example, invalid


@concept(
    title="Strided attention",
    source="Child, Gray, Radford and Sutskever 2019, arXiv:1904.10509, section 4",
    example=lambda rng: example_call(rng),
    roles=("core",),
    rejects=[bad("query", query=np.ones((2, 2, 9, 3)), bias=None)],
)
def strided(
    params: None,
    query: Float[Array, "*#batch queries d_head"],
    key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"],
    bias: Float[Array, "*#batch #queries #keys"] | None = None,
    *,
    stride: Annotated[int, at_least(1)],
    local: bool = True,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
) -> tuple[Array, Backward]:
    """Each position attends to the last ``stride`` ones, its own included, and to every stride-th before. A core.

    Without local only to its own and every stride-th before. Queries are the last of the positions that the keys span, as in
    decoding. mask and bias are those of scaled_dot_product_attention; params is None, as nothing is learned.
    Returns out (*batch, queries, d_value), and backward: dout -> None, dquery, dkey, dvalue, dbias (None without a bias).
    Raises ValueError when axes do not fit or there are more queries than keys.
    """
    check_core(params, query, key)
    sees = strided_pattern(query.shape[-2], key.shape[-2], stride=stride, local=local)
    out, core_backward = softmax_attention(params, query, key, value, bias, mask=sees if mask is None else sees & mask)  # (5)

    def backward(dout):
        return core_backward(dout)                           # the pattern is a constant  (6)

    return out, backward


@concept(
    title="Fixed attention",
    source="Child, Gray, Radford and Sutskever 2019, arXiv:1904.10509, section 4",
    example=lambda rng: example_call(rng, summary=2),
    roles=("core",),
    rejects=[bad(summary=4), bad("summary", summary=0, local=False), bad("query", query=np.ones((2, 2, 9, 3)), bias=None)],
    form_of="strided",
)
def fixed_attention(
    params: None,
    query: Float[Array, "*#batch queries d_head"],
    key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"],
    bias: Float[Array, "*#batch #queries #keys"] | None = None,
    *,
    stride: Annotated[int, at_least(1)],
    summary: Annotated[int, at_least(0)] = 1,
    local: bool = True,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
) -> tuple[Array, Backward]:
    """Each position attends to its own block of ``stride`` up to itself, and to the last ``summary`` of every earlier block. A core.

    Without local only to the summaries that are no later than itself: the positions before the first summary see nothing,
    and read zero. Blocks count from the first key. The other arguments, results and errors are those of strided.
    Raises ValueError when summary exceeds the stride, or is 0 without local.
    """
    check_core(params, query, key)
    check_summary(stride, summary, local)
    sees = fixed_pattern(query.shape[-2], key.shape[-2], stride=stride, summary=summary, local=local)
    out, core_backward = softmax_attention(params, query, key, value, bias, mask=sees if mask is None else sees & mask)  # (5)

    def backward(dout):
        return core_backward(dout)                           # (6)

    return out, backward


def strided_pattern(queries: int, keys: int, *, stride: int, local: bool) -> Bool[Array, "queries keys"]:
    """Who sees whom, the queries being the last of the keys' positions."""
    i, j = np.arange(keys - queries, keys)[:, None], np.arange(keys)
    near = i - stride < j                                    # (1)
    far = (i - j) % stride == 0                              # (2)
    return (far | near if local else far) & (j <= i)


def fixed_pattern(queries: int, keys: int, *, stride: int, summary: int, local: bool) -> Bool[Array, "queries keys"]:
    """Who sees whom, the queries being the last of the keys' positions."""
    i, j = np.arange(keys - queries, keys)[:, None], np.arange(keys)
    near = i // stride == j // stride                        # (3)
    far = j % stride >= stride - summary                     # (4)
    return (far | near if local else far) & (j <= i)


def check_core(params: None, query: Array, key: Array) -> None:
    """Raise ValueError where queries are more than keys, or something was learned, which inside an attention is not checked."""
    if params is not None:
        raise invalid("params", got=type(params).__name__, wants="None: a pattern learns nothing")
    if query.shape[-2] > key.shape[-2]:
        wants = f"at most as many as keys, {key.shape[-2]}: they are the last of their positions"
        raise invalid("query", got=f"{query.shape[-2]} queries", wants=wants)


def check_summary(stride: int, summary: int, local: bool) -> None:
    """Raise ValueError where a summary is longer than its block, or nothing is left to see."""
    if summary > stride:
        raise invalid("summary", got=summary, wants=f"at most the stride of {stride}")
    if summary == 0 and not local:
        raise invalid("summary", got=0, wants="at least 1 where local is False: nothing would be seen")


def example_call(rng: np.random.Generator, **more: int):
    """The small call of all forms: blocks of three, the last one not full."""
    shapes = (2, 2, 8, 3), (2, 1, 8, 3), (2, 1, 8, 5), (1, 2, 8, 8)
    return example(None, *(rng.normal(size=shape) for shape in shapes), stride=3, mask=rng.random((2, 1, 1, 8)) < 0.8, **more)
