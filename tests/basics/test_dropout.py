"""Dropout: which elements go, what the others become, and that the same mask comes back in the backward."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.dropout import dropout
from minitransformers.foundation import check_gradients


def textbook_dropout(x, keep, rate):
    return anp.stack([x[i] / (1 - rate) if keep[i] else 0.0 * x[i] for i in range(len(x))])


def test_equals_the_textbook_formula_and_its_gradient():
    rng = np.random.default_rng(0)
    x, dout, rate = rng.normal(size=20), rng.normal(size=20), 0.4
    keep = np.random.default_rng(1).random(20, dtype=np.float32) >= rate
    out, backward = dropout(x, rate=rate, rng=np.random.default_rng(1))
    np.testing.assert_allclose(out, textbook_dropout(x, keep, rate), atol=1e-15)
    expected = autograd.grad(lambda x: anp.sum(dout * textbook_dropout(x, keep, rate)))(x)
    np.testing.assert_allclose(backward(dout), expected, atol=1e-15)


def test_every_element_is_zero_or_scaled_up():
    x = np.random.default_rng(2).normal(size=(30, 7))
    out, _ = dropout(x, rate=0.25, rng=np.random.default_rng(3))
    scaled = np.isclose(out, x / 0.75)
    assert (scaled | (out == 0)).all() and scaled.any() and (out == 0).any()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_share_that_goes_is_the_rate_and_the_mean_stays(rate):
    size = 100_000
    out, _ = dropout(np.ones(size), rate=rate, rng=np.random.default_rng(4))
    sigma = (rate * (1 - rate) / size) ** 0.5
    assert abs(np.mean(out == 0) - rate) < 4 * sigma
    assert abs(out.mean() - 1) < 4 * sigma / (1 - rate)


def test_without_a_generator_or_a_rate_it_is_the_identity():
    x = np.random.default_rng(5).normal(size=(2, 3))
    for config in ({"rate": 0.5, "rng": None}, {"rate": 0.0, "rng": np.random.default_rng(0)}):
        out, backward = dropout(x, **config)
        np.testing.assert_array_equal(out, x)
        np.testing.assert_array_equal(backward(x), x)


def test_rate_zero_draws_nothing():
    rng = np.random.default_rng(6)
    before = rng.bit_generator.state
    dropout(np.ones(5), rate=0.0, rng=rng)
    assert rng.bit_generator.state == before


def test_two_calls_draw_two_masks_and_the_same_seed_draws_the_same():
    rng, x = np.random.default_rng(7), np.ones(50)
    first, second = dropout(x, rate=0.5, rng=rng)[0], dropout(x, rate=0.5, rng=rng)[0]
    assert (first != second).any()
    np.testing.assert_array_equal(first, dropout(x, rate=0.5, rng=np.random.default_rng(7))[0])


def test_the_mask_does_not_depend_on_the_dtype():
    outs = [dropout(np.ones(50, dtype), rate=0.5, rng=np.random.default_rng(8))[0] for dtype in (np.float32, np.float64)]
    np.testing.assert_array_equal(*outs)
    assert [out.dtype for out in outs] == [np.float32, np.float64]


def with_a_fresh_mask_in_the_backward(x, *, rng):
    out, _ = dropout(x, rate=0.5, rng=rng)
    return out, lambda dout: dropout(dout, rate=0.5, rng=rng)[0]


def test_the_checker_refuses_a_backward_that_draws_again():
    report = check_gradients(with_a_fresh_mask_in_the_backward, np.ones((4, 5)), rng=np.random.default_rng(9))
    assert not report.passed


def without_the_scale(x, *, rng):
    out, _ = dropout(x, rate=0.2, rng=rng)
    return out, lambda dout: dout * (out != 0)


def test_the_checker_names_the_missing_scale():
    report = check_gradients(without_the_scale, np.ones((4, 5)), rng=np.random.default_rng(10))
    assert not report.passed and "a factor 1.25 is missing" in report.worst.cause


@pytest.mark.parity
def test_parity_with_torch():
    """The two draw different masks; where both keep an element, they must do the same to it."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(11)
    x, dout = rng.normal(size=1000), rng.normal(size=1000)
    torch.manual_seed(0)
    theirs_x = torch.tensor(x, requires_grad=True)
    theirs = torch.nn.functional.dropout(theirs_x, 0.3, training=True)
    theirs.backward(torch.tensor(dout))
    out, backward = dropout(x, rate=0.3, rng=np.random.default_rng(12))
    both = (out != 0) & (theirs.detach().numpy() != 0)
    assert both.sum() > 400
    np.testing.assert_allclose(out[both], theirs.detach().numpy()[both], rtol=1e-12)
    np.testing.assert_allclose(backward(dout)[both], theirs_x.grad.numpy()[both], rtol=1e-12)
