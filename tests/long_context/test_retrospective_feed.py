"""Retrospective feed: the second reading knows the whole text, and it alone has a gradient."""

from functools import partial

import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.long_context.attention_with_memory import attention_with_memory
from minitransformers.long_context.ernie_doc import ernie_doc
from minitransformers.long_context.retrospective_feed import _with_these_memories, retrospective_feed
from minitransformers.long_context.transformer_xl import init_transformer_xl, transformer_xl
from minitransformers.long_context.transformer_xl_layer import transformer_xl_layer, transformer_xl_pre_norm_layer
from minitransformers.long_context.two_sided_relative import two_sided_relative

RNG = np.random.default_rng(0)
both_ways_first = partial(transformer_xl_pre_norm_layer, attention=partial(attention_with_memory, core=two_sided_relative))
LAYERS = init_transformer_xl(RNG, 6, num_layers=2, num_heads=3, d_hidden=5, dtype=np.float64)
LAYERS = trees.map(lambda leaf: leaf + RNG.normal(0, 0.3, leaf.shape), LAYERS)
SEGMENTS = 4
X, DOUT = RNG.normal(size=(SEGMENTS, 2, 3, 6)), RNG.normal(size=(SEGMENTS, 2, 3, 6))
STEP = partial(ernie_doc, num_heads=3, memory_length=3)
# Small enough to move every number by itself, as is done where a gradient is refused.
SMALL = init_transformer_xl(RNG, 2, num_layers=1, num_heads=1, d_hidden=2, dtype=np.float64)
SMALL_STEP, SMALL_X = partial(ernie_doc, num_heads=1, memory_length=3, layer=both_ways_first), RNG.normal(size=(2, 3, 2))


def one_by_one(x, step=STEP, passes=2):
    """Every segment of every pass in a row: outputs of the last, the memories that it read and the last, its gradients at DOUT."""
    memory, steps = None, []
    for t in range(passes * len(x)):
        before = memory
        (out, memory), backward = step(LAYERS, x[t % len(x)], memory=before)
        steps.append((out, before, backward))
    last = steps[-len(x) :]
    parts = [backward((dout, None)) for (_, _, backward), dout in zip(last, DOUT, strict=True)]
    dlayers = parts[0][0]
    for part, _ in parts[1:]:
        dlayers = trees.map(np.add, dlayers, part)
    return np.stack([out for out, _, _ in last]), memory, dlayers, np.stack([dx for _, dx in parts])


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_it_is_the_segments_in_a_row_with_the_gradients_of_the_last_pass(passes):
    (out, memory), backward = retrospective_feed(LAYERS, X, step=STEP, passes=passes)
    other, other_memory, dlayers, dx = one_by_one(X, passes=passes)
    np.testing.assert_array_equal(out, other)
    for own, theirs in zip(memory.rows, other_memory.rows, strict=True):
        np.testing.assert_array_equal(own, theirs)
    own_layers, own_x = backward((DOUT, None))
    np.testing.assert_allclose(own_x, dx, rtol=0, atol=1e-13)
    for (path, own), (_, theirs) in zip(trees.leaves(own_layers), trees.leaves(dlayers), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12, err_msg=path)


def test_the_last_segment_changes_the_first_when_it_is_read_again_and_not_when_it_is_skimmed():
    other = X.copy()
    other[-1] += RNG.normal(size=(2, 3, 6))
    for passes in (1, 2):
        (out, _), _ = retrospective_feed(LAYERS, X, step=STEP, passes=passes)
        (changed, _), _ = retrospective_feed(LAYERS, other, step=STEP, passes=passes)
        moved = np.abs(changed - out).max((1, 2, 3)) > 0
        np.testing.assert_array_equal(moved, [passes == 2] * (SEGMENTS - 1) + [True])


