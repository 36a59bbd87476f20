"""Transformer-XL: segments against the whole text, how far it reaches, and a memory through which no gradient goes."""

from functools import partial

import autograd.numpy as anp
import numpy as np
import pytest
import xl_textbook
from xl_textbook import assert_same, gradients, noisy

from minitransformers.foundation import check_gradients, trees, trusted
from minitransformers.long_context.transformer_xl import (
    XlMemory,
    init_transformer_xl,
    transformer_xl,
    transformer_xl_through_memory,
)
from minitransformers.long_context.transformer_xl_layer import transformer_xl_pre_norm_layer

HEADS, WIDTH = 2, 4
checked = trusted(check_gradients)                           # the shapes are known to fit


def random_model(seed=0, num_layers=2):
    rng = np.random.default_rng(seed)
    return noisy(init_transformer_xl(rng, WIDTH, num_layers=num_layers, num_heads=HEADS, d_hidden=5, dtype=np.float64), rng)


def segments(count, positions, seed=1, batch=(2,)):
    return list(np.random.default_rng(seed).normal(size=(count, *batch, positions, WIDTH)))


def read(params, xs, **settings):
    """One segment after the other, memory stopped. Returns the outputs, the last memory, and the backward of each segment."""
    memory, outs, backwards = None, [], []
    for x in xs:
        (out, memory), backward = transformer_xl(params, x, memory=memory, num_heads=HEADS, **settings)
        outs.append(out)
        backwards.append(backward)
    return outs, memory, backwards


def read_through(params, xs, douts, **settings):
    """The same with the gradient through memory. Returns the outputs, and what params and each segment get."""
    memory, outs, backwards = None, [], []
    for x in xs:
        (out, memory), backward = transformer_xl_through_memory(params, x, memory, num_heads=HEADS, **settings)
        outs.append(out)
        backwards.append(backward)
    dmemory, dparams, dxs = None, trees.zeros_like(params), []
    for backward, dout in zip(reversed(backwards), reversed(douts), strict=True):
        dsegment, dx, dmemory = backward((dout, dmemory))
        dparams = trees.map(np.add, dparams, dsegment)
        dxs.append(dx)
    return outs, dparams, dxs[::-1]


def textbook(params, xs, memory_length, first=False, stopped=None):
    """Outputs of all segments, text by text; where stopped is a list, memories are taken from it and not from the segment before."""
    texts, kept_by_text = [], []
    for b in range(len(xs[0])):
        memories, outs, kept = [[] for _ in params], [], []
        for s, x in enumerate(xs):
            memories = memories if stopped is None else stopped[b][s]
            kept.append(memories)
            out, memories = xl_textbook.transformer_xl(params, x[b], memories, HEADS, memory_length, first)
            outs.append(out)
        texts.append(anp.stack(outs))
        kept_by_text.append([*kept, memories])
    return anp.stack(texts), kept_by_text


LAYERS = [pytest.param({}, False, id="norms after"), pytest.param({"layer": transformer_xl_pre_norm_layer}, True, id="norms first")]


@pytest.mark.parametrize(("settings", "first"), LAYERS)
@pytest.mark.parametrize("memory_length", [1, 3, 4])
def test_outputs_and_memories_are_those_of_the_loops(settings, first, memory_length):
    params, xs = random_model(), segments(3, 3)
    outs, memory, _ = read(params, xs, memory_length=memory_length, **settings)
    expected, kept = textbook(params, xs, memory_length, first)
    np.testing.assert_allclose(np.stack(outs, axis=1), expected, rtol=0, atol=1e-12)
    for number, rows in enumerate(memory.rows):
        np.testing.assert_allclose(rows, [kept[b][-1][number] for b in range(2)], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("settings", "first"), LAYERS)
