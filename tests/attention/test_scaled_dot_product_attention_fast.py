"""The fast form beside the plain one: the same outputs and gradients, whatever broadcasts and whatever is forbidden."""

import numpy as np
import pytest

from minitransformers.attention.masks import causal_mask, padding_mask
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.attention.scaled_dot_product_attention_fast import scaled_dot_product_attention_fast
from minitransformers.foundation import check_gradients

pytestmark = pytest.mark.usefixtures("few_or_many_queries")

RNG = np.random.default_rng(0)
HIDDEN = np.where(RNG.random((3, 4, 6)) < 0.3, -np.inf, RNG.normal(size=(3, 4, 6)))
HIDDEN[1, 2] = -np.inf                                       # a query that may attend to nothing

BIASES = {
    "no bias": None,
    "each": RNG.normal(size=(2, 3, 4, 6)),
    "a head": RNG.normal(size=(3, 1, 1)),
    "a key": RNG.normal(size=(6,))[None],
    "a query": RNG.normal(size=(4, 1)),
    "more axes": RNG.normal(size=(5, 1, 3, 4, 6)),
    "hides": HIDDEN,
}
MASKS = {
    "no mask": None,
    "causal": causal_mask(4, 6),
    "padding": padding_mask(np.array([4, 0]), 6),
    "each": RNG.random((2, 3, 4, 6)) < 0.6,
    "a query": np.array([[True], [False], [True], [True]]),
    "more axes": RNG.random((5, 1, 1, 4, 6)) < 0.6,
}
ARRAYS = {  # queries, keys, values
    "alike": ((2, 3), (2, 3), (2, 3)),
    "shared keys": ((2, 3), (2, 1), (2, 1)),
    "one text": ((2, 3), (3,), ()),
    "more queries": ((5, 2, 3), (2, 3), (2, 3)),
    "more keys": ((), (5, 2, 3), (3,)),
    "more values": ((3,), (2, 1), (5, 2, 3)),
}


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("mask", MASKS)
def test_outputs_and_all_gradients_are_those_of_the_plain_form(bias, mask):
    rng = np.random.default_rng(1)
    for batches in ARRAYS.values():
        arrays = [rng.normal(size=(*batch, *tail)) for batch, tail in zip(batches, ((4, 5), (6, 5), (6, 7)), strict=True)]
        for scale in (None, -0.3):
            out, backward = scaled_dot_product_attention_fast(*arrays, BIASES[bias], mask=MASKS[mask], scale=scale)
            wanted, plain_backward = scaled_dot_product_attention(*arrays, BIASES[bias], mask=MASKS[mask], scale=scale)
            np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-12)
            dout = rng.normal(size=out.shape)
            for own, theirs in zip(backward(dout), plain_backward(dout), strict=True):
                assert (own is None) == (theirs is None)
                if own is not None:
                    assert own.shape == theirs.shape
                    np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


def test_in_float32_they_agree_to_rounding():
    rng = np.random.default_rng(2)
    arrays = [rng.normal(size=(2, 40, 8)).astype(np.float32) for _ in range(3)]
    (out, backward), (wanted, plain_backward) = (
        attention(*arrays, mask=causal_mask(40)) for attention in (scaled_dot_product_attention_fast, scaled_dot_product_attention)
    )
    np.testing.assert_allclose(out, wanted, rtol=0, atol=2e-6)
    for own, theirs in zip(backward(np.cos(out))[:3], plain_backward(np.cos(out))[:3], strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-5)


def test_a_very_long_row_still_sums_to_one_in_float32():
    """In the order in which scores lie in memory, a running sum of 65,536 nearly equal numbers is off by 4e-4."""
    rng, keys = np.random.default_rng(3), 65_536
    q, k = rng.normal(size=(8, 4)).astype(np.float32), (1e-3 * rng.normal(size=(keys, 4))).astype(np.float32)
    sums = scaled_dot_product_attention_fast(q, k, np.ones((keys, 1), np.float32))[0]
    np.testing.assert_allclose(sums, 1, atol=1e-4)


def test_neither_the_arguments_nor_what_was_returned_before_is_written_over():
    rng = np.random.default_rng(4)
    arrays = [rng.normal(size=(3, 4)) for _ in range(3)]
    copies = [a.copy() for a in arrays]
    out, backward = scaled_dot_product_attention_fast(*arrays, mask=causal_mask(3))
    first, kept = backward(np.cos(out)), out.copy()
    scaled_dot_product_attention_fast(*arrays)[1](np.sin(out))
    for a, b in zip((*arrays, out, *first[:3]), (*copies, kept, *backward(np.cos(out))[:3]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_checker_refuses_a_shared_term_from_the_wrong_side():
    """dout . out is the sum of dweights weights over the keys; dout . value of the query's own place is not."""
    rng = np.random.default_rng(5)
    q, k, v = (rng.normal(size=(4, 5)) for _ in range(3))

    def wrong(q, k, v):
        out, backward = scaled_dot_product_attention_fast(q, k, v)
        weights = scaled_dot_product_attention_fast(q, k, np.eye(4))[0]

        def off(dout):
            dlogits = weights * (dout @ v.T - np.vecdot(dout, v)[:, None])
            return dlogits @ k * 5**-0.5, dlogits.T @ q * 5**-0.5, backward(dout)[2]

        return out, off

    report = check_gradients(wrong, q, k, v)
    assert [a.error > 1e-2 for a in report.arguments] == [True, True, False]
