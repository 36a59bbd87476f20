"""A writer of small GGUF files, by the layout that the format's page describes, and quantizers that round to the nearest."""

import struct

import numpy as np

CODES = {"u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I"), "i32": (5, "i"), "f32": (6, "f"),
         "bool": (7, "?"), "u64": (10, "Q"), "i64": (11, "q"), "f64": (12, "d")}  # fmt: skip


def text(value):
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def value(kind, content):
    """The bytes of a value without those of its type: kind is "str", a number's name, or ["u32"] for an array."""
    if isinstance(kind, list):
        return struct.pack("<IQ", number(kind[0]), len(content)) + b"".join(value(kind[0], member) for member in content)
    return text(content) if kind == "str" else struct.pack(f"<{CODES[kind][1]}", content)


def number(kind):
    return 9 if isinstance(kind, list) else 8 if kind == "str" else CODES[kind][0]


def gguf(metadata=(), tensors=(), *, version=3, alignment=32, offsets=None):
    """The bytes of a file: metadata (key, kind, value), tensors (name, number of the type, shape as NumPy has it, bytes).

    A kind may be the number of one, and its value bytes; offsets are said in the place of the right ones.
    """
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, kind, content in metadata:
        raw = content if isinstance(kind, int) else value(kind, content)
        head += text(key) + struct.pack("<I", kind if isinstance(kind, int) else number(kind)) + raw
    data = b""
    for i, (name, type_number, shape, raw) in enumerate(tensors):
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        head += struct.pack("<IQ", type_number, offsets[i] if offsets else len(data))
        data += raw + bytes(-len(raw) % alignment)
    return head + bytes(-len(head) % alignment) + data


def f32(array):
    return np.asarray(array, "<f4").tobytes()


def q8_0(array):
    """Blocks of 32 with the scale largest / 127."""
    raw = b""
    for block in np.asarray(array, np.float64).reshape(-1, 32):
        scale = np.float16(np.abs(block).max() / 127)
        raw += struct.pack("<e", scale) + np.rint(block / np.float64(scale or 1)).astype(np.int8).tobytes()
    return raw


def q4_1(array):
    """Blocks of 32 from their minimum in 15 steps."""
    raw = b""
    for block in np.asarray(array, np.float64).reshape(-1, 32):
        low = np.float16(block.min())
        step = np.float16((block.max() - np.float64(low)) / 15)
        q = np.clip(np.rint((block - np.float64(low)) / np.float64(step or 1)), 0, 15).astype(int)
        raw += struct.pack("<ee", step, low) + bytes(int(a) | int(b) << 4 for a, b in zip(q[:16], q[16:], strict=True))
    return raw
