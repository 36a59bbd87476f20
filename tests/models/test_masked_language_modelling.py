"""Masked language modelling: 15 % of what may be chosen, 80 to 10 to 10, specials never, and only the chosen are asked for."""

from functools import partial

import numpy as np
import pytest

from minitransformers.attention.masks import padding_mask
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.models.bert import BertOutput, bert, init_bert
from minitransformers.models.masked_language_modelling import masked_language_modelling

PAD, CLS, SEP, MASK, VOCABULARY = 0, 1, 2, 3, 29
corrupt = partial(masked_language_modelling, mask_id=MASK, vocabulary=VOCABULARY, specials=(PAD, CLS, SEP))


def texts(seed=0, *, count=400, length=128):
    """Texts of words between a [CLS] and a [SEP], some of them padded."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(4, VOCABULARY, size=(count, length))
    ends = rng.integers(length // 2, length, size=count)
    ids[:, 0] = CLS
    ids[np.arange(count), ends] = SEP
    ids[np.arange(length) > ends[:, None]] = PAD
    return ids


def textbook(ids, rng, *, mask_id, vocabulary, specials, rate, to_mask, to_random):
    """The rule, one token at a time."""
    u, v, r = rng.random(ids.shape), rng.random(ids.shape), rng.integers(vocabulary, size=ids.shape)
    read, asked = [], []
    for token, a, b, other in zip(ids.ravel(), u.ravel(), v.ravel(), r.ravel(), strict=True):
        if token == mask_id or token in specials or a >= rate:
            read.append(token)
            asked.append(-100)
            continue
        asked.append(token)
        read.append(mask_id if b < to_mask else other if b < to_mask + to_random else token)
    return np.reshape(read, ids.shape), np.reshape(asked, ids.shape)


class Coarse(np.random.Generator):
    """Draws in steps of a twentieth, so that many lie exactly on a bound, where they are not below it."""

    def random(self, size=None):
        return np.round(20 * super().random(size)) / 20


@pytest.mark.parametrize("generator", [np.random.Generator, Coarse])
@pytest.mark.parametrize("shares", [(0.15, 0.8, 0.1), (0.4, 0.3, 0.5), (1.0, 0.0, 1.0), (0.5, 0.0, 0.0)])
def test_is_the_rule_token_by_token(shares, generator):
    rate, to_mask, to_random = shares
    settings = {"mask_id": MASK, "vocabulary": VOCABULARY, "specials": (PAD, CLS, SEP), "rate": rate, "to_mask": to_mask, "to_random": to_random}
    ids = texts(count=5, length=40)
    one, other = (generator(np.random.PCG64(7)) for _ in range(2))
    found, expected = masked_language_modelling(ids, rng=one, **settings), textbook(ids, other, **settings)
    for own, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(own, theirs)


def within(found, share, of):
    """A count of draws that each succeed with that chance: within four deviations of its mean."""
    return abs(found - share * of) <= 4 * (of * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_shares_are_those_of_the_paper(seed):
    """Of all eligible tokens: 12 % hidden, 1.5 % random, 1.5 % as they were, and 85 % not asked for."""
    ids = texts(seed)
    after, labels = corrupt(ids, rng=np.random.default_rng(seed + 10))
    eligible, chosen = int((ids > MASK).sum()), labels != -100
    assert eligible > 30_000
    changed, same = after != ids, 1 / VOCABULARY             # a random id may be the one that was there
    hidden = chosen & (after == MASK) & changed
    other = chosen & changed & (after != MASK)
    kept = chosen & ~changed
    assert within(chosen.sum(), 0.15, eligible)
    assert within(hidden.sum(), 0.12 + 0.015 * same, eligible)
    assert within(other.sum(), 0.015 * (1 - 2 * same), eligible)
    assert within(kept.sum(), 0.015 + 0.015 * same, eligible)
    for share, wrong in ((0.15, 0.2), (0.12, 0.15), (0.015, 0.03)):  # the bound is narrow enough to tell these apart
        assert not within(share * eligible, wrong, eligible)


def test_specials_are_never_chosen_and_never_touched():
    ids = texts(3)
    ids[:, 5] = MASK                                         # there before: there is nothing to ask
    after, labels = corrupt(ids, rng=np.random.default_rng(4), rate=1.0)
    special = ids <= MASK
    np.testing.assert_array_equal(labels != -100, ~special)
    np.testing.assert_array_equal(after[special], ids[special])


def test_labels_are_the_tokens_that_were_there_and_nothing_else_changes():
    ids = texts(5)
    after, labels = corrupt(ids, rng=np.random.default_rng(6))
    chosen = labels != -100
    np.testing.assert_array_equal(labels[chosen], ids[chosen])
    np.testing.assert_array_equal(after[~chosen], ids[~chosen])
    np.testing.assert_array_equal(np.where(chosen, labels, after), ids)  # the text can be put together again


def test_a_random_id_is_any_of_the_vocabulary_alike():
    ids = np.full((300, 100), 4)
    after, _ = corrupt(ids, rng=np.random.default_rng(8), rate=1.0, to_mask=0.0, to_random=1.0)
    counts = np.bincount(after.ravel(), minlength=VOCABULARY)
    assert len(counts) == VOCABULARY and all(within(count, 1 / VOCABULARY, ids.size) for count in counts)


def test_choices_of_neighbours_do_not_depend_on_each_other():
    _, labels = corrupt(np.full((300, 101), 9), rng=np.random.default_rng(9))
    chosen = labels != -100
    assert within((chosen[:, 1:] & chosen[:, :-1]).sum(), 0.15**2, 300 * 100)
    assert within((chosen[1:] & chosen[:-1]).sum(), 0.15**2, 299 * 101)


def test_one_generator_draws_anew_and_one_seed_the_same():
    ids, rng = texts(10, count=4), np.random.default_rng(11)
    first, second, again = corrupt(ids, rng=rng), corrupt(ids, rng=rng), corrupt(ids, rng=np.random.default_rng(11))
    assert (first.labels != second.labels).any()
    for own, expected in zip(first, again, strict=True):
        np.testing.assert_array_equal(own, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_what_is_given_is_not_written_to_and_any_whole_numbers_do(dtype):
    ids = texts(12, count=4).astype(dtype)
    before = ids.copy()
    after, labels = corrupt(ids, rng=np.random.default_rng(13))
    np.testing.assert_array_equal(ids, before)
    assert after.dtype == labels.dtype == np.int64 and labels.min() == -100
    assert not np.shares_memory(after, ids)


def test_nothing_is_asked_at_a_rate_of_nothing():
    ids = texts(14, count=4)
    after, labels = corrupt(ids, rng=np.random.default_rng(15), rate=0.0)
    np.testing.assert_array_equal(after, ids)
    assert (labels == -100).all()


def test_only_the_chosen_teach_bert():
    """The gradient of the loss is exactly zero where nothing is asked, padding included, and not where a token stayed as it was."""
    ids = texts(16, count=3, length=24)
    after, labels = corrupt(ids, rng=np.random.default_rng(17), rate=0.5, to_mask=0.4, to_random=0.2)
    params = init_bert(np.random.default_rng(18), vocabulary=VOCABULARY, d_model=8, num_layers=1, num_heads=2, context=24, std=0.5, dtype=np.float64)
    out, backward = bert(params._replace(pooler=None, pair=None), ids=after, num_heads=2, mask=padding_mask((ids != PAD).sum(axis=1), 24))
    _, loss_backward = cross_entropy(out.tokens, targets=labels)
    dtokens = loss_backward(np.float64(1))
    chosen = labels != -100
    assert not dtokens[~chosen].any() and (np.abs(dtokens[chosen]).max(axis=-1) > 0).all()
    assert (chosen & (after == ids)).any()
    dparams = backward(BertOutput(None, None, None, dtokens))
    assert np.abs(dparams.embedding.weight[MASK]).max() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": np.array([[4, 29]])}, "ids: got ids from 4 to 29, wants 0 to 28"),
        ({"ids": np.array([[-1, 4]])}, "ids: got ids from -1 to 4"),
        ({"ids": np.array([[4.0]])}, "ids"),
        ({"ids": np.zeros((2, 0), int)}, "ids"),
        ({"mask_id": 29}, "mask_id: got 29, wants an id from 0 to 28"),
        ({"mask_id": -1}, "mask_id: got -1"),
        ({"specials": (0.5,)}, "specials.0: got 0.5"),
        ({"specials": 0}, "specials: got 0, wants a list or a tuple"),
        ({"rate": 1.5}, "rate: got 1.5"),
        ({"to_mask": -0.1}, "to_mask: got -0.1"),
        ({"to_mask": 0.8, "to_random": 0.3}, "to_random: got 0.3, and to_mask of 0.8, wants no more than 1 together"),
        ({"rng": 0}, "rng: got 0, wants a Generator"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    call = {"ids": texts(count=2), "rng": np.random.default_rng(0), **changes}
    with pytest.raises(ValueError, match=message):
        corrupt(call.pop("ids"), **call)
