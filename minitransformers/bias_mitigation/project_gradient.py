"""Projected gradient: a step for the task that does not help the adversary, and one against it besides.

Of the gradient of the task the part along the adversary's gradient is taken out: going along the rest changes, to first order, nothing
for the adversary. Then a step up the adversary's loss is added. The projection matters where both go down together: without it the
task's step could help the adversary more than the other one hurts it.

Source: Zhang, Lemoine and Mitchell 2018, arXiv:1801.07593, eq. 1. There the adversary reads the prediction (for demographic parity), or
that and the true label (for equalised odds). Differs from the library AIF360: it projects each array by itself, here the plain form
takes the gradient of all parameters as one vector. Costs two sums over the parameters. g and a are the gradients of the losses of task
and adversary by the parameters of the predictor.

    overlap = <g, a>                                         (1)
    size = <a, a>                                            (2)
    u = g - (overlap / size) a - strength a                  (3)
"""

from typing import Annotated, Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.basics.linear import Linear
from minitransformers.foundation import at_least, bad, example, invalid, procedure, trees

_REJECTS = [
    bad(adversary=Linear(np.ones((3, 2)), None)), bad(adversary=Linear(np.ones((2, 3)), np.ones(2))), bad(adversary=np.ones((3, 2))),
    bad(task=Linear(np.full((3, 2), np.nan), np.ones(2))), bad(adversary=Linear(np.ones((3, 2)), np.full(2, np.inf))),
]  # fmt: skip


@procedure(
    title="Projected gradient",
    source="Zhang, Lemoine and Mitchell 2018, arXiv:1801.07593, eq. 1",
    example=lambda rng: _example(rng),
    rejects=_REJECTS,
)
def project_gradient(task: Any, adversary: Any, *, strength: Annotated[float, at_least(0)]) -> Any:
    """What to go down on: the task's gradient without its part along the adversary's, and less so many of the adversary's.

    task and adversary are trees of gradients by the same parameters. strength is dimensionless. Where the adversary's gradient is 0
    throughout, there is nothing to take out, and the result is the task's.
    Returns a tree like task. Raises ValueError where the trees differ in structure or shapes, or hold NaN or infinity.
    """
    _check(task, adversary)
    pairs = list(zip((g for _, g in trees.leaves(task)), (a for _, a in trees.leaves(adversary)), strict=True))
    overlap = sum(_product(g, a) for g, a in pairs)          # (1)
    size = sum(_product(a, a) for _, a in pairs)             # (2)
    return trees.map(lambda g, a: _without(g, a, overlap, size, strength), task, adversary)


@procedure(
    title="Projected gradient, array by array",
    source="Zhang, Lemoine and Mitchell 2018, arXiv:1801.07593, eq. 1; each array by itself as in AIF360",
    example=lambda rng: _example(rng),
    rejects=_REJECTS,
)
def project_gradient_by_array(task: Any, adversary: Any, *, strength: Annotated[float, at_least(0)]) -> Any:
    """As project_gradient, each array of the trees a vector of its own: what is taken out of one does not depend on the others."""
    _check(task, adversary)
    return trees.map(lambda g, a: _without(g, a, _product(g, a), _product(a, a), strength), task, adversary)


def _without(g: Array, a: Array, overlap: float, size: float, strength: float) -> Array:
    return g - (overlap / (size or 1) + strength) * a        # where size is 0, overlap is  (3)


def _product(one: Array, other: Array) -> float:
    """The sum of the products of elements, in float64: the squares of small gradients would vanish in float32."""
    return float(np.vdot(one.astype(np.float64), other.astype(np.float64)))


def _check(task: Any, adversary: Any) -> None:
    for name, tree in (("task", task), ("adversary", adversary)):
        for path, leaf in trees.leaves(tree):
            if not (isinstance(leaf, np.ndarray) and np.isfinite(leaf).all()):
                got = "NaN or infinity" if isinstance(leaf, np.ndarray) else type(leaf).__name__
                raise invalid(f"{name}.{path}".rstrip("."), got=got, wants="an array of finite gradients")
    shapes = [[(path, leaf.shape) for path, leaf in trees.leaves(tree)] for tree in (task, adversary)]
    if shapes[0] != shapes[1]:
        raise invalid("adversary", got=f"leaves {shapes[1]}", wants=f"those of task, {shapes[0]}")


def _example(rng: np.random.Generator):
    task, adversary = (Linear(rng.normal(size=(3, 2)), rng.normal(size=2)) for _ in range(2))
    return example(task, adversary, strength=0.7)
