"""Segment reordering: every order of up to m chunks is one class, and only the last position is asked."""

from itertools import permutations

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import Linear, check_gradients
from minitransformers.long_context.segment_reordering import (
    count_orders,
    order_label,
    order_of_label,
    segment_reordering,
    shuffled_chunks,
)

RNG = np.random.default_rng(0)
HEAD = Linear(RNG.normal(size=(5, 9)), RNG.normal(size=9))
X, LABELS = RNG.normal(size=(3, 4, 5)), np.array([0, 8, 4])


def in_order(max_chunks):
    """Every order of 1, 2, ... chunks, as a dictionary has them."""
    return [order for n in range(1, max_chunks + 1) for order in permutations(range(n))]


@pytest.mark.parametrize("max_chunks", [2, 3, 4, 5])
def test_orders_and_labels_are_one_to_one_in_the_order_of_a_dictionary(max_chunks):
    orders = in_order(max_chunks)
    assert [order_label(order) for order in orders] == list(range(len(orders)))
    assert [order_of_label(label) for label in range(len(orders))] == orders
    assert count_orders(max_chunks) == len(orders)


def test_four_chunks_make_the_33_classes_of_the_paper():
    assert count_orders(4) == 33
    assert order_label((3, 2, 1, 0)) == 32


def test_a_text_that_was_shuffled_can_be_put_back_by_what_its_label_says():
    ids = np.arange(11)
    for seed in range(60):
        found = shuffled_chunks(ids, rng=np.random.default_rng(seed), max_chunks=4)
        assert found.permutation == order_of_label(found.label) and 0 <= found.label < 33
        assert found.lengths.sum() == 11 and found.lengths.min() >= 1 and len(found.lengths) == len(found.permutation) <= 4
        chunks = np.split(found.ids, np.cumsum(found.lengths)[:-1])
        np.testing.assert_array_equal(np.concatenate([chunks[found.permutation.index(i)] for i in range(len(chunks))]), ids)
        assert all((np.diff(chunk) == 1).all() for chunk in chunks)


def test_every_number_of_chunks_and_every_order_comes_up_as_often_as_every_other():
    rng = np.random.default_rng(1)
    labels = np.array([shuffled_chunks(np.arange(7), rng=rng, max_chunks=3).label for _ in range(6000)])
    share = np.bincount(labels, minlength=9) / 6000
    chance = np.repeat([1 / 3, 1 / 6, 1 / 18], [1, 2, 6])
    assert np.abs(share - chance).max() < 5 * np.sqrt(0.25 / 6000)


def test_cuts_may_fall_everywhere_and_nowhere_else():
    cuts, rng = set(), np.random.default_rng(2)
    for _ in range(300):
        found = shuffled_chunks(np.arange(6), rng=rng, max_chunks=2)
        cuts.add(int(found.lengths[found.permutation.index(0)]) if len(found.lengths) == 2 else 0)
    assert cuts == {0, 1, 2, 3, 4, 5}
    assert {len(shuffled_chunks(np.arange(3), rng=rng, max_chunks=3).lengths) for _ in range(60)} == {1, 2, 3}


def test_there_are_at_most_four_chunks_where_nothing_is_said():
    rng = np.random.default_rng(3)
    assert max(len(shuffled_chunks(np.arange(9), rng=rng).lengths) for _ in range(60)) == 4


def written_out(weight, bias, x):
    total = 0.0
    for text in range(3):
        logits = [anp.sum(x[text, 3] * weight[:, c]) + bias[c] for c in range(9)]
        total = total + anp.log(sum(anp.exp(logit) for logit in logits)) - logits[LABELS[text]]
    return total / 3


def test_it_is_the_surprise_at_the_last_position_and_its_gradients_are_autograd_s():
    out, backward = segment_reordering(HEAD, X, labels=LABELS)
    np.testing.assert_allclose(out, written_out(*HEAD, X), rtol=0, atol=1e-14)
    expected = autograd.grad(lambda *args: 1.7 * written_out(*args), (0, 1, 2))(*HEAD, X)
    (dweight, dbias), dx = backward(np.array(1.7))
    for own, theirs in zip((dweight, dbias, dx), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


def test_only_the_last_position_is_asked():
    _, backward = segment_reordering(HEAD, X, labels=LABELS)
    dx = backward(np.array(1.0))[1]
    assert not dx[:, :-1].any() and np.abs(dx[:, -1]).min() > 0
    other = X.copy()
    other[:, :-1] = 1e6
    assert segment_reordering(HEAD, other, labels=LABELS)[0] == segment_reordering(HEAD, X, labels=LABELS)[0]


def test_a_model_that_knows_nothing_is_surprised_by_the_logarithm_of_the_number_of_orders():
    blank = Linear(np.zeros((5, 33)), np.zeros(33))
    np.testing.assert_allclose(segment_reordering(blank, X, labels=LABELS)[0], np.log(33), rtol=0, atol=1e-14)


def test_one_text_needs_no_batch():
    alone = [segment_reordering(HEAD, X[text], labels=LABELS[text])[0] for text in range(3)]
    np.testing.assert_allclose(np.mean(alone), segment_reordering(HEAD, X, labels=LABELS)[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("wrongly", ["asks the first position", "forgets the mean"])
def test_the_check_refuses_a_backward_that(wrongly):
    def wrong(params, x):
        out, backward = segment_reordering(params, x, labels=LABELS)

        def careless(dout):
            dparams, dx = backward(dout)
            return (dparams, dx[:, ::-1]) if wrongly == "asks the first position" else (dparams, 3 * dx)

        return out, careless

    assert not check_gradients(wrong, HEAD, X).passed


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="labels: got 0 to 9, wants 0 to 8"):
        segment_reordering(HEAD, X, labels=np.array([0, 9, 1]))
    with pytest.raises(ValueError, match="max_chunks: got 1"):
        count_orders(1)
    with pytest.raises(ValueError, match="permutation: got"):
        order_label((0, 2))
    with pytest.raises(ValueError, match="permutation: got"):
        order_label(())
    with pytest.raises(ValueError, match="label: got -1"):
        order_of_label(-1)
    with pytest.raises(ValueError, match="ids: got 3 tokens, wants at least 4"):
        shuffled_chunks(np.arange(3), rng=np.random.default_rng(0))
