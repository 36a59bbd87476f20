"""Soft parity: the mean probability of a yes shall be the same in every group.

Demographic parity counts decisions, and a count has no slope. The mean of the probabilities has one. The loss is the variance of the
groups' means, each group counted once however many are in it. Restricted by a mask to those whose true label is yes, it is about equal
opportunity.

Source: Calders, Karim, Kamiran, Ali and Zhang 2013, Controlling attribute effect in linear regression, ICDM; Beutel et al. 2019,
arXiv:1901.04562, for two groups. Differs from them: any number of groups, and the variance of their means. Costs a sigmoid and two
sums a position. g is the group of a position, n_g how many are in it, G the number of groups.

    p = 1 / (1 + exp(-z))                                    (1)
    mean_g = (1/n_g) sum over the group of p                 (2)
    apart_g = mean_g - (1/G) sum_h mean_h                    (3)
    out = (1/G) sum_g apart_g^2                              (4)
    dmean_g = dout 2/G apart_g                               (5)
    dz = dmean_g p (1 - p) / n_g                             (6)
"""

from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.basics.sigmoid import sigmoid
from minitransformers.compression.counted import check_ids, counted_by_mask
from minitransformers.foundation import Backward, at_least, bad, concept, example, finite, invalid

_GROUPS = np.array([[0, 2, 1, 2, 1], [0, 0, 2, 2, 2]])


@concept(
    title="Soft parity",
    source="Calders et al. 2013, Controlling attribute effect in linear regression, ICDM; Beutel et al. 2019, arXiv:1901.04562",
    example=lambda rng: example(rng.normal(size=(2, 5)), groups=_GROUPS, num_groups=3, mask=np.array([[1, 1, 1, 0, 1], [1, 1, 1, 1, 0]], bool)),
    rejects=[
        bad(groups=_GROUPS + 1), bad(groups=_GROUPS - 1), bad(groups=_GROUPS % 2), bad("groups", num_groups=4),
        bad("groups", mask=np.zeros((2, 5), bool)), bad("groups", mask=_GROUPS != 1),
    ],
)  # fmt: skip
def soft_parity(
    logits: Annotated[Float[Array, "*batch"], finite], *, groups: Int[Array, "*batch"], num_groups: Annotated[int, at_least(2)],
    mask: Bool[Array, "*batch"] | None = None,
) -> tuple[Any, Backward]:  # fmt: skip
    """The variance, from 0 to 1/4, of the groups' mean probabilities of a yes.

    logits are log-odds of a yes, one for each case. groups says to which group a case belongs, from 0 to num_groups - 1. mask is True
    where a case counts (None: everywhere): with that of the true labels that are yes, it is true positive rates that are compared.
    Returns out, a scalar of the logits' dtype, and backward: dout -> dlogits.
    Raises ValueError where a group is none of so many, or one has no case that counts.
    """
    counts = counted_by_mask(logits.shape, mask, "sum")
    group = groups[counts]                                   # (cases,)
    check_ids("groups", group, num_groups)
    size = np.bincount(group, minlength=num_groups)
    if not size.all():
        raise invalid("groups", got=f"no case of group {size.argmin()} that counts", wants=f"one of each of the {num_groups} groups at least")
    p, p_backward = sigmoid(logits[counts])                  # (1)
    mean = (np.bincount(group, weights=p) / size).astype(logits.dtype)  # (2)
    apart = mean - mean.mean()                               # (3)
    out = (apart * apart).mean()                             # (4)

    def backward(dout):
        dmean = dout * 2 / num_groups * apart                # apart sums to 0: the mean of means adds nothing  (5)
        dlogits = np.zeros_like(logits)
        dlogits[counts] = p_backward((dmean / size)[group].astype(logits.dtype))  # (6)
        return dlogits

    return out, backward
