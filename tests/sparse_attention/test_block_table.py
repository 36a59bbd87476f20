"""Block tables: a naive second version, even draws, rows that a longer text does not change, and few blocks that are all read."""

import numpy as np
import pytest

from minitransformers.sparse_attention.block_table import BlockTable, block_mask, block_table, causal_block_table

TABLES = {"both ways": block_table, "causal": causal_block_table}
every = pytest.mark.parametrize("kind", TABLES)


def fixed(i, blocks, kind):
    """What a row reads without a draw."""
    wanted = {0, i - 1, i} if kind == "causal" else {0, blocks - 1, i - 1, i, i + 1}
    return {j for j in wanted if 0 <= j < blocks}


def by_hand(blocks, heads, num_random, seed, kind):
    """One row after the other, a list of what is left, and a set for each row; None for a row that reads all."""
    rows = []
    for head in range(heads):
        rng, of_head = np.random.default_rng([seed, head]), []
        for i in range(blocks):
            everything = kind != "causal" and i in (0, blocks - 1)
            reachable = () if everything else range(i + 1) if kind == "causal" else range(blocks)
            left = [j for j in reachable if j not in fixed(i, blocks, kind)]
            drawn = []
            for _ in range(num_random):
                at = rng.integers(max(len(left), 1))
                drawn += [left.pop(at)] if left else []
            of_head.append(None if everything else fixed(i, blocks, kind) | set(drawn))
        rows.append(of_head)
    return rows


def as_sets(table):
    return [[None if full else {int(j) for j in row if j >= 0} for row, full in zip(head, table.dense, strict=True)] for head in table.picks]


@every
@pytest.mark.parametrize(("blocks", "heads", "num_random", "seed"), [(1, 1, 3, 0), (2, 2, 0, 1), (5, 1, 1, 2), (9, 3, 2, 3), (20, 2, 4, 4), (8, 2, 7, 5)])
def test_it_is_what_drawing_by_hand_gives(blocks, heads, num_random, seed, kind):
    table = TABLES[kind](blocks, heads=heads, num_random=num_random, seed=seed)
    assert as_sets(table) == by_hand(blocks, heads, num_random, seed, kind)
    assert bool(table.causal) == (kind == "causal")


@every
def test_rows_are_in_order_without_duplicates_and_end_in_minus_one(kind):
    table = TABLES[kind](13, heads=4, num_random=3, seed=7)
    for row in table.picks.reshape(-1, table.picks.shape[-1]):
        named = row[row >= 0]
        assert np.all(np.diff(named) > 0) and np.all(row[len(named) :] == -1)
    assert np.all(table.picks[:, table.dense] == -1)         # what reads everything names nothing


@every
def test_away_from_the_ends_a_row_reads_as_many_blocks_as_the_paper_says(kind):
    """Two global ones, three neighbours and the drawn: 5 + r. Looking back, one global one and two neighbours: 3 + r."""
    table = TABLES[kind](30, heads=2, num_random=3)
    counts = (table.picks >= 0).sum(-1)
    assert np.all(counts[:, 5:-3] == (6 if kind == "causal" else 8))


@every
def test_the_same_seed_gives_the_same_table_and_another_head_or_seed_another(kind):
    one, two = (TABLES[kind](20, heads=2, num_random=3, seed=seed) for seed in (1, 2))
    again = TABLES[kind](20, heads=2, num_random=3, seed=1)
    np.testing.assert_array_equal(one.picks, again.picks)
    assert as_sets(one)[0] != as_sets(two)[0] and as_sets(one)[0] != as_sets(one)[1]


@every
def test_more_heads_change_nothing_about_the_first(kind):
    few, many = (TABLES[kind](20, heads=heads, num_random=3, seed=1) for heads in (2, 5))
    assert as_sets(few) == as_sets(many)[:2]


@pytest.mark.parametrize("blocks", [1, 2, 5, 17, 39])
def test_a_longer_text_adds_rows_to_a_causal_table_and_changes_none(blocks):
    short, long = (causal_block_table(n, heads=3, num_random=2, seed=11) for n in (blocks, 40))
    assert as_sets(short) == [head[:blocks] for head in as_sets(long)]


