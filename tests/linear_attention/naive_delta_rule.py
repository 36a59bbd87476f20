"""The delta rule and its relatives as naively as they can be written, for autograd: one text, a d_value x d_head state, dense matrices."""

import autograd.numpy as anp
import numpy as np


def naive_delta_rule(query, key, value, beta, state):
    """The paper's product form, S_t = S_{t-1} (I - beta k k^T) + beta v k^T: arrays (positions, d), state (d_head, d_value)."""
    S, rows = anp.transpose(state), []
    for t in range(len(query)):
        k = key[t]
        S = anp.dot(S, anp.eye(len(k)) - beta[t] * anp.outer(k, k)) + beta[t] * anp.outer(value[t], k)
        rows.append(anp.dot(S, query[t]))
    return anp.stack(rows), anp.transpose(S)


def naive_rank_one(query, key, value, decay, read, write, state):
    """S_t = S_{t-1} (diag(w) + a b^T) + v k^T, the matrix in brackets written out."""
    S, rows = anp.transpose(state), []
    for t in range(len(query)):
        S = anp.dot(S, anp.diag(decay[t]) + anp.outer(read[t], write[t])) + anp.outer(value[t], key[t])
        rows.append(anp.dot(S, query[t]))
    return anp.stack(rows), anp.transpose(S)


def unit(a):
    return a / np.linalg.norm(a, axis=-1, keepdims=True)


def random_case(positions=7, d_head=3, d_value=4, seed=0, batch=()):
    """query, key of length 1, value, beta, state, and a dout for the two outputs."""
    rng = np.random.default_rng(seed)
    shapes = (positions, d_head), (positions, d_head), (positions, d_value), (d_head, d_value)
    query, key, value, state = (rng.normal(size=(*batch, *shape)) for shape in shapes)
    beta = rng.uniform(0.1, 1.0, size=(*batch, positions))
    return (query, unit(key), value, beta, state), (rng.normal(size=value.shape), rng.normal(size=state.shape))


def everything(function, arguments, dout, /, **config):
    """Outputs and gradients, one after the other."""
    out, backward = function(*arguments, **config)
    return [*out, *backward(dout)]


def assert_same(own, theirs, atol=1e-12):
    for a, b in zip(own, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=0, atol=atol)
