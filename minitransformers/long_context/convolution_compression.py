"""Compression of memory: of every ``rate`` rows one is made, so that what would be thrown away is kept in less room.

Four ways, each with the same arguments, so that one can stand in the place of another: a strided convolution, which learns; the
mean and the maximum over each window, which do not; and the rows that received the most attention, as they are. Source: Rae et al.
2019 (Compressive Transformer), arXiv:1911.05507, section 3. Differs from the paper: no dilated convolutions; "most used" counts
the attention of one segment, the last that read the rows, where theirs averages over their time in memory. A kernel as long as its
stride makes the convolution a linear map of windows. n rows of d features, c = rate.

    windows = x with each c rows side by side, (n/c, c d)    (1)
    out = windows W + b                                      (2)
    dW = windows^T dout, db = sum of dout                    (3)
    dx = dout W^T, with each row cut into c again            (4)
    mean:       out_j = the mean of window j                 (5)
                dx_i = dout_j / c, for j the window of i     (6)
    maximum:    out_jf = the largest of feature f in window j   (7)
                dx_if = dout_jf where i is the first that has it, else 0   (8)
    most used:  places = those of the n/c largest usages, in order of time   (9)
                out = x at places                            (10)
                dx = dout at places, else 0                  (11)

The places are a choice, whose derivative is zero wherever it has one; the backward holds them fixed.
"""

from collections.abc import Callable
from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.linear import Linear, linear
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid

Rate = Annotated[int, at_least(1)]


@checked
def init_convolution_compression(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, rate: Rate, std: Annotated[float, at_least(0)] = 0.02, dtype: type = np.float32
) -> Linear:
    """The mean of each window, and normal numbers of deviation ``std`` on top; zero bias."""
    weight = np.tile(np.eye(d_model) / rate, (rate, 1)) + std * rng.standard_normal((rate * d_model, d_model))
    return Linear(weight.astype(dtype), np.zeros(d_model, dtype))


@concept(
    title="Compression by convolution",
    source="Rae et al. 2019, arXiv:1911.05507, section 3",
    example=lambda rng: example(Linear(rng.normal(size=(6, 3)), rng.normal(size=3)), rng.normal(size=(2, 8, 3)), rate=2),
    rejects=[bad("x", x=np.ones((2, 7, 3))), bad("params.weight", rate=4)],
)
def convolution_compression(
    params: Annotated[Linear, "d_window d_model"], x: Float[Array, "... rows d_model"], *, rate: Rate, usage: Callable | None = None
) -> tuple[Float[Array, "... fewer d_model"], Backward]:
    """A learned linear map of each window of ``rate`` rows. usage is not looked at.

    Returns out (..., rows / rate, d_model), and backward: dout -> Linear, dx.
    Raises ValueError where rate does not divide the rows, or params are for another rate.
    """
    joined = _windows(x, rate).reshape(*x.shape[:-2], -1, rate * x.shape[-1])  # (1)
    if params.weight.shape[0] != joined.shape[-1]:
        raise invalid("params.weight", got=f"shape {params.weight.shape}", wants=f"rate d_model = {joined.shape[-1]} rows")
    out, linear_backward = linear(params, joined)            # (2)

    def backward(dout):
        dparams, djoined = linear_backward(dout)             # (3)
        return dparams, djoined.reshape(x.shape)             # (4)

    return out, backward


@concept(
    title="Compression by the mean",
    source="Rae et al. 2019, arXiv:1911.05507, section 3",
    example=lambda rng: example(rng.normal(size=(2, 8, 3)), rate=2),
    rejects=[bad("x", x=np.ones((2, 7, 3)))],
    form_of="convolution_compression",
)
def mean_compression(x: Float[Array, "... rows d_model"], *, rate: Rate, usage: Callable | None = None) -> tuple[Array, Backward]:
    """The mean of each window of ``rate`` rows. usage is not looked at.

    Returns out (..., rows / rate, d_model), and backward: dout -> dx. Raises ValueError where rate does not divide the rows.
    """
    out = _windows(x, rate).mean(axis=-2)                    # (5)
    return out, lambda dout: np.repeat(dout / rate, rate, axis=-2)  # (6)


@concept(
    title="Compression by the maximum",
    source="Rae et al. 2019, arXiv:1911.05507, section 3",
    example=lambda rng: example(rng.normal(size=(2, 8, 3)), rate=2),
    rejects=[bad("x", x=np.ones((2, 7, 3)))],
    form_of="convolution_compression",
)
def max_compression(x: Float[Array, "... rows d_model"], *, rate: Rate, usage: Callable | None = None) -> tuple[Array, Backward]:
    """The largest of each feature in each window of ``rate`` rows. usage is not looked at.

    Returns out (..., rows / rate, d_model), and backward: dout -> dx; of equals the first gets the gradient.
    Raises ValueError where rate does not divide the rows.
    """
    windows = _windows(x, rate)
    place = windows.argmax(axis=-2, keepdims=True)
    out = np.take_along_axis(windows, place, axis=-2)[..., 0, :]  # (7)

    def backward(dout):
        dwindows = np.zeros_like(windows)
        np.put_along_axis(dwindows, place, dout[..., None, :], axis=-2)  # (8)
        return dwindows.reshape(x.shape)

    return out, backward


@concept(
    title="Compression to the most used",
    source="Rae et al. 2019, arXiv:1911.05507, section 3",
    example=lambda rng: _most_used_example(rng),
    rejects=[bad("x", x=np.ones((2, 7, 3))), bad(usage=lambda: np.ones((2, 7)))],
    form_of="convolution_compression",
)
def most_used_compression(x: Float[Array, "... rows d_model"], *, rate: Rate, usage: Callable) -> tuple[Array, Backward]:
    """One of ``rate`` rows, those of the largest usage, in their order.

    usage() gives a number for each row, (..., rows), such as the attention that it received; a function, since it costs
    something and the others have no need of it. Of equals the earlier is kept.
    Returns out (..., rows / rate, d_model), and backward: dout -> dx, zero for the rows that were dropped.
    Raises ValueError where rate does not divide the rows, or usage is not about them.
    """
    _windows(x, rate)
    used = np.asarray(usage())
    try:
        used = np.broadcast_to(used, x.shape[:-1])
    except ValueError:
        raise invalid("usage", got=f"numbers of shape {used.shape}", wants=f"one for each row, {x.shape[:-1]}") from None
    largest = np.argsort(-used, axis=-1, kind="stable")[..., : x.shape[-2] // rate]
    places = np.sort(largest, axis=-1)[..., None]            # (..., rows / rate, 1)  (9)
    out = np.take_along_axis(x, places, axis=-2)             # (10)

    def backward(dout):
        dx = np.zeros_like(x)
        np.put_along_axis(dx, places, dout, axis=-2)         # (11)
        return dx

    return out, backward


def _windows(x: Array, rate: int) -> Float[Array, "... windows rate d_model"]:
    if x.shape[-2] % rate:
        raise invalid("x", got=f"{x.shape[-2]} rows", wants=f"a number of rows that rate = {rate} divides")
    return x.reshape(*x.shape[:-2], -1, rate, x.shape[-1])


def _most_used_example(rng: np.random.Generator):
    usage = rng.random((2, 8))
    return example(rng.normal(size=(2, 8, 3)), rate=2, usage=lambda: usage)
