"""LSH attention by sorting: what the plain form gives, for any chunks, at a cost that does not grow with the square."""

import tracemalloc

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.foundation import check_gradients
from minitransformers.sparse_attention.lsh_attention import lsh_attention, lsh_buckets, lsh_chunks, lsh_chunks_across
from minitransformers.sparse_attention.lsh_attention_sorted import lsh_attention_sorted

EVERY = [(causal, once) for causal in (True, False) for once in (True, False)]


def case(seed=0, batch=(2, 3), positions=9, rounds=3, num_buckets=4):
    rng = np.random.default_rng(seed)
    x, v = rng.normal(size=(*batch, positions, 3)), rng.normal(size=(*batch, positions, 4))
    return x, v, rng.integers(num_buckets, size=(*batch, rounds, positions))


def assert_equal_forms(x, v, *, atol=1e-12, **settings):
    (out, backward), (plain, plain_backward) = (form(x, v, **settings) for form in (lsh_attention_sorted, lsh_attention))
    np.testing.assert_allclose(out, plain, rtol=0, atol=atol)
    dout = np.random.default_rng(1).normal(size=out.shape).astype(out.dtype)
    for own, theirs in zip(backward(dout), plain_backward(dout), strict=True):
        assert own.dtype == theirs.dtype == x.dtype
        np.testing.assert_allclose(own, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize(("causal", "once"), EVERY)
@pytest.mark.parametrize("cut", [lsh_chunks, lsh_chunks_across])
@pytest.mark.parametrize("chunk", [1, 2, 3, 20])
def test_it_is_the_plain_form(chunk, cut, causal, once):
    x, v, buckets = case()
    assert_equal_forms(x, v, chunks=cut(buckets, chunk=chunk), causal=causal, once=once, scale=0.7)


@pytest.mark.parametrize("positions", [1, 2, 5, 16])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_lengths_of_one_below_a_chunk_and_of_any_number(positions, batch):
    x, v, buckets = case(2, batch, positions)
    assert_equal_forms(x, v, chunks=lsh_chunks(buckets, chunk=4))


def test_numbers_need_not_begin_at_zero_nor_be_near_each_other():
    x, v, _ = case(3, (), 6)
    chunks = np.array([[7, -3, 8, 8, -4, 1000], [5, 5, 5, 6, 7, 8]])
    assert_equal_forms(x, v, chunks=chunks, causal=False)


def test_the_last_chunk_of_one_round_or_text_is_not_the_one_before_the_next():
    """Numbers that go on from round to round and from text to text: only their own order may count."""
    x, v, _ = case(4, (2,), 4)
    chunks = np.array([[[0, 0, 1, 1], [2, 2, 3, 3]], [[4, 4, 5, 5], [6, 6, 7, 7]]])
    assert_equal_forms(x, v, chunks=chunks, causal=False)


def test_float32_agrees_with_float64():
    x, v, buckets = case(5)
    assert_equal_forms(x.astype(np.float32), v.astype(np.float32), chunks=lsh_chunks(buckets, chunk=2), atol=1e-5)


def test_scores_far_from_zero_on_either_side_are_no_trouble():
    x, v, buckets = case(10)
    assert_equal_forms(1e4 * x, v, chunks=lsh_chunks(buckets, chunk=2), atol=1e-9)


def textbook(x, v, chunks):
    """All pairs under the causal mask, each counted as often as it is found; the first position of every chunk may be alone."""
    rows = []
    for i in range(len(x)):
        times = [sum(int(c[i] - c[j] in (0, 1)) for c in chunks) for j in range(i)]
        powers = [n * anp.exp(anp.dot(x[i], x[j]) / anp.sqrt(anp.dot(x[j], x[j]))) for j, n in enumerate(times) if n]
        seen = [v[j] for j, n in enumerate(times) if n]
        rows.append(sum(p * w for p, w in zip(powers, seen, strict=True)) / sum(powers) if seen else v[i])
    return anp.stack(rows)


def test_it_is_the_textbook_sum_and_its_gradients_are_autograd_s():
    x, v, buckets = case(6, (), 8)
    chunks = lsh_chunks(buckets, chunk=2)
    out, backward = lsh_attention_sorted(x, v, chunks=chunks)
    np.testing.assert_allclose(out, textbook(x, v, chunks), rtol=0, atol=1e-10)
    dout = np.random.default_rng(7).normal(size=out.shape)
    expected = autograd.grad(lambda x, v: anp.sum(dout * textbook(x, v, chunks)), (0, 1))(x, v)
    for own, theirs in zip(backward(dout), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)


def peak(positions):
    """Of forward and backward, in bytes."""
    rng = np.random.default_rng(8)
    x, v = rng.standard_normal((2, positions, 4), np.float32)
    chunks = lsh_chunks(lsh_buckets(x, rounds=2, num_buckets=4), chunk=8)
    tracemalloc.start()
    out, backward = lsh_attention_sorted(x, v, chunks=chunks)
    backward(out)
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def test_memory_grows_with_the_length_and_not_with_its_square():
    peak(256)                                                # what a first call imports
    short, long = peak(1024), peak(4096)
    assert long < 4.5 * short
    assert long < 4096**2                                    # a byte a pair is already more


def test_the_checker_refuses_a_backward_that_forgets_what_the_next_chunk_read():
    x, v, buckets = case(9, ())
    chunks = lsh_chunks(buckets, chunk=2)

    def wrong(x, v):
        out, backward = lsh_attention_sorted(x, v, chunks=chunks)
        own_alone = lsh_attention_sorted(x, v, chunks=2 * chunks)[1]  # no number follows another
        return out, lambda dout: (backward(dout)[0], own_alone(dout)[1])

    assert not check_gradients(wrong, x, v).passed
