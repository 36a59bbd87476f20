"""BitFit: of a whole model only the biases are trained, a thousandth of its parameters.

A bias says where a feature stands before anything has been read; it opens and closes what the frozen weights compute. Nothing is
added to the model, so nothing is slower afterwards, and what a task changed is a handful of vectors. Their gradient is the sum
of what arrives, and needs no activation; that of the weights is not needed at all. Which arrays are biases is told by what they
are, the vector that a layer adds to its output, declared as ``bias`` in the layer's own tuple: linear maps, convolutions, the
shift of a norm; the words in a path say nothing. In blocks of d features with biases on queries, keys, values, outputs and a
feed-forward network of f features, behind two layer norms, they are 7 d + f a block. A model without biases (Llama) has
nothing to train. Source: Ben Zaken, Ravfogel and Goldberg 2022, arXiv:2106.10199, section 3. Differs from the paper: the head
of the task is trained with them if it is asked for.

    trained = the biases of base, and of the matrices those asked for; None for all else   (1)
"""

import functools
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.linear import Linear
from minitransformers.foundation import bad, example, invalid, procedure, trees
from minitransformers.norms.layer_norm import LayerNorm
from minitransformers.peft.targets import targets


@procedure(
    title="BitFit",
    source="Ben Zaken, Ravfogel and Goldberg 2022, arXiv:2106.10199, section 3",
    example=lambda rng: _example(rng),
    rejects=[bad(base=[Linear(np.ones((2, 3)), None)]), bad("patterns", also=["value.weight"])],
)
def bitfit(base: Any, *, also: Sequence[str] = ()) -> Any:
    """A tree like base with a copy of each bias, to be trained, and None in the place of all else: what reparameterize takes.

    also are patterns (see targets) of matrices that are trained besides: the head of the task, ["head.weight"].
    Raises ValueError where base has no bias, and as targets does for a pattern that matches nothing.
    """
    chosen = set(biases(base))
    if not chosen:
        raise invalid("base", got="a model without a bias", wants="one that has some (layer norms do, RMS norms do not)")
    if also:
        chosen |= set(targets(base, also))
    return trees.map(np.copy, trees.partition(base, lambda path, leaf: path in chosen)[0])  # (1)


def biases(tree: trees.Tree, path: str = "") -> Iterator[str]:
    """The paths of the biases: arrays of one axis in a field that their own tuple declares as one, ``bias`` or ``..._bias``."""
    declared = _bias_fields(type(tree)) if isinstance(tree, tuple) and hasattr(tree, "_fields") else frozenset()
    for name, child in trees.children(tree) or []:
        place = f"{path}.{name}" if path else name
        if name in declared and isinstance(child, np.ndarray) and child.ndim == 1:
            yield place
        yield from biases(child, place)


@functools.cache
def _bias_fields(cls: type) -> frozenset[str]:
    hints = typing.get_type_hints(cls)
    return frozenset(name for name, hint in hints.items() if (name == "bias" or name.endswith("_bias")) and hint is not Any)


class _Model(NamedTuple):
    """A classifier of the example: a norm, a linear map, a head."""

    norm: Annotated[LayerNorm, "d_model"]
    up: Annotated[Linear, "d_model d_hidden"]
    head: Float[Array, "d_hidden classes"]


def _example(rng: np.random.Generator):
    norm, up = LayerNorm(*rng.normal(size=(2, 5))), Linear(rng.normal(size=(5, 3)), rng.normal(size=3))
    return example(_Model(norm, up, rng.normal(size=(3, 2))), also=["head"])
