"""Attention to selected blocks: the textbook sum over what was selected, causality, and what is refused."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.core import causal_attention, softmax_attention
from minitransformers.foundation import check_gradients
from minitransformers.sparse_attention.selected_block_attention import best_blocks, selected_block_attention
from minitransformers.sparse_attention.selected_block_attention_fast import selected_block_attention_fast

FORMS = {"plain": selected_block_attention, "fast": selected_block_attention_fast}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


def choice(rng, shape, blocks, picks):
    """So many different blocks for each query in random order, and now and then one fewer."""
    selected = np.argsort(rng.random((*shape, blocks)), axis=-1)[..., :picks]
    selected[..., 0][rng.random(shape) < 0.2] = -1
    return selected


def arrays(n, queries=None, heads=2, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(heads, length, d)) for length, d in ((queries or n, 3), (n, 3), (n, 4))]


def textbook(q, k, v, selected, block):
    """One head and one query at a time, the softmax by its definition; the queries are the last positions."""
    heads, ahead = [], k.shape[1] - q.shape[1]
    for h in range(len(q)):
        rows = []
        for i in range(q.shape[1]):
            near = [j for b in selected[h, i] if b >= 0 for j in range(b * block, min((b + 1) * block, k.shape[1])) if j <= ahead + i]
            powers = anp.exp(k[h, near] @ q[h, i] / q.shape[-1] ** 0.5)
            rows.append(powers @ v[h, near] / anp.sum(powers) if near else 0 * v[h, 0])
        heads.append(anp.stack(rows))
    return anp.stack(heads)


@every_form
@pytest.mark.parametrize(("n", "queries", "block", "picks"), [(11, 11, 2, 3), (11, 4, 3, 2), (7, 7, 1, 2), (5, 5, 8, 1)])
def test_it_is_the_textbook_sum_and_its_gradients_are_autograd_s(n, queries, block, picks, form):
    args, rng = arrays(n, queries), np.random.default_rng(1)
    selected = choice(rng, (2, queries), -(-n // block), picks)
    out, backward = form(*args, selected=selected, block=block)
    dout = rng.normal(size=out.shape)
    np.testing.assert_allclose(out, textbook(*args, selected, block), rtol=0, atol=1e-10)
    theirs = autograd.grad(lambda a: anp.sum(dout * textbook(*a, selected, block)))(tuple(args))
    for own, other in zip(backward(dout)[:3], theirs, strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-10)


@every_form
def test_with_all_blocks_selected_it_is_causal_attention(form):
    q, k, v = arrays(11, 6)
    selected = np.broadcast_to(np.array([3, 0, 5, 1, 4, 2]), (2, 6, 6))
    out, backward = form(q, k, v, selected=selected, block=2)
    dense, dense_backward = causal_attention(None, q, k, v)
    np.testing.assert_allclose(out, dense, rtol=0, atol=1e-13)
    for own, theirs in zip(backward(out), dense_backward(out)[1:], strict=True):
        assert (own is None) == (theirs is None)
        if own is not None:
            np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


@every_form
def test_with_bias_and_mask_it_is_dense_attention_under_three_masks(form):
    q, k, v = arrays(9)
    rng = np.random.default_rng(2)
    selected, bias, mask = choice(rng, (2, 9), 5, 2), rng.normal(size=(2, 9, 9)), rng.random((9, 9)) < 0.7
    j = np.arange(9)
    named = (selected[:, :, None] == (j // 2)[:, None]).any(-1) & (j <= j[:, None])
    for given in (None, mask):
        out, backward = form(q, k, v, bias, selected=selected, block=2, mask=given)
        dense, dense_backward = softmax_attention(None, q, k, v, bias, mask=named if given is None else named & given)
        np.testing.assert_allclose(out, dense, rtol=0, atol=1e-13)
        for own, theirs in zip(backward(out), dense_backward(out)[1:], strict=True):
            np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


@every_form
def test_a_query_that_was_given_nothing_or_only_what_lies_ahead_reads_zero(form):
    q, k, v = arrays(6)
    selected = np.zeros((2, 6, 1), int)
    selected[:, 2], selected[:, 3] = -1, 2                   # positions 4 and 5 lie ahead of position 3
    out, backward = form(q, k, v, selected=selected, block=2)
    assert not out[:, 2:4].any() and out[:, 4:].any(axis=-1).all()
    dquery, dkey, _, _ = backward(np.ones_like(out))
    assert not dquery[:, 2:4].any() and np.isfinite(dkey).all()
    nothing, backward = form(q, k, v, selected=np.full((2, 6, 1), -1), block=2)
    assert not nothing.any() and not any(gradient.any() for gradient in backward(np.ones_like(out))[:3])


@every_form
def test_the_order_of_the_selected_blocks_does_not_matter(form):
    q, k, v = arrays(12)
    selected = choice(np.random.default_rng(3), (2, 12), 6, 3)
    out, _ = form(q, k, v, selected=selected, block=2)
    np.testing.assert_allclose(form(q, k, v, selected=selected[..., ::-1], block=2)[0], out, rtol=0, atol=1e-14)


@every_form
@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"selected": np.full((2, 6, 1), 3)}, "selected: got 3 to 3, wants 0 to 2"),
        ({"selected": np.full((2, 6, 1), -2)}, "selected: got -2 to -2"),
        ({"selected": np.full((2, 6, 2), 1)}, "selected: got a block twice"),
        ({"selected": np.tile([1, 0, 1], (2, 6, 1))}, "selected: got a block twice"),
        ({"selected": np.full((2, 6, 1), 1.0)}, "selected: got"),
        ({"selected": np.full((2, 5, 1), 1)}, "selected: got"),
        ({"query": np.ones((2, 7, 3)), "selected": np.zeros((2, 7, 1), int)}, "query: got 7 queries"),
        ({"block": 0}, "block: got 0"),
    ],
)
def test_what_is_no_choice_of_blocks_is_refused_by_name(changes, names, form):
    q, k, v = arrays(6)
    call = {"query": q, "key": k, "value": v, "selected": np.zeros((2, 6, 1), int), "block": 2, **changes}
    with pytest.raises(ValueError, match=names):
        form(call.pop("query"), call.pop("key"), call.pop("value"), **call)


def test_none_may_be_named_several_times():
    q, k, v = arrays(6)
    out, _ = selected_block_attention(q, k, v, selected=np.tile([-1, 0, -1], (2, 6, 1)), block=2)
    np.testing.assert_array_equal(out, selected_block_attention(q, k, v, selected=np.zeros((2, 6, 1), int), block=2)[0])


def test_the_best_blocks_are_those_that_sorting_puts_first():
    rng = np.random.default_rng(4)
    scores = np.where(rng.random((3, 50, 7)) < 0.3, -np.inf, rng.integers(4, size=(3, 50, 7))).astype(float)  # with many equal ones
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :4]
    expected = np.where(np.isneginf(np.take_along_axis(scores, order, axis=-1)), -1, order)
    kept = scores.copy()
    np.testing.assert_array_equal(best_blocks(scores, 4), expected)
    np.testing.assert_array_equal(scores, kept)
    assert best_blocks(scores, 0).shape == (3, 50, 0)


def test_the_checker_refuses_a_softmax_for_each_block_by_itself():
    """The backward of parts that are divided by their own totals, where a query's blocks share one total."""
    q, k, v = arrays(6)
    selected = np.tile([0, 2], (2, 6, 1))
    selected[:, :4, 1] = -1

    def wrong(q, k, v):
        out, _ = selected_block_attention(q, k, v, selected=selected, block=2)

        def apart(dout):
            parts = [selected_block_attention(q, k, v, selected=selected[..., i : i + 1], block=2)[1](dout) for i in range(2)]
            return tuple(sum(part[i] for part in parts) for i in range(3))

        return out, apart

    report = check_gradients(wrong, q, k, v)
    assert all(argument.error > 1e-3 for argument in report.arguments)


