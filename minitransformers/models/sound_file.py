"""A sound out of a WAV file, as the models of this chapter take it: one channel, 16,000 samples a second, between -1 and 1.

Files of 16 bits a sample are read, of any usual rate and number of channels: channels are averaged, and another rate is changed by SciPy's
polyphase filter, which takes out first what the new rate cannot hold. All else is refused by name; any sound program writes such a file.
"""

import io
import math
import wave
from pathlib import Path

import numpy as np
from numpy import ndarray as Array

from minitransformers.models.log_mel import RATE

_RATES = 4_000, 192_000


def read_wav(path: str | Path) -> Array:
    """The samples of a WAV file, (samples,), in float32.

    Raises ValueError that names the file where it is not there, is no WAV file of 16 bits a sample, is cut off, has no samples, or has a
    rate that no sound has.
    """
    try:
        with wave.open(io.BytesIO(Path(path).read_bytes())) as sound:
            channels, width, rate, length = sound.getparams()[:4]
            if width != 2:
                raise ValueError(f"{path}: has samples of {8 * width} bits, wants 16")
            if not _RATES[0] <= rate <= _RATES[1]:
                raise ValueError(f"{path}: has {rate:,} samples a second, wants {_RATES[0]:,} to {_RATES[1]:,}")
            raw = sound.readframes(length)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except (wave.Error, EOFError, RuntimeError) as error:    # the last where a part says that it is longer than the whole
        raise ValueError(f"{path}: is no WAV file of plain samples: {str(error) or 'cut off or damaged'}") from None
    if len(raw) < 2 * channels * length:
        raise ValueError(f"{path}: is cut off: it has {len(raw) // (2 * channels):,} of {length:,} samples")
    if not length:
        raise ValueError(f"{path}: has no samples")
    samples = np.frombuffer(raw, "<i2").reshape(length, channels).mean(axis=1, dtype=np.float32) / np.float32(2**15)
    return resampled(samples, rate)


def resampled(samples: Array, rate: int) -> Array:
    """The same sound in 16,000 samples a second; as it is where it has so many."""
    if rate == RATE:
        return samples
    from scipy.signal import resample_poly  # slow to import, and most sounds are at this rate already

    common = math.gcd(RATE, rate)
    return resample_poly(samples, RATE // common, rate // common)
