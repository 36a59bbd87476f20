"""Linear scan: one recurrence, three orders of work that agree, and a backward that is the scan again."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.sigmoid import sigmoid
from minitransformers.basics.softplus import softplus
from minitransformers.foundation import check_gradients
from minitransformers.state_space.linear_scan import linear_scan

LENGTHS = (1, 2, 5, 8, 13, 64, 100)
ORDERS = [("sequential", 64), ("associative", 64), *(("chunked", chunk) for chunk in (1, 2, 3, 8, 13, 1000))]


def random_call(rng, n=5, lanes=3):
    return rng.uniform(0.2, 1.2, size=(2, n, lanes)), rng.normal(size=(2, n, lanes)), rng.normal(size=(2, lanes))


def textbook(decay, drive, state):
    """Every state written out as a sum over the past, each term with its own product of decays."""
    states = []
    for t in range(drive.shape[1]):
        total = state * anp.prod(decay[:, : t + 1], axis=1)
        for s in range(t + 1):
            total = total + drive[:, s] * anp.prod(decay[:, s + 1 : t + 1], axis=1)
        states.append(total)
    return anp.stack(states, axis=1)


@pytest.mark.parametrize("form, chunk", ORDERS)
@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_equals_the_sum_over_the_past_and_its_gradients(n, form, chunk):
    rng = np.random.default_rng(0)
    call = random_call(rng, n=n)
    dout = rng.normal(size=call[1].shape)
    states, backward = linear_scan(*call, form=form, chunk=chunk)
    np.testing.assert_allclose(states, textbook(*call), rtol=0, atol=1e-12)
    expected = autograd.grad(lambda arguments: anp.sum(dout * textbook(*arguments)))(call)
    for own, theirs in zip(backward(dout), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form, chunk", ORDERS[1:])
@pytest.mark.parametrize("n", LENGTHS)
def test_every_order_gives_the_same_states_and_gradients(n, form, chunk):
    rng = np.random.default_rng(1)
    decay, drive, state = random_call(rng, n=n)
    decay, dout = decay / 1.2, rng.normal(size=drive.shape)
    states, backward = linear_scan(decay, drive, state, form=form, chunk=chunk)
    expected, expected_backward = linear_scan(decay, drive, state)
    np.testing.assert_allclose(states, expected, rtol=0, atol=1e-12)
    for own, theirs in zip(backward(dout), expected_backward(dout), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


def test_the_composition_of_steps_is_associative():
    def then(first, second):
        return second[0] * first[0], second[0] * first[1] + second[1]

    one, two, three = np.random.default_rng(2).normal(size=(3, 2, 100))
    left, right = then(then(one, two), three), then(one, then(two, three))
    np.testing.assert_allclose(left, right, rtol=0, atol=1e-13)


@pytest.mark.parametrize("form", ["sequential", "associative", "chunked"])
def test_decays_of_one_sum_and_decays_of_zero_forget(form):
    drive = np.random.default_rng(3).normal(size=(13, 2))
    np.testing.assert_allclose(linear_scan(np.ones_like(drive), drive, form=form, chunk=5)[0], np.cumsum(drive, axis=0), atol=1e-13)
    np.testing.assert_array_equal(linear_scan(np.zeros_like(drive), drive, form=form, chunk=5)[0], drive)


@pytest.mark.parametrize("form", ["sequential", "associative", "chunked"])
def test_two_halves_that_hand_on_the_state_equal_the_whole(form):
    decay, drive, state = random_call(np.random.default_rng(4), n=9)
    whole, _ = linear_scan(decay, drive, state, form=form, chunk=2)
    first, _ = linear_scan(decay[:, :4], drive[:, :4], state, form=form, chunk=2)
    second, _ = linear_scan(decay[:, 4:], drive[:, 4:], first[:, -1], form=form, chunk=2)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, rtol=0, atol=1e-13)


def test_the_gate_of_a_recurrent_network_is_a_step_held_for_the_time_softplus():
    # Theorem 1 of the Mamba paper: one state, A = -1, B = 1, and a step of softplus(v) with the zero-order hold.
    u, v = np.random.default_rng(5).normal(size=(2, 7, 3))
    decay = np.exp(-softplus(v)[0])
    states, _ = linear_scan(decay, (1 - decay) * u)
    gate, h = sigmoid(v)[0], np.zeros(3)
    for t in range(7):
        h = (1 - gate[t]) * h + gate[t] * u[t]
        np.testing.assert_allclose(states[t], h, rtol=0, atol=1e-15)


def test_a_state_that_is_not_given_is_zero():
    decay, drive, state = random_call(np.random.default_rng(6))
    states, backward = linear_scan(decay, drive)
    with_zeros, with_zeros_backward = linear_scan(decay, drive, np.zeros_like(state))
    np.testing.assert_array_equal(states, with_zeros)
    assert backward(drive)[2] is None
    np.testing.assert_array_equal(backward(drive)[0], with_zeros_backward(drive)[0])


class Counted(np.ndarray):
    """An array that counts the multiplications done on it, one an element."""

    products = 0

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **settings):
        plain = tuple(np.asarray(i) for i in inputs)
        if out is not None:
            settings["out"] = tuple(np.asarray(o) for o in out)
        result = getattr(ufunc, method)(*plain, **settings)
        if ufunc is np.multiply:
            Counted.products += result.size
        return out[0] if out is not None else result.view(Counted)


def products(n, form, chunk=8):
    decay, drive = np.ones((2, n, 1)).view(Counted)
    Counted.products = 0
    linear_scan(decay, drive, form=form, chunk=chunk)
    return Counted.products


def test_the_work_of_every_order_is_linear_in_the_length():
    assert [products(n, "sequential") for n in (1, 64, 4096)] == [1, 64, 4096]
    assert products(64, "associative", chunk=1) == products(64, "associative", chunk=64) == 3 * 64 - 8
    for chunk in (1, 4, 64):                                 # products and states inside, what each passes on, and adding it
        chunks = 64 // chunk
        assert products(64, "chunked", chunk=chunk) == 2 * (chunk - 1) * chunks + (chunks - 1) + 64 - chunk + 1
    for form in ("associative", "chunked"):
        assert 2 * 4096 < products(4096, form) <= 3 * 4096, form


def unshifted(decay, drive, state):
    states, _ = linear_scan(decay, drive, state)
    def wrong(dstates):
        adjoint = linear_scan(decay[:, ::-1], dstates[:, ::-1])[0][:, ::-1]  # its own decay, not that of the next step
        before = np.concatenate([state[:, None], states[:, :-1]], axis=1)
        return adjoint * before, adjoint, decay[:, 0] * adjoint[:, 0]
    return states, wrong


def test_the_check_refuses_a_decay_that_is_not_shifted():
    assert not check_gradients(unshifted, *random_call(np.random.default_rng(7))).passed


@pytest.mark.parity
@pytest.mark.parametrize("n", [8, 13])
@pytest.mark.parametrize("form", ["sequential", "associative", "chunked"])
def test_parity_with_mambapy(form, n):
    torch = pytest.importorskip("torch")
    pscan = pytest.importorskip("mambapy.pscan").pscan
    rng = np.random.default_rng(8)
    decay, drive, _ = random_call(rng, n=n, lanes=6)
    dout = rng.normal(size=drive.shape)
    their_decay, their_drive = (torch.tensor(a, requires_grad=True) for a in (decay, drive))
    theirs = pscan(their_decay.reshape(2, n, 3, 2), their_drive.reshape(2, n, 3, 2)).reshape(2, n, 6)
    theirs.backward(torch.tensor(dout))
    states, backward = linear_scan(decay, drive, form=form, chunk=3)
    ddecay, ddrive, _ = backward(dout)
    for own, other in ((states, theirs.detach()), (ddecay, their_decay.grad), (ddrive, their_drive.grad)):
        np.testing.assert_allclose(own, other.numpy(), rtol=0, atol=1e-12)


def test_with_growing_decays_the_sequential_form_overflows_only_where_a_state_does():
    decay, drive = np.full((1200, 1), 4.0), np.zeros((1200, 1))
    drive[-2] = 1.0
    states, backward = linear_scan(decay, drive)
    assert states[-2:].tolist() == [[1.0], [4.0]] and not states[:-2].any()
    dstates = np.zeros_like(drive)
    dstates[0] = 1.0                                         # nothing comes back through the decays that follow
    assert all(np.isfinite(gradient).all() for gradient in backward(dstates)[:2])
    with np.errstate(invalid="ignore", over="ignore"):       # 4^600 does overflow: the limit that the docstring names
        assert np.isnan(linear_scan(decay, drive, form="chunked", chunk=600)[0]).any()
