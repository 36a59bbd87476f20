"""Iterative null-space projection: find what a linear classifier reads, take it out, and look again until it reads nothing.

One direction seldom holds all that a linear classifier can use: with it gone the next classifier finds another. Each round fits
one on what is left and adds its weights to the directions that are taken out. The rounds end when it is no better than naming
the class with most members. What it says is about linear classifiers alone; another kind may still read the labels.

Source: Ravfogel et al. 2020, arXiv:2004.07667, algorithm 1. Differs from the authors' code: classifiers are logistic, fitted here
by Newton's method; directions are made orthonormal one round after the other, where the code builds the projection anew from all of
them. Each class of more than two has a classifier of its own, against the rest. Costs a round, for each class, some ten Newton steps
of n d^2 + d^3 / 3 multiplications.
X~ is X P with a column of ones, t the labels as 0 and 1, D is diagonal with l2 for each weight and 0 for the intercept.

    p = sigmoid(X~ w)                                        (1)
    gradient = X~^T (p - t) + D w                            (2)
    Hessian = X~^T diag(p (1 - p)) X~ + D = L L^T            (3)
    step = (L L^T)^-1 gradient                               (4)
    w <- w - 2^-j step, j the first that makes the loss fall enough   (5)
    new = basis of the rows of W outside of Q, Q <- [Q, new]   (6)
    P = I - Q Q^T                                            (7)
    stop where accuracy <= share of the largest class + tolerance   (8)
"""

from typing import Annotated, NamedTuple

import numpy as np
import scipy.linalg
import scipy.special
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, example, finite, invalid, positive, procedure


class NullProjection(NamedTuple):
    """P = I - Q Q^T and the orthonormal columns Q; the accuracy of each classifier, the last not taken out; that of the largest class."""

    projection: Float[Array, "d_model d_model"]
    directions: Float[Array, "d_model removed"]
    accuracies: Float[Array, "fits"]
    majority: float


def _example(rng: np.random.Generator):
    """Two groups that differ along one direction."""
    labels = np.array([[0, 1, 0, 1, 1, 0], [0, 1, 1, 0, 0, 1]])
    return example(rng.normal(size=(2, 6, 3)) + 3 * labels[..., None], labels, rounds=2, l2=0.1)


