"""Hard concrete gates: often exactly 0 or 1, smooth between, and as many open as the formula says."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.bias_mitigation.hard_concrete import expected_l0, hard_concrete, settled_gates

RNG = np.random.default_rng(0)
ALPHA, NOISE, DOUT = 2 * RNG.normal(size=(5, 4)), RNG.uniform(0.02, 0.98, size=(5, 4)), RNG.normal(size=(5, 4))
PUBLISHED = {"temperature": 2 / 3, "low": -0.1, "high": 1.1}
AUTHORS_OF_MODDIFFY = {"temperature": 1.0, "low": -1.5, "high": 1.5}


def one_by_one(alpha, noise, temperature, low, high):
    gates = []
    for a, u in zip(alpha.reshape(-1), noise.reshape(-1), strict=True):
        s = 1 / (1 + anp.exp(-(anp.log(u / (1 - u)) + a) / temperature))
        stretched = low + s * (high - low)
        gates.append(0.0 * a if stretched <= 0 else 1.0 + 0.0 * a if stretched >= 1 else stretched)
    return anp.stack(gates).reshape(alpha.shape)


@pytest.mark.parametrize("settings", [PUBLISHED, AUTHORS_OF_MODDIFFY])
def test_it_is_the_published_formula_and_its_gradient_is_autograd_s(settings):
    gates, backward = hard_concrete(ALPHA, noise=NOISE, **settings)
    np.testing.assert_allclose(gates, one_by_one(ALPHA, NOISE, **settings), rtol=0, atol=1e-12)
    expected = autograd.grad(lambda alpha: anp.sum(DOUT * one_by_one(alpha, NOISE, **settings)))(ALPHA)
    np.testing.assert_allclose(backward(DOUT), expected, rtol=0, atol=1e-12)
    assert 0 < np.mean(gates == 0) < 1 and np.any(gates == 1)


def test_a_gate_that_is_cut_off_sends_no_gradient():
    gates, backward = hard_concrete(ALPHA, noise=NOISE)
    cut = (gates == 0) | (gates == 1)
    assert cut.any() and np.all(backward(DOUT)[cut] == 0) and np.all(backward(DOUT)[~cut] != 0)


@pytest.mark.parametrize("alpha", [-3.0, -0.5, 0.0, 2.0])
@pytest.mark.parametrize("settings", [PUBLISHED, AUTHORS_OF_MODDIFFY])
def test_as_many_gates_are_open_as_expected(alpha, settings):
    noise = (np.arange(100_000) + 0.5) / 100_000             # every draw, evenly
    gates, _ = hard_concrete(np.full(100_000, alpha), noise=noise, **settings)
    np.testing.assert_allclose(np.mean(gates > 0), expected_l0(np.full(1, alpha), **settings)[0], rtol=0, atol=1e-5)  # a step of the grid


def test_the_expected_number_is_the_published_sum_and_its_gradient_autograd_s():
    def slowly(alpha):
        return sum(1 / (1 + anp.exp(-(a - 2 / 3 * anp.log(0.1 / 1.1)))) for a in alpha.reshape(-1))

    out, backward = expected_l0(ALPHA)
    np.testing.assert_allclose(out, slowly(ALPHA), rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(np.float64(0.3)), 0.3 * autograd.grad(slowly)(ALPHA), rtol=0, atol=1e-12)


def test_without_noise_the_gates_hang_on_alpha_alone_and_can_be_exactly_zero():
    gates, backward = settled_gates(np.array([-5.0, 0.0, 5.0]))
    np.testing.assert_allclose(gates, [0, 0.5, 1], rtol=0, atol=1e-15)
    np.testing.assert_allclose(backward(np.ones(3)), [0, 1.2 / 4, 0], rtol=0, atol=1e-15)


def test_at_temperature_one_the_settled_gate_is_that_of_noise_in_the_middle():
    np.testing.assert_allclose(settled_gates(ALPHA)[0], hard_concrete(ALPHA, noise=np.full_like(ALPHA, 0.5), temperature=1.0)[0], rtol=0, atol=1e-15)


def test_the_colder_the_fewer_gates_lie_between():
    noise = RNG.uniform(size=5000)
    between = [np.mean((gates > 0) & (gates < 1)) for gates in (hard_concrete(np.zeros(5000), noise=noise, temperature=t)[0] for t in (2.0, 2 / 3, 0.1))]
    assert between[0] > between[1] > between[2]


@pytest.mark.parametrize("forgotten", ["the cut", "the stretch", "the temperature"])
def test_the_checker_refuses_a_backward_that_forgets(forgotten):
    def wrong(alpha):
        gates, _ = hard_concrete(alpha, noise=NOISE)
        s = (gates + 0.1) / 1.2
        slope = s * (1 - s) * (1.0 if forgotten == "the stretch" else 1.2) / (1.0 if forgotten == "the temperature" else 2 / 3)
        between = 1.0 if forgotten == "the cut" else (gates > 0) & (gates < 1)
        return gates, lambda dgates: dgates * slope * between

    assert not check_gradients(wrong, ALPHA).passed


@pytest.mark.parametrize("changes", [{"low": 0.0}, {"high": 1.0}, {"temperature": 0.0}, {"noise": np.zeros((5, 4))}, {"noise": np.ones((5, 4))}])
def test_bad_settings_are_refused_by_name(changes):
    with pytest.raises(ValueError, match=f"^{next(iter(changes))}"):
        hard_concrete(ALPHA, **{"noise": NOISE, **changes})
