"""What makes the weights of a model that learns while it is small: changes for reparameterize, made of the chapter's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.compression.fake_quantize import change_by, fake_quantize
from minitransformers.compression.learned_step import Stepped, init_step, learned_step
from minitransformers.compression.magnitude_pruning import magnitude_mask, sparsity_at
from minitransformers.compression.masked_weight import MaskedWeight, masked_weight
from minitransformers.compression.movement_pruning import movement_pruning
from minitransformers.foundation import Backward


def stepped(weight: Array, *, bits: int) -> Stepped:
    """A weight and the step of each of its columns, which learns."""
    return Stepped(weight, init_step(weight, bits=bits, axis=-2))


def above_zero(weight: Array, step: Array, *, bits: int) -> tuple[Array, Backward]:
    """learned_step; a step that an update has taken to zero or below stays a little above it."""
    return learned_step(weight, np.maximum(step, 1e-4), bits=bits)


def by_learned_steps(bits: int) -> Callable:
    """The change of what ``stepped`` makes."""
    return change_by(lambda weight, step: above_zero(weight, step, bits=bits))


def masked_and_stepped(own: Stepped, *, base: Array, bits: int) -> tuple[Array, Backward]:
    """Straight through a mask, that of base's zeros, and a learned step."""
    weight, mask_backward = masked_weight(MaskedWeight(own.weight), base=base)
    out, backward = above_zero(weight, own.step, bits=bits)

    def back(dout: Array) -> Stepped:
        dweight, dstep = backward(dout)
        return Stepped(mask_backward(dweight).weight, dstep)

    return out, back


def masked_and_rounded(own: MaskedWeight, *, base: Array, bits: int) -> tuple[Array, Backward]:
    """Straight through a mask, that of base's zeros, and a rounding by the largest weight of each column."""
    weight, mask_backward = masked_weight(own, base=base)
    out, backward = fake_quantize(weight, bits=bits)
    return out, lambda dout: mask_backward(backward(dout))


class Sparser:
    """Weights under a mask that is made anew before each update: also a watch for fit, ``follow``.

    From all weights to a last share of them in the middle half of the updates. ``scores(weight, base)`` are what the mask of a MaskedWeight goes
    by; where they are None it goes by those that a ScoredWeight learns.
    """

    def __init__(self, kept: float, steps: int, *, scores: Callable | None = None) -> None:
        self.final, self.steps, self.scores = 1 - kept, steps, scores
        self.follow(0)

    def follow(self, step: int, *_: Any) -> None:
        """The share of zeros after an update."""
        self.sparsity = sparsity_at(step, final=self.final, start=self.steps // 8, duration=self.steps // 2)

    def __call__(self, own: Any, *, base: Array) -> tuple[Array, Backward]:
        """The weight under its mask, a change."""
        if self.scores is None:
            return movement_pruning(own, sparsity=self.sparsity)
        return masked_weight(own, mask=magnitude_mask(self.scores(own.weight, base), sparsity=self.sparsity))
