"""The low-rank PHM layer: its formula, what it is a case of, and whole models whose weights are made of shared rules."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.basics.linear import Linear, linear
from minitransformers.foundation import reparameterize, trusted
from minitransformers.models.gpt2 import gpt2, init_gpt2
from minitransformers.models.llama import init_llama, llama
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model, language_model
from minitransformers.peft.low_rank_phm_linear import (
    LowRankPhmLinear,
    init_low_rank_phm_linear,
    low_rank_phm_linear,
    low_rank_phm_weight,
)
from minitransformers.peft.phm_linear import PhmLinear, init_phm_rules, phm_linear
from minitransformers.peft.targets import at_targets

checked = trusted(check_gradients)


def case(seed=0, bias=True):
    rng = np.random.default_rng(seed)
    params = LowRankPhmLinear(rng.normal(size=(3, 5, 2)), rng.normal(size=(3, 2, 4)), rng.normal(size=12) if bias else None)
    return params, rng.normal(size=(3, 3, 3)), rng.normal(size=(2, 7, 15)), rng.normal(size=(2, 7, 12))


def textbook(left, right, bias, rules, x):
    weight = sum(anp.kron(a, s @ t) for a, s, t in zip(rules, left, right, strict=True))
    return anp.stack([anp.stack([row @ weight + bias for row in text]) for text in x])


def test_it_is_the_sum_of_kronecker_products_and_its_gradients_are_autograd_s():
    params, rules, x, dout = case()
    out, backward = low_rank_phm_linear(params, rules, x)
    expected = textbook(*params, rules, x)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    dparams, drules, dx = backward(dout)
    expected = autograd.grad(lambda args: anp.sum(dout * textbook(*args)))((*params, rules, x))
    for own, theirs in zip((*dparams, drules, dx), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)


def test_it_is_the_phm_layer_whose_blocks_are_the_products():
    params, rules, x, dout = case(1)
    out, backward = low_rank_phm_linear(params, rules, x)
    theirs, their_backward = phm_linear(PhmLinear(params.left @ params.right, params.bias), rules, x)
    np.testing.assert_allclose(out, theirs, rtol=0, atol=1e-12)
    for own, other in zip(backward(dout)[1:], their_backward(dout)[1:], strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-11)


def test_in_one_part_with_the_rule_one_it_is_two_thin_maps():
    rng = np.random.default_rng(2)
    left, right, x = rng.normal(size=(5, 2)), rng.normal(size=(2, 4)), rng.normal(size=(3, 5))
    out, _ = low_rank_phm_linear(LowRankPhmLinear(left[None], right[None]), np.ones((1, 1, 1)), x)
    np.testing.assert_allclose(out, x @ left @ right, rtol=0, atol=1e-13)


def test_an_ordinary_map_with_its_weight_is_the_same():
    params, rules, x, dout = case(3)
    weight, weight_backward = low_rank_phm_weight(params._replace(bias=None), rules)
    out, backward = low_rank_phm_linear(params, rules, x)
    theirs, their_backward = linear(Linear(weight, params.bias), x)
    np.testing.assert_allclose(out, theirs, rtol=0, atol=1e-12)
    (dparams, drules, dx), (dlinear, their_dx) = backward(dout), their_backward(dout)
    dweight, their_drules = weight_backward(dlinear.weight)
    pairs = ((dparams.left, dweight.left), (dparams.right, dweight.right), (drules, their_drules), (dx, their_dx))
    for own, other in pairs:
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-11)


def test_without_a_bias_its_gradients_are_right():
    params, rules, x, _ = case(4, bias=False)
    report = check_gradients(low_rank_phm_linear, params, rules, x)
    assert report.passed, str(report)


def test_it_has_as_many_parameters_as_the_formula_says_and_keeps_the_variance():
    rng = np.random.default_rng(5)
    params = init_low_rank_phm_linear(rng, 64, 32, n=4, rank=3, dtype=np.float64)
    assert trees.count_parameters(params) == 3 * (64 + 32) + 32
    spreads = []
    for _ in range(300):
        params, rules = init_low_rank_phm_linear(rng, 64, 32, n=4, rank=3, dtype=np.float64), init_phm_rules(rng, 4, dtype=np.float64)
        spreads.append(low_rank_phm_linear(params, rules, rng.normal(size=(20, 64)))[0].var())
    assert abs(np.mean(spreads) - 1) < 0.15
    silent = init_low_rank_phm_linear(rng, 64, 32, std=0.0)
    assert not low_rank_phm_linear(silent, init_phm_rules(rng, 4), rng.normal(size=(2, 64)).astype(np.float32))[0].any()


def models():
    rng, ids = np.random.default_rng(6), np.array([[1, 4, 1], [0, 2, 2]])
    sizes = {"vocabulary": 5, "d_model": 4, "num_layers": 2, "num_heads": 2, "std": 0.5, "dtype": np.float64}
    mamba = LanguageModelConfig(vocabulary_size=5, context=4, d_model=4, num_layers=2, num_heads=2, mixer="mamba", position="none",
                                options={"channel": {"d_hidden": 6}, "mixer": {"d_state": 2, "expand": 1, "d_conv": 2}})  # fmt: skip
    yield "gpt2", init_gpt2(rng, context=4, **sizes), partial(gpt2, ids=ids, num_heads=2), ["query.weight", "up.weight"]
    yield "llama", init_llama(rng, d_hidden=6, **sizes), partial(llama, ids=ids, num_heads=2), ["query.weight", "gate.weight"]
    yield "mamba", init_language_model(rng, mamba, std=0.5, dtype=np.float64), partial(language_model, ids=ids, config=mamba), ["in_proj.weight", "up.weight"]


@pytest.mark.parametrize(("base", "run", "patterns"), [pytest.param(*rest, id=name) for name, *rest in models()])
def test_weights_of_whole_models_are_made_of_shared_rules_whose_gradient_is_the_sum_over_them(base, run, patterns):
    rng = np.random.default_rng(7)
    trained = at_targets(lambda leaf: LowRankPhmLinear(rng.normal(size=(2, leaf.shape[0] // 2, 1)), rng.normal(size=(2, 1, leaf.shape[1] // 2))), base, patterns)
    assert sum(path.endswith("left") for path, _ in trees.leaves(trained)) == 4

    def made(trained, rules):
        tree, back = reparameterize(trained, rules, base=base, change=low_rank_phm_weight)
        out, backward = run(tree)
        return out, lambda dout: back(backward(dout))

    report = checked(made, trained, rng.normal(size=(2, 2, 2)), second_opinion=False)
    assert report.passed, str(report)

    def once(trained, rules):                                # negative control: the rules' gradient from the last leaf alone
        tree, back = reparameterize(trained, rules, base=base, change=low_rank_phm_weight)
        out, backward = run(tree)

        def wrong(dout):
            dtrained, _ = back(backward(dout))
            last = []

            def keep(own, rules, *, base):
                weight, weight_backward = low_rank_phm_weight(own, rules, base=base)
                return weight, lambda dweight: last.append(weight_backward(dweight)) or last[-1]

            _, again = reparameterize(trained, rules, base=base, change=keep)
            again(backward(dout))
            return dtrained, last[-1][1]

        return out, wrong

    assert not checked(once, trained, rng.normal(size=(2, 2, 2)), second_opinion=False).passed


def test_what_does_not_fit_is_refused():
    params, rules, x, _ = case(8)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="n: got 4, wants a number that divides d_in = 10"):
        init_low_rank_phm_linear(rng, 10, 8)
    with pytest.raises(ValueError, match="rank: got a rank of 3, wants 1 to 2"):
        init_low_rank_phm_linear(rng, 20, 8, rank=3)
    with pytest.raises(ValueError, match="rank: got 0"):
        init_low_rank_phm_linear(rng, 20, 8, rank=0)
    with pytest.raises(ValueError, match=r"params\.left: got a rank of 5, wants 1 to 4"):
        low_rank_phm_linear(LowRankPhmLinear(np.ones((3, 5, 5)), np.ones((3, 5, 4))), rules, x)
    with pytest.raises(ValueError, match=r"rules: got shape \(3, 2, 3\)"):
        low_rank_phm_linear(params, rules[:, :2], x)
    with pytest.raises(ValueError, match="x: got 14 features, wants 15: 3 parts of 5"):
        low_rank_phm_linear(params, rules, x[..., :14])
    with pytest.raises(ValueError, match=r"params\.bias: got an array, wants None"):
        low_rank_phm_weight(params, rules)


@pytest.mark.parity
def test_it_is_the_sum_of_pytorch_s_kronecker_products():
    torch = pytest.importorskip("torch")
    params, rules, x, dout = case(9)
    tensors = [torch.tensor(array, requires_grad=True) for array in (*params, rules, x)]
    left, right, bias, a, t = tensors
    weight = sum(torch.kron(a[i], left[i] @ right[i]) for i in range(3))
    theirs = t @ weight + bias
    theirs.backward(torch.tensor(dout))
    out, backward = low_rank_phm_linear(params, rules, x)
    np.testing.assert_allclose(out, theirs.detach(), rtol=0, atol=1e-9)
    dparams, drules, dx = backward(dout)
    for own, tensor in zip((*dparams, drules, dx), tensors, strict=True):
        np.testing.assert_allclose(own, tensor.grad, rtol=0, atol=1e-9)
