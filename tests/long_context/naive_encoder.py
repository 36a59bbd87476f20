"""Encoder layers and pooling for one text without padding, as formulas for autograd; and the same layer as PyTorch has it."""

import autograd
import autograd.numpy as anp
import numpy as np

from minitransformers import trees


def layer_norm(p, x):
    rows = []
    for row in x:
        centred = row - anp.mean(row)
        rows.append(p.gain * centred / anp.sqrt(anp.mean(centred**2) + 1e-5) + p.bias)
    return anp.stack(rows)


def attention(p, x, heads):
    query, key, value = (x @ m.weight + m.bias for m in (p.query, p.key, p.value))
    d, rows = query.shape[1] // heads, []
    for i in range(len(x)):
        parts = []
        for h in range(heads):
            piece = slice(h * d, (h + 1) * d)
            scores = anp.stack([anp.dot(query[i, piece], key[j, piece]) / d**0.5 for j in range(len(x))])
            weights = anp.exp(scores) / anp.sum(anp.exp(scores))
            parts.append(sum(weights[j] * value[j, piece] for j in range(len(x))))
        rows.append(anp.concatenate(parts) @ p.output.weight + p.output.bias)
    return anp.stack(rows)


def gelu(x):
    return 0.5 * x * (1 + anp.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def block(p, x, heads):
    """The layer, for tokens that are all real."""
    middle = x + attention(p.attention, layer_norm(p.attention_norm, x), heads)
    inner = layer_norm(p.feed_forward_norm, middle)
    ff = p.feed_forward
    return middle + gelu(inner @ ff.up.weight + ff.up.bias) @ ff.down.weight + ff.down.bias


def pool(p, x):
    """The pooled vector, of positions that are all real."""
    exps = [anp.exp(anp.dot(p.score, anp.tanh(row @ p.weight))) for row in x]
    return sum(e * row for e, row in zip(exps, x, strict=True)) / sum(exps)


def gradients(function, params, x):
    """Autograd's gradients of a function of a tree and an array."""
    leaves = [leaf for _, leaf in trees.leaves(params)]
    dleaves, dx = autograd.grad(lambda leaves, x: function(trees.unflatten(params, leaves), x), (0, 1))(leaves, x)
    return dleaves, dx


def close(found, dleaves, tolerance=1e-10):
    """Whether every leaf of a tree is near its own of a list."""
    for (path, own), their in zip(trees.leaves(found), dleaves, strict=True):
        np.testing.assert_allclose(own, their, rtol=0, atol=tolerance, err_msg=path)


def torch_layer(p, heads):
    """``torch.nn.TransformerEncoderLayer`` with the numbers of an EncoderBlock."""
    import functools

    import torch

    d_model, d_hidden = p.feed_forward.up.weight.shape
    gelu_of_torch = functools.partial(torch.nn.functional.gelu, approximate="tanh")
    layer = torch.nn.TransformerEncoderLayer(
        d_model, heads, d_hidden, dropout=0.0, activation=gelu_of_torch, batch_first=True, norm_first=True, dtype=torch.float64
    )
    a, inner = p.attention, (p.attention.query, p.attention.key, p.attention.value)
    values = {
        "self_attn.in_proj_weight": np.concatenate([m.weight.T for m in inner]), "self_attn.in_proj_bias": np.concatenate([m.bias for m in inner]),
        "self_attn.out_proj.weight": a.output.weight.T, "self_attn.out_proj.bias": a.output.bias,
        "linear1.weight": p.feed_forward.up.weight.T, "linear1.bias": p.feed_forward.up.bias,
        "linear2.weight": p.feed_forward.down.weight.T, "linear2.bias": p.feed_forward.down.bias,
        "norm1.weight": p.attention_norm.gain, "norm1.bias": p.attention_norm.bias,
        "norm2.weight": p.feed_forward_norm.gain, "norm2.bias": p.feed_forward_norm.bias,
    }  # fmt: skip
    layer.load_state_dict({name: torch.tensor(np.ascontiguousarray(value)) for name, value in values.items()})
    return layer
