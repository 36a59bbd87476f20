"""Left padding: prompts of unequal length are continued together, and each as if it were alone.

The next tokens of all texts have to stand in one column, so the shorter prompts are moved to the right, behind padding. Three
things then have to be right, and each is a common mistake: nobody may look at padding, a text's positions begin where it
begins, and what is drawn for one text does not depend on the others. pad is how many places of padding a text has.

    key_t is seen where t >= pad                             (1)
    position_t = max(t - pad, 0)                             (2)

Position and mask go to any step that takes them. A model whose positions are distances alone (RoPE, ALiBi, T5's) needs no
positions: a text that stands further to the right has the same distances. One with a table of positions does. A recurrence
reads whatever comes, padding too: it has no mask, and prompts of one length are what it can be given together. Source: none is
known that came first; Hugging Face's transformers pads and counts in this way.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Int
from numpy import ndarray as Array

from minitransformers.efficient.kv_cache import tokens
from minitransformers.foundation import at_least, bad, checked, example, invalid, procedure
from minitransformers.models.decoding import check_prompt, drawing, newer_half
from minitransformers.models.sampling import probability
from minitransformers.models.stopping import checked_stops, completed


class LeftPadded(NamedTuple):
    """Texts that end in one column, and how many places of padding stand in front of each."""

    ids: Int[Array, "texts positions"]
    padding: Int[Array, " texts"]


@procedure(
    title="Left padding",
    source="Wolf et al. 2020 (transformers), arXiv:1910.03771",
    example=lambda rng: example([rng.integers(9, size=length) for length in (3, 5, 1)]),
    rejects=[bad(prompts=[]), bad(prompts=[np.array([1]), np.zeros(0, int)]), bad(prompts=[np.array([[1]])]), bad(prompts=[np.array([0.5])])],
)
def left_pad(prompts: Sequence[Int[Array, "_"]], *, pad: Annotated[int, at_least(0)] = 0) -> LeftPadded:
    """One array of several texts, the shorter ones behind as many ids ``pad`` as they lack: any id of the model's will do.

    Raises ValueError where there is no text, or one of no tokens: there would be nothing to continue, and a row of padding.
    """
    check_prompts(prompts)
    longest = max(map(len, prompts))
    padding = np.array([longest - len(prompt) for prompt in prompts])
    rows = [np.concatenate([np.full(some, pad), prompt]) for some, prompt in zip(padding, prompts, strict=True)]
    return LeftPadded(np.stack(rows), padding)


def check_prompts(prompts: Sequence[Array], vocabulary_size: int | None = None) -> None:
    """Raise ValueError where there is no text, where one has no tokens, and where one has ids that no vocabulary has."""
    if len(prompts) == 0:
        raise invalid("prompts", got="none", wants="at least one text")
    for place, prompt in enumerate(prompts):
        if not isinstance(prompt, np.ndarray) or prompt.ndim != 1 or prompt.dtype.kind not in "iu":
            raise invalid(f"prompts.{place}", got=repr(prompt), wants="an array of ids, of one axis")
        if len(prompt) == 0:
            raise invalid(f"prompts.{place}", got="a text of no tokens", wants="at least one: its row would be nothing but padding")
        check_prompt(f"prompts.{place}", prompt, vocabulary_size)


def left_padded(step: Callable, padding: Int[Array, " texts"]) -> Callable:
    """``step(ids, state) -> logits, state`` of texts behind so much padding, for prefill, decode and all that takes a step.

    step is called with two more keywords: mask (texts, 1, 1, seen), True where a key may be seen, and positions (texts, new).
    """

    def padded(ids: Array, past: tuple[Any, int] | None) -> tuple[Array, tuple[Any, int]]:
        state, seen = (None, 0) if past is None else past
        end = seen + ids.shape[-1]
        mask = np.arange(end) >= padding[:, None, None, None]  # (1)
        positions = np.maximum(np.arange(seen, end) - padding[:, None], 0)  # (2)
        logits, state = step(ids, state, mask=mask, positions=positions)
        return logits, (state, end)

    return padded


def by_distance(step: Callable) -> Callable:
    """A step whose model knows positions by their distances alone, in the form that left_padded calls: they are left out."""
    return lambda ids, state, *, mask, positions: step(ids, state, mask=mask)


def of_one_length(step: Callable) -> Callable:
    """A step that takes neither mask nor positions, in the form that left_padded calls: it raises ValueError where there is padding.

    For recurrences, which would read it, and for decoders that start with one token and have their sources by themselves.
    """

    def unpadded(ids: Array, state: Any, *, mask: Array, positions: Array) -> tuple[Array, Any]:
        if not mask.all():
            raise invalid("prompts", got="texts of unequal length", wants="one length, as the step takes no mask")
        return step(ids, state)

    return unpadded


def sliding_apart(step: Callable, *, context: int) -> Callable:
    """A step whose texts may outgrow the context, in the form that left_padded calls: each slides when it is full, as it does alone.

    When the window of a text is full, its older half is let go; then all are padded anew and read again, those that are not full
    as they were. So a batch costs as many readings as its texts have slides at different times. The step that is wrapped must take
    mask and positions. Raises ValueError for a prompt that is longer than the context.
    """

    def slid(ids: Array, past: tuple[list[Array], Callable | None, Any] | None, *, mask: Array, positions: Array) -> tuple[Array, Any]:
        new = ids.shape[-1]
        windows, again, state = ([row[:0] for row in ids], None, None) if past is None else past
        pairs = zip(windows, ids, mask[:, 0, 0, -new:], strict=True)
        windows = [np.concatenate([window, row[real]]) for window, row, real in pairs]
        if max(map(len, windows)) <= context:
            logits, state = again(ids, state) if again else step(ids, state, mask=mask, positions=positions)
        elif new > 1:
            raise invalid("prompts", got=f"a text of {max(map(len, windows))} tokens", wants=f"at most {context}, as many as the context")
        else:
            windows = [newer_half(window, context) if len(window) > context else window for window in windows]
            padded = left_pad(windows)
            again = left_padded(step, padded.padding)
            logits, state = again(padded.ids, None)
        return logits[:, -new:], (windows, again, state)

    return slid


@checked
def generate_batch(
    step: Callable, *, prompts: Sequence[Int[Array, "_"]], num_tokens: Annotated[int, at_least(0)], rng: np.random.Generator,
    processors: Sequence[Callable] = (), temperature: Annotated[float, at_least(0)] = 1.0, top_k: Annotated[int, at_least(1)] | None = None,
    top_p: Annotated[float, probability] | None = None, stop: Sequence[Sequence[int]] = (), context: Annotated[int, at_least(1)] | None = None,
    vocabulary_size: Annotated[int, at_least(1)] | None = None,
) -> list[list[int]]:  # fmt: skip
    """The continuations of several prompts, each of at most num_tokens and ending before a stop sequence: those of generate alone.

    ``step(ids, state, mask=..., positions=...) -> logits, state``: gpt2_step as it is, by_distance(llama_step), of_one_length where
    a step takes no mask, sliding_apart(step, context=...) where texts may outgrow what the model can read. The i-th text is drawn with the i-th of the generators that ``rng.spawn(len(prompts))`` makes, so it is
    the same in every company. Processors see one text each, without its padding. The other settings are generate's, and until's.
    Raises ValueError as these do, and where a text would outgrow the context, if one is given: nothing is let go unasked.
    """
    check_prompts(prompts, vocabulary_size)
    stops = checked_stops(stop)
    longest = max(map(len, prompts))
    if context is not None and longest + num_tokens - 1 > context:
        raise invalid("num_tokens", got=f"{num_tokens} after {longest}", wants=f"at most {context - longest + 1}, for a context of {context}")
    draw = drawing(processors=processors, temperature=temperature, top_k=top_k, top_p=top_p)
    texts, generators = [prompt.tolist() for prompt in prompts], rng.spawn(len(prompts))
    written: list[list[int]] = [[] for _ in prompts]
    ended = [num_tokens == 0] * len(prompts)

    def choose(logits: Array) -> Array:
        for row, text in enumerate(texts):
            if ended[row]:
                continue                                     # computed on with the others, and looked at by nobody
            text.append(draw(logits[row], text, generators[row]))
            written[row].append(text[-1])
            if size := completed(written[row], stops):
                del written[row][-size:]
                ended[row] = True
        return np.array([text[-1] for text in texts])

    ids, padding = left_pad(prompts)
    steps = tokens(left_padded(step, padding), ids, choose=choose)
    for _ in range(num_tokens):
        if all(ended):
            break
        next(steps)
    return written
