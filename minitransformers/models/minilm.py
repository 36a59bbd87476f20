"""MiniLM: texts as vectors whose dot product says how alike they are, by a small BERT that others have trained.

Source: Wang et al. 2020, arXiv:2002.10957 (the body), and Reimers and Gurevych 2019, arXiv:1908.10084 (that a mean of hidden states serves
to compare sentences). Six blocks of bert, sentence_vectors on top, and nothing new in between: this file reads the published weights and
brings texts of unequal length into batches.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.foundation import invalid
from minitransformers.models.bert import Bert, bert, load_bert
from minitransformers.models.published import published_file
from minitransformers.models.sentence_vectors import sentence_vectors
from minitransformers.models.tokenizers.files import read_vocab_txt
from minitransformers.models.tokenizers.wordpiece import WordPieceVocabulary, wordpiece_encode

NUM_HEADS = 12


class MiniLM(NamedTuple):
    """The parameters, and the vocabulary that they were trained with."""

    params: Bert
    vocabulary: WordPieceVocabulary


def load_minilm() -> MiniLM:
    """all-MiniLM-L6-v2, in float32. Raises ValueError that says how it is obtained where it is not there."""
    params = load_bert(published_file("minilm", "weights"))._replace(pooler=None)  # sentence_vectors stand in its place
    return MiniLM(params, read_vocab_txt(published_file("minilm", "vocabulary")))


def minilm_ids(texts: Iterable[str], *, vocabulary: WordPieceVocabulary, longest: int = 256) -> tuple[Array, Array]:
    """The ids of texts, padded to one length on the right, and which of them are no padding: both (texts, positions).

    [CLS] stands before each text and [SEP] behind it. What does not fit into ``longest`` tokens is cut off at the end.
    Raises ValueError where there is no text, or longest leaves no room for one token between the two.
    """
    if longest < 3:
        raise invalid("longest", got=longest, wants="at least 3: [CLS], a token and [SEP]")
    first, last, padding = (vocabulary.ids[token] for token in ("[CLS]", "[SEP]", "[PAD]"))
    rows = [[first, *wordpiece_encode(text, vocabulary=vocabulary, special=False)[: longest - 2], last] for text in texts]
    if not rows:
        raise invalid("texts", got="none", wants="at least one")
    lengths = np.array([len(row) for row in rows])
    ids = np.full((len(rows), lengths.max()), padding)
    for row, held in zip(rows, ids, strict=True):
        held[: len(row)] = row
    return ids, np.arange(ids.shape[1]) < lengths[:, None]


def minilm_vectors(texts: Iterable[str], *, model: MiniLM, batch: int = 32, longest: int = 256) -> Array:
    """A vector of length 1 for each text, (texts, 384). The dot product of two is their cosine, near 1 for the same in other words.

    ``batch`` texts go through the model at a time; it changes no result. longest is the number of tokens that a text is cut to:
    the model was trained on 128, and read up to 256 by those who published it.
    """
    texts = list(texts)
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise invalid("batch", got=repr(batch), wants="a whole number of at least 1")
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # texts of one length side by side: little padding
    found: list[Array] = [np.zeros(0)] * len(texts)
    for start in range(0, len(texts), batch):
        part = order[start : start + batch]
        ids, real = minilm_ids((texts[i] for i in part), vocabulary=model.vocabulary, longest=longest)
        out, _ = bert(model.params, ids=ids, num_heads=NUM_HEADS, mask=real[:, None, None])
        vectors, _ = sentence_vectors(out.hidden, mask=real)
        for i, vector in zip(part, vectors, strict=True):
            found[i] = vector
    width = model.params.embedding.weight.shape[1]
    return np.array(found, model.params.embedding.weight.dtype).reshape(len(texts), width)
