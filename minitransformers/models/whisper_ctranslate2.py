"""Whisper's weights out of a file of CTranslate2: a flat list of named arrays, and nothing in it can be run.

    4 bytes       version of the format, 6                   whole numbers are unsigned and little-endian, texts 2 bytes of length,
    text, 4       name and revision of the kind of model     then as many bytes, the last of which is 0
    4 bytes       how many arrays; then for each:
                  name (text), number of axes (1 byte), their sizes (4 bytes each), kind of number (1 byte), size in bytes (4), the numbers
    4 bytes       how many second names; then for each: the second name (text), and of which array (text)

Source: CTranslate2's model specification (python/ctranslate2/specs/model_spec.py), checked on the file that is published as
faster-whisper-tiny.en. Maps to queries, keys and values are one array there, and so are keys and values of what was heard.
"""

import math
import struct
from pathlib import Path

import numpy as np
from numpy import ndarray as Array

from minitransformers.models.published import published_file
from minitransformers.models.whisper import Whisper, load_whisper

_DTYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}
_VERSION, _KIND = 6, "WhisperSpec"
_GELU = 3


class _Reader:
    """A place in the content of a file, that moves on."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.content):
            raise ValueError("is cut off")
        self.at += size
        return self.content[self.at - size : self.at]

    def whole(self, form: str) -> int:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]

    def text(self) -> str:
        raw = self.take(self.whole("H"))
        if not raw.endswith(b"\0") or not raw[:-1].isascii():
            raise ValueError("has a name that is none")
        return raw[:-1].decode("ascii")


def read_ctranslate2(path: str | Path) -> tuple[str, dict[str, Array]]:
    """The kind of model, and its arrays by name, second names among them. float16 stays.

    Raises ValueError that names the file when it is not there, is cut off or damaged, or is of another version.
    """
    try:
        reader = _Reader(Path(path).read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return _read(reader)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read(reader: _Reader) -> tuple[str, dict[str, Array]]:
    if (version := reader.whole("I")) != _VERSION:
        raise ValueError(f"is no file of CTranslate2 of version {_VERSION}: it begins with {version}")
    kind, _ = reader.text(), reader.whole("I")
    arrays: dict[str, Array] = {}
    for _ in range(reader.whole("I")):
        name = reader.text()
        shape = tuple(reader.whole("I") for _ in range(reader.whole("B")))
        code, size = reader.whole("B"), reader.whole("I")
        if code not in _DTYPES:
            raise ValueError(f"{name:.80}: has numbers of kind {code}, wants one of {', '.join(map(str, _DTYPES))}")
        dtype = np.dtype(_DTYPES[code])
        total: int = math.prod(shape)  # type: ignore[arg-type]
        if name in arrays or total * dtype.itemsize != size:
            raise ValueError(f"{name:.80}: stands there twice, or has {size} bytes for shape {shape}")
        arrays[name] = np.frombuffer(reader.take(size), dtype).reshape(shape)
    for _ in range(reader.whole("I")):
        second, name = reader.text(), reader.text()
        if name not in arrays or second in arrays:
            raise ValueError(f"{second:.80}: is a second name of {name:.80}, which is not there, or one that is taken")
        arrays[second] = arrays[name]
    if reader.at != len(reader.content):
        raise ValueError("goes on behind its last name")
    return kind, arrays


def load_whisper_ctranslate2(path: str | Path) -> tuple[Whisper, int]:
    """The parameters, in float32, and the number of heads. Raises ValueError where the file is that of another model, naming what differs."""
    kind, arrays = read_ctranslate2(path)
    if kind != _KIND:
        raise ValueError(f"{path}: is a {kind:.40}, wants a {_KIND}")
    wants = {"decoder/pre_norm": 1, "decoder/activation": _GELU, "decoder/alibi": 0, "decoder/scale_embeddings": 0, "decoder/start_from_zero_embedding": 0}
    for name, value in wants.items():
        if name in arrays and arrays[name].tolist() != value:
            raise ValueError(f"{path}: {name} is {arrays[name].tolist()}, wants {value}")
    heads = {int(array) for name, array in arrays.items() if name.endswith("/num_heads") and not array.ndim}
    if len(heads) != 1:
        raise ValueError(f"{path}: has {len(heads)} numbers of heads, wants one for encoder and decoder")
    try:
        return load_whisper(_named(arrays)), heads.pop()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _named(arrays: dict[str, Array]) -> dict[str, Array]:
    """The arrays under Hugging Face's names, in float32; what is one there, in its parts."""
    found: dict[str, Array] = {}
    for name, array in arrays.items():
        if not array.ndim or name.startswith("decoder/alignment"):
            continue                                         # numbers about the model, and which heads follow time
        stack, _, rest = name.partition("/")
        layer, _, inside = rest.partition("/")
        start = f"model.{stack}."
        if layer.startswith("layer_") and layer != "layer_norm":
            found |= {f"{start}layers.{layer.removeprefix('layer_')}.{theirs}": part for theirs, part in _in_layer(inside, array)}
        elif name == "decoder/projection/weight":
            found["proj_out.weight"] = array
        else:
            found[start + _OUTSIDE.get(rest, rest)] = array
    biases = [name for name in found if name.endswith("k_proj.bias")]
    if any(found[name].any() for name in biases):
        raise ValueError("weights: got a bias of keys that is not 0, wants none, as Whisper has it")
    return {name: array.astype(np.float32) for name, array in found.items() if name not in biases}


_OUTSIDE = {
    "conv1/weight": "conv1.weight", "conv1/bias": "conv1.bias", "conv2/weight": "conv2.weight", "conv2/bias": "conv2.bias",
    "position_encodings/encodings": "embed_positions.weight", "embeddings/weight": "embed_tokens.weight",
    "layer_norm/gamma": "layer_norm.weight", "layer_norm/beta": "layer_norm.bias",
}  # fmt: skip
_PARTS = {
    "self_attention/layer_norm": ("self_attn_layer_norm",), "attention/layer_norm": ("encoder_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/linear_0": ("encoder_attn.q_proj",), "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",), "ffn/linear_0": ("fc1",), "ffn/linear_1": ("fc2",),
}  # fmt: skip


def _in_layer(inside: str, array: Array) -> list[tuple[str, Array]]:
    part, _, last = inside.rpartition("/")
    names, last = _PARTS.get(part, (inside,)), {"gamma": "weight", "beta": "bias"}.get(last, last)
    if len(array) % len(names):
        raise ValueError(f"weights: got {inside} of shape {array.shape}, wants {len(names)} equal parts, one below the other")
    return [(f"{name}.{last}", rows) for name, rows in zip(names, np.split(array, len(names)), strict=True)]


def load_whisper_tiny() -> tuple[Whisper, int]:
    """Whisper tiny.en, in float32, and its number of heads. Raises ValueError that says how it is obtained where it is not there."""
    return load_whisper_ctranslate2(published_file("whisper_tiny", "weights"))
