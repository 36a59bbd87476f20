"""The delta rule: what is written under a key takes the place of what stood there, and the gradients of all that."""

import tracemalloc

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from naive_delta_rule import assert_same, everything, naive_delta_rule, random_case

from minitransformers.foundation import check_gradients
from minitransformers.linear_attention.delta_rule import delta_rule
from minitransformers.linear_attention.delta_rule_chunked import delta_rule_chunked
from minitransformers.linear_attention.linear_attention import linear_attention

FORMS = {"plain": (delta_rule, {}), "chunks of 1": (delta_rule_chunked, {"chunk": 1}), "chunks of 3": (delta_rule_chunked, {"chunk": 3}),
         "one chunk": (delta_rule_chunked, {})}  # fmt: skip


@pytest.mark.parametrize("function, config", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("positions", [1, 2, 7])
def test_equals_the_product_of_dense_matrices_and_its_gradients(function, config, positions):
    arguments, (dout, dstate) = random_case(positions)

    def loss(arguments):
        out, final = naive_delta_rule(*arguments)
        return anp.sum(dout * out) + anp.sum(dstate * final)

    own = everything(function, arguments, (dout, dstate), **config)
    assert_same(own, [*naive_delta_rule(*arguments), *autograd.grad(loss)(arguments)], atol=1e-11)


@pytest.mark.parametrize("function, config", FORMS.values(), ids=FORMS)
def test_a_text_cut_anywhere_is_the_whole_text_with_every_gradient(function, config):
    (*arrays, state), (dout, dstate) = random_case(7, batch=(2, 3))
    out, final, *gradients = everything(function, (*arrays, state), (dout, dstate), **config)

    def part(a, first, last):
        return a[..., first:last] if a.ndim == 3 else a[..., first:last, :]

    for cut in range(1, 7):
        first, last = ([part(a, *ends) for a in (*arrays, dout)] for ends in ((0, cut), (cut, 7)))
        (left, middle), left_backward = function(*first[:-1], state, **config)
        (right, end), right_backward = function(*last[:-1], middle, **config)
        *after, dmiddle = right_backward((last[-1], dstate))
        *before, dstart = left_backward((first[-1], dmiddle))
        joined = [np.concatenate(pair, axis=2) for pair in zip((left, *before), (right, *after), strict=True)]
        assert_same([joined[0], end, *joined[1:], dstart], [out, final, *gradients], atol=1e-11)


@pytest.mark.parametrize("function, config", FORMS.values(), ids=FORMS)
def test_no_state_is_a_state_of_zeros_without_a_gradient(function, config):
    (*arrays, state), dout = random_case(5)
    *expected, _ = everything(function, (*arrays, np.zeros_like(state)), dout, **config)
    assert_same(everything(function, (*arrays, None), dout, **config), [*expected, None], atol=0)


@pytest.mark.parametrize("function, config", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("axes", [True, False])
def test_orthonormal_keys_with_beta_1_overwrite_exactly(function, config, axes):
    rng = np.random.default_rng(0)
    keys, values = np.eye(16) if axes else np.linalg.qr(rng.normal(size=(16, 16)))[0], rng.normal(size=(2, 16, 6))
    twice, written = np.concatenate([keys, keys[::-1]]), np.concatenate([values[0], values[1, ::-1]])  # again, the last key first
    (_, state), _ = function(twice, twice, written, np.ones(32), **config)
    np.testing.assert_allclose(keys @ state, values[1], rtol=0, atol=1e-14)


def test_linear_attention_does_not_overwrite_and_reads_a_mixture():
    values = np.random.default_rng(0).normal(size=(2, 16, 6))
    twice, written = np.tile(np.eye(16), (2, 1)), values.reshape(32, 6)  # features of at least 0
    (out, _), _ = linear_attention(None, twice, twice, written, feature_map=lambda _, x: (x, None))
    np.testing.assert_allclose(out[16:], values.mean(0), rtol=0, atol=1e-14)


def test_a_key_that_is_written_reads_its_value_with_beta_1_whatever_stood_there():
    (_, key, value, beta, state), _ = random_case(6)
    np.testing.assert_allclose(delta_rule(key, key, value, np.ones_like(beta), state)[0][0], value, rtol=0, atol=1e-13)


def test_beta_is_the_share_of_the_error_that_is_corrected():
    (_, key, value, beta, state), _ = random_case(1)
    (out, _), _ = delta_rule(key, key, value, beta, state)
    np.testing.assert_allclose(out - key @ state, beta[:, None] * (value - key @ state), rtol=0, atol=1e-14)


def test_it_is_a_step_of_gradient_descent_on_the_recall_error():
    (query, key, value, beta, state), _ = random_case(1)
    slope = autograd.grad(lambda S: anp.sum((anp.dot(key[0], S) - value[0]) ** 2) / 2)(state)
    np.testing.assert_allclose(delta_rule(query, key, value, beta, state)[0][1], state - beta * slope, rtol=0, atol=1e-14)


def test_with_beta_0_nothing_is_written_and_the_error_still_has_a_gradient():
    (query, key, value, beta, state), dout = random_case(4)
    _, final, _, dkey, dvalue, dbeta, dstate = everything(delta_rule, (query, key, value, 0 * beta, state), dout)
    np.testing.assert_array_equal(final, state)
    assert not dkey.any() and not dvalue.any() and (dbeta != 0).all()
    np.testing.assert_allclose(dstate, dout[1] + query.T @ dout[0], rtol=0, atol=1e-14)


def test_keys_of_length_1_keep_a_state_bounded_and_longer_ones_do_not():
    (query, key, value, beta, state), _ = random_case(400)
    nothing = 0 * value
    assert np.linalg.norm(delta_rule(query, key, nothing, beta, state)[0][1]) <= np.linalg.norm(state)
    assert np.linalg.norm(delta_rule(query, 2 * key, nothing, np.ones_like(beta), state)[0][1]) > 1e30  # beta |key|^2 = 4


def test_it_keeps_sqrt_of_the_states():
    def kept(positions):
        (query, key, value, beta, _), _ = random_case(positions, 16, 16)
        tracemalloc.start()
        out = delta_rule(query, key, value, beta)
        bytes_, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        del out
        return bytes_ - value.nbytes                         # out

    state = 16 * 16 * 8
    assert kept(400) < 1.5 * 20 * state
    assert kept(1600) < 1.5 * 40 * state


@pytest.mark.parametrize("function, config", FORMS.values(), ids=FORMS)
def test_a_state_of_other_keys_or_another_batch_is_named(function, config):
    (*arrays, state), _ = random_case(3, batch=(2,))
    for wrong in (state[:1], state[:, :2], state[..., :3]):
        with pytest.raises(ValueError, match=r"state: "):
            function(*arrays, wrong, **config)


def without_the_key_that_read(query, key, value, beta, state):
    """A backward in which a key has a gradient for what it writes, and none for what it reads first."""
    out, backward = delta_rule(query, key, value, beta, state)

    def wrong(dout):
        dquery, dkey, dvalue, dbeta, dstate = backward(dout)
        states = [delta_rule(query[:t], key[:t], value[:t], beta[:t], state)[0][1] if t else state for t in range(len(key))]
        read = np.stack([S @ dv for S, dv in zip(states, dvalue, strict=True)])
        return dquery, dkey + read, dvalue, dbeta, dstate

    return out, wrong


def test_the_checker_refuses_a_key_that_is_not_asked_for_what_it_read():
    report = check_gradients(without_the_key_that_read, *random_case(4)[0], second_opinion=False)
    assert {a.path for a in report.arguments if a.error > 1e-3} == {"key"}


@pytest.mark.parity
@pytest.mark.parametrize("function, config", FORMS.values(), ids=FORMS)
def test_it_is_the_delta_rule_of_qwen3_next_without_its_decay(function, config):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next").torch_recurrent_gated_delta_rule
    (*arrays, state), dout = random_case(9, 4, 5, batch=(2, 3))
    inputs = [torch.tensor(a, requires_grad=True) for a in (*arrays, state)]
    query, key, value, beta = (a.transpose(1, 2) for a in inputs[:4])  # heads after positions; queries are divided by the root of d_head
    results = theirs(query * 2, key, value, 0 * beta, beta, initial_state=inputs[4], output_final_state=True)
    out, final = results[0].transpose(1, 2), results[1]
    gradients = torch.autograd.grad([out, final], inputs, [torch.tensor(d, dtype=o.dtype) for d, o in zip(dout, (out, final), strict=True)])
    own = everything(function, (*arrays, state), dout, **config)
    assert_same(own, [a.detach().numpy() for a in (out, final, *gradients)], atol=1e-5)  # it computes in float32
