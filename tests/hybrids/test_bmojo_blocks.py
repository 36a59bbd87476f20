"""B'MOJO in blocks and token by token: equal to the plain form, forward and backward, and of the cost and the size that they are for."""

import tracemalloc

import numpy as np
import pytest
from bmojo_cases import CORES, HEADS, PREPARES, SIZES, case, checked, noting, small, with_slots

from minitransformers.foundation import trees
from minitransformers.hybrids import bmojo_blocks as module
from minitransformers.hybrids.bmojo import bmojo, init_bmojo
from minitransformers.hybrids.bmojo_blocks import bmojo_blocks, bmojo_step, init_bmojo_blocks
from minitransformers.hybrids.eidetic_memory import eidetic_mask, innovation
from minitransformers.state_space.mamba import mamba


def assert_equals_the_plain_form(params, x, **settings):
    dout = np.random.default_rng(1).normal(size=x.shape)
    (own, own_backward), (out, backward) = (form(params, x, **settings) for form in (bmojo_blocks, bmojo))
    np.testing.assert_allclose(own, out, rtol=0, atol=1e-12)
    for (path, part), (_, expected) in zip(trees.leaves(own_backward(dout)), trees.leaves(backward(dout)), strict=True):
        np.testing.assert_allclose(part, expected, rtol=0, atol=1e-12, err_msg=path)


@pytest.mark.parametrize("memory", [0, 1, 2, 5, 30])
@pytest.mark.parametrize("window", [1, 2, 3, 5, 8, 40])
@pytest.mark.parametrize("positions", [1, 2, 3, 7, 12, 17])
def test_equals_the_plain_form_with_all_gradients(positions, window, memory):
    params, x = case(positions=positions, d_model=4)
    assert_equals_the_plain_form(params, x, num_heads=HEADS, window=window, memory=memory)


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)])
def test_equals_the_plain_form_under_any_batch_axes(batch):
    params, x = case(batch=batch)
    assert_equals_the_plain_form(params, x, **SIZES)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("prepare", PREPARES)
@pytest.mark.parametrize(("window", "memory"), [(3, 2), (4, 0)])
def test_equals_the_plain_form_whatever_stands_in_the_slots(prepare, core, window, memory):
    params, x = case()
    params, slots = with_slots(params, prepare, core)
    assert_equals_the_plain_form(params, x, num_heads=HEADS, window=window, memory=memory, **slots)


def test_tokens_of_which_many_are_alike_are_kept_as_in_the_plain_form():
    """Equal innovations: the earlier stays, in every block."""
    params, x = case(positions=20)
    assert_equals_the_plain_form(params, np.tile(x[:, :4], (1, 5, 1)), **SIZES)


def test_memory_grows_with_positions_and_not_with_their_square():
    params, _ = case(d_model=4, dtype=np.float32)

    def peak(form, positions):
        x = np.random.default_rng(0).normal(size=(positions, 4)).astype(np.float32)
        tracemalloc.start()
        out, backward = form(params, x, num_heads=HEADS, window=16, memory=8)
        backward(out)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(bmojo_blocks, 64)                                   # what the first call imports
    assert peak(bmojo_blocks, 2048) / peak(bmojo_blocks, 512) < 4.5  # a square would be 16
    assert peak(bmojo, 512) / peak(bmojo, 128) > 10          # which it is for the plain form


def test_it_begins_as_the_plain_form_does():
    assert init_bmojo_blocks is init_bmojo


# Token by token ----------------------------------------------------------------------------------------------------------


def decoded(params, x, pieces, **settings):
    state, parts = None, []
    for start, size in zip(np.cumsum((0, *pieces)), pieces, strict=False):
        part, state = bmojo_step(params, x[:, start : start + size], state, **settings)
        parts.append(part)
    return np.concatenate(parts, axis=1), state


@pytest.mark.parametrize("prepare", ["none", "rope"])
@pytest.mark.parametrize("pieces", [(1,) * 14, (14,), (5, 1, 1, 7)])
@pytest.mark.parametrize(("window", "memory"), [(3, 2), (4, 0), (1, 3), (20, 2)])
def test_token_by_token_it_is_the_same_choice_included(pieces, window, memory, prepare):
    params, x = case()
    params, slots = with_slots(params, prepare, "softmax")
    settings = {"num_heads": HEADS, "window": window, "memory": memory, **slots}
    out, state = decoded(params, x, pieces, **settings)
    np.testing.assert_allclose(out, bmojo(params, x, **settings)[0], rtol=0, atol=1e-12)
    kept = eidetic_mask(innovation(x, mamba(params.ssm, x)[0])[0], window=window, memory=memory)
    for b in range(2):
        found = set() if state.eidetic is None else set(state.eidetic.position[b].tolist())
        assert found == set(np.flatnonzero(kept[b, 13]).tolist())


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("prepare", PREPARES)
def test_steps_equal_the_whole_whatever_stands_in_the_slots(prepare, core):
    params, x = case()
    params, slots = with_slots(params, prepare, core)
    whole, _ = bmojo(params, x, **SIZES, **slots)
    for pieces in ((1,) * 14, (5, 1, 8)):
        np.testing.assert_allclose(decoded(params, x, pieces, **SIZES, **slots)[0], whole, rtol=0, atol=1e-12)


