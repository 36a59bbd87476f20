"""Performer: linear attention with random features, near to the softmax where they are many, and the package that the field uses."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from naive_linear_attention import assert_same, everything, naive_linear_attention, random_case

from minitransformers.attention.masks import causal_mask
from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.foundation import check_gradients, slot
from minitransformers.linear_attention.linear_attention import linear_attention
from minitransformers.linear_attention.linear_attention_bidirectional import linear_attention_bidirectional
from minitransformers.linear_attention.linear_attention_recurrent import linear_attention_recurrent
from minitransformers.linear_attention.performer import performer
from minitransformers.linear_attention.positive_random_features import orthogonal_projection, positive_random_features

M, SEED = 6, 5


def projection(num_features=M, d_head=3, seed=SEED):
    return orthogonal_projection(num_features=num_features, d_head=d_head, rng=np.random.default_rng(seed))


def phi(x):
    """The features of one vector, for autograd."""
    scaled = x / 3**0.25
    return anp.exp(anp.dot(projection(), scaled) - anp.sum(scaled * scaled) / 2) / M**0.5


ours = partial(performer, num_features=M, seed=SEED, chunk=3)


def test_equals_the_naive_loop_and_its_gradients():
    arguments, (dout, dstate) = random_case(d_features=M)

    def loss(arguments):
        out, final = naive_linear_attention(*arguments, phi=phi)
        return anp.sum(dout * out) + anp.sum(dstate * final)

    expected = [*naive_linear_attention(*arguments, phi=phi), *autograd.grad(loss)(arguments)]
    assert_same(everything(ours, arguments, (dout, dstate)), expected, atol=1e-11)


@pytest.mark.parametrize("form", [linear_attention, linear_attention_recurrent])
def test_it_is_linear_attention_with_its_features_in_every_form(form):
    arguments, dout = random_case(d_features=M, batch=(2,))
    feature_map = slot(partial(positive_random_features, projection=projection()))
    assert_same(everything(ours, arguments, dout), everything(form, arguments, dout, feature_map=feature_map))


@pytest.mark.parametrize("chunk", [1, 2, 7, 64])
def test_the_chunk_changes_nothing(chunk):
    arguments, dout = random_case(d_features=M)
    assert_same(everything(ours, arguments, dout, chunk=chunk), everything(ours, arguments, dout))


def test_the_chunk_reaches_the_recurrence(monkeypatch):
    told = {}
    monkeypatch.setattr("minitransformers.linear_attention.performer.linear_attention_chunked", lambda *a, **config: told.update(config) or (a, None))
    performer(None, *random_case()[0][:3], chunk=5)
    assert told["chunk"] == 5


def test_as_it_stands_it_has_256_features_of_seed_0_in_chunks_of_64():
    (query, key, value, _), _ = random_case(70)
    (out, state), _ = performer(None, query, key, value)
    assert state.shape == (256, 5)
    np.testing.assert_array_equal(out, performer(None, query, key, value, num_features=256, seed=0, chunk=64)[0][0])


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_a_text_in_pieces_is_the_text(cut):
    """Exactly so because no maximum over the keys stands in the features: it would be another in each piece."""
    (query, key, value, _), _ = random_case()
    (whole, final), _ = ours(None, query, key, value)
    (first, state), _ = ours(None, query[:cut], key[:cut], value[:cut])
    (second, last), _ = ours(None, query[cut:], key[cut:], value[cut:], state)
    assert_same([np.concatenate([first, second]), last], [whole, final])


def errors(c, seeds=range(4)):
    """The error against causal softmax attention of many and of few features, root mean square over draws."""
    query, key, value = np.random.default_rng(0).normal(size=(3, 40, 8))
    query, key = c * query, c * key
    exact, _ = scaled_dot_product_attention(query, key, value, mask=causal_mask(40))

    def error(m):
        found = [performer(None, query, key, value, num_features=m, seed=s)[0][0] for s in seeds]
        return np.mean([((f - exact) ** 2).sum() for f in found]) ** 0.5 / np.linalg.norm(exact)

    return error(32), error(2048)


def test_for_small_queries_and_keys_64_times_the_features_have_an_8th_of_the_error():
    few, many = errors(0.25)
    assert 5 < few / many < 12.8 and many < 0.02


def test_for_large_ones_more_features_hardly_help():
    few, many = errors(2.0)
    assert few / many < 2 and many > 0.5


def test_it_is_not_what_elu_plus_one_gives():
    (query, key, value, _), _ = random_case()
    assert np.abs(performer(None, query, key, value)[0][0] - linear_attention(None, query, key, value)[0][0]).max() > 0.1


def test_in_both_directions_it_is_a_core():
    rng = np.random.default_rng(1)
    params, x = init_multi_head_attention(rng, 6, num_heads=2, dtype=np.float64), rng.normal(size=(2, 4, 6))
    core = partial(linear_attention_bidirectional, feature_map=slot(partial(positive_random_features, num_features=5)))
    assert check_gradients(multi_head_attention, params, x, num_heads=2, core=core, second_opinion=False).passed


def test_it_learns_nothing():
    with pytest.raises(ValueError, match=r"params: got float64 of shape \(2,\), wants None"):
        ours(np.ones(2), *random_case()[0][:3])


def other_draws_for_keys(params, *arguments):
    """A backward whose draws are others than the forward's: as after a redraw between the two."""
    out, _ = ours(params, *arguments)
    return out, ours(params, *arguments, seed=SEED + 1)[1]


