"""The bidirectional Mamba over bytes a second time, as plainly as can be: one text, one position, one channel's states at a time."""

import autograd.numpy as anp


def norm(gain, bias, x, eps):
    mean = anp.mean(x, axis=-1, keepdims=True)
    return gain * (x - mean) / anp.sqrt(anp.mean((x - mean) ** 2, axis=-1, keepdims=True) + eps) + bias


def silu(x):
    return x / (1 + anp.exp(-x))


def one_way(u, delta, A, B, C, D, order):
    """h fades, takes in and is read, position by position in this order; what is read comes back in the order of the text."""
    h, read = anp.zeros(A.shape), {}
    for t in order:
        h = anp.exp(delta[t][:, None] * A) * h + (delta[t] * u[t])[:, None] * B[t][None, :]
        read[t] = h @ C[t] + D * u[t]
    return anp.stack([read[t] for t in range(len(u))])


def loop(params, ids, *, least_step=1e-4, eps=1e-6):
    """Logits (positions, classes) of one text."""
    x = anp.stack([params.embedding.weight[i] for i in ids])
    n = len(ids)
    for block in params.blocks:
        p = block.mixer
        both = norm(block.norm.gain, block.norm.bias, x, eps) @ p.in_proj.weight + p.in_proj.bias
        d_inner, d_state = p.A_log.shape
        inner, z = both[:, :d_inner], both[:, d_inner:]
        width = p.conv.weight.shape[1]
        left = (width - 1) // 2                              # of an even width the longer side is ahead
        rows = []
        for t in range(n):
            seen = [(t - left + k, k) for k in range(width) if 0 <= t - left + k < n]
            rows.append(sum(inner[s] * p.conv.weight[:, k] for s, k in seen) + p.conv.bias)
        u = silu(anp.stack(rows))
        parts = u @ p.x_proj.weight + p.x_proj.bias
        rank = p.dt_proj.weight.shape[0]
        low, B, C = parts[:, :rank], parts[:, rank : rank + d_state], parts[:, rank + d_state :]
        delta = anp.log(1 + anp.exp(low @ p.dt_proj.weight + p.dt_proj.bias)) + least_step
        A = -anp.exp(p.A_log)
        y = one_way(u, delta, A, B, C, p.D, range(n)) + one_way(u, delta, A, B, C, p.D, range(n - 1, -1, -1))
        x = x + (y * silu(z)) @ p.out_proj.weight + p.out_proj.bias
    return norm(params.norm.gain, params.norm.bias, x, eps) @ params.head.weight + params.head.bias
