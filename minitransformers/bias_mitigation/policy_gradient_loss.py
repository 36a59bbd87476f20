"""Policy gradient: a model is trained with a reward for what it has written, where the reward itself has no slope.

A text is drawn, and a rule says what it is worth: minus the number of flagged words in it, minus the difference between what is said
of one group and of another. Nobody can differentiate that by the weights. But the mean reward of all texts has a gradient, and it
is a mean over texts as well: how much better a text did than expected, times the slope of its log-probability. So one draws texts
and raises the log-probability of each by its advantage. Costs one log-softmax.

Source: Williams 1992, doi:10.1007/BF00992696 (REINFORCE); the baseline that leaves a text itself out: Kool, van Hoof and Welling 2019,
Buy 4 REINFORCE samples, get a baseline for free. Differs from the papers: a loss, so the sign is turned round; advantages may differ
from position to position. The value of the loss says nothing: only its gradient is meant. n texts, A advantages, a drawn ids.

    log_p = log softmax(z)                                   (1)
    out = - (1/n) sum over texts and positions that count of A log_p[a]   (2)
    dz = (A/n) (softmax(z) - [i is the a drawn])             (3)
    dlogits = dout dz                                        (4)

The advantage of a text is its reward without what the other texts of its batch had on average, R_j the rewards of those:

    A_i = R_i - (1 / (n - 1)) sum over j != i of R_j         (5)
"""

from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.basics.log_softmax import log_softmax
from minitransformers.compression.counted import check_ids, check_largest, counted_by_mask
from minitransformers.foundation import Backward, bad, concept, example, finite, invalid, procedure


@concept(
    title="Policy gradient",
    source="Williams 1992, doi:10.1007/BF00992696",
    example=lambda rng: _example(rng),
    rejects=[
        bad(sampled=np.full((2, 3), 5)), bad(sampled=np.full((2, 3), -1)), bad(mask=np.zeros((2, 3), bool)), bad(advantages=np.ones((2, 2))),
        bad(logits=np.full((2, 3, 5), np.nan)), bad(logits=np.full((2, 3, 5), -np.inf)), bad(logits=np.where(np.arange(5) == 4, -np.inf, np.zeros((2, 3, 5)))),
    ],
)  # fmt: skip
def policy_gradient_loss(
    logits: Float[Array, "*texts positions num_actions"], *, sampled: Int[Array, "*texts positions"],
    advantages: Annotated[Float[Array, "*texts #positions"], finite], mask: Bool[Array, "*texts positions"] | None = None,
) -> tuple[np.floating, Backward]:  # fmt: skip
    """A number whose gradient is, on average over texts drawn from the logits, minus that of the mean reward.

    sampled are the ids that were drawn from softmax(logits); advantages in units of reward, one a text (an axis of 1) or one a
    position; both are data. mask is True where a position counts (None: all): not behind the end of a text, nor in its prompt.
    Returns out, a scalar, divided by the number of texts and not of positions, and backward: dout -> dlogits.
    Raises ValueError where an id is no action or one that the logits rule out, no position counts, or the largest logit of a
    position that does is not finite.
    """
    counts = counted_by_mask(sampled.shape, mask)
    z, drawn = logits[counts], sampled[counts]               # (counted, num_actions), (counted,)
    check_ids("sampled", drawn, logits.shape[-1])
    check_largest("logits", z)
    share = np.broadcast_to(advantages, sampled.shape)[counts] / logits.dtype.type(np.prod(sampled.shape[:-1]))
    log_p, _ = log_softmax(z)                                # (1)
    taken = np.take_along_axis(log_p, drawn[:, None], axis=-1)[:, 0]
    if not (taken > -np.inf).all():
        raise invalid("logits", got="-inf for an id that was drawn", wants="the logits that the ids were drawn from")
    out = -np.vecdot(share, taken)                           # (2)

    def backward(dout):
        dz = np.exp(log_p)
        dz[np.arange(len(drawn)), drawn] -= 1                # belief minus what was drawn
        dz *= share[:, None]                                 # (3)
        dlogits = np.zeros_like(logits)
        dlogits[counts] = dout * dz                          # (4)
        return dlogits

    return out, backward


@procedure(
    title="Leave-one-out advantages",
    source="Kool, van Hoof and Welling 2019, Buy 4 REINFORCE samples, get a baseline for free",
    example=lambda rng: example(rng.normal(size=(4, 3))),
    rejects=[bad(rewards=np.ones((1, 3)))],
)
def leave_one_out_advantages(rewards: Annotated[Float[Array, "texts *rest"], finite]) -> Float[Array, "texts *rest"]:
    """What each text earned above the mean of the others, which had no part in its drawing: so the gradient stays unbiased.

    rewards stand along the first axis, one for each text of a batch; further axes (positions: rewards still to come) each have
    baselines of their own. Sums to 0 over the texts.
    Raises ValueError for a single text, and for a reward that is not finite.
    """
    n = len(rewards)
    if n < 2:
        raise invalid("rewards", got="one text", wants="at least two: the baseline of each is the mean of the others")
    return rewards - (rewards.sum(axis=0) - rewards) / rewards.dtype.type(n - 1)  # (5)


def _example(rng: np.random.Generator):
    mask = np.array([[1, 1, 1], [1, 1, 0]], bool)
    return example(rng.normal(size=(2, 3, 5)), sampled=np.array([[0, 4, 2], [1, 1, 3]]), advantages=rng.normal(size=(2, 3)), mask=mask)
