"""Everything that decides how a run goes, apart from the task and the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from minitransformers.foundation import invalid


@dataclass(frozen=True)
class TrainingConfig:
    """Raises ValueError that names the field for values outside their range."""

    steps: int = 2000                  # updates
    micro_batches: int = 1             # parts that a batch is computed in: less memory, same update
    threads: int = 1                   # micro-batches computed side by side; 2 pays for small models
    learning_rate: float = 1e-3        # at its peak
    warmup: float = 0.05               # part of the steps that the rate climbs
    floor: float = 0.1                 # part of the peak that is left at the end
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.1          # per unit of learning rate, on the weights of linear maps and convolutions
    clip: float | None = 1.0           # largest gradient norm; None does not clip
    seed: int = 0                      # of the initial weights, the batches and dropout
    eval_every: int = 250              # steps; 0 evaluates at the end only
    checkpoint_every: int = 250        # steps; 0 saves at the end only

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        for name in ("steps", "micro_batches", "threads"):
            self._whole(name, 1)
        for name in ("seed", "eval_every", "checkpoint_every"):
            self._whole(name, 0)
        if self.micro_batches % self.threads:
            raise invalid("threads", got=self.threads, wants=f"a divisor of the micro-batches, {self.micro_batches}")
        self._number("learning_rate", lambda rate: rate > 0, "a number above 0")
        self._number("warmup", lambda part: 0 <= part <= 1, "a part from 0 to 1")
        self._number("floor", lambda part: 0 <= part <= 1, "a part from 0 to 1")
        self._number("eps", lambda eps: eps > 0, "a number above 0")
        self._number("weight_decay", lambda decay: decay >= 0, "a number of at least 0")
        if self.clip is not None:
            self._number("clip", lambda norm: norm > 0, "a number above 0, or None")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise invalid("betas", got=self.betas, wants="two numbers from 0 to below 1")

    def _whole(self, name: str, smallest: int) -> None:
        value = getattr(self, name)
        if type(value) is not int or value < smallest:
            raise invalid(name, got=repr(value), wants=f"a whole number of at least {smallest}")

    def _number(self, name: str, fits, wants: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not fits(value):
            raise invalid(name, got=repr(value), wants=wants)

    @property
    def warmup_steps(self) -> int:
        """The updates that the rate climbs."""
        return round(self.warmup * self.steps)

    def to_json(self) -> dict[str, Any]:
        """A dict that json can write and from_json reads."""
        return {**asdict(self), "betas": list(self.betas)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """The configuration of such a dict. Raises ValueError for unknown fields."""
        if unknown := sorted(values.keys() - {field.name for field in fields(cls)}):
            raise ValueError(f"training configuration: unknown fields {', '.join(unknown)}")
        return cls(**values)
