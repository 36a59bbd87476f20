"""The command about published models and data: weights. It looks at what is there, and fetches nothing."""

from __future__ import annotations

import argparse
import json

from minitransformers.models.published import PUBLISHED, cache_folder, state_of
from minitransformers.reporting.tables import aligned


def weights(arguments: argparse.Namespace) -> int:
    """``minitransformers weights``."""
    models = list(PUBLISHED.values())
    if arguments.json:
        rows = [model._asdict() | {"state": state_of(model), "obtain": model.obtain} for model in models]
        print(json.dumps({"folder": str(cache_folder()), "models": rows}, indent=2, ensure_ascii=False))
        return 0
    table = [[model.name, model.kind, model.what, f"{model.megabytes:.0f} MB", model.licence, state_of(model)] for model in models]
    print(aligned(["name", "kind", "what", "size", "licence", "state"], table))
    print(f"\nFolder: {cache_folder()}")
    absent = [model for model in models if state_of(model) == "absent"]
    if absent:
        print("To obtain what is absent (it is downloaded, not installed, and its checksum is looked at before it is used):\n")
        print("\n".join(model.obtain for model in absent))
    return 0
