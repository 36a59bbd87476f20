"""SSD as naively as it can be written, for autograd: one position, one head, one product at a time."""

import autograd.numpy as anp
import numpy as np


def naive_ssd(x, log_decay, B, C, state):
    """x (n, heads, d_head), one sequence; returns y and the final state, (heads, d_head, d_state)."""
    heads, groups = x.shape[1], B.shape[1]
    outputs, finals = [], []
    for h in range(heads):
        g, carried, row = h // (heads // groups), state[h], []
        for t in range(len(x)):
            carried = anp.exp(log_decay[t, h]) * carried + anp.outer(x[t, h], B[t, g])
            row.append(anp.dot(carried, C[t, g]))
        outputs.append(anp.stack(row))
        finals.append(carried)
    return anp.stack(outputs, axis=1), anp.stack(finals)


def random_case(n=11, heads=4, groups=2, d_head=3, d_state=5, seed=0, batch=()):
    """x, log_decay, B, C, state and a dout for the two outputs."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=(*batch, *shape))  # noqa: E731
    arguments = (
        draw(n, heads, d_head), -rng.uniform(0.01, 1.0, size=(*batch, n, heads)), draw(n, groups, d_state), draw(n, groups, d_state),
        draw(heads, d_head, d_state),
    )  # fmt: skip
    return arguments, (draw(n, heads, d_head), draw(heads, d_head, d_state))


def everything(function, arguments, dout, /, **config):
    """Outputs and gradients, one after the other."""
    out, backward = function(*arguments, **config)
    return [*out, *backward(dout)]


def assert_same(own, theirs, atol=1e-12):
    for a, b in zip(own, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=0, atol=atol)
