"""ERNIE-Doc: each layer reads its own outputs of before. One index apart from Transformer-XL, and without an end."""

from functools import partial

import autograd.numpy as anp
import numpy as np
import pytest
from xl_textbook import gradients, mapped, network, norm, softmax, wave

from minitransformers import check_gradients, trees
from minitransformers.long_context.ernie_doc import ernie_doc, ernie_doc_through_memory
from minitransformers.long_context.memory_replay import memory_replay
from minitransformers.long_context.transformer_xl import XlMemory, init_transformer_xl, transformer_xl
from minitransformers.long_context.transformer_xl_layer import transformer_xl_layer, transformer_xl_pre_norm_layer

RNG = np.random.default_rng(0)
LAYERS = init_transformer_xl(RNG, 6, num_layers=3, num_heads=3, d_hidden=5, dtype=np.float64)
LAYERS = trees.map(lambda leaf: leaf + RNG.normal(0, 0.3, leaf.shape), LAYERS)
X, DOUT = RNG.normal(size=(2, 4, 6)), RNG.normal(size=(2, 4, 6))
MEMORY = XlMemory([RNG.normal(size=(2, 3, 6)) for _ in LAYERS])
SIZES = {"num_heads": 3, "memory_length": 5}


def attention(p, rows, old, heads=3):
    """One text, both ways, one head and one query at a time."""
    context, out = [*old, *rows], []
    for i in range(len(rows)):
        found = []
        for h in range(heads):
            cut, scores = slice(2 * h, 2 * h + 2), []
            query = mapped(p.query, rows[i])[cut]
            for j in range(len(context)):
                key, r = mapped(p.key, context[j])[cut], wave(len(old) + i - j, 6) @ p.core.distance[h]
                scores.append((query @ key + query @ r + p.core.u[h] @ key + p.core.w[h] @ r) / 2**0.5)
            weights = softmax(anp.array(scores))
            found.append(sum(weight * mapped(p.value, row)[cut] for weight, row in zip(weights, context, strict=True)))
        out.append(mapped(p.output, anp.concatenate(found)))
    return out


def written_out(layers, x, memories, memory_length):
    """One segment of one text: out, and the rows that each layer keeps."""
    rows, kept = list(x), []
    for p, old in zip(layers, memories, strict=True):
        middle = [norm(p.attention_norm, row + added) for row, added in zip(rows, attention(p.attention, rows, list(old)), strict=True)]
        rows = [norm(p.feed_forward_norm, row + network(p.feed_forward, row)) for row in middle]
        kept.append([*old, *rows][-memory_length:])
    return anp.stack(rows), [anp.stack(own) for own in kept]


@pytest.mark.parametrize("memory_length", [2, 5, 9])
def test_it_is_what_is_written_out_and_its_gradients_are_autograd_s(memory_length):
    (out, after), backward = ernie_doc_through_memory(LAYERS, X, MEMORY, num_heads=3, memory_length=memory_length)
    dafter = XlMemory([RNG.normal(size=rows.shape) for rows in after.rows])

    def loss(layers, x, memory):
        total = 0.0
        for text in range(2):
            theirs, kept = written_out(layers, x[text], [rows[text] for rows in memory.rows], memory_length)
            total = total + anp.sum(DOUT[text] * theirs) + sum(anp.sum(d[text] * own) for d, own in zip(dafter.rows, kept, strict=True))
        return total

    for text in range(2):
        theirs, kept = written_out(LAYERS, X[text], [rows[text] for rows in MEMORY.rows], memory_length)
        np.testing.assert_allclose(out[text], theirs, rtol=0, atol=1e-12)
        for own, other in zip(after.rows, kept, strict=True):
            np.testing.assert_allclose(own[text], other, rtol=0, atol=1e-12)
    expected = gradients(loss, LAYERS, X, MEMORY)
    for (path, own), other in zip(trees.leaves(backward((DOUT, dafter))), expected, strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-10, err_msg=path)


