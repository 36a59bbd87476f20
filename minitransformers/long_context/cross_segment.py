"""Cross-segment attention: each token reads its own segment word by word, and every segment as one summary.

Attention inside segments of l tokens costs n l scores in a text of n, and no segment hears of another. A summary of each, the mean of
its keys and the mean of its values, stands beside the segment's own keys in the same softmax: n / l more scores a token, and one
layer connects everything. n (l + n / l) is smallest at l = sqrt(n).

Source: a plain form of the modules that survey and models share: Dong et al. 2023, arXiv:2302.14502, section 4 (segments and what
passes between them); Zhang et al. 2021, arXiv:2105.04371 (Poolingformer: pooled keys for what is far, in a second softmax over a
window). Differs from the latter: one softmax over both, and summaries of all segments. Where causal, a token looks back in
its segment and reads the summaries of earlier segments alone: its own holds what it may not see. share_j is 1 / the number of real
tokens in the segment of j, 0 for padding; i and j are tokens of segment b, and c is any segment.

    kbar_c = sum of share_j k_j, vbar_c = sum of share_j v_j, over the tokens j of segment c   (1)
    own_ij = scale q_i k_j, across_ic = scale q_i kbar_c, scale = 1 / sqrt(d_head)             (2)
    own_ij = -inf where j is padding, or later and causal; across_ic = -inf where b does not read c   (3)
    weights = softmax of own and across together             (4)
    out_i = sum of own weights_ij v_j + sum of across weights_ic vbar_c                        (5)
    dweights_ij = dout_i v_j, dweights_ic = dout_i vbar_c    (6)
    dscores = weights (dweights - dout_i . out_i)            (7)
    dkbar_c = scale sum over i of dscores_ic q_i, dvbar_c = sum over i of weights_ic dout_i    (8)
    dq_i = scale (sum of dscores_ij k_j + sum of dscores_ic kbar_c)                            (9)
    dk_j = scale sum over i of dscores_ij q_i + share_j dkbar_b                                (10)
    dv_j = sum over i of weights_ij dout_i + share_j dvbar_b                                   (11)
"""

from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import forbid, sum_to
from minitransformers.attention.masks import causal_mask
from minitransformers.foundation import Backward, at_least, bad, concept, example, invalid


