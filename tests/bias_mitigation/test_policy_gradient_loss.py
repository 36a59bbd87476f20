"""Policy gradient: on average over all texts its gradient is minus that of the mean reward, held against every text there is."""

from itertools import product

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.bias_mitigation.policy_gradient_loss import leave_one_out_advantages, policy_gradient_loss
from minitransformers.compression.reverse_kl import reverse_kl
from minitransformers.foundation import trusted

RNG = np.random.default_rng(0)
SYMBOLS, LENGTH = 3, 3
TABLE = RNG.normal(size=(SYMBOLS + 1, SYMBOLS))              # logits after each symbol, and at the start
TEXTS = np.array(list(product(range(SYMBOLS), repeat=LENGTH)))
BEFORE = np.concatenate([np.full((len(TEXTS), 1), SYMBOLS), TEXTS[:, :-1]], axis=1)
REWARDS = RNG.normal(size=len(TEXTS))


def chances(table):
    """The probability of each of the 27 texts."""
    log_p = table - anp.log(anp.sum(anp.exp(table), axis=1, keepdims=True))
    return anp.exp(sum(log_p[BEFORE[:, t], TEXTS[:, t]] for t in range(LENGTH)))


def mean_reward(table):
    return anp.sum(chances(table) * REWARDS)


@trusted
def table_gradient(rows, advantages):
    """What a batch of these texts does to the table."""
    _, backward = policy_gradient_loss(TABLE[BEFORE[rows]], sampled=TEXTS[rows], advantages=advantages)
    dtable = np.zeros_like(TABLE)
    np.add.at(dtable, BEFORE[rows], backward(np.float64(1)))
    return dtable


EXACT = -autograd.grad(mean_reward)(TABLE)
CHANCES = chances(TABLE)


@pytest.mark.parametrize("baseline", [0.0, 0.7, -100.0])
def test_the_mean_over_every_text_is_the_gradient_of_the_mean_reward_whatever_the_baseline(baseline):
    mean = sum(chance * table_gradient([i], np.array([[REWARDS[i] - baseline]])) for i, chance in enumerate(CHANCES))
    np.testing.assert_allclose(mean, EXACT, rtol=0, atol=1e-10)


def test_rewards_still_to_come_are_enough():
    # The reward of a place must hang on nothing behind it: here on the symbols up to it.
    worth = RNG.normal(size=(SYMBOLS, LENGTH))
    rewards = worth[TEXTS, np.arange(LENGTH)]
    to_go = rewards[:, ::-1].cumsum(axis=1)[:, ::-1]
    mean = sum(chance * table_gradient([i], to_go[i : i + 1]) for i, chance in enumerate(CHANCES))
    expected = -autograd.grad(lambda table: anp.sum(chances(table) * rewards.sum(axis=1)))(TABLE)
    np.testing.assert_allclose(mean, expected, rtol=0, atol=1e-10)


def test_with_the_others_mean_as_baseline_the_mean_over_every_batch_is_exact():
    mean = 0.0
    for i, j in product(range(len(TEXTS)), repeat=2):
        advantages = leave_one_out_advantages(REWARDS[[i, j]])[:, None]
        mean = mean + CHANCES[i] * CHANCES[j] * table_gradient([i, j], advantages)
    np.testing.assert_allclose(mean, EXACT, rtol=0, atol=1e-10)


def test_with_the_whole_batch_s_mean_it_is_too_small_by_a_share():
    """The plausible wrong baseline: a text then stands in its own, and half of the gradient is lost with two texts."""
    mean = 0.0
    for i, j in product(range(len(TEXTS)), repeat=2):
        advantages = (REWARDS[[i, j]] - REWARDS[[i, j]].mean())[:, None]
        mean = mean + CHANCES[i] * CHANCES[j] * table_gradient([i, j], advantages)
    np.testing.assert_allclose(mean, EXACT / 2, rtol=0, atol=1e-10)


def test_a_baseline_makes_the_gradient_scatter_less():
    def scatter(baseline):
        each = np.array([table_gradient([i], np.array([[reward - baseline]])) for i, reward in enumerate(REWARDS)])
        return np.sum(CHANCES[:, None, None] * (each - EXACT) ** 2)

    mean = CHANCES @ REWARDS
    assert scatter(mean) < scatter(mean + 1) < scatter(mean + 3)


def test_a_sample_agrees_within_four_standard_errors():
    rng = np.random.default_rng(1)
    each = np.array([table_gradient([i], np.array([[reward]])) for i, reward in enumerate(REWARDS)])
    drawn = each[rng.choice(len(TEXTS), size=4000, p=CHANCES)]
    assert np.all(np.abs(drawn.mean(axis=0) - EXACT) <= 4 * drawn.std(axis=0) / np.sqrt(4000) + 1e-12)


