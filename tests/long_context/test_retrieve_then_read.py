"""Retrieve, then read: the document is summed out, and what the answer says of it teaches the retriever."""

from types import SimpleNamespace

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.long_context.retrieve_then_read import retrieve_then_read, retrieve_then_read_tokens

RNG = np.random.default_rng(0)
SCORES, LOG_PROBS = RNG.normal(size=(2, 3)), -RNG.uniform(0.2, 2.0, size=(2, 3, 5))
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]], bool)
BOTH = [retrieve_then_read, retrieve_then_read_tokens]
ONE = np.float64(1)


def probabilities_of_sequences(scores, log_probs, mask):
    """In plain probabilities: a document, then all tokens of the answer from it."""
    total = 0.0
    for s, readers, counts in zip(scores, log_probs, mask, strict=True):
        prior = anp.exp(s) / anp.sum(anp.exp(s))
        answer = 0.0
        for z in range(len(s)):
            product = prior[z]
            for t in np.flatnonzero(counts):
                product = product * anp.exp(readers[z, t])
            answer = answer + product
        total = total - anp.log(answer)
    return total / len(scores)


def probabilities_of_tokens(scores, log_probs, mask):
    """In plain probabilities: a document anew for each token."""
    total = 0.0
    for s, readers, counts in zip(scores, log_probs, mask, strict=True):
        prior = anp.exp(s) / anp.sum(anp.exp(s))
        for t in np.flatnonzero(counts):
            total = total - anp.log(sum(prior[z] * anp.exp(readers[z, t]) for z in range(len(s))))
    return total / len(scores)


CASES = list(zip(BOTH, [probabilities_of_sequences, probabilities_of_tokens], strict=True))


@pytest.mark.parametrize(("read", "textbook"), CASES)
def test_it_is_the_sum_over_documents_and_its_gradients_are_autograd_s(read, textbook):
    out, backward = read(SCORES, LOG_PROBS, mask=MASK)
    assert out == pytest.approx(textbook(SCORES, LOG_PROBS, MASK), abs=1e-12)
    expected = autograd.grad(lambda s, r: textbook(s, r, MASK), (0, 1))(SCORES, LOG_PROBS)
    for own, their in zip(backward(np.float64(-0.7)), expected, strict=True):
        np.testing.assert_allclose(own, -0.7 * their, rtol=0, atol=1e-12)


@pytest.mark.parametrize("read", BOTH)
def test_a_sum_is_the_mean_times_the_number_of_answers(read):
    mean, mean_backward = read(SCORES, LOG_PROBS, mask=MASK)
    total, total_backward = read(SCORES, LOG_PROBS, mask=MASK, reduction="sum")
    assert total == pytest.approx(2 * mean, abs=1e-14)
    np.testing.assert_allclose(total_backward(ONE)[1], 2 * mean_backward(ONE)[1], rtol=0, atol=1e-14)


def test_an_answer_of_one_token_is_the_same_to_both():
    own, other = (read(SCORES, LOG_PROBS[..., :1]) for read in BOTH)
    assert own[0] == pytest.approx(other[0], abs=1e-14)
    for a, b in zip(own[1](ONE), other[1](ONE), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)


@pytest.mark.parametrize("read", BOTH)
def test_a_single_document_is_plain_reading_and_its_score_has_no_gradient(read):
    out, backward = read(SCORES[:, :1], LOG_PROBS[:, :1], mask=MASK)
    assert out == pytest.approx(-(LOG_PROBS[:, 0] * MASK).sum() / 2, abs=1e-14)
    dscores, dlog_probs = backward(ONE)
    np.testing.assert_allclose(dscores, 0, atol=1e-14)
    np.testing.assert_allclose(dlog_probs[:, 0], -(MASK / 2), rtol=0, atol=1e-14)


@pytest.mark.parametrize("read", BOTH)
def test_readers_that_agree_teach_the_retriever_nothing(read):
    dscores, _ = read(SCORES, np.repeat(LOG_PROBS[:, :1], 3, axis=1), mask=MASK)[1](ONE)
    np.testing.assert_allclose(dscores, 0, atol=1e-14)


