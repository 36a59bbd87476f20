"""Wanda: magnitude times the norm of the input, compared within an output."""

import numpy as np
import pytest
from changed_models import PATTERNS, changed, checked, whole_model

from minitransformers.compression.magnitude_pruning import apply_masks, magnitude_mask
from minitransformers.compression.masked_weight import MaskedWeight, masked_weight
from minitransformers.compression.n_m_sparsity import n_m_mask
from minitransformers.compression.wanda import input_norms, wanda_mask, wanda_scores
from minitransformers.peft.targets import at_targets

RNG = np.random.default_rng(0)
WEIGHT, X = RNG.normal(size=(8, 5)), RNG.normal(size=(3, 4, 8)) * np.array([0.1, 1, 10, 1, 1, 0.1, 1, 3])
NORMS = input_norms(X)


def formula(weight, x, sparsity):
    """locuslab/wanda, lib/layerwrapper.py and lib/prune.py, a text, an output and a number at a time; weight is (d_out, d_in) there."""
    rows, columns = len(weight), len(weight[0])
    scaler_row = [0.0] * columns
    for nsamples, text in enumerate(x):
        for i in range(columns):
            scaler_row[i] = scaler_row[i] * nsamples / (nsamples + 1) + sum(position[i] ** 2 for position in text) / (nsamples + 1)
    metric = [[abs(weight[j][i]) * scaler_row[i] ** 0.5 for i in range(columns)] for j in range(rows)]
    mask = [[True] * columns for _ in range(rows)]
    for j in range(rows):
        for i in sorted(range(columns), key=lambda i: metric[j][i])[: int(columns * sparsity)]:
            mask[j][i] = False
    return np.array(metric), np.array(mask)


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.75])
def test_scores_and_masks_are_those_of_the_formula(sparsity):
    metric, mask = formula(WEIGHT.T.tolist(), X.tolist(), sparsity)
    # The code divides by the number of texts: a factor common to all scores, the root of 3 here.
    np.testing.assert_allclose(wanda_scores(WEIGHT, norms=NORMS), 3**0.5 * metric.T, rtol=1e-12)
    np.testing.assert_array_equal(wanda_mask(WEIGHT, norms=NORMS, sparsity=sparsity), mask.T)


def test_the_norms_are_the_lengths_of_features_over_all_positions():
    np.testing.assert_allclose(NORMS, [np.linalg.norm(X[:, :, i].ravel()) for i in range(8)], rtol=1e-14)


def test_norms_of_texts_one_after_the_other_make_those_of_all():
    np.testing.assert_allclose(np.sqrt(sum(input_norms(text) ** 2 for text in X)), NORMS, rtol=1e-14)


def test_a_score_is_by_how_much_the_output_changes_without_the_weight():
    scores, out = wanda_scores(WEIGHT, norms=NORMS), X @ WEIGHT
    for i in range(8):
        for j in range(5):
            without = WEIGHT.copy()
            without[i, j] = 0
            np.testing.assert_allclose(np.linalg.norm(out - X @ without), scores[i, j], rtol=1e-12)


@pytest.mark.parametrize(("sparsity", "kept"), [(0.0, 8), (0.1, 7), (0.5, 4), (0.9, 1)])
def test_every_output_keeps_the_same_number_of_inputs(sparsity, kept):
    np.testing.assert_array_equal(wanda_mask(WEIGHT, norms=NORMS, sparsity=sparsity).sum(axis=0), kept)


def across_outputs(weight, *, norms, sparsity):
    """The plausible wrong variant: one threshold for the whole weight."""
    return magnitude_mask(wanda_scores(weight, norms=norms), sparsity=sparsity)


def test_an_output_with_small_weights_is_not_starved_and_across_outputs_it_would_be():
    weight = WEIGHT * np.array([1, 1, 1e-3, 1, 1])
    assert wanda_mask(weight, norms=NORMS, sparsity=0.5)[:, 2].sum() == 4
    assert across_outputs(weight, norms=NORMS, sparsity=0.5)[:, 2].sum() == 0


