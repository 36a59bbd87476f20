"""Exposure: how far a model has learned one text by heart, measured with a text that was planted.

Write a random secret, "the number is 281 074", into the training text a known number of times. Afterwards ask the model for the score
of every number that might have stood there. If it has learned nothing of the secret, the secret's rank among them is a chance rank.
Exposure counts how many halvings of the list the model saves one who guesses. One score a candidate, and a count.

Source: Carlini, Liu, Erlingsson, Kos and Song 2019 (The Secret Sharer), arXiv:1802.08232. R is the set of candidates, l their
log-probabilities, c the canary.

    rank = number of r in R with l_r >= l_c, the canary itself and ties included   (1)
    exposure = log2 |R| - log2 rank                          (2)
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, example, finite, invalid, procedure


@procedure(
    title="Exposure of a canary",
    source="Carlini, Liu, Erlingsson, Kos and Song 2019, arXiv:1802.08232",
    example=lambda rng: example(rng.normal(size=(2, 9)), canary=3),
    rejects=[bad(canary=9), bad("log_probs", log_probs=np.ones((2, 1)), canary=0)],
)
def canary_exposure(
    log_probs: Annotated[Float[Array, "*batch candidates"], finite], *, canary: Annotated[int, at_least(0)]
) -> Float[Array, "*batch"]:
    """How many bits of the canary the model gives away: from 0, learned least of all, to log2 of the number of candidates.

    log_probs are those of all candidates, or of a random sample of them with the canary, which then bounds the exposure at log2 of the
    sample's size; canary is its number among them. Candidates are equally long.
    Raises ValueError where there is one candidate only, and no candidate of that number.
    """
    size = log_probs.shape[-1]
    if size < 2:
        raise invalid("log_probs", got="one candidate", wants="at least 2")
    if canary >= size:
        raise invalid("canary", got=canary, wants=f"a number from 0 to {size - 1}")
    rank = np.sum(log_probs >= log_probs[..., canary : canary + 1], axis=-1)  # (1)
    return np.log2(size) - np.log2(rank)                     # (2)
