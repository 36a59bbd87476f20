"""A masked weight: what was pruned stays zero, whatever the optimiser does; what was not is trained as ever."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from changed_models import MODELS, PATTERNS, changed, checked, whole_model

from minitransformers import Linear, check_gradients, linear, trees
from minitransformers.compression.magnitude_pruning import apply_masks, global_magnitude_masks, magnitude_mask
from minitransformers.compression.masked_weight import MaskedWeight, masked_weight
from minitransformers.foundation import reparameterize
from minitransformers.peft.targets import at_targets
from minitransformers.training.flat_tree import FlatTree
from minitransformers.training.optimizer import AdamW

RNG = np.random.default_rng(0)
WEIGHT, MASK, X, DOUT = RNG.normal(size=(5, 4)), RNG.random((5, 4)) < 0.5, RNG.normal(size=(3, 5)), RNG.normal(size=(3, 4))


def one_by_one(weight, x, bias):
    """The masked linear map, a number at a time: only what the mask lets through is ever added."""
    rows = []
    for t in range(x.shape[0]):
        rows.append([bias[j] + sum([x[t, i] * weight[i, j] for i in range(5) if MASK[i, j]], 0.0) for j in range(4)])
    return anp.array(rows)


def masked_linear(params, x, bias):
    weight, weight_backward = masked_weight(params, mask=MASK)
    out, linear_backward = linear(Linear(weight, bias), x)

    def backward(dout):
        (dweight, dbias), dx = linear_backward(dout)
        return weight_backward(dweight), dx, dbias

    return out, backward


def test_a_masked_layer_is_each_sum_over_what_stays_and_its_gradients_are_autograd_s():
    bias = RNG.normal(size=4)
    out, backward = masked_linear(MaskedWeight(WEIGHT), X, bias)
    np.testing.assert_allclose(out, one_by_one(WEIGHT, X, bias), rtol=0, atol=1e-10)
    expected = autograd.grad(lambda *args: anp.sum(DOUT * one_by_one(*args)), (0, 1, 2))(WEIGHT, X, bias)
    (dweight,), dx, dbias = backward(DOUT)
    for own, their in zip((dweight, dx, dbias), expected, strict=True):
        np.testing.assert_allclose(own, their, rtol=0, atol=1e-10)
    assert check_gradients(masked_linear, MaskedWeight(WEIGHT), X, bias).passed


def test_what_is_pruned_is_zero_to_the_last_bit_whatever_lies_behind_the_mask():
    behind = np.where(MASK, WEIGHT, np.where(RNG.random((5, 4)) < 0.5, -np.inf, -1.0))
    weight, backward = masked_weight(MaskedWeight(behind), mask=MASK)
    assert not weight[~MASK].view(np.uint64).any()
    np.testing.assert_array_equal(weight[MASK], WEIGHT[MASK])
    assert not backward(np.full((5, 4), -np.inf)).weight[~MASK].view(np.uint64).any()


def test_under_a_mask_of_ones_nothing_changes():
    weight, backward = masked_weight(MaskedWeight(WEIGHT), mask=np.ones_like(MASK))
    np.testing.assert_array_equal(weight, WEIGHT)
    np.testing.assert_array_equal(backward(WEIGHT).weight, WEIGHT)


def test_without_a_mask_the_zeros_of_the_base_are_it():
    weight, backward = masked_weight(MaskedWeight(WEIGHT), base=WEIGHT * MASK)
    np.testing.assert_array_equal(weight, masked_weight(MaskedWeight(WEIGHT), mask=MASK)[0])
    np.testing.assert_array_equal(backward(WEIGHT).weight, WEIGHT * MASK)


def is_zero_to_the_last_bit(array):
    return not np.ascontiguousarray(array).view(np.uint64).any()


def trained_for_a_while(params, gradient_at, *, after=lambda params: None, steps=6):
    """AdamW with momentum and weight decay; gradient_at(tree) -> gradient, and after(tree) may write to the tree."""
    packed = FlatTree.pack(params)
    optimizer, gradient = AdamW(packed, betas=(0.9, 0.99), weight_decay=0.1), packed.zeros_like()
    for _ in range(steps):
        gradient.set_sum(gradient_at(packed.tree))
        optimizer.step(gradient, learning_rate=0.05)
        after(packed.tree)
    return packed.tree


def test_a_pruned_weight_stays_zero_through_steps_with_momentum_and_decay():
    base = [Linear(WEIGHT * MASK, RNG.normal(size=4))]
    start = [Linear(MaskedWeight(WEIGHT), base[0].bias)]     # behind the mask lie numbers that decay may move

    def gradient_at(trained):
        tree, back = reparameterize(trained, base=base, change=masked_weight)
        assert is_zero_to_the_last_bit(tree[0].weight[~MASK])
        out, backward = linear(tree[0], X)
        return back([backward(out - 1)[0]])

    end = trained_for_a_while(start, gradient_at)
    weight = reparameterize(end, base=base, change=masked_weight)[0][0].weight
    assert is_zero_to_the_last_bit(weight[~MASK])
    assert (weight != WEIGHT)[MASK].all()
    assert (end[0].weight.weight != WEIGHT)[~MASK].all()     # decay moved what nobody reads


def dense_gradient_at(params):
    out, backward = linear(Linear(params[0], None), X)
    return [backward(out - 1)[0].weight]


def test_a_weight_that_is_zeroed_again_after_each_step_stays_zero_as_well():
    def zeroed(params):
        params[0][~MASK] = 0
        assert is_zero_to_the_last_bit(params[0][~MASK])

    end = trained_for_a_while([WEIGHT * MASK], dense_gradient_at, after=zeroed)
    assert is_zero_to_the_last_bit(end[0][~MASK]) and (end[0] != WEIGHT)[MASK].all()


def test_zeroed_once_with_its_gradient_masked_it_comes_back_by_an_old_momentum():
    steps = iter(range(6))

    def gradient_at(params):
        gradient = dense_gradient_at(params)
        if next(steps) >= 3:                                 # pruned in the middle of training
            gradient = [gradient[0] * MASK]
        return gradient

    done = iter(range(6))

    def zeroed_once(params):
        if next(done) == 2:
            params[0][~MASK] = 0

    end = trained_for_a_while([WEIGHT], gradient_at, after=zeroed_once)
    assert np.all(end[0][~MASK] != 0)


@pytest.mark.parametrize("name", MODELS)
def test_it_trains_a_pruned_model_whose_code_is_not_touched(name):
    base, run = whole_model(name)
    patterns, count = PATTERNS[name]
    pruned = apply_masks(base, masks=global_magnitude_masks(base, sparsity=0.5, patterns=patterns))
    trained = at_targets(MaskedWeight, base, patterns)
    assert len(list(trees.leaves(trained))) == count
    tree, _ = reparameterize(trained, base=pruned, change=masked_weight)
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(trees.leaves(tree), trees.leaves(pruned), strict=True))
    report = checked(changed(run, pruned, masked_weight), trained)
    assert report.passed, str(report)


def without_the_mask(params, *, mask):
    weight, _ = masked_weight(params, mask=mask)
    return weight, lambda dweight: MaskedWeight(dweight)


def test_the_checker_refuses_a_backward_without_the_mask():
    assert not check_gradients(without_the_mask, MaskedWeight(WEIGHT), mask=MASK).passed


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="mask: got None, wants a mask, or a base"):
        masked_weight(MaskedWeight(WEIGHT))
    with pytest.raises(ValueError, match="mask: got false everywhere"):
        masked_weight(MaskedWeight(WEIGHT), mask=np.zeros_like(MASK))
    with pytest.raises(ValueError, match=r"mask: got shape \(4, 4\)"):
        masked_weight(MaskedWeight(WEIGHT), mask=MASK[:4])
    with pytest.raises(ValueError, match=r"trained\.0: mask: got false everywhere"):
        reparameterize([MaskedWeight(WEIGHT)], base=[0 * WEIGHT], change=masked_weight)


@pytest.mark.parity
def test_output_and_gradients_are_those_of_pytorch_s_pruned_layer():
    torch = pytest.importorskip("torch")
    from torch.nn.utils import prune

    layer = torch.nn.Linear(5, 4, dtype=torch.float64)
    layer.weight.data, bias = torch.tensor(WEIGHT.T.copy()), layer.bias.detach().numpy()
    prune.l1_unstructured(layer, "weight", amount=0.4)
    x = torch.tensor(X, requires_grad=True)
    theirs = layer(x)
    theirs.backward(torch.tensor(DOUT))
    weight, weight_backward = masked_weight(MaskedWeight(WEIGHT), mask=magnitude_mask(WEIGHT, sparsity=0.4))
    out, backward = linear(Linear(weight, bias), X)
    (dweight, dbias), dx = backward(DOUT)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(weight_backward(dweight).weight, layer.weight_orig.grad.numpy().T, rtol=0, atol=1e-9)
    np.testing.assert_allclose(dx, x.grad.numpy(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(dbias, layer.bias.grad.numpy(), rtol=0, atol=1e-9)
