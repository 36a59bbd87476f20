"""A matrix made smaller without any training: rounded, with numbers left out, or made thin; with a look at what it is multiplied with or without.

Each is ``make(weight, inputs)``. What is rounded or masked is the matrix that a model computes with; group is how many weights of a column share a
step, None for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.compression.awq import awq
from minitransformers.compression.gptq import gptq_blocked
from minitransformers.compression.low_rank_linear import LowRankFactors, break_even_rank, svd_factors
from minitransformers.compression.magnitude_pruning import magnitude_mask
from minitransformers.compression.n_m_sparsity import n_m_mask
from minitransformers.compression.quantize import dequantize_symmetric, in_groups, largest_magnitude, quantize_symmetric
from minitransformers.compression.tensor_train import tt_svd
from minitransformers.compression.tt_linear import TensorTrain
from minitransformers.compression.wanda import wanda_mask, wanda_scores
from minitransformers.compression.weighted_svd import weighted_svd
from minitransformers.peft.nf4 import dequantize_nf4, quantize_nf4
from minitransformers.reporting.observed import Inputs


def rounded(weight: Array, inputs: Inputs | None = None, *, bits: int, group: int | None = None, clip: Callable = largest_magnitude) -> Array:
    """Each number to the nearest code."""
    return dequantize_symmetric(quantize_symmetric(in_groups(weight, size=group or len(weight)), bits=bits, clip=clip)).reshape(weight.shape)


def by_gptq(weight: Array, inputs: Inputs, *, bits: int, group: int | None = None, clip: Callable = largest_magnitude) -> Array:
    """Row by row; those behind make up for what rounding did."""
    quantize = partial(quantize_symmetric, clip=clip)
    stored: Any = gptq_blocked(weight, gram=inputs.gram, bits=bits, group=group, quantize=quantize)
    return dequantize_symmetric(stored).reshape(weight.shape)


def by_awq(weight: Array, inputs: Inputs, *, bits: int, group: int | None = None, clip: Callable = largest_magnitude, candidates: int = 20) -> Array:
    """The weight with which a model computes whose inputs are divided by the factors: in the norm in front, or as they come."""

    def quantize(stretched: Array):
        return quantize_symmetric(in_groups(stretched, size=group or len(weight)), bits=bits, clip=clip)

    found = awq(weight, magnitudes=inputs.mean_magnitudes, gram=inputs.gram, quantize=quantize, candidates=candidates)
    return dequantize_symmetric(found.weight).reshape(weight.shape) / found.factors[:, None]


def in_nf4(weight: Array, inputs: Inputs | None = None) -> Array:
    """Codes of four bits on the steps of NF4."""
    return dequantize_nf4(quantize_nf4(weight))


def masked(weight: Array, inputs: Inputs | None = None, *, mask: Callable) -> Array:
    """The numbers where ``mask(weight, inputs)`` is true, and 0 elsewhere."""
    return np.where(mask(weight, inputs), weight, 0)


# Masks for masked: of the larger half, and of two of each four, by magnitude or by what is missed where the inputs are these.
def half(weight: Array, inputs: Inputs | None = None) -> Array:
    """The larger half."""
    return magnitude_mask(weight, sparsity=0.5)


def pairs(weight: Array, inputs: Inputs | None = None) -> Array:
    """The two largest of each four."""
    return n_m_mask(weight, n=2, m=4)


def wanda_half(weight: Array, inputs: Inputs) -> Array:
    """The half of each column that is missed most where the inputs are these."""
    return wanda_mask(weight, norms=inputs.norms, sparsity=0.5)


def wanda_pairs(weight: Array, inputs: Inputs) -> Array:
    """The two of each four that are missed most where the inputs are these."""
    return n_m_mask(wanda_scores(weight, norms=inputs.norms), n=2, m=4)


# What stands in the place of a matrix, with a share of its numbers
def thin(weight: Array, inputs: Inputs | None = None, *, share: float = 0.5) -> LowRankFactors:
    """Two thin matrices: those nearest to the weight, or those whose outputs are nearest where the inputs are these."""
    rank = max(1, int(share * break_even_rank(*weight.shape)))
    return svd_factors(weight, rank=rank) if inputs is None else weighted_svd(weight, inputs.root, rank=rank)


def train_of(weight: Array, *, share: float = 0.5) -> TensorTrain:
    """A tensor train with open gates that holds at most that share: by TT-SVD, with the least tolerance for all cuts that does it."""
    (rows, columns), low, high = (_digits(size) for size in weight.shape), 0.0, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        cores = tt_svd(weight, rows=rows, columns=columns, tolerance=middle)
        if sum(core.size for core in cores) <= share * weight.size:
            high, best = middle, cores
        else:
            low = middle
    return TensorTrain(best, [np.ones(core.shape[2], weight.dtype) for core in best[:-1]])


def _digits(size: int) -> tuple[int, int]:
    """Two factors of it as near to each other as there are, the smaller one first."""
    first = next(n for n in range(math.isqrt(size), 0, -1) if size % n == 0)
    return first, size // first
