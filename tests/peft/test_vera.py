"""VeRA: one frozen random pair for all weights, and two trained vectors for each."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from changed_models import MODELS, PATTERNS, changed, checked, whole_model

from minitransformers import check_gradients, trees
from minitransformers.basics.linear import Linear, linear
from minitransformers.foundation import trusted
from minitransformers.peft.lora import lora
from minitransformers.peft.lora_linear import Lora
from minitransformers.peft.targets import at_targets, targets
from minitransformers.peft.vera import Vera, init_vera, vera, vera_projections

RNG = np.random.default_rng(0)
BASE = RNG.normal(size=(5, 4))
PAIR = Lora(RNG.normal(size=(6, 2)), RNG.normal(size=(2, 7)))
PARAMS = Vera(RNG.normal(size=2), RNG.normal(size=4))
DWEIGHT = RNG.normal(size=(5, 4))


def test_it_is_the_textbook_sum_and_its_gradients_are_autograd_s():
    def textbook(inner, outer):
        return anp.array([anp.array([BASE[i, j] + outer[j] * sum(PAIR.down[i, k] * inner[k] * PAIR.up[k, j] for k in range(2)) for j in range(4)]) for i in range(5)])

    weight, backward = vera(PARAMS, base=BASE, projections=PAIR)
    np.testing.assert_allclose(weight, textbook(*PARAMS), rtol=0, atol=1e-10)
    theirs = autograd.grad(lambda *args: anp.sum(DWEIGHT * textbook(*args)), (0, 1))(*PARAMS)
    for own, their in zip(backward(DWEIGHT), theirs, strict=True):
        np.testing.assert_allclose(own, their, rtol=0, atol=1e-10)


def test_it_is_lora_with_the_vectors_multiplied_into_the_pair():
    same = Lora(PAIR.down[:5] * PARAMS.inner, PAIR.up[:, :4] * PARAMS.outer)
    weight, backward = vera(PARAMS, base=BASE, projections=PAIR)
    other, lora_backward = lora(same, base=BASE, scale=1.0)
    np.testing.assert_allclose(weight, other, rtol=0, atol=1e-12)
    ddown, dup = lora_backward(DWEIGHT)
    np.testing.assert_allclose(backward(DWEIGHT).inner, np.sum(ddown * PAIR.down[:5], axis=0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(DWEIGHT).outer, np.sum(dup * PAIR.up[:, :4], axis=0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_at_the_start_it_is_the_frozen_weight_and_only_outer_moves(dtype):
    base, pair = BASE.astype(dtype), vera_projections(np.random.default_rng(1), 5, 4, rank=3, dtype=dtype)
    weight, backward = vera(init_vera(4, rank=3, dtype=dtype), base=base, projections=pair)
    np.testing.assert_array_equal(weight, base)
    dinner, douter = backward(DWEIGHT.astype(dtype))
    assert not dinner.any() and np.all(douter != 0)


def test_a_smaller_weight_takes_the_first_rows_and_columns():
    small = Lora(PAIR.down[:5], PAIR.up[:, :4])
    np.testing.assert_array_equal(vera(PARAMS, base=BASE, projections=PAIR)[0], vera(PARAMS, base=BASE, projections=small)[0])
    spoiled = Lora(np.where(np.arange(6)[:, None] < 5, PAIR.down, np.nan), np.where(np.arange(7) < 4, PAIR.up, np.nan))
    np.testing.assert_array_equal(vera(PARAMS, base=BASE, projections=spoiled)[0], vera(PARAMS, base=BASE, projections=small)[0])


def test_the_same_seed_makes_the_same_pair_of_the_variance_that_it_says():
    one, other = (vera_projections(np.random.default_rng(3), 300, 200, rank=50) for _ in range(2))
    assert np.array_equal(one.down, other.down) and np.array_equal(one.up, other.up)
    assert one.down.var() == pytest.approx(2 / 300, rel=0.05) and one.up.var() == pytest.approx(2 / 50, rel=0.05)
    assert np.abs(one.down).max() <= (6 / 300) ** 0.5 and one.down.dtype == np.float32


@pytest.mark.parametrize("name", MODELS)
def test_any_model_is_adapted_with_one_pair_for_all_its_weights(name):
    base, run = whole_model(name)
    rng = np.random.default_rng(4)
    arrays = dict(trees.leaves(base))
    shapes = [arrays[path].shape for path in targets(base, PATTERNS[name][0])]
    pair = vera_projections(rng, max(s[0] for s in shapes), max(s[1] for s in shapes), rank=3, dtype=np.float64)
    trained = at_targets(lambda leaf: Vera(rng.normal(size=3), rng.normal(size=leaf.shape[1])), base, PATTERNS[name][0])
    report = checked(changed(run, base, partial(vera, projections=pair)), trained)
    assert report.passed, str(report)
    assert trees.count_parameters(trained) == sum(3 + s[1] for s in shapes)


def test_the_pair_is_not_written_to_and_gets_no_gradient():
    pair = Lora(*(factor.copy() for factor in PAIR))
    for factor in pair:
        factor.flags.writeable = False
    assert isinstance(vera(PARAMS, base=BASE, projections=pair)[1](DWEIGHT), Vera)


def test_a_pair_that_is_too_small_or_of_another_rank_is_refused():
    for shapes in (((4, 2), (2, 7)), ((6, 2), (2, 3))):
        with pytest.raises(ValueError, match=r"projections: got \d by 2 by \d, wants at least 5 by exactly 2 by at least 4"):
            vera(PARAMS, base=BASE, projections=Lora(*map(np.ones, shapes)))
    with pytest.raises(ValueError, match=r"projections\.down: got shape \(6, 3\)"):
        vera(PARAMS, base=BASE, projections=Lora(np.ones((6, 3)), np.ones((3, 7))))


def test_no_check_is_lost_inside_a_model():
    """Where the calls inside it are trusted."""
    inside = trusted(vera)
    with pytest.raises(ValueError, match="projections: got 6 by 3 by 7, wants at least 5 by exactly 2"):
        inside(PARAMS, base=BASE, projections=Lora(np.ones((6, 3)), np.ones((3, 7))))
    with pytest.raises(ValueError, match="params: got 1 numbers in outer, wants 4"):
        inside(PARAMS._replace(outer=np.ones(1)), base=BASE, projections=PAIR)


def test_the_checker_refuses_a_backward_that_forgets_the_output_s_vector():
    def wrong(params):
        weight, backward = vera(params, base=BASE, projections=PAIR)
        return weight, lambda dweight: backward(dweight)._replace(inner=np.sum(PAIR.down[:5] * (dweight @ PAIR.up[:, :4].T), axis=0))

    assert [argument.error > 1e-2 for argument in check_gradients(wrong, PARAMS).arguments] == [True, False]


@pytest.mark.parity
def test_it_is_what_peft_computes():
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    layers = torch.nn.Sequential(torch.nn.Linear(5, 4, dtype=torch.float64), torch.nn.Linear(4, 7, dtype=torch.float64))
    model = peft.get_peft_model(layers, peft.VeraConfig(r=3, target_modules=["0", "1"])).double()
    adapted = [model.base_model.model[i] for i in range(2)]
    pair = Lora(adapted[0].vera_A["default"].numpy().astype(float).T, adapted[0].vera_B["default"].numpy().astype(float).T)
    assert pair.down.shape == (5, 3) and pair.up.shape == (3, 7)
    params = [Vera(RNG.normal(size=3), RNG.normal(size=width)) for width in (4, 7)]
    with torch.no_grad():
        for layer, (inner, outer) in zip(adapted, params, strict=True):
            np.testing.assert_allclose(layer.vera_lambda_d.default, init_vera(1, rank=3, dtype=np.float64).inner, rtol=0, atol=1e-7)
            layer.vera_lambda_d.default.copy_(torch.tensor(inner))
            layer.vera_lambda_b.default.copy_(torch.tensor(outer))
    x = RNG.normal(size=(3, 5))
    theirs, dout = model(torch.tensor(x)), RNG.normal(size=(3, 7))
    theirs.backward(torch.tensor(dout))
    out, backwards = x, []
    for layer, own in zip(adapted, params, strict=True):
        weight, back = vera(own, base=layer.weight.detach().numpy().T, projections=pair)
        out, backward = linear(Linear(weight, layer.bias.detach().numpy()), out)
        backwards.append((back, backward))
    np.testing.assert_allclose(out, theirs.detach(), rtol=0, atol=1e-9)
    for layer, (back, backward) in zip(adapted[::-1], backwards[::-1], strict=True):
        dlinear, dout = backward(dout)
        dinner, douter = back(dlinear.weight)
        np.testing.assert_allclose(dinner, layer.vera_lambda_d.default.grad, rtol=0, atol=1e-9)
        np.testing.assert_allclose(douter, layer.vera_lambda_b.default.grad, rtol=0, atol=1e-9)
