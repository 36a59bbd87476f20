"""A tensor-train map, one core at a time: the same products in another order, which costs less where there are few positions.

tt_linear first multiplies the cores of each side to one matrix. That does not depend on how many positions x has, so for a batch it
is next to nothing, and for a single token it is nearly all. Here x meets the first core, what comes out the second, and so on: no two
cores are multiplied with each other. Which order is the cheaper, a count of multiply-adds says, before anything is computed.

Source: Novikov et al. 2015, arXiv:1509.06569, section 4, core by core; Yang et al. 2024 (CoMERA), arXiv:2405.14377, section 4.2, on the
order of contractions. Differs from the paper: a choice between two orders, by their cost forward. n_k is the number of values of digit
k, m digits are the input's, d = 2m, b the positions, r_0 = r_d = 1. gated_k are the cores with their gates, as in tt_linear.

    state_0 = x, as (b, r_0 n_1, n_2 .. n_m)                 (1)
    state_k = gated_k^T state_(k-1), as (b, r_k n_(k+1), n_(k+2) .. n_m), for k <= m   (2)
    state_k = state_(k-1) gated_k, as (b n_(m+1) .. n_k, r_k), for k > m   (3)
    out = state_d + bias                                     (4)
    dgated_k = sum over b of state_(k-1) dstate_k^T, dstate_(k-1) = gated_k dstate_k, for k <= m   (5)
    dgated_k = state_(k-1)^T dstate_k, dstate_(k-1) = dstate_k gated_k^T, for k > m   (6)
    dbias = sum over positions of dout                       (7)

Multiply-adds forward:

    build_k = n_1 .. n_k r_(k-1) r_k for 1 < k <= m, r_(k-1) r_k n_k .. n_d for m < k < d   (8)
    cores first: sum of build_k, and b r_m (n_1 .. n_m + n_(m+1) .. n_d)   (9)
    core by core: b times the sum of r_(k-1) r_k n_k .. n_m for k <= m and of r_(k-1) r_k n_(m+1) .. n_k for k > m   (10)
    as a matrix: b n_1 .. n_d                                (11)
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.compression.tensor_train import Digits
from minitransformers.compression.tt_linear import TtLinear, check_sides, gated_cores, random_train, tt_linear
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, procedure


@concept(
    title="Tensor-train linear map, core by core",
    source="Novikov et al. 2015, arXiv:1509.06569, section 4",
    example=lambda rng: example(TtLinear(random_train(rng), rng.normal(size=15)), rng.normal(size=(2, 7, 8)), threshold=0.3),
    rejects=[bad(x=np.ones((7, 9)))],
)
def tt_linear_by_core(params: TtLinear, x: Float[Array, "... d_in"], *, threshold: Annotated[float, at_least(0)] | None = None) -> tuple[Array, Backward]:
    """What tt_linear does, x through one core after the other. Arguments, results and errors are those of tt_linear."""
    gated, gated_backward = gated_cores(params.train, threshold, "params.train.")
    check_sides(params, x)
    half, mats = len(gated) // 2, [core.reshape(-1, core.shape[2]) for core in gated[: len(gated) // 2]]
    wide = [core.reshape(len(core), -1) for core in gated[half:]]
    state: Array = x.reshape(-1, x.shape[-1])
    states: list[Array] = []
    for core in mats:
        states.append(state.reshape(-1, len(core), state[0].size // len(core)))  # (1)
        state = (core.T @ states[-1]).reshape(len(states[-1]), -1)  # (2)
    for core in wide:
        states.append(state.reshape(-1, len(core)))
        state = states[-1] @ core                            # (3)
    out = state.reshape(*x.shape[:-1], -1)
    if params.bias is not None:
        out = out + params.bias                              # (4)

    def backward(dout):
        drows = dout.reshape(-1, dout.shape[-1])
        dstate, dgated = drows, [core[:0] for core in gated]
        for k in reversed(range(half, len(gated))):
            dnext = dstate.reshape(len(states[k]), -1)
            dgated[k] = (states[k].T @ dnext).reshape(gated[k].shape)
            dstate = dnext @ wide[k - half].T                # (6)
        for k in reversed(range(half)):
            dnext = dstate.reshape(len(drows), mats[k].shape[1], -1)
            dgated[k] = np.tensordot(states[k], dnext, axes=((0, 2), (0, 2))).reshape(gated[k].shape)
            dstate = mats[k] @ dnext                         # (5)
        dbias = None if params.bias is None else np.ones(len(drows), drows.dtype) @ drows  # (7)
        return TtLinear(gated_backward(dgated), dbias), dstate.reshape(x.shape)

    return out, backward


class ContractionCosts(NamedTuple):
    """Multiply-adds of a map forward, without bias and gates."""

    cores_first: int
    core_by_core: int
    matrix: int


@procedure(
    title="Costs of contracting a tensor train",
    source="Yang et al. 2024 (CoMERA), arXiv:2405.14377, section 4.2",
    example=lambda rng: example(rows=(2, 4), columns=(3, 5), ranks=(3, 2, 4), positions=7),
    rejects=[bad("ranks", columns=(15,)), bad(ranks=(3, 2))],
)
def contraction_costs(*, rows: Digits, columns: Digits, ranks: Digits, positions: Annotated[int, at_least(1)]) -> ContractionCosts:
    """Multiply-adds that x with so many positions costs, cores first, core by core, and by the matrix that the train stands for.

    Raises ValueError where rows and columns are not as many, or ranks not one fewer than both.
    """
    if len(columns) != len(rows) or len(ranks) != 2 * len(rows) - 1:
        raise invalid("ranks", got=f"{len(ranks)}, for {len(rows)} and {len(columns)} digits", wants="as many columns as rows, and a rank between each two")
    half, sizes, widths = len(rows), (*rows, *columns), (1, *ranks, 1)
    pairs = [left * right for left, right in pairwise(widths)]
    build = sum(math.prod(sizes[: k + 1]) * pairs[k] for k in range(1, half)) + sum(pairs[k] * math.prod(sizes[k:]) for k in range(half, 2 * half - 1))  # (8)
    first = build + positions * ranks[half - 1] * (math.prod(rows) + math.prod(columns))  # (9)
    inner = sum(pairs[k] * math.prod(sizes[k:half]) for k in range(half))
    outer = sum(pairs[k] * math.prod(sizes[half : k + 1]) for k in range(half, 2 * half))
    return ContractionCosts(first, positions * (inner + outer), positions * math.prod(sizes))  # (10) (11)


@checked
def cheapest_tt_linear(params: TtLinear, x: Float[Array, "... d_in"]) -> Callable:
    """tt_linear or tt_linear_by_core, whichever takes fewer multiply-adds for an x of this shape; tt_linear where they are level.

    Raises ValueError as contraction_costs does.
    """
    cores = params.train.cores
    sizes, half = [core.shape[1] for core in cores], len(cores) // 2
    ranks = [core.shape[2] for core in cores[:-1]]
    costs = contraction_costs(rows=sizes[:half], columns=sizes[half:], ranks=ranks, positions=math.prod(x.shape[:-1]))
    return tt_linear if costs.cores_first <= costs.core_by_core else tt_linear_by_core
