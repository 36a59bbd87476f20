"""Attentive pooling: one vector for many, their mean with weights that are learned from what they hold.

The plain mean gives every word the same say, the first position only its own. Here a small network scores each position, and a
softmax over the scores makes the weights. Time O(positions d_model d_hidden), memory O(positions d_hidden).

Source: Yang et al. 2016, Hierarchical attention networks, NAACL, eqs. 5 to 7; Lin et al. 2017, arXiv:1703.03130, eqs. 5 and 6.
This is the second with a single row of weights; the first has a bias in (1) besides. Differs from both: padding is left out, and
where nothing is left the vector is 0. Sums over t run over the positions that the mask allows.

    hidden_t = tanh(x_t W)                                   (1)
    scores_t = hidden_t . u                                  (2)
    weights_t = exp(scores_t) / sum over t of the same       (3)
    out = sum over t of weights_t x_t                        (4)
    dweights_t = dout . x_t                                  (5)
    dscores_t = weights_t (dweights_t - dout . out)          (6)
    dhidden_t = dscores_t u (1 - hidden_t^2), before the tanh   (7)
    dx_t = weights_t dout + dhidden_t W^T                    (8)
    dW = sum over t of x_t^T dhidden_t, du = sum over t of dscores_t hidden_t   (9)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import forbid
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example
from minitransformers.foundation.trees import decays


class AttentivePooling(NamedTuple):
    """The map to hidden features, and what they are scored with."""

    weight: Annotated[Float[Array, "d_model d_hidden"], decays]
    score: Float[Array, "d_hidden"]


@checked
def init_attentive_pooling(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, d_hidden: Annotated[int, at_least(1)] | None = None,
    std: Annotated[float, at_least(0)] | None = None, dtype: type = np.float32,
) -> AttentivePooling:  # fmt: skip
    """Normal numbers of deviation ``std`` (default 1/sqrt(fan-in) of each); d_hidden is d_model unless given."""
    hidden = d_model if d_hidden is None else d_hidden
    weight, score = ((n**-0.5 if std is None else std) * rng.standard_normal(s) for n, s in ((d_model, (d_model, hidden)), (hidden, hidden)))
    return AttentivePooling(weight.astype(dtype), score.astype(dtype))


@concept(
    title="Attentive pooling",
    source="Lin et al. 2017, arXiv:1703.03130, eqs. 5 and 6; Yang et al. 2016, Hierarchical attention networks, NAACL",
    example=lambda rng: _example(rng),
    rejects=[bad(mask=np.ones((2, 5), bool))],
)
def attentive_pooling(
    params: AttentivePooling, x: Float[Array, "*batch positions d_model"], *, mask: Bool[Array, "*batch positions"] | None = None
) -> tuple[Array, Backward]:
    """The mean of the positions that are real, each with a weight of its own.

    mask is True where a position is real, None for all of them. Where none is, out is 0 and no gradient comes back.
    Returns out (*batch, d_model), and backward: dout -> AttentivePooling of gradients, dx.
    Raises ValueError where shapes do not fit.
    """
    weight, score = params
    hidden = np.tanh(x @ weight)                             # (*batch, positions, d_hidden)  (1)
    scores = forbid(hidden @ score, mask)                    # (*batch, positions)  (2)
    # Where nothing is real the largest score is -inf; any finite number in its place makes all weights 0.
    weights = np.exp(scores - np.maximum(scores.max(-1, keepdims=True), np.finfo(x.dtype).min))
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1)  # the largest term is exp(0) = 1, so below 1 there is none  (3)
    out = (weights[..., None, :] @ x)[..., 0, :]             # (*batch, d_model)  (4)

    def backward(dout):
        dweights = (x @ dout[..., None])[..., 0]             # (5)
        shared = np.vecdot(dout, out)[..., None]             # out is the mean of all: every weight sees every score
        dscores = weights * (dweights - shared)              # (6)
        dhidden = dscores[..., None] * score * (1 - hidden * hidden)  # (7)
        dx = weights[..., None] * dout[..., None, :] + dhidden @ weight.T  # x is scored and read: two terms  (8)
        rows, scored = x.reshape(-1, x.shape[-1]), hidden.reshape(-1, len(score))
        dparams = AttentivePooling(rows.T @ dhidden.reshape(scored.shape), dscores.reshape(-1) @ scored)  # (9)
        return dparams, dx

    return out, backward


def _example(rng: np.random.Generator):
    """The second text of the first batch has a single word, the third none."""
    mask = np.array([[[1, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]], [[1, 1, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0]]], bool)
    return example(AttentivePooling(rng.normal(size=(5, 7)) / 2, rng.normal(size=7)), rng.normal(size=(2, 3, 4, 5)), mask=mask)
