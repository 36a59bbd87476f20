"""Gated recurrent unit (GRU): one position after another, through a state of fixed size. What Transformers replaced.

Two gates decide how much of the past a position reads and how much of it is written over. Position t waits for position t - 1, so
a text of n tokens takes n dependent steps, where attention takes one a layer. Source: Cho et al. 2014, arXiv:1406.1078, eqs. 5 to 8,
with the update gate as in Chung et al. 2014, arXiv:1412.3555, eqs. 5 to 8, where it is the share of the new. (PyTorch's and cuDNN's
unit resets after the product with U_c, not before, and its update gate is 1 minus this one.) o is the product of elements.

    a_z, a_r, a_c = x W + b, split in three                  (1)
    update_t = sigmoid(a_z_t + h_{t-1} U_z)                  (2)
    reset_t = sigmoid(a_r_t + h_{t-1} U_r)                   (3)
    candidate_t = tanh(a_c_t + (reset_t o h_{t-1}) U_c)      (4)
    h_t = h_{t-1} + update_t o (candidate_t - h_{t-1})       (5)

Backward through time, from the last position to the first; dh_t gathers dout_t and what the later positions made of h_t:

    da_c_t = dh_t o update_t o (1 - candidate_t^2)           (6)
    dread_t = da_c_t U_c^T                                   (7)
    da_z_t = dh_t o (candidate_t - h_{t-1}) o update_t o (1 - update_t)   (8)
    da_r_t = dread_t o h_{t-1} o reset_t o (1 - reset_t)     (9)
    dh_{t-1} = dh_t o (1 - update_t) + dread_t o reset_t + da_z_t U_z^T + da_r_t U_r^T + dout_{t-1}   (10)
    dU_z, dU_r, dU_c = sums of h_{t-1}^T da_z_t, h_{t-1}^T da_r_t, (reset_t o h_{t-1})^T da_c_t   (11)
    dx, dW, db = those of (1) at da_z, da_r, da_c            (12)

Time positions d_hidden^2, in products of vectors with matrices; four numbers a position and feature are kept for the way back.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.sigmoid import sigmoid
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid
from minitransformers.foundation.trees import decays


class Gru(NamedTuple):
    """W and b of all three (update, reset, candidate, side by side), U_z and U_r side by side, and U_c."""

    input: Annotated[Linear, "d_in three_hidden"]
    gates: Annotated[Float[Array, "d_hidden two_hidden"], decays]
    candidate: Annotated[Float[Array, "d_hidden d_hidden"], decays]


@checked
def init_gru(
    rng: np.random.Generator, d_in: Annotated[int, at_least(1)], d_hidden: Annotated[int, at_least(1)], *,
    std: Annotated[float, at_least(0)] | None = None, dtype: type = np.float32,
) -> Gru:  # fmt: skip
    """Normal weights of deviation ``std`` (default 1/sqrt of what a map reads), zero biases: gates start half open."""
    gates, candidate = (init_linear(rng, d_hidden, n, std=std, bias=False, dtype=dtype).weight for n in (2 * d_hidden, d_hidden))
    return Gru(init_linear(rng, d_in, 3 * d_hidden, std=std, dtype=dtype), gates, candidate)


@concept(
    title="Gated recurrent unit (GRU)",
    source="Cho et al. 2014, arXiv:1406.1078, eqs. 5 to 8; Chung et al. 2014, arXiv:1412.3555, eqs. 5 to 8",
    example=lambda rng: example(_example_params(rng), rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 4))),
    rejects=[
        bad("params.input", params=Gru(Linear(np.ones((3, 11)), np.ones(11)), np.ones((4, 8)), np.ones((4, 4)))),
        bad("params.gates", params=Gru(Linear(np.ones((3, 12)), np.ones(12)), np.ones((4, 7)), np.ones((4, 4)))),
    ],
)
def gru(
    params: Gru, x: Float[Array, "*batch positions d_in"], state: Float[Array, "*batch d_hidden"] | None = None
) -> tuple[tuple[Array, Array], Backward]:
    """Read a text position by position; each output knows all positions before it, through d_hidden numbers.

    state is what was left by the text before the first position (None: zeros).
    Returns (out, state), out (*batch, positions, d_hidden) and the final state, which is the last of out; and backward:
    (dout, dstate) -> Gru of gradients, dx, and the gradient of the initial state (None where there was none).
    Raises ValueError when the maps are not of three and of two times d_hidden features, or when the axes do not fit.
    """
    d = params.candidate.shape[0]
    for name, width, times in (("input", params.input.weight.shape[1], 3), ("gates", params.gates.shape[1], 2)):
        if width != times * d:
            raise invalid(f"params.{name}", got=f"{width} features", wants=f"{times * d}, {times} for each of d_hidden {d}")
    a, input_backward = linear(params.input, x)              # (1)
    batch, positions = x.shape[:-2], x.shape[-2]
    h = np.zeros((*batch, d), x.dtype) if state is None else state
    before, candidates = np.empty((2, positions, *batch, d), x.dtype)  # position first: each step writes one block
    both_gates = np.empty((positions, *batch, 2 * d), x.dtype)
    out = np.empty((*batch, positions, d), x.dtype)
    for t in range(positions):
        gates, _ = sigmoid(a[..., t, : 2 * d] + h @ params.gates)  # (2)  (3)
        candidate = np.tanh(a[..., t, 2 * d :] + (gates[..., d:] * h) @ params.candidate)  # (4)
        before[t], both_gates[t], candidates[t] = h, gates, candidate
        h = h + gates[..., :d] * (candidate - h)             # (5)
        out[..., t, :] = h

    def backward(dresult):
        dout, dh = dresult
        da = np.empty_like(a)
        for t in reversed(range(positions)):
            h, candidate = before[t], candidates[t]
            update, reset = both_gates[t, ..., :d], both_gates[t, ..., d:]
            dh = dh + dout[..., t, :]
            da_c = dh * update * (1 - candidate * candidate)  # (6)
            dread = da_c @ params.candidate.T                # (7)
            da[..., t, :d] = dh * (candidate - h) * update * (1 - update)  # (8)
            da[..., t, d : 2 * d] = dread * h * reset * (1 - reset)  # (9)
            da[..., t, 2 * d :] = da_c
            dh = dh * (1 - update) + dread * reset + da[..., t, : 2 * d] @ params.gates.T  # (10)
        rows = np.moveaxis(da, -2, 0).reshape(-1, 3 * d)     # in the order of what was kept
        dgates = before.reshape(-1, d).T @ rows[:, : 2 * d]
        dcandidate = (both_gates[..., d:] * before).reshape(-1, d).T @ rows[:, 2 * d :]  # (11)
        dinput, dx = input_backward(da)                      # (12)
        return Gru(dinput, dgates, dcandidate), dx, None if state is None else dh

    return (out, h), backward


def _example_params(rng: np.random.Generator) -> Gru:
    return Gru(Linear(0.5 * rng.normal(size=(3, 12)), rng.normal(size=12)), 0.5 * rng.normal(size=(4, 8)), 0.5 * rng.normal(size=(4, 4)))
