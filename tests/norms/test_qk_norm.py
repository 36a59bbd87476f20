"""QK-norm: the textbook loops, scores that are bounded, its place before RoPE, and both layouts of the heads."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.foundation import check_gradients
from minitransformers.norms.qk_norm import QkNorm, init_qk_norm, qk_norm
from minitransformers.positional.rope import rope


def textbook_rows(gain, x, eps):
    rows = []
    for row in anp.reshape(x, (-1, x.shape[-1])):
        mean_square = sum(row[i] ** 2 for i in range(len(gain))) / len(gain)
        rows.append(anp.stack([gain[i] * row[i] / anp.sqrt(mean_square + eps) for i in range(len(gain))]))
    return anp.reshape(anp.stack(rows), x.shape)


def random_call(rng, d_query=4, d_key=4):
    params = QkNorm(rng.normal(size=d_query), rng.normal(size=d_key))
    query, key = rng.normal(size=(2, 3, 5, d_query)) * 3, rng.normal(size=(2, 1, 6, d_key)) * 3
    return params, query, key


def plain(d_head):
    return init_qk_norm(np.random.default_rng(0), d_head, dtype=np.float64)


def scores(query, key):
    return query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])


@pytest.mark.parametrize("d_key", [4, 2])
def test_equals_the_textbook_loops_and_their_gradients(d_key):
    rng = np.random.default_rng(0)
    params, query, key = random_call(rng, d_key=d_key)
    dout_query, dout_key = rng.normal(size=query.shape), rng.normal(size=key.shape)
    (out_query, out_key), backward = qk_norm(params, query, key, eps=0.1)
    np.testing.assert_allclose(out_query, textbook_rows(params.query_gain, query, 0.1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(out_key, textbook_rows(params.key_gain, key, 0.1), rtol=0, atol=1e-12)

    def loss(query_gain, key_gain, query, key):
        return anp.sum(dout_query * textbook_rows(query_gain, query, 0.1)) + anp.sum(dout_key * textbook_rows(key_gain, key, 0.1))

    expected = autograd.grad(loss, (0, 1, 2, 3))(*params, query, key)
    dparams, dquery, dkey = backward((dout_query, dout_key))
    for own, theirs in zip((*dparams, dquery, dkey), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-11)


def test_no_score_exceeds_sqrt_d_and_a_key_along_the_query_reaches_it():
    rng = np.random.default_rng(1)
    _, query, key = random_call(rng)
    (out_query, out_key), _ = qk_norm(plain(4), 1e3 * query, 1e3 * key, eps=0.0)
    assert np.abs(scores(out_query, out_key)).max() <= 2 + 1e-12 < np.abs(scores(1e3 * query, 1e3 * key)).max()
    (out_query, out_key), _ = qk_norm(plain(4), query, 5 * query, eps=0.0)
    np.testing.assert_allclose(np.diagonal(scores(out_query, out_key), axis1=-2, axis2=-1), 2, rtol=1e-14)


def test_with_gains_the_bound_grows_by_the_largest_of_each():
    params, query, key = random_call(np.random.default_rng(2))
    (out_query, out_key), _ = qk_norm(params, query, key, eps=0.0)
    assert np.abs(scores(out_query, out_key)).max() <= 2 * np.abs(params.query_gain).max() * np.abs(params.key_gain).max()


def test_longer_queries_and_keys_attend_as_before():
    params, query, key = random_call(np.random.default_rng(3))
    value = np.random.default_rng(4).normal(size=(2, 1, 6, 3))
    (out_query, out_key), _ = qk_norm(params, query, key, eps=0.0)
    (long_query, long_key), _ = qk_norm(params, 7 * query, 0.1 * key, eps=0.0)
    expected, _ = scaled_dot_product_attention(out_query, out_key, value)
    np.testing.assert_allclose(scaled_dot_product_attention(long_query, long_key, value)[0], expected, atol=1e-13)
    sharper, _ = scaled_dot_product_attention(7 * query, key, value)
    assert np.abs(sharper - scaled_dot_product_attention(query, key, value)[0]).max() > 0.05


def test_the_gradients_have_no_part_along_query_and_key():
    rng = np.random.default_rng(5)
    params, query, key = random_call(rng)
    _, backward = qk_norm(params, query, key, eps=0.0)
    _, dquery, dkey = backward((rng.normal(size=query.shape), rng.normal(size=key.shape)))
    np.testing.assert_allclose(np.vecdot(dquery, query), 0, atol=1e-13)
    np.testing.assert_allclose(np.vecdot(dkey, key), 0, atol=1e-13)


def test_before_rope_and_after_it_are_the_same_with_equal_gains_only():
    params, query, key = random_call(np.random.default_rng(6))

    def difference(params):
        before = rope(qk_norm(params, query, key)[0][0])[0]
        after = qk_norm(params, rope(query)[0], rope(key)[0])[0][0]
        return np.abs(before - after).max()

    assert difference(plain(4)) < 1e-14
    assert difference(params) > 0.1


def test_before_rope_a_score_depends_on_the_distance_alone_and_after_it_it_does_not():
    _, query, key = random_call(np.random.default_rng(7))
    params, query, key = QkNorm(np.array([3.0, 1.0, 0.2, 1.0]), np.array([2.0, 1.0, 1.0, 0.5])), query[:1, :1, :1], key[:1, :1, :1]

    def score(first, *, before):
        here, there = np.array([first]), np.array([first + 3])
        if before:
            (out_query, out_key), _ = qk_norm(params, query, key)
            return scores(rope(out_query, positions=here)[0], rope(out_key, positions=there)[0]).item()
        (out_query, out_key), _ = qk_norm(params, rope(query, positions=here)[0], rope(key, positions=there)[0])
        return scores(out_query, out_key).item()

    assert np.ptp([score(first, before=True) for first in range(8)]) < 1e-13
    assert np.ptp([score(first, before=False) for first in range(8)]) > 0.05


def test_the_gradient_through_attention_is_right():
    params, query, key = random_call(np.random.default_rng(8))
    value = np.random.default_rng(9).normal(size=(2, 1, 6, 3))

    def attention(params, query, key, value):
        (out_query, out_key), norm_backward = qk_norm(params, query, key)
        out, attention_backward = scaled_dot_product_attention(out_query, out_key, value)

        def backward(dout):
            dout_query, dout_key, dvalue, _ = attention_backward(dout)
            return (*norm_backward((dout_query, dout_key)), dvalue)

        return out, backward

    assert check_gradients(attention, params, query, key, value).passed


def without_the_norm_of_keys(params, query, key):
    outs, backward = qk_norm(params, query, key)

    def wrong(douts):
        dparams, dquery, _ = backward(douts)
        return dparams, dquery, params.key_gain * douts[1] / np.sqrt((key * key).mean(-1, keepdims=True) + 1e-6)

    return outs, wrong


def with_the_gains_exchanged(params, query, key):
    outs, backward = qk_norm(params, query, key)

    def wrong(douts):
        dparams, dquery, dkey = backward(douts)
        return QkNorm(dparams.key_gain, dparams.query_gain), dquery, dkey

    return outs, wrong


@pytest.mark.parametrize(("wrong", "where"), [(without_the_norm_of_keys, "key"), (with_the_gains_exchanged, "params.")])
def test_the_checker_refuses(wrong, where):
    report = check_gradients(wrong, *random_call(np.random.default_rng(10)))
    assert not report.passed and report.worst.path.startswith(where) and report.error > 1e-2


def test_a_query_of_zeros_stays_zero_and_attends_to_all_keys_alike():
    params, query, key = random_call(np.random.default_rng(11))
    (out_query, out_key), backward = qk_norm(params, np.zeros_like(query), key)
    np.testing.assert_array_equal(out_query, 0)
    assert all(np.isfinite(a).all() for a in backward((np.ones_like(query), np.ones_like(key)))[1:])
    value = np.random.default_rng(12).normal(size=(2, 1, 6, 3))
    out, _ = scaled_dot_product_attention(out_query, out_key, value)
    np.testing.assert_allclose(out, np.broadcast_to(value.mean(-2, keepdims=True), out.shape), atol=1e-14)


def test_a_numpy_number_for_eps_does_not_widen_float32():
    query = np.ones((2, 3), np.float32)
    outs, backward = qk_norm(init_qk_norm(np.random.default_rng(0), 3), query, query, eps=np.float64(1e-6))
    dparams, dquery, dkey = backward(outs)
    assert {a.dtype for a in (*outs, *dparams, dquery, dkey)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("positions", [np.array([7, 3, 4, 0, 1]), np.array([0.5, -2.0])])
def test_positions_are_accepted_and_change_nothing(positions):
    params, query, key = random_call(np.random.default_rng(16))
    (out_query, out_key), backward = qk_norm(params, query, key, positions=positions)
    (expected_query, expected_key), expected_backward = qk_norm(params, query, key)
    np.testing.assert_array_equal(out_query, expected_query)
    np.testing.assert_array_equal(out_key, expected_key)
    for own, expected in zip(backward((query, key))[1:], expected_backward((query, key))[1:], strict=True):
        np.testing.assert_array_equal(own, expected)


@pytest.mark.parametrize("size", [1e-18, 1e18])
def test_float32_scores_stay_bounded_as_far_as_squares_are_finite(size):
    rng = np.random.default_rng(15)
    query, key = ((rng.normal(size=(3, 64)) * size).astype(np.float32) for _ in range(2))
    (out_query, out_key), backward = qk_norm(init_qk_norm(rng, 64), query, key)
    assert np.abs(scores(out_query, out_key)).max() <= 8.0001
    dparams, dquery, dkey = backward((np.ones_like(query), np.ones_like(key)))
    assert all(np.isfinite(a).all() for a in (*dparams, dquery, dkey))


@pytest.mark.parity
def test_parity_with_torch_through_attention():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(13)
    params, query, key = random_call(rng)
    key = np.broadcast_to(key, (2, 3, 6, 4)).copy()
    value, dout = rng.normal(size=(2, 3, 6, 4)), rng.normal(size=(2, 3, 5, 4))
    tensors = [torch.tensor(a, requires_grad=True) for a in (*params, query, key)]
    query_gain, key_gain, their_query, their_key = tensors
    normed = [torch.nn.functional.rms_norm(a, (4,), gain, 1e-6) for a, gain in ((their_query, query_gain), (their_key, key_gain))]
    theirs = torch.nn.functional.scaled_dot_product_attention(*normed, torch.tensor(value))
    theirs.backward(torch.tensor(dout))
    (out_query, out_key), norm_backward = qk_norm(params, query, key)
    out, attention_backward = scaled_dot_product_attention(out_query, out_key, value)
    dparams, dquery, dkey = norm_backward(attention_backward(dout)[:2])
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-12)
    for own, tensor in zip((*dparams, dquery, dkey), tensors, strict=True):
        np.testing.assert_allclose(own, tensor.grad.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parity
def test_parity_with_the_norms_of_qwen3_and_olmo2():
    # These compute in float32 whatever comes in, so they agree to float32.
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    rng = np.random.default_rng(14)
    projected = rng.normal(size=(2, 5, 3 * 4)) * 3           # (batch, positions, heads * d_head)

    def theirs(norm, gain, x):
        module = norm(len(gain), eps=1e-6).double()
        with torch.no_grad():
            module.weight.copy_(torch.tensor(gain))
            return module(torch.tensor(x)).numpy()

    per_head = projected.reshape(2, 5, 3, 4).swapaxes(1, 2)
    shared = QkNorm(rng.normal(size=4), rng.normal(size=4))
    (out_query, _), _ = qk_norm(shared, per_head, per_head)
    np.testing.assert_allclose(out_query, theirs(Qwen3RMSNorm, shared.query_gain, per_head), atol=2e-6)
    together = QkNorm(rng.normal(size=12), rng.normal(size=12))
    (_, out_key), _ = qk_norm(together, projected, projected)
    np.testing.assert_allclose(out_key, theirs(Olmo2RMSNorm, together.key_gain, projected), atol=2e-6)
