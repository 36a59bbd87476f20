"""Adversarial debiasing: an encoder learns a task while another network tries to read the group from what it makes.

Three networks and three objectives. The head wants the task's loss small. The adversary wants its own loss small: it shall read the
group. The encoder wants the first small and the second large. There is no single loss that all three go down on; the gradient
reversal between encoder and adversary gives each part its own in one pass.

Source: Ganin et al. 2015, arXiv:1505.07818, eq. 9; against bias: Elazar and Goldberg 2018, arXiv:1808.06640. Costs what the three
networks cost. E, P, A are the encoder, the head and the adversary, L cross-entropy; a star is a backward.

    hidden = E(x)                                            (1)
    task = L(P(hidden), targets)                             (2)
    adversary = L(A(hidden), groups)                         (3)
    dP, dhidden_task = (L P)*(dtask)                         (4)
    dA, dhidden_adversary = (L A)*(dadversary)               (5)
    dhidden = dhidden_task - strength dhidden_adversary      (6)
    dE, dx = E*(dhidden)                                     (7)
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.linear import Linear, linear
from minitransformers.bias_mitigation.gradient_reversal import gradient_reversal
from minitransformers.foundation import Backward, at_least, bad, concept, example


class AdversarialDebiasing(NamedTuple):
    """What the encoder, the head of the task and the adversary learn."""

    encoder: Any
    head: Any
    adversary: Any


class AdversarialLosses(NamedTuple):
    """The loss of the task and that of the adversary, in nats."""

    task: Float[Array, ""]
    adversary: Float[Array, ""]


@concept(
    title="Adversarial debiasing",
    source="Ganin et al. 2015, arXiv:1505.07818, eq. 9; Elazar and Goldberg 2018, arXiv:1808.06640",
    example=lambda rng: _example(rng),
    rejects=[bad("targets", targets=np.full((2, 3), 4)), bad("targets", groups=np.full((2, 3), 9))],
    gradient_of=lambda params, x, **settings: _with_the_others_held(params, x, **settings),
)
def adversarial_debiasing(
    params: AdversarialDebiasing, x: Float[Array, "..."], *, targets: Int[Array, "*batch"], groups: Int[Array, "*batch"], encoder: Callable,
    head: Callable = linear, adversary: Callable = linear, strength: Annotated[float, at_least(0)] = 1.0,
) -> tuple[AdversarialLosses, Backward]:  # fmt: skip
    """Two losses, and for each part the gradient of its own objective.

    encoder(params.encoder, x) -> hidden, backward; head and adversary make logits of hidden, one row for each class of targets and
    for each group of groups. Where a label is -100 (cross_entropy's ignore_index), the position does not count for that loss.
    Returns AdversarialLosses, and backward: dlosses -> AdversarialDebiasing of gradients, dx. The head's gradient is that of the
    task's loss, the adversary's that of its own, and the encoder's (and x's) that of task - strength adversary.
    Raises ValueError as cross_entropy does, which calls both kinds of labels targets.
    """
    hidden, encoder_backward = encoder(params.encoder, x)    # (1)
    logits, head_backward = head(params.head, hidden)
    task, task_backward = cross_entropy(logits, targets=targets)  # (2)
    seen, reversal_backward = gradient_reversal(hidden, strength=strength)
    guesses, adversary_backward = adversary(params.adversary, seen)
    reading, reading_backward = cross_entropy(guesses, targets=groups)  # (3)

    def backward(dlosses):
        dtask, dreading = dlosses
        dhead, dhidden_task = head_backward(task_backward(dtask))  # (4)
        dadversary, dseen = adversary_backward(reading_backward(dreading))  # (5)
        dhidden = dhidden_task + reversal_backward(dseen)    # (6)
        dencoder, dx = encoder_backward(dhidden)             # (7)
        return AdversarialDebiasing(dencoder, dhead, dadversary), dx

    return AdversarialLosses(task, reading), backward


def _with_the_others_held(params: AdversarialDebiasing, x: Array, *, strength: float = 1.0, **settings: Any) -> Callable:
    """The two losses as each part sees them: the adversary with the encoder as it is, the encoder with the adversary as it is."""

    def losses(new: AdversarialDebiasing, new_x: Array) -> AdversarialLosses:
        (task, of_encoder), _ = adversarial_debiasing(new._replace(adversary=params.adversary), new_x, strength=strength, **settings)
        (_, of_adversary), _ = adversarial_debiasing(params._replace(adversary=new.adversary), x, strength=strength, **settings)
        return AdversarialLosses(task, of_adversary - strength * of_encoder)

    return losses


def _example(rng: np.random.Generator):
    encoder, head, adversary = (Linear(rng.normal(size=shape), rng.normal(size=shape[1])) for shape in ((5, 4), (4, 3), (4, 2)))
    params, x = AdversarialDebiasing(encoder, head, adversary), rng.normal(size=(2, 3, 5))
    return example(params, x, targets=np.array([[0, 2, 1], [1, 0, -100]]), groups=np.array([[0, 1, 1], [0, 0, 1]]), encoder=linear, strength=0.7)
