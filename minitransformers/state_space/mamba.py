"""Mamba: a selective scan between two projections, in place of attention and of the feed-forward part.

Each position costs the same however long the text is, and what is kept of the past has a fixed size: a state of
d_state numbers for each channel, and the last width - 1 inputs of the convolution. Source: Gu and Dao 2023,
arXiv:2312.00752, section 3.4. Follows the authors' code: D = 1 and A = -1 .. -d_state at the start in every channel
(S4D-Real), the step's bias stands inside the softplus, and is added once. Needs no positions: order is in the recurrence.

    inner, z = halves of x W_in                              (1)
    convolved = causal convolution of inner                  (2)
    u = silu(convolved)                                      (3)
    low, B, C = parts of u W_x                               (4)
    delta = softplus(low W_dt + b_dt)                        (5)
    A = -exp(A_log)                                          (6)
    y = selective scan of u, delta, A, B, C, D, z            (7)
    out = y W_out                                            (8)
    dy = dout W_out^T                                        (9)
    du, ddelta, dA, dB, dC, dD, dz = gradients of the scan at dy   (10)
    dA_log = A dA                                            (11)
    dlow = (ddelta softplus') W_dt^T                         (12)
    du = du of the scan + (dlow, dB, dC) W_x^T               (13)
    dinner = gradient of the convolution at du silu'         (14)
    dx = (dinner, dz) W_in^T                                 (15)

Each map gives its weights their gradients on the way, as in ``linear``.
"""

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
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, trusted
from minitransformers.foundation.ranges import log_rate
from minitransformers.state_space.selective_scan_blocks import selective_scan_blocks


class Mamba(NamedTuple):
    """d_both is 2 d_inner: the scan's branch, then the gate's. d_parts is dt_rank + 2 d_state: low, B and C."""

    in_proj: Annotated[Linear, "d_model d_both"]
    conv: Annotated[CausalConvolution, "d_inner width"]
    x_proj: Annotated[Linear, "d_inner d_parts"]
    dt_proj: Annotated[Linear, "dt_rank d_inner"]
    A_log: Annotated[Float[Array, "d_inner d_state"], log_rate]
    D: Float[Array, "d_inner"]
    out_proj: Annotated[Linear, "d_inner d_model"]


class MambaState(NamedTuple):
    """What is kept of the past: the last width - 1 inputs of the convolution, and the state of the scan."""

    past: Float[Array, "*batch before d_inner"]
    state: Float[Array, "*batch d_inner d_state"]


@checked
def init_mamba(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, d_state: Annotated[int, at_least(1)] = 16,
    expand: Annotated[int, at_least(1)] = 2, d_conv: Annotated[int, at_least(1)] = 4, dt_rank: Annotated[int, at_least(1)] | None = None,
    std: Annotated[float, at_least(0)] | None = None, residual_std: Annotated[float, at_least(0)] | None = None, dtype: type = np.float32,
) -> Mamba:  # fmt: skip
    """Maps without bias of deviation ``std`` (default 1/sqrt(d_in)), out_proj of ``residual_std`` (default std).

    d_inner is expand d_model; dt_rank is d_model / 16, rounded up. Steps start between 0.001 and 0.1, spread evenly on a
    logarithmic scale: softplus(dt_proj.bias) is the step where the input says nothing.
    """
    dt_rank = -(-d_model // 16) if dt_rank is None else dt_rank
    d_inner = expand * d_model
    steps = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), size=d_inner))
    dt_bias: Array = (steps + np.log(-np.expm1(-steps))).astype(dtype)  # softplus of this is the step
    return Mamba(
        in_proj=init_linear(rng, d_model, 2 * d_inner, std=std, bias=False, dtype=dtype),
        conv=init_causal_convolution(rng, d_inner, width=d_conv, dtype=dtype),
        x_proj=init_linear(rng, d_inner, dt_rank + 2 * d_state, std=std, bias=False, dtype=dtype),
        dt_proj=init_linear(rng, dt_rank, d_inner, std=std, dtype=dtype)._replace(bias=dt_bias),
        A_log=np.tile(np.log(np.arange(1, d_state + 1)), (d_inner, 1)).astype(dtype),
        D=np.ones(d_inner, dtype),
        out_proj=init_linear(rng, d_inner, d_model, std=std if residual_std is None else residual_std, bias=False, dtype=dtype),
    )


def _forward(params: Mamba, x: Array, past: Array | None, state: Array | None, *, scan: Callable):
    """One forward for both: the whole text starts from nothing, a step from what the past left.

    Returns out, what the convolution read, the scan's last state, and backward.
    """
    dt_rank, (d_inner, d_state) = params.dt_proj.weight.shape[0], params.A_log.shape
    both, in_backward = linear(params.in_proj, x)
    inner, z = both[..., :d_inner], both[..., d_inner:]      # (1)
    convolved, conv_backward = causal_convolution(params.conv, inner, past)  # (2)
    u, silu_backward = silu(convolved)                       # (3)
    parts, x_backward = linear(params.x_proj, u)
    low, B, C = np.split(parts, [dt_rank, dt_rank + d_state], axis=-1)  # (4)
    step, dt_backward = linear(params.dt_proj, low)          # its bias is added here, and nowhere else
    delta, softplus_backward = softplus(step)                # (5)
    A = -np.exp(params.A_log)                                # (6)
    (y, last), scan_backward = scan(u, delta, A, B[..., None, :], C[..., None, :], params.D, z, state)  # one group  (7)
    out, out_backward = linear(params.out_proj, y)           # (8)

    def backward(dout):
        dout_proj, dy = out_backward(dout)                   # (9)
        du, ddelta, dA, dB, dC, dD, dz, _ = scan_backward((dy, None))  # (10)
        dA_log = A * dA                                      # A is -exp(A_log), and so is its slope  (11)
        ddt_proj, dlow = dt_backward(softplus_backward(ddelta))  # (12)
        dx_proj, du_parts = x_backward(np.concatenate([dlow, dB[..., 0, :], dC[..., 0, :]], axis=-1))
        du = du + du_parts                                   # u is scanned, and says how to scan: two terms  (13)
        dconv, dinner, _ = conv_backward(silu_backward(du))  # (14)
        din_proj, dx = in_backward(np.concatenate([dinner, dz], axis=-1))  # (15)
        return Mamba(din_proj, dconv, dx_proj, ddt_proj, dA_log, dD, dout_proj), dx

    return out, inner, last, backward


