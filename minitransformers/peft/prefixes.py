"""Prefixes of all layers in the tree of a model, whose code is not touched: they go to the slot ``core`` of every attention.

    tree, back = with_prefixes(keys, values, base=frozen)
    out, backward = model(tree, ..., core=prefix_attention)
    dkeys, dvalues = back(backward(dout))
"""

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, checked, invalid, trees
from minitransformers.peft.prefix_attention import Prefix
from minitransformers.positional.learned import Learned


@checked
def init_prefixes(
    rng: np.random.Generator, *, num_layers: Annotated[int, at_least(1)], num_kv_heads: Annotated[int, at_least(1)],
    length: Annotated[int, at_least(1)], d_head: Annotated[int, at_least(1)], std: Annotated[float, at_least(0)] = 0.02,
    dtype: type = np.float32,
) -> tuple[Array, Array]:  # fmt: skip
    """Normal keys and values of deviation ``std`` for all layers of a model, as with_prefixes takes them.

    They are 2 num_layers num_kv_heads length d_head numbers; num_kv_heads is num_heads where queries are not grouped.
    """
    shape = (2, num_layers, num_kv_heads, length, d_head)
    keys, values = (std * rng.standard_normal(shape)).astype(dtype)
    return keys, values


@checked
def with_prefixes(
    keys: Float[Array, "layers kv_heads prefix d_head"], values: Float[Array, "layers kv_heads prefix d_value"], *, base: Any
) -> tuple[Any, Backward]:
    """A tree like base whose attentions have a prefix each, in the order of the tree, for a model with core=prefix_attention.

    What base's own cores learned stays, frozen, as that of the cores inside: ``core=partial(prefix_attention, core=theirs)``.
    Returns the tree, and backward: dtree -> dkeys, dvalues. (The model's backward makes the gradients of base's weights as well;
    here they are dropped.)
    Raises ValueError where base has another number of attentions, or one whose keys or values are of another width; and for
    a prefix longer than the context, where base has a table of positions.
    """
    places = list(_attentions(base))
    if len(keys) != len(places):
        wants = f"one for each attention of base: {', '.join(path for path, _ in places) or 'there is none'}"
        raise invalid("keys", got=f"those of {len(keys)} layers", wants=wants)
    check_context("keys", keys.shape[2], base)
    prefixes = [Prefix(*own) for own in zip(keys, values, strict=True)]
    for prefix, (path, node) in zip(prefixes, places, strict=True):
        for name in ("key", "value"):
            own, weight = getattr(prefix, name), getattr(node, name).weight
            if own.shape[0] * own.shape[2] != weight.shape[1]:
                wants = f"heads that are together as wide as {path}.{name}, {weight.shape[1]}"
                raise invalid(f"{name}s", got=f"{own.shape[0]} heads of {own.shape[2]}", wants=wants)
    supply = iter(prefixes)

    def put(node: Any) -> Any:
        inner = trees.children(node)
        if not inner:
            return node
        made = trees.like(node, [put(child) for _, child in inner])
        return made._replace(core=next(supply)._replace(core=node.core)) if _has_core(node) else made

    def backward(dtree: Any) -> tuple[Array, Array]:
        found = [node.core for _, node in _attentions(dtree)]
        return np.stack([own.key for own in found]), np.stack([own.value for own in found])

    return put(base), backward


def check_context(argument: str, positions: int, base: Any) -> None:
    """Raise ValueError, naming the argument, where base has a table of fewer positions."""
    for path, node in _nodes(base):
        if isinstance(node, Learned) and positions > len(node.table):
            raise invalid(argument, got=f"{positions} positions", wants=f"at most the context, {len(node.table)}, of {path}")


def _has_core(node: Any) -> bool:
    return "core" in getattr(node, "_fields", ()) and "key" in node._fields and not isinstance(node, Prefix)


def _nodes(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every inner node and its path, children before their parent."""
    for name, child in trees.children(tree) or []:
        yield from _nodes(child, f"{path}.{name}" if path else name)
    yield path, tree


def _attentions(tree: Any) -> Iterator[tuple[str, Any]]:
    return ((path, node) for path, node in _nodes(tree) if _has_core(node))
