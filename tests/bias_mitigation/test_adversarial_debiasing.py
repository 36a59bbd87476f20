"""Three networks and three objectives: each gradient against its own, and not against the sum."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.basics.chain import chain
from minitransformers.basics.linear import Linear, linear
from minitransformers.bias_mitigation.adversarial_debiasing import AdversarialDebiasing, AdversarialLosses, adversarial_debiasing
from minitransformers.bias_mitigation.gradient_reversal import reversal_strength
from minitransformers.foundation import slot

RNG = np.random.default_rng(0)
TARGETS, GROUPS, STRENGTH = np.array([0, 2, 1, 1, 0, 2, 2]), np.array([0, 1, 1, 0, 0, 1, 0]), 0.7
X = RNG.normal(size=(7, 5))
ONES = AdversarialLosses(np.float64(1), np.float64(1))


def tanh(x):
    out = np.tanh(x)
    return out, lambda dout: dout * (1 - out * out)


def maps(rng, d_in, d_out):
    return Linear(rng.normal(size=(d_in, d_out)), rng.normal(size=d_out))


ENCODER = partial(chain, parts=(linear, slot(tanh)))
PARAMS = AdversarialDebiasing((maps(RNG, 5, 4), None), maps(RNG, 4, 3), maps(RNG, 4, 2))
SETTINGS = {"targets": TARGETS, "groups": GROUPS, "encoder": ENCODER, "strength": STRENGTH}


def cross_entropy(logits, labels):
    return sum(anp.log(anp.sum(anp.exp(row))) - row[label] for row, label in zip(logits, labels, strict=True)) / len(labels)


def hidden(encoder, x):
    (weight, bias), _ = encoder
    return anp.tanh(anp.dot(x, weight) + bias)


def task_loss(encoder, head, x=X):
    return cross_entropy(anp.dot(hidden(encoder, x), head.weight) + head.bias, TARGETS)


def adversary_loss(encoder, adversary, x=X):
    return cross_entropy(anp.dot(hidden(encoder, x), adversary.weight) + adversary.bias, GROUPS)


def as_encoder(weight, bias):
    return Linear(weight, bias), None


def gradients():
    _, backward = adversarial_debiasing(PARAMS, X, **SETTINGS)
    return backward(ONES)


def close(own, theirs):
    for (path, a), b in zip(trees.leaves(own), theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12, err_msg=path)


def test_the_two_losses_are_those_of_the_networks_by_themselves():
    losses, _ = adversarial_debiasing(PARAMS, X, **SETTINGS)
    np.testing.assert_allclose(losses.task, task_loss(PARAMS.encoder, PARAMS.head), rtol=0, atol=1e-12)
    np.testing.assert_allclose(losses.adversary, adversary_loss(PARAMS.encoder, PARAMS.adversary), rtol=0, atol=1e-12)


def test_the_encoder_s_gradient_is_of_the_task_s_loss_minus_strength_times_the_adversary_s():
    def objective(weight, bias, x):
        own = as_encoder(weight, bias)
        return task_loss(own, PARAMS.head, x) - STRENGTH * adversary_loss(own, PARAMS.adversary, x)

    dparams, dx = gradients()
    *expected, expected_x = autograd.grad(objective, (0, 1, 2))(*PARAMS.encoder[0], X)
    close(dparams.encoder, expected)
    np.testing.assert_allclose(dx, expected_x, rtol=0, atol=1e-12)


def test_the_head_s_gradient_is_of_the_task_s_loss():
    close(gradients()[0].head, autograd.grad(lambda *head: task_loss(PARAMS.encoder, Linear(*head)), (0, 1))(*PARAMS.head))


def test_the_adversary_s_gradient_is_of_its_own_loss_with_its_own_sign():
    close(gradients()[0].adversary, autograd.grad(lambda *own: adversary_loss(PARAMS.encoder, Linear(*own)), (0, 1))(*PARAMS.adversary))


def sum_of_both(params, x):
    """One number: what a single finite difference would be taken of."""
    losses, backward = adversarial_debiasing(params, x, **SETTINGS)
    return losses.task - STRENGTH * losses.adversary, lambda dout: backward(AdversarialLosses(dout, dout))


def test_there_is_no_single_loss_that_it_is_the_gradient_of():
    """Against one sum the check says that the adversary is wrong, and the encoder right."""
    report = check_gradients(sum_of_both, PARAMS, X)
    assert not report.passed
    refused = {argument.path for argument in report.arguments if argument.error > 1e-6}
    assert refused and all("adversary" in path for path in refused)


def test_at_strength_0_the_encoder_sees_the_task_alone():
    _, backward = adversarial_debiasing(PARAMS, X, **{**SETTINGS, "strength": 0.0})
    close(backward(ONES)[0].encoder, autograd.grad(lambda *own: task_loss(as_encoder(*own), PARAMS.head), (0, 1))(*PARAMS.encoder[0]))


def test_each_loss_may_be_asked_alone():
    _, backward = adversarial_debiasing(PARAMS, X, **SETTINGS)
    dparams, _ = backward(AdversarialLosses(np.float64(1), None))
    assert not any(leaf.any() for _, leaf in trees.leaves(dparams.adversary))
    dparams, _ = backward(AdversarialLosses(None, np.float64(1)))
    assert not any(leaf.any() for _, leaf in trees.leaves(dparams.head))
    close(dparams.encoder, [-STRENGTH * g for g in autograd.grad(lambda *e: adversary_loss(as_encoder(*e), PARAMS.adversary), (0, 1))(*PARAMS.encoder[0])])


def trained(strength, seed=1, steps=500):
    """An encoder to two features; one tells the class and the other the group. Returns both losses at the end."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, 2))
    targets, groups = (x[:, 0] > 0).astype(int), (x[:, 1] > 0).astype(int)
    params = AdversarialDebiasing(maps(rng, 2, 2), maps(rng, 2, 2), maps(rng, 2, 2))
    for step in range(steps):
        now = strength * reversal_strength(step / steps)
        losses, backward = adversarial_debiasing(params, x, targets=targets, groups=groups, encoder=linear, strength=now)
        params = trees.map(lambda leaf, d: leaf - 0.2 * d, params, backward(ONES)[0])
    return losses


