"""Copying: the next token comes from the vocabulary, or from a place of the source that attention points at.

A rewriter changes a few words and must leave the others as they are, names included that it has never seen. Writing them from the
vocabulary means learning each. Here a gate shares the probability between writing and copying, and what is copied is the token at the
place in the source where the weights lie; a token that stands there twice gets both. All is done in logarithms, so that no share can
vanish. Time and memory O(target (vocabulary + source)).

Source: See, Liu and Manning 2017 (pointer-generator), arXiv:1704.04368, eq. 9; Vinyals, Fortunato and Jaitly 2015, arXiv:1506.03134,
for pointing by attention. Differs: no words outside of the vocabulary, and the gate is an argument. z are logits, a scores of
attention, g the gate's logit, x_j the tokens of the source.

    log_p = log softmax(z)                                   (1)
    log_w = log softmax(a) over the places that the mask allows   (2)
    log_c(v) = log sum over j with x_j = v of exp log_w_j    (3)
    write = log sigmoid(g) + log_p, copy = log sigmoid(-g) + log_c   (4)
    out = log(exp write + exp copy)                          (5)
    dwrite = exp(write - out) dout                           (6)
    dcopy = exp(copy - out) dout                             (7)
    dz = dwrite - softmax(z) sum over v of dwrite            (8)
    dlog_w_j = dcopy(x_j) exp(log_w_j - log_c(x_j))          (9)
    da = dlog_w - softmax(a) sum over j of dlog_w            (10)
    dg = sigmoid(-g) sum over v of dwrite - sigmoid(g) sum over v of dcopy   (11)
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.basics.log_softmax import log_softmax
from minitransformers.foundation import Backward, bad, concept, example, invalid


@concept(
    title="Copy mixture",
    source="See, Liu and Manning 2017, arXiv:1704.04368, eq. 9",
    example=lambda rng: _example(rng),
    rejects=[
        bad(source=np.array([[0, 6, 1, 0, 0], [1, 1, 4, 2, 3]])), bad(source=np.array([[0, -1, 1, 0, 0], [1, 1, 4, 2, 3]])),
        bad(mask=np.zeros((2, 5), bool)), bad("mask", mask=np.ones((2, 4), bool)), bad(logits=np.full((2, 3, 6), -np.inf)),
        bad(scores=np.full((2, 3, 5), np.nan)),
    ],
)  # fmt: skip
def copy_logits(
    logits: Float[Array, "*batch target vocabulary"], scores: Float[Array, "*batch target source"], gate: Float[Array, "*batch target"], *,
    source: Int[Array, "*batch source"], mask: Bool[Array, "*batch source"] | None = None,
) -> tuple[Array, Backward]:  # fmt: skip
    """Log-probabilities of the next token at each position, written with probability sigmoid(gate) and otherwise copied.

    source are the ids at the places that scores are about, mask is True where one may be copied. The output is its own log softmax:
    whatever reads logits (a cross-entropy, a sampler) can read it.
    Returns out (*batch, target, vocabulary), in nats, and backward: dout -> dlogits, dscores, dgate.
    Raises ValueError where a source id is no token of the vocabulary, a source may nowhere be copied, or logits or scores are not finite.
    """
    vocabulary = logits.shape[-1]
    if source.min() < 0 or source.max() >= vocabulary:
        raise invalid("source", got=f"ids from {source.min()} to {source.max()}", wants=f"0 to {vocabulary - 1}")
    if mask is not None and not mask.any(axis=-1).all():
        raise invalid("mask", got="a source without a place that may be copied", wants="at least one")
    for name, array in (("logits", logits), ("scores", scores), ("gate", gate)):
        if not np.isfinite(array).all():
            raise invalid(name, got="a number that is not finite", wants="finite numbers")

    log_p, write_backward = log_softmax(logits)              # (1)
    allowed = scores if mask is None else np.where(mask[..., None, :], scores, -np.inf)
    log_w, copy_backward = log_softmax(allowed)              # (2)
    ids = np.broadcast_to(source[..., None, :], scores.shape).reshape(-1, scores.shape[-1])  # (rows, source)
    rows = np.arange(len(ids))[:, None]
    log_c = np.full((len(ids), vocabulary), -np.inf, logits.dtype)
    np.logaddexp.at(log_c, (rows, ids), log_w.reshape(ids.shape))  # (3)
    log_c = log_c.reshape(logits.shape)
    written, copied = (-np.logaddexp(0, sign * gate)[..., None] for sign in (-1, 1))
    write, copy = written + log_p, copied + log_c            # (4)
    out = np.logaddexp(write, copy)                          # (5)

    def backward(dout):
        dwrite = np.exp(write - out) * dout                  # (6)
        dcopy = np.exp(copy - out) * dout                    # (7)
        dlogits = write_backward(dwrite)                     # (8)
        total = log_c.reshape(-1, vocabulary)[rows, ids].reshape(log_w.shape)
        seen = log_w > -np.inf
        share = np.where(seen, np.exp(np.where(seen, log_w - np.where(seen, total, 0), 0)), 0)
        dlog_w = dcopy.reshape(-1, vocabulary)[rows, ids].reshape(log_w.shape) * share  # places of one token share its gradient  (9)
        dscores = copy_backward(dlog_w)                      # (10)
        dgate = np.exp(copied[..., 0]) * dwrite.sum(axis=-1) - np.exp(written[..., 0]) * dcopy.sum(axis=-1)  # (11)
        return dlogits, dscores, dgate

    return out, backward


def _example(rng: np.random.Generator):
    source = np.array([[0, 2, 2, 4, 0], [1, 1, 4, 2, 3]])
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    return example(rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 3)), source=source, mask=mask)
