"""DoRA: lengths and directions of columns, with the true gradient and with the one that holds the norm."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from changed_models import MODELS, PATTERNS, changed, checked, whole_model

from minitransformers import check_gradients, trees
from minitransformers.basics.linear import Linear, linear
from minitransformers.peft.dora import Dora, dora, dora_detached, init_dora
from minitransformers.peft.lora import lora
from minitransformers.peft.lora_linear import Lora
from minitransformers.peft.targets import at_targets, targets

RNG = np.random.default_rng(0)
BASE = RNG.normal(size=(5, 4))
PARAMS = Dora(RNG.normal(size=(5, 2)), RNG.normal(size=(2, 4)), RNG.normal(size=4))
DWEIGHT = RNG.normal(size=(5, 4))
FORMS = [dora, dora_detached]


def textbook(down, up, magnitude, norms=None):
    """One column after the other, over its own length or over a length that is given."""
    columns = []
    for j in range(4):
        column = BASE[:, j] + 0.7 * sum(down[:, r] * up[r, j] for r in range(2))
        length = anp.sqrt(sum(column[i] ** 2 for i in range(5))) if norms is None else norms[j]
        columns.append(magnitude[j] * column / length)
    return anp.stack(columns, axis=1)


def lengths(params):
    return np.linalg.norm(BASE + 0.7 * params.down @ params.up, axis=0)


@pytest.mark.parametrize(("form", "norms"), [(dora, None), (dora_detached, lengths(PARAMS))])
def test_it_is_the_textbook_and_its_gradients_are_autograd_s(form, norms):
    weight, backward = form(PARAMS, base=BASE, scale=0.7)
    np.testing.assert_allclose(weight, textbook(*PARAMS), rtol=0, atol=1e-10)
    theirs = autograd.grad(lambda *args: anp.sum(DWEIGHT * textbook(*args, norms)), (0, 1, 2))(*PARAMS)
    for own, their in zip(backward(DWEIGHT), theirs, strict=True):
        np.testing.assert_allclose(own, their, rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_a_column_is_as_long_as_its_magnitude(form):
    weight = form(PARAMS, base=BASE, scale=0.7)[0]
    np.testing.assert_allclose(np.linalg.norm(weight, axis=0), np.abs(PARAMS.magnitude), rtol=0, atol=1e-12)


def test_a_column_points_where_lora_s_does():
    weight, turned = dora(PARAMS, base=BASE, scale=0.7)[0], lora(Lora(PARAMS.down, PARAMS.up), base=BASE, scale=0.7)[0]
    cosines = np.vecdot(weight, turned, axis=0) / (np.linalg.norm(weight, axis=0) * np.linalg.norm(turned, axis=0))
    np.testing.assert_allclose(cosines, np.sign(PARAMS.magnitude), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", FORMS)
def test_at_the_start_it_is_the_frozen_weight_to_the_last_bit(form, dtype):
    base = np.random.default_rng(1).normal(size=(50, 40)).astype(dtype)
    params = init_dora(np.random.default_rng(2), base, rank=3)
    np.testing.assert_array_equal(form(params, base=base, scale=2.0)[0], base)
    assert {leaf.dtype for leaf in params} == {np.dtype(dtype)}


def test_it_holds_lora_s_numbers_and_one_an_output():
    assert trees.count_parameters(init_dora(np.random.default_rng(2), np.ones((7, 5)), rank=3)) == 3 * (7 + 5) + 5


def test_the_true_gradient_of_a_direction_is_across_it_and_the_held_one_is_not():
    """With factors that can make any matrix, dup is the gradient of V itself."""
    full = Dora(np.eye(5)[:, :4], np.zeros((4, 4)), np.ones(4))
    base = np.vstack([RNG.normal(size=(4, 4)), np.zeros((1, 4))])
    across, along = (form(full, base=base, scale=1.0)[1](DWEIGHT).up for form in FORMS)
    np.testing.assert_allclose(np.vecdot(base[:4], across, axis=0), 0, rtol=0, atol=1e-12)
    assert np.abs(np.vecdot(base[:4], along, axis=0)).min() > 1e-3


def test_both_forms_agree_on_the_magnitude_and_on_what_is_across():
    (ddown, dup, dmagnitude), (_, held_up, held_magnitude) = (form(PARAMS, base=BASE, scale=0.7)[1](DWEIGHT) for form in FORMS)
    np.testing.assert_array_equal(dmagnitude, held_magnitude)
    assert np.abs(dup - held_up).max() > 1e-2
    V, m = BASE + 0.7 * PARAMS.down @ PARAMS.up, PARAMS.magnitude
    lost = V * m * np.vecdot(V, DWEIGHT, axis=0) / np.linalg.norm(V, axis=0) ** 3
    np.testing.assert_allclose(held_up - dup, 0.7 * PARAMS.down.T @ lost, rtol=0, atol=1e-12)
    assert ddown.shape == PARAMS.down.shape


def test_a_longer_direction_with_the_same_magnitude_is_the_same_weight():
    """The norm divides the length away: only magnitude sets it."""
    longer = dora(PARAMS._replace(down=3 * PARAMS.down), base=3 * BASE, scale=0.7)[0]
    np.testing.assert_allclose(longer, dora(PARAMS, base=BASE, scale=0.7)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_any_model_is_adapted(name):
    base, run = whole_model(name)
    rng = np.random.default_rng(3)

    def start(leaf):
        return trees.map(lambda a: a + rng.normal(0, 0.3, a.shape), init_dora(rng, leaf, rank=1))

    trained = at_targets(start, base, PATTERNS[name][0])
    report = checked(changed(run, base, partial(dora, scale=0.7)), trained)
    assert report.passed, str(report)
    arrays = dict(trees.leaves(base))
    expected = sum(sum(arrays[path].shape) + arrays[path].shape[1] for path in targets(base, PATTERNS[name][0]))
    assert trees.count_parameters(trained) == expected
    unchanged = changed(run, base, partial(dora_detached, scale=0.7))(at_targets(lambda leaf: init_dora(rng, leaf, rank=1), base, PATTERNS[name][0]))
    np.testing.assert_array_equal(unchanged[0], run(base)[0])


@pytest.mark.parametrize("form", FORMS)
def test_a_column_of_zeros_is_refused(form):
    base = BASE.copy()
    base[:, 2] = 0
    with pytest.raises(ValueError, match="base: got a weight whose column 2 is zero"):
        init_dora(RNG, base, rank=2)
    start = Dora(np.ones((5, 2)), np.zeros((2, 4)), np.ones(4))
    with pytest.raises(ValueError, match="base: got a weight whose column 2 is zero"):
        form(start, base=base, scale=0.7)
    cancels = Dora(BASE[:, :1], np.array([[-2.0, 0, 0, 0]]), np.ones(4))
    with pytest.raises(ValueError, match="column 0 is zero"):
        form(cancels, base=BASE, scale=0.5)


def test_a_rank_above_the_smaller_side_is_refused():
    with pytest.raises(ValueError, match="rank: got 5, wants 1 to 4"):
        init_dora(RNG, BASE, rank=5)


def test_the_checker_refuses_the_held_norm_as_a_true_gradient():
    def wrong(params):
        return dora(params, base=BASE, scale=0.7)[0], dora_detached(params, base=BASE, scale=0.7)[1]

    report = check_gradients(wrong, PARAMS)
    assert [argument.error > 1e-2 for argument in report.arguments] == [True, True, False]


@pytest.mark.parity
def test_it_is_what_peft_computes_with_the_norm_held():
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["0"], use_dora=True)
    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(5, 4, dtype=torch.float64)), settings).double()
    layer = model.base_model.model[0]
    magnitude = layer.lora_magnitude_vector.default.weight
    weight, bias = layer.weight.detach().numpy().T, layer.bias.detach().numpy()
    np.testing.assert_allclose(magnitude.detach(), init_dora(RNG, weight, rank=2).magnitude, rtol=0, atol=1e-6)  # made in float32 there
    with torch.no_grad():
        layer.lora_A.default.weight.copy_(torch.tensor(PARAMS.down.T))
        layer.lora_B.default.weight.copy_(torch.tensor(PARAMS.up.T))
        magnitude.copy_(torch.tensor(PARAMS.magnitude))
    x = torch.tensor(RNG.normal(size=(2, 3, 5)), requires_grad=True)
    theirs, dout = model(x), RNG.normal(size=(2, 3, 4))
    theirs.backward(torch.tensor(dout))
    made, back = dora_detached(PARAMS, base=weight, scale=1.5)
    out, backward = linear(Linear(made, bias), x.detach().numpy())
    np.testing.assert_allclose(out, theirs.detach(), rtol=0, atol=1e-9)
    dlinear, dx = backward(dout)
    ddown, dup, dmagnitude = back(dlinear.weight)
    np.testing.assert_allclose(dx, x.grad, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ddown, layer.lora_A.default.weight.grad.T, rtol=0, atol=1e-9)
    np.testing.assert_allclose(dup, layer.lora_B.default.weight.grad.T, rtol=0, atol=1e-9)
    np.testing.assert_allclose(dmagnitude, magnitude.grad, rtol=0, atol=1e-9)
