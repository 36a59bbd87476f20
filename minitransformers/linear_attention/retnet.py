"""RetNet's mixer, multi-scale retention: heads that remember for different times, each normalised by itself, behind a gate.

Retention has no softmax, so nothing holds its outputs at one size: a head that forgets slowly is louder than one that forgets soon. A
norm for each head and position levels them, and a gate gives back the non-linearity that went with the softmax. Source: Sun et al. 2023,
arXiv:2307.08621, section 2.2, eq. 8. Angles and the norm without gain are those of the authors' code, which the paper leaves open.
Differs from that code: the norm takes the mean away, as the paper's GroupNorm does; rows are not divided by their sums,
which the norm would undo. What is done to queries and keys first (``prepare``: a rotation) and what moves the values (``recurrence``:
retention in chunks, with the paper's decays) are slots. split cuts the last axis into heads, merge undoes it, mean is over the
features of a head. P is the prepare, R the recurrence, a star the backward of what it stands on.

    query, key, value = split(x W_q), split(x W_k), split(x W_v)         (1)
    query, key = P(query, key)                                           (2)
    heads, state = R(query, key, value)                                  (3)
    centred = heads - mean(heads)                                        (4)
    std = sqrt(mean(centred^2) + eps)                                    (5)
    unit = centred / std                                                 (6)
    gate = silu(x W_g)                                                   (7)
    out = (gate o merge(unit)) W_o                                       (8)
    dmixed = dout W_o^T                                                  (9)
    dunit = split(dmixed o gate)                                         (10)
    dheads = (dunit - mean(dunit) - unit mean(dunit o unit)) / std       (11)
    dquery, dkey, dvalue = R*(dheads)                                    (12)
    dquery, dkey = P*(dquery, dkey)                                      (13)
    dgate = silu*(dmixed o merge(unit))                                  (14)
    dx = merge(dquery) W_q^T + merge(dkey) W_k^T + merge(dvalue) W_v^T + dgate W_g^T   (15)

Each map gives its weights their gradients on the way, as in ``linear``. A text starts from no state, and the last state is used by
nobody: a step does (3) with the state of the step before, and (2) at the positions that follow.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.attention.heads import check_heads, check_per_head, merge_heads, split_heads
from minitransformers.attention.prepare import on_both
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.silu import silu
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, positive, slot, trusted
from minitransformers.linear_attention.retention_chunked import retention_chunked
from minitransformers.norms.qk_norm import QkNorm, qk_norm
from minitransformers.positional.rope_interleaved import rope_interleaved


class RetNet(NamedTuple):
    """Projections to queries, keys and values of all heads side by side, to the gate, and back; what the slots learn, None for nothing."""

    query: Annotated[Linear, "d_model d_heads"]
    key: Annotated[Linear, "d_model d_heads"]
    value: Annotated[Linear, "d_model d_values"]
    gate: Annotated[Linear, "d_model d_values"]
    output: Annotated[Linear, "d_values d_model"]
    prepare: Any = None
    recurrence: Any = None


class RetNetState(NamedTuple):
    """What is kept of the past: the recurrence's state, and how many positions it has read."""

    state: Any
    length: int


@checked
def init_retnet(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, num_heads: Annotated[int, at_least(1)],
    expand: Annotated[int, at_least(1)] = 2, std: Annotated[float, at_least(0)] | None = None,
    residual_std: Annotated[float, at_least(0)] | None = None, dtype: type = np.float32,
) -> RetNet:  # fmt: skip
    """Maps without bias, their weights normal of deviation ``std`` (default 1/sqrt(d_in)), the output's of ``residual_std`` (default std).

    Values and gate are expand d_model wide. Raises ValueError when num_heads does not divide d_model.
    """
    check_heads("num_heads", num_heads, d_model)
    wide = expand * d_model
    last = std if residual_std is None else residual_std
    sizes = (d_model, d_model, std), (d_model, d_model, std), (d_model, wide, std), (d_model, wide, std), (wide, d_model, last)
    return RetNet(*(init_linear(rng, d_in, d_out, std=own, bias=False, dtype=dtype) for d_in, d_out, own in sizes))


def turn(x: Float[Array, "... positions d_head"], *, positions: Array | None = None) -> tuple[Array, Backward]:
    """RoPE in neighbouring pairs, whose frequencies go from 1 to 1/10000 with both ends taken: 10000^(-m / (d_head/2 - 1)) for pair m."""
    d_head = x.shape[-1]
    if d_head % 2:
        raise invalid("num_heads", got=f"heads of {d_head} features", wants="an even number of features a head: they are turned in pairs")
    return rope_interleaved(x, positions=positions, base=10_000.0 ** (d_head / max(d_head - 2, 1)))  # a lone pair turns by 1


turned = on_both(turn)


@trusted
def retnet_step(
    params: RetNet, x: Float[Array, "... new d_model"], state: RetNetState | None, *, num_heads: int, prepare: Callable = turned,
    recurrence: Callable = slot(retention_chunked), eps: float = 1e-6,
) -> tuple[Array, RetNetState]:  # fmt: skip
    """The outputs of a few new positions, given the state after those before; ``state`` is None at the start.

    Returns out, shaped like x, and the state after them, of the same size; nothing is written to. Forward only.
    Raises ValueError where the state is that of another model or batch.
    """
    read, before = (0, None) if state is None else (state.length, state.state)
    positions = np.arange(read, read + x.shape[-2])
    prepare = partial(prepare, positions=positions)
    out, after, _ = _forward(params, x, before, num_heads=num_heads, prepare=prepare, recurrence=recurrence, eps=eps)
    return out, RetNetState(after, read + x.shape[-2])


