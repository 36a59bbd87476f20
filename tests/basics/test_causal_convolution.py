"""Causal convolution: one output of one feature at a time, what a tap reaches, and pieces that equal the whole."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.causal_convolution import CausalConvolution, causal_convolution, init_causal_convolution
from minitransformers.foundation import check_gradients


def random_call(rng, width=4, d_model=3, n=5, bias=True):
    params = CausalConvolution(rng.normal(size=(d_model, width)), rng.normal(size=d_model) if bias else None)
    return params, rng.normal(size=(2, n, d_model)), rng.normal(size=(2, width - 1, d_model)) if width > 1 else None


def textbook(weight, bias, x, past):
    """One number at a time: how far back each tap reaches, and where that lies."""
    d_model, width = weight.shape
    batch, n, _ = x.shape
    rows = []
    for b in range(batch):
        for t in range(n):
            for d in range(d_model):
                total = 0.0 if bias is None else bias[d]
                for k in range(width):
                    at = t - (width - 1 - k)
                    if at >= 0:
                        total = total + weight[d, k] * x[b, at, d]
                    elif past is not None:
                        total = total + weight[d, k] * past[b, at + width - 1, d]
                rows.append(total)
    return anp.reshape(anp.stack(rows), x.shape)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("width, n", [(4, 5), (2, 5), (4, 1), (4, 2)])
def test_equals_one_number_at_a_time_and_its_gradients(width, n, given, bias):
    rng = np.random.default_rng(0)
    params, x, past = random_call(rng, width=width, n=n, bias=bias)
    past, dout = past if given else None, rng.normal(size=x.shape)
    out, backward = causal_convolution(params, x, past)
    np.testing.assert_allclose(out, textbook(*params, x, past), rtol=0, atol=1e-13)
    dparams, dx, dpast = backward(dout)
    own = {"weight": (params.weight, dparams.weight), "bias": (params.bias, dparams.bias), "x": (x, dx), "past": (past, dpast)}
    for name, (value, gradient) in own.items():
        if value is None:
            assert gradient is None, name
            continue
        others = {key: pair[0] for key, pair in own.items()}
        loss = lambda v: anp.sum(dout * textbook(**{**others, name: v}))  # noqa: E731
        np.testing.assert_allclose(gradient, autograd.grad(loss)(value), rtol=0, atol=1e-13, err_msg=name)


def test_no_output_sees_a_later_input():
    rng = np.random.default_rng(1)
    params, x, past = random_call(rng)
    changed = x.copy()
    changed[:, 3] += 1
    before, after = causal_convolution(params, x, past)[0], causal_convolution(params, changed, past)[0]
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (before[:, 3] != after[:, 3]).all()


def test_the_last_tap_multiplies_the_current_position_and_tap_0_the_oldest():
    x = np.arange(1.0, 6.0).reshape(1, 5, 1)
    last, first = (causal_convolution(CausalConvolution(np.array([taps]), None), x)[0].ravel() for taps in ([0.0, 0.0, 1.0], [1.0, 0.0, 0.0]))
    np.testing.assert_array_equal(last, x.ravel())
    np.testing.assert_array_equal(first, [0, 0, 1, 2, 3])


def test_a_width_of_one_scales_each_feature():
    rng = np.random.default_rng(2)
    params, x, _ = random_call(rng, width=1)
    np.testing.assert_allclose(causal_convolution(params, x)[0], x * params.weight[:, 0] + params.bias, atol=1e-15)


def test_features_do_not_meet():
    rng = np.random.default_rng(3)
    params, x, past = random_call(rng)
    dout = np.zeros_like(x)
    dout[..., 1] = rng.normal(size=x.shape[:-1])
    dparams, dx, dpast = causal_convolution(params, x, past)[1](dout)
    for gradient in (dx, dpast, dparams.weight.T, dparams.bias):
        assert not gradient[..., [0, 2]].any() and gradient[..., 1].any()


@pytest.mark.parametrize("cuts", [(1, 2, 3, 4), (2,), (4,)])
def test_pieces_that_hand_on_their_last_inputs_equal_the_whole_exactly(cuts):
    rng = np.random.default_rng(4)
    params, x, past = random_call(rng)
    pieces = []
    for piece in np.split(x, cuts, axis=1):
        pieces.append(causal_convolution(params, piece, past)[0])
        past = np.concatenate([past, piece], axis=1)[:, -3:]
    whole, _ = causal_convolution(params, x, random_call(np.random.default_rng(4))[2])
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)


def test_the_taps_start_uniform_with_the_variance_of_one_input():
    params = init_causal_convolution(np.random.default_rng(5), 4000, width=4)
    assert params.weight.shape == (4000, 4) and params.weight.dtype == np.float32 and not params.bias.any()
    assert abs(params.weight).max() <= 0.5
    np.testing.assert_allclose(params.weight.std(), 0.5 / 3**0.5, rtol=0.02)
    assert init_causal_convolution(np.random.default_rng(5), 3, bias=False).bias is None
    with pytest.raises(ValueError, match="width"):
        init_causal_convolution(np.random.default_rng(5), 3, width=0)


def read_forwards(params, x, past):
    out, backward = causal_convolution(params, x, past)
    def wrong(dout):
        dparams, _, dpast = backward(dout)
        return dparams, causal_convolution(CausalConvolution(params.weight, None), dout)[0], dpast  # the taps not turned round
    return out, wrong


def test_the_check_refuses_taps_that_are_not_turned_round():
    assert not check_gradients(read_forwards, *random_call(np.random.default_rng(6))).passed


@pytest.mark.parity
def test_parity_with_torch():
    # A framework's convolution has features before positions, a weight (d_model, 1, width), and pads at both ends.
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(7)
    params, x, _ = random_call(rng)
    dout = rng.normal(size=x.shape)
    weight, bias, their_x = (torch.tensor(a, requires_grad=True) for a in (params.weight[:, None], params.bias, x))
    theirs = torch.nn.functional.conv1d(their_x.transpose(1, 2), weight, bias, padding=3, groups=3)[..., :5].transpose(1, 2)
    theirs.backward(torch.tensor(dout))
    out, backward = causal_convolution(params, x)
    dparams, dx, _ = backward(dout)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-13)
    np.testing.assert_allclose(dparams.weight, weight.grad.numpy()[:, 0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(dparams.bias, bias.grad.numpy(), rtol=0, atol=1e-13)
    np.testing.assert_allclose(dx, their_x.grad.numpy(), rtol=0, atol=1e-13)
