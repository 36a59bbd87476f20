"""A completion table: whom does a model see in which occupation?

A stereotype that a model has learned shows in what it writes next. Put each word into a template and compare the probabilities of the
completions that tell groups apart, among themselves. It is a measure of the model, not of people. One score for each word, template and
completion.

Source: the pattern "doctor - he" is the opening example of Bolukbasi et al. 2016, arXiv:1607.06520; occupations in templates as in
Lu et al. 2018, arXiv:1807.11714, section 2. Differs: any number of completions. l(w, t, c) is the log-probability of the completion c
after the template t filled with the word w.

    log_mass = log sum over c of exp l(w, t, c)              (1)
    log_shares(w, t, c) = l(w, t, c) - log_mass(w, t)        (2)
    gap(w, t) = max over c of l - min over c of l            (3)
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import bad, example, invalid, procedure

_TEMPLATES = [["the", "{word}", "said", "that"], ["the", "{word}", "left", "and"]]


class CompletionTable(NamedTuple):
    """Log of each completion's share among the completions, log of all they get together, and the largest log-ratio of two."""

    log_shares: Float[Array, "words templates completions"]
    log_mass: Float[Array, "words templates"]
    gap: Float[Array, "words templates"]


def _log_prob(tokens: Sequence[str], completion: str) -> float:
    return -1.0 - len(completion) / (1 + len(tokens[1])) - (tokens[2] == "left")


@procedure(
    title="Completion table",
    source="Lu, Mardziel, Wu, Amancharla and Datta 2018, arXiv:1807.11714, section 2",
    example=lambda rng: example(_log_prob, words=["clerk", "cook", "baker"], templates=_TEMPLATES, completions=["<g1>", "<g02>", "<g003>", "<g4>"]),
    rejects=[
        bad(words=[]), bad(words=["cook", "cook"]), bad(completions=["<g1>"]), bad(completions=["<g1>", "<g1>"]), bad(templates=[]),
        bad(templates=[["the", "cook"]]), bad(log_prob=lambda tokens, completion: -np.inf), bad(log_prob=lambda tokens, completion: np.nan),
        bad(log_prob=lambda tokens, completion: 0.5), bad(words="cook"),
    ],
)  # fmt: skip
def completion_table(
    log_prob: Callable, *, words: Sequence[str], templates: Sequence[Sequence[str]], completions: Sequence[str]
) -> CompletionTable:
    """What a model makes of each word in each template (lists of tokens, of which one or more are "{word}").

    log_prob(tokens, completion) is the log-probability, in nats, that the completion follows the tokens.
    Raises ValueError for no word or template, fewer than two completions, one given twice, a template without its slot, and where
    log_prob gives no finite number of at most 0.
    """
    for name, given, least in (("words", words, 1), ("templates", templates, 1), ("completions", completions, 2)):
        if len(given) < least or len(set(map(str, given))) < len(given):
            raise invalid(name, got=list(given), wants=f"at least {least}, each once")
    for template in templates:
        if "{word}" not in template:
            raise invalid("templates", got=" ".join(template), wants="the slot {word} in each")
    scores = np.empty((len(words), len(templates), len(completions)))
    for w, word in enumerate(words):
        for t, template in enumerate(templates):
            filled = [word if token == "{word}" else token for token in template]
            scores[w, t] = [log_prob(filled, completion) for completion in completions]
    if not (np.isfinite(scores).all() and scores.max() <= 0):
        raise invalid("log_prob", got=f"numbers from {scores.min()} to {scores.max()}", wants="finite log-probabilities, at most 0")
    largest = scores.max(axis=-1, keepdims=True)
    log_mass = largest + np.log(np.sum(np.exp(scores - largest), axis=-1, keepdims=True))  # (1)
    log_shares = scores - log_mass                           # (2)
    return CompletionTable(log_shares, log_mass[..., 0], np.ptp(scores, axis=-1))  # (3)
