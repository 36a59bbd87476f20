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
    q, k = rng.normal(size=(2, 3, 5, d_query)) * 3, rng.normal(size=(2, 1, 6, d_key)) * 3
    return params, q, k


def plain(d_head):
    return init_qk_norm(np.random.default_rng(0), d_head, dtype=np.float64)


def scores(q, k):
    return q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])


@pytest.mark.parametrize("d_key", [4, 2])
def test_equals_the_textbook_loops_and_their_gradients(d_key):
    rng = np.random.default_rng(0)
    params, q, k = random_call(rng, d_key=d_key)
    dout_q, dout_k = rng.normal(size=q.shape), rng.normal(size=k.shape)
    (out_q, out_k), backward = qk_norm(params, q, k, eps=0.1)
    np.testing.assert_allclose(out_q, textbook_rows(params.query_gain, q, 0.1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(out_k, textbook_rows(params.key_gain, k, 0.1), rtol=0, atol=1e-12)

    def loss(query_gain, key_gain, q, k):
        return anp.sum(dout_q * textbook_rows(query_gain, q, 0.1)) + anp.sum(dout_k * textbook_rows(key_gain, k, 0.1))

    expected = autograd.grad(loss, (0, 1, 2, 3))(*params, q, k)
    dparams, dq, dk = backward((dout_q, dout_k))
    for own, theirs in zip((*dparams, dq, dk), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-11)


def test_no_score_exceeds_sqrt_d_and_a_key_along_the_query_reaches_it():
    rng = np.random.default_rng(1)
    _, q, k = random_call(rng)
    (out_q, out_k), _ = qk_norm(plain(4), 1e3 * q, 1e3 * k, eps=0.0)
    assert np.abs(scores(out_q, out_k)).max() <= 2 + 1e-12 < np.abs(scores(1e3 * q, 1e3 * k)).max()
    (out_q, out_k), _ = qk_norm(plain(4), q, 5 * q, eps=0.0)
    np.testing.assert_allclose(np.diagonal(scores(out_q, out_k), axis1=-2, axis2=-1), 2, rtol=1e-14)


def test_with_gains_the_bound_grows_by_the_largest_of_each():
    params, q, k = random_call(np.random.default_rng(2))
    (out_q, out_k), _ = qk_norm(params, q, k, eps=0.0)
    assert np.abs(scores(out_q, out_k)).max() <= 2 * np.abs(params.query_gain).max() * np.abs(params.key_gain).max()


def test_longer_queries_and_keys_attend_as_before():
    params, q, k = random_call(np.random.default_rng(3))
    v = np.random.default_rng(4).normal(size=(2, 1, 6, 3))
    (out_q, out_k), _ = qk_norm(params, q, k, eps=0.0)
    (long_q, long_k), _ = qk_norm(params, 7 * q, 0.1 * k, eps=0.0)
    expected, _ = scaled_dot_product_attention(out_q, out_k, v)
    np.testing.assert_allclose(scaled_dot_product_attention(long_q, long_k, v)[0], expected, atol=1e-13)
    assert np.abs(scaled_dot_product_attention(7 * q, k, v)[0] - scaled_dot_product_attention(q, k, v)[0]).max() > 0.05


def test_the_gradients_have_no_part_along_q_and_k():
    rng = np.random.default_rng(5)
    params, q, k = random_call(rng)
    _, backward = qk_norm(params, q, k, eps=0.0)
    _, dq, dk = backward((rng.normal(size=q.shape), rng.normal(size=k.shape)))
    np.testing.assert_allclose(np.vecdot(dq, q), 0, atol=1e-13)
    np.testing.assert_allclose(np.vecdot(dk, k), 0, atol=1e-13)


def test_before_rope_and_after_it_are_the_same_with_equal_gains_only():
    params, q, k = random_call(np.random.default_rng(6))

    def difference(params):
        before = rope(qk_norm(params, q, k)[0][0])[0]
        after = qk_norm(params, rope(q)[0], rope(k)[0])[0][0]
        return np.abs(before - after).max()

    assert difference(plain(4)) < 1e-14
    assert difference(params) > 0.1


def test_before_rope_a_score_depends_on_the_distance_alone_and_after_it_it_does_not():
    _, q, k = random_call(np.random.default_rng(7))
    params, q, k = QkNorm(np.array([3.0, 1.0, 0.2, 1.0]), np.array([2.0, 1.0, 1.0, 0.5])), q[:1, :1, :1], k[:1, :1, :1]

    def score(first, *, before):
        here, there = np.array([first]), np.array([first + 3])
        if before:
            (q1, k1), _ = qk_norm(params, q, k)
            return scores(rope(q1, positions=here)[0], rope(k1, positions=there)[0]).item()
        (q1, k1), _ = qk_norm(params, rope(q, positions=here)[0], rope(k, positions=there)[0])
        return scores(q1, k1).item()

    assert np.ptp([score(first, before=True) for first in range(8)]) < 1e-13
    assert np.ptp([score(first, before=False) for first in range(8)]) > 0.05


def test_the_gradient_through_attention_is_right():
    params, q, k = random_call(np.random.default_rng(8))
    v = np.random.default_rng(9).normal(size=(2, 1, 6, 3))

    def attention(params, q, k, v):
        (out_q, out_k), norm_backward = qk_norm(params, q, k)
        out, attention_backward = scaled_dot_product_attention(out_q, out_k, v)

        def backward(dout):
            dout_q, dout_k, dv, _ = attention_backward(dout)
            return (*norm_backward((dout_q, dout_k)), dv)

        return out, backward

    assert check_gradients(attention, params, q, k, v).passed


def without_the_norm_of_keys(params, q, k):
    outs, backward = qk_norm(params, q, k)

    def wrong(douts):
        dparams, dq, _ = backward(douts)
        return dparams, dq, params.key_gain * douts[1] / np.sqrt((k * k).mean(-1, keepdims=True) + 1e-6)

    return outs, wrong


def with_the_gains_exchanged(params, q, k):
    outs, backward = qk_norm(params, q, k)

    def wrong(douts):
        dparams, dq, dk = backward(douts)
        return QkNorm(dparams.key_gain, dparams.query_gain), dq, dk

    return outs, wrong


@pytest.mark.parametrize(("wrong", "where"), [(without_the_norm_of_keys, "k"), (with_the_gains_exchanged, "params.")])
def test_the_checker_refuses(wrong, where):
    report = check_gradients(wrong, *random_call(np.random.default_rng(10)))
    assert not report.passed and report.worst.path.startswith(where) and report.error > 1e-2


def test_a_query_of_zeros_stays_zero_and_attends_to_all_keys_alike():
    params, q, k = random_call(np.random.default_rng(11))
    (out_q, out_k), backward = qk_norm(params, np.zeros_like(q), k)
    np.testing.assert_array_equal(out_q, 0)
    assert all(np.isfinite(a).all() for a in backward((np.ones_like(q), np.ones_like(k)))[1:])
    v = np.random.default_rng(12).normal(size=(2, 1, 6, 3))
    out, _ = scaled_dot_product_attention(out_q, out_k, v)
    np.testing.assert_allclose(out, np.broadcast_to(v.mean(-2, keepdims=True), out.shape), atol=1e-14)


def test_a_numpy_number_for_eps_does_not_widen_float32():
    q = np.ones((2, 3), np.float32)
    outs, backward = qk_norm(init_qk_norm(np.random.default_rng(0), 3), q, q, eps=np.float64(1e-6))
    dparams, dq, dk = backward(outs)
    assert {a.dtype for a in (*outs, *dparams, dq, dk)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("size", [1e-18, 1e18])
def test_float32_scores_stay_bounded_as_far_as_squares_are_finite(size):
    rng = np.random.default_rng(15)
    q, k = ((rng.normal(size=(3, 64)) * size).astype(np.float32) for _ in range(2))
    (out_q, out_k), backward = qk_norm(init_qk_norm(rng, 64), q, k)
    assert np.abs(scores(out_q, out_k)).max() <= 8.0001
    dparams, dq, dk = backward((np.ones_like(q), np.ones_like(k)))
    assert all(np.isfinite(a).all() for a in (*dparams, dq, dk))


@pytest.mark.parity
def test_parity_with_torch_through_attention():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(13)
    params, q, k = random_call(rng)
    k = np.broadcast_to(k, (2, 3, 6, 4)).copy()
    v, dout = rng.normal(size=(2, 3, 6, 4)), rng.normal(size=(2, 3, 5, 4))
    tensors = [torch.tensor(a, requires_grad=True) for a in (*params, q, k)]
    query_gain, key_gain, their_q, their_k = tensors
    normed = [torch.nn.functional.rms_norm(a, (4,), gain, 1e-6) for a, gain in ((their_q, query_gain), (their_k, key_gain))]
    theirs = torch.nn.functional.scaled_dot_product_attention(*normed, torch.tensor(v))
    theirs.backward(torch.tensor(dout))
    (out_q, out_k), norm_backward = qk_norm(params, q, k)
    out, attention_backward = scaled_dot_product_attention(out_q, out_k, v)
    dparams, dq, dk = norm_backward(attention_backward(dout)[:2])
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-12)
    for own, tensor in zip((*dparams, dq, dk), tensors, strict=True):
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
    (out_q, _), _ = qk_norm(shared, per_head, per_head)
    np.testing.assert_allclose(out_q, theirs(Qwen3RMSNorm, shared.query_gain, per_head), atol=2e-6)
    together = QkNorm(rng.normal(size=12), rng.normal(size=12))
    (_, out_k), _ = qk_norm(together, projected, projected)
    np.testing.assert_allclose(out_k, theirs(Olmo2RMSNorm, together.key_gain, projected), atol=2e-6)
