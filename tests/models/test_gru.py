"""The GRU: what its gates do, that it remembers through its state alone, and that its gradient goes back through time."""

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad

from minitransformers import Gru, Linear, gru, init_gru
from minitransformers.foundation import check_gradients


def random_case(positions=6, d_in=3, d_hidden=4, batch=(2,), seed=0):
    rng = np.random.default_rng(seed)
    params = Gru(
        Linear(0.6 * rng.normal(size=(d_in, 3 * d_hidden)), rng.normal(size=3 * d_hidden)),
        0.6 * rng.normal(size=(d_hidden, 2 * d_hidden)), 0.6 * rng.normal(size=(d_hidden, d_hidden)),
    )  # fmt: skip
    return params, rng.normal(size=(*batch, positions, d_in)), rng.normal(size=(*batch, d_hidden))


def naive(params, x, h):
    """One feature at a time, as the paper writes it; returns the outputs of one text."""
    (W, b), U, U_c = params
    d, out = len(U_c), []
    squash = lambda a: 1 / (1 + anp.exp(-a))  # noqa: E731
    for token in x:
        z = [squash(sum(token[i] * W[i, j] for i in range(len(token))) + b[j] + sum(h[i] * U[i, j] for i in range(d))) for j in range(d)]
        r = [squash(sum(token[i] * W[i, d + j] for i in range(len(token))) + b[d + j] + sum(h[i] * U[i, d + j] for i in range(d))) for j in range(d)]
        c = [
            anp.tanh(sum(token[i] * W[i, 2 * d + j] for i in range(len(token))) + b[2 * d + j] + sum(r[i] * h[i] * U_c[i, j] for i in range(d)))
            for j in range(d)
        ]
        h = [(1 - z[j]) * h[j] + z[j] * c[j] for j in range(d)]
        out.append(anp.array(h))
    return anp.array(out)


def test_equals_the_formula_feature_by_feature_with_every_gradient():
    params, x, state = random_case(batch=())
    (out, last), backward = gru(params, x, state)
    np.testing.assert_allclose(out, naive(params, x, state), atol=1e-13)
    np.testing.assert_array_equal(last, out[-1])
    dout, dlast = np.random.default_rng(1).normal(size=out.shape), np.random.default_rng(2).normal(size=last.shape)

    def loss(W, b, U, U_c, x, h):
        out = naive(((W, b), U, U_c), x, h)
        return anp.sum(dout * out) + anp.sum(dlast * out[-1])

    expected = grad(loss, (0, 1, 2, 3, 4, 5))(*params.input, params.gates, params.candidate, x, state)
    dparams, dx, dstate = backward((dout, dlast))
    for own, theirs in zip((*dparams.input, dparams.gates, dparams.candidate, dx, dstate), expected, strict=True):
        np.testing.assert_allclose(own, theirs, atol=1e-12)


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_text_cut_in_two_is_the_text_with_the_gradient_of_the_state_between(cut):
    params, x, state = random_case()
    (out, last), backward = gru(params, x, state)
    (first, between), first_backward = gru(params, x[:, :cut], state)
    (second, end), second_backward = gru(params, x[:, cut:], between)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), out, atol=1e-14)
    np.testing.assert_allclose(end, last, atol=1e-14)
    dout, dlast = np.random.default_rng(1).normal(size=out.shape), np.random.default_rng(2).normal(size=last.shape)
    whole, dx, dstate = backward((dout, dlast))
    later, dx_later, dbetween = second_backward((dout[:, cut:], dlast))
    earlier, dx_earlier, dfirst = first_backward((dout[:, :cut], dbetween))
    np.testing.assert_allclose(earlier.gates + later.gates, whole.gates, atol=1e-13)
    np.testing.assert_allclose(np.concatenate([dx_earlier, dx_later], axis=1), dx, atol=1e-13)
    np.testing.assert_allclose(dfirst, dstate, atol=1e-13)


def test_a_shut_update_gate_keeps_the_state_and_an_open_one_forgets_it():
    params, x, state = random_case()
    bias = params.input.bias.copy()
    bias[:4] = -60
    (out, _), backward = gru(params._replace(input=Linear(params.input.weight, bias)), x, state)
    np.testing.assert_allclose(out, np.broadcast_to(state[:, None], out.shape), atol=1e-15)
    _, _, dstate = backward((np.zeros_like(out), np.ones_like(state)))
    np.testing.assert_allclose(dstate, 1, atol=1e-12)        # the gradient goes through any number of positions unchanged
    bias[:4], bias[4:8] = 60, -60                            # written over, and what is written does not read the state
    (out, _), _ = gru(params._replace(input=Linear(params.input.weight, bias)), x, state)
    (other, _), _ = gru(params._replace(input=Linear(params.input.weight, bias)), x, 5 + state)
    np.testing.assert_allclose(out, other, atol=1e-12)


