"""What is said in a sound: the likeliest tokens that are allowed, one part after another, by a small model with random weights."""

from itertools import pairwise

import numpy as np
import pytest

from minitransformers import trees
from minitransformers.models import speech as module
from minitransformers.models.log_mel import log_mel
from minitransformers.models.speech import Heard, SpeechModel, quiet_cuts, speech_ids, transcribe
from minitransformers.models.tokenizers.byte_pair_encoding import byte_pair_decode, train_byte_pair_encoding
from minitransformers.models.whisper import init_whisper, whisper

SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>")
END, START, NO_TIMES = range(3)
VOCABULARY = train_byte_pair_encoding(["a sound, a sound, a sound"], vocabulary_size=262, special_tokens=SPECIAL)
NEVER, NEVER_FIRST = np.array([START, *range(10, 40), 262, 263]), np.array([END, 100])


def small_model(seed=0, never=NEVER, never_first=NEVER_FIRST, **changes):
    """Sounds of 1,920 samples, texts of 12 tokens; two rows of the table have no token."""
    rng = np.random.default_rng(seed)
    sizes = {"vocabulary": 264, "d_model": 8, "num_layers": 2, "num_heads": 2, "mels": 5, "d_hidden": 6, "places": 6, "context": 12}
    params = init_whisper(rng, **{**sizes, **changes}, std=0.5, dtype=np.float64)
    params = trees.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape), params)
    return SpeechModel(params, 2, VOCABULARY, never, never_first)


def sound(seed, length=1500):
    return np.random.default_rng(seed).normal(0, 0.1, size=length)


def naive_ids(samples, model, limit):
    """The whole text again for every token."""
    mel = log_mel(np.concatenate([samples, np.zeros(1920 - len(samples))]), mels=5)
    written = []
    while len(written) < limit:
        logits = whisper(model.params, mel, ids=np.array([START, NO_TIMES, *written]), num_heads=2)[0][-1]
        forbidden = {*model.never.tolist(), *(() if written else model.never_first.tolist())}
        best = max((i for i in range(len(logits)) if i not in forbidden), key=lambda i: logits[i])
        if best == END:
            break
        written.append(best)
    return written


def test_the_likeliest_allowed_tokens_are_written_up_to_the_end():
    """Half of the 12 positions at most. Some texts end by themselves, since all but a few tokens are forbidden."""
    few = np.setdiff1d(np.arange(264), [END, 100, 101, 102, 103])
    lengths = []
    for seed in range(8):
        for model in (small_model(seed), small_model(seed, never=few)):
            found = speech_ids(sound(seed), model=model)
            assert found == naive_ids(sound(seed), model, limit=6)
            lengths.append(len(found))
    assert 6 in lengths and set(lengths) & {1, 2, 3, 4, 5}


def test_what_is_forbidden_is_what_would_have_been_written():
    """The control: without the lists, the likeliest tokens are others."""
    free, nothing = speech_ids(sound(0), model=small_model(never=np.zeros(0, int), never_first=np.zeros(0, int))), np.zeros(0, int)
    first = free[0]
    barred = speech_ids(sound(0), model=small_model(never=np.array([first]), never_first=nothing))
    assert first not in barred
    later = speech_ids(sound(0), model=small_model(never=nothing, never_first=np.array([first])))
    assert later[0] == barred[0] != first


def test_a_sound_is_filled_up_with_silence_and_no_longer_one_is_heard():
    model = small_model(1)
    assert model.longest == 1920
    assert speech_ids(sound(1, 700), model=model) == speech_ids(np.pad(sound(1, 700), (0, 1220)), model=model)
    with pytest.raises(ValueError, match="samples: got 1921, wants at most 1920, what the model hears at a time"):
        speech_ids(sound(1, 1921), model=model)


def test_parts_are_heard_when_they_are_asked_for_and_are_the_whole(monkeypatch):
    model, samples = small_model(2), sound(2, 7000)
    heard, blank_and_x = [], [VOCABULARY.byte_ids[ord(" ")], NO_TIMES, VOCABULARY.byte_ids[ord("x")]]
    monkeypatch.setattr(module, "speech_ids", lambda part, *, model: heard.append(part) or blank_and_x)
    parts = transcribe(samples, model=model)
    assert heard == []
    first = next(parts)
    assert len(heard) == 1 and isinstance(first, Heard) and first.text == "x"
    rest = list(parts)
    np.testing.assert_array_equal(np.concatenate(heard), samples)
    assert len(heard) == 1 + len(rest) >= 4
    assert first.start == 0 and rest[-1].end == 7000 / 16_000
    assert all(a.end == b.start for a, b in pairwise([first, *rest]))


def test_the_text_is_that_of_the_tokens_without_special_ones_and_blanks_around():
    model = small_model(3)
    (found,) = transcribe(sound(3), model=model)
    text = byte_pair_decode(speech_ids(sound(3), model=model), vocabulary=VOCABULARY, skip_special=True)
    assert found == Heard(0.0, 1500 / 16_000, text.strip())


def test_a_long_sound_is_cut_where_it_is_quietest():
    """Thirty seconds at a time; half a second of silence at second 27, and at second 50."""
    samples = np.random.default_rng(4).normal(size=70 * 16_000).astype(np.float32)
    for second in (27, 50):
        samples[second * 16_000 : second * 16_000 + 8_000] *= 0.01
    cuts = quiet_cuts(samples, longest=480_000)
    assert cuts[0][0] == 0 and cuts[-1][1] == len(samples) and all(a[1] == b[0] for a, b in pairwise(cuts))
    assert all(0 < end - start <= 480_000 for start, end in cuts)
    assert 27 <= cuts[0][1] / 16_000 <= 27.5
    assert not 50 <= cuts[1][1] / 16_000 <= 50.5             # it would fit: it is in the first five sixths of the second part
    assert len(cuts) == 3


@pytest.mark.parametrize("length", [1, 1919, 1920, 1921, 3840, 10_000])
def test_cuts_are_a_partition_and_nothing_that_fits_is_cut(length):
    cuts = quiet_cuts(sound(5, length), longest=1920)
    assert [c for start, end in cuts for c in range(start, end)] == list(range(length))
    assert all(1600 <= end - start <= 1920 for start, end in cuts[:-1]) and cuts[-1][1] - cuts[-1][0] <= 1920
    assert (len(cuts) == 1) == (length <= 1920)


def test_of_equal_silence_the_last_is_cut():
    assert quiet_cuts(np.zeros(500_000), longest=480_000) == [(0, 479_200), (479_200, 500_000)]


@pytest.mark.parametrize(
    ("samples", "message"), [(np.zeros(0), r"samples: got an array of shape \(0,\)"), (np.zeros((2, 9)), r"samples: got an array of shape \(2, 9\)")]
)
def test_what_is_no_sound_is_refused_at_once(samples, message):
    with pytest.raises(ValueError, match=message):
        transcribe(samples, model=small_model())


def test_parts_of_nothing_are_refused():
    with pytest.raises(ValueError, match="longest: got 319, wants at least 320 samples"):
        quiet_cuts(np.zeros(1000), longest=319)
