"""Transformer-XL: four terms by loops, the relative shift against gathering, memory that is read and gets no gradient."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.scaled_dot_product_attention import attention_weights, scaled_dot_product_attention
from minitransformers.basics.linear import Linear, linear
from minitransformers.foundation import check_gradients, trees
from minitransformers.positional.toeplitz import Toeplitz, toeplitz
from minitransformers.positional.transformer_xl_relative import (
    TransformerXlRelative,
    _shifted_back,
    init_transformer_xl_relative,
    relative_shift,
    sinusoids,
    transformer_xl_relative,
)

LENGTHS = [(4, 6), (5, 5), (1, 3), (1, 1)]


def wave(distance, d_sinusoid):
    """Sines, then cosines, of one distance."""
    angles = [distance / 10_000 ** (2 * m / d_sinusoid) for m in range(d_sinusoid // 2)]
    return np.array([np.sin(a) for a in angles] + [np.cos(a) for a in angles])


def textbook(distance, u, w, query, key, value, bias=None, mask=None):
    """The four terms of section 3.3, one head, query and key at a time."""
    num_queries, num_keys, d_head = query.shape[-2], key.shape[-2], query.shape[-1]
    texts = []
    for text in range(len(query)):
        heads = []
        for h in range(len(distance)):
            rows = []
            for i in range(num_queries):
                place = i + num_keys - num_queries
                seen = [j for j in range(place + 1) if mask is None or mask[text, h, i, j]]
                if not seen:
                    rows.append(anp.zeros(value.shape[-1]))
                    continue
                scores = []
                for j in seen:
                    q, k, r = query[text, h, i], key[text, h, j], anp.dot(wave(place - j, distance.shape[1]), distance[h])
                    score = (q @ k + q @ r + u[h] @ k + w[h] @ r) / d_head**0.5
                    scores.append(score if bias is None else score + bias[text, h, i, j])
                scores = anp.array(scores)
                weights = anp.exp(scores - anp.max(scores))
                rows.append(anp.dot(weights / anp.sum(weights), anp.stack([value[text, h, j] for j in seen])))
            heads.append(anp.stack(rows))
        texts.append(anp.stack(heads))
    return anp.stack(texts)


def random_call(seed, num_queries=4, num_keys=6, d_head=5, d_value=3):
    rng = np.random.default_rng(seed)
    params = TransformerXlRelative(*(rng.normal(size=shape) for shape in ((3, 4, d_head), (3, d_head), (3, d_head))))
    shapes = [(2, 3, num_queries, d_head), (2, 3, num_keys, d_head), (2, 3, num_keys, d_value)]
    return [params, *(rng.normal(size=shape) for shape in shapes)], rng.normal(size=(2, 3, num_queries, d_value))


@pytest.mark.parametrize("extras", ["alone", "with a bias and a mask"])
@pytest.mark.parametrize(("num_queries", "num_keys"), LENGTHS)
def test_equals_the_four_terms_and_their_gradients(num_queries, num_keys, extras):
    (params, *arrays), dout = random_call(0, num_queries, num_keys)
    mask, rng = None, np.random.default_rng(11)
    if extras != "alone":
        arrays, mask = [*arrays, rng.normal(size=(2, 3, num_queries, num_keys))], rng.random((2, 3, num_queries, num_keys)) < 0.6
        mask[0, 0, 0] = False                                # a query that may attend to nothing
    out, backward = transformer_xl_relative(params, *arrays, mask=mask)
    np.testing.assert_allclose(out, textbook(*params, *arrays, mask=mask), rtol=0, atol=1e-12)
    which = tuple(range(3 + len(arrays)))
    expected = autograd.grad(lambda *args: anp.sum(dout * textbook(*args, mask=mask)), which)(*params, *arrays)
    for (path, own), theirs in zip(trees.leaves(backward(dout)), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12, err_msg=path)


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


def test_grouped_heads_equal_the_loop_over_heads():
    rng = np.random.default_rng(12)
    params = TransformerXlRelative(rng.normal(size=(6, 4, 5)), *rng.normal(size=(2, 6, 5)))
    query, key, value = rng.normal(size=(2, 3, 2, 4, 5)), rng.normal(size=(2, 3, 1, 6, 5)), rng.normal(size=(2, 3, 1, 6, 7))
    bias, mask, dout = rng.normal(size=(3, 2, 4, 6)), rng.random((2, 1, 1, 4, 6)) < 0.8, rng.normal(size=(2, 3, 2, 4, 7))
    out, backward = transformer_xl_relative(params, query, key, value, bias, mask=mask)
    expected = trees.map(np.zeros_like, (params, query, key, value, bias))
    for b, g, i in np.ndindex(2, 3, 2):
        head = TransformerXlRelative(*(a[2 * g + i][None] for a in params))  # neighbours share a key
        call = query[b, g, i], key[b, g, 0], value[b, g, 0], bias[g, i]
        own, own_backward = transformer_xl_relative(head, *call, mask=mask[b, 0, 0])
        np.testing.assert_allclose(out[b, g, i], own, rtol=0, atol=1e-13)
        dhead, *rest = own_backward(dout[b, g, i])
        for total, part in zip(expected[0], dhead, strict=True):
            total[2 * g + i] += part[0]
        for total, place, part in zip(expected[1:], ((b, g, i), (b, g, 0), (b, g, 0), (g, i)), rest, strict=True):
            total[place] += part
    for (path, mine), (_, theirs) in zip(trees.leaves(backward(dout)), trees.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-12, err_msg=path)


def test_one_head_of_parameters_serves_all_heads_and_gets_their_sum():
    (params, *arrays), dout = random_call(13)
    shared = TransformerXlRelative(*(a[:1] for a in params))
    copied = TransformerXlRelative(*(np.repeat(a, 3, axis=0) for a in shared))
    (out, backward), (expected, expected_backward) = (transformer_xl_relative(p, *arrays) for p in (shared, copied))
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-14)
    for own, theirs in zip(backward(dout)[0], expected_backward(dout)[0], strict=True):
        np.testing.assert_allclose(own, theirs.sum(0, keepdims=True), rtol=0, atol=1e-12)


def test_without_distances_and_vectors_it_is_plain_causal_attention():
    (params, *arrays), dout = random_call(3)
    arrays = [*arrays, np.random.default_rng(3).normal(size=(3, 4, 6))]
    out, backward = transformer_xl_relative(trees.zeros_like(params), *arrays)
    plain, plain_backward = scaled_dot_product_attention(*arrays, mask=np.tri(4, 6, 2, dtype=bool))
    np.testing.assert_allclose(out, plain, rtol=0, atol=1e-14)
    for own, theirs in zip(backward(dout)[1:], plain_backward(dout), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-13)


def test_the_fourth_term_alone_is_a_toeplitz_bias():
    (params, query, key, _), _ = random_call(4)
    out, _ = transformer_xl_relative(params, 0 * query, 0 * key, np.broadcast_to(np.eye(6), (2, 3, 6, 6)))
    r = np.stack([wave(n, 4) for n in range(6)]) @ params.distance
    by_offset = np.concatenate([np.einsum("hd,hnd->hn", params.w, r)[:, ::-1] / 5**0.5, np.zeros((3, 5))], axis=1)
    bias, _ = toeplitz(Toeplitz(by_offset), num_queries=4, num_keys=6)
    weights = attention_weights(0 * query, 0 * key, bias[None], mask=np.tri(4, 6, 2, dtype=bool))
    np.testing.assert_allclose(out, weights, rtol=0, atol=1e-14)


def test_a_segment_with_memory_reads_what_the_whole_text_would():
    (params, query, key, value), _ = random_call(5, num_queries=6, num_keys=6)
    bias = np.random.default_rng(5).normal(size=(6, 6))
    whole, _ = transformer_xl_relative(params, query, key, value, bias)
    for new in (1, 2, 5):
        later, _ = transformer_xl_relative(params, query[:, :, -new:], key, value, bias[-new:])
        np.testing.assert_allclose(later, whole[:, :, -new:], rtol=0, atol=1e-14)


def test_nothing_depends_on_where_the_text_stands():
    # Three keys in front that nobody may see: the rest reads what it would without them.
    (params, query, key, value), _ = random_call(6)
    rng = np.random.default_rng(6)
    longer = [np.concatenate([rng.normal(size=(2, 3, 3, a.shape[-1])), a], axis=2) for a in (key, value)]
    shifted, _ = transformer_xl_relative(params, query, *longer, mask=(np.arange(9) >= 3)[None])
    np.testing.assert_allclose(shifted, transformer_xl_relative(params, query, key, value)[0], rtol=0, atol=1e-13)


def test_a_query_that_may_see_nothing_reads_zero_and_sends_nothing():
    args, dout = random_call(14)
    mask = np.arange(4)[:, None] != np.array([1] * 6)        # nothing for the second query
    out, backward = transformer_xl_relative(*args, mask=mask)
    assert not out[:, :, 1].any() and out[:, :, 0].any()
    only = np.where(np.arange(4)[:, None] == 1, dout, 0)
    assert not any(gradient.any() for _, gradient in trees.leaves(backward(only)))


def with_memory(projection, x, *, memory, params, query, value):
    """Keys of memory and text together; memory comes by keyword, so its hidden states get no gradient."""
    key, key_backward = linear(projection, np.concatenate([memory, x], axis=-2))
    out, backward = transformer_xl_relative(params, query, key, value)

    def gradients(dout):
        dprojection, dhidden = key_backward(backward(dout)[2])
        return dprojection, dhidden[..., memory.shape[-2] :, :]

    return out, gradients


def test_memory_gets_no_gradient_and_the_projection_learns_from_it_all_the_same():
    (params, query, _, value), dout = random_call(7)
    rng = np.random.default_rng(7)
    projection, memory, x = Linear(rng.normal(size=(7, 5)), None), rng.normal(size=(2, 3, 2, 7)), rng.normal(size=(2, 3, 4, 7))
    config = {"memory": memory, "params": params, "query": query, "value": value}
    assert check_gradients(with_memory, projection, x, **config).passed
    whole, _ = with_memory(projection, x, **config)[1](dout)
    dkey = transformer_xl_relative(params, query, linear(projection, np.concatenate([memory, x], -2))[0], value)[1](dout)[2]
    from_text = np.einsum("bhtd,bhte->de", x, dkey[:, :, 2:])
    assert np.abs(whole.weight - from_text).max() > 1e-3     # the rest came through memory


def test_float32_near_overflow_stays_finite():
    args, dout = random_call(8)
    args = trees.map(lambda a: (1e17 * a).astype(np.float32), args)
    out, backward = transformer_xl_relative(*args)
    assert np.isfinite(out).all() and out.dtype == np.float32
    assert all(g.dtype == np.float32 for _, g in trees.leaves(backward(dout.astype(np.float32))))


def test_sinusoids_are_sines_then_cosines_of_each_distance():
    table = sinusoids(50, 6, dtype=np.float64)
    for n in (0, 1, 49):
        np.testing.assert_allclose(table[n], wave(n, 6), atol=1e-13)
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


def test_it_starts_small_with_a_map_for_every_head():
    params = init_transformer_xl_relative(np.random.default_rng(15), 60, num_heads=5)
    assert [a.shape for a in params] == [(5, 60, 12), (5, 12), (5, 12)] and params.distance.dtype == np.float32
    np.testing.assert_allclose(params.distance.std(), 0.02, rtol=0.05)
    for d_model, num_heads in ((9, 3), (10, 4)):
        with pytest.raises(ValueError, match=f"d_model: got {d_model}"):
            init_transformer_xl_relative(np.random.default_rng(0), d_model, num_heads=num_heads)


def distance_forgotten_in_dq(params, query, key, value):
    out, backward = transformer_xl_relative(params, query, key, value)

    def wrong(dout):
        dparams, dquery, *rest = backward(dout)
        left_out = dparams.w[:, None] / (query.shape[0] * query.shape[2])  # dw is a sum over queries: this is their mean
        return dparams, dquery - left_out, *rest[:2]

    return out, wrong


def test_the_checker_refuses_a_query_that_forgets_what_distance_told_it():
    args, _ = random_call(9)
    report = check_gradients(distance_forgotten_in_dq, *args)
    assert not report.passed and report.worst.path == "query"


@pytest.mark.parity
def test_parity_with_the_authors_formula_in_torch():
    torch = pytest.importorskip("torch")
    args, dout = random_call(10)
    distance, u, w, query, key, value = leaves = [torch.tensor(a, requires_grad=True) for _, a in trees.leaves(args)]
    # Their code has distances that fall, 5 .. 0, and shifts by a view of a padded array (_rel_shift).
    inverse_frequency = 1 / 10_000 ** (torch.arange(0.0, 4.0, 2.0, dtype=torch.float64) / 4)
    angles = torch.outer(torch.arange(5, -1, -1.0, dtype=torch.float64), inverse_frequency)
    r = torch.einsum("nf,hfd->hnd", torch.cat([angles.sin(), angles.cos()], dim=-1), distance)
    content = torch.einsum("bhid,bhjd->bhij", query + u[:, None], key)
    by_distance = torch.einsum("bhid,hjd->bhij", query + w[:, None], r)
    padded = torch.cat([torch.zeros(2, 3, 4, 1, dtype=torch.float64), by_distance], dim=3).view(2, 3, 7, 4)
    scores = (content + padded[:, :, 1:].reshape(2, 3, 4, 6)) / 5**0.5
    scores = scores.masked_fill(~torch.ones(4, 6, dtype=torch.bool).tril(2), -torch.inf)
    theirs = scores.softmax(dim=-1) @ value
    theirs.backward(torch.tensor(dout))
    out, backward = transformer_xl_relative(*args)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-12)
    for (_, own), leaf in zip(trees.leaves(backward(dout)), leaves, strict=True):
        np.testing.assert_allclose(own, leaf.grad.numpy(), rtol=0, atol=1e-12)
