"""DeltaNet: a layer around the delta rule. Keys of length 1, a share beta for each head from the input, a look at the last few positions.

The rule overwrites what stands under a key, so it matters that two words meet under the same key, and that no key is so long that the
state explodes. A short convolution puts the last few positions into queries, keys and values: a key can be the word before, and its
value this word. Queries and keys are then divided by their lengths, and a norm for each head levels what is read. Sources: Schlag, Irie and
Schmidhuber 2021, arXiv:2102.11174 (the layer); Yang, Wang, Zhang, Shen and Kim 2024, arXiv:2406.06484, section 3.3: SiLU, lengths of 1,
convolutions and the norm are as there. One convolution runs over the three side by side, which is three that run over each. Differs from the
authors' code: queries are not divided by sqrt(d_head), which the norm undoes. What moves the values (``mix``: the delta rule in chunks) is a slot.
split cuts the last axis into heads, merge undoes it. C is the convolution, U divides by the length of a head's features, R is the mix, N
the norm over the features of a head, a star the backward of what it stands on.

    mixed = [x W_q, x W_k, x W_v]                            (1)
    query, key, value = split of the parts of silu(C(mixed)) (2)
    query, key = U(query), U(key), with U(a) = a / sqrt(|a|^2 + 1e-6)   (3)
    beta = sigmoid(x W_beta)                                 (4)
    heads, state = R(query, key, value, beta)                (5)
    normed = N(heads)                                        (6)
    out = merge(normed) W_o                                  (7)
    dnormed = split(dout W_o^T)                              (8)
    dheads = N*(dnormed)                                     (9)
    dquery, dkey, dvalue, dbeta = R*(dheads)                 (10)
    dlogits = sigmoid*(dbeta)                                (11)
    dquery, dkey = U*(dquery), U*(dkey)                      (12)
    dmixed = C*(silu*([merge(dquery), merge(dkey), merge(dvalue)]))   (13)
    dx = the parts of dmixed by W_q^T, W_k^T, W_v^T, and dlogits W_beta^T, added   (14)

Each map gives its weights their gradients on the way, as in ``linear``. A text starts from zeros and no state: a step does (2) with the last
rows of (1), and (5) with the state, that the step before has left. No positions are added or turned: order is in what overwrites what.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.attention.heads import check_heads, merge_heads, split_heads
from minitransformers.basics.causal_convolution import CausalConvolution, causal_convolution, init_causal_convolution
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.sigmoid import sigmoid
from minitransformers.basics.silu import silu
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, positive, trusted
from minitransformers.linear_attention.delta_rule_chunked import delta_rule_chunked
from minitransformers.norms.rms_norm import RmsNorm, init_rms_norm, rms_norm


class DeltaNet(NamedTuple):
    """Maps to queries, keys and values of all heads side by side, to a beta for each head, and back; a convolution and a head's norm.

    d_mixed is 2 d_heads + d_values: queries, keys and values side by side.
    """

    query: Annotated[Linear, "d_model d_heads"]
    key: Annotated[Linear, "d_model d_heads"]
    value: Annotated[Linear, "d_model d_values"]
    beta: Annotated[Linear, "d_model heads"]
    conv: Annotated[CausalConvolution, "d_mixed width"]
    norm: Annotated[RmsNorm, "d_value"]
    output: Annotated[Linear, "d_values d_model"]


class DeltaNetState(NamedTuple):
    """What is kept of the past: the last width - 1 inputs of the convolution, and the state of the delta rule."""

    past: Float[Array, "*batch before d_mixed"]
    state: Float[Array, "*batch heads d_head d_value"]


@checked
def init_delta_net(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, num_heads: Annotated[int, at_least(1)],
    d_conv: Annotated[int, at_least(1)] = 4, std: Annotated[float, at_least(0)] | None = None,
    residual_std: Annotated[float, at_least(0)] | None = None, dtype: type = np.float32,
) -> DeltaNet:  # fmt: skip
    """Maps without bias, their weights normal of deviation ``std`` (default 1/sqrt(d_model)), the output's of ``residual_std`` (default std).

    Keys and values are as wide as the model; d_conv is the width of the convolution, in positions. Every beta starts near a half.
    Raises ValueError when num_heads does not divide d_model.
    """
    check_heads("num_heads", num_heads, d_model)
    into = partial(init_linear, rng, d_model, std=std, bias=False, dtype=dtype)
    return DeltaNet(
        query=into(d_model), key=into(d_model), value=into(d_model), beta=into(num_heads),
        conv=init_causal_convolution(rng, 3 * d_model, width=d_conv, bias=False, dtype=dtype),
        norm=init_rms_norm(rng, d_model // num_heads, dtype=dtype),
        output=init_linear(rng, d_model, d_model, std=std if residual_std is None else residual_std, bias=False, dtype=dtype),
    )  # fmt: skip


@trusted
def delta_net_step(
    params: DeltaNet, x: Float[Array, "*batch new d_model"], state: DeltaNetState | None, *, num_heads: int,
    mix: Callable = delta_rule_chunked, eps: float = 1e-5,
) -> tuple[Array, DeltaNetState]:  # fmt: skip
    """The outputs of a few new positions, given those before; ``state`` is None at the start.

    Returns out, shaped like x, and the state after them, of the same size; nothing is written to. Forward only.
    Raises ValueError where the state is that of another model or batch.
    """
    (d_mixed, width), (*batch, new, _) = params.conv.weight.shape, x.shape
    past, before = (np.zeros((*batch, width - 1, d_mixed), x.dtype), None) if state is None else state
    if past.shape != (*batch, width - 1, d_mixed):
        raise invalid("state.past", got=f"shape {past.shape}", wants=f"{(*batch, width - 1, d_mixed)}, as the model and x have it")
    out, mixed, after, _ = _forward(params, x, past, before, num_heads=num_heads, mix=mix, eps=eps)
    return out, DeltaNetState(np.concatenate([past, mixed], axis=-2)[..., new:, :], after)


def _params(rng: np.random.Generator) -> DeltaNet:
    """Two heads of 2 key and 3 value features, a convolution over three positions."""
    query, key, value, beta, output = (
        Linear(rng.normal(size=shape) / 2, rng.normal(size=shape[1])) for shape in ((5, 4), (5, 4), (5, 6), (5, 2), (6, 5))
    )
    conv = CausalConvolution(rng.normal(size=(14, 3)) / 2, rng.normal(size=14))
    return DeltaNet(query, key, value, beta, conv, RmsNorm(rng.normal(size=3)), output)


@concept(
    title="DeltaNet",
    source="Yang, Wang, Zhang, Shen and Kim 2024, arXiv:2406.06484, section 3.3",
    example=lambda rng: _example(rng),
    roles=("mixer",),
    rejects=[
        bad(num_heads=3),
        bad(num_heads=4),
        bad("params.beta.weight", params=_params(np.random.default_rng(0))._replace(beta=Linear(np.ones((5, 3)), None))),
        bad("params.conv.weight", params=_params(np.random.default_rng(0))._replace(conv=CausalConvolution(np.ones((13, 3)), None))),
    ],
    step=delta_net_step,
)
def delta_net(
    params: DeltaNet, x: Float[Array, "... positions d_model"], *, num_heads: Annotated[int, at_least(1)],
    mix: Callable = delta_rule_chunked, eps: Annotated[float, positive] = 1e-5,
) -> tuple[Array, Backward]:  # fmt: skip
    """Every position puts right, in a state of fixed size, what its key reads there, and reads with its query.

    mix(query, key, value, beta, state) -> (heads, state), backward is the recurrence, in either form; eps is the norm's.
    Returns out, shaped like x, and backward: dout -> DeltaNet, dx.
    Raises ValueError when num_heads does not divide the projections, or where a beta a head or the convolution does not fit them.
    """
    out, _, _, backward = _forward(params, x, None, None, num_heads=num_heads, mix=mix, eps=eps)
    return out, backward


def _forward(
    params: DeltaNet, x: Array, past: Array | None, before: Array | None, *, num_heads: int, mix: Callable, eps: float
):  # fmt: skip
    """One forward for both: the whole text starts from nothing, a step from what the past left.

    Returns out, what the convolution read, the last state, and backward.
    """
    d_keys, d_values = params.query.weight.shape[1], params.value.weight.shape[1]
    for width in (d_keys, d_values):
        check_heads("num_heads", num_heads, width)
    if (betas := params.beta.weight.shape[1]) != num_heads:
        raise invalid("params.beta.weight", got=f"{betas} columns", wants=f"num_heads = {num_heads}: one for each head")
    if (d_mixed := len(params.conv.weight)) != 2 * d_keys + d_values:
        raise invalid("params.conv.weight", got=f"{d_mixed} features", wants=f"those of query, key and value: {2 * d_keys + d_values}")
    d_head, parts = d_keys // num_heads, [d_keys, 2 * d_keys]
    length_1 = RmsNorm(np.full(d_head, d_head**-0.5, x.dtype))  # a root mean square of 1/sqrt(d_head): a length of 1

    query, query_map_backward = linear(params.query, x)
    key, key_map_backward = linear(params.key, x)
    value, value_map_backward = linear(params.value, x)
    mixed = np.concatenate([query, key, value], axis=-1)     # (..., positions, d_mixed)  (1)
    convolved, conv_backward = causal_convolution(params.conv, mixed, past)
    active, silu_backward = silu(convolved)
    query, key, value = (split_heads(part, num_heads) for part in np.split(active, parts, axis=-1))  # (..., heads, positions, d)  (2)
    query, query_backward = rms_norm(length_1, query, eps=1e-6 / d_head)
    key, key_backward = rms_norm(length_1, key, eps=1e-6 / d_head)  # (3)
    logits, beta_backward = linear(params.beta, x)
    beta, sigmoid_backward = sigmoid(logits.swapaxes(-1, -2))  # (..., heads, positions)  (4)
    (heads, after), mix_backward = mix(query, key, value, beta, before)  # (5)
    normed, norm_backward = rms_norm(params.norm, heads, eps=eps)  # (6)
    out, output_backward = linear(params.output, merge_heads(normed))  # (7)

    def backward(dout):
        doutput, dmerged = output_backward(dout)
        dnormed = split_heads(dmerged, num_heads)            # (8)
        dnorm, dheads = norm_backward(dnormed)               # (9)
        dquery, dkey, dvalue, dbeta, _ = mix_backward((dheads, None))  # (10)
        dparams_beta, dx = beta_backward(sigmoid_backward(dbeta).swapaxes(-1, -2))  # (11)
        (_, dquery), (_, dkey) = query_backward(dquery), key_backward(dkey)  # (12)
        dactive = np.concatenate([merge_heads(part) for part in (dquery, dkey, dvalue)], axis=-1)
        dconv, dmixed, _ = conv_backward(silu_backward(dactive))  # (13)
        dquery, dkey, dvalue = np.split(dmixed, parts, axis=-1)
        dparams_query, dx_query = query_map_backward(dquery)
        dparams_key, dx_key = key_map_backward(dkey)
        dparams_value, dx_value = value_map_backward(dvalue)
        dx = dx + dx_query + dx_key + dx_value               # x is read four times: four terms  (14)
        return DeltaNet(dparams_query, dparams_key, dparams_value, dparams_beta, dconv, dnorm, doutput), dx

    return out, mixed, after, backward


def _example(rng: np.random.Generator):
    """Two chunks and a rest."""
    return example(_params(rng), rng.normal(size=(2, 5, 5)), num_heads=2, mix=partial(delta_rule_chunked, chunk=2), eps=0.1)
