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

The entropy of n equal shares is log n and their support is n. A query whose weights are all 0 has 0 in all three.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.basics.softmax import softmax
from minitransformers.foundation import at_least, bad, checked, example, finite, invalid, procedure


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


@procedure(
    title="Focus of attention weights",
    source="Nakanishi 2025, arXiv:2501.19399; the support: Hill 1973, Ecology 54:427",
    example=lambda rng: example(rng.normal(size=(2, 3, 5))),
)
def focus(weights: Annotated[Float[Array, "... keys"], finite]) -> Focus:
    """How the weights of each query are spread over its keys; they need be neither positive nor sum to 1."""
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


@procedure(
    title="Fading of attention",
    source="Nakanishi 2025, arXiv:2501.19399",
    example=lambda rng: example(rng.normal(size=(2, 3, 5)), sizes=[1, 3, 5]),
    rejects=[bad(sizes=[]), bad(sizes=[0]), bad(sizes=[6]), bad(sizes=[1.5])],
)
def fading(scores: Float[Array, "... keys"], *, sizes: Sequence[int], weighting: Callable = softmax) -> Fading:
    """The focus when a query sees the first ``n`` of its keys, for each ``n`` in sizes, as a mean over the queries.

    weighting(scores) -> weights, backward is any weighting, what it learns bound (functools.partial(scalable_softmax, None)).
    Raises ValueError where there is no size or one is not between 1 and the number of keys.
    """
    if not sizes or not all(1 <= n <= scores.shape[-1] for n in sizes):
        raise invalid("sizes", got=sizes, wants=f"whole numbers of keys from 1 to {scores.shape[-1]}, at least one")
    found = [focus(weighting(scores[..., :n])[0]) for n in sizes]
    return Fading(np.array(sizes), *(np.array([part.mean() for part in parts]) for parts in zip(*found, strict=True)))


@checked
def largest_possible(keys: Annotated[Int[Array, "*sizes"], at_least(1)], *, spread: Annotated[float, at_least(0)]) -> Float[Array, "*sizes"]:
    """The largest softmax weight that scores within ``spread`` of one another can give one of ``keys`` keys."""
    return 1 / (1 + (keys - 1) * np.exp(-spread))            # (5)
