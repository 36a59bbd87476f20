"""WAV files: samples as they were written, channels averaged, any rate brought to 16,000; all else refused by name."""

import struct
import wave

import numpy as np
import pytest

from minitransformers.models.sound_file import read_wav, resampled

RNG = np.random.default_rng(0)


def written(path, samples, *, rate=16_000, width=2):
    """A WAV file of whole numbers, (length,) or (length, channels)."""
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        sound.setsampwidth(width)
        sound.setframerate(rate)
        sound.writeframes(samples.astype({1: "u1", 2: "<i2", 4: "<i4"}[width]).tobytes())
    return path


def test_samples_are_whole_numbers_over_32768(tmp_path):
    numbers = np.array([0, 1, -1, 32767, -32768, 1234])
    found = read_wav(written(tmp_path / "a.wav", numbers))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, (numbers / 32768).astype(np.float32))
    np.testing.assert_array_equal(read_wav(str(tmp_path / "a.wav")), found)


def test_channels_are_averaged(tmp_path):
    numbers = RNG.integers(-30_000, 30_000, size=(50, 3))
    np.testing.assert_allclose(read_wav(written(tmp_path / "a.wav", numbers)), numbers.mean(axis=1) / 32768, rtol=0, atol=1e-6)
    loud = np.full((4, 2), 32767)                            # no sum of 16 bits overflows
    np.testing.assert_array_equal(read_wav(written(tmp_path / "b.wav", loud)), np.full(4, 32767 / 32768, np.float32))


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_a_tone_at_another_rate_is_the_tone_at_16000(rate, tmp_path):
    numbers = np.round(16_000 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate))
    found = read_wav(written(tmp_path / "a.wav", numbers, rate=rate))
    assert found.dtype == np.float32 and len(found) == 16_000
    expected = 16_000 / 32_768 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(found[500:-500], expected[500:-500], rtol=0, atol=2e-3)


def test_what_the_new_rate_cannot_hold_is_taken_out_and_does_not_come_back_as_another_tone():
    high = np.sin(2 * np.pi * 15_000 * np.arange(48_000) / 48_000)
    assert np.abs(high[::3]).max() > 0.9                     # every third sample alone: a tone of 1,000 Hz that nobody made
    assert np.abs(resampled(high, 48_000)[100:-100]).max() < 2e-3


def test_at_the_right_rate_nothing_is_touched():
    samples = RNG.normal(size=10)
    assert resampled(samples, 16_000) is samples


def header(*, form=1, channels=1, rate=16_000, bits=16, size=8):
    block = channels * bits // 8
    sizes = struct.pack("<IHHIIHH", 16, form, channels, rate, rate * block, block, bits)
    return b"RIFF" + struct.pack("<I", min(36 + size, 2**32 - 1)) + b"WAVEfmt " + sizes + b"data" + struct.pack("<I", size)


WHOLE = header() + bytes(8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no WAV file of plain samples: cut off or damaged"),
        (b"a text, and no sound", "is no WAV file of plain samples: file does not start with RIFF id"),
        (WHOLE[:20], "is no WAV file"),
        (WHOLE[:36], "is no WAV file"),
        (WHOLE[:-2], "is cut off: it has 3 of 4 samples"),
        (header(size=2**32 - 1) + bytes(8), "is cut off: it has 4 of 2,147,483,647 samples"),
        (header(size=0), "has no samples"),
        (header(bits=8) + bytes(8), "has samples of 8 bits, wants 16"),
        (header(bits=24, size=9) + bytes(9), "has samples of 24 bits, wants 16"),
        (header(form=3, bits=32) + bytes(8), "is no WAV file of plain samples: unknown format: 3"),
        (header(channels=0) + bytes(8), "is no WAV file"),
        (header(rate=100) + bytes(8), "has 100 samples a second, wants 4,000 to 192,000"),
        (WHOLE[:24] + struct.pack("<I", 2**31) + WHOLE[28:], "has 2,147,483,648 samples a second"),
    ],
)  # fmt: skip
def test_what_is_no_sound_is_refused_by_name(content, message, tmp_path):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_wav(tmp_path / "a.wav")
    assert str(caught.value).startswith(f"{tmp_path / 'a.wav'}: ") and "\n" not in str(caught.value)


def test_the_control_of_the_files_above_is_read(tmp_path):
    (tmp_path / "a.wav").write_bytes(WHOLE)
    np.testing.assert_array_equal(read_wav(tmp_path / "a.wav"), np.zeros(4))


def test_a_file_that_is_not_there_or_is_a_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.wav: cannot be read: No such file"):
        read_wav(tmp_path / "absent.wav")
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        read_wav(tmp_path)


def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path):
    """Any byte of the head another one; numbers may then be others, but nothing else happens."""
    refused = 0
    for at in range(len(WHOLE) - 8):
        for value in (0, 1, 127, 255):
            content = bytearray(WHOLE)
            content[at] = value
            (tmp_path / "a.wav").write_bytes(content)
            try:
                assert read_wav(tmp_path / "a.wav").ndim == 1
            except ValueError as error:
                assert "a.wav: " in str(error) and "\n" not in str(error)
                refused += 1
    assert 40 < refused < 170
