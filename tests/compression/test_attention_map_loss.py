"""Scores before the softmax: the loop written out, a real attention layer that learns from another's, wrong backwards."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.core import causal_attention, softmax_attention
from minitransformers.attention.heads import merge_heads
from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.attention.prepare import on_both
from minitransformers.basics.linear import linear
from minitransformers.compression.attention_map_loss import attention_map_loss, attention_scores, projected_heads
from minitransformers.foundation import check_gradients, trees
from minitransformers.norms.qk_norm import QkNorm, qk_norm
from minitransformers.positional.rope import rope

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(2, 2, 3, 4, 5))
PADDED = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], bool)[:, None, None]  # keys of two texts
MASKS = {"whole": None, "padded": PADDED, "causal": np.tri(4, 5, 1, dtype=bool), "pairs": RNG.random((2, 3, 4, 5)) < 0.6}
ONE = np.float64(1)


def textbook(scores, teacher, mask):
    mask = np.broadcast_to(True if mask is None else mask, teacher.shape)
    loss, count = 0.0, 0
    for place in np.ndindex(teacher.shape):
        if mask[place]:
            loss, count = loss + (scores[place] - teacher[place]) ** 2, count + 1
    return loss / count


@pytest.mark.parametrize("mask", MASKS)
def test_equals_the_textbook_formula_and_its_gradient(mask):
    out, backward = attention_map_loss(STUDENT, teacher=TEACHER, mask=MASKS[mask])
    oracle = partial(textbook, teacher=TEACHER, mask=MASKS[mask])
    np.testing.assert_allclose(out, oracle(STUDENT), rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(np.float64(0.7)), 0.7 * autograd.grad(oracle)(STUDENT), rtol=0, atol=1e-12)


@pytest.mark.parametrize("anything", [-np.inf, np.nan, 7.0])
def test_what_is_masked_may_hold_anything_and_does_not_dilute_the_mean(anything):
    student, teacher = (np.where(PADDED, scores, anything) for scores in (STUDENT, TEACHER))
    out, backward = attention_map_loss(student, teacher=teacher, mask=PADDED)
    apart = (STUDENT - TEACHER)[np.broadcast_to(PADDED, STUDENT.shape)]
    np.testing.assert_allclose(out, (apart**2).mean(), rtol=1e-14)
    assert not backward(ONE)[~np.broadcast_to(PADDED, STUDENT.shape)].any()
    assert attention_map_loss(STUDENT, teacher=TEACHER, mask=PADDED)[0] == out


def test_padding_that_is_set_to_zero_and_counted_makes_the_loss_of_padded_batches_smaller():
    """What the published code does: the same pairs, divided by all of them."""
    zeroed = [np.where(PADDED, scores, 0) for scores in (STUDENT, TEACHER)]
    theirs = attention_map_loss(zeroed[0], teacher=zeroed[1])[0]
    np.testing.assert_allclose(theirs, 7 / 10 * attention_map_loss(STUDENT, teacher=TEACHER, mask=PADDED)[0], rtol=1e-14)


def test_a_constant_on_a_row_changes_no_weight_and_is_charged_all_the_same():
    """The loss asks for more than the softmax sees."""
    shifted = TEACHER + np.arange(1.0, 5.0)[:, None]
    weights = [np.exp(s) / np.exp(s).sum(-1, keepdims=True) for s in (shifted, TEACHER)]
    np.testing.assert_allclose(*weights, rtol=1e-13)
    np.testing.assert_allclose(attention_map_loss(shifted, teacher=TEACHER)[0], (1 + 4 + 9 + 16) / 4, rtol=1e-13)


# In a layer --------------------------------------------------------------------------------------------------------------


def layer(seed, d_model, **parts):
    params = init_multi_head_attention(np.random.default_rng(seed), d_model, num_heads=2, dtype=np.float64)
    return trees.map(lambda leaf: leaf + np.random.default_rng(seed + 1).normal(size=leaf.shape), params)._replace(**parts)


PREPARES = {
    "plain": ({}, {}),
    "rope": ({}, {"prepare": on_both(rope)}),
    "qk_norm": ({"prepare": QkNorm(RNG.uniform(0.5, 1.5, size=4), RNG.uniform(0.5, 1.5, size=4))}, {"prepare": qk_norm}),
}


@pytest.mark.parametrize("prepare", PREPARES)
@pytest.mark.parametrize("core", [softmax_attention, causal_attention])
def test_what_is_projected_is_what_the_layer_hands_to_its_core(prepare, core):
    learned, config = PREPARES[prepare]
    params, x = layer(1, 8, **learned), RNG.normal(size=(2, 3, 8))
    heads, _ = projected_heads(params, x, num_heads=2, **config)
    mixed, _ = core(None, *heads)
    out, _ = multi_head_attention(params, x, num_heads=2, core=core, **config)
    np.testing.assert_array_equal(linear(params.output, merge_heads(mixed))[0], out)


def test_the_softmax_of_the_scores_times_the_values_is_the_layer_s_output():
    params, x = layer(2, 8), RNG.normal(size=(2, 3, 8))
    (query, key, value), _ = projected_heads(params, x, num_heads=2)
    scores, _ = attention_scores(query, key)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    out, _ = multi_head_attention(params, x, num_heads=2, core=softmax_attention)
    np.testing.assert_allclose(linear(params.output, merge_heads(weights @ value))[0], out, rtol=0, atol=1e-12)


def one_by_one(weights, x, num_heads=2):
    """Queries, keys and scores of a layer, a head and a pair at a time, for autograd."""
    (w_q, b_q), (w_k, b_k) = weights
    query, key = anp.dot(x, w_q) + b_q, anp.dot(x, w_k) + b_k
    d = w_q.shape[1] // num_heads
    heads = [[[anp.sum(q[h * d : h * d + d] * k[h * d : h * d + d]) / d**0.5 for k in key] for q in query] for h in range(num_heads)]
    return anp.array(heads)


def test_gradients_reach_the_projections_and_the_input_as_autograd_says():
    params, x, teacher = layer(3, 4), RNG.normal(size=(3, 4)), RNG.normal(size=(2, 3, 3))
    mask = np.tri(3, dtype=bool)
    heads, heads_backward = projected_heads(params, x, num_heads=2)
    scores, scores_backward = attention_scores(heads.query, heads.key)
    np.testing.assert_allclose(scores, one_by_one(params[:2], x), rtol=0, atol=1e-12)
    _, loss_backward = attention_map_loss(scores, teacher=teacher, mask=mask)
    dquery, dkey = scores_backward(loss_backward(ONE))
    dparams, dx = heads_backward(type(heads)(dquery, dkey, None))
    expected = autograd.grad(lambda w, x: textbook(one_by_one(w, x), teacher, mask), (0, 1))(tuple(map(tuple, params[:2])), x)
    for own, their in zip(dparams[:2], expected[0], strict=True):
        np.testing.assert_allclose(own.weight, their[0], rtol=0, atol=1e-12)
        np.testing.assert_allclose(own.bias, their[1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(dx, expected[1], rtol=0, atol=1e-12)
    assert not any(leaf.any() for _, leaf in trees.leaves(dparams[2:]))


def taught_layer(params, x, *, teacher, num_heads=2):
    """A layer that hands on its output, and beside it how far its scores are from the teacher's."""
    out, out_backward = multi_head_attention(params, x, num_heads=num_heads)
    heads, heads_backward = projected_heads(params, x, num_heads=num_heads)
    scores, scores_backward = attention_scores(heads.query, heads.key)
    loss, loss_backward = attention_map_loss(scores, teacher=teacher, mask=np.tri(x.shape[-2], dtype=bool))

    def backward(dboth):
        dout, dloss = dboth
        dparams, dx, _ = out_backward(dout)
        dquery, dkey = scores_backward(loss_backward(dloss))
        more, dx_more = heads_backward((dquery, dkey, np.zeros_like(heads.value)))
        return trees.map(np.add, dparams, more), dx + dx_more  # parameters and input are used twice

    return (out, loss), backward


