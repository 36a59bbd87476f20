"""Linformer: a fixed number of learned mixtures stands in the place of the keys, so that time grows with the positions alone.

The weights of attention are often close to a matrix of low rank. Then a query need not see every key: ``rank`` mixtures of all
keys, and the same or other mixtures of all values, are enough. Time and memory O(positions rank). What it gives up: a mixture
has seen the whole text, so that nothing can look back only; and there is a longest text.

Source: Wang et al. 2020, arXiv:2006.04768, eq. 7; sharing between heads, and between keys and values, is its section 4.
Positions that the mask forbids are left out of the mixtures. A shorter text uses the first columns of E and F.

    mixed_key = E key                                        (1)
    mixed_value = F value                                    (2)
    out = softmax(scale q mixed_key^T) mixed_value           (3)
    dq, dmixed_key, dmixed_value = (3)'s backward(dout)      (4)
    dE = dmixed_key key^T, dkey = E^T dmixed_key             (5)
    dF = dmixed_value value^T, dvalue = F^T dmixed_value     (6)

Where one matrix serves several heads, or keys and values both, its gradient is the sum over its uses.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import by_head, sum_to
from minitransformers.attention.scaled_dot_product_attention_fast import scaled_dot_product_attention_fast
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, finite, invalid


class Linformer(NamedTuple):
    """The mixtures of keys and of values, one for each head or one for all; value is None where those of the keys serve both."""

    key: Float[Array, "heads rank max_positions"]
    value: Float[Array, "heads rank max_positions"] | None


@checked
def init_linformer(
    rng: np.random.Generator, *, max_positions: Annotated[int, at_least(1)], rank: Annotated[int, at_least(1)],
    num_heads: Annotated[int, at_least(1)] = 1, shared: bool = False, dtype: type = np.float32,
) -> Linformer:  # fmt: skip
    """Uniform numbers within 1/sqrt(rank). num_heads 1 is one pair of matrices for all heads; shared, one for keys and values.

    Raises ValueError for a rank above max_positions, which would cost more than attention itself.
    """
    if rank > max_positions:
        raise invalid("rank", got=rank, wants=f"at most max_positions = {max_positions}")
    drawn = rng.uniform(-1, 1, size=(1 if shared else 2, num_heads, rank, max_positions)) / rank**0.5
    return Linformer(drawn[0].astype(dtype), None if shared else drawn[1].astype(dtype))


@concept(
    title="Linformer",
    source="Wang et al. 2020, arXiv:2006.04768, eq. 7",
    example=lambda rng: _example(rng),
    roles=("core",),
    rejects=[
        bad("params.key", params=Linformer(np.ones((1, 2, 5)), None)),
        bad(mask=np.ones((2, 1, 4, 6), bool)),
        bad(bias=np.ones((4, 6))),
    ],
)
def linformer(
    params: Linformer,
    query: Float[Array, "*#batch queries d_head"],
    key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"],
    bias: Float[Array, "*#batch #queries #keys"] | None = None,
    *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
    scale: Annotated[float, finite] | None = None,
) -> tuple[Array, Backward]:
    """Attention to ``rank`` learned mixtures of the keys. A core that sees the whole text; no key has a score of its own.

    mask is True where a key is to be seen, by all queries alike (padding_mask); a text none of which is seen reads the mean of
    nothing, zero. scale as in scaled_dot_product_attention. bias must be None: there is no score of a key to add it to.
    Returns out (*batch, queries, d_value), and backward: dout -> Linformer, dquery, dkey, dvalue, None.
    Raises ValueError for a bias, a mask that is not the same for all queries (nor can this core look back only), more keys than
    max_positions, and heads that do not fit.
    """
    _, rank, longest = params.key.shape
    keys = key.shape[-2]
    if bias is not None:
        raise invalid("bias", got="numbers for scores", wants="None: a mixture of keys has no score for each of them")
    if mask is not None and mask.shape[-2] != 1:
        raise invalid("mask", got=f"a row for each of {mask.shape[-2]} queries", wants="one for all: a mixture has seen the whole text")
    if keys > longest:
        raise invalid("params.key", got=f"mixtures of {longest} positions", wants=f"at least as many as there are keys, {keys}")
    seen = None if mask is None else mask.swapaxes(-1, -2)   # (..., keys, 1)

    def leave_out(a):
        return a if seen is None else a * seen

    key_mixture = by_head("params.key", params.key, query)[..., :keys]  # E: (heads, rank, keys), or (rank, keys) for all
    value_mixture = key_mixture if params.value is None else by_head("params.value", params.value, query)[..., :keys]
    seen_key, seen_value = leave_out(key), leave_out(value)
    mixed_key = key_mixture @ seen_key                       # (..., rank, d_head)  (1)
    mixed_value = value_mixture @ seen_value                 # (..., rank, d_value)  (2)
    out, attention_backward = scaled_dot_product_attention_fast(query, mixed_key, mixed_value, scale=scale)  # (3)

    def backward(dout):
        dquery, dmixed_key, dmixed_value, _ = attention_backward(dout)  # (4)
        dkey_mixture = dmixed_key @ seen_key.swapaxes(-1, -2)
        dkey = leave_out(key_mixture.swapaxes(-1, -2) @ dmixed_key)  # (5)
        dvalue_mixture = dmixed_value @ seen_value.swapaxes(-1, -2)
        dvalue = leave_out(value_mixture.swapaxes(-1, -2) @ dmixed_value)  # (6)
        own_key, own_value = sum_to(dkey_mixture, key_mixture.shape), sum_to(dvalue_mixture, value_mixture.shape)
        if params.value is None:                             # one matrix, read twice: two gradients
            dparams = Linformer(whole(own_key + own_value), None)
        else:
            dparams = Linformer(whole(own_key), whole(own_value))
        return dparams, dquery, sum_to(dkey, key.shape), sum_to(dvalue, value.shape), None

    def whole(gradient):
        """The gradient of all columns: those beyond the text have none."""
        padded = np.zeros(params.key.shape, gradient.dtype)
        padded[..., :keys] = gradient.reshape(-1, rank, keys)
        return padded

    return out, backward


def _example(rng: np.random.Generator):
    params = Linformer(*rng.normal(size=(2, 3, 2, 7)))
    shapes = (2, 3, 4, 5), (2, 1, 6, 5), (2, 1, 6, 7)
    return example(params, *(rng.normal(size=s) for s in shapes), mask=rng.random((2, 1, 1, 6)) < 0.8)
