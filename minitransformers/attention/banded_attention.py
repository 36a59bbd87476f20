"""Banded attention: a sliding window computed in blocks, so that time and memory grow with positions times window.

Each position attends to the last ``window`` positions, its own included. A block of ``window`` queries therefore needs
the keys of two blocks only, its own and the one before: all others are forbidden, and are never computed.
Time O(positions window d_head), memory O(positions window) a head, against positions^2 for the dense mask.
Source: Beltagy, Peters and Cohan 2020, arXiv:2004.05150, section 3.1 and appendix A (overlapping chunks); window as in
Mistral (Jiang et al. 2023, arXiv:2310.06825, section 2), but exactly ``window`` keys, as Hugging Face counts them.

Block b of q, k, v holds the positions from b window on; zeros fill up the last one, and stand before the first.

    near_k[b] = k[b - 1] beside k[b], near_v alike           (1)
    out[b] = attention(q[b], near_k[b], near_v[b])           (2)
    dq[b], dnear_k[b], dnear_v[b] = its backward(dout[b])    (3)
    dk[b] = right half of dnear_k[b] + left half of dnear_k[b + 1], dv alike  (4)

Where causal is false the window reaches as far ahead as back, and k[b + 1] stands in (1) and (4) as a third part.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.foundation import bad, concept, example, whole_number


@concept(
    title="Banded (blocked sliding-window) attention",
    source="Beltagy, Peters and Cohan 2020, arXiv:2004.05150, section 3.1; Jiang et al. 2023, arXiv:2310.06825, section 2",
    example=lambda rng: example(
        rng.normal(size=(2, 2, 8, 3)), rng.normal(size=(2, 1, 8, 3)), rng.normal(size=(2, 1, 8, 5)), window=3
    ),
    rejects=[
        bad(window=0), bad(window=2.5), bad(k=np.ones((2, 1, 9, 3))), bad(v=np.ones((2, 1, 7, 5))),
        bad(k=np.ones((2, 1, 8, 4))), bad(scale=np.inf),
    ],
)  # fmt: skip
def banded_attention(
    q: Float[Array, "*#batch positions d_head"],
    k: Float[Array, "*#batch positions d_head"],
    v: Float[Array, "*#batch positions d_value"],
    *,
    window: int,
    causal: bool = True,
    scale: float | None = None,
    soft_cap: float | None = None,
    weighting: Callable | None = None,
):
    """Scaled dot-product attention under a sliding-window mask, without the work that the mask forbids.

    Position i attends to i - window < j <= i; where causal is false, to i - window < j < i + window. A window longer
    than the sequence gives plain (causal) attention. scale, soft_cap and weighting as in scaled_dot_product_attention.
    Returns out (*batch, positions, d_value), and backward: dout -> dq, dk, dv.
    Raises ValueError when axes do not fit or window is not a whole number of at least 1.
    """
    positions = q.shape[-2]
    window = min(whole_number("window", window, least=1), positions)
    offsets = (-1, 0) if causal else (-1, 0, 1)              # the blocks that a block of queries can reach

    def near(blocks):
        return np.concatenate([_shift(blocks, offset) for offset in offsets], axis=-2)

    def from_near(dnear):
        parts = np.split(dnear, len(offsets), axis=-2)
        return sum(_shift(part, -offset) for part, offset in zip(parts, offsets, strict=True))

    q_blocks, k_blocks, v_blocks = (_to_blocks(a, window) for a in (q, k, v))
    query = np.arange(q_blocks.shape[-3] * window).reshape(-1, window, 1)
    key = query[:, :1] + np.arange(offsets[0] * window, (offsets[-1] + 1) * window)  # (blocks, 1, near)
    mask = (query - window < key) & (key < query + (1 if causal else window)) & (key >= 0) & (key < positions)
    near_k, near_v = near(k_blocks), near(v_blocks)          # (..., blocks, near, d)  (1)
    out_blocks, attention_backward = scaled_dot_product_attention(
        q_blocks, near_k, near_v, mask=mask, scale=scale, soft_cap=soft_cap, weighting=weighting
    )  # (2)
    out = _from_blocks(out_blocks, positions)

    def backward(dout):
        dq, dnear_k, dnear_v, *_ = attention_backward(_to_blocks(dout, window))  # (3)
        dk, dv = from_near(dnear_k), from_near(dnear_v)      # a key was near to two blocks: add  (4)
        return tuple(_from_blocks(a, positions) for a in (dq, dk, dv))

    return out, backward


def _to_blocks(x, window):
    missing = -x.shape[-2] % window
    if missing:
        x = np.concatenate([x, np.zeros((*x.shape[:-2], missing, x.shape[-1]), x.dtype)], axis=-2)
    return x.reshape(*x.shape[:-2], -1, window, x.shape[-1])  # (..., blocks, window, d)


def _from_blocks(blocks, positions):
    return blocks.reshape(*blocks.shape[:-3], -1, blocks.shape[-1])[..., :positions, :]


def _shift(blocks, offset):
    """Block b of the result is block b + offset, or zeros where there is none. Its adjoint is the opposite shift."""
    if offset == 0:
        return blocks
    nothing = np.zeros_like(blocks[..., :1, :, :])
    parts = [nothing, blocks[..., :-1, :, :]] if offset < 0 else [blocks[..., 1:, :, :], nothing]
    return np.concatenate(parts, axis=-3)
