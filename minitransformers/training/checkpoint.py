"""A checkpoint: one file that holds all that a run is, so that a killed run ends as if it had not been.

One .safetensors file is one generation: the arrays, and in its metadata the step, the configuration, the state of every
random generator and the history so far. It replaces the last generation by a rename, so at every moment there is exactly
one, and it is whole. Two files could be caught between two renames; that is why the state is not in a file of its own.
A copy for people lies beside it (``.json``) and is never read.

Nothing is unpickled: a checkpoint from a stranger can be wrong, but it cannot run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.foundation import trees
from minitransformers.foundation.atomic import write_atomically
from minitransformers.foundation.safetensors import read_safetensors, write_safetensors

_FORMAT = "minitransformers checkpoint 2"


def save_checkpoint(path: str | Path, groups: Mapping[str, trees.Tree], state: Mapping[str, Any]) -> None:
    """Write trees of arrays, each under the name of its group, and a state that json can write.

    A leaf is stored under its path: ``parameters.blocks.0.mixer.query.weight``.
    Raises ValueError for a state with a number that is not finite.
    """
    path = Path(path)
    arrays = {f"{group}.{place}": leaf for group, tree in groups.items() for place, leaf in trees.leaves(tree)}
    text = json.dumps(state, allow_nan=False)
    write_safetensors(path, arrays, metadata={"format": _FORMAT, "state": text, "sha256": _fingerprint(arrays, text)})
    for_people = {key: value for key, value in state.items() if key not in ("history", "random")}
    write_atomically(path.with_suffix(".json"), [json.dumps(for_people, indent=2).encode() + b"\n"], durable=False)


class Checkpoint(NamedTuple):
    """What a checkpoint holds: arrays by group and path, and the state."""

    path: Path
    arrays: dict[str, Array]
    state: dict[str, Any]

    def tree(self, group: str, template: trees.Tree) -> trees.Tree:
        """The arrays of a group in a tree like the template.

        Raises ValueError that lists the arrays that are missing, left over, of another shape or of another dtype.
        """
        prefix = f"{group}."
        found = {name.removeprefix(prefix): array for name, array in self.arrays.items() if name.startswith(prefix)}
        what = f"{self.path}: {group}"
        for place, leaf in trees.leaves(template):
            if place in found and found[place].dtype != leaf.dtype:
                raise ValueError(f"{what}: {place} is {found[place].dtype}, should be {leaf.dtype}")
        return trees.from_paths(template, found, what=what)

    def field(self, name: str, fits: Callable[[Any], bool], *, wants: str) -> Any:
        """One field of the state. Raises ValueError that names it where it is missing or does not fit."""
        if name not in self.state:
            raise ValueError(f"{self.path}: {name}: got nothing, wants {wants}")
        value = self.state[name]
        if not fits(value):
            raise ValueError(f"{self.path}: {name}: got {short(value)}, wants {wants}")
        return value

    def require(self, **wanted: Any) -> None:
        """Raise ValueError that says where the state differs from what is wanted."""
        for key, value in wanted.items():
            if found := differences(self.state.get(key), json.loads(json.dumps(value)), key):
                rest = f"; and {len(found) - 3} more" if len(found) > 3 else ""
                raise ValueError(f"{self.path}: was made with another configuration: {'; '.join(found[:3])}{rest}")


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint. Raises ValueError that names the file when it is missing, damaged or something else."""
    path = Path(path)
    arrays, metadata = read_safetensors(path)
    if metadata.get("format") != _FORMAT or "state" not in metadata:
        raise ValueError(f"{path}: is not a checkpoint of this version: its format is {metadata.get('format')!r}, wants {_FORMAT!r}")
    if metadata.get("sha256") != _fingerprint(arrays, metadata["state"]):
        raise ValueError(f"{path}: is damaged: its contents do not have the fingerprint that was written with them")
    try:
        state = json.loads(metadata["state"])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: state: is not JSON: {error}") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path}: state: got {short(state)}, wants an object with fields")
    return Checkpoint(path, arrays, state)


def differences(saved: Any, wanted: Any, path: str) -> list[str]:
    """Where two trees of JSON differ: ``model.d_model is 128 there and 64 here``."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        keys = [*wanted, *(key for key in saved if key not in wanted)]
        return [line for key in keys for line in differences(saved.get(key), wanted.get(key), f"{path}.{key}")]
    if saved == wanted:
        return []
    return [f"{path} is {short(saved)} there and {short(wanted)} here"]


def short(value: Any) -> str:
    """A value of JSON as a message shows it, whatever it is."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):                      # nested too deeply, or a number with too many digits
        text = f"a {type(value).__name__} too large to be shown"
    return text if len(text) <= 40 else f"{text[:20]}…{text[-16:]}"


def _fingerprint(arrays: Mapping[str, Array], state: str) -> str:
    digest = hashlib.sha256(state.encode())
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
