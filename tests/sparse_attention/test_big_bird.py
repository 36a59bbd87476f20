"""BigBird: the textbook sum over what a row sees, the dense mask, causality, decoding, and the layer of Hugging Face."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.core import softmax_attention
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
from minitransformers.foundation import check_gradients
from minitransformers.sparse_attention.big_bird import big_bird
from minitransformers.sparse_attention.big_bird_blocks import big_bird_blocks
from minitransformers.sparse_attention.block_table import BlockTable, block_mask, block_table, causal_block_table

FORMS = {"plain": partial(big_bird, None), "blocks": partial(big_bird_blocks, None)}
TABLES = {"both ways": block_table, "causal": causal_block_table}
every_form = pytest.mark.parametrize("form", FORMS)
every_table = pytest.mark.parametrize("kind", TABLES)


def arrays(n, heads=2, d_head=3, d_value=4, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(heads, n, d)) for d in (d_head, d_head, d_value)]


def seen_by(head, i, n, block, kind, **draws):
    """The positions that a position sees, by the words of the table."""
    table = TABLES[kind](-(-n // block), heads=2, **draws)
    if table.dense[i // block]:
        return list(range(n))
    places = [j for b in table.picks[head, i // block] if b >= 0 for j in range(b * block, min((b + 1) * block, n))]
    return [j for j in places if kind == "both ways" or j <= i]


def textbook(q, k, v, block, kind, **draws):
    """One head and one position at a time, the softmax by its definition."""
    heads = []
    for h in range(len(q)):
        rows = []
        for i in range(q.shape[1]):
            near = seen_by(h, i, q.shape[1], block, kind, **draws)
            powers = anp.exp(k[h, near] @ q[h, i] / q.shape[-1] ** 0.5)
            rows.append(powers @ v[h, near] / anp.sum(powers))
        heads.append(anp.stack(rows))
    return anp.stack(heads)


@every_form
@every_table
@pytest.mark.parametrize(("n", "block"), [(13, 2), (9, 1)])
def test_it_is_the_textbook_sum_and_its_gradients_are_autograd_s(n, block, kind, form):
    args, draws = arrays(n), {"num_random": 1, "seed": 5}
    assert len(seen_by(0, n - 2, n, block, kind, **draws)) < n - 2    # there is something that it does not see
    out, backward = FORMS[form](*args, block=block, table=TABLES[kind], **draws)
    dout = np.random.default_rng(1).normal(size=out.shape)
    np.testing.assert_allclose(out, textbook(*args, block, kind, **draws), rtol=0, atol=1e-10)
    theirs = autograd.grad(lambda a: anp.sum(dout * textbook(*a, block, kind, **draws)))(tuple(args))
    for own, other in zip(backward(dout)[1:4], theirs, strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-10)


@every_table
@pytest.mark.parametrize("axes", [(), (2,), (3, 2)])
def test_it_is_dense_attention_under_the_mask_of_the_table_and_that_of_the_call(axes, kind):
    rng = np.random.default_rng(2)
    q, k, v = (rng.normal(size=(*axes, n, 3)) for n in (9, 13, 13))
    bias, mask = rng.normal(size=(9, 13)), rng.random((9, 13)) < 0.7
    seen = block_mask(TABLES[kind](7, heads=2 if axes else 1, num_random=1, seed=4), block=2, queries=9, keys=13)
    for given in (None, mask):
        out, backward = big_bird(None, q, k, v, bias, block=2, num_random=1, seed=4, table=TABLES[kind], mask=given)
        both = (seen if axes else seen[0]) & (True if given is None else given)
        dense, dense_backward = softmax_attention(None, q, k, v, bias, mask=both)
        np.testing.assert_allclose(out, dense, rtol=0, atol=1e-14)
        for own, theirs in zip(backward(out)[1:], dense_backward(out)[1:], strict=True):
            np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-13)


@every_form
@every_table
def test_with_few_blocks_it_is_dense_attention(kind, form):
    """Up to 5 + r blocks, or 3 + r looking back, no row is left with more than it draws."""
    for blocks in (1, 2, 5) if kind == "causal" else (1, 3, 7):
        args = arrays(4 * blocks - 1)
        out, backward = FORMS[form](*args, block=4, num_random=3, table=TABLES[kind])
        dense, dense_backward = softmax_attention(None, *args, mask=np.tri(args[0].shape[1], dtype=bool) if kind == "causal" else None)
        np.testing.assert_allclose(out, dense, rtol=0, atol=1e-13)
        for own, theirs in zip(backward(out)[1:4], dense_backward(out)[1:4], strict=True):
            np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


@every_form
def test_a_middle_row_sees_exactly_five_blocks_and_those_drawn(form):
    """Values that name their position come back as equal shares: the queries are zero."""
    n, block, r = 60, 3, 2
    q, k = np.zeros((2, n, 2)), np.ones((n, 2))
    shares, _ = FORMS[form](q, k, np.eye(n), block=block, num_random=r, table=block_table)
    for h in range(2):
        for i in range(3 * block, n - 3 * block):
            near = np.flatnonzero(shares[h, i])
            assert len(near) == (5 + r) * block and sorted(near) == sorted(seen_by(h, i, n, block, "both ways", num_random=r))
            np.testing.assert_allclose(shares[h, i, near], 1 / len(near), rtol=1e-14)


@every_form
def test_looking_back_no_position_ahead_has_an_influence(form):
    q, k, v = arrays(30)
    out, backward = FORMS[form](q, k, v, block=2, num_random=1)
    rng = np.random.default_rng(8)
    changed = [np.concatenate([a[:, :17], rng.normal(size=a[:, 17:].shape)], axis=1) for a in (q, k, v)]
    np.testing.assert_array_equal(FORMS[form](*changed, block=2, num_random=1)[0][:, :17], out[:, :17])
    dout = np.zeros_like(out)
    dout[:, 16] = 1
    for gradient in backward(dout)[1:4]:
        assert not gradient[:, 17:].any() and gradient[:, 16].any()


@every_form
def test_what_a_shorter_text_saw_a_longer_one_sees_as_well(form):
    """The first rows of a longer text's table are those of the shorter one's."""
    q, k, v = arrays(61)
    whole, _ = FORMS[form](q, k, v, block=2, num_random=2)
    for n in (1, 7, 20, 60):
        np.testing.assert_allclose(FORMS[form](q[:, :n], k[:, :n], v[:, :n], block=2, num_random=2)[0], whole[:, :n], rtol=0, atol=1e-13)


@every_form
@pytest.mark.parametrize("sizes", [[1] * 23, [23], [5, 1, 9, 8], [16, 1, 1, 1, 4]])
@pytest.mark.parametrize("kind", ["multi-head", "grouped"])
def test_decoding_equals_the_whole(kind, sizes, form):
    rng, core = np.random.default_rng(9), partial(big_bird if form == "plain" else big_bird_blocks, block=2, num_random=1, seed=2)
    if kind == "grouped":
        params = init_grouped_query_attention(rng, 8, num_heads=4, num_kv_heads=2, dtype=np.float64)
        whole, step, heads = grouped_query_attention, grouped_query_attention_step, {"num_heads": 4, "num_kv_heads": 2}
    else:
        params = init_multi_head_attention(rng, 8, num_heads=2, dtype=np.float64)
        whole, step, heads = multi_head_attention, multi_head_attention_step, {"num_heads": 2}
    x = rng.normal(size=(2, 23, 8))
    state, outs, start = None, [], 0
    for size in sizes:
        out, state = step(params, x[:, start : start + size], state, core=core, **heads)
        outs.append(out)
        start += size
    expected, _ = whole(params, x, core=core, **heads)
    np.testing.assert_allclose(np.concatenate(outs, axis=1), expected, rtol=0, atol=1e-12)
    assert np.abs(expected - whole(params, x, **heads)[0]).max() > 1e-3  # it is not dense attention


@pytest.mark.parametrize("form", [big_bird, big_bird_blocks])
def test_gradients_are_right_inside_multi_head_attention(form):
    rng = np.random.default_rng(10)
    params = init_multi_head_attention(rng, 4, num_heads=2, dtype=np.float64)
    core = partial(form, block=1, num_random=1)
    report = check_gradients(multi_head_attention, params, rng.normal(size=(7, 4)), rng.normal(size=(2, 7, 7)), num_heads=2, core=core)
    assert report.passed, str(report)


@every_form
def test_a_table_of_one_s_own_can_be_put_in(form):
    """A window alone: each block and the one before."""

    def window(blocks, *, heads, num_random, seed):
        own = np.arange(blocks)
        return BlockTable(np.broadcast_to(np.stack([own - 1, own], axis=-1), (heads, blocks, 2)), own < 0, np.array(True))

    q, k, v = arrays(11)
    out, _ = FORMS[form](q, k, v, block=2, table=window)
    i, j = np.arange(11)[:, None], np.arange(11)
    expected, _ = softmax_attention(None, q, k, v, mask=(j <= i) & (j // 2 >= i // 2 - 1))
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-13)


@every_form
def test_what_was_learned_is_not_dropped_in_silence(form):
    function = big_bird if form == "plain" else big_bird_blocks
    params = init_multi_head_attention(np.random.default_rng(0), 4, num_heads=2, dtype=np.float64)
    with pytest.raises(ValueError, match="params: got Linear, wants None"):
        multi_head_attention(params._replace(core=params.query), np.ones((5, 4)), num_heads=2, core=function)


def test_the_checker_refuses_a_key_that_keeps_only_the_last_of_its_gradients():
    """A gather's adjoint is a sum: a global block is read by every row."""
    q, k, v = arrays(8, heads=1, d_head=2, d_value=2)

    def wrong(q, k, v):
        out, backward = FORMS["blocks"](q, k, v, block=1, num_random=0)

        def forgetful(dout):
            _, dq, dk, dv, _ = backward(dout)
            for i in range(8):                               # the rows, one after the other, and the last one that reads a key wins
                only = np.zeros_like(dout)
                only[:, i] = dout[:, i]
                _, _, dk_i, dv_i, _ = backward(only)
                for whole, part in ((dk, dk_i), (dv, dv_i)):
                    whole[np.abs(part) > 0] = part[np.abs(part) > 0]
            return dq, dk, dv

        return out, forgetful

    report = check_gradients(wrong, q, k, v)
    assert [a.error > 1e-3 for a in report.arguments] == [False, True, True]


