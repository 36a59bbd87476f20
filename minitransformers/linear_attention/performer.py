"""Performer: linear attention whose scores are, on average, those of the softmax.

With positive random features in the place of elu + 1, phi(q) . phi(k) is an unbiased estimate of exp(q . k / sqrt(d_head)), so the
recurrence estimates what softmax attention computes. A ratio of two unbiased sums is not unbiased itself, and how near it comes
depends on the sizes of queries and keys: see the page. Source: Choromanski et al. 2021, arXiv:2009.14794, sections 2.2 to 2.4 and
appendix B. Differs from the paper's code: nothing is added to the features and no maximum subtracted, so that a text in pieces
is what it is as a whole (positive_random_features says more). L is linear_attention, in chunks, with these features for phi, L* its
backward.

    out, state' = L(query, key, value, state)                (1)
    dquery, dkey, dvalue, dstate = L*(dout, dstate')         (2)

In both directions it is linear_attention_bidirectional with the same feature map, a core.
"""

from functools import partial
from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, concept, slot
from minitransformers.linear_attention.linear_attention import example_call
from minitransformers.linear_attention.linear_attention_chunked import linear_attention_chunked
from minitransformers.linear_attention.positive_random_features import positive_random_features


@concept(
    title="Performer",
    source="Choromanski et al. 2021, arXiv:2009.14794, sections 2.2 to 2.4 and appendix B",
    example=lambda rng: example_call(rng, num_features=4, seed=3, chunk=2),
    roles=("recurrence",),
    rejects=[bad(state=np.ones((2, 3, 4, 6)))],
)
def performer(
    params: None,
    query: Float[Array, "*batch positions d_head"],
    key: Float[Array, "*batch positions d_head"],
    value: Float[Array, "*batch positions d_value"],
    state: Float[Array, "*batch num_features d_sums"] | None = None,
    *,
    num_features: Annotated[int, at_least(1)] = 256,
    seed: Annotated[int, at_least(0)] = 0,
    chunk: Annotated[int, at_least(1)] = 64,
) -> tuple[tuple[Array, Array], Backward]:
    """An estimate of causal softmax attention by a recurrence over num_features random features, drawn once from the seed.

    params is None, as nothing is learned. The other arguments, results and errors are those of linear_attention_chunked.
    """
    feature_map = slot(partial(positive_random_features, num_features=num_features, seed=seed))
    result, attention_backward = linear_attention_chunked(params, query, key, value, state, feature_map=feature_map, chunk=chunk)  # (1)

    def backward(dresult):
        return attention_backward(dresult)                   # the draws are constants  (2)

    return result, backward
