"""Questions about long texts, one sentence of which has the answer: the texts, BM25, and vectors that learn from pairs or from answers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.basics.embedding import Embedding, embedding
from minitransformers.foundation import Backward
from minitransformers.long_context.bm25 import bm25, bm25_index
from minitransformers.long_context.dense_retriever import dense_retriever
from minitransformers.long_context.retrieve_then_read import retrieve_then_read
from minitransformers.training.task import FromLoss

WORDS, ANSWERS, LENGTH, ASKED, WIDTH, BATCH, SHARPNESS, SURE = 800, 8, 12, 4, 64, 128, 0.05, 0.95


def draw_questions(rng: np.random.Generator, synonyms: Array, *, texts: int, sentences: int) -> tuple[Array, ...]:
    """Words (texts, sentences, 12), an answer each, which sentence is asked for, and the question with words replaced (texts, 4)."""
    words = rng.integers(WORDS, size=(texts, sentences, LENGTH))
    asked = rng.integers(sentences, size=texts)
    places = np.argsort(rng.random((texts, LENGTH)), axis=1)[:, :ASKED]
    same = np.take_along_axis(words[np.arange(texts), asked], places, axis=1)
    return words, rng.integers(ANSWERS, size=(texts, sentences)), asked, same, synonyms[same]


def read(answers: Array) -> Array:
    """What a reader says of each sentence, as log-probabilities of the answers: sure of what stands there, and never quite."""
    rest = (1 - SURE) / (ANSWERS - 1)
    return np.log(np.where(np.arange(ANSWERS) == answers[..., None], SURE, rest))


def init_tables(rng: np.random.Generator) -> list[Embedding]:
    """A table of words for questions, and one for sentences: the vector of a text is the mean of its words."""
    return [Embedding((rng.standard_normal((WORDS, WIDTH)) / np.sqrt(WIDTH)).astype(np.float32)) for _ in range(2)]


def encoded(table: Embedding, ids: Array) -> tuple[Array, Backward]:
    """The vector of each text."""
    vectors, backward = embedding(table, ids=ids)
    count = ids.shape[-1]
    return vectors.mean(axis=-2), lambda dout: backward(np.repeat(dout[..., None, :] / count, count, axis=-2))


def by_pairs(rng: np.random.Generator, synonyms: Array) -> FromLoss:
    """The loss of finding the sentence of each question among those of all."""

    def loss(tables):
        words, _, _, _, question = draw_questions(rng, synonyms, texts=BATCH, sentences=1)
        (asks, asks_backward), (says, says_backward) = encoded(tables[0], question), encoded(tables[1], words[:, 0])
        value, backward = dense_retriever(asks, says, temperature=SHARPNESS)
        dasks, dsays = backward(np.float32(1.0))
        return value, [asks_backward(dasks), says_backward(dsays)]

    return FromLoss(loss)


def by_answers(rng: np.random.Generator, synonyms: Array) -> FromLoss:
    """The loss of the answer, over the sentences of a text of 32; nobody says which of them has it."""

    def loss(tables):
        words, answers, asked, _, question = draw_questions(rng, synonyms, texts=BATCH // 2, sentences=32)
        (asks, asks_backward), (says, says_backward) = encoded(tables[0], question), encoded(tables[1], words)
        scores = (says @ asks[..., None])[..., 0] / SHARPNESS
        right = np.take_along_axis(answers, asked[:, None], axis=1)
        log_probs = np.take_along_axis(read(answers), right[..., None], axis=-1).astype(np.float32)  # (texts, sentences, 1)
        value, backward = retrieve_then_read(scores, log_probs)
        dscores = backward(np.float32(1.0))[0] / SHARPNESS
        return value, [asks_backward((dscores[..., None] * says).sum(axis=1)), says_backward(dscores[..., None] * asks[:, None])]

    return FromLoss(loss)


def by_words(words: Array, questions: Array, rng: np.random.Generator) -> Array:
    """BM25's scores, and of equals in an order by lot."""
    scores = np.array([bm25(bm25_index(list(text)), question) for text, question in zip(words, questions, strict=True)])
    return scores + 1e-9 * rng.random(scores.shape)


def by_vectors(tables: Any, words: Array, questions: Array) -> Array:
    """Cosines, as sharp as in training."""
    asks, says = encoded(tables[0], questions)[0], encoded(tables[1], words)[0]
    unit = [part / np.linalg.norm(part, axis=-1, keepdims=True) for part in (asks, says)]
    return (unit[1] @ unit[0][..., None])[..., 0] / SHARPNESS


def other_words(rng: np.random.Generator) -> Array:
    """A synonym for each word, never itself."""
    order = rng.permutation(WORDS)
    synonyms = np.empty(WORDS, int)
    synonyms[order] = np.roll(order, 1)
    return synonyms
