"""LoRA under a mask: what is merged is as sparse as what was pruned."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from changed_models import MODELS, PATTERNS, changed, checked, whole_model

from minitransformers import check_gradients, trees
from minitransformers.foundation import reparameterize
from minitransformers.peft.lora import lora, merge_lora
from minitransformers.peft.lora_linear import Lora, init_lora
from minitransformers.peft.masked_lora import masked_lora
from minitransformers.peft.targets import at_targets, targets

RNG = np.random.default_rng(0)
BASE, MASK = RNG.normal(size=(8, 6)), RNG.random((8, 6)) < 0.5
FACTORS, DOUT = Lora(RNG.normal(size=(8, 2)), RNG.normal(size=(2, 6))), RNG.normal(size=(8, 6))


def half(weight):
    """The half of the weights that are largest."""
    return np.abs(weight) >= np.median(np.abs(weight))


def two_of_four(weight):
    """Of each four that follow each other down a column (an output's inputs) the two that are largest."""
    groups = np.abs(weight).reshape(-1, 4, weight.shape[1])
    order = np.argsort(np.argsort(-groups, axis=1, kind="stable"), axis=1)
    return (order < 2).reshape(weight.shape)


MASKS = [half, two_of_four]


def one_by_one(down, up, scale=0.7):
    rows = [
        anp.stack([BASE[i, j] + scale * anp.sum(down[i] * up[:, j]) if MASK[i, j] else 0.0 * down[0, 0] for j in range(BASE.shape[1])])
        for i in range(BASE.shape[0])
    ]
    return anp.stack(rows)


def test_it_is_each_sum_where_the_mask_is_and_its_gradients_are_autograd_s():
    weight, backward = masked_lora(FACTORS, base=BASE, mask=MASK, scale=0.7)
    np.testing.assert_allclose(weight, one_by_one(*FACTORS), rtol=0, atol=1e-10)
    expected = autograd.grad(lambda *factors: anp.sum(DOUT * one_by_one(*factors)), (0, 1))(*FACTORS)
    for own, their in zip(backward(DOUT), expected, strict=True):
        np.testing.assert_allclose(own, their, rtol=0, atol=1e-10)


def test_the_gradient_of_a_layer_is_its_dense_one_under_the_mask():
    x, g = RNG.normal(size=(5, 8)), RNG.normal(size=(5, 6))
    _, backward = masked_lora(FACTORS, base=BASE, mask=MASK, scale=0.7)
    ddown, dup = backward(x.T @ g)
    gamma = (x.T @ g) * MASK
    np.testing.assert_allclose(ddown, 0.7 * gamma @ FACTORS.up.T, rtol=0, atol=1e-12)
    np.testing.assert_allclose(dup, 0.7 * FACTORS.down.T @ gamma, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mask_of", MASKS)
def test_merging_keeps_every_zero_and_plain_lora_fills_them(mask_of):
    mask = mask_of(BASE)
    pruned = BASE * mask
    assert mask.sum() == 24 and np.count_nonzero(pruned) == 24
    merged = masked_lora(FACTORS, base=pruned, mask=mask, scale=0.7)[0]
    assert np.count_nonzero(merged) == 24
    np.testing.assert_array_equal(merged != 0, mask)
    plain = lora(FACTORS, base=pruned, scale=0.7)[0]
    assert np.count_nonzero(plain) == 48
    np.testing.assert_allclose(merged[mask], plain[mask], rtol=0, atol=1e-14)


def test_two_of_four_stay_two_of_four():
    merged = masked_lora(FACTORS, base=BASE * two_of_four(BASE), scale=0.7)[0]
    np.testing.assert_array_equal(np.count_nonzero(merged.reshape(2, 4, 6), axis=1), 2)


def test_without_a_mask_the_zeros_of_the_weight_are_it():
    weight, backward = masked_lora(FACTORS, base=BASE * MASK, scale=0.7)
    other, other_backward = masked_lora(FACTORS, base=BASE, mask=MASK, scale=0.7)
    np.testing.assert_array_equal(weight, other)
    np.testing.assert_array_equal(backward(DOUT).up, other_backward(DOUT).up)


def test_under_a_mask_of_ones_it_is_plain_lora():
    weight, backward = masked_lora(FACTORS, base=BASE, mask=np.ones_like(MASK), scale=0.7)
    other, other_backward = lora(FACTORS, base=BASE, scale=0.7)
    np.testing.assert_array_equal(weight, other)
    np.testing.assert_array_equal(backward(DOUT).down, other_backward(DOUT).down)


def test_at_the_start_it_is_the_pruned_weight():
    params = init_lora(np.random.default_rng(1), 8, 6, rank=3, dtype=np.float64)
    np.testing.assert_array_equal(masked_lora(params, base=BASE, mask=MASK, scale=0.7)[0], BASE * MASK)


def test_under_a_mask_the_change_may_have_full_rank():
    change = masked_lora(FACTORS, base=0 * BASE, mask=MASK, scale=0.7)[0]
    assert np.linalg.matrix_rank(FACTORS.down @ FACTORS.up) == 2
    assert np.linalg.matrix_rank(change) > 2


@pytest.mark.parametrize("name", MODELS)
def test_it_trains_a_pruned_model_whose_code_is_not_touched(name):
    base, run = whole_model(name)
    patterns, count = PATTERNS[name]
    chosen = set(targets(base, patterns))
    pruned = trees.unflatten(base, [leaf * half(leaf) if path in chosen else leaf for path, leaf in trees.leaves(base)])
    rng = np.random.default_rng(2)
    trained = at_targets(lambda leaf: Lora(rng.normal(size=(leaf.shape[0], 1)), rng.normal(size=(1, leaf.shape[1]))), pruned, patterns)
    assert len(list(trees.leaves(trained))) == 2 * count
    report = checked(changed(run, pruned, partial(masked_lora, scale=0.5)), trained)
    assert report.passed, str(report)


def test_a_merged_model_has_as_many_zeros_as_the_pruned_one():
    base, _ = whole_model("gpt2")
    patterns, count = PATTERNS["gpt2"]
    chosen = set(targets(base, patterns))
    pruned = trees.unflatten(base, [leaf * half(leaf) if path in chosen else leaf for path, leaf in trees.leaves(base)])
    rng = np.random.default_rng(3)
    trained = at_targets(lambda leaf: Lora(rng.normal(size=(leaf.shape[0], 1)), rng.normal(size=(1, leaf.shape[1]))), pruned, patterns)

    def zeros(tree):
        return sum(int(np.sum(leaf == 0)) for path, leaf in trees.leaves(tree) if path in chosen)

    merged, _ = reparameterize(trained, base=pruned, change=partial(masked_lora, scale=0.5))
    assert zeros(merged) == zeros(pruned) > 0
    assert zeros(merge_lora(pruned, trained, scale=0.5).tree) == 0
    assert len(chosen) == count


@pytest.mark.parametrize("forgotten", ["the mask", "the scale"])
def test_the_checker_refuses_a_backward_that_forgets(forgotten):
    def wrong(params):
        weight, backward = masked_lora(params, base=BASE, mask=MASK, scale=0.7)
        everywhere = lora(params, base=BASE, scale=0.7)[1]
        return weight, everywhere if forgotten == "the mask" else lambda dweight: Lora(*(part / 0.7 for part in backward(dweight)))

    assert not check_gradients(wrong, FACTORS).passed


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="rank: got 7, wants 1 to 6"):
        masked_lora(Lora(np.ones((8, 7)), np.ones((7, 6))), base=BASE, mask=MASK, scale=1.0)
    with pytest.raises(ValueError, match="mask"):
        masked_lora(FACTORS, base=BASE, mask=MASK[:7], scale=1.0)
    with pytest.raises(ValueError, match="mask"):
        masked_lora(FACTORS, base=BASE, mask=MASK.astype(float), scale=1.0)
