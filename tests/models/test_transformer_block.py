"""The Transformer block: its four lines for each placement, a residual stream that nothing cuts, dropout beside it."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import catalogue, check_gradients, trees
from minitransformers.attention.multi_head_attention import MultiHeadAttention, multi_head_attention
from minitransformers.basics.dropout import dropout
from minitransformers.basics.feed_forward import FeedForward, feed_forward
from minitransformers.basics.linear import Linear
from minitransformers.models.transformer_block import TransformerBlock, transformer_block
from minitransformers.norms.deep_norm import deep_norm
from minitransformers.norms.layer_norm import LayerNorm, layer_norm


def mix(weights, x, bias=0.0):
    """A mixer in one line: sums over positions."""
    return anp.matmul(weights + bias, anp.tanh(x))


def work(weights, x):
    return anp.tanh(anp.matmul(x, weights))


def scale(gain, x):
    """A norm in one line."""
    return gain * x / anp.sqrt(1 + anp.sum(x * x, axis=-1, keepdims=True))


def part(formula):
    """The formula under the contract, its backward made by autograd."""

    def as_concept(*args):
        vjp, out = autograd.make_vjp(formula, tuple(range(len(args))))(*args)
        return out, vjp

    return as_concept


PARTS = {"mixer": part(mix), "channel": part(work), "norm": part(scale)}


def textbook(params, x, bias, placement, alpha=1.0):
    """The four lines of the papers."""
    first, mixer, second, channel = params
    if placement == "pre":
        middle = x + mix(mixer, scale(first, x), bias)
        return middle + work(channel, scale(second, middle))
    middle = scale(first, alpha * x + mix(mixer, x, bias))
    return scale(second, alpha * middle + work(channel, middle))


def case(seed=0):
    rng = np.random.default_rng(seed)
    params = TransformerBlock(*(rng.normal(size=s) for s in ((5,), (3, 3), (5,), (5, 5))))
    return params, rng.normal(size=(2, 3, 5)), rng.normal(size=(1, 3, 3)), rng.normal(size=(2, 3, 5))


@pytest.mark.parametrize(("placement", "alpha"), [("pre", 1.0), ("post", 1.0), ("post", 1.7), ("post", 0.3)])
@pytest.mark.parametrize("biased", [True, False])
def test_equals_the_four_lines_and_their_gradients(placement, alpha, biased):
    params, x, bias, dout = case()
    args = (params, x, bias) if biased else (params, x)
    out, backward = transformer_block(*args, **PARTS, placement=placement, alpha=alpha)
    loss = lambda params, x, bias: anp.sum(dout * textbook(params, x, bias, placement, alpha))  # noqa: E731
    np.testing.assert_allclose(out, textbook(params, x, bias if biased else 0.0, placement, alpha), rtol=0, atol=1e-13)
    dparams, dx, dbias = autograd.grad(loss, (0, 1, 2))(tuple(params), x, bias if biased else np.zeros((1, 3, 3)))
    own_params, own_dx, own_dbias = backward(dout)
    for name, own, theirs in zip(params._fields, own_params, dparams, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(own_dx, dx, rtol=0, atol=1e-12)
    if biased:
        np.testing.assert_allclose(own_dbias, dbias, rtol=0, atol=1e-12)
    else:
        assert own_dbias is None


def test_with_silent_parts_pre_norm_is_the_identity_and_post_norm_is_two_norms():
    params, x, _, dout = case(1)
    silent = params._replace(mixer=np.zeros((3, 3)), channel=np.zeros((5, 5)))
    out, backward = transformer_block(silent, x, **PARTS, placement="pre")
    np.testing.assert_array_equal(out, x)
    np.testing.assert_array_equal(backward(dout)[1], dout)  # the residual stream carries gradients untouched
    out, _ = transformer_block(silent, x, **PARTS, placement="post")
    np.testing.assert_array_equal(out, scale(params.channel_norm, scale(params.mixer_norm, x)))


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_dropout_acts_on_what_the_parts_add_and_never_on_the_stream(placement):
    params, x, _, dout = case(2)
    nothing = lambda h: (0 * h, lambda dout: 0 * dout)  # noqa: E731
    silent = params._replace(mixer=np.zeros((3, 3)), channel=np.zeros((5, 5)))
    out, backward = transformer_block(params, x, **PARTS, placement=placement, drop=nothing)
    expected, silent_backward = transformer_block(silent, x, **PARTS, placement=placement)
    np.testing.assert_array_equal(out, expected)
    dparams, dx, _ = backward(dout)
    assert not dparams.mixer.any() and not dparams.channel.any()
    np.testing.assert_allclose(dx, silent_backward(dout)[1] if placement == "post" else dout, rtol=0, atol=1e-15)


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_gradients_pass_through_dropout(placement):
    params, x, bias, _ = case(3)
    drop = lambda h: dropout(h, rate=0.4, rng=np.random.default_rng(1))  # noqa: E731
    assert check_gradients(transformer_block, params, x, bias, **PARTS, placement=placement, drop=drop).passed


def test_the_checker_refuses_a_backward_that_forgets_the_residual_path():
    params, x, _, _ = case(4)

    def forgot(params, x):
        out, backward = transformer_block(params, x, **PARTS, placement="pre")

        def through_the_parts_alone(dout):
            dparams, dx, _ = backward(dout)
            return dparams, dx - dout                        # x itself reaches the output: that term is left out

        return out, through_the_parts_alone

    report = check_gradients(forgot, params, x)
    assert not report.passed
    assert report.worst.path == "x"
    assert all(a.error <= report.bound for a in report.arguments if a.path != "x")


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_each_placement_of_the_label_s_own_parts_is_right(placement):
    example = catalogue.find("transformer_block").example(np.random.default_rng(5))
    assert check_gradients(transformer_block, *example.args, **example.config, placement=placement).passed


def test_a_stream_weighed_up_under_layer_norm_is_deep_norm():
    example = catalogue.find("transformer_block").example(np.random.default_rng(7))
    params, x, bias = example.args
    mixed, _ = multi_head_attention(params.mixer, x, bias, num_heads=2)
    middle, _ = deep_norm(params.mixer_norm, x, mixed, alpha=1.7)
    expected, _ = deep_norm(params.channel_norm, middle, feed_forward(params.channel, middle)[0], alpha=1.7)
    out, _ = transformer_block(*example.args, **example.config, placement="post", alpha=1.7)
    np.testing.assert_array_equal(out, expected)
    report = check_gradients(transformer_block, *example.args, **example.config, placement="post", alpha=1.7)
    assert report.passed, str(report)


def test_the_checker_refuses_a_stream_whose_weight_is_forgotten_on_the_way_back():
    params, x, _, _ = case(8)

    def forgot(params, x):
        out, _ = transformer_block(params, x, **PARTS, placement="post", alpha=2.0)
        _, backward = transformer_block(params, x, **PARTS, placement="post")
        return out, lambda dout: backward(dout)[:2]

    report = check_gradients(forgot, params, x)
    assert not report.passed and report.error > 1e-2


@pytest.mark.parity
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_equals_the_encoder_layer_of_torch(placement):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(6)
    layer = torch.nn.TransformerEncoderLayer(
        6, 2, 5, dropout=0.0, batch_first=True, norm_first=placement == "pre", dtype=torch.float64, activation="relu"
    )
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.from_numpy(rng.normal(size=tuple(p.shape))))

    def tree(of):
        attention = layer.self_attn
        packed = zip(np.split(of(attention.in_proj_weight), 3), np.split(of(attention.in_proj_bias), 3), strict=True)
        output = Linear(of(attention.out_proj.weight).T, of(attention.out_proj.bias))
        maps = (Linear(of(m.weight).T, of(m.bias)) for m in (layer.linear1, layer.linear2))
        first, second = (LayerNorm(of(n.weight), of(n.bias)) for n in (layer.norm1, layer.norm2))
        return TransformerBlock(first, MultiHeadAttention(*(Linear(w.T, b) for w, b in packed), output), second, FeedForward(*maps))

    x, dout = rng.normal(size=(2, 4, 6)), rng.normal(size=(2, 4, 6))
    parts = {"mixer": partial(multi_head_attention, num_heads=2, causal=False), "channel": partial(feed_forward, activation="relu")}
    out, backward = transformer_block(tree(lambda p: p.detach().numpy()), x, **parts, norm=layer_norm, placement=placement)
    their_x = torch.from_numpy(x).requires_grad_()
    theirs = layer(their_x)
    theirs.backward(torch.from_numpy(dout))
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-9)
    dparams, dx, _ = backward(dout)
    np.testing.assert_allclose(dx, their_x.grad.numpy(), rtol=0, atol=1e-9)
    for (path, own), (_, other) in zip(trees.leaves(dparams), trees.leaves(tree(lambda p: p.grad.numpy())), strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-9, err_msg=path)