def test_the_checker_refuses_a_redraw_between_forward_and_backward():
    assert not check_gradients(other_draws_for_keys, None, *random_case(5, d_features=M)[0], second_opinion=False).passed


@pytest.mark.parity
@pytest.mark.parametrize("causal", [True, False])
def test_parity_with_performer_pytorch(causal):
    """Their stabilised features, with nothing added to them, and their attention: outputs and gradients."""
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("performer_pytorch.performer_pytorch")
    (*arrays, _), (dout, _) = random_case(9, batch=(2, 2))
    leaves = query, key, value = [torch.tensor(a, requires_grad=True) for a in arrays]
    features = partial(theirs.softmax_kernel, projection_matrix=torch.tensor(projection()), eps=0.0)
    attend = partial(theirs.causal_linear_attention_noncuda, chunk_size=4, eps=0.0) if causal else theirs.linear_attention
    expected = attend(features(query, is_query=True), features(key, is_query=False), value)
    expected.backward(torch.tensor(dout))
    if causal:
        (out, _), backward = ours(None, *arrays)
        gradients = backward((dout, None))[1:4]
    else:
        feature_map = slot(partial(positive_random_features, projection=projection()))
        out, backward = linear_attention_bidirectional(None, *arrays, feature_map=feature_map)
        gradients = backward(dout)[1:4]
    assert_same([out, *gradients], [expected.detach(), *(leaf.grad for leaf in leaves)])


@pytest.mark.parity
def test_parity_with_running_sums_in_torch():
    torch = pytest.importorskip("torch")
    (*arrays, _), (dout, _) = random_case(9, batch=(2, 2))
    leaves = query, key, value = [torch.tensor(a, requires_grad=True) for a in arrays]
    rows = torch.tensor(projection())
    q, k = (torch.exp(x @ rows.T / 3**0.25 - (x * x).sum(-1, keepdim=True) / (2 * 3**0.5)) for x in (query, key))
    states, totals = torch.einsum("...nf,...np->...nfp", k, value).cumsum(-3), k.cumsum(-2)
    expected = torch.einsum("...nf,...nfp->...np", q, states) / (q * totals).sum(-1, keepdim=True)
    expected.backward(torch.tensor(dout))
    (out, _), backward = ours(None, *arrays)
    assert_same([out, *backward((dout, None))[1:4]], [expected.detach(), *(leaf.grad for leaf in leaves)])
