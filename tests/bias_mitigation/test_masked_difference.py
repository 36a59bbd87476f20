"""A weight that is the frozen one plus a difference behind gates: a change for any model."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from changed_models import MODELS, PATTERNS, changed, checked, whole_model

from minitransformers import check_gradients
from minitransformers.bias_mitigation.hard_concrete import settled_gates
from minitransformers.bias_mitigation.masked_difference import (
    NOISE_MARGIN,
    MaskedDifference,
    init_masked_difference,
    masked_difference,
)
from minitransformers.foundation import reparameterize
from minitransformers.peft.targets import at_targets

RNG = np.random.default_rng(0)
BASE, DOUT = RNG.normal(size=(5, 4)), RNG.normal(size=(5, 4))
PARAMS = MaskedDifference(RNG.normal(size=(5, 4)), 2 * RNG.normal(size=(5, 4)))


def one_by_one(difference, alpha, noise=None, temperature=2 / 3, low=-0.1, high=1.1):
    values = []
    for d, a, b, u in zip(*(part.reshape(-1) for part in (difference, alpha, BASE, np.full((5, 4), 0.5) if noise is None else noise)), strict=True):
        s = 1 / (1 + anp.exp(-(a if noise is None else (anp.log(u / (1 - u)) + a) / temperature)))
        gate = (high - low) * s + low
        values.append(b + d * (0.0 * a if gate <= 0 else 1.0 if gate >= 1 else gate))
    return anp.stack(values).reshape(5, 4)


@pytest.mark.parametrize("training", [True, False])
def test_it_is_each_sum_and_its_gradients_are_autograd_s(training):
    noise = np.clip(np.random.default_rng(3).random((5, 4)), NOISE_MARGIN, 1 - NOISE_MARGIN) if training else None
    weight, backward = masked_difference(PARAMS, base=BASE, rng=np.random.default_rng(3) if training else None)
    np.testing.assert_allclose(weight, one_by_one(*PARAMS, noise), rtol=0, atol=1e-12)
    expected = autograd.grad(lambda *params: anp.sum(DOUT * one_by_one(*params, noise)), (0, 1))(*PARAMS)
    for own, their in zip(backward(DOUT), expected, strict=True):
        np.testing.assert_allclose(own, their, rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_the_settings_are_those_of_the_gates(training):
    settings = {"low": -1.5, "high": 1.7}
    noise = np.clip(np.random.default_rng(3).random((5, 4)), NOISE_MARGIN, 1 - NOISE_MARGIN) if training else None
    weight, _ = masked_difference(PARAMS, base=BASE, rng=np.random.default_rng(3) if training else None, temperature=1.3, **settings)
    np.testing.assert_allclose(weight, one_by_one(*PARAMS, noise, temperature=1.3, **settings), rtol=0, atol=1e-12)


def test_where_a_gate_is_closed_the_weight_is_the_base_to_the_last_bit():
    weight, _ = masked_difference(PARAMS, base=BASE)
    closed = settled_gates(PARAMS.alpha)[0] == 0
    assert closed.any() and not closed.all()
    np.testing.assert_array_equal(weight[closed], BASE[closed])
    assert np.all(weight[~closed] != BASE[~closed])


def test_at_the_start_it_is_the_base():
    np.testing.assert_array_equal(masked_difference(init_masked_difference(BASE), base=BASE, rng=RNG)[0], BASE)


def test_each_leaf_draws_its_own_noise():
    base = [BASE, BASE.copy()]
    tree, _ = reparameterize([PARAMS, PARAMS], base=base, change=partial(masked_difference, rng=np.random.default_rng(1)))
    assert np.any(tree[0] != tree[1])


class Extreme(np.random.Generator):
    """A generator that draws nothing but the first and the last number that it can."""

    def random(self, size=None, dtype=np.float64, out=None):
        return np.where(np.arange(np.prod(size)).reshape(size) % 2, 0.0, 1 - 2.0**-53)


def test_noise_at_the_ends_does_not_end_the_logarithm():
    base = np.zeros((3, 4), np.float32)
    params = MaskedDifference(np.ones_like(base), np.zeros_like(base))
    with np.errstate(all="raise", under="ignore"):
        weight, backward = masked_difference(params, base=base, rng=Extreme(np.random.PCG64()))
    assert np.isfinite(weight).all() and np.isfinite(backward(base).alpha).all()


@pytest.mark.parametrize("name", MODELS)
def test_it_trains_a_model_whose_code_is_not_touched(name):
    base, run = whole_model(name)
    patterns, _ = PATTERNS[name]
    rng = np.random.default_rng(2)
    trained = at_targets(lambda leaf: MaskedDifference(0.3 * rng.normal(size=leaf.shape), rng.normal(size=leaf.shape)), base, patterns)

    def with_fresh_noise(trained):
        return changed(run, base, partial(masked_difference, rng=np.random.default_rng(5)))(trained)

    report = checked(with_fresh_noise, trained)
    assert report.passed, str(report)


@pytest.mark.parametrize("forgotten", ["the gates", "the difference"])
def test_the_checker_refuses_a_backward_that_forgets(forgotten):
    def wrong(params):
        weight, backward = masked_difference(params, base=BASE)
        if forgotten == "the gates":
            return weight, lambda dweight: backward(dweight)._replace(difference=dweight)
        return weight, lambda dweight: MaskedDifference(backward(dweight).difference, settled_gates(params.alpha)[1](dweight))

    assert not check_gradients(wrong, PARAMS).passed


def test_what_does_not_fit_is_refused_by_its_place():
    with pytest.raises(ValueError, match=r"trained\.0: params\.alpha: got shape \(4,\)"):
        reparameterize([MaskedDifference(BASE, np.ones(4))], base=[BASE], change=masked_difference)
    with pytest.raises(ValueError, match=r"trained\.0: params\.difference: got shape \(4, 5\), wants \(5, 4\), that of base"):
        reparameterize([MaskedDifference(BASE.T, BASE.T)], base=[BASE], change=masked_difference)
