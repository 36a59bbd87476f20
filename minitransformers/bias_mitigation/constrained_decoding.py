"""Banned sequences: a text is written token by token, and some sequences of tokens must not come up in it.

A single token is banned by a logit of -inf. A sequence is banned at its last token, and only where the others stand before it. Looking
through all sequences at every step is not needed: an automaton reads each token once and knows the longest piece of text that could
be the beginning of a banned sequence. That a shorter one ends inside a longer one it knows through its suffix links.

Source: Aho and Corasick 1975, doi:10.1145/360825.360855; as a limit on a beam, Post and Vilar 2018, arXiv:1804.06609, and Anderson et al.
2017, arXiv:1612.00576. Differs from the latter two: these ask for words, here words are kept out. Building costs (sum of lengths)
times vocabulary numbers, a token one look-up. A state is a piece of text that begins a sequence, state 0 the empty one; link(s) is the
longest proper suffix of s that is a state as well.

    next[s, t] = the state s t, if there is one              (1)
    next[s, t] = next[link(s), t] otherwise; 0 where s is 0  (2)
    accept[s] = s is a banned sequence, or accept[link(s)]   (3)
    state = next[state, t], for the tokens of the text       (4)
    log p(t) = -inf where accept[next[state, t]]             (5)

A text (a string) is banned by banning every sequence of tokens that spells it:

    spellings(w) = {(t, *rest): w = t + r, rest a spelling of r}   (6)
"""

from collections import deque
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, example, invalid, procedure


class BannedSequences(NamedTuple):
    """The automaton: where each token leads from each state, and in which states a banned sequence has just ended."""

    next: Int[Array, "states vocabulary"]
    accept: Bool[Array, "states"]


@procedure(
    title="Automaton of banned sequences",
    source="Aho and Corasick 1975, doi:10.1145/360825.360855",
    example=lambda rng: example([[1, 2, 3], [2, 3], [3, 0]], vocabulary=5, end=4),
    rejects=[
        bad(sequences=[[1], []]), bad(sequences=[[1, 5]]), bad(sequences=[[-1]]), bad("sequences", sequences=[[1, 4]]), bad(end=5),
        bad(sequences=["word"]), bad(sequences=[[0.5]]),
    ],
)  # fmt: skip
def banned_sequences(
    sequences: Sequence[Sequence[int]], *, vocabulary: Annotated[int, at_least(1)], end: Annotated[int, at_least(0)] | None = None
) -> BannedSequences:
    """The automaton that finds any of the sequences, each of one token or more, however they overlap. None of them: it bans nothing.

    vocabulary is the number of tokens. end, where it is given, is the token that ends a text: no sequence may hold it, so that a
    text can always end.
    Raises ValueError for an empty sequence, an id that is none, and a sequence that holds the end.
    """
    if end is not None and end >= vocabulary:
        raise invalid("end", got=end, wants=f"an id from 0 to {vocabulary - 1}")
    table, accept, links = [np.zeros(vocabulary, int)], [False], [0]  # nothing leads to state 0 but what leads nowhere else
    for place, sequence in enumerate(sequences):
        if len(sequence) == 0:
            raise invalid(f"sequences.{place}", got="no token", wants="at least one: nothing is everywhere")
        state = 0
        for token in sequence:
            if not isinstance(token, (int, np.integer)) or not 0 <= token < vocabulary or token == end:
                wants = f"ids from 0 to {vocabulary - 1}" + ("" if end is None else f", without the end, {end}")
                raise invalid(f"sequences.{place}", got=repr(token), wants=wants)
            if not table[state][token]:
                table[state][token] = len(table)             # (1)
                table.append(np.zeros(vocabulary, int))
                accept.append(False)
                links.append(0)
            state = int(table[state][token])
        accept[state] = True
    waiting = deque([0])
    while waiting:                                           # the shorter states first: a link leads to a shorter one
        state = waiting.popleft()
        beyond = table[links[state]] if state else np.zeros(vocabulary, int)
        own = table[state] != 0
        for last in np.flatnonzero(own):
            longer = int(table[state][last])
            links[longer] = int(beyond[last])
            accept[longer] |= accept[links[longer]]          # a banned sequence may end inside a longer beginning  (3)
            waiting.append(longer)
        table[state] = np.where(own, table[state], beyond)   # (2)
    return BannedSequences(np.array(table), np.array(accept))


