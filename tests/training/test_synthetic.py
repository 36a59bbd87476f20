import numpy as np
import pytest

from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.training.synthetic import (
    IGNORED,
    NOISE,
    associative_recall,
    copying,
    few_first,
    induction_heads,
    packed_recall,
    selective_copying,
)

COPYING = {"batch_size": 50, "length": 11, "num_tokens": 3, "vocabulary_size": 7}
INDUCTION = {"batch_size": 50, "length": 9, "vocabulary_size": 6}
RECALL = {"batch_size": 50, "length": 20, "num_pairs": 3, "vocabulary_size": 13}
PACKED = {"batch_size": 50, "num_pairs": 3, "vocabulary_size": 13, "gap": 4}
TASKS = [(selective_copying, COPYING), (copying, COPYING), (induction_heads, INDUCTION), (associative_recall, RECALL), (packed_recall, PACKED)]


@pytest.mark.parametrize(("task", "sizes"), TASKS)
def test_the_same_seed_gives_the_same_batch(task, sizes):
    for first, second in zip(task(np.random.default_rng(1), **sizes), task(np.random.default_rng(1), **sizes), strict=True):
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(task(np.random.default_rng(1), **sizes)[0], task(np.random.default_rng(2), **sizes)[0])


@pytest.mark.parametrize(("task", "sizes"), TASKS)
def test_ids_and_answers_lie_in_the_vocabulary(task, sizes):
    ids, targets = task(np.random.default_rng(3), **sizes)
    assert ids.shape == targets.shape
    assert ids.dtype == targets.dtype == np.intp
    for found in (ids, targets[targets != IGNORED]):
        assert found.min() >= 0
        assert found.max() < sizes["vocabulary_size"]


@pytest.mark.parametrize(("task", "sizes"), TASKS)
def test_positions_without_an_answer_have_no_gradient(task, sizes):
    ids, targets = task(np.random.default_rng(4), **sizes)
    logits = np.random.default_rng(5).normal(size=(*ids.shape, sizes["vocabulary_size"]))
    dlogits = cross_entropy(logits, targets=targets)[1](np.float64(1))
    np.testing.assert_array_equal(np.any(dlogits != 0, axis=-1), targets != IGNORED)


@pytest.mark.parametrize("task", [selective_copying, copying])
def test_copying_wants_the_tokens_that_are_not_noise_in_order(task):
    ids, targets = task(np.random.default_rng(6), **COPYING)
    assert ids.shape == (50, 14)
    assert (ids[:, 11:] == 6).all()
    for row, wanted in zip(ids[:, :11], targets, strict=True):
        data = row[row != NOISE]
        assert len(data) == 3
        assert 6 not in data
        assert (wanted[:11] == IGNORED).all()
        np.testing.assert_array_equal(wanted[11:], data)


def test_plain_copying_is_a_fixed_delay_and_selective_copying_is_not():
    ids, targets = copying(np.random.default_rng(7), **COPYING)
    np.testing.assert_array_equal(ids[:, :3], targets[:, 11:])
    ids, targets = selective_copying(np.random.default_rng(7), **COPYING)
    places = np.nonzero(ids[:, :11] != NOISE)[1].reshape(50, 3)
    assert len(np.unique(places, axis=0)) > 30


def test_data_of_selective_copying_stand_anywhere_alike():
    ids, _ = selective_copying(np.random.default_rng(8), **{**COPYING, "batch_size": 5000})
    share = (ids[:, :11] != NOISE).mean(axis=0)
    assert np.abs(share - 3 / 11).max() < 5 * np.sqrt(3 / 11 * 8 / 11 / 5000)
    counts = np.bincount(ids[:, :11][ids[:, :11] != NOISE], minlength=7)
    assert counts[0] == counts[6] == 0
    assert np.abs(counts[1:6] / counts.sum() - 1 / 5).max() < 5 * np.sqrt(1 / 5 * 4 / 5 / counts.sum())


def test_data_may_fill_the_whole_length():
    ids, targets = selective_copying(np.random.default_rng(9), batch_size=2, length=3, num_tokens=3, vocabulary_size=5)
    np.testing.assert_array_equal(ids[:, :3], targets[:, 3:])


