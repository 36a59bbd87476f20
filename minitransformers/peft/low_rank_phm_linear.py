"""Low-rank PHM layer: a PHM layer whose every block is a product of two thin matrices.

A PHM layer saves numbers and no time. With blocks of rank r, in which x meets the thin sides first, it saves both:
r (d_in + d_out) numbers a layer, and n r (d_in + d_out + n^2) multiplications a position. The rules A_i are shared by all layers of
a model, in Compacter, as what is common to them; left and right are a layer's own.
Source: Karimi Mahabadi et al. 2021, arXiv:2106.04647, section 3.2. x is cut into n parts x_a of p = d_in / n features, the output
into n parts of q = d_out / n; S_i is p by r, T_i is r by q.

    thin_a,i = x_a S_i                                       (1)
    mixed_b,i = sum over a of A_i[a, b] thin_a,i             (2)
    out_b = sum over i of mixed_b,i T_i, plus bias_b         (3)
    dmixed_b,i = dout_b T_i^T                                (4)
    dT_i = sum over positions and b of mixed_b,i^T dout_b, dbias = sum over positions of dout   (5)
    dA_i[a, b] = sum over positions of thin_a,i . dmixed_b,i   (6)
    dthin_a,i = sum over b of A_i[a, b] dmixed_b,i           (7)
    dS_i = sum over positions and a of x_a^T dthin_a,i       (8)
    dx_a = sum over i of dthin_a,i S_i^T                     (9)
    W = sum over i of A_i (x) B_i, B_i = S_i T_i             (10)
    dS_i = dB_i T_i^T, dT_i = S_i^T dB_i, dB_i and dA_i of (10)   (11)

(10) and (11) are low_rank_phm_weight, for a map that is to be an ordinary one.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid
from minitransformers.peft.phm_linear import check_fits, parts_of, phm_weight


class LowRankPhmLinear(NamedTuple):
    """The thin sides of each block, S_i and T_i, and a bias or None."""

    left: Float[Array, "n p rank"]
    right: Float[Array, "n rank q"]
    bias: Float[Array, "d_out"] | None = None


@checked
def init_low_rank_phm_linear(
    rng: np.random.Generator, d_in: Annotated[int, at_least(1)], d_out: Annotated[int, at_least(1)], *, n: Annotated[int, at_least(1)] = 4,
    rank: Annotated[int, at_least(1)] = 1, std: Annotated[float, at_least(0)] | None = None, bias: bool = True, dtype: type = np.float32,
) -> LowRankPhmLinear:  # fmt: skip
    """Normal sides and a zero bias: left of deviation 1/sqrt(p), right of ``std``, with 0 the map is zero at first.

    The default of std, 1/sqrt(n rank), keeps the variance of x beside rules of init_phm_rules.
    Raises ValueError where n does not divide d_in and d_out, or rank is above d_in / n or d_out / n.
    """
    p, q = parts_of(n, d_in=d_in, d_out=d_out)
    _check_rank("rank", rank, p, q)
    left: Array = (p**-0.5 * rng.standard_normal((n, p, rank))).astype(dtype)
    right: Array = (((n * rank) ** -0.5 if std is None else std) * rng.standard_normal((n, rank, q))).astype(dtype)
    return LowRankPhmLinear(left, right, np.zeros(d_out, dtype) if bias else None)


def _check_rank(name: str, rank: int, p: int, q: int) -> None:
    if not 1 <= rank <= min(p, q):
        raise invalid(name, got=f"a rank of {rank}", wants=f"1 to {min(p, q)}, the most that blocks of {p} by {q} can have")


@concept(
    title="Low-rank PHM layer",
    source="Karimi Mahabadi et al. 2021, arXiv:2106.04647, section 3.2",
    example=lambda rng: example(
        LowRankPhmLinear(rng.normal(size=(3, 5, 2)), rng.normal(size=(3, 2, 4)), rng.normal(size=12)),
        rng.normal(size=(3, 3, 3)) / 2, rng.normal(size=(2, 7, 15)) / 2,
    ),
    rejects=[
        bad(x=np.ones((2, 7, 14))), bad("params.bias", params=LowRankPhmLinear(np.ones((3, 5, 2)), np.ones((3, 2, 4)), np.ones(11))),
        bad("params.left", params=LowRankPhmLinear(np.ones((3, 5, 5)), np.ones((3, 5, 4)), None)),
    ],
)  # fmt: skip
def low_rank_phm_linear(
    params: Annotated[LowRankPhmLinear, "n p rank q d_out"], rules: Float[Array, "n n n"], x: Float[Array, "... d_in"]
) -> tuple[Array, Backward]:
    """Map the last axis of x, n p features, to n q features, through n rank numbers for each part.

    rules (n, n, n) may be those of other layers as well: its gradient is that of this use, and those of all uses add.
    Returns out (..., n q), and backward: dout -> LowRankPhmLinear of gradients, drules, dx.
    Raises ValueError when the features are not n parts of p, the bias not n parts of q, or rank is above p or q.
    """
    (left, right, bias), (n, p, rank), q = params, params.left.shape, params.right.shape[-1]
    _check_rank("params.left", rank, p, q)
    check_fits(x, bias, n=n, p=p, q=q)

    def turned(array):                                       # (positions, part, i, rank) <-> (i, part, positions, rank)
        return np.ascontiguousarray(array.transpose(2, 1, 0, 3))

    rows, beside, below = x.reshape(-1, p), left.transpose(1, 0, 2).reshape(p, n * rank), right.reshape(n * rank, q)
    thin = turned((rows @ beside).reshape(-1, n, n, rank)).reshape(n, n, -1)  # (i, a, positions rank)  (1)
    mixed = rules.swapaxes(1, 2) @ thin                      # (i, b, positions rank)  (2)
    spread = turned(mixed.reshape(n, n, -1, rank)).reshape(-1, n * rank)  # (positions b, i rank)
    out = (spread @ below).reshape(*x.shape[:-1], n * q)
    if bias is not None:
        out += bias                                          # (3)

    def backward(dout):
        drows = dout.reshape(-1, q)                          # (positions b, q)
        dspread = drows @ below.T
        dmixed = turned(dspread.reshape(-1, n, n, rank)).reshape(n, n, -1)  # (4)
        dright = (spread.T @ drows).reshape(n, rank, q)
        dbias = None if bias is None else dout.reshape(-1, n * q).sum(axis=0)  # (5)
        drules = thin @ dmixed.swapaxes(1, 2)                # (6)
        dthin = turned((rules @ dmixed).reshape(n, n, -1, rank)).reshape(-1, n * rank)  # (positions a, i rank)  (7)
        dleft = (rows.T @ dthin).reshape(p, n, rank).transpose(1, 0, 2)  # (8)
        dx = (dthin @ beside.T).reshape(x.shape)             # (9)
        return LowRankPhmLinear(dleft, dright, dbias), drules, dx

    return out, backward


@concept(
    title="Low-rank PHM layer, its weight",
    source="Karimi Mahabadi et al. 2021, arXiv:2106.04647, section 3.2",
    example=lambda rng: example(LowRankPhmLinear(rng.normal(size=(3, 5, 2)), rng.normal(size=(3, 2, 4))), rng.normal(size=(3, 3, 3))),
    form_of="low_rank_phm_linear",
    rejects=[
        bad("params.left", params=LowRankPhmLinear(np.ones((3, 5, 5)), np.ones((3, 5, 4)))),
        bad("params.bias", params=LowRankPhmLinear(np.ones((3, 5, 2)), np.ones((3, 2, 4)), np.ones(12))),
    ],
)
def low_rank_phm_weight(
    params: Annotated[LowRankPhmLinear, "n p rank q d_out"], rules: Float[Array, "n n n"], *, base: Array | None = None
) -> tuple[Array, Backward]:
    """The weight (n p, n q) that low_rank_phm_linear multiplies by; params have no bias.

    As change of reparameterize it makes a weight of a model in the place of base, which gives it its shape and nothing else.
    Returns weight, and backward: dweight -> LowRankPhmLinear of gradients, drules.
    Raises ValueError when there is a bias, or rank is above p or q.
    """
    (left, right, bias), (_, p, rank), q = params, params.left.shape, params.right.shape[-1]
    _check_rank("params.left", rank, p, q)
    if bias is not None:
        raise invalid("params.bias", got="an array", wants="None: it is no part of the weight")
    weight, weight_backward = phm_weight(left @ right, rules)  # (10)

    def backward(dweight):
        dblocks, drules = weight_backward(dweight)
        dleft, dright = dblocks @ right.swapaxes(1, 2), left.swapaxes(1, 2) @ dblocks  # (11)
        return LowRankPhmLinear(dleft, dright), drules

    return weight, backward
