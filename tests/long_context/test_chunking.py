"""Overlapping chunks: every token is in one, no chunk is too large, and each token is asked for where it sees most."""

import numpy as np
import pytest

from minitransformers.long_context.chunking import chunk_coverage, max_context, overlapping_chunks

SETTINGS = [(length, size, overlap) for length in (1, 3, 4, 5, 11, 12, 13) for size, overlap in ((4, 0), (4, 1), (4, 3), (5, 2), (1, 0), (20, 7))]
IDS = np.arange(100, 200)


def naive_starts(length, size, overlap, last):
    """Step on until a chunk reaches the end."""
    starts = [0]
    while starts[-1] + size < length:
        starts.append(starts[-1] + size - overlap)
    if last == "shift" and length >= size:
        starts[-1] = length - size
    return starts


def naive_owner(starts, size, length):
    """BERT's rule for SQuAD, a token at a time: (chunk, place in it) of the chunk with the most context on its poorer side."""
    owners = []
    for t in range(length):
        best, owner = None, None
        for c, start in enumerate(starts):
            end = min(start + size, length) - 1
            if start <= t <= end:
                score = min(t - start, end - t)
                if best is None or score > best:
                    best, owner = score, (c, t - start)
        owners.append(owner)
    return owners


@pytest.mark.parametrize("last", ["shift", "pad"])
@pytest.mark.parametrize(("length", "size", "overlap"), SETTINGS)
def test_chunks_are_those_of_a_window_that_steps_on(length, size, overlap, last):
    chunks = overlapping_chunks(IDS[:length], size=size, overlap=overlap, last=last, pad=7)
    starts = naive_starts(length, size, overlap, last)
    assert chunks.starts.tolist() == starts
    for c, start in enumerate(starts):
        for i in range(size):
            inside = start + i < length
            assert chunks.mask[c, i] == inside
            assert chunks.ids[c, i] == (IDS[start + i] if inside else 7)


@pytest.mark.parametrize(("length", "size", "overlap"), SETTINGS)
def test_their_number_is_known_beforehand(length, size, overlap):
    assert len(overlapping_chunks(IDS[:length], size=size, overlap=overlap).starts) == 1 + int(np.ceil(max(length - size, 0) / (size - overlap)))


@pytest.mark.parametrize("last", ["shift", "pad"])
@pytest.mark.parametrize(("length", "size", "overlap"), SETTINGS)
def test_every_token_is_covered_and_counts_sum_to_what_is_no_padding(length, size, overlap, last):
    chunks = overlapping_chunks(IDS[:length], size=size, overlap=overlap, last=last)
    counts = chunk_coverage(chunks.starts, size=size, length=length)
    assert counts.min() >= 1 and counts.shape == (length,)
    assert counts.sum() == chunks.mask.sum() == chunks.ids.size - (~chunks.mask).sum()
    naive = [sum(start <= t < start + size for start in chunks.starts) for t in range(length)]
    np.testing.assert_array_equal(counts, naive)


def test_without_overlap_the_chunks_one_after_the_other_are_the_text():
    chunks = overlapping_chunks(IDS[:11], size=4, last="pad")
    np.testing.assert_array_equal(chunks.ids[chunks.mask], IDS[:11])
    np.testing.assert_array_equal(chunk_coverage(chunks.starts, size=4, length=11), 1)


def test_a_last_chunk_that_is_moved_back_has_no_padding_and_one_that_is_not_begins_in_step():
    shifted, padded = (overlapping_chunks(IDS[:11], size=5, overlap=2, last=last) for last in ("shift", "pad"))
    assert shifted.mask.all() and shifted.starts.tolist() == [0, 3, 6]
    shifted, padded = (overlapping_chunks(IDS[:12], size=5, overlap=2, last=last) for last in ("shift", "pad"))
    assert shifted.mask.all() and shifted.starts.tolist() == [0, 3, 6, 7]
    assert (~padded.mask).sum() == 2 and padded.starts.tolist() == [0, 3, 6, 9]


def test_texts_of_a_batch_are_cut_alike():
    batch = np.stack([IDS[:11], IDS[20:31]])
    chunks = overlapping_chunks(batch, size=4, overlap=1)
    for row, ids in zip(chunks.ids, batch, strict=True):
        np.testing.assert_array_equal(row, overlapping_chunks(ids, size=4, overlap=1).ids)


