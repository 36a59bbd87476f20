"""AdamW: steps of equal length in every direction, by dividing a running mean of gradients by its running size.

Source: Loshchilov and Hutter 2017, arXiv:1711.05101, algorithm 2, after Kingma and Ba 2014, arXiv:1412.6980. As in
PyTorch, the decay is multiplied by the learning rate (the paper multiplies it by the schedule only), the parameters
decay before they step, and eps is added outside the root, to corrected moments.

    params = params (1 - learning_rate decay)                (1)
    gradient_sum = beta_1 gradient_sum + gradient            (2)
    square_sum = beta_2 square_sum + gradient^2              (3)
    mean = gradient_sum / (1 + beta_1 + ... + beta_1^(t-1))  (4)
    mean_square = square_sum / (1 + beta_2 + ... + beta_2^(t-1))  (5)
    params = params - learning_rate mean / (sqrt(mean_square) + eps)  (6)

A weighted sum divided by the sum of its weights is a mean, which is all that the papers' "bias correction" does: their
moments are m = (1 - beta_1) gradient_sum and v = (1 - beta_2) square_sum. Keeping the sums saves two passes.

Why the code is one chunked loop: each line above is a pass over memory, and a chunk of all arrays fits in cache.
"""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray as Array

from minitransformers.foundation import invalid
from minitransformers.training.flat_tree import FlatTree, aligned_zeros
from minitransformers.training.threads import in_threads

_CHUNK = 32_768  # elements of each array that are worked on at a time: they fit in L2
# Many parameters are worth two threads. Larger chunks for them: threads share the interpreter between operations.
_TWO_THREADS_FROM, _THREAD_CHUNK = 4_000_000, 131_072


class TrainingDiverged(FloatingPointError):
    """A loss, a gradient or a parameter is no longer a finite number."""


class AdamW:
    """Changes ``params.flat`` in place; its state is the step and two sums with the layout of the parameters.

    betas: how much of each sum a step keeps, from 0 to below 1. eps: what a mean gradient must exceed to count, in
    units of the gradient, above 0. weight_decay: per unit of learning rate, 0 or more, on ``flat[:front]`` only.
    Raises ValueError for values outside these ranges.
    """

    def __init__(
        self,
        params: FlatTree,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise invalid("betas", got=betas, wants="two numbers from 0 to below 1")
        if not np.finfo(params.flat.dtype).tiny <= params.flat.dtype.type(eps) < math.inf:
            raise invalid("eps", got=eps, wants=f"a number that is above 0 in {params.flat.dtype}")
        if not 0 <= weight_decay < math.inf:
            raise invalid("weight_decay", got=weight_decay, wants="a number of at least 0")
        self.params, self.betas, self.eps, self.weight_decay = params, tuple(betas), eps, weight_decay
        self.gradient_sum, self.square_sum, self.steps = params.zeros_like(), params.zeros_like(), 0
        threads, self._chunk = (2, _THREAD_CHUNK) if params.flat.size >= _TWO_THREADS_FROM else (1, _CHUNK)
        self._scratch = [tuple(aligned_zeros(self._chunk, params.flat.dtype) for _ in range(2)) for _ in range(threads)]

    def step(self, gradient: FlatTree, *, learning_rate: float, clip: float | None = None, weight: float = 1.0) -> float:
        """Take one step and return the gradient's norm, over all parameters together, before clipping.

        weight multiplies the gradient first: 1 / n makes the mean of a sum over n. clip scales a longer gradient down to that norm (Pascanu et al. 2012, arXiv:1211.5063); None does not.
        Raises TrainingDiverged, and changes nothing, when the norm is not finite, and ValueError for a rate below 0 or not
        finite and a clip that is not above 0.
        """
        if not 0 <= learning_rate < math.inf:
            raise invalid("learning_rate", got=learning_rate, wants="a finite number of at least 0")
        if clip is not None and not clip > 0:
            raise invalid("clip", got=clip, wants="a number above 0, or None")
        norm = weight * gradient_norm(gradient)
        if not math.isfinite(norm):
            raise TrainingDiverged(f"the gradient norm is {norm} at step {self.steps + 1}")
        scale = weight * (1.0 if clip is None else min(1.0, clip / (norm + 1e-6)))
        self.steps += 1
        beta_1, beta_2 = self.betas
        weights_1, weights_2 = ((1 - beta**self.steps) / (1 - beta) for beta in self.betas)  # the sums in (4) and (5)
        # (6) with its constants drawn together: the root of weights_2 moves out of the chunk and into eps and the rate.
        eps = self.eps * math.sqrt(weights_2)
        rate = learning_rate / weights_1 * math.sqrt(weights_2)
        shrink, front = 1 - learning_rate * self.weight_decay, self.params.front

        arrays = self.params.flat, gradient.flat, self.gradient_sum.flat, self.square_sum.flat

        def update_chunks(starts: range, scratch: tuple[Array, ...]) -> None:
            for start in starts:
                params, grad, gradient_sum, square_sum = (array[start : start + chunk] for array in arrays)
                work, update = (buffer[: len(params)] for buffer in scratch)
                if start < front and shrink != 1:
                    params[: front - start] *= shrink        # (1)
                if scale != 1:
                    grad = np.multiply(grad, scale, out=work)
                gradient_sum *= beta_1
                gradient_sum += grad                         # (2)
                square_sum *= beta_2
                square_sum += np.multiply(grad, grad, out=work)  # (3)
                np.sqrt(square_sum, out=work)
                work += eps                                  # (5)
                np.divide(gradient_sum, work, out=update)    # (4)
                update *= rate
                params -= update                             # (6)

        chunk, threads, size = self._chunk, len(self._scratch), len(self.params.flat)
        # Every chunk is on its own, so threads change no bit. Each takes every other chunk.
        in_threads([range(i * chunk, size, threads * chunk) for i in range(threads)], self._scratch, function=update_chunks)
        return norm


def gradient_norm(gradient: FlatTree) -> float:
    """The length of all gradients as one vector; infinite when its square overflows."""
    return math.sqrt(float(np.dot(gradient.flat, gradient.flat)))
