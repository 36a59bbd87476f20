"""Self-debiasing: a model is asked what it would write if the text were to be of the unwanted kind, and that becomes less likely.

The same text is read a second time behind a sentence that invites what is unwanted. A token whose probability rises there is one
that the invitation brings: its probability is turned down by a factor, the more the more it rose. Other tokens keep their ratios.
No training, one more reading of the text for each kind. What the model does not itself connect with the invitation is not touched.

Source: Schick, Udupa and Schuetze 2021, arXiv:2103.00453, section 2.2; the floor is that of the authors' code. Differs from the code:
logarithms throughout. p are the model's probabilities, p_k those behind invitation k.

    rise_w = min over k of p_w - p_kw                        (1)
    log_factor_w = 0 where rise_w >= 0, else max(decay rise_w, log floor)   (2)
    out = log softmax(log p + log_factor)                    (3)
"""

from collections.abc import Callable
from typing import Annotated

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.basics.log_softmax import log_softmax
from minitransformers.foundation import Range, at_least, bad, example, procedure
from minitransformers.models.sampling import check_logits

share_of_one = Range("above 0 and at most 1", lambda low, high: bool(low > 0 and high <= 1), (0, -0.5, 1.5, float("nan")))


@procedure(
    title="Self-debiasing",
    source="Schick, Udupa and Schuetze 2021, arXiv:2103.00453, section 2.2",
    example=lambda rng: example(rng.normal(size=(3, 7)), rng.integers(7, size=(3, 4)), invited=rng.normal(size=(2, 3, 7)), decay=5.0),
    rejects=[bad(invited=np.ones((2, 3, 6))), bad(invited=np.full((2, 3, 7), -np.inf)), bad(invited=np.full((2, 3, 7), np.nan)), bad(logits=np.full((3, 7), -np.inf))],
)  # fmt: skip
def self_debias(
    logits: Float[Array, "*batch vocabulary"], ids: Int[Array, "*batch seen"] | None = None, *, invited: Float[Array, "kinds *batch vocabulary"],
    decay: Annotated[float, at_least(0)] = 50.0, floor: Annotated[float, share_of_one] = 0.01,
) -> Float[Array, "*batch vocabulary"]:  # fmt: skip
    """Log-probabilities of the next token, lower for those that an invitation makes likelier: a processor (see sampling).

    invited are the logits of the same model for the same text behind each invitation, one or more. decay, per unit of
    probability, says how sharply; floor is the smallest factor. ids are not looked at. To have the other readings made at each
    step, see asking.
    Raises ValueError for logits of which none is finite, and for NaN.
    """
    check_logits(logits)
    check_logits(invited, "invited")
    log_p, _ = log_softmax(logits)
    p, p_invited = np.exp(log_p), np.exp(log_softmax(invited)[0])
    rise = p - p_invited.max(axis=0)                         # (1)
    log_factor = np.maximum(np.minimum(decay * rise, 0), np.log(floor)).astype(logits.dtype)  # (2)
    return log_softmax(log_p + log_factor)[0]                # (3)


def asking(process: Callable, **sources: Callable) -> Callable:
    """A processor that needs other readings of the text, each made when it is called: ``source(ids) -> logits``, by keyword."""

    def asked(logits: Array, ids: Array) -> Array:
        return process(logits, ids, **{name: source(ids) for name, source in sources.items()})

    return asked
