"""The recurrent form: the naive loop, states carried over cuts, and what a decay does to the memory."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from naive_ssd import assert_same, everything, naive_ssd, random_case

from minitransformers.foundation import check_gradients
from minitransformers.state_space.ssd_recurrent import ssd_recurrent


@pytest.mark.parametrize("n, heads, groups", [(1, 2, 1), (7, 4, 2), (11, 3, 3)])
def test_equals_the_naive_loop_and_its_gradients(n, heads, groups):
    arguments, (dy, dstate) = random_case(n, heads, groups)
    own = everything(ssd_recurrent, arguments, (dy, dstate))

    def loss(arguments):
        y, final = naive_ssd(*arguments)
        return anp.sum(dy * y) + anp.sum(dstate * final)

    assert_same(own, [*naive_ssd(*arguments), *autograd.grad(loss)(arguments)])


def test_no_state_is_a_state_of_zeros():
    (x, log_decay, B, C, state), dout = random_case()
    without = everything(ssd_recurrent, (x, log_decay, B, C, None), dout)
    assert without[-1] is None
    assert_same(without[:-1], everything(ssd_recurrent, (x, log_decay, B, C, 0 * state), dout)[:-1])


def test_the_first_decay_works_on_the_initial_state_only():
    (x, log_decay, B, C, _), dout = random_case()
    _, backward = ssd_recurrent(x, log_decay, B, C)
    assert not backward(dout)[1][0].any()


@pytest.mark.parametrize("cut", [1, 4, 10])
def test_a_sequence_cut_anywhere_continues_from_its_state(cut):
    (x, log_decay, B, C, state), _ = random_case()
    whole, final = ssd_recurrent(x, log_decay, B, C, state)[0]
    parts = []
    for part in (np.s_[:cut], np.s_[cut:]):
        y, state = ssd_recurrent(x[part], log_decay[part], B[part], C[part], state)[0]
        parts.append(y)
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(state, final)


def test_the_decay_gradient_is_what_flows_through_the_state_before_it():
    # d/d log_decay_t of the loss = <gradient of the state that enters step t, that state>
    (x, log_decay, B, C, state), dout = random_case()
    _, backward = ssd_recurrent(x, log_decay, B, C, state)
    *_, dlog_decay, _, _, _ = backward(dout)[:4], *backward(dout)[1:5]
    (_, before), _ = ssd_recurrent(x[:6], log_decay[:6], B[:6], C[:6], state)
    _, rest = ssd_recurrent(x[6:], log_decay[6:], B[6:], C[6:], before)
    dbefore = rest((dout[0][6:], dout[1]))[-1]
    np.testing.assert_allclose(dlog_decay[6], (dbefore * before).sum((-1, -2)), rtol=0, atol=1e-12)


def with_decay_gradient_of_the_new_state(x, log_decay, B, C, state):
    out, backward = ssd_recurrent(x, log_decay, B, C, state)

    def wrong(dout):
        dx, dlog_decay, *rest = backward(dout)
        return dx, dlog_decay + np.vecdot(dx, x), *rest      # <dh_t, h_t> in the place of decay_t <dh_t, h_{t-1}>

    return out, wrong


def test_the_checker_refuses_the_state_after_the_step_in_the_place_of_the_one_before():
    report = check_gradients(with_decay_gradient_of_the_new_state, *random_case(5)[0])
    assert not report.passed and report.worst.path == "log_decay"
