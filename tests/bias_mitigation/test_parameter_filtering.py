"""Integrated gradients: a sum over the way that accounts for the whole gap; and gates for the units that matter most."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.feed_forward import feed_forward, init_feed_forward
from minitransformers.basics.gelu import gelu
from minitransformers.bias_mitigation.parameter_filtering import filter_units, integrated_gradients
from minitransformers.compression.gated_neurons import NeuronGates, gated_neurons
from minitransformers.foundation import slot

RNG = np.random.default_rng(0)
FIRST, SECOND = RNG.normal(size=(5, 4)), RNG.normal(size=4)
HIDDEN = RNG.normal(size=(3, 5))


def behind(hidden):
    """What stands behind five units: tanh of a mixture, and a sum."""
    return anp.sum(anp.tanh(anp.dot(hidden, FIRST)) * SECOND, axis=-1)


def gap(hidden):
    squashed = np.tanh(hidden @ FIRST)
    return squashed @ SECOND, lambda dvalues: (dvalues[..., None] * SECOND * (1 - squashed**2)) @ FIRST.T


def step_by_step(hidden, baseline, steps, place=0.5):
    """One example and one step at a time; place says where in a step the slope is taken."""
    found = []
    for row in hidden:
        total = np.zeros_like(row)
        for k in range(steps):
            total += autograd.grad(behind)(baseline + (k + place) / steps * (row - baseline)) / steps
        found.append((row - baseline) * total)
    return np.array(found)


@pytest.mark.parametrize("baseline", [np.zeros(5), RNG.normal(size=5)])
def test_it_is_the_sum_of_slopes_on_the_way(baseline):
    found = integrated_gradients(HIDDEN, gap=gap, baseline=baseline, steps=7)
    expected = step_by_step(HIDDEN, baseline, 7)
    np.testing.assert_allclose(found.values, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.missing, behind(HIDDEN) - behind(baseline) - expected.sum(axis=1), rtol=0, atol=1e-12)


def test_the_attributions_sum_to_the_gap():
    found = integrated_gradients(HIDDEN, gap=gap, steps=1000)
    assert np.abs(found.missing).max() < 1e-5                # the error of the middle rule, 1/(24 m^2) of a second derivative
    np.testing.assert_allclose(found.values.sum(axis=1) + found.missing, behind(HIDDEN) - behind(np.zeros(5)), rtol=0, atol=1e-12)


def test_the_middle_of_a_step_loses_a_quarter_where_its_end_loses_half():
    def missing(steps, place):
        return np.abs(behind(HIDDEN) - behind(np.zeros(5)) - step_by_step(HIDDEN, np.zeros(5), steps, place).sum(axis=1)).sum()

    own = [np.abs(integrated_gradients(HIDDEN, gap=gap, steps=steps).missing).sum() for steps in (50, 100)]
    assert own[0] / own[1] == pytest.approx(4, abs=0.1)
    assert missing(50, 1.0) / missing(100, 1.0) == pytest.approx(2, abs=0.1)
    assert own[0] < missing(50, 1.0) / 20


def test_the_slope_alone_says_nothing_of_a_saturated_unit():
    def saturated(hidden):
        squashed = np.tanh(hidden[..., 0])
        return squashed, lambda dvalues: dvalues[..., None] * np.array([1.0, 0.0]) * (1 - squashed**2)[..., None]

    unit = np.array([10.0, 3.0])
    assert saturated(unit)[1](np.float64(1))[0] < 1e-7
    found = integrated_gradients(unit, gap=saturated, steps=400)
    assert found.values[0] == pytest.approx(1, abs=1e-3) and found.values[1] == 0


def test_of_a_linear_gap_one_step_is_exact_and_closing_a_unit_takes_away_what_it_was_given():
    weight = RNG.normal(size=5)

    def linear_gap(hidden):
        return hidden @ weight, lambda dvalues: dvalues[..., None] * weight

    found = integrated_gradients(HIDDEN, gap=linear_gap, steps=1)
    np.testing.assert_allclose(found.missing, 0, atol=1e-14)
    gates = filter_units(found.values, count=2)
    closed = gates == 0
    np.testing.assert_allclose((HIDDEN * gates) @ weight, HIDDEN @ weight - found.values[:, closed].sum(axis=1), rtol=0, atol=1e-12)


def test_positions_may_be_a_part_of_an_example():
    hidden = RNG.normal(size=(2, 3, 5))

    def of_a_text(hidden):
        values, backward = gap(hidden)
        return values.sum(axis=-1), lambda dvalues: backward(np.broadcast_to(dvalues[..., None], values.shape))

    found = integrated_gradients(hidden, gap=of_a_text, steps=9)
    np.testing.assert_allclose(found.values, integrated_gradients(hidden, gap=gap, steps=9).values, rtol=0, atol=1e-12)
    assert found.missing.shape == (2,)


def test_the_units_of_largest_mean_size_are_closed_the_first_of_equals_first():
    attributions = np.array([[1.0, -3.0, 0.0, 2.0, -2.0], [1.0, 3.0, 0.0, 2.0, 2.0]])
    assert filter_units(attributions, count=0).tolist() == [1, 1, 1, 1, 1]
    assert filter_units(attributions, count=2).tolist() == [1, 0, 1, 0, 1]
    assert filter_units(attributions, count=5).tolist() == [0, 0, 0, 0, 0]
    many = np.random.default_rng(1).integers(3, size=200).astype(float)
    closed = sorted(range(200), key=lambda unit: (-many[unit], unit))[:100]
    assert np.flatnonzero(filter_units(many, count=100) == 0).tolist() == sorted(closed)
    signed = attributions.mean(axis=0)                       # the plausible wrong score: signs cancel
    assert np.argmax(np.abs(signed)) != 1


def test_the_gates_go_into_a_network():
    params = init_feed_forward(RNG, 3, d_hidden=5, dtype=np.float64)
    x, readout = RNG.normal(size=(4, 3)), RNG.normal(size=3)
    inner = params.up.weight.T @ x.T + params.up.bias[:, None]
    active, _ = gelu(inner.T)

    def behind_the_units(active):
        return (active @ params.down.weight + params.down.bias) @ readout, lambda dvalues: (dvalues[..., None] * readout) @ params.down.weight.T

    gates = filter_units(integrated_gradients(active, gap=behind_the_units).values, count=2)
    filtered, _ = feed_forward(params._replace(activation=NeuronGates(gates)), x, activation=gated_neurons)
    np.testing.assert_allclose(filtered @ readout, behind_the_units(active * gates)[0], rtol=0, atol=1e-12)
    whole, _ = feed_forward(params, x, activation=slot(gelu))
    assert np.abs(filtered - whole).max() > 1e-3


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="gap: got values of shape"):
        integrated_gradients(HIDDEN, gap=lambda hidden: (hidden, None))
    with pytest.raises(ValueError, match="baseline: got shape"):
        integrated_gradients(HIDDEN, gap=gap, baseline=np.ones(4))
    with pytest.raises(ValueError, match="steps: got 0"):
        integrated_gradients(HIDDEN, gap=gap, steps=0)
    with pytest.raises(ValueError, match="count: got 6, wants at most the number of units, 5"):
        filter_units(HIDDEN, count=6)