@concept(
    title="Cross-segment attention",
    source="Dong et al. 2023, arXiv:2302.14502, section 4; Zhang et al. 2021, arXiv:2105.04371",
    example=lambda rng: _example(rng),
    rejects=[
        bad(length=4), bad("key", key=np.ones((2, 1, 9, 5)), value=np.ones((2, 1, 9, 7)), mask=None), bad(reads=np.ones((2, 2), bool)),
        bad(mask=np.ones((2, 1, 6, 6), bool)), bad(bias=np.ones((6, 6))), bad("params", params=()),
    ],
)  # fmt: skip
def cross_segment(
    params: None,
    query: Float[Array, "*#batch positions d_head"],
    key: Float[Array, "*#batch positions d_head"],
    value: Float[Array, "*#batch positions d_value"],
    bias: None = None,
    *,
    length: Annotated[int, at_least(1)],
    reads: Bool[Array, "segments segments"] | None = None,
    causal: bool = False,
    mask: Bool[Array, "*#batch #queries positions"] | None = None,
) -> tuple[Array, Backward]:
    """Attention to the tokens of the own segment and to the summaries of all, in one softmax. A core, for the whole text at once.

    A segment has ``length`` tokens. reads[b, c] says whether segment b reads the summary of c, None for all; causal also hides what
    is later. mask is True where a key is real, one row for all queries: padding is read by nobody and is in no summary, and a segment
    of padding has none. params and bias are None. A query that may read nothing gets zero and sends no gradient.
    Returns out (*batch, positions, d_value), and backward: dout -> None, dquery, dkey, dvalue, None.
    Raises ValueError when length does not divide the positions, keys are more or fewer than queries, reads is not for that many
    segments, or mask differs between queries.
    """
    positions, d_head = query.shape[-2:]
    segments = positions // length
    _check(params, bias, positions, key, length, reads, mask)
    real = np.ones(positions, bool) if mask is None else mask[..., 0, :]
    real = real.reshape(*real.shape[:-1], segments, length)
    counts = real.sum(-1, keepdims=True)                     # (..., segments, 1)
    share = (real / np.maximum(counts, 1)).astype(query.dtype)
    seen, read = real[..., None, :], (counts[..., 0] > 0)[..., None, None, :]  # (..., segments, queries, keys), (..., 1, 1, segments)
    if reads is not None:
        read = read & reads[:, None, :]
    if causal:
        seen, read = seen & causal_mask(length), read & np.tri(segments, k=-1, dtype=bool)[:, None, :]

    q, k, v = (a.reshape(*a.shape[:-2], segments, length, a.shape[-1]) for a in (query, key, value))
    kbar, vbar = ((share[..., None, :] @ a)[..., 0, :] for a in (k, v))  # (..., segments, d)  (1)
    scale = d_head**-0.5
    own = scale * (q @ k.swapaxes(-1, -2))                   # (..., segments, length, length)
    across = scale * (q @ kbar[..., None, :, :].swapaxes(-1, -2))  # (..., segments, length, segments)  (2)
    own, across = forbid(own, seen), forbid(across, read)    # (3)
    top = np.maximum(np.maximum(own.max(-1, keepdims=True), across.max(-1, keepdims=True)), np.finfo(query.dtype).min)
    own, across = np.exp(own - top), np.exp(across - top)
    total = np.maximum(own.sum(-1, keepdims=True) + across.sum(-1, keepdims=True), 1)  # the largest term is 1, so below 1 there is none
    own, across = own / total, across / total                # (4)
    out = own @ v + across @ vbar[..., None, :, :]           # (..., segments, length, d_value)  (5)

    def backward(dout):
        dout = dout.reshape(out.shape)
        down = dout @ v.swapaxes(-1, -2)
        dacross = dout @ vbar[..., None, :, :].swapaxes(-1, -2)  # (6)
        shared = np.vecdot(dout, out)[..., None]             # one softmax, one mean
        down, dacross = scale * own * (down - shared), scale * across * (dacross - shared)  # (7)
        dkbar, dvbar = _over_tokens(dacross, q), _over_tokens(across, dout)  # (8)
        dq = down @ k + dacross @ kbar[..., None, :, :]      # (9)
        dk = down.swapaxes(-1, -2) @ q + share[..., None] * dkbar[..., None, :]  # a key is read as itself and in its summary  (10)
        dv = own.swapaxes(-1, -2) @ dout + share[..., None] * dvbar[..., None, :]  # (11)
        flat = (d.reshape(*d.shape[:-3], positions, d.shape[-1]) for d in (dq, dk, dv))
        return None, *(sum_to(d, a.shape) for d, a in zip(flat, (query, key, value), strict=True)), None

    return out.reshape(*out.shape[:-3], positions, -1), backward


def _over_tokens(a: Float[Array, "... segments length summaries"], b: Float[Array, "... segments length d"]) -> Float[Array, "... summaries d"]:
    """a^T b, a sum over the tokens of all segments."""
    a, b = (c.reshape(*c.shape[:-3], -1, c.shape[-1]) for c in (a, b))
    return a.swapaxes(-1, -2) @ b


def _check(params: None, bias: None, positions: int, key: Array, length: int, reads: Array | None, mask: Array | None) -> None:
    if params is not None or bias is not None:               # inside an attention no annotation is checked
        raise invalid("bias" if params is None else "params", got="something", wants="None: summaries have no place for it")
    if key.shape[-2] != positions:
        raise invalid("key", got=f"{key.shape[-2]} keys", wants=f"one for each of {positions} queries: the text is read as a whole")
    if positions % length:
        raise invalid("length", got=length, wants=f"a number of tokens that divides the {positions} positions")
    segments = positions // length
    if reads is not None and len(reads) != segments:
        raise invalid("reads", got=f"shape {reads.shape}", wants=f"({segments}, {segments}), a row and a column for each segment")
    if mask is not None and (mask.shape[-2] != 1 or mask.shape[-1] != positions):
        raise invalid("mask", got=f"shape {mask.shape}", wants=f"one row of {positions} keys for all queries")


def _example(rng: np.random.Generator):
    """Three segments of two tokens; in the second text one is padding, and the last segment is empty."""
    mask = np.array([[1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 0]], bool)[:, None, None]
    reads = np.array([[1, 0, 1], [1, 1, 1], [0, 1, 0]], bool)
    shapes = (2, 3, 6, 5), (2, 1, 6, 5), (2, 1, 6, 7)
    return example(None, *(rng.normal(size=shape) for shape in shapes), length=2, reads=reads, mask=mask)
