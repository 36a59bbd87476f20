"""The chunked form: equal to both others whatever the chunk, right in float32 where the balance in one line is not, and its cost."""

import sys
import tracemalloc

import numpy as np
import pytest
from naive_ssd import assert_same, everything, naive_ssd, random_case

from minitransformers.foundation import check_gradients
from minitransformers.state_space.ssd_chunked import ssd_chunked
from minitransformers.state_space.ssd_quadratic import ssd_quadratic
from minitransformers.state_space.ssd_recurrent import ssd_recurrent


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5, 8, 11, 12, 100, np.int64(3)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_equals_the_recurrence_whatever_the_chunk_with_every_gradient(chunk, groups):
    arguments, dout = random_case(11, 4, groups, batch=(2, 1))
    assert_same(everything(ssd_chunked, arguments, dout, chunk=chunk), everything(ssd_recurrent, arguments, dout))
    arguments = (*arguments[:-1], None)
    assert_same(everything(ssd_chunked, arguments, dout, chunk=chunk), everything(ssd_recurrent, arguments, dout))


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 64, 70])
def test_equals_the_quadratic_form_at_every_length(n):
    arguments, dout = random_case(n)
    assert_same(everything(ssd_chunked, arguments, dout), everything(ssd_quadratic, arguments, dout))


@pytest.mark.parametrize("n", [1, 2])
def test_a_single_position_is_one_step_of_the_recurrence_and_no_chunk(monkeypatch, n):
    arguments, dout = random_case(n)
    expected, asked = everything(ssd_recurrent, arguments, dout), []

    def watched(*arguments):
        asked.append(arguments)
        return ssd_recurrent(*arguments)

    monkeypatch.setattr(sys.modules[ssd_chunked.__module__], "ssd_recurrent", watched)
    assert_same(everything(ssd_chunked, arguments, dout), expected, atol=0 if n == 1 else 1e-12)
    assert len(asked) == (n == 1)


def test_equals_the_naive_loop():
    arguments, _ = random_case()
    assert_same(ssd_chunked(*arguments, chunk=4)[0], naive_ssd(*arguments))


def test_it_is_the_quadratic_form_folded_over_the_chunks():
    (x, log_decay, B, C, state), dout = random_case(12)
    expected = everything(ssd_chunked, (x, log_decay, B, C, state), dout, chunk=4)
    outputs, backwards = [], []
    for start in (0, 4, 8):
        part = np.s_[start : start + 4]
        (y, state), backward = ssd_quadratic(x[part], log_decay[part], B[part], C[part], state)
        outputs.append(y)
        backwards.append(backward)
    gradients, dstate = [], dout[1]
    for start in (8, 4, 0):
        *gradient, dstate = backwards.pop()((dout[0][start : start + 4], dstate))
        gradients.insert(0, gradient)
    assert_same([np.concatenate(outputs), state, *map(np.concatenate, zip(*gradients, strict=True)), dstate], expected)


def balance(dy, y, dx, x, dstate, final):
    """The decays' gradients from inputs, outputs and their gradients alone: right on paper."""
    dsums = np.vecdot(dy, y) - np.vecdot(dx, x)
    dsums[-1] += (dstate * final).sum((-1, -2))
    return np.cumsum(dsums[::-1], axis=0)[::-1]


def test_on_paper_the_decay_gradient_is_the_balance_in_one_line():
    arguments, (dy, dstate) = random_case()
    y, final, dx, dlog_decay, *_ = everything(ssd_chunked, arguments, (dy, dstate), chunk=4)
    np.testing.assert_allclose(balance(dy, y, dx, arguments[0], dstate, final), dlog_decay, rtol=0, atol=1e-12)


def test_what_is_left_of_the_balance_is_what_came_from_before_the_sequence():
    # the map is linear in (x, state): what its outputs weigh against dout, its inputs weigh against their gradients
    arguments, (dy, dstate) = random_case()
    y, final, dx, _, _, _, dinitial = everything(ssd_chunked, arguments, (dy, dstate), chunk=4)
    out, back = (dy * y).sum() + (dstate * final).sum(), (dx * arguments[0]).sum() + (dinitial * arguments[4]).sum()
    np.testing.assert_allclose(out, back, rtol=0, atol=1e-12)


def test_float32_is_close_to_float64_over_a_long_sequence():
    arguments, dout = random_case(600, 4, 2, 8, 6)
    single = everything(ssd_chunked, [a.astype(np.float32) for a in arguments], [d.astype(np.float32) for d in dout])
    for own, exact in zip(single, everything(ssd_recurrent, arguments, dout), strict=True):
        assert own.dtype == np.float32
        np.testing.assert_allclose(own, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


def test_a_reset_inside_a_chunk_does_not_blur_what_follows_it_in_float32():
    (x, log_decay, B, C, state), dout = random_case(20)
    log_decay[9] = -1e6
    single = everything(ssd_chunked, [a.astype(np.float32) for a in (x, log_decay, B, C, state)], [d.astype(np.float32) for d in dout])
    for own, exact in zip(single, everything(ssd_recurrent, (x, log_decay, B, C, state), dout), strict=True):
        np.testing.assert_allclose(own, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


def test_strong_decays_and_resets_have_right_gradients_in_float32():
    arguments, dout = random_case(64, 2, 1, 16, 16)
    arguments[1][:], arguments[1][20] = -16.0, -1e6
    exact = everything(ssd_recurrent, arguments, dout)[3]
    single, dsingle = ([a.astype(np.float32) for a in part] for part in (arguments, dout))
    y, final, dx, dlog_decay, *_ = everything(ssd_chunked, single, dsingle)
    np.testing.assert_allclose(dlog_decay, exact, rtol=0, atol=1e-6 * np.abs(exact[21:]).max())
    assert not dlog_decay[20].any()                          # nothing crosses a reset; a step of 1e6 would make much of little
    lost = balance(dsingle[0], y, dx, single[0], dsingle[1], final)
    assert np.abs(lost - exact).max() > 0.1 * np.abs(exact).max()  # what the balance would give


def test_results_may_be_overwritten_before_the_backward():
    arguments, dout = random_case()
    expected = everything(ssd_chunked, arguments, dout, chunk=4)[2:]
    (y, state), backward = ssd_chunked(*arguments, chunk=4)
    y += 1
    state += 1
    assert_same(backward(dout), expected, atol=0)


def test_memory_grows_with_the_length_and_no_faster():
    def peak(n):
        arguments, dout = random_case(n, 2, 1, 8, 8)
        tracemalloc.start()
        everything(ssd_chunked, arguments, dout)
        _, bytes_ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return bytes_

    assert peak(1024) < 2.1 * peak(512)
    assert peak(1024) < 2 * 1024 * 1024 * 8                  # less than the two heads' matrices of n^2 numbers


def without_what_the_state_passes_through(x, log_decay, B, C, state, *, chunk):
    out, backward = ssd_chunked(x, log_decay, B, C, state, chunk=chunk)

    def wrong(dout):
        dx, dlog_decay, dB, dC, dstate = backward(dout)
        passed = np.exp(log_decay.sum(0)) * (dout[1] * state).sum((-1, -2))  # from the first position to the last
        return dx, dlog_decay - passed, dB, dC, dstate

    return out, wrong


def test_the_checker_refuses_a_gradient_without_the_state_that_passes_through():
    report = check_gradients(without_what_the_state_passes_through, *random_case(5)[0], chunk=2)
    assert not report.passed and report.worst.path == "log_decay"
