"""PHM layer: a linear map whose weight is a sum of Kronecker products, which are never formed.

The weight is made of n small rules A_i, n by n, and n blocks B_i: each rule says where in the weight its block stands, and with
what factor. So a weight of d_in d_out numbers is made of d_in d_out / n and n^3. Complex numbers are the case of n = 2 with
rules that are written down; here the rules are learned (parameterised hypercomplex multiplication), and several layers may share
them: they are an argument of their own, and their gradient is the sum over their uses.
Source: Zhang et al. 2021, arXiv:2102.08597, eqs. 4 to 6. x is cut into n parts x_a of p = d_in / n features, the output into n
parts of q = d_out / n. Row (a, pi) of the weight is row a p + pi.

    mixed_b,i = sum over a of A_i[a, b] x_a                  (1)
    out_b = sum over i of mixed_b,i B_i, plus bias_b         (2)
    dmixed_b,i = dout_b B_i^T                                (3)
    dB_i = sum over positions and b of mixed_b,i^T dout_b, dbias = sum over positions of dout   (4)
    dA_i[a, b] = sum over positions of x_a . dmixed_b,i      (5)
    dx_a = sum over b and i of A_i[a, b] dmixed_b,i          (6)
    W = sum over i of A_i (x) B_i                            (7)
    dA_i[a, b] = sum of B_i times block (a, b) of dW, dB_i = sum over a and b of A_i[a, b] times it   (8)

(7) and (8) are phm_weight, for a map that is to be an ordinary one.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid


class PhmLinear(NamedTuple):
    """The blocks, and a bias or None."""

    blocks: Float[Array, "n p q"]
    bias: Float[Array, "d_out"] | None


@checked
def init_phm_rules(rng: np.random.Generator, n: Annotated[int, at_least(1)], *, dtype: type = np.float32) -> Array:
    """Rules (n, n, n), normal numbers of variance 1/n: what several layers may share."""
    return (n**-0.5 * rng.standard_normal((n, n, n))).astype(dtype)


@checked
def init_phm_linear(
    rng: np.random.Generator, d_in: Annotated[int, at_least(1)], d_out: Annotated[int, at_least(1)], *, n: Annotated[int, at_least(1)],
    bias: bool = True, dtype: type = np.float32,
) -> PhmLinear:  # fmt: skip
    """Normal blocks of variance 1/d_in, which beside rules of init_phm_rules keeps the variance of x; zero bias.

    Raises ValueError where n does not divide d_in and d_out.
    """
    p, q = parts_of(n, d_in=d_in, d_out=d_out)
    return PhmLinear((d_in**-0.5 * rng.standard_normal((n, p, q))).astype(dtype), np.zeros(d_out, dtype) if bias else None)


def parts_of(n: int, **sizes: int) -> list[int]:
    """Each size over n. Raises ValueError where n does not divide it."""
    for name, size in sizes.items():
        if size % n:
            raise invalid("n", got=n, wants=f"a number that divides {name} = {size}")
    return [size // n for size in sizes.values()]


def check_fits(x: Array, bias: Array | None, *, n: int, p: int, q: int) -> None:
    """Raise ValueError where x has not n p features, or bias not n q."""
    if x.shape[-1] != n * p:
        raise invalid("x", got=f"{x.shape[-1]} features", wants=f"{n * p}: {n} parts of {p}, as params have")
    if bias is not None and len(bias) != n * q:
        raise invalid("params.bias", got=f"{len(bias)} features", wants=f"{n * q}: {n} parts of {q}")


@concept(
    title="PHM layer",
    source="Zhang et al. 2021, arXiv:2102.08597, eqs. 4 to 6",
    example=lambda rng: example(
        PhmLinear(rng.normal(size=(3, 2, 4)), rng.normal(size=12)), rng.normal(size=(3, 3, 3)) / 2, rng.normal(size=(2, 5, 6))
    ),
    rejects=[bad(x=np.ones((2, 5, 4))), bad("params.bias", params=PhmLinear(np.ones((3, 2, 4)), np.ones(11)))],
)
def phm_linear(
    params: Annotated[PhmLinear, "n p q d_out"], rules: Float[Array, "n n n"], x: Float[Array, "... d_in"]
) -> tuple[Array, Backward]:
    """Map the last axis of x, n p features, to n q features.

    rules[i] is n by n; it says with what factor block i takes each part of x to each part of the output.
    Returns out (..., n q), and backward: dout -> PhmLinear of gradients, drules, dx.
    Raises ValueError when the features are not n parts of p, or the bias not n parts of q.
    """
    (blocks, bias), (n, p, q) = params, params.blocks.shape
    check_fits(x, bias, n=n, p=p, q=q)
    parts = x.reshape(-1, n, p)                              # (positions, a, p)
    mixing = rules.transpose(2, 0, 1).reshape(n * n, n)      # (b i, a)
    mixed = (mixing @ parts).reshape(-1, n * p)              # (positions b, i p)  (1)
    out = (mixed @ blocks.reshape(n * p, q)).reshape(*x.shape[:-1], n * q)
    if bias is not None:
        out += bias                                          # (2)

    def backward(dout):
        drows = dout.reshape(-1, q)                          # (positions b, q)
        dmixed = (drows @ blocks.reshape(n * p, q).T).reshape(-1, n * n, p)  # (positions, b i, p)  (3)
        dblocks = (mixed.T @ drows).reshape(n, p, q)
        dbias = None if bias is None else dout.reshape(-1, n * q).sum(axis=0)  # (4)
        dmixing = np.tensordot(dmixed, parts, axes=((0, 2), (0, 2)))  # (b i, a)
        drules = dmixing.reshape(n, n, n).transpose(1, 2, 0)  # (5)
        dx = (mixing.T @ dmixed).reshape(x.shape)            # (6)
        return PhmLinear(dblocks, dbias), drules, dx

    return out, backward


@concept(
    title="PHM layer, its weight",
    source="Zhang et al. 2021, arXiv:2102.08597, eq. 4",
    example=lambda rng: example(rng.normal(size=(3, 2, 4)), rng.normal(size=(3, 3, 3))),
    form_of="phm_linear",
)
def phm_weight(blocks: Float[Array, "n p q"], rules: Float[Array, "n n n"]) -> tuple[Array, Backward]:
    """The weight (n p, n q) that phm_linear multiplies by, for an ordinary linear map.

    Returns weight, and backward: dweight -> dblocks, drules.
    """
    n, p, q = blocks.shape
    places, numbers = rules.reshape(n, n * n), blocks.reshape(n, p * q)
    products = (places.T @ numbers).reshape(n, n, p, q)      # (a, b, p, q)
    weight = products.transpose(0, 2, 1, 3).reshape(n * p, n * q)  # (7)

    def backward(dweight):
        dproducts = dweight.reshape(n, p, n, q).transpose(0, 2, 1, 3).reshape(n * n, p * q)
        drules = (numbers @ dproducts.T).reshape(n, n, n)
        dblocks = (places @ dproducts).reshape(n, p, q)      # (8)
        return dblocks, drules

    return weight, backward
