"""LSH attention: how buckets and chunks are found, and attention to those whom one meets, in its plain form."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.foundation import check_gradients
from minitransformers.sparse_attention.lsh_attention import lsh_attention, lsh_buckets, lsh_chunks, lsh_chunks_across

EVERY = [(causal, once) for causal in (True, False) for once in (True, False)]


def case(seed=0, positions=9, rounds=3, num_buckets=4, chunk=2):
    rng = np.random.default_rng(seed)
    x, v = rng.normal(size=(positions, 3)), rng.normal(size=(positions, 4))
    return x, v, rng.integers(num_buckets, size=(rounds, positions)), chunk


def met(buckets, chunk, i, j):
    """Whether i meets j in one round: the same bucket, and j in i's chunk of it or the one before."""
    def own_chunk(t):
        return sum(1 for earlier in buckets[:t] if earlier == buckets[t]) // chunk

    return buckets[i] == buckets[j] and own_chunk(i) - own_chunk(j) in (0, 1)


def textbook(x, v, buckets, chunk, causal, once, scale):
    """One position at a time, over all (round, key) pairs that it meets; itself where there is none."""
    rows = []
    for i in range(len(x)):
        pairs = [(r, j) for r in range(len(buckets)) for j in range(len(x)) if met(buckets[r], chunk, i, j)]
        pairs = [(r, j) for r, j in pairs if (j < i if causal else j != i)]
        keys = sorted({j for _, j in pairs}) if once else [j for _, j in pairs]
        if not keys:
            rows.append(v[i])
            continue
        powers = [anp.exp(scale * anp.sum(x[i] * x[j]) / anp.sqrt(anp.sum(x[j] ** 2))) for j in keys]
        rows.append(sum(p * v[j] for p, j in zip(powers, keys, strict=True)) / sum(powers))
    return anp.stack(rows)


# Buckets -------------------------------------------------------------------------------------------------------------


def test_a_bucket_is_the_nearest_of_random_directions_and_their_opposites():
    x = np.random.default_rng(0).normal(size=(2, 5, 3))
    found = lsh_buckets(x, rounds=4, num_buckets=6, seed=3)
    directions = np.random.default_rng(3).normal(size=(4, 3, 3))
    for text, r, t in np.ndindex(2, 4, 5):
        products = [float(np.dot(x[text, t], sign * directions[r, :, b])) for sign in (1, -1) for b in range(3)]
        assert found[text, r, t] == int(np.argmax(products))


def test_only_the_direction_counts_and_the_opposite_direction_has_the_opposite_bucket():
    x = np.random.default_rng(1).normal(size=(20, 5))
    found = lsh_buckets(x, rounds=3, num_buckets=8)
    np.testing.assert_array_equal(lsh_buckets(7.5 * x, rounds=3, num_buckets=8), found)
    np.testing.assert_array_equal(lsh_buckets(-x, rounds=3, num_buckets=8), (found + 4) % 8)


