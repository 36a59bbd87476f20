"""Both directions: the naive sum over all keys, padding, and its place as the core of an attention."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from naive_linear_attention import elu_plus_one, random_case

from minitransformers.attention.core import causal
from minitransformers.attention.cross_attention import cross_attention, init_cross_attention
from minitransformers.attention.grouped_query_attention import grouped_query_attention, init_grouped_query_attention
from minitransformers.attention.masks import causal_mask, padding_mask
from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.basics.softplus import softplus
from minitransformers.foundation import check_gradients, slot, trees
from minitransformers.linear_attention.linear_attention import linear_attention
from minitransformers.linear_attention.linear_attention_bidirectional import linear_attention_bidirectional


def case(queries=4, keys=6, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in ((2, 3, queries, 5), (2, 3, keys, 5), (2, 3, keys, 2))]


LENGTHS = np.array([6, 3])
MASK = padding_mask(LENGTHS, 6)


def textbook(query, key, value, mask):
    """One query at a time over the keys that there are."""
    texts = []
    for b in range(len(query)):
        heads = []
        for h in range(query.shape[1]):
            rows = []
            for i in range(query.shape[2]):
                total, mixed = 0.0, 0 * value[b, h, 0]
                for j in np.flatnonzero(mask[b, 0, 0]):
                    score = anp.sum(elu_plus_one(query[b, h, i]) * elu_plus_one(key[b, h, j]))
                    total, mixed = total + score, mixed + score * value[b, h, j]
                rows.append(mixed / total)
            heads.append(anp.stack(rows))
        texts.append(anp.stack(heads))
    return anp.stack(texts)


@pytest.mark.parametrize("padded", [True, False])
def test_equals_the_textbook_sum_and_its_gradients(padded):
    arguments, mask = case(), MASK if padded else np.ones_like(MASK)
    out, backward = linear_attention_bidirectional(None, *arguments, mask=mask if padded else None)
    dout = np.random.default_rng(1).normal(size=out.shape)
    np.testing.assert_allclose(out, textbook(*arguments, mask), rtol=0, atol=1e-12)
    dparams, *gradients, dbias = backward(dout)
    assert dparams is None and dbias is None
    expected = autograd.grad(lambda *a: anp.sum(dout * textbook(*a, mask)), (0, 1, 2))(*arguments)
    for own, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


def test_the_order_of_the_keys_does_not_matter():
    query, key, value = case()
    order = np.random.default_rng(2).permutation(6)
    out, _ = linear_attention_bidirectional(None, query, key, value)
    np.testing.assert_allclose(linear_attention_bidirectional(None, query, key[:, :, order], value[:, :, order])[0], out, rtol=0, atol=1e-14)


def test_weights_are_positive_and_sum_to_1():
    query, key, _ = case()
    weights, _ = linear_attention_bidirectional(None, query, key, np.broadcast_to(np.eye(6), (2, 3, 6, 6)), mask=MASK)
    assert (weights[0] > 0).all() and (weights[1, ..., :3] > 0).all() and not weights[1, ..., 3:].any()
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=0, atol=1e-14)


def test_its_last_query_is_the_last_of_the_causal_form():
    (query, key, value, _), _ = random_case()
    (whole, _), _ = linear_attention(None, query, key, value)
    np.testing.assert_allclose(linear_attention_bidirectional(None, query[-1:], key, value)[0], whole[-1:], rtol=0, atol=1e-14)


def test_keys_that_are_hidden_are_keys_that_are_not_there():
    query, key, value = case()
    out, backward = linear_attention_bidirectional(None, query, key, value, mask=MASK)
    dout = np.random.default_rng(3).normal(size=out.shape)
    gradients = backward(dout)
    for b, length in enumerate(LENGTHS):
        alone, alone_backward = linear_attention_bidirectional(None, query[b], key[b, :, :length], value[b, :, :length])
        np.testing.assert_allclose(out[b], alone, rtol=0, atol=1e-14)
        _, dquery, dkey, dvalue, _ = alone_backward(dout[b])
        np.testing.assert_allclose(gradients[1][b], dquery, rtol=0, atol=1e-14)
        for own, theirs in ((gradients[2][b], dkey), (gradients[3][b], dvalue)):
            np.testing.assert_allclose(own[:, :length], theirs, rtol=0, atol=1e-14)
            assert not own[:, length:].any()


def test_a_query_without_a_key_reads_zero_and_sends_no_gradient():
    out, backward = linear_attention_bidirectional(None, *case(), mask=padding_mask(np.array([6, 0]), 6))
    assert out[0].all() and not out[1].any()
    assert not any(gradient[1].any() for gradient in backward(np.ones_like(out))[1:4])


@pytest.mark.parametrize("one", [True, False])
def test_a_mask_may_be_written_for_each_query_as_long_as_they_agree(one):
    arguments = case()
    rows = np.broadcast_to(MASK, (2, 1, 1 if one else 4, 6))
    out, _ = linear_attention_bidirectional(None, *arguments, mask=rows)
    np.testing.assert_array_equal(out, linear_attention_bidirectional(None, *arguments, mask=MASK)[0])


def test_what_would_need_a_state_for_each_query_is_refused():
    arguments = case(6)
    with pytest.raises(ValueError, match="mask: got a mask that differs between queries, wants one that hides the same keys from all"):
        linear_attention_bidirectional(None, *arguments, mask=causal_mask(6)[None, None])
    with pytest.raises(ValueError, match="bias: got an array of shape"):
        linear_attention_bidirectional(None, *arguments, np.zeros((1, 1, 6, 6)))
    with pytest.raises(ValueError, match="feature_map: got features down to"):
        linear_attention_bidirectional(None, *arguments, feature_map=slot(lambda x: (x, None)))
    params = init_multi_head_attention(np.random.default_rng(0), 6, num_heads=2, dtype=np.float64)
    with pytest.raises(ValueError, match="mask: got a mask that differs between queries"):
        multi_head_attention(params, np.ones((2, 4, 6)), num_heads=2, core=causal(linear_attention_bidirectional))


# Without the corner in the slope of elu + 1, which central differences may step over.
smooth = partial(linear_attention_bidirectional, feature_map=slot(softplus))


@pytest.mark.parametrize("padded", [True, False])
def test_it_is_a_core_of_multi_head_attention(padded):
    rng = np.random.default_rng(4)
    params, x = init_multi_head_attention(rng, 6, num_heads=2, dtype=np.float64), rng.normal(size=(2, 4, 6))
    mask = padding_mask(np.array([4, 2]), 4) if padded else None
    report = check_gradients(multi_head_attention, params, x, num_heads=2, mask=mask, core=smooth, second_opinion=False)
    assert report.passed, str(report)


def test_it_is_a_core_of_cross_attention_and_of_grouped_queries():
    rng = np.random.default_rng(5)
    x, memory = rng.normal(size=(2, 3, 8)), rng.normal(size=(2, 5, 8))
    params = init_cross_attention(rng, 8, num_heads=2, dtype=np.float64)
    settings = {"core": smooth, "mask": padding_mask(np.array([5, 2]), 5), "second_opinion": False}
    assert check_gradients(cross_attention, params, x, memory, num_heads=2, **settings).passed
    grouped = init_grouped_query_attention(rng, 8, num_heads=4, num_kv_heads=2, dtype=np.float64)
    settings["mask"] = padding_mask(np.array([3, 2]), 3)
    assert check_gradients(grouped_query_attention, grouped, x, num_heads=4, num_kv_heads=2, **settings).passed


def test_keys_that_heads_share_get_the_sum_of_their_gradients():
    query, key, value = case()
    key, value = key[:, :1], value[:, :1]
    out, backward = linear_attention_bidirectional(None, query, key, value, mask=MASK)
    copies = [np.tile(a, (1, 3, 1, 1)) for a in (key, value)]
    expected, expected_backward = linear_attention_bidirectional(None, query, *copies, mask=MASK)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-14)
    (_, _, dkey, dvalue, _), (_, _, dkeys, dvalues, _) = backward(out), expected_backward(out)
    np.testing.assert_allclose(dkey, dkeys.sum(1, keepdims=True), rtol=0, atol=1e-13)
    np.testing.assert_allclose(dvalue, dvalues.sum(1, keepdims=True), rtol=0, atol=1e-13)


def a_mask_on_the_values_alone(params, query, key, value):
    """Hidden values are zero, and hidden keys are counted all the same."""
    ones = np.ones_like(value)
    real, backward = linear_attention_bidirectional(params, query, key, value, mask=MASK)
    counted, _ = linear_attention_bidirectional(params, query, key, MASK[:, :, 0, :, None] * ones)
    return real * counted, lambda dout: backward(dout * counted)[:4]


def test_the_checker_refuses_a_denominator_that_is_a_constant():
    report = check_gradients(a_mask_on_the_values_alone, None, *case(), second_opinion=False)
    assert [a.error > 1e-2 for a in report.arguments] == [True, True, False]


@pytest.mark.parity
def test_parity_with_a_few_lines_of_torch():
    torch = pytest.importorskip("torch")
    arguments = case()
    leaves = query, key, value = [torch.tensor(a, requires_grad=True) for a in arguments]
    q, k = (torch.nn.functional.elu(x) + 1 for x in (query, key))
    k = k * torch.tensor(MASK)[:, :, 0, :, None]
    theirs = torch.einsum("bhif,bhjf,bhjp->bhip", q, k, value) / torch.einsum("bhif,bhf->bhi", q, k.sum(-2))[..., None]
    dout = np.random.default_rng(6).normal(size=theirs.shape)
    theirs.backward(torch.tensor(dout))
    out, backward = linear_attention_bidirectional(None, *arguments, mask=MASK)
    np.testing.assert_allclose(out, theirs.detach(), rtol=0, atol=1e-13)
    for (path, own), leaf in zip(trees.leaves(backward(dout)[1:4]), leaves, strict=True):
        np.testing.assert_allclose(own, leaf.grad, rtol=0, atol=1e-13, err_msg=path)
