"""Paired divergence: what a model predicts for a sentence and for its counterfactual shall be one distribution.

The counterfactual says the same of another group. How far apart the two predictions are is measured by the Jensen-Shannon divergence:
each against the mean of both. It takes no side, is at most ln 2, and both predictions move.

Source: Lin 1991, Divergence measures based on the Shannon entropy, IEEE Transactions on Information Theory 37; as a loss against bias:
Guo, Yang and Abbasi 2022 (Auto-Debias), ACL. Differs from the latter: one pair at each position, where theirs has prompts that were
searched for, and words of groups in them. Costs three exponentials a class. z, v are the logits of the two.

    log_p = log softmax(z), log_q = log softmax(v)           (1)
    log_m = log((p + q) / 2)                                 (2)
    row = 1/2 sum_i (p_i (log_p_i - log_m_i) + q_i (log_q_i - log_m_i))   (3)
    out = (1/n) sum over n positions that count of row       (4)
    dp = dout/(2n) (log_p - log_m), dq likewise              (5)
    dz_i = p_i (dp_i - sum_j p_j dp_j), dv likewise          (6)
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.basics.log_softmax import log_softmax
from minitransformers.compression.counted import check_finite, counted_by_mask
from minitransformers.foundation import Backward, bad, concept, example


@concept(
    title="Paired divergence",
    source="Lin 1991, IEEE Transactions on Information Theory 37; Guo, Yang and Abbasi 2022 (Auto-Debias), ACL",
    example=lambda rng: example(*rng.normal(size=(2, 2, 3, 5)), mask=np.array([[1, 0, 1], [1, 1, 1]], bool)),
    rejects=[bad(mask=np.zeros((2, 3), bool)), bad(logits=np.full((2, 3, 5), np.nan)), bad(counterfactual=np.full((2, 3, 5), -np.inf))],
)
def paired_divergence(
    logits: Float[Array, "*batch num_classes"], counterfactual: Float[Array, "*batch num_classes"], *, mask: Bool[Array, "*batch"] | None = None
) -> tuple[Any, Backward]:
    """Mean Jensen-Shannon divergence, in nats, of the predictions for a sentence and for its counterfactual: from 0 to ln 2.

    counterfactual holds the logits for the other sentence, in the same order of positions. mask is True where a position counts
    (None: everywhere); the others may hold anything.
    Returns out, a scalar of the logits' dtype, and backward: dout -> dlogits, dcounterfactual.
    Raises ValueError where no position counts, or a logit that counts is not finite.
    """
    counts = counted_by_mask(logits.shape[:-1], mask)
    z, v = logits[counts], counterfactual[counts]            # (positions, num_classes)
    check_finite("logits", z)
    check_finite("counterfactual", v)
    log_p, _ = log_softmax(z)
    log_q, _ = log_softmax(v)                                # (1)
    log_m = np.logaddexp(log_p, log_q) - np.log(2).astype(z.dtype)  # (2)
    p, q = np.exp(log_p), np.exp(log_q)
    row = (p * (log_p - log_m) + q * (log_q - log_m)).sum(axis=-1) / 2  # (3)
    out = row.mean()                                         # (4)

    def backward(dout):
        scale = dout / (2 * len(row))
        dp, dq = scale * (log_p - log_m), scale * (log_q - log_m)  # the slopes through m cancel  (5)
        dz = p * (dp - (p * dp).sum(axis=-1, keepdims=True))
        dv = q * (dq - (q * dq).sum(axis=-1, keepdims=True))  # (6)
        dlogits, dcounterfactual = np.zeros_like(logits), np.zeros_like(counterfactual)
        dlogits[counts], dcounterfactual[counts] = dz, dv
        return dlogits, dcounterfactual

    return out, backward
