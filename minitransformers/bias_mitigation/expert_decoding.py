"""Experts at decoding: a large model writes, and two small ones say which way to lean.

One small model was trained on text as it should be, the other on text as it should not be. What the first finds likelier than the
second is raised, in logits, by a multiple of their difference. The large model is not changed, and need not even be one's own: its
logits are enough. It alone says which tokens come into question, so that the small ones cannot bring in what it finds absurd.

Source: Liu et al. 2021 (DExperts), arXiv:2105.03023, section 2. The order (first the nucleus of the base, then the sum) and that a
missing expert is the base are those of the authors' code. z are logits, V the nucleus of the base.

    V = the tokens that top-p keeps of z_base                (1)
    z = z_base + strength (z_expert - z_anti) on V, -inf elsewhere   (2)
    out = log softmax(z)                                     (3)
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.basics.log_softmax import log_softmax
from minitransformers.foundation import at_least, bad, example, invalid, procedure
from minitransformers.models.sampling import probability, top_p


@procedure(
    title="DExperts",
    source="Liu et al. 2021, arXiv:2105.03023, section 2",
    example=lambda rng: example(
        rng.normal(size=(2, 3, 7)), rng.integers(7, size=(2, 3, 4)), expert=rng.normal(size=(2, 3, 7)), anti_expert=rng.normal(size=(2, 3, 7)), strength=0.7
    ),
    rejects=[
        bad(expert=np.ones((2, 3, 6))), bad(anti_expert=np.full((2, 3, 7), -np.inf)), bad(expert=np.full((2, 3, 7), np.nan)),
        bad("expert", expert=None, anti_expert=None), bad(logits=np.full((2, 3, 7), -np.inf)),
    ],
)  # fmt: skip
def expert_decoding(
    logits: Float[Array, "*batch vocabulary"], ids: Int[Array, "*batch seen"] | None = None, *, expert: Float[Array, "*batch vocabulary"] | None = None,
    anti_expert: Float[Array, "*batch vocabulary"] | None = None, strength: Annotated[float, at_least(0)] = 2.0,
    p: Annotated[float, probability] = 0.9,
) -> Float[Array, "*batch vocabulary"]:  # fmt: skip
    """Log-probabilities of the next token, leaning to the expert and away from the other: a processor (see sampling).

    expert and anti_expert are the logits of two models for the same text, of which one may be missing: then the base takes its
    place. strength is dimensionless, 0 is the base's nucleus. p from 0 to 1, 1 keeps all. ids are not looked at. To have the
    models asked at each step, see asking in self_debias.
    Raises ValueError where both are missing, where an expert's logit is not finite for a token that the base keeps, and for logits
    of the base of which none is finite, or NaN.
    """
    if expert is None and anti_expert is None:
        raise invalid("expert", got="neither expert nor anti_expert", wants="at least one of them")
    kept = np.isfinite(top_p(logits, p=p))                   # (1)
    for name, other in (("expert", expert), ("anti_expert", anti_expert)):
        if other is not None and not np.isfinite(other[kept]).all():
            raise invalid(name, got="NaN or infinity for a token that the base keeps", wants="finite logits there")
    towards, away = (np.where(kept, logits if other is None else other, 0) for other in (expert, anti_expert))
    lean = (strength * (towards - away)).astype(logits.dtype)
    leaning = np.where(kept, logits, -np.inf).astype(logits.dtype) + lean  # (2)
    return log_softmax(leaning)[0]                           # (3)