def test_induction_asks_what_followed_the_special_token():
    ids, targets = induction_heads(np.random.default_rng(10), **INDUCTION)
    assert (targets[:, :-1] == IGNORED).all()
    for row, wanted in zip(ids, targets, strict=True):
        (first, last) = np.flatnonzero(row == 5)
        assert last == 8
        assert first + 1 < last
        assert wanted[-1] == row[first + 1] != 5


def test_the_first_special_token_stands_anywhere():
    ids, _ = induction_heads(np.random.default_rng(11), batch_size=300, length=9, vocabulary_size=6)
    np.testing.assert_array_equal(np.unique((ids == 5).argmax(axis=1)), np.arange(7))


@pytest.mark.parametrize("num_questions", [1, 2, 4])
def test_every_special_token_but_the_first_asks_and_gets_the_same_answer(num_questions):
    ids, targets = induction_heads(np.random.default_rng(16), **INDUCTION, num_questions=num_questions)
    places = np.argwhere(ids == 5)[:, 1].reshape(50, num_questions + 1)
    assert (np.diff(places, axis=1) >= 2).all()
    for row, wanted, special in zip(ids, targets, places, strict=True):
        answer = row[special[0] + 1]
        np.testing.assert_array_equal(row[special[:-1] + 1], answer)
        np.testing.assert_array_equal(np.flatnonzero(wanted != IGNORED), special[1:])
        assert (wanted[special[1:]] == answer).all()


def test_all_places_of_many_questions_are_alike_likely():
    """Two special tokens before the end, two apart and from place 0 to 6: 15 ways, each drawn as often."""
    ids, _ = induction_heads(np.random.default_rng(17), batch_size=21_000, length=9, vocabulary_size=6, num_questions=2)
    places = np.argwhere(ids[:, :-1] == 5)[:, 1].reshape(-1, 2)
    ways, counts = np.unique(places, axis=0, return_counts=True)
    assert len(ways) == 15
    assert np.abs(counts - 1400).max() < 5 * np.sqrt(1400)


@pytest.mark.parametrize("random_filler", [False, True])
def test_recall_asks_each_key_once_for_its_value(random_filler):
    ids, targets = associative_recall(np.random.default_rng(12), **RECALL, random_filler=random_filler)
    for row, wanted in zip(ids, targets, strict=True):
        keys, values = row[0:6:2], row[1:6:2]
        assert len(set(keys)) == len(set(values)) == 3
        assert (keys >= 1).all()
        assert (keys < 6).all()
        assert (values >= 6).all()
        asked = np.flatnonzero(wanted != IGNORED)
        assert (asked >= 6).all()
        assert (asked % 2 == 0).all()
        assert sorted(row[asked]) == sorted(keys)
        book = dict(zip(keys, values, strict=True))
        np.testing.assert_array_equal(wanted[asked], [book[key] for key in row[asked]])
        rest = np.delete(row[6:], asked - 6)
        assert random_filler or (rest == NOISE).all()
    assert not random_filler or len(np.unique(ids[:, 6:])) == 13