def test_the_group_becomes_harder_to_read_and_the_task_stays_easy():
    """ln 2 is what an adversary loses that knows nothing."""
    without, against = trained(0.0), trained(1.0)
    assert without.adversary < 0.4 and against.adversary > 0.6
    assert against.task < 0.25


def without_the_reversal(params, x):
    """All three go down on the sum: the encoder helps the adversary."""
    losses, backward = adversarial_debiasing(params, x, **SETTINGS)

    def wrong(dlosses):
        dparams, dx = backward(dlosses)
        helped, dx_helped = backward(AdversarialLosses(None, dlosses.adversary))
        turned = trees.map(lambda all_of_it, part: all_of_it - part * (1 + 1 / STRENGTH), dparams.encoder, helped.encoder)
        return dparams._replace(encoder=turned), dx - dx_helped * (1 + 1 / STRENGTH)

    return losses, wrong


def with_the_adversary_turned_as_well(params, x):
    """The sign before the adversary in the place of behind it: the adversary forgets how to read."""
    losses, backward = adversarial_debiasing(params, x, **SETTINGS)

    def wrong(dlosses):
        dparams, dx = backward(dlosses)
        return dparams._replace(adversary=trees.map(np.negative, dparams.adversary)), dx

    return losses, wrong


def each_its_own(params, x):
    """The losses as each part sees them, written here a second time."""

    def losses(new, new_x):
        of_encoder = adversarial_debiasing(new._replace(adversary=params.adversary), new_x, **SETTINGS)[0]
        of_adversary = adversarial_debiasing(params._replace(adversary=new.adversary), x, **SETTINGS)[0]
        return AdversarialLosses(of_encoder.task, of_adversary.adversary - STRENGTH * of_encoder.adversary)

    return losses


@pytest.mark.parametrize("wrong", [without_the_reversal, with_the_adversary_turned_as_well])
def test_the_checker_refuses(wrong):
    assert check_gradients(lambda p, x: adversarial_debiasing(p, x, **SETTINGS), PARAMS, X, gradient_of=each_its_own).passed
    assert not check_gradients(wrong, PARAMS, X, gradient_of=each_its_own).passed


def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(ValueError, match="targets: got the id 3, wants ids from 0 to 2"):
        adversarial_debiasing(PARAMS, X, **{**SETTINGS, "targets": TARGETS + 1})
    with pytest.raises(ValueError, match="strength"):
        adversarial_debiasing(PARAMS, X, **{**SETTINGS, "strength": -1.0})


@pytest.mark.parity
def test_parity_with_three_optimisers_worth_of_torch():
    """Three calls of torch's autograd, one for each objective."""
    torch = pytest.importorskip("torch")
    leaves = {path: torch.tensor(leaf, requires_grad=True) for path, leaf in trees.leaves(PARAMS)}
    e, p, a = (list(leaves.values())[i : i + 2] for i in (0, 2, 4))
    h = torch.tanh(torch.tensor(X) @ e[0] + e[1])
    task = torch.nn.functional.cross_entropy(h @ p[0] + p[1], torch.tensor(TARGETS))
    reading = torch.nn.functional.cross_entropy(h @ a[0] + a[1], torch.tensor(GROUPS))
    ask = partial(torch.autograd.grad, retain_graph=True)
    expected = [*ask(task - STRENGTH * reading, e), *ask(task, p), *ask(reading, a)]
    for (_, own), theirs in zip(trees.leaves(gradients()[0]), expected, strict=True):
        np.testing.assert_allclose(own, theirs.numpy(), rtol=0, atol=1e-12)
