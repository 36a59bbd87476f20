"""Modules: differences of weights that were trained apart, put on a model in any choice and taken off again.

Each module is a tree of differences, one for each attribute that it is to hide. The model's own weights are never written to: a model
with some modules on is another tree, which shares every array that no module changes. So taking all off gives the same bits as
before, and the modules are always added in one order, whichever order they are asked for in. Nothing says that two modules that
were trained apart work together: their sum has to be measured.

Source: Hauzenberger et al. 2023, arXiv:2205.15171, sections 3 and 4. delta_m is what stands in module m, z o delta of masked_difference.

    delta = z o difference, for each array that was trained  (1)
    weight = base + sum over the modules m that are on of delta_m   (2)
    size = how many numbers of delta are not 0               (3)
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from minitransformers.bias_mitigation.hard_concrete import settled_gates
from minitransformers.bias_mitigation.masked_difference import MaskedDifference
from minitransformers.foundation import above, bad, example, invalid, negative, procedure, trees


@procedure(
    title="Module of differences",
    source="Guo, Rush and Kim 2021, arXiv:2012.07463, section 3",
    example=lambda rng: example([MaskedDifference(*rng.normal(size=(2, 5, 4))), None]),
    rejects=[
        bad(trained=[None, None]), bad(trained=[np.ones((5, 4)), None]), bad("trained.0.alpha", trained=[MaskedDifference(np.ones((5, 4)), np.ones((5, 1))), None]),
    ],
)  # fmt: skip
def difference_module(trained: object, *, low: Annotated[float, negative] = -0.1, high: Annotated[float, above(1)] = 1.1) -> Any:
    """What masked_difference adds to each array once training is over: a tree with the differences, and None elsewhere.

    trained is what reparameterize was given. low and high as they were in training.
    Raises ValueError where trained holds anything but MaskedDifference and None, or nothing at all.
    """

    def settled(node: Any, path: str) -> Any:
        if isinstance(node, MaskedDifference):
            for name, part in node._asdict().items():
                if not isinstance(part, np.ndarray):
                    raise invalid(f"trained{path}.{name}", got=type(part).__name__, wants="an array")
            if node.alpha.shape != node.difference.shape:
                raise invalid(f"trained{path}.alpha", got=f"shape {node.alpha.shape}", wants=f"{node.difference.shape}, that of the difference")
            return settled_gates(node.alpha, low=low, high=high)[0] * node.difference  # (1)
        inner = trees.children(node)
        if inner is None:
            raise invalid(f"trained{path}", got=type(node).__name__, wants="MaskedDifference, or None where nothing was trained")
        return trees.like(node, [settled(child, f"{path}.{name}") for name, child in inner])

    module = settled(trained, "")
    if not any(True for _ in trees.leaves(module)):
        raise invalid("trained", got="nothing in any place", wants="MaskedDifference in the place of an array, at least one")
    return module


@procedure(
    title="A model with some modules on",
    source="Hauzenberger et al. 2023, arXiv:2205.15171, section 4",
    example=lambda rng: example(
        [rng.normal(size=(5, 4)), rng.normal(size=4)], modules={name: [rng.normal(size=(5, 4)), None] for name in ("one", "two")}, on=["two", "one"]
    ),
    rejects=[
        bad(on=["three"]), bad(on=["one", "one"]), bad("modules.one.0", modules={"one": [np.ones((5, 3)), None]}, on=["one"]),
        bad("modules.one", modules={"one": [np.ones((5, 4))]}, on=["one"]), bad(modules=b"x"), bad("modules.one.0", modules={"one": [np.full((5, 4), np.nan), None]}, on=["one"]),
    ],
)  # fmt: skip
def with_modules(base: object, *, modules: Mapping[str, Any], on: Sequence[str]) -> Any:
    """The model's tree with the sum of the modules that are on; base itself where none is.

    modules are trees of differences by name, as difference_module makes them; on are names of them, in any order: the result
    is the same to the last bit. base is not written to, and arrays that no module changes are shared with it.
    Raises ValueError for a name that no module has or that stands twice, and, naming the place, for differences that do not fit
    or are not finite.
    """
    if not isinstance(modules, Mapping):
        raise invalid("modules", got=type(modules).__name__, wants="trees of differences by name")
    for name in on:
        if name not in modules:
            raise invalid("on", got=repr(name), wants=f"names of modules: {', '.join(modules)}")
    if len(set(on)) < len(on):
        raise invalid("on", got=list(on), wants="each module at most once")

    def add(leaf: Any, parts: list[tuple[str, Any]]) -> Any:
        parts = [(path, part) for path, part in parts if part is not None]
        if not parts:
            return leaf
        inner = trees.children(leaf)
        if inner is not None:
            names = [name for name, _ in inner]
            columns = []
            for path, part in parts:
                found = trees.children(part)
                if leaf is None or found is None or [name for name, _ in found] != names:
                    raise invalid(path, got=type(part).__name__, wants=f"{type(leaf).__name__} or None, as base has")
                columns.append([(f"{path}.{name}", child) for name, child in found])
            return trees.like(leaf, [add(child, [column[i] for column in columns]) for i, (_, child) in enumerate(inner)])
        total = leaf
        for path, part in parts:
            if np.shape(part) != leaf.shape or not np.isfinite(part).all():
                raise invalid(path, got=f"shape {np.shape(part)}, or numbers that are not finite", wants=f"finite numbers of shape {leaf.shape}, as base has")
            total = total + part                             # (2)
        return total.astype(leaf.dtype, copy=False)

    return add(base, [(f"modules.{name}", module) for name, module in modules.items() if name in on])


@procedure(
    title="Size of a module",
    source="Guo, Rush and Kim 2021, arXiv:2012.07463, section 4",
    example=lambda rng: example([np.where(rng.random((5, 4)) < 0.3, rng.normal(size=(5, 4)), 0), None]),
    rejects=[bad(module=[None])],
)
def module_size(module: object) -> int:
    """How many numbers of a module are not zero, and so have to be stored. Raises ValueError for a module without an array."""
    leaves = [leaf for _, leaf in trees.leaves(module)]
    if not leaves:
        raise invalid("module", got="nothing in any place", wants="at least one array of differences")
    return sum(int(np.count_nonzero(leaf)) for leaf in leaves)  # (3)
