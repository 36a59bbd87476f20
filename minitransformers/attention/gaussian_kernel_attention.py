"""Gaussian-kernel attention: a key weighs by its distance from the query, and a key where the query is weighs 1.

Time and memory are those of scaled dot-product attention. Sources: Chen et al. 2021 (Skyformer), arXiv:2111.00035, section
4 (this kernel, with the bandwidth sqrt(d_head)); Nadaraya 1964 and Watson 1964 (the normalised form). Differs from the
paper: the bandwidth, which is the square of the Gaussian's width, can be learned, keys can be forbidden and rows can be
normalised.

    distances = |q|^2 + |k|^2 - 2 q k^T                                   (1)
    exponents = -distances / (2 bandwidth)                                (2)
    weights = exp(exponents), 0 where the mask forbids; where normalize, over their sum over the keys  (3)
    out = weights v                                                       (4)
    dv = weights^T dout                                                   (5)
    dweights = dout v^T                                                   (6)
    dexponents = weights dweights; where normalize, weights (dweights - sum over keys of dweights weights)  (7)
    pull = dexponents / bandwidth                                         (8)
    dq = pull k - (sum of pull over the keys) q                           (9)
    dk = pull^T q - (sum of pull over the queries) k                      (10)
    dbandwidth = -sum of dexponents exponents / bandwidth                 (11)

The gradient of an input that was broadcast is the sum over the copies. A forbidden key has weight 0, hence pull 0.
"""

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import sum_over_keys, sum_to
from minitransformers.foundation import bad, concept, example, invalid


@concept(
    title="Gaussian-kernel attention",
    source="Chen et al. 2021 (Skyformer), arXiv:2111.00035, section 4",
    example=lambda rng: example(
        rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 1, 6, 5)), rng.normal(size=(2, 1, 6, 7)), np.exp(rng.normal(size=(1, 3))),
        mask=np.array([[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0], [1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 1, 0]], bool)[None, None],
    ),
    roles=("core",),
    rejects=[
        bad(k=np.ones((2, 1, 6, 4))), bad(k=np.ones((2, 2, 6, 5))), bad(v=np.ones((2, 1, 5, 7))), bad(mask=np.ones((4, 6), int)),
        bad(mask=np.ones((4, 5), bool)), bad(bandwidth=np.zeros((1, 3))), bad(bandwidth=np.full((1, 3), np.nan)),
        bad(bandwidth=np.full((1, 3), np.inf)), bad(bandwidth=np.ones((1, 2))),
    ],
)  # fmt: skip
def gaussian_kernel_attention(
    q: Float[Array, "*#batch queries d_head"],
    k: Float[Array, "*#batch keys d_head"],
    v: Float[Array, "*#batch keys d_value"],
    bandwidth: Float[Array, "*#batch"] | None = None,
    *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
    normalize: bool = False,
):
    """Mix the values, for each query, by exp(-|q - k|^2 / (2 bandwidth)).

    bandwidth is positive, in the units of q squared, one a head (heads,); sqrt(d_head) where None. mask is True where a
    query may attend. normalize makes the weights of a query sum to 1; without it the output grows with the number of keys
    nearby. A query that may attend to nothing reads zero.
    Returns out (*batch, queries, d_value), and backward: dout -> dq, dk, dv, dbandwidth (None where not given).
    Raises ValueError when axes do not broadcast or the bandwidth is not positive and finite.
    """
    if bandwidth is not None and not (np.all(bandwidth > 0) and np.all(bandwidth < np.inf)):
        raise invalid("bandwidth", got="a number that is not", wants="positive finite numbers")
    width = q.dtype.type(q.shape[-1] ** 0.5) if bandwidth is None else bandwidth[..., None, None]
    distances = (-2 * q) @ k.swapaxes(-1, -2)                # (..., queries, keys)
    distances += np.vecdot(q, q)[..., :, None]
    distances += np.vecdot(k, k)[..., None, :]               # (1)
    np.maximum(distances, 0, out=distances)                  # rounding can make a small one negative
    exponents = distances / (-2 * width)                     # (2)
    logits = exponents if mask is None else np.where(mask, exponents, -np.inf)
    if normalize:                                            # a row without keys: exp(-inf - finite) = 0, over 1
        logits = logits - np.maximum(logits.max(-1, keepdims=True), np.finfo(q.dtype).min)
    weights = np.exp(logits)
    if normalize:
        weights /= np.maximum(sum_over_keys(weights), 1)  # (3)
    out = weights @ v                                        # (4)

    def backward(dout):
        dv = weights.swapaxes(-1, -2) @ dout                 # (5)
        dweights = dout @ v.swapaxes(-1, -2)                 # (6)
        if normalize:
            dweights -= np.vecdot(dweights, weights)[..., None]
        dexponents = np.multiply(weights, dweights, out=dweights)  # (7)
        pull = np.divide(dexponents, width, out=dexponents)  # (8)
        dq = pull @ k - pull.sum(-1)[..., None] * q          # (9)
        dk = pull.swapaxes(-1, -2) @ q - pull.sum(-2)[..., None] * k  # (10)
        dbandwidth = None if bandwidth is None else -sum_to(np.vecdot(pull, exponents).sum(-1), bandwidth.shape)  # (11)
        return sum_to(dq, q.shape), sum_to(dk, k.shape), sum_to(dv, v.shape), dbandwidth

    return out, backward
