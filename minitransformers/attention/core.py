"""Cores: what moves values between positions, inside the projections of any attention.

    core(params, query, key, value, bias=None, *, mask=None) -> heads, backward
    backward(dheads) -> dparams, dquery, dkey, dvalue, dbias

params is what the core learns, None for nothing; query is (..., heads, queries, d_head), and the queries are the last of the
positions that the keys span. So one core serves a whole text, the steps of decoding, and grouped queries, whose heads stand on
two axes that broadcast. mask is True where a query may attend; it and bias broadcast to (..., heads, queries, keys) and end
at the last key.

``causal(core)`` is the same core that looks back only. The softmax's own are ``softmax_attention`` and ``causal_attention``;
the others stand beside the weighting or the kernel that they are made of: sparsemax_attention, banded_attention, ...
"""

import functools
from collections.abc import Callable

from minitransformers.attention.masks import causal_mask
from minitransformers.attention.scaled_dot_product_attention_fast import scaled_dot_product_attention_fast
from minitransformers.foundation import slot


def causal(core: Callable) -> Callable:
    """The core under a causal mask besides that of the call: each query sees its own position and those before it."""
    if isinstance(core, functools.partial):                  # its settings stay outside, where calls check them
        return functools.partial(causal(core.func), *core.args, **core.keywords)

    @functools.wraps(core)
    def looking_back(params, query, key, value, bias=None, *, mask=None, **config):
        queries = query.shape[-2]
        if queries > 1:                                      # a single query is the last position, and sees all
            earlier = causal_mask(queries, key.shape[-2])
            mask = earlier if mask is None else mask & earlier
        return core(params, query, key, value, bias, mask=mask, **config)

    return looking_back


softmax_attention = slot(scaled_dot_product_attention_fast)
causal_attention = causal(softmax_attention)
