"""Multi-head attention: several attentions side by side, each in its own small projection of the features.

One softmax can look in one way at a time; num_heads of them, each d_model / num_heads wide, look in several for the
price of one. Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2. Differs from the paper: projections may have
biases, and a norm or a rotation of queries and keys (qk_norm, rope) or another core (a window) can be put in. split cuts the
last axis into heads, (..., length, heads * d) to (..., heads, length, d); merge undoes it.

    query, key, value = split(x W_q + b_q), split(x W_k + b_k), split(x W_v + b_v)   (1)
    query, key = rotate(normalize(query, key)), each where there is one              (2)
    heads = attention(query, key, value)                                             (3)
    out = merge(heads) W_o + b_o                                                     (4)
    dheads = split(dout W_o^T), dW_o = merge(heads)^T dout, db_o = sum of dout        (5)
    dquery, dkey, dvalue = gradients of attention at dheads                          (6)
    dquery, dkey = rotated back, then back through the normaliser                     (7)
    dW_i = x^T merge(di), db_i = sum of merge(di), for i = query, key, value          (8)
    dx = merge(dquery) W_q^T + merge(dkey) W_k^T + merge(dvalue) W_v^T               (9)
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.cache import KeyValueCache, cached_attention
from minitransformers.attention.heads import (
    as_normalizer,
    as_weighting,
    check_core,
    check_heads,
    check_scores,
    init_normalizer,
    init_weighting,
    merge_heads,
    named_core,
    split_heads,
)
from minitransformers.attention.masks import causal_mask
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.foundation import bad, concept, example, trusted


class MultiHeadAttention(NamedTuple):
    """Projections to queries, keys and values of all heads side by side, and back from the heads' values.

    learned holds what the weighting learns, in its order (SSMax: a scale a head), or None; normalizer what the normaliser
    of queries and keys learns (QK-norm: gains), or None.
    """

    query: Annotated[Linear, "d_model d_heads"]
    key: Annotated[Linear, "d_model d_heads"]
    value: Annotated[Linear, "d_model d_values"]
    output: Annotated[Linear, "d_values d_model"]
    learned: tuple | None = None
    normalizer: Any = None


def init_multi_head_attention(
    rng: np.random.Generator, d_model: int, *, num_heads: int, std: float | None = None,
    residual_std: float | None = None, bias: bool = True, weighting: str | None = None, max_positions: int = 1024,
    normalize: str | None = None, dtype: type = np.float32,
) -> MultiHeadAttention:  # fmt: skip
    """Normal weights of deviation ``std`` (default 1/sqrt(d_model)), the output's of ``residual_std`` (default std).

    weighting is the name of one that learns; it starts for contexts of up to max_positions. normalize names a normaliser.
    """
    check_heads("num_heads", num_heads, d_model)
    stds = (std, std, std, std if residual_std is None else residual_std)
    query, key, value, output = (init_linear(rng, d_model, d_model, std=s, bias=bias, dtype=dtype) for s in stds)
    learned = init_weighting(rng, weighting, num_heads=num_heads, context=max_positions, dtype=dtype)
    normalizer = init_normalizer(rng, normalize, d_model // num_heads, dtype=dtype)
    return MultiHeadAttention(query, key, value, output, learned, normalizer)


@trusted
def multi_head_attention_step(
    params: MultiHeadAttention, x: Float[Array, "... new d_model"], state: KeyValueCache | None, *, num_heads: int,
    bias: Float[Array, "... new seen"] | None = None, causal: bool = True, scale: float | None = None, rotate: Callable | None = None,
    weighting: str | Callable | None = None, normalize: str | Callable | None = None, attend: str | None = None,
):  # fmt: skip
    """The causal outputs of a few new positions, given those before; ``state`` is None at the start.

    bias, broadcastable to (..., heads, new, seen), is added to the scores of the new positions against all seen so far.
    Returns out, shaped like x, and the state (the same cache, which has grown). Forward only.
    """
    return cached_attention(
        params, x, state, num_heads=num_heads, num_kv_heads=num_heads, bias=bias, causal=causal, scale=scale, rotate=rotate,
        weighting=weighting, normalize=normalize, attend=attend,
    )  # fmt: skip


def _example_params(rng: np.random.Generator) -> MultiHeadAttention:
    return MultiHeadAttention(*(Linear(rng.normal(size=s) / 2, rng.normal(size=s[1])) for s in ((6, 4), (6, 4), (6, 2), (2, 6))))


@concept(
    title="Multi-head attention",
    source="Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2",
    example=lambda rng: example(
        _example_params(rng), rng.normal(size=(2, 3, 6)), rng.normal(size=(1, 2, 3, 3)), num_heads=2, mask=rng.random((2, 1, 3, 3)) < 0.8
    ),
    roles=("mixer",),
    rejects=[
        bad(num_heads=3),
        bad(num_heads=0),
        bad(x=np.ones((2, 3, 5))),
        bad(x=np.ones((2, 0, 6))),
        bad("params.output.weight", params=_example_params(np.random.default_rng(0))._replace(output=Linear(np.ones((3, 6)), None))),
        bad(mask=np.ones((2, 1, 3, 3))),
        bad(mask=np.ones((5, 2, 3, 3), bool)),
        bad(bias=np.ones((3, 4))),
        bad(attend=lambda q, k, v: scaled_dot_product_attention(q, k, v)),
    ],
    step=multi_head_attention_step,
)
def multi_head_attention(
    params: MultiHeadAttention,
    x: Float[Array, "... positions d_model"],
    bias: Float[Array, "*#scores #positions #positions"] | None = None,
    *,
    num_heads: int,
    causal: bool = True,
    mask: Bool[Array, "*#scores #positions #positions"] | None = None,
    scale: float | None = None,
    rotate: Callable | None = None,
    weighting: str | Callable | None = None,
    normalize: str | Callable | None = None,
    attend: str | Callable | None = None,
):
    """Every position gathers from the positions that it may see, in num_heads ways.

    bias is added to the scores, mask says True where a query may see a key: both broadcast to (..., heads, queries, keys).
    causal hides later keys besides. scale multiplies the scores (default 1/sqrt(d_head)). rotate(x) -> out, backward
    turns queries and keys (functools.partial(rope, base=1e5)). normalize(params.normalizer, query, key) -> (query, key),
    backward, a function or its name ("qk_norm"), acts on each head before that. weighting, a function or its name,
    takes the place of the softmax, as in scaled_dot_product_attention, and gets params.learned. attend(query, key, value)
    -> out, backward takes the place of scaled_dot_product_attention and decides itself, causal or not, what a query sees;
    by its name ("gaussian_kernel_attention") it gets the causal mask.
    Returns out, shaped like x, and backward: dout -> MultiHeadAttention, dx, dbias (None without a bias).
    Raises ValueError when num_heads does not divide the projections, when mask or bias do not fit the scores, when
    attend comes with mask, bias, scale or weighting, or normalize without what it learns.
    """
    length = x.shape[-2]
    check_heads("num_heads", num_heads, params.query.weight.shape[1])
    check_heads("num_heads", num_heads, params.value.weight.shape[1])
    for argument, array in (("bias", bias), ("mask", mask)):
        check_scores(argument, array, (*x.shape[:-2], num_heads, length, length))
    check_core(attend, params.learned, weighting, mask=mask, bias=bias, scale=scale)
    normalizer = as_normalizer(normalize, params.normalizer, params.query.weight.shape[1] // num_heads)

    query, query_backward = linear(params.query, x)
    key, key_backward = linear(params.key, x)
    value, value_backward = linear(params.value, x)
    query, key, value = (split_heads(part, num_heads) for part in (query, key, value))  # (..., heads, length, d)  (1)
    if normalizer is not None:
        (query, key), normalizer_backward = normalizer(query, key)  # before the rotation  (2)
    if rotate is not None:
        (query, query_unrotate), (key, key_unrotate) = rotate(query), rotate(key)  # (2)
    if isinstance(attend, str):
        attend = named_core(attend, causal_mask(length) if causal else None)
    if attend is None:
        if causal:
            mask = causal_mask(length) if mask is None else mask & causal_mask(length)
        heads, attend_backward = scaled_dot_product_attention(
            query, key, value, bias, *(params.learned or ()), mask=mask, scale=scale, weighting=as_weighting(weighting)
        )  # (3)
    else:
        heads, attend_backward = attend(query, key, value)   # (3)
    out, output_backward = linear(params.output, merge_heads(heads))  # (4)

    def backward(dout):
        doutput, dmerged = output_backward(dout)
        dheads = split_heads(dmerged, num_heads)             # (5)
        dquery, dkey, dvalue, *rest = attend_backward(dheads)  # (6)
        if rotate is not None:
            dquery, dkey = query_unrotate(dquery), key_unrotate(dkey)  # (7)
        dnormalizer = None
        if normalizer is not None:
            dnormalizer, dquery, dkey = normalizer_backward((dquery, dkey))  # (7)
        dparams_query, dx_query = query_backward(merge_heads(dquery))
        dparams_key, dx_key = key_backward(merge_heads(dkey))
        dparams_value, dx_value = value_backward(merge_heads(dvalue))
        dlearned = None if params.learned is None else tuple(rest[1:])
        dparams = MultiHeadAttention(dparams_query, dparams_key, dparams_value, doutput, dlearned, dnormalizer)  # (8)
        dx = dx_query + dx_key + dx_value                    # x is read three times: three terms  (9)
        return dparams, dx, None if bias is None else rest[0]

    return out, backward
