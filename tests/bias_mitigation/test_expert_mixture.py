"""A mixture of experts' probabilities: summed one by one, what one expert and equal experts give, who is asked, wrong backwards."""

import inspect

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.basics.log_softmax import log_softmax
from minitransformers.bias_mitigation.expert_mixture import expert_mixture

RNG = np.random.default_rng(0)
LOGITS, GATE, DOUT = RNG.normal(size=(2, 4, 3, 5)), RNG.normal(size=3), RNG.normal(size=(2, 4, 5))


def softmax(scores):
    exps = anp.exp(scores)
    return exps / anp.sum(exps)


def textbook(logits, gate):
    """Probabilities first, summed, and the logarithm last."""
    weights = softmax(gate)
    return anp.array([
        [anp.log(sum(weights[k] * softmax(logits[i, j, k]) for k in range(len(gate)))) for j in range(logits.shape[1])]
        for i in range(logits.shape[0])
    ])  # fmt: skip


def test_it_is_the_logarithm_of_the_summed_probabilities_and_its_gradients_are_autograd_s():
    out, backward = expert_mixture(LOGITS, GATE)
    np.testing.assert_allclose(out, textbook(LOGITS, GATE), rtol=0, atol=1e-12)
    expected = autograd.grad(lambda *both: anp.sum(DOUT * textbook(*both)), (0, 1))(LOGITS, GATE)
    for own, theirs in zip(backward(DOUT), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


def test_probabilities_sum_to_one():
    np.testing.assert_allclose(np.exp(expert_mixture(LOGITS, GATE)[0]).sum(axis=-1), 1, atol=1e-14)


def test_one_expert_is_its_own_softmax_and_the_gate_learns_nothing():
    out, backward = expert_mixture(LOGITS[..., :1, :], GATE[:1])
    np.testing.assert_allclose(out, log_softmax(LOGITS[..., 0, :])[0], rtol=0, atol=1e-15)
    np.testing.assert_allclose(backward(DOUT)[1], 0, atol=1e-15)


def test_equal_experts_are_one_whatever_the_gate():
    equal = np.repeat(LOGITS[..., :1, :], 3, axis=-2)
    np.testing.assert_allclose(expert_mixture(equal, GATE)[0], log_softmax(LOGITS[..., 0, :])[0], rtol=0, atol=1e-14)
    np.testing.assert_allclose(expert_mixture(equal, GATE)[1](DOUT)[1], 0, atol=1e-14)


def test_the_order_of_the_experts_does_not_matter():
    order = [2, 0, 1]
    np.testing.assert_allclose(expert_mixture(LOGITS[..., order, :], GATE[order])[0], expert_mixture(LOGITS, GATE)[0], rtol=0, atol=1e-14)


def test_a_class_that_one_expert_finds_likely_stays_possible():
    """In a mixture of logits the other expert could rule it out."""
    logits = np.array([[[0.0, 0.0], [50.0, 0.0]]])
    assert np.exp(expert_mixture(logits, np.zeros(2))[0])[0, 1] > 0.24
    assert np.exp(log_softmax(logits.mean(axis=-2))[0])[0, 1] < 1e-10


def test_probabilities_below_the_smallest_float_have_a_logarithm():
    out, backward = expert_mixture(np.array([[[0.0, -2000.0], [0.0, -1000.0]]]), np.zeros(2))
    np.testing.assert_allclose(out[0, 1], -1000 - np.log(2), rtol=1e-14)
    assert all(np.isfinite(gradient).all() for gradient in backward(np.ones((1, 2))))


def test_nobody_s_group_is_asked_for():
    """Nothing but what the experts say of the input, and one gate for all: two people with equal inputs have equal answers."""
    assert list(inspect.signature(expert_mixture).parameters) == ["logits", "gate"]
    two = np.stack([LOGITS[0], LOGITS[0]])
    out, _ = expert_mixture(two, GATE)
    np.testing.assert_array_equal(out[0], out[1])


def with_the_gate_s_weights_for_shares(logits, gate):
    """As if each expert had in each class the share that it has overall."""
    out, _ = expert_mixture(logits, gate)
    _, log_p_backward = log_softmax(logits)
    weights = np.exp(gate) / np.exp(gate).sum()

    def backward(dout):
        return log_p_backward(weights[:, None] * dout[..., None, :]), expert_mixture(logits, gate)[1](dout)[1]

    return out, backward


def without_the_gate_s_normaliser(logits, gate):
    out, _ = expert_mixture(logits, gate)
    share = np.exp(np.log(np.exp(gate) / np.exp(gate).sum())[:, None] + log_softmax(logits)[0] - out[..., None, :])
    return out, lambda dout: (expert_mixture(logits, gate)[1](dout)[0], np.einsum("ijkc,ijc->k", share, dout))


@pytest.mark.parametrize("wrong", [with_the_gate_s_weights_for_shares, without_the_gate_s_normaliser])
def test_the_checker_refuses(wrong):
    assert not check_gradients(wrong, LOGITS, GATE).passed


def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(ValueError, match="gate"):
        expert_mixture(LOGITS, GATE[:2])
    with pytest.raises(ValueError, match="logits"):
        expert_mixture(np.full((2, 3, 5), -np.inf), GATE)


@pytest.mark.parity
def test_parity_with_torch_s_mixture_of_categoricals():
    torch = pytest.importorskip("torch")
    logits, gate = torch.tensor(LOGITS, requires_grad=True), torch.tensor(GATE, requires_grad=True)
    weights = torch.distributions.Categorical(logits=gate.expand(2, 4, 3))
    mixture = torch.distributions.MixtureSameFamily(weights, torch.distributions.Categorical(logits=logits))
    theirs = torch.stack([mixture.log_prob(torch.full((2, 4), c)) for c in range(5)], dim=-1)
    theirs.backward(torch.tensor(DOUT))
    out, backward = expert_mixture(LOGITS, GATE)
    dlogits, dgate = backward(DOUT)
    for own, other in ((out, theirs.detach()), (dlogits, logits.grad), (dgate, gate.grad)):
        np.testing.assert_allclose(own, other.numpy(), rtol=0, atol=1e-12)
