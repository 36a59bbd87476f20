"""Transformer-XL's layer: by loops, with its norms behind and before, and against the authors' formulas in torch."""

from functools import partial

import autograd.numpy as anp
import numpy as np
import pytest
from xl_textbook import assert_same, gradients, layer, noisy

from minitransformers.attention.core import causal_attention
from minitransformers.basics.gated_feed_forward import gated_feed_forward, init_gated_feed_forward
from minitransformers.foundation import check_gradients, trees
from minitransformers.long_context.attention_with_memory import attention_with_memory
from minitransformers.long_context.transformer_xl_layer import (
    init_transformer_xl_layer,
    transformer_xl_layer,
    transformer_xl_pre_norm_layer,
)

HEADS, WIDTH = 2, 4
FORMS = [pytest.param(transformer_xl_layer, False, id="norms after"), pytest.param(transformer_xl_pre_norm_layer, True, id="norms first")]


def random_call(seed=0, positions=3, kept=2):
    rng = np.random.default_rng(seed)
    params = noisy(init_transformer_xl_layer(rng, WIDTH, num_heads=HEADS, d_hidden=5, dtype=np.float64), rng)
    return params, rng.normal(size=(2, positions, WIDTH)), rng.normal(size=(2, kept, WIDTH)), rng.normal(size=(2, positions, WIDTH))


@pytest.mark.parametrize(("function", "first"), FORMS)
@pytest.mark.parametrize("kept", [0, 3])
def test_it_is_the_layer_by_loops_and_its_gradients_are_autograd_s(function, first, kept):
    params, x, memory, dout = random_call(kept=kept or 1)
    rows = (x, memory) if kept else (x,)

    def textbook(params, x, memory=((), ())):
        return anp.stack([anp.stack(layer(params, list(x[b]), list(memory[b]), HEADS, first, eps=0.3)) for b in range(2)])

    out, backward = function(params, *rows, num_heads=HEADS, eps=0.3)
    np.testing.assert_allclose(out, textbook(params, *rows), rtol=0, atol=1e-12)
    own = backward(dout)
    assert_same(own, gradients(lambda *args: anp.sum(dout * textbook(*args)), params, *rows))
    assert len(own) == 3 and (kept or own[2] is None)


def test_what_a_layer_does_to_x_it_does_to_memory():
    # Three rows that were memory are read as they would be read as part of the segment: in both forms.
    params, x, memory, _ = random_call(kept=3)
    for function, _ in (form.values for form in FORMS):
        whole, _ = function(params, np.concatenate([memory, x], axis=1), num_heads=HEADS)
        np.testing.assert_allclose(function(params, x, memory, num_heads=HEADS)[0], whole[:, 3:], rtol=0, atol=1e-13)


def test_the_norm_that_stands_first_does_not_see_how_large_a_kept_row_is():
    params, x, memory, _ = random_call()
    for function, same in ((transformer_xl_pre_norm_layer, True), (transformer_xl_layer, False)):
        small, large = (function(params, x, size * memory, num_heads=HEADS, eps=0.0)[0] for size in (1, 7))
        assert np.allclose(small, large, rtol=0, atol=1e-12) is same


def test_its_parts_are_slots():
    params, x, memory, _ = random_call()
    rng = np.random.default_rng(1)
    params = params._replace(
        attention=params.attention._replace(core=None), feed_forward=init_gated_feed_forward(rng, WIDTH, d_hidden=3, dtype=np.float64)
    )
    attention = partial(attention_with_memory, core=causal_attention)
    for function, _ in (form.values for form in FORMS):
        assert check_gradients(function, params, x, memory, num_heads=HEADS, attention=attention, feed_forward=gated_feed_forward).passed


def memory_past_the_norm(params, x, memory):
    """The gradient of memory as attention sends it, not through the norm that memory has passed."""
    out, backward = transformer_xl_pre_norm_layer(params, x, memory, num_heads=HEADS)
    return out, lambda dout: (*backward(dout)[:2], backward(dout)[2] * memory.std(-1, keepdims=True))


def norm_that_learns_from_x_alone(params, x, memory):
    out, backward = transformer_xl_pre_norm_layer(params, x, memory, num_heads=HEADS)

    def wrong(dout):
        dparams, dx, dmemory = backward(dout)
        norm, unit = params.attention_norm, (memory - memory.mean(-1, keepdims=True)) / memory.std(-1, keepdims=True)
        spoiled = dparams.attention_norm.gain - np.sum(dmemory * unit, axis=(0, 1)) * norm.gain
        return dparams._replace(attention_norm=dparams.attention_norm._replace(gain=spoiled)), dx, dmemory

    return out, wrong


