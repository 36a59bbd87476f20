"""What is done to logits before a token is drawn: small functions of one form, that are put in a row.

    process(logits, ids) -> logits                           ids are those of the text so far

The field's libraries take them in the order repetition penalty, temperature, top-k, top-p, min-p; another order is another
distribution. What is not to be drawn becomes -inf; nothing else is hidden in a processor, so that a grammar or a list of
forbidden tokens is one more function of this form. Sources: top-k, Fan et al. 2018, arXiv:1805.04833, section 5.4; top-p
(nucleus), Holtzman et al. 2020, arXiv:1904.09751, section 3.1; min-p, Nguyen et al. 2024, arXiv:2407.01082; repetition penalty,
Keskar et al. 2019 (CTRL), arXiv:1909.05858, section 4.1. Differs from the last: there all logits of the text's tokens are divided,
which makes negative ones larger; as everywhere today, negative ones are multiplied. p = softmax(z).

    T > 0: z / T;   T = 0: z where it is the first of the largest, else -inf   (1)
    top-k: z where it is at least the k-th largest, else -inf   (2)
    before = sum of the p of all tokens that are likelier, or as likely and earlier   (3)
    top-p: z where before < P, else -inf                     (4)
    min-p: z where z >= max z + log P, which is p >= P max p, else -inf   (5)
    repetition: z / penalty where z > 0, z penalty where z < 0, for the tokens of the text; z for the others   (6)
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.basics.softmax import softmax
from minitransformers.foundation import Range, at_least, bad, example, invalid, positive, procedure

# With a probability of 0 no token would be kept.
probability = Range("above 0 and at most 1", lambda low, high: bool(low > 0 and high <= 1), (0, -0.5, 1.5, float("nan")))


def check_logits(logits: Array, name: str = "logits") -> None:
    """Raise ValueError where there is nothing to draw from."""
    if not np.isfinite(logits.max(axis=-1)).all():           # the maximum of what holds NaN is NaN
        raise invalid(name, got="NaN, +inf or nothing but -inf", wants="at least one finite logit in each row")


def _example(rng: np.random.Generator, **settings):
    """Logits of seven tokens, and a text."""
    return example(rng.normal(size=(2, 3, 7)), rng.integers(7, size=(2, 3, 4)), **settings)


_BAD = [bad(logits=np.full((2, 3, 7), -np.inf)), bad(logits=np.full((2, 3, 7), np.nan))]


@procedure(
    title="Temperature",
    source="Ackley, Hinton and Sejnowski 1985, doi:10.1016/S0364-0213(85)80012-4",
    example=lambda rng: _example(rng, value=0.7),
    rejects=_BAD,
)
def temperature(
    logits: Float[Array, "*batch vocabulary"], ids: Int[Array, "*batch seen"] | None = None, *, value: Annotated[float, at_least(0)]
) -> Float[Array, "*batch vocabulary"]:
    """Logits divided by value: below 1 the likely become likelier, at 0 the largest logit alone is left, the first of equals.

    ids are not looked at. Raises ValueError for logits of which none is finite, and for NaN.
    """
    check_logits(logits)
    if value == 0:
        return np.where(np.arange(logits.shape[-1]) == logits.argmax(axis=-1, keepdims=True), logits, -np.inf).astype(logits.dtype)
    with np.errstate(over="ignore"):
        scaled = logits / logits.dtype.type(value)           # (1)
        if not np.isfinite(scaled.max(axis=-1)).all():       # so cold that quotients overflow: those of the differences go to -inf alone
            scaled = (logits - logits.max(axis=-1, keepdims=True)) / value
    return scaled


@procedure(
    title="Top-k", source="Fan et al. 2018, arXiv:1805.04833, section 5.4", example=lambda rng: _example(rng, k=3), rejects=_BAD
)  # fmt: skip
def top_k(
    logits: Float[Array, "*batch vocabulary"], ids: Int[Array, "*batch seen"] | None = None, *, k: Annotated[int, at_least(1)]
) -> Float[Array, "*batch vocabulary"]:
    """The k largest logits, and those that tie with the smallest of them; -inf in the place of the others.

    ids are not looked at. Raises ValueError for logits of which none is finite, and for NaN.
    """
    check_logits(logits)
    k = min(k, logits.shape[-1])
    smallest_kept = np.partition(logits, -k, axis=-1)[..., -k, None]
    return np.where(logits >= smallest_kept, logits, -np.inf).astype(logits.dtype)  # (2)


@procedure(
    title="Top-p (nucleus)", source="Holtzman et al. 2020, arXiv:1904.09751, section 3.1", example=lambda rng: _example(rng, p=0.8), rejects=_BAD
)  # fmt: skip
def top_p(
    logits: Float[Array, "*batch vocabulary"], ids: Int[Array, "*batch seen"] | None = None, *, p: Annotated[float, probability]
) -> Float[Array, "*batch vocabulary"]:
    """The smallest set of most probable tokens whose mass reaches p, always at least one; -inf in the place of the others.

    ids are not looked at. Raises ValueError for logits of which none is finite, and for NaN.
    """
    check_logits(logits)
    if p == 1:                                               # a sum may round to 1 before its last terms
        return logits.copy()
    each, _ = softmax(logits)
    # Tokens below (1 - p)/vocabulary have together less than 1 - p, so the others reach p without them: only those are sorted.
    some = np.flatnonzero((each >= (1 - p) / each.shape[-1]).reshape(-1, each.shape[-1]).any(axis=0))
    order = np.argsort(-logits[..., some], axis=-1, kind="stable")
    ranked = np.take_along_axis(each[..., some], order, axis=-1)
    before = np.cumsum(ranked, axis=-1) - ranked             # (3)
    kept = np.zeros(logits.shape, bool)
    np.put_along_axis(kept, some[order], before < p, axis=-1)
    return np.where(kept, logits, -np.inf).astype(logits.dtype)  # (4)


@procedure(
    title="Min-p", source="Nguyen et al. 2024, arXiv:2407.01082", example=lambda rng: _example(rng, p=0.3), rejects=_BAD
)  # fmt: skip
def min_p(
    logits: Float[Array, "*batch vocabulary"], ids: Int[Array, "*batch seen"] | None = None, *, p: Annotated[float, probability]
) -> Float[Array, "*batch vocabulary"]:
    """The tokens that are at least p times as probable as the most probable one; -inf in the place of the others.

    ids are not looked at. Raises ValueError for logits of which none is finite, and for NaN.
    """
    check_logits(logits)
    kept = logits >= logits.max(axis=-1, keepdims=True) + np.log(p)
    return np.where(kept, logits, -np.inf).astype(logits.dtype)  # (5)


@procedure(
    title="Repetition penalty",
    source="Keskar et al. 2019 (CTRL), arXiv:1909.05858, section 4.1",
    example=lambda rng: _example(rng, penalty=1.5),
    rejects=[*_BAD, bad(ids=np.full((2, 3, 4), 7)), bad(ids=np.full((2, 3, 4), -1))],
)
def repetition_penalty(
    logits: Float[Array, "*batch vocabulary"], ids: Int[Array, "*batch seen"], *, penalty: Annotated[float, positive]
) -> Float[Array, "*batch vocabulary"]:
    """Logits that are smaller, with a penalty above 1, for the tokens that the text has, however often it has them.

    Below 1 they are larger. Logits are taken as they are: one of 0 stays, and a constant added to all is not harmless.
    Raises ValueError for ids that have no logit, for logits of which none is finite, and for NaN.
    """
    check_logits(logits)
    if ids is None:                                          # where another function passes it on
        raise invalid("ids", got=None, wants="the ids of the text so far")
    if ids.min() < 0 or ids.max() >= logits.shape[-1]:
        raise invalid("ids", got=f"ids from {ids.min()} to {ids.max()}", wants=f"0 to {logits.shape[-1] - 1}, the last axis of logits")
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, ids, True, axis=-1)
    return np.where(seen, np.where(logits > 0, logits / penalty, logits * penalty), logits).astype(logits.dtype)  # (6)
