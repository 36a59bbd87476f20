"""What a published model is beside its weights: sizes and settings."""

from typing import Any, NamedTuple


class Configuration(NamedTuple):
    """A published model: sizes are what its init_<model> takes, settings what <model> and, where there is one, <model>_step take."""

    sizes: dict[str, Any]
    settings: dict[str, Any]