def test_a_layer_may_have_both_its_output_and_its_scores_at_work():
    params, x = layer(4, 4), RNG.normal(size=(2, 3, 4))
    assert check_gradients(taught_layer, params, x, teacher=RNG.normal(size=(2, 2, 3, 3)), second_opinion=False).passed


def test_a_narrow_layer_learns_where_a_wide_one_looks():
    """Gradient descent on the scores alone; the student is half as wide, and has as many heads."""
    rng = np.random.default_rng(5)
    wide, narrow = layer(6, 8), layer(7, 4)
    x = rng.normal(size=(16, 5, 8))
    seen = np.tri(5, dtype=bool)
    heads, _ = projected_heads(wide, x, num_heads=2)
    teacher, _ = attention_scores(heads.query, heads.key)
    own, losses = narrow, []
    for _ in range(60):
        (_, loss), backward = taught_layer(own, x[..., :4], teacher=teacher)
        dparams, _ = backward((np.zeros((16, 5, 4)), ONE))
        own = trees.map(lambda leaf, d: leaf - 0.02 * d, own, dparams)
        losses.append(float(loss))
    assert np.all(np.diff(losses) < 0) and losses[-1] < 0.5 * losses[0]
    heads, _ = projected_heads(own, x[..., :4], num_heads=2)
    assert attention_map_loss(attention_scores(heads.query, heads.key)[0], teacher=teacher, mask=seen)[0] < losses[-1]


