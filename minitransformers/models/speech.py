"""What is said in a sound, written down by a Whisper that others have trained: English, greedily, part by part.

The published weights of Whisper tiny.en (Radford et al. 2022), behind log_mel and with the vocabulary that they were trained with. The model
hears thirty seconds, filled up with silence. What is longer is cut, where it is quietest, so that few words are cut in two. It is told to
write no times. Tokens that the published configuration suppresses (marks of a caption such as brackets, and tokens that only begin a text)
are never written, and the first token is neither a blank nor the end. The published program listens again, with some chance, where a
text repeats itself or was improbable. This one does not.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.foundation import invalid
from minitransformers.models.decoding import generate
from minitransformers.models.log_mel import HOP, RATE, log_mel
from minitransformers.models.published import published_file
from minitransformers.models.stopping import until
from minitransformers.models.tokenizers.byte_pair_encoding import byte_pair_decode
from minitransformers.models.tokenizers.byte_pair_vocabulary import BytePairVocabulary
from minitransformers.models.tokenizers.files import read_tokenizer
from minitransformers.models.whisper import Whisper, whisper_step
from minitransformers.models.whisper_ctranslate2 import load_whisper_tiny

_START, _NO_TIMES, _END = "<|startoftranscript|>", "<|notimestamps|>", "<|endoftext|>"


class SpeechModel(NamedTuple):
    """The parameters, their heads, the vocabulary, the ids that are never written, and those that are not written first."""

    params: Whisper
    num_heads: int
    vocabulary: BytePairVocabulary
    never: Array
    never_first: Array

    @property
    def longest(self) -> int:
        """The samples that it hears at a time: two frames for each place of the encoder."""
        return 2 * HOP * len(self.params.encoder.positions.table)


class Heard(NamedTuple):
    """A part of a sound, from second start to second end, and what is said in it."""

    start: float
    end: float
    text: str


def load_speech_model() -> SpeechModel:
    """Whisper tiny.en, in float32. Raises ValueError that says how it is obtained where it is not there."""
    params, num_heads = load_whisper_tiny()
    vocabulary = read_tokenizer(published_file("whisper_tiny", "tokenizer"))
    assert isinstance(vocabulary, BytePairVocabulary)
    said = json.loads(published_file("whisper_tiny", "configuration").read_text(encoding="utf-8"))
    times = set(range(len(params.decoder.embedding.weight))) - vocabulary.tokens.keys()  # the file gives them no names
    return SpeechModel(params, num_heads, vocabulary, np.array(sorted({*said["suppress_ids"], *times})), np.array(said["suppress_ids_begin"]))


def transcribe(samples: Array, *, model: SpeechModel) -> Iterator[Heard]:
    """What is said, part by part: each is heard when it is asked for. samples are 16,000 a second, (samples,), between -1 and 1.

    Raises ValueError where there are none.
    """
    if samples.ndim != 1 or not len(samples):
        raise invalid("samples", got=f"an array of shape {samples.shape}", wants="one axis, and at least one sample")
    return (
        Heard(start / RATE, end / RATE, byte_pair_decode(speech_ids(samples[start:end], model=model), vocabulary=model.vocabulary, skip_special=True).strip())
        for start, end in quiet_cuts(samples, longest=model.longest)
    )


def speech_ids(samples: Array, *, model: SpeechModel) -> list[int]:
    """The tokens that are said in one part of a sound, each the likeliest; without those around them.

    Raises ValueError where samples are more than the model hears at a time.
    """
    if len(samples) > model.longest:
        raise invalid("samples", got=len(samples), wants=f"at most {model.longest}, what the model hears at a time")
    start, no_times, end = (model.vocabulary.added.ids[token] for token in (_START, _NO_TIMES, _END))
    dtype = model.params.decoder.embedding.weight.dtype
    mel = log_mel(np.pad(samples, (0, model.longest - len(samples))).astype(dtype), mels=len(model.params.encoder.conv1.weight) // 3)
    step = partial(whisper_step, model.params, num_heads=model.num_heads, mel=mel[None])
    prompt = np.array([start, no_times])
    room = len(model.params.decoder.positions.table) // 2    # as published: the other half is for what was said before
    written = generate(
        step, prompt_ids=prompt, num_tokens=room, rng=np.random.default_rng(0), temperature=0, processors=(_allowed(model, len(prompt)),)
    )  # fmt: skip
    return list(until(written, stop=[[end]]))


def _allowed(model: SpeechModel, prompt: int) -> Callable:
    """The processor that shuts out what is not to be written; prompt is how many tokens stand before the first."""

    def process(logits: Array, ids: Array) -> Array:
        logits = logits.copy()
        logits[..., model.never] = -np.inf
        if ids.shape[-1] == prompt:
            logits[..., model.never_first] = -np.inf
        return logits

    return process


def quiet_cuts(samples: Array, *, longest: int) -> list[tuple[int, int]]:
    """A sound in parts of at most ``longest`` samples: first and last + 1 of each, which together are the whole.

    What is longer is cut in the last sixth of what would fit, in the middle of the quietest tenth of a second (of equals the last).
    Raises ValueError where longest is less than two hundredths of a second.
    """
    if longest < RATE // 50:
        raise invalid("longest", got=longest, wants=f"at least {RATE // 50} samples")
    cuts, start, tenth = [], 0, min(RATE // 10, longest // 12)
    while len(samples) - start > longest:
        tenths = samples[start + longest - longest // 6 // tenth * tenth : start + longest].reshape(-1, tenth)
        behind = int(np.mean(tenths.astype(np.float64) ** 2, axis=1)[::-1].argmin())
        end = start + longest - behind * tenth - tenth // 2
        cuts.append((start, end))
        start = end
    return [*cuts, (start, len(samples))]
