"""Attention and value relations: loops written out, what the loss cannot see, padding, two models of different width, wrong backwards."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.multi_head_attention import init_multi_head_attention
from minitransformers.compression.attention_map_loss import AttentionHeads, projected_heads
from minitransformers.compression.relation_loss import relation_loss
from minitransformers.foundation import check_gradients, trees, trusted

RNG = np.random.default_rng(0)
MASK = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 1, 0]], bool)
STUDENT = AttentionHeads(*(RNG.normal(size=(2, 3, 5, d)) for d in (4, 4, 6)))
TEACHER = AttentionHeads(*(RNG.normal(size=(2, 3, 5, d)) for d in (7, 7, 2)))
ONE = np.float64(1)
checked = trusted(check_gradients)                           # the shapes are known to fit


def textbook(query, key, value, teacher, mask=None, causal=False):
    """For each text, head and query that counts: the weights of the keys that count, one at a time, of both models and both kinds."""
    batch, heads, positions, _ = teacher.query.shape
    mask = np.ones((batch, positions), bool) if mask is None else mask

    def weights(left, right, keys):
        scores = [anp.sum(left * right[j]) / left.shape[0] ** 0.5 for j in keys]
        exps = [anp.exp(s) for s in scores]
        return [e / sum(exps) for e in exps]

    loss, count = 0.0, 0
    for b in range(batch):
        for h in range(heads):
            for i in range(positions):
                if not mask[b, i]:
                    continue
                count += 1
                keys = [j for j in range(positions) if mask[b, j] and (j <= i or not causal)]
                for own, their in (((query, key), teacher[:2]), ((value, value), (teacher.value, teacher.value))):
                    q = weights(own[0][b, h, i], own[1][b, h], keys)
                    p = weights(their[0][b, h, i], their[1][b, h], keys)
                    loss = loss + sum(p[n] * (anp.log(p[n]) - anp.log(q[n])) for n in range(len(keys)))
    return loss / count


@pytest.mark.parametrize("causal", [False, True], ids=["both sides", "causal"])
@pytest.mark.parametrize("mask", [MASK, None], ids=["padded", "whole"])
def test_equals_the_textbook_formula_and_its_gradients(mask, causal):
    out, backward = relation_loss(*STUDENT, teacher=TEACHER, mask=mask, causal=causal)
    np.testing.assert_allclose(out, textbook(*STUDENT, TEACHER, mask, causal), rtol=0, atol=1e-12)
    expected = autograd.grad(lambda *parts: 0.7 * textbook(*parts, TEACHER, mask, causal), (0, 1, 2))(*STUDENT)
    for own, their in zip(backward(np.float64(0.7)), expected, strict=True):
        np.testing.assert_allclose(own, their, rtol=0, atol=1e-12)


def test_it_is_zero_where_the_student_is_the_teacher_and_positive_elsewhere():
    out, backward = relation_loss(*TEACHER, teacher=TEACHER, mask=MASK)
    assert out == 0 and not any(part.any() for part in backward(ONE))
    assert relation_loss(*STUDENT, teacher=TEACHER, mask=MASK)[0] > 0.1


def test_a_head_that_is_turned_in_its_own_space_has_the_same_relations():
    """Nothing asks that features agree: only products count. So width and axes are free."""
    turn, _ = np.linalg.qr(RNG.normal(size=(7, 7)))
    flip, _ = np.linalg.qr(RNG.normal(size=(2, 2)))
    turned = TEACHER.query @ turn, TEACHER.key @ turn, TEACHER.value @ flip
    assert abs(relation_loss(*turned, teacher=TEACHER)[0]) < 1e-14


def test_a_wider_head_with_features_of_zero_needs_only_the_other_scale():
    """Width enters by the square root alone."""
    wide = [np.concatenate([part, np.zeros_like(part)], axis=-1) * 2**0.25 for part in TEACHER]
    assert abs(relation_loss(*wide, teacher=TEACHER)[0]) < 1e-14


def test_heads_in_another_order_are_not_the_same():
    assert relation_loss(*(part[:, ::-1] for part in TEACHER), teacher=TEACHER)[0] > 0.1


def test_the_value_relation_is_not_symmetric_but_its_scores_are():
    """Rows are normalised on their own: what a gives to b is not what b gives to a. So dZ is not symmetric either."""
    _, backward = relation_loss(*STUDENT, teacher=TEACHER)
    value = STUDENT.value
    rows = [np.exp(v @ v.swapaxes(-1, -2) / v.shape[-1] ** 0.5) for v in (value, TEACHER.value)]
    q, p = (r / r.sum(-1, keepdims=True) for r in rows)
    dz = (q - p) / 30 / 6**0.5
    assert np.abs(dz - dz.swapaxes(-1, -2)).max() > 0.5 * np.abs(dz).max()
    np.testing.assert_allclose(backward(ONE)[2], (dz + dz.swapaxes(-1, -2)) @ value, rtol=0, atol=1e-15)


@pytest.mark.parametrize("causal", [False, True], ids=["both sides", "causal"])
@pytest.mark.parametrize("anything", [np.nan, np.inf, 7.0])
def test_padding_may_hold_anything_is_not_read_and_does_not_count(anything, causal):
    """Each text by itself, cut to what is no padding, weighted by its positions, gives the loss of the batch."""
    place = MASK[:, None, :, None]
    student, teacher = ([np.where(place, part, anything) for part in side] for side in (STUDENT, TEACHER))
    out, backward = relation_loss(*student, teacher=AttentionHeads(*teacher), mask=MASK, causal=causal)
    total, gradients = 0.0, backward(ONE)
    for b, counts in enumerate(MASK):
        alone, alone_backward = relation_loss(
            *(part[b][:, counts] for part in STUDENT), teacher=AttentionHeads(*(part[b][:, counts] for part in TEACHER)), causal=causal
        )
        share = counts.sum() / MASK.sum()
        total += share * alone
        for whole, own in zip(gradients, alone_backward(share), strict=True):
            np.testing.assert_allclose(whole[b][:, counts], own, rtol=0, atol=1e-15)
            assert not whole[b][:, ~counts].any()
    np.testing.assert_allclose(out, total, rtol=1e-14)


def test_in_a_causal_model_the_first_position_has_nothing_to_learn():
    """It sees itself alone: weight one, whatever the model."""
    first = [part[:, :, :1] for part in STUDENT]
    assert relation_loss(*first, teacher=AttentionHeads(*(part[:, :, :1] for part in TEACHER)), causal=True)[0] == 0


def test_scores_so_far_apart_that_weights_vanish_give_finite_numbers():
    for dtype in (np.float32, np.float64):
        student, teacher = ([(100 * part).astype(dtype) for part in side] for side in (STUDENT, TEACHER))
        out, backward = relation_loss(*student, teacher=AttentionHeads(*teacher), mask=MASK)
        assert out.dtype == dtype and np.isfinite(out) and out > 0
        assert all(part.dtype == dtype and np.isfinite(part).all() for part in backward(out))


def layer(seed, d_model):
    params = init_multi_head_attention(np.random.default_rng(seed), d_model, num_heads=2, dtype=np.float64)
    return trees.map(lambda leaf: leaf + 0.3 * np.random.default_rng(seed + 1).normal(size=leaf.shape), params)


def taught_layer(params, x, *, teacher):
    heads, heads_backward = projected_heads(params, x, num_heads=2)
    loss, loss_backward = relation_loss(*heads, teacher=teacher)
    return loss, lambda dloss: heads_backward(loss_backward(dloss))


def test_a_narrow_layer_learns_from_a_wide_one():
    """Two attention layers, 8 and 4 features wide: gradient descent through the projections."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(8, 5, 8))
    teacher, _ = projected_heads(layer(2, 8), x, num_heads=2)
    own, losses = layer(3, 4), []
    assert checked(taught_layer, own, x[:1, :3, :4], teacher=AttentionHeads(*(p[:1, :, :3] for p in teacher)), second_opinion=False).passed
    for _ in range(40):
        loss, backward = taught_layer(own, x[..., :4], teacher=teacher)
        own = trees.map(lambda leaf, d: leaf - 0.3 * d, own, backward(ONE)[0])
        losses.append(float(loss))
    assert np.all(np.diff(losses) < 0) and losses[-1] < 0.7 * losses[0]