def _check_parts(params: Mamba) -> None:
    """Raise ValueError where the joint projections are not as wide as their parts."""
    (d_inner, d_state), dt_rank = params.A_log.shape, params.dt_proj.weight.shape[0]
    for name, own, wants in (("in_proj", params.in_proj, 2 * d_inner), ("x_proj", params.x_proj, dt_rank + 2 * d_state)):
        if own.weight.shape[1] != wants:
            parts = "2 d_inner" if name == "in_proj" else "dt_rank + 2 d_state"
            raise invalid(f"params.{name}.weight", got=f"{own.weight.shape[1]} columns", wants=f"{parts} = {wants}")


@trusted
def mamba_step(
    params: Mamba, x: Float[Array, "*batch new d_model"], state: MambaState | None, *, scan: Callable = selective_scan_blocks
) -> tuple[Array, MambaState]:
    """The outputs at a few new positions, given those before; ``state`` is None at the start.

    Returns out, shaped like x, and the state after them, of the same size; nothing is written to. Forward only.
    Raises ValueError where the state has another model's or another batch's shape.
    """
    _check_parts(params)
    (d_inner, width), (*batch, new, d_model) = params.conv.weight.shape, x.shape
    if d_model != params.in_proj.weight.shape[0] or new < 1:
        raise invalid("x", got=f"shape {x.shape}", wants=f"at least 1 position of {params.in_proj.weight.shape[0]} features")
    if state is None:
        state = MambaState(np.zeros((*batch, width - 1, d_inner), x.dtype), np.zeros((*batch, *params.A_log.shape), x.dtype))
    shapes = (*batch, width - 1, d_inner), (*batch, *params.A_log.shape)
    for name, held, wants in zip(MambaState._fields, state, shapes, strict=True):
        if held.shape != wants:
            raise invalid(f"state.{name}", got=f"shape {held.shape}", wants=f"{wants}, as the model and x have it")
    out, inner, last, _ = _forward(params, x, *state, scan=scan)
    seen = np.concatenate([state.past, inner], axis=-2)
    return out, MambaState(seen[..., seen.shape[-2] - (width - 1) :, :], last)


def _example_params(
    rng: np.random.Generator, d_model: int = 3, d_inner: int = 4, d_state: int = 2, dt_rank: int = 1, *, std: float = 0.5
) -> Mamba:
    def normal(*shape):
        return rng.normal(size=shape) * std

    return Mamba(
        Linear(normal(d_model, 2 * d_inner), normal(2 * d_inner)),
        CausalConvolution(normal(d_inner, 3), normal(d_inner)),
        Linear(normal(d_inner, dt_rank + 2 * d_state), None),
        Linear(normal(dt_rank, d_inner), normal(d_inner)),
        rng.uniform(0, std / 2, size=(d_inner, d_state)),
        normal(d_inner),
        Linear(normal(d_inner, d_model), None),
    )


@concept(
    title="Mamba",
    source="Gu and Dao 2023, arXiv:2312.00752, section 3.4",
    example=lambda rng: example(_example_params(rng), rng.normal(size=(2, 5, 3)), scan=partial(selective_scan_blocks, chunk=2)),
    # Small: 19 factors meet in out.
    large=lambda rng: example(_example_params(rng, std=1 / 60), rng.normal(size=(2, 5, 3)) / 4, scan=partial(selective_scan_blocks, chunk=2)),
    roles=("mixer",),
    rejects=[
        bad("params.in_proj.weight", params=_example_params(np.random.default_rng(0))._replace(in_proj=Linear(np.ones((3, 7)), None))),
        bad("params.x_proj.weight", params=_example_params(np.random.default_rng(0))._replace(x_proj=Linear(np.ones((4, 6)), None))),
    ],
    step=mamba_step,
)
def mamba(
    params: Mamba, x: Float[Array, "... positions d_model"], *, scan: Callable = selective_scan_blocks
) -> tuple[Array, Backward]:
    """Mix positions by a recurrence whose steps, writing and reading the input decides; no position sees a later one.

    scan(u, delta, A, B, C, D, z, state) -> (y, last), backward is the recurrence: selective_scan, or selective_scan_blocks
    with settings of its own (functools.partial). All give the same. B and C come to it in one group.
    Returns out, shaped like x, and backward: dout -> Mamba of gradients, dx.
    Raises ValueError where the joint projections are not as wide as their parts, or a rate exp(A_log) is not finite or is 0.
    """
    _check_parts(params)
    out, _, _, backward = _forward(params, x, None, None, scan=scan)
    return out, backward