@pytest.mark.parametrize("last", ["shift", "pad"])
@pytest.mark.parametrize(("length", "size", "overlap"), SETTINGS)
def test_each_token_is_asked_for_where_its_poorer_side_is_richest(length, size, overlap, last):
    starts = overlapping_chunks(IDS[:length], size=size, overlap=overlap, last=last).starts
    chosen = max_context(starts, size=size, length=length)
    expected = np.zeros((len(starts), size), bool)
    for owner in naive_owner(starts, size, length):
        expected[owner] = True
    np.testing.assert_array_equal(chosen, expected)
    assert chosen.sum() == length


@pytest.mark.parametrize(("size", "overlap"), [(4, 1), (8, 3), (8, 4), (9, 6), (9, 8), (8, 0)])
def test_each_token_has_the_overlap_on_one_side_and_half_of_it_on_both(size, overlap):
    """Within the text: in some chunk it has as many tokens before it as neighbours share, in some as many behind, and where it is
    asked for at least half as many, rounded down, on both sides."""
    length = 60
    starts = overlapping_chunks(np.arange(length), size=size, overlap=overlap).starts
    asked = {start + i: min(i, size - 1 - i) for c, start in enumerate(starts) for i in range(size) if max_context(starts, size=size, length=length)[c, i]}
    for t in range(overlap, length - overlap):
        places = [t - start for start in starts if start <= t < start + size]
        assert max(places) >= overlap and max(size - 1 - i for i in places) >= overlap
        assert asked[t] >= overlap // 2


def test_half_the_overlap_is_all_that_a_token_in_its_middle_has():
    starts = np.array([0, 5, 10])
    chosen = max_context(starts, size=9, length=19)          # neighbours share four tokens
    place = np.flatnonzero(chosen[:, :].any(axis=1))
    assert place.tolist() == [0, 1, 2]
    assert min(min(i, 8 - i) for c, i in zip(*np.nonzero(chosen), strict=True) if 4 <= starts[c] + i < 15) == 2


def test_padding_is_no_context():
    chosen = max_context(np.array([0, 6]), size=8, length=9)
    assert chosen[1, 1:3].tolist() == [True, True]           # token 7 has one token behind it in the second chunk, none in the first
    assert chosen[0, 6] and not chosen[1, 0]                 # token 6 has one behind it in the first, none before it in the second


@pytest.mark.parametrize(("missing", "differ"), [(0, 0), (96, 0), (200, 1)])
def test_berts_bonus_for_long_chunks_decides_only_where_the_last_is_shorter_by_a_hundred(missing, differ):
    """Its code adds a hundredth of a chunk's length to the score, and scores are whole numbers."""
    size, starts = 384, np.array([0, 256, 512])
    length = 512 + size - missing

    def score(c, t):
        end = min(starts[c] + size, length) - 1
        return min(t - starts[c], end - t) + 0.01 * (end + 1 - starts[c])

    theirs = [max((c for c in range(3) if starts[c] <= t < starts[c] + size), key=lambda c: (score(c, t), -c)) for t in range(length)]
    chosen = max_context(starts, size=size, length=length)
    chunk, place = np.nonzero(chosen)
    own = np.empty(length, int)
    own[starts[chunk] + place] = chunk
    assert (own != theirs).sum() == differ


def test_counting_chunks_without_rounding_up_is_told_apart():
    """Integer division loses the end of the text, and no error says so."""

    def wrong(length, size, overlap):
        return np.arange(1 + max(length - size, 0) // (size - overlap)) * (size - overlap)

    assert chunk_coverage(wrong(11, 4, 1), size=4, length=11).min() == 0
    assert chunk_coverage(overlapping_chunks(IDS[:11], size=4, overlap=1, last="pad").starts, size=4, length=11).min() == 1


def test_bad_chunks_are_refused():
    with pytest.raises(ValueError, match="overlap: got 4, wants a whole number below the size, 4"):
        overlapping_chunks(IDS, size=4, overlap=4)
    with pytest.raises(ValueError, match="overlap: got -1"):
        overlapping_chunks(IDS, size=4, overlap=-1)
    with pytest.raises(ValueError, match="size: got 0"):
        overlapping_chunks(IDS, size=0)
    with pytest.raises(ValueError, match="ids: got shape"):
        overlapping_chunks(IDS[:0], size=4)
    with pytest.raises(ValueError, match="starts: got numbers from 0 to 9, wants numbers from 0 to below 9"):
        max_context(np.array([0, 9]), size=4, length=9)
