"""Attentive pooling: one answer out of many vectors, each counting for as much as a small network finds it worth.

A long text has been read in chunks, and each has left a vector, or the scores of each class. One answer is wanted. The plain ways
are the mean, in which a chunk that says nothing counts as much as the one that knows, and the maximum of each feature, in which one
chunk speaks and the others learn nothing. Between them stands a softmax over the chunks, of scores that are learned.

Source: Yang et al. 2016, Hierarchical attention networks for document classification, NAACL, eq. 5 to 7; Pappagari et al. 2019,
arXiv:1910.10781, on documents read in chunks. Differs from Yang: the hidden layer has no bias. Costs d_model d_hidden multiply-adds a
vector. o is the product of elements; chunks that do not count have the weight 0.

    hidden = tanh(x W)                                       (1)
    scores = hidden u                                        (2)
    weights = softmax of scores over the chunks that count   (3)
    out = sum over chunks of weights x                       (4)
    dweights = x . dout                                      (5)
    dscores = weights o (dweights - sum over chunks of weights dweights)   (6)
    du = sum of dscores hidden                               (7)
    dinner = (dscores u) o (1 - hidden^2)                    (8)
    dW = x^T dinner                                          (9)
    dx = weights dout + dinner W^T                           (10)

The mean, and the maximum:

    weights = 1 / how many count                             (11)
    out = sum over chunks of weights x                       (12)
    dx = weights dout                                        (13)
    winner = the first chunk, of those that count, in which the feature is largest   (14)
    out = x of the winner, feature by feature                (15)
    dx = dout at the winner, 0 elsewhere                     (16)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.basics.softmax import softmax
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid


class AttentivePooling(NamedTuple):
    """A map to the hidden features, and what they are compared with."""

    weight: Float[Array, "d_model d_hidden"]
    query: Float[Array, "d_hidden"]


@checked
def init_attentive_pooling(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, d_hidden: Annotated[int, at_least(1)], dtype: type = np.float32
) -> AttentivePooling:
    """A normal map of deviation 1/sqrt(d_model) and a query of zeros: at the start it is the mean."""
    return AttentivePooling((rng.standard_normal((d_model, d_hidden)) / np.sqrt(d_model)).astype(dtype), np.zeros(d_hidden, dtype))


def _example(rng: np.random.Generator, *params):
    return example(*params, rng.normal(size=(2, 4, 3)), mask=np.array([[1, 1, 1, 1], [0, 1, 1, 0]], bool))


@concept(
    title="Attentive pooling",
    source="Yang et al. 2016, Hierarchical attention networks for document classification, NAACL, eq. 5 to 7",
    example=lambda rng: _example(rng, AttentivePooling(rng.normal(size=(3, 5)), rng.normal(size=5))),
    rejects=[bad(mask=np.zeros((2, 4), bool)), bad(mask=np.ones((2, 3), bool)), bad("params", params=AttentivePooling(np.ones((4, 5)), np.ones(5)))],
)
def attentive_pooling(
    params: AttentivePooling, x: Float[Array, "*batch chunks d_model"], *, mask: Bool[Array, "*batch chunks"] | None = None
) -> tuple[Array, Backward]:
    """A weighted mean over the chunks, the weights a softmax of what a layer of d_hidden makes of each.

    mask is True where a chunk counts (None: everywhere); the others may hold anything.
    Returns out (*batch, d_model) and backward: dout -> AttentivePooling(dweight, dquery), dx.
    Raises ValueError for a text of which no chunk counts.
    """
    counts, x = _counted(x, mask)
    hidden = np.tanh(x @ params.weight)                      # (*batch, chunks, d_hidden)  (1)
    scores = hidden @ params.query                           # (*batch, chunks)  (2)
    weights, softmax_backward = softmax(np.where(counts, scores, -np.inf))  # (3)
    out = np.matvec(x.mT, weights)                           # (*batch, d_model)  (4)

    def backward(dout):
        dweights = np.matvec(x, dout)                        # (*batch, chunks)  (5)
        dscores = softmax_backward(dweights)                 # (6)
        dquery = np.tensordot(dscores, hidden, axes=dscores.ndim)  # (7)
        dinner = dscores[..., None] * params.query * (1 - hidden * hidden)  # (8)
        dweight = np.tensordot(x, dinner, axes=(range(dscores.ndim), range(dscores.ndim)))  # (9)
        dx = weights[..., None] * dout[..., None, :] + dinner @ params.weight.T  # as what is summed, and as what is scored  (10)
        return AttentivePooling(dweight, dquery), dx

    return out, backward


@concept(
    title="Mean pooling",
    source="Pappagari et al. 2019, arXiv:1910.10781",
    example=_example,
    rejects=[bad(mask=np.zeros((2, 4), bool)), bad(mask=np.ones((2, 3), bool))],
    form_of="attentive_pooling",
)
def mean_pooling(x: Float[Array, "*batch chunks d_model"], *, mask: Bool[Array, "*batch chunks"] | None = None) -> tuple[Array, Backward]:
    """The mean over the chunks that count, of vectors or of the scores of classes.

    Mask and errors are those of attentive_pooling. Returns out (*batch, d_model) and backward: dout -> dx.
    """
    counts, x = _counted(x, mask)
    weights = (counts / counts.sum(axis=-1, keepdims=True)).astype(x.dtype)  # (*batch, chunks)  (11)
    out = np.matvec(x.mT, weights)                           # (12)
    return out, lambda dout: weights[..., None] * dout[..., None, :]  # (13)


@concept(
    title="Max pooling",
    source="Pappagari et al. 2019, arXiv:1910.10781",
    example=_example,
    rejects=[bad(mask=np.zeros((2, 4), bool)), bad(mask=np.ones((2, 3), bool))],
    form_of="attentive_pooling",
)
def max_pooling(x: Float[Array, "*batch chunks d_model"], *, mask: Bool[Array, "*batch chunks"] | None = None) -> tuple[Array, Backward]:
    """Feature by feature the largest over the chunks that count; where several are equal, the first gets the gradient.

    Mask and errors are those of attentive_pooling. Returns out (*batch, d_model) and backward: dout -> dx.
    """
    counts, x = _counted(x, mask)
    winner = np.where(counts[..., None], x, -np.inf).argmax(axis=-2, keepdims=True)  # (*batch, 1, d_model)  (14)
    out = np.take_along_axis(x, winner, axis=-2)[..., 0, :]  # (15)

    def backward(dout):
        dx = np.zeros_like(x)
        np.put_along_axis(dx, winner, dout[..., None, :], axis=-2)  # (16)
        return dx

    return out, backward


def _counted(x: Array, mask: Array | None) -> tuple[Array, Array]:
    """Which chunks count, and the vectors with zeros in the place of those that do not."""
    counts = np.ones(x.shape[:-1], bool) if mask is None else mask
    if not counts.any(axis=-1).all():
        raise invalid("mask", got="a text of which no chunk counts", wants="at least one in each")
    return counts, np.where(counts[..., None], x, 0)
