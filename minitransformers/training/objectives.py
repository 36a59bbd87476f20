"""Objectives of pre-training, for one body: what is read, who sees whom, and what is asked, of the same windows of text.

    causal     every position asks for the next token
    prefix     the same behind a prefix, which sees itself in both directions
    masked     some tokens are hidden, and asked for where they stood; everybody sees all
    spans      the text without its spans is a prefix, and behind it the spans are written

Raffel et al. 2020, arXiv:1910.10683, section 3, compare them; each is a concept of its own in models, which says how tokens are drawn.
Each returns ids to read (windows, positions), a mask of who sees whom or None, and targets, IGNORED where nothing is asked.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array

from minitransformers.attention.masks import causal_mask
from minitransformers.models.masked_language_modelling import masked_language_modelling
from minitransformers.models.prefix_lm import prefix_lm
from minitransformers.models.span_corruption import span_corruption
from minitransformers.training.task import IGNORED


def causal(ids: Array, rng: np.random.Generator) -> tuple[Array, Array | None, Array]:
    """Every position but the last asks. Nothing is drawn."""
    return ids, causal_mask(ids.shape[1]), np.concatenate([ids[:, 1:], np.full((len(ids), 1), IGNORED)], axis=1)


def prefix(ids: Array, rng: np.random.Generator) -> tuple[Array, Array | None, Array]:
    """A prefix of any length from 1 to all but one, drawn for each window."""
    task = prefix_lm(ids, prefixes=rng.integers(1, ids.shape[1], size=len(ids)))
    return ids, task.mask, task.labels


def masked(ids: Array, rng: np.random.Generator, *, mask_id: int) -> tuple[Array, Array | None, Array]:
    """Tokens from 0 to mask_id stand in the place of some that are asked for."""
    hidden = masked_language_modelling(ids, rng=rng, mask_id=mask_id, vocabulary=mask_id + 1)
    return hidden.ids, None, hidden.labels


def spans(ids: Array, rng: np.random.Generator, *, vocabulary: int) -> tuple[Array, Array | None, Array]:
    """Sentinels are the last tokens of the vocabulary, from its end."""
    task = span_corruption(ids, rng=rng, vocabulary=vocabulary, end=None)
    both, given = np.concatenate(task, axis=1), task.source.shape[1]
    rest = prefix_lm(both, prefixes=np.full(len(both), given))
    return both, rest.mask, rest.labels
