"""Fading: how the focus of attention is lost as the number of keys grows, measured for any weighting.

The largest of n softmax weights falls like 1/n unless the scores spread further apart. Three numbers follow a query: the
largest share that a key has, the entropy of the shares, and how many equal shares would be as spread out. A measure, not a part
of a model: it has no backward. Source of the name and of the bound: Nakanishi 2025, arXiv:2501.19399; the
effective support is the inverse participation ratio, Hill's number of order 2. Differs from the paper: weights that do
not sum to 1, or are negative, are measured by their absolute shares.

    shares = |weights| / sum over keys of |weights|          (1)
    largest = max over keys of shares                        (2)
    entropy = - sum over keys of shares log shares           (3)
    support = 1 / sum over keys of shares^2                  (4)
    bound = 1 / (1 + (keys - 1) exp(-spread))                (5)

The entropy of n equal shares is log n and their support is n. A query that weighs nothing has 0 in all three.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.basics.softmax import softmax
from minitransformers.foundation import invalid


class Focus(NamedTuple):
    """Largest share (0 to 1), entropy (nats) and effective support (keys) of every query."""

    largest: Float[Array, "..."]
    entropy: Float[Array, "..."]
    support: Float[Array, "..."]


class Fading(NamedTuple):
    """Means over the queries, one for each number of keys."""

    keys: Int[Array, "sizes"]
    largest: Float[Array, "sizes"]
    entropy: Float[Array, "sizes"]
    support: Float[Array, "sizes"]


def focus(weights: Float[Array, "... keys"]) -> Focus:
    """How the weights of each query are spread over its keys; they need be neither positive nor sum to 1.

    Raises ValueError where there is no key or a weight is not finite.
    """
    if weights.ndim == 0 or weights.shape[-1] == 0 or not np.isfinite(weights).all():
        raise invalid("weights", got=f"shape {weights.shape}, or NaN or an infinity in it", wants="finite numbers, at least one a query")
    sizes = np.abs(weights)
    sizes = sizes / np.where((top := sizes.max(-1, keepdims=True)) > 0, top, 1)  # squares of small weights would underflow
    total = sizes.sum(-1, keepdims=True)
    shares = sizes / np.where(total > 0, total, 1)           # (1)
    squares = np.vecdot(shares, shares)
    logs = np.log(np.where(shares > 0, shares, 1))           # 0 log 0 = 0
    return Focus(
        largest=shares.max(-1),                              # (2)
        entropy=np.abs(np.vecdot(shares, logs)),             # no term is positive, and no -0 for one key  (3)
        support=(squares > 0) / np.where(squares > 0, squares, 1),  # (4)
    )


def fading(weighting: Callable | None, scores: Float[Array, "... keys"], *, sizes: Sequence[int]) -> Fading:
    """The focus when a query sees the first ``n`` of its keys, for each ``n`` in sizes, as a mean over the queries.

    weighting(scores) -> weights, backward is any weighting, its learned numbers bound; None is the softmax.
    Raises ValueError where there is no size or one is not between 1 and the number of keys, or the weights are not finite.
    """
    if not len(sizes) or not all(isinstance(n, (int, np.integer)) and 1 <= n <= scores.shape[-1] for n in sizes):
        raise invalid("sizes", got=sizes, wants=f"whole numbers of keys from 1 to {scores.shape[-1]}, at least one")
    weigh = softmax if weighting is None else weighting
    found = [focus(weigh(scores[..., :n])[0]) for n in sizes]
    return Fading(np.array(sizes), *(np.array([part.mean() for part in parts]) for parts in zip(*found, strict=True)))


def largest_possible(keys: Int[Array, "*sizes"] | int, *, spread: float) -> Float[Array, "*sizes"]:
    """The largest softmax weight that scores within ``spread`` of one another can give one of ``keys`` keys.

    Raises ValueError for fewer than one key and a negative spread.
    """
    if not np.all(np.asarray(keys) >= 1):
        raise invalid("keys", got=keys, wants="at least 1")
    if not spread >= 0:
        raise invalid("spread", got=spread, wants="a difference of scores of at least 0")
    return 1 / (1 + (np.asarray(keys) - 1) * np.exp(-spread))  # (5)
