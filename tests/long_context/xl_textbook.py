"""Transformer-XL and the Compressive Transformer as naively as can be, for autograd: one text, one head, one query, one key at a time.

Nothing here comes from the concepts; their parameters are read by name. Rows that are kept are lists of arrays, oldest first.
"""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np

from minitransformers.foundation import trees


def wave(distance, width):
    """Sines, then cosines, of one distance."""
    angles = [distance / 10_000 ** (2 * m / width) for m in range(width // 2)]
    return np.array([np.sin(a) for a in angles] + [np.cos(a) for a in angles])


def mapped(p, row):
    return row @ p.weight if p.bias is None else row @ p.weight + p.bias


def norm(p, row, eps=1e-5):
    centred = row - anp.mean(row)
    return p.gain * centred / anp.sqrt(anp.mean(centred**2) + eps) + p.bias


def softmax(scores):
    e = anp.exp(scores - anp.max(scores))
    return e / anp.sum(e)


def weights_of(p, i, rows, old, num_heads, head):
    """Of one head and query i of rows: how it weighs each row of old, and of rows up to its own."""
    context, place = [*old, *rows], len(old) + i
    d = p.query.weight.shape[1] // num_heads
    cut, core = slice(head * d, (head + 1) * d), p.core
    q = mapped(p.query, rows[i])[cut]
    scores = []
    for j in range(place + 1):
        k, r = mapped(p.key, context[j])[cut], wave(place - j, core.distance.shape[1]) @ core.distance[head]
        scores.append((q @ k + q @ r + core.u[head] @ k + core.w[head] @ r) / d**0.5)
    return softmax(anp.array(scores))


def attention(p, rows, old, num_heads):
    context, out = [*old, *rows], []
    d = p.value.weight.shape[1] // num_heads
    for i in range(len(rows)):
        heads = []
        for head in range(num_heads):
            weights = weights_of(p, i, rows, old, num_heads, head)
            values = [mapped(p.value, row)[head * d : (head + 1) * d] for row in context]
            heads.append(sum(w * v for w, v in zip(weights, values, strict=False)))
        out.append(mapped(p.output, anp.concatenate(heads)))
    return out


def network(p, row):
    return mapped(p.down, anp.maximum(mapped(p.up, row), 0))


def layer(p, rows, old, num_heads, first=False, eps=1e-5):
    """first: the norms stand before the sub-layers."""
    early, late = partial(norm, p.attention_norm, eps=eps), partial(norm, p.feed_forward_norm, eps=eps)
    if first:
        added = attention(p.attention, [early(r) for r in rows], [early(r) for r in old], num_heads)
        middle = [r + a for r, a in zip(rows, added, strict=True)]
        return [m + network(p.feed_forward, late(m)) for m in middle]
    added = attention(p.attention, rows, old, num_heads)
    middle = [early(r + a) for r, a in zip(rows, added, strict=True)]
    return [late(m + network(p.feed_forward, m)) for m in middle]


def transformer_xl(layers, x, memories, num_heads, memory_length, first=False):
    """One segment of one text. Returns out, and the rows that each layer keeps."""
    rows, kept = list(x), []
    for p, old in zip(layers, memories, strict=True):
        kept.append([*old, *rows][-memory_length:])
        rows = layer(p, rows, old, num_heads, first)
    return anp.stack(rows), kept


def joined(p, window):
    return mapped(p, anp.concatenate(window))


def average(p, window):
    return sum(window) / len(window)


def compressive_transformer(params, x, memories, num_heads, memory_length, compressed_length, rate, small=joined):
    """One segment of one text; memories: (recent, compressed) of each layer. small makes one row of some."""
    rows, after = list(x), []
    for p, f, (recent, compressed) in zip(params.layers, params.compress, memories, strict=True):
        queue, shelf = [*recent, *rows], list(compressed)
        while len(queue) > memory_length:
            shelf.append(small(f, queue[:rate]))
            del queue[:rate]
        rows = layer(p, rows, [*compressed, *recent], num_heads)
        after.append((queue, shelf[-compressed_length:]))
    return anp.stack(rows), after


def gradients(function, *arguments):
    """autograd's gradients of a scalar by every leaf of every argument, as a list."""
    leaves = [leaf for _, leaf in trees.leaves(arguments)]
    return autograd.grad(lambda values: function(*trees.unflatten(arguments, values)))(leaves)


def assert_same(own, theirs, atol=1e-10):
    """A tree against a list of arrays."""
    for (path, mine), expected in zip(trees.leaves(own), theirs, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=0, atol=atol * max(1, np.abs(expected).max()), err_msg=path)


def noisy(tree, rng, size=0.3):
    """The tree with numbers added, so that no gain is 1 and no bias 0."""
    return trees.map(lambda leaf: leaf + rng.normal(0, size, leaf.shape), tree)
