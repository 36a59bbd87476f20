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

The best that a live text can hope for in (4) is that all its other tokens are certain: log P(y), which is negative, over the
largest lp of the lengths that are left.
"""

from collections.abc import Callable
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
    rejects=[bad(end=7), bad(ids=np.zeros(0, int)), bad(step=lambda ids, state: (np.full((*ids.shape, 7), np.nan), state))],
)
def beam_search(
    step: Callable, ids: Int[Array, "positions"], *, num_tokens: Annotated[int, at_least(1)], num_beams: Annotated[int, at_least(1)] = 4,
    end: Annotated[int, at_least(0)] | None = None, penalty: Callable = length_penalty,
) -> list[Hypothesis]:  # fmt: skip
    """The best continuations of a prompt, at most num_beams of them, the best first.

    step(ids, state) -> logits, state is that of any model (kv_cache); each array in its state has the texts along its first axis.
    num_tokens is the longest that a continuation may be, its end included; end the token that ends one, None for no such token:
    then the longest are compared. ``penalty(length)`` is (3); Hugging Face's is length**exponent.
    Ties go to the text that was better before, then to the smaller id. One beam is the greedy choice.
    Raises ValueError where end is no id of the model's, and where a step gives no finite logit or NaN.
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
        continued = totals[:, None] + log_softmax(logits.astype(np.float64))[0]  # (1)
        vocabulary = continued.shape[-1]
        best = np.argsort(-continued, axis=None, kind="stable")[: 2 * num_beams]  # at least num_beams of them do not end
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
        if not live or length == num_tokens or (len(finished) == num_beams and _hopeless(totals, length, num_tokens, penalty, finished[-1].score)):
            break
        logits, state = step(np.array([text[-1:] for text in live]), rows_of(state, parents))
        logits = logits[:, -1]
    if live and length == num_tokens:                        # cut off, not ended
        finished += [Hypothesis(text, float(total) / penalty(length), float(total), False) for text, total in zip(live, totals, strict=True)]
    return sorted(finished, key=lambda found: -found.score)[:num_beams]


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
