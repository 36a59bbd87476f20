"""Cross-segment attention: the own segment word by word and every segment as one summary, in one softmax."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.attention.masks import padding_mask
from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.long_context.cross_segment import cross_segment

READS = np.array([[1, 0, 1], [1, 1, 1], [0, 1, 0]], bool)
MASK = np.array([1, 0, 1, 1, 0, 0], bool)


def random_call(seed, positions=6):
    rng = np.random.default_rng(seed)
    return rng, *(rng.normal(size=(positions, d)) for d in (5, 5, 7))


def textbook(query, key, value, length=2, reads=None, causal=False, real=None):
    """One query at a time, with a list of what it reads."""
    n = len(query)
    segments, real = n // length, [True] * n if real is None else real
    summaries = []
    for c in range(segments):
        inside = [j for j in range(c * length, (c + 1) * length) if real[j]]
        summaries.append((sum(key[j] for j in inside) / len(inside), sum(value[j] for j in inside) / len(inside)) if inside else None)
    rows = []
    for i in range(n):
        b, heard = i // length, []
        for j in range(b * length, (b + 1) * length):
            if real[j] and (j <= i or not causal):
                heard.append((key[j], value[j]))
        for c in range(segments):
            if summaries[c] is not None and (reads is None or reads[b, c]) and (c < b or not causal):
                heard.append(summaries[c])
        exps = [anp.exp(anp.dot(query[i], k) / query.shape[1] ** 0.5) for k, _ in heard]
        rows.append(sum(e * v for e, (_, v) in zip(exps, heard, strict=True)) / sum(exps) if heard else 0.0 * value[0])
    return anp.stack(rows)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("reads", [None, READS])
@pytest.mark.parametrize("real", [None, MASK])
def test_equals_the_loops_and_their_gradients(causal, reads, real):
    rng, *arrays = random_call(0)
    dout = rng.normal(size=(6, 7))
    out, backward = cross_segment(None, *arrays, length=2, reads=reads, causal=causal, mask=None if real is None else real[None])
    settings = {"reads": reads, "causal": causal, "real": real}
    np.testing.assert_allclose(out, textbook(*arrays, **settings), rtol=0, atol=1e-13)
    expected = autograd.grad(lambda *all_of: anp.sum(dout * textbook(*all_of, **settings)), (0, 1, 2))(*arrays)
    for own, their in zip(backward(dout)[1:4], expected, strict=True):
        np.testing.assert_allclose(own, their, rtol=0, atol=1e-12)


def test_one_layer_connects_all_segments():
    rng, *arrays = random_call(1)
    out, backward = cross_segment(None, *arrays, length=2)
    dout = np.zeros_like(out)
    dout[0] = rng.normal(size=7)
    _, _, dkey, dvalue, _ = backward(dout)
    assert (dkey != 0).all() and (dvalue != 0).all()


def test_a_segment_as_long_as_the_text_is_dense_attention_with_one_more_slot_for_the_mean():
    _, query, key, value = random_call(2)
    with_mean = [np.concatenate([a, a.mean(axis=0, keepdims=True)]) for a in (key, value)]
    dense, _ = scaled_dot_product_attention(query, *with_mean)
    np.testing.assert_allclose(cross_segment(None, query, key, value, length=6)[0], dense, rtol=0, atol=1e-14)


def test_segments_of_one_token_are_dense_attention_in_which_each_counts_itself_twice():
    _, query, key, value = random_call(3)
    dense, _ = scaled_dot_product_attention(query, key, value, np.log(1 + np.eye(6)))
    np.testing.assert_allclose(cross_segment(None, query, key, value, length=1)[0], dense, rtol=0, atol=1e-14)


def test_without_summaries_each_segment_is_alone():
    rng, *arrays = random_call(4)
    out, backward = cross_segment(None, *arrays, length=2, reads=np.zeros((3, 3), bool))
    cut = [a.reshape(3, 2, -1) for a in arrays]
    np.testing.assert_allclose(out.reshape(3, 2, 7), scaled_dot_product_attention(*cut)[0], rtol=0, atol=1e-14)
    dout = np.zeros_like(out)
    dout[:2] = rng.normal(size=(2, 7))
    for gradient in backward(dout)[1:4]:
        np.testing.assert_array_equal(gradient[2:], 0)


def test_where_causal_nothing_comes_from_later():
    rng, *arrays = random_call(5)
    out, backward = cross_segment(None, *arrays, length=2, causal=True)
    for i in range(6):
        dout = np.zeros_like(out)
        dout[i] = rng.normal(size=7)
        _, _, dkey, dvalue, _ = backward(dout)
        np.testing.assert_array_equal(dkey[i + 1 :], 0)
        np.testing.assert_array_equal(dvalue[i + 1 :], 0)
        assert (dvalue[: i + 1] != 0).all()


def test_tokens_of_a_segment_are_read_from_outside_alike():
    rng, *arrays = random_call(6)
    out, backward = cross_segment(None, *arrays, length=2)
    dout = np.zeros_like(out)
    dout[4] = rng.normal(size=7)
    for gradient in backward(dout)[2:4]:
        np.testing.assert_array_equal(gradient[0], gradient[1])
        np.testing.assert_array_equal(gradient[2], gradient[3])
        assert np.abs(gradient[4] - gradient[5]).max() > 1e-3


def test_padding_is_in_no_summary_and_an_empty_segment_has_none():
    rng, query, key, value = random_call(7)
    mask = padding_mask(np.array([3]), 6)[0, 0]              # the second segment is half padding, the third empty
    out, backward = cross_segment(None, query, key, value, length=2, mask=mask)
    other = [np.where(mask.T, a, 100 * rng.normal(size=a.shape)) for a in (key, value)]
    np.testing.assert_array_equal(cross_segment(None, query, *other, length=2, mask=mask)[0], out)
    short, _ = cross_segment(None, query[:4], key[:4], value[:4], length=2, mask=mask[:, :4])
    np.testing.assert_allclose(out[:3], short[:3], rtol=0, atol=1e-15)
    for gradient in backward(rng.normal(size=out.shape))[2:4]:
        np.testing.assert_array_equal(gradient[3:], 0)


def test_a_query_that_may_read_nothing_gets_zero_and_sends_nothing():
    rng, *arrays = random_call(8)
    out, backward = cross_segment(None, *arrays, length=2, mask=MASK[None], reads=np.zeros((3, 3), bool))
    np.testing.assert_array_equal(out[4:], 0)
    dout = np.zeros_like(out)
    dout[4:] = rng.normal(size=(2, 7))
    for gradient in backward(dout)[1:4]:
        np.testing.assert_array_equal(gradient, 0)


def test_scores_of_any_size_are_survived():
    rng, query, key, value = random_call(9)
    with np.errstate(over="raise", invalid="raise"):
        out, backward = cross_segment(None, 1e4 * query, 1e4 * key, value, length=2, causal=True)
        backward(rng.normal(size=out.shape))
    assert np.isfinite(out).all()


def test_it_is_a_core_of_multi_head_attention():
    rng = np.random.default_rng(10)
    params = init_multi_head_attention(rng, 4, num_heads=2, dtype=np.float64)
    params = trees.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape), params)
    mask = padding_mask(np.array([6, 3]), 6)
    core = partial(cross_segment, length=2)
    assert check_gradients(multi_head_attention, params, rng.normal(size=(2, 6, 4)), num_heads=2, mask=mask, core=core).passed


@pytest.mark.parametrize("forgotten", ["nothing", "the summaries' keys", "the share", "one mean for both"])
def test_the_check_refuses_a_backward_that_forgets(forgotten):
    def by_hand(query, key, value):
        out, backward = cross_segment(None, query, key, value, length=2)

        def wrong(dout):
            _, dquery, dkey, dvalue, _ = backward(dout)
            k = key.reshape(3, 2, 5)
            kbar, vbar, scale = k.mean(axis=1), value.reshape(3, 2, 7).mean(axis=1), 5**-0.5
            own = np.exp(scale * query.reshape(3, 2, 5) @ k.swapaxes(1, 2)).reshape(6, 2)
            across = np.exp(scale * query @ kbar.T)
            across /= own.sum(axis=1, keepdims=True) + across.sum(axis=1, keepdims=True)
            dacross = across * (dout @ vbar.T - np.sum(dout * out, axis=1, keepdims=True))
            through = scale * dacross.T @ query / 2          # what each token's key gets from its summary
            if forgotten == "the summaries' keys":
                dkey = dkey - np.repeat(through, 2, axis=0)
            elif forgotten == "the share":
                dkey = dkey + np.repeat(through, 2, axis=0)
            elif forgotten == "one mean for both":
                dquery = dquery + scale * across @ kbar
            return dquery, dkey, dvalue

        return out, wrong

    _, *arrays = random_call(11)
    assert check_gradients(by_hand, *arrays).passed is (forgotten == "nothing")


def test_what_does_not_fit_is_refused_by_name():
    _, *arrays = random_call(12)
    with pytest.raises(ValueError, match="length: got 4, wants a number of tokens that divides the 6 positions"):
        cross_segment(None, *arrays, length=4)
    with pytest.raises(ValueError, match="mask: got shape"):
        cross_segment(None, *arrays, length=2, mask=np.ones((6, 6), bool))
    with pytest.raises(ValueError, match="reads: got shape"):
        cross_segment(None, *arrays, length=3, reads=READS)


@pytest.mark.parity
def test_parity_with_torch_attention_over_joined_keys():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(13)
    arrays, dout = [rng.normal(size=(2, 3, 6, d)) for d in (5, 5, 7)], rng.normal(size=(2, 3, 6, 7))
    leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
    query, key, value = (a.reshape(2, 3, 3, 2, -1) for a in leaves)
    joined = [torch.cat([a, a.mean(-2)[:, :, None].expand(-1, -1, 3, -1, -1)], dim=-2) for a in (key, value)]
    theirs = torch.nn.functional.scaled_dot_product_attention(query, *joined).reshape(2, 3, 6, 7)
    theirs.backward(torch.tensor(dout))
    out, backward = cross_segment(None, *arrays, length=2)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-13)
    for own, leaf in zip(backward(dout)[1:4], leaves, strict=True):
        np.testing.assert_allclose(own, leaf.grad.numpy(), rtol=0, atol=1e-12)
