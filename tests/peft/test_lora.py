"""LoRA as a weight of any model: trained, held against lora_linear, merged and taken out again."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from changed_models import MODELS, PATTERNS, changed, checked, whole_model

from minitransformers import check_gradients, trees
from minitransformers.basics.chain import chain
from minitransformers.basics.gelu import gelu
from minitransformers.basics.linear import Linear, linear
from minitransformers.foundation import reparameterize, slot
from minitransformers.models.gpt2 import gpt2
from minitransformers.peft.lora import Merged, lora, merge_lora, unmerge_lora
from minitransformers.peft.lora_linear import Lora, init_lora, lora_linear
from minitransformers.peft.targets import at_targets, targets

RNG = np.random.default_rng(0)
BASE = RNG.normal(size=(5, 4))
FACTORS = Lora(RNG.normal(size=(5, 2)), RNG.normal(size=(2, 4)))
DWEIGHT = RNG.normal(size=(5, 4))


def adapter(base, name, *, rank=1, seed=1):
    """Factors, none of them zero, in the places of a model's patterns."""
    rng = np.random.default_rng(seed)
    return at_targets(lambda leaf: Lora(rng.normal(size=(len(leaf), rank)), rng.normal(size=(rank, leaf.shape[1]))), base, PATTERNS[name][0])


@pytest.mark.parametrize("scale", [0.3, 2.0])
def test_it_is_the_sum_of_outer_products_and_its_gradients_are_autograd_s(scale):
    def textbook(down, up):
        rows = [[BASE[i, j] + scale * sum(down[i, r] * up[r, j] for r in range(2)) for j in range(4)] for i in range(5)]
        return anp.array([anp.array(row) for row in rows])

    weight, backward = lora(FACTORS, base=BASE, scale=scale)
    np.testing.assert_allclose(weight, textbook(*FACTORS), rtol=0, atol=1e-10)
    theirs = autograd.grad(lambda *args: anp.sum(DWEIGHT * textbook(*args)), (0, 1))(*FACTORS)
    for own, their in zip(backward(DWEIGHT), theirs, strict=True):
        np.testing.assert_allclose(own, their, rtol=0, atol=1e-10)


def test_it_is_lora_linear_in_output_and_gradients():
    x, bias, dout = RNG.normal(size=(2, 3, 5)), RNG.normal(size=4), RNG.normal(size=(2, 3, 4))
    weight, back = lora(FACTORS, base=BASE, scale=0.7)
    out, backward = linear(Linear(weight, bias), x)
    other, other_backward = lora_linear(FACTORS, x, base=Linear(BASE, bias), scale=0.7)
    np.testing.assert_allclose(out, other, rtol=0, atol=1e-12)
    (dlinear, dx), (dfactors, other_dx) = backward(dout), other_backward(dout)
    np.testing.assert_allclose(dx, other_dx, rtol=0, atol=1e-12)
    for own, their in zip(back(dlinear.weight), dfactors, strict=True):
        np.testing.assert_allclose(own, their, rtol=0, atol=1e-12)


def test_the_weight_differs_from_the_frozen_one_by_a_matrix_of_that_rank():
    assert np.linalg.matrix_rank(lora(FACTORS, base=BASE, scale=0.7)[0] - BASE, tol=1e-12) == 2


@pytest.mark.parametrize("name", MODELS)
def test_any_model_is_adapted_and_only_the_factors_are_trained(name):
    base, run = whole_model(name)
    trained = adapter(base, name)
    report = checked(changed(run, base, partial(lora, scale=0.7)), trained)
    assert report.passed, str(report)
    assert len(report.arguments) == 2 * PATTERNS[name][1]
    assert {argument.path.rpartition(".")[2] for argument in report.arguments} == {"down", "up"}


@pytest.mark.parametrize("name", MODELS)
def test_at_the_start_a_model_says_what_it_said_and_only_up_moves(name):
    base, run = whole_model(name)
    rng = np.random.default_rng(2)
    trained = at_targets(lambda leaf: init_lora(rng, *leaf.shape, rank=2, dtype=np.float64), base, PATTERNS[name][0])
    out, backward = changed(run, base, partial(lora, scale=8.0))(trained)
    np.testing.assert_array_equal(out, run(base)[0])
    for path, gradient in trees.leaves(backward(np.cos(out))):
        assert gradient.any() == path.endswith(".up"), path