def test_the_scale_of_an_output_and_that_of_all_norms_do_not_matter():
    mask = wanda_mask(WEIGHT, norms=NORMS, sparsity=0.5)
    np.testing.assert_array_equal(wanda_mask(WEIGHT * np.array([1, 7, 0.1, 3, 100]), norms=9 * NORMS, sparsity=0.5), mask)


def test_with_equal_norms_it_is_the_magnitudes_of_each_output():
    mask = wanda_mask(WEIGHT, norms=np.full(8, 0.3), sparsity=0.5)
    np.testing.assert_array_equal(mask, np.stack([magnitude_mask(column, sparsity=0.5) for column in WEIGHT.T], axis=1))


def test_an_input_that_is_always_zero_goes_first_however_large_its_weights():
    weight, norms = WEIGHT.copy(), NORMS.copy()
    weight[2], norms[2] = 1e6, 0.0
    assert not wanda_mask(weight, norms=norms, sparsity=0.2)[2].any()


def test_it_loses_less_of_the_output_than_magnitudes_where_features_differ():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(64, 16)) * np.exp(rng.normal(size=16))
    weight = rng.normal(size=(16, 12))
    by_norm, by_magnitude = wanda_mask(weight, norms=input_norms(x), sparsity=0.5), magnitude_mask(weight, sparsity=0.5)
    lost = [np.linalg.norm(x @ (weight * ~mask)) for mask in (by_norm, by_magnitude)]
    assert lost[0] < 0.7 * lost[1]


def test_of_equal_scores_the_first_stays():
    assert wanda_mask(np.ones((4, 1)), norms=np.ones(4), sparsity=0.5).ravel().tolist() == [True, True, False, False]


def test_a_model_that_it_pruned_trains_on():
    base, run = whole_model("gpt2")
    rng = np.random.default_rng(2)
    masks = at_targets(lambda leaf: wanda_mask(leaf, norms=rng.uniform(0.1, 2, size=len(leaf)), sparsity=0.5), base, PATTERNS["gpt2"][0])
    pruned = apply_masks(base, masks=masks)
    report = checked(changed(run, pruned, masked_weight), at_targets(MaskedWeight, base, PATTERNS["gpt2"][0]))
    assert report.passed, str(report)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"norms: got shape \(5,\), wants \(d_in\) with d_in = 8"):
        wanda_scores(WEIGHT, norms=np.ones(5))
    with pytest.raises(ValueError, match="norms: got numbers from -1"):
        wanda_scores(WEIGHT, norms=-NORMS / NORMS.max())
    with pytest.raises(ValueError, match=r"x: got shape \(0, 8\), wants no empty axis"):
        input_norms(np.ones((0, 8)))
    with pytest.raises(ValueError, match="x: got numbers from nan"):
        input_norms(np.full((2, 8), np.nan))
    with pytest.raises(ValueError, match=r"sparsity: got 0\.95, wants one that leaves at least one of the 8"):
        wanda_mask(WEIGHT, norms=NORMS, sparsity=0.95)


@pytest.mark.parity
def test_masks_are_those_of_the_authors_tensors():
    """The lines of lib/prune.py that choose, written again for a weight (d_out, d_in): unstructured, and 2:4."""
    torch = pytest.importorskip("torch")
    weight, inputs = torch.tensor(WEIGHT.T.copy()), torch.tensor(X.reshape(-1, 8))
    metric = weight.abs() * torch.norm(inputs, p=2, dim=0).reshape(1, -1)
    np.testing.assert_allclose(wanda_scores(WEIGHT, norms=NORMS), metric.numpy().T, rtol=0, atol=1e-9)
    removed = torch.zeros_like(metric, dtype=bool)
    removed.scatter_(1, torch.sort(metric, dim=-1, stable=True)[1][:, : int(8 * 0.5)], True)
    np.testing.assert_allclose(wanda_mask(WEIGHT, norms=NORMS, sparsity=0.5), ~removed.numpy().T, rtol=0, atol=0)
    removed = torch.zeros_like(metric, dtype=bool)
    for start in range(0, 8, 4):
        removed.scatter_(1, start + torch.topk(metric[:, start : start + 4], 2, dim=1, largest=False)[1], True)
    np.testing.assert_allclose(n_m_mask(wanda_scores(WEIGHT, norms=NORMS), n=2, m=4), ~removed.numpy().T, rtol=0, atol=0)
