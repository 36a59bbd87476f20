"""Span corruption: the published counts, every token on exactly one side, all ways of cutting alike, and texts put together again."""

from collections import Counter
from itertools import pairwise
from math import comb

import numpy as np
import pytest

from minitransformers.models.masked_language_modelling import masked_language_modelling
from minitransformers.models.prefix_lm import prefix_lm
from minitransformers.models.span_corruption import random_spans, side, span_corruption, span_counts

VOCABULARY, END = 60, 1


def texts(seed=0, *, count=50, length=37):
    return np.random.default_rng(seed).integers(2, 40, size=(count, length))


def corrupted(ids, seed=1, **settings):
    return span_corruption(ids, rng=np.random.default_rng(seed), vocabulary=VOCABULARY, **settings)


def reconstruct(source, target, *, vocabulary=VOCABULARY, spans, end=END):
    """The text of two sides, by what they are for alone: the source is read, and a sentinel looks up what the target says of it.

    Raises ValueError where the two are no two sides of one text: a sentinel out of turn, twice, or on one side alone.
    """
    source, target = source.tolist(), target.tolist()
    if end is not None and (source.pop() != end or target.pop() != end):
        raise ValueError("no end")
    sentinels = [vocabulary - 1 - i for i in range(spans)]
    if [t for t in source if t in sentinels] != sentinels or [t for t in target if t in sentinels] != sentinels:
        raise ValueError("sentinels out of turn")
    places = [target.index(s) for s in sentinels] + [len(target)]
    if places[0] != 0:
        raise ValueError("tokens before the first sentinel")
    said = {s: target[a + 1 : b] for s, (a, b) in zip(sentinels, pairwise(places), strict=True)}
    return [token for t in source for token in said.get(t, [t])]


def textbook(ids, rng, *, rate, mean_span, end):
    """The published procedure, one text and one token at a time, from the same draws."""
    length = ids.shape[-1]
    hidden = min(max(int(np.round(length * rate)), 1), length - 1)
    spans = max(int(np.round(hidden / mean_span)), 1)
    spans = min(spans, hidden, length - hidden)
    rows = ids.reshape(-1, length)

    def segments(tokens):
        """The lengths of the segments, for each text: a mark before a token says that a segment begins there."""
        marks = rng.permuted(np.broadcast_to([True] * (spans - 1) + [False] * (tokens - spans), (*ids.shape[:-1], tokens - 1)), axis=-1)
        found = []
        for row in marks.reshape(len(rows), tokens - 1):
            lengths = [1]
            for mark in row:
                lengths.append(1) if mark else lengths.append(lengths.pop() + 1)
            found.append(lengths)
        return found

    kept, taken = segments(length - hidden), segments(hidden)
    sources, targets = [], []
    for row, ours, theirs in zip(rows.tolist(), kept, taken, strict=True):
        source, target, place = [], [], 0
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            source += [*row[place : place + a], VOCABULARY - 1 - i]
            target += [VOCABULARY - 1 - i, *row[place + a : place + a + b]]
            place += a + b
        sources.append(source + ([] if end is None else [end]))
        targets.append(target + ([] if end is None else [end]))
    return tuple(np.reshape(side, (*ids.shape[:-1], -1)) for side in (sources, targets))


SETTINGS = [(37, 0.15, 3.0), (37, 0.5, 3.0), (20, 0.9, 2.0), (8, 0.15, 3.0), (2, 0.5, 1.0), (9, 0.0, 3.0), (9, 1.0, 1.5), (30, 0.4, 1.0), (24, 0.25, 5.5)]


@pytest.mark.parametrize("end", [END, None])
@pytest.mark.parametrize(("length", "rate", "mean_span"), SETTINGS)
def test_is_the_published_procedure_token_by_token(length, rate, mean_span, end):
    ids = np.random.default_rng(0).integers(2, 40, size=(2, 4, length))
    found = corrupted(ids, 5, rate=rate, mean_span=mean_span, end=end)
    expected = textbook(ids, np.random.default_rng(5), rate=rate, mean_span=mean_span, end=end)
    for own, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(own, theirs)


@pytest.mark.parametrize(("length", "rate", "mean_span"), SETTINGS)
def test_every_token_stands_on_exactly_one_side_and_the_text_can_be_put_together_again(length, rate, mean_span):
    ids = texts(2, length=length)
    hidden, spans = span_counts(length, rate=rate, mean_span=mean_span)
    source, target = corrupted(ids, 3, rate=rate, mean_span=mean_span)
    assert source.shape == (50, length - hidden + spans + 1) and target.shape == (50, hidden + spans + 1)
    for text, one, other in zip(ids.tolist(), source, target, strict=True):
        assert reconstruct(one, other, spans=spans) == text
        both = Counter(one.tolist()) + Counter(other.tolist())
        assert both == Counter(text) + Counter({VOCABULARY - 1 - i: 2 for i in range(spans)}) + Counter({END: 2})


