"""Texts with the word of a group, and a reader that may lean on it."""

import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.bias_mitigation.attention_entropy_loss import attention_entropy_loss
from minitransformers.reporting.bias_mitigation import shortcut_word
from minitransformers.reporting.bias_mitigation.shortcut_word import (
    LENGTH,
    MEASURES,
    Answering,
    Way,
    asked,
    learned,
    measured,
    reader,
    texts,
)


def test_texts_hold_one_word_of_a_group_that_goes_with_the_answer_as_often_as_asked():
    found = texts(np.random.default_rng(0), 5000, with_answer=0.9)
    assert ((found.ids <= max(shortcut_word.GROUPS)).sum(axis=1) == 1).all() and found.ids.shape[1] == LENGTH
    assert (found.ids.min(axis=1) == found.groups).all() and abs((found.groups == found.answers).mean() - 0.9) < 0.02
    assert (shortcut_word.without(found.ids) >= shortcut_word.NOBODY).all()


@pytest.mark.parametrize("way", [Way(), Way(attention_entropy_loss, 0.7), Way(deleted=True)], ids=["plain", "penalty", "deleted"])
def test_the_loss_of_each_way_has_its_gradient(way):
    rng = np.random.default_rng(1)
    task, params = Answering(way), trees.map(lambda leaf: leaf.astype(np.float64), shortcut_word.init_reader(rng))
    batch = tuple(part[:4] for part in task.batch(rng))

    def loss(params):
        (value, _), backward = task.loss(params, batch, rng=rng)
        return value, lambda dvalue: backward((dvalue, None))

    assert check_gradients(loss, params, second_opinion=False).passed


def test_numbers_are_those_that_counting_gives():
    rows = np.array([[0.9, 0.8, 1, 0], [0.2, 0.4, 1, 1], [0.7, 0.7, 1, 1], [0.1, 0.2, 0, 0], [0.6, 0.5, 0, 1], [0.3, 0.3, 0, 0]])
    np.testing.assert_allclose(shortcut_word.numbers(rows), [4 / 6, 0.5, np.mean([0.1, 0.2, 0, 0.1, 0.1, 0]), 1 / 3])


def test_without_the_word_nothing_moves_and_at_a_beta_of_0_attention_is_even():
    rng = np.random.default_rng(2)
    way, of = Way(deleted=True), texts(rng, 300, with_answer=0.5)
    params = learned(way, rng, steps=5, rate=0.01)
    rows = asked(params, way, of)
    found = measured(rows, of, rng, resamples=100)
    assert found["moved"] == 0 and all(found[f"{name} low"] <= found[name] <= found[f"{name} high"] for name in MEASURES[:3])
    assert all(0 < nats <= np.log(LENGTH) + 1e-6 for nats in shortcut_word.spread(params, of.ids).values())
    shuffled = rng.permuted(of.ids, axis=1)
    np.testing.assert_allclose(reader(params, of.ids, beta=0.0)[0], reader(params, shuffled, beta=0.0)[0], atol=1e-5)