def test_with_transformer_xl_the_second_reading_begins_with_the_end_and_knows_no_more_of_the_text_than_its_reach():
    """Two layers reach two segments back: the first segment, read again, knows the last two, and not the one before these."""
    step = partial(transformer_xl, num_heads=3, memory_length=3)
    (out, _), _ = retrospective_feed(LAYERS, X, step=step)
    for changed, reached in ((3, True), (2, True), (1, False)):
        other = X.copy()
        other[changed] += RNG.normal(size=(2, 3, 6))
        (again, _), _ = retrospective_feed(LAYERS, other, step=step)
        assert (np.abs(again - out)[0].max() > 0) == reached
        (again, _), _ = retrospective_feed(LAYERS, other, step=STEP)
        assert np.abs(again - retrospective_feed(LAYERS, X, step=STEP)[0][0])[0].max() > 0


def test_nothing_leaks_from_a_segment_into_those_before_it():
    """Though every segment of the second reading depends on all of the text."""
    for t in range(SEGMENTS):
        only = np.zeros_like(DOUT)
        only[t] = DOUT[t]
        _, backward = retrospective_feed(LAYERS, X, step=STEP)
        dx = backward((only, None))[1]
        assert np.abs(dx[t]).max() > 0
        np.testing.assert_array_equal(np.delete(dx, t, axis=0), 0)


def test_the_memory_at_the_end_is_an_output_and_sends_its_gradient_to_the_last_segment_alone():
    (_, memory), backward = retrospective_feed(LAYERS, X, step=STEP)
    dmemory = trees.map(lambda rows: RNG.normal(size=rows.shape), memory)
    dx = backward((None, dmemory))[1]
    assert np.abs(dx[-1]).max() > 0 and not dx[:-1].any()


def test_a_text_goes_on_where_its_memory_says():
    (whole, memory), _ = retrospective_feed(LAYERS, X, step=STEP, passes=1)
    (first, half), _ = retrospective_feed(LAYERS, X[:2], step=STEP, passes=1)
    (second, end), _ = retrospective_feed(LAYERS, X[2:], step=STEP, memory=half, passes=1)
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)
    for own, theirs in zip(end.rows, memory.rows, strict=True):
        np.testing.assert_array_equal(own, theirs)


def test_it_reads_twice_where_nothing_is_said():
    calls = []

    def counting(params, x, *, memory):
        calls.append(memory is None)
        return STEP(params, x, memory=memory)

    retrospective_feed(LAYERS, X, step=counting)
    assert calls == [True] + [False] * (2 * SEGMENTS - 1)


def test_it_is_not_the_gradient_of_the_whole_reading():
    """Differences see what comes through memory; the backward must not."""
    assert not check_gradients(partial(retrospective_feed, step=SMALL_STEP), SMALL, SMALL_X).passed


@pytest.mark.parametrize("wrongly", ["reads the first time", "counts both times"])
def test_the_check_refuses_a_backward_that(wrongly):
    def wrong(params, x):
        result, backward = retrospective_feed(params, x, step=SMALL_STEP)
        first = retrospective_feed(params, x, step=SMALL_STEP, passes=1)[1]

        def careless(dresult):
            return first(dresult) if wrongly == "reads the first time" else trees.map(np.add, first(dresult), backward(dresult))

        return result, careless

    def judged(function):
        surrogate = partial(_with_these_memories, step=SMALL_STEP, memory=None, passes=2)
        return check_gradients(function, SMALL, SMALL_X, gradient_of=surrogate).passed

    assert judged(partial(retrospective_feed, step=SMALL_STEP)) and not judged(wrong)


def test_it_keeps_the_dtype_and_refuses_what_does_not_fit():
    narrow = trees.cast(LAYERS, np.float32)
    step = partial(STEP, layer=transformer_xl_layer)
    (out, _), backward = retrospective_feed(narrow, X.astype(np.float32), step=step)
    assert {leaf.dtype for _, leaf in trees.leaves(backward((out, None)))} == {np.dtype(np.float32)}
    with pytest.raises(ValueError, match="passes: got 0"):
        retrospective_feed(LAYERS, X, step=STEP, passes=0)
