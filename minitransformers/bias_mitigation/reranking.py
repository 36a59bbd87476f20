"""Reranking: let the model write several texts, and choose by its score less a price for bias.

Nothing inside the model is touched; it need not even be seen. What is chosen is one of the candidates, so it can be no better than the
best of them. The price is set by one number, and what was paid is counted: how much less likely the chosen text is than the model's own
first. A sort of n candidates.

Source: reranking stands among what is done at and after decoding in the taxonomy of Gallegos et al. 2023, arXiv:2309.00770; a score
of the model and a second one, weighed on a list of n best, is as in Li et al. 2016, arXiv:1510.03055, section 4.5.2.
l are log-probabilities, b bias scores, lambda the price.

    score_i = l_i - lambda b_i                               (1)
    order = candidates by falling score, of equals the one that was earlier   (2)
    paid = max l - l of the first                            (3)
    saved = b of the model's own first - b of the first      (4)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, example, finite, invalid, procedure


class RerankedTexts(NamedTuple):
    """Numbers of the n best candidates, their scores, and what the first of them costs in log-probability and saves in bias."""

    order: Int[Array, "n"]
    scores: Float[Array, "n"]
    paid: float
    saved: float


@procedure(
    title="Reranking",
    source="the taxonomy of Gallegos et al. 2023, arXiv:2309.00770; Li et al. 2016, arXiv:1510.03055",
    example=lambda rng: example(rng.normal(size=5), rng.random(5), price=0.7, n=3),
    rejects=[bad(n=6), bad("bias", log_probs=np.ones(4))],
)
def rerank(
    log_probs: Annotated[Float[Array, "candidates"], finite], bias: Annotated[Float[Array, "candidates"], finite], *,
    price: Annotated[float, at_least(0)], n: Annotated[int, at_least(1)] = 1,
) -> RerankedTexts:  # fmt: skip
    """The n best of the candidates by log-probability less price times bias.

    log_probs are the model's, in nats (divide by the length before, where lengths differ); bias is any score of which less is better.
    price says how many nats one unit of bias is worth: 0 leaves the model's order.
    Raises ValueError where n is above the number of candidates.
    """
    if n > len(log_probs):
        raise invalid("n", got=n, wants=f"at most the {len(log_probs)} candidates")
    scores = log_probs - price * bias                        # (1)
    order = np.argsort(-scores, kind="stable")[:n]           # (2)
    own, first = int(np.argmax(log_probs)), int(order[0])
    paid = float(log_probs[own] - log_probs[first])          # (3)
    saved = float(bias[own] - bias[first])                   # (4)
    return RerankedTexts(order, scores[order], paid, saved)
