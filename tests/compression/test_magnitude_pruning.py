"""Magnitude masks: an exact number of weights, of one array or of a whole model; and the schedule of how many."""

from itertools import pairwise

import numpy as np
import pytest
from changed_models import whole_model

from minitransformers import trees
from minitransformers.compression.magnitude_pruning import apply_masks, global_magnitude_masks, magnitude_mask, sparsity_at
from minitransformers.peft.targets import targets

WEIGHT = np.random.default_rng(0).normal(size=(7, 5))
LIST = [WEIGHT, 0.1 * np.random.default_rng(1).normal(size=(3, 4)), 5 * np.random.default_rng(2).normal(size=(2, 6))]


def one_by_one(numbers, kept):
    """Which of a list of numbers stay: the largest is taken away, kept times, each time the first of the largest."""
    left = {i: abs(number) for i, number in enumerate(numbers)}
    mask = [False] * len(numbers)
    for _ in range(kept):
        best = max(left, key=lambda i: (left[i], -i))
        del left[best]
        mask[best] = True
    return mask


@pytest.mark.parametrize(("sparsity", "kept"), [(0.0, 35), (0.1, 32), (0.5, 18), (0.88, 4), (0.98, 1)])
def test_the_mask_is_at_the_largest_magnitudes_and_their_number_is_exact(sparsity, kept):
    mask = magnitude_mask(WEIGHT, sparsity=sparsity)
    assert mask.dtype == bool and mask.sum() == kept
    np.testing.assert_array_equal(mask.ravel(), one_by_one(WEIGHT.ravel().tolist(), kept))


def test_at_sparsity_zero_everything_stays():
    assert magnitude_mask(WEIGHT, sparsity=0.0).all()


@pytest.mark.parametrize(("size", "sparsity", "kept"), [(10, 0.9, 1), (5, 0.5, 2), (7, 0.5, 4), (3, 0.5, 2)])
def test_the_number_is_rounded_half_to_even_and_not_cut(size, sparsity, kept):
    assert magnitude_mask(np.arange(1.0, size + 1), sparsity=sparsity).sum() == kept  # (1 - 0.9) 10 is a little below 1


def above_a_threshold(weight, sparsity):
    """The plausible wrong variant: what is as large as the last that stays, stays."""
    magnitudes = np.sort(np.abs(weight).ravel())[::-1]
    return np.abs(weight) >= magnitudes[int(np.rint((1 - sparsity) * weight.size)) - 1]


def test_of_equal_magnitudes_the_first_stay_and_a_threshold_would_keep_them_all():
    equal = np.array([[-1.0, 1.0, 0.5], [1.0, -1.0, 2.0]])
    assert magnitude_mask(equal, sparsity=0.5).tolist() == [[True, True, False], [False, False, True]]
    assert above_a_threshold(equal, 0.5).sum() == 5
    constant = np.full((40, 30), -0.25)
    mask = magnitude_mask(constant, sparsity=0.75)
    assert mask.sum() == 300 and mask.ravel()[:300].all() and above_a_threshold(constant, 0.75).all()


def test_the_sign_of_a_zero_does_not_decide():
    assert magnitude_mask(np.array([0.0, -0.0, 0.0, -0.0]), sparsity=0.5).tolist() == [True, True, False, False]


def test_a_global_mask_has_one_threshold_for_all_arrays():
    masks = global_magnitude_masks(LIST, sparsity=0.6)
    kept = np.concatenate([np.abs(leaf)[mask] for leaf, mask in zip(LIST, masks, strict=True)])
    lost = np.concatenate([np.abs(leaf)[~mask] for leaf, mask in zip(LIST, masks, strict=True)])
    assert kept.min() > lost.max() and len(kept) == round(0.4 * 59)
    together = np.concatenate([mask.ravel() for mask in masks])
    np.testing.assert_array_equal(together, one_by_one(np.concatenate([leaf.ravel() for leaf in LIST]).tolist(), len(kept)))


def test_array_by_array_each_loses_the_same_share_and_together_the_small_ones_lose_most():
    shares = [1 - mask.mean() for mask in global_magnitude_masks(LIST, sparsity=0.6)]
    assert shares[1] == 1.0 > shares[0] > shares[2]          # the array of small numbers is gone: a mask must not be trusted blindly
    assert [round(1 - magnitude_mask(leaf, sparsity=0.6).mean(), 1) for leaf in LIST] == [0.6, 0.6, 0.6]


def test_equal_numbers_stay_in_the_order_of_the_tree():
    masks = global_magnitude_masks([np.ones((2, 2)), -np.ones(3)], sparsity=0.3)
    assert [mask.tolist() for mask in masks] == [[[True, True], [True, True]], [True, False, False]]