def test_nothing_leaks_through_a_memory_that_is_stopped():
    """The same numbers and the same gradients as with the memory by position, but for that of the memory, which there is none of."""
    for dafter in (None, XlMemory([RNG.normal(size=(2, 5, 6)) for _ in LAYERS])):
        (out, after), backward = ernie_doc(LAYERS, X, memory=MEMORY, **SIZES)
        (other, other_after), through = ernie_doc_through_memory(LAYERS, X, MEMORY, **SIZES)
        np.testing.assert_array_equal(out, other)
        for own, theirs in zip(after.rows, other_after.rows, strict=True):
            np.testing.assert_array_equal(own, theirs)
        stopped, whole = backward((DOUT, dafter)), through((DOUT, dafter))
        assert len(stopped) == 2 and len(whole) == 3
        for (path, own), (_, theirs) in zip(trees.leaves(stopped), trees.leaves(whole[:2]), strict=True):
            np.testing.assert_array_equal(own, theirs, err_msg=path)
        assert all(np.abs(rows).min() > 0 for rows in whole[2].rows)


def chained(step, xs, memory_length=4):
    """All segments, each with the memory that the one before has left; the outputs and the backwards."""
    memory, outs, backwards = None, [], []
    for x in xs:
        (out, memory), backward = step(LAYERS, x, memory=memory, num_heads=3, memory_length=memory_length)
        outs.append(out)
        backwards.append(backward)
    return np.stack(outs), backwards


def changes(step, segments=9, **settings):
    """How much each segment's output changes when the first segment does."""
    xs = np.random.default_rng(1).normal(size=(segments, 1, 4, 6))
    other = xs.copy()
    other[0] += np.random.default_rng(2).normal(size=(1, 4, 6))
    return np.abs(chained(partial(step, **settings), xs)[0] - chained(partial(step, **settings), other)[0]).max((1, 2, 3))


@pytest.mark.parametrize("layer", [transformer_xl_layer, transformer_xl_pre_norm_layer])
def test_its_reach_has_no_end_and_transformer_xl_s_ends_after_as_many_segments_as_layers(layer):
    below, same = changes(transformer_xl, layer=layer), changes(ernie_doc, layer=layer)
    assert (below[:4] > 1e-3).all() and not below[4:].any()
    assert (same > 0).all()
    assert (changes(ernie_doc) > 0).all()


def test_the_only_difference_to_transformer_xl_is_which_rows_are_kept():
    (out, after), _ = ernie_doc(LAYERS, X, memory=MEMORY, layer=transformer_xl_layer, **SIZES)
    (other, other_after), _ = transformer_xl(LAYERS, X, memory=MEMORY, **SIZES)
    np.testing.assert_array_equal(out, other)
    for n in range(2):
        np.testing.assert_array_equal(after.rows[n][:, 1:], other_after.rows[n + 1][:, 1:])  # out of layer n is into layer n + 1
    np.testing.assert_array_equal(after.rows[2][:, 1:], out)
    np.testing.assert_array_equal(other_after.rows[0][:, 1:], X)


def test_with_one_layer_it_is_a_recurrent_network_whose_state_is_its_output():
    state, xs = None, RNG.normal(size=(4, 2, 3, 6))
    memory = None
    for x in xs:
        state, _ = transformer_xl_layer(LAYERS[0], x, state, num_heads=3)
        (out, memory), _ = ernie_doc(LAYERS[:1], x, memory=memory, num_heads=3, memory_length=3, layer=transformer_xl_layer)
        np.testing.assert_array_equal(out, state)
        np.testing.assert_array_equal(memory.rows[0], state)


def test_it_looks_both_ways_inside_a_segment():
    later = X.copy()
    later[:, -1] += np.arange(6)
    both = [ernie_doc(LAYERS, x, memory=MEMORY, **SIZES)[0][0] for x in (X, later)]
    back = [ernie_doc(LAYERS, x, memory=MEMORY, layer=transformer_xl_layer, **SIZES)[0][0] for x in (X, later)]
    assert (np.abs(both[1] - both[0])[:, 0].max(-1) > 0).all()
    np.testing.assert_array_equal(back[0][:, :-1], back[1][:, :-1])


