"""The parallel adapter, and the wider feed-forward network that it is."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.attention.multi_head_attention import multi_head_attention
from minitransformers.basics.feed_forward import FeedForward, feed_forward, init_feed_forward
from minitransformers.basics.gated_feed_forward import gated_feed_forward
from minitransformers.basics.linear import Linear
from minitransformers.basics.relu import relu
from minitransformers.foundation import slot, trusted
from minitransformers.models.gpt2 import gpt2, init_gpt2
from minitransformers.models.llama import init_llama, llama, llama_attention
from minitransformers.peft.bottleneck_adapter import BottleneckAdapter, init_bottleneck_adapter
from minitransformers.peft.parallel_adapter import ParallelAdapter, parallel_adapter, widened_feed_forward

IDS = np.array([[1, 4, 1, 0], [0, 2, 2, 3]])
checked = trusted(check_gradients)


def random_adapter(rng, d_model):
    down, up = rng.normal(size=(d_model, 2)), rng.normal(size=(2, d_model))
    return BottleneckAdapter(Linear(down, rng.normal(size=2)), Linear(up, rng.normal(size=d_model)))


def case(seed=0):
    rng = np.random.default_rng(seed)
    return ParallelAdapter(init_feed_forward(rng, 5, d_hidden=4, dtype=np.float64), random_adapter(rng, 5)), rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 3, 5))


def textbook(params, x, scale):
    """One position at a time."""

    def bend(z):
        return z / 2 * (1 + anp.tanh(anp.sqrt(2 / anp.pi) * (z + 0.044715 * z**3)))

    def two(one, other, row):
        return bend(row @ one.weight + one.bias) @ other.weight + other.bias

    def position(row):
        return two(params.part.up, params.part.down, row) + scale * two(params.adapter.down, params.adapter.up, row)

    return anp.stack([anp.stack([position(row) for row in text]) for text in x])


@pytest.mark.parametrize("scale", [None, -0.4])
def test_it_is_the_textbook_formula_and_its_gradients_are_autograd_s(scale):
    params, x, dout = case()
    config, factor = ({}, 4.0) if scale is None else ({"scale": scale}, scale)
    leaves = [leaf for _, leaf in trees.leaves(params)]
    out, backward = parallel_adapter(params, x, part=feed_forward, **config)
    np.testing.assert_allclose(out, textbook(params, x, factor), rtol=0, atol=1e-10)
    expected = autograd.grad(lambda args: anp.sum(dout * textbook(trees.unflatten(params, args[0]), args[1], factor)))((leaves, x))
    dparams, dx = backward(dout)
    np.testing.assert_allclose(dx, expected[1], rtol=0, atol=1e-10)
    for (path, own), theirs in zip(trees.leaves(dparams), expected[0], strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10, err_msg=path)


@pytest.mark.parametrize("activation", [None, relu])
def test_beside_a_feed_forward_network_it_is_a_wider_one(activation):
    params, x, dout = case(1)
    bend = {} if activation is None else {"activation": slot(activation)}
    out, backward = parallel_adapter(params, x, part=partial(feed_forward, **bend), **bend)
    wide = widened_feed_forward(*params)
    assert wide.up.weight.shape == (5, 4 + 2)
    theirs, their_backward = feed_forward(wide, x, **bend)
    np.testing.assert_allclose(out, theirs, rtol=0, atol=1e-12)
    (dparams, dx), (dwide, their_dx) = backward(dout), their_backward(dout)
    np.testing.assert_allclose(dx, their_dx, rtol=0, atol=1e-12)
    np.testing.assert_allclose(dparams.adapter.down.weight, dwide.up.weight[:, 4:], rtol=0, atol=1e-12)
    np.testing.assert_allclose(dparams.adapter.up.weight, 4.0 * dwide.down.weight[4:], rtol=0, atol=1e-12)  # up is in it times s
    np.testing.assert_allclose(dparams.part.down.weight, dwide.down.weight[:4], rtol=0, atol=1e-12)


def test_a_wider_network_takes_maps_without_bias_and_keeps_the_dtype():
    rng = np.random.default_rng(2)
    bare = FeedForward(Linear(rng.normal(size=(5, 4)), None), Linear(rng.normal(size=(4, 5)), None))
    params = trees.cast(ParallelAdapter(bare, random_adapter(rng, 5)), np.float32)
    wide, x = widened_feed_forward(*params, scale=0.5), rng.normal(size=(3, 5)).astype(np.float32)
    assert {leaf.dtype for _, leaf in trees.leaves(wide)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(feed_forward(wide, x)[0], parallel_adapter(params, x, part=feed_forward, scale=0.5)[0], rtol=0, atol=1e-5)


def small_gpt2(rng):
    return init_gpt2(rng, vocabulary=5, context=4, d_model=4, num_layers=2, num_heads=2, std=0.5, dtype=np.float64)


def small_llama(rng):
    return init_llama(rng, vocabulary=5, d_model=4, num_layers=1, num_heads=2, num_kv_heads=1, d_hidden=3, std=0.5, dtype=np.float64)


def beside(model, rng, *slots):
    blocks = [block._replace(**{slot: ParallelAdapter(getattr(block, slot), random_adapter(rng, 4)) for slot in slots}) for block in model.blocks]
    return model._replace(blocks=blocks)


def test_a_gpt2_with_such_adapters_is_a_gpt2_with_wider_networks():
    rng = np.random.default_rng(3)
    params = beside(small_gpt2(rng), rng, "feed_forward")
    logits, _ = gpt2(params, ids=IDS, num_heads=2, feed_forward=partial(parallel_adapter, part=feed_forward))
    wide = params._replace(blocks=[block._replace(feed_forward=widened_feed_forward(*block.feed_forward)) for block in params.blocks])
    np.testing.assert_allclose(logits, gpt2(wide, ids=IDS, num_heads=2)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_whole_models_take_them_in_both_slots(family):
    make, run, attention, work = {"gpt2": (small_gpt2, gpt2, multi_head_attention, feed_forward), "llama": (small_llama, llama, llama_attention, gated_feed_forward)}[family]
    rng = np.random.default_rng(4)
    params = beside(make(rng), rng, "attention", "feed_forward")
    run = partial(run, ids=IDS[:, :3], num_heads=2, attention=partial(parallel_adapter, part=attention, scale=0.5), feed_forward=partial(parallel_adapter, part=work))
    report = checked(run, params, second_opinion=False)
    assert report.passed, str(report)


def test_with_nothing_in_the_map_up_the_part_is_what_it_was():
    params, x, _ = case(5)
    silent = init_bottleneck_adapter(np.random.default_rng(6), 5, d_bottleneck=2, std=0.5, residual_std=0.0, dtype=np.float64)
    np.testing.assert_array_equal(parallel_adapter(params._replace(adapter=silent), x, part=feed_forward)[0], feed_forward(params.part, x)[0])


def test_what_does_not_fit_is_refused():
    params, x, _ = case(7)
    with pytest.raises(ValueError, match=r"part: got an output of shape \(2, 3, 1\), wants \(2, 3, 5\)"):
        parallel_adapter(params, x, part=lambda params, x: (x[..., :1], None))
    with pytest.raises(ValueError, match=r"adapter\.activation: got ndarray, wants None"):
        widened_feed_forward(params.part, params.adapter._replace(activation=np.ones(2)))
    with pytest.raises(ValueError, match=r"params\.activation: got ndarray, wants None"):
        widened_feed_forward(params.part._replace(activation=np.ones(2)), params.adapter)
    with pytest.raises(ValueError, match="scale: got nan"):
        widened_feed_forward(*params, scale=float("nan"))


@pytest.mark.parametrize("forgotten", ["the scale", "the adapter's way", "the part's way"])
def test_the_checker_refuses_a_backward_that_forgets(forgotten):
    def wrong(params, x):
        out, backward = parallel_adapter(params, x, part=feed_forward)
        through = feed_forward(params.part, x)[1]

        def forgetful(dout):
            dparams, dx = backward(dout)
            part_alone = through(dout)[1]
            if forgotten == "the scale":
                return dparams._replace(adapter=trees.map(lambda leaf: leaf / 4, dparams.adapter)), dx
            return dparams, part_alone if forgotten == "the adapter's way" else dx - part_alone

        return out, forgetful

    assert not check_gradients(wrong, *case(8)[:2]).passed


@pytest.mark.parity
def test_it_is_what_pytorch_computes():
    torch = pytest.importorskip("torch")
    from torch.nn.functional import linear as their_linear
    from torch.nn.functional import relu as their_relu

    params, x, dout = case(9)
    tensors = [torch.tensor(leaf, requires_grad=True) for _, leaf in trees.leaves((params, x))]
    w, b, v, c, down, k, up, m, t = tensors
    theirs = their_linear(their_relu(their_linear(t, w.T, b)), v.T, c) + 4 * their_linear(their_relu(their_linear(t, down.T, k)), up.T, m)
    theirs.backward(torch.tensor(dout))
    out, backward = parallel_adapter(params, x, part=partial(feed_forward, activation=slot(relu)), activation=slot(relu))
    np.testing.assert_allclose(out, theirs.detach(), rtol=0, atol=1e-9)
    for (path, own), tensor in zip(trees.leaves(backward(dout)), tensors, strict=True):
        np.testing.assert_allclose(own, tensor.grad, rtol=0, atol=1e-9, err_msg=path)