def test_recall_asks_soon_by_a_power_law():
    """The first draw of a slot has the probability g^(power - 1), normalised; later draws have what is left."""
    _, targets = associative_recall(np.random.default_rng(13), batch_size=20_000, length=12, num_pairs=1, vocabulary_size=9)
    share = np.bincount(((targets != IGNORED).argmax(axis=1) - 2) // 2, minlength=5) / 20_000
    law = np.arange(1, 6) ** -0.99
    assert np.abs(share - law / law.sum()).max() < 5 * np.sqrt(0.25 / 20_000)
    _, targets = associative_recall(np.random.default_rng(13), batch_size=20_000, length=12, num_pairs=2, vocabulary_size=9)
    law = np.arange(1, 5) ** -0.99
    law /= law.sum()
    pair = [[0 if a == b else law[a] * law[b] / (1 - law[a]) for b in range(4)] for a in range(4)]
    share = (targets != IGNORED)[:, 4::2].mean(axis=0)
    assert np.abs(share - np.sum(pair, axis=0) - np.sum(pair, axis=1)).max() < 5 * np.sqrt(0.25 / 20_000)


def test_a_power_of_one_asks_anywhere_alike():
    _, targets = associative_recall(np.random.default_rng(14), batch_size=20_000, length=12, num_pairs=1, vocabulary_size=9, power=1)
    share = (targets != IGNORED)[:, 2::2].mean(axis=0)
    assert np.abs(share - 1 / 5).max() < 5 * np.sqrt(0.16 / 20_000)


@pytest.mark.parametrize("gap", [0, 4])
def test_packed_recall_asks_each_key_once_and_at_once(gap):
    ids, targets = packed_recall(np.random.default_rng(18), **{**PACKED, "gap": gap})
    assert ids.shape == (50, 9 + gap) and (ids[:, 6 : 6 + gap] == NOISE).all() and (targets[:, : 6 + gap] == IGNORED).all()
    orders = set()
    for row, wanted in zip(ids, targets, strict=True):
        book = dict(zip(row[0:6:2], row[1:6:2], strict=True))
        asked = row[6 + gap :]
        assert sorted(asked) == sorted(book)
        np.testing.assert_array_equal(wanted[6 + gap :], [book[key] for key in asked])
        orders.add(tuple(np.argsort(asked)[np.argsort(np.argsort(row[0:6:2]))]))
    assert len(orders) == 6, "any order"


def test_few_first_begins_with_one_and_ends_with_all():
    known = few_first(100, 5)
    assert (known[:31] == 1).all() and known[31] == 2 and (np.diff(known) >= 0).all() and (known[70:] == 5).all() and known[60] == 4
    np.testing.assert_array_equal(few_first(7, 1), np.ones(7))


@pytest.mark.parametrize(
    ("task", "sizes", "changes", "named"),
    [
        (selective_copying, COPYING, {"num_tokens": 12}, "num_tokens"),
        (selective_copying, COPYING, {"num_tokens": 0}, "num_tokens"),
        (selective_copying, COPYING, {"vocabulary_size": 3}, "vocabulary_size"),
        (selective_copying, COPYING, {"batch_size": 0}, "batch_size"),
        (copying, COPYING, {"num_tokens": 12}, "num_tokens"),
        (induction_heads, INDUCTION, {"length": 2}, "length"),
        (induction_heads, INDUCTION, {"vocabulary_size": 2}, "vocabulary_size"),
        (induction_heads, INDUCTION, {"num_questions": 0}, "num_questions"),
        (induction_heads, INDUCTION, {"num_questions": 5}, "num_questions"),
        (induction_heads, INDUCTION, {"batch_size": 0}, "batch_size"),
        (associative_recall, RECALL, {"length": 19}, "length"),
        (associative_recall, RECALL, {"num_pairs": 6}, "num_pairs"),
        (associative_recall, RECALL, {"num_pairs": 0}, "num_pairs"),
        (associative_recall, RECALL, {"vocabulary_size": 7}, "vocabulary_size"),
        (associative_recall, RECALL, {"power": 0}, "power"),
        (associative_recall, RECALL, {"batch_size": 0}, "batch_size"),
        (packed_recall, PACKED, {"num_pairs": 6}, "vocabulary_size"),
        (packed_recall, PACKED, {"gap": -1}, "gap"),
    ],
)
def test_impossible_sizes_are_refused_by_name(task, sizes, changes, named):
    with pytest.raises(ValueError, match=f"{named}: got"):
        task(np.random.default_rng(0), **{**sizes, **changes})


def test_the_smallest_sizes_are_possible():
    rng = np.random.default_rng(15)
    ids, targets = induction_heads(rng, batch_size=1, length=3, vocabulary_size=3)
    assert targets[0, 2] == ids[0, 1]
    ids, targets = associative_recall(rng, batch_size=1, length=4, num_pairs=1, vocabulary_size=4)
    assert ids[0, 2] == ids[0, 0] == 1
    assert targets[0, 2] == ids[0, 1]
