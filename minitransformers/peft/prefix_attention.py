"""Prefix tuning: a few learned keys and values stand before those of the text, in every layer, and the model stays as it was.

A text that stands in front of another acts on it through the keys and values it leaves behind, and through nothing else. So
these are what is learned, directly: P of them a head and layer, of no word at all. What a head reads becomes a mixture,
(1 - lambda) what it read before + lambda what it reads of the prefix, where lambda is the prefix's share of the softmax's sum:
a prefix turns a head's attention away from the text, and cannot change where in the text the rest of it goes.
Time O(queries P d_head) a head besides; the keys are copied once, behind the prefix. Source: Li and Liang 2021,
arXiv:2101.00190, section 4.2; the mixture: He et al. 2022, arXiv:2110.04366, section 3.1. Differs from common code: the text
keeps its positions 0, 1, ... (Hugging Face's begin at P), and as the prefix joins after RoPE, it is not turned: RoPE leaves
position 0 as it is, so every slot of the prefix stands there. A is the core inside, A* its backward, [a ; b] b behind a.

    keys = [P_k ; k], values = [P_v ; v]                     (1)
    to_all = [0 ; bias] and [true ; mask], along the keys    (2)
    out = A(q, keys, values, to_all)                         (3)
    dq, dkeys, dvalues, dto_all = A*(dout)                   (4)
    dP_k, dP_v = sum over texts of the first P rows of dkeys, dvalues   (5)
    dk, dv = the other rows                                  (6)
    dbias = all but the first P columns of dto_all           (7)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.core import causal_attention
from minitransformers.attention.heads import sum_to
from minitransformers.attention.softmax_off_by_one import SoftmaxOffByOne, softmax_off_by_one_attention
from minitransformers.attention.weighted_attention import some_mask
from minitransformers.foundation import Backward, bad, concept, example, invalid


class Prefix(NamedTuple):
    """The prefix of one layer, as many heads of it as there are of keys, or 1 for all; and what the core inside learns."""

    key: Float[Array, "kv_heads prefix d_head"]
    value: Float[Array, "kv_heads prefix d_value"]
    core: Any = None


@concept(
    title="Prefix tuning",
    source="Li and Liang 2021, arXiv:2101.00190, section 4.2",
    example=lambda rng: _example(rng),
    rejects=[
        bad("params.key", params=Prefix(np.ones((4, 2, 5)), np.ones((4, 2, 7)))),
    ],
)
def prefix_attention(
    params: Prefix,
    query: Float[Array, "*#batch queries d_head"],
    key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"],
    bias: Float[Array, "*#batch #queries #keys"] | None = None,
    *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
    core: Callable = causal_attention,
) -> tuple[Array, Backward]:
    """Attention to a learned prefix besides the text: every query sees all of it, whatever bias and mask say. A core.

    core(params.core, query, key, value, bias, mask=mask) is what moves the values, and takes the prefix for the first keys: a
    window that is to hold for the text alone stands around this core, not inside. params.key has a head for each head of
    keys, which under grouped queries are (..., kv_heads, 1, keys, d_head), or 1 for all.
    Returns out (*batch, queries, d_value), and backward: dout -> Prefix, dquery, dkey, dvalue, dbias (None without a bias).
    Raises ValueError where the prefix has other heads than the keys, or axes do not fit.
    """
    length, keys = params.key.shape[-2], key.shape[-2]
    own_key, own_value = (_at_heads(own, text) for own, text in ((params.key, key), (params.value, value)))
    all_keys, all_values = _behind(own_key, key), _behind(own_value, value)  # (1)
    all_bias, all_mask = (_seen_by_all(scores, length, keys, fill) for scores, fill in ((bias, 0), (mask, True)))  # (2)
    out, core_backward = core(params.core, query, all_keys, all_values, all_bias, mask=all_mask)  # (3)

    def backward(dout):
        dcore, dquery, dkeys, dvalues, dscores = core_backward(dout)  # (4)
        dprefix_key = sum_to(dkeys[..., :length, :], own_key.shape).reshape(params.key.shape)  # one prefix for all texts
        dprefix_value = sum_to(dvalues[..., :length, :], own_value.shape).reshape(params.value.shape)  # (5)
        dkey, dvalue = dkeys[..., length:, :], dvalues[..., length:, :]  # (6)
        dbias = None if bias is None else sum_to(dscores[..., length:], bias.shape)  # (7)
        return Prefix(dprefix_key, dprefix_value, dcore), dquery, dkey, dvalue, dbias

    return out, backward


def _at_heads(prefix: Array, text: Array) -> Array:
    """The prefix as it broadcasts with keys (..., heads, keys, d), or grouped (..., heads, 1, keys, d)."""
    heads = len(prefix)
    if heads == 1:
        return prefix[0]
    if text.shape[-3:-2] == (heads,):
        return prefix
    if text.shape[-4:-2] == (heads, 1):
        return prefix[:, None]
    raise invalid("params.key", got=f"{heads} heads", wants=f"as many as keys and values have, of shape {text.shape}, or 1 for all")


def _behind(prefix: Array, text: Array) -> Array:
    return np.concatenate([np.broadcast_to(prefix, (*text.shape[:-2], *prefix.shape[-2:])), text], axis=-2)


def _seen_by_all(scores: Array | None, length: int, keys: int, fill: Any) -> Array | None:
    """A bias or mask of the text's keys, (..., #queries, #keys), with columns for the prefix in front that change nothing."""
    if scores is None:
        return None
    of_text = np.broadcast_to(scores, (*scores.shape[:-1], keys))
    return np.concatenate([np.full((*scores.shape[:-1], length), fill, scores.dtype), of_text], axis=-1)


def _example(rng: np.random.Generator):
    """Three heads of keys, a bias, a query that may see nothing of the text, and a core that learns a sink for each head."""
    params = Prefix(rng.normal(size=(3, 2, 5)), rng.normal(size=(3, 2, 7)), SoftmaxOffByOne(rng.normal(size=3)))
    arrays = (rng.normal(size=shape) for shape in ((2, 3, 4, 5), (2, 3, 5, 5), (2, 3, 5, 7), (1, 3, 4, 5)))
    return example(params, *arrays, mask=some_mask(), core=softmax_off_by_one_attention)
