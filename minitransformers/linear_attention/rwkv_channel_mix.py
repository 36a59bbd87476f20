"""RWKV-4 channel mixing: a feed-forward network that also looks at the position before, behind a gate.

The activation is the square of ReLU: it is 0 for half of its inputs, and its slope has no jump. The gate, a sigmoid of its own
projection, lets a position refuse what the network made for it. Time and memory are those of a feed-forward network, and d_model^2
more for the gate. Source: Peng et al. 2023, arXiv:2305.13048, section 3.1, eq. 18 to 20. T is token_shift.

    r_in, k_in = T(mix_r, x), T(mix_k, x)                    (1)
    receptance = sigmoid(r_in W_r)                           (2)
    active = max(k_in W_k, 0)                                (3)
    hidden = active^2                                        (4)
    out = receptance (hidden W_v)                            (5)
    dhidden, dW_v = linear's backward at receptance dout     (6)
    dreceptance = dout (hidden W_v)                          (7)
    dpre = 2 active dhidden                                  (8)
    dr_in, dk_in and the gradients of W_r, W_k = linear's backwards           (9)
    dx = T's backwards at dr_in and dk_in, added; they give the gradients of the mixes too   (10)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.sigmoid import sigmoid
from minitransformers.foundation import Backward, at_least, checked, concept, example
from minitransformers.linear_attention.token_shift import token_shift


class RwkvChannelMix(NamedTuple):
    """What the gate and the network read of the position before, and the three projections."""

    receptance_mix: Float[Array, "d_model"]
    key_mix: Float[Array, "d_model"]
    receptance: Annotated[Linear, "d_model d_model"]
    key: Annotated[Linear, "d_model d_hidden"]
    value: Annotated[Linear, "d_hidden d_model"]


@checked
def init_rwkv_channel_mix(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, d_hidden: Annotated[int, at_least(1)] | None = None,
    std: Annotated[float, at_least(0)] | None = None, residual_std: Annotated[float, at_least(0)] | None = None, dtype: type = np.float32,
) -> RwkvChannelMix:  # fmt: skip
    """Maps without bias of deviation ``std`` (default 1/sqrt(d_in)), value's of ``residual_std`` (default std). d_hidden is 4 d_model."""
    d_hidden = 4 * d_model if d_hidden is None else d_hidden
    mix: Array = (np.arange(d_model) / d_model).astype(dtype)
    return RwkvChannelMix(
        mix, mix.copy(),
        init_linear(rng, d_model, d_model, std=std, bias=False, dtype=dtype),
        init_linear(rng, d_model, d_hidden, std=std, bias=False, dtype=dtype),
        init_linear(rng, d_hidden, d_model, std=std if residual_std is None else residual_std, bias=False, dtype=dtype),
    )  # fmt: skip


@concept(
    title="RWKV-4 channel mixing",
    source="Peng et al. 2023, arXiv:2305.13048, section 3.1",
    example=lambda rng: _example(rng),
)
def rwkv_channel_mix(
    params: RwkvChannelMix, x: Float[Array, "*batch positions d_model"], past: Float[Array, "*batch d_model"] | None = None
) -> tuple[Array, Backward]:
    """Work on each position, with a look at the one before it; past is that of the first position, None for zeros.

    In decoding past is the last position that was read: it is all the state there is.
    Returns out, shaped like x, and backward: dout -> RwkvChannelMix of gradients, dx, dpast (None where there was no past).
    """
    r_in, r_shift = token_shift(params.receptance_mix, x, past)
    k_in, k_shift = token_shift(params.key_mix, x, past)     # (1)
    gate, gate_backward = linear(params.receptance, r_in)
    receptance, sigmoid_backward = sigmoid(gate)             # (2)
    pre, key_backward = linear(params.key, k_in)
    active = np.maximum(pre, 0)                              # (3)
    hidden = active * active                                 # (4)
    made, value_backward = linear(params.value, hidden)
    out = receptance * made                                  # (5)

    def backward(dout):
        dvalue, dhidden = value_backward(receptance * dout)  # (6)
        dreceptance = dout * made                            # (7)
        dpre = 2 * active * dhidden                          # where pre is below 0, active is 0  (8)
        dgate, dr_in = gate_backward(sigmoid_backward(dreceptance))
        dkey, dk_in = key_backward(dpre)                     # (9)
        dmix_r, dx_r, dpast_r = r_shift(dr_in)
        dmix_k, dx_k, dpast_k = k_shift(dk_in)
        dx = dx_r + dx_k                                     # (10)
        return RwkvChannelMix(dmix_r, dmix_k, dgate, dkey, dvalue), dx, None if past is None else dpast_r + dpast_k

    return out, backward


def _example(rng: np.random.Generator):
    receptance, key, value = (Linear(rng.normal(size=s) / 2, None) for s in ((3, 3), (3, 5), (5, 3)))
    params = RwkvChannelMix(rng.uniform(size=3), rng.uniform(size=3), receptance, key, value)
    return example(params, rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 3)))
