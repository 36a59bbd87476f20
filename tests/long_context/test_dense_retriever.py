"""Dense retriever: a loss that moves queries to their documents, and a search that finds the nearest."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.long_context.dense_retriever import dense_retriever, nearest_documents

RNG = np.random.default_rng(0)
QUERIES, DOCUMENTS, POSITIVES = RNG.normal(size=(3, 4)), RNG.normal(size=(5, 4)), np.array([0, 3, 0])


def textbook(queries, documents, positives=POSITIVES, temperature=0.5, similarity="cosine"):
    """One query, and one document, at a time."""
    losses = []
    for q, own in zip(queries, positives, strict=True):
        scores = []
        for d in documents:
            size = anp.sqrt(anp.sum(q * q)) * anp.sqrt(anp.sum(d * d)) if similarity == "cosine" else 1.0
            scores.append(anp.sum(q * d) / size / temperature)
        losses.append(anp.log(sum(anp.exp(s) for s in scores)) - scores[own])
    return sum(losses) / len(losses)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_it_is_the_mean_loss_of_single_queries_and_its_gradients_are_autograd_s(similarity):
    out, backward = dense_retriever(QUERIES, DOCUMENTS, positives=POSITIVES, temperature=0.5, similarity=similarity)
    assert out == pytest.approx(textbook(QUERIES, DOCUMENTS, similarity=similarity), abs=1e-12)
    expected = autograd.grad(lambda q, d: textbook(q, d, similarity=similarity), (0, 1))(QUERIES, DOCUMENTS)
    for own, their in zip(backward(np.float64(1.3)), expected, strict=True):
        np.testing.assert_allclose(own, 1.3 * their, rtol=0, atol=1e-12)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_all_arguments_have_right_gradients(similarity):
    assert check_gradients(dense_retriever, QUERIES, DOCUMENTS, positives=POSITIVES, temperature=0.3, similarity=similarity).passed


def test_without_positives_the_first_documents_are_those_of_the_queries_and_the_rest_wrong_for_all():
    own = dense_retriever(QUERIES, DOCUMENTS)[0]
    assert own == dense_retriever(QUERIES, DOCUMENTS, positives=np.arange(3))[0]
    assert dense_retriever(QUERIES, DOCUMENTS[:4])[0] < own  # one wrong answer more makes the choice harder


def test_directions_alone_count_and_no_gradient_goes_along_them():
    out, backward = dense_retriever(QUERIES, DOCUMENTS, positives=POSITIVES)
    scaled = dense_retriever(QUERIES * np.array([[2.0], [0.1], [30.0]]), 7 * DOCUMENTS, positives=POSITIVES)[0]
    assert scaled == pytest.approx(out, abs=1e-14)
    for rows, drows in zip((QUERIES, DOCUMENTS), backward(np.float64(1)), strict=True):
        np.testing.assert_allclose((rows * drows).sum(axis=-1), 0, atol=1e-14)


def test_where_all_documents_are_equal_it_is_the_logarithm_of_their_number():
    same = np.tile(DOCUMENTS[:1], (5, 1))
    out, backward = dense_retriever(QUERIES, same)
    assert out == pytest.approx(np.log(5), abs=1e-14)
    np.testing.assert_allclose(backward(np.float64(1))[0], 0, atol=1e-14)


def test_the_pulls_of_the_documents_on_one_query_balance():
    """Belief minus target sums to 0 for each query, so what pulls towards its own document pushes away from the others."""
    pulls = dense_retriever(np.eye(5)[:3], np.eye(5), positives=POSITIVES, similarity="dot")[1](np.float64(1))[0]
    np.testing.assert_allclose(pulls.sum(axis=-1), 0, atol=1e-14)
    assert (pulls < 0).sum(axis=-1).tolist() == [1, 1, 1]


def test_a_step_down_brings_queries_nearer_to_their_own_documents():
    dqueries, ddocuments = dense_retriever(QUERIES, DOCUMENTS, positives=POSITIVES)[1](np.float64(1))
    assert dense_retriever(QUERIES - 0.1 * dqueries, DOCUMENTS - 0.1 * ddocuments, positives=POSITIVES)[0] < dense_retriever(QUERIES, DOCUMENTS, positives=POSITIVES)[0]


def test_at_a_low_temperature_the_nearest_wrong_document_alone_is_pushed():
    _, ddocuments = dense_retriever(QUERIES[:1], DOCUMENTS, temperature=0.001)[1](np.float64(1))
    cosines = DOCUMENTS @ QUERIES[0] / np.linalg.norm(DOCUMENTS, axis=1)
    pushed = np.linalg.norm(ddocuments, axis=1) > 1e-6 * np.linalg.norm(ddocuments)
    assert set(np.flatnonzero(pushed)) <= {0, int(cosines.argmax())}


def test_a_document_twice_in_a_batch_is_wrong_for_itself_and_shared_it_is_not():
    twice = np.concatenate([DOCUMENTS[:1], DOCUMENTS[:1]])
    queries = 5 * twice
    assert dense_retriever(queries, twice, temperature=0.01)[0] == pytest.approx(np.log(2))
    shared = dense_retriever(queries, DOCUMENTS, positives=np.zeros(2, int), temperature=0.01)[0]
    assert shared < 0.01


def test_the_order_of_the_documents_does_not_matter():
    order = np.array([3, 0, 4, 1, 2])
    place = np.argsort(order)
    assert dense_retriever(QUERIES, DOCUMENTS[order], positives=place[POSITIVES])[0] == pytest.approx(dense_retriever(QUERIES, DOCUMENTS, positives=POSITIVES)[0], abs=1e-15)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("block", [1, 3, 4, 100])
@pytest.mark.parametrize("k", [1, 4, 11])
def test_search_finds_what_comparing_with_every_document_finds(k, block, similarity):
    documents = RNG.normal(size=(11, 4))
    found = nearest_documents(QUERIES, documents, k=k, similarity=similarity, block=block)
    for q, numbers, scores in zip(QUERIES, *found, strict=True):
        near = [q @ d / (np.linalg.norm(q) * np.linalg.norm(d) if similarity == "cosine" else 1) for d in documents]
        best = sorted(range(11), key=lambda i: -near[i])[:k]
        assert numbers.tolist() == best
        np.testing.assert_allclose(scores, [near[i] for i in best], rtol=0, atol=1e-14)


def test_search_prefers_the_smaller_number_of_equals_whatever_the_block():
    documents = np.tile(np.eye(2), (4, 1))
    for block in (1, 2, 3, 8):
        assert nearest_documents(np.eye(2), documents, k=3, block=block).documents.tolist() == [[0, 2, 4], [1, 3, 5]]


def test_a_retriever_learns_synonyms_that_share_no_word():
    """Each id has a synonym. A table for questions and one for sentences, means over words, in-batch loss, plain steps."""
    rng = np.random.default_rng(1)
    other = np.roll(np.arange(20), 1)
    tables = [rng.normal(size=(20, 8)) / 3 for _ in range(2)]

    def pairs(count):
        sentences = rng.integers(20, size=(count, 4))
        return [np.stack([np.bincount(row, minlength=20) for row in ids]) / 4.0 for ids in (other[sentences], sentences)]

    def recall():
        question, sentence = pairs(200)
        return np.mean(nearest_documents(question @ tables[0], sentence @ tables[1], k=1).documents[:, 0] == np.arange(200))

    before = recall()
    for _ in range(150):
        words = pairs(32)
        grads = dense_retriever(*(w @ t for w, t in zip(words, tables, strict=True)), temperature=0.1)[1](np.float64(1))
        for table, w, g in zip(tables, words, grads, strict=True):
            table -= 2.0 * w.T @ g
    assert before < 0.1 and recall() > 0.6


@pytest.mark.parametrize("forgotten", ["the normalisation", "the temperature", "the documents' pull"])
def test_the_checker_refuses_a_backward_that_forgets(forgotten):
    def wrong(queries, documents):
        out, backward = dense_retriever(queries, documents, positives=POSITIVES, temperature=0.5)
        a, b = (rows / np.linalg.norm(rows, axis=-1, keepdims=True) for rows in (queries, documents))

        def careless(dout):
            dqueries, ddocuments = backward(dout)
            if forgotten == "the temperature":
                return 0.5 * dqueries, 0.5 * ddocuments
            if forgotten == "the documents' pull":
                return dqueries, np.zeros_like(ddocuments)
            return dense_retriever(a, b, positives=POSITIVES, temperature=0.5, similarity="dot")[1](dout)

        return out, careless

    assert not check_gradients(wrong, QUERIES, DOCUMENTS).passed


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="documents: got 2 for 3 queries, wants one for each, or positives"):
        dense_retriever(QUERIES, DOCUMENTS[:2])
    with pytest.raises(ValueError, match="positives: got numbers from 0 to 5, wants rows from 0 to 4"):
        dense_retriever(QUERIES, DOCUMENTS, positives=np.array([0, 5, 1]))
    with pytest.raises(ValueError, match="queries: got a row of length 0"):
        dense_retriever(0 * QUERIES, DOCUMENTS)
    with pytest.raises(ValueError, match="temperature: got 0"):
        dense_retriever(QUERIES, DOCUMENTS, temperature=0.0)
    with pytest.raises(ValueError, match="k: got 6, wants at most 5"):
        nearest_documents(QUERIES, DOCUMENTS, k=6)
    with pytest.raises(ValueError, match="documents: got shape"):
        nearest_documents(QUERIES, DOCUMENTS[:0], k=1)


@pytest.mark.parity
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_it_is_pytorch_s_cross_entropy_of_normalised_products(similarity):
    torch = pytest.importorskip("torch")
    q, d = (torch.tensor(rows, requires_grad=True) for rows in (QUERIES, DOCUMENTS))
    a, b = (torch.nn.functional.normalize(rows, dim=-1) if similarity == "cosine" else rows for rows in (q, d))
    loss = torch.nn.functional.cross_entropy(a @ b.T / 0.07, torch.tensor(POSITIVES))
    loss.backward()
    out, backward = dense_retriever(QUERIES, DOCUMENTS, positives=POSITIVES, temperature=0.07, similarity=similarity)
    np.testing.assert_allclose(out, loss.item(), rtol=0, atol=1e-9)
    for own, their in zip(backward(np.float64(1)), (q, d), strict=True):
        np.testing.assert_allclose(own, their.grad.numpy(), rtol=0, atol=1e-9)
