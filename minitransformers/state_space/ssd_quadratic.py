"""SSD as masked attention: every output asks every earlier input. The form that is written in two lines.

The matrix of the recurrence, written out. C, B and x stand where attention has queries, keys and values; the softmax is gone,
and in the place of the causal mask of zeros and ones stands a mask of decays. Source: Dao and Gu 2024, arXiv:2405.21060,
section 5.1. Differs from the paper: an initial and a final state. L is segsum's mask, o the product of elements.

    L = exp(segsum(log_decay))                               (1)
    M = L o C B^T                                            (2)
    carry_i = exp(log_decay_0 + ... + log_decay_i)           (3)
    y_i = sum_j M_ij x_j + carry_i h C_i                     (4)
    h' = sum_j L_{last,j} x_j B_j^T + carry_last h           (5)
    dM = dy x^T, dscores = sum over the heads of a group of dM o L                        (6)
    dC = dscores B + sum over the heads of carry dy h        (7)
    dB = dscores^T C + sum over the heads of L_last x dh'    (8)
    dx = M^T dy + L_last B dh'^T                             (9)
    dh = sum_i carry_i dy_i C_i^T + carry_last dh'           (10)
    crossing_ij = (dM o M)_ij, with L_{last,j} <x_j B_j^T, dh'> added to the last row     (11)
    starting_i = carry_i <dy_i, h C_i>, with carry_last <h, dh'> added to the last        (12)
    dlog_decay_k = sum of crossing_ij over j < k <= i, + sum of starting_i over i >= k    (13)

h is the initial state, h' the final one. Time and memory positions^2.
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_most, concept
from minitransformers.state_space.semiseparable import segsum, sum_over_crossings
from minitransformers.state_space.ssd_recurrent import THREE_GROUPS, check_groups, example_call


@concept(
    title="SSD, quadratic form",
    source="Dao and Gu 2024, arXiv:2405.21060, section 5.1",
    example=example_call,
    rejects=[THREE_GROUPS],
)
def ssd_quadratic(
    x: Float[Array, "*batch positions heads d_head"],
    log_decay: Annotated[Float[Array, "*batch positions heads"], at_most(0)],
    B: Float[Array, "*batch positions groups d_state"],
    C: Float[Array, "*batch positions groups d_state"],
    state: Float[Array, "*batch heads d_head d_state"] | None = None,
) -> tuple[tuple[Array, Array], Backward]:
    """Every output as a weighted sum of the inputs up to it, the weights C_i . B_j times the decay between the two.

    Arguments, results and errors are those of ssd_recurrent.
    """
    *batch, positions, heads, d_head = x.shape
    groups, d_state = check_groups(B, heads)

    def by_group(a):                                         # (..., positions, heads, d) to (..., groups, r, positions, d)
        return a.swapaxes(-2, -3).reshape(*batch, groups, -1, positions, a.shape[-1])

    def by_position(a):
        return a.reshape(*batch, heads, positions, -1).swapaxes(-2, -3)

    values, key, query = by_group(x), by_group(B), by_group(C)  # the heads of a group share: (..., groups, 1, positions, d_state)
    alpha = by_group(log_decay[..., None])[..., 0]           # (..., groups, r, positions)
    L = np.exp(segsum(alpha))                                # (..., groups, r, positions, positions)  (1)
    M = L * (query @ key.swapaxes(-1, -2))                   # (2)
    last = L[..., -1, :, None]                               # what is left of each input at the end
    carry = np.exp(np.cumsum(alpha, axis=-1))[..., None]     # (..., groups, r, positions, 1)  (3)
    h = np.zeros((*batch, heads, d_head, d_state), x.dtype) if state is None else state
    h = h.reshape(*batch, groups, -1, d_head, d_state)
    read = carry * (query @ h.swapaxes(-1, -2))
    y = M @ values + read                                    # (4)
    final = (last * values).swapaxes(-1, -2) @ key + carry[..., -1:, :] * h  # (5)

    def backward(dout):
        dy, dfinal = by_group(dout[0]), dout[1].reshape(h.shape)
        dM = dy @ values.swapaxes(-1, -2)
        dscores = (dM * L).sum(-3, keepdims=True)            # (6)
        dquery = dscores @ key + (carry * dy @ h).sum(-3, keepdims=True)  # (7)
        dkey = dscores.swapaxes(-1, -2) @ query + (last * values @ dfinal).sum(-3, keepdims=True)  # (8)
        stored = last * (key @ dfinal.swapaxes(-1, -2))
        dvalues = M.swapaxes(-1, -2) @ dy + stored           # (9)
        dh = (carry * dy).swapaxes(-1, -2) @ query + carry[..., -1:, :] * dfinal  # (10)
        crossing = dM * M
        crossing[..., -1, :] += np.vecdot(stored, values)    # (11)
        starting = np.vecdot(dy, read)
        starting[..., -1] += carry[..., -1, 0] * (h * dfinal).sum((-1, -2))  # (12)
        dalpha = sum_over_crossings(crossing) + np.cumsum(starting[..., ::-1], axis=-1)[..., ::-1]  # (13)
        return (
            by_position(dvalues), by_position(dalpha[..., None])[..., 0], dkey[..., 0, :, :].swapaxes(-2, -3),
            dquery[..., 0, :, :].swapaxes(-2, -3), None if state is None else dh.reshape(state.shape),
        )  # fmt: skip

    return (by_position(y), final.reshape(*batch, heads, d_head, d_state)), backward
