"""The tensors of an adapter: which belong to which maps of a published model, and what our factors are in them.

peft keeps torch.nn.Linear's layout, so each is the transpose of ours: lora_A is (rank, d_in) and lora_B is (d_out, rank). Where
the published model keeps several of our maps side by side, lora_A serves them all, and each has rows of its own in lora_B.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.foundation import invalid
from minitransformers.models.weights import Names, Place
from minitransformers.peft.dora import Dora
from minitransformers.peft.lora_linear import Lora

PREFIX, _COPY = "base_model.model.", ".base_layer.weight"
_NAME = re.compile(r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(\.weight)?")


def place_of(names: Names, path: str) -> Place | None:
    """Where a map of the tree lies in the published model: its layers are the numbers in the path."""
    parts = path.split(".")
    place = names.places.get(".".join("*" if part.isdigit() else part for part in parts))
    if place is not None:
        for number in filter(str.isdigit, parts):
            place = place._replace(name=place.name.replace("*", number, 1))
    return place


def joined(parts: dict[str, tuple[Place, Lora | Dora]]) -> tuple[Array, Array, Array | None]:
    """One pair of factors, and a magnitude, for the maps that the published model keeps side by side."""
    (first, (place, own)), *_ = parts.items()
    if place.of == 1:
        return own.down, own.up, own.magnitude if isinstance(own, Dora) else None
    by_part = {place.part: factors for place, factors in parts.values()}
    if isinstance(own, Dora) and len(by_part) < place.of:
        raise invalid(f"trained.{first}", got=f"DoRA on {len(by_part)} of the {place.of} parts of {place.name}", wants="all of them, or none")
    magnitude = np.concatenate([by_part[i].magnitude for i in range(place.of)]) if isinstance(own, Dora) else None  # type: ignore[union-attr]
    if len(by_part) == place.of and all(np.array_equal(factors.down, own.down) for factors in by_part.values()):
        return own.down, np.hstack([by_part[i].up for i in range(place.of)]), magnitude
    (rank, width), dtype = own.up.shape, own.up.dtype
    down = np.hstack([by_part[i].down for i in sorted(by_part)])
    up = np.zeros((rank * len(by_part), width * place.of), dtype)
    for k, i in enumerate(sorted(by_part)):
        up[k * rank : (k + 1) * rank, i * width : (i + 1) * width] = by_part[i].up
    return down, up, magnitude


def part_of(tensors: dict[str, tuple[str, Array]], place: Place, dtype: Any) -> Lora | Dora:
    """Our factors of one map, from the tensors of the published one, of which it may be a part."""
    down = np.array(tensors["lora_A"][1].T, dtype, order="C")
    up = np.array(np.split(tensors["lora_B"][1].T, place.of, axis=1)[place.part], dtype, order="C")
    if "lora_magnitude_vector" not in tensors:
        return Lora(down, up)
    return Dora(down, up, np.array(np.split(tensors["lora_magnitude_vector"][1], place.of)[place.part], dtype))


def by_module(arrays: dict[str, Array], places: dict, names: Names, file: Path) -> dict[str, dict[str, tuple[str, Array]]]:
    """The tensors of each map that the model has. Raises ValueError for any other."""
    found: dict[str, dict[str, tuple[str, Array]]] = {}
    for name, array in arrays.items():
        if name.endswith(_COPY):
            continue
        match = _NAME.fullmatch(_bare(name, names))
        if match is None or array.dtype.kind != "f":
            raise ValueError(f"{file}: {name} of {array.dtype} is no tensor of LoRA or DoRA, whose names end in lora_A.weight, lora_B.weight or lora_magnitude_vector")
        if match["module"] not in places:
            known = ", ".join(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", module) for module in places))
            raise ValueError(f"{file}: {name} belongs to a map that this base has not: it has {known}")
        found.setdefault(match["module"], {})[match["part"]] = name, array
    if not found:
        raise ValueError(f"{file}: holds no tensors of an adapter")
    return found


def check_copies(arrays: dict[str, Array], places: dict, weights: dict[str, Array], names: Names, file: Path) -> None:
    """Hold copies of the base's own weights, which peft writes beside the factors of a head, against this base."""
    for name, array in arrays.items():
        if name.endswith(_COPY):
            (path, place), *more = places.get(_bare(name, names).removesuffix(_COPY), {"": None}).items()
            own = None if more or place is None else weights[path].T if place.transposed else weights[path]
            if own is None or not np.array_equal(array.astype(own.dtype), own):
                raise ValueError(f"{file}: {name} of shape {array.shape} is a weight of another base, wants this one's own")


def _bare(name: str, names: Names) -> str:
    """A tensor's name in the model, without what peft and the model's own class put in front."""
    return name.removeprefix(PREFIX).removeprefix(names.prefix)
