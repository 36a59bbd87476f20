"""Rows of a table as products of small cores, of which only what is asked for is multiplied out."""

import itertools
import math

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.basics.embedding import Embedding, embedding
from minitransformers.compression.ttm_embedding import TtmEmbedding, heads, init_ttm_embedding, ttm_embedding

RNG = np.random.default_rng(0)
TOKENS, FEATURES, RANKS = (3, 2, 4), (2, 3, 2), (4, 2)
CORES = [RNG.normal(size=shape) for shape in ((1, 3, 2, 4), (4, 2, 3, 2), (2, 4, 2, 1))]
IDS = np.array([[4, 0, 23, 4, 6], [15, 6, 20, 4, 0]])
DOUT = RNG.normal(size=(2, 5, 12))


def table(cores):
    """The whole table, each number a product of one matrix for each pair of digits."""
    rows = []
    for token in itertools.product(*(range(core.shape[1]) for core in cores)):
        for feature in itertools.product(*(range(core.shape[2]) for core in cores)):
            product = anp.ones((1, 1))
            for core, i, j in zip(cores, token, feature, strict=True):
                product = anp.dot(product, core[:, i, j, :])
            rows.append(product[0, 0])
    return anp.reshape(anp.array(rows), (math.prod(core.shape[1] for core in cores), -1))


def test_it_is_the_rows_of_the_written_out_table_and_its_gradients_are_autograd_s():
    out, backward = ttm_embedding(TtmEmbedding(CORES), ids=IDS)
    np.testing.assert_allclose(out, table(CORES)[IDS], rtol=0, atol=1e-10)
    expected = autograd.grad(lambda cores: anp.sum(DOUT * table(cores)[IDS]))(CORES)
    for own, their in zip(backward(DOUT).cores, expected, strict=True):
        np.testing.assert_allclose(own, their, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("tokens", "features"), [((7,), (5,)), ((2, 3), (3, 1)), ((2, 2, 3, 2), (2, 1, 2, 2))])
def test_any_number_of_cores_reads_as_the_table(tokens, features):
    cores = init_ttm_embedding(RNG, tokens, features, ranks=(3, 2, 4)[: len(tokens) - 1], std=1.0, dtype=np.float64).cores
    ids = RNG.integers(math.prod(tokens), size=11)
    out, backward = ttm_embedding(TtmEmbedding(cores), ids=ids)
    plain, plain_backward = embedding(Embedding(table(cores)), ids=ids)
    np.testing.assert_allclose(out, plain, rtol=0, atol=1e-12)
    dout = RNG.normal(size=out.shape)
    dtable = plain_backward(dout).weight
    expected = autograd.grad(lambda cores: anp.sum(dtable * table(cores)))(cores)
    for own, their in zip(backward(dout).cores, expected, strict=True):
        np.testing.assert_allclose(own, their, rtol=0, atol=1e-10)


def test_a_token_that_stands_twice_gets_both_gradients():
    params = TtmEmbedding(CORES)
    twice = ttm_embedding(params, ids=np.array([5, 5]))[1](DOUT[0, :2])
    once = ttm_embedding(params, ids=np.array([5]))[1](DOUT[0, :2].sum(axis=0, keepdims=True))
    for one, other in zip(twice.cores, once.cores, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


def test_a_slice_that_no_token_uses_gets_no_gradient():
    dcores = ttm_embedding(TtmEmbedding(CORES), ids=np.array([0, 1]))[1](DOUT[0, :2]).cores  # both begin with the digits 0, 0
    assert not dcores[0][:, 1:].any() and not dcores[1][:, 1:].any() and not dcores[2][:, 2:].any()
    assert dcores[0][:, 0].any() and dcores[1][:, 0].any() and dcores[2][:, :2].any()


def test_what_several_tokens_begin_with_is_multiplied_out_once():
    ids = RNG.integers(24, size=1000)
    ups, _, place = heads(ids, list(TOKENS))
    assert [len(up) for up in ups] == [3, 6, 24] and place.shape == (1000,)
    ups, _, _ = heads(IDS, list(TOKENS))
    written = {tuple(np.unravel_index(number, TOKENS)) for number in IDS.ravel()}
    assert [len(up) for up in ups] == [len({token[:k] for token in written}) for k in (1, 2, 3)] == [3, 4, 6]


def test_heads_say_how_each_token_is_put_together():
    ups, digits, place = heads(IDS, list(TOKENS))
    for number, own in zip(IDS.ravel(), place, strict=True):
        read = []
        for up, digit in zip(reversed(ups), reversed(digits), strict=True):
            read.append(digit[own])
            own = up[own]
        assert np.ravel_multi_index(read[::-1], TOKENS) == number


def test_the_start_has_the_size_that_was_asked_for():
    draws = [table(init_ttm_embedding(np.random.default_rng(seed), (2, 3), (3, 2), ranks=(4,), std=0.5, dtype=np.float64).cores) for seed in range(1000)]
    squares = np.mean(np.square(draws), axis=(1, 2))
    assert abs(np.mean(squares) - 0.25) < 4 * np.std(squares) / np.sqrt(len(squares))  # four standard errors


def test_a_vocabulary_of_thirty_thousand_takes_few_numbers():
    params = init_ttm_embedding(RNG, (28, 33, 34), (8, 8, 12), ranks=(30, 30))
    assert sum(core.size for core in params.cores) == 28 * 8 * 30 + 30 * 33 * 8 * 30 + 30 * 34 * 12 < 28 * 33 * 34 * 768 / 90


def test_the_checker_refuses_a_backward_that_writes_the_last_of_equal_tokens():
    def wrong(params):
        out, backward = ttm_embedding(params, ids=IDS)

        def last_alone(dout):
            rows = dout.reshape(-1, 12).copy()
            numbers = IDS.ravel()
            for n, number in enumerate(numbers):
                if number in numbers[n + 1 :]:
                    rows[n] = 0                              # what dtable[ids] = dout does
            return backward(rows.reshape(dout.shape))

        return out, last_alone

    assert not check_gradients(wrong, TtmEmbedding(CORES)).passed


def test_what_does_not_fit_is_refused():
    params = TtmEmbedding(CORES)
    with pytest.raises(ValueError, match="ids: got ids from 0 to 24, wants 0 to 23, the rows of the table"):
        ttm_embedding(params, ids=np.array([0, 24]))
    with pytest.raises(ValueError, match="ids: got ids from -1"):
        ttm_embedding(params, ids=np.array([0, -1]))
    with pytest.raises(ValueError, match=r"params\.cores\.1: got 3 links beside 4"):
        ttm_embedding(TtmEmbedding([np.ones((1, 3, 2, 4)), np.ones((3, 8, 3, 1))]), ids=IDS)
    with pytest.raises(ValueError, match=r"params\.cores\.0: got 2 links beside 1"):
        ttm_embedding(TtmEmbedding([np.ones((2, 24, 3, 1))]), ids=IDS)
    with pytest.raises(ValueError, match=r"params\.cores\.1: got 1 links beside 2"):
        ttm_embedding(TtmEmbedding([np.ones((1, 3, 2, 4)), np.ones((4, 8, 3, 2))]), ids=IDS)
    with pytest.raises(ValueError, match="ranks: got 2, for 2 and 2 digits"):
        init_ttm_embedding(RNG, (2, 3), (3, 2), ranks=(4, 2))