def test_the_seed_decides_the_buckets_and_the_rounds_differ():
    x = np.random.default_rng(2).normal(size=(50, 4))
    one, again, other = (lsh_buckets(x, rounds=2, num_buckets=8, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any() and (one[0] != one[1]).any()


def test_two_buckets_are_shared_with_a_chance_that_falls_with_the_angle():
    """A plane through the origin parts two vectors with a probability of their angle over pi: Goemans and Williamson."""
    for angle in (0.2, 1.0, 2.5):
        x = np.array([[1.0, 0.0, 0.0], [np.cos(angle), np.sin(angle), 0.0]])
        found = lsh_buckets(x, rounds=6000, num_buckets=2, seed=7)
        assert abs(np.mean(found[:, 0] == found[:, 1]) - (1 - angle / np.pi)) < 0.025  # four standard deviations


# Chunks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 3, 50])
def test_chunks_say_who_meets_whom(chunk):
    buckets = np.random.default_rng(3).integers(4, size=(2, 13))
    for own, number in zip(buckets, lsh_chunks(buckets, chunk=chunk), strict=True):
        for i, j in np.ndindex(13, 13):
            assert (number[i] - number[j] in (0, 1)) == met(own, chunk, i, j)


def test_who_meets_whom_is_not_changed_by_what_comes_later():
    rng = np.random.default_rng(4)
    buckets = rng.integers(3, size=12)
    for length in range(1, 12):
        short, long = lsh_chunks(buckets[:length], chunk=2), lsh_chunks(buckets, chunk=2)[:length]
        apart = [a[:, None] - a for a in (short, long)]
        np.testing.assert_array_equal((apart[0] == 0) | (apart[0] == 1), (apart[1] == 0) | (apart[1] == 1))


@pytest.mark.parametrize("chunk", [1, 3, 4, 50])
def test_chunks_across_are_the_sorted_text_cut_into_equal_pieces(chunk):
    buckets = np.random.default_rng(5).integers(3, size=(2, 11))
    for own, number in zip(buckets, lsh_chunks_across(buckets, chunk=chunk), strict=True):
        order = sorted(range(11), key=lambda i: (own[i], i))
        piece = {i: place // chunk for place, i in enumerate(order)}
        for i, j in np.ndindex(11, 11):
            assert (number[i] - number[j] in (0, 1)) == (own[i] == own[j] and piece[i] - piece[j] in (0, 1))


def test_chunks_across_are_moved_by_a_later_token_and_those_of_each_bucket_are_not():
    text, longer = np.array([1, 1, 1]), np.array([1, 1, 1, 0])
    np.testing.assert_array_equal(np.diff(lsh_chunks_across(text, chunk=2)), [0, 1])
    np.testing.assert_array_equal(np.diff(lsh_chunks_across(longer, chunk=2)[:3]), [1, 0])
    np.testing.assert_array_equal(np.diff(lsh_chunks(longer, chunk=2)[:3]), [0, 1])


# Attention -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("causal", "once"), EVERY)
@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_it_is_the_textbook_sum_and_its_gradients_are_autograd_s(causal, once, scale):
    x, v, buckets, chunk = case()
    out, backward = lsh_attention(x, v, chunks=lsh_chunks(buckets, chunk=chunk), causal=causal, once=once, scale=scale)
    settings = buckets, chunk, causal, once, scale
    np.testing.assert_allclose(out, textbook(x, v, *settings), rtol=0, atol=1e-10)
    dout = np.random.default_rng(1).normal(size=out.shape)
    expected = autograd.grad(lambda x, v: anp.sum(dout * textbook(x, v, *settings)), (0, 1))(x, v)
    for own, theirs in zip(backward(dout), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("causal", [True, False])
def test_with_one_bucket_and_one_chunk_it_is_dense_attention_to_all_others(causal):
    x, v, _, _ = case(2)
    chunks = lsh_chunks(np.zeros((1, 9), int), chunk=9)
    mask = np.tril(np.ones((9, 9), bool), -1) if causal else ~np.eye(9, dtype=bool)
    expected = scaled_dot_product_attention(x, x / np.linalg.norm(x, axis=-1, keepdims=True), v, mask=mask, scale=1.0)[0]
    if causal:
        expected[0] = v[0]                                   # who sees nobody else reads itself
    np.testing.assert_allclose(lsh_attention(x, v, chunks=chunks, causal=causal)[0], expected, rtol=0, atol=1e-14)


def test_a_position_without_company_reads_its_own_value_and_its_vector_does_not_matter():
    x, v, _, _ = case(3, positions=4)
    out, backward = lsh_attention(x, v, chunks=lsh_chunks(np.array([[0, 1, 2, 3]]), chunk=2))
    np.testing.assert_array_equal(out, v)
    dout = np.random.default_rng(2).normal(size=v.shape)
    dx, dv = backward(dout)
    assert not dx.any()
    np.testing.assert_array_equal(dv, dout)


def test_company_in_any_round_is_company():
    """Alone in the first round, position 1 meets position 0 in the second: then it reads that one alone, and not itself."""
    x, v, _, _ = case(4, positions=2)
    np.testing.assert_allclose(lsh_attention(x, v, chunks=lsh_chunks(np.array([[0, 1], [0, 0]]), chunk=2))[0][1], v[0], rtol=0, atol=1e-15)


def test_under_causal_the_future_has_no_influence_not_even_on_who_meets_whom():
    rng = np.random.default_rng(5)
    x, v = rng.normal(size=(10, 4)), rng.normal(size=(10, 3))
    def attend(x, v):
        return lsh_attention(x, v, chunks=lsh_chunks(lsh_buckets(x, rounds=2, num_buckets=4), chunk=2))

    out, backward = attend(x, v)
    for length in range(1, 10):
        np.testing.assert_allclose(attend(x[:length], v[:length])[0], out[:length], rtol=0, atol=1e-14)
    dout = np.zeros_like(out)
    dout[6] = rng.normal(size=3)
    assert not any(gradient[7:].any() for gradient in backward(dout)) and all(gradient[:7].any() for gradient in backward(dout))


def test_the_same_round_twice_changes_nothing():
    x, v, buckets, _ = case(6, rounds=1)
    for once in (True, False):
        one, two = (lsh_attention(x, v, chunks=lsh_chunks(b, chunk=2), once=once)[0] for b in (buckets, np.repeat(buckets, 2, axis=0)))
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-15)


def test_counted_once_many_rounds_become_dense_attention_and_counted_as_found_they_do_not():
    x, v, _, _ = case(7, positions=6)
    chunks = lsh_chunks(lsh_buckets(x, rounds=200, num_buckets=4), chunk=6)
    dense = lsh_attention(x, v, chunks=np.zeros((1, 6), int))[0]
    np.testing.assert_allclose(lsh_attention(x, v, chunks=chunks, once=True)[0], dense, rtol=0, atol=1e-14)
    assert np.abs(lsh_attention(x, v, chunks=chunks)[0] - dense).max() > 0.05


def test_a_zero_vector_is_a_key_of_score_zero_and_gets_no_gradient_as_one():
    x, v, _, _ = case(8, positions=5)
    x[1] = 0
    out, backward = lsh_attention(x, v, chunks=np.zeros((1, 5), int))
    powers = np.exp([x[3] @ x[0] / np.linalg.norm(x[0]), 0, x[3] @ x[2] / np.linalg.norm(x[2])])
    np.testing.assert_allclose(out[3], powers @ v[:3] / powers.sum(), rtol=0, atol=1e-14)
    dout = np.zeros_like(out)
    dout[2:] = 1 + np.random.default_rng(3).normal(size=(3, 4))
    dx, _ = backward(dout)                                   # as a query it has no part in these outputs
    assert np.isfinite(dx).all() and not dx[1].any()


def test_large_scores_stay_finite():
    x, v, buckets, _ = case(9)
    out, backward = lsh_attention(np.float32(1e4) * x.astype(np.float32), v.astype(np.float32), chunks=lsh_chunks(buckets, chunk=2))
    assert np.isfinite(out).all() and all(np.isfinite(g).all() for g in backward(out))


@pytest.mark.parametrize("positions", [1, 2, 5])
def test_texts_shorter_than_a_chunk_and_of_any_length_work(positions):
    x, v, buckets, _ = case(10, positions=positions)
    out = lsh_attention(x, v, chunks=lsh_chunks(buckets, chunk=4))[0]
    np.testing.assert_allclose(out, textbook(x, v, buckets, 4, True, False, 1.0), rtol=0, atol=1e-12)


def test_the_checker_refuses_a_backward_that_forgets_that_a_vector_is_a_key_too():
    x, v, buckets, _ = case(11)
    chunks = lsh_chunks(buckets, chunk=2)

    def wrong(x, v):
        unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
        out, backward = lsh_attention(x, v, chunks=chunks)

        def forgetful(dout):
            met = (chunks[:, :, None] - chunks[:, None] == 0) | (chunks[:, :, None] - chunks[:, None] == 1)
            weights = np.tril(met.sum(0), -1) * np.exp(x @ unit.T)
            weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
            dscores = weights * (dout @ v.T - np.vecdot(dout, out)[:, None])
            return dscores @ unit, backward(dout)[1]

        return out, forgetful

    report = check_gradients(wrong, x, v)
    assert [a.error > 1e-2 for a in report.arguments] == [True, False]


@pytest.mark.parametrize(
    ("named", "call"),
    [
        ("num_buckets: got 3", lambda x, v: lsh_buckets(x, rounds=1, num_buckets=3)),
        ("num_buckets: got 0", lambda x, v: lsh_buckets(x, rounds=1, num_buckets=0)),
        ("rounds: got 0", lambda x, v: lsh_buckets(x, rounds=0, num_buckets=2)),
        ("chunk: got 0", lambda x, v: lsh_chunks(np.zeros(9, int), chunk=0)),
        ("buckets: got float64", lambda x, v: lsh_chunks(np.zeros(9), chunk=2)),
        ("chunks", lambda x, v: lsh_attention(x, v, chunks=np.zeros((1, 8), int))),
        ("chunks: got float64", lambda x, v: lsh_attention(x, v, chunks=np.zeros((1, 9)))),
        ("value", lambda x, v: lsh_attention(x, v[:8], chunks=np.zeros((1, 9), int))),
    ],
)
def test_what_cannot_be_is_refused_by_name(named, call):
    with pytest.raises(ValueError, match=named):
        call(*case()[:2])


# Others' -------------------------------------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize(("causal", "once"), EVERY)
def test_with_the_paper_s_chunks_it_is_reformer_pytorch_s(causal, once):
    """Of its own bucket alone, as in the paper; scores are divided by sqrt(d_head) there. It adds 1e-9 to how often a pair is found."""
    torch = pytest.importorskip("torch")
    reformer = pytest.importorskip("reformer_pytorch.reformer_pytorch")
    rng = np.random.default_rng(0)
    x, v, buckets = rng.normal(size=(2, 16, 3)), rng.normal(size=(2, 16, 3)), rng.integers(4, size=(2, 3, 16))
    module = reformer.LSHAttention(bucket_size=4, n_hashes=3, causal=causal, allow_duplicate_attention=not once, attend_across_buckets=False)
    module.hash_vectors = lambda *_, **__: torch.tensor((buckets + 4 * np.arange(3)[:, None]).reshape(2, -1))
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, v)]
    theirs = module(*tensors)[0]
    out, backward = lsh_attention(x, v, chunks=lsh_chunks_across(buckets, chunk=4), causal=causal, once=once, scale=3**-0.5)
    bound = 1e-7 if once else 1e-9
    np.testing.assert_allclose(out, theirs.detach(), rtol=0, atol=bound)
    dout = rng.normal(size=out.shape)
    theirs.backward(torch.tensor(dout))
    for own, tensor in zip(backward(dout), tensors, strict=True):
        np.testing.assert_allclose(own, tensor.grad, rtol=0, atol=bound)


@pytest.mark.parity
def test_with_chunks_that_do_not_look_back_it_is_hugging_face_s():
    """There the first chunk of a round looks back at the last of another: with no look back the two agree. Their length has an eps of 1e-6."""
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.reformer.modeling_reformer")
    rng = np.random.default_rng(1)
    settings = {"attention_head_size": 3, "num_attention_heads": 2, "hidden_size": 6, "attn_layers": ["lsh"], "lsh_attn_chunk_length": 4,
                "lsh_num_chunks_before": 0, "lsh_num_chunks_after": 0, "num_hashes": 3, "is_decoder": True, "num_buckets": 4,
                "lsh_attention_probs_dropout_prob": 0.0}  # fmt: skip
    module = modeling.LSHSelfAttention(modeling.ReformerConfig(**settings), layer_idx=0).double().eval()
    hidden, buckets = rng.normal(size=(1, 16, 6)), rng.integers(4, size=(1, 2, 3, 16))
    offset = torch.tensor((buckets + 4 * np.arange(3)[:, None]).reshape(1, 2, -1))
    theirs = module(torch.tensor(hidden), num_hashes=3, buckets=offset).hidden_states.detach()
    x, v = ((hidden @ w.weight.detach().numpy().T).reshape(1, 16, 2, 3).swapaxes(1, 2) for w in (module.query_key, module.value))
    rank = np.argsort(np.argsort(buckets, axis=-1, kind="stable"), axis=-1)
    out = lsh_attention(x, v, chunks=2 * (rank // 4))[0]
    np.testing.assert_allclose(out.swapaxes(1, 2).reshape(1, 16, 6), theirs, rtol=0, atol=1e-4)
