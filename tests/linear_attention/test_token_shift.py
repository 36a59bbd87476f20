"""Token shift: two positions a sum, and what each of them learns."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.foundation import check_gradients
from minitransformers.linear_attention.token_shift import token_shift

MIX, X, PAST = (np.random.default_rng(0).normal(size=s) for s in ((3,), (2, 5, 3), (2, 3)))


def textbook(mix, x, past):
    rows = []
    for t in range(x.shape[1]):
        before = past if t == 0 else x[:, t - 1]
        rows.append(mix * x[:, t] + (1 - mix) * before)
    return anp.stack(rows, axis=1)


@pytest.mark.parametrize("with_past", [True, False])
@pytest.mark.parametrize("positions", [1, 5])
def test_it_is_the_textbook_sum_and_its_gradients_are_autograd_s(with_past, positions):
    x, past = X[:, :positions], PAST if with_past else np.zeros_like(PAST)
    out, backward = token_shift(MIX, x, PAST if with_past else None)
    dout = np.cos(out)
    np.testing.assert_allclose(out, textbook(MIX, x, past), rtol=0, atol=1e-14)
    expected = autograd.grad(lambda *a: anp.sum(dout * textbook(*a)), (0, 1, 2))(MIX, x, past)
    gradients = backward(dout)
    assert (gradients[2] is None) != with_past
    for own, theirs in zip(gradients[: 2 + with_past], expected, strict=False):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


def test_mix_one_leaves_x_and_mix_zero_moves_it_on():
    np.testing.assert_allclose(token_shift(np.ones(3), X, PAST)[0], X, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(token_shift(np.zeros(3), X, PAST)[0], np.concatenate([PAST[:, None], X[:, :-1]], axis=1))


@pytest.mark.parametrize("cut", [1, 4])
def test_a_text_cut_in_two_is_the_whole(cut):
    whole, backward = token_shift(MIX, X, PAST)
    first, first_backward = token_shift(MIX, X[:, :cut], PAST)
    second, second_backward = token_shift(MIX, X[:, cut:], X[:, cut - 1])
    np.testing.assert_array_equal(np.concatenate([first, second], axis=1), whole)
    dout = np.cos(whole)
    dmix, dx, _ = backward(dout)
    mix_later, x_later, dlast = second_backward(dout[:, cut:])
    mix_first, x_first, _ = first_backward(dout[:, :cut])
    x_first[:, -1] += dlast                                  # the last position of the first part was read by the second, too
    np.testing.assert_allclose(np.concatenate([x_first, x_later], axis=1), dx, rtol=0, atol=1e-14)
    np.testing.assert_allclose(mix_first + mix_later, dmix, rtol=0, atol=1e-13)


def test_the_checker_refuses_a_position_that_forgets_who_read_it_next():
    def wrong(mix, x):
        out, backward = token_shift(mix, x)
        return out, lambda dout: (backward(dout)[0], mix * dout)

    report = check_gradients(wrong, MIX, X)
    assert [a.error > 1e-2 for a in report.arguments] == [False, True]
