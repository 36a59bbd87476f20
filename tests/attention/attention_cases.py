"""Every weighting and every core of the chapter as a slot takes it, with something to learn where it learns."""

import importlib
import pkgutil
from functools import partial

import numpy as np
import pytest

from minitransformers import attention
from minitransformers.attention.banded_attention import banded_attention
from minitransformers.attention.banded_attention_blocks import banded_attention_blocks
from minitransformers.attention.core import softmax_attention
from minitransformers.attention.gaussian_kernel_attention import (
    GaussianKernel,
    gaussian_kernel_attention,
    normalized_gaussian_kernel_attention,
)
from minitransformers.attention.polynomial_attention import PolynomialAttention, polynomial_attention, polynomial_weights
from minitransformers.attention.relu_attention import relu_attention, relu_weights
from minitransformers.attention.scalable_softmax import ScalableSoftmax, scalable_softmax, scalable_softmax_attention
from minitransformers.attention.sigmoid_attention import SigmoidAttention, sigmoid_attention, sigmoid_weights
from minitransformers.attention.soft_cap import soft_capped_attention
from minitransformers.attention.softmax_off_by_one import SoftmaxOffByOne, softmax_off_by_one, softmax_off_by_one_attention
from minitransformers.attention.sparsemax import sparsemax, sparsemax_attention
from minitransformers.foundation import catalogue, slot

for module in pkgutil.iter_modules(attention.__path__):
    importlib.import_module(f"{attention.__name__}.{module.name}")


def _nothing(rng, heads):
    return None


def _sinks(rng, heads):
    return SoftmaxOffByOne(rng.normal(size=heads))


def _scales(rng, heads):
    return ScalableSoftmax(rng.normal(size=heads), rng.normal(size=heads))


def _offsets(rng, heads):
    return SigmoidAttention(rng.normal(size=heads))


def _coefficients(rng, heads):
    return PolynomialAttention(rng.normal(size=3))


def _bandwidths(rng, heads):
    return GaussianKernel(rng.uniform(0.5, 2, size=heads))


# name: (weighting(params, scores, *, mask), what it learns for so many heads)
WEIGHTINGS = {
    "softmax_off_by_one": (softmax_off_by_one, _sinks),
    "scalable_softmax": (scalable_softmax, _scales),
    "sparsemax": (slot(sparsemax), _nothing),
    "sigmoid_weights": (sigmoid_weights, _offsets),
    "relu_weights": (slot(relu_weights), _nothing),
    "polynomial_weights": (polynomial_weights, _coefficients),
}

# name: (core(params, query, key, value, bias, *, mask), what it learns for so many heads)
CORES = {
    "softmax_attention": (softmax_attention, _nothing),
    "softmax_off_by_one_attention": (softmax_off_by_one_attention, _sinks),
    "scalable_softmax_attention": (scalable_softmax_attention, _scales),
    "sparsemax_attention": (sparsemax_attention, _nothing),
    "sigmoid_attention": (sigmoid_attention, _offsets),
    "relu_attention": (relu_attention, _nothing),
    "polynomial_attention": (polynomial_attention, _coefficients),
    "soft_capped_attention": (partial(soft_capped_attention, cap=1.0), _nothing),
    "gaussian_kernel_attention": (gaussian_kernel_attention, _bandwidths),
    "normalized_gaussian_kernel_attention": (normalized_gaussian_kernel_attention, _bandwidths),
    "banded_attention": (partial(banded_attention, window=3, core=softmax_off_by_one_attention), _sinks),
    "banded_attention_blocks": (partial(banded_attention_blocks, window=3, core=softmax_off_by_one_attention), _sinks),
}


def labelled(role):
    """The names of the chapter's entries that have the role."""
    return {name for name, entry in catalogue._entries.items() if entry.chapter == "attention" and entry.has_role(role)}


def assert_takes_the_softmax_s_place(core, weighting, params):
    """The core is attention with the weighting's weights of scale q k + bias, under the mask; params are for three heads."""
    rng = np.random.default_rng(12)
    q, k, v = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 1, 6, 5)), rng.normal(size=(2, 3, 6, 7))
    bias, mask, scale = rng.normal(size=(3, 4, 6)), rng.random((2, 1, 4, 6)) < 0.7, -0.3
    out, backward = core(params, q, k, v, bias, mask=mask, scale=scale)
    weights, weights_backward = weighting(params, scale * q @ k.swapaxes(-1, -2) + bias, mask=mask)
    np.testing.assert_allclose(out, weights @ v, rtol=0, atol=1e-13)
    dout = rng.normal(size=out.shape)
    dparams, dscores = weights_backward(dout @ v.swapaxes(-1, -2))
    expected = (scale * dscores @ k, (scale * dscores.swapaxes(-1, -2) @ q).sum(1, keepdims=True), weights.swapaxes(-1, -2) @ dout, dscores.sum(0))
    found, *gradients = backward(dout)
    for own, theirs in zip((*gradients, *(found or ())), (*expected, *(dparams or ())), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


def assert_refuses_masks_that_do_not_fit(weighting, params):
    """One that does not broadcast to the scores, or would give the weights axes that the scores have not; params are for three heads."""
    for shape in ((3, 4, 5), (7, 1, 1, 1, 1)):
        with pytest.raises(ValueError, match="mask: got shape"):
            weighting(params, np.ones((2, 3, 4, 6)), mask=np.ones(shape, bool))
