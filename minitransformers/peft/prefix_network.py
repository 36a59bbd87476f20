"""Prefix network: a small network makes the prefixes of all layers from a few vectors, and is thrown away after training.

Trained directly, a prefix depends on its start and on the learning rate. Made by a network, its slots share what the network
learns, in all layers, and a step moves them together. What is used afterwards are the keys and values that it made last, to
the last bit: the network is scaffolding. Source: Li and Liang 2021, arXiv:2101.00190, section 4.3; the hidden layer with tanh is
that of the authors' code. P slots, L layers, H heads of keys, d_head features.

    z = E W_in + b_in                                        (1)
    hidden = tanh(z)                                         (2)
    rows = hidden W_out + b_out                              (3)
    keys_lhpi = rows_p at (l, 0, h, i), values_lhpi = rows_p at (l, 1, h, i)   (4)
    drows_p = dkeys and dvalues, put back to the same places   (5)
    dhidden = drows W_out^T, dW_out = hidden^T drows, db_out = sum over p of drows   (6)
    dz = dhidden (1 - hidden^2)                              (7)
    dE = dz W_in^T, dW_in = E^T dz, db_in = sum over p of dz   (8)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid


class PrefixNetwork(NamedTuple):
    """A vector for each slot, and the network that makes of it the slot's keys and values in all layers."""

    embedding: Float[Array, "prefix d_embedding"]
    hidden: Annotated[Linear, "d_embedding d_hidden"]
    output: Annotated[Linear, "d_hidden d_rows"]


@checked
def init_prefix_network(
    rng: np.random.Generator, *, num_layers: Annotated[int, at_least(1)], num_kv_heads: Annotated[int, at_least(1)],
    length: Annotated[int, at_least(1)], d_head: Annotated[int, at_least(1)], d_embedding: Annotated[int, at_least(1)] | None = None,
    d_hidden: Annotated[int, at_least(1)] = 512, dtype: type = np.float32,
) -> PrefixNetwork:  # fmt: skip
    """Normal vectors and weights of deviation 1 and 1/sqrt(d_in), zero biases: keys and values of about the size of hidden.

    d_embedding is num_kv_heads d_head unless given. With P slots there are P d_embedding + (d_embedding + 1) d_hidden +
    (d_hidden + 1) 2 num_layers num_kv_heads d_head parameters, of which nothing stays but 2 num_layers P num_kv_heads d_head numbers.
    """
    width = num_kv_heads * d_head
    d_in = width if d_embedding is None else d_embedding
    return PrefixNetwork(
        rng.standard_normal((length, d_in)).astype(dtype), init_linear(rng, d_in, d_hidden, dtype=dtype),
        init_linear(rng, d_hidden, 2 * num_layers * width, dtype=dtype),
    )  # fmt: skip


@concept(
    title="Prefix network",
    source="Li and Liang 2021, arXiv:2101.00190, section 4.3",
    example=lambda rng: _example(rng),
    rejects=[bad("params.output", num_kv_heads=4), bad("params.output", num_layers=5)],
)
def prefix_network(
    params: PrefixNetwork, *, num_layers: Annotated[int, at_least(1)], num_kv_heads: Annotated[int, at_least(1)]
) -> tuple[tuple[Array, Array], Backward]:
    """The keys and values of the prefixes of all layers, as with_prefixes takes them.

    Returns (keys, values), both (num_layers, num_kv_heads, prefix, d_head), and backward: (dkeys, dvalues) -> PrefixNetwork.
    Raises ValueError where the network's rows are not 2 num_layers num_kv_heads d_head wide.
    """
    _check_width(params.output, 2 * num_layers * num_kv_heads)
    z, hidden_backward = linear(params.hidden, params.embedding)  # (1)
    hidden = np.tanh(z)                                      # (2)
    rows, output_backward = linear(params.output, hidden)    # (prefix, 2 layers heads d_head)  (3)
    places = (len(rows), num_layers, 2, num_kv_heads, -1)
    slots = rows.reshape(places).transpose(1, 2, 3, 0, 4)    # (layers, 2, heads, prefix, d_head)
    keys, values = np.ascontiguousarray(slots[:, 0]), np.ascontiguousarray(slots[:, 1])  # (4)

    def backward(dout):
        dslots = np.stack(dout, axis=1)
        drows = dslots.transpose(3, 0, 1, 2, 4).reshape(rows.shape)  # (5)
        doutput, dhidden = output_backward(drows)            # (6)
        dz = dhidden * (1 - hidden * hidden)                 # (7)
        din, dembedding = hidden_backward(dz)                # (8)
        return PrefixNetwork(dembedding, din, doutput)

    return (keys, values), backward


def _check_width(output: Linear, shared: int) -> None:
    if output.weight.shape[1] % shared:
        wants = f"a multiple of 2 num_layers num_kv_heads = {shared}"
        raise invalid("params.output", got=f"{output.weight.shape[1]} features", wants=wants)


def _example(rng: np.random.Generator):
    hidden, output = (Linear(rng.normal(size=(d_in, d_out)) / 2, rng.normal(size=d_out)) for d_in, d_out in ((5, 6), (6, 36)))
    return example(PrefixNetwork(rng.normal(size=(4, 5)), hidden, output), num_layers=3, num_kv_heads=2)
