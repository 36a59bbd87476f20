"""Linear attention as a recurrence: one step a position, a state of fixed size. The form for writing token by token.

The equations are those of linear_attention, and so are the numbers on the lines. What differs: nothing is masked. At each
position the state has taken up the keys so far and no other, (6) for that position, and the query reads it: sums_t = q_t state_t
in the place of (4). On the way back the same state is built a second time from its start, which gives dq_t = state_t dsums_t (9),
and its gradient from the end, where (12) comes before (10) and (11): dk_t = dstate_t v_t, dv_t = k_t dstate_t. Nothing is kept but
the inputs. Source: Katharopoulos et al. 2020, arXiv:2006.16236, eqs. 13 to 15 (gradients) and 16 to 20 (the recurrence).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, concept, slot
from minitransformers.linear_attention.elu_plus_one import elu_plus_one
from minitransformers.linear_attention.linear_attention import REJECTS, example_call, features_of, mean_of, state_before, with_ones


@concept(
    title="Linear attention, recurrent form",
    source="Katharopoulos, Vyas, Pappas and Fleuret 2020, arXiv:2006.16236, eqs. 13 to 20",
    example=lambda rng: example_call(rng),
    roles=("recurrence",),
    rejects=REJECTS,
    form_of="linear_attention",
)
def linear_attention_recurrent(
    params: Any,
    query: Float[Array, "*batch positions d_head"],
    key: Float[Array, "*batch positions d_head"],
    value: Float[Array, "*batch positions d_value"],
    state: Float[Array, "*batch d_features d_sums"] | None = None,
    *,
    feature_map: Callable = slot(elu_plus_one),
) -> tuple[tuple[Array, Array], Backward]:
    """Carry the two sums along the text: add to them, then read. Arguments, results and errors are those of linear_attention."""
    (q, k), features_backward = features_of(params, query, key, feature_map)  # (1)
    v = with_ones(value)                                     # (2)
    before = state_before(state, k, v)

    def states():                                            # after each position
        running = before
        for t in range(v.shape[-2]):
            running = running + k[..., t, :, None] * v[..., t, None, :]  # (6)
            yield t, running

    sums, after = np.empty_like(v), before
    for t, after in states():
        sums[..., t, :] = (q[..., t, None, :] @ after)[..., 0, :]  # (4)
    out, mean_backward = mean_of(sums)                       # (5)

    def backward(dresult):
        dout, dstate = dresult
        dsums = mean_backward(dout)                          # (7)
        dq, dk, dv = (np.empty_like(a) for a in (q, k, v))
        for t, running in states():
            dq[..., t, :] = (running @ dsums[..., t, :, None])[..., 0]  # (9)
        for t in reversed(range(v.shape[-2])):
            dstate = dstate + q[..., t, :, None] * dsums[..., t, None, :]  # (12)
            dk[..., t, :] = (dstate @ v[..., t, :, None])[..., 0]  # (10)
            dv[..., t, :] = (k[..., t, None, :] @ dstate)[..., 0, :]  # (11)
        return *features_backward(dq, dk), dv[..., :-1], None if state is None else dstate  # (13)

    return (out, after), backward
