"""Traffic: the formula is what a run counts, word for word; the runs are attention; and the paper's orders of growth."""

import numpy as np
import pytest
from scipy.special import logsumexp

from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.efficient.memory_traffic import Traffic, _queries_outside, _SlowMemory, attention_with_traffic, memory_traffic

ORDERS = Traffic._fields
SIZES = [(1, 1, 1, 4), (5, 7, 3, 12), (5, 7, 3, 13), (7, 5, 3, 30), (12, 12, 4, 48), (6, 20, 4, 1000), (20, 6, 2, 37), (1, 9, 2, 8)]


def arrays(n, m, d, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(length, d)) for length in (n, m, m)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("n", "m", "d", "fast"), SIZES)
def test_the_formula_is_what_a_run_counts_to_the_last_word(n, m, d, fast, order):
    assert attention_with_traffic(*arrays(n, m, d), fast_memory=fast, order=order)[1] == getattr(memory_traffic(n, m, d_head=d, fast_memory=fast), order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("n", "m", "d", "fast"), SIZES)
def test_whatever_the_order_it_is_attention(n, m, d, fast, order):
    given = arrays(n, m, d, seed=1)
    out, _ = attention_with_traffic(*given, fast_memory=fast, order=order)
    np.testing.assert_allclose(out, scaled_dot_product_attention(*given)[0], rtol=0, atol=1e-13)


def test_scores_of_thousands_do_not_overflow_in_any_order():
    q, k, v = arrays(6, 9, 3)
    for order in ORDERS:
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            out, _ = attention_with_traffic(1e4 * q, k, v, fast_memory=24, order=order)
        np.testing.assert_allclose(out, scaled_dot_product_attention(1e4 * q, k, v)[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("outer", "inner"), [(1, 1), (2, 3), (9, 9)])
def test_with_queries_outside_what_is_left_for_a_backward_is_the_logarithm_of_the_total(outer, inner):
    q, k, v = arrays(5, 7, 3)
    memory = _SlowMemory(query=q, key=k, value=v, out=np.empty_like(q))
    _queries_outside(memory, 5, 7, outer, inner)
    np.testing.assert_allclose(memory.arrays["log_total"], logsumexp(q @ k.T, axis=-1), rtol=0, atol=1e-14)


def naive(n, m, d, fast):
    """Every load and store as an entry of a list."""
    block = int(np.ceil(fast / (4 * d)))
    standard = [n * d, m * d, n * m, n * m, n * m, n * m, m * d, n * d]
    flash1 = [n * d, n, n]
    for j in range(0, m, block):
        flash1 += [min(block, m - j) * d] * 2
        for _ in range(n):
            flash1 += [d, d, d, 1, 1, 1, 1]
    flash2 = []
    for i in range(0, n, block):
        rows = min(block, n - i)
        flash2 += [rows * d, rows * d, rows, m * d, m * d]
    return sum(standard), sum(flash1), sum(flash2)


@pytest.mark.parametrize(("n", "m", "d", "fast"), [*SIZES, (300, 200, 16, 3000)])
def test_it_is_what_one_counts_by_hand(n, m, d, fast):
    assert memory_traffic(n, m, d_head=d, fast_memory=fast) == naive(n, m, d, fast)


def test_known_values():
    """Four queries and keys of width 1, fast memory for two rows of each array."""
    assert memory_traffic(4, d_head=1, fast_memory=8) == (2 * 8 + 64, 8 + 12 + 2 * 28, 12 + 2 * 8)


def test_as_many_keys_as_queries_unless_said_otherwise():
    assert memory_traffic(6, d_head=2, fast_memory=9) == memory_traffic(6, 6, d_head=2, fast_memory=9)


@pytest.mark.parametrize(("order", "squares"), [("flash1", 3), ("flash2", 2)])
@pytest.mark.parametrize("d", [32, 64, 128])
def test_tiles_lose_below_a_fast_memory_of_three_squares_of_the_width_or_of_two_with_queries_outside(d, order, squares):
    def gain(fast):
        found = memory_traffic(2**16, d_head=d, fast_memory=fast)
        return found.standard / getattr(found, order)

    assert gain(int(0.9 * squares * d * d)) < 1 < gain(int(1.1 * squares * d * d))
    far = 2**13 * d                                          # an eighth of the keys fit: still far from all
    assert gain(far) == pytest.approx(far / (squares * d * d), rel=0.2)


def test_twice_the_fast_memory_halves_the_traffic_of_tiles_and_that_of_no_tiles_stays():
    small, large = (memory_traffic(2**14, d_head=64, fast_memory=fast) for fast in (2**15, 2**16))
    assert small.standard == large.standard
    assert small.flash1 / large.flash1 == pytest.approx(2, rel=0.02) and small.flash2 / large.flash2 == pytest.approx(2, rel=0.02)


def test_where_all_keys_fit_each_number_is_moved_once():
    n, d = 40, 4
    found = memory_traffic(n, d_head=d, fast_memory=4 * n * d)
    assert found.flash2 == 4 * n * d + n                     # queries, keys, values, output, and a number a query


@pytest.mark.parametrize(("n", "m", "d", "fast"), SIZES)
def test_what_a_tile_needs_fills_five_quarters_of_the_fast_memory_at_most_and_a_block_that_was_rounded_up(n, m, d, fast):
    outer = -(-fast // (4 * d))
    inner = min(outer, d)
    held = 2 * outer * d + 2 * inner * d + inner * outer     # keys and values, queries and outputs, scores
    assert held <= 1.25 * (fast + 4 * d)


@pytest.mark.parametrize("order", ORDERS)
def test_a_fast_memory_that_does_not_hold_a_row_of_each_array_is_refused(order):
    with pytest.raises(ValueError, match="fast_memory: got 11, wants at least 12 words"):
        memory_traffic(5, d_head=3, fast_memory=11)
    with pytest.raises(ValueError, match="fast_memory: got 11, wants at least 12 words"):
        attention_with_traffic(*arrays(5, 7, 3), fast_memory=11, order=order)
