"""Mamba-2: SSD between two projections, with everything it needs made by the first of them.

As attention makes queries, keys and values in parallel, the block makes C, B and x: one projection gives all parts, one short
convolution runs over x, B and C together, SSD mixes the positions, a gated norm holds the sizes. What is kept of the past has
a fixed size. Source: Dao and Gu 2024, arXiv:2405.21060, section 7 and figure 6. Follows the authors' code: the parts stand in
the order z, x, B, C, delta; a bias of its own for delta, inside the softplus; the norm has as many groups as B and C.

    z, xBC, step = parts of x W_in                           (1)
    convolved = causal convolution of xBC                    (2)
    u, B, C = parts of silu(convolved)                       (3)
    delta = softplus(step + dt_bias)                         (4)
    A = -exp(A_log)                                          (5)
    y = SSD of u, delta, A, B, C, D                          (6)
    normed = gated RMSNorm of y, gate z                      (7)
    out = normed W_out                                       (8)
    dnormed = dout W_out^T                                   (9)
    dy, dz = gradients of the gated norm at dnormed          (10)
    du, ddelta, dA, dB, dC, dD = gradients of SSD at dy      (11)
    dA_log = A dA                                            (12)
    dstep = ddelta softplus', ddt_bias = sum over positions of dstep   (13)
    dxBC = gradient of the convolution at (du, dB, dC) silu'           (14)
    dx = (dz, dxBC, dstep) W_in^T                            (15)

Each map gives its weights their gradients on the way, as in ``linear``.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.causal_convolution import CausalConvolution, causal_convolution, init_causal_convolution
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.silu import silu
from minitransformers.basics.softplus import softplus
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, positive, trusted
from minitransformers.foundation.ranges import log_rate
from minitransformers.state_space.gated_rms_norm import GatedRmsNorm, gated_rms_norm, init_gated_rms_norm
from minitransformers.state_space.ssd import ssd
from minitransformers.state_space.ssd_chunked import ssd_chunked


class Mamba2(NamedTuple):
    """d_parts is d_inner + d_mixed + heads: z, then xBC, then delta; d_mixed is d_inner + 2 num_groups d_state: x, B and C."""

    in_proj: Annotated[Linear, "d_model d_parts"]
    conv: Annotated[CausalConvolution, "d_mixed width"]
    dt_bias: Float[Array, "heads"]
    A_log: Annotated[Float[Array, "heads"], log_rate]
    D: Float[Array, "heads"]
    norm: Annotated[GatedRmsNorm, "d_inner"]
    out_proj: Annotated[Linear, "d_inner d_model"]


class Mamba2State(NamedTuple):
    """What is kept of the past: the last width - 1 inputs of the convolution, and the state of SSD."""

    past: Float[Array, "*batch before d_mixed"]
    state: Float[Array, "*batch heads d_head d_state"]


@checked
def init_mamba2(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, d_state: Annotated[int, at_least(1)] = 64,
    expand: Annotated[int, at_least(1)] = 2, d_head: Annotated[int, at_least(1)] | None = None, num_groups: Annotated[int, at_least(1)] = 1,
    d_conv: Annotated[int, at_least(1)] = 4, std: Annotated[float, at_least(0)] | None = None,
    residual_std: Annotated[float, at_least(0)] | None = None, dtype: type = np.float32,
) -> Mamba2:  # fmt: skip
    """Maps without bias of deviation ``std`` (default 1/sqrt(d_in)), out_proj of ``residual_std`` (default std).

    d_inner is expand d_model, cut into heads of d_head (default: the largest power of two up to 64 that divides it). Rates
    -A start between 1 and 16, steps between 0.001 and 0.1, evenly on a logarithmic scale.
    Raises ValueError when d_head does not divide d_inner, or num_groups the heads.
    """
    d_inner = expand * d_model
    d_head = math.gcd(64, d_inner) if d_head is None else d_head
    if d_inner % d_head:
        raise invalid("d_head", got=d_head, wants=f"a width that divides d_inner = expand * d_model = {d_inner}")
    heads = d_inner // d_head
    if heads % num_groups:
        raise invalid("num_groups", got=num_groups, wants=f"a number that divides the {heads} heads")
    d_mixed = d_inner + 2 * num_groups * d_state
    steps = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), size=heads))
    dt_bias: Array = (steps + np.log(-np.expm1(-steps))).astype(dtype)  # softplus of this is the step
    A_log: Array = np.log(rng.uniform(1, 16, size=heads)).astype(dtype)
    return Mamba2(
        in_proj=init_linear(rng, d_model, d_inner + d_mixed + heads, std=std, bias=False, dtype=dtype),
        conv=init_causal_convolution(rng, d_mixed, width=d_conv, dtype=dtype),
        dt_bias=dt_bias,
        A_log=A_log,
        D=np.ones(heads, dtype),
        norm=init_gated_rms_norm(rng, d_inner, dtype=dtype),
        out_proj=init_linear(rng, d_inner, d_model, std=std if residual_std is None else residual_std, bias=False, dtype=dtype),
    )


def _forward(params: Mamba2, x: Array, past: Array | None, state: Array | None, *, num_groups: int, mix: Callable, eps: float):
    """One forward for both: the whole text starts from nothing, a step from what the past left.

    Returns out, what the convolution read, SSD's last state, and backward.
    """
    d_inner, heads, d_head, d_state = _sizes(params, num_groups)
    *before, _ = x.shape                                     # (..., positions)
    groups = (*before, num_groups, d_state)
    parts, in_backward = linear(params.in_proj, x)
    z, xBC, step = np.split(parts, [d_inner, d_inner + len(params.conv.weight)], axis=-1)  # (1)
    convolved, conv_backward = causal_convolution(params.conv, xBC, past)  # (2)
    active, silu_backward = silu(convolved)
    u, B, C = np.split(active, [d_inner, d_inner + num_groups * d_state], axis=-1)  # (3)
    delta, softplus_backward = softplus(step + params.dt_bias)  # (4)
    A = -np.exp(params.A_log)                                # (5)
    values = u.reshape(*before, heads, d_head)
    B, C, D = B.reshape(groups), C.reshape(groups), params.D[:, None]
    (y, last), mix_backward = mix(values, delta, A, B, C, D, None, state)  # the gate is the norm's  (6)
    normed, norm_backward = gated_rms_norm(params.norm, y.reshape(u.shape), z, groups=num_groups, eps=eps)  # (7)
    out, out_backward = linear(params.out_proj, normed)      # (8)

    def backward(dout):
        dout_proj, dnormed = out_backward(dout)              # (9)
        dnorm, dy, dz = norm_backward(dnormed)               # (10)
        du, ddelta, dA, dB, dC, dD, _, _ = mix_backward((dy.reshape(y.shape), None))  # (11)
        dA_log = A * dA                                      # A is -exp(A_log), and so is its slope  (12)
        dstep = softplus_backward(ddelta)
        ddt_bias = dstep.reshape(-1, heads).sum(0)           # (13)
        dactive = np.concatenate([part.reshape(*before, -1) for part in (du, dB, dC)], axis=-1)
        dconv, dxBC, _ = conv_backward(silu_backward(dactive))  # (14)
        din_proj, dx = in_backward(np.concatenate([dz, dxBC, dstep], axis=-1))  # (15)
        return Mamba2(din_proj, dconv, ddt_bias, dA_log, dD[:, 0], dnorm, dout_proj), dx

    return out, xBC, last, backward


def _sizes(params: Mamba2, num_groups: int) -> tuple[int, int, int, int]:
    """d_inner, heads, d_head and d_state. Raises ValueError where the parts cannot be cut so."""
    d_inner, heads, (d_mixed, _) = len(params.norm.gain), len(params.A_log), params.conv.weight.shape
    if d_inner % heads:
        raise invalid("params.A_log", got=f"{heads} heads", wants=f"a number of heads that divides d_inner = {d_inner}")
    if heads % num_groups or (d_mixed - d_inner) % (2 * num_groups):
        raise invalid("num_groups", got=num_groups, wants=f"a number that divides {heads} heads and {d_mixed - d_inner} features of B and C")
    if params.in_proj.weight.shape[1] != d_inner + d_mixed + heads:
        wants = f"d_inner + d_mixed + heads = {d_inner + d_mixed + heads}"
        raise invalid("params.in_proj.weight", got=f"{params.in_proj.weight.shape[1]} columns", wants=wants)
    return d_inner, heads, d_inner // heads, (d_mixed - d_inner) // (2 * num_groups)


@trusted
def mamba2_step(
    params: Mamba2, x: Float[Array, "*batch new d_model"], state: Mamba2State | None, *, num_groups: int = 1, mix: Callable = ssd,
    eps: float = 1e-5,
) -> tuple[Array, Mamba2State]:  # fmt: skip
    """The outputs at a few new positions, given those before; ``state`` is None at the start.

    Returns out, shaped like x, and the state after them, of the same size; nothing is written to. Forward only.
    Raises ValueError where the state has another model's or another batch's shape.
    """
    _, heads, d_head, d_state = _sizes(params, num_groups)
    (d_mixed, width), (*batch, new, d_model) = params.conv.weight.shape, x.shape
    if d_model != params.in_proj.weight.shape[0] or new < 1:
        raise invalid("x", got=f"shape {x.shape}", wants=f"at least 1 position of {params.in_proj.weight.shape[0]} features")
    shapes = (*batch, width - 1, d_mixed), (*batch, heads, d_head, d_state)
    if state is None:
        state = Mamba2State(*(np.zeros(shape, x.dtype) for shape in shapes))
    for name, held, wants in zip(Mamba2State._fields, state, shapes, strict=True):
        if held.shape != wants:
            raise invalid(f"state.{name}", got=f"shape {held.shape}", wants=f"{wants}, as the model and x have it")
    out, xBC, last, _ = _forward(params, x, *state, num_groups=num_groups, mix=mix, eps=eps)
    seen = np.concatenate([state.past, xBC], axis=-2)
    return out, Mamba2State(seen[..., new:, :], last)


def _example_params(rng: np.random.Generator, *, std: float = 0.5) -> Mamba2:
    """d_model 3, two heads of 4 features, two groups with a state of 3."""

    def normal(*shape):
        return rng.normal(size=shape) * std

    return Mamba2(
        Linear(normal(3, 30), normal(30)), CausalConvolution(normal(20, 3), normal(20)), normal(2), rng.uniform(0, 2 * std, size=2), normal(2),
        GatedRmsNorm(normal(8)), Linear(normal(8, 3), normal(3)),
    )  # fmt: skip


@concept(
    title="Mamba-2",
    source="Dao and Gu 2024, arXiv:2405.21060, section 7",
    example=lambda rng: example(
        _example_params(rng), rng.normal(size=(2, 5, 3)), num_groups=2, mix=partial(ssd, core=partial(ssd_chunked, chunk=2)), eps=1e-12
    ),
    large=lambda rng: example(
        _example_params(rng, std=1 / 400), rng.normal(size=(2, 5, 3)) / 4, num_groups=2, mix=partial(ssd, core=partial(ssd_chunked, chunk=2)), eps=1e-12
    ),
    roles=("mixer",),
    rejects=[
        bad(num_groups=3),
        bad("params.in_proj.weight", params=_example_params(np.random.default_rng(0))._replace(in_proj=Linear(np.ones((3, 29)), None))),
        bad("params.A_log", params=_example_params(np.random.default_rng(0))._replace(dt_bias=np.ones(3), A_log=np.ones(3), D=np.ones(3))),
    ],
    step=mamba2_step,
)
def mamba2(
    params: Mamba2, x: Float[Array, "... positions d_model"], *, num_groups: Annotated[int, at_least(1)] = 1, mix: Callable = ssd,
    eps: Annotated[float, positive] = 1e-5,
) -> tuple[Array, Backward]:  # fmt: skip
    """Mix positions by SSD: each writes to and reads from a state that fades at a rate the input decides.

    num_groups is the number of B and C, each shared by as many heads, and of the norm's groups; eps is the norm's.
    mix(x, delta, A, B, C, D, z, state) -> (y, last), backward is the recurrence: ssd, or by functools.partial ssd with another
    core or with a limit of the steps. z is None there: the norm gates.
    Returns out, shaped like x, and backward: dout -> Mamba2 of gradients, dx.
    Raises ValueError where the joint projection is not as wide as its parts, num_groups does not divide the heads, or a rate
    exp(A_log) is not finite or is 0.
    """
    out, _, _, backward = _forward(params, x, None, None, num_groups=num_groups, mix=mix, eps=eps)
    return out, backward