def test_a_plausible_mistake_is_not_put_together():
    """The control: sentinels that count up, or a span moved by one, are no text any more."""
    ids = texts(4, count=20)
    hidden, spans = span_counts(37)
    source, target = corrupted(ids, 6)
    low = VOCABULARY - spans
    rising = np.where(target >= low, VOCABULARY - 1 + low - target, target)
    assert spans == 2 and hidden == 6
    moved = np.concatenate([source[:, 1:-1], source[:, :1], source[:, -1:]], axis=1)
    for text, one, other, wrong, shifted in zip(ids.tolist(), source, target, rising, moved, strict=True):
        assert reconstruct(one, other, spans=spans) == text
        with pytest.raises(ValueError, match="sentinels out of turn"):
            reconstruct(one, wrong, spans=spans)
        assert reconstruct(shifted, other, spans=spans) != text


def test_the_counts_are_the_published_ones():
    """A text of 568 tokens makes a source of 512, the length that the models read, and a target of 114, ends included."""
    assert span_counts(568) == (85, 28)
    source, target = span_corruption(np.full((2, 568), 7), rng=np.random.default_rng(0), vocabulary=32_100)
    assert source.shape == (2, 512) and target.shape == (2, 114)
    assert len(range(32_000, 32_100)) >= 28 and source.max() == target.max() == 32_099
    longer = span_counts(569)
    assert 569 - longer[0] + longer[1] + 1 > 512             # it is the longest that fits


@pytest.mark.parametrize(("length", "settings", "counts"), [
    (10, {}, (2, 1)), (30, {}, (4, 1)), (50, {}, (8, 3)), (2, {}, (1, 1)), (100, {"rate": 0.5}, (50, 17)), (10, {"rate": 0.9, "mean_span": 1.0}, (9, 1)),
    (10, {"rate": 0.5, "mean_span": 1.0}, (5, 5)), (10, {"rate": 0.0}, (1, 1)), (10, {"rate": 1.0}, (9, 1)), (3, {"rate": 0.7, "mean_span": 9.0}, (2, 1)),
])  # fmt: skip
def test_counts_by_hand(length, settings, counts):
    """Halves go to the even number: 4.5 tokens are 4, and 7.5 are 8."""
    assert span_counts(length, **settings) == counts


def test_the_papers_sentence():
    """Its last words are kept, so the target ends in a third sentinel; the drawn spans always end a text, and have none."""
    words = "Thank you for inviting me to your party last week .".split()  # noqa: SIM905
    hides = np.isin(words, ["for", "inviting", "last"])
    ids, vocabulary = np.arange(len(words)), 100
    shown = [[words[i] if i < len(words) else f"<{99 - i}>" for i in side(ids, drops, vocabulary=vocabulary)] for drops in (hides, ~hides)]
    assert " ".join(shown[0]) == "Thank you <0> me to your party <1> week ."
    assert " ".join(shown[1]) == "<0> for inviting <1> last <2>"


def runs(row):
    """The lengths of runs of equal values, in order."""
    edges = np.flatnonzero(np.diff(row.astype(int))) + 1
    return tuple(np.diff([0, *edges, len(row)]).tolist())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_all_ways_of_cutting_are_alike(seed):
    """5 kept and 4 hidden tokens in 3 spans each: 6 times 3 ways."""
    draws = 3000
    hides = random_spans(9, rng=np.random.default_rng(seed), batch=(draws,), rate=0.4, mean_span=1.5)
    assert hides.sum(axis=1).tolist() == [4] * draws and span_counts(9, rate=0.4, mean_span=1.5) == (4, 3)
    assert not hides[:, 0].any() and hides[:, -1].all()      # a kept token first, a hidden one last
    counts = Counter(runs(row) for row in hides)
    ways = comb(4, 2) * comb(3, 2)
    assert len(counts) == ways == 18
    spread = (draws / ways * (1 - 1 / ways)) ** 0.5
    assert all(abs(count - draws / ways) <= 4 * spread for count in counts.values())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_expected_counts(seed):
    """Each kept span is as long as another on average, and so is each hidden one; tokens in the middle are hidden as often as the rate says."""
    hides = random_spans(512, rng=np.random.default_rng(seed), batch=(200,))
    lengths = np.array([runs(row) for row in hides])
    hidden, spans = span_counts(512)
    assert lengths.shape == (200, 2 * spans) and (hidden, spans) == (77, 26)
    for of, total in ((lengths[:, 1::2], hidden), (lengths[:, ::2], 512 - hidden)):
        assert (of.sum(axis=1) == total).all() and of.min() >= 1
        spread = of.std() / len(of) ** 0.5
        assert (np.abs(of.mean(axis=0) - total / spans) <= 4.5 * spread).all()
    middle = hides[:, 100:400].mean()
    assert abs(middle - hidden / 512) < 0.01
    # The control: tokens that are hidden one by one stand in spans of 1 / (1 - rate), and neither count is the same for all texts.
    alone = np.random.default_rng(seed).random((200, 512)) < 0.15
    assert len(set(alone.sum(axis=1))) > 10 and np.concatenate([runs(row) for row in alone])[1::2].mean() > 1
    assert abs(sum(alone.sum(axis=1)) / sum((np.diff(row.astype(int), prepend=0) == 1).sum() for row in alone) - 1 / 0.85) < 0.05


