"""Sentences with the word of a group, an encoder of them and a probe."""

import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.bias_mitigation.alignment_loss import alignment_loss
from minitransformers.reporting.bias_mitigation import probed
from minitransformers.reporting.bias_mitigation.probed import (
    Telling,
    Way,
    encode,
    exchanged,
    learned,
    probe,
    sentences,
    standard,
    without,
)

WAYS = {"plain": Way(), "both forms": Way(both_forms=True), "aligned": Way(extra=alignment_loss), "deleted": Way(deleted=True)}


def test_the_occupation_tells_the_group_as_often_as_is_known():
    ids, topics, groups = sentences(np.random.default_rng(0), 20_000)
    assert (ids[:, 0] == groups).all() and len(topics) == 20_000
    guess = ids[:, 1] - 3 >= probed.OCCUPATIONS / 2
    assert abs((guess == groups).mean() - probed.BAYES) < 0.01
    assert (exchanged(ids)[:, 0] == 1 - groups).all() and (exchanged(exchanged(ids)) == ids).all() and (without(ids)[:, 0] == 2).all()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_loss_of_each_way_has_its_gradient(way):
    rng = np.random.default_rng(1)
    task = Telling(way)
    params = trees.map(lambda leaf: leaf.astype(np.float64), learned(way, rng, steps=1, rate=1e-3))
    batch = tuple(part[:6] for part in task.batch(rng))

    def loss(params):
        (value, _), backward = task.loss(params, batch, rng=rng)
        return value, lambda dvalue: backward((dvalue, None))

    assert check_gradients(loss, params, second_opinion=False).passed


def test_where_the_word_is_deleted_both_forms_have_one_vector_and_a_probe_does_no_better_than_the_occupation():
    rng = np.random.default_rng(2)
    way = Way(deleted=True)
    params = learned(way, rng, steps=20, rate=0.01)
    (ids, _, groups), (other, _, others) = sentences(rng, 2000), sentences(rng, 2000)
    x, held, swapped = (encode(params, way.read(each))[0] for each in (ids, other, exchanged(other)))
    np.testing.assert_array_equal(held, swapped)
    asked = probe(standard(x, x), groups, rng, steps=200, rate=0.03)(standard(held, x))
    assert 0.55 < (asked.argmax(axis=1) == others).mean() < probed.BAYES + 0.04