def test_memory_is_the_last_rows_of_what_each_layer_has_put_out():
    memory, outs = None, []
    for t, x in enumerate(RNG.normal(size=(4, 1, 3, 6))):
        (out, memory), _ = ernie_doc(LAYERS, x, memory=memory, num_heads=3, memory_length=7)
        outs.append(out)
        assert [rows.shape for rows in memory.rows] == 3 * [(1, min(7, 3 * (t + 1)), 6)]
    np.testing.assert_array_equal(memory.rows[-1], np.concatenate(outs, axis=1)[:, -7:])


def test_a_new_text_starts_with_nothing():
    first, _ = ernie_doc(LAYERS, X, **SIZES)
    report = check_gradients(partial(ernie_doc, **SIZES), LAYERS, X)
    assert report.passed, str(report)
    for text in range(2):
        alone, _ = ernie_doc(LAYERS, X[text], **SIZES)
        np.testing.assert_allclose(alone[0], first[0][text], rtol=0, atol=1e-13)


def test_through_memory_and_replayed_it_has_the_gradient_of_the_whole_text():
    xs, dlast = RNG.normal(size=(4, 1, 3, 6)), np.zeros((4, 1, 3, 6))
    dlast[-1] = RNG.normal(size=(1, 3, 6))
    step = partial(ernie_doc_through_memory, num_heads=3, memory_length=3)
    _, backward = memory_replay(LAYERS[:2], xs, step=step)
    dlayers, dx, _ = backward((dlast, None))

    def loss(layers, xs):
        memories = [[], []]
        for x in xs:
            out, memories = written_out(layers, x[0], memories, 3)
        return anp.sum(dlast[-1, 0] * out)

    for (path, own), theirs in zip(trees.leaves((dlayers, dx)), gradients(loss, LAYERS[:2], xs), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10, err_msg=path)
    assert np.abs(dx[0]).max() > 0


@pytest.mark.parametrize("forgotten", ["that what comes out is kept", "that old rows are kept on", "the memory's rows"])
def test_the_check_refuses_a_backward_that_forgets(forgotten):
    def wrong(params, x, memory):
        result, backward = ernie_doc_through_memory(params, x, memory, num_heads=1, memory_length=4)

        def careless(dresult):
            dparams, dx, dmemory = backward(dresult)
            if forgotten == "that what comes out is kept":
                dparams, dx, _ = backward((dresult[0], None))
            elif forgotten == "that old rows are kept on":
                dmemory = XlMemory([np.concatenate([rows[..., :-1, :], rows[..., -1:, :] - d[..., :1, :]], axis=-2) for rows, d in zip(dmemory.rows, dresult[1].rows, strict=True)])
            else:
                dmemory = trees.zeros_like(dmemory)
            return dparams, dx, dmemory

        return result, careless

    # Small enough to move every number by itself, as is done where a gradient is refused.
    small = init_transformer_xl(RNG, 4, num_layers=2, num_heads=1, d_hidden=2, std=0.5, dtype=np.float64)
    assert not check_gradients(wrong, small, RNG.normal(size=(2, 4)), XlMemory([RNG.normal(size=(3, 4)) for _ in small])).passed


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="params: got no layers"):
        ernie_doc([], X, **SIZES)
    with pytest.raises(ValueError, match=r"memory\.rows: got those of 2 layers, wants those of 3"):
        ernie_doc(LAYERS, X, memory=XlMemory(MEMORY.rows[:2]), **SIZES)
    with pytest.raises(ValueError, match=r"memory\.rows\.1"):
        ernie_doc(LAYERS, X, memory=XlMemory([MEMORY.rows[0], MEMORY.rows[1][:1], MEMORY.rows[2]]), **SIZES)
    with pytest.raises(ValueError, match="memory_length"):
        ernie_doc(LAYERS, X, num_heads=3, memory_length=0)
