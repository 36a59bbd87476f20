"""Four ways to make one row of some: by loops, against each other, and against PyTorch's layers."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.linear import Linear
from minitransformers.foundation import check_gradients, slot
from minitransformers.long_context.convolution_compression import (
    convolution_compression,
    init_convolution_compression,
    max_compression,
    mean_compression,
    most_used_compression,
)

RATE, WIDTH = 3, 4
RNG = np.random.default_rng(0)
X, DOUT, USAGE = RNG.normal(size=(2, 6, WIDTH)), RNG.normal(size=(2, 2, WIDTH)), RNG.random((2, 6))
CONVOLUTION = Linear(RNG.normal(size=(RATE * WIDTH, WIDTH)), RNG.normal(size=WIDTH))


def one_by_one(x, window_to_row):
    return anp.stack([anp.stack([window_to_row([text[j * RATE + k] for k in range(RATE)]) for j in range(2)]) for text in x])


def convolved(weight, bias, x):
    def row(window):
        out = bias
        for k, own in enumerate(window):
            for f in range(WIDTH):
                out = out + own[f] * weight[k * WIDTH + f]
        return out

    return one_by_one(x, row)


def test_the_convolution_is_that_of_the_loops_and_its_gradients_are_autograd_s():
    out, backward = convolution_compression(CONVOLUTION, X, rate=RATE)
    np.testing.assert_allclose(out, convolved(*CONVOLUTION, X), rtol=0, atol=1e-12)
    expected = autograd.grad(lambda *args: anp.sum(DOUT * convolved(*args)), (0, 1, 2))(*CONVOLUTION, X)
    dparams, dx = backward(DOUT)
    for own, theirs in zip((*dparams, dx), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("function", "row"),
    [
        (mean_compression, lambda window: sum(window) / len(window)),
        (max_compression, lambda window: anp.array([max(own[f] for own in window) for f in range(WIDTH)])),
    ],
)
def test_mean_and_maximum_are_those_of_the_loops_and_their_gradients_are_autograd_s(function, row):
    out, backward = function(X, rate=RATE)
    np.testing.assert_allclose(out, one_by_one(X, row), rtol=0, atol=1e-14)
    expected = autograd.grad(lambda x: anp.sum(DOUT * one_by_one(x, row)))(X)
    np.testing.assert_allclose(backward(DOUT), expected, rtol=0, atol=1e-14)


def test_the_most_used_rows_are_kept_as_they_are_in_the_order_of_time():
    usage = np.array([[0.1, 0.5, 0.0, 0.2, 0.9, 0.3], [0.9, 0.8, 0.7, 0.1, 0.2, 0.3]])
    out, backward = most_used_compression(X, rate=RATE, usage=lambda: usage)
    np.testing.assert_array_equal(out, [X[0, [1, 4]], X[1, [0, 1]]])
    dx = np.zeros_like(X)
    dx[0, [1, 4]], dx[1, [0, 1]] = DOUT
    np.testing.assert_array_equal(backward(DOUT), dx)


def test_of_rows_used_equally_the_earlier_are_kept():
    x = np.arange(60.0)[:, None]                             # long enough for a sort that is not stable to mix them up
    out, _ = most_used_compression(x, rate=RATE, usage=lambda: np.arange(60) % 2)
    np.testing.assert_array_equal(out, x[1:40:2])


def test_of_equal_maxima_the_first_gets_the_gradient():
    _, backward = max_compression(np.ones((RATE, 2)), rate=RATE)
    np.testing.assert_array_equal(backward(np.array([[5.0, 7.0]])), [[5, 7], [0, 0], [0, 0]])


def test_a_convolution_of_unit_matrices_divided_by_the_rate_is_the_mean():
    params = init_convolution_compression(np.random.default_rng(1), WIDTH, rate=RATE, std=0.0, dtype=np.float64)
    (out, backward), (mean, mean_backward) = convolution_compression(params, X, rate=RATE), mean_compression(X, rate=RATE)
    np.testing.assert_allclose(out, mean, rtol=0, atol=1e-15)
    np.testing.assert_allclose(backward(DOUT)[1], mean_backward(DOUT), rtol=0, atol=1e-15)


def test_a_convolution_starts_near_the_mean():
    params = init_convolution_compression(np.random.default_rng(2), 30, rate=4)
    apart = params.weight - np.tile(np.eye(30) / 4, (4, 1))
    np.testing.assert_allclose(apart.std(), 0.02, rtol=0.05)
    assert params.weight.dtype == params.bias.dtype == np.float32 and not params.bias.any()


def test_at_a_rate_of_one_nothing_is_lost():
    identity = Linear(np.eye(WIDTH), None)
    for out, _ in (
        convolution_compression(identity, X, rate=1), mean_compression(X, rate=1), max_compression(X, rate=1),
        most_used_compression(X, rate=1, usage=lambda: USAGE),
    ):  # fmt: skip
        np.testing.assert_array_equal(out, X)


def test_one_can_stand_in_the_place_of_another():
    calls = [
        (convolution_compression, CONVOLUTION), (slot(mean_compression), None), (slot(max_compression), None), (slot(most_used_compression), None)
    ]  # fmt: skip
    for compress, params in calls:
        out, backward = compress(params, X, rate=RATE, usage=lambda: USAGE)
        assert out.shape == DOUT.shape and backward(DOUT)[1].shape == X.shape
        assert (backward(DOUT)[0] is None) is (params is None)


def test_only_the_most_used_asks_what_was_used():
    def refuse():
        raise AssertionError("asked")

    for compress, params in ((convolution_compression, CONVOLUTION), (slot(mean_compression), None), (slot(max_compression), None)):
        compress(params, X, rate=RATE, usage=refuse)
    with pytest.raises(AssertionError, match="asked"):
        most_used_compression(X, rate=RATE, usage=refuse)


def divided_by_the_rows(x):
    """The mean's gradient divided by all rows, not by those of a window."""
    out, _ = mean_compression(x, rate=RATE)
    return out, lambda dout: np.repeat(dout / x.shape[-2], RATE, axis=-2)


