"""Retrieve, then read: an answer's probability is the mean of what readers of several documents give it, weighted by the retriever.

Which document holds the answer, nobody has written down; the answer itself is known. So the document is a hidden variable, and is summed
out. That tells the retriever what to learn without a label for it: a document whose reader found the answer likelier than the mean of
all readers is pulled up, the others are pushed down. The choice of the few documents that are read at all has no gradient.

Source: Lewis et al. 2020 (RAG), arXiv:2005.11401, section 2.1. Costs a few operations for each log-probability; what is costly, reading
every document, lies before. s are the scores of the documents z, r_zt the log-probability that the reader of z gives the answer's token t.

    log_prior = log softmax of s                             (1)
    read_z = sum over t of r_zt                              (2)
    joint_z = log_prior_z + read_z                           (3)
    row = -log sum over z of exp joint_z                     (4)
    out = sum over answers of weight row                     (5)
    posterior_z = exp(joint_z + row)                         (6)
    dr_zt = -dout weight posterior_z                         (7)
    ds = dout weight (prior - posterior)                     (8)

with weight = 1 / number of answers, or 1 for a sum. Or the document is summed out at every token, as if each might have one of its own:

    joint_zt = log_prior_z + r_zt                            (9)
    row = -sum over t of log sum over z of exp joint_zt      (10)
    posterior_zt = exp(joint_zt) / sum over z of exp(joint_zt)   (11)
    dr_zt = -dout weight posterior_zt                        (12)
    ds = dout weight sum over t of (prior - posterior_t)     (13)
"""

from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.basics.log_softmax import log_softmax
from minitransformers.foundation import Backward, bad, concept, example, invalid

_SLACK = 1e-6  # by how much a log-probability that was rounded may exceed 0


def _example(rng: np.random.Generator):
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    return example(rng.normal(size=(2, 3)), -rng.uniform(0.2, 2.0, size=(2, 3, 5)), mask=mask)


_REJECTS = [
    bad(log_probs=np.full((2, 3, 5), 0.1)), bad(log_probs=np.full((2, 3, 5), np.nan)), bad(log_probs=np.full((2, 3, 5), -np.inf)),
    bad(scores=np.full((2, 3), -np.inf)), bad(scores=np.full((2, 3), np.nan)), bad(mask=np.zeros((2, 5), bool)), bad(mask=np.ones((2, 3), bool)),
]  # fmt: skip


@concept(title="Retrieve, then read", source="Lewis et al. 2020 (RAG), arXiv:2005.11401, section 2.1", example=_example, rejects=_REJECTS)
def retrieve_then_read(
    scores: Float[Array, "*batch documents"], log_probs: Float[Array, "*batch documents positions"], *,
    mask: Bool[Array, "*batch positions"] | None = None, reduction: Literal["mean", "sum"] = "mean",
) -> tuple[Any, Backward]:  # fmt: skip
    """Negative log-probability of answers, in nats, one document being behind all tokens of an answer (RAG-Sequence).

    scores are the retriever's, of the documents that were read, before the softmax. log_probs are what the reader of each document
    gives each token of the answer, at most 0; mask is True where a token counts (None: everywhere), the others may hold anything.
    Returns out, a scalar, the mean over answers or their sum; and backward: dout -> dscores, dlog_probs.
    Raises ValueError where a log-probability that counts is above 0 or no number, where an answer has no token, where no document
    has a score that is finite, and where an answer is impossible for every document.
    """
    r, counts, weight = _checked(scores, log_probs, mask, reduction)
    log_prior, _ = log_softmax(scores)                       # (*batch, documents)  (1)
    read = r.sum(axis=-1)                                    # (*batch, documents)  (2)
    joint = log_prior + read                                 # (3)
    total = _log_total(joint)                                # (*batch)
    row = -total                                             # (4)
    out = weight * row.sum()                                 # (5)

    def backward(dout):
        posterior = np.exp(joint + row[..., None])           # (6)
        dlog_probs = -(dout * weight) * posterior[..., None] * counts[..., None, :]  # (7)
        dscores = (dout * weight) * (np.exp(log_prior) - posterior)  # belief before, minus belief after  (8)
        return dscores, dlog_probs

    return out, backward


@concept(
    title="Retrieve, then read: token by token", source="Lewis et al. 2020 (RAG), arXiv:2005.11401, section 2.1", example=_example, rejects=_REJECTS,
    form_of="retrieve_then_read",
)  # fmt: skip
def retrieve_then_read_tokens(
    scores: Float[Array, "*batch documents"], log_probs: Float[Array, "*batch documents positions"], *,
    mask: Bool[Array, "*batch positions"] | None = None, reduction: Literal["mean", "sum"] = "mean",
) -> tuple[Any, Backward]:  # fmt: skip
    """Negative log-probability of answers, in nats, each token with a document of its own behind it (RAG-Token).

    Arguments, results and errors are those of retrieve_then_read.
    """
    r, counts, weight = _checked(scores, log_probs, mask, reduction)
    log_prior, _ = log_softmax(scores)                       # (1)
    joint = log_prior[..., None] + r                         # (*batch, documents, positions)  (9)
    total = _log_total(joint.swapaxes(-1, -2))               # (*batch, positions)
    out = -weight * np.where(counts, total, 0).sum()         # all answers at once  (10) (5)

    def backward(dout):
        posterior = np.exp(joint - total[..., None, :]) * counts[..., None, :]  # (11)
        dlog_probs = -(dout * weight) * posterior            # (12)
        prior = np.exp(log_prior)[..., None] * counts[..., None, :]
        dscores = (dout * weight) * (prior - posterior).sum(axis=-1)  # (13)
        return dscores, dlog_probs

    return out, backward


def _checked(scores: Array, log_probs: Array, mask: Array | None, reduction: str) -> tuple[Array, Array, Any]:
    """Log-probabilities with 0 where nothing counts, which positions do, and the weight of an answer."""
    counts = np.ones((*scores.shape[:-1], log_probs.shape[-1]), bool) if mask is None else mask
    if not counts.any(axis=-1).all():
        raise invalid("mask", got="an answer without a token that counts", wants="at least one in each")
    r = np.where(counts[..., None, :], log_probs, 0)
    if not (r <= _SLACK).all():
        raise invalid("log_probs", got=f"numbers up to {r.max():.4g}", wants="logarithms of probabilities, at most 0")
    if not np.isfinite(scores.max(axis=-1)).all():
        raise invalid("scores", got="an answer whose largest score is not finite", wants="a finite largest score in each")
    num_answers = int(np.prod(scores.shape[:-1]))
    return r, counts, scores.dtype.type(1 / num_answers if reduction == "mean" else 1)


def _log_total(joint: Array) -> Array:
    """The logarithm of the sum of exponentials over the last axis."""
    largest = joint.max(axis=-1, keepdims=True)
    if not np.isfinite(largest).all():
        raise invalid("log_probs", got="an answer that is impossible for every document", wants="one for which it is not")
    return largest[..., 0] + np.log(np.exp(joint - largest).sum(axis=-1))