@procedure(
    title="Ban",
    source="Anderson et al. 2017, arXiv:1612.00576, section 3",
    example=lambda rng: example(
        rng.normal(size=(2, 3, 5)), np.array([[[3, 0, 1, 2]] * 3, [[1, 2, 2, 3]] * 3]), banned=banned_sequences([[1, 2, 3], [2, 0]], vocabulary=5)
    ),
    rejects=[
        bad(ids=np.full((2, 3, 4), 5)), bad(ids=np.full((2, 3, 4), -1)), bad("ids", ids=None),
        bad("banned", banned=banned_sequences([[1]], vocabulary=6)), bad("banned", banned=BannedSequences(np.full((2, 5), 2), np.zeros(2, bool))),
    ],
)  # fmt: skip
def ban(logits: Float[Array, "*batch vocabulary"], ids: Int[Array, "*batch seen"], *, banned: BannedSequences) -> Float[Array, "*batch vocabulary"]:
    """Logits with -inf for each token that would complete a banned sequence: a processor (see sampling), for beams as well.

    ids are those of the text so far, its prompt included: a sequence may begin in the prompt. One that stands there already is
    not undone. Where no token is left, a row is -inf throughout: in a beam that text is dropped.
    Raises ValueError for ids that have no logit, and for an automaton of another vocabulary.
    """
    size, states = logits.shape[-1], len(banned.accept)
    if banned.next.shape != (states, size) or banned.next.min() < 0 or banned.next.max() >= states:
        raise invalid("banned", got=f"a table of shape {banned.next.shape} and {states} states", wants=f"an automaton of {size} tokens")
    if ids is None:                                          # where another function passes it on
        raise invalid("ids", got=None, wants="the ids of the text so far")
    if ids.min() < 0 or ids.max() >= size:
        raise invalid("ids", got=f"ids from {ids.min()} to {ids.max()}", wants=f"0 to {size - 1}, the last axis of logits")
    state = np.zeros(logits.shape[:-1], int)
    for place in range(max(0, ids.shape[-1] - states), ids.shape[-1]):  # a state is no longer than there are states: older tokens are forgotten
        state = banned.next[state, ids[..., place]]          # (4)
    return np.where(banned.accept[banned.next[state]], -np.inf, logits).astype(logits.dtype)  # (5)


@procedure(
    title="Tokenisations of a text",
    source="Aho and Corasick 1975, doi:10.1145/360825.360855",
    example=lambda rng: example("aba", vocabulary=["a", "b", "ab", "ba", "c"]),
    rejects=[bad(text=""), bad(vocabulary=["a", ""])],
)
def tokenisations(text: str, *, vocabulary: Sequence[str], inside: bool = False) -> list[list[int]]:
    """Every sequence of tokens that spells the text, in the order of the ids; none where no tokens do.

    vocabulary is what each id spells. inside: also those of which the first token begins before the text, and the last ends
    behind it. With all of these banned the text cannot come up in any way. Their number can grow exponentially with the length.
    Raises ValueError for an empty text, and for a token that spells nothing.
    """
    if not text:
        raise invalid("text", got="nothing", wants="at least one character")
    if "" in vocabulary:
        raise invalid("vocabulary", got=f"the token {list(vocabulary).index('')} that spells nothing", wants="at least one character for each")

    def continued(rest: str) -> list[list[int]]:
        if not rest:
            return [[]]
        found = []
        for token, piece in enumerate(vocabulary):
            if rest.startswith(piece):
                found += [[token, *others] for others in continued(rest[len(piece) :])]  # (6)
            elif inside and piece.startswith(rest):
                found.append([token])                        # it ends behind the text
        return found

    if not inside:
        return continued(text)
    found = []
    for token, piece in enumerate(vocabulary):
        for start in range(len(piece)):                      # where the text begins in its first token
            if piece.startswith(text, start):
                found.append([token])
            elif text.startswith(piece[start:]):
                found += [[token, *others] for others in continued(text[len(piece) - start :])]
    return list(map(list, dict.fromkeys(map(tuple, found))))