def windows_interleaved(params, x):
    """The gradient cut into rows as if a window took every second row."""
    out, backward = convolution_compression(params, x, rate=RATE)
    return out, lambda dout: (backward(dout)[0], backward(dout)[1].reshape(2, 2, RATE, WIDTH).swapaxes(1, 2).reshape(x.shape))


def test_the_checker_refuses_a_mean_over_the_wrong_rows_and_windows_that_are_interleaved():
    assert not check_gradients(divided_by_the_rows, X).passed
    report = check_gradients(windows_interleaved, CONVOLUTION, X)
    assert not report.passed and report.worst.path == "x"


def test_rows_that_the_rate_does_not_divide_are_refused():
    for call in (
        lambda: convolution_compression(CONVOLUTION, X[:, :5], rate=RATE), lambda: mean_compression(X[:, :5], rate=RATE),
        lambda: max_compression(X[:, :5], rate=RATE), lambda: most_used_compression(X[:, :5], rate=RATE, usage=lambda: USAGE[:, :5]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="x: got 5 rows, wants a number of rows that rate = 3 divides"):
            call()


@pytest.mark.parity
def test_parity_with_the_layers_of_torch():
    torch = pytest.importorskip("torch")
    x = torch.tensor(X, requires_grad=True)
    weight, bias = (torch.tensor(part, requires_grad=True) for part in CONVOLUTION)
    # Conv1d keeps its weight as (out, in, kernel), with the channels before the places.
    kernel = weight.view(RATE, WIDTH, WIDTH).permute(2, 1, 0)
    theirs = torch.nn.functional.conv1d(x.transpose(1, 2), kernel, bias, stride=RATE).transpose(1, 2)
    theirs.backward(torch.tensor(DOUT))
    out, backward = convolution_compression(CONVOLUTION, X, rate=RATE)
    dparams, dx = backward(DOUT)
    for own, other in ((out, theirs.detach()), (dparams.weight, weight.grad), (dparams.bias, bias.grad), (dx, x.grad)):
        np.testing.assert_allclose(own, other.numpy(), rtol=0, atol=1e-12)
    for function, pool in ((mean_compression, torch.nn.functional.avg_pool1d), (max_compression, torch.nn.functional.max_pool1d)):
        x = torch.tensor(X, requires_grad=True)
        theirs = pool(x.transpose(1, 2), RATE).transpose(1, 2)
        theirs.backward(torch.tensor(DOUT))
        out, backward = function(X, rate=RATE)
        np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-15)
        np.testing.assert_allclose(backward(DOUT), x.grad.numpy(), rtol=0, atol=1e-15)
