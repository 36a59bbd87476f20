"""Compacter: its formula, rules that a whole model shares, and what it counts."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.attention.multi_head_attention import multi_head_attention
from minitransformers.basics.feed_forward import feed_forward
from minitransformers.basics.linear import Linear
from minitransformers.foundation import reparameterize, trusted
from minitransformers.models.gpt2 import gpt2, init_gpt2
from minitransformers.peft.adapted import Adapted, adapted
from minitransformers.peft.bottleneck_adapter import BottleneckAdapter, bottleneck_adapter, init_bottleneck_adapter
from minitransformers.peft.compacter_adapter import CompacterAdapter, compacter_adapter, init_compacter_adapter
from minitransformers.peft.low_rank_phm_linear import LowRankPhmLinear, low_rank_phm_weight
from minitransformers.peft.phm_linear import init_phm_rules
from minitransformers.peft.targets import at_targets


def random_layer(rng, d_in, d_out, n=2, rank=1):
    return LowRankPhmLinear(rng.normal(size=(n, d_in // n, rank)), rng.normal(size=(n, rank, d_out // n)), rng.normal(size=d_out))


def case(seed=0):
    rng = np.random.default_rng(seed)
    params = CompacterAdapter(random_layer(rng, 6, 4), random_layer(rng, 4, 6))
    return params, rng.normal(size=(2, 2, 2)), rng.normal(size=(2, 5, 6)) / 2, rng.normal(size=(2, 5, 6))


def textbook(params, rules, x, scale):
    def weight(layer):
        return sum(anp.kron(a, s @ t) for a, s, t in zip(rules, layer.left, layer.right, strict=True))

    def position(row):
        z = row @ weight(params.down) + params.down.bias
        h = z / 2 * (1 + anp.tanh(anp.sqrt(2 / anp.pi) * (z + 0.044715 * z**3)))
        return row + scale * (h @ weight(params.up) + params.up.bias)

    return anp.stack([anp.stack([position(row) for row in text]) for text in x])


@pytest.mark.parametrize("scale", [1.0, -0.4])
def test_it_is_the_textbook_formula_and_its_gradients_are_autograd_s(scale):
    params, rules, x, dout = case()
    leaves = [leaf for _, leaf in trees.leaves(params)]
    out, backward = compacter_adapter(params, rules, x, scale=scale)
    np.testing.assert_allclose(out, textbook(params, rules, x, scale), rtol=0, atol=1e-10)
    expected = autograd.grad(lambda args: anp.sum(dout * textbook(trees.unflatten(params, args[0]), *args[1:], scale)))((leaves, rules, x))
    dparams, drules, dx = backward(dout)
    np.testing.assert_allclose(drules, expected[1], rtol=0, atol=1e-10)
    np.testing.assert_allclose(dx, expected[2], rtol=0, atol=1e-10)
    for (path, own), theirs in zip(trees.leaves(dparams), expected[0], strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10, err_msg=path)


def test_gradients_are_right_with_the_usual_activation():
    report = check_gradients(compacter_adapter, *case(1)[:3])
    assert report.passed, str(report)


def as_bottleneck(params, rules):
    """The ordinary adapter of the same weights."""
    maps = [Linear(low_rank_phm_weight(layer._replace(bias=None), rules)[0], layer.bias) for layer in (params.down, params.up)]
    return BottleneckAdapter(*maps)


def test_it_is_the_bottleneck_adapter_of_the_weights_that_it_stands_for():
    params, rules, x, dout = case(2)
    (out, backward), (theirs, their_backward) = compacter_adapter(params, rules, x), bottleneck_adapter(as_bottleneck(params, rules), x)
    np.testing.assert_allclose(out, theirs, rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(dout)[2], their_backward(dout)[1], rtol=0, atol=1e-12)


def test_it_starts_as_the_identity_and_the_map_up_can_move():
    rng = np.random.default_rng(3)
    params, rules, x = init_compacter_adapter(rng, 16, d_bottleneck=8), init_phm_rules(rng, 4), rng.normal(size=(5, 16)).astype(np.float32)
    out, backward = compacter_adapter(params, rules, x)
    np.testing.assert_array_equal(out, x)
    dparams, _, _ = backward(x)
    assert dparams.up.right.any() and not dparams.down.left.any()
    assert {leaf.dtype for _, leaf in trees.leaves(params)} == {np.dtype(np.float32)}


def test_two_adapters_of_one_model_share_the_rules_whose_gradient_is_the_sum_over_both():
    one, rules, x, _ = case(4)
    two = case(5)[0]

    def both(one, two, rules, x):
        middle, first = compacter_adapter(one, rules, x)
        out, second = compacter_adapter(two, rules, middle, scale=0.5)

        def backward(dout):
            dtwo, drules_two, dmiddle = second(dout)
            done, drules_one, dx = first(dmiddle)
            return done, dtwo, drules_one + drules_two, dx

        return out, backward

    report = check_gradients(both, one, two, rules, x)
    assert report.passed, str(report)


def with_adapters(model, rng):
    blocks = [block._replace(**{slot: Adapted(getattr(block, slot), init_bottleneck_adapter(rng, 4, d_bottleneck=2, dtype=np.float64))
                                for slot in ("attention", "feed_forward")}) for block in model.blocks]  # fmt: skip
    return model._replace(blocks=blocks)


RUN = partial(gpt2, ids=np.array([[1, 4, 1], [0, 2, 2]]), num_heads=2, attention=partial(adapted, part=multi_head_attention),
              feed_forward=partial(adapted, part=feed_forward))  # fmt: skip


def test_all_adapters_of_a_gpt2_are_made_of_one_set_of_rules():
    rng = np.random.default_rng(6)
    base = with_adapters(init_gpt2(rng, vocabulary=5, context=4, d_model=4, num_layers=2, num_heads=2, std=0.5, dtype=np.float64), rng)

    def sides(leaf):
        return LowRankPhmLinear(rng.normal(size=(2, leaf.shape[0] // 2, 1)), rng.normal(size=(2, 1, leaf.shape[1] // 2)))

    maps = at_targets(sides, base, ["adapter.down.weight", "adapter.up.weight"])
    biases, _ = trees.partition(base, lambda path, leaf: path.endswith((".adapter.down.bias", ".adapter.up.bias")))
    trained, rules = trees.combine(maps, biases), rng.normal(size=(2, 2, 2))

    def compacted(trained, rules):
        tree, back = reparameterize(trained, rules, base=base, change=low_rank_phm_weight)
        out, backward = RUN(tree)
        return out, lambda dout: back(backward(dout))

    report = trusted(check_gradients)(compacted, trained, rules, second_opinion=False)
    assert report.passed, str(report)
    one = 2 * 1 * (4 + 2) + 2 + 4
    assert trees.count_parameters((trained, rules)) == 2 * 2 * one + 2**3

    (block, *_), own = reparameterize(trained, rules, base=base, change=low_rank_phm_weight)[0].blocks, trained.blocks[0].attention.adapter
    layers = [LowRankPhmLinear(side.weight.left, side.weight.right, side.bias) for side in own[:2]]
    x = rng.normal(size=(3, 4))
    np.testing.assert_allclose(bottleneck_adapter(block.attention.adapter, x)[0], compacter_adapter(CompacterAdapter(*layers), rules, x)[0], rtol=0, atol=1e-12)


def test_it_has_as_many_parameters_as_the_formula_says():
    rng = np.random.default_rng(7)
    d, m, r, n = 24, 8, 2, 4
    params = init_compacter_adapter(rng, d, d_bottleneck=m, n=n, rank=r)
    assert trees.count_parameters(params) == 2 * r * (d + m) + m + d
    assert trees.count_parameters(init_phm_rules(rng, n)) == n**3


def test_what_does_not_fit_is_refused():
    params, rules, x, _ = case(8)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="n: got 4, wants a number that divides d_in = 6"):
        init_compacter_adapter(rng, 6, d_bottleneck=4)
    with pytest.raises(ValueError, match="n: got 4, wants a number that divides d_out = 6"):
        init_compacter_adapter(rng, 8, d_bottleneck=6)
    with pytest.raises(ValueError, match="rank: got a rank of 2, wants 1 to 1"):
        init_compacter_adapter(rng, 8, d_bottleneck=4, rank=2)
    with pytest.raises(ValueError, match="d_bottleneck: got 0"):
        init_compacter_adapter(rng, 8, d_bottleneck=0)
    with pytest.raises(ValueError, match=r"params\.up: got 8 features, wants 6"):
        compacter_adapter(params._replace(up=random_layer(rng, 4, 8)), rules, x)


@pytest.mark.parametrize("kept", ["down", "up"])
def test_the_checker_refuses_rules_whose_gradient_is_from_one_use_only(kept):
    def wrong(params, rules, x):
        out, backward = compacter_adapter(params, rules, x)
        apart = compacter_apart(params, rules, rules, x)[1]

        def once(dout):
            dparams, _, dx = backward(dout)
            return dparams, apart(dout)[kept == "up"], dx

        return out, once

    report = check_gradients(wrong, *case(9)[:3])
    assert not report.passed and report.worst.path == "rules"


def compacter_apart(params, down_rules, up_rules, x):
    """The gradients of the rules, one for each use."""
    from minitransformers.basics.gelu import gelu
    from minitransformers.peft.low_rank_phm_linear import low_rank_phm_linear

    hidden, down_backward = low_rank_phm_linear(params.down, down_rules, x)
    active, bend_backward = gelu(hidden)
    added, up_backward = low_rank_phm_linear(params.up, up_rules, active)

    def backward(dout):
        _, dup_rules, dactive = up_backward(dout)
        return down_backward(bend_backward(dactive))[1], dup_rules

    return x + added, backward


@pytest.mark.parity
def test_it_is_what_pytorch_computes():
    torch = pytest.importorskip("torch")
    params, rules, x, dout = case(10)
    tensors = [torch.tensor(leaf, requires_grad=True) for _, leaf in trees.leaves((params, rules, x))]
    dl, dr, db, ul, ur, ub, a, t = tensors
    down, up = (sum(torch.kron(a[i], left[i] @ right[i]) for i in range(2)) for left, right in ((dl, dr), (ul, ur)))
    theirs = t + torch.nn.functional.gelu(t @ down + db, approximate="tanh") @ up + ub
    theirs.backward(torch.tensor(dout))
    out, backward = compacter_adapter(params, rules, x)
    np.testing.assert_allclose(out, theirs.detach(), rtol=0, atol=1e-9)
    for (path, own), tensor in zip(trees.leaves(backward(dout)), tensors, strict=True):
        np.testing.assert_allclose(own, tensor.grad, rtol=0, atol=1e-9, err_msg=path)