# What is wrong -----------------------------------------------------------------------------------------------------------


def divided_by_all_pairs(scores):
    out, backward = attention_map_loss(scores, teacher=TEACHER, mask=PADDED)
    return out, lambda dout: backward(dout * 7 / 10)


def through_the_masked(scores):
    out, _ = attention_map_loss(scores, teacher=TEACHER, mask=PADDED)
    return out, lambda dout: dout * 2 * (scores - TEACHER) / (7 / 10 * scores.size)


@pytest.mark.parametrize("wrong", [divided_by_all_pairs, through_the_masked])
def test_the_checker_refuses_a_wrong_count_and_a_mask_forgotten(wrong):
    assert not check_gradients(wrong, STUDENT).passed


def test_the_checker_refuses_keys_and_queries_exchanged():
    def wrong(query, key):
        scores, backward = attention_scores(query, key)
        return scores, lambda dscores: backward(dscores.swapaxes(-1, -2))

    assert not check_gradients(wrong, RNG.normal(size=(2, 4, 3)), RNG.normal(size=(2, 4, 3))).passed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": RNG.normal(size=(2, 4, 4, 5))}, "teacher: got shape .* with heads = 3 as in scores"),
        ({"teacher": RNG.normal(size=(2, 3, 4, 6))}, "teacher: got shape .* with keys = 5"),
        ({"mask": np.zeros((1, 1), bool)}, "mask: got False everywhere"),
        ({"mask": np.ones((3, 1, 1, 5), bool)}, "mask: got shape"),
        ({"scores": np.where(PADDED, STUDENT, -np.inf)}, "scores: got NaN or infinity where a position counts"),
        ({"teacher": np.where(PADDED, TEACHER, np.nan)}, "teacher: got NaN or infinity"),
    ],
    ids=range(6),
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    call = {"scores": STUDENT, "teacher": TEACHER, **changes}
    with pytest.raises(ValueError, match=message):
        attention_map_loss(call.pop("scores"), **call)


def test_heads_that_do_not_share_a_projection_are_refused():
    with pytest.raises(ValueError, match="num_heads: got 3, wants a number of heads that divides 8"):
        projected_heads(layer(8, 8), RNG.normal(size=(3, 8)), num_heads=3)


@pytest.mark.parity
def test_parity_with_torch():
    torch = pytest.importorskip("torch")
    theirs = torch.tensor(STUDENT, requires_grad=True)
    loss = torch.nn.MSELoss()(theirs, torch.tensor(TEACHER))
    (0.7 * loss).backward()
    out, backward = attention_map_loss(STUDENT, teacher=TEACHER)
    np.testing.assert_allclose(out, loss.item(), rtol=1e-12)
    np.testing.assert_allclose(backward(np.float64(0.7)), theirs.grad.numpy(), rtol=0, atol=1e-12)