@every_form
def test_a_large_score_in_one_block_overflows_nothing_in_another(form):
    q, k, v = (a.astype(np.float32) for a in arrays(8))
    k[:, 4:6] *= 1e4
    out, backward = form(q, k, v, selected=np.tile([0, 2], (2, 8, 1)), block=2)
    assert np.isfinite(out).all() and all(np.isfinite(gradient).all() for gradient in backward(out)[:3])
    assert {a.dtype for a in (out, *backward(out)[:3])} == {np.dtype(np.float32)}


@pytest.mark.parity
def test_agrees_with_pytorch_under_the_same_mask():
    torch = pytest.importorskip("torch")
    args, rng = arrays(11), np.random.default_rng(5)
    selected = choice(rng, (2, 11), 4, 2)
    selected[:, :, 1] = np.arange(11) // 3                   # the own block, so that every query sees something
    selected[..., 0][selected[..., 0] == selected[..., 1]] = -1
    j = np.arange(11)
    seen = (selected[:, :, None] == (j // 3)[:, None]).any(-1) & (j <= j[:, None])
    theirs = [torch.tensor(a, requires_grad=True) for a in args]
    wanted = torch.nn.functional.scaled_dot_product_attention(*theirs, attn_mask=torch.tensor(seen))
    dout = rng.normal(size=wanted.shape)
    wanted.backward(torch.tensor(dout))
    for form in FORMS.values():
        out, backward = form(*args, selected=selected, block=3)
        np.testing.assert_allclose(out, wanted.detach().numpy(), rtol=0, atol=1e-9)
        for own, other in zip(backward(dout)[:3], theirs, strict=True):
            np.testing.assert_allclose(own, other.grad.numpy(), rtol=0, atol=1e-9)


def test_gradients_with_a_bias_for_each_head_and_key():
    q, k, v = arrays(7)
    rng = np.random.default_rng(6)
    for form in FORMS.values():
        attend = partial(form, selected=choice(rng, (2, 7), 3, 2), block=3)
        assert check_gradients(attend, q, k, v, rng.normal(size=(2, 1, 7))).passed
