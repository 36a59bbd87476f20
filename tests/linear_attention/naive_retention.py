"""Retention as naively as it can be written, for autograd: one head, one query, one key at a time, powers as powers."""

import autograd.numpy as anp
import numpy as np


def naive_retention(query, key, value, state, decay):
    """(heads, positions, d) each, one text; state is (heads, d_head, d_value). Returns out and the final state."""
    heads, positions, d_head = query.shape
    outs, finals = [], []
    for h in range(heads):
        rows, g = [], float(decay[h])
        for n in range(positions):
            row = g ** (n + 1) * anp.dot(query[h, n], state[h])
            for m in range(n + 1):
                row = row + g ** (n - m) * anp.sum(query[h, n] * key[h, m]) * value[h, m]
            rows.append(row / d_head**0.5)
        outs.append(anp.stack(rows))
        left = g**positions * state[h]
        for m in range(positions):
            left = left + g ** (positions - 1 - m) * anp.outer(key[h, m], value[h, m])
        finals.append(left)
    return anp.stack(outs), anp.stack(finals)


def random_case(positions=7, d_head=3, d_value=4, heads=2, seed=0, batch=()):
    """query, key, value, state, a dout for the two outputs, and a decay for each head."""
    rng = np.random.default_rng(seed)
    shapes = (heads, positions, d_head), (heads, positions, d_head), (heads, positions, d_value), (heads, d_head, d_value)
    query, key, value, state = (rng.normal(size=(*batch, *shape)) for shape in shapes)
    return (query, key, value, state), (rng.normal(size=value.shape), rng.normal(size=state.shape)), rng.uniform(0.3, 1.0, size=heads)


def everything(function, arguments, dout, /, **config):
    """Outputs and gradients, one after the other."""
    out, backward = function(*arguments, **config)
    return [*out, *backward(dout)]


def assert_same(own, theirs, atol=1e-12):
    for a, b in zip(own, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=0, atol=atol)
