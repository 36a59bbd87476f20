"""MoBA: the choice by hand, the textbook sum, what has no gradient, causality, and decoding a position at a time."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from mixers_at_work import WORDS, assert_steps_equal_the_whole_pass, losses, repeats
from mixers_at_work import model as small_model

from minitransformers.attention.core import causal, causal_attention
from minitransformers.attention.grouped_query_attention import (
    grouped_query_attention,
    grouped_query_attention_step,
    init_grouped_query_attention,
)
from minitransformers.attention.multi_head_attention import (
    init_multi_head_attention,
    multi_head_attention,
    multi_head_attention_step,
)
from minitransformers.foundation import catalogue, check_gradients
from minitransformers.sparse_attention.moba import moba, moba_selection
from minitransformers.sparse_attention.selected_block_attention import selected_block_attention


def arrays(n, queries=None, heads=2, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(heads, length, d)) for length, d in ((queries or n, 3), (n, 3), (n, 4))]


def chosen(q, k, i, block, top):
    """The blocks of the query at position i of one head, by sorting gates one by one."""
    own = i // block
    gates = [(-float(np.dot(q, np.mean(k[b * block : (b + 1) * block], axis=0))), b) for b in range(own)]
    return {own, *(b for _, b in sorted(gates)[: top - 1])}


def textbook(q, k, v, blocks, block):
    """One head and one query at a time over the blocks that were chosen before."""
    heads, ahead = [], k.shape[1] - q.shape[1]
    for h in range(len(q)):
        rows = []
        for i in range(q.shape[1]):
            near = [j for j in range(ahead + i + 1) if j // block in blocks[h][i]]
            powers = anp.exp(k[h, near] @ q[h, i] / q.shape[-1] ** 0.5)
            rows.append(powers @ v[h, near] / anp.sum(powers))
        heads.append(anp.stack(rows))
    return anp.stack(heads)


@pytest.mark.parametrize(("n", "queries", "block", "top"), [(15, 15, 2, 3), (14, 5, 4, 2), (9, 9, 1, 4), (7, 7, 3, 1), (5, 5, 8, 3), (1, 1, 4, 2)])
def test_it_is_the_textbook_sum_and_its_gradients_are_autograd_s(n, queries, block, top):
    q, k, v = arrays(n, queries)
    blocks = [[chosen(q[h, i], k[h], n - queries + i, block, top) for i in range(queries)] for h in range(2)]
    out, backward = moba(None, q, k, v, block=block, top=top)
    dout = np.random.default_rng(1).normal(size=out.shape)
    np.testing.assert_allclose(out, textbook(q, k, v, blocks, block), rtol=0, atol=1e-10)
    theirs = autograd.grad(lambda a: anp.sum(dout * textbook(*a, blocks, block)))((q, k, v))
    for own, other in zip(backward(dout)[1:4], theirs, strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("n", "queries", "block", "top"), [(23, 23, 3, 3), (23, 7, 3, 20), (8, 8, 4, 2), (5, 2, 9, 3)])
def test_the_choice_is_the_one_by_hand(n, queries, block, top):
    q, k, _ = arrays(n, queries, heads=3)
    selected = moba_selection(q, k[:1], block=block, top=top)
    assert selected.shape == (3, queries, min(top, max(1, -(-n // block))))
    for h in range(3):
        for i in range(queries):
            assert {b for b in selected[h, i] if b >= 0} == chosen(q[h, i], k[0], n - queries + i, block, top)
    np.testing.assert_array_equal(selected[..., 0], np.broadcast_to(np.arange(n - queries, n) // block, (3, queries)))


def test_of_blocks_with_equal_gates_the_earliest_is_taken():
    selected = moba_selection(np.ones((1, 2)), np.tile(np.arange(2.0), (10, 1)), block=2, top=3)
    np.testing.assert_array_equal(selected, [[4, 0, 1]])


def test_with_as_many_blocks_as_there_are_it_is_causal_attention():
    q, k, v = arrays(13, 9)
    out, backward = moba(None, q, k, v, block=3, top=5)
    dense, dense_backward = causal_attention(None, q, k, v)
    np.testing.assert_allclose(out, dense, rtol=0, atol=1e-13)
    for own, theirs in zip(backward(out)[1:4], dense_backward(out)[1:4], strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


def test_a_query_finds_the_block_whose_keys_point_its_way_however_far_back():
    """One block in 32 has keys like the query; the values of the others are not read."""
    n, block = 128, 4
    k, v = np.zeros((n, 2)), np.arange(n)[:, None] / block // 1
    k[:, 1], k[20:24] = 1.0, [9.0, 0.0]
    out, _ = moba(None, np.array([[2.0, 0.0]]), k, v, block=block, top=2)
    np.testing.assert_allclose(out, [[5.0]], rtol=0, atol=1e-3)


def test_choosing_has_no_gradient():
    """The gradients are those of attention to blocks that somebody else has chosen."""
    q, k, v = arrays(15)
    selected = moba_selection(q, k, block=2, top=3)
    _, backward = moba(None, q, k, v, block=2, top=3)
    _, fixed_backward = selected_block_attention(q, k, v, selected=selected, block=2)
    dout = np.random.default_rng(2).normal(size=v.shape)
    for own, theirs in zip(backward(dout)[1:4], fixed_backward(dout)[:3], strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-13)


def test_the_checker_refuses_a_gate_that_is_learned_from():
    """A soft gate's gradient on top, which would pull mean keys towards the query: the outputs do not depend on it."""
    example = catalogue.find("moba").example(np.random.default_rng(0))
    _, *args = example.args

    def wrong(query, key, value, bias):
        out, backward = moba(None, query, key, value, bias, **example.config)

        def pulling(dout):
            _, dquery, dkey, dvalue, dbias = backward(dout)
            return dquery, dkey + 0.1 * query.mean(axis=(1, 2), keepdims=True), dvalue, dbias

        return out, pulling

    report = check_gradients(wrong, *args)
    assert [argument.error > 1e-3 for argument in report.arguments] == [False, True, False, False]


