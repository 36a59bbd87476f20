"""Every way of making the small Llama of ``base`` smaller: how it begins, what learns, and the bits that a matrix takes as it would be stored.

Codes are packed, with a step of 16 bits a column; a mask is a bit a place; AWQ's factors have 16 bits a row, and so has each number that is not
made smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.compression.calibration import least_error_magnitude
from minitransformers.compression.low_rank_linear import low_rank_weight
from minitransformers.compression.masked_weight import MaskedWeight, masked_weight
from minitransformers.compression.movement_pruning import init_movement_pruning
from minitransformers.compression.tt_linear import tt_weight
from minitransformers.foundation import reparameterize, trees
from minitransformers.models.llama import Llama
from minitransformers.peft.targets import targets
from minitransformers.reporting import matrices
from minitransformers.reporting.base import load_base
from minitransformers.reporting.compression import smaller as of
from minitransformers.reporting.compression.changes import Sparser, by_learned_steps, masked_and_stepped, stepped
from minitransformers.reporting.compression.rounded_inputs import but_outliers, reads_rounded, smoothed
from minitransformers.reporting.compression.smaller_parts import fewer_heads, fewer_layers, fewer_units, student

USUAL, BETWEEN, HIGHER = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # learning rates to try


class Learning(NamedTuple):
    """``train(start, rng)`` is what is trained, and change makes the weights of it; or ``following(steps)`` does, and follows the updates."""

    train: Callable = lambda start, rng: start
    change: Callable | None = None
    following: Callable | None = None
    from_teacher: bool = False
    rates: Sequence[float] = USUAL


class Way(NamedTuple):
    """``begin(rng)`` is the model at the start, ``bits(weight)`` what a matrix of it takes, learning None where it stays as it begins."""

    begin: Callable[[np.random.Generator], Llama]
    bits: Callable[[Array], float]
    learning: Learning | None = None
    model: Callable = of.reads
    rest: int = 16                                           # bits of a number that is in no matrix


def made(way: Way, rng: np.random.Generator, *, steps: int, rate: float | None, reported: bool = True) -> tuple[Llama, float]:
    """The model at the end of a way, and the kilobytes that it takes; rate is of what learns."""
    start = tree = way.begin(rng)
    chosen = set(targets(start, of.MATRICES))
    bits = sum(way.bits(leaf) if path in chosen else way.rest * leaf.size for path, leaf in trees.leaves(start))
    if way.learning is not None and rate is not None:
        train, change, following, from_teacher, _ = way.learning
        watch = None
        if following is not None:
            change = following(steps)
            watch = change.follow
        settings = {"base": start, "change": change, "model": way.model, "teacher": load_base() if from_teacher else None}
        params = of.learned(train(start, rng), rng, steps=steps, rate=rate, watch=watch, reported=reported, **settings)
        tree, _ = reparameterize(params, base=start, change=change)
    return tree, bits / 8000


# How a model begins, begin(rng)
def whole(rng: np.random.Generator) -> Llama:
    """The base as it is."""
    return load_base()


def with_matrices(make: Callable) -> Callable:
    """The base with ``make(weight)`` for each matrix."""
    return lambda rng: of.at_matrices(make, load_base())


def with_a_look(make: Callable) -> Callable:
    """The base with ``make(weight, inputs)`` for all matrices that read the same."""
    return lambda rng: of.side_by_side(make, load_base(), of.base_inputs(rng))


def thinned(rng: np.random.Generator) -> Llama:
    """The base with the products of thin matrices, chosen by inputs."""
    return reparameterize(thin_by_inputs(load_base(), rng), base=load_base(), change=low_rank_weight)[0]


# What is trained, train(start, rng)
def each(make: Callable) -> Callable:
    """``make(weight)`` in the place of each matrix."""
    return lambda start, rng: of.at_matrices(make, start)


def thin_by_inputs(start: Llama, rng: np.random.Generator) -> Any:
    """Thin matrices that are chosen by inputs."""
    return of.at_matrices(matrices.thin, start, of.base_inputs(rng))


# Bits of a matrix
def numbers(weight: Array, *, bits: float = 16) -> float:
    """So many for each number."""
    return bits * weight.size


def codes(weight: Array, *, bits: float, factors: bool = False) -> float:
    """So many for each number, and 16 for the step of each column, and the factor of each row where there are any."""
    return bits * weight.size + 16 * (weight.shape[1] + factors * weight.shape[0])


def of_thin(weight: Array) -> float:
    """16 for each number of the thin matrices."""
    return 16 * trees.count_parameters(matrices.thin(weight))


def of_train(weight: Array) -> float:
    """16 for each number of the cores; the gates go into them."""
    return 16 * trees.count_parameters(matrices.train_of(weight).cores)


FLOAT, STUDENT = "floats of 32 bits", "a student of half the width, learned"
half_masked, eight = partial(numbers, bits=16 / 2 + 1), partial(codes, bits=8)
by_error: dict[str, Any] = {"clip": least_error_magnitude}
larger_half, larger_pairs = with_matrices(partial(matrices.masked, mask=matrices.half)), with_matrices(partial(matrices.masked, mask=matrices.pairs))
WAYS: dict[str, Way] = {
    FLOAT: Way(whole, partial(numbers, bits=32), rest=32),
    "floats of 16 bits": Way(with_matrices(lambda weight: weight.astype(np.float16).astype(np.float32)), numbers),
    "8 bits": Way(with_matrices(partial(matrices.rounded, bits=8, **by_error)), eight),
    "8 bits, inputs too": Way(with_matrices(partial(matrices.rounded, bits=8)), eight, model=reads_rounded),
    "8 bits, inputs too, SmoothQuant": Way(smoothed, eight, model=reads_rounded),
    "8 bits, inputs too, LLM.int8": Way(with_matrices(partial(matrices.rounded, bits=8)), eight, model=partial(reads_rounded, round_off=but_outliers)),
    "NF4": Way(with_matrices(matrices.in_nf4), partial(numbers, bits=4 + 16 / 64)),
    **{f"{few} bits": Way(with_matrices(partial(matrices.rounded, bits=few, **by_error)), partial(codes, bits=few)) for few in (4, 3)},
    **{f"{few} bits, GPTQ": Way(with_a_look(partial(matrices.by_gptq, bits=few, **by_error)), partial(codes, bits=few)) for few in (4, 3)},
    **{f"{few} bits, AWQ": Way(with_a_look(partial(matrices.by_awq, bits=few, **by_error)), partial(codes, bits=few, factors=True)) for few in (4, 3)},
    **{f"{few} bits, learned": Way(whole, partial(codes, bits=few), Learning(each(partial(stepped, bits=few)), by_learned_steps(few))) for few in (3, 2)},
    "half, magnitude": Way(larger_half, half_masked),
    "half, Wanda": Way(with_a_look(partial(matrices.masked, mask=matrices.wanda_half)), half_masked),
    "2 of 4, magnitude": Way(larger_pairs, half_masked),
    "2 of 4, Wanda": Way(with_a_look(partial(matrices.masked, mask=matrices.wanda_pairs)), half_masked),
    "half, magnitude, learned": Way(larger_half, half_masked, Learning(each(MaskedWeight), masked_weight)),
    "half, movement, learned": Way(whole, half_masked, Learning(each(init_movement_pruning), following=partial(Sparser, 0.5), rates=BETWEEN)),
    "2 of 4, magnitude, learned": Way(larger_pairs, half_masked, Learning(each(MaskedWeight), masked_weight)),
    "half, magnitude, 3 bits, learned": Way(
        larger_half, partial(codes, bits=3 / 2 + 1), Learning(each(partial(stepped, bits=3)), partial(masked_and_stepped, bits=3))
    ),
    "half of the heads, learned": Way(fewer_heads, numbers, Learning()),
    "half of the units, learned": Way(fewer_units, numbers, Learning()),
    "two layers of three, learned": Way(fewer_layers, numbers, Learning()),
    "thin, by inputs": Way(thinned, of_thin),
    "thin, learned": Way(whole, of_thin, Learning(each(matrices.thin), low_rank_weight)),
    "thin, by inputs, learned": Way(whole, of_thin, Learning(thin_by_inputs, low_rank_weight)),
    "tensor train, learned": Way(whole, of_train, Learning(each(matrices.train_of), tt_weight, rates=BETWEEN)),
    STUDENT: Way(student, numbers, Learning(from_teacher=True, rates=HIGHER)),
}
