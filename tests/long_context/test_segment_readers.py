"""The readers that sections compare: their gradients, what each is given to see, and what one can know of it."""

import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.basics.embedding import init_embedding
from minitransformers.basics.linear import init_linear, linear
from minitransformers.long_context.segment_reordering import count_orders
from minitransformers.norms.layer_norm import init_layer_norm, layer_norm
from minitransformers.reporting.long_context.memories import NOTHING, WRITTEN, init_stack, last_segment, last_segment_read_twice
from minitransformers.reporting.long_context.reading_methods import memory_steps, read_at_once
from minitransformers.reporting.long_context.reading_tasks import Reordering, Retrieving, at_best, said, two_marks
from minitransformers.reporting.long_context.segment_readers import first, parts
from minitransformers.reporting.networks import network

SIZES = {"segments": 4, "length": 2, "marks": 3}
READERS = read_at_once(seen=2, **SIZES)


def texts(rng, count=2):
    return two_marks(rng, texts=count, noise=3, **SIZES)


def in_doubles(rng, params):
    """With no gain of 1 and no bias of 0, so that each of them is tested."""
    return trees.map(lambda leaf: leaf.astype(np.float64) + rng.normal(0, 0.1, leaf.shape), params)


@pytest.mark.parametrize("key", READERS)
def test_the_gradient_of_a_reader_is_that_of_its_vector(key):
    rng, reader = np.random.default_rng(0), READERS[key][1]
    ids, _, _ = texts(rng)
    seen = ids if reader.sees is None else reader.sees(ids)
    params, x = in_doubles(rng, reader.init(rng, 4)), rng.normal(size=(*seen.shape, 4))
    assert reader.body(params, x)[0].shape[0] == 2
    assert check_gradients(lambda params, x: reader.body(params, x), params, x, second_opinion=False).passed


def loss_of(task, batch):
    def loss(params):                                        # a list: a tuple of gradients would be those of several arguments
        (total, _), backward = task.loss(tuple(params), batch, rng=np.random.default_rng(0))
        return total, lambda dout: list(backward((dout, None)))

    return loss


def test_retrieving_learns_the_answer_by_its_gradient():
    rng, reader = np.random.default_rng(6), READERS["answers"][1]
    params = in_doubles(rng, (init_embedding(rng, 8, 4), reader.init(rng, 4), init_layer_norm(rng, 4), init_linear(rng, 4, 4)))
    task = Retrieving(network(reader.body, layer_norm, linear), lambda rng: texts(rng)[:2])
    ids, asked = task.batch(rng)
    assert check_gradients(loss_of(task, (ids, asked)), list(params), second_opinion=False).passed
    at = np.take_along_axis(said(task.model(params, ids)[0]), asked[:, None], axis=1)
    assert task.loss(params, (ids, asked), rng=rng)[0][0] == pytest.approx(-at.sum())


def test_reordering_adds_the_loss_of_the_order_to_that_of_the_answer():
    rng = np.random.default_rng(7)
    task = Reordering(network(last_segment(memory_steps(2, rows=2)[NOTHING], rate=2)), parts(first, layer_norm, linear), lambda rng: texts(rng)[:2], max_chunks=3)
    params = (init_embedding(rng, 8, 4), init_stack(NOTHING, rng, 4, rate=2)), (None, init_layer_norm(rng, 4), init_linear(rng, 4, 3)), init_linear(rng, 4, count_orders(3))
    batch = task.batch(rng)
    ids, _, shuffled, labels = batch
    np.testing.assert_array_equal(ids[..., 0], shuffled[..., 0])
    np.testing.assert_array_equal(np.sort(ids.reshape(2, -1)), np.sort(shuffled.reshape(2, -1)))
    assert labels.max() < count_orders(3)
    assert check_gradients(loss_of(task, batch), list(in_doubles(rng, params)), second_opinion=False).passed


def test_slots_have_the_gradient_of_the_whole_text():
    rng = np.random.default_rng(1)
    stack, x = in_doubles(rng, init_stack(WRITTEN, rng, 4, rate=2)), rng.normal(size=(2, 3, 2, 4))
    body = last_segment(memory_steps(2, rows=4)[WRITTEN], rate=2)
    assert check_gradients(body, stack, x, second_opinion=False).passed


def test_read_twice_every_segment_has_an_influence_and_the_last_reading_a_gradient():
    rng = np.random.default_rng(2)
    step = memory_steps(2, rows=2)["ERNIE-Doc"]
    stack, x = init_stack("ERNIE-Doc", rng, 4, rate=2), rng.normal(size=(1, 4, 2, 4)).astype(np.float32)
    out, backward = last_segment_read_twice(step)(stack, x)
    dstack, dx = backward(np.ones_like(out))
    assert dx[:, -1].any() and not dx[:, :-1].any()          # memory is stopped: only the last segment gets a gradient
    assert any(leaf.any() for _, leaf in trees.leaves(dstack))
    changed = x.copy()
    changed[:, 0] += 1
    assert np.abs(last_segment_read_twice(step)(stack, changed)[0] - out).max() > 0


def test_a_text_has_two_marks_in_two_segments_behind_the_question():
    ids, asked, places = texts(np.random.default_rng(3), count=200)
    for text, mark, place in zip(ids, asked, places, strict=True):
        (last,) = set(text[:, 0] - 6)
        where, _ = np.nonzero(text < 3)
        marks = text[text < 3]
        assert len(marks) == len(set(marks)) == len(set(where)) == 2
        assert (marks[last], where[last]) == (mark, place)


def test_bm25_finds_the_two_segments_with_marks_in_order():
    ids, _, _ = texts(np.random.default_rng(4), count=50)
    for text, found in zip(ids, READERS["bm25"][1].sees(ids), strict=True):
        np.testing.assert_array_equal(found, text[(text < 3).any(axis=1)])


def test_who_sees_all_knows_all_and_who_sees_nothing_guesses():
    assert at_best(range(4), segments=4, marks=3) == 1
    assert at_best((), segments=4, marks=3) == pytest.approx(1 / 3)
    assert at_best((0, 1), segments=4, marks=3) == pytest.approx((6 * 1 + 4 / 2 + 2 / 3) / 12)


def test_what_segments_say_together_is_a_distribution():
    logits = np.random.default_rng(5).normal(size=(2, 4, 6))
    np.testing.assert_allclose(np.exp(said(logits)).sum(axis=-1), 1)
