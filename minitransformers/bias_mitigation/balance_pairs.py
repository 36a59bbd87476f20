"""Group balancing: tokens of one set get equal shares of the probability that the set has together.

Where a pronoun comes next, and nothing in the text says which, a model still has its preference. Here the members of a set share what
the set has, evenly: how likely it is that any of them comes is left as it was, and so is every other token. It is a rule about
single tokens at single places. Where the text does say who is meant, it makes the model wrong: when to use it is for the caller to say.

Source: the target of equal shares is that of the equalising loss of Qian et al. 2019, arXiv:1905.12801, here imposed on the distribution
and not trained. S is a set of tokens, |S| how many they are.

    log_p = log softmax(z)                                   (1)
    together = log of the sum over w in S of p_w             (2)
    out_w = together - log |S| for w in S, log_p_w for all others   (3)
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.basics.log_softmax import log_softmax
from minitransformers.compression.counted import check_ids
from minitransformers.foundation import bad, example, invalid, procedure
from minitransformers.models.sampling import check_logits


@procedure(
    title="Group balancing",
    source="Qian et al. 2019, arXiv:1905.12801, imposed on the distribution",
    example=lambda rng: example(rng.normal(size=(2, 3, 7)), rng.integers(7, size=(2, 3, 4)), sets=[[0, 4, 2], [6, 1]]),
    rejects=[
        bad(sets=[[0, 7]]), bad(sets=[[-1, 2]]), bad(sets=[[1, 1]]), bad(sets=[[0, 1], [1, 2]]), bad(sets=[[0, 1], [3]]), bad(sets=[]), bad(logits=np.full((2, 3, 7), -np.inf)), bad(logits=np.full((2, 3, 7), np.nan)),
    ],
)  # fmt: skip
def balance_pairs(
    logits: Float[Array, "*batch vocabulary"], ids: Int[Array, "*batch seen"] | None = None, *, sets: Sequence[Sequence[int]]
) -> Float[Array, "*batch vocabulary"]:
    """Log-probabilities in which the members of each set are equally likely, and each set as likely as before: a processor.

    sets are lists of token ids, two or more in each, one for each group. ids are not looked at.
    Raises ValueError where there is no set or one has fewer than two members, for an id that is no token or stands twice, for
    logits of which none is finite, and for NaN.
    """
    check_logits(logits)
    if not sets:
        raise invalid("sets", got="none", wants="at least one set of tokens")
    for place, members in enumerate(sets):
        if len(members) < 2:
            raise invalid(f"sets.{place}", got=list(members), wants="at least two tokens, one for each group")
    every = [token for members in sets for token in members]
    check_ids("sets", np.array(every), logits.shape[-1])
    if len(set(every)) < len(every):
        raise invalid("sets", got=f"the id {max(every, key=every.count)} twice", wants="each token in one place of one set")
    log_p, _ = log_softmax(logits)                           # (1)
    out = log_p.copy()
    for members in map(list, sets):
        together = np.logaddexp.reduce(log_p[..., members], axis=-1, keepdims=True)  # (2)
        out[..., members] = together - np.log(len(members)).astype(logits.dtype)  # (3)
    return out
