"""T5's bias: the buckets of the authors' code, one number for all pairs in a bucket, and the sum of their gradients."""

import math

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.foundation import check_gradients
from minitransformers.positional.t5_bias import T5Bias, init_t5_bias, t5_bias


def textbook_bucket(offset, num_buckets, max_distance, causal):
    """One pair at a time. Far buckets begin where their logarithm says: they are counted, not computed."""
    side = num_buckets if causal else num_buckets // 2
    start = side if offset > 0 and not causal else 0
    distance = abs(offset) if not causal else max(-offset, 0)
    near = side // 2
    if distance < near:
        return start + distance
    edges = [near * (max_distance / near) ** (n / (side - near)) for n in range(side - near)]
    return start + near + sum(distance >= edge - 1e-9 for edge in edges) - 1


def textbook_bias(table, num_queries, num_keys, max_distance, causal):
    past = num_keys - num_queries
    rows = [[table[textbook_bucket(j - past - i, len(table), max_distance, causal)] for j in range(num_keys)] for i in range(num_queries)]
    return anp.moveaxis(anp.stack([anp.stack(row) for row in rows]), -1, 0)


def buckets(num_keys, *, num_buckets=32, **config):
    """The bucket of every pair: what a table of row numbers gives."""
    return t5_bias(T5Bias(np.arange(num_buckets, dtype=float)[:, None]), num_queries=num_keys, num_keys=num_keys, **config)[0][0].astype(int)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(7, 7), (2, 7), (1, 1), (1, 12)])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(8, 6), (6, 9), (4, 5)])
def test_equals_the_loop_and_its_gradient(causal, num_queries, num_keys, num_buckets, max_distance):
    rng = np.random.default_rng(0)
    params, dout = T5Bias(rng.normal(size=(num_buckets, 3))), rng.normal(size=(3, num_queries, num_keys))
    out, backward = t5_bias(params, num_queries=num_queries, num_keys=num_keys, causal=causal, max_distance=max_distance)
    np.testing.assert_array_equal(out, textbook_bias(params.table, num_queries, num_keys, max_distance, causal))
    expected = autograd.grad(lambda table: anp.sum(dout * textbook_bias(table, num_queries, num_keys, max_distance, causal)))(params.table)
    np.testing.assert_allclose(backward(dout).table, expected, rtol=0, atol=1e-12)


def test_the_buckets_that_t5_uses():
    both, past = buckets(301, causal=False), buckets(301)
    for offset, bucket in ((0, 0), (-1, 1), (-7, 7), (-8, 8), (-12, 9), (-16, 10), (1, 17), (8, 24), (-300, 15), (300, 31)):
        assert both[max(0, -offset), max(0, offset)] == bucket
    for distance, bucket in ((0, 0), (15, 15), (16, 16), (19, 17), (127, 31), (128, 31), (300, 31)):
        assert past[distance, 0] == bucket


@pytest.mark.parametrize("causal", [True, False])
def test_the_bias_depends_on_the_offset_alone(causal):
    params = init_t5_bias(np.random.default_rng(1), num_heads=3)
    out, _ = t5_bias(params, num_queries=40, num_keys=40, causal=causal)
    np.testing.assert_array_equal(out[:, 1:, 1:], out[:, :-1, :-1])
    for new in (1, 3):
        np.testing.assert_array_equal(t5_bias(params, num_queries=new, num_keys=40, causal=causal)[0], out[:, -new:])


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (16, 20), (5, 100), (4, 3)])
def test_buckets_never_fall_with_the_distance_and_end_in_the_last(num_buckets, max_distance):
    row = buckets(400, num_buckets=num_buckets, max_distance=max_distance)[-1, ::-1]  # distances 0, 1, 2, ...
    assert (np.diff(row) >= 0).all()
    near = num_buckets // 2
    np.testing.assert_array_equal(row[: near + 1], np.arange(near + 1))
    assert (row[max_distance:] == num_buckets - 1).all()


def test_both_sides_have_buckets_of_their_own_and_are_alike_otherwise():
    both = buckets(200, causal=False)
    np.testing.assert_array_equal(np.triu(both, 1), np.triu(both.T + 16, 1))
    assert both.max() == 31 and np.tril(both).max() == 15


