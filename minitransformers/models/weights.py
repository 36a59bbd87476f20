"""Weights in and out: published names to the paths of a tree of parameters and back, for any model, by a table.

    NAMES = Names({"blocks.*.attention.output.weight": transposed("model.layers.*.self_attn.o_proj.weight"), ...})
    params = NAMES.tree(skeleton, read_arrays("model.safetensors"))
    arrays = NAMES.arrays(params)

A * stands for the number of a layer. A table says where each leaf lies: as it is, transposed (torch.nn.Linear keeps (d_out,
d_in), we keep (d_in, d_out)), or beside others in one array. Missing and unexpected names and shapes that do not fit are
refused by name; nothing is filled halfway.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.foundation import InvalidArgument, invalid, trees
from minitransformers.foundation.safetensors import read_safetensors
from minitransformers.foundation.signature import check_tree
from minitransformers.models.torch_file import read_torch_file


class Place(NamedTuple):
    """Where a leaf lies: the name of an array, which of how many parts side by side along the output axis, transposed or not."""

    name: str
    part: int = 0
    of: int = 1
    transposed: bool = False


def plain(name: str) -> Place:
    """The array itself."""
    return Place(name)


def transposed(name: str) -> Place:
    """The array with its two axes exchanged."""
    return Place(name, transposed=True)


def packed(name: str, part: int, *, of: int, transposed: bool = False) -> Place:
    """One of several parts of equal size that lie side by side along the output axis: the last one, or the first where transposed."""
    return Place(name, part, of, transposed)


def read_arrays(source: Mapping[str, Array] | str | Path) -> dict[str, Array]:
    """The arrays of a dict, of a .safetensors file, of PyTorch's first format (.bin), or of a sharded model (its .index.json).

    Of a folder the first of model.safetensors.index.json, model.safetensors and pytorch_model.bin that is there. float16 and bfloat16 become float32: here models compute in float32 or float64.
    Raises ValueError that names the file where it cannot be read, and for a shard that lacks an array the index promises.
    """
    if isinstance(source, Mapping):
        arrays = {name: np.asarray(array) for name, array in source.items()}
    else:
        arrays = _read_files(Path(source))
    return {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in arrays.items()}


def _read_files(path: Path) -> dict[str, Array]:
    if path.is_dir():
        single = path / "model.safetensors"
        known = (path / "model.safetensors.index.json", single, path / "pytorch_model.bin")
        path = next((file for file in known if file.exists()), single)
    if path.suffix != ".json":
        return _read_file(path)
    try:
        shards = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        places = {str(name): path.parent / file for name, file in shards.items()}
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: is not the index of a sharded model: it wants a weight_map of names to files") from None
    arrays: dict[str, Array] = {}
    for file in sorted(set(places.values())):
        held = _read_file(file)
        if absent := sorted(name for name, place in places.items() if place == file and name not in held):
            raise ValueError(f"{file}: lacks {absent[0]}, which {path.name} says is in it")
        arrays |= {name: array for name, array in held.items() if places.get(name) == file}
    return arrays


def _read_file(path: Path) -> dict[str, Array]:
    return read_torch_file(path) if path.suffix == ".bin" else read_safetensors(path)[0]


def drop_tied(arrays: dict[str, Array], head: str, table: str) -> bool:
    """Whether a head is the embedding's table: it is missing, or says the same again, and is then taken out."""
    own = arrays.get(head)
    tied = own is None or (table in arrays and np.array_equal(own, arrays[table]))
    if tied:
        arrays.pop(head, None)
    return tied


