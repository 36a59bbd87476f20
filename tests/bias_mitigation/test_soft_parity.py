"""The variance of groups' means: a loop written out, what size and names of groups do not matter for, wrong backwards."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.bias_mitigation.soft_parity import soft_parity

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(2, 5))
GROUPS = np.array([[0, 2, 1, 2, 1], [0, 0, 2, 2, 2]])
MASK = np.array([[1, 1, 1, 0, 1], [1, 1, 1, 1, 0]], bool)
ONE = np.float64(1)


def textbook(logits, groups=GROUPS, mask=MASK, num_groups=3):
    means = []
    for g in range(num_groups):
        members = [1 / (1 + anp.exp(-logits[place])) for place in np.ndindex(groups.shape) if groups[place] == g and mask[place]]
        means.append(sum(members) / len(members))
    centre = sum(means) / num_groups
    return sum((mean - centre) ** 2 for mean in means) / num_groups


def test_equals_the_textbook_formula_and_its_gradient():
    out, backward = soft_parity(LOGITS, groups=GROUPS, num_groups=3, mask=MASK)
    np.testing.assert_allclose(out, textbook(LOGITS), rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(np.float64(0.7)), 0.7 * autograd.grad(textbook)(LOGITS), rtol=0, atol=1e-12)


def test_of_two_groups_it_is_a_quarter_of_their_squared_difference():
    groups = GROUPS % 2
    p = 1 / (1 + np.exp(-LOGITS))
    gap = p[groups == 0].mean() - p[groups == 1].mean()
    np.testing.assert_allclose(soft_parity(LOGITS, groups=groups, num_groups=2)[0], gap**2 / 4, rtol=1e-14)


def test_it_is_zero_where_the_means_agree_though_people_differ():
    logits = np.log([0.2, 0.8, 0.5, 0.5]) - np.log([0.8, 0.2, 0.5, 0.5])
    out, backward = soft_parity(logits, groups=np.array([0, 0, 1, 1]), num_groups=2)
    assert abs(out) < 1e-30
    np.testing.assert_allclose(backward(ONE), 0, atol=1e-15)


def test_names_of_groups_do_not_matter():
    renamed = np.array([2, 0, 1])[GROUPS]
    np.testing.assert_allclose(soft_parity(LOGITS, groups=renamed, num_groups=3)[0], soft_parity(LOGITS, groups=GROUPS, num_groups=3)[0], rtol=1e-13)


def test_a_group_counts_once_however_many_are_in_it():
    """The cases of one group written down three times: nothing moves but each one's share of the gradient."""
    flat, groups = LOGITS.reshape(-1), GROUPS.reshape(-1)
    again = np.repeat(np.arange(10), np.where(groups == 1, 3, 1))
    out, backward = soft_parity(flat, groups=groups, num_groups=3)
    more, more_backward = soft_parity(flat[again], groups=groups[again], num_groups=3)
    np.testing.assert_allclose(more, out, rtol=1e-13)
    np.testing.assert_allclose(np.bincount(again, weights=more_backward(ONE)), backward(ONE), rtol=0, atol=1e-15)


def test_restricted_to_true_labels_of_yes_it_is_about_equal_opportunity():
    """Same rates of yes among those who deserve one, other shares of them: the mean of all differs, the loss of the yes does not."""
    labels, groups = np.array([1, 1, 0, 0, 1, 0, 0, 0]), np.array([0, 0, 0, 0, 1, 1, 1, 1])
    logits = np.where(labels == 1, 2.0, -2.0)
    assert soft_parity(logits, groups=groups, num_groups=2)[0] > 1e-3
    assert soft_parity(logits, groups=groups, num_groups=2, mask=labels == 1)[0] == 0


def test_cases_that_do_not_count_have_no_gradient():
    assert not soft_parity(LOGITS, groups=GROUPS, num_groups=3, mask=MASK)[1](ONE)[~MASK].any()


def test_the_gradient_pulls_groups_above_the_mean_down_and_those_below_up():
    groups = np.array([0, 0, 1, 1])
    gradient = soft_parity(np.array([2.0, 1.0, -1.0, -2.0]), groups=groups, num_groups=2)[1](ONE)
    assert (gradient[groups == 0] > 0).all() and (gradient[groups == 1] < 0).all()


def by_case_and_not_by_group(logits):
    """Each case weighs the same, so large groups pull harder."""
    out, _ = soft_parity(logits, groups=GROUPS, num_groups=3)
    p = 1 / (1 + np.exp(-logits))
    mean = np.array([p[g == GROUPS].mean() for g in range(3)])
    return out, lambda dout: dout * 2 / 10 * (mean - mean.mean())[GROUPS] * p * (1 - p)


def without_the_sigmoid_s_slope(logits):
    out, backward = soft_parity(logits, groups=GROUPS, num_groups=3)
    p = 1 / (1 + np.exp(-logits))
    return out, lambda dout: backward(dout) / (p * (1 - p))


def around_the_mean_of_all(logits):
    """The mean of all cases in the place of the mean of means."""
    out, _ = soft_parity(logits, groups=GROUPS, num_groups=3)
    p, size = 1 / (1 + np.exp(-logits)), np.bincount(GROUPS.reshape(-1))
    mean = np.array([p[g == GROUPS].mean() for g in range(3)])
    return out, lambda dout: dout * 2 / 3 * ((mean - p.mean()) / size)[GROUPS] * p * (1 - p)


@pytest.mark.parametrize("wrong", [by_case_and_not_by_group, without_the_sigmoid_s_slope, around_the_mean_of_all])
def test_the_checker_refuses(wrong):
    assert not check_gradients(wrong, LOGITS).passed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_groups": 4}, "groups: got no case of group 3 that counts, wants one of each of the 4 groups"),
        ({"mask": GROUPS != 1}, "groups: got no case of group 1"),
        ({"num_groups": 2}, "groups: got the id 2, wants ids from 0 to 1"),
        ({"num_groups": 1}, "num_groups"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        soft_parity(LOGITS, **{"groups": GROUPS, "num_groups": 3, **changes})


@pytest.mark.parity
def test_parity_with_torch():
    torch = pytest.importorskip("torch")
    logits = torch.tensor(LOGITS, requires_grad=True)
    p, groups, mask = torch.sigmoid(logits), torch.tensor(GROUPS), torch.tensor(MASK)
    loss = torch.stack([p[(groups == g) & mask].mean() for g in range(3)]).var(unbiased=False)
    loss.backward()
    out, backward = soft_parity(LOGITS, groups=GROUPS, num_groups=3, mask=MASK)
    np.testing.assert_allclose(out, loss.item(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(ONE), logits.grad.numpy(), rtol=0, atol=1e-12)
