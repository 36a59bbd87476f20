"""A weight as a function of what is trained: the model sees a tree, and gradients find their way back."""

from typing import Any, NamedTuple

import numpy as np
import pytest

from minitransformers.foundation import check_gradients, invalid, reparameterize, trees


class Layer(NamedTuple):
    weight: Any
    bias: Any


class LowRank(NamedTuple):
    down: Any
    up: Any


def low_rank(own, *, base):
    return base + own.down @ own.up, lambda dleaf: LowRank(dleaf @ own.up.T, own.down.T @ dleaf)


def scaled(own, scales, *, base):
    """The leaf times its own number and a number that all leaves share."""
    (number,), shared = own, scales
    return number * shared * base, lambda dleaf: ((shared * np.sum(dleaf * base),), number * np.sum(dleaf * base))


def model(params, x):
    """tanh(x W + b) for every layer, the tree's gradient by hand."""
    outs = [x]
    for layer in params:
        outs.append(np.tanh(outs[-1] @ layer.weight + (0 if layer.bias is None else layer.bias)))

    def backward(dout):
        grads = []
        for layer, before, after in zip(reversed(params), reversed(outs[:-1]), reversed(outs[1:]), strict=True):
            dsum = dout * (1 - after * after)
            grads.append(Layer(before.T @ dsum, None if layer.bias is None else dsum.sum(0)))
            dout = dsum @ layer.weight.T
        return grads[::-1], dout

    return outs[-1], backward


@pytest.fixture
def base():
    rng = np.random.default_rng(0)
    return [Layer(rng.normal(size=(3, 4)), rng.normal(size=4)), Layer(rng.normal(size=(4, 2)), None)]


X = np.random.default_rng(1).normal(size=(5, 3))


def on_the_model(base, change=None):
    def adapted(trained, *shared):
        tree, back = reparameterize(trained, *shared, base=base, change=change)
        out, backward = model(tree, X)
        return out, lambda dout: back(backward(dout)[0])

    return adapted


def test_none_leaves_the_base_and_an_array_takes_its_place(base):
    tree, back = reparameterize([Layer(None, np.zeros(4)), None], base=base)
    assert tree[0].weight is base[0].weight and tree[1] is base[1]
    assert not tree[0].bias.any()
    dtrained = back(model(tree, X)[1](np.ones((5, 2)))[0])
    assert dtrained[0].weight is None and dtrained[1] is None and dtrained[0].bias.shape == (4,)


def test_gradients_of_low_rank_changes_beside_a_trained_bias(base):
    rng = np.random.default_rng(2)
    trained = [Layer(LowRank(rng.normal(size=(3, 1)), rng.normal(size=(1, 4))), rng.normal(size=4)), None]
    report = check_gradients(on_the_model(base, low_rank), trained)
    assert report.passed, report
    assert [a.path for a in report.arguments] == ["trained.0.weight.down", "trained.0.weight.up", "trained.0.bias"]


def test_what_several_leaves_share_gets_the_sum_of_their_gradients(base):
    trained, shared = [Layer((np.array(0.7),), None), Layer((np.array(1.3),), None)], np.array(1.1)
    report = check_gradients(on_the_model(base, scaled), trained, shared)
    assert report.passed, report
    _, backward = on_the_model(base, scaled)(trained, shared)
    dtrained, dshared = backward(np.ones((5, 2)))
    parts = [layer.weight[0] * number.weight[0] / shared for layer, number in zip(dtrained, trained, strict=True)]
    np.testing.assert_allclose(dshared, sum(parts))


def test_the_model_on_the_tree_is_the_model_on_such_weights(base):
    own = LowRank(np.ones((3, 1)), np.ones((1, 4)))
    tree, _ = reparameterize([Layer(own, None), None], base=base, change=low_rank)
    plain = [Layer(base[0].weight + 1, base[0].bias), base[1]]
    np.testing.assert_array_equal(model(tree, X)[0], model(plain, X)[0])


@pytest.mark.parametrize(
    ("trained", "message"),
    [
        ([Layer(np.ones((3, 5)), None), None], r"trained\.0\.weight: makes float64 of shape \(3, 5\), wants float64 of shape \(3, 4\), as base has"),
        ([Layer(np.ones((3, 4), np.float32), None), None], r"trained\.0\.weight: makes float32"),
        ([None, Layer(None, np.ones(2))], r"trained\.1\.bias: makes .*, wants nothing, as base has"),
        ([None], r"trained: got list, wants list or None, as base has"),
        ([LowRank(None, None), None], r"trained\.0: got LowRank, wants Layer or None"),
        ([Layer("low", None), None], r"trained\.0\.weight: got str, wants an array, None, or a change"),
    ],
)
def test_what_does_not_fit_is_named(base, trained, message):
    with pytest.raises(ValueError, match=message):
        reparameterize(trained, base=base)


def test_partition_and_combine(base):
    chosen, rest = trees.partition(base, lambda path, leaf: path.endswith("weight"))
    assert chosen[0].bias is None and rest[0].weight is None and chosen[1].weight is base[1].weight
    whole = trees.combine(rest, chosen)
    assert [path for path, _ in trees.leaves(whole)] == ["0.weight", "0.bias", "1.weight"]
    assert all(a is b for (_, a), (_, b) in zip(trees.leaves(whole), trees.leaves(base), strict=True))


def test_partition_of_a_lone_leaf():
    leaf = np.ones(2)
    assert trees.partition(leaf, lambda path, leaf: True) == (leaf, None)


def test_combine_refuses_two_leaves_in_one_place_and_other_structures(base):
    with pytest.raises(ValueError, match=r"0\.weight: got a leaf \(ndarray\) beside a leaf \(ndarray\), wants None"):
        trees.combine(base, base)
    with pytest.raises(ValueError, match="differ in structure"):
        trees.combine(base, [None])


def test_what_a_change_refuses_is_said_with_its_place(base):
    def refusing(own, *, base):
        raise invalid("rank", got=9, wants="1 to 3")

    trained = [Layer(LowRank(np.ones((3, 9)), np.ones((9, 4))), None), *[None] * (len(base) - 1)]
    with pytest.raises(ValueError, match=r"trained\.0\.weight: rank: got 9, wants 1 to 3"):
        reparameterize(trained, base=base, change=refusing)
