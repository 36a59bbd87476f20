"""Movement pruning: scores that learn as if the mask could move, so that what moves away from zero stays."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from changed_models import MODELS, PATTERNS, changed, checked, whole_model

from minitransformers import Linear, check_gradients, linear, trees
from minitransformers.compression.masked_weight import MaskedWeight, masked_weight
from minitransformers.compression.movement_pruning import (
    ScoredWeight,
    init_movement_pruning,
    movement_pruning,
    score_penalty,
    soft_movement_pruning,
)
from minitransformers.foundation import catalogue, reparameterize
from minitransformers.peft.targets import at_targets

RNG = np.random.default_rng(0)
PARAMS = ScoredWeight(RNG.normal(size=(6, 5)), RNG.normal(size=(6, 5)))
X, DOUT = RNG.normal(size=(4, 6)), RNG.normal(size=(4, 5))
HARD, SOFT = partial(movement_pruning, sparsity=0.4), partial(soft_movement_pruning, threshold=0.4)


def hard_mask(scores):
    """The 18 highest scores of the 30, as a list of lists."""
    order = sorted(range(30), key=lambda i: (-scores[i // 5][i % 5], i))
    return [[1.0 if 5 * i + j in order[:18] else 0.0 for j in range(5)] for i in range(6)]


def soft_mask(scores):
    return [[1.0 if 1 / (1 + np.exp(-s)) > 0.4 else 0.0 for s in row] for row in scores]


def straight_through(weight, mask, x):
    """x (W o M) with a mask of real numbers, an output at a time: what is differentiated in the place of the staircase."""
    columns = [anp.stack([anp.sum(x[t] * weight[:, j] * mask[:, j]) for t in range(4)]) for j in range(5)]
    return anp.stack(columns, axis=-1)


@pytest.mark.parametrize(("form", "mask_of"), [(HARD, hard_mask), (SOFT, soft_mask)])
def test_a_layer_is_the_masked_sum_and_its_gradients_are_those_of_a_mask_that_is_trained(form, mask_of):
    mask = np.array(mask_of(PARAMS.scores.tolist()))
    weight, backward = form(PARAMS)
    np.testing.assert_allclose(X @ weight, straight_through(PARAMS.weight, mask, X), rtol=0, atol=1e-10)
    dweight, dmask, dx = autograd.grad(lambda *args: anp.sum(DOUT * straight_through(*args)), (0, 1, 2))(PARAMS.weight, mask, X)
    gradient = backward(X.T @ DOUT)
    np.testing.assert_allclose(gradient.weight, dweight, rtol=0, atol=1e-10)
    np.testing.assert_allclose(gradient.scores, dmask, rtol=0, atol=1e-10)
    np.testing.assert_allclose(DOUT @ weight.T, dx, rtol=0, atol=1e-10)


def test_the_penalty_is_the_mean_share_and_its_gradient_is_autograd_s():
    def textbook(scores):
        return anp.mean(anp.stack([1 / (1 + anp.exp(-scores[i, j])) for i in range(6) for j in range(5)]))

    penalty, backward = score_penalty(PARAMS.scores)
    np.testing.assert_allclose(penalty, textbook(PARAMS.scores), rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(np.float64(0.3)), 0.3 * autograd.grad(textbook)(PARAMS.scores), rtol=0, atol=1e-12)
    assert score_penalty(np.zeros(7))[0] == 0.5


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9])
def test_the_number_that_stays_is_exact_also_where_all_scores_are_equal(sparsity):
    for params in (PARAMS, init_movement_pruning(PARAMS.weight)):
        assert np.count_nonzero(movement_pruning(params, sparsity=sparsity)[0]) == round((1 - sparsity) * 30)


def test_signed_scores_choose_and_not_their_magnitudes():
    params = ScoredWeight(np.ones((2, 2)), np.array([[-9.0, 1.0], [2.0, -8.0]]))
    assert movement_pruning(params, sparsity=0.5)[0].tolist() == [[0, 1], [1, 0]]


def test_after_one_step_from_zero_a_score_is_minus_the_rate_times_gradient_times_weight():
    start, target = init_movement_pruning(PARAMS.weight), RNG.normal(size=(4, 5))
    weight, back = movement_pruning(start, sparsity=0.0)     # at a density of one, before anything is pruned
    out, backward = linear(Linear(weight, None), X)
    dweight = backward(out - target)[0].weight
    scores = start.scores - 0.1 * back(dweight).scores
    np.testing.assert_allclose(scores, -0.1 * (X.T @ (X @ PARAMS.weight - target)) * PARAMS.weight, rtol=0, atol=1e-14)
    # What the step would move away from zero has a score above zero, what towards it one below.
    np.testing.assert_array_equal(scores > 0, np.abs(PARAMS.weight - 1e-6 * dweight) > np.abs(PARAMS.weight))


def losing_the_scores(params, *, sparsity):
    """The plausible wrong backward: with the weight that came out, in which what was pruned is zero."""
    weight, backward = movement_pruning(params, sparsity=sparsity)
    return weight, lambda dweight: ScoredWeight(backward(dweight).weight, dweight * weight)


@pytest.mark.parametrize("form", [movement_pruning, losing_the_scores])
def test_a_pruned_weight_comes_back_while_the_loss_wants_it_and_not_if_its_score_sees_zeros(form):
    weight, scores = np.array([[2.0, 1.0]]), np.array([[-0.5, 0.0]])
    for _ in range(10):                                      # the loss: the first number should be 3, the second 1
        out, backward = form(ScoredWeight(weight, scores), sparsity=0.5)
        scores = scores - 0.1 * backward(out - [[3.0, 1.0]]).scores
    assert (movement_pruning(ScoredWeight(weight, scores), sparsity=0.5)[0][0, 0] == 2.0) == (form is movement_pruning)


def test_the_weight_s_own_gradient_is_that_under_a_fixed_mask():
    weight, backward = HARD(PARAMS)
    other, other_backward = masked_weight(MaskedWeight(PARAMS.weight), mask=np.array(hard_mask(PARAMS.scores.tolist()), bool))
    np.testing.assert_array_equal(weight, other)
    np.testing.assert_array_equal(backward(PARAMS.scores).weight, other_backward(PARAMS.scores).weight)


def test_scores_of_zero_all_stay_under_a_threshold_below_one_half():
    start = init_movement_pruning(PARAMS.weight)
    np.testing.assert_array_equal(soft_movement_pruning(start, threshold=0.49)[0], PARAMS.weight)
    with pytest.raises(ValueError, match=r"threshold: got 0\.5, wants one below the largest"):
        soft_movement_pruning(start, threshold=0.5)


def test_the_penalty_presses_scores_under_the_threshold():
    scores, stay = np.linspace(-1.0, 1.0, 9), []
    for _ in range(3):
        stay.append(int(np.sum(1 / (1 + np.exp(-scores)) > 0.45)))
        scores = scores - 10 * score_penalty(scores)[1](np.float64(1))
    assert stay[0] > stay[1] > stay[2]


@pytest.mark.parametrize("name", MODELS)
def test_it_trains_a_model_whose_code_is_not_touched(name):
    base, run = whole_model(name)
    patterns, count = PATTERNS[name]
    rng = np.random.default_rng(1)
    trained = at_targets(lambda leaf: ScoredWeight(leaf, rng.normal(size=leaf.shape)), base, patterns)
    assert len(list(trees.leaves(trained))) == 2 * count
    masks = {path: leaf for path, leaf in trees.leaves(reparameterize(trained, base=base, change=HARD)[0])}

    def moving(own, *, base):                                # the surrogate as a change: its mask stays what it is here
        mask, start = next(each)
        weight = own.weight * (mask + own.scores - start)
        return weight, lambda dweight: ScoredWeight(dweight * (mask + own.scores - start), dweight * own.weight)

    pairs = [(masks[path.removesuffix(".scores")] != 0, leaf) for path, leaf in trees.leaves(trained) if path.endswith(".scores")]
    model, surrogate = changed(run, base, HARD), changed(run, base, moving)

    def run_surrogate(trained):
        nonlocal each
        each = iter(pairs)
        return surrogate(trained)[0]

    each = iter(pairs)
    report = checked(model, trained, gradient_of=lambda trained: run_surrogate)
    assert report.passed, str(report)


def test_the_checker_refuses_a_score_that_sees_the_pruned_weight():
    gradient_of = catalogue.find("movement_pruning").gradient_of
    assert check_gradients(movement_pruning, PARAMS, sparsity=0.4, gradient_of=gradient_of).passed
    assert not check_gradients(losing_the_scores, PARAMS, sparsity=0.4, gradient_of=gradient_of).passed


def test_differences_of_the_staircase_itself_would_refuse_the_right_one():
    assert not check_gradients(movement_pruning, PARAMS, sparsity=0.4).passed


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"sparsity: got 0\.99, wants one that leaves"):
        movement_pruning(PARAMS, sparsity=0.99)
    with pytest.raises(ValueError, match=r"params\.scores: got shape \(5, 6\)"):
        movement_pruning(ScoredWeight(PARAMS.weight, PARAMS.scores.T), sparsity=0.5)
    with pytest.raises(ValueError, match=r"params\.scores: got numbers from nan"):
        movement_pruning(ScoredWeight(PARAMS.weight, PARAMS.scores * np.nan), sparsity=0.5)


@pytest.mark.parity
@pytest.mark.parametrize("form", [HARD, SOFT])
def test_gradients_are_those_of_a_binarizer_in_pytorch(form):
    """As in huggingface/block_movement_pruning, emmental/modules: a mask without a slope, whose gradient goes straight on."""
    torch = pytest.importorskip("torch")

    class Binarizer(torch.autograd.Function):
        @staticmethod
        def forward(ctx, scores):
            if form is SOFT:
                return (torch.sigmoid(scores) > 0.4).type(scores.dtype)
            mask = torch.zeros_like(scores)
            mask.view(-1)[scores.flatten().sort(descending=True)[1][:18]] = 1
            return mask

        @staticmethod
        def backward(ctx, dmask):
            return dmask

    weight, scores, x = (torch.tensor(array, requires_grad=True) for array in (*PARAMS, X))
    theirs = torch.nn.functional.linear(x, (weight * Binarizer.apply(scores)).T)
    (theirs * torch.tensor(DOUT)).sum().backward()
    own, backward = form(PARAMS)
    gradient = backward(X.T @ DOUT)
    np.testing.assert_allclose(X @ own, theirs.detach().numpy(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(gradient.weight, weight.grad.numpy(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(gradient.scores, scores.grad.numpy(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(DOUT @ own.T, x.grad.numpy(), rtol=0, atol=1e-9)
