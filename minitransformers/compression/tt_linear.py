"""A linear map whose weight is a tensor train: it is trained as small cores from the first step, and never as a matrix.

The weight is a product of 2m cores, of which m read the digits of the input's number and m those of the output's (see tensor_train).
Behind every core but the last stand gates, one number for each of its links to the next. A gate of zero takes a link away, so the
gates say how wide the chain has to be, and a penalty on them (rank_penalty) decides it while the map is trained. Then the links
without a gate are cut (prune_ranks).

Source: Yang et al. 2024 (CoMERA), arXiv:2405.14377, and its code (ziyangjoy/CoMERA), where the gates are called rank parameters; there
maps have six cores, and the bias starts at uniform numbers, here at zero. m cores belong to the inputs, d = 2m. o is the product of
elements. Gates at or below threshold count as zero and learn nothing, as in the code; without one all count, those below zero as well.

    gated_k = core_k o gates_k along its last axis, gated_d = core_d   (1)
    L_k = L_(k-1) gated_k, L_0 = 1, as (n_1 .. n_k, rank_k), for k <= m   (2)
    S_k = gated_k S_(k+1), S_(d+1) = 1, as (rank_(k-1), n_k .. n_d), for k > m   (3)
    hidden = x L_m                                           (4)
    out = hidden S_(m+1) + bias                              (5)
    dhidden = dout S_(m+1)^T                                 (6)
    dL_m = x^T dhidden, dS_(m+1) = hidden^T dout             (7)
    dx = dhidden L_m^T                                       (8)
    dgated_k = L_(k-1)^T dL_k, dL_(k-1) = dL_k gated_k^T, for k <= m   (9)
    dgated_k = dS_k S_(k+1)^T, dS_(k+1) = gated_k^T dS_k, for k > m   (10)
    dcore_k = dgated_k o gates_k, dgates_k = sum over the other axes of dgated_k o core_k   (11)
    dbias = sum over positions of dout                       (12)

The same as an ordinary weight, for a model whose code is not touched:

    weight = L_m S_(m+1)                                     (13)
    dL_m = dweight S_(m+1)^T, dS_(m+1) = L_m^T dweight       (14)
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.compression.tensor_train import Core, Digits, check_train, prefixes, suffixes
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid


class TensorTrain(NamedTuple):
    """2m cores, and the gates behind each but the last."""

    cores: list[Core]
    gates: list[Float[Array, "rank"]]


class TtLinear(NamedTuple):
    """A tensor train, and a bias or None."""

    train: TensorTrain
    bias: Float[Array, "d_out"] | None


@checked
def init_tt_linear(
    rng: np.random.Generator, rows: Digits, columns: Digits, *, ranks: Digits, std: Annotated[float, at_least(0)] | None = None,
    bias: bool = True, dtype: type = np.float32,
) -> TtLinear:  # fmt: skip
    """Normal cores whose product has the standard deviation std (default 1/sqrt(d_in + d_out)), gates of one, zero bias.

    rows and columns are digits of the input's and the output's number, as many of each; ranks are how many links there are
    between each two cores. Raises ValueError where they are not one fewer than the digits.
    """
    sizes, std = (*rows, *columns), (math.prod(rows) + math.prod(columns)) ** -0.5 if std is None else std
    if len(columns) != len(rows) or len(ranks) != len(sizes) - 1:
        raise invalid("ranks", got=f"{len(ranks)}, for {len(rows)} and {len(columns)} digits", wants="as many columns as rows, and a rank between each two")
    widths = (1, *ranks, 1)
    shapes = list(zip(widths[:-1], sizes, widths[1:], strict=True))
    # An element of the product is a sum over prod(ranks) paths, each a product of numbers of this size.
    cores = [(std ** (1 / len(sizes)) / shape[2] ** 0.5 * rng.standard_normal(shape)).astype(dtype) for shape in shapes]
    train = TensorTrain(cores, [np.ones(rank, dtype) for rank in ranks])
    return TtLinear(train, np.zeros(math.prod(columns), dtype) if bias else None)


@concept(
    title="Tensor-train linear map",
    source="Yang et al. 2024 (CoMERA), arXiv:2405.14377",
    example=lambda rng: example(TtLinear(random_train(rng), rng.normal(size=15)), rng.normal(size=(2, 7, 8)), threshold=0.3),
    rejects=[
        bad(x=np.ones((7, 9))), bad("params.bias", params=TtLinear(TensorTrain([np.ones((1, 8, 2)), np.ones((2, 15, 1))], [np.ones(2)]), np.ones(14))),
        bad("params.train.cores.1", params=TtLinear(TensorTrain([np.ones((1, 8, 2)), np.ones((3, 15, 1))], [np.ones(2)]), None)),
        bad("params.train.gates", params=TtLinear(TensorTrain([np.ones((1, 8, 2)), np.ones((2, 15, 1))], [np.ones(3)]), None)),
    ],
)  # fmt: skip
def tt_linear(params: TtLinear, x: Float[Array, "... d_in"], *, threshold: Annotated[float, at_least(0)] | None = None) -> tuple[Array, Backward]:
    """Map the last axis of x by the matrix that the train stands for: cores of each side first, then x through both.

    threshold, in units of a gate, is 0.01 in the paper's code; None lets every gate count.
    Returns out (..., d_out), and backward: dout -> TtLinear of gradients, dx.
    Raises ValueError where cores, gates, bias and x do not fit each other.
    """
    gated, gated_backward = gated_cores(params.train, threshold, "params.train.")
    check_sides(params, x)
    left, right, halves_backward = _halves(gated)
    rows = x.reshape(-1, x.shape[-1])
    hidden = rows @ left                                     # (positions, rank_m)  (4)
    out = hidden @ right
    if params.bias is not None:
        out += params.bias                                   # (5)
    out = out.reshape(*x.shape[:-1], -1)

    def backward(dout):
        drows = dout.reshape(-1, dout.shape[-1])
        dhidden = drows @ right.T                            # (6)
        dleft, dright = rows.T @ dhidden, hidden.T @ drows   # (7)
        dx = (dhidden @ left.T).reshape(x.shape)             # (8)
        dbias = None if params.bias is None else np.ones(len(drows), drows.dtype) @ drows  # (12)
        return TtLinear(gated_backward(halves_backward(dleft, dright)), dbias), dx

    return out, backward


@concept(
    title="Tensor-train linear map, its weight",
    source="Yang et al. 2024 (CoMERA), arXiv:2405.14377",
    example=lambda rng: example(random_train(rng), base=rng.normal(size=(8, 15)), threshold=0.3),
    rejects=[bad(base=np.ones((8, 14)))],
    form_of="tt_linear",
)
def tt_weight(params: TensorTrain, *, base: Float[Array, "d_in d_out"], threshold: Annotated[float, at_least(0)] | None = None) -> tuple[Array, Backward]:
    """The matrix that the train stands for in the place of base: a change for ``reparameterize``. Of base only the shape is read.

    Returns weight, shaped like base, and backward: dweight -> TensorTrain of gradients.
    Raises ValueError where cores and gates do not fit each other, or make another matrix than base.
    """
    gated, gated_backward = gated_cores(params, threshold, "params.")
    left, right, halves_backward = _halves(gated)
    if (len(left), right.shape[1]) != base.shape:
        raise invalid("base", got=f"shape {base.shape}", wants=f"{(len(left), right.shape[1])}, as the train makes")
    weight = left @ right                                    # (13)

    def backward(dweight):
        return gated_backward(halves_backward(dweight @ right.T, left.T @ dweight))  # (14)

    return weight, backward


def gated_cores(train: TensorTrain, threshold: float | None, name: str) -> tuple[list[Array], Callable]:
    """The cores with their gates in them, and backward: dgated -> TensorTrain of gradients."""
    cores, gates = train
    check_train(cores, f"{name}cores")
    if [len(own) for own in gates] != [core.shape[2] for core in cores[:-1]]:
        wants = f"{[core.shape[2] for core in cores[:-1]]}, as the cores are wide"
        raise invalid(f"{name}gates", got=f"{[len(own) for own in gates]} of them", wants=wants)
    count = [np.ones_like(own, bool) if threshold is None else own > threshold for own in gates]
    held = [own * on for own, on in zip(gates, count, strict=True)]
    gated = [*(core * own for core, own in zip(cores, held, strict=False)), cores[-1]]  # (1)

    def backward(dgated: Sequence[Array]) -> TensorTrain:
        dcores = [*(dcore * own for dcore, own in zip(dgated, held, strict=False)), dgated[-1]]
        dgates = [np.sum(dcore * core, axis=(0, 1)) * on for dcore, core, on in zip(dgated, cores, count, strict=False)]  # (11)
        return TensorTrain(dcores, dgates)

    return gated, backward


def _halves(gated: list[Array]) -> tuple[Array, Array, Callable]:
    """The cores of the inputs as one matrix, those of the outputs as another, and backward: dL_m, dS_(m+1) -> dgated."""
    half = len(gated) // 2
    before, behind = prefixes(gated[:half]), suffixes(gated[half:])  # (2) (3)

    def backward(dleft: Array, dright: Array) -> list[Array]:
        dgated: list[Array] = [np.empty(0)] * len(gated)
        for k in reversed(range(half)):
            wide = dleft.reshape(len(before[k]), -1)         # (n_1 .. n_(k-1), n_k rank_k)
            dgated[k] = (before[k].T @ wide).reshape(gated[k].shape)
            dleft = wide @ gated[k].reshape(len(gated[k]), -1).T  # (9)
        for k in range(half, len(gated)):
            tall = dright.reshape(-1, behind[k - half + 1].shape[1])  # (rank_(k-1) n_k, n_(k+1) .. n_d)
            dgated[k] = (tall @ behind[k - half + 1].T).reshape(gated[k].shape)
            dright = gated[k].reshape(-1, gated[k].shape[2]).T @ tall  # (10)
        return dgated

    return before[-1], behind[0], backward


def check_sides(params: TtLinear, x: Array) -> None:
    """Raise ValueError where x or the bias is not as wide as the train."""
    cores = params.train.cores
    d_in, d_out = (math.prod(core.shape[1] for core in side) for side in (cores[: len(cores) // 2], cores[len(cores) // 2 :]))
    if x.shape[-1] != d_in:
        raise invalid("x", got=f"{x.shape[-1]} features", wants=f"{d_in}, which the train's rows number")
    if params.bias is not None and len(params.bias) != d_out:
        raise invalid("params.bias", got=f"{len(params.bias)} features", wants=f"{d_out}, which the train's columns number")


def random_train(rng: np.random.Generator) -> TensorTrain:
    """For examples: a train of 8 by 15, some of whose gates lie below 0.3."""
    shapes = ((1, 2, 3), (3, 4, 2), (2, 3, 4), (4, 5, 1))
    gates = [np.array([0.8, 0.1, -1.2]), np.array([1.3, 0.6]), np.array([0.9, -0.4, 0.7, 0.2])]
    return TensorTrain([rng.normal(size=shape) for shape in shapes], gates)
