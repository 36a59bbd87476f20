"""Product of experts: a model learns beside one that knows the shortcut already, and so has no need to learn it.

A second, small model sees only what shall not be used (a word that names a group, say), is trained first and frozen. While the main
model is trained, the two distributions are multiplied, and the product answers for the loss. Where the shortcut is right, the product
is right already and little is left to learn; where it misleads, the main model has to make up for it. Afterwards the second model is
dropped, and the main model answers alone.

Source: Hinton 2002, Training products of experts, Neural Computation 14; to remove a known bias: Clark, Yatskar and Zettlemoyer 2019,
arXiv:1909.03683 (bias product), and Karimi Mahabadi, Belinkov and Henderson 2020, arXiv:1909.06321. Differs from them: here is the
product alone; the loss is cross_entropy of it. Costs one log-softmax. z are the main model's logits, b the other's log-probabilities.

    joint = z + b                                            (1)
    out = log softmax over classes of joint                  (2)
    dz = dout - exp(out) sum over classes of dout            (3)
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.log_softmax import log_softmax
from minitransformers.foundation import Backward, concept, example, finite


@concept(
    title="Product of experts",
    source="Clark, Yatskar and Zettlemoyer 2019, arXiv:1909.03683; Karimi Mahabadi, Belinkov and Henderson 2020, arXiv:1909.06321",
    example=lambda rng: _example(rng),
)
def product_of_experts(
    logits: Annotated[Float[Array, "*batch num_classes"], finite], *, bias_log_probs: Annotated[Float[Array, "*batch num_classes"], finite]
) -> tuple[Array, Backward]:
    """Log-probabilities, in nats, of the product of two distributions: for training; afterwards log_softmax(logits) answers alone.

    bias_log_probs holds the log-probabilities of the frozen model, which gets no gradient. A constant on all of a position cancels, so
    its logits do as well; those of several frozen models are added up.
    Returns out, shaped like logits, and backward: dout -> dlogits.
    Raises ValueError where the shapes differ, or a number is not finite.
    """
    joint = logits + bias_log_probs                          # both normalisers cancel  (1)
    out, joint_backward = log_softmax(joint)                 # (2)

    def backward(dout):
        return joint_backward(dout)                          # of a sum, and the other part is frozen  (3)

    return out, backward


def _example(rng: np.random.Generator):
    return example(rng.normal(size=(2, 3, 5)), bias_log_probs=log_softmax(rng.normal(size=(2, 3, 5)))[0])
