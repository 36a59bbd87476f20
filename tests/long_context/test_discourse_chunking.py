"""Chunks that end where sentences, paragraphs and sections do: never too large, lossless, and the cheapest there are."""

from itertools import combinations, pairwise

import numpy as np
import pytest

from minitransformers.long_context.discourse_chunking import chunking_cost, greedy_chunks, optimal_chunks

SEVERS = (10.0, 3.0, 1.0, 0.0)


def text(seed, sentences=9, longest=9):
    rng = np.random.default_rng(seed)
    return rng.integers(1, longest + 1, size=sentences), rng.choice([1, 1, 2, 3], size=sentences)


def units(lengths, levels, size):
    """Pieces that are not taken apart: (tokens, level behind it), sentence by sentence."""
    found = []
    for length, level in zip(lengths.tolist(), levels.tolist(), strict=True):
        while length > size:
            found.append((size, 0))
            length -= size
        found.append((length, level))
    return found


def naive_cost(chunks, size, balance=1.0, severs=SEVERS):
    """Of a list of lists of units."""
    total = 0.0
    for c, chunk in enumerate(chunks):
        empty = (size - sum(tokens for tokens, _ in chunk)) / size
        total += balance * empty**2 + (severs[chunk[-1][1]] if c < len(chunks) - 1 else 0)
    return total


def all_ways(parts, size):
    """Every way to cut the units into chunks that fit."""
    n = len(parts)
    for number in range(n):
        for inner in combinations(range(1, n), number):
            chunks = [parts[i:j] for i, j in pairwise([0, *inner, n])]
            if all(sum(tokens for tokens, _ in chunk) <= size for chunk in chunks):
                yield chunks


def cuts_of(chunks):
    return [0, *np.cumsum([sum(tokens for tokens, _ in chunk) for chunk in chunks]).tolist()]


def naive_greedy(lengths, levels, size):
    """Paragraph by paragraph."""
    paragraphs, open_one = [], []
    for unit in units(lengths, levels, size):
        open_one.append(unit)
        if unit[1] >= 2:
            paragraphs.append(open_one)
            open_one = []
    paragraphs += [open_one] if open_one else []
    chunks, chunk = [], []
    for paragraph in paragraphs:
        fits = sum(tokens for tokens, _ in paragraph) <= size
        for whole in [paragraph] if fits else [[unit] for unit in paragraph]:
            if sum(tokens for tokens, _ in chunk + whole) > size:
                chunks.append(chunk)
                chunk = []
            chunk = chunk + whole
    return cuts_of([*chunks, chunk])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [5, 9, 16])
def test_no_way_to_cut_is_cheaper_than_the_optimal(seed, size):
    lengths, levels = text(seed, sentences=8)
    ways = list(all_ways(units(lengths, levels, size), size))
    for balance in (0.0, 1.0, 7.0):
        cheapest = min(naive_cost(way, size, balance) for way in ways)
        cuts = optimal_chunks(lengths, levels, size=size, balance=balance)
        assert chunking_cost(cuts, lengths, levels, size=size, balance=balance) == pytest.approx(cheapest, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_the_cost_is_that_of_every_chunk_and_cut_one_by_one(seed):
    lengths, levels = text(seed, sentences=7)
    for way in all_ways(units(lengths, levels, 9), 9):
        found = chunking_cost(cuts_of(way), lengths, levels, size=9, balance=2.0, severs=(7.0, 5.0, 2.0, 1.0))
        assert found == pytest.approx(naive_cost(way, 9, 2.0, (7.0, 5.0, 2.0, 1.0)), abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [1, 4, 9, 20, 200])
def test_greedy_packs_paragraphs_and_takes_apart_only_what_is_too_long(seed, size):
    lengths, levels = text(seed, sentences=15)
    assert greedy_chunks(lengths, levels, size=size) == naive_greedy(lengths, levels, size)


@pytest.mark.parametrize("chunks", [greedy_chunks, optimal_chunks])
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("size", [1, 4, 9, 20, 200])
def test_no_chunk_is_too_large_and_together_they_are_the_text(chunks, seed, size):
    lengths, levels = text(seed, sentences=15)
    cuts = chunks(lengths, levels, size=size)
    ids = np.arange(lengths.sum())
    pieces = [ids[a:b] for a, b in pairwise(cuts)]
    assert all(1 <= len(piece) <= size for piece in pieces)
    np.testing.assert_array_equal(np.concatenate(pieces), ids)


@pytest.mark.parametrize("chunks", [greedy_chunks, optimal_chunks])
@pytest.mark.parametrize("seed", range(10))
def test_no_sentence_is_cut_where_all_fit_and_those_that_do_not_into_full_chunks(chunks, seed):
    lengths, levels = text(seed, sentences=15)
    cuts = chunks(lengths, levels, size=9)
    assert np.isin(cuts[1:], lengths.cumsum()).all()
    lengths[4] = 25
    start = lengths[:4].sum()
    inside = [cut - start for cut in chunks(lengths, levels, size=9) if start < cut < start + 25]
    assert inside == [9, 18]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [4, 9, 20])
def test_the_optimal_costs_at_most_what_the_greedy_costs(seed, size):
    lengths, levels = text(seed, sentences=25)
    costs = [chunking_cost(chunks(lengths, levels, size=size), lengths, levels, size=size) for chunks in (optimal_chunks, greedy_chunks)]
    assert costs[0] <= costs[1] + 1e-12


