"""Attentive pooling: a mean with learned weights, in which padding has no part."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.long_context.attentive_pooling import AttentivePooling, attentive_pooling, init_attentive_pooling

MASK = np.array([[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]], bool)


def random_call(seed, shape=(3, 4, 5), d_hidden=7):
    rng = np.random.default_rng(seed)
    return AttentivePooling(rng.normal(size=(shape[-1], d_hidden)), rng.normal(size=d_hidden)), rng.normal(size=shape), rng


def textbook(weight, score, x, mask):
    """One text and one position at a time, the real ones only."""
    pooled = []
    for text, real in zip(x, mask, strict=True):
        total, out = 0.0, 0.0 * text[0]
        for t in range(len(text)):
            if real[t]:
                exp = anp.exp(anp.dot(score, anp.tanh(text[t] @ weight)))
                total, out = total + exp, out + exp * text[t]
        pooled.append(out / total if real.any() else out)
    return anp.stack(pooled)


def test_equals_the_loops_and_their_gradients():
    params, x, rng = random_call(0)
    dout = rng.normal(size=(3, 5))
    out, backward = attentive_pooling(params, x, mask=MASK)
    np.testing.assert_allclose(out, textbook(*params, x, MASK), rtol=0, atol=1e-13)
    expected = autograd.grad(lambda *all_of: anp.sum(dout * textbook(*all_of, MASK)), (0, 1, 2))(*params, x)
    (dweight, dscore), dx = backward(dout)
    for own, their in zip((dweight, dscore, dx), expected, strict=True):
        np.testing.assert_allclose(own, their, rtol=0, atol=1e-12)


def test_without_scores_it_is_the_mean():
    params, x, _ = random_call(1)
    np.testing.assert_allclose(attentive_pooling(params._replace(score=np.zeros(7)), x)[0], x.mean(axis=1), rtol=0, atol=1e-15)


def test_positions_that_agree_pool_to_what_they_agree_on():
    params, x, _ = random_call(2)
    np.testing.assert_allclose(attentive_pooling(params, np.repeat(x[:, :1], 4, axis=1))[0], x[:, 0], rtol=0, atol=1e-14)


def test_their_order_does_not_matter():
    params, x, _ = random_call(3)
    np.testing.assert_allclose(attentive_pooling(params, x[:, ::-1])[0], attentive_pooling(params, x)[0], rtol=0, atol=1e-14)


def test_padding_is_not_there():
    params, x, rng = random_call(4)
    out, backward = attentive_pooling(params, x, mask=MASK)
    other = np.where(MASK[..., None], x, 1e3 * rng.normal(size=x.shape))
    np.testing.assert_array_equal(attentive_pooling(params, other, mask=MASK)[0], out)
    np.testing.assert_array_equal(backward(rng.normal(size=out.shape))[1][~MASK], 0)
    np.testing.assert_allclose(out[0], attentive_pooling(params, x[0][MASK[0]])[0], rtol=0, atol=1e-14)


def test_of_nothing_it_makes_zero_and_learns_nothing():
    params, x, rng = random_call(5)
    out, backward = attentive_pooling(params, x, mask=np.zeros((3, 4), bool))
    (dweight, dscore), dx = backward(rng.normal(size=out.shape))
    for found in (out, dweight, dscore, dx):
        np.testing.assert_array_equal(found, 0)


def test_scores_of_any_size_are_survived():
    params, x, rng = random_call(6)
    with np.errstate(over="raise", invalid="raise"):
        out, backward = attentive_pooling(params._replace(score=1e6 * params.score), x, mask=MASK)
        backward(rng.normal(size=out.shape))
    assert np.isfinite(out).all()


def test_it_starts_with_the_sizes_asked_for():
    params = init_attentive_pooling(np.random.default_rng(7), 400, d_hidden=300)
    assert params.weight.shape == (400, 300) and params.score.shape == (300,) and params.weight.dtype == np.float32
    np.testing.assert_allclose((params.weight.std(), params.score.std()), (400**-0.5, 300**-0.5), rtol=0.1)


@pytest.mark.parametrize("forgotten", ["nothing", "that x is scored", "that weights sum to one", "the tanh"])
def test_the_check_refuses_a_backward_that_forgets(forgotten):
    def by_hand(params, x):
        hidden = np.tanh(x @ params.weight)
        exps = np.exp(hidden @ params.score)
        weights = exps / exps.sum(-1, keepdims=True)
        out = (weights[..., None] * x).sum(-2)

        def backward(dout):
            dweights = (x * dout[:, None]).sum(-1)
            shared = 0 if forgotten == "that weights sum to one" else (weights * dweights).sum(-1, keepdims=True)
            dscores = weights * (dweights - shared)
            slope = 1 if forgotten == "the tanh" else 1 - hidden**2
            dhidden = dscores[..., None] * params.score * slope
            dx = weights[..., None] * dout[:, None] + (0 if forgotten == "that x is scored" else dhidden @ params.weight.T)
            return AttentivePooling(np.einsum("nti,ntj->ij", x, dhidden), np.einsum("nt,ntj->j", dscores, hidden)), dx

        return out, backward

    params, x, _ = random_call(8)
    assert check_gradients(by_hand, params, x).passed is (forgotten == "nothing")


@pytest.mark.parity
def test_parity_with_torch():
    torch = pytest.importorskip("torch")
    params, x, rng = random_call(9)
    mask, dout = MASK[:2], rng.normal(size=(2, 5))
    weight, score, tx = (torch.tensor(a, requires_grad=True) for a in (*params, x[:2]))
    scores = (torch.tanh(tx @ weight) @ score).masked_fill(torch.tensor(~mask), -torch.inf)
    theirs = (torch.softmax(scores, -1)[..., None] * tx).sum(1)
    theirs.backward(torch.tensor(dout))
    out, backward = attentive_pooling(params, x[:2], mask=mask)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-13)
    (dweight, dscore), dx = backward(dout)
    for own, their in zip((dweight, dscore, dx), (weight, score, tx), strict=True):
        np.testing.assert_allclose(own, their.grad.numpy(), rtol=0, atol=1e-12)
