"""The Toeplitz bias: one number along each diagonal, the sum of the diagonal back; the other biases are cases of it."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.foundation import check_gradients
from minitransformers.positional.alibi import Alibi, alibi, init_alibi
from minitransformers.positional.t5_bias import T5Bias, t5_bias
from minitransformers.positional.toeplitz import Toeplitz, init_toeplitz, toeplitz


def textbook_toeplitz(table, num_queries, num_keys):
    """One score at a time: the middle of the table, and as many columns to the side as the key is away."""
    middle, past = table.shape[1] // 2, num_keys - num_queries
    return anp.stack([anp.stack([anp.stack([row[middle + j - (past + i)] for j in range(num_keys)]) for i in range(num_queries)]) for row in table])


@pytest.mark.parametrize(("num_queries", "num_keys"), [(6, 6), (2, 6), (1, 1), (1, 5), (4, 4)])
def test_equals_the_loop_and_its_gradient(num_queries, num_keys):
    rng = np.random.default_rng(0)
    params, dout = Toeplitz(rng.normal(size=(3, 11))), rng.normal(size=(3, num_queries, num_keys))
    out, backward = toeplitz(params, num_queries=num_queries, num_keys=num_keys)
    np.testing.assert_array_equal(out, textbook_toeplitz(params.table, num_queries, num_keys))
    expected = autograd.grad(lambda table: anp.sum(dout * textbook_toeplitz(table, num_queries, num_keys)))(params.table)
    np.testing.assert_allclose(backward(dout).table, expected, rtol=0, atol=1e-12)


def test_every_matrix_is_constant_along_diagonals_and_the_middle_is_home():
    params = Toeplitz(np.arange(9.0)[None])
    out, _ = toeplitz(params, num_queries=5, num_keys=5)
    np.testing.assert_array_equal(out[0, 0], [4, 5, 6, 7, 8])
    np.testing.assert_array_equal(out[0, :, 0], [4, 3, 2, 1, 0])
    np.testing.assert_array_equal(out[:, 1:, 1:], out[:, :-1, :-1])


def test_the_gradient_of_a_column_is_the_sum_of_its_diagonal():
    dout = np.random.default_rng(1).normal(size=(2, 4, 4))
    dtable = toeplitz(Toeplitz(np.zeros((2, 7))), num_queries=4, num_keys=4)[1](dout).table
    for offset in range(-3, 4):
        np.testing.assert_allclose(dtable[:, 3 + offset], np.trace(dout, offset, 1, 2), atol=1e-14)


def test_offsets_that_do_not_occur_get_exactly_nothing():
    dout = np.random.default_rng(2).normal(size=(2, 3, 3))
    dtable = toeplitz(Toeplitz(np.zeros((2, 11))), num_queries=3, num_keys=3)[1](dout).table
    assert (dtable[:, 3:8] != 0).all() and not dtable[:, :3].any() and not dtable[:, 8:].any()


def test_a_few_queries_after_many_keys_are_the_last_rows_of_the_whole():
    params = Toeplitz(np.random.default_rng(3).normal(size=(2, 13)))
    whole, _ = toeplitz(params, num_queries=6, num_keys=6)
    for new in (1, 2, 5):
        np.testing.assert_array_equal(toeplitz(params, num_queries=new, num_keys=6)[0], whole[:, -new:])


def test_alibi_is_the_table_that_falls_in_a_line_to_both_sides():
    slopes = init_alibi(np.random.default_rng(0), num_heads=3, dtype=np.float64).slopes
    table = -slopes[:, None] * np.abs(np.arange(-5, 6))
    dout = np.random.default_rng(4).normal(size=(3, 4, 6))
    (ours, backward), (theirs, alibi_backward) = (
        f(params, num_queries=4, num_keys=6) for f, params in ((toeplitz, Toeplitz(table)), (alibi, Alibi(slopes)))
    )
    np.testing.assert_array_equal(ours, theirs)
    through_the_table = -(backward(dout).table * np.abs(np.arange(-5, 6))).sum(1)
    np.testing.assert_allclose(through_the_table, alibi_backward(dout).slopes, atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_t5_s_bias_is_a_table_in_which_far_columns_are_equal(causal):
    buckets = T5Bias(np.random.default_rng(5).normal(size=(8, 3)))
    row, _ = t5_bias(buckets, num_queries=9, num_keys=9, causal=causal, max_distance=6)
    table = np.concatenate([row[:, -1, :-1], row[:, 0]], axis=1)  # the past as the last query sees it, the rest as the first
    for num_queries in (9, 3):
        theirs, _ = t5_bias(buckets, num_queries=num_queries, num_keys=9, causal=causal, max_distance=6)
        np.testing.assert_array_equal(toeplitz(Toeplitz(table), num_queries=num_queries, num_keys=9)[0], theirs)


def test_transformer_xl_s_position_term_is_a_table_of_products():
    # Term (d) of its scores: a learned vector times the row of waves at distance i - j.
    rng = np.random.default_rng(6)
    waves, weight = rng.normal(size=(5, 4)), rng.normal(size=(2, 4))                  # rows at distances 0 .. 4
    table = np.concatenate([(waves @ weight.T).T[:, ::-1], np.zeros((2, 4))], axis=1)
    out, _ = toeplitz(Toeplitz(table), num_queries=5, num_keys=5)
    for i in range(5):
        for j in range(i + 1):
            np.testing.assert_allclose(out[:, i, j], weight @ waves[i - j], atol=1e-14)


def test_the_table_ends_and_never_wraps():
    params = init_toeplitz(np.random.default_rng(7), num_heads=2, max_positions=6)
    assert toeplitz(params, num_queries=6, num_keys=6)[0].dtype == np.float32
    with pytest.raises(ValueError, match=r"num_keys: got 7, wants at most 6"):
        toeplitz(params, num_queries=1, num_keys=7)          # NumPy would read column -1: the far future


def test_it_starts_nearly_flat():
    table = init_toeplitz(np.random.default_rng(8), num_heads=50, max_positions=40).table
    assert table.shape == (50, 79) and table.dtype == np.float32
    np.testing.assert_allclose([table.mean(), table.std()], [0, 0.02], atol=1e-3)


@pytest.mark.parametrize("size", [0, -1, 1.5, np.nan, np.inf])
@pytest.mark.parametrize("argument", ["num_heads", "max_positions"])
def test_sizes_that_are_not_whole_numbers_are_refused_by_name(argument, size):
    with pytest.raises(ValueError, match=f"{argument}: got"):
        init_toeplitz(**{"rng": np.random.default_rng(0), "num_heads": 2, "max_positions": 3, argument: size})


def test_the_checker_refuses_a_scatter_that_drops_repeats():
    def assigned_instead_of_added(params, *, num_queries, num_keys):
        out, _ = toeplitz(params, num_queries=num_queries, num_keys=num_keys)

        def backward(dout):
            dtable = np.zeros_like(params.table)
            column = np.arange(num_keys) - np.arange(num_keys - num_queries, num_keys)[:, None] + params.table.shape[1] // 2
            dtable[:, column] += dout                        # all rows at once: of each diagonal one element stays
            return Toeplitz(dtable)

        return out, backward

    params = Toeplitz(np.random.default_rng(9).normal(size=(2, 7)))
    assert check_gradients(assigned_instead_of_added, params, num_queries=1, num_keys=4).passed   # one row: nothing repeats
    report = check_gradients(assigned_instead_of_added, params, num_queries=3, num_keys=4)
    assert not report.passed and report.worst.path == "params.table" and report.error > 1e-2


@pytest.mark.parity
def test_parity_with_torch_indexing():
    # Swin's bias in one dimension, as its code writes it: a table indexed by relative position.
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(10)
    params, dout = Toeplitz(rng.normal(size=(3, 11))), rng.normal(size=(3, 4, 6))
    table = torch.tensor(params.table, requires_grad=True)
    position = torch.arange(6)
    index = position[None] - position[2:, None] + 5
    theirs = table[:, index]
    theirs.backward(torch.tensor(dout))
    out, backward = toeplitz(params, num_queries=4, num_keys=6)
    np.testing.assert_array_equal(out, theirs.detach().numpy())
    np.testing.assert_allclose(backward(dout).table, table.grad.numpy(), rtol=0, atol=1e-12)
