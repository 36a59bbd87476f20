"""Beam search: of all texts that a model could write, look for the most probable, a few at a time.

The most probable next token can lead into a corner. So the num_beams most probable texts so far are kept, each is continued by
every token, and the best of all continuations are kept again. Longer texts have lower probabilities: finished ones are compared
after a division that grows with their length. Sources: Graves 2012, arXiv:1211.3711, section 2.5; Wu et al. 2016,
arXiv:1609.08144, section 7, eq. 14; Vaswani et al. 2017, arXiv:1706.03762, section 6.1 (4 beams, exponent 0.6). Differs from
Wu et al.: no coverage penalty, and no pruning by distance.

    log P(y) = sum over t of log softmax(logits_t)[y_t]      (1)
    score(y) = log P(y) / lp(|y|), |y| counting the end      (2)
    lp(n) = ((5 + n) / 6)^exponent                           (3)
    stop, where no live text can beat the worst of num_beams finished ones   (4)

What ``processors`` (see sampling) make of log softmax is what (1) then sums: a token that they forbid, -inf, is never chosen, and a
text that has no token left is dropped. The others keep what the model gives them: nothing is divided by what is left.

The best that a live text can hope for in (4) is that all its other tokens are certain: log P(y), which is negative, over the
largest lp of the lengths that are left.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Int
from numpy import ndarray as Array

from minitransformers.attention.cache import KeyValueCache
from minitransformers.basics.log_softmax import log_softmax
from minitransformers.efficient.kv_cache import prefill
from minitransformers.foundation import at_least, bad, example, invalid, procedure, trees


class Hypothesis(NamedTuple):
    """A text that was written, its end included: its score, the log-probability in nats, and whether it came to an end."""

    ids: list[int]
    score: float
    log_probability: float
    ended: bool


def length_penalty(length: int, *, exponent: float = 0.6) -> float:
    """What the log-probability of a text of so many tokens is divided by. 0: nothing, and short texts win."""
    return ((5 + length) / 6) ** exponent                    # (3)


@procedure(
    title="Beam search",
    source="Graves 2012, arXiv:1211.3711, section 2.5; Wu et al. 2016, arXiv:1609.08144, section 7",
    example=lambda rng: _example(rng),
    rejects=[
        bad(end=7), bad(ids=np.zeros(0, int)), bad(step=lambda ids, state: (np.full((*ids.shape, 7), np.nan), state)),
        bad(processors=(lambda log_p, ids: log_p - np.inf,)), bad("processors.1", processors=(lambda log_p, ids: log_p, lambda log_p, ids: log_p * np.nan)),
    ],
)  # fmt: skip
def beam_search(
    step: Callable, ids: Int[Array, "positions"], *, num_tokens: Annotated[int, at_least(1)], num_beams: Annotated[int, at_least(1)] = 4,
    end: Annotated[int, at_least(0)] | None = None, penalty: Callable = length_penalty, processors: Sequence[Callable] = (),
) -> list[Hypothesis]:  # fmt: skip
    """The best continuations of a prompt, at most num_beams of them, the best first.

    step(ids, state) -> logits, state is that of any model (kv_cache); each array in its state has the texts along its first axis.
    num_tokens is the longest that a continuation may be, its end included; end the token that ends one, None for no such token:
    then the longest are compared. ``penalty(length)`` is (3); Hugging Face's is length**exponent. Each of processors,
    ``process(log_probabilities, ids)``, works on what the one before it made; ids are those of the prompt and the text so far,
    a row for each beam.
    Ties go to the text that was better before, then to the smaller id. One beam is the greedy choice.
    Raises ValueError where end is no id of the model's, where a step gives no finite logit or NaN, and where processors give NaN or
    +inf, or leave no text at all.
    """
    return search(step, ids, num_tokens=num_tokens, num_beams=num_beams, end=end, penalty=penalty, processors=processors)


def search(
    step: Callable, ids: Array, *, num_tokens: int, num_beams: int, end: int | None, penalty: Callable, processors: Sequence[Callable],
    rank: Callable = lambda continued, length: continued, chosen: Callable = lambda texts, length: None,
) -> list[Hypothesis]:  # fmt: skip
    """beam_search, of which two things are open: ``rank(continued, length)`` makes of the log-probabilities of all continuations what
    they are chosen by, and ``chosen(texts, length)`` is told which live texts were.
    """
    past = prefill(step, ids[None])
    logits, state = past.logits, past.state
    if end is not None and end >= logits.shape[-1]:
        raise invalid("end", got=end, wants=f"an id of the model's, 0 to {logits.shape[-1] - 1}")
    live: list[list[int]] = [[]]
    finished: list[Hypothesis] = []
    totals = np.zeros(1)
    for length in range(1, num_tokens + 1):
        if np.isnan(logits).any() or not np.isfinite(logits.max(axis=-1)).all():
            raise invalid("step", got="logits that are NaN, or all -inf", wants="at least one finite logit for each text")
        log_p = _processed(log_softmax(logits.astype(np.float64))[0], ids, live, processors)
        continued = totals[:, None] + log_p                  # (1)
        vocabulary = continued.shape[-1]
        best = np.argsort(-rank(continued, length), axis=None, kind="stable")[: 2 * num_beams]  # at least num_beams of them do not end
        texts: list[list[int]] = []
        parents, sums = [], []
        for place in best:
            parent, token = divmod(int(place), vocabulary)
            total = float(continued[parent, token])
            if total == -np.inf:
                break
            if token == end:
                finished.append(Hypothesis([*live[parent], token], total / penalty(length), total, True))  # (2)
            elif len(texts) < num_beams:
                texts.append([*live[parent], token])
                parents.append(parent)
                sums.append(total)
        finished = sorted(finished, key=lambda found: -found.score)[:num_beams]
        live, totals = texts, np.array(sums)
        if not live and not finished:
            raise invalid("processors", got="-inf for every token of every text", wants="a token that is left, such as the end")
        chosen(live, length)
        if not live or length == num_tokens or (len(finished) == num_beams and _hopeless(totals, length, num_tokens, penalty, finished[-1].score)):
            break
        logits, state = step(np.array([text[-1:] for text in live]), rows_of(state, parents))
        logits = logits[:, -1]
    if live and length == num_tokens:                        # cut off, not ended
        finished += [Hypothesis(text, float(total) / penalty(length), float(total), False) for text, total in zip(live, totals, strict=True)]
    return sorted(finished, key=lambda found: -found.score)[:num_beams]


def _processed(log_p: Array, ids: Array, live: list[list[int]], processors: Sequence[Callable]) -> Array:
    """The log-probabilities after all processors, which see the prompt and what was written after it."""
    texts = np.concatenate([np.tile(ids, (len(live), 1)), np.array(live, int).reshape(len(live), -1)], axis=1) if processors else None
    for place, process in enumerate(processors):
        log_p = process(log_p, texts)
        if not (log_p < np.inf).all():                       # a NaN is not smaller, either
            raise invalid(f"processors.{place}", got="NaN or +inf", wants="log-probabilities, -inf for what must not come")
    return log_p


def _hopeless(totals: Array, length: int, longest: int, penalty: Callable, worst: float) -> bool:
    """Whether no live text can beat the worst finished one, even if all its other tokens were certain. lp goes up or down, not both."""
    return float(totals.max()) / max(penalty(length + 1), penalty(longest)) <= worst  # (4)


def rows_of(state: Any, rows: list[int]) -> Any:
    """The state of some of the texts, in another order or several times: what a beam that is continued twice needs.

    Every array of a state has the texts along its first axis. A cache gets a new room, as two that share one are continued.
    """
    if isinstance(state, KeyValueCache):
        return state._replace(keys=state.keys[rows], values=state.values[rows], room=None, end=0)
    if isinstance(state, np.ndarray) and state.ndim:
        return state[rows]
    children = trees.children(state)
    return trees.like(state, [rows_of(child, rows) for _, child in children]) if children else state


def _example(rng: np.random.Generator):
    table = 2 * rng.normal(size=(7, 7))
    return example(lambda ids, state: (table[ids], state), rng.integers(7, size=3), num_tokens=5, num_beams=3, end=2)
