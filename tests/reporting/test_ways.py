"""Ways to a smaller model: what they begin with is what the concepts say, and bytes are counted as they would be stored."""

from functools import partial

import numpy as np
import pytest

from minitransformers import trees
from minitransformers.basics.linear import Linear, linear
from minitransformers.compression.llm_int8 import llm_int8
from minitransformers.compression.quantize import quantize_symmetric
from minitransformers.compression.tt_linear import tt_weight
from minitransformers.peft.qlora_linear import QuantizedLinear
from minitransformers.reporting import matrices
from minitransformers.reporting.base import load_base
from minitransformers.reporting.compression import rounded_inputs
from minitransformers.reporting.compression import smaller as of
from minitransformers.reporting.compression.changes import Sparser
from minitransformers.reporting.compression.ways import FLOAT, WAYS, made

rng = partial(np.random.default_rng, 0)


def bits(name, **settings):
    tree, _ = made(WAYS[name], rng(), steps=2, rate=1e-4)
    return of.bits_of(tree, base=tree, model=WAYS[name].model, windows=16)


def kilobytes(name):
    return made(WAYS[name], rng(), steps=2, rate=1e-4)[1]


def test_bytes_are_counted_number_by_number():
    base = load_base()
    numbers = trees.count_parameters(base)
    inside = sum(leaf.size for path, leaf in trees.leaves(base) if path in set(of.targets(base, of.MATRICES)))
    columns = sum(leaf.shape[1] for path, leaf in trees.leaves(base) if path in set(of.targets(base, of.MATRICES)))
    assert kilobytes(FLOAT) == numbers * 4 / 1000 and kilobytes("floats of 16 bits") == numbers * 2 / 1000
    assert kilobytes("4 bits") == ((numbers - inside) * 16 + inside * 4 + columns * 16) / 8000
    assert kilobytes("half, Wanda") == ((numbers - inside) * 16 + inside * 8 + inside) / 8000


@pytest.mark.parametrize("name", ["half, Wanda", "2 of 4, Wanda", "half, magnitude, learned", "2 of 4, magnitude, learned", "half, movement, learned"])
def test_half_of_the_numbers_of_each_matrix_is_zero(name):
    tree, _ = made(WAYS[name], rng(), steps=2, rate=1e-4)
    for path, leaf in trees.leaves(tree):
        if path in set(of.targets(tree, of.MATRICES)):
            assert np.count_nonzero(leaf) == leaf.size // 2


@pytest.mark.parametrize("name, share", [("half of the heads, learned", 0.5), ("half of the units, learned", 0.5), ("two layers of three, learned", 2 / 3)])
def test_parts_are_gone_in_smaller_arrays(name, share):
    tree, _ = made(WAYS[name], rng(), steps=2, rate=1e-4)
    part = "output" if "heads" in name else "down"
    whole, fewer = (sum(len(leaf) for path, leaf in trees.leaves(model) if path.endswith(f"{part}.weight")) for model in (load_base(), tree))
    assert fewer == pytest.approx(share * whole)


def test_eight_bits_are_as_good_as_floats_and_inputs_of_eight_bits_do_little():
    floats = bits(FLOAT)
    assert abs(bits("8 bits") - floats) < 0.01
    assert max(abs(bits(name) - floats) for name in WAYS if name.startswith("8 bits, inputs too")) < 0.02


def test_smoothing_alone_changes_no_logit():
    base, inputs = load_base(), of.base_inputs(rng(), windows=8)
    blocks = [rounded_inputs.smoothed_block(block, inputs, f"blocks.{place}") for place, block in enumerate(base.blocks)]
    ids = of.corpora()[True].batch(rng(), batch_size=2, context=32)[0]
    np.testing.assert_allclose(of.reads(base._replace(blocks=blocks), ids=ids)[0], of.reads(base, ids=ids)[0], rtol=0, atol=1e-3)


def test_inputs_that_are_rounded_but_for_outliers_are_those_of_llm_int8():
    x, weight = rng().normal(size=(3, 4, 6)), rng().normal(size=(6, 5))
    x[1, 2, 3] = 9.0
    stored = quantize_symmetric(weight, bits=8)
    expected, _ = llm_int8(x, base=QuantizedLinear(stored, None))
    found, _ = linear(Linear(matrices.rounded(weight, bits=8), None), rounded_inputs.but_outliers(x))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_train_holds_at_most_its_share_and_comes_nearer_the_larger_it_is():
    weight = rng().normal(size=(32, 176))
    apart = []
    for share in (0.25, 0.5, 1.0):
        train = matrices.train_of(weight, share=share)
        assert trees.count_parameters(train.cores) <= share * weight.size
        apart.append(np.linalg.norm(tt_weight(train, base=weight)[0] - weight))
    assert sorted(apart, reverse=True) == apart


def test_a_mask_that_follows_the_updates_ends_at_its_share():
    change = Sparser(0.25, 8)
    assert change.sparsity == 0
    found = []
    for step in range(1, 9):
        change.follow(step, 0.0, None)
        found.append(change.sparsity)
    assert found == sorted(found) and found[-1] == 0.75