@concept(
    title="Multi-scale retention (RetNet)",
    source="Sun et al. 2023, arXiv:2307.08621, section 2.2, eq. 8",
    example=lambda rng: _example(rng),
    roles=("mixer",),
    rejects=[bad(num_heads=3), bad(num_heads=4)],
    step=retnet_step,
)
def retnet(
    params: RetNet,
    x: Float[Array, "... positions d_model"],
    *,
    num_heads: Annotated[int, at_least(1)],
    prepare: Callable = turned,
    recurrence: Callable = slot(retention_chunked),
    eps: Annotated[float, positive] = 1e-6,
) -> tuple[Array, Backward]:
    """Every position gathers from those before it, which fade at a rate of each head's own, through a state of fixed size.

    prepare(params.prepare, query, key, positions=...) -> (query, key), backward (see attention/prepare) and
    recurrence(params.recurrence, query, key, value, state) -> (heads, state), backward (retention in any of its forms, with
    any decays, and what else fills that role) work on (..., heads, positions, d_head). eps is added to the variance of a head's
    features, and has the units of a value squared.
    Returns out, shaped like x, and backward: dout -> RetNet, dx.
    Raises ValueError when num_heads does not divide the projections, or leaves a head a single value feature or an odd number of
    key features to be turned.
    """
    out, _, backward = _forward(params, x, None, num_heads=num_heads, prepare=prepare, recurrence=recurrence, eps=eps)
    return out, backward


def _forward(params: RetNet, x: Array, before: Any, *, num_heads: int, prepare: Callable, recurrence: Callable, eps: float):
    """One forward for both: the whole text starts from nothing, a step from the state that the past left.

    Returns out, the recurrence's last state, and backward.
    """
    for projection in (params.query, params.value):
        check_heads("num_heads", num_heads, projection.weight.shape[1])
    check_per_head("params.recurrence", params.recurrence, num_heads)
    d_value = params.value.weight.shape[1] // num_heads
    if d_value == 1:
        raise invalid("num_heads", got=num_heads, wants="two value features a head or more: one alone equals its mean, and nothing is left")

    query, query_backward = linear(params.query, x)
    key, key_backward = linear(params.key, x)
    value, value_backward = linear(params.value, x)
    query, key, value = (split_heads(part, num_heads) for part in (query, key, value))  # (..., heads, positions, d)  (1)
    (query, key), prepare_backward = prepare(params.prepare, query, key)  # (2)
    (heads, after), recurrence_backward = recurrence(params.recurrence, query, key, value, before)  # (3)
    ones = np.ones(d_value, x.dtype)                         # a product with ones is a sum, three times faster than sum(-1)
    centred = heads - (heads @ ones / d_value)[..., None]    # (4)
    std = np.sqrt(np.vecdot(centred, centred) / d_value + eps)[..., None]  # (..., heads, positions, 1)  (5)
    unit = centred / std                                     # (6)
    merged = merge_heads(unit)
    linear_gate, gate_backward = linear(params.gate, x)
    gate, silu_backward = silu(linear_gate)                  # (7)
    out, output_backward = linear(params.output, gate * merged)  # (8)

    def backward(dout):
        doutput, dmixed = output_backward(dout)              # (9)
        dunit = split_heads(dmixed * gate, num_heads)        # (10)
        shared = (np.vecdot(dunit, unit) / d_value)[..., None]  # std sees every feature, and so does the mean
        dheads = (dunit - (dunit @ ones / d_value)[..., None] - unit * shared) / std  # (11)
        drecurrence, dquery, dkey, dvalue, _ = recurrence_backward((dheads, None))  # (12)
        dprepare, dquery, dkey = prepare_backward((dquery, dkey))  # (13)
        dgate, dx = gate_backward(silu_backward(dmixed * merged))  # (14)
        dparams_query, dx_query = query_backward(merge_heads(dquery))
        dparams_key, dx_key = key_backward(merge_heads(dkey))
        dparams_value, dx_value = value_backward(merge_heads(dvalue))
        dx = dx + dx_query + dx_key + dx_value               # x is read four times: four terms  (15)
        return RetNet(dparams_query, dparams_key, dparams_value, dgate, doutput, dprepare, drecurrence), dx

    return out, after, backward


def _example(rng: np.random.Generator):
    """Heads of 2 key and 3 value features, turned after a norm that learns, two chunks and a rest."""
    shapes = (6, 4), (6, 4), (6, 6), (6, 6), (6, 6)
    params = RetNet(*(Linear(rng.normal(size=s) / 2, rng.normal(size=s[1])) for s in shapes))
    params = params._replace(prepare=QkNorm(*rng.normal(size=(2, 2))))
    recurrence = slot(partial(retention_chunked, decay=(0.9, 0.4), chunk=2))
    return example(params, rng.normal(size=(2, 5, 6)), num_heads=2, prepare=qk_norm, recurrence=recurrence, eps=1e-3)
