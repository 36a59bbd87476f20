"""Linear attention: scores that are products of positive features, so that the past fits into a state of fixed size.

The softmax's exp(q . k) ties each query to each key. Write phi(q) . phi(k) in its place, and the sum over the keys can be taken
before the query is known: a matrix phi(k) value^T, and beside it the sum of phi(k) to divide by. That is a recurrence
(linear_attention_recurrent); here it stands as what it equals, attention under a causal mask. Source: Katharopoulos, Vyas, Pappas
and Fleuret 2020, arXiv:2006.16236, eqs. 4 to 12, 16 to 20. Differs from the paper: an initial and a final state, and both its
sums in one array, as a value that is 1 everywhere sums to the denominator. (a, b) puts a and b side by side.

    q, k = phi(query), phi(key)                              (1)
    v = (value, 1)                                           (2)
    scores = q k^T, 0 where the key is later                 (3)
    sums = scores v + q state                                (4)
    out = all of sums but the last feature, divided by the last   (5)
    state' = state + k^T v                                   (6)
    dsums = (dout, -<dout, out>) / the last of sums          (7)
    dscores = dsums v^T, 0 where the key is later            (8)
    dq = dscores k + dsums state^T                           (9)
    dk = dscores^T q + v dstate'^T                           (10)
    dv = scores^T dsums + k dstate', dvalue = all of it but the last   (11)
    dstate = dstate' + q^T dsums                             (12)
    dparams, dquery = phi*(dq), dparams, dkey = phi*(dk), the two dparams added   (13)

state is what came before the first position, state' what the last leaves, phi* the backward of phi. Nothing is added to the
denominator. Where all features have become too small for the dtype there is nothing to divide by, and the query reads zero, as a
query of the softmax does that may see no key. Time and memory positions^2.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, bad, concept, example, invalid, slot, trees
from minitransformers.linear_attention.elu_plus_one import elu_plus_one

REJECTS = [bad(feature_map=lambda params, x: (x, None)), bad(state=np.ones((2, 3, 4, 6)))]


@concept(
    title="Linear attention",
    source="Katharopoulos, Vyas, Pappas and Fleuret 2020, arXiv:2006.16236, eqs. 4 to 12 and 16 to 20",
    example=lambda rng: example_call(rng, np.array(rng.normal()), feature_map=with_a_gain),
    roles=("recurrence",),
    rejects=REJECTS,
)
def linear_attention(
    params: Any,
    query: Float[Array, "*batch positions d_head"],
    key: Float[Array, "*batch positions d_head"],
    value: Float[Array, "*batch positions d_value"],
    state: Float[Array, "*batch d_features d_sums"] | None = None,
    *,
    feature_map: Callable = slot(elu_plus_one),
) -> tuple[tuple[Array, Array], Backward]:
    """The mean of the values up to each position, weighted by phi(query) . phi(key).

    feature_map(params, x) -> features, backward is phi: (*batch, positions, d_head) to features of at least 0, (*batch, positions,
    d_features); params is what it learns, None for nothing. state is what came before the first position (None: nothing), d_value
    sums for each feature and the sum of the feature itself: d_sums = d_value + 1.
    Returns (out, state), out shaped like value and the final state, and backward: (dout, dstate) -> dparams, dquery, dkey, dvalue,
    and the gradient of the initial state (None where there was none).
    Raises ValueError where axes do not fit, a feature is below 0, or the state is not that of these features and values.
    """
    (q, k), features_backward = features_of(params, query, key, feature_map)  # (1)
    v = with_ones(value)                                     # (2)
    before = state_before(state, k, v)
    scores = np.tril(q @ k.swapaxes(-1, -2))                 # (..., positions, positions)  (3)
    sums = scores @ v + q @ before                           # (4)
    out, mean_backward = mean_of(sums)                       # (5)
    after = before + k.swapaxes(-1, -2) @ v                  # (..., d_features, d_value + 1)  (6)

    def backward(dresult):
        dout, dafter = dresult
        dsums = mean_backward(dout)                          # (7)
        dscores = np.tril(dsums @ v.swapaxes(-1, -2))        # (8)
        dq = dscores @ k + dsums @ before.swapaxes(-1, -2)   # (9)
        dk = dscores.swapaxes(-1, -2) @ q + v @ dafter.swapaxes(-1, -2)  # (10)
        dv = scores.swapaxes(-1, -2) @ dsums + k @ dafter    # (11)
        dstate = dafter + q.swapaxes(-1, -2) @ dsums         # (12)
        return *features_backward(dq, dk), dv[..., :-1], None if state is None else dstate  # (13)

    return (out, after), backward


def features_of(params: Any, query: Array, key: Array, feature_map: Callable) -> tuple[tuple[Array, Array], Callable]:
    """The features of queries and of keys; backward: their gradients -> dparams, dquery, dkey.

    Raises ValueError, naming the feature map, where a feature is below 0: weights could then sum to nothing.
    """
    q, query_backward = feature_map(params, query)
    k, key_backward = feature_map(params, key)               # (1)
    for features in (q, k):
        if features.min() < 0:
            raise invalid("feature_map", got=f"features down to {features.min():.3g}", wants="features of at least 0")

    def backward(dq, dk):
        dparams, dquery = query_backward(dq)
        dparams_key, dkey = key_backward(dk)
        return trees.map(np.add, dparams, dparams_key), dquery, dkey  # one map for both: its gradients add  (13)

    return (q, k), backward


def with_ones(value: Float[Array, "... positions d_value"]) -> Array:
    """The values with a feature more, which is 1: what it sums to is the denominator."""
    return np.concatenate([value, np.ones((*value.shape[:-1], 1), value.dtype)], axis=-1)  # (2)


def mean_of(sums: Float[Array, "... positions d_sums"]) -> tuple[Array, Callable]:
    """The sums over the last of them, 0 where that is too small; backward: dout -> dsums."""
    total = sums[..., -1:]
    smallest = np.finfo(sums.dtype).tiny / np.finfo(sums.dtype).eps  # below it terms that matter have lost digits already
    share = (total >= smallest) / np.maximum(total, smallest)
    out = sums[..., :-1] * share                             # (5)

    def backward(dout):
        return np.concatenate([dout, -np.vecdot(dout, out)[..., None]], axis=-1) * share  # (7)

    return out, backward


def state_before(state: Array | None, k: Array, v: Array) -> Array:
    """The initial state, zeros for None. Raises ValueError where it has another shape than these features and values need."""
    shape = (*k.shape[:-2], k.shape[-1], v.shape[-1])
    if state is None:
        return np.zeros(shape, v.dtype)
    if state.shape != shape:
        raise invalid("state", got=f"shape {state.shape}", wants=f"{shape}: (..., d_features, d_value + 1)")
    return state


def with_a_gain(gain: Array, x: Array) -> tuple[Array, Callable]:
    """A feature map that learns one number, by which x is multiplied first: for examples."""
    features, backward = elu_plus_one(gain * x)

    def gain_backward(dfeatures):
        dscaled = backward(dfeatures)
        return np.sum(dscaled * x), gain * dscaled

    return features, gain_backward


def example_call(rng: np.random.Generator, params: Array | None = None, **config):
    """The small call of every form, with an initial state as other positions leave it."""
    shapes = (2, 3, 5, 4), (2, 3, 5, 4), (2, 3, 5, 6), (2, 3, 4, 7)
    query, key, value, state = (rng.normal(size=shape) for shape in shapes)
    state[..., -1] = np.abs(state[..., -1])                  # sums of features
    return example(params, query, key, value, state, **config)
