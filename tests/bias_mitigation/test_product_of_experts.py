"""A product of experts: multiplied out, what the frozen one takes off the main model, and how it is dropped."""

import inspect

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.log_softmax import log_softmax
from minitransformers.bias_mitigation.product_of_experts import product_of_experts

RNG = np.random.default_rng(0)
LOGITS, DOUT = RNG.normal(size=(2, 3, 5)), RNG.normal(size=(2, 3, 5))
BIAS, _ = log_softmax(RNG.normal(size=(2, 3, 5)))


def textbook(logits):
    """Two probabilities multiplied, and shared out anew."""
    rows = []
    for z, b in zip(anp.reshape(logits, (-1, 5)), BIAS.reshape(-1, 5), strict=True):
        product = anp.exp(z) / anp.sum(anp.exp(z)) * anp.exp(b)
        rows.append(anp.log(product / anp.sum(product)))
    return anp.reshape(anp.stack(rows), logits.shape)


def after_both(logits, bias, targets):
    """The loss of the product, and its gradient with respect to the main model's logits."""
    joint, joint_backward = product_of_experts(logits, bias_log_probs=bias)
    loss, loss_backward = cross_entropy(joint, targets=targets)
    return loss, joint_backward(loss_backward(np.float64(1)))


def test_it_is_the_product_and_its_gradient_is_autograd_s():
    out, backward = product_of_experts(LOGITS, bias_log_probs=BIAS)
    np.testing.assert_allclose(out, textbook(LOGITS), rtol=0, atol=1e-12)
    expected = autograd.grad(lambda z: anp.sum(DOUT * textbook(z)))(LOGITS)
    np.testing.assert_allclose(backward(DOUT), expected, rtol=0, atol=1e-12)


def test_a_frozen_model_that_knows_nothing_changes_nothing():
    uniform = np.full(LOGITS.shape, -np.log(5))
    np.testing.assert_allclose(product_of_experts(LOGITS, bias_log_probs=uniform)[0], log_softmax(LOGITS)[0], rtol=0, atol=1e-14)


def test_constants_of_a_position_cancel_so_logits_of_the_frozen_model_do_as_well():
    shift = RNG.normal(size=(2, 3, 1))
    shifted = product_of_experts(LOGITS, bias_log_probs=BIAS + shift)[0]
    np.testing.assert_allclose(shifted, product_of_experts(LOGITS, bias_log_probs=BIAS)[0], rtol=0, atol=1e-14)


def test_what_the_shortcut_knows_is_not_learned_and_what_it_gets_wrong_is_learned_harder():
    """The gradient of a main model that has learned nothing, by how sure the frozen one is of the right class."""
    pulls = []
    for right in (0.999, 0.5, 0.001):
        bias = np.log([[right, 1 - right]])
        pulls.append(-after_both(np.zeros((1, 2)), bias, np.array([0]))[1][0, 0])
    np.testing.assert_allclose(pulls, [0.001, 0.5, 0.999], atol=1e-12)


def test_at_its_optimum_the_main_model_knows_what_the_shortcut_does_not_say():
    """Signal and shortcut speak of a class each for itself, and both classes are equally frequent: then the product of what each
    tells is what both tell, and with the shortcut frozen the loss over all cases is smallest where the main model holds the signal's."""
    of_signal = np.array([[0.8, 0.2], [0.3, 0.7]])           # signal's value by class
    of_shortcut = np.array([[0.9, 0.1], [0.1, 0.9]])
    table = 0.5 * np.einsum("ys,yb->sby", of_signal, of_shortcut)  # (signal, shortcut, class)
    log_signal, log_shortcut = (np.log((p / p.sum(axis=0)).T) for p in (of_signal, of_shortcut))

    def slope(by_signal):
        logits = np.repeat(by_signal[:, None], 2, axis=1)
        _, backward = product_of_experts(logits, bias_log_probs=np.repeat(log_shortcut[None], 2, axis=0))
        return backward(-table).sum(axis=1)

    np.testing.assert_allclose(slope(log_signal), 0, atol=1e-15)
    assert np.abs(slope(np.zeros((2, 2)))).max() > 0.01


def test_with_the_loss_it_is_belief_of_the_product_minus_target():
    targets = np.array([[0, 4, 2], [2, 2, 1]])
    belief = np.exp(product_of_experts(LOGITS, bias_log_probs=BIAS)[0])
    np.testing.assert_allclose(after_both(LOGITS, BIAS, targets)[1], (belief - np.eye(5)[targets]) / 6, rtol=0, atol=1e-15)


def test_whoever_answers_alone_needs_neither_a_group_nor_the_frozen_model():
    """In training the frozen model is a keyword; the main model's logits are made without it, and log_softmax is what remains."""
    assert list(inspect.signature(product_of_experts).parameters) == ["logits", "bias_log_probs"]
    assert "bias_log_probs" not in inspect.signature(log_softmax).parameters
    assert isinstance(product_of_experts(LOGITS, bias_log_probs=BIAS)[1](DOUT), np.ndarray), "one gradient: the frozen one gets none"


def of_the_main_model_alone(logits):
    """The belief of the main model in the place of the product's."""
    out, _ = product_of_experts(logits, bias_log_probs=BIAS)
    return out, log_softmax(logits)[1]


def test_the_checker_refuses_the_belief_of_the_main_model_alone():
    assert not check_gradients(of_the_main_model_alone, LOGITS).passed


def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(ValueError, match="bias_log_probs"):
        product_of_experts(LOGITS, bias_log_probs=BIAS[..., :4])
    with pytest.raises(ValueError, match="bias_log_probs"):
        product_of_experts(LOGITS, bias_log_probs=np.full_like(BIAS, -np.inf))


@pytest.mark.parity
def test_parity_with_the_published_loss_in_torch():
    """As in the code of Clark et al.: the log-softmax of the main model, plus the bias, into a softmax cross-entropy."""
    torch = pytest.importorskip("torch")
    targets = np.array([[0, 4, 2], [2, 2, 1]])
    logits = torch.tensor(LOGITS.reshape(-1, 5), requires_grad=True)
    both = torch.log_softmax(logits, dim=-1) + torch.tensor(BIAS.reshape(-1, 5))
    theirs = torch.nn.functional.cross_entropy(both, torch.tensor(targets.reshape(-1)))
    theirs.backward()
    loss, dlogits = after_both(LOGITS, BIAS, targets)
    np.testing.assert_allclose(loss, theirs.item(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(dlogits.reshape(-1, 5), logits.grad.numpy(), rtol=0, atol=1e-12)
