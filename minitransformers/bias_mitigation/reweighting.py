"""Reweighting: weights for examples, under which the label does not depend on the group.

Where a group has label 1 less often than another, its few examples with label 1 count more, and those with label 0 less. How much
is what each cell of the table would hold if label and group were independent, over what it holds. No example is changed, and none
is left out. What becomes independent is the weighted data; a classifier that is trained on it may still decide by group. Costs
two counts and a division.

Source: Kamiran and Calders 2012, doi:10.1007/s10115-011-0463-8 (reweighing). As in the library AIF360, weights that are
there already are counted with and multiplied. Differs: any number of groups and of labels.

    n_ay = number, or weight, of the examples of group a with label y   (1)
    w_ay = (n_a. / n) (n_.y / n) / (n_ay / n) = n_a. n_.y / (n n_ay)   (2)
    out_i = weight_i w_ay, a and y those of example i        (3)
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, example, invalid, procedure

_LABELS, _GROUPS = np.array([[0, 1, 1, 0, 1, 1, 0], [1, 1, 0, 0, 1, 0, 1]]), np.array([[0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 2, 2]])


@procedure(
    title="Reweighting",
    source="Kamiran and Calders 2012, doi:10.1007/s10115-011-0463-8",
    example=lambda rng: example(_LABELS, groups=_GROUPS, weights=rng.uniform(0.5, 2.0, size=(2, 7))),
    rejects=[
        bad(labels=0 * _LABELS), bad(labels=2 * _LABELS), bad(groups=0 * _GROUPS), bad("labels", groups=2 * (_GROUPS // 2)),
        bad(labels=(_GROUPS == 1).astype(int)), bad("labels", weights=np.zeros((2, 7))),
    ],
)  # fmt: skip
def reweighting_weights(
    labels: Annotated[Int[Array, "*examples"], at_least(0)], *, groups: Annotated[Int[Array, "*examples"], at_least(0)],
    weights: Annotated[Float[Array, "*examples"], at_least(0)] | None = None,
) -> Float[Array, "*examples"]:  # fmt: skip
    """A weight for each example. Their sum is the number of examples, or that of the weights that were there.

    labels and groups number their kinds from 0 without a gap. weights, at least 0, are those that the examples have already.
    Raises ValueError for fewer than two groups or labels, and where a group has no example (or none of a weight above 0) of a label.
    """
    num_groups, num_labels = int(groups.max()) + 1, int(labels.max()) + 1
    for name, size in (("groups", num_groups), ("labels", num_labels)):
        if size < 2:
            raise invalid(name, got="one kind", wants="at least two")
    cell = (groups * num_labels + labels).ravel()
    n = np.bincount(cell, None if weights is None else weights.ravel(), minlength=num_groups * num_labels).reshape(num_groups, num_labels)  # (1)
    for group, label in np.argwhere(n == 0).tolist():
        raise invalid("labels", got=f"no example of label {label} in group {group}", wants="one in each cell: no weight makes up for none")
    w = n.sum(axis=1, keepdims=True) * n.sum(axis=0) / (n.sum() * n)  # (groups, labels)  (2)
    each = w[groups, labels]
    return each if weights is None else weights * each.astype(weights.dtype)  # (3)
