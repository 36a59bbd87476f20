"""The Transformer block: its lines for each placement, a residual stream that nothing cuts, dropout and masks beside it."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import catalogue, check_gradients, trees
from minitransformers.attention.core import softmax_attention
from minitransformers.attention.masks import padding_mask
from minitransformers.attention.multi_head_attention import MultiHeadAttention, multi_head_attention, multi_head_attention_step
from minitransformers.attention.soft_cap import soft_capped_attention
from minitransformers.basics.dropout import dropout
from minitransformers.basics.feed_forward import FeedForward, feed_forward
from minitransformers.basics.linear import Linear
from minitransformers.basics.relu import relu
from minitransformers.foundation import slot
from minitransformers.models.workbench.transformer_block import (
    TransformerBlock,
    post_norm,
    pre_norm,
    transformer_block,
    transformer_block_step,
)
from minitransformers.norms.deep_norm import deep_norm
from minitransformers.norms.layer_norm import LayerNorm, layer_norm

PLACEMENTS = {"pre": pre_norm, "post": post_norm}


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


def mixer(weights, x, bias=None, *, mask=None):
    """The one line in the form of a mixer; this one has no place for a mask."""
    assert mask is None
    if bias is not None:
        return part(mix)(weights, x, bias)
    out, backward = part(mix)(weights, x)
    return out, lambda dout: (*backward(dout), None)


PARTS = {"mixer": mixer, "channel": part(work), "norm": part(scale)}


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
def test_equals_the_lines_of_the_papers_and_their_gradients(placement, alpha, biased):
    params, x, bias, dout = case()
    args = (params, x, bias) if biased else (params, x)
    placed = PLACEMENTS[placement] if alpha == 1 else partial(post_norm, alpha=alpha)
    out, backward = transformer_block(*args, **PARTS, placement=placed)
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
    out, backward = transformer_block(silent, x, **PARTS)
    np.testing.assert_array_equal(out, x)
    np.testing.assert_array_equal(backward(dout)[1], dout)  # the residual stream carries gradients untouched
    out, _ = transformer_block(silent, x, **PARTS, placement=post_norm)
    np.testing.assert_array_equal(out, scale(params.channel_norm, scale(params.mixer_norm, x)))


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_dropout_acts_on_what_the_parts_add_and_never_on_the_stream(placement):
    params, x, _, dout = case(2)
    nothing = lambda h: (0 * h, lambda dout: 0 * dout)  # noqa: E731
    silent = params._replace(mixer=np.zeros((3, 3)), channel=np.zeros((5, 5)))
    out, backward = transformer_block(params, x, **PARTS, placement=PLACEMENTS[placement], drop=nothing)
    expected, silent_backward = transformer_block(silent, x, **PARTS, placement=PLACEMENTS[placement])
    np.testing.assert_array_equal(out, expected)
    dparams, dx, _ = backward(dout)
    assert not dparams.mixer.any() and not dparams.channel.any()
    np.testing.assert_allclose(dx, silent_backward(dout)[1] if placement == "post" else dout, rtol=0, atol=1e-15)


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_gradients_pass_through_dropout(placement):
    params, x, bias, _ = case(3)
    drop = lambda h: dropout(h, rate=0.4, rng=np.random.default_rng(1))  # noqa: E731
    assert check_gradients(transformer_block, params, x, bias, **PARTS, placement=PLACEMENTS[placement], drop=drop).passed


def test_the_checker_refuses_a_backward_that_forgets_the_residual_path():
    params, x, _, _ = case(4)

    def forgot(params, x):
        out, backward = transformer_block(params, x, **PARTS)

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
    assert check_gradients(transformer_block, *example.args, **example.config, placement=PLACEMENTS[placement]).passed


def test_a_stream_scaled_by_alpha_under_layer_norm_is_deep_norm():
    example = catalogue.find("transformer_block").example(np.random.default_rng(7))
    params, x, bias = example.args
    mixed, _ = multi_head_attention(params.mixer, x, bias, num_heads=2, mask=example.config["mask"])
    middle, _ = deep_norm(params.mixer_norm, x, mixed, alpha=1.7)
    expected, _ = deep_norm(params.channel_norm, middle, feed_forward(params.channel, middle)[0], alpha=1.7)
    out, _ = transformer_block(*example.args, **example.config, placement=partial(post_norm, alpha=1.7))
    np.testing.assert_array_equal(out, expected)
    report = check_gradients(transformer_block, *example.args, **example.config, placement=partial(post_norm, alpha=1.7))
    assert report.passed, str(report)


def test_the_checker_refuses_a_stream_whose_alpha_is_forgotten_on_the_way_back():
    params, x, _, _ = case(8)

    def forgot(params, x):
        out, _ = transformer_block(params, x, **PARTS, placement=partial(post_norm, alpha=2.0))
        _, backward = transformer_block(params, x, **PARTS, placement=post_norm)
        return out, lambda dout: backward(dout)[:2]

    report = check_gradients(forgot, params, x)
    assert not report.passed and report.error > 1e-2


def real_block(seed=9, dtype=np.float64):
    """The label's own block, and five positions of two texts."""
    params = catalogue.find("transformer_block").example(np.random.default_rng(seed)).args[0]
    x = np.random.default_rng(seed + 1).normal(size=(2, 5, 6)).astype(dtype)
    return trees.cast(params, dtype), x, {"mixer": partial(multi_head_attention, num_heads=2), "channel": feed_forward, "norm": layer_norm}


