"""Merging partial attentions: what queries read of some keys and what they read of others, made into what they read of all.

Softmax attention over a part of the keys gives a mean of their values, out, and the logarithm of what its weights were divided
by, log_total. These two say all that the rest needs to know: keys may be split over tiles, pages or computers in any way,
attended to apart, and merged in any order. A query that saw no key has log_total -inf and reads 0.
Time and memory O(queries d_value). Sources: Milakov and Gimelshein 2018, arXiv:1805.02867, section 3.1 (the totals); Ye et al.
2025, arXiv:2501.01005, section 2.2 (with the outputs). Differs from the papers: a query may have seen nothing, and there is a
backward. For r = 1, 2, <,> a sum over features:

    largest = max(log_total1, log_total2)                    (1)
    size_r = exp(log_total_r - largest)                      (2)
    log_total = largest + log(size1 + size2)                 (3)
    share_r = size_r / (size1 + size2)                       (4)
    out = share1 out1 + share2 out2                          (5)
    dout_r = share_r dout                                    (6)
    turn = share1 share2 <dout, out1 - out2>                 (7)
    dlog_total1 = share1 dlog_total + turn                   (8)
    dlog_total2 = share2 dlog_total - turn                   (9)
"""

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, bad, concept, example, invalid


@concept(
    title="Merging partial attentions",
    source="Milakov and Gimelshein 2018, arXiv:1805.02867, section 3.1; Ye et al. 2025, arXiv:2501.01005, section 2.2",
    example=lambda rng: example(*(rng.normal(size=shape) for shape in ((2, 3, 5), (2, 3), (2, 3, 5), (2, 3)))),
    rejects=[bad(log_total1=np.full((2, 3), np.inf)), bad(log_total2=np.full((2, 3), np.nan))],
)
def merge_attention(
    out1: Float[Array, "*batch queries d_value"],
    log_total1: Float[Array, "*batch queries"],
    out2: Float[Array, "*batch queries d_value"],
    log_total2: Float[Array, "*batch queries"],
) -> tuple[tuple[Array, Array], Backward]:
    """What the queries read of the keys of both parts, of which none is in both.

    log_total is the logarithm of the sum of exp(score) over the keys of a part, and -inf where a query saw none of them.
    Returns (out, log_total), shaped like those of a part, and backward: (dout, dlog_total) -> dout1, dlog_total1, dout2,
    dlog_total2, 0 for a part in which a query saw nothing.
    Raises ValueError where a log_total is NaN or +inf.
    """
    for argument, log_total in (("log_total1", log_total1), ("log_total2", log_total2)):
        if not log_total.max() < np.inf:                     # a NaN is not smaller, either
            raise invalid(argument, got="NaN or +inf", wants="finite numbers, or -inf where a query saw no key")
    largest = np.maximum(log_total1, log_total2)             # (..., queries)  (1)
    # Where both are -inf any finite number in the place of the largest makes both sizes 0.
    finite = np.maximum(largest, np.finfo(largest.dtype).min)
    size1, size2 = np.exp(log_total1 - finite), np.exp(log_total2 - finite)  # (2)
    size = np.maximum(size1 + size2, 1)                      # the larger one is exp(0) = 1, so a sum below 1 is 0: log 1 = 0, 0 / 1 = 0
    log_total = largest + np.log(size)                       # (3)
    share1, share2 = size1 / size, size2 / size              # (4)
    out = share1[..., None] * out1 + share2[..., None] * out2  # (5)

    def backward(dout):
        dmerged, dlog_total = dout
        dout1, dout2 = share1[..., None] * dmerged, share2[..., None] * dmerged  # (6)
        turn = share1 * share2 * np.vecdot(dmerged, out1 - out2)  # what one share gains the other loses  (7)
        dlog_total1 = share1 * dlog_total + turn             # (8)
        dlog_total2 = share2 * dlog_total - turn             # (9)
        return dout1, dlog_total1, dout2, dlog_total2

    return (out, log_total), backward