@procedure(
    title="Iterative null-space projection",
    source="Ravfogel et al. 2020, arXiv:2004.07667, algorithm 1",
    example=_example,
    rejects=[
        bad(labels=np.ones((2, 6), int)), bad(x=np.ones((2, 6, 3))), bad("dev_labels", dev_x=np.ones((4, 3))), bad("dev_x", dev_labels=np.array([0, 1])),
        bad("dev_labels", dev_x=np.ones((2, 3)), dev_labels=np.array([0, 2])),
    ],
)  # fmt: skip
def inlp(
    x: Annotated[Float[Array, "*batch d_model"], finite], labels: Int[Array, "*batch"], *, rounds: Annotated[int, at_least(1)],
    l2: Annotated[float, positive] = 0.01, tolerance: Annotated[float, at_least(0)] = 0.0,
    dev_x: Annotated[Float[Array, "*held d_model"], finite] | None = None, dev_labels: Int[Array, "*held"] | None = None,
) -> NullProjection:  # fmt: skip
    """The projection after which a linear classifier does no better on labels than the share of the largest class, or after so many rounds.

    labels are any whole numbers, of two kinds or more; leading axes are samples, such as texts and positions. A round of two classes takes out one direction, of more at most one a class.
    l2 is the strength of the penalty l2/2 |w|^2 beside the summed loss, the inverse of scikit-learn's C; the intercept is free.
    Accuracies, the largest class included, are of dev_x and dev_labels, or of x itself where there are none; tolerance is what an accuracy may be above.
    Apply it as x @ projection. Computed in float64.
    Raises ValueError for labels of one class, x that is the same in all rows or of which the first classifier reads nothing, one of
    dev_x and dev_labels without the other, and dev_labels of a class that labels have not.
    """
    classes = np.unique(labels)
    if len(classes) < 2:
        raise invalid("labels", got=f"{classes[0]} alone", wants="at least two classes")
    if (dev_x is None) != (dev_labels is None):
        raise invalid("dev_x" if dev_x is None else "dev_labels", got=None, wants="dev_x and dev_labels, or neither")
    own_x, own_labels = (x, labels) if dev_x is None or dev_labels is None else (dev_x, dev_labels)
    if unknown := np.setdiff1d(own_labels, classes).tolist():
        raise invalid("dev_labels", got=unknown, wants=f"classes of labels: {classes.tolist()}")
    x, own_x = (each.reshape(-1, each.shape[-1]).astype(np.float64) for each in (x, own_x))
    labels, own_labels = labels.ravel(), own_labels.ravel()
    majority = float(np.max(np.mean(own_labels[:, None] == classes, axis=0)))

    directions, projection, accuracies = np.zeros((x.shape[1], 0)), np.eye(x.shape[1]), []
    for _ in range(rounds + 1):
        left = x @ projection
        weight, intercept = fit_linear(left, labels, l2=l2)
        accuracies.append(np.mean(classes[_chosen(own_x @ projection, weight, intercept)] == own_labels))
        reads = np.ptp(left @ weight, axis=0).max() > 1e-10  # logits that do not differ between rows
        if not reads and len(accuracies) == 1:
            raise invalid("x", got="rows of which a linear classifier reads nothing", wants="features that tell something of labels")
        if not reads or accuracies[-1] <= majority + tolerance or len(accuracies) > rounds:  # (8)
            break
        for _ in range(2):                                   # once leaves rounding along Q
            weight = weight - directions @ (directions.T @ weight)
        directions = np.concatenate([directions, scipy.linalg.orth(weight, rcond=1e-10)], axis=1)  # (6)
        projection = np.eye(x.shape[1]) - directions @ directions.T  # (7)
    return NullProjection(projection, directions, np.array(accuracies), majority)


def _chosen(x: Array, weight: Array, intercept: Array) -> Array:
    """The number of the class that a classifier names."""
    scores = x @ weight + intercept
    return (scores[:, 0] > 0).astype(int) if scores.shape[1] == 1 else scores.argmax(axis=1)


def fit_linear(x: Array, labels: Array, *, l2: float) -> tuple[Array, Array]:
    """Weights (d_model, classifiers) and intercepts: one classifier for two classes, for the larger label; else one for each, against the rest."""
    classes = np.unique(labels)
    fits = [_fit_logistic(x, (labels == c).astype(x.dtype), l2) for c in (classes if len(classes) > 2 else classes[1:])]
    return np.stack([w[:-1] for w in fits], axis=1), np.array([w[-1] for w in fits])


def _fit_logistic(x: Array, targets: Array, l2: float) -> Array:
    """Weights and the intercept, which comes last."""
    rows = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    penalty = np.append(np.full(x.shape[1], l2), 0.0)
    sign = 2 * targets - 1

    def loss(w: Array) -> float:
        return float(np.logaddexp(0, -sign * (rows @ w)).sum() + penalty @ w**2 / 2)

    share = targets.mean()
    w = np.append(np.zeros(x.shape[1]), np.log(share / (1 - share)))  # the best that the intercept does alone
    for _ in range(100):
        p = scipy.special.expit(rows @ w)                    # (1)
        gradient = rows.T @ (p - targets) + penalty * w      # (2)
        hessian = (rows * (p * (1 - p))[:, None]).T @ rows + np.diag(penalty)
        factor = np.linalg.cholesky(hessian + np.eye(len(w)) * 1e-14 * np.trace(hessian))  # (3)
        step = scipy.linalg.cho_solve((factor, True), gradient)  # (4)
        decrement, size, before = float(gradient @ step), 1.0, loss(w)
        if decrement <= 1e-22 * (1 + before):                # as far as rounding lets it come
            break
        while size > 1e-10 and loss(w - size * step) > before - 1e-4 * size * decrement:
            size /= 2
        if size <= 1e-10:                                    # rounding hides what is left to gain
            break
        w = w - size * step                                  # (5)
    return w