def test_greedy_may_end_in_a_nearly_empty_chunk_where_the_optimal_evens_out():
    lengths, levels = np.array([4, 4, 4, 4, 2]), np.full(5, 2)
    assert greedy_chunks(lengths, levels, size=8) == [0, 8, 16, 18]
    assert optimal_chunks(lengths, levels, size=12) == [0, 8, 18] and greedy_chunks(lengths, levels, size=12) == [0, 12, 18]


def test_a_cut_goes_where_it_severs_least():
    lengths, levels = np.array([3, 3, 3, 3]), np.array([1, 3, 1, 1])
    assert optimal_chunks(lengths, levels, size=9) == [0, 6, 12]
    assert optimal_chunks(lengths, np.array([1, 1, 3, 1]), size=9) == [0, 9, 12]
    assert greedy_chunks(lengths, np.array([1, 1, 3, 1]), size=9) == [0, 9, 12]


def test_a_text_that_fits_is_one_chunk_and_the_end_severs_nothing():
    lengths, levels = np.array([3, 4]), np.array([1, 1])
    for chunks in (greedy_chunks, optimal_chunks):
        assert chunks(lengths, levels, size=7) == [0, 7]
    assert chunking_cost([0, 7], lengths, levels, size=7) == 0
    assert chunking_cost([0, 7], lengths, levels, size=14) == 0.25


def test_without_balance_nothing_but_what_is_severed_counts():
    lengths, levels = text(3, sentences=12)
    cuts = optimal_chunks(lengths, levels, size=10, balance=0.0, severs=(0.0, 0.0, 0.0, 0.0))
    assert chunking_cost(cuts, lengths, levels, size=10, balance=0.0, severs=(0.0, 0.0, 0.0, 0.0)) == 0


def test_paragraphs_stay_whole_far_more_often_than_in_chunks_of_one_length():
    """40 paragraphs of 2 to 6 sentences of 8 to 29 tokens, in chunks of 128."""
    rng = np.random.default_rng(0)
    whole = {"one length": 0, "greedy": 0, "optimal": 0}
    paragraphs, short = 0, 0
    for _ in range(20):
        counts = rng.integers(2, 7, size=40)
        lengths = rng.integers(8, 30, size=counts.sum())
        levels = np.ones(len(lengths), int)
        levels[counts.cumsum() - 1] = 2
        ends = lengths.cumsum()[counts.cumsum() - 1]
        starts = np.concatenate([[0], ends[:-1]])
        ways = {
            "one length": [*range(0, ends[-1], 128), ends[-1]],
            "greedy": greedy_chunks(lengths, levels, size=128), "optimal": optimal_chunks(lengths, levels, size=128),
        }  # fmt: skip
        paragraphs, short = paragraphs + 40, short + int((ends - starts <= 128).sum())
        for way, cuts in ways.items():
            whole[way] += sum(not any(a < cut < b for cut in cuts) for a, b in zip(starts, ends, strict=True))
    assert whole["greedy"] == whole["optimal"] == short      # all that can be
    assert short > 0.9 * paragraphs and whole["one length"] < 0.55 * paragraphs


def test_a_cost_of_the_boundary_before_a_chunk_is_told_apart():
    """A plausible slip: the level behind the previous unit in the place of the one behind the last. The cheapest way is missed."""

    def wrong(lengths, levels, size):
        ends = np.concatenate([[0], lengths.cumsum()])
        kappa = np.array(SEVERS)[np.concatenate([[3], levels[:-1]])]
        best, came = np.zeros(len(ends)), np.zeros(len(ends), int)
        for j in range(1, len(ends)):
            ways = [(best[i] + kappa[j - 1] + ((size - ends[j] + ends[i]) / size) ** 2, i) for i in range(j) if ends[j] - ends[i] <= size]
            best[j], came[j] = min(ways)
        cuts = [len(lengths)]
        while cuts[-1]:
            cuts.append(int(came[cuts[-1]]))
        return ends[cuts[::-1]].tolist()

    worse = 0
    for seed in range(10):
        lengths, levels = text(seed, sentences=8)
        cost = [chunking_cost(cuts, lengths, levels, size=16) for cuts in (wrong(lengths, levels, 16), optimal_chunks(lengths, levels, size=16))]
        worse += cost[0] > cost[1] + 1e-9
    assert worse >= 5


def test_bad_texts_are_refused():
    lengths, levels = np.array([3, 4, 2]), np.array([1, 2, 3])
    for chunks in (greedy_chunks, optimal_chunks):
        with pytest.raises(ValueError, match="size: got 0"):
            chunks(lengths, levels, size=0)
        with pytest.raises(ValueError, match="lengths: got numbers from 0 to 4"):
            chunks(np.array([3, 4, 0]), levels, size=5)
        with pytest.raises(ValueError, match="levels: got numbers from 1 to 4"):
            chunks(lengths, np.array([1, 2, 4]), size=5)
        with pytest.raises(ValueError, match="lengths: got shape"):
            chunks(lengths[:0], levels[:0], size=5)
    with pytest.raises(ValueError, match="severs: got "):
        optimal_chunks(lengths, levels, size=5, severs=(1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match=r"cuts: got \[0, 5, 9\], wants cuts between sentences"):
        chunking_cost([0, 5, 9], lengths, levels, size=7)
    with pytest.raises(ValueError, match=r"cuts: got \[0, 9\], wants cuts that ascend from 0 to 9 in steps of 1 to 7"):
        chunking_cost([0, 9], lengths, levels, size=7)
