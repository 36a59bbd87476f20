"""Decoding: writing with any model that has a step, one token at a time, each drawn from what the model expects next.

    step(ids, state) -> logits, state                       ids (1, new); state is None at the start of a text

A step carries what the model needs of the past (keys and values for attention, a state for a recurrence), so a token costs
one position instead of a whole window. A model with a table of positions cannot see past its context: when the window is
full, its older half is let go and the rest is read again. Decoding with and without a cache sees the same windows, so it
gives the same logits.

What is done to the logits before a draw is a row of functions (sampling): ``processors`` first, in their order, and then
temperature, top-k and top-p, which have keywords of their own, because nearly everybody wants them.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Annotated

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.basics.softmax import softmax
from minitransformers.efficient.kv_cache import tokens
from minitransformers.foundation import at_least, bad, checked, example, invalid, procedure
from minitransformers.models import sampling
from minitransformers.models.sampling import check_logits, probability


def _row(temperature: float, top_k: int | None, top_p: float | None) -> Iterator[Callable]:
    """The functions that the three keywords are short for."""
    if temperature != 1:
        yield partial(sampling.temperature, value=temperature)
    if top_k is not None:
        yield partial(sampling.top_k, k=top_k)
    if top_p is not None:
        yield partial(sampling.top_p, p=top_p)


@procedure(
    title="Next-token probabilities",
    source="Fan et al. 2018, arXiv:1805.04833 (top-k); Holtzman et al. 2020, arXiv:1904.09751 (top-p)",
    example=lambda rng: _example(rng),
    rejects=[
        bad(logits=np.array([[0.0, np.nan]])), bad(logits=np.array([[-np.inf, -np.inf]])), bad(processors=(lambda logits, ids: logits - np.inf,)),
        bad("ids", ids=None),
    ],
)  # fmt: skip
def next_token_probabilities(
    logits: Float[Array, "*batch vocabulary"], ids: Int[Array, "*batch seen"] | None = None, *, processors: Sequence[Callable] = (),
    temperature: Annotated[float, at_least(0)] = 1.0, top_k: Annotated[int, at_least(1)] | None = None,
    top_p: Annotated[float, probability] | None = None,
) -> Float[Array, "*batch vocabulary"]:  # fmt: skip
    """The distribution to draw from, over the last axis, in float64.

    Each of processors, ``process(logits, ids) -> logits``, works on what the one before it made; ids are those of the text so
    far, for those that look at them. Then temperature, top_k and top_p do what the processors of these names do, in this order.
    Raises ValueError for logits of which none is finite, and for NaN, whoever made them.
    """
    logits = logits.astype(np.float64)
    check_logits(logits)
    for place, process in enumerate((*processors, *_row(temperature, top_k, top_p))):
        logits = process(logits, ids)
        check_logits(logits, f"processors.{place}")
    return softmax(logits)[0]


def drawing(**settings) -> Callable:
    """``draw(logits, text, rng) -> the next token``, for logits (vocabulary,) and the ids of the text so far; settings as above."""

    def draw(logits: Array, text: list[int], rng: np.random.Generator) -> int:
        if settings["temperature"] == 0 and not settings["processors"] and np.isfinite(logits).all():
            return int(logits.argmax())                      # nothing to draw
        probabilities = next_token_probabilities(logits, np.array(text) if settings["processors"] else None, **settings)
        return int(rng.choice(len(probabilities), p=probabilities))

    return draw


@checked
def generate(
    step: Callable, *, prompt_ids: Int[Array, "tokens"], num_tokens: Annotated[int, at_least(0)], rng: np.random.Generator,
    processors: Sequence[Callable] = (), temperature: Annotated[float, at_least(0)] = 1.0, top_k: Annotated[int, at_least(1)] | None = None,
    top_p: Annotated[float, probability] | None = None, context: Annotated[int, at_least(1)] | None = None,
    vocabulary_size: Annotated[int, at_least(1)] | None = None,
) -> Iterator[int]:  # fmt: skip
    """Yield num_tokens token ids that continue prompt_ids; fewer where a reader stops (see stopping).

    step as above. processors, temperature, top_k and top_p as in next_token_probabilities. context, in tokens, is the longest
    text that the model can read, None where there is no such thing; vocabulary_size bounds the ids of the prompt. All settings
    are checked at once, before the first token is asked for.
    Raises ValueError for ids outside the vocabulary.
    """
    text = prompt_ids.tolist()
    check_prompt("prompt_ids", prompt_ids, vocabulary_size)
    draw = drawing(processors=processors, temperature=temperature, top_k=top_k, top_p=top_p)

    def written() -> Iterator[int]:
        def choose(logits: Array) -> Array:
            text.append(draw(logits[0], text, rng))
            return np.array(text[-1:])

        ids, read = (prompt_ids, step) if context is None else (prompt_ids[-context:], sliding(step, context=context))
        for _ in islice(tokens(read, ids[None], choose=choose), num_tokens):
            yield text[-1]

    return written()


def check_prompt(name: str, ids: Array, vocabulary_size: int | None) -> None:
    """Raise ValueError for ids that no vocabulary has, or not this one."""
    if ids.min() < 0 or (vocabulary_size is not None and ids.max() >= vocabulary_size):
        wants = "ids of at least 0" if vocabulary_size is None else f"ids from 0 to {vocabulary_size - 1}"
        raise invalid(name, got=f"ids from {ids.min()} to {ids.max()}", wants=wants)


def sliding(step: Callable, *, context: int) -> Callable:
    """A step whose texts may outgrow the context: when a window is full, its older half is let go and the newer one is read again.

    All texts of a batch are of one length; where they are not, sliding_apart in left_padding is what is wanted.
    """

    def slid(ids: Array, past: tuple[Array, object] | None) -> tuple[Array, tuple[Array, object]]:
        window, state = (ids[..., :0], None) if past is None else past
        window = np.concatenate([window, ids], axis=-1)
        if window.shape[-1] <= context:
            logits, state = step(ids, state)
        else:
            window = newer_half(window, context)
            logits, state = step(window, None)
        return logits[..., -ids.shape[-1] :, :], (window, state)

    return slid


def newer_half(window: Array, context: int) -> Array:
    """What stays of a window that is full."""
    return window[..., -max(1, context // 2) :]


def without_cache(model: Callable) -> Callable:
    """The step of a model that has none: ``model(ids=ids) -> logits, backward`` reads the whole text so far, every time."""

    def step(ids: Array, seen: Array | None) -> tuple[Array, Array]:
        seen = ids if seen is None else np.concatenate([seen, ids], axis=-1)
        return model(ids=seen)[0][..., -ids.shape[-1] :, :], seen

    return step


def _example(rng: np.random.Generator):
    processors = (partial(sampling.repetition_penalty, penalty=1.3), partial(sampling.min_p, p=0.02))
    return example(rng.normal(size=(2, 7)), rng.integers(7, size=(2, 3)), processors=processors, temperature=0.7, top_k=4, top_p=0.8)
