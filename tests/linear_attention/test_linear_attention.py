"""Linear attention: the naive double loop, texts cut anywhere, what its weights are, and maps that learn."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from naive_linear_attention import assert_same, everything, naive_linear_attention, random_case

from minitransformers.attention.masks import causal_mask
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.basics.softplus import softplus
from minitransformers.foundation import check_gradients, slot
from minitransformers.linear_attention.linear_attention import linear_attention
from minitransformers.linear_attention.linear_attention_chunked import linear_attention_chunked
from minitransformers.linear_attention.linear_attention_recurrent import linear_attention_recurrent

FORMS = {"plain": linear_attention, "recurrent": linear_attention_recurrent, "chunked": partial(linear_attention_chunked, chunk=3)}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
OURS = {"elu_plus_one": {}, "softplus": {"feature_map": slot(softplus)}}


@every_form
@pytest.mark.parametrize("positions", [1, 2, 7])
def test_equals_the_naive_loop_and_its_gradients(form, positions):
    arguments, (dout, dstate) = random_case(positions)
    own = everything(form, arguments, (dout, dstate))

    def loss(arguments):
        out, final = naive_linear_attention(*arguments)
        return anp.sum(dout * out) + anp.sum(dstate * final)

    assert_same(own, [*naive_linear_attention(*arguments), *autograd.grad(loss)(arguments)])


@every_form
def test_any_positive_feature_map_stands_in_its_place(form):
    arguments, _ = random_case()
    own = form(None, *arguments, feature_map=slot(softplus))[0]
    assert_same(own, naive_linear_attention(*arguments, phi=lambda x: anp.log(1 + anp.exp(x))))


@every_form
def test_no_state_is_a_state_of_zeros(form):
    (*arrays, state), dout = random_case(batch=(2,))
    without = everything(form, (*arrays, None), dout)
    assert without[-1] is None
    assert_same(without[:-1], everything(form, (*arrays, 0 * state), dout)[:-1])


@every_form
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("cut", [1, 3, 6])
def test_a_text_cut_anywhere_gives_the_same_with_every_gradient(form, cut, given):
    (*arrays, state), (dout, dlast) = random_case(batch=(2,))
    state = state if given else None
    first, second = ([a[:, part] for a in arrays] for part in (np.s_[:cut], np.s_[cut:]))
    (start, middle), first_backward = form(None, *first, state)
    (end, last), second_backward = form(None, *second, middle)
    _, *d_second, dmiddle = second_backward((dout[:, cut:], dlast))
    _, *d_first, dstate = first_backward((dout[:, :cut], dmiddle))
    joined = [np.concatenate(pair, axis=1) for pair in zip((start, *d_first), (end, *d_second), strict=True)]
    assert_same([joined[0], last, *joined[1:], dstate], everything(form, (*arrays, state), (dout, dlast)))


@every_form
def test_no_output_sees_a_later_position_or_another_text(form):
    (*arrays, _), _ = random_case(batch=(2,))
    before = form(None, *arrays)[0][0]
    for a in arrays:
        a[1, 4] += 1
    after = form(None, *arrays)[0][0]
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1, :4], after[1, :4])
    assert (before[1, 4:] != after[1, 4:]).any(-1).all()


def weights(query, key, **config):
    return linear_attention(None, query, key, np.eye(len(key), dtype=key.dtype), **config)[0][0]


@pytest.mark.parametrize("config", OURS.values(), ids=OURS)
def test_the_weights_of_a_query_are_positive_and_sum_to_1(config):
    (query, key, *_), _ = random_case()
    found = weights(query, key, **config)
    assert (found[np.tril_indices(7)] > 0).all() and not np.triu(found, 1).any()
    np.testing.assert_allclose(found.sum(-1), 1, rtol=0, atol=1e-14)


@every_form
def test_the_first_position_reads_its_own_value(form):
    (query, key, value, _), _ = random_case()
    np.testing.assert_allclose(form(None, query, key, value)[0][0][0], value[0], rtol=0, atol=1e-14)


def test_how_large_a_query_s_features_are_does_not_matter_nor_the_keys_all_together():
    (query, key, value, state), _ = random_case()
    features = slot(lambda x: (x, None))
    q, k, row = (np.exp(a) for a in (query, key, np.random.default_rng(1).normal(size=(7, 1))))
    (out, after), _ = linear_attention(None, q, k, value, state, feature_map=features)
    (scaled, scaled_after), _ = linear_attention(None, row * q, 5 * k, value, 5 * state, feature_map=features)
    assert_same([scaled, scaled_after / 5], [out, after])


def test_with_scores_in_the_place_of_features_it_is_what_they_weigh():
    """Features that are one-hot: every position reads the mean of the values that stood in its place of all places so far."""
    places, value = np.array([0, 1, 0, 2, 1, 0]), np.arange(6.0)[:, None]
    one_hot = np.eye(3)[places]
    (out, _), _ = linear_attention(None, one_hot, one_hot, value, feature_map=slot(lambda x: (x, None)))
    np.testing.assert_allclose(out[:, 0], [0, 1, 1, 3, 2.5, 7 / 3], rtol=0, atol=1e-14)


def test_it_is_no_softmax():
    (query, key, value, _), _ = random_case()
    softmax, _ = scaled_dot_product_attention(query, key, value, mask=causal_mask(7))
    assert np.abs(linear_attention(None, query, key, value)[0][0] - softmax).max() > 0.1


@every_form
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_query_that_nothing_is_left_for_reads_zero_and_sends_no_gradient(form, dtype):
    (query, key, value, _), (dout, _) = random_case()
    query, key, value, dout = (a.astype(dtype) for a in (query, key, value, dout))
    query[3] = -1e4                                          # e^-10000 is 0
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        (out, state), backward = form(None, query, key, value)
        gradients = backward((dout, np.zeros_like(state)))[1:4]
    assert not out[3].any() and not gradients[0][3].any()
    others = np.arange(7) != 3
    np.testing.assert_array_equal(out[others], form(None, *(a for a in (query, key, value)))[0][0][others])
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@every_form
def test_small_features_are_no_reason_to_read_zero(form):
    (query, key, value, _), _ = random_case()
    (out, _), _ = form(None, query - 30, key, value)         # all features times e^-30, but for those of x > 0
    assert_same([out], [naive_linear_attention(query - 30, key, value, np.zeros((3, 5)))[0]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_denominator_counts_as_long_as_a_term_with_all_its_digits_can_matter(dtype):
    smallest = np.finfo(dtype).tiny / np.finfo(dtype).eps
    query = np.array([[1.0], [0.999], [2.0]], dtype) * smallest
    features = slot(lambda x: (x, lambda d: d))
    (out, _), _ = linear_attention(None, query, np.array([[1.0], [0.0], [0.0]], dtype), np.array([[2.0], [3.0], [4.0]], dtype), feature_map=features)
    assert out[:, 0].tolist() == [2, 0, 2] and smallest == (2.0**-103 if dtype == np.float32 else 2.0**-970)


def stretched(gain, x):
    """A feature map that learns a gain for each feature: e^(gain x)."""
    features = np.exp(gain * x)
    return features, lambda dfeatures: ((dfeatures * features * x).sum(tuple(range(x.ndim - 1))), dfeatures * features * gain)


@every_form
def test_a_feature_map_that_learns_is_asked_twice_and_its_gradients_add(form):
    (*arrays, state), _ = random_case(batch=(2,))
    gain = np.array([0.3, -0.7, 1.1])
    assert check_gradients(partial(form, feature_map=stretched), gain, *arrays, state, second_opinion=False).passed

    def once(params, *arguments):
        out, backward = form(params, *arguments, feature_map=stretched)
        queries_only = form(None, *arguments, feature_map=lambda _, x: (np.exp(params * x), lambda d: (None, d)))[1]

        def wrong(dout):
            dq = queries_only(dout)[1]
            return ((dq * np.exp(params * arguments[0]) * arguments[0]).sum((0, 1)), *backward(dout)[1:])

        return out, wrong

    report = check_gradients(once, gain, *arrays, state, second_opinion=False)
    assert not report.passed and report.worst.path == "params"


def without_the_denominator(params, *arguments):
    """A backward for which what is divided by is a constant."""
    out, backward = linear_attention(params, *arguments)

    def wrong(dresult):
        dout, dstate = dresult
        shifted, _ = linear_attention(params, arguments[0], arguments[1], np.ones_like(arguments[2]), None)
        return (*backward((dout - dout.mean(-1, keepdims=True) * shifted[0], dstate))[:3], *backward(dresult)[3:])

    return out, wrong


def states_beside_the_text(params, query, key, value, state):
    """A backward that forgets that the keys are left to whoever goes on."""
    out, backward = linear_attention(params, query, key, value, state)

    def wrong(dresult):
        dparams, dquery, _, _, dstate = backward(dresult)
        _, _, dkey, dvalue, _ = backward((dresult[0], None))
        return dparams, dquery, dkey, dvalue, dstate

    return out, wrong


@pytest.mark.parametrize("mistake", [without_the_denominator, states_beside_the_text])
def test_the_checker_refuses(mistake):
    report = check_gradients(mistake, None, *random_case(5)[0], second_opinion=False)
    assert not report.passed


@every_form
def test_what_does_not_fit_together_is_named(form):
    (query, key, value, state), _ = random_case()
    with pytest.raises(ValueError, match=r"feature_map: got features down to -.*, wants features of at least 0"):
        form(None, query, key, value, feature_map=slot(lambda x: (x, None)))
    with pytest.raises(ValueError, match=r"state: got shape \(3, 4\), wants \(3, 5\): \(..., d_features, d_value \+ 1\)"):
        form(None, query, key, value, state[:, :4])
    with pytest.raises(ValueError, match=r"state: got shape \(2, 5\), wants \(3, 5\)"):
        form(None, query, key, value, state[:2])
    with pytest.raises(ValueError, match=r"key: got shape \(6, 3\)"):
        form(None, query, key[:6], value)
    with pytest.raises(ValueError, match="learns nothing"):
        form(np.ones(2), query, key, value)


@pytest.mark.parity
@every_form
@pytest.mark.parametrize("given", [True, False])
def test_parity_with_running_sums_in_torch(form, given):
    """As the paper writes it, all outer products kept: PyTorch's own gradients."""
    torch = pytest.importorskip("torch")
    (*arrays, state), (dout, dstate) = random_case(9, 3, 4, batch=(2, 2))
    own = everything(form, (*arrays, state if given else None), (dout, dstate))
    query, key, value, start = leaves = [torch.tensor(a, requires_grad=True) for a in (*arrays, state)]
    q, k = (torch.nn.functional.elu(x) + 1 for x in (query, key))
    both = torch.cat([value, torch.ones_like(value[..., :1])], dim=-1)
    states = (k[..., :, None] * both[..., None, :]).cumsum(-3)
    states = states + start[..., None, :, :] if given else states
    sums = torch.einsum("...nf,...nfp->...np", q, states)
    out, last = sums[..., :-1] / sums[..., -1:], states[..., -1, :, :]
    ((out * torch.tensor(dout)).sum() + (last * torch.tensor(dstate)).sum()).backward()
    assert_same(own[:-1], [out.detach(), last.detach(), *(leaf.grad for leaf in leaves[:3])], atol=1e-12)
    if given:
        np.testing.assert_allclose(own[-1], start.grad, rtol=0, atol=1e-12)
