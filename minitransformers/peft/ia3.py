"""(IA)^3: keys, values and hidden features are each multiplied by a learned number, and the frozen model does the rest.

What a task needs is often there already, too loud or too quiet. Three vectors a block, of ones at the start, turn it up and down:
l_k on the keys, l_v on the values, l_ff on the hidden features of the feed-forward network. Each acts on what a linear map makes
or reads, and so is a scaled matrix: l (x W + b) = x (W diag(l)) + l b, and (l h) W = h (diag(l) W). That is the form here: a
change of the weights of any model, none of whose code is touched, which is merged by being used, and costs nothing then.
2 d + f parameters a block. Source: Liu et al. 2022, arXiv:2205.05638, section 3.3. l_in is for what a map reads, l_out for what
it makes; either may be None, which is ones.

    weight_ij = l_in_i W_ij l_out_j                          (1)
    dl_in_i = sum_j dweight_ij W_ij l_out_j                  (2)
    dl_out_j = sum_i dweight_ij l_in_i W_ij                  (3)
    bias_j = b_j l_out_j, and so dl_out_j = dl_out_j + dbias_j b_j   (4)
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.linear import Linear
from minitransformers.foundation import Backward, bad, checked, concept, example, invalid, procedure, reparameterize, trees
from minitransformers.peft.targets import targets


class Ia3(NamedTuple):
    """What a linear map is multiplied by: its inputs, its outputs (the bias included), or both. None stands for ones."""

    inputs: Float[Array, "d_in"] | None
    outputs: Float[Array, "d_out"] | None


@checked
def init_ia3(
    base: Any, *, outputs: Sequence[str] = ("attention.key", "attention.value"), inputs: Sequence[str] = ("feed_forward.down",)
) -> Any:
    """A tree like base with ones in the place of linear maps, and None elsewhere: the model starts as it is.

    outputs and inputs are patterns (see targets) of the maps whose results, or whose arguments, are scaled.
    Raises ValueError, as targets does, for a pattern that matches nothing.
    """
    places = [set(targets(base, [f"{pattern}.weight" for pattern in patterns])) if patterns else set() for patterns in (inputs, outputs)]

    def make(node: Any, path: str) -> Any:
        if isinstance(node, Linear):
            found = [f"{path}.weight" in those for those in places]
            ones = (np.ones(size, node.weight.dtype) if here else None for size, here in zip(node.weight.shape, found, strict=True))
            return Ia3(*ones) if any(found) else None
        inner = trees.children(node)
        return None if inner is None else trees.like(node, [make(child, f"{path}.{name}" if path else name) for name, child in inner])

    return make(base, "")


@concept(
    title="(IA)^3",
    source="Liu et al. 2022, arXiv:2205.05638, section 3.3",
    example=lambda rng: example(Ia3(rng.normal(size=5), rng.normal(size=4)), base=rng.normal(size=(5, 4))),
    rejects=[bad("base", base=np.ones((4, 5)))],
)
def ia3(params: Ia3, *, base: Float[Array, "d_in d_out"]) -> tuple[Array, Backward]:
    """A frozen matrix whose rows and columns are scaled: a change for ``reparameterize``.

    Returns weight, shaped like base, and backward: dweight -> Ia3 of gradients, None for what is None.
    Raises ValueError where the scales are not as long as base has rows and columns.
    """
    inputs, outputs = params
    if (inputs is not None and len(inputs) != len(base)) or (outputs is not None and len(outputs) != base.shape[1]):
        got = f"scales of {' and '.join('nothing' if l is None else str(len(l)) for l in params)}"
        raise invalid("params", got=got, wants=f"as many as base, {base.shape}, has rows and columns")
    scaled_rows = base if inputs is None else inputs[:, None] * base
    weight = scaled_rows if outputs is None else scaled_rows * outputs  # (1)

    def backward(dweight):
        scaled_columns = base if outputs is None else base * outputs
        dinputs = None if inputs is None else np.vecdot(dweight, scaled_columns)  # (2)
        doutputs = None if outputs is None else np.vecdot(dweight, scaled_rows, axis=0)  # (3)
        return Ia3(dinputs, doutputs)

    return weight, backward


@checked
def with_ia3(trained: object, *, base: Any) -> tuple[Any, Backward]:
    """The tree of a model whose maps are scaled, and backward: dtree -> dtrained. The tree is the merged model, too.

    trained is like base, with Ia3 in the place of linear maps and None elsewhere (init_ia3 makes it). A scale of what a map
    makes scales the bias with the weight.
    Raises ValueError, naming the place, where trained has not the structure of base or a scale does not fit.
    """

    def spread(own: Any, node: Any) -> Any:
        """Ia3 of a map as one of its weight, and one of its bias where that is scaled."""
        if isinstance(own, Ia3) and isinstance(node, Linear):
            parts: tuple[Any, Any] = own, None if node.bias is None or own.outputs is None else Ia3(None, own.outputs)
            return trees.like(node, list(parts))
        mine, inner = trees.children(own), trees.children(node)
        if not mine or not inner or len(mine) != len(inner):
            return own                                       # None, a leaf, or what reparameterize refuses by name
        return trees.like(own, [spread(a, b) for (_, a), (_, b) in zip(mine, inner, strict=True)])

    def change(own: Ia3, *, base: Array) -> tuple[Array, Backward]:
        made, backward = ia3(own, base=np.atleast_2d(base))  # a bias is a matrix of one row
        return made.reshape(base.shape), lambda dmade: backward(np.atleast_2d(dmade))

    tree, back = reparameterize(spread(trained, base), base=base, change=change)

    def gather(own: Any, found: Any) -> Any:
        if isinstance(own, Ia3):
            of_weight, of_bias = found
            return of_weight if of_bias is None else of_weight._replace(outputs=of_weight.outputs + of_bias.outputs)  # two uses  (4)
        mine, inner = trees.children(own), trees.children(found)
        return trees.like(own, [gather(a, b) for (_, a), (_, b) in zip(mine, inner, strict=True)]) if mine and inner else found

    return tree, lambda dtree: gather(trained, back(dtree))


@procedure(
    title="Unmerge (IA)^3",
    source="Liu et al. 2022, arXiv:2205.05638, section 3.3",
    example=lambda rng: example((Linear(rng.normal(size=(5, 4)), rng.normal(size=4)),), (Ia3(None, rng.uniform(0.5, 2, size=4)),)),
    rejects=[bad("trained", trained=(Ia3(None, np.array([1.0, 0.0, 2.0, 1.0])),))],
)
def unmerge_ia3(tree: Any, trained: object) -> Any:
    """The model before it was scaled, by division: to rounding, as the product was rounded. Who kept the base has it exactly.

    Raises ValueError, naming the place, for a scale of 0, which has left nothing to divide, or one that is not finite.
    """
    for path, scale in trees.leaves(trained):
        if not (scale.dtype.kind == "f" and np.isfinite(scale).all() and scale.all()):
            raise invalid(f"trained.{path}", got="a scale of 0 or one that is not finite", wants="numbers that can be divided by")
    return with_ia3(trees.map(np.reciprocal, trained), base=tree)[0]
