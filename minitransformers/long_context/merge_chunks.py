"""Merging chunks: what overlapping chunks say of their tokens, brought back to one vector for each token of the text.

A token that stands in several chunks has several outputs. Their mean is taken, over all chunks that cover it or over those that are
asked: with a mask that is True once a token, as max_context makes it, the one that saw most around it speaks alone. The map is
linear, so the backward is its transpose: every chunk that had a say gets its share of the token's gradient.

Source: Devlin et al. 2019, arXiv:1810.04805, the code for SQuAD, for the choice of one chunk; the mean over chunks is common
practice. Costs one addition for each output number, forward and backward. Chunk c begins at start_c, m is the mask.

    count_t = sum of m_c,i over the (c, i) with start_c + i = t   (1)
    share_c,i = m_c,i / count_(start_c + i)                  (2)
    out_t = sum of share_c,i outputs_c,i over the same (c, i)   (3)
    doutputs_c,i = share_c,i dout_(start_c + i)              (4)
"""

from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, concept, example, invalid
from minitransformers.long_context.chunking import check_starts


@concept(
    title="Merging chunks",
    source="Devlin et al. 2019, arXiv:1810.04805, the code for SQuAD",
    example=lambda rng: example(rng.normal(size=(2, 3, 6, 5)), starts=np.array([0, 2, 1]), length=4),
    rejects=[
        bad(starts=np.array([0, 3, 4])), bad(starts=np.array([-1, 3, 2])), bad("starts", length=9), bad("starts", starts=np.array([3, 2, 1])),
        bad(mask=np.zeros((3, 6), bool)), bad(mask=np.ones((3, 5), bool)),
    ],
)  # fmt: skip
def merge_chunks(
    outputs: Float[Array, "*batch chunks size d_out"], *, starts: Int[Array, "chunks"], length: Annotated[int, at_least(1)],
    mask: Bool[Array, "chunks size"] | None = None,
) -> tuple[Array, Backward]:  # fmt: skip
    """For each token of the text the mean of what its chunks say of it.

    starts are the tokens at which the chunks begin. mask is True where a chunk is asked for its token (None: wherever it has one);
    places behind the end of the text are padding, and are never asked. What is not asked may hold anything.
    Returns out (*batch, length, d_out) and backward: dout -> doutputs.
    Raises ValueError where a chunk begins outside the text, and where a token is covered, or asked for, by none.
    """
    check_starts(starts, length)
    *batch, _, size, d_out = outputs.shape
    places = starts[:, None] + np.arange(size)
    asked = places < length if mask is None else mask & (places < length)
    places = np.where(asked, places, 0)
    count = np.bincount(places[asked], minlength=length)     # (1)
    if not count.all():
        wants = f"at least one for each of {length} tokens"
        raise invalid("starts" if mask is None else "mask", got=f"no chunk that is asked for token {count.argmin()}", wants=wants)
    share = (asked / count[places]).astype(outputs.dtype)[..., None]  # (chunks, size, 1)  (2)
    said = np.where(asked[..., None], outputs, 0) * share
    out = np.zeros((*batch, length, d_out), outputs.dtype)
    for c, start in enumerate(starts):                       # within a chunk no token stands twice
        end = min(start + size, length)
        out[..., start:end, :] += said[..., c, : end - start, :]  # (3)

    def backward(dout):
        return share * dout[..., places, :]                  # (4)

    return out, backward