def test_one_generator_draws_anew_and_one_seed_the_same():
    ids, rng = texts(10, count=4), np.random.default_rng(11)
    first, second = (span_corruption(ids, rng=rng, vocabulary=VOCABULARY) for _ in range(2))
    again = corrupted(ids, 11)
    assert (first.source != second.source).any()
    for own, expected in zip(first, again, strict=True):
        np.testing.assert_array_equal(own, expected)


def test_texts_of_one_batch_are_drawn_for_themselves():
    hides = random_spans(40, rng=np.random.default_rng(0), batch=(30,))
    assert len({row.tobytes() for row in hides}) > 20


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_any_whole_numbers_do_and_nothing_is_written_to(dtype):
    ids = texts(12, count=4).astype(dtype)
    before = ids.copy()
    source, target = span_corruption(ids, rng=np.random.default_rng(0), vocabulary=32_100)
    np.testing.assert_array_equal(ids, before)
    assert source.dtype == target.dtype == np.int64 and source.max() == 32_099


@pytest.mark.parametrize("length", [24, 128, 568])
def test_labels_for_each_position_of_compute(length):
    """The table of the page, counted: positions that a model computes, and those of them that have a label."""
    ids, rng = np.random.default_rng(0).integers(5, 40, size=(200, length)), np.random.default_rng(1)
    hidden, spans = span_counts(length)

    inputs, labels = ids[:, :-1], ids[:, 1:]                 # a causal model
    assert labels.size / inputs.size == 1

    masked = masked_language_modelling(ids, rng=rng, mask_id=3, vocabulary=40)
    share = (masked.labels != -100).sum() / masked.ids.size
    assert abs(share - 0.15) < 4 * (0.15 * 0.85 / ids.size) ** 0.5

    source, target = span_corruption(ids, rng=rng, vocabulary=32_100)
    computed = source.size + target.size                     # the decoder reads as many tokens as it writes
    assert target.size / computed == (hidden + spans + 1) / (length + 2 * spans + 2)
    words = np.count_nonzero(target < 40) - len(ids)         # without sentinels and ends
    assert words / computed == hidden / (length + 2 * spans + 2)

    for prefix in (1, length // 2, length - 1):
        task = prefix_lm(ids, prefixes=np.full(200, prefix))
        assert (task.labels != -100).sum() / ids.size == (length - prefix) / length
    drawn = prefix_lm(ids, prefixes=rng.integers(1, length, size=200))
    assert abs((drawn.labels != -100).sum() / ids.size - 0.5) < 4 * (1 / 12 / 200) ** 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": np.array([[3]])}, "ids: got 1 token, wants at least 2"),
        ({"ids": np.array([[3, -1, 4]])}, "ids: got ids from -1 to 4"),
        ({"ids": np.array([[3, 59, 4]])}, "ids: got ids from 3 to 59, wants 0 to 58: those from 59 to 59 are the sentinels of 1 spans"),
        ({"ids": np.zeros((2, 0), int)}, "ids"),
        ({"ids": np.array([[3.0, 4.0]])}, "ids"),
        ({"end": 60}, "end: got 60, wants an id from 0 to 59"),
        ({"end": -1}, "end: got -1"),
        ({"rate": 1.5}, "rate: got 1.5"),
        ({"mean_span": 0.5}, "mean_span: got 0.5"),
        ({"rng": 0}, "rng: got 0, wants a Generator"),
        ({"vocabulary": 0}, "vocabulary: got 0"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    call = {"ids": texts(count=2), "rng": np.random.default_rng(0), "vocabulary": VOCABULARY, **changes}
    with pytest.raises(ValueError, match=message):
        span_corruption(call.pop("ids"), **call)


def test_sides_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="drops: got sides of 2 to 3 tokens, wants the same number"):
        side(np.array([[3, 4, 5], [3, 4, 5]]), np.array([[False, True, True], [False, False, True]]), vocabulary=VOCABULARY)


def test_sizes_of_a_batch_are_whole_numbers():
    with pytest.raises(ValueError, match="batch"):
        random_spans(9, rng=np.random.default_rng(0), batch=(2, -1))
