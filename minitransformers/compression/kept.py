"""Which units of a part stay when the others go: the choice checked, and what is learned for each unit cut with it."""

import typing
from collections.abc import Sequence
from typing import Any

from minitransformers.foundation import invalid, trees


def kept_places(kept: Sequence[int], total: int, *, units: str) -> list[int]:
    """The numbers of the units that stay, in ascending order.

    Raises ValueError, naming kept, where none stays, one is named twice, or one is not from 0 to total - 1.
    """
    places = sorted(kept)
    if not places:
        raise invalid("kept", got=f"no {units}", wants="at least one: to be rid of all, leave out the part")
    if places[0] < 0 or places[-1] >= total:
        raise invalid("kept", got=places[0] if places[0] < 0 else places[-1], wants=f"{units} from 0 to {total - 1}")
    if len(set(places)) < len(places):
        raise invalid("kept", got=list(kept), wants=f"each of the {units} at most once")
    return places


def cut_axes(tree: Any, axis: str, places: list[int]) -> Any:
    """Parameters of which every axis of that name, as their tuples' annotations have it, keeps these places alone.

    An axis of 1 stands for all, and stays.
    """
    inner = trees.children(tree)
    if not inner:
        return tree
    hints = typing.get_type_hints(type(tree), include_extras=True) if hasattr(tree, "_fields") else {}

    def cut(name: str, part: Any) -> Any:
        hint = hints.get(name)
        dims: list[str] = next((own.dim_str.split() for own in (hint, *typing.get_args(hint)) if hasattr(own, "dim_str")), [])
        if part is None or axis not in dims:
            return cut_axes(part, axis, places)
        along = dims.index(axis) - len(dims)
        return part if part.shape[along] == 1 else part.take(places, axis=along)

    return trees.like(tree, [cut(name, part) for name, part in inner])
