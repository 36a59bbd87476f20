"""Decoding: writing with any model that has a step, one token at a time, each drawn from what the model expects next.

    step(ids, state) -> logits, state                       ids (1, new); state is None at the start of a text

A step carries what the model needs of the past (keys and values for attention, a state for a recurrence), so a token costs
one position instead of a whole window. A model with a table of positions cannot see past its context: when the window is
full, its older half is let go and the rest is read again. Decoding with and without a cache sees the same windows, so it
gives the same logits.

Sources: top-k, Fan et al. 2018, arXiv:1805.04833; top-p (nucleus), Holtzman et al. 2020, arXiv:1904.09751. The order is
that of the field's libraries: temperature, then top-k, then top-p, then softmax and a draw.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Annotated

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.basics.softmax import softmax
from minitransformers.efficient.kv_cache import tokens
from minitransformers.foundation import Range, at_least, bad, checked, example, invalid, procedure

# With a probability of 0 no token would be kept.
probability = Range("above 0 and at most 1", lambda low, high: bool(low > 0 and high <= 1), (0, -0.5, 1.5, float("nan")))


@procedure(
    title="Next-token probabilities",
    source="Fan et al. 2018, arXiv:1805.04833 (top-k); Holtzman et al. 2020, arXiv:1904.09751 (top-p)",
    example=lambda rng: example(rng.normal(size=(2, 7)), temperature=0.7, top_k=4, top_p=0.8),
    rejects=[bad(logits=np.array([[0.0, np.nan]])), bad(logits=np.array([[-np.inf, -np.inf]]))],
)
def next_token_probabilities(
    logits: Float[Array, "... vocabulary"], *, temperature: Annotated[float, at_least(0)] = 1.0, top_k: Annotated[int, at_least(1)] | None = None,
    top_p: Annotated[float, probability] | None = None,
) -> Float[Array, "... vocabulary"]:  # fmt: skip
    """The distribution to draw from, over the last axis, in float64.

    temperature divides the logits; 0 puts all mass on the largest. top_k drops logits below the k-th largest, keeping ties
    with it. top_p keeps the smallest set of most probable tokens whose mass reaches p, always at least one.
    Raises ValueError for logits of which none is finite, and for NaN.
    """
    logits = logits.astype(np.float64)
    if np.isnan(logits).any() or not np.isfinite(logits.max(axis=-1)).all():
        raise invalid("logits", got="NaN, +inf or nothing but -inf", wants="at least one finite logit in each row")
    if temperature == 0:
        return np.eye(logits.shape[-1])[logits.argmax(axis=-1)]
    with np.errstate(over="ignore"):                         # in the cold all but the largest may become -inf
        logits = (logits - logits.max(axis=-1, keepdims=True)) / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        smallest_kept = np.partition(logits, -top_k, axis=-1)[..., -top_k, None]
        logits = np.where(logits >= smallest_kept, logits, -np.inf)
    probabilities, _ = softmax(logits)
    if top_p is not None and top_p < 1:
        order = np.argsort(-probabilities, axis=-1, kind="stable")
        ranked = np.take_along_axis(probabilities, order, axis=-1)
        needed = np.cumsum(ranked, axis=-1) - ranked < top_p  # the mass before a token has not reached p yet
        kept = np.zeros_like(needed)
        np.put_along_axis(kept, order, needed, axis=-1)
        probabilities = np.where(kept, probabilities, 0.0)
    return probabilities / probabilities.sum(axis=-1, keepdims=True)


@checked
def generate(
    step: Callable, *, prompt_ids: Int[Array, "tokens"], num_tokens: Annotated[int, at_least(0)], rng: np.random.Generator,
    temperature: Annotated[float, at_least(0)] = 1.0, top_k: Annotated[int, at_least(1)] | None = None,
    top_p: Annotated[float, probability] | None = None, context: Annotated[int, at_least(1)] | None = None,
    vocabulary_size: Annotated[int, at_least(1)] | None = None,
) -> Iterator[int]:  # fmt: skip
    """Yield num_tokens token ids that continue prompt_ids.

    step as above. temperature, top_k and top_p as in next_token_probabilities. context, in tokens, is the longest text that
    the model can read, None where there is no such thing; vocabulary_size bounds the ids of the prompt. All settings are
    checked at once, before the first token is asked for.
    Raises ValueError for ids outside the vocabulary.
    """
    text = prompt_ids.tolist()
    if min(text) < 0 or (vocabulary_size is not None and max(text) >= vocabulary_size):
        wants = "ids of at least 0" if vocabulary_size is None else f"ids from 0 to {vocabulary_size - 1}"
        raise invalid("prompt_ids", got=f"ids from {min(text)} to {max(text)}", wants=wants)

    def draw(logits: Array) -> Array:
        if temperature == 0 and np.isfinite(logits).all():
            return logits.argmax(axis=-1)                    # nothing to draw
        (probabilities,) = next_token_probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p)
        return rng.choice(len(probabilities), size=1, p=probabilities)

    def written() -> Iterator[int]:
        window, left = text if context is None else text[-context:], num_tokens
        while left > 0:
            some = left if context is None else min(left, context - len(window) + 1)
            for token, _ in islice(tokens(step, np.array([window]), choose=draw), some):
                text.append(int(token[0]))
                yield text[-1]
            left -= some
            window = text[-max(1, (context or 0) // 2) :]    # the newer half, which is read again

    return written()


def without_cache(model: Callable) -> Callable:
    """The step of a model that has none: ``model(ids=ids) -> logits, backward`` reads the whole text so far, every time."""

    def step(ids: Array, seen: Array | None) -> tuple[Array, Array]:
        seen = ids if seen is None else np.concatenate([seen, ids], axis=-1)
        return model(ids=seen)[0][..., -ids.shape[-1] :, :], seen

    return step