def test_a_table_that_looks_both_ways_does_change_with_the_length():
    """Its last block moves, and so does what there is to draw from: it is no table to decode with."""
    short, long = (block_table(n, heads=1, num_random=2, seed=11) for n in (12, 40))
    assert as_sets(short)[0][3:8] != as_sets(long)[0][3:8]


@every
def test_every_free_block_is_drawn_equally_often(kind):
    """Row 9 of 14 blocks: 7 free ones before it, and 2 behind it where it looks both ways; 500 seeds."""
    times = np.zeros(14)
    for seed in range(500):
        row = TABLES[kind](14, num_random=3, seed=seed).picks[0, 9]
        times[row[row >= 0]] += 1
    free = [j for j in range(10 if kind == "causal" else 14) if j not in fixed(9, 14, kind)]
    assert len(free) == (7 if kind == "causal" else 9)
    expected = 500 * 3 / len(free)
    assert np.all(np.abs(times[free] - expected) < 4 * np.sqrt(expected))
    assert np.all(times[sorted(fixed(9, 14, kind))] == 500)


@pytest.mark.parametrize(("kind", "most"), [("both ways", 7), ("causal", 6)])
def test_with_few_blocks_everything_is_read(kind, most):
    """Up to 7 blocks both ways, where no middle row leaves more than three, and up to 3 + r = 6 looking back."""
    for blocks in range(1, 12):
        seen = block_mask(TABLES[kind](blocks, heads=2, num_random=3), block=1, queries=blocks, keys=blocks)
        whole = np.tri(blocks, dtype=bool) if kind == "causal" else np.ones((blocks, blocks), bool)
        assert bool(np.all(seen == whole)) == (blocks <= most)


def test_a_known_table():
    picks = causal_block_table(6, num_random=1, seed=0).picks[0]
    assert picks[:3].tolist() == [[0, -1, -1, -1], [0, 1, -1, -1], [0, 1, 2, -1]]
    assert picks[3].tolist() == [0, 1, 2, 3] and picks[4, [0, 2, 3]].tolist() == [0, 3, 4]


def test_the_arrays_are_shared_and_read_only():
    table = block_table(7)
    assert table.picks is block_table(7).picks
    with pytest.raises(ValueError, match="read-only"):
        table.picks[0, 0, 0] = 1


@every
@pytest.mark.parametrize(("block", "queries", "keys"), [(1, 7, 7), (3, 11, 11), (3, 4, 11), (4, 1, 21), (50, 5, 9)])
def test_the_mask_says_for_positions_what_the_table_says_for_blocks(block, queries, keys, kind):
    table = TABLES[kind](-(-keys // block), heads=2, num_random=1, seed=3)
    mask = block_mask(table, block=block, queries=queries, keys=keys)
    sets = as_sets(table)
    for h in range(2):
        for row, i in enumerate(range(keys - queries, keys)):
            for j in range(keys):
                reads = sets[h][i // block]
                assert mask[h, row, j] == ((reads is None or j // block in reads) and (kind != "causal" or j <= i))


def test_a_table_by_hand_is_expanded_as_well():
    table = BlockTable(np.array([[[0, -1], [0, 1], [1, -1]]]), np.array([False, False, False]), np.array(False))
    mask = block_mask(table, block=2, queries=5, keys=5)
    np.testing.assert_array_equal(mask[0, ::2], [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [0, 0, 1, 1, 0]])


def distances(seen):
    """Steps from each block to each in the graph whose edges are what is read: breadth first, one front after the other."""
    reached, steps = np.eye(len(seen), dtype=bool), np.full(seen.shape, np.inf)
    for step in range(len(seen)):
        steps[reached & np.isinf(steps)] = step
        reached = reached | (reached.astype(int) @ seen > 0)
    return steps


def test_random_blocks_shorten_the_ways_between_blocks():
    """40 blocks, the global ones cut out: neighbours alone are 37 steps apart at most, with three drawn blocks a row a handful."""

    def longest(num_random):
        seen = block_mask(block_table(40, num_random=num_random, seed=1), block=1, queries=40, keys=40)[0]
        return distances(seen[1:-1, 1:-1]).max()

    assert longest(0) == 37 and longest(3) <= 5
