"""Log-mel spectrogram: a sound as Whisper reads it, a hundred frames a second, each of them how loud 80 bands of pitch are.

Source: Radford et al. 2022, arXiv:2212.04356, section 2.2, and the published code for what the paper leaves open; the mel scale as in
Slaney's Auditory Toolbox (1998): a straight line up to 1,000 Hz and a logarithm above. A sound is 16,000 samples a second. Windows of
400 of them, a fortieth of a second, begin every 160. What is before the first sample and behind the last is the sound in a mirror. Edges
are 82 frequencies, equally far apart on the mel scale, from 0 to 8,000 Hz, the highest that so many samples hold; band i begins at edge
i - 1, is highest at edge i and ends at edge i + 1. F_k = 40 k Hz.

    w_i = (1 - cos(2 pi i / 400)) / 2                        (1)
    x_t = the samples from 160 t - 200 up to 160 t + 199     (2)
    power_tk = |sum over i of w_i x_ti exp(-2 pi j i k / 400)|^2, k = 0 .. 200   (3)
    mel = 3 f / 200 where f < 1000, else 15 + 27 log(f / 1000) / log 6.4   (4)
    slope_ik = min((F_k - lower_i) / (middle_i - lower_i), (upper_i - F_k) / (upper_i - middle_i))   (5)
    band_ik = 2 max(slope_ik, 0) / (upper_i - lower_i)       (6)
    loud_ti = log10 max(sum over k of power_tk band_ik, 1e-10)   (7)
    out_ti = (max(loud_ti, (the largest loud of the sound) - 8) + 4) / 4   (8)
"""

import functools
from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array
from numpy.lib.stride_tricks import sliding_window_view

from minitransformers.foundation import at_least, bad, example, invalid, procedure

RATE = 16_000  # samples a second
HOP = 160  # samples from one frame to the next
_WINDOW = 400


@procedure(
    title="Log-mel spectrogram",
    source="Radford et al. 2022, arXiv:2212.04356, section 2.2",
    example=lambda rng: example(rng.normal(0, 0.1, size=(2, 801)), mels=3),
    rejects=[bad("samples", samples=np.zeros((2, 200))), bad(samples=np.full((2, 801), np.nan)), bad(samples=np.full((2, 801), np.inf))],
)
def log_mel(samples: Float[Array, "*batch samples"], *, mels: Annotated[int, at_least(1)] = 80) -> Float[Array, "*batch frames mels"]:
    """Frames of a sound, one for every 160 samples; what is left of them at the end is seen by the last windows, and gets no frame.

    samples are 16,000 a second, between -1 and 1. mels is the number of bands: 80 for all published models but the third large one,
    which has 128. A sound louder by a factor gives the same frames and a number added, as long as nothing is below the floor of (7).
    Raises ValueError where there are too few samples for a mirror, and for what is not finite.
    """
    if samples.shape[-1] <= _WINDOW // 2:
        raise invalid("samples", got=f"{samples.shape[-1]} of them", wants=f"at least {_WINDOW // 2 + 1}, as so many are mirrored at the ends")
    if not np.isfinite(samples).all():
        raise invalid("samples", got="NaN or infinity", wants="finite numbers, between -1 and 1")
    window = (1 - np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)) / 2  # (1)
    ends = _WINDOW // 2, _WINDOW // 2 - HOP                  # so that there is a window for every whole hop, and no other
    mirrored = np.pad(samples, [(0, 0)] * (samples.ndim - 1) + [ends], mode="reflect")
    frames = sliding_window_view(mirrored, _WINDOW, axis=-1)[..., ::HOP, :]  # (..., frames, 400), a view  (2)
    power = np.abs(np.fft.rfft(window * frames)) ** 2        # in float64: what is quiet stands beside what is loud  (3)
    loud = np.log10(np.maximum(power @ mel_bands(mels), 1e-10))  # (7)
    quietest = loud.max(axis=(-2, -1), keepdims=True) - 8
    return ((np.maximum(loud, quietest) + 4) / 4).astype(samples.dtype)  # (8)


@functools.cache
def mel_bands(mels: int) -> Float[Array, "frequencies mels"]:
    """How much each frequency, 0 to 8,000 Hz in steps of 40, counts in each band: triangles side by side, all of the same area."""
    frequency = np.linspace(0, RATE / 2, _WINDOW // 2 + 1)[:, None]
    edges = hertz_of(np.linspace(0, mel_of(np.array(RATE / 2)), mels + 2))
    lower, middle, upper = edges[:-2], edges[1:-1], edges[2:]
    slope = np.minimum((frequency - lower) / (middle - lower), (upper - frequency) / (upper - middle))  # (5)
    bands = 2 * np.maximum(slope, 0) / (upper - lower)       # (6)
    bands.setflags(write=False)                              # everybody gets the same array
    return bands


def mel_of(frequency: Array) -> Array:
    """A frequency in hertz on the mel scale."""
    return np.where(frequency < 1000, 3 * frequency / 200, 15 + 27 * np.log(np.maximum(frequency, 1000) / 1000) / np.log(6.4))  # (4)


def hertz_of(mel: Array) -> Array:
    """The frequency that (4) takes to mel."""
    return np.where(mel < 15, 200 * mel / 3, 1000 * 6.4 ** ((mel - 15) / 27))
