"""Frames of a sound: equal to the formula in loops and to what transformers makes, and what they say of tones, of loudness and of silence."""

import numpy as np
import pytest

from minitransformers.models.log_mel import hertz_of, log_mel, mel_bands, mel_of

RNG = np.random.default_rng(0)
SECOND = np.arange(16_000) / 16_000


def textbook(samples, mels):
    """One frame, one band and one frequency at a time, with a plain Fourier sum; edges by bisection, not by the inverse of the scale."""

    def mel(f):
        return f * 3 / 200 if f < 1000 else 15 + 27 * np.log(f / 1000) / np.log(6.4)

    def edge(i):
        low, high = 0.0, 8000.0
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if mel(middle) < i * mel(8000) / (mels + 1) else (low, middle)
        return low

    def sample(t):
        return samples[-t] if t < 0 else samples[t] if t < n else samples[2 * (n - 1) - t]

    n, edges = len(samples), [edge(i) for i in range(mels + 2)]
    loud = np.zeros((n // 160, mels))
    for t in range(n // 160):
        x = np.array([sample(160 * t - 200 + i) * (0.5 - 0.5 * np.cos(2 * np.pi * i / 400)) for i in range(400)])
        power = [abs(np.sum(x * np.exp(-2j * np.pi * k * np.arange(400) / 400))) ** 2 for k in range(201)]
        for i in range(mels):
            low, top, high, total = *edges[i : i + 3], 0.0
            for k in range(int(low / 40), min(200, int(high / 40) + 1) + 1):
                if low < 40 * k <= top:
                    total += power[k] * (40 * k - low) / (top - low) * 2 / (high - low)
                elif top < 40 * k < high:
                    total += power[k] * (high - 40 * k) / (high - top) * 2 / (high - low)
            loud[t, i] = np.log10(max(total, 1e-10))
    return (np.maximum(loud, loud.max() - 8) + 4) / 4


@pytest.mark.parametrize(("length", "mels"), [(201, 4), (320, 80), (801, 7), (1000, 128)])
def test_equals_the_formula(length, mels):
    samples = RNG.normal(0, 0.1, size=length)
    np.testing.assert_allclose(log_mel(samples, mels=mels), textbook(samples, mels), rtol=0, atol=1e-10)


def test_where_both_floors_count_it_equals_the_formula():
    """A quarter of it a loud tone, whose far bands are more than 8 below; and a sound so quiet that all is below 1e-10 but a little."""
    tone = np.where(np.arange(960) < 240, np.sin(2 * np.pi * 1000 * SECOND[:960]), 0)
    quiet = 5e-6 * RNG.normal(size=960)
    found = log_mel(np.stack([tone, quiet]))
    for own, samples in zip(found, (tone, quiet), strict=True):
        np.testing.assert_allclose(own, textbook(samples, 80), rtol=0, atol=1e-10)
    assert (found[0] == found[0].min()).mean() > 0.2 and found[0].max() - found[0].min() == pytest.approx(2, abs=1e-12)
    assert (found[1] == -1.5).any() and (found[1] > -1.5).any()


def test_thirty_seconds_are_three_thousand_frames_and_what_is_left_over_gets_none():
    assert log_mel(np.zeros(480_000, np.float32)).shape == (3000, 80)
    for length, frames in ((201, 1), (319, 1), (320, 2), (479, 2), (480, 3)):
        assert log_mel(np.ones(length)).shape == (frames, 80)


def test_silence_is_the_floor_everywhere():
    np.testing.assert_allclose(log_mel(np.zeros(480)), -1.5, rtol=0, atol=1e-12)


@pytest.mark.parametrize("frequency", [250, 1000, 3000, 6000])
def test_a_tone_stands_in_the_band_of_its_pitch(frequency):
    middles = hertz_of(np.linspace(0, mel_of(np.array(8000.0)), 82))[1:-1]
    found = log_mel(np.sin(2 * np.pi * frequency * SECOND))[5:-5].mean(axis=0)
    assert abs(found.argmax() - np.abs(middles - frequency).argmin()) <= 1


def test_ten_times_as_loud_adds_a_half():
    samples = RNG.normal(0, 0.01, size=1600)
    np.testing.assert_allclose(log_mel(10 * samples), log_mel(samples) + 0.5, rtol=0, atol=1e-12)


def test_a_click_is_heard_in_the_frames_whose_windows_hold_it():
    samples = np.zeros(3200)
    samples[1610] = 1                                        # windows of frames 9 to 11 hold it, from 1240 to 1959
    heard = log_mel(samples).max(axis=1) > log_mel(samples).min()
    assert np.flatnonzero(heard).tolist() == [9, 10, 11]


def test_a_loud_sound_does_not_hide_a_quiet_one_beside_it():
    loud, quiet = RNG.normal(size=(2, 640)) * [[1], [1e-4]]
    together = log_mel(np.stack([[loud], [quiet]]))
    np.testing.assert_allclose(together[1, 0], log_mel(quiet), rtol=0, atol=1e-12)
    np.testing.assert_allclose(together[0, 0], log_mel(loud), rtol=0, atol=1e-12)


def test_the_scale_is_straight_up_to_a_thousand_and_has_an_inverse():
    np.testing.assert_allclose(mel_of(np.array([0, 500, 1000, 6400])), [0, 7.5, 15, 42], rtol=0, atol=1e-12)
    hertz = np.linspace(0, 8000, 1000)
    np.testing.assert_allclose(hertz_of(mel_of(hertz)), hertz, rtol=0, atol=1e-9)
    assert (np.diff(mel_of(hertz)) > 0).all()


def test_bands_overlap_by_halves_and_cover_all_but_the_ends():
    """Between two neighbouring middles a frequency is in exactly two bands, whose slopes add to 1."""
    edges = hertz_of(np.linspace(0, mel_of(np.array(8000.0)), 12))
    slopes = mel_bands(10) * (edges[2:] - edges[:-2]) / 2
    inside = (np.arange(201) * 40 >= edges[1]) & (np.arange(201) * 40 <= edges[-2])
    np.testing.assert_allclose(slopes[inside].sum(axis=1), 1, rtol=0, atol=1e-12)
    assert (slopes >= 0).all() and ((slopes > 0).sum(axis=1) <= 2).all() and inside.sum() > 100


def test_float32_gives_what_float64_gives_rounded():
    """Also where much is loud and the rest nearly silent: squares of small differences of large numbers would show."""
    samples = (0.5 * np.sin(2 * np.pi * 440 * SECOND) + 1e-4 * RNG.normal(size=16_000)).astype(np.float32)
    found = log_mel(samples)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, log_mel(samples.astype(np.float64)), rtol=0, atol=2e-7)


def test_nobody_can_write_to_the_bands():
    with pytest.raises(ValueError, match="read-only"):
        mel_bands(80)[0, 0] = 1


@pytest.mark.parametrize(
    ("samples", "settings", "message"),
    [
        (np.zeros(200), {}, "samples: got 200 of them, wants at least 201"),
        (np.zeros(0), {}, "samples"),
        (np.array([0.0] * 300 + [np.nan]), {}, "samples: got NaN or infinity"),
        (np.zeros(300, np.int16), {}, "samples: got int16"),
        (np.zeros(300), {"mels": 0}, "mels: got 0"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(samples, settings, message):
    with pytest.raises(ValueError, match=message):
        log_mel(samples, **settings)


@pytest.mark.parity
@pytest.mark.parametrize("mels", [80, 128])
def test_frames_are_those_of_transformers(mels):
    """Their NumPy code computes in float64 and rounds at the end, as ours does; their PyTorch code computes in float32."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.WhisperFeatureExtractor(feature_size=mels)
    np.testing.assert_allclose(mel_bands(mels), theirs.mel_filters, rtol=0, atol=1e-15)
    rng = np.random.default_rng(1)
    tones = 0.3 * np.sin(2 * np.pi * 300 * SECOND * (1 + SECOND)) + 0.1 * np.sin(2 * np.pi * 2500 * SECOND)
    samples = np.pad(tones + 0.01 * rng.normal(size=16_000), (0, 8_000)).astype(np.float32)
    expected = theirs._np_extract_fbank_features(samples[None], "cpu")[0].T
    np.testing.assert_allclose(log_mel(samples, mels=mels), expected, rtol=0, atol=3e-7)
    whole = np.pad(samples, (0, 480_000 - len(samples)))
    own, exact = log_mel(whole, mels=mels), theirs._np_extract_fbank_features(whole[None], "cpu")[0].T
    np.testing.assert_allclose(own, exact, rtol=0, atol=3e-7)
    rounded = theirs(samples, sampling_rate=16_000, return_tensors="np").input_features[0].T
    assert np.abs(own - rounded).max() <= np.abs(exact - rounded).max() + 3e-7  # no further apart than their two are
    assert np.abs(own - rounded).mean() < 1e-6
