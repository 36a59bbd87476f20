"""The PHM layer: the sum of Kronecker products that it never forms, complex numbers, and one part alone."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.basics.linear import Linear, linear
from minitransformers.peft.phm_linear import PhmLinear, init_phm_linear, init_phm_rules, phm_linear, phm_weight


def case(seed=0, bias=True):
    rng = np.random.default_rng(seed)
    params = PhmLinear(rng.normal(size=(3, 2, 4)), rng.normal(size=12) if bias else None)
    return params, rng.normal(size=(3, 3, 3)), rng.normal(size=(2, 5, 6)), rng.normal(size=(2, 5, 12))


def textbook(blocks, bias, rules, x):
    return anp.stack([anp.stack([row @ sum(anp.kron(a, b) for a, b in zip(rules, blocks, strict=True)) + bias for row in text]) for text in x])


def test_it_is_the_sum_of_kronecker_products_and_its_gradients_are_autograd_s():
    params, rules, x, dout = case()
    out, backward = phm_linear(params, rules, x)
    np.testing.assert_allclose(out, textbook(*params, rules, x), rtol=1e-12, atol=1e-12)
    dparams, drules, dx = backward(dout)
    expected = autograd.grad(lambda args: anp.sum(dout * textbook(*args)))((*params, rules, x))
    for own, theirs in zip((*dparams, drules, dx), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)


def test_without_a_bias_there_is_no_gradient_for_one():
    params, rules, x, dout = case(1, bias=False)
    out, backward = phm_linear(params, rules, x)
    np.testing.assert_allclose(out, textbook(params.blocks, 0.0, rules, x), rtol=0, atol=1e-12)
    assert backward(dout)[0].bias is None
    assert check_gradients(phm_linear, params, rules, x).passed


def test_its_weight_is_the_sum_of_kronecker_products_and_an_ordinary_map_of_it_is_the_same():
    params, rules, x, dout = case(2)
    weight, weight_backward = phm_weight(params.blocks, rules)
    np.testing.assert_allclose(weight, sum(np.kron(a, b) for a, b in zip(rules, params.blocks, strict=True)), rtol=1e-12, atol=1e-12)
    out, backward = phm_linear(params, rules, x)
    theirs, their_backward = linear(Linear(weight, params.bias), x)
    np.testing.assert_allclose(out, theirs, rtol=0, atol=1e-12)
    (dparams, drules, dx), (dlinear, their_dx) = backward(dout), their_backward(dout)
    dblocks, their_drules = weight_backward(dlinear.weight)
    for own, other in ((dparams.blocks, dblocks), (drules, their_drules), (dx, their_dx), (dparams.bias, dlinear.bias)):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-12)


def test_with_the_rules_of_complex_numbers_it_multiplies_complex_numbers():
    rng = np.random.default_rng(3)
    blocks, x = rng.normal(size=(2, 3, 5)), rng.normal(size=(4, 6))
    rules = np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [-1.0, 0.0]]])  # 1, and i
    out, _ = phm_linear(PhmLinear(blocks, None), rules, x)
    expected = (x[:, :3] + 1j * x[:, 3:]) @ (blocks[0] + 1j * blocks[1])
    np.testing.assert_allclose(out, np.concatenate([expected.real, expected.imag], axis=1), rtol=0, atol=1e-13)


def test_with_four_rules_it_multiplies_quaternions():
    rng = np.random.default_rng(4)
    (a, b, c, d), (e, f, g, h) = x, y = rng.normal(size=(2, 4))
    product = [a*e - b*f - c*g - d*h, a*f + b*e + c*h - d*g, a*g - b*h + c*e + d*f, a*h + b*g - c*f + d*e]  # fmt: skip
    rules = np.array([
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], [[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]],
        [[0, 0, 1, 0], [0, 0, 0, 1], [-1, 0, 0, 0], [0, -1, 0, 0]], [[0, 0, 0, 1], [0, 0, -1, 0], [0, 1, 0, 0], [-1, 0, 0, 0]],
    ], float)  # fmt: skip
    np.testing.assert_allclose(phm_linear(PhmLinear(y.reshape(4, 1, 1), None), rules, x)[0], product, rtol=0, atol=1e-13)


def test_in_one_part_with_the_rule_one_it_is_a_linear_map():
    rng = np.random.default_rng(5)
    weight, bias, x = rng.normal(size=(3, 5)), rng.normal(size=5), rng.normal(size=(2, 3))
    out, _ = phm_linear(PhmLinear(weight[None], bias), np.ones((1, 1, 1)), x)
    np.testing.assert_allclose(out, linear(Linear(weight, bias), x)[0], rtol=0, atol=1e-13)


def test_rules_that_two_layers_share_get_the_sum_of_two_gradients():
    (one, rules, x, _), two = case(6), PhmLinear(np.random.default_rng(7).normal(size=(3, 4, 2)), None)

    def both(one, two, rules, x):
        middle, first = phm_linear(one, rules, x)
        out, second = phm_linear(two, rules, middle)

        def backward(dout):
            dtwo, drules_two, dmiddle = second(dout)
            done, drules_one, dx = first(dmiddle)
            return done, dtwo, drules_one + drules_two, dx

        return out, backward

    report = check_gradients(both, one, two, rules, x)
    assert report.passed, str(report)


def test_it_has_as_many_parameters_as_the_formula_says_and_keeps_the_variance():
    rng = np.random.default_rng(8)
    params, rules = init_phm_linear(rng, 512, 256, n=4, dtype=np.float64), init_phm_rules(rng, 4, dtype=np.float64)
    assert trees.count_parameters((params, rules)) == 4**3 + 512 * 256 // 4 + 256
    spreads = [phm_linear(params, init_phm_rules(rng, 4, dtype=np.float64), rng.normal(size=(20, 512)))[0].var() for _ in range(200)]
    assert abs(np.mean(spreads) - 1) < 0.1


def test_what_does_not_fit_is_refused():
    params, rules, x, _ = case(9)
    with pytest.raises(ValueError, match="n: got 3, wants a number that divides d_in = 8"):
        init_phm_linear(np.random.default_rng(0), 8, 9, n=3)
    with pytest.raises(ValueError, match="n: got 3, wants a number that divides d_out = 8"):
        init_phm_linear(np.random.default_rng(0), 9, 8, n=3)
    with pytest.raises(ValueError, match=r"rules: got shape \(3, 3, 2\)"):
        phm_linear(params, rules[..., :2], x)
    with pytest.raises(ValueError, match="x: got 5 features, wants 6: 3 parts of 2"):
        phm_linear(params, rules, x[..., :5])
    with pytest.raises(ValueError, match=r"params\.bias: got 11 features, wants 12: 3 parts of 4"):
        phm_linear(params._replace(bias=np.ones(11)), rules, x)


@pytest.mark.parametrize("wrong", ["rules on the other side", "blocks of one rule"])
def test_the_checker_refuses(wrong):
    def mistaken(params, rules, x):
        out, backward = phm_linear(params, rules, x)

        def careless(dout):
            dparams, drules, dx = backward(dout)
            if wrong == "blocks of one rule":
                return dparams._replace(blocks=dparams.blocks[::-1]), drules, dx
            return dparams, drules.swapaxes(1, 2), dx

        return out, careless

    assert not check_gradients(mistaken, *case(10)[:3]).passed