def test_a_prepare_is_told_the_positions_none_for_a_whole_text_and_in_steps_those_of_the_new_tokens():
    params, x = case()
    seen = []
    bmojo_blocks(params, x, **SIZES, prepare=noting(seen))
    decoded(params, x, (5, 1, 8), **SIZES, prepare=noting(seen))
    assert seen[0] is None
    assert [positions.tolist() for positions in seen[1:]] == [[0, 1, 2, 3, 4], [5], [6, 7, 8, 9, 10, 11, 12, 13]]


def test_the_state_of_a_step_stops_growing():
    params, x = case(positions=20)

    def size(state):
        return sum(np.size(leaf) for _, leaf in trees.leaves(state))

    state, sizes = None, []
    for t in range(20):
        _, state = bmojo_step(params, x[:, t : t + 1], state, **SIZES)
        sizes.append(size(state))
    assert sizes[0] < sizes[3] < sizes[5]
    assert len(set(sizes[5:])) == 1
    assert [a.shape[-2] for a in (state.window, state.fading, state.eidetic.rows)] == [3, 6, 2]


def test_a_step_writes_to_no_state():
    params, x = case()
    _, state = bmojo_step(params, x[:, :9], None, **SIZES)
    before = trees.map(np.array, state)
    one, _ = bmojo_step(params, x[:, 9:10], state, **SIZES)
    two, _ = bmojo_step(params, x[:, 9:10], state, **SIZES)
    np.testing.assert_array_equal(one, two)
    for (path, own), (_, other) in zip(trees.leaves(state), trees.leaves(before), strict=True):
        np.testing.assert_array_equal(own, other, err_msg=path)


def test_float32_steps_stay_float32():
    params, x = case(dtype=np.float32)
    params, slots = with_slots(params, "QK-norm, then rope", "sink")
    state = None
    for t in range(9):
        out, state = bmojo_step(params, x[:, t : t + 1], state, **SIZES, **slots)
        arrays = [out, state.window, state.innovation, state.fading, *([] if state.eidetic is None else [state.eidetic.rows, state.eidetic.innovation])]
        assert {a.dtype for a in arrays} == {np.dtype(np.float32)}


@pytest.mark.parametrize(("changes", "message"), [({"window": 0}, "window: got 0"), ({"memory": -1}, "memory: got -1"), ({"num_heads": 3}, "num_heads: got 3")])
def test_a_step_refuses_what_the_whole_pass_refuses(changes, message):
    params, x = case()
    with pytest.raises(ValueError, match=message):
        bmojo_step(params, x, None, **{**SIZES, **changes})


@pytest.mark.parametrize("cut", [np.s_[..., :0, :], np.s_[..., :1]], ids=["no positions", "one feature"])
def test_a_step_refuses_an_x_that_does_not_fit(cut):
    params, x = case()
    with pytest.raises(ValueError, match="x: got shape"):
        bmojo_step(params, x[cut], None, **SIZES)


# A plausible mistake -----------------------------------------------------------------------------------------------------


def test_the_check_refuses_a_kept_token_that_gets_the_gradient_of_one_query_block_only(monkeypatch):
    """A token in memory is read by block after block. With assignment in the place of a sum, the last one stays."""

    def wrong(params, x):
        out, _ = bmojo_blocks(params, x, **SIZES)
        monkeypatch.setattr(module, "embedding", last_one_wins)
        _, backward = bmojo_blocks(params, x, **SIZES)
        monkeypatch.undo()
        return out, backward

    def last_one_wins(table, *, ids):
        def backward(dout):
            dweight = np.zeros_like(table.weight)
            dweight[ids] = dout
            return module.Embedding(dweight)

        return table.weight[ids], backward

    report = checked(wrong, *small(10), second_opinion=False)
    assert {"params.key.weight", "params.value.weight", "x"} <= {a.path for a in report.arguments if a.error > 1e-4}
