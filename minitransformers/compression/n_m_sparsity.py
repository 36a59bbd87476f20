"""N:M sparsity: of every M weights that follow each other along an output's inputs, exactly N stay.

A mask that may lie anywhere makes a weight no faster to multiply with: where the numbers are has to be looked up, one by one. Here the
freedom is small. Each group of M inputs of an output keeps N, so an output's numbers are as many as every other's, they can be stored
side by side, and where each stood is a number below M. With 2:4 this is what sparse tensor cores multiply with. Any scores may choose:
magnitudes, or those of wanda_scores.

Source: Mishra et al. 2021, arXiv:2104.08378, section 3. Differs from it: the order in which the places are packed is plain, output
by output, not that of a machine. n and m are the paper's N and M, b the bits of a place, w a weight (d_in, d_out).

    mask_ij = 1 where |score_ij| is among the n largest of its group of m, 0 elsewhere   (1)
    place = which of the m inputs of its group a number stands at, ascending; value = w there   (2)
    b = log2 m, rounded up                                   (3)
    bytes = the places in b bits each, output after output, group after group   (4)
    w_ij = value where j has i as a place, 0 elsewhere       (5)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.compression.magnitude_pruning import largest
from minitransformers.compression.packed_codes import pack_codes, unpack_codes
from minitransformers.foundation import at_least, bad, between, example, finite, invalid, procedure

Group = Annotated[int, between(2, 256)]


class NmWeight(NamedTuple):
    """The numbers that stayed, and the places of all of them, packed (uint8)."""

    values: Float[Array, "groups n d_out"]
    places: Int[Array, "bytes"]


@procedure(
    title="N:M mask",
    source="Mishra et al. 2021, arXiv:2104.08378",
    example=lambda rng: example(rng.normal(size=(12, 5)), n=2, m=4),
    rejects=[bad("n", n=5), bad("m", m=5)],
)
def n_m_mask(scores: Annotated[Float[Array, "d_in d_out"], finite], *, n: Annotated[int, at_least(1)], m: Group) -> Bool[Array, "d_in d_out"]:
    """True at the n scores of largest magnitude of each m that follow each other down a column; of equal ones at the first.

    Raises ValueError when m does not divide d_in, or n is above m.
    """
    groups = _grouped(scores, n, m)
    return largest(np.abs(groups), n, axis=1).reshape(scores.shape)  # (1)


@procedure(
    title="N:M sparsity: compress",
    source="Mishra et al. 2021, arXiv:2104.08378, section 3",
    example=lambda rng: example(_pruned(rng.normal(size=(12, 5))), n=2, m=4),
    rejects=[bad("n", n=5), bad("m", m=5), bad("weight", n=1)],
)
def compress_n_m(weight: Annotated[Float[Array, "d_in d_out"], finite], *, n: Annotated[int, at_least(1)], m: Group) -> NmWeight:
    """A weight that is N:M already, as its numbers and their places: nothing is lost.

    A group with fewer than n numbers stores some of its zeros. With 2:4 a place has two bits, and a byte four places.
    Raises ValueError when m does not divide d_in, n is above m, or a group has more than n numbers.
    """
    groups = _grouped(weight, n, m)
    kept = largest(np.abs(groups), n, axis=1)
    if np.any(groups[~kept]):
        raise invalid("weight", got=f"a group with more than {n} numbers that are not 0", wants=f"at most {n} of each {m} down a column")
    places = np.argsort(~kept, axis=1, kind="stable")[:, :n]  # False before True: the kept ones, in their order
    values = np.take_along_axis(groups, places, axis=1)      # (2)
    return NmWeight(values, pack_codes(np.moveaxis(places, -1, 0), bits=bits_of(m), signed=False))  # (4)


@procedure(
    title="N:M sparsity: restore",
    source="Mishra et al. 2021, arXiv:2104.08378, section 3",
    example=lambda rng: example(compress_n_m(_pruned(rng.normal(size=(12, 5))), n=2, m=4), m=4),
    rejects=[
        bad("weight.places", weight=NmWeight(np.ones((3, 2, 5)), np.zeros(8, int))), bad("weight.places", m=8),
        bad("weight.places", weight=NmWeight(np.ones((3, 2, 5)), np.zeros(8, np.uint8))), bad("m", weight=NmWeight(np.ones((3, 5, 5)), np.zeros(8, np.uint8))),
    ],
)  # fmt: skip
def decompress_n_m(weight: NmWeight, *, m: Group) -> Float[Array, "d_in d_out"]:
    """The weight that compress_n_m was given, bit for bit but for the sign of a zero; m as it was compressed with.

    Raises ValueError where the places are no bytes, are too few or too many, do not ascend in a group, or reach beyond it.
    """
    values = weight.values
    groups = np.zeros((len(values), m, values.shape[2]), values.dtype)
    np.put_along_axis(groups, unpacked_places(weight.places, values.shape, m, name="weight.places"), values, axis=1)  # (5)
    return groups.reshape(-1, values.shape[2])


def bits_of(m: int) -> int:
    """How many bits a place in a group of m has."""
    return (m - 1).bit_length()                              # (3)


def unpacked_places(packed: Array, shape: tuple[int, ...], m: int, *, name: str) -> Int[Array, "groups n d_out"]:
    """The place of each value in its group, from 0 to m - 1. Raises ValueError, which names them so, where they are none."""
    (groups, n, d_out), bits = shape, bits_of(m)
    if n > m:
        raise invalid("m", got=m, wants=f"at least {n}, as each group has values")
    size = -(-groups * n * d_out * bits // 8)
    if packed.dtype != np.uint8 or packed.size != size:
        raise invalid(name, got=f"{packed.dtype} of shape {packed.shape}", wants=f"uint8 of shape {(size,)}, {bits} bits a value")
    places = np.moveaxis(unpack_codes(packed, bits=bits, shape=(d_out, groups, n), signed=False), 0, -1)
    if places.max() >= m or np.any(places[:, 1:] <= places[:, :-1]):
        raise invalid(name, got="places that do not ascend or lie beyond their group", wants=f"{n} ascending numbers from 0 to {m - 1}, for each")
    return places


def _grouped(weight: Array, n: int, m: int) -> Float[Array, "groups m d_out"]:
    if len(weight) % m:
        raise invalid("m", got=m, wants=f"a number that divides the {len(weight)} inputs")
    if n > m:
        raise invalid("n", got=n, wants=f"at most m, {m}")
    return weight.reshape(-1, m, weight.shape[1])


def _pruned(weight: Array) -> Array:
    """2:4, and without its first row: so that one row over and over, which a check tries, is 2:4 as well."""
    weight = np.concatenate([np.zeros_like(weight[:1]), weight[1:]])
    return np.where(n_m_mask(weight, n=2, m=4), weight, 0)