def test_gradients_are_autograd_s_with_every_memory_a_constant(settings, first):
    params, xs, douts = random_model(), segments(3, 2), segments(3, 2, seed=2)
    _, _, backwards = read(params, xs, memory_length=3, **settings)
    _, kept = textbook(params, xs, 3, first)
    together = [backward((dout, None)) for backward, dout in zip(backwards, douts, strict=True)]
    dparams = together[0][0]
    for dsegment, _ in together[1:]:
        dparams = trees.map(np.add, dparams, dsegment)
    expected = gradients(lambda *args: anp.sum(np.stack(douts, 1) * textbook(*args, 3, first, stopped=kept)[0]), params, xs)
    assert_same((dparams, [dx for _, dx in together]), expected)


@pytest.mark.parametrize(("settings", "first"), LAYERS)
def test_with_memory_by_position_gradients_are_those_of_the_unrolled_text(settings, first):
    params, xs, douts = random_model(), segments(3, 2), segments(3, 2, seed=2)
    _, dparams, dxs = read_through(params, xs, douts, memory_length=3, **settings)
    expected = gradients(lambda *args: anp.sum(np.stack(douts, 1) * textbook(*args, 3, first)[0]), params, xs)
    assert_same((dparams, dxs), expected)


def one_pass(params, xs, douts):
    (out, _), backward = transformer_xl(params, np.concatenate(xs, axis=-2), num_heads=HEADS, memory_length=1)
    dparams, dx = backward((np.concatenate(douts, axis=-2), None))
    return np.split(out, len(xs), axis=-2), dparams, np.split(dx, len(xs), axis=-2)


def test_segments_that_remember_everything_equal_one_pass_and_so_do_their_gradients_through_memory():
    params, xs, douts = random_model(num_layers=3), segments(4, 3), segments(4, 3, seed=2)
    whole, dwhole, dtext = one_pass(params, xs, douts)
    outs, dparams, dxs = read_through(params, xs, douts, memory_length=9)
    np.testing.assert_allclose(outs, whole, rtol=0, atol=1e-12)
    assert_same((dparams, dxs), [leaf for _, leaf in trees.leaves((dwhole, dtext))])
    np.testing.assert_array_equal(read(params, xs, memory_length=9)[0], outs)


def test_the_stop_changes_gradients_and_nothing_else():
    params, xs, douts = random_model(num_layers=3), segments(4, 3), segments(4, 3, seed=2)
    _, dwhole, dtext = one_pass(params, xs, douts)
    _, _, backwards = read(params, xs, memory_length=9)
    stopped = [backward((dout, None)) for backward, dout in zip(backwards, douts, strict=True)]
    assert np.abs(stopped[0][1] - dtext[0]).max() > 1e-2     # the first segment is read by all later ones
    np.testing.assert_allclose(stopped[-1][1], dtext[-1], rtol=0, atol=1e-11)  # and the last by none
    weight = sum(dlayers[0].attention.key.weight for dlayers, _ in stopped)
    assert np.abs(weight - dwhole[0].attention.key.weight).max() > 1e-2


def test_in_a_single_layer_the_parameters_get_the_whole_gradient_all_the_same():
    # What it keeps are the embeddings, in which its parameters have no part.
    params, xs, douts = random_model(num_layers=1), segments(4, 3), segments(4, 3, seed=2)
    _, dwhole, _ = one_pass(params, xs, douts)
    _, _, backwards = read(params, xs, memory_length=9)
    dparams = trees.zeros_like(params)
    for backward, dout in zip(backwards, douts, strict=True):
        dparams = trees.map(np.add, dparams, backward((dout, None))[0])
    assert_same(dparams, [leaf for _, leaf in trees.leaves(dwhole)])


def changes(params, xs, where, **settings):
    """How much the output of each segment changes with the text at one place, (segment, position)."""
    changed = [x.copy() for x in xs]
    changed[where[0]][..., where[1], :] += 1
    (before, _, _), (after, _, _) = (read(params, both, **settings) for both in (xs, changed))
    return [float(np.abs(a - b).max()) for a, b in zip(after, before, strict=True)]


