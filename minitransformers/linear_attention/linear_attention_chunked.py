"""Linear attention in chunks: all pairs within a chunk, a state between chunks. The form for training.

The plain form costs positions^2, the recurrent one has no matrix products. Cut the text into chunks: each is linear attention over
a short text, with the state that the one before left. The equations are those of linear_attention, and so are the numbers on the
lines. On the way back the chunks are taken from the last to the first, and dstate (12) of each is dstate' of the one before.
Sources: Hua, Dai, Liu and Le 2022, arXiv:2202.10447 (chunks); Katharopoulos et al. 2020, arXiv:2006.16236.

Multiply-adds a position, chunks of Q: Q (d_features + d_value) / 2 that are used, twice as many that are made, + 2 d_features
d_value. Kept for the backward: Q scores a position, and a state a chunk.
"""

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, concept, slot
from minitransformers.linear_attention.elu_plus_one import elu_plus_one
from minitransformers.linear_attention.linear_attention import REJECTS, example_call, features_of, mean_of, state_before, with_ones


@concept(
    title="Linear attention, chunked form",
    source="Hua, Dai, Liu and Le 2022, arXiv:2202.10447; Katharopoulos et al. 2020, arXiv:2006.16236",
    example=lambda rng: example_call(rng, chunk=2),
    roles=("recurrence",),
    rejects=REJECTS,
    form_of="linear_attention",
)
def linear_attention_chunked(
    params: Any,
    query: Float[Array, "*batch positions d_head"],
    key: Float[Array, "*batch positions d_head"],
    value: Float[Array, "*batch positions d_value"],
    state: Float[Array, "*batch d_features d_sums"] | None = None,
    *,
    feature_map: Callable = slot(elu_plus_one),
    chunk: Annotated[int, at_least(1)] = 64,
) -> tuple[tuple[Array, Array], Backward]:
    """Linear attention a chunk of so many positions at a time, each worked on by matrix products; the last may be shorter.

    chunk, at least 1, changes the speed and the rounding, nothing else. Arguments, results and errors are those of
    linear_attention.
    """
    (q, k), features_backward = features_of(params, query, key, feature_map)  # (1)
    v = with_ones(value)                                     # (2)
    running = state_before(state, k, v)
    causal = np.tri(min(chunk, v.shape[-2]), dtype=v.dtype)
    sums, chunks = np.empty_like(v), []
    for start in range(0, v.shape[-2], chunk):
        at = np.s_[..., start : start + chunk, :]
        scores = q[at] @ k[at].swapaxes(-1, -2)
        scores *= causal[: scores.shape[-1], : scores.shape[-1]]  # (..., chunk, chunk)  (3)
        here = scores @ v[at]                                # from within the chunk
        here += q[at] @ running                              # from before it
        sums[at] = here                                      # (4)
        chunks.append((at, scores, running))
        running = running + k[at].swapaxes(-1, -2) @ v[at]   # (6)
    out, mean_backward = mean_of(sums)                       # (5)

    def backward(dresult):
        dout, dstate = dresult
        dsums = mean_backward(dout)                          # (7)
        dq, dk, dv = (np.empty_like(a) for a in (q, k, v))
        for at, scores, before in reversed(chunks):
            dscores = dsums[at] @ v[at].swapaxes(-1, -2)
            dscores *= causal[: scores.shape[-1], : scores.shape[-1]]  # (8)
            part = dscores @ k[at]
            part += dsums[at] @ before.swapaxes(-1, -2)
            dq[at] = part                                    # (9)
            part = dscores.swapaxes(-1, -2) @ q[at]
            part += v[at] @ dstate.swapaxes(-1, -2)
            dk[at] = part                                    # (10)
            part = scores.swapaxes(-1, -2) @ dsums[at]
            part += k[at] @ dstate
            dv[at] = part                                    # (11)
            dstate = dstate + q[at].swapaxes(-1, -2) @ dsums[at]  # (12)
        return *features_backward(dq, dk), dv[..., :-1], None if state is None else dstate  # (13)

    return (out, running), backward