BOTH_WAYS = partial(multi_head_attention, num_heads=2, core=softmax_attention)


@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_keys_change_nothing(placement, side):
    params, x, parts = real_block()
    parts |= {"mixer": BOTH_WAYS, "placement": PLACEMENTS[placement]}
    real = slice(0, 3) if side == "right" else slice(2, 5)
    mask = padding_mask(np.array([3, 3]), 5)
    mask = mask if side == "right" else mask[..., ::-1]
    alone, alone_backward = transformer_block(params, x[:, real], **parts)
    out, backward = transformer_block(params, x, **parts, mask=mask)
    np.testing.assert_allclose(out[:, real], alone, rtol=0, atol=1e-13)
    dout = np.random.default_rng(0).normal(size=alone.shape)
    padded = np.zeros_like(x)
    padded[:, real] = dout                                   # what is padding is asked about nothing
    (dparams, dx, _), (expected, dx_alone, _) = backward(padded), alone_backward(dout)
    trees.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-12), dparams, expected)
    np.testing.assert_allclose(dx[:, real], dx_alone, rtol=0, atol=1e-13)
    assert not np.delete(dx, np.arange(5)[real], axis=1).any()
    without, _ = transformer_block(params, x, **parts)
    assert np.abs(without[:, real] - alone).max() > 1e-3     # the padding would have been read


def test_gradients_under_a_mask_are_right():
    params, x, parts = real_block()
    mask = np.random.default_rng(1).random((2, 2, 5, 5)) < 0.6
    report = check_gradients(transformer_block, params, x, **parts, mask=mask)
    assert report.passed, str(report)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (3, 1, 1, 5), (2, 1, 1, 4)])
def test_a_mask_that_does_not_fit_is_refused_by_name(shape):
    params, x, parts = real_block()
    with pytest.raises(ValueError, match="mask"):
        transformer_block(params, x, **parts, mask=np.ones(shape, bool))


@pytest.mark.parametrize("placement", [pre_norm, post_norm, partial(post_norm, alpha=1.7)])
def test_step_by_step_is_the_whole_pass(placement):
    params, x, parts = real_block()
    whole, _ = transformer_block(params, x, **parts, placement=placement)
    step, state, outs = partial(multi_head_attention_step, num_heads=2), None, []
    for size in (2, 1, 2):
        start = sum(out.shape[1] for out in outs)
        out, state = transformer_block_step(
            params, x[:, start : start + size], state, mixer_step=step, channel=feed_forward, norm=layer_norm, placement=placement
        )
        outs.append(out)
    np.testing.assert_allclose(np.concatenate(outs, axis=1), whole, rtol=0, atol=1e-13)


WIDENING = {
    "norm": {"norm": partial(layer_norm, eps=np.float64(1e-6))},
    "placement": {"placement": partial(post_norm, alpha=np.float64(1.7))},
    "core": {"mixer": partial(multi_head_attention, num_heads=np.int64(2), core=partial(soft_capped_attention, cap=np.float64(2.0)))},
}


@pytest.mark.parametrize("which", WIDENING)
def test_numbers_of_numpy_held_in_a_part_widen_nothing(which):
    params, x, parts = real_block(dtype=np.float32)
    out, backward = transformer_block(params, x, **{**parts, **WIDENING[which]})
    assert {leaf.dtype for _, leaf in trees.leaves((out, backward(out)))} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": partial(layer_norm, eps=-1.0)}, r"norm\.eps: got -1\.0"),
        ({"placement": partial(post_norm, alpha=0.0)}, r"placement\.alpha: got 0\.0"),
        ({"placement": "pre"}, "placement: got 'pre', wants a function"),
        ({"mixer": partial(multi_head_attention, num_heads=0)}, r"mixer\.num_heads: got 0"),
    ],
)
def test_settings_held_in_a_part_are_checked(changes, message):
    params, x, parts = real_block()
    with pytest.raises(ValueError, match=message):
        transformer_block(params, x, **{**parts, **changes})


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
    parts = {"mixer": partial(multi_head_attention, num_heads=2, core=softmax_attention), "channel": partial(feed_forward, activation=slot(relu))}
    out, backward = transformer_block(tree(lambda p: p.detach().numpy()), x, **parts, norm=layer_norm, placement=PLACEMENTS[placement])
    their_x = torch.from_numpy(x).requires_grad_()
    theirs = layer(their_x)
    theirs.backward(torch.from_numpy(dout))
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-9)
    dparams, dx, _ = backward(dout)
    np.testing.assert_allclose(dx, their_x.grad.numpy(), rtol=0, atol=1e-9)
    for (path, own), (_, other) in zip(trees.leaves(dparams), trees.leaves(tree(lambda p: p.grad.numpy())), strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-9, err_msg=path)
