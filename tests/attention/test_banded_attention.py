"""Banded attention, the plain form: the textbook sum over the keys of a window, and what lies outside it."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.banded_attention import banded_attention
from minitransformers.attention.core import causal, softmax_attention
from minitransformers.foundation import check_gradients


def textbook(q, k, v, bias, mask, window, ahead):
    """One query at a time, the queries being the last positions, over the keys in its window that the mask allows."""
    rows = []
    for row, i in enumerate(range(len(k) - len(q), len(k))):
        near = [j for j in range(max(0, i - window + 1), min(len(k), i + ahead + 1)) if mask[j]]
        powers = [anp.exp(anp.dot(q[row], k[j]) / q.shape[1] ** 0.5 + bias[row, j]) for j in near]
        rows.append(sum(p * v[j] for p, j in zip(powers, near, strict=True)) / sum(powers) if near else anp.zeros(v.shape[1]))
    return anp.stack(rows)


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("queries", [2, 6])
@pytest.mark.parametrize("window", [2, 9])
def test_it_is_the_textbook_sum_and_its_gradients_are_autograd_s(window, queries, ahead):
    rng = np.random.default_rng(0)
    args = [rng.normal(size=shape) for shape in ((queries, 3), (6, 3), (6, 4), (queries, 6))]
    mask = np.array([0, 0, 1, 1, 0, 1], bool)                # the first two positions see nothing through a window of 2
    out, backward = banded_attention(None, *args, window=window, ahead=ahead, mask=mask[None])
    dout = rng.normal(size=out.shape)
    np.testing.assert_allclose(out, textbook(*args, mask, window, ahead), rtol=0, atol=1e-12)
    theirs = autograd.grad(lambda *a: anp.sum(dout * textbook(*a, mask, window, ahead)), (0, 1, 2, 3))(*args)
    for own, other in zip(backward(dout)[1:], theirs, strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-12)


def test_a_window_as_long_as_the_text_is_causal_attention():
    rng = np.random.default_rng(1)
    args = [rng.normal(size=(2, 5, 3)) for _ in range(3)]
    out, wanted = banded_attention(None, *args, window=5)[0], causal(softmax_attention)(None, *args)[0]
    np.testing.assert_array_equal(out, wanted)


def test_the_checker_refuses_a_window_that_is_one_wider_on_the_way_back():
    rng = np.random.default_rng(2)
    args = [rng.normal(size=(6, 3)) for _ in range(3)]

    def banded(q, k, v, *, on_the_way_back):
        out, _ = banded_attention(None, q, k, v, window=3)
        return out, lambda dout: banded_attention(None, q, k, v, window=on_the_way_back)[1](dout)[1:4]

    assert check_gradients(banded, *args, on_the_way_back=3).passed
    assert not check_gradients(banded, *args, on_the_way_back=4).passed


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"ahead": 4}, "ahead: got 4, wants at most the window of 3"), ({"window": 0}, "window: got 0, wants a whole number of at least 1")],
)
def test_what_no_window_can_be_is_refused(changes, named):
    args = [np.ones((2, 8, 3))] * 3
    with pytest.raises(ValueError, match=named):
        banded_attention(None, *args, **{"window": 3, **changes})
    with pytest.raises(ValueError, match="query: got 9 queries, wants at most as many as keys, 8"):
        banded_attention(None, np.ones((2, 9, 3)), *args[1:], window=3)