def test_three_layers_reach_three_segments_and_not_a_fourth():
    params, xs = random_model(num_layers=3), segments(6, 3)
    found = changes(params, xs, (0, 0), memory_length=3)
    assert min(found[:4]) > 1e-6
    assert found[4:] == [0, 0]


@pytest.mark.parametrize(("positions", "memory_length"), [(2, 2), (2, 4), (3, 3), (3, 2), (2, 3), (3, 1)])
def test_it_reaches_as_far_as_layers_times_memory_where_segments_divide_the_memory(positions, memory_length):
    num_layers, count = 2, 7
    params, xs = random_model(num_layers=num_layers), segments(count, positions, batch=(1,))
    first_of_last = (count - 1) * positions
    steps = [changes(params, xs, divmod(place, positions), memory_length=memory_length)[-1] for place in range(first_of_last)]
    # A row that is reached was itself a part of a segment, and saw what stood before that: whole segments at a time.
    reach = (num_layers - 1) * -(-memory_length // positions) * positions + memory_length
    assert reach == num_layers * memory_length or memory_length % positions
    assert all(step == 0 for step in steps[: first_of_last - reach])
    assert steps[first_of_last - reach] > 1e-9


def test_beyond_its_reach_gradients_are_zero_to_the_bit():
    params, xs = random_model(num_layers=3), segments(6, 3)
    douts = [*np.zeros((5, 2, 3, WIDTH)), np.random.default_rng(3).normal(size=(2, 3, WIDTH))]
    _, _, dxs = read_through(params, xs, douts, memory_length=3)
    assert all(np.abs(dx).min() > 0 for dx in dxs[2:])
    assert not any(dx.any() for dx in dxs[:2])


def test_nothing_leaks_through_a_stopped_memory():
    params, xs = random_model(), segments(2, 3)
    (_, memory), first_backward = transformer_xl(params, xs[0], num_heads=HEADS, memory_length=3)
    (out, _), backward = transformer_xl(params, xs[1], memory=memory, num_heads=HEADS, memory_length=3)
    assert len(backward((np.ones_like(out), None))) == 2     # of params and of x, and nothing for memory
    for _, gradient in trees.leaves(first_backward((np.zeros_like(out), None))):
        np.testing.assert_array_equal(gradient, 0)
    # It does matter: by position the same memory has a gradient.
    (same, _), through = transformer_xl_through_memory(params, xs[1], memory, num_heads=HEADS, memory_length=3)
    np.testing.assert_array_equal(same, out)
    assert all(np.abs(rows).min() > 0 for rows in through((np.ones_like(out), None))[2].rows)


def test_what_is_kept_are_the_inputs_of_each_layer():
    params, xs = random_model(), segments(3, 2)
    _, memory, _ = read(params, xs, memory_length=3)
    np.testing.assert_array_equal(memory.rows[0], np.concatenate(xs, axis=1)[:, -3:])
    (above, _), _ = transformer_xl(params[:1], xs[0], num_heads=HEADS, memory_length=2)
    (_, first), _ = transformer_xl(params, xs[0], num_heads=HEADS, memory_length=2)
    np.testing.assert_array_equal(first.rows[1], above)


def test_a_memory_grows_to_its_length_and_no_further():
    params, xs = random_model(), segments(4, 2)
    lengths = [read(params, xs[:count], memory_length=5)[1].rows[1].shape[1] for count in (1, 2, 3, 4)]
    assert lengths == [2, 4, 5, 5]


def test_a_memory_shares_nothing_with_the_text_it_came_from():
    params, (x,) = random_model(), segments(1, 3)
    for memory_length in (2, 3, 5):
        (_, memory), _ = transformer_xl(params, x, num_heads=HEADS, memory_length=memory_length)
        assert not np.shares_memory(memory.rows[0], x)
    (_, before), _ = transformer_xl(params, x, memory=memory, num_heads=HEADS, memory_length=3)
    assert not any(np.shares_memory(a, b) for a in before.rows for b in (*memory.rows, x))


def test_a_longer_memory_than_before_can_be_asked_for_at_any_time():
    params, xs = random_model(), segments(4, 2)
    _, memory, _ = read(params, xs[:2], memory_length=2)
    (_, longer), _ = transformer_xl(params, xs[2], memory=memory, num_heads=HEADS, memory_length=6)
    assert longer.rows[0].shape[1] == 4


@pytest.mark.parametrize("wrong", [(3, 2, WIDTH), (1, 2, WIDTH), (2, WIDTH), (2, 2, 6)])
def test_a_memory_of_another_batch_or_width_is_refused(wrong):
    params, (x,) = random_model(), segments(1, 3)
    memory = XlMemory([np.ones((2, 2, WIDTH)), np.ones(wrong)])
    for call in (partial(transformer_xl, params, x, memory=memory), partial(transformer_xl_through_memory, params, x, memory)):
        with pytest.raises(ValueError, match=r"memory\.rows\.1"):
            call(num_heads=HEADS, memory_length=3)


def test_a_memory_of_another_stack_is_refused():
    params, (x,) = random_model(), segments(1, 3)
    with pytest.raises(ValueError, match=r"memory\.rows: got those of 1 layers, wants those of 2"):
        transformer_xl(params, x, memory=XlMemory([np.ones((2, 2, WIDTH))]), num_heads=HEADS, memory_length=3)


def kept_rows_forgotten(params, x, memory):
    """Only what the layers read is counted, not that the rows go on into the next memory."""
    result, backward = transformer_xl_through_memory(params, x, memory, num_heads=HEADS, memory_length=4)
    return result, lambda dresult: backward((dresult[0], None))


def test_the_checker_refuses_a_backward_that_forgets_what_was_kept():
    params, (x,) = random_model(), segments(1, 2)
    memory = XlMemory(list(np.random.default_rng(4).normal(size=(2, 2, 2, WIDTH))))
    report = checked(kept_rows_forgotten, params, x, memory, second_opinion=False)
    assert {a.path for a in report.arguments if not a.error <= 1e-6} >= {"x", "memory.rows.0", "memory.rows.1"}


def leaking(params, x, old):
    """Two segments with a memory that should be stopped, and a backward that sends its gradient on."""
    (_, memory), first_backward = transformer_xl(params, old, num_heads=HEADS, memory_length=3)
    (out, _), backward = transformer_xl_through_memory(params, x, memory, num_heads=HEADS, memory_length=3)

    def leak(dout):
        dparams, dx, dmemory = backward((dout, None))
        dfirst, dold = first_backward((None, dmemory))
        return trees.map(np.add, dparams, dfirst), dx, dold

    return out, leak


def test_the_checker_refuses_a_leak_where_memory_is_meant_to_stand_still():
    params, (old, x) = random_model(), segments(2, 2)
    (_, memory), _ = transformer_xl(params, old, num_heads=HEADS, memory_length=3)

    def still(*_):
        return lambda params, x, old: transformer_xl(params, x, memory=memory, num_heads=HEADS, memory_length=3)[0][0] + 0 * old

    report = checked(leaking, params, x, old, gradient_of=still, second_opinion=False)
    assert {a.path for a in report.arguments if not a.error <= 1e-6} >= {"old", "params.0.attention.key.weight"}
    assert next(a for a in report.arguments if a.path == "x").error <= 1e-6


def test_float32_stays_float32_in_outputs_memories_and_gradients():
    params, (x, y) = trees.cast(random_model(), np.float32), trees.cast(segments(2, 3), np.float32)
    outs, memory, backwards = read(params, [x, y], memory_length=4)
    assert {leaf.dtype for _, leaf in trees.leaves((outs, memory, backwards[1]((outs[1], None))))} == {np.dtype(np.float32)}