@pytest.mark.parametrize("read", BOTH)
def test_what_one_document_gains_the_others_lose_and_a_shift_of_scores_changes_nothing(read):
    out, backward = read(SCORES, LOG_PROBS, mask=MASK)
    np.testing.assert_allclose(backward(ONE)[0].sum(axis=-1), 0, atol=1e-14)
    assert read(SCORES + np.array([[3.0], [-50.0]]), LOG_PROBS, mask=MASK)[0] == pytest.approx(out, abs=1e-12)


def test_a_document_is_pulled_up_exactly_where_its_reader_beats_the_mean_of_all():
    dscores, _ = retrieve_then_read(SCORES, LOG_PROBS, mask=MASK)[1](ONE)
    for s, readers, counts, ds in zip(SCORES, LOG_PROBS, MASK, dscores, strict=True):
        answer = np.exp((readers * counts).sum(axis=-1))
        mean = answer @ (np.exp(s) / np.exp(s).sum())
        np.testing.assert_array_equal(-ds > 0, answer > mean)


def test_each_reader_learns_as_much_as_the_answer_makes_its_document_likely():
    dlog_probs = retrieve_then_read(SCORES, LOG_PROBS, mask=MASK, reduction="sum")[1](ONE)[1]
    joint = np.exp(SCORES) * np.exp((LOG_PROBS * MASK[:, None]).sum(axis=-1))
    posterior = joint / joint.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(dlog_probs, -posterior[..., None] * MASK[:, None], rtol=0, atol=1e-14)
    tokens = retrieve_then_read_tokens(SCORES, LOG_PROBS, mask=MASK, reduction="sum")[1](ONE)[1]
    np.testing.assert_allclose(tokens.sum(axis=1), -MASK.astype(float), rtol=0, atol=1e-14)


def test_it_costs_at_most_what_reading_a_document_drawn_by_the_retriever_costs():
    prior = np.exp(SCORES) / np.exp(SCORES).sum(axis=-1, keepdims=True)
    drawn = -(prior * (LOG_PROBS * MASK[:, None]).sum(axis=-1)).sum(axis=-1).mean()
    for read in BOTH:
        assert read(SCORES, LOG_PROBS, mask=MASK)[0] < drawn


def test_either_of_the_two_may_be_the_likelier():
    """One document that knows everything: a sequence is surer. Each knows one half of the answer: tokens can change between them."""
    knows, guesses = np.log(0.9), np.log(0.1)
    one_knows = np.array([[knows, knows], [guesses, guesses]])
    each_half = np.array([[knows, guesses], [guesses, knows]])
    loss = {read.__name__: [read(np.zeros(2), r)[0] for r in (one_knows, each_half)] for read in BOTH}
    assert loss["retrieve_then_read"][0] < loss["retrieve_then_read_tokens"][0]
    assert loss["retrieve_then_read"][1] > loss["retrieve_then_read_tokens"][1]


@pytest.mark.parametrize("read", BOTH)
def test_what_is_no_token_of_the_answer_may_hold_anything_and_gets_no_gradient(read):
    spoiled = np.where(MASK[:, None], LOG_PROBS, np.nan)
    out, backward = read(SCORES, spoiled, mask=MASK)
    assert out == read(SCORES, LOG_PROBS, mask=MASK)[0]
    assert not backward(ONE)[1][np.broadcast_to(~MASK[:, None], LOG_PROBS.shape)].any()


@pytest.mark.parametrize("read", BOTH)
def test_answers_far_below_the_smallest_float_are_exact(read):
    """500 tokens of three nats each: exp(-1500) is 0 as a float."""
    log_probs = np.full((3, 500), -3.0)
    log_probs[1] = -3.01
    out, backward = read(np.zeros(3), log_probs)
    assert 1500 <= out <= 1505
    dscores, dlog_probs = backward(ONE)
    assert np.isfinite(dlog_probs).all() and dscores[1] > 0 > dscores[0]


@pytest.mark.parametrize("read", BOTH)
def test_a_document_may_rule_an_answer_out_and_then_learns_nothing_from_it(read):
    log_probs = LOG_PROBS.copy()
    log_probs[:, 1] = -np.inf
    out, backward = read(SCORES, log_probs, mask=MASK)
    dscores, dlog_probs = backward(ONE)
    assert np.isfinite(out) and not dlog_probs[:, 1].any() and (dscores[:, 1] > 0).all()