@pytest.mark.parametrize("name", MODELS)
def test_it_holds_rank_times_the_sum_of_both_sides_of_each_weight(name):
    base, _ = whole_model(name)
    arrays = dict(trees.leaves(base))
    expected = sum(2 * sum(arrays[path].shape) for path in targets(base, PATTERNS[name][0]))
    assert trees.count_parameters(adapter(base, name, rank=2)) == expected


def test_in_a_model_it_is_lora_linear_in_the_places_of_the_maps():
    """The feed-forward network of a GPT-2 of one block: its two maps adapted in its slot, and as changed weights."""
    base, _ = whole_model("gpt2")
    base, ids = base._replace(blocks=base.blocks[:1]), np.array([[1, 4, 0]])
    trained = at_targets(lambda leaf: Lora(RNG.normal(size=(len(leaf), 2)), RNG.normal(size=(2, leaf.shape[1]))), base, ["feed_forward.*.weight"])
    tree, back = reparameterize(trained, base=base, change=partial(lora, scale=0.7))
    out, backward = gpt2(tree, ids=ids, num_heads=2)
    frozen, own = base.blocks[0].feed_forward, trained.blocks[0].feed_forward
    maps = [partial(lora_linear, base=one, scale=0.7) for one in (frozen.up, frozen.down)]
    in_slot = base.blocks[0]._replace(feed_forward=(own.up.weight, None, own.down.weight))
    other, other_backward = gpt2(
        base._replace(blocks=[in_slot]), ids=ids, num_heads=2, feed_forward=partial(chain, parts=(maps[0], slot(gelu), maps[1]))
    )
    np.testing.assert_allclose(out, other, rtol=0, atol=1e-12)
    up, _, down = other_backward(np.cos(out)).blocks[0].feed_forward
    found = back(backward(np.cos(out))).blocks[0].feed_forward
    for theirs, ours in ((up, found.up.weight), (down, found.down.weight)):
        np.testing.assert_allclose(ours.down, theirs.down, rtol=0, atol=1e-12)
        np.testing.assert_allclose(ours.up, theirs.up, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_merged_it_is_the_adapted_model_and_unmerged_the_model_as_it_was(name):
    base, run = whole_model(name)
    before = {path: leaf.copy() for path, leaf in trees.leaves(base)}
    trained = adapter(base, name)
    merged = merge_lora(base, trained, scale=0.7)
    adapted, _ = changed(run, base, partial(lora, scale=0.7))(trained)
    np.testing.assert_allclose(run(merged.tree)[0], adapted, rtol=0, atol=1e-12)
    assert np.abs(run(merged.tree)[0] - run(base)[0]).max() > 1e-3
    for path, leaf in trees.leaves(unmerge_lora(merged)):
        np.testing.assert_array_equal(leaf, before[path])


def test_merging_copies_only_what_changes():
    base, _ = whole_model("llama")
    tree = dict(trees.leaves(merge_lora(base, adapter(base, "llama"), scale=1.0).tree))
    same = {path for path, leaf in trees.leaves(base) if tree[path] is leaf}
    assert same == {path for path, _ in trees.leaves(base)} - set(targets(base, PATTERNS["llama"][0]))


def test_subtracting_what_was_added_would_not_be_exact():
    rng = np.random.default_rng(3)
    base, factors = rng.normal(size=(40, 30)).astype(np.float32), Lora(*(rng.normal(size=s).astype(np.float32) for s in ((40, 4), (4, 30))))
    merged = lora(factors, base=base, scale=0.7)[0]
    subtracted = merged - lora(factors, base=np.zeros_like(base), scale=0.7)[0]
    assert 0 < np.abs(subtracted - base).max() < 1e-5
    np.testing.assert_array_equal(unmerge_lora(merge_lora(base, factors, scale=0.7)), base)


def test_stacked_adapters_add_and_come_out_together():
    base, run = whole_model("gpt2")
    one, two = (adapter(base, "gpt2", seed=seed) for seed in (1, 2))
    stacked = merge_lora(merge_lora(base, one, scale=0.7), two, scale=0.2)
    tree = dict(trees.leaves(stacked.tree))
    factors = [dict(trees.leaves(trained)) for trained in (one, two)]
    for path, leaf in trees.leaves(base):
        added = [scale * own[f"{path}.down"] @ own[f"{path}.up"] for own, scale in zip(factors, (0.7, 0.2), strict=True) if f"{path}.up" in own]
        np.testing.assert_allclose(tree[path], leaf + sum(added), rtol=0, atol=1e-12)
    assert [scale for _, scale in stacked.adapters] == [0.7, 0.2]
    assert unmerge_lora(stacked) is base
    other = merge_lora(merge_lora(base, two, scale=0.2), one, scale=0.7)
    np.testing.assert_allclose(run(stacked.tree)[0], run(other.tree)[0], rtol=0, atol=1e-12)


def test_merging_twice_is_refused():
    base, _ = whole_model("llama")
    trained = adapter(base, "llama")
    merged = merge_lora(base, trained, scale=0.7)
    again = trees.map(np.copy, trained)                      # another tree with the same numbers
    for same in (trained, again):
        with pytest.raises(ValueError, match="trained: got an adapter that is merged already"):
            merge_lora(merged, same, scale=0.5)
    two = merge_lora(merged, adapter(base, "llama", seed=2), scale=0.7)
    with pytest.raises(ValueError, match="trained: got an adapter that is merged already"):
        merge_lora(two, trained, scale=0.7)
    assert isinstance(merge_lora(unmerge_lora(two), trained, scale=0.7), Merged)


def test_unmerging_what_is_not_merged_is_refused():
    base, _ = whole_model("llama")
    for other in (base, merge_lora(base, adapter(base, "llama"), scale=1.0).tree):
        with pytest.raises(ValueError, match=r"merged: got .*, wants a Merged"):
            unmerge_lora(other)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_factors_that_are_not_finite_are_not_merged(number):
    base, _ = whole_model("gpt2")
    trained = adapter(base, "gpt2")
    trained.blocks[1].attention.value.weight.up[0, 2] = number
    with pytest.raises(ValueError, match=r"trained\.blocks\.1\.attention\.value\.weight\.up: got numbers that are not finite"):
        merge_lora(base, trained, scale=0.7)


def test_an_adapter_of_another_base_is_refused():
    base, _ = whole_model("gpt2")
    wide = trees.map(lambda leaf: leaf, base)
    wide = wide._replace(blocks=[block._replace(attention=block.attention._replace(query=Linear(np.ones((4, 6)), None))) for block in base.blocks])
    trained = at_targets(lambda leaf: Lora(np.ones((len(leaf), 1)), np.ones((1, leaf.shape[1]))), wide, ["query.weight"])
    with pytest.raises(ValueError, match=r"a matrix of 4 by 6, wants those of base, of shape \(4, 4\)"):
        merge_lora(base, trained, scale=0.7)
    with pytest.raises(ValueError, match=r"trained\.blocks"):
        merge_lora(base, trained._replace(blocks=trained.blocks[:1]), scale=0.7)


def test_a_rank_above_the_smaller_side_is_refused_at_merge():
    with pytest.raises(ValueError, match="rank: got 5, wants 1 to 4"):
        merge_lora(BASE, Lora(np.ones((5, 5)), np.ones((5, 4))), scale=0.7)


def test_factors_that_would_be_broadcast_are_refused_inside_a_model_as_well():
    narrow = Lora(np.ones((1, 1)), np.ones((1, 4)))
    with pytest.raises(ValueError, match="of a matrix of 1 by 4"):
        merge_lora(BASE, narrow, scale=0.7)


def test_the_checker_refuses_a_backward_that_forgets_the_scale():
    def wrong(params):
        weight, backward = lora(params, base=BASE, scale=0.7)
        return weight, lambda dweight: backward(dweight)._replace(down=dweight @ params.up.T)

    assert not check_gradients(wrong, FACTORS).passed
