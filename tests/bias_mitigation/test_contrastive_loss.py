"""A choice among counterfactuals: a loop written out, what it is made of, its known values, wrong backwards."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.bias_mitigation.alignment_loss import alignment_loss
from minitransformers.bias_mitigation.contrastive_loss import contrastive_loss
from minitransformers.long_context.dense_retriever import dense_retriever

RNG = np.random.default_rng(0)
SENTENCES, OTHERS = RNG.normal(size=(2, 4, 5))
ONE = np.float64(1)


def textbook(sentences, counterfactuals, temperature=0.5, alignment=0.7):
    def unit(v):
        return v / anp.sqrt(anp.sum(v * v))

    total, n = 0.0, len(sentences)
    for i in range(n):
        scores = [anp.dot(unit(sentences[i]), unit(counterfactuals[j])) / temperature for j in range(n)]
        total = total + anp.log(sum(anp.exp(s) for s in scores)) - scores[i]
        total = total + alignment * anp.sum((unit(sentences[i]) - unit(counterfactuals[i])) ** 2)
    return total / n


def test_equals_the_textbook_formula_and_its_gradients():
    out, backward = contrastive_loss(SENTENCES, OTHERS, temperature=0.5, alignment=0.7)
    np.testing.assert_allclose(out, textbook(SENTENCES, OTHERS), rtol=0, atol=1e-12)
    expected = autograd.grad(textbook, (0, 1))(SENTENCES, OTHERS)
    for own, theirs in zip(backward(np.float64(0.7)), expected, strict=True):
        np.testing.assert_allclose(own, 0.7 * theirs, rtol=0, atol=1e-12)


def test_without_alignment_it_is_the_retriever_s_choice_to_the_last_bit():
    out, backward = contrastive_loss(SENTENCES, OTHERS, temperature=0.5)
    theirs, their_backward = dense_retriever(SENTENCES, OTHERS, temperature=0.5)
    assert out == theirs
    for own, other in zip(backward(ONE), their_backward(ONE), strict=True):
        np.testing.assert_array_equal(own, other)


def test_the_weight_adds_so_much_of_the_alignment():
    plain, added = (contrastive_loss(SENTENCES, OTHERS, temperature=0.5, alignment=w)[0] for w in (0.0, 3.0))
    np.testing.assert_allclose(added - plain, 3 * alignment_loss(SENTENCES, OTHERS)[0], rtol=1e-13)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_it_is_ln_n_where_all_vectors_are_one(temperature):
    """Alignment is perfect there, and this is not: what alignment alone would be content with is no minimum here."""
    same = np.repeat(SENTENCES[:1], 4, axis=0)
    np.testing.assert_allclose(contrastive_loss(same, same, temperature=temperature)[0], np.log(4), rtol=1e-13)
    assert contrastive_loss(np.eye(4), np.eye(4), temperature=temperature)[0] < np.log(4)


def test_a_sentence_that_stands_twice_is_wrong_for_itself():
    """Two equal pairs: each finds its own counterfactual in two rows, and no training gets it below ln 2 for them."""
    twice = np.eye(3)[[0, 0, 1, 2]]
    np.testing.assert_allclose(contrastive_loss(twice, twice, temperature=0.01)[0], 2 * np.log(2) / 4, rtol=1e-12)


def test_lengths_are_forgotten():
    stretched = SENTENCES * [[2], [3], [0.1], [7]]
    np.testing.assert_allclose(contrastive_loss(stretched, OTHERS)[0], contrastive_loss(SENTENCES, OTHERS)[0], rtol=1e-13)


def test_pairs_are_pulled_together_and_others_apart():
    u, v = SENTENCES.copy(), OTHERS.copy()
    for _ in range(300):
        du, dv = contrastive_loss(u, v, temperature=0.5)[1](ONE)
        u, v = u - 0.5 * du, v - 0.5 * dv
    u, v = (side / np.linalg.norm(side, axis=-1, keepdims=True) for side in (u, v))
    cosines = u @ v.T
    assert cosines.diagonal().min() > 0.95 and cosines[~np.eye(4, dtype=bool)].max() < 0.2


def of_the_alignment_twice(sentences, counterfactuals):
    out, backward = contrastive_loss(sentences, counterfactuals, alignment=0.7)
    return out, lambda dout: tuple(a + b for a, b in zip(backward(dout), alignment_loss(sentences, counterfactuals)[1](0.7 * dout), strict=True))


def with_the_wrong_answers_held(sentences, counterfactuals):
    """A counterfactual is pulled by its own sentence only, as if the others did not push it away."""
    out, backward = contrastive_loss(sentences, counterfactuals, temperature=0.5)
    return out, lambda dout: (backward(dout)[0], alignment_loss(sentences, counterfactuals)[1](dout)[1])


@pytest.mark.parametrize("wrong", [of_the_alignment_twice, with_the_wrong_answers_held])
def test_the_checker_refuses(wrong):
    assert not check_gradients(wrong, SENTENCES, OTHERS).passed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sentences": SENTENCES[:1], "counterfactuals": OTHERS[:1]}, "sentences: got one pair, wants at least two"),
        ({"sentences": SENTENCES * [[1], [1], [0], [1]]}, "sentences: got a vector of length 0 in pair 2"),
        ({"temperature": 0.0}, "temperature"),
        ({"counterfactuals": OTHERS[:3]}, "counterfactuals"),
    ],
    ids=["one pair", "length 0", "temperature", "not paired"],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
    call = {"sentences": SENTENCES, "counterfactuals": OTHERS, **change}
    with pytest.raises(ValueError, match=message):
        contrastive_loss(call.pop("sentences"), call.pop("counterfactuals"), **call)


@pytest.mark.parity
def test_parity_with_torch():
    torch = pytest.importorskip("torch")
    u, v = torch.tensor(SENTENCES, requires_grad=True), torch.tensor(OTHERS, requires_grad=True)
    scores = torch.nn.functional.cosine_similarity(u.unsqueeze(1), v.unsqueeze(0), dim=-1) / 0.5
    a, b = torch.nn.functional.normalize(u, dim=1), torch.nn.functional.normalize(v, dim=1)
    loss = torch.nn.functional.cross_entropy(scores, torch.arange(4)) + 0.7 * (a - b).norm(p=2, dim=1).pow(2).mean()
    loss.backward()
    out, backward = contrastive_loss(SENTENCES, OTHERS, temperature=0.5, alignment=0.7)
    np.testing.assert_allclose(out, loss.item(), rtol=0, atol=1e-12)
    for own, theirs in zip(backward(ONE), (u, v), strict=True):
        np.testing.assert_allclose(own, theirs.grad.numpy(), rtol=0, atol=1e-12)
