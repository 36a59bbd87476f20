"""The gated recurrence as naively as it can be written, for autograd: every pair of positions, and the product of all decays between."""

import autograd.numpy as anp
import numpy as np


def naive_gated_recurrence(query, key, value, log_decay, state):
    """(heads, positions, d) each, one text; state is (heads, d_head, d_value). Returns out and the final state."""
    heads, positions, d_head = query.shape
    outs, finals = [], []
    for h in range(heads):

        def between(j, i, h=h):
            """What is left at position i of what was written at j, feature by feature; j = -1 is the initial state."""
            left = anp.ones(d_head)
            for t in range(j + 1, i + 1):
                left = left * anp.exp(log_decay[h, t])
            return left

        rows = []
        for i in range(positions):
            row = anp.dot(query[h, i] * between(-1, i), state[h])
            for j in range(i + 1):
                row = row + anp.sum(query[h, i] * between(j, i) * key[h, j]) * value[h, j]
            rows.append(row / d_head**0.5)
        outs.append(anp.stack(rows))
        last = between(-1, positions - 1)[:, None] * state[h]
        for j in range(positions):
            last = last + anp.outer(between(j, positions - 1) * key[h, j], value[h, j])
        finals.append(last)
    return anp.stack(outs), anp.stack(finals)


def random_case(positions=7, d_head=3, d_value=4, heads=2, seed=0, batch=()):
    """query, key, value, log_decay, state and a dout for the two outputs."""
    rng = np.random.default_rng(seed)
    rows, values = (*batch, heads, positions, d_head), (*batch, heads, positions, d_value)
    query, key, value = (rng.normal(size=shape) for shape in (rows, rows, values))
    state = rng.normal(size=(*batch, heads, d_head, d_value))
    log_decay = -rng.exponential(0.5, size=rows)
    return (query, key, value, log_decay, state), (rng.normal(size=values), rng.normal(size=state.shape))
