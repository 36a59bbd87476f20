"""Adapters in files: LoRA and DoRA as Hugging Face's peft writes and reads them.

    save_adapter("mine", trained, names=llama.NAMES, alpha=16)
    adapter = load_adapter("mine", base=base, names=llama.NAMES)
    tree, back = reparameterize(adapter.trained, base=base, change=adapter.change)

A folder holds adapter_model.safetensors, the factors under the model's published names, and adapter_config.json, what their
numbers mean. Published models may keep several of our maps side by side in one (GPT-2's query, key and value): peft then has
one lora_A for all of them. What is written differs from what peft would write only there, and only where our maps have
factors of their own: it is one adapter of higher rank, whose lora_B is zero where a factor has nothing to do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.basics.linear import Linear
from minitransformers.foundation import invalid, trees
from minitransformers.foundation.atomic import write_atomically
from minitransformers.foundation.safetensors import read_safetensors, write_safetensors
from minitransformers.models.weights import Names, Place
from minitransformers.peft.adapter_config import of_module, read_adapter_config
from minitransformers.peft.adapter_tensors import PREFIX, by_module, check_copies, joined, part_of, place_of
from minitransformers.peft.dora import Dora, dora_detached
from minitransformers.peft.lora import lora
from minitransformers.peft.lora_linear import Lora, lora_scale, rank_stabilised_scale

ARRAYS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True, eq=False)
class Adapter:
    """What a file held: factors in the places of the weights that they change, their scale, and the change for reparameterize."""

    trained: Any
    scale: float
    change: Callable


def save_adapter(
    folder: str | Path, trained: trees.Tree, *, names: Names, alpha: float, rank_stabilised: bool = False, base_model: str = ""
) -> None:
    """Write an adapter into a folder, which is made, for peft or load_adapter to read.

    trained has Lora, or Dora, in the place of the weight of each linear map that it changes and None elsewhere; names is the
    table of the model. The scale is not in the arrays: alpha says it, as lora_scale(alpha, rank), or with rank_stabilised as
    rank_stabilised_scale. base_model is the published name of the model, for peft's own use.
    Raises ValueError, naming the place, for other kinds of leaves, ranks that differ, and a map that the table does not know.
    """
    held = dict(_factors(trained))
    if not held:
        raise invalid("trained", got="nothing in any place", wants="Lora or Dora in the place of a weight, at least one")
    first, rank = next(iter(held.items()))[0], next(iter(held.values())).down.shape[1]
    for path, own in held.items():
        if type(own) is not type(held[first]) or own.down.shape[1] != rank:
            got = f"{type(own).__name__} of rank {own.down.shape[1]}"
            raise invalid(f"trained.{path}", got=got, wants=f"{type(held[first]).__name__} of rank {rank}, as at {first}")
    scale_of = rank_stabilised_scale if rank_stabilised else lora_scale
    scale = scale_of(alpha, rank)
    modules: dict[str, dict[str, tuple[Place, Lora | Dora]]] = {}
    for path, own in held.items():
        place = place_of(names, path)
        if place is None:
            raise invalid(f"trained.{path}", got="a map without a published name", wants=f"maps such as {', '.join(list(names.places)[:4])}")
        modules.setdefault(names.prefix + place.name.removesuffix(".weight"), {})[path] = place, own
    arrays: dict[str, Array] = {}
    ranks, alphas = {}, {}
    for module, parts in modules.items():
        down, up, magnitude = joined(parts)
        arrays[f"{PREFIX}{module}.lora_A.weight"], arrays[f"{PREFIX}{module}.lora_B.weight"] = down.T, up.T
        if magnitude is not None:
            arrays[f"{PREFIX}{module}.lora_magnitude_vector"] = magnitude
        if (own_rank := down.shape[1]) != rank:              # a higher rank at the same scale
            ranks[module], alphas[module] = own_rank, scale / scale_of(1.0, own_rank)
    config = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base_model, "inference_mode": True,
        "r": rank, "lora_alpha": int(alpha) if alpha == int(alpha) else alpha, "lora_dropout": 0.0, "bias": "none",
        "target_modules": list(modules), "rank_pattern": ranks, "alpha_pattern": alphas, "modules_to_save": None, "init_lora_weights": True,
        "fan_in_fan_out": not any(place.transposed for parts in modules.values() for place, _ in parts.values()),
        "use_rslora": rank_stabilised, "use_dora": isinstance(held[first], Dora),
    }  # fmt: skip
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / ARRAYS, arrays, metadata={"format": "pt"})
    write_atomically(folder / CONFIG, [json.dumps(config, indent=2).encode()])


def load_adapter(folder: str | Path, *, base: trees.Tree, names: Names) -> Adapter:
    """Read what peft, or save_adapter, has written for the model whose parameters base are.

    The factors are cast to the dtype of the weights that they change. Maps that the published model keeps in one have copies
    of its one lora_A, which further training may move apart. DoRA trains with its norm held, as in peft.
    Raises ValueError that names the file where it is not there, cut off or damaged; the setting that means something else
    than LoRA or DoRA; the tensor that this model has no place for, and its shape where it is that of another model.
    """
    folder = Path(folder)
    config = read_adapter_config(folder / CONFIG)
    arrays, _ = read_safetensors(folder / ARRAYS)
    places: dict[str, dict[str, Place]] = {}
    weights = {}
    for path, layer in _maps(base):
        if (place := place_of(names, path)) is not None:
            places.setdefault(place.name.removesuffix(".weight"), {})[path] = place
            weights[path] = layer.weight
    check_copies(arrays, places, weights, names, folder / ARRAYS)
    found, wanted = by_module(arrays, places, names, folder / ARRAYS), {"lora_A", "lora_B"}
    if config["use_dora"]:
        wanted = {*wanted, "lora_magnitude_vector"}
    made: dict[str, Lora | Dora] = {}
    scales = {}
    for module, tensors in found.items():
        if tensors.keys() != wanted:
            raise ValueError(f"{folder / ARRAYS}: {module} has {', '.join(sorted(tensors))}, wants {', '.join(sorted(wanted))}")
        rank = of_module(config["rank_pattern"], names.prefix + module, config["r"])
        d_in, d_out = weights[next(iter(places[module]))].shape
        whole = d_out * next(iter(places[module].values())).of
        shapes = {"lora_A": (rank, d_in), "lora_B": (whole, rank), "lora_magnitude_vector": (whole,)}
        for part, (name, array) in tensors.items():
            if array.shape != shapes[part]:
                at = ", ".join(places[module])
                raise ValueError(f"{folder / ARRAYS}: {name} has shape {array.shape}, wants {shapes[part]} for this base, at {at}")
        if rank > min(d_in, d_out):
            raise ValueError(f"{folder / CONFIG}: {module} has the rank {rank}, wants at most {min(d_in, d_out)}, as it is {d_in} by {d_out}")
        scale_of = rank_stabilised_scale if config["use_rslora"] else lora_scale
        scales[module] = scale_of(of_module(config["alpha_pattern"], names.prefix + module, config["lora_alpha"]), rank)
        for path, place in places[module].items():
            made[path] = part_of(tensors, place, weights[path].dtype)
    first, scale = next(iter(scales.items()))
    for module, own in scales.items():
        if not np.isclose(own, scale, rtol=1e-12):
            raise ValueError(f"{folder / CONFIG}: alpha_pattern: got a scale of {own:.6g} at {module} and {scale:.6g} at {first}, wants one for all")
    trained = _in_places(base, made)
    return Adapter(trained, scale, partial(dora_detached if config["use_dora"] else lora, scale=scale))


def _factors(tree: Any, path: str = "") -> Iterator[tuple[str, Lora | Dora]]:
    """What stands in the place of the weights of linear maps. Raises ValueError for anything that stands elsewhere."""
    if isinstance(tree, Linear) and isinstance(tree.weight, (Lora, Dora)) and tree.bias is None:
        yield f"{path}.weight" if path else "weight", tree.weight
        return
    inner = trees.children(tree)
    if inner is None or isinstance(tree, (Lora, Dora)):
        raise invalid(f"trained.{path}", got=type(tree).__name__, wants="Lora or Dora, in the place of a linear map's weight")
    for name, child in inner:
        yield from _factors(child, f"{path}.{name}" if path else name)


def _maps(tree: Any, path: str = "") -> Iterator[tuple[str, Linear]]:
    """Every linear map, by the path of its weight."""
    if isinstance(tree, Linear):
        yield f"{path}.weight" if path else "weight", tree
        return
    for name, child in trees.children(tree) or []:
        yield from _maps(child, f"{path}.{name}" if path else name)


def _in_places(base: Any, made: dict[str, Any], path: str = "") -> Any:
    """A tree like base, with what was made in its places and None elsewhere."""
    inner = trees.children(base)
    if path in made or inner is None:
        return made.get(path)
    return trees.like(base, [_in_places(child, made, f"{path}.{name}" if path else name) for name, child in inner])
