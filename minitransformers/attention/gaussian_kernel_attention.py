"""Gaussian-kernel attention: the weight of a key falls with its distance from the query, and is 1 where the two coincide.

Time and memory are those of scaled dot-product attention. Sources: Chen et al. 2021 (Skyformer), arXiv:2111.00035, section
4 (this kernel, with the bandwidth sqrt(d_head)); Nadaraya 1964 and Watson 1964 (the normalised form). Differs from the
paper: the bandwidth, which is the square of the Gaussian's width, can be learned, keys can be forbidden, a bias may be added
to the exponents, and rows can be normalised (normalized_gaussian_kernel_attention).

    distances = |q|^2 + |k|^2 - 2 q k^T                                   (1)
    exponents = -distances / (2 bandwidth) + bias                         (2)
    weights = exp(exponents), 0 where the mask forbids; normalised: over their sum over the keys       (3)
    out = weights v                                                       (4)
    dv = weights^T dout                                                   (5)
    dweights = dout v^T                                                   (6)
    dexponents = weights dweights; normalised: weights (dweights - sum over keys of dweights weights)  (7)
    pull = dexponents / bandwidth                                         (8)
    dq = pull k - (sum of pull over the keys) q                           (9)
    dk = pull^T q - (sum of pull over the queries) k                      (10)
    dbandwidth = sum of dexponents distances / (2 bandwidth^2)            (11)
    dbias = dexponents                                                    (12)

The gradient of an input that was broadcast is the sum over the copies. A forbidden key has weight 0, hence pull 0.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import by_head, sum_over_keys, sum_to
from minitransformers.attention.scaled_dot_product_attention import check_bias
from minitransformers.attention.weighted_attention import core_example
from minitransformers.foundation import Backward, bad, concept, positive


class GaussianKernel(NamedTuple):
    """The square of the kernel's width, one number a head, in the units of q squared; without it sqrt(d_head)."""

    bandwidth: Annotated[Float[Array, "heads"], positive]


@concept(
    title="Gaussian-kernel attention",
    source="Chen et al. 2021 (Skyformer), arXiv:2111.00035, section 4",
    example=lambda rng: core_example(rng, GaussianKernel(np.exp(rng.normal(size=3)))),
    roles=("core",),
    rejects=[bad(bias=np.full((1, 3, 4, 5), np.nan)), bad("params.bandwidth", params=GaussianKernel(np.ones(2)))],
)
def gaussian_kernel_attention(
    params: GaussianKernel | None, query: Float[Array, "*#batch queries d_head"], key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"], bias: Float[Array, "*#batch #queries #keys"] | None = None, *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
) -> tuple[Array, Backward]:  # fmt: skip
    """Mix the values, for each query, by exp(-|q - k|^2 / (2 bandwidth) + bias). A core.

    mask is True where a query may attend; a bias of -inf forbids as well. The output grows with the number of keys nearby; a
    query that may attend to nothing reads zero.
    Returns out (*batch, queries, d_value), and backward: dout -> GaussianKernel(dbandwidth) or None, dquery, dkey, dvalue,
    dbias (None without a bias).
    Raises ValueError when axes do not broadcast, the bandwidth does not fit the heads or the bias holds NaN or +inf.
    """
    return _kernel_attention(params, query, key, value, bias, mask, normalized=False)


@concept(
    title="Gaussian-kernel attention, normalised",
    source="Nadaraya 1964, Theory of Probability and its Applications 9:141; Watson 1964, Sankhya A 26:359",
    example=lambda rng: core_example(rng, GaussianKernel(np.exp(rng.normal(size=3)))),
    roles=("core",),
    form_of="gaussian_kernel_attention",
)
def normalized_gaussian_kernel_attention(
    params: GaussianKernel | None, query: Float[Array, "*#batch queries d_head"], key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"], bias: Float[Array, "*#batch #queries #keys"] | None = None, *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
) -> tuple[Array, Backward]:  # fmt: skip
    """The same with the weights of a query divided by their sum: a mean of the values nearby. A core.

    Arguments, results and errors are those of gaussian_kernel_attention.
    """
    return _kernel_attention(params, query, key, value, bias, mask, normalized=True)


def _kernel_attention(params, query, key, value, bias, mask, *, normalized):
    check_bias(bias)
    distances = (-2 * query) @ key.swapaxes(-1, -2)          # (..., queries, keys)
    distances += np.vecdot(query, query)[..., :, None]
    distances += np.vecdot(key, key)[..., None, :]
    np.maximum(distances, 0, out=distances)                  # rounding can make a small one negative  (1)
    width = query.dtype.type(query.shape[-1] ** 0.5) if params is None else by_head("params.bandwidth", params.bandwidth, distances)
    exponents = distances / (-2 * width)
    if bias is not None:
        exponents = exponents + bias                         # (2)
    logits = exponents if mask is None else np.where(mask, exponents, -np.inf)
    if normalized:                                           # a row without keys: exp(-inf - finite) = 0, over 1
        logits = logits - np.maximum(logits.max(-1, keepdims=True), np.finfo(query.dtype).min)
    weights = np.exp(logits)
    if normalized:
        weights /= np.maximum(sum_over_keys(weights), 1)     # (3)
    out = weights @ value                                    # (4)

    def backward(dout):
        dvalue = weights.swapaxes(-1, -2) @ dout             # (5)
        dweights = dout @ value.swapaxes(-1, -2)             # (6)
        if normalized:
            dweights -= np.vecdot(dweights, weights)[..., None]
        dexponents = np.multiply(weights, dweights, out=dweights)  # (7)
        dbias = None if bias is None else sum_to(dexponents, bias.shape)  # (12)
        pull = np.divide(dexponents, width, out=dexponents if bias is None else None)  # (8)
        dquery = pull @ key - pull.sum(-1)[..., None] * query  # (9)
        dkey = pull.swapaxes(-1, -2) @ query - pull.sum(-2)[..., None] * key  # (10)
        dparams = None
        if params is not None:
            each = np.vecdot(pull, distances).sum(-1)[..., None, None] / (2 * width)
            dparams = GaussianKernel(sum_to(each, width.shape).reshape(-1))  # (11)
        return dparams, sum_to(dquery, query.shape), sum_to(dkey, key.shape), sum_to(dvalue, value.shape), dbias

    return out, backward