def test_a_pattern_chooses_what_is_pruned_and_the_rest_has_no_mask():
    base, _ = whole_model("gpt2")
    patterns = ["query.weight", "feed_forward.up.weight"]
    masks = global_magnitude_masks(base, sparsity=0.5, patterns=patterns)
    assert type(masks) is type(base)
    assert [path for path, _ in trees.leaves(masks)] == targets(base, patterns)
    shapes = dict(trees.leaves(base))
    assert all(mask.dtype == bool and mask.shape == shapes[path].shape for path, mask in trees.leaves(masks))
    assert sum(int(mask.sum()) for _, mask in trees.leaves(masks)) == sum(mask.size for _, mask in trees.leaves(masks)) // 2


def test_masks_are_applied_and_what_has_none_stays_itself():
    base, _ = whole_model("llama")
    masks = global_magnitude_masks(base, sparsity=0.5, patterns=["feed_forward.*.weight"])
    pruned, chosen = apply_masks(base, masks=masks), dict(trees.leaves(masks))
    for (path, before), (_, after) in zip(trees.leaves(base), trees.leaves(pruned), strict=True):
        if path in chosen:
            np.testing.assert_array_equal(after, before * chosen[path])
        else:
            assert after is before


def test_without_a_pattern_every_array_is_pruned():
    assert [mask.shape for mask in global_magnitude_masks(LIST, sparsity=0.2)] == [leaf.shape for leaf in LIST]


def test_the_schedule_begins_and_ends_where_it_is_told_and_never_falls():
    rises = [sparsity_at(step, initial=0.1, final=0.9, start=4, duration=20) for step in range(40)]
    assert rises[:5] == pytest.approx([0.1] * 5, abs=1e-15) and rises[24:] == [0.9] * 16
    assert all(later > sooner for sooner, later in pairwise(rises[4:25]))


def test_the_schedule_is_the_papers_cubic():
    for step in range(5, 25):
        expected = 0.9 + (0.1 - 0.9) * (1 - (step - 4) / (20 * 1)) ** 3  # s_f + (s_i - s_f) (1 - (t - t_0) / (n delta t))^3
        assert sparsity_at(step, initial=0.1, final=0.9, start=4, duration=20) == pytest.approx(expected, abs=1e-15)
    assert sparsity_at(5, final=0.8, duration=10) == pytest.approx(0.8 * (1 - 1 / 8))  # half of the way, seven eighths of the zeros


def test_float32_has_the_mask_of_float64():
    narrow = WEIGHT.astype(np.float32)
    np.testing.assert_array_equal(magnitude_mask(narrow, sparsity=0.5), magnitude_mask(narrow.astype(np.float64), sparsity=0.5))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"sparsity: got 0\.99, wants one that leaves at least one of the 35 numbers"):
        magnitude_mask(WEIGHT, sparsity=0.99)
    with pytest.raises(ValueError, match=r"sparsity: got 1\.0"):
        magnitude_mask(WEIGHT, sparsity=1.0)
    with pytest.raises(ValueError, match="weight: got numbers from nan"):
        magnitude_mask(np.array([1.0, np.nan]), sparsity=0.5)
    with pytest.raises(ValueError, match=r"base\.1: got numbers that are not finite"):
        global_magnitude_masks([np.ones(3), np.array([np.inf])], sparsity=0.5)
    with pytest.raises(ValueError, match="patterns: got 'q_proj', wants one that matches"):
        global_magnitude_masks(whole_model("gpt2")[0], sparsity=0.5, patterns=["q_proj"])
    with pytest.raises(ValueError, match=r"base\.1: got float32, wants float64"):
        global_magnitude_masks([np.ones(3), np.ones(3, np.float32)], sparsity=0.5)
    with pytest.raises(ValueError, match=r"masks\.0: got bool of shape \(3,\), wants bool of shape \(2,\)"):
        apply_masks([np.ones(2)], masks=[np.ones(3, bool)])
    with pytest.raises(ValueError, match=r"initial: got 0\.5, wants at most final, 0\.4"):
        sparsity_at(0, initial=0.5, final=0.4, duration=3)


@pytest.mark.parity
def test_the_masks_are_those_of_pytorch():
    torch = pytest.importorskip("torch")
    from torch.nn.utils import prune

    for sparsity in (0.2, 0.6, 0.8):
        layers = [torch.nn.Linear(*leaf.shape, bias=False, dtype=torch.float64) for leaf in LIST]
        for layer, leaf in zip(layers, LIST, strict=True):
            layer.weight.data = torch.tensor(leaf.T.copy())
        prune.global_unstructured([(layer, "weight") for layer in layers], pruning_method=prune.L1Unstructured, amount=sparsity)
        for layer, mask in zip(layers, global_magnitude_masks(LIST, sparsity=sparsity), strict=True):
            np.testing.assert_allclose(mask, layer.weight_mask.numpy().T.astype(bool), rtol=0, atol=0)
        alone = torch.nn.Linear(7, 5, bias=False, dtype=torch.float64)
        alone.weight.data = torch.tensor(WEIGHT.T.copy())
        prune.l1_unstructured(alone, "weight", amount=sparsity)
        np.testing.assert_allclose(magnitude_mask(WEIGHT, sparsity=sparsity), alone.weight_mask.numpy().T.astype(bool), rtol=0, atol=0)
