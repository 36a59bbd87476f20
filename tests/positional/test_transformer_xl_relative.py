"""Transformer-XL: four terms by loops, the relative shift against gathering, memory that is read and gets no gradient."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.scaled_dot_product_attention import attention_weights, scaled_dot_product_attention
from minitransformers.basics.linear import Linear, linear
from minitransformers.foundation import check_gradients
from minitransformers.positional.toeplitz import Toeplitz, toeplitz
from minitransformers.positional.transformer_xl_relative import _shifted_back, relative_shift, sinusoids, transformer_xl_relative

LENGTHS = [(4, 6), (5, 5), (1, 3), (1, 1)]


def textbook(q, k, v, r, u, w):
    """The four terms of section 3.3, one head, query and key at a time."""
    num_queries, num_keys, d_head = q.shape[-2], k.shape[-2], q.shape[-1]
    texts = []
    for text in range(len(q)):
        heads = []
        for h in range(len(r)):
            rows = []
            for i in range(num_queries):
                place = i + num_keys - num_queries
                scores = []
                for j in range(place + 1):
                    query, key, distance = q[text, h, i], k[text, h, j], r[h, place - j]
                    scores.append((query @ key + query @ distance + u[h] @ key + w[h] @ distance) / d_head**0.5)
                scores = anp.array(scores)
                weights = anp.exp(scores - anp.max(scores))
                rows.append(anp.dot(weights / anp.sum(weights), v[text, h, : place + 1]))
            heads.append(anp.stack(rows))
        texts.append(anp.stack(heads))
    return anp.stack(texts)


def random_call(seed, num_queries=4, num_keys=6, d_head=5, d_value=3):
    rng = np.random.default_rng(seed)
    shapes = [(2, 3, num_queries, d_head), (2, 3, num_keys, d_head), (2, 3, num_keys, d_value), (3, num_keys, d_head), (3, d_head), (3, d_head)]
    return [rng.normal(size=shape) for shape in shapes], rng.normal(size=(2, 3, num_queries, d_value))


@pytest.mark.parametrize(("num_queries", "num_keys"), LENGTHS)
def test_equals_the_four_terms_and_their_gradients(num_queries, num_keys):
    args, dout = random_call(0, num_queries, num_keys)
    out, backward = transformer_xl_relative(*args)
    np.testing.assert_allclose(out, textbook(*args), rtol=0, atol=1e-12)
    expected = autograd.grad(lambda args: anp.sum(dout * textbook(*args)))(args)
    for own, theirs in zip(backward(dout), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("num_queries", "num_keys"), LENGTHS)
def test_the_shift_equals_gathering_wherever_a_key_is_not_yet_to_come(num_queries, num_keys):
    by_distance = np.random.default_rng(1).normal(size=(2, num_queries, num_keys))
    distance = np.arange(num_keys - num_queries, num_keys)[:, None] - np.arange(num_keys)
    gathered = np.take_along_axis(by_distance, np.broadcast_to(np.maximum(distance, 0), by_distance.shape), axis=-1)
    shifted = relative_shift(by_distance[..., ::-1])
    np.testing.assert_array_equal(shifted[:, distance >= 0], gathered[:, distance >= 0])


@pytest.mark.parametrize(("num_queries", "num_keys"), LENGTHS)
def test_shifting_back_is_the_transpose_of_the_shift(num_queries, num_keys):
    x, dout = np.random.default_rng(2).normal(size=(2, 3, num_queries, num_keys))
    np.testing.assert_allclose(np.vdot(relative_shift(x), dout), np.vdot(x, _shifted_back(dout)), rtol=1e-12, atol=1e-13)


def test_without_positions_and_vectors_it_is_plain_causal_attention():
    (q, k, v, r, u, w), dout = random_call(3)
    out, backward = transformer_xl_relative(q, k, v, 0 * r, 0 * u, 0 * w)
    plain, plain_backward = scaled_dot_product_attention(q, k, v, mask=np.tri(4, 6, 2, dtype=bool))
    np.testing.assert_allclose(out, plain, rtol=0, atol=1e-14)
    for own, theirs in zip(backward(dout), plain_backward(dout)[:3], strict=False):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-14)


def test_the_fourth_term_alone_is_a_toeplitz_bias():
    (q, k, _, r, u, w), _ = random_call(4)
    out, _ = transformer_xl_relative(0 * q, 0 * k, np.broadcast_to(np.eye(6), (2, 3, 6, 6)), r, u, w)
    by_offset = np.concatenate([np.einsum("hd,hnd->hn", w, r)[:, ::-1] / 5**0.5, np.zeros((3, 5))], axis=1)
    bias, _ = toeplitz(Toeplitz(by_offset), num_queries=4, num_keys=6)
    np.testing.assert_allclose(out, attention_weights(0 * q, 0 * k, bias[None], mask=np.tri(4, 6, 2, dtype=bool)), atol=1e-14)


def test_a_segment_with_memory_reads_what_the_whole_text_would():
    (q, k, v, r, u, w), _ = random_call(5, num_queries=6, num_keys=6)
    whole, _ = transformer_xl_relative(q, k, v, r, u, w)
    later, _ = transformer_xl_relative(q[:, :, 4:], k, v, r, u, w)
    np.testing.assert_allclose(later, whole[:, :, 4:], rtol=0, atol=1e-14)


def test_nothing_depends_on_where_the_text_stands():
    # Three keys in front that no query fits: the rest reads what it would without them.
    (q, k, v, r, u, w), _ = random_call(6)
    q, u = np.concatenate([q, np.ones_like(q[..., :1])], -1), np.concatenate([u, np.zeros((3, 1))], -1)
    wider = [np.concatenate([a, np.zeros_like(a[..., :1])], -1) for a in (k, r, w)]
    hidden = np.zeros((2, 3, 3, 6))
    hidden[..., -1] = -1e6
    far = np.concatenate([wider[1], np.random.default_rng(6).normal(size=(3, 3, 6))], axis=1)
    shifted, _ = transformer_xl_relative(q, np.concatenate([hidden, wider[0]], 2), np.concatenate([np.ones((2, 3, 3, 3)), v], 2), far, u, wider[2])
    np.testing.assert_allclose(shifted, transformer_xl_relative(q, wider[0], v, wider[1], u, wider[2])[0], rtol=0, atol=1e-12)


def with_memory(projection, x, *, memory, rest):
    """Keys of memory and text together; memory comes by keyword, so its hidden states get no gradient."""
    k, k_backward = linear(projection, np.concatenate([memory, x], axis=-2))
    out, backward = transformer_xl_relative(rest[0], k, *rest[1:])

    def gradients(dout):
        dprojection, dhidden = k_backward(backward(dout)[1])
        return dprojection, dhidden[..., memory.shape[-2] :, :]

    return out, gradients


def test_memory_gets_no_gradient_and_the_projection_learns_from_it_all_the_same():
    (q, _, *rest), dout = random_call(7)
    rng = np.random.default_rng(7)
    projection, memory, x = Linear(rng.normal(size=(7, 5)), None), rng.normal(size=(2, 3, 2, 7)), rng.normal(size=(2, 3, 4, 7))
    assert check_gradients(with_memory, projection, x, memory=memory, rest=[q, *rest]).passed
    whole, _ = with_memory(projection, x, memory=memory, rest=[q, *rest])[1](dout)
    (_, dk, *_) = transformer_xl_relative(q, linear(projection, np.concatenate([memory, x], -2))[0], *rest)[1](dout)
    from_text = np.einsum("bhtd,bhte->de", x, dk[:, :, 2:])
    assert np.abs(whole.weight - from_text).max() > 1e-3     # the rest came through memory


def test_float32_near_overflow_stays_finite():
    args, dout = random_call(8)
    args = [(1e17 * a).astype(np.float32) for a in args]
    out, backward = transformer_xl_relative(*args)
    assert np.isfinite(out).all() and out.dtype == np.float32
    assert all(g.dtype == np.float32 for g in backward(dout.astype(np.float32)))


def test_sinusoids_are_sines_then_cosines_of_each_distance():
    table = sinusoids(50, 6, dtype=np.float64)
    for n in (0, 1, 49):
        expected = [f(n / 10_000 ** (2 * m / 6)) for f in (np.sin, np.cos) for m in range(3)]
        np.testing.assert_allclose(table[n], expected, atol=1e-13)
    assert sinusoids(2, 4).dtype == np.float32
    with pytest.raises(ValueError, match="d_model: got 5"):
        sinusoids(2, 5)


@pytest.mark.parametrize("wrong", [0, -1, np.nan, np.inf])
def test_sinusoids_of_impossible_sizes_and_bases_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match="num_distances: got"):
        sinusoids(wrong, 4)
    with pytest.raises(ValueError, match="d_model: got"):
        sinusoids(3, wrong)
    with pytest.raises(ValueError, match="base: got"):
        sinusoids(3, 4, base=wrong)


def distance_forgotten_in_dq(q, k, v, r, u, w):
    out, backward = transformer_xl_relative(q, k, v, r, u, w)

    def wrong(dout):
        return transformer_xl_relative(q, k, v, r, u, w)[1](dout)[0] - by_distance_part(dout), *backward(dout)[1:]

    def by_distance_part(dout):
        shared = backward(dout)[5]                           # dw summed: its mean over queries is what is left out
        return np.broadcast_to(shared[None, :, None] / (q.shape[0] * q.shape[2]), q.shape)

    return out, wrong


def test_the_checker_refuses_a_query_that_forgets_what_distance_told_it():
    args, _ = random_call(9)
    report = check_gradients(distance_forgotten_in_dq, *args)
    assert not report.passed and report.worst.path == "q"


@pytest.mark.parity
def test_parity_with_the_authors_formula_in_torch():
    torch = pytest.importorskip("torch")
    args, dout = random_call(10)
    q, k, v, r, u, w = leaves = [torch.tensor(a, requires_grad=True) for a in args]
    content = torch.einsum("bhid,bhjd->bhij", q + u[:, None], k)
    by_distance = torch.einsum("bhid,hjd->bhij", q + w[:, None], r.flip(1))
    padded = torch.cat([torch.zeros(2, 3, 4, 1, dtype=torch.float64), by_distance], dim=3).view(2, 3, 7, 4)    # _rel_shift of their code
    scores = (content + padded[:, :, 1:].reshape(2, 3, 4, 6)) / 5**0.5
    scores = scores.masked_fill(~torch.ones(4, 6, dtype=torch.bool).tril(2), -torch.inf)
    theirs = scores.softmax(dim=-1) @ v
    theirs.backward(torch.tensor(dout))
    out, backward = transformer_xl_relative(*args)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-12)
    for own, leaf in zip(backward(dout), leaves, strict=True):
        np.testing.assert_allclose(own, leaf.grad.numpy(), rtol=0, atol=1e-12)
