"""Shaw's positions: vectors for offsets on keys and values, looked up for each pair by the oracle and for none by the code."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.masks import causal_mask
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.foundation import check_gradients
from minitransformers.positional.shaw import shaw


def textbook_shaw(q, k, v, key_table, value_table, mask=None):
    """Eqs. 3 and 4 of the paper, one head, one query at a time, each pair with its own two vectors."""
    past, reach = len(k) - len(q), len(key_table) // 2
    out = []
    for i in range(len(q)):
        seen = [j for j in range(len(k)) if mask is None or mask[i, j]]
        if not seen:
            out.append(anp.zeros(v.shape[1]))
            continue
        rows = {j: max(-reach, min(reach, j - (i + past))) + reach for j in seen}
        powers = [anp.exp(anp.dot(q[i], k[j] + key_table[rows[j]]) / np.sqrt(q.shape[1])) for j in seen]
        out.append(sum(p * (v[j] + value_table[rows[j]]) for p, j in zip(powers, seen, strict=True)) / sum(powers))
    return anp.stack(out)


def random_call(rng, *batch, queries=4, keys=6, rows=5, d_head=3, d_value=2):
    sizes = [(*batch, queries, d_head), (*batch, keys, d_head), (*batch, keys, d_value), (rows, d_head), (rows, d_value)]
    return [rng.normal(size=size) for size in sizes]


MASKS = {"none": None, "causal": causal_mask(4, 6), "holes": np.array([[1, 0, 0, 1, 1, 0], [0] * 6, [0, 0, 0, 0, 0, 1], [1] * 6], bool)}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("rows", [1, 3, 5, 11, 15])
def test_equals_the_loop_over_pairs_and_its_gradients(mask, rows):
    rng = np.random.default_rng(0)
    call, dout = random_call(rng, rows=rows), rng.normal(size=(4, 2))
    out, backward = shaw(*call, mask=MASKS[mask])
    np.testing.assert_allclose(out, textbook_shaw(*call, MASKS[mask]), rtol=0, atol=1e-12)
    expected = autograd.grad(lambda *call: anp.sum(dout * textbook_shaw(*call, MASKS[mask])), tuple(range(5)))(*call)
    for own, theirs in zip(backward(dout), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


def test_heads_and_batches_share_the_tables_and_add_up_their_gradients():
    rng = np.random.default_rng(1)
    q, k, v, key_table, value_table = random_call(rng, 2, 3)
    dout = rng.normal(size=(2, 3, 4, 2))
    out, backward = shaw(q, k, v, key_table, value_table)
    *_, dkey_table, dvalue_table = backward(dout)
    own = [shaw(q[b], k[b], v[b], key_table, value_table) for b in range(2)]
    np.testing.assert_allclose(out, np.stack([o for o, _ in own]), atol=1e-14)
    np.testing.assert_allclose(dkey_table, sum(back(dout[b])[3] for b, (_, back) in enumerate(own)), atol=1e-12)
    np.testing.assert_allclose(dvalue_table, sum(back(dout[b])[4] for b, (_, back) in enumerate(own)), atol=1e-12)


def test_tables_of_zeros_are_plain_attention():
    rng = np.random.default_rng(2)
    q, k, v, key_table, value_table = random_call(rng, 2)
    out, backward = shaw(q, k, v, 0 * key_table, 0 * value_table, mask=causal_mask(4, 6))
    plain, plain_backward = scaled_dot_product_attention(q, k, v, mask=causal_mask(4, 6))
    np.testing.assert_allclose(out, plain, rtol=0, atol=1e-14)
    dout = rng.normal(size=out.shape)
    for own, theirs in zip(backward(dout)[:3], plain_backward(dout)[:3], strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-13)


def test_a_reach_of_0_knows_no_order():
    q, k, v, key_table, value_table = random_call(np.random.default_rng(3), queries=6, rows=1)
    turned = np.array([3, 0, 5, 1, 4, 2])
    out, shuffled = shaw(q, k, v, key_table, value_table)[0], shaw(q[turned], k[turned], v[turned], key_table, value_table)[0]
    np.testing.assert_allclose(shuffled, out[turned], rtol=0, atol=1e-14)


def test_beyond_the_reach_the_distance_is_forgotten():
    q, k, v, key_table, value_table = random_call(np.random.default_rng(4), queries=1, keys=8)   # reach 2
    out, _ = shaw(q, k, v, key_table, value_table)
    far, near = np.array([4, 2, 0, 5, 1, 3, 6, 7]), np.array([0, 1, 2, 3, 4, 6, 5, 7])
    np.testing.assert_allclose(shaw(q, k[far], v[far], key_table, value_table)[0], out, rtol=0, atol=1e-14)  # 0..5 are 2 or more away
    assert np.abs(shaw(q, k[near], v[near], key_table, value_table)[0] - out).max() > 1e-3


def test_tokens_that_nobody_may_see_in_front_change_nothing():
    q, k, v, key_table, value_table = random_call(np.random.default_rng(5), queries=7, keys=7)
    moved, _ = shaw(q, k, v, key_table, value_table, mask=causal_mask(7) & (np.arange(7) >= 3))
    alone, _ = shaw(q[3:], k[3:], v[3:], key_table, value_table, mask=causal_mask(4))
    np.testing.assert_allclose(moved[3:], alone, rtol=0, atol=1e-14)


def test_new_queries_after_a_cache_get_what_the_whole_would_give_them():
    q, k, v, key_table, value_table = random_call(np.random.default_rng(6), queries=6)
    whole, _ = shaw(q, k, v, key_table, value_table, mask=causal_mask(6))
    for new in (1, 2, 5):
        last, _ = shaw(q[-new:], k, v, key_table, value_table, mask=causal_mask(new, 6))
        np.testing.assert_allclose(last, whole[-new:], rtol=0, atol=1e-14)


def test_one_loud_row_of_the_key_table_copies_the_token_before():
    v = np.random.default_rng(7).normal(size=(5, 3))
    q, key_table = np.ones((5, 2)), np.zeros((3, 2))
    key_table[0] = 100.0                                     # every key one or more positions back...
    mask = causal_mask(5) & (np.arange(5) >= np.arange(5)[:, None] - 1)  # ...of which one is in sight
    out, _ = shaw(q, np.zeros((5, 2)), v, key_table, np.zeros((3, 3)), mask=mask)
    np.testing.assert_allclose(out[1:], v[:-1], atol=1e-14)


def test_values_can_tell_how_far_away_was_read():
    # Equal keys and no values at all: the output is the mean of the value table's rows, so it is the mean offset.
    offsets = np.arange(-4.0, 5)[:, None]
    out, _ = shaw(np.zeros((5, 2)), np.zeros((5, 2)), np.zeros((5, 1)), np.zeros((9, 2)), offsets, mask=causal_mask(5))
    np.testing.assert_allclose(out[:, 0], [0, -0.5, -1, -1.5, -2], atol=1e-14)


def test_a_query_that_may_see_nothing_reads_zero_and_sends_nothing():
    rng = np.random.default_rng(8)
    call = random_call(rng)
    out, backward = shaw(*call, mask=MASKS["holes"])
    assert not out[1].any()
    dout = np.zeros((4, 2))
    dout[1] = rng.normal(size=2)
    assert not any(gradient.any() for gradient in backward(dout))


@pytest.mark.parametrize("shape", [(2, 1, 4, 6), (2, 4, 6), (3, 4, 6)])
def test_a_mask_that_is_larger_than_the_scores_is_refused(shape):
    call = random_call(np.random.default_rng(12), 1)
    with pytest.raises(ValueError, match="mask: got shape"):
        shaw(*call, mask=np.ones(shape, bool))


def test_huge_scores_stay_finite_in_float32():
    call = [a.astype(np.float32) * 1e15 for a in random_call(np.random.default_rng(9))]
    out, backward = shaw(*call)
    assert out.dtype == np.float32 and np.isfinite(out).all()
    assert all(np.isfinite(gradient).all() for gradient in backward(np.full_like(out, 1e-6)))


def test_the_checker_refuses_a_query_that_forgets_the_table():
    def forgetful(q, k, v, key_table, value_table):
        out, backward = shaw(q, k, v, key_table, value_table)
        weights = shaw(q, k, np.eye(len(k)), key_table, np.zeros((len(key_table), len(k))))[0]

        def wrong(dout):
            _, *rest = backward(dout)
            row = np.clip(np.arange(len(k)) - np.arange(len(k) - len(q), len(k))[:, None], -2, 2) + 2
            dweights = dout @ v.T + np.vecdot(dout[:, None], value_table[row])
            dscores = weights * (dweights - (dweights * weights).sum(-1, keepdims=True)) / q.shape[1] ** 0.5
            return dscores @ k, *rest                        # and dscores times the rows of the key table

        return out, wrong

    call = random_call(np.random.default_rng(10))
    assert check_gradients(forgetful, *call[:3], 0 * call[3], call[4]).passed       # with a table of zeros nobody would notice
    report = check_gradients(forgetful, *call)
    assert not report.passed and report.worst.path == "q" and report.error > 1e-2


@pytest.mark.parity
def test_parity_with_torch_and_a_vector_for_each_pair():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(11)
    call, dout = random_call(rng, 2, 3), rng.normal(size=(2, 3, 4, 2))
    q, k, v, key_table, value_table = leaves = [torch.tensor(a, requires_grad=True) for a in call]
    row = torch.clamp(torch.arange(6)[None] - torch.arange(2, 6)[:, None], -2, 2) + 2
    scores = (torch.einsum("bhid,bhjd->bhij", q, k) + torch.einsum("bhid,ijd->bhij", q, key_table[row])) / 3**0.5
    weights = torch.softmax(scores.masked_fill(~torch.tensor(MASKS["causal"]), -torch.inf), -1)
    theirs = torch.einsum("bhij,bhjd->bhid", weights, v) + torch.einsum("bhij,ijd->bhid", weights, value_table[row])
    theirs.backward(torch.tensor(dout))
    out, backward = shaw(*call, mask=MASKS["causal"])
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-13)
    for own, leaf in zip(backward(dout), leaves, strict=True):
        np.testing.assert_allclose(own, leaf.grad.numpy(), rtol=0, atol=1e-12)
