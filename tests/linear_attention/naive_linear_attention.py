"""Linear attention as naively as it can be written, for autograd: one query, one key, one product at a time."""

import autograd.numpy as anp
import numpy as np


def elu_plus_one(x):
    return anp.where(x > 0, x + 1, anp.exp(anp.minimum(x, 0)))


def naive_linear_attention(query, key, value, state, phi=elu_plus_one):
    """One head, (positions, d) each; state is (d_features, d_value + 1). Returns out and the final state."""
    rows = []
    for i in range(len(query)):
        q = phi(query[i])
        total, mixed = anp.dot(q, state[:, -1]), anp.dot(q, state[:, :-1])
        for j in range(i + 1):
            score = anp.sum(q * phi(key[j]))
            total, mixed = total + score, mixed + score * value[j]
        rows.append(mixed / total)
    left = state
    for j in range(len(key)):
        left = left + anp.outer(phi(key[j]), anp.concatenate([value[j], anp.ones(1)]))
    return anp.stack(rows), left


def random_case(positions=7, d_head=3, d_value=4, d_features=None, seed=0, batch=()):
    """query, key, value, state and a dout for the two outputs."""
    rng = np.random.default_rng(seed)
    d_features = d_head if d_features is None else d_features
    shapes = (positions, d_head), (positions, d_head), (positions, d_value), (d_features, d_value + 1)
    query, key, value, state = (rng.normal(size=(*batch, *shape)) for shape in shapes)
    state[..., -1] = np.abs(state[..., -1])                  # sums of positive features
    return (query, key, value, state), (rng.normal(size=value.shape), rng.normal(size=state.shape))


def everything(function, arguments, dout, /, params=None, **config):
    """Outputs and gradients of the arrays, one after the other."""
    out, backward = function(params, *arguments, **config)
    return [*out, *backward(dout)[1:]]


def assert_same(own, theirs, atol=1e-12):
    for a, b in zip(own, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=0, atol=atol)