@pytest.mark.parametrize(("wrong", "path"), [(memory_past_the_norm, "memory"), (norm_that_learns_from_x_alone, "params.attention_norm.gain")])
def test_the_checker_refuses(wrong, path):
    params, x, memory, _ = random_call()
    report = check_gradients(wrong, params, x, memory)
    assert not report.passed and report.worst.path == path


def test_it_starts_with_a_map_for_each_head_and_without_biases_in_attention():
    params = init_transformer_xl_layer(np.random.default_rng(0), 12, num_heads=3)
    assert params.attention.core.distance.shape == (3, 12, 4) and params.feed_forward.up.weight.shape == (12, 48)
    assert all(getattr(params.attention, name).bias is None for name in ("query", "key", "value", "output"))
    assert {leaf.dtype for _, leaf in trees.leaves(params)} == {np.dtype(np.float32)}
    for d_model, num_heads in ((9, 3), (10, 4)):
        with pytest.raises(ValueError, match=f"d_model: got {d_model}"):
            init_transformer_xl_layer(np.random.default_rng(0), d_model, num_heads=num_heads)


@pytest.mark.parity
@pytest.mark.parametrize(("function", "first"), FORMS)
def test_parity_with_the_authors_formulas_in_torch(function, first):
    torch = pytest.importorskip("torch")
    from torch.nn.functional import layer_norm, linear, relu

    params, x, memory, dout = random_call(kept=4)
    names = ("query", "key", "value", "output")
    bare = {name: getattr(params.attention, name)._replace(bias=None) for name in names}
    params = params._replace(attention=params.attention._replace(**bare))
    tree = trees.map(lambda leaf: torch.tensor(leaf, requires_grad=True), (params, x))
    p, h = tree

    def normed(own, rows):
        return layer_norm(rows, (WIDTH,), own.gain, own.bias, eps=1e-5)

    def attend(h):
        # Their order: memory is joined with no gradient, normed where the norm stands first, projected; distances fall.
        cat = torch.cat([torch.tensor(memory), h], dim=1)
        cat = normed(p.attention_norm, cat) if first else cat
        query, key, value = ((cat @ getattr(p.attention, name).weight).view(2, 7, HEADS, 2) for name in names[:3])
        inverse = 1 / 10_000 ** (torch.arange(0.0, WIDTH, 2.0, dtype=torch.float64) / WIDTH)
        angles = torch.outer(torch.arange(6, -1, -1.0, dtype=torch.float64), inverse)
        r = torch.einsum("nf,hfd->nhd", torch.cat([angles.sin(), angles.cos()], dim=-1), p.attention.core.distance)
        content = torch.einsum("binh,bjnh->bnij", query[:, 4:] + p.attention.core.u, key)
        by_distance = torch.einsum("binh,jnh->bnij", query[:, 4:] + p.attention.core.w, r)
        padded = torch.cat([torch.zeros(2, HEADS, 3, 1, dtype=torch.float64), by_distance], dim=-1).view(2, HEADS, 8, 3)
        scores = (content + padded[:, :, 1:].reshape(2, HEADS, 3, 7)) / 2**0.5
        scores = scores.masked_fill(~torch.ones(3, 7, dtype=torch.bool).tril(4), -torch.inf)
        return torch.einsum("bnij,bjnh->binh", scores.softmax(-1), value).reshape(2, 3, WIDTH) @ p.attention.output.weight

    def work(h):
        up, down = p.feed_forward.up, p.feed_forward.down
        return linear(relu(linear(h, up.weight.T, up.bias)), down.weight.T, down.bias)

    if first:
        middle = h + attend(h)
        theirs = middle + work(normed(p.feed_forward_norm, middle))
    else:
        middle = normed(p.attention_norm, h + attend(h))
        theirs = normed(p.feed_forward_norm, middle + work(middle))
    theirs.backward(torch.tensor(dout))
    out, backward = function(params, x, memory, num_heads=HEADS)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-12)
    for (path, own), (_, leaf) in zip(trees.leaves(backward(dout)[:2]), trees.leaves(tree), strict=True):
        np.testing.assert_allclose(own, leaf.grad.numpy(), rtol=0, atol=1e-11, err_msg=path)
