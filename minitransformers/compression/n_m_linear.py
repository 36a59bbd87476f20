"""A linear map whose weight is stored N:M: each output reads the few inputs that its numbers stand at.

An output has n numbers in each group of m inputs, so it takes n/m of the multiplications. Hardware that is made for it fetches the
inputs while it multiplies. NumPy has no such product: here the inputs are gathered first, output by output, and what a dense product
wins by working on blocks that lie in cache is lost. What is saved is memory; time is saved only where the processor has the product.

Source: Mishra et al. 2021, arXiv:2104.08378, section 3. i(k, j) is the input that the k-th number of output j stands at: m times its
group, plus its place. v_kj is the number.

    out_j = sum_k v_kj x_i(k,j) + b_j                        (1)
    dv_kj = sum over positions of x_i(k,j) dout_j            (2)
    dx_i = sum over the k and j with i(k, j) = i of v_kj dout_j   (3)
    db_j = sum over positions of dout_j                      (4)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.compression.n_m_sparsity import Group, compress_n_m, n_m_mask, unpacked_places
from minitransformers.foundation import Backward, bad, concept, example, invalid
from minitransformers.foundation.trees import decays


class NmLinear(NamedTuple):
    """The numbers of an N:M weight, as compress_n_m gives them, and a bias or None."""

    values: Annotated[Float[Array, "groups n d_out"], decays]
    bias: Float[Array, "d_out"] | None


@concept(
    title="N:M linear map",
    source="Mishra et al. 2021, arXiv:2104.08378, section 3",
    example=lambda rng: _example(rng),
    rejects=[bad("x", x=np.ones((2, 3, 8))), bad(places=np.zeros(7, np.uint8)), bad("x", m=8), bad("places", places=np.zeros(8, np.uint8))],
)
def n_m_linear(params: NmLinear, x: Float[Array, "... d_in"], *, places: Int[Array, "bytes"], m: Group) -> tuple[Array, Backward]:
    """Map the last axis of x from d_in = m groups to d_out features. places are those of compress_n_m, m what it was given.

    The zeros of the weight are not there: they are not multiplied with, and have no gradient.
    Returns out (..., d_out), and backward: dout -> NmLinear(dvalues, dbias), dx.
    Raises ValueError when the axes do not fit, or the places are none of so many values.
    """
    values, bias = params
    groups, _, d_out = values.shape
    if x.shape[-1] != groups * m:
        raise invalid("x", got=f"shape {x.shape}", wants=f"(..., d_in) with d_in = {groups * m}, {groups} groups of {m}")
    inputs = unpacked_places(places, values.shape, m, name="places") + m * np.arange(groups)[:, None, None]
    inputs, numbers = (part.reshape(-1, d_out).T for part in (inputs, values))  # (d_out, kept)
    features = np.ascontiguousarray(x.reshape(-1, x.shape[-1]).T)  # (d_in, positions): an input lies in one piece
    columns = np.stack([numbers[j] @ features[inputs[j]] for j in range(d_out)], axis=-1)
    out = (columns if bias is None else columns + bias).reshape(*x.shape[:-1], d_out)  # (1)

    def backward(dout):
        drows = dout.reshape(-1, d_out)
        dcolumns = np.ascontiguousarray(drows.T)
        dnumbers = np.stack([features[inputs[j]] @ dcolumns[j] for j in range(d_out)], axis=-1)  # (2)
        dfeatures = np.zeros_like(features)
        for j in range(d_out):
            dfeatures[inputs[j]] += np.outer(numbers[j], dcolumns[j])  # no input twice in an output  (3)
        dbias = None if bias is None else drows.sum(axis=0)  # (4)
        return NmLinear(dnumbers.reshape(values.shape), dbias), dfeatures.T.reshape(x.shape)

    return out, backward


def _example(rng: np.random.Generator):
    weight = rng.normal(size=(12, 5))
    values, places = compress_n_m(np.where(n_m_mask(weight, n=2, m=4), weight, 0), n=2, m=4)
    return example(NmLinear(values, rng.normal(size=5)), rng.normal(size=(2, 3, 12)), places=places, m=4)
