"""Mean and maximum over chunks: one answer for a long text that was read in pieces.

Each chunk has left a vector, or a score for each class, and one is wanted. In the mean every chunk counts alike, the one that knows as
much as those that have nothing to say. In the maximum each feature is taken from the chunk in which it is largest, and that chunk alone
learns. Between them stands attentive pooling, which learns what to count.

Source: Pappagari et al. 2019, arXiv:1910.10781, on documents that are read in chunks, with the mean as the baseline; Boureau et al.
2010, A theoretical analysis of feature pooling in visual recognition, ICML, on mean and maximum. Costs one pass, forward and backward.

    weights = 1 / how many chunks count, 0 where one does not   (1)
    out = sum over chunks of weights x                       (2)
    dx = weights dout                                        (3)

The maximum, feature by feature:

    winner = the first chunk, of those that count, in which the feature is largest   (4)
    out = x of the winner                                    (5)
    dx = dout at the winner, 0 elsewhere                     (6)
"""

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, bad, concept, example, invalid


def _example(rng: np.random.Generator):
    return example(rng.normal(size=(2, 4, 3)), mask=np.array([[1, 1, 1, 1], [0, 1, 1, 0]], bool))


_REJECTS = [bad(mask=np.zeros((2, 4), bool)), bad(mask=np.ones((2, 3), bool))]


@concept(title="Mean pooling", source="Pappagari et al. 2019, arXiv:1910.10781", example=_example, rejects=_REJECTS)
def mean_pooling(x: Float[Array, "*batch chunks d_model"], *, mask: Bool[Array, "*batch chunks"] | None = None) -> tuple[Array, Backward]:
    """The mean over the chunks that count, of vectors or of the scores of classes.

    mask is True where a chunk counts (None: everywhere); the others may hold anything.
    Returns out (*batch, d_model) and backward: dout -> dx.
    Raises ValueError for a text of which no chunk counts.
    """
    counts, x = _counted(x, mask)
    weights = (counts / counts.sum(axis=-1, keepdims=True)).astype(x.dtype)  # (*batch, chunks)  (1)
    out = (weights[..., None] * x).sum(axis=-2)              # (*batch, d_model)  (2)

    def backward(dout):
        return weights[..., None] * dout[..., None, :]       # (3)

    return out, backward


@concept(
    title="Max pooling", source="Boureau et al. 2010, A theoretical analysis of feature pooling in visual recognition, ICML",
    example=_example, rejects=_REJECTS, form_of="mean_pooling",
)  # fmt: skip
def max_pooling(x: Float[Array, "*batch chunks d_model"], *, mask: Bool[Array, "*batch chunks"] | None = None) -> tuple[Array, Backward]:
    """Feature by feature the largest over the chunks that count; where several are equal, the first gets the gradient.

    mask, results and errors are those of mean_pooling.
    """
    counts, x = _counted(x, mask)
    winner = np.where(counts[..., None], x, -np.inf).argmax(axis=-2, keepdims=True)  # (*batch, 1, d_model)  (4)
    out = np.take_along_axis(x, winner, axis=-2)[..., 0, :]  # (5)

    def backward(dout):
        dx = np.zeros_like(x)
        np.put_along_axis(dx, winner, dout[..., None, :], axis=-2)  # (6)
        return dx

    return out, backward


def _counted(x: Array, mask: Array | None) -> tuple[Array, Array]:
    """Which chunks count, and the vectors with zeros in the place of those that do not."""
    counts = np.ones(x.shape[:-1], bool) if mask is None else mask
    if not counts.any(axis=-1).all():
        raise invalid("mask", got="a text of which no chunk counts", wants="at least one in each")
    return counts, np.where(counts[..., None], x, 0)
