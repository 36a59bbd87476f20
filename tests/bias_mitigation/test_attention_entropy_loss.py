"""Attention entropy: the published formula, and what the published code computes in its place."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.attention.masks import causal_mask
from minitransformers.bias_mitigation.attention_entropy_loss import attention_entropy_loss, double_softmax_entropy_loss

RNG = np.random.default_rng(0)
SCORES = 2 * RNG.normal(size=(2, 3, 5, 5))
KEPT = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)    # the second text is shorter
PADDING = KEPT[:, :, None] & KEPT[:, None, :]
MASKS = {"nothing": None, "padding": PADDING, "padding and what is later": PADDING & causal_mask(5)}
FORMS = {"plain": attention_entropy_loss, "double": double_softmax_entropy_loss}


def text_by_text(scores, mask, double):
    of_texts = []
    for b in range(scores.shape[0]):
        rows = []
        for i in range(scores.shape[2]):
            keys = [j for j in range(scores.shape[3]) if mask[b, i, j]]
            if not keys:
                continue
            mean = 0.0
            for h in range(scores.shape[1]):
                powers = anp.exp(scores[b, h, i][np.array(keys)])
                mean = mean + powers / anp.sum(powers) / scores.shape[1]
            if double:
                mean = anp.exp(mean) / anp.sum(anp.exp(mean))
            rows.append(anp.sum(mean * anp.log(mean)))
        if rows:
            of_texts.append(sum(rows) / len(rows))
    return sum(of_texts) / len(of_texts)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("masked", MASKS)
def test_it_is_the_mean_over_queries_then_texts_and_its_gradient_is_autograd_s(form, masked):
    mask = MASKS[masked]
    everywhere = np.ones((2, 5, 5), bool) if mask is None else mask
    out, backward = FORMS[form](SCORES, mask=mask)
    np.testing.assert_allclose(out, text_by_text(SCORES, everywhere, form == "double"), rtol=0, atol=1e-12)
    expected = autograd.grad(text_by_text)(SCORES, everywhere, form == "double")
    np.testing.assert_allclose(backward(np.float64(0.7)), 0.7 * expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_padding_may_hold_anything_and_a_text_is_worth_the_same_however_it_is_padded(form):
    spoiled = SCORES.copy()
    spoiled[1, :, 3:], spoiled[1, :, :, 3:] = np.nan, np.inf
    out, backward = FORMS[form](SCORES, mask=PADDING)
    again, again_backward = FORMS[form](spoiled, mask=PADDING)
    assert out == again
    np.testing.assert_array_equal(backward(np.float64(1)), again_backward(np.float64(1)))
    apart = [FORMS[form](SCORES[:1])[0], FORMS[form](SCORES[1:, :, :3, :3])[0]]
    np.testing.assert_allclose(out, np.mean(apart), rtol=0, atol=1e-14)


@pytest.mark.parametrize("form", FORMS)
def test_a_text_of_padding_alone_counts_for_nothing(form):
    mask = PADDING & np.array([True, False])[:, None, None]
    with np.errstate(all="raise", under="ignore"):
        out, backward = FORMS[form](SCORES, mask=mask)
    np.testing.assert_allclose(out, FORMS[form](SCORES[:1], mask=PADDING[:1])[0], rtol=0, atol=1e-14)
    assert np.all(backward(np.float64(1))[1] == 0)


def test_even_attention_has_the_least_loss_and_no_gradient():
    for form in FORMS.values():
        out, backward = form(np.zeros((1, 2, 4, 6)))
        np.testing.assert_allclose(out, -np.log(6), rtol=0, atol=1e-14)
        np.testing.assert_allclose(backward(np.float64(1)), 0, atol=1e-16)


def test_attention_on_one_key_has_the_largest_loss_unless_the_softmax_is_taken_twice():
    one_key = np.where(np.arange(6) == 2, 100.0, 0.0) * np.ones((1, 2, 4, 1))
    assert attention_entropy_loss(one_key)[0] == pytest.approx(0, abs=1e-12)
    p = np.exp([1.0, 0, 0, 0, 0, 0]) / (np.e + 5)            # weights of 1 and 0, through a softmax
    assert double_softmax_entropy_loss(one_key)[0] == pytest.approx(np.sum(p * np.log(p)), abs=1e-12)
    assert double_softmax_entropy_loss(one_key)[0] + np.log(6) < 0.11  # of all there is between even and one key


def test_heads_that_look_at_different_keys_are_even_together():
    """The mean over heads comes before the entropy: the entropy of each head is 0 here, that of their mean log 4."""
    heads = 100.0 * np.eye(4)[None, :, None, :].repeat(3, axis=2)
    assert attention_entropy_loss(heads)[0] == pytest.approx(-np.log(4), abs=1e-12)


def test_a_step_down_the_gradient_spreads_attention():
    out, backward = attention_entropy_loss(SCORES, mask=PADDING)
    assert attention_entropy_loss(SCORES - 0.5 * backward(np.float64(1)), mask=PADDING)[0] < out


def test_weights_that_have_become_zero_cost_nothing_and_give_no_nan():
    far = SCORES.copy()
    far[..., 0] = -2000.0
    with np.errstate(all="raise", under="ignore"):
        out, backward = attention_entropy_loss(far)
        assert np.isfinite(out) and np.isfinite(backward(np.float64(1))).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("forgotten", ["the number of heads", "the shared term"])
def test_the_checker_refuses_a_backward_that_forgets(form, forgotten):
    def wrong(scores):
        out, backward = FORMS[form](scores)
        if forgotten == "the number of heads":
            return out, lambda dout: 3 * backward(dout)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mean = weights.mean(1, keepdims=True)
        return out, lambda dout: dout * weights * np.log(mean) / 3 / 10

    assert not check_gradients(wrong, SCORES).passed


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="mask: got False everywhere"):
        attention_entropy_loss(SCORES, mask=np.zeros((2, 5, 5), bool))
    with pytest.raises(ValueError, match="mask: got shape"):
        attention_entropy_loss(SCORES, mask=np.ones((2, 3, 5, 5), bool))
    with pytest.raises(ValueError, match="scores: got NaN or infinity where a query may attend"):
        attention_entropy_loss(np.full((1, 2, 3, 3), np.inf))


@pytest.mark.parity
@pytest.mark.parametrize("form", FORMS)
def test_it_is_what_the_authors_steps_give_in_torch(form):
    torch = pytest.importorskip("torch")
    scores = torch.tensor(SCORES, requires_grad=True)
    of_texts = []
    for b in range(2):
        kept = torch.tensor(KEPT[b])
        pooled = scores[b][:, kept][:, :, kept].softmax(-1).mean(0)
        entropy = pooled.softmax(-1) * pooled.log_softmax(-1) if form == "double" else torch.xlogy(pooled, pooled)
        of_texts.append(entropy.sum(-1).mean(-1))
    loss = torch.stack(of_texts).mean()
    loss.backward()
    out, backward = FORMS[form](SCORES, mask=PADDING)
    np.testing.assert_allclose(out, loss.item(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(np.float64(1)), scores.grad.numpy(), rtol=0, atol=1e-12)
