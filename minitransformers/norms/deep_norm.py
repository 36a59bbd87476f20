"""DeepNorm: post-norm for very deep models: the stream is scaled by alpha, and the layers start small.

Post-norm is unstable when deep because one step of training changes every layer, and the changes add up to more than the
norms let through. DeepNorm multiplies the stream by alpha > 1 before a layer's output is added, and multiplies the
layer's weights at the start by beta < 1. Both depend on the depth alone; with alpha = 1 it is post-norm.

Source: Wang, Ma, Dong, Huang, Zhang and Wei 2022 (DeepNet), arXiv:2203.00555, figure 2 and section 4. N and M count the
layers of an encoder and of a decoder; a layer is attention and feed-forward together.

    one stack of N layers: alpha = (2N)^(1/4), beta = (8N)^(-1/4)          (1)
    encoder before a decoder: alpha = 0.81 (N^4 M)^(1/16), beta = 0.87 (N^4 M)^(-1/16)
    decoder behind an encoder: alpha = (3M)^(1/4), beta = (12M)^(-1/4)     (2)
    total = alpha x + added                                  (3)
    out = LN(total)                                          (4)
    dtotal, dparams = LN*(dout)                              (5)
    dx = alpha dtotal                                        (6)
    dadded = dtotal                                          (7)

added is the layer's output on x. beta multiplies Xavier's standard deviation of the feed-forward, value and output
projections; those of queries and keys keep it as it is.
"""

from typing import Annotated, NamedTuple

from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, checked, concept, example, positive
from minitransformers.norms.layer_norm import LayerNorm, layer_norm


class DeepNormConstants(NamedTuple):
    """What the stream is multiplied by, and what the weights are multiplied by at the start. Both dimensionless."""

    alpha: float
    beta: float


@checked
def deep_norm_constants(num_layers: Annotated[int, at_least(1)]) -> DeepNormConstants:
    """For a stack alone, encoder or decoder, of num_layers layers."""
    return DeepNormConstants(alpha=(2 * num_layers) ** 0.25, beta=(8 * num_layers) ** -0.25)  # (1)


@checked
def deep_norm_constants_of_two(
    encoder_layers: Annotated[int, at_least(1)], decoder_layers: Annotated[int, at_least(1)]
) -> tuple[DeepNormConstants, DeepNormConstants]:
    """For an encoder and the decoder that reads it, in this order."""
    depth = (encoder_layers**4 * decoder_layers) ** (1 / 16)
    return (
        DeepNormConstants(alpha=0.81 * depth, beta=0.87 / depth),
        DeepNormConstants(alpha=(3 * decoder_layers) ** 0.25, beta=(12 * decoder_layers) ** -0.25),
    )  # (2)


@concept(
    title="DeepNorm",
    source="Wang et al. 2022 (DeepNet), arXiv:2203.00555, figure 2",
    example=lambda rng: example(
        LayerNorm(rng.normal(size=7), rng.normal(size=7)), rng.normal(size=(2, 3, 7)), rng.normal(size=(2, 3, 7)), alpha=1.7
    ),
)
def deep_norm(
    params: LayerNorm,
    x: Float[Array, "*batch d_model"],
    added: Float[Array, "*batch d_model"],
    *,
    alpha: Annotated[float, positive],
    eps: Annotated[float, at_least(0)] = 1e-5,
) -> tuple[Array, Backward]:
    """Layer norm of alpha x + added: the stream x, scaled by alpha, and what a layer adds to it.

    alpha is dimensionless, see deep_norm_constants; eps as in layer_norm. With eps above 0, the output is the bias where x
    and added are zero.
    Returns out, shaped like x, and backward: dout -> LayerNorm(dgain, dbias), dx, dadded.
    Raises ValueError when alpha is not above 0, eps is negative, d_model is 1 or the shapes do not fit.
    """
    total = alpha * x + added                                # (3)
    out, norm_backward = layer_norm(params, total, eps=eps)  # (4)

    def backward(dout):
        dparams, dtotal = norm_backward(dout)                # (5)
        dx = alpha * dtotal                                  # (6)
        dadded = dtotal                                      # (7)
        return dparams, dx, dadded

    return out, backward
