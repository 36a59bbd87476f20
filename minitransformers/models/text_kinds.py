"""What kind of text is this, character by character: code of many languages, data, markup or prose, told by a Mamba that others have trained.

byte_mamba with the published weights of typeseg (Dallinger 2026), which reads bytes. A character of several bytes gets the mean of what is
said of them. The package that the weights come from smooths short parts away; here stands what the model says.
"""

import json
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.basics.softmax import softmax
from minitransformers.foundation import invalid
from minitransformers.models.byte_mamba import ByteMamba, byte_mamba, load_byte_mamba
from minitransformers.models.published import published_file


class ByteModel(NamedTuple):
    """The parameters, and the name of each class."""

    params: ByteMamba
    kinds: list[str]


class Segment(NamedTuple):
    """A part of a text, from character start to before end: what kind of text it is, and how sure the model is of that on average."""

    start: int
    end: int
    kind: str
    probability: float


def load_byte_model() -> ByteModel:
    """typeseg's Mamba, in float32. Raises ValueError that says how it is obtained where it is not there."""
    kinds = json.loads(published_file("byte_mamba", "configuration").read_text(encoding="utf-8"))["labels"]
    return ByteModel(load_byte_mamba(published_file("byte_mamba", "weights")), kinds)


def byte_ids(text: str) -> Array:
    """A row of the table for each byte of the text in UTF-8: visible ASCII, blank, tab and line ends as they are, 128 for all others."""
    raw = np.frombuffer(text.encode("utf-8"), np.uint8)
    known = ((raw >= 0x20) & (raw <= 0x7E)) | np.isin(raw, [0x09, 0x0A, 0x0D])
    return np.where(known, raw, 128).astype(np.intp)


def kind_probabilities(text: str, *, model: ByteModel) -> Array:
    """Of every character, how probable each kind is, (characters, kinds): the mean over its bytes. Raises ValueError for an empty text."""
    if not text:
        raise invalid("text", got="an empty text", wants="at least one character")
    bytes_of = [len(character.encode("utf-8")) for character in text]
    probabilities, _ = softmax(byte_mamba(model.params, ids=byte_ids(text))[0])
    starts = np.cumsum([0, *bytes_of[:-1]])
    return np.add.reduceat(probabilities, starts, axis=0) / np.array(bytes_of, probabilities.dtype)[:, None]


def text_segments(text: str, *, model: ByteModel) -> list[Segment]:
    """The text in parts of one kind each: where the most probable kind changes from one character to the next, a new part begins."""
    probabilities = kind_probabilities(text, model=model)
    best = probabilities.argmax(axis=1)
    cuts = [0, *(np.flatnonzero(best[1:] != best[:-1]) + 1).tolist(), len(text)]
    return [
        Segment(start, end, model.kinds[best[start]], float(probabilities[start:end, best[start]].mean()))
        for start, end in pairwise(cuts)
    ]
