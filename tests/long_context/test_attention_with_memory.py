"""Attention with memory: by loops, against the whole text, and what learns from the rows that were kept."""

import autograd.numpy as anp
import numpy as np
import pytest
from xl_textbook import assert_same, attention, gradients, noisy, weights_of

from minitransformers.attention.core import causal_attention
from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.foundation import check_gradients, trees
from minitransformers.long_context.attention_with_memory import attention_received, attention_with_memory
from minitransformers.positional.transformer_xl_relative import init_transformer_xl_relative, transformer_xl_relative

HEADS, WIDTH = 2, 4


def random_call(seed=0, positions=3, kept=2, batch=2):
    rng = np.random.default_rng(seed)
    params = init_multi_head_attention(rng, WIDTH, num_heads=HEADS, dtype=np.float64)
    params = noisy(params._replace(core=init_transformer_xl_relative(rng, WIDTH, num_heads=HEADS, std=1.0, dtype=np.float64)), rng)
    return params, rng.normal(size=(batch, positions, WIDTH)), rng.normal(size=(batch, kept, WIDTH)), rng.normal(size=(batch, positions, WIDTH))


def textbook(params, x, memory):
    return anp.stack([anp.stack(attention(params, list(x[b]), list(memory[b]), HEADS)) for b in range(len(x))])


@pytest.mark.parametrize("kept", [1, 2, 5])
def test_it_is_attention_by_loops_and_its_gradients_are_autograd_s(kept):
    params, x, memory, dout = random_call(kept=kept)
    out, backward = attention_with_memory(params, x, memory, num_heads=HEADS)
    np.testing.assert_allclose(out, textbook(params, x, memory), rtol=0, atol=1e-12)
    assert_same(backward(dout), gradients(lambda *args: anp.sum(dout * textbook(*args)), params, x, memory))


def test_without_memory_it_is_multi_head_attention():
    params, x, _, dout = random_call()
    out, backward = attention_with_memory(params, x, num_heads=HEADS)
    plain, plain_backward = multi_head_attention(params, x, num_heads=HEADS, core=transformer_xl_relative)
    np.testing.assert_array_equal(out, plain)
    (dparams, dx, dmemory), (dplain, dx_plain, _) = backward(dout), plain_backward(dout)
    assert dmemory is None
    assert_same((dparams, dx), [leaf for _, leaf in trees.leaves((dplain, dx_plain))], atol=1e-14)


def test_memory_and_segment_are_one_text_of_which_the_segment_asks():
    params, x, memory, dout = random_call(positions=3, kept=4)
    out, backward = attention_with_memory(params, x, memory, num_heads=HEADS)
    whole, whole_backward = multi_head_attention(params, np.concatenate([memory, x], axis=1), num_heads=HEADS, core=transformer_xl_relative)
    np.testing.assert_allclose(out, whole[:, 4:], rtol=0, atol=1e-13)
    dparams, dx, dmemory = backward(dout)
    dwhole, dtext, _ = whole_backward(np.concatenate([np.zeros((2, 4, WIDTH)), dout], axis=1))
    np.testing.assert_allclose(np.concatenate([dmemory, dx], axis=1), dtext, rtol=0, atol=1e-12)
    assert_same(dparams, [leaf for _, leaf in trees.leaves(dwhole)])


def test_nothing_depends_on_where_the_segment_stands():
    # Rows in front that nobody may see: all positions are five later, and nothing changes.
    params, x, memory, _ = random_call(kept=2)
    front = np.random.default_rng(1).normal(size=(2, 5, WIDTH))
    mask = np.broadcast_to(np.arange(5 + 2 + 3) >= 5, (3, 10))
    later, _ = attention_with_memory(params, x, np.concatenate([front, memory], axis=1), num_heads=HEADS, mask=mask)
    np.testing.assert_allclose(later, attention_with_memory(params, x, memory, num_heads=HEADS)[0], rtol=0, atol=1e-13)


def test_under_a_mask_every_position_may_see_equally_many_rows():
    # The authors' same_length: position i sees the 2 rows before it, wherever the segment begins.
    params, x, memory, _ = random_call(positions=3, kept=2)
    place, key = np.arange(2, 5)[:, None], np.arange(5)
    mask = (key >= place - 2) & (key <= place)
    out, _ = attention_with_memory(params, x, memory, num_heads=HEADS, mask=mask)
    text = np.concatenate([memory, x], axis=1)
    for i in range(3):
        alone, _ = attention_with_memory(params, text[:, i + 2 : i + 3], text[:, i : i + 2], num_heads=HEADS)
        np.testing.assert_allclose(out[:, i : i + 1], alone, rtol=0, atol=1e-13)


def test_the_maps_of_keys_and_values_learn_from_memory_and_that_of_queries_does_not():
    # Feature 0 is there in memory alone, so what row 0 of a map gets has come through memory.
    params, x, memory, dout = random_call()
    x[..., 0] = 0
    dparams = attention_with_memory(params, x, memory, num_heads=HEADS)[1](dout)[0]
    assert np.abs(dparams.key.weight[0]).min() > 1e-3 and np.abs(dparams.value.weight[0]).min() > 1e-3
    np.testing.assert_array_equal(dparams.query.weight[0], 0)


