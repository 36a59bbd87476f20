"""Memory reader: tokens look at a set of slots, and at nothing else."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import Linear, check_gradients, trees
from minitransformers.attention.cross_attention import CrossAttention
from minitransformers.long_context.memory_reader import MemoryReader, init_memory_reader, memory_reader
from minitransformers.norms.layer_norm import LayerNorm

RNG = np.random.default_rng(0)
MAPS = [Linear(RNG.normal(size=shape) / 2, RNG.normal(size=shape[1])) for shape in ((6, 4), (6, 4), (6, 2), (2, 6))]
PARAMS = MemoryReader(LayerNorm(RNG.normal(size=6), RNG.normal(size=6)), CrossAttention(*MAPS))
X, SLOTS, DOUT = RNG.normal(size=(2, 4, 6)), RNG.normal(size=(2, 3, 6)), RNG.normal(size=(2, 4, 6))


def one_by_one(leaves, x, slots, heads=2):
    gain, bias, wq, bq, wk, bk, wv, bv, wo, bo = leaves
    texts = []
    for text in range(len(x)):
        rows = []
        for token in x[text]:
            centred = token - anp.mean(token)
            query = (gain * centred / anp.sqrt(anp.mean(centred**2) + 1e-5) + bias) @ wq + bq
            found = []
            for h in range(heads):
                part, wide = slice(2 * h, 2 * h + 2), slice(h, h + 1)
                scores = [anp.sum(query[part] * (6**0.5 * slot @ wk + bk)[part]) / 2**0.5 for slot in slots[text]]
                total = sum(anp.exp(score) for score in scores)
                found.append(sum(anp.exp(score) / total * (6**0.5 * slot @ wv + bv)[wide] for score, slot in zip(scores, slots[text], strict=True)))
            rows.append(token + anp.concatenate(found) @ wo + bo)
        texts.append(anp.stack(rows))
    return anp.stack(texts)


def test_it_is_attention_token_by_token_and_its_gradients_are_autograd_s():
    out, backward = memory_reader(PARAMS, X, SLOTS, num_heads=2)
    leaves = tuple(leaf for _, leaf in trees.leaves(PARAMS))
    np.testing.assert_allclose(out, one_by_one(leaves, X, SLOTS), rtol=0, atol=1e-12)
    expected = autograd.grad(lambda *args: anp.sum(DOUT * one_by_one(*args)), (0, 1, 2))(leaves, X, SLOTS)
    dparams, dx, dslots = backward(DOUT)
    for own, theirs in zip([leaf for _, leaf in trees.leaves(dparams)], expected[0], strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)
    np.testing.assert_allclose(dx, expected[1], rtol=0, atol=1e-10)
    np.testing.assert_allclose(dslots, expected[2], rtol=0, atol=1e-10)


def test_slots_are_a_set():
    order = [2, 0, 1]
    out, backward = memory_reader(PARAMS, X, SLOTS, num_heads=2)
    turned, turned_backward = memory_reader(PARAMS, X, SLOTS[:, order], num_heads=2)
    np.testing.assert_allclose(turned, out, rtol=0, atol=1e-14)
    np.testing.assert_allclose(turned_backward(DOUT)[2], backward(DOUT)[2][:, order], rtol=0, atol=1e-13)


def test_tokens_do_not_look_at_each_other():
    other = X.copy()
    other[:, 1] += 1
    out, changed = (memory_reader(PARAMS, x, SLOTS, num_heads=2)[0] for x in (X, other))
    np.testing.assert_array_equal(np.abs(changed - out).max((0, 2)) > 0, [False, True, False, False])


def test_with_one_slot_every_token_reads_the_same():
    found = memory_reader(PARAMS, X, SLOTS[:, :1], num_heads=2)[0] - X
    np.testing.assert_allclose(found, np.broadcast_to(found[:, :1], found.shape), rtol=0, atol=1e-13)


def test_a_unit_slot_is_read_as_long_as_a_token_of_unit_features():
    unit = SLOTS / np.linalg.norm(SLOTS, axis=-1, keepdims=True)
    through = PARAMS._replace(
        attention=CrossAttention(Linear(np.zeros((6, 6)), None), Linear(np.zeros((6, 6)), None), Linear(np.eye(6), None), Linear(np.eye(6), None))
    )
    found = memory_reader(through, X, unit[:, :1], num_heads=1)[0] - X
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 6**0.5, rtol=0, atol=1e-12)


def test_its_start_is_that_of_its_parts():
    params = init_memory_reader(np.random.default_rng(1), 6, num_heads=3, std=0.5, residual_std=0.0, bias=False)
    assert params.attention.query.bias is None and params.norm.gain.dtype == np.float32
    x = X.astype(np.float32)
    np.testing.assert_array_equal(memory_reader(params, x, SLOTS.astype(np.float32), num_heads=3)[0], x)


@pytest.mark.parametrize("forgotten", ["the stream", "the scale"])
def test_the_check_refuses_a_backward_that_forgets(forgotten):
    def wrong(params, x, slots):
        out, backward = memory_reader(params, x, slots, num_heads=2)

        def careless(dout):
            dparams, dx, dslots = backward(dout)
            return (dparams, dx - dout, dslots) if forgotten == "the stream" else (dparams, dx, dslots / 6**0.5)

        return out, careless

    assert not check_gradients(wrong, PARAMS, X, SLOTS).passed


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="num_heads: got 3"):
        memory_reader(PARAMS, X, SLOTS, num_heads=3)
    with pytest.raises(ValueError, match="slots"):
        memory_reader(PARAMS, X, SLOTS[:1], num_heads=2)
    with pytest.raises(ValueError, match="slots"):
        memory_reader(PARAMS, X, SLOTS[..., :5], num_heads=2)
