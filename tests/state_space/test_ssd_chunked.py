"""The chunked form: equal to both others whatever the chunk, the decay gradient in one line against the direct sums, and its cost."""

import tracemalloc

import numpy as np
import pytest
from naive_ssd import assert_same, everything, naive_ssd, random_case

from minitransformers.foundation import check_gradients
from minitransformers.state_space.semiseparable import segsum, sum_over_crossings
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


def direct_decay_gradient(arguments, dout, chunk):
    """The decay's gradient term by term: of L within the chunk, of what is read from the state before, of what is stored."""
    x, log_decay, B, C, h = arguments
    group = np.arange(x.shape[1]) // (x.shape[1] // B.shape[1])
    x, dy = x.swapaxes(0, 1), dout[0].swapaxes(0, 1)         # (heads, n, d)
    key, query = B[:, group].swapaxes(0, 1), C[:, group].swapaxes(0, 1)
    starts, states = range(0, x.shape[1], chunk), [h]
    for start in starts:
        part = np.s_[start : start + chunk]
        states.append(ssd_recurrent(arguments[0][part], log_decay[part], B[part], C[part], states[-1])[0][1])
    dh, found = dout[1], []
    for start, h in reversed(list(zip(starts, states[:-1], strict=True))):
        part = np.s_[:, start : start + chunk]
        L = np.exp(segsum(log_decay.T[part]))
        carry, last = np.exp(np.cumsum(log_decay.T[part], axis=-1))[..., None], L[:, -1, :, None]
        M = L * (query[part] @ key[part].swapaxes(-1, -2))
        within = sum_over_crossings(dy[part] @ x[part].swapaxes(-1, -2) * M)
        read = np.vecdot(dy[part], carry * (query[part] @ h.swapaxes(-1, -2)))
        read = np.cumsum(read[:, ::-1], axis=-1)[:, ::-1]    # an output has decayed over all steps up to its own
        stored = np.vecdot(x[part], last * (key[part] @ dh.swapaxes(-1, -2)))
        stored = np.cumsum(stored, axis=-1) - stored         # an input decays over all steps after its own
        through = carry[:, -1] * (dh * h).sum((-1, -2))[:, None]  # and the state before over all of them
        found.insert(0, (within + read + stored + through).T)
        dh = (carry * dy[part]).swapaxes(-1, -2) @ query[part] + carry[:, -1:] * dh
    return np.concatenate(found)


@pytest.mark.parametrize("chunk", [1, 4, 11])
def test_the_decay_gradient_in_one_line_is_the_sum_of_all_its_terms(chunk):
    arguments, dout = random_case()
    dlog_decay = everything(ssd_chunked, arguments, dout, chunk=chunk)[3]
    np.testing.assert_allclose(dlog_decay, direct_decay_gradient(arguments, dout, chunk), rtol=0, atol=1e-12)


def test_the_decay_gradient_of_the_whole_sequence_is_one_line_too():
    arguments, (dy, dstate) = random_case()
    y, final, dx, dlog_decay, *_ = everything(ssd_chunked, arguments, (dy, dstate), chunk=4)
    dsums = np.vecdot(dy, y) - np.vecdot(dx, arguments[0])
    dsums[-1] += (dstate * final).sum((-1, -2))
    np.testing.assert_allclose(np.cumsum(dsums[::-1], axis=0)[::-1], dlog_decay, rtol=0, atol=1e-12)


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


def without_the_final_state_in_the_balance(x, log_decay, B, C, state, *, chunk):
    out, backward = ssd_chunked(x, log_decay, B, C, state, chunk=chunk)

    def wrong(dout):
        dx, dlog_decay, *rest = backward(dout)
        return dx, dlog_decay - (dout[1] * out[1]).sum((-1, -2)) * (np.arange(len(x)) >= len(x) - 1)[:, None], *rest

    return out, wrong


def test_the_checker_refuses_a_balance_without_the_final_state():
    report = check_gradients(without_the_final_state_in_the_balance, *random_case(5)[0], chunk=2)
    assert not report.passed and report.worst.path == "log_decay"
