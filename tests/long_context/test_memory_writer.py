"""Memory writer: each slot chooses between itself and the tokens, whatever the other slots do."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import Linear, check_gradients, trees
from minitransformers.long_context.biased_memory_norm import BiasedMemoryNorm, biased_memory_norm
from minitransformers.long_context.memory_writer import MemoryWriter, init_memory_writer, memory_writer

RNG = np.random.default_rng(0)
PARAMS = MemoryWriter(*(Linear(RNG.normal(size=shape) / 2, RNG.normal(size=shape[1])) for shape in ((6, 4), (6, 4), (6, 6))))
SLOTS, X, DOUT = RNG.normal(size=(2, 3, 6)), RNG.normal(size=(2, 5, 6)), RNG.normal(size=(2, 3, 6))
MASK = RNG.random((2, 1, 3, 5)) < 0.7


def one_by_one(leaves, slots, x, mask=MASK, heads=2, temperature=0.25):
    wq, bq, wk, bk, wv, bv = leaves
    d, wide = wq.shape[1] // heads, 6 // heads
    texts = []
    for text in range(len(slots)):
        rows = []
        for i in range(len(slots[text])):
            slot, parts = slots[text, i], []
            for h in range(heads):
                keys, values = slice(d * h, d * h + d), slice(wide * h, wide * h + wide)
                query = (slot @ wq + bq)[keys]
                scores, found = [anp.sum(query * (slot @ wk + bk)[keys])], [slot[values]]
                for j in range(len(x[text])):
                    if mask[text, 0, i, j]:
                        scores.append(anp.sum(query * (x[text, j] @ wk + bk)[keys]))
                        found.append((x[text, j] @ wv + bv)[values])
                exps = [anp.exp(score / (temperature * d**0.5)) for score in scores]
                parts.append(sum(e * value for e, value in zip(exps, found, strict=True)) / sum(exps))
            rows.append(anp.concatenate(parts))
        texts.append(anp.stack(rows))
    return anp.stack(texts)


@pytest.mark.parametrize(("heads", "temperature"), [(1, 0.7), (2, 0.25)])
def test_it_is_a_softmax_slot_by_slot_and_its_gradients_are_autograd_s(heads, temperature):
    leaves = tuple(leaf for _, leaf in trees.leaves(PARAMS))
    settings = {"heads": heads, "temperature": temperature}
    out, backward = memory_writer(PARAMS, SLOTS, X, num_heads=heads, temperature=temperature, mask=MASK)
    np.testing.assert_allclose(out, one_by_one(leaves, SLOTS, X, **settings), rtol=0, atol=1e-12)
    expected = autograd.grad(lambda *args: anp.sum(DOUT * one_by_one(*args, **settings)), (0, 1, 2))(leaves, SLOTS, X)
    dparams, dslots, dx = backward(DOUT)
    for own, theirs in zip([leaf for _, leaf in trees.leaves(dparams)], expected[0], strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)
    np.testing.assert_allclose(dslots, expected[1], rtol=0, atol=1e-10)
    np.testing.assert_allclose(dx, expected[2], rtol=0, atol=1e-10)


def test_without_a_mask_every_token_may_be_written_and_the_temperature_is_a_quarter():
    leaves = tuple(leaf for _, leaf in trees.leaves(PARAMS))
    out, _ = memory_writer(PARAMS, SLOTS, X, num_heads=2)
    np.testing.assert_allclose(out, one_by_one(leaves, SLOTS, X, np.ones_like(MASK)), rtol=0, atol=1e-12)


def test_slots_do_not_see_each_other():
    other = SLOTS.copy()
    other[:, 1] += 1
    out, changed = (memory_writer(PARAMS, slots, X, num_heads=2)[0] for slots in (SLOTS, other))
    np.testing.assert_array_equal(changed[:, [0, 2]], out[:, [0, 2]])
    assert np.abs(changed[:, 1] - out[:, 1]).min() > 0
    _, backward = memory_writer(PARAMS, SLOTS, X, num_heads=2)
    only = np.zeros_like(DOUT)
    only[:, 1] = DOUT[:, 1]
    np.testing.assert_array_equal(backward(only)[1][:, [0, 2]], 0)


def test_slots_in_another_order_are_written_in_that_order():
    order = [2, 0, 1]
    bias = BiasedMemoryNorm(RNG.normal(size=(3, 6)))

    def after(order):
        return biased_memory_norm(BiasedMemoryNorm(bias.bias[order]), memory_writer(PARAMS, SLOTS[:, order], X, num_heads=2)[0])[0]

    np.testing.assert_allclose(after(order), after([0, 1, 2])[:, order], rtol=0, atol=1e-14)


def test_where_nothing_may_be_written_slots_stay_and_then_forget():
    nothing = np.zeros((1, 1, 1, 5), bool)
    out, backward = memory_writer(PARAMS, SLOTS, X, num_heads=2, mask=nothing)
    np.testing.assert_array_equal(out, SLOTS)
    dparams, dslots, dx = backward(DOUT)
    np.testing.assert_array_equal(dslots, DOUT)
    assert not dx.any() and not any(leaf.any() for _, leaf in trees.leaves(dparams))
    bias = RNG.normal(size=(3, 6))
    slots = SLOTS
    for _ in range(80):
        slots, _ = biased_memory_norm(BiasedMemoryNorm(bias), memory_writer(PARAMS, slots, X, num_heads=2, mask=nothing)[0])
    np.testing.assert_allclose(slots, np.broadcast_to(bias / np.linalg.norm(bias, axis=-1, keepdims=True), slots.shape), rtol=0, atol=1e-12)


def test_a_low_temperature_chooses_one_place():
    leaves = [leaf for _, leaf in trees.leaves(PARAMS)]
    query, own, keys = SLOTS @ leaves[0] + leaves[1], SLOTS @ leaves[2] + leaves[3], X @ leaves[2] + leaves[3]
    scores = np.concatenate([np.sum(query * own, axis=-1)[..., None], query @ keys.swapaxes(-1, -2)], axis=-1)
    values = X @ leaves[4] + leaves[5]
    out, _ = memory_writer(PARAMS, SLOTS, X, num_heads=1, temperature=1e-3)
    for text in range(2):
        for i in range(3):
            best = scores[text, i].argmax()
            np.testing.assert_allclose(out[text, i], SLOTS[text, i] if best == 0 else values[text, best - 1], rtol=0, atol=1e-9)


def test_scores_that_would_overflow_do_not():
    with np.errstate(over="raise", invalid="raise"):
        out, backward = memory_writer(PARAMS, 100 * SLOTS, 100 * X, num_heads=2, temperature=1e-3)
        gradients = backward(DOUT)
    assert np.isfinite(out).all() and all(np.isfinite(leaf).all() for _, leaf in trees.leaves(gradients))


def test_at_the_start_a_token_is_written_about_as_long_as_a_slot():
    params = init_memory_writer(np.random.default_rng(1), 64, dtype=np.float64)
    assert params.query.bias is None
    tokens = np.random.default_rng(2).normal(size=(200, 64))
    written = np.linalg.norm(tokens @ params.value.weight, axis=-1)
    assert 0.8 < written.mean() < 1.2
    assert init_memory_writer(np.random.default_rng(1), 4).key.weight.dtype == np.float32


@pytest.mark.parametrize("forgotten", ["the temperature", "that a slot is its own value", "that a slot is its own key"])
def test_the_check_refuses_a_backward_that_forgets(forgotten):
    def wrong(params, slots, x):
        out, backward = memory_writer(params, slots, x, num_heads=1, temperature=0.5)
        (wq, bq), (wk, bk), (wv, bv) = params

        def careless(dout):
            dparams, dslots, dx = backward(dout)
            if forgotten == "the temperature":
                return dparams, dslots, 0.5 * dx
            query = slots @ wq + bq
            scores = np.concatenate([np.vecdot(query, slots @ wk + bk)[..., None], query @ (x @ wk + bk).swapaxes(-1, -2)], axis=-1)
            weights = np.exp(scores / (0.5 * 2))
            weights /= weights.sum(-1, keepdims=True)
            if forgotten == "that a slot is its own value":
                return dparams, dslots - weights[..., :1] * dout, dx
            dweights = np.concatenate([np.vecdot(dout, slots)[..., None], dout @ (x @ wv + bv).swapaxes(-1, -2)], axis=-1)
            dscores = weights * (dweights - np.vecdot(weights, dweights)[..., None])
            return dparams, dslots - dscores[..., :1] * query @ wk.T, dx

        return out, careless

    assert not check_gradients(wrong, PARAMS, SLOTS, X).passed


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="temperature: got 0"):
        memory_writer(PARAMS, SLOTS, X, num_heads=2, temperature=0.0)
    with pytest.raises(ValueError, match="num_heads: got 4, wants a number of heads that divides 6"):
        memory_writer(PARAMS, SLOTS, X, num_heads=4)
    with pytest.raises(ValueError, match="x: got shape"):
        memory_writer(PARAMS, SLOTS, X[:1], num_heads=2)
    with pytest.raises(ValueError, match="mask"):
        memory_writer(PARAMS, SLOTS, X, num_heads=2, mask=np.ones((2, 1, 3, 4), bool))
    with pytest.raises(ValueError, match=r"mask: got shape \(2, 3, 3, 5\)"):
        memory_writer(PARAMS, SLOTS, X, num_heads=2, mask=np.ones((2, 3, 3, 5), bool))
