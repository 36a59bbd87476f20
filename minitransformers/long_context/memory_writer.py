"""Memory writer: each slot looks at itself and at the tokens of a segment, and becomes a mean of what it has and what it finds.

The slots do not see each other, so each has its own reason to change or to stay. A slot's own value is the slot as it is,
without a map: a weight of 1 on itself is a slot that was not touched. A temperature below 1 makes the softmax choose, where a
mean of many tokens would tell little.

Source: Wu et al. 2020 (Memformer), arXiv:2010.06891, section 3 (memory writing). split cuts the features into heads, merge undoes
it; the temperature is tau, d that of a head. One map W_k makes the keys of slots and of tokens. What comes out has any length:
biased_memory_norm is to follow. Costs slots times (tokens + 1) scores a head.

    query, self_key = split(slots W_q), split(slots W_k)     (1)
    key, value = split(x W_k), split(x W_v)                  (2)
    self_value = split(slots)                                (3)
    self_score_i = query_i . self_key_i / (tau sqrt(d))      (4)
    score_ij = query_i . key_j / (tau sqrt(d)), -inf where the mask forbids   (5)
    self_weight_i, weight_ij = softmax over itself and the tokens   (6)
    out = merge(self_weight self_value + weight value)       (7)
    dheads = split(dout), dself_weight_i = dheads_i . self_value_i, dweight = dheads value^T   (8)
    dself_score, dscore = the softmax's backward at these, divided by tau sqrt(d)   (9)
    dquery = dself_score self_key + dscore key               (10)
    dself_key = dself_score query, dkey = dscore^T query     (11)
    dself_value = self_weight dheads, dvalue = weight^T dheads   (12)
    dslots = dquery W_q^T + dself_key W_k^T + merge(dself_value)   (13)
    dx = dkey W_k^T + dvalue W_v^T                           (14)
    dW_q = slots^T dquery, dW_k = slots^T dself_key + x^T dkey, dW_v = x^T dvalue   (15)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import check_heads, check_scores, forbid, merge_heads, split_heads
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.softmax import softmax
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, positive, trees


class MemoryWriter(NamedTuple):
    """A map of slots to queries, one of slots and tokens to keys, one of tokens to what is written."""

    query: Annotated[Linear, "d_model d_heads"]
    key: Annotated[Linear, "d_model d_heads"]
    value: Annotated[Linear, "d_model d_model"]


@checked
def init_memory_writer(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, bias: bool = False, dtype: type = np.float32
) -> MemoryWriter:  # fmt: skip
    """Normal weights of deviation 1/sqrt(d_model), those of the value of 1/d_model: so a token of unit features is as long as a slot."""
    stds = d_model**-0.5, d_model**-0.5, 1 / d_model
    return MemoryWriter(*(init_linear(rng, d_model, d_model, std=std, bias=bias, dtype=dtype) for std in stds))


@concept(
    title="Memory writer (slot attention)",
    source="Wu et al. 2020 (Memformer), arXiv:2010.06891, section 3",
    example=lambda rng: _example(rng),
    rejects=[bad(num_heads=3), bad(mask=np.ones((2, 1, 3, 4), bool)), bad(slots=np.ones((3, 3, 6)))],
)
def memory_writer(
    params: MemoryWriter,
    slots: Float[Array, "*batch slots d_model"],
    x: Float[Array, "*batch positions d_model"],
    *,
    num_heads: Annotated[int, at_least(1)],
    temperature: Annotated[float, positive] = 0.25,
    mask: Bool[Array, "*#scores #slots #positions"] | None = None,
) -> tuple[Array, Backward]:
    """Each slot becomes a weighted mean of itself and of what the tokens of x have to write.

    temperature is dimensionless: 1 is plain attention, and towards 0 each head of a slot takes from one place only. mask,
    broadcastable to (*batch, heads, slots, positions), is True where a token may be written; a slot may always stay.
    Returns out, shaped like slots, of any length, and backward: dout -> MemoryWriter of gradients, dslots, dx.
    Raises ValueError where num_heads does not divide the features, or mask does not fit the scores.
    """
    for projection in (params.query, params.value):
        check_heads("num_heads", num_heads, projection.weight.shape[1])
    check_scores("mask", mask, (*x.shape[:-2], num_heads, slots.shape[-2], x.shape[-2]))
    query, query_backward = linear(params.query, slots)
    self_key, self_key_backward = linear(params.key, slots)
    query, self_key = split_heads(query, num_heads), split_heads(self_key, num_heads)  # (..., heads, slots, d)  (1)
    key, key_backward = linear(params.key, x)
    value, value_backward = linear(params.value, x)
    key, value = split_heads(key, num_heads), split_heads(value, num_heads)  # (..., heads, positions, d)  (2)
    self_value = split_heads(slots, num_heads)               # (3)
    scale = 1 / (temperature * query.shape[-1] ** 0.5)
    self_score = scale * np.vecdot(query, self_key)[..., None]  # (..., heads, slots, 1)  (4)
    score = forbid(scale * (query @ key.swapaxes(-1, -2)), mask)  # (..., heads, slots, positions)  (5)
    weights, softmax_backward = softmax(np.concatenate([self_score, score], axis=-1))
    self_weight, weight = weights[..., :1], weights[..., 1:]  # (6)
    out = merge_heads(self_weight * self_value + weight @ value)  # (7)

    def backward(dout):
        dheads = split_heads(dout, num_heads)
        dself_weight = np.vecdot(dheads, self_value)[..., None]
        dweight = dheads @ value.swapaxes(-1, -2)            # (8)
        dscores = scale * softmax_backward(np.concatenate([dself_weight, dweight], axis=-1))
        dself_score, dscore = dscores[..., :1], dscores[..., 1:]  # (9)
        dquery = dself_score * self_key + dscore @ key       # (10)
        dself_key, dkey = dself_score * query, dscore.swapaxes(-1, -2) @ query  # (11)
        dself_value, dvalue = self_weight * dheads, weight.swapaxes(-1, -2) @ dheads  # (12)
        dparams_query, dslots_query = query_backward(merge_heads(dquery))
        dparams_self, dslots_key = self_key_backward(merge_heads(dself_key))
        dslots = dslots_query + dslots_key + merge_heads(dself_value)  # read three times: three terms  (13)
        dparams_key, dx_key = key_backward(merge_heads(dkey))
        dparams_value, dx_value = value_backward(merge_heads(dvalue))
        dx = dx_key + dx_value                               # (14)
        # One map makes the keys of slots and of tokens: two gradients.
        return MemoryWriter(dparams_query, trees.map(np.add, dparams_self, dparams_key), dparams_value), dslots, dx  # (15)

    return out, backward


def _example(rng: np.random.Generator):
    params = MemoryWriter(*(Linear(rng.normal(size=shape) / 2, rng.normal(size=shape[1])) for shape in ((6, 4), (6, 4), (6, 6))))
    mask = rng.random((2, 1, 3, 5)) < 0.8
    return example(params, rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 5, 6)), num_heads=2, temperature=0.7, mask=mask)
