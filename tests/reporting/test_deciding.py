"""Ways of learning a yes or no about people, and the probe of what they learned."""

import numpy as np
import pytest

from minitransformers.bias_mitigation.reweighting import reweighting_weights
from minitransformers.bias_mitigation.soft_parity import soft_parity
from minitransformers.foundation import trees
from minitransformers.reporting.bias_mitigation.deciding import Deciding, Way, decided, hidden, learned, readable
from minitransformers.reporting.bias_mitigation.decisions import Table


def people(rng, size=600):
    groups = rng.integers(2, size=size)
    x = rng.standard_normal((size, 4))
    labels = (x[:, 0] + 1.5 * groups + 0.3 * rng.standard_normal(size) > 0.7).astype(np.int64)
    return Table(np.c_[x, groups].astype(np.float32), labels, groups)


WAYS = {
    "nothing": Way(), "weights": Way(lambda people: reweighting_weights(people.labels, groups=people.groups)), "parity": Way(parity=3.0),
    "of the yes": Way(parity=3.0, yes=True), "adversary": Way(strength=1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in WAYS if name != "adversary"])
def test_the_gradient_of_a_way_is_that_of_its_loss(name):
    rng = np.random.default_rng(0)
    table = people(rng, 60)
    table = table._replace(features=table.features.astype(np.float64))
    task = Deciding(WAYS[name], table)
    params = trees.map(lambda leaf: leaf.astype(np.float64), learned(Way(), people(rng), rng, steps=3, rate=0.01))
    batch = (table, task.weights.astype(np.float64))
    grads, step = task.loss(params, batch)[1]((np.float64(1), None)), 1e-6
    moved = [params._replace(head=params.head._replace(bias=params.head.bias + sign * np.array([step, 0]))) for sign in (1, -1)]
    ends = [float(task.loss(other, batch)[0][0]) for other in moved]
    assert grads.head.bias[0] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("name", WAYS)
def test_a_way_learns_to_decide(name):
    rng = np.random.default_rng(1)
    known, asked = people(rng), people(rng)
    logits, _ = decided(learned(WAYS[name], known, rng, steps=60, rate=0.03), asked.features)
    assert (logits.argmax(-1) == asked.labels).mean() > max(asked.labels.mean(), 1 - asked.labels.mean())


def test_soft_parity_brings_the_means_nearer():
    apart = {}
    for name in ("nothing", "parity"):
        known = people(np.random.default_rng(2))
        logits, _ = decided(learned(WAYS[name], known, np.random.default_rng(3), steps=60, rate=0.03), known.features)
        apart[name] = soft_parity(logits[:, 1] - logits[:, 0], groups=known.groups, num_groups=2)[0]
    assert apart["parity"] < 0.7 * apart["nothing"]


def test_a_probe_reads_what_is_there_and_no_more():
    rng = np.random.default_rng(4)
    known, asked = people(rng), people(rng)
    encoder = learned(Way(), known, rng, steps=20, rate=0.01).encoder
    state = [hidden(encoder, table.features)[0] for table in (known, asked)]
    noise = [rng.standard_normal(of.shape).astype(np.float32) for of in state]
    settings = {"rng": rng, "steps": 60}
    assert readable((known.features, known.groups), (asked.features, asked.groups), **settings) > 0.95
    assert readable((state[0], known.groups), (state[1], asked.groups), **settings) > 0.8
    assert abs(readable((noise[0], known.groups), (noise[1], asked.groups), **settings) - 0.5) < 0.1
