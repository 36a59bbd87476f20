import numpy as np
import pytest

from minitransformers.training.needles import flags, keys_and_values, matching, surprising_pairs
from minitransformers.training.task import IGNORED

MATCHING = {"batch_size": 40, "num_names": 5, "num_colours": 3}
FLAGS = {"batch_size": 400, "length": 7, "num_flags": 4, "num_noise": 3}
KEYS = {"batch_size": 300, "length": 6, "d_key": 4, "num_values": 3}
PAIRS = {"batch_size": 20, "length": 24, "num_pairs": 3, "part": 5, "period": 4, "first": 6, "last": 18}


@pytest.mark.parametrize(("task", "sizes"), [(matching, MATCHING), (flags, FLAGS), (keys_and_values, KEYS), (surprising_pairs, PAIRS)])
def test_the_same_seed_gives_the_same_batch(task, sizes):
    for first, second in zip(task(np.random.default_rng(1), **sizes), task(np.random.default_rng(1), **sizes), strict=True):
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(task(np.random.default_rng(1), **sizes)[0], task(np.random.default_rng(2), **sizes)[0])


def test_matching_asks_for_the_colour_that_a_name_had():
    ids, targets = matching(np.random.default_rng(0), **MATCHING)
    assert ids.shape == (40, 2, 10) and targets.shape == (40, 10) and (targets[:, :5] == IGNORED).all()
    assert len({tuple(row) for row in ids[:, 0]}) == 40 and set(np.unique(ids[:, 1])) == {5, 6, 7, 8}
    for (names, carried), wanted in zip(ids, targets, strict=True):
        assert sorted(names[:5]) == sorted(names[5:]) == list(range(5)) and (carried[5:] == 8).all()
        colour = dict(zip(names[:5], carried[:5], strict=True))
        np.testing.assert_array_equal(wanted[5:], [colour[name] - 5 for name in names[5:]])


def test_one_flag_stands_anywhere_but_first_and_is_asked_everywhere():
    ids, targets = flags(np.random.default_rng(0), **FLAGS)
    assert ids.shape == targets.shape == (400, 7) and (ids[:, 0] == 7).all()
    assert set(np.unique(ids[:, 1:])) == set(range(7)) and ((ids < 4).sum(axis=1) == 1).all()
    np.testing.assert_array_equal(targets, np.repeat(ids[ids < 4][:, None], 7, axis=1))
    assert set(np.nonzero(ids < 4)[1]) == set(range(1, 7))


def test_a_token_asks_for_a_key_that_it_may_see_and_gets_its_value():
    tokens, targets, asked = keys_and_values(np.random.default_rng(0), **KEYS)
    keys, questions, values = np.split(tokens, [4, 8], axis=-1)
    assert tokens.shape == (300, 6, 11) and tokens.dtype == np.float32
    assert (asked <= np.arange(6)).all() and (asked.min(axis=0) == 0).all() and (asked.max(axis=0) == np.arange(6)).all()
    rows = np.arange(300)[:, None]
    np.testing.assert_array_equal(questions, keys[rows, asked])
    np.testing.assert_array_equal(values.sum(axis=-1), 1)
    np.testing.assert_array_equal(targets, values.argmax(axis=-1)[rows, asked])


@pytest.mark.parametrize(
    ("task", "sizes", "changes", "named"),
    [
        (matching, MATCHING, {"num_names": 0}, "num_names"),
        (matching, MATCHING, {"num_colours": 1}, "num_colours"),
        (flags, FLAGS, {"length": 1}, "length"),
        (flags, FLAGS, {"num_noise": 0}, "num_noise"),
        (keys_and_values, KEYS, {"num_values": 1}, "num_values"),
        (keys_and_values, KEYS, {"batch_size": 0}, "batch_size"),
    ],
)
def test_impossible_sizes_are_refused_by_name(task, sizes, changes, named):
    with pytest.raises(ValueError, match=f"{named}: got"):
        task(np.random.default_rng(0), **{**sizes, **changes})


def test_pairs_stand_in_a_text_that_repeats_itself_and_are_asked_at_its_end():
    x, value, asked, places = surprising_pairs(np.random.default_rng(0), **PAIRS)
    rows, part = np.arange(len(x))[:, None], PAIRS["part"]
    assert (places >= 6).all() and (places < 18).all() and (np.diff(places) > 0).all() and (np.sort(asked) == np.arange(3)).all()
    np.testing.assert_array_equal(x[rows, places, part : 2 * part], value)
    np.testing.assert_array_equal(x[:, -3:, 2 * part :], x[rows, places[rows, asked], :part])
    assert not x[:, -3:, : 2 * part].any() and not x[:, :-3, 2 * part :].any()
    for text, own in zip(x, places, strict=True):
        others = [i for i in range(21) if i not in own]
        repeated = {i % 4: text[i] for i in others if i < 6 or i >= 18}
        for i in others:
            np.testing.assert_array_equal(text[i], repeated[i % 4])


@pytest.mark.parametrize(("changes", "named"), [({"length": 25}, "length"), ({"num_pairs": 13}, "num_pairs")])
def test_pairs_without_room_are_refused_by_name(changes, named):
    with pytest.raises(ValueError, match=named):
        surprising_pairs(np.random.default_rng(0), **{**PAIRS, **changes})