ONE_HEAD, THEIR_HEAD = (AttentionHeads(*(part[:, :1, :4] for part in side)) for side in (STUDENT, TEACHER))


def without_the_transpose(query, key, value):
    """The values stand on both sides of their product; the gradient of one side alone."""
    out, backward = relation_loss(query, key, value, teacher=THEIR_HEAD)
    scores = [v @ v.swapaxes(-1, -2) / v.shape[-1] ** 0.5 for v in (value, THEIR_HEAD.value)]
    q, p = (np.exp(s) / np.exp(s).sum(-1, keepdims=True) for s in scores)
    return out, lambda dout: (*backward(dout)[:2], 2 * dout * (q - p) @ value / 8 / 6**0.5)


def with_the_teacher_s_width(query, key, value):
    out, backward = relation_loss(query, key, value, teacher=THEIR_HEAD)
    return out, lambda dout: tuple(part * (4 / 7) ** 0.5 for part in backward(dout))


def with_padding_in_the_count(query, key, value):
    out, backward = relation_loss(query, key, value, teacher=THEIR_HEAD, mask=MASK[:, :4])
    return out, lambda dout: backward(dout * 7 / 8)


@pytest.mark.parametrize("wrong", [without_the_transpose, with_the_teacher_s_width, with_padding_in_the_count])
def test_the_checker_refuses(wrong):
    assert not checked(wrong, *ONE_HEAD, second_opinion=False).passed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": AttentionHeads(*(part[:, :2] for part in TEACHER))}, r"teacher\.query: got shape .* with heads = 3 as in query"),
        ({"teacher": AttentionHeads(*(part[..., :4, :] for part in TEACHER))}, r"teacher\.query: got shape .* with positions = 5"),
        ({"teacher": AttentionHeads(*(part[:1] for part in TEACHER))}, r"teacher\.query: got shape .* with batch"),
        ({"teacher": TEACHER._replace(key=TEACHER.key[..., :5])}, r"teacher\.key"),
        ({"teacher": tuple(TEACHER)}, "teacher: got tuple, wants AttentionHeads"),
        ({"key": STUDENT.key[..., :3]}, "key: got shape"),
        ({"mask": np.zeros((2, 5), bool)}, "mask: got False everywhere"),
        ({"mask": np.ones((2, 4), bool)}, "mask: got shape"),
        ({"value": np.where(np.arange(6) == 2, np.nan, STUDENT.value)}, "value: got NaN or infinity where a position counts"),
        ({"teacher": TEACHER._replace(key=np.where(np.arange(7) == 2, np.inf, TEACHER.key))}, r"teacher\.key: got NaN or infinity"),
    ],
    ids=range(10),
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    call = {"query": STUDENT.query, "key": STUDENT.key, "value": STUDENT.value, "teacher": TEACHER, **changes}
    with pytest.raises(ValueError, match=message):
        relation_loss(call.pop("query"), call.pop("key"), call.pop("value"), **call)


@pytest.mark.parity
def test_parity_with_torch():
    """kl_div of PyTorch on the attention weights and on those of the values."""
    torch = pytest.importorskip("torch")
    parts = [torch.tensor(part, requires_grad=True) for part in STUDENT]
    theirs = [torch.tensor(part) for part in TEACHER]

    def log_relation(left, right):
        return torch.log_softmax(left @ right.transpose(-1, -2) / left.shape[-1] ** 0.5, dim=-1)

    loss = sum(
        torch.nn.functional.kl_div(log_relation(*own), log_relation(*their), reduction="sum", log_target=True) / 30
        for own, their in (((parts[0], parts[1]), theirs[:2]), ((parts[2], parts[2]), (theirs[2], theirs[2])))
    )
    (0.7 * loss).backward()
    out, backward = relation_loss(*STUDENT, teacher=TEACHER)
    np.testing.assert_allclose(out, loss.item(), rtol=1e-12)
    for own, their in zip(backward(np.float64(0.7)), parts, strict=True):
        np.testing.assert_allclose(own, their.grad.numpy(), rtol=0, atol=1e-12)
