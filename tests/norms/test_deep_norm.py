"""DeepNorm: the formula, its constants, post-norm as a special case, and steps that do not grow with depth."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.feed_forward import FeedForward, feed_forward, init_feed_forward
from minitransformers.basics.linear import Linear
from minitransformers.basics.relu import relu
from minitransformers.foundation import check_gradients, slot
from minitransformers.norms.deep_norm import deep_norm, deep_norm_constants, deep_norm_constants_of_two
from minitransformers.norms.layer_norm import LayerNorm, init_layer_norm, layer_norm


def textbook_deep_norm(gain, bias, x, added, alpha, eps):
    """One position at a time."""
    rows = []
    for stream, new in zip(anp.reshape(x, (-1, x.shape[-1])), anp.reshape(added, (-1, x.shape[-1])), strict=True):
        row = alpha * stream + new
        mean = anp.sum(row) / len(gain)
        variance = anp.sum((row - mean) ** 2) / len(gain)
        rows.append(gain * (row - mean) / anp.sqrt(variance + eps) + bias)
    return anp.reshape(anp.stack(rows), x.shape)


def random_call(rng, shape=(2, 3, 5)):
    params = LayerNorm(rng.normal(size=shape[-1:]), rng.normal(size=shape[-1:]))
    return params, rng.normal(size=shape), rng.normal(size=shape), rng.normal(size=shape)


@pytest.mark.parametrize("alpha, eps", [(1.0, 1e-5), (2.5, 1e-5), (2.5, 0.1)])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 5), (1, 1, 2)])
def test_equals_the_textbook_formula_and_its_gradients(shape, alpha, eps):
    params, x, added, dout = random_call(np.random.default_rng(0), shape)
    out, backward = deep_norm(params, x, added, alpha=alpha, eps=eps)
    np.testing.assert_allclose(out, textbook_deep_norm(*params, x, added, alpha, eps), rtol=0, atol=1e-12)
    loss = lambda *args: anp.sum(dout * textbook_deep_norm(*args, alpha, eps))  # noqa: E731
    expected = autograd.grad(loss, (0, 1, 2, 3))(*params, x, added)
    dparams, dx, dadded = backward(dout)
    for own, theirs in zip((*dparams, dx, dadded), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)


def test_alpha_one_is_post_norm():
    params, x, added, dout = random_call(np.random.default_rng(1))
    out, backward = deep_norm(params, x, added, alpha=1.0)
    expected, expected_backward = layer_norm(params, x + added)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(backward(dout)[1], expected_backward(dout)[1])


def test_scaling_the_stream_up_is_scaling_the_layer_down():
    params, x, added, dout = random_call(np.random.default_rng(2))
    out, backward = deep_norm(params, x, added, alpha=4.0, eps=0.0)
    expected, expected_backward = deep_norm(params, x, added / 4, alpha=1.0, eps=0.0)
    np.testing.assert_allclose(out, expected, atol=1e-13)
    np.testing.assert_allclose(backward(dout)[1], expected_backward(dout)[1], atol=1e-13)
    np.testing.assert_allclose(backward(dout)[2], expected_backward(dout)[2] / 4, atol=1e-13)


def test_the_stream_gets_alpha_times_the_gradient_of_the_layer():
    params, x, added, dout = random_call(np.random.default_rng(3))
    _, dx, dadded = deep_norm(params, x, added, alpha=3.0)[1](dout)
    np.testing.assert_allclose(dx, 3 * dadded, rtol=1e-15)


def test_a_numpy_number_for_alpha_does_not_widen_float32():
    params, x, added, _ = (np.float32(1) * np.asarray(a, np.float32) for a in (np.ones(5), *random_call(np.random.default_rng(4))[1:]))
    out, backward = deep_norm(LayerNorm(params, params), x, added, alpha=np.float64(2.0))
    assert out.dtype == np.float32
    assert {a.dtype for a in backward(out)[1:]} == {np.dtype(np.float32)}


def test_the_constants_of_one_stack():
    alpha, beta = deep_norm_constants(8)
    np.testing.assert_allclose([alpha, beta], [2, 8**-0.5], rtol=1e-15)
    assert deep_norm_constants(200).alpha > alpha and deep_norm_constants(200).beta < beta
    for num_layers in (1, 6, 200):                           # beta / alpha, a layer's share of the stream, is (16 N^2)^(-1/4)
        alpha, beta = deep_norm_constants(num_layers)
        np.testing.assert_allclose(beta / alpha, 0.5 / num_layers**0.5, rtol=1e-14)


def test_the_constants_of_an_encoder_and_its_decoder():
    encoder, decoder = deep_norm_constants_of_two(16, 27)
    np.testing.assert_allclose(encoder, [0.81 * 2 * 27 ** (1 / 16), 0.87 / 2 * 27 ** (-1 / 16)], rtol=1e-14)
    np.testing.assert_allclose(decoder, [3, (12 * 27) ** -0.25], rtol=1e-14)


def test_the_constants_of_a_small_numpy_integer_do_not_overflow():
    assert deep_norm_constants(np.int8(50)) == deep_norm_constants(50)
    assert deep_norm_constants_of_two(np.int8(50), np.int8(50)) == deep_norm_constants_of_two(50, 50)


@pytest.mark.parametrize("wrong", [0, -3, 2.5, float("nan"), float("inf")])
def test_constants_of_no_layers_are_refused(wrong):
    with pytest.raises(ValueError, match="num_layers: got"):
        deep_norm_constants(wrong)
    with pytest.raises(ValueError, match="encoder_layers: got"):
        deep_norm_constants_of_two(wrong, 2)
    with pytest.raises(ValueError, match="decoder_layers: got"):
        deep_norm_constants_of_two(2, wrong)


def change_after_one_step(num_layers, alpha, beta, *, rate=0.005, width=16):
    """How far one step of gradient descent on all layers moves the output of a stack of feed-forward layers."""
    rng = np.random.default_rng(5)
    std = beta * (2 / (width + 4 * width)) ** 0.5
    layers = [init_feed_forward(rng, width, std=std, residual_std=std, dtype=np.float64) for _ in range(num_layers)]
    norm, start, target = init_layer_norm(rng, width, dtype=np.float64), *rng.normal(size=(2, 32, width))

    def run(layers):
        x, backwards = start, []
        for layer in layers:
            added, layer_backward = feed_forward(layer, x, activation=slot(relu))
            x, norm_backward = deep_norm(norm, x, added, alpha=alpha)
            backwards.append((layer_backward, norm_backward))
        return x, backwards

    out, backwards = run(layers)
    dx, stepped = (out - target) / len(start), []
    for layer, (layer_backward, norm_backward) in zip(layers[::-1], backwards[::-1], strict=True):
        _, dx, dadded = norm_backward(dx)
        dlayer, dx_of_layer = layer_backward(dadded)
        dx = dx + dx_of_layer
        stepped.append(
            FeedForward(*(Linear(p.weight - rate * d.weight, p.bias - rate * d.bias) for p, d in zip(layer[:2], dlayer[:2], strict=True)))
        )
    return np.linalg.norm(run(stepped[::-1])[0] - out) / len(start) ** 0.5


def test_one_step_of_a_deep_stack_moves_the_output_little_more_than_of_a_shallow_one_unlike_post_norm():
    post = [change_after_one_step(depth, 1.0, 1.0) for depth in (2, 32)]
    deep = [change_after_one_step(depth, *deep_norm_constants(depth)) for depth in (2, 32)]
    assert post[1] > 10 * post[0]
    assert deep[1] < 3 * deep[0]


def with_alpha_forgotten(params, x, added):
    out, backward = deep_norm(params, x, added, alpha=2.0)
    return out, lambda dout: (backward(dout)[0], backward(dout)[2], backward(dout)[2])


def with_alpha_on_the_wrong_branch(params, x, added):
    out, backward = deep_norm(params, x, added, alpha=2.0)
    return out, lambda dout: (backward(dout)[0], backward(dout)[1], backward(dout)[1])


@pytest.mark.parametrize(("wrong", "where"), [(with_alpha_forgotten, "x"), (with_alpha_on_the_wrong_branch, "added")])
def test_the_checker_refuses(wrong, where):
    report = check_gradients(wrong, *random_call(np.random.default_rng(6))[:3])
    assert not report.passed and report.worst.path == where and report.error > 1e-2


def test_zeros_become_the_bias_and_gradients_are_finite():
    params, x, _, dout = random_call(np.random.default_rng(7))
    out, backward = deep_norm(params, np.zeros_like(x), np.zeros_like(x), alpha=2.0)
    np.testing.assert_array_equal(out, np.broadcast_to(params.bias, x.shape))
    assert all(np.isfinite(a).all() for a in backward(dout)[1:])


@pytest.mark.parity
def test_parity_with_torch():
    torch = pytest.importorskip("torch")
    params, x, added, dout = random_call(np.random.default_rng(8))
    tensors = [torch.tensor(a, requires_grad=True) for a in (*params, x, added)]
    gain, bias, their_x, their_added = tensors
    theirs = torch.nn.functional.layer_norm(1.7 * their_x + their_added, (5,), gain, bias, 1e-5)
    theirs.backward(torch.tensor(dout))
    out, backward = deep_norm(params, x, added, alpha=1.7)
    dparams, dx, dadded = backward(dout)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-12)
    for own, tensor in zip((*dparams, dx, dadded), tensors, strict=True):
        np.testing.assert_allclose(own, tensor.grad.numpy(), rtol=0, atol=1e-12)
