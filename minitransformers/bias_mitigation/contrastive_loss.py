"""Contrastive loss of counterfactual pairs: a sentence shall lie nearer to its counterfactual than to any other sentence.

What is left in common when the words of groups are exchanged is the meaning. So a sentence is asked which of the counterfactuals of the
batch is its own; those of other sentences are the wrong answers. It pulls pairs together and keeps different meanings apart, and is the
same choice that a retriever learns, with sentences as queries. The alignment of pairs may be added, with a weight.

Source: Oord, Li and Vinyals 2018, arXiv:1807.03748 (InfoNCE); between sentences and counterfactuals: Cheng et al. 2021 (FairFil),
arXiv:2103.06413. He et al. 2022 (MABEL), arXiv:2210.14975, add alignment; the pairs of their choice are premises and hypotheses.
Costs a product of (pairs, d_model) with its transpose, and two such backward. u, v are the vectors of a pair, w the alignment's weight.

    choice = InfoNCE(u, v), by dense_retriever               (1)
    apart = alignment_loss(u, v)                             (2)
    out = choice + w apart                                   (3)
    du, dv = InfoNCE*(dout) + alignment*(w dout)             (4)
"""

from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.bias_mitigation.alignment_loss import alignment_loss, check_directions
from minitransformers.foundation import Backward, at_least, bad, concept, example, finite, invalid, positive
from minitransformers.long_context.dense_retriever import dense_retriever


@concept(
    title="Contrastive loss of counterfactual pairs",
    source="Cheng et al. 2021 (FairFil), arXiv:2103.06413; He et al. 2022 (MABEL), arXiv:2210.14975",
    example=lambda rng: example(*rng.normal(size=(2, 3, 5)), temperature=0.5, alignment=0.7),
    rejects=[
        bad(sentences=np.eye(3, 5) * [[1], [0], [1]]), bad(counterfactuals=np.zeros((3, 5))),
        bad("sentences", sentences=np.ones((1, 5)), counterfactuals=np.ones((1, 5))),
    ],
)  # fmt: skip
def contrastive_loss(
    sentences: Annotated[Float[Array, "pairs d_model"], finite], counterfactuals: Annotated[Float[Array, "pairs d_model"], finite], *,
    temperature: Annotated[float, positive] = 0.1, alignment: Annotated[float, at_least(0)] = 0.0,
) -> tuple[Any, Backward]:  # fmt: skip
    """Mean cross-entropy, in nats, of choosing each sentence's own counterfactual among all of the batch; plus weighted alignment.

    sentences and counterfactuals hold the two vectors of a pair in the same row. temperature divides the cosines; alignment is the
    weight of alignment_loss.
    Returns out, a scalar of their dtype, and backward: dout -> dsentences, dcounterfactuals.
    Raises ValueError where there are fewer than two pairs, and, naming the pair, for a vector of length 0.
    """
    if len(sentences) < 2:
        raise invalid("sentences", got="one pair", wants="at least two: the others are the wrong answers")
    check_directions(sentences=sentences, counterfactuals=counterfactuals)
    choice, choice_backward = dense_retriever(sentences, counterfactuals, temperature=temperature)  # (1)
    apart, apart_backward = alignment_loss(sentences, counterfactuals)  # (2)
    out = choice + alignment * apart                         # (3)

    def backward(dout):
        du, dv = choice_backward(dout)
        du_apart, dv_apart = apart_backward(alignment * dout)
        return du + du_apart, dv + dv_apart                  # (4)

    return out, backward
