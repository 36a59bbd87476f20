"""The gated recurrence in chunks: equal to the plain form whatever the chunk, pairs that meet in the middle, and its cost."""

import tracemalloc

import numpy as np
import pytest
from naive_gated_recurrence import random_case
from naive_retention import assert_same, everything

from minitransformers.foundation import check_gradients
from minitransformers.linear_attention import gated_recurrence_chunked as module
from minitransformers.linear_attention.gated_recurrence import gated_recurrence
from minitransformers.linear_attention.gated_recurrence_chunked import gated_recurrence_chunked


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 7, 8, 11, 16, 100, np.int64(4)])
def test_equals_the_plain_form_whatever_the_chunk_with_every_gradient(chunk):
    arguments, dout = random_case(11, 3, 4, 3, batch=(2, 1))
    assert_same(everything(gated_recurrence_chunked, arguments, dout, chunk=chunk), everything(gated_recurrence, arguments, dout))
    arguments = (*arguments[:-1], None)
    assert_same(everything(gated_recurrence_chunked, arguments, dout, chunk=chunk), everything(gated_recurrence, arguments, dout))


@pytest.mark.parametrize("positions", [1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 70])
def test_equals_the_plain_form_at_every_length(positions):
    arguments, dout = random_case(positions)
    assert_same(everything(gated_recurrence_chunked, arguments, dout), everything(gated_recurrence, arguments, dout))


@pytest.mark.parametrize("chunk", [1, 2, 8, 16])
def test_halves_have_the_products_of_the_decays_since_and_until_the_middle(chunk):
    decay = np.random.default_rng(1).uniform(0.1, 1.0, size=(2, 16, 3))
    *levels, (whole, since, until) = module.fading_levels(decay, chunk)
    assert whole == chunk and [half for half, _, _ in levels] == [1 << i for i in range(chunk.bit_length() - 1)]
    for half, since_middle, until_middle in levels:
        for block in range(16 // (2 * half)):
            for place in range(half):
                middle = 2 * half * block + half
                np.testing.assert_allclose(since_middle[:, block, place], decay[:, middle : middle + place + 1].prod(1), rtol=1e-14)
                np.testing.assert_allclose(until_middle[:, block, place], decay[:, middle - half + place + 1 : middle].prod(1), rtol=1e-14)
    for place in range(16):
        start = place - place % chunk
        np.testing.assert_allclose(since[:, place], decay[:, start : place + 1].prod(1), rtol=1e-14)
        np.testing.assert_allclose(until[:, place], decay[:, place + 1 : start + chunk].prod(1), rtol=1e-14)


@pytest.mark.parametrize(("positions", "chunk", "size"), [(70, 16, 16), (70, 11, 16), (70, 17, 32), (5, 16, 8), (4, 16, 4), (1, 16, 1), (70, 1, 1), (70, 2, 2)])
def test_a_chunk_is_the_next_power_of_two_and_no_longer_than_the_text_needs(positions, chunk, size, monkeypatch):
    sizes, fading = [], module.fading_levels
    monkeypatch.setattr(module, "fading_levels", lambda decay, size: sizes.append((decay.shape[-2], size)) or fading(decay, size))
    gated_recurrence_chunked(*random_case(positions)[0], chunk=chunk)
    assert sizes == [(-(-positions // size) * size, size)]


def test_memory_grows_with_the_length_and_no_faster():
    def peak(positions):
        arguments, dout = random_case(positions, 8, 8)
        tracemalloc.start()
        everything(gated_recurrence_chunked, arguments, dout)
        _, bytes_ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return bytes_

    assert peak(1024) < 2.1 * peak(512)
    assert peak(1024) < 1024 * 1024 * 8                      # half of the two heads' weights of all pairs


def test_a_chunk_that_is_none_is_named():
    arguments, _ = random_case()
    for chunk in (0, -1, 2.5, "all"):
        with pytest.raises(ValueError, match=r"chunk: got .*, wants a whole number of at least 1"):
            gated_recurrence_chunked(*arguments, chunk=chunk)


def without_what_crosses_a_chunk(query, key, value, log_decay, state, *, chunk):
    """Each chunk's decays as they are for its own positions: what passes through it from before to after is forgotten."""
    out, backward = gated_recurrence_chunked(query, key, value, log_decay, state, chunk=chunk)

    def wrong(dout):
        dquery, dkey, dvalue, dlog_decay, dstate = backward(dout)
        passed = np.exp(log_decay.sum(-2)) * (dout[1] * state).sum(-1)  # from before the text to after it
        return dquery, dkey, dvalue, dlog_decay - passed[..., None, :], dstate

    return out, wrong


def test_the_checker_refuses_a_gradient_without_the_state_that_passes_through():
    report = check_gradients(without_what_crosses_a_chunk, *random_case(5)[0], chunk=2)
    assert not report.passed and report.worst.path == "log_decay"
