"""Merging chunks: each token gets the mean of what is said of it, and its gradient goes back in the same shares."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.long_context.chunking import chunk_coverage, max_context, overlapping_chunks
from minitransformers.long_context.merge_chunks import merge_chunks

RNG = np.random.default_rng(0)
LENGTH, SIZE = 11, 5
STARTS = np.array([0, 3, 6, 9])                              # the last is padded
OUTPUTS, DOUT = RNG.normal(size=(2, 4, 5, 3)), RNG.normal(size=(2, 11, 3))
EVERY = np.ones((4, 5), bool)


def token_by_token(outputs, mask):
    rows = []
    for t in range(LENGTH):
        said = [outputs[:, c, t - start] for c, start in enumerate(STARTS) if 0 <= t - start < SIZE and mask[c, t - start]]
        rows.append(sum(said) / len(said))
    return anp.stack(rows, axis=1)


@pytest.mark.parametrize("mask", [None, max_context(STARTS, size=SIZE, length=LENGTH)], ids=["coverage", "max context"])
def test_it_is_the_mean_of_each_token_and_its_gradient_is_autograd_s(mask):
    out, backward = merge_chunks(OUTPUTS, starts=STARTS, length=LENGTH, mask=mask)
    asked = EVERY if mask is None else mask
    np.testing.assert_allclose(out, token_by_token(OUTPUTS, asked), rtol=0, atol=1e-12)
    expected = autograd.grad(lambda outputs: anp.sum(DOUT * token_by_token(outputs, asked)))(OUTPUTS)
    np.testing.assert_allclose(backward(DOUT), expected, rtol=0, atol=1e-12)


def test_chunks_that_agree_give_back_what_they_agree_on():
    text = RNG.normal(size=(LENGTH, 3))
    places = np.minimum(STARTS[:, None] + np.arange(SIZE), LENGTH - 1)
    out, _ = merge_chunks(text[places], starts=STARTS, length=LENGTH)
    np.testing.assert_allclose(out, text, rtol=0, atol=1e-15)


def test_without_overlap_it_puts_the_text_together_exactly():
    text = RNG.normal(size=(12, 3))
    out, backward = merge_chunks(text.reshape(3, 4, 3), starts=np.array([0, 4, 8]), length=12)
    np.testing.assert_array_equal(out, text)
    np.testing.assert_array_equal(backward(text), text.reshape(3, 4, 3))


def test_a_token_s_gradient_is_shared_out_and_nothing_of_it_is_lost():
    dchunks = merge_chunks(OUTPUTS, starts=STARTS, length=LENGTH)[1](DOUT)
    back = np.zeros_like(DOUT)
    for c, start in enumerate(STARTS):
        for i in range(min(SIZE, LENGTH - start)):
            back[:, start + i] += dchunks[:, c, i]
    np.testing.assert_allclose(back, DOUT, rtol=0, atol=1e-15)
    counts = chunk_coverage(STARTS, size=SIZE, length=LENGTH)
    np.testing.assert_allclose(dchunks[:, 1, 2], DOUT[:, 5] / counts[5], rtol=0, atol=1e-15)


def test_with_max_context_one_chunk_speaks_and_the_others_learn_nothing():
    chosen = max_context(STARTS, size=SIZE, length=LENGTH)
    out, backward = merge_chunks(OUTPUTS, starts=STARTS, length=LENGTH, mask=chosen)
    for c, i in zip(*np.nonzero(chosen), strict=True):
        np.testing.assert_array_equal(out[:, STARTS[c] + i], OUTPUTS[:, c, i])
    assert not backward(DOUT)[:, ~chosen].any()


def test_padding_and_what_is_not_asked_may_hold_anything_and_gets_no_gradient():
    chosen = max_context(STARTS, size=SIZE, length=LENGTH)
    spoiled = np.where(chosen[..., None], OUTPUTS, np.nan)
    out, backward = merge_chunks(spoiled, starts=STARTS, length=LENGTH, mask=chosen)
    np.testing.assert_array_equal(out, merge_chunks(OUTPUTS, starts=STARTS, length=LENGTH, mask=chosen)[0])
    assert not backward(DOUT)[:, 3, 2:].any()
    spoiled = OUTPUTS.copy()
    spoiled[:, 3, 2:] = np.inf
    np.testing.assert_array_equal(merge_chunks(spoiled, starts=STARTS, length=LENGTH)[0], merge_chunks(OUTPUTS, starts=STARTS, length=LENGTH)[0])


def test_a_mask_that_asks_for_padding_asks_for_nothing_more():
    own, backward = merge_chunks(OUTPUTS, starts=STARTS, length=LENGTH, mask=EVERY)
    other, other_backward = merge_chunks(OUTPUTS, starts=STARTS, length=LENGTH)
    np.testing.assert_array_equal(own, other)
    np.testing.assert_array_equal(backward(DOUT), other_backward(DOUT))


def test_chunks_of_a_text_come_back_as_the_text():
    text = RNG.integers(9, size=37)
    for last in ("shift", "pad"):
        chunks = overlapping_chunks(text, size=8, overlap=3, last=last)
        out, _ = merge_chunks(chunks.ids[..., None].astype(float), starts=chunks.starts, length=37)
        np.testing.assert_allclose(out[:, 0], text, rtol=0, atol=1e-14)


@pytest.mark.parametrize("forgotten", ["the count", "the mask"])
def test_the_checker_refuses_a_backward_that_forgets(forgotten):
    chosen = max_context(STARTS, size=SIZE, length=LENGTH)
    places = np.minimum(STARTS[:, None] + np.arange(SIZE), LENGTH - 1)

    def wrong(outputs):
        mask = None if forgotten == "the count" else chosen
        return merge_chunks(outputs, starts=STARTS, length=LENGTH, mask=mask)[0], lambda dout: dout[:, places]

    assert not check_gradients(wrong, OUTPUTS).passed


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="starts: got no chunk that is asked for token 9, wants at least one for each of 11 tokens"):
        merge_chunks(OUTPUTS[:, :3], starts=np.array([0, 3, 4]), length=11)
    with pytest.raises(ValueError, match="mask: got no chunk that is asked for token 0"):
        merge_chunks(OUTPUTS, starts=STARTS, length=LENGTH, mask=~EVERY)
    with pytest.raises(ValueError, match="starts: got numbers from 0 to 11"):
        merge_chunks(OUTPUTS, starts=np.array([0, 3, 6, 11]), length=LENGTH)
    with pytest.raises(ValueError, match="starts"):
        merge_chunks(OUTPUTS, starts=STARTS[:3], length=LENGTH)