@pytest.mark.parametrize("read", BOTH)
def test_the_gradient_reaches_the_query_through_the_scores(read):
    """The documents' vectors are frozen, as in the paper."""
    query, documents = RNG.normal(size=(2, 4)), RNG.normal(size=(2, 3, 4))

    def whole(query, log_probs):
        out, backward = read(np.matvec(documents, query), log_probs, mask=MASK)

        def back(dout):
            dscores, dlog_probs = backward(dout)
            return np.vecmat(dscores, documents), dlog_probs

        return out, back

    assert check_gradients(whole, query, LOG_PROBS).passed


@pytest.mark.parametrize("read", BOTH)
@pytest.mark.parametrize("forgotten", ["the prior's softmax", "the posterior"])
def test_the_checker_refuses_a_backward_that_forgets(read, forgotten):
    def wrong(scores, log_probs):
        out, backward = read(scores, log_probs, mask=MASK)

        def careless(dout):
            dscores, dlog_probs = backward(dout)
            if forgotten == "the prior's softmax":           # scores taken for log-probabilities: minus the posterior alone
                return dlog_probs.sum(axis=-1), dlog_probs
            prior = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
            return dscores, -dout / 2 * prior[..., None] * MASK[:, None]

        return out, careless

    assert not check_gradients(wrong, SCORES, LOG_PROBS).passed


@pytest.mark.parametrize("read", BOTH)
def test_what_are_no_log_probabilities_is_refused(read):
    with pytest.raises(ValueError, match=r"log_probs: got numbers up to 0\.\d+, wants logarithms of probabilities, at most 0"):
        read(SCORES, np.exp(LOG_PROBS))
    with pytest.raises(ValueError, match="log_probs: got an answer that is impossible for every document"):
        read(SCORES, np.full((2, 3, 5), -np.inf))
    with pytest.raises(ValueError, match="mask: got an answer without a token"):
        read(SCORES, LOG_PROBS, mask=MASK & np.array([[True], [False]]))
    with pytest.raises(ValueError, match="scores: got an answer whose largest score is not finite"):
        read(np.full((2, 3), -np.inf), LOG_PROBS)
    with pytest.raises(ValueError, match="log_probs"):
        read(SCORES, LOG_PROBS[:, :2])
    with pytest.raises(ValueError, match="scores: got shape"):
        read(SCORES[:, :0], LOG_PROBS[:, :0])


@pytest.mark.parity
@pytest.mark.parametrize("read", BOTH)
def test_losses_and_gradients_are_those_of_hugging_face_s_rag(read):
    torch = pytest.importorskip("torch")
    rag = pytest.importorskip("transformers.models.rag.modeling_rag")
    vocabulary, pad = 7, 1
    rng = np.random.default_rng(2)
    target = np.array([[0, 3, 4, 2, 6, 5], [0, 2, 6, 3, pad, pad]])  # a begin, which is not predicted, and padding
    logits, scores = (torch.tensor(rng.normal(size=size), requires_grad=True) for size in ((2 * 3, 6, vocabulary), (2, 3)))
    own = SimpleNamespace(config=SimpleNamespace(n_docs=3, bos_token_id=None, generator=SimpleNamespace(pad_token_id=pad, bos_token_id=None)))
    of = rag.RagSequenceForGeneration if read is retrieve_then_read else rag.RagTokenForGeneration
    own.marginalize = lambda *args: of.marginalize(own, *args)
    loss = of.get_nll(own, logits, scores, torch.tensor(target), reduce_loss=True)
    loss.backward()

    log_p = torch.log_softmax(logits, -1).reshape(2, 3, 6, vocabulary).detach().numpy()
    following = np.concatenate([target[:, 1:], np.full((2, 1), pad)], axis=1)
    log_probs = np.take_along_axis(log_p, np.broadcast_to(following[:, None, :, None], (2, 3, 6, 1)), axis=-1)[..., 0]
    out, backward = read(scores.detach().numpy(), log_probs, mask=following != pad, reduction="sum")
    np.testing.assert_allclose(out, loss.item(), rtol=0, atol=1e-9)
    dscores, dlog_probs = backward(ONE)
    np.testing.assert_allclose(dscores, scores.grad.numpy(), rtol=0, atol=1e-9)
    chosen = np.eye(vocabulary)[following][:, None]
    dlogits = dlog_probs[..., None] * (chosen - np.exp(log_p))
    np.testing.assert_allclose(dlogits.reshape(6, 6, vocabulary), logits.grad.numpy(), rtol=0, atol=1e-9)
