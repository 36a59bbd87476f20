"""Pfeiffer's adapter: one norm that is used twice, in a post-norm block."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.attention.core import softmax_attention
from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.basics.chain import chain
from minitransformers.basics.feed_forward import feed_forward, init_feed_forward
from minitransformers.basics.gelu import gelu_exact
from minitransformers.basics.linear import Linear
from minitransformers.basics.residual import residual
from minitransformers.foundation import slot
from minitransformers.models.bert import bert_block, init_bert
from minitransformers.norms.layer_norm import LayerNorm, layer_norm
from minitransformers.norms.rms_norm import RmsNorm, rms_norm
from minitransformers.peft.adapted import Adapted, adapted
from minitransformers.peft.bottleneck_adapter import BottleneckAdapter, init_bottleneck_adapter
from minitransformers.peft.pfeiffer_adapter import PfeifferAdapter, pfeiffer_adapter


def random_adapter(rng, d_model):
    down, up = rng.normal(size=(d_model, 2)), rng.normal(size=(2, d_model))
    return BottleneckAdapter(Linear(down, rng.normal(size=2)), Linear(up, rng.normal(size=d_model)))


def case(seed=0):
    rng = np.random.default_rng(seed)
    params = PfeifferAdapter(init_feed_forward(rng, 5, d_hidden=4, dtype=np.float64), LayerNorm(*rng.normal(size=(2, 5))), random_adapter(rng, 5))
    return params, rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 3, 5))


def tanh_gelu(z):
    return z / 2 * (1 + anp.tanh(anp.sqrt(2 / anp.pi) * (z + 0.044715 * z**3)))


def textbook(params, x, scale):
    """One position at a time."""

    def norm(row):
        centred = row - anp.sum(row) / len(row)
        return params.norm.gain * centred / anp.sqrt(anp.sum(centred**2) / len(row) + 1e-5) + params.norm.bias

    def two(one, other, row):
        return tanh_gelu(row @ one.weight + one.bias) @ other.weight + other.bias

    def position(row):
        total = row + two(params.part.up, params.part.down, row)
        return norm(total + scale * two(params.adapter.down, params.adapter.up, norm(total)))

    return anp.stack([anp.stack([position(row) for row in text]) for text in x])


@pytest.mark.parametrize("scale", [1.0, -0.4])
def test_it_is_the_textbook_formula_and_its_gradients_are_autograd_s(scale):
    params, x, dout = case()
    leaves = [leaf for _, leaf in trees.leaves(params)]
    out, backward = pfeiffer_adapter(params, x, part=feed_forward, scale=scale)
    np.testing.assert_allclose(out, textbook(params, x, scale), rtol=0, atol=1e-10)
    expected = autograd.grad(lambda args: anp.sum(dout * textbook(trees.unflatten(params, args[0]), args[1], scale)))((leaves, x))
    dparams, dx = backward(dout)
    np.testing.assert_allclose(dx, expected[1], rtol=0, atol=1e-10)
    for (path, own), theirs in zip(trees.leaves(dparams), expected[0], strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10, err_msg=path)


def test_gradients_are_right_around_attention_with_a_mask():
    rng = np.random.default_rng(1)
    attention = init_multi_head_attention(rng, 4, num_heads=2, dtype=np.float64)
    params, x = PfeifferAdapter(attention, LayerNorm(*rng.normal(size=(2, 4))), random_adapter(rng, 4)), rng.normal(size=(3, 4))
    report = check_gradients(pfeiffer_adapter, params, x, part=multi_head_attention, num_heads=2, mask=rng.random((1, 3, 3)) < 0.7)
    assert report.passed, str(report)


def test_any_norm_may_stand_there():
    params, x, _ = case(2)
    report = check_gradients(pfeiffer_adapter, params._replace(norm=RmsNorm(params.norm.gain)), x, part=feed_forward, norm=rms_norm)
    assert report.passed, str(report)


def test_an_adapter_that_says_nothing_leaves_the_sub_layer_as_it_was():
    params, x, _ = case(3)
    silent = params._replace(adapter=init_bottleneck_adapter(np.random.default_rng(4), 5, d_bottleneck=2, residual_std=0.0, dtype=np.float64))
    plain, _ = chain((params.part, params.norm), x, parts=(partial(residual, part=feed_forward), layer_norm))
    np.testing.assert_array_equal(pfeiffer_adapter(silent, x, part=feed_forward)[0], plain)


def test_the_norm_s_gradient_is_the_sum_of_those_of_two_norms_of_the_same_numbers():
    params, x, dout = case(5)
    total, _ = residual(params.part, x, part=feed_forward)
    normed, inner = layer_norm(params.norm, total)
    hidden = normed @ params.adapter.down.weight + params.adapter.down.bias
    bent, slope = slot(gelu_exact)(None, hidden)
    _, outer = layer_norm(params.norm, total + bent @ params.adapter.up.weight + params.adapter.up.bias)
    first, dsum = outer(dout)
    second, _ = inner(slope(dsum @ params.adapter.up.weight.T)[1] @ params.adapter.down.weight.T)
    dnorm = pfeiffer_adapter(params, x, part=feed_forward, activation=slot(gelu_exact))[1](dout)[0].norm
    np.testing.assert_allclose(dnorm.gain, first.gain + second.gain, rtol=0, atol=1e-12)
    np.testing.assert_allclose(dnorm.bias, first.bias + second.bias, rtol=0, atol=1e-12)
    assert np.abs(second.gain).max() > 0.1                   # what the test is about is there


def test_it_is_not_houlsby_s_adapter_behind_the_same_sub_layer():
    params, x, _ = case(6)
    houlsby = partial(chain, parts=(partial(residual, part=partial(adapted, part=feed_forward)), layer_norm))
    theirs, _ = houlsby((Adapted(params.part, params.adapter), params.norm), x)
    assert np.abs(pfeiffer_adapter(params, x, part=feed_forward)[0] - theirs).max() > 0.1


def test_bert_s_block_takes_one_behind_its_last_sub_layer():
    rng = np.random.default_rng(7)
    model = init_bert(rng, vocabulary=5, context=4, d_model=4, num_layers=1, num_heads=2, d_hidden=3, dtype=np.float64)
    block, x = trees.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape), model.blocks[0]), rng.normal(size=(2, 3, 4))
    attend = partial(chain, parts=(partial(residual, part=partial(multi_head_attention, num_heads=2, core=softmax_attention)), partial(layer_norm, eps=1e-12)))
    work = partial(pfeiffer_adapter, part=partial(feed_forward, activation=slot(gelu_exact)), norm=partial(layer_norm, eps=1e-12))
    with_adapter = partial(chain, parts=(attend, work))

    def params(adapter):
        return (block.attention, block.attention_norm), PfeifferAdapter(block.feed_forward, block.feed_forward_norm, adapter)

    silent = init_bottleneck_adapter(rng, 4, d_bottleneck=2, residual_std=0.0, dtype=np.float64)
    np.testing.assert_array_equal(with_adapter(params(silent), x)[0], bert_block(block, x, num_heads=2)[0])
    report = check_gradients(with_adapter, params(random_adapter(rng, 4)), x, second_opinion=False)
    assert report.passed, str(report)


def test_a_part_of_another_shape_is_refused():
    params, x, _ = case(8)
    with pytest.raises(ValueError, match=r"part: got an output of shape \(2, 3, 1\), wants \(2, 3, 5\)"):
        pfeiffer_adapter(params, x, part=lambda params, x: (x[..., :1], None))


@pytest.mark.parametrize("forgotten", ["inner norm's parameters", "outer norm's parameters", "way through the inner norm"])
def test_the_checker_refuses_a_backward_that_uses_the_norm_once(forgotten):
    def wrong(params, x):
        out, backward = pfeiffer_adapter(params, x, part=feed_forward)
        total, around = residual(params.part, x, part=feed_forward)
        normed, inner = layer_norm(params.norm, total)
        added, through = adapted(Adapted(None, params.adapter), normed, part=lambda params, x: (x, lambda dout: (None, dout)))
        _, outer = layer_norm(params.norm, total + added - normed)

        def once(dout):
            dparams, dx = backward(dout)
            douter, dsum = outer(dout)
            _, dsame = through(dsum)
            dinner, _ = inner(dsame - dsum)
            if forgotten == "way through the inner norm":
                dpart, dx = around(dsum)
                return dparams._replace(part=dpart), dx
            return dparams._replace(norm=douter if forgotten.startswith("inner") else dinner), dx

        return out, once

    report = check_gradients(wrong, *case(9)[:2], second_opinion=False)
    assert not report.passed
    assert (report.worst.path.startswith("params.norm")) == ("parameters" in forgotten)


@pytest.mark.parity
def test_behind_bert_s_feed_forward_network_it_is_what_pytorch_computes():
    torch = pytest.importorskip("torch")
    from torch.nn.functional import gelu
    from torch.nn.functional import layer_norm as their_norm
    from torch.nn.functional import linear as their_linear

    params, x, dout = case(10)
    leaves = [leaf for _, leaf in trees.leaves((params, x))]
    tensors = [torch.tensor(leaf, requires_grad=True) for leaf in leaves]
    w, b, v, c, g, h, down, k, up, m, t = tensors
    total = t + their_linear(gelu(their_linear(t, w.T, b), approximate="tanh"), v.T, c)
    first = their_norm(total, (5,), g, h)
    theirs = their_norm(total + their_linear(gelu(their_linear(first, down.T, k), approximate="tanh"), up.T, m), (5,), g, h)
    theirs.backward(torch.tensor(dout))
    out, backward = pfeiffer_adapter(params, x, part=feed_forward)
    np.testing.assert_allclose(out, theirs.detach(), rtol=0, atol=1e-9)
    for (path, own), tensor in zip(trees.leaves(backward(dout)), tensors, strict=True):
        np.testing.assert_allclose(own, tensor.grad, rtol=0, atol=1e-9, err_msg=path)
