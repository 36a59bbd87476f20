from itertools import pairwise

import numpy as np
import pytest

from minitransformers.basics.linear import Linear
from minitransformers.foundation import trees
from minitransformers.training.fit import fit
from minitransformers.training.flat_tree import FlatTree
from minitransformers.training.optimizer import AdamW, TrainingDiverged
from minitransformers.training.schedule import warmup_cosine
from minitransformers.training.task import FromLoss, Task


@FromLoss
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


def test_decays_the_weights_of_maps_and_nothing_else():
    """Nothing pulls at either: their loss does not know them."""
    start = [Linear(np.ones((2, 3)), np.ones(3)), np.ones((2, 3))]
    nothing = FromLoss(lambda params: (0.0, trees.zeros_like(params)))
    (weight, bias), table = fit(start, nothing, steps=4, peak=0.1, weight_decay=0.5)
    rates = [warmup_cosine(step, peak=0.1, steps=4, warmup=0) for step in range(1, 5)]
    np.testing.assert_allclose(weight, np.prod(1 - 0.5 * np.array(rates)), rtol=1e-15)
    np.testing.assert_array_equal(bias, 1)
    np.testing.assert_array_equal(table, 1)


class Drawn(Task):
    """Its batch is a number, and so is what is random in its loss."""

    def batch(self, rng):
        return np.array([rng.random()])

    def loss(self, params, batch, *, rng):
        return (float(batch[0]) + rng.random(), 1), lambda dloss: [np.zeros(2)]


def test_batches_and_what_is_random_come_from_the_generator_that_was_given():
    losses = {}
    for seed in (0, 0, 1, None):
        seen = losses.setdefault(seed, [])
        seen.clear()
        rng = {} if seed is None else {"rng": np.random.default_rng(seed)}
        fit([np.ones(2)], Drawn(), steps=3, peak=0.1, watch=lambda step, loss, params, seen=seen: seen.append(loss), **rng)
    numbers = np.random.default_rng(0).random(6)
    np.testing.assert_allclose(losses[0], numbers[::2] + numbers[1::2])
    assert losses[None] == losses[0] != losses[1]


def test_a_batch_in_which_nothing_counts_is_refused():
    class Empty(Task):
        def loss(self, params, batch, *, rng):
            return (0.0, 0), lambda dloss: [np.zeros(2)]

    with pytest.raises(ValueError, match="batch: got nothing that counts"):
        fit([np.ones(2)], Empty(), steps=1, peak=0.1)


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
        fit([np.ones(2)], FromLoss(lambda params: (0.0, [np.full(2, np.nan)])), steps=3, peak=0.1)


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_it(loss):
    with pytest.raises(TrainingDiverged, match=f"the loss is {loss} at step 1"):
        fit([np.ones(2)], FromLoss(lambda params: (loss, [np.zeros(2)])), steps=3, peak=0.1)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"steps": 0}, "steps"), ({"warmup": 1.5}, "warmup"), ({"floor": 2.0}, "floor"), ({"clip": 0.0}, "clip"), ({"weight_decay": -1.0}, "weight_decay"),
     ({"peak": float("nan")}, "peak"), ({"task": lambda params: (0.0, params)}, "task")],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(changes, named):
    with pytest.raises(ValueError, match=f"{named}: got"):
        fit(**{"params": [np.ones(2)], "task": quadratic, "steps": 2, "peak": 0.1, **changes})