def test_with_a_penalty_for_leaving_the_reference_the_best_policy_is_known_and_nothing_pulls_there():
    """The largest mean reward less beta KL(policy, reference) is where the policy is the reference times exp(reward / beta)."""
    reference, rewards, beta = RNG.normal(size=5), RNG.normal(size=5), 0.4

    def pull(logits):
        policy = np.exp(logits) / np.exp(logits).sum()
        penalty = reverse_kl(logits[None], teacher=reference[None])[1](np.float64(beta))
        return penalty + sum(
            policy[a] * policy_gradient_loss(logits[None], sampled=np.array([a]), advantages=rewards[[a]])[1](np.float64(1)) for a in range(5)
        )

    np.testing.assert_allclose(pull(reference + rewards / beta), 0, atol=1e-15)
    assert np.abs(pull(reference)).max() > 0.01


def one_by_one(logits, sampled, advantages, mask):
    total = 0.0
    for i in range(logits.shape[0]):
        for t in range(logits.shape[1]):
            if mask[i, t]:
                row = logits[i, t]
                total = total - advantages[i, t] * (row[sampled[i, t]] - anp.log(anp.sum(anp.exp(row)))) / logits.shape[0]
    return total


def test_it_is_the_sum_of_log_probabilities_and_its_gradient_is_autograd_s():
    logits, sampled, advantages = RNG.normal(size=(2, 3, 5)), RNG.integers(5, size=(2, 3)), RNG.normal(size=(2, 3))
    mask = np.array([[True, True, False], [False, True, True]])
    out, backward = policy_gradient_loss(logits, sampled=sampled, advantages=advantages, mask=mask)
    np.testing.assert_allclose(out, one_by_one(logits, sampled, advantages, mask), rtol=0, atol=1e-12)
    expected = autograd.grad(one_by_one)(logits, sampled, advantages, mask)
    np.testing.assert_allclose(backward(np.float64(0.7)), 0.7 * expected, rtol=0, atol=1e-12)


def test_one_advantage_a_text_serves_all_its_positions_and_what_is_masked_may_hold_anything():
    logits, sampled = RNG.normal(size=(2, 3, 5)), RNG.integers(5, size=(2, 3))
    advantages, mask = RNG.normal(size=(2, 1)), np.array([[True, True, True], [True, False, False]])
    spoiled, other = logits.copy(), sampled.copy()
    spoiled[1, 1:], other[1, 1:] = np.nan, -1
    one, one_backward = policy_gradient_loss(logits, sampled=sampled, advantages=np.repeat(advantages, 3, axis=1), mask=mask)
    two, two_backward = policy_gradient_loss(spoiled, sampled=other, advantages=advantages, mask=mask)
    assert one == two
    np.testing.assert_array_equal(one_backward(np.float64(1)), two_backward(np.float64(1)))


def test_advantages_sum_to_zero_and_are_the_distance_from_the_mean_stretched():
    rewards = RNG.normal(size=(5, 3))
    advantages = leave_one_out_advantages(rewards)
    slowly = [[rewards[i, t] - np.mean([rewards[j, t] for j in range(5) if j != i]) for t in range(3)] for i in range(5)]
    np.testing.assert_allclose(advantages, slowly, rtol=0, atol=1e-14)
    np.testing.assert_allclose(advantages.sum(axis=0), 0, atol=1e-14)
    np.testing.assert_allclose(advantages, 5 / 4 * (rewards - rewards.mean(axis=0)), rtol=0, atol=1e-14)


@pytest.mark.parametrize("forgotten", ["the belief", "the number of texts"])
def test_the_checker_refuses_a_backward_that_forgets(forgotten):
    settings = {"sampled": RNG.integers(5, size=(2, 3)), "advantages": RNG.normal(size=(2, 3))}

    def wrong(logits):
        out, backward = policy_gradient_loss(logits, **settings)
        if forgotten == "the number of texts":
            return out, lambda dout: 2 * backward(dout)
        return out, lambda dout: -dout * settings["advantages"][..., None] * np.eye(5)[settings["sampled"]] / 2

    assert not check_gradients(wrong, RNG.normal(size=(2, 3, 5))).passed


def test_what_does_not_fit_is_refused():
    logits = RNG.normal(size=(2, 3, 5))
    with pytest.raises(ValueError, match="sampled: got the id 5"):
        policy_gradient_loss(logits, sampled=np.full((2, 3), 5), advantages=np.ones((2, 3)))
    with pytest.raises(ValueError, match="advantages: got numbers from nan"):
        policy_gradient_loss(logits, sampled=np.zeros((2, 3), int), advantages=np.full((2, 3), np.nan))
    with pytest.raises(ValueError, match="rewards: got one text"):
        leave_one_out_advantages(np.ones(1))


@pytest.mark.parity
def test_it_is_what_torch_s_categorical_gives():
    torch = pytest.importorskip("torch")
    logits, sampled, advantages = RNG.normal(size=(4, 3, 6)), RNG.integers(6, size=(4, 3)), RNG.normal(size=(4, 3))
    theirs = torch.tensor(logits, requires_grad=True)
    loss = -(torch.distributions.Categorical(logits=theirs).log_prob(torch.tensor(sampled)) * torch.tensor(advantages)).sum(1).mean()
    loss.backward()
    out, backward = policy_gradient_loss(logits, sampled=sampled, advantages=advantages)
    np.testing.assert_allclose(out, loss.item(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(np.float64(1)), theirs.grad.numpy(), rtol=0, atol=1e-12)