def test_a_causal_model_has_one_number_for_all_that_is_hidden():
    assert not np.triu(buckets(50), 1).any()


def test_buckets_that_no_pair_falls_into_get_exactly_nothing():
    params, dout = T5Bias(np.zeros((32, 2))), np.random.default_rng(2).normal(size=(2, 5, 5))
    dtable = t5_bias(params, num_queries=5, num_keys=5)[1](dout).table
    assert (dtable[:5] != 0).all() and not dtable[5:].any()


def test_any_length_has_a_bias():
    params = init_t5_bias(np.random.default_rng(3), num_heads=2)
    out, _ = t5_bias(params, num_queries=1, num_keys=100_000)
    assert out.dtype == np.float32 and out.shape == (2, 1, 100_000)
    assert (out[:, 0, : 100_000 - 128] == params.table[31][:, None]).all()


def test_it_starts_nearly_flat():
    table = init_t5_bias(np.random.default_rng(4), num_heads=100).table
    assert table.shape == (32, 100) and table.dtype == np.float32
    np.testing.assert_allclose([table.mean(), table.std()], [0, 0.02], atol=1e-3)


def test_the_checker_refuses_a_scatter_that_drops_repeats():
    def assigned_instead_of_added(params, *, num_queries, num_keys):
        out, _ = t5_bias(params, num_queries=num_queries, num_keys=num_keys)

        def backward(dout):
            dtable = np.zeros_like(params.table)
            offset = np.arange(num_keys) - np.arange(num_keys - num_queries, num_keys)[:, None]
            dtable[np.maximum(-offset, 0)] += np.moveaxis(dout, 0, -1)  # each bucket once
            return T5Bias(dtable)

        return out, backward

    params = T5Bias(np.random.default_rng(5).normal(size=(8, 2)))
    report = check_gradients(assigned_instead_of_added, params, num_queries=3, num_keys=3)
    assert not report.passed and report.worst.path == "params.table" and report.error > 1e-2


@pytest.mark.parity
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (16, 64), (8, 20), (64, 256)])
def test_parity_with_the_buckets_of_hugging_face_t5(causal, num_buckets, max_distance):
    torch = pytest.importorskip("torch")
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    offset = torch.arange(301)[None] - torch.arange(301)[:, None]
    theirs = t5.T5Attention._relative_position_bucket(offset, bidirectional=not causal, num_buckets=num_buckets, max_distance=max_distance)
    np.testing.assert_array_equal(buckets(301, num_buckets=num_buckets, causal=causal, max_distance=max_distance), theirs.numpy())


@pytest.mark.parity
@pytest.mark.parametrize("causal", [True, False])
def test_parity_with_hugging_face_t5_in_bias_and_gradient(causal):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.t5.modeling_t5 import T5Attention

    config = transformers.T5Config(d_model=6, d_kv=2, num_heads=3, is_decoder=causal)
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0).double()
    table = theirs.relative_attention_bias.weight
    rng = np.random.default_rng(6)
    dout = rng.normal(size=(3, 40, 40))
    bias = theirs.compute_bias(40, 40)[0]
    bias.backward(torch.tensor(dout))
    ours, backward = t5_bias(T5Bias(table.detach().numpy()), num_queries=40, num_keys=40, causal=causal)
    np.testing.assert_array_equal(ours, bias.detach().numpy())
    np.testing.assert_allclose(backward(dout).table, table.grad.numpy(), rtol=0, atol=1e-12)
    assert math.isclose(float(np.sum(dout)), float(backward(dout).table.sum()), abs_tol=1e-9)


@pytest.mark.parametrize("size", [0, -1, 1.5, np.nan, np.inf])
@pytest.mark.parametrize("argument", ["num_heads", "num_buckets"])
def test_sizes_that_are_not_whole_numbers_are_refused_by_name(argument, size):
    with pytest.raises(ValueError, match=f"{argument}: got"):
        init_t5_bias(np.random.default_rng(0), **{"num_heads": 2, "num_buckets": 4, argument: size})