def core_that_stops(params, query, key, value, bias=None, *, mask=None):
    """Projected keys and values of memory get nothing: a stop in the wrong place, behind the maps."""
    out, backward = transformer_xl_relative(params, query, key, value, bias, mask=mask)

    def stopped(dout):
        dcore, dquery, dkey, dvalue, dbias = backward(dout)
        new = (np.arange(key.shape[-2]) >= key.shape[-2] - query.shape[-2])[:, None]
        return dcore, dquery, dkey * new, dvalue * new, dbias

    return out, stopped


def test_the_checker_refuses_maps_that_learn_from_the_segment_alone():
    params, x, memory, _ = random_call()

    def wrong(params, x, memory):
        out, backward = attention_with_memory(params, x, memory, num_heads=HEADS)
        _, stopped = attention_with_memory(params, x, memory, num_heads=HEADS, core=core_that_stops)
        return out, lambda dout: (stopped(dout)[0], *backward(dout)[1:])

    report = check_gradients(wrong, params, x, memory)
    assert {a.path for a in report.arguments if not a.error <= 1e-6} >= {"params.key.weight", "params.value.weight"}
    assert all(a.error <= 1e-6 for a in report.arguments if a.path in ("params.query.weight", "x", "memory"))


def test_any_core_that_looks_back_serves():
    params, x, memory, dout = random_call()
    params = params._replace(core=None)
    out, backward = attention_with_memory(params, x, memory, num_heads=HEADS, core=causal_attention)
    whole, _ = multi_head_attention(params, np.concatenate([memory, x], axis=1), num_heads=HEADS)
    np.testing.assert_allclose(out, whole[:, 2:], rtol=0, atol=1e-13)
    assert check_gradients(attention_with_memory, params, x, memory, num_heads=HEADS, core=causal_attention).passed
    assert backward(dout)[0].core is None


def test_the_attention_received_is_that_of_the_loops_and_sums_to_one():
    params, x, memory, _ = random_call(positions=3, kept=2)
    received = attention_received(params, x, memory, num_heads=HEADS)
    for b in range(2):
        expected = np.zeros(5)
        for i in range(3):
            for head in range(HEADS):
                weights = weights_of(params, i, list(x[b]), list(memory[b]), HEADS, head)
                expected[: len(weights)] += weights / (3 * HEADS)
        np.testing.assert_allclose(received[b], expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(received.sum(-1), 1, rtol=0, atol=1e-13)


def test_a_prepare_is_refused():
    params, x, memory, _ = random_call()
    with pytest.raises(ValueError, match=r"params\.prepare: got Linear, wants None"):
        attention_with_memory(params._replace(prepare=params.query), x, memory, num_heads=HEADS)


@pytest.mark.parity
def test_parity_with_the_authors_formula_in_torch():
    torch = pytest.importorskip("torch")
    params, x, memory, dout = random_call(positions=3, kept=4)
    bare = params._replace(**{name: getattr(params, name)._replace(bias=None) for name in ("query", "key", "value", "output")})
    leaves = [torch.tensor(leaf, requires_grad=True) for _, leaf in trees.leaves((bare, x, memory))]
    w_q, w_k, w_v, w_o, distance, u, w, segment, mems = leaves
    # As in their code: memory detached before it is joined, r for falling distances, a shift by a view of a padded array.
    cat = torch.cat([mems.detach(), segment], dim=1)
    query, key, value = ((rows @ weight).view(2, -1, HEADS, 2) for rows, weight in ((segment, w_q), (cat, w_k), (cat, w_v)))
    inverse = 1 / 10_000 ** (torch.arange(0.0, WIDTH, 2.0, dtype=torch.float64) / WIDTH)
    angles = torch.outer(torch.arange(6, -1, -1.0, dtype=torch.float64), inverse)
    r = torch.einsum("nf,hfd->nhd", torch.cat([angles.sin(), angles.cos()], dim=-1), distance)
    content = torch.einsum("binh,bjnh->bnij", query + u, key)
    by_distance = torch.einsum("binh,jnh->bnij", query + w, r)
    padded = torch.cat([torch.zeros(2, HEADS, 3, 1, dtype=torch.float64), by_distance], dim=-1).view(2, HEADS, 8, 3)
    scores = (content + padded[:, :, 1:].reshape(2, HEADS, 3, 7)) / 2**0.5
    scores = scores.masked_fill(~torch.ones(3, 7, dtype=torch.bool).tril(4), -torch.inf)
    theirs = torch.einsum("bnij,bjnh->binh", scores.softmax(-1), value).reshape(2, 3, WIDTH) @ w_o
    theirs.backward(torch.tensor(dout))
    out, backward = attention_with_memory(bare, x, memory, num_heads=HEADS)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-12)
    dparams, dx, _ = backward(dout)
    for (path, own), leaf in zip(trees.leaves((dparams, dx)), leaves, strict=False):
        np.testing.assert_allclose(own, leaf.grad.numpy(), rtol=0, atol=1e-12, err_msg=path)
    assert mems.grad is None