def test_no_position_ahead_has_an_influence():
    q, k, v = arrays(20)
    out, backward = moba(None, q, k, v, block=3, top=2)
    rng = np.random.default_rng(3)
    changed = [np.concatenate([a[:, :11], rng.normal(size=a[:, 11:].shape)], axis=1) for a in (q, k, v)]
    np.testing.assert_allclose(moba(None, *changed, block=3, top=2)[0][:, :11], out[:, :11], rtol=0, atol=1e-14)
    dout = np.zeros_like(out)
    dout[:, 10] = 1
    for gradient in backward(dout)[1:4]:
        assert not gradient[:, 11:].any() and gradient[:, 10].any()


@pytest.mark.parametrize("n", [1, 2, 5, 13, 19])
def test_what_a_shorter_text_chose_a_longer_one_chooses_as_well(n):
    q, k, v = arrays(20)
    whole, _ = moba(None, q, k, v, block=3, top=2)
    np.testing.assert_allclose(moba(None, q[:, :n], k[:, :n], v[:, :n], block=3, top=2)[0], whole[:, :n], rtol=0, atol=1e-13)


@pytest.mark.parametrize("sizes", [[1] * 17, [17], [5, 1, 8, 3], [12, 1, 1, 1, 2]])
@pytest.mark.parametrize("kind", ["multi-head", "grouped"])
def test_decoding_equals_the_whole(kind, sizes):
    rng, core = np.random.default_rng(9), partial(moba, block=2, top=3)
    if kind == "grouped":
        params = init_grouped_query_attention(rng, 8, num_heads=4, num_kv_heads=2, dtype=np.float64)
        whole, step, heads = grouped_query_attention, grouped_query_attention_step, {"num_heads": 4, "num_kv_heads": 2}
    else:
        params = init_multi_head_attention(rng, 8, num_heads=2, dtype=np.float64)
        whole, step, heads = multi_head_attention, multi_head_attention_step, {"num_heads": 2}
    x = rng.normal(size=(2, 17, 8))
    state, outs, start = None, [], 0
    for size in sizes:
        out, state = step(params, x[:, start : start + size], state, core=causal(core), **heads)
        outs.append(out)
        start += size
    expected, _ = whole(params, x, core=causal(core), **heads)
    np.testing.assert_allclose(np.concatenate(outs, axis=1), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(whole(params, x, core=core, **heads)[0], expected, rtol=0, atol=1e-13)  # it looks back by itself
    assert np.abs(expected - whole(params, x, **heads)[0]).max() > 1e-3


def model(**options):
    return small_model(17, d_model=16, num_layers=1, position="learned", options={"mixer": {"core": "moba", **options}})


def test_a_language_model_takes_it_by_name_and_steps_equal_the_whole_pass():
    params, config = model(**{"core.block": 2, "core.top": 2})
    assert_steps_equal_the_whole_pass(params, config)


def test_a_model_of_it_learns_to_repeat_what_stood_two_places_back():
    params, config = model(**{"core.block": 2, "core.top": 2})
    found = losses(params, config, partial(repeats, back=2, positions=8), steps=150)
    assert found[0] > np.log(WORDS) and np.mean(found[-20:]) < np.log(WORDS) / 2


def test_bias_and_mask_act_on_what_is_chosen_and_not_on_the_choice():
    q, k, v = arrays(12)
    rng = np.random.default_rng(4)
    bias, mask = 9 * rng.normal(size=(2, 12, 12)), rng.random((12, 12)) < 0.6
    out, _ = moba(None, q, k, v, bias, block=2, top=2, mask=mask)
    selected = moba_selection(q, k, block=2, top=2)
    np.testing.assert_allclose(out, selected_block_attention(q, k, v, bias, selected=selected, block=2, mask=mask)[0], rtol=0, atol=1e-13)


def test_what_was_learned_is_not_dropped_in_silence():
    params = init_multi_head_attention(np.random.default_rng(0), 4, num_heads=2, dtype=np.float64)
    with pytest.raises(ValueError, match="params: got Linear, wants None"):
        multi_head_attention(params._replace(core=params.query), np.ones((5, 4)), num_heads=2, core=moba)


@pytest.mark.parametrize(("changes", "names"), [({"top": 0}, "top: got 0"), ({"block": 0}, "block: got 0"), ({"query": np.ones((2, 7, 3))}, "query: got 7")])
def test_impossible_settings_are_refused_by_name(changes, names):
    q, k, v = arrays(6)
    settings = {"block": 2, "top": 2, "query": q} | changes
    with pytest.raises(ValueError, match=names):
        moba(None, settings.pop("query"), k, v, **settings)
    settings = {"block": 2, "top": 2, "query": q} | changes
    with pytest.raises(ValueError, match=names):
        moba_selection(settings.pop("query"), k, **settings)


@pytest.mark.parity
def test_agrees_with_pytorch_choosing_as_the_authors_code_does():
    """Gates of all blocks, the own one set to infinity and later ones to minus infinity, and torch.topk over them."""
    torch = pytest.importorskip("torch")
    n, block, top = 22, 4, 3
    q, k, v = (torch.tensor(a, requires_grad=True) for a in arrays(n))
    own = torch.arange(n)[:, None] // block
    means = torch.stack([part.mean(1) for part in k.split(block, dim=1)], dim=1)
    gates = (q @ means.transpose(1, 2)).detach()
    gates = gates.masked_fill(torch.arange(6) == own, torch.inf).masked_fill(torch.arange(6) > own, -torch.inf)
    best = torch.zeros_like(gates, dtype=torch.bool).scatter(-1, gates.topk(top, dim=-1).indices, True)
    seen = best.repeat_interleave(block, dim=-1)[..., :n] & torch.ones(n, n, dtype=torch.bool).tril()
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    dout = np.random.default_rng(5).normal(size=theirs.shape)
    theirs.backward(torch.tensor(dout))
    out, backward = moba(None, *(a.detach().numpy() for a in (q, k, v)), block=block, top=top)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-9)
    for own_gradient, other in zip(backward(dout)[1:4], (q, k, v), strict=True):
        np.testing.assert_allclose(own_gradient, other.grad.numpy(), rtol=0, atol=1e-9)
