"""ALiBi: a penalty for every step of distance, its slopes those of the paper and of Bloom, whatever the number of heads."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.masks import causal_mask
from minitransformers.attention.scaled_dot_product_attention import attention_weights, scaled_dot_product_attention
from minitransformers.foundation import check_gradients
from minitransformers.positional.alibi import Alibi, alibi, init_alibi


def textbook_alibi(slopes, num_queries, num_keys):
    """One score at a time; the last query stands at the last key."""
    past = num_keys - num_queries
    return anp.stack([anp.stack([anp.stack([-m * abs(past + i - j) for j in range(num_keys)]) for i in range(num_queries)]) for m in slopes])


def slopes(num_heads):
    return init_alibi(np.random.default_rng(0), num_heads=num_heads, dtype=np.float64).slopes


@pytest.mark.parametrize(("num_queries", "num_keys"), [(5, 5), (2, 5), (1, 1), (1, 4)])
def test_equals_the_loop_and_its_gradient(num_queries, num_keys):
    rng = np.random.default_rng(1)
    params, dout = Alibi(rng.normal(size=3)), rng.normal(size=(3, num_queries, num_keys))
    out, backward = alibi(params, num_queries=num_queries, num_keys=num_keys)
    np.testing.assert_allclose(out, textbook_alibi(params.slopes, num_queries, num_keys), rtol=0, atol=1e-14)
    expected = autograd.grad(lambda m: anp.sum(dout * textbook_alibi(m, num_queries, num_keys)))(params.slopes)
    np.testing.assert_allclose(backward(dout).slopes, expected, rtol=0, atol=1e-12)


def test_the_slopes_are_those_of_the_paper():
    np.testing.assert_array_equal(slopes(8), [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256])
    np.testing.assert_array_equal(slopes(1), [1 / 256])
    np.testing.assert_array_equal(slopes(6), [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8])
    np.testing.assert_allclose(slopes(12)[8:], 2.0 ** np.array([-0.5, -1.5, -2.5, -3.5]), rtol=1e-15)


@pytest.mark.parametrize("num_heads", range(1, 34))
def test_there_is_a_slope_for_every_head_between_0_and_1_and_no_two_are_equal(num_heads):
    found = slopes(num_heads)
    assert found.shape == (num_heads,) and len(set(found)) == num_heads
    assert found.min() > 0 and found.max() < 1
    power = 2 ** int(np.log2(num_heads))
    assert (np.diff(found[:power]) < 0).all() and (np.diff(found[power:]) < 0).all()


def test_the_bias_is_constant_along_diagonals_and_nothing_at_home():
    out, _ = alibi(Alibi(slopes(4)), num_queries=5, num_keys=5)
    np.testing.assert_array_equal(out[:, 1:, 1:], out[:, :-1, :-1])
    assert not np.diagonal(out, axis1=1, axis2=2).any()
    assert (out[:, 4, 1:] > out[:, 4, :-1]).all()            # nearer is better, all the way


def test_a_few_queries_after_many_keys_are_the_last_rows_of_the_whole():
    whole, _ = alibi(Alibi(slopes(3)), num_queries=6, num_keys=6)
    for new in (1, 2, 5):
        np.testing.assert_array_equal(alibi(Alibi(slopes(3)), num_queries=new, num_keys=6)[0], whole[:, -new:])


def test_with_equal_scores_the_weights_are_a_geometric_series():
    params, x = Alibi(np.array([0.5, 0.125])), np.zeros((2, 6, 4))
    bias, _ = alibi(params, num_queries=6, num_keys=6)
    weights = attention_weights(x, x, bias, mask=causal_mask(6))
    ratio = weights[:, 5, :-1] / weights[:, 5, 1:]           # one step further away
    np.testing.assert_allclose(ratio, np.exp(-params.slopes)[:, None] * np.ones(5), rtol=1e-12)


def test_counting_from_the_start_instead_gives_the_same_attention():
    # Bloom adds slope * j: every row is off by a constant, which a softmax does not see.
    rng = np.random.default_rng(2)
    q, k, v = rng.normal(size=(3, 2, 5, 4))
    params = Alibi(slopes(2))
    from_the_start = params.slopes[:, None, None] * np.arange(5.0)
    ours, theirs = (
        scaled_dot_product_attention(q, k, v, bias, mask=causal_mask(5))[0] for bias in (alibi(params, num_queries=5, num_keys=5)[0], from_the_start)
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-14)


def test_tokens_that_nobody_may_see_in_front_change_nothing():
    rng = np.random.default_rng(3)
    q, k, v = rng.normal(size=(3, 2, 7, 4))
    seen = np.arange(7) >= 3
    bias, _ = alibi(Alibi(slopes(2)), num_queries=7, num_keys=7)
    shifted, _ = scaled_dot_product_attention(q, k, v, bias, mask=causal_mask(7) & seen)
    alone, _ = scaled_dot_product_attention(q[:, 3:], k[:, 3:], v[:, 3:], bias[:, 3:, 3:], mask=causal_mask(4))
    np.testing.assert_allclose(shifted[:, 3:], alone, rtol=0, atol=1e-14)
    fresh, _ = alibi(Alibi(slopes(2)), num_queries=4, num_keys=4)
    np.testing.assert_array_equal(bias[:, 3:, 3:], fresh)


def test_slopes_that_are_not_learned_get_exactly_nothing_and_act_alike():
    params, dout = Alibi(slopes(3)), np.random.default_rng(4).normal(size=(3, 2, 5))
    fixed, fixed_backward = alibi(params, num_queries=2, num_keys=5, learned=False)
    np.testing.assert_array_equal(fixed, alibi(params, num_queries=2, num_keys=5)[0])
    np.testing.assert_array_equal(fixed_backward(dout).slopes, np.zeros(3))


def test_far_distances_stay_exact_in_float32():
    params = init_alibi(np.random.default_rng(0), num_heads=8)
    out, _ = alibi(params, num_queries=1, num_keys=100_001)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out[:, 0, 0], [-50_000, -25_000, -12_500, -6_250, -3_125, -1_562.5, -781.25, -390.625])


@pytest.mark.parametrize("num_heads", [0, -1, 1.5, np.nan, np.inf])
def test_heads_that_are_not_a_whole_number_from_1_are_refused(num_heads):
    with pytest.raises(ValueError, match="num_heads: got"):
        init_alibi(np.random.default_rng(0), num_heads=num_heads)


def test_the_checker_refuses_a_gradient_that_counts_keys_instead_of_steps():
    # It is what Bloom's form of the bias would suggest. Behind a softmax it is even right; the bias alone tells them apart.
    def counts_keys(params, *, num_queries, num_keys):
        out, _ = alibi(params, num_queries=num_queries, num_keys=num_keys)
        return out, lambda dout: Alibi((dout * np.arange(num_keys)).sum((1, 2)))

    report = check_gradients(counts_keys, Alibi(np.random.default_rng(5).normal(size=3)), num_queries=3, num_keys=4)
    assert not report.passed and report.worst.path == "params.slopes" and report.error > 1e-2


@pytest.mark.parity
@pytest.mark.parametrize("num_heads", [1, 2, 3, 4, 6, 7, 8, 12, 16, 20, 33])
def test_parity_with_the_slopes_of_bloom(num_heads):
    torch = pytest.importorskip("torch")
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    theirs = bloom._get_alibi_slopes(num_heads, torch.device("cpu")).numpy()          # float32
    np.testing.assert_allclose(slopes(num_heads), theirs, rtol=0, atol=5e-8)


@pytest.mark.parity
def test_parity_with_bloom_s_bias_behind_a_softmax():
    torch = pytest.importorskip("torch")
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    theirs = bloom.build_alibi_tensor(torch.ones(1, 6), 4, torch.float64).numpy().reshape(4, 1, 6)  # powers of two: exact
    ours, _ = alibi(Alibi(slopes(4)), num_queries=6, num_keys=6)
    scores = np.random.default_rng(6).normal(size=(4, 6, 6))
    hidden = np.where(causal_mask(6), 0.0, -np.inf)
    weights = [torch.softmax(torch.tensor(scores + bias + hidden), -1).numpy() for bias in (ours, theirs)]
    np.testing.assert_allclose(*weights, rtol=0, atol=1e-15)
