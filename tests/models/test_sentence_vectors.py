"""Sentence vectors: the mean over what is no padding, of length one."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.models.sentence_vectors import sentence_vectors

RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(3, 5, 4))
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 0, 1]], bool)


def textbook(hidden, mask):
    """One text at a time: pick the rows, add, divide, divide by the root of the sum of squares."""
    out = []
    for rows, counts in zip(hidden, mask, strict=True):
        picked = [rows[t] for t in range(len(counts)) if counts[t]]
        mean = sum(picked) / len(picked)
        out.append(mean / anp.sqrt(sum(mean[i] ** 2 for i in range(len(mean)))))
    return anp.stack(out)


@pytest.mark.parametrize("mask", [MASK, None], ids=["mask", "none"])
def test_equals_the_formula_in_output_and_gradient(mask):
    out, backward = sentence_vectors(HIDDEN, mask=mask)
    every = np.ones((3, 5), bool) if mask is None else mask
    np.testing.assert_allclose(out, textbook(HIDDEN, every), rtol=0, atol=1e-12)
    dout = RNG.normal(size=out.shape)
    expected = autograd.grad(lambda hidden: anp.sum(dout * textbook(hidden, every)))(HIDDEN)
    np.testing.assert_allclose(backward(dout), expected, rtol=0, atol=1e-12)


def test_lengths_are_one_and_the_scale_of_the_states_does_not_matter():
    out, _ = sentence_vectors(HIDDEN, mask=MASK)
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), 1, rtol=0, atol=1e-12)
    np.testing.assert_allclose(sentence_vectors(7.5 * HIDDEN, mask=MASK)[0], out, rtol=0, atol=1e-12)


def test_the_gradient_is_across_the_vector_and_zero_at_padding():
    out, backward = sentence_vectors(HIDDEN, mask=MASK)
    dhidden = backward(RNG.normal(size=out.shape))
    assert not dhidden[~MASK].any()
    np.testing.assert_allclose((dhidden * out[:, None]).sum(axis=-1), 0, rtol=0, atol=1e-12)  # nothing along it: its length is fixed
    assert np.abs(dhidden[MASK]).min() > 0


def test_what_stands_at_padding_does_not_count():
    other = np.where(MASK[..., None], HIDDEN, 99.0)
    np.testing.assert_array_equal(sentence_vectors(other, mask=MASK)[0], sentence_vectors(HIDDEN, mask=MASK)[0])


@pytest.mark.parametrize("forgotten", ["what is lost along the vector", "the length", "the mask"])
def test_a_backward_that_forgets_a_part_is_refused(forgotten):
    def careless(hidden):
        out, _ = sentence_vectors(hidden, mask=MASK)

        def wrong(dout):
            length = np.linalg.norm(hidden.sum(axis=1, where=MASK[..., None]), axis=-1, keepdims=True)
            dtotal = dout if forgotten == "what is lost along the vector" else dout - out * (out * dout).sum(axis=-1, keepdims=True)
            dtotal = dtotal if forgotten == "the length" else dtotal / length
            return (1 if forgotten == "the mask" else MASK[..., None]) * np.broadcast_to(dtotal[:, None], hidden.shape)

        return out, wrong

    assert not check_gradients(careless, HIDDEN, second_opinion=False).passed


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"mask": np.zeros((3, 5), bool)}, "mask: got a text of which no position counts"),
        ({"mask": np.array([[1] * 5, [0] * 5, [1] * 5], bool)}, "mask: got a text of which no position counts"),
        ({"mask": np.ones((3, 4), bool)}, "mask: got shape"),
        ({"mask": np.ones((3, 5))}, "mask: got float64"),
        ({"hidden": np.zeros((3, 5, 4))}, "hidden: got a text whose mean is 0"),
    ],
    ids=str,
)
def test_what_has_no_vector_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        sentence_vectors(call.pop("hidden", HIDDEN), **call)