@pytest.mark.parity
@pytest.mark.parametrize("lengths", [(36, 36), (36, 20)])
def test_agrees_with_hugging_face_on_our_table(lengths):
    """Their layer draws from a generator of its own, and out of training it reads block 0 once more for each that should be drawn:
    our table is put in by hand. Where a text ends early, its padding is hidden, and rows of padding are not compared."""
    torch, modeling = pytest.importorskip("torch"), pytest.importorskip("transformers.models.big_bird.modeling_big_bird")
    n, block, heads, d, r = 36, 3, 2, 4, 2
    table, rng = block_table(n // block, heads=heads, num_random=r, seed=4), np.random.default_rng(11)
    named = [[{int(j) for j in row if j >= 0} for row in head] for head in table.picks]
    draws = [[sorted(head[i] - {0, i - 1, i, i + 1, 11}) for i in range(1, 11)] for head in named]
    config = modeling.BigBirdConfig(hidden_size=heads * d, num_attention_heads=heads, block_size=block, num_random_blocks=r)
    layer = modeling.BigBirdBlockSparseAttention(config).double().train()
    layer._bigbird_block_rand_mask_with_head = lambda **_: np.array(draws)
    real = np.arange(n) < np.array(lengths)[:, None]
    blocked, band, from_mask, to_mask = modeling.BigBirdModel.create_masks_for_block_sparse_attn(torch.tensor(real).double(), block)
    q, k, v = (torch.tensor(rng.normal(size=(2, heads, n, d)), requires_grad=True) for _ in range(3))
    theirs, _ = layer.bigbird_block_sparse_attention(
        q, k, v, band, from_mask, to_mask, blocked, blocked, heads, r, d, block, block, 2, n, n, seed=0, plan_from_length=None,
        plan_num_rand_blocks=None,
    )  # fmt: skip
    dout = rng.normal(size=(2, heads, n, d)) * real[:, None, :, None]
    theirs.transpose(1, 2).backward(torch.tensor(dout))
    for form in FORMS.values():
        arrays = (a.detach().numpy() for a in (q, k, v))
        out, backward = form(*arrays, block=block, num_random=r, seed=4, table=block_table, mask=real[:, None, None])
        wanted = theirs.transpose(1, 2).detach().numpy() * real[:, None, :, None]
        np.testing.assert_allclose(out * real[:, None, :, None], wanted, rtol=0, atol=1e-9)
        for own, other in zip(backward(dout)[1:4], (q, k, v), strict=True):
            np.testing.assert_allclose(own, other.grad.numpy(), rtol=0, atol=1e-9)
