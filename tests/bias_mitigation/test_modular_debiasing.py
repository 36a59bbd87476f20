"""Modules of differences: on in any choice and order, off without a trace."""

from functools import partial

import numpy as np
import pytest

from minitransformers import trees
from minitransformers.bias_mitigation.masked_difference import MaskedDifference, masked_difference
from minitransformers.bias_mitigation.modular_debiasing import difference_module, module_size, with_modules
from minitransformers.foundation import reparameterize
from minitransformers.models.gpt2 import init_gpt2
from minitransformers.peft.targets import at_targets

RNG = np.random.default_rng(0)
BASE = init_gpt2(RNG, vocabulary=7, context=5, d_model=6, num_layers=2, num_heads=2, std=0.5, dtype=np.float64)


def trained(seed, patterns, shift=0.0):
    rng = np.random.default_rng(seed)
    return at_targets(lambda leaf: MaskedDifference(rng.normal(size=leaf.shape), 3 * rng.normal(size=leaf.shape) + shift), BASE, patterns)


TRAINED = {"one": trained(1, ["query.weight", "up.weight"]), "two": trained(2, ["up.weight", "down.weight"]), "three": trained(3, ["value.weight"])}
MODULES = {name: difference_module(module) for name, module in TRAINED.items()}


def same(a, b):
    return all(path == other and np.array_equal(x, y) and x.dtype == y.dtype for (path, x), (other, y) in zip(trees.leaves(a), trees.leaves(b), strict=True))


def test_off_again_is_the_base_to_the_last_bit():
    before = trees.map(np.copy, BASE)
    on = with_modules(BASE, modules=MODULES, on=["one", "two"])
    assert not same(on, BASE)
    assert same(with_modules(BASE, modules=MODULES, on=[]), before) and same(BASE, before)


def test_subtracting_again_would_not_be():
    """The plausible wrong way off: what was added is subtracted, and its rounding stays."""
    module = trees.map(lambda leaf: leaf * 1e3, MODULES["one"])
    on = with_modules(BASE, modules={"up": module}, on=["up"])
    minus = trees.map(np.negative, module)
    assert not same(with_modules(on, modules={"down": minus}, on=["down"]), BASE)


def test_one_module_is_what_was_trained():
    tree, _ = reparameterize(TRAINED["one"], base=BASE, change=masked_difference)
    assert same(with_modules(BASE, modules={"one": difference_module(TRAINED["one"])}, on=["one"]), tree)
    wider = {"low": -1.5, "high": 1.7}
    tree, _ = reparameterize(TRAINED["one"], base=BASE, change=partial(masked_difference, **wider))
    assert same(with_modules(BASE, modules={"one": difference_module(TRAINED["one"], **wider)}, on=["one"]), tree)


def test_the_order_in_which_modules_are_asked_for_changes_no_bit():
    assert same(with_modules(BASE, modules=MODULES, on=["one", "two", "three"]), with_modules(BASE, modules=MODULES, on=["three", "one", "two"]))


def test_where_modules_do_not_overlap_either_may_be_put_on_the_other():
    one_then_three = with_modules(with_modules(BASE, modules=MODULES, on=["one"]), modules=MODULES, on=["three"])
    three_then_one = with_modules(with_modules(BASE, modules=MODULES, on=["three"]), modules=MODULES, on=["one"])
    assert same(one_then_three, three_then_one) and same(one_then_three, with_modules(BASE, modules=MODULES, on=["one", "three"]))


def test_the_sum_is_made_number_by_number():
    on = dict(trees.leaves(with_modules(BASE, modules=MODULES, on=["one", "two"])))
    one, two = (dict(trees.leaves(MODULES[name])) for name in ("one", "two"))
    for path, leaf in trees.leaves(BASE):
        expected = leaf + one.get(path, 0) + two.get(path, 0)
        np.testing.assert_allclose(on[path], expected, rtol=0, atol=1e-14)
        assert (on[path] is leaf) == (path not in one and path not in two)


def test_a_closed_gate_is_not_stored():
    closed = difference_module(trained(4, ["up.weight"], shift=-50.0))
    assert module_size(closed) == 0
    opened = difference_module(trained(4, ["up.weight"], shift=50.0))
    assert module_size(opened) == sum(leaf.size for _, leaf in trees.leaves(opened)) == 2 * 6 * 24
    assert 0 < module_size(MODULES["one"]) < sum(leaf.size for _, leaf in trees.leaves(MODULES["one"]))


def test_what_does_not_fit_is_refused_by_its_place():
    with pytest.raises(ValueError, match="on: got 'four', wants names of modules: one, two, three"):
        with_modules(BASE, modules=MODULES, on=["four"])
    with pytest.raises(ValueError, match=r"on: got .*wants each module at most once"):
        with_modules(BASE, modules=MODULES, on=["one", "one"])
    with pytest.raises(ValueError, match=r"modules\.bad\.0: got shape \(3, 2\)"):
        with_modules([np.ones((2, 3))], modules={"bad": [np.ones((3, 2))]}, on=["bad"])
    with pytest.raises(ValueError, match=r"trained\.0: got ndarray"):
        difference_module([np.ones((2, 3))])


@pytest.mark.parametrize("part", ["alpha", "difference"])
def test_a_module_without_gates_or_differences_is_named(part):
    whole = MaskedDifference(np.ones((5, 4)), np.ones((5, 4)))
    with pytest.raises(ValueError, match=rf"trained\.0\.{part}"):
        difference_module([whole._replace(**{part: None}), None])
