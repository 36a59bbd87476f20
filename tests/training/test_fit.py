from itertools import pairwise

import numpy as np
import pytest

from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.embedding import embedding, init_embedding
from minitransformers.training.fit import accuracy, fit, loss_on
from minitransformers.training.flat_tree import FlatTree
from minitransformers.training.optimizer import AdamW, TrainingDiverged
from minitransformers.training.schedule import warmup_cosine


def quadratic(params):
    (x,) = params
    return float(0.5 * x @ x), [x.copy()]


def test_finds_the_bottom_of_a_bowl_and_leaves_the_start_alone():
    start = [np.array([3.0, -2.0, 0.5])]
    found = fit(start, quadratic, steps=300, peak=0.1)
    assert np.abs(found[0]).max() < 1e-3
    np.testing.assert_array_equal(start[0], [3.0, -2.0, 0.5])


def test_is_adamw_on_the_schedule():
    steps, start = 7, [np.array([3.0, -2.0, 0.5])]
    found = fit(start, quadratic, steps=steps, peak=0.1, warmup=0.3, floor=0.2, clip=0.5)
    params = FlatTree.pack(start)
    optimizer, gradient = AdamW(params, weight_decay=0.0), params.zeros_like()
    for step in range(1, steps + 1):
        gradient.set_sum([params.tree[0].copy()])
        optimizer.step(gradient, learning_rate=warmup_cosine(step, peak=0.1, steps=steps, warmup=2, floor=0.2), clip=0.5)
    np.testing.assert_array_equal(found[0], params.tree[0])


def test_decays_matrices_and_no_vectors():
    """Nothing pulls at either: their loss does not know them."""
    start = [np.ones((2, 3)), np.ones(3)]
    matrix, vector = fit(start, lambda params: (0.0, [0 * leaf for leaf in params]), steps=4, peak=0.1, weight_decay=0.5)
    rates = [warmup_cosine(step, peak=0.1, steps=4, warmup=0) for step in range(1, 5)]
    np.testing.assert_allclose(matrix, np.prod(1 - 0.5 * np.array(rates)), rtol=1e-15)
    np.testing.assert_array_equal(vector, 1)


def test_watches_every_step_with_the_loss_before_it():
    seen, bar = [], []
    fit(
        [np.ones(2)], quadratic, steps=5, peak=0.1, warmup=0.0,
        watch=lambda step, value, params: seen.append((step, value, float(params[0][0]))),
        progress=lambda steps: bar.extend(steps) or steps,
    )  # fmt: skip
    assert [step for step, _, _ in seen] == bar == [1, 2, 3, 4, 5]
    assert seen[0][1] == 1.0
    for (_, _, before), (_, value, _) in pairwise(seen):
        assert value == pytest.approx(before**2)


def test_a_gradient_that_is_not_finite_stops_it():
    with pytest.raises(TrainingDiverged):
        fit([np.ones(2)], lambda params: (0.0, [np.full(2, np.nan)]), steps=3, peak=0.1)


@pytest.mark.parametrize(("changes", "named"), [({"steps": 0}, "steps"), ({"warmup": 1.5}, "warmup"), ({"floor": 2.0}, "floor")])
def test_impossible_settings_are_refused_by_name(changes, named):
    with pytest.raises(ValueError, match=f"{named}: got"):
        fit([np.ones(2)], quadratic, **{"steps": 2, "peak": 0.1, **changes})


def test_the_loss_and_its_gradients_are_the_models_on_the_batch_that_was_drawn():
    rng = np.random.default_rng(1)
    params, ids, targets = init_embedding(rng, 5, 5, dtype=np.float64), rng.integers(5, size=(2, 3)), np.array([[0, -100, 4], [1, 1, -100]])
    value, gradients = loss_on(embedding, lambda: (ids, targets))(params)
    logits, backward = embedding(params, ids=ids)
    expected, loss_backward = cross_entropy(logits, targets=targets)
    assert value == expected
    np.testing.assert_array_equal(gradients.weight, backward(loss_backward(np.float64(1))).weight)


def test_accuracy_counts_labelled_positions_only():
    logits = np.eye(4)[[[0, 1, 2], [3, 3, 3]]]
    assert accuracy(logits, np.array([[0, -100, 1], [-100, 3, -100]])) == 2 / 3
    assert accuracy(logits, np.array([[0, 9, 9], [9, 3, 9]]), ignore_index=9) == 1.0
    with pytest.raises(ValueError, match="targets: got"):
        accuracy(logits, np.full((2, 3), -100))
