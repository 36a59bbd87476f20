"""How likely a Llama finds texts: the mean log-probability of their tokens, and of those behind a beginning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.bias_mitigation.stereoset import mean_log_probability
from minitransformers.models.llama import llama
from minitransformers.models.llama_gguf import load_llama_gguf
from minitransformers.models.published import published_file
from minitransformers.models.tokenizers.byte_pair_encoding import byte_pair_encode

START, _AT_ONCE = "<|endoftext|>", 8                         # texts that are read together


def smollm2_scores(texts: Sequence[str], given: Sequence[int]) -> tuple[Array, Array]:
    """What SmolLM2 gives each text, and what stands behind its first so many characters: 0 where that is nothing."""
    model = _smollm2()

    def ids(text: str, **settings: Any) -> Array:
        return byte_pair_encode(text, vocabulary=model.vocabulary, **settings)

    first = ids(START)
    rows = [np.concatenate([first, ids(text, special=False)]) for text in texts]
    known = [len(first) + len(ids(text[:count], special=False)) for text, count in zip(texts, given, strict=True)]
    return mean_log_probabilities(rows, known, logits=lambda some: llama(model.params, ids=some, **model.settings)[0])


@cache
def _smollm2() -> Any:
    return load_llama_gguf(published_file("smollm2"))


def mean_log_probabilities(ids: Sequence[Array], known: Sequence[int], *, logits: Callable[[Array], Array]) -> tuple[Array, Array]:
    """Of each text behind its first token, and behind so many known ones: 0 where no token is left."""
    whole, behind = np.zeros(len(ids)), np.zeros(len(ids))
    for rows in _of_one_length(ids):
        for row, own in zip(rows, logits(np.stack([ids[row] for row in rows])), strict=True):
            whole[row] = mean_log_probability(ids[row], model=lambda _, own=own: own)
            if known[row] < len(ids[row]):
                behind[row] = mean_log_probability(ids[row], model=lambda _, own=own: own, given=known[row])
    return whole, behind


def _of_one_length(ids: Sequence[Array]) -> Iterator[Array]:
    """Numbers of some texts that stand side by side without padding."""
    lengths = np.array([len(row) for row in ids])
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        yield from np.split(rows, range(_AT_ONCE, len(rows), _AT_ONCE))