@dataclass(frozen=True)
class Names:
    """The table of one model.

    places maps our paths to theirs, with * for the number of a layer. prefix may stand in front of all their names. ignored are
    endings of names that hold no weights; tied are names that may repeat another array, and must then equal it.
    """

    places: Mapping[str, Place]
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)

    def stripped(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The arrays without the prefix, without what is ignored and without what is tied.

        Raises ValueError for a name that stands there with and without the prefix, and a tied array with values of its own.
        """
        named = [(name.removeprefix(self.prefix), array) for name, array in arrays.items() if not name.endswith(self.ignored)]
        found = dict(named)
        if len(found) < len(named):
            raise invalid("weights", got=f"a name with and without {self.prefix} in front", wants="each weight once")
        for name, other in self.tied.items():
            own = found.pop(name, None)
            if own is not None and not (other in found and np.array_equal(own, found[other])):
                raise invalid("weights", got=f"an {name} of its own", wants=f"{other} again")
        return found

    def count(self, start: str, arrays: Mapping[str, Array]) -> int:
        """How many layers there are whose names start so ("h.*."), by the largest number. Raises ValueError for none."""
        layer = re.compile(re.escape(start).replace(r"\*", r"(\d+)"))
        numbers = [int(found[1]) for found in map(layer.match, arrays) if found]
        if not numbers:
            got = f"names such as {', '.join(list(arrays)[:2])}" if arrays else "no arrays"
            raise invalid("weights", got=got, wants=f"those of one model, which start with {self.prefix}{start.replace('*', '0')}")
        return min(1 + max(numbers), len(arrays))            # where there are fewer arrays than layers, tree names what is missing

    def shape(self, name: str, arrays: Mapping[str, Array], *, axes: int) -> tuple[int, ...]:
        """The shape of one array, from which a size is read off. Raises ValueError where it is missing or has other axes."""
        if name not in arrays or arrays[name].ndim != axes:
            got = f"no {name}" if name not in arrays else f"{name} of shape {arrays[name].shape}"
            raise invalid("weights", got=got, wants=f"an array {name} with {axes} axes")
        return arrays[name].shape

    def tree(self, skeleton: trees.Tree, arrays: Mapping[str, Array]) -> trees.Tree:
        """A tree with the structure of skeleton (whose own numbers do not matter), filled from the arrays, which stripped has made.

        Raises ValueError that lists missing and unexpected names, or names the first array whose shape does not fit.
        """
        places = {path: self._place(path) for path, _ in trees.leaves(skeleton)}
        wanted = {place.name for place in places.values()}
        kinds = {"missing": sorted(wanted - arrays.keys()), "unexpected": sorted(arrays.keys() - wanted)}
        problems = [f"{kind} {', '.join(names[:4])}{', …' if len(names) > 4 else ''}" for kind, names in kinds.items() if names]
        if problems:
            raise invalid("weights", got="; ".join(problems), wants="the weights of one model")
        tree = trees.unflatten(skeleton, [_taken(arrays[place.name], place) for place in places.values()])
        try:
            check_tree("params", tree)
        except InvalidArgument as error:
            path = str(error).partition(":")[0].removeprefix("params.")
            theirs = places[path].name if path in places else path
            raise invalid("weights", got=f"{theirs} of shape {arrays[theirs].shape}" if theirs in arrays else theirs, wants=str(error)) from None
        return tree

    def arrays(self, tree: trees.Tree) -> dict[str, Array]:
        """The parameters, or their gradients, under the published names."""
        parts: dict[str, dict[int, tuple[Place, Array]]] = {}
        for path, leaf in trees.leaves(tree):
            place = self._place(path)
            parts.setdefault(place.name, {})[place.part] = (place, leaf.T if place.transposed else leaf)
        joined = {}
        for name, held in parts.items():
            place, first = held[0]
            in_order = [held[i][1] for i in range(place.of)]
            joined[self.prefix + name] = first if place.of == 1 else np.concatenate(in_order, axis=0 if place.transposed else -1)
        return joined

    def _place(self, path: str) -> Place:
        numbers = re.findall(r"(?<=\.)\d+(?=\.)", path)
        if (pattern := _pattern(path)) not in self.places:
            raise invalid("skeleton", got=f"a leaf {path}", wants="leaves that the table of names knows")
        place = self.places[pattern]
        for number in numbers:
            place = place._replace(name=place.name.replace("*", number, 1))
        return place


def _pattern(path: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", path)


def _taken(array: Array, place: Place) -> Array:
    """The leaf of an array; a part of it as an array of its own."""
    if place.of > 1:
        axis = 0 if place.transposed else -1
        if not array.ndim or array.shape[axis] % place.of:
            raise invalid("weights", got=f"{place.name} of shape {array.shape}", wants=f"{place.of} equal parts side by side")
        array = np.split(array, place.of, axis=axis)[place.part]
    return np.array(array.T if place.transposed else array, order="C") if place.of > 1 or place.transposed else array
