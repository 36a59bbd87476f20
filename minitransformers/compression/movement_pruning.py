"""Movement pruning: each weight has a score, which learns whether the weight is moving away from zero.

A model that was trained for one thing is fine-tuned for another. How large a weight is says what it was worth before. So the mask
is not made of weights but of scores, and the scores are trained. A mask has slope zero wherever it has one; the gradient of the
scores is taken as if the mask itself were what is trained (straight through). It is the gradient of the weight that is used, times
the weight that lies behind the mask: also where the mask is zero, so a weight that was pruned can come back.

Source: Sanh, Wolf and Rush 2020, arXiv:2005.07683, section 4. S are the scores, N how many, o is the product of elements, sigma the
logistic function. Differs from the authors' code: the number that stay is round((1 - sparsity) N), half to even, and of equal scores
the first stays; the threshold's form keeps no fixed share at the least, and raises where nothing would stay.

    mask = 1 where S is among the kept largest, 0 elsewhere  (1)
    weight = W o mask                                        (2)
    dW = dweight o mask                                      (3)
    dS = dweight o W                                         (4)

soft_movement_pruning has a threshold for all arrays in the place of a number, and score_penalty, which goes to the loss with a
factor, presses the scores towards it:

    mask = 1 where sigma(S) > threshold, 0 elsewhere         (5)
    penalty = mean of sigma(S)                               (6)
    dS = dpenalty sigma'(S) / N                              (7)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.basics.sigmoid import sigmoid
from minitransformers.compression.magnitude_pruning import kept_of, largest
from minitransformers.foundation import Backward, Range, bad, checked, concept, example, finite, from_to_below, invalid
from minitransformers.foundation.trees import decays

open_unit = Range("above 0 and below 1", lambda low, high: bool(low > 0 and high < 1), (0.0, 1.0, -1.0, np.nan))


class ScoredWeight(NamedTuple):
    """A weight, and a score for each of its numbers."""

    weight: Annotated[Float[Array, "d_in d_out"], decays]
    scores: Annotated[Float[Array, "d_in d_out"], finite]


@checked
def init_movement_pruning(base: Float[Array, "d_in d_out"]) -> ScoredWeight:
    """The weight as it was trained, and scores of zero. base is not copied."""
    return ScoredWeight(base, np.zeros_like(base))


@concept(
    title="Movement pruning",
    source="Sanh, Wolf and Rush 2020, arXiv:2005.07683, section 4",
    example=lambda rng: example(ScoredWeight(rng.normal(size=(5, 4)), rng.normal(size=(5, 4))), sparsity=0.35),
    rejects=[bad(sparsity=0.98), bad(base=np.ones((4, 5)))],
    gradient_of=lambda params, *, sparsity, base=None: _moving(params, _top(params.scores, sparsity)),
)
def movement_pruning(
    params: ScoredWeight, *, sparsity: Annotated[float, from_to_below(0, 1)], base: Float[Array, "d_in d_out"] | None = None
) -> tuple[Array, Backward]:
    """The weight where its score is among the largest, and 0 elsewhere: a change for ``reparameterize``.

    sparsity is the share of zeros, counted in this array. base is the leaf that reparameterize gives: only its shape is looked at.
    Returns weight, shaped like params.weight, and backward: dweight -> ScoredWeight(dweight, dscores), of which dscores is that of
    a mask which could move.
    Raises ValueError when the shapes differ or nothing would stay.
    """
    return _masked(params, _top(params.scores, sparsity))


@concept(
    title="Movement pruning with a threshold",
    source="Sanh, Wolf and Rush 2020, arXiv:2005.07683, section 4.1",
    example=lambda rng: example(ScoredWeight(rng.normal(size=(5, 4)), rng.normal(size=(5, 4))), threshold=0.4),
    rejects=[bad(threshold=0.999), bad(base=np.ones((4, 5)))],
    form_of="movement_pruning",
    gradient_of=lambda params, *, threshold, base=None: _moving(params, _above(params.scores, threshold)),
)
def soft_movement_pruning(
    params: ScoredWeight, *, threshold: Annotated[float, open_unit], base: Float[Array, "d_in d_out"] | None = None
) -> tuple[Array, Backward]:
    """The weight where the logistic function of its score is above the threshold, and 0 elsewhere: a change for ``reparameterize``.

    How many stay is up to the scores; score_penalty presses on them. Scores of zero all stay below a threshold of 1/2.
    Arguments, results and errors are otherwise those of movement_pruning.
    """
    return _masked(params, _above(params.scores, threshold))


@concept(
    title="Penalty on scores",
    source="Sanh, Wolf and Rush 2020, arXiv:2005.07683, section 4.1",
    example=lambda rng: example(rng.normal(size=(5, 4))),
    form_of="movement_pruning",
)
def score_penalty(scores: Annotated[Float[Array, "..."], finite]) -> tuple[np.floating, Backward]:
    """The mean of the logistic function of the scores: from 0 to 1, a smooth stand-in for the share that stays.

    Returns penalty, a number, and backward: dpenalty -> dscores. Multiply it by a factor and add it to the loss.
    """
    share, sigmoid_backward = sigmoid(scores)
    penalty = np.mean(share)                                 # (6)

    def backward(dpenalty):
        return sigmoid_backward(np.full_like(share, dpenalty / share.size))  # (7)

    return penalty, backward


def _top(scores: Array, sparsity: float) -> Bool[Array, "d_in d_out"]:
    return largest(scores.ravel(), kept_of(scores.size, sparsity), axis=0).reshape(scores.shape)  # (1)


def _above(scores: Array, threshold: float) -> Bool[Array, "d_in d_out"]:
    mask = sigmoid(scores)[0] > threshold                    # (5)
    if not mask.any():
        raise invalid("threshold", got=threshold, wants="one below the largest sigma of a score: nothing would stay")
    return mask


def _masked(params: ScoredWeight, mask: Array) -> tuple[Array, Backward]:
    weight = np.where(mask, params.weight, 0)                # (2)

    def backward(dweight):
        dW = np.where(mask, dweight, 0)                      # (3)
        dS = dweight * params.weight                         # all of W: what is pruned has a say as well  (4)
        return ScoredWeight(dW, dS)

    return weight, backward


def _moving(params: ScoredWeight, mask: Array):
    """The function whose gradient is returned: the mask moves with the scores."""
    return lambda moved: moved.weight * (mask + moved.scores - params.scores)
