"""LoRA as a weight: the frozen matrix plus a product of two thin ones, for any model, of which no line is touched.

As the change of a reparameterised tree it adapts whatever a model keeps in a matrix: projections of an attention, of a Mamba,
of a feed-forward network. The price is that the model hands back the gradient of the whole matrix, from which those of the
thin ones are taken; lora_linear computes the same without it, where a map can be exchanged. Once trained, the product is merged
into the weights, and the model is as fast as before.

Source: Hu et al. 2021, arXiv:2106.09685, section 4.1. down is the paper's A and up its B, each transposed.

    weight = W + scale down up                               (1)
    ddown = scale dweight up^T                               (2)
    dup = scale down^T dweight                               (3)
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, bad, concept, example, invalid, positive, procedure, reparameterize, trees
from minitransformers.peft.lora_linear import Lora, check_rank


@concept(
    title="LoRA as a weight",
    source="Hu et al. 2021, arXiv:2106.09685, section 4.1",
    example=lambda rng: example(Lora(rng.normal(size=(5, 2)), rng.normal(size=(2, 4))), base=rng.normal(size=(5, 4)), scale=0.7),
    rejects=[bad("rank", params=Lora(np.ones((5, 6)), np.ones((6, 4)))), bad(base=np.ones((5, 3)))],
)
def lora(params: Lora, *, base: Float[Array, "d_in d_out"], scale: Annotated[float, positive]) -> tuple[Array, Backward]:
    """The frozen matrix base plus scale times the product of the thin ones: a change for ``reparameterize``.

    scale is dimensionless: lora_scale(alpha, rank), or rank_stabilised_scale(alpha, rank).
    Returns weight, shaped like base, and backward: dweight -> Lora(ddown, dup).
    Raises ValueError when the factors do not make such a matrix, or the rank is above the smaller of its sides.
    """
    down, up = params
    check_factors(params, base)
    weight = base + (scale * down) @ up                      # (1)

    def backward(dweight):
        ddown = scale * (dweight @ up.T)                     # (2)
        dup = scale * (down.T @ dweight)                     # (3)
        return Lora(ddown, dup)

    return weight, backward


def check_factors(params: Lora, base: Array) -> None:
    """Raise ValueError for factors of another matrix than base: inside reparameterize no annotation is checked."""
    down, up = params
    if (len(down), up.shape[1]) != base.shape:
        raise invalid("params", got=f"factors of a matrix of {len(down)} by {up.shape[1]}", wants=f"those of base, of shape {base.shape}")
    check_rank(down.shape[1], *base.shape)


@dataclass(frozen=True, eq=False)
class Merged:
    """A model's tree with adapters in its weights, ready to run; the tree as it was; and what was merged, as (trained, scale).

    What the two trees have in common is held once.
    """

    tree: Any
    base: Any
    adapters: tuple[tuple[Any, float], ...]


@procedure(
    title="Merge LoRA",
    source="Hu et al. 2021, arXiv:2106.09685, section 4.1",
    example=lambda rng: _example(rng),
    rejects=[bad("trained", trained=(Lora(np.ones((5, 2)), np.full((2, 4), np.nan)), None)), bad("trained", trained=(None, None))],
)
def merge_lora(base: object, trained: object, *, scale: Annotated[float, positive]) -> Merged:
    """The model with what was trained in its weights, or an adapter more in a model that is Merged: their changes add.

    trained mirrors the model's tree, with Lora in the place of a weight that it changes and None elsewhere (at_targets makes
    such a tree). scale is dimensionless, as in lora.
    Raises ValueError, naming the place, for factors that are not finite or do not fit, and for an adapter that is merged already.
    """
    before = base if isinstance(base, Merged) else Merged(base, base, ())
    factors = dict(trees.leaves(trained))
    if not factors:
        raise invalid("trained", got="nothing in any place", wants="Lora in the place of a weight, at least one")
    for path, factor in factors.items():
        if not np.isfinite(factor).all():
            raise invalid(f"trained.{path}", got="numbers that are not finite", wants="factors that can be merged")
    for own, _ in before.adapters:
        known = dict(trees.leaves(own))
        if known.keys() == factors.keys() and all(np.array_equal(known[path], factor) for path, factor in factors.items()):
            raise invalid("trained", got="an adapter that is merged already", wants="another one, or the model without it (unmerge_lora)")
    tree, _ = reparameterize(trained, base=before.tree, change=partial(lora, scale=scale))
    return Merged(tree, before.base, (*before.adapters, (trained, scale)))


@procedure(
    title="Unmerge LoRA",
    source="Hu et al. 2021, arXiv:2106.09685, section 4.1",
    example=lambda rng: example(merge_lora(*_example(rng).args, scale=0.5)),
    rejects=[bad(merged=(np.ones((2, 2)), None))],
)
def unmerge_lora(merged: Merged) -> Any:
    """The model as it was, to the last bit: merge_lora kept it. To subtract what was added would leave its rounding behind.

    Raises ValueError for a tree into which nothing was merged.
    """
    return merged.base


def _example(rng: np.random.Generator):
    base = (rng.normal(size=(5, 4)), rng.normal(size=4))
    return example(base, (Lora(rng.normal(size=(5, 2)), rng.normal(size=(2, 4))), None), scale=0.7)
