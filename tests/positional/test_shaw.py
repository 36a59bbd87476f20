"""Shaw's positions: vectors for offsets on keys and values, looked up for each pair by the oracle and for none by the code."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.masks import causal_mask
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.foundation import check_gradients, trees
from minitransformers.positional.shaw import Shaw, init_shaw, shaw


def textbook_shaw(key_table, value_table, query, key, value, bias=None, mask=None):
    """Eqs. 3 and 4 of the paper, one head, one query at a time, each pair with its own two vectors."""
    past, reach = len(key) - len(query), len(key_table) // 2
    out = []
    for i in range(len(query)):
        seen = [j for j in range(len(key)) if mask is None or mask[i, j]]
        if not seen:
            out.append(anp.zeros(value.shape[1]))
            continue
        rows = {j: max(-reach, min(reach, j - (i + past))) + reach for j in seen}
        scores = [anp.dot(query[i], key[j] + key_table[rows[j]]) / np.sqrt(query.shape[1]) for j in seen]
        powers = [anp.exp(score if bias is None else score + bias[i, j]) for score, j in zip(scores, seen, strict=True)]
        out.append(sum(p * (value[j] + value_table[rows[j]]) for p, j in zip(powers, seen, strict=True)) / sum(powers))
    return anp.stack(out)


def random_call(rng, *batch, queries=4, keys=6, rows=5, d_head=3, d_value=2):
    sizes = [(*batch, queries, d_head), (*batch, keys, d_head), (*batch, keys, d_value), (rows, d_head), (rows, d_value)]
    query, key, value, key_table, value_table = (rng.normal(size=size) for size in sizes)
    return Shaw(key_table, value_table), query, key, value


def zeros_for(value, rows=3, d_head=2):
    return Shaw(np.zeros((rows, d_head)), np.zeros((rows, value.shape[-1])))


MASKS = {"none": None, "causal": causal_mask(4, 6), "holes": np.array([[1, 0, 0, 1, 1, 0], [0] * 6, [0, 0, 0, 0, 0, 1], [1] * 6], bool)}


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("rows", [1, 3, 5, 11, 15])
def test_equals_the_loop_over_pairs_and_its_gradients(mask, rows, biased):
    rng = np.random.default_rng(0)
    (params, *arrays), dout = random_call(rng, rows=rows), rng.normal(size=(4, 2))
    arrays = [*arrays, rng.normal(size=(4, 6))] if biased else arrays
    out, backward = shaw(params, *arrays, mask=MASKS[mask])
    np.testing.assert_allclose(out, textbook_shaw(*params, *arrays, mask=MASKS[mask]), rtol=0, atol=1e-12)
    which = tuple(range(2 + len(arrays)))
    expected = autograd.grad(lambda *call: anp.sum(dout * textbook_shaw(*call, mask=MASKS[mask])), which)(*params, *arrays)
    dparams, *rest = backward(dout)
    assert biased or rest.pop() is None                      # no bias, no gradient of one
    for own, theirs in zip([*dparams, *rest], expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


def test_heads_and_batches_share_the_tables_and_add_up_their_gradients():
    rng = np.random.default_rng(1)
    params, *arrays = random_call(rng, 2, 3)
    dout = rng.normal(size=(2, 3, 4, 2))
    out, backward = shaw(params, *arrays)
    own = [shaw(params, *(a[b] for a in arrays)) for b in range(2)]
    np.testing.assert_allclose(out, np.stack([o for o, _ in own]), atol=1e-14)
    found = [back(dout[b])[0] for b, (_, back) in enumerate(own)]
    for dtable, *parts in zip(backward(dout)[0], *found, strict=True):
        np.testing.assert_allclose(dtable, sum(parts), atol=1e-12)


def test_grouped_heads_equal_the_loop_over_heads():
    rng = np.random.default_rng(13)
    params, query, _, _ = random_call(rng, 2, 3, 2)          # (batch, groups, heads of a group, queries, d)
    _, _, key, value = random_call(rng, 2, 3, 1)
    bias, mask, dout = rng.normal(size=(1, 3, 2, 4, 6)), rng.random((2, 1, 1, 4, 6)) < 0.7, rng.normal(size=(2, 3, 2, 4, 2))
    out, backward = shaw(params, query, key, value, bias, mask=mask)
    expected = (trees.zeros_like(params), *map(np.zeros_like, (query, key, value, bias)))
    for b, g, i in np.ndindex(2, 3, 2):
        own, own_backward = shaw(params, query[b, g, i], key[b, g, 0], value[b, g, 0], bias[0, g, i], mask=mask[b, 0, 0])
        np.testing.assert_allclose(out[b, g, i], own, rtol=0, atol=1e-13)
        dparams, dquery, dkey, dvalue, dbias = own_backward(dout[b, g, i])
        for total, part in zip(expected[0], dparams, strict=True):
            total += part
        expected[1][b, g, i] += dquery
        expected[2][b, g, 0] += dkey
        expected[3][b, g, 0] += dvalue
        expected[4][0, g, i] += dbias
    for (path, mine), (_, theirs) in zip(trees.leaves(backward(dout)), trees.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-12, err_msg=path)


def test_values_may_have_leading_axes_that_queries_and_keys_lack():
    rng = np.random.default_rng(14)
    params, query, key, _ = random_call(rng)
    value, dout = rng.normal(size=(3, 6, 2)), rng.normal(size=(3, 4, 2))
    out, backward = shaw(params, query, key, value)
    np.testing.assert_allclose(out, [shaw(params, query, key, v)[0] for v in value], rtol=0, atol=1e-13)
    parts = [shaw(params, query, key, v)[1](d)[0].value_table for v, d in zip(value, dout, strict=True)]
    np.testing.assert_allclose(backward(dout)[0].value_table, sum(parts), rtol=0, atol=1e-12)
    assert check_gradients(shaw, params, query, key, value).passed


def test_tables_of_zeros_are_plain_attention():
    rng = np.random.default_rng(2)
    params, *arrays = random_call(rng, 2)
    arrays = [*arrays, rng.normal(size=(4, 6))]
    out, backward = shaw(trees.zeros_like(params), *arrays, mask=causal_mask(4, 6))
    plain, plain_backward = scaled_dot_product_attention(*arrays, mask=causal_mask(4, 6))
    np.testing.assert_allclose(out, plain, rtol=0, atol=1e-14)
    dout = rng.normal(size=out.shape)
    for own, theirs in zip(backward(dout)[1:], plain_backward(dout), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-13)


def test_a_reach_of_0_knows_no_order():
    params, query, key, value = random_call(np.random.default_rng(3), queries=6, rows=1)
    turned = np.array([3, 0, 5, 1, 4, 2])
    out, shuffled = shaw(params, query, key, value)[0], shaw(params, query[turned], key[turned], value[turned])[0]
    np.testing.assert_allclose(shuffled, out[turned], rtol=0, atol=1e-14)


def test_beyond_the_reach_the_distance_is_forgotten():
    params, query, key, value = random_call(np.random.default_rng(4), queries=1, keys=8)  # reach 2
    out, _ = shaw(params, query, key, value)
    far, near = np.array([4, 2, 0, 5, 1, 3, 6, 7]), np.array([0, 1, 2, 3, 4, 6, 5, 7])
    np.testing.assert_allclose(shaw(params, query, key[far], value[far])[0], out, rtol=0, atol=1e-14)  # 0..5 are 2 or more away
    assert np.abs(shaw(params, query, key[near], value[near])[0] - out).max() > 1e-3


def test_tokens_that_nobody_may_see_in_front_change_nothing():
    params, query, key, value = random_call(np.random.default_rng(5), queries=7, keys=7)
    moved, _ = shaw(params, query, key, value, mask=causal_mask(7) & (np.arange(7) >= 3))
    alone, _ = shaw(params, query[3:], key[3:], value[3:], mask=causal_mask(4))
    np.testing.assert_allclose(moved[3:], alone, rtol=0, atol=1e-14)


def test_new_queries_after_a_cache_get_what_the_whole_would_give_them():
    rng = np.random.default_rng(6)
    params, query, key, value = random_call(rng, queries=6)
    bias = rng.normal(size=(6, 6))
    whole, _ = shaw(params, query, key, value, bias, mask=causal_mask(6))
    for new in (1, 2, 5):
        last, _ = shaw(params, query[-new:], key, value, bias[-new:], mask=causal_mask(new, 6))
        np.testing.assert_allclose(last, whole[-new:], rtol=0, atol=1e-14)


def test_one_loud_row_of_the_key_table_copies_the_token_before():
    value = np.random.default_rng(7).normal(size=(5, 3))
    params = zeros_for(value)
    params.key_table[0] = 100.0                              # every key one or more positions back...
    mask = causal_mask(5) & (np.arange(5) >= np.arange(5)[:, None] - 1)  # ...of which one is in sight
    out, _ = shaw(params, np.ones((5, 2)), np.zeros((5, 2)), value, mask=mask)
    np.testing.assert_allclose(out[1:], value[:-1], atol=1e-14)


def test_values_can_tell_how_far_away_was_read():
    # Equal keys and no values at all: the output is the mean of the value table's rows, so it is the mean offset.
    params = Shaw(np.zeros((9, 2)), np.arange(-4.0, 5)[:, None])
    out, _ = shaw(params, np.zeros((5, 2)), np.zeros((5, 2)), np.zeros((5, 1)), mask=causal_mask(5))
    np.testing.assert_allclose(out[:, 0], [0, -0.5, -1, -1.5, -2], atol=1e-14)


def test_a_query_that_may_see_nothing_reads_zero_and_sends_nothing():
    rng = np.random.default_rng(8)
    call = random_call(rng)
    bias = np.where(MASKS["holes"], rng.normal(size=(4, 6)), -np.inf)        # a bias of -inf forbids as the mask does
    for config in ({"mask": MASKS["holes"]}, {"bias": bias}):
        out, backward = shaw(*call, **config)
        assert not out[1].any()
        dout = np.zeros((4, 2))
        dout[1] = rng.normal(size=2)
        assert not any(gradient.any() for _, gradient in trees.leaves(backward(dout)))


@pytest.mark.parametrize("shape", [(2, 1, 4, 6), (2, 4, 6), (3, 4, 6)])
def test_a_mask_or_a_bias_that_is_larger_than_the_scores_is_refused(shape):
    call = random_call(np.random.default_rng(12), 1)
    with pytest.raises(ValueError, match="mask: got shape"):
        shaw(*call, mask=np.ones(shape, bool))
    with pytest.raises(ValueError, match="bias: got shape"):
        shaw(*call, np.ones(shape))


def test_it_starts_small_with_a_row_for_every_offset_up_to_the_reach():
    params = init_shaw(np.random.default_rng(15), d_head=60, reach=40)
    assert params.key_table.shape == params.value_table.shape == (81, 60) and params.key_table.dtype == np.float32
    np.testing.assert_allclose([params.key_table.std(), params.value_table.std()], 0.02, rtol=0.05)


def test_huge_scores_stay_finite_in_float32():
    call = trees.map(lambda a: a.astype(np.float32) * 1e15, random_call(np.random.default_rng(9)))
    out, backward = shaw(*call)
    assert out.dtype == np.float32 and np.isfinite(out).all()
    assert all(np.isfinite(gradient).all() for _, gradient in trees.leaves(backward(np.full_like(out, 1e-6))))


def test_the_checker_refuses_a_query_that_forgets_the_table():
    def forgetful(params, query, key, value):
        out, backward = shaw(params, query, key, value)
        weights = shaw(params._replace(value_table=np.zeros((5, len(key)))), query, key, np.eye(len(key)))[0]

        def wrong(dout):
            dparams, _, *rest = backward(dout)
            row = np.clip(np.arange(len(key)) - np.arange(len(key) - len(query), len(key))[:, None], -2, 2) + 2
            dweights = dout @ value.T + np.vecdot(dout[:, None], params.value_table[row])
            dscores = weights * (dweights - (dweights * weights).sum(-1, keepdims=True)) / query.shape[1] ** 0.5
            return dparams, dscores @ key, *rest[:2]         # and dscores times the rows of the key table

        return out, wrong

    params, *arrays = random_call(np.random.default_rng(10))
    assert check_gradients(forgetful, params._replace(key_table=0 * params.key_table), *arrays).passed  # with zeros nobody would notice
    report = check_gradients(forgetful, params, *arrays)
    assert not report.passed and report.worst.path == "query" and report.error > 1e-2


@pytest.mark.parity
def test_parity_with_torch_and_a_vector_for_each_pair():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(11)
    call, dout = (*random_call(rng, 2, 3), rng.normal(size=(3, 4, 6))), rng.normal(size=(2, 3, 4, 2))
    key_table, value_table, query, key, value, bias = leaves = [torch.tensor(a, requires_grad=True) for _, a in trees.leaves(call)]
    row = torch.clamp(torch.arange(6)[None] - torch.arange(2, 6)[:, None], -2, 2) + 2
    scores = (torch.einsum("bhid,bhjd->bhij", query, key) + torch.einsum("bhid,ijd->bhij", query, key_table[row])) / 3**0.5 + bias
    weights = torch.softmax(scores.masked_fill(~torch.tensor(MASKS["causal"]), -torch.inf), -1)
    theirs = torch.einsum("bhij,bhjd->bhid", weights, value) + torch.einsum("bhij,ijd->bhid", weights, value_table[row])
    theirs.backward(torch.tensor(dout))
    out, backward = shaw(*call, mask=MASKS["causal"])
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-13)
    for (_, own), leaf in zip(trees.leaves(backward(dout)), leaves, strict=True):
        np.testing.assert_allclose(own, leaf.grad.numpy(), rtol=0, atol=1e-12)
