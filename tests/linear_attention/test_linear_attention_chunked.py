"""The chunked form: equal to both others whatever the chunk, and what it costs. What all forms share is in test_linear_attention."""

import tracemalloc

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from naive_linear_attention import assert_same, everything, naive_linear_attention, random_case

from minitransformers.foundation import check_gradients
from minitransformers.linear_attention.linear_attention import linear_attention
from minitransformers.linear_attention.linear_attention_chunked import linear_attention_chunked
from minitransformers.linear_attention.linear_attention_recurrent import linear_attention_recurrent


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 10, 11, 12, 64, np.int64(3)])
@pytest.mark.parametrize("given", [True, False])
def test_equals_the_recurrence_whatever_the_chunk_with_every_gradient(chunk, given):
    (*arrays, state), dout = random_case(11, batch=(2, 1))
    arguments = (*arrays, state if given else None)
    own = everything(linear_attention_chunked, arguments, dout, chunk=chunk)
    assert_same(own, everything(linear_attention_recurrent, arguments, dout))


@pytest.mark.parametrize("positions", [1, 2, 63, 64, 65, 200])
def test_equals_the_plain_form_at_every_length(positions):
    arguments, dout = random_case(positions)
    assert_same(everything(linear_attention_chunked, arguments, dout), everything(linear_attention, arguments, dout))


def test_equals_the_naive_loop_and_its_gradients():
    arguments, (dout, dstate) = random_case(5)

    def loss(arguments):
        out, final = naive_linear_attention(*arguments)
        return anp.sum(dout * out) + anp.sum(dstate * final)

    own = everything(linear_attention_chunked, arguments, (dout, dstate), chunk=2)
    assert_same(own, [*naive_linear_attention(*arguments), *autograd.grad(loss)(arguments)])


def test_it_is_the_plain_form_folded_over_the_chunks():
    (query, key, value, state), dout = random_case(9)
    expected = everything(linear_attention_chunked, (query, key, value, state), dout, chunk=4)
    outputs, backwards, starts = [], [], (0, 4, 8)
    for start in starts:
        part = np.s_[start : start + 4]
        (out, state), backward = linear_attention(None, query[part], key[part], value[part], state)
        outputs.append(out)
        backwards.append(backward)
    gradients, dstate = [], dout[1]
    for start, backward in zip(reversed(starts), reversed(backwards), strict=True):
        _, *gradient, dstate = backward((dout[0][start : start + 4], dstate))
        gradients.insert(0, gradient)
    assert_same([np.concatenate(outputs), state, *map(np.concatenate, zip(*gradients, strict=True)), dstate], expected)


def test_float32_is_close_to_float64_over_a_long_text():
    arguments, dout = random_case(2000, 8, 6)
    single = everything(linear_attention_chunked, [a.astype(np.float32) for a in arguments], [d.astype(np.float32) for d in dout])
    for own, exact in zip(single, everything(linear_attention_chunked, arguments, dout), strict=True):
        assert own.dtype == np.float32
        np.testing.assert_allclose(own, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


def test_results_may_be_overwritten_before_the_backward_of_the_state():
    arguments, dout = random_case()
    expected = everything(linear_attention_chunked, arguments, dout, chunk=4)[2:]
    (_, state), backward = linear_attention_chunked(None, *arguments, chunk=4)
    state += 1
    assert_same(backward(dout)[1:], expected, atol=0)


def peak(function, positions, **config):
    arguments, dout = random_case(positions, 32, 32)
    tracemalloc.start()
    everything(function, arguments, dout, **config)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_memory_grows_with_the_length_and_outer_products_of_all_positions_are_never_made():
    assert peak(linear_attention_chunked, 2048, chunk=32) < 2.1 * peak(linear_attention_chunked, 1024, chunk=32)
    assert peak(linear_attention_chunked, 2048, chunk=32) < 2048 * 32 * 33 * 8 / 2


def with_a_state_that_passes_nothing_on(params, query, key, value, state):
    """A backward in which every chunk is a text of its own."""
    out, _ = linear_attention_chunked(params, query, key, value, state, chunk=2)

    def wrong(dresult):
        before, parts, dafter = state, [], dresult[1]
        for start in range(0, len(query), 2):
            part = np.s_[start : start + 2]
            (_, after), backward = linear_attention(params, query[part], key[part], value[part], before)
            parts.append(backward((dresult[0][part], dafter)))
            before = after
        return None, *(np.concatenate([p[i] for p in parts]) for i in (1, 2, 3)), parts[0][4]

    return out, wrong


def test_the_checker_refuses_chunks_that_pass_no_gradient_back():
    report = check_gradients(with_a_state_that_passes_nothing_on, None, *random_case(5)[0], second_opinion=False)
    assert not report.passed
    assert {argument.path: argument.error > 1e-3 for argument in report.arguments} == {
        "query": False, "key": True, "value": True, "state": True,
    }  # fmt: skip
