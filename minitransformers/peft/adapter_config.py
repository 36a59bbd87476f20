"""adapter_config.json: the settings that decide what the tensors of an adapter mean, and those that nothing here can mean.

Whatever would make another function of the same tensors is refused by its name. What only concerned the training (dropout, how
the factors started, the length of an optimiser's memory) is passed over.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

# Other kinds of adapters than plain factors; and starts that leave the base's own weights alone.
_OTHER_KINDS = ("alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "lora_bias", "modules_to_save",
                "monteclora_config", "target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora")  # fmt: skip
_STARTS = (True, False, "gaussian", "eva", "orthogonal")


def read_adapter_config(file: Path) -> dict[str, Any]:
    """The settings that decide what the tensors mean. Raises ValueError for those under which they are no LoRA or DoRA of ours."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise ValueError(f"{file}: is not a whole JSON file") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file}: is not a JSON object of settings")

    def refused(name: str, wants: str) -> ValueError:
        return ValueError(f"{file}: {name}: got {config.get(name)!r:.80}, wants {wants}")

    if config.get("peft_type") != "LORA":
        raise refused("peft_type", "'LORA'")
    if config.get("bias", "none") != "none":
        raise refused("bias", "'none': biases are not part of the adapter here")
    if config.get("init_lora_weights", True) not in _STARTS:
        raise refused("init_lora_weights", "a start that leaves the base as it is")
    for name in _OTHER_KINDS:
        if config.get(name):
            raise refused(name, "nothing: it is not supported here")
    for name in ("rank_pattern", "alpha_pattern"):
        config[name] = config.get(name) or {}
        if not isinstance(config[name], dict) or not all(map(_is_pattern, config[name])):
            raise refused(name, "a map of names to numbers")
    for name in ("use_rslora", "use_dora"):
        config[name] = config.get(name) or False
        if not isinstance(config[name], bool):
            raise refused(name, "true or false")
    for name, kind in (("r", "rank"), ("lora_alpha", "alpha")):
        for value in (config.get(name), *config[f"{kind}_pattern"].values()):
            if isinstance(value, bool) or not isinstance(value, int if name == "r" else (int, float)) or not 0 < value < float("inf"):
                raise ValueError(f"{file}: {name}: got {value!r:.80}, wants a {'whole number of at least 1' if name == 'r' else 'number above 0'}")
    return config


def of_module(pattern: dict[str, Any], module: str, default: Any) -> Any:
    """What a pattern says of a map: the first key that is its name, or the end of it, as a regular expression."""
    return next((value for key, value in pattern.items() if re.fullmatch(rf"(.*\.)?({key})", module)), default)


def _is_pattern(key: str) -> bool:
    try:
        return bool(re.compile(key))
    except re.error:
        return False
