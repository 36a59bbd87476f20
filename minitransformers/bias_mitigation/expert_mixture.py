"""Expert mixture: several models, each trained on the texts of one group, speak together, each with a weight that all inputs share.

What is mixed are probabilities, not logits. So a class that one expert finds likely stays possible, and an input is read by every
expert: none is chosen by the group of a person, which at inference nobody asks for. The weights are learned.

Source: Jacobs, Jordan, Nowlan and Hinton 1991, Adaptive mixtures of local experts, Neural Computation 3; experts of demographic
groups: Han, Baldwin and Cohn 2021, arXiv:2109.08253. Differs from them: the weights do not depend on the input, nor on a group.
Costs a softmax and a sum over the experts for each class. z_k are the logits of expert k, a the gate.

    log_p_k = log softmax over classes of z_k                (1)
    log_weight = log softmax over experts of a               (2)
    joint_k = log_weight_k + log_p_k                         (3)
    out = log sum_k exp(joint_k)                             (4)
    share_k = exp(joint_k - out)                             (5)
    dlog_p_k = share_k dout                                  (6)
    dz_k = dlog_p_k - exp(log_p_k) sum over classes of dlog_p_k   (7)
    dlog_weight_k = sum over positions and classes of share_k dout   (8)
    da = dlog_weight - exp(log_weight) sum_k dlog_weight_k   (9)
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.log_softmax import log_softmax
from minitransformers.foundation import Backward, concept, example, finite


@concept(
    title="Expert mixture",
    source="Jacobs, Jordan, Nowlan and Hinton 1991, Neural Computation 3; Han, Baldwin and Cohn 2021, arXiv:2109.08253",
    example=lambda rng: example(rng.normal(size=(2, 4, 3, 5)), rng.normal(size=3)),
)
def expert_mixture(
    logits: Annotated[Float[Array, "*batch experts num_classes"], finite], gate: Annotated[Float[Array, "experts"], finite]
) -> tuple[Array, Backward]:
    """Log-probabilities, in nats, of the mixture of the experts' distributions.

    logits holds those of every expert, on the axis before the last. softmax(gate) is the weight of each expert, the same for all inputs.
    Returns out (*batch, num_classes), and backward: dout -> dlogits, dgate.
    Raises ValueError where there is not a gate for each expert, or a number is not finite.
    """
    log_p, log_p_backward = log_softmax(logits)              # (1)
    log_weight, log_weight_backward = log_softmax(gate)      # (2)
    joint = log_weight[:, None] + log_p                      # (3)
    out = np.logaddexp.reduce(joint, axis=-2)                # (*batch, num_classes)  (4)

    def backward(dout):
        share = np.exp(joint - out[..., None, :])            # each expert's share in each class  (5)
        dlog_p = share * dout[..., None, :]                  # (6)
        dlogits = log_p_backward(dlog_p)                     # (7)
        dlog_weight = dlog_p.sum(axis=-1).reshape(-1, len(gate)).sum(axis=0)  # all inputs use one gate  (8)
        dgate = log_weight_backward(dlog_weight)             # (9)
        return dlogits, dgate

    return out, backward
