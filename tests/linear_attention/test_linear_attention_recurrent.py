"""The recurrent form: equal to the plain one, and nothing kept but the inputs. What all forms share is in test_linear_attention."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from naive_linear_attention import assert_same, everything, naive_linear_attention, random_case

from minitransformers.foundation import check_gradients
from minitransformers.linear_attention.linear_attention import linear_attention
from minitransformers.linear_attention.linear_attention_recurrent import linear_attention_recurrent


def test_equals_the_naive_loop_and_its_gradients():
    arguments, (dout, dstate) = random_case(6, 2, 3)

    def loss(arguments):
        out, final = naive_linear_attention(*arguments)
        return anp.sum(dout * out) + anp.sum(dstate * final)

    own = everything(linear_attention_recurrent, arguments, (dout, dstate))
    assert_same(own, [*naive_linear_attention(*arguments), *autograd.grad(loss)(arguments)])


@pytest.mark.parametrize("positions", [1, 2, 33])
@pytest.mark.parametrize("given", [True, False])
def test_equals_the_plain_form_with_every_gradient(positions, given):
    (*arrays, state), dout = random_case(positions, batch=(2, 3))
    arguments = (*arrays, state if given else None)
    assert_same(everything(linear_attention_recurrent, arguments, dout), everything(linear_attention, arguments, dout))


def test_one_position_at_a_time_through_the_state_is_the_whole():
    (query, key, value, state), _ = random_case(batch=(2,))
    (whole, final), _ = linear_attention_recurrent(None, query, key, value, state)
    for t in range(7):
        at = np.s_[:, t : t + 1]
        (out, state), _ = linear_attention_recurrent(None, query[at], key[at], value[at], state)
        np.testing.assert_allclose(out, whole[at], rtol=0, atol=1e-14)
    np.testing.assert_allclose(state, final, rtol=0, atol=1e-14)


def test_the_state_that_comes_in_and_the_one_that_goes_out_are_not_written_to():
    arguments, dout = random_case()
    before = [a.copy() for a in arguments]
    (_, after), backward = linear_attention_recurrent(None, *arguments)
    copy = after.copy()
    backward(dout)
    np.testing.assert_array_equal(after, copy)
    assert_same(arguments, before, atol=0)


def test_the_backward_keeps_no_states():
    (*arrays, _), _ = random_case(400, 8, 8)
    _, backward = linear_attention_recurrent(None, *arrays)
    kept = [cell.cell_contents for cell in backward.__wrapped__.__closure__]
    largest = max(a.size for a in kept if isinstance(a, np.ndarray))
    assert largest <= 400 * 9                                # values with their ones; the states of all positions are 400 * 8 * 9


def reading_before_writing(params, query, key, value, state):
    """A position that does not see itself, in the backward alone."""
    out, backward = linear_attention_recurrent(params, query, key, value, state)

    def wrong(dresult):
        dparams, dquery, dkey, dvalue, dstate = backward(dresult)
        return dparams, dquery, np.concatenate([dkey[1:], dkey[:1]]), dvalue, dstate

    return out, wrong


def test_the_checker_refuses_gradients_a_position_late():
    report = check_gradients(reading_before_writing, None, *random_case(5)[0], second_opinion=False)
    assert not report.passed and report.worst.path == "key"