def test_no_position_knows_a_later_one():
    params, x, state = random_case()
    (out, _), backward = gru(params, x, state)
    dout = np.zeros_like(out)
    dout[:, 2] = 1
    _, dx, _ = backward((dout, None))
    assert dx[:, 3:].tolist() == np.zeros_like(dx[:, 3:]).tolist() and np.all(dx[:, :3] != 0)


def test_the_state_is_between_minus_one_and_one_once_it_was():
    params, x, _ = random_case(positions=40)
    (out, _), _ = gru(params, 50 * x)
    assert np.abs(out).max() <= 1


def test_init_starts_half_open_with_outputs_of_ordinary_size():
    params = init_gru(np.random.default_rng(0), 48, 32)
    assert not params.input.bias.any()
    (out, _), _ = gru(params, np.random.default_rng(1).normal(size=(8, 20, 48)).astype(np.float32))
    assert out.dtype == np.float32
    assert 0.2 < out[:, -1].std() < 0.9


def without_the_way_through_the_gates(params, x, state):
    """The last state also decided how far the gates open: the terms that are forgotten first."""
    (out, last), backward = gru(params, x, state)

    def wrong(dresult):
        dparams, dx, _ = backward(dresult)
        shut = params._replace(gates=np.zeros_like(params.gates))
        return dparams, dx, gru(shut, x, state)[1](dresult)[2]

    return (out, last), wrong


def test_the_checker_refuses_a_state_whose_way_through_the_gates_is_forgotten():
    report = check_gradients(without_the_way_through_the_gates, *random_case())
    assert not report.passed and report.worst.path == "state"


@pytest.mark.parity
def test_with_one_weight_a_feature_equals_pytorch_forward_and_backward():
    """PyTorch resets after the product with U_c: with a diagonal U_c before and after are the same. Its update gate is 1 - z."""
    torch = pytest.importorskip("torch")
    params, x, state = random_case()
    d = 4
    params = params._replace(candidate=np.diag(np.diag(params.candidate)))
    (out, last), backward = gru(params, x, state)
    theirs = torch.nn.GRU(3, d, batch_first=True).double()
    W, b, U = params.input.weight, params.input.bias, params.gates
    order = [*range(d, 2 * d), *range(d), *range(2 * d, 3 * d)]  # theirs: reset, update, candidate
    sign = np.repeat([1.0, -1.0, 1.0], d)                    # sigmoid(-a) = 1 - sigmoid(a)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(torch.tensor((W[:, order] * sign).T))
        theirs.bias_ih_l0.copy_(torch.tensor(b[order] * sign))
        theirs.bias_hh_l0.zero_()
        theirs.weight_hh_l0.copy_(torch.tensor((np.concatenate([U, params.candidate], axis=1)[:, order] * sign).T))
    tx, th = torch.tensor(x, requires_grad=True), torch.tensor(state[None], requires_grad=True)
    their_out, their_last = theirs(tx, th)
    np.testing.assert_allclose(out, their_out.detach().numpy(), atol=1e-12)
    dout, dlast = np.random.default_rng(1).normal(size=out.shape), np.random.default_rng(2).normal(size=last.shape)
    ((their_out * torch.tensor(dout)).sum() + (their_last[0] * torch.tensor(dlast)).sum()).backward()
    dparams, dx, dstate = backward((dout, dlast))
    np.testing.assert_allclose(dx, tx.grad.numpy(), atol=1e-12)
    np.testing.assert_allclose(dstate, th.grad.numpy()[0], atol=1e-12)
    np.testing.assert_allclose((dparams.input.weight[:, order] * sign).T, theirs.weight_ih_l0.grad.numpy(), atol=1e-12)
    np.testing.assert_allclose((dparams.gates[:, order[: 2 * d]] * sign[: 2 * d]).T, theirs.weight_hh_l0.grad.numpy()[: 2 * d], atol=1e-12)
    np.testing.assert_allclose(np.diag(dparams.candidate), np.diag(theirs.weight_hh_l0.grad.numpy()[2 * d :]), atol=1e-12)
