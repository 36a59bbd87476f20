"""A writer of small GGUF files, by the layout that the format's page describes, and quantizers that round to the nearest."""

import struct

import numpy as np

from minitransformers.models.tokenizers.byte_pair_vocabulary import spelled

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


def smollm(params, vocabulary, *, num_heads, num_kv_heads, context=64, kind=0, quantizer=f32):
    """Metadata and tensors of a Llama as llama.cpp's converter writes them: maps by output, rows of queries and keys moved."""

    def moved(rows, heads):                                  # its permute, which takes halves to neighbours
        return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)

    tensors = [("token_embd.weight", params.embedding.weight), ("output_norm.weight", params.norm.gain)]
    for i, (first, attention, second, work) in enumerate(params.blocks):
        tensors += [
            (f"blk.{i}.attn_norm.weight", first.gain), (f"blk.{i}.ffn_norm.weight", second.gain),
            (f"blk.{i}.attn_q.weight", moved(attention.query.weight.T, num_heads)), (f"blk.{i}.attn_k.weight", moved(attention.key.weight.T, num_kv_heads)),
            (f"blk.{i}.attn_v.weight", attention.value.weight.T), (f"blk.{i}.attn_output.weight", attention.output.weight.T),
            (f"blk.{i}.ffn_gate.weight", work.gate.weight.T), (f"blk.{i}.ffn_up.weight", work.up.weight.T), (f"blk.{i}.ffn_down.weight", work.down.weight.T),
        ]  # fmt: skip
    if params.head is not None:
        tensors.append(("output.weight", params.head.weight.T))
    special = vocabulary.added.special
    spellings = {i: token.decode() if i in special else spelled(token) for i, token in vocabulary.tokens.items()}
    merges = [" ".join(spellings[i] for i in pair) for pair, _ in sorted(vocabulary.merges.items(), key=lambda item: item[1])]
    metadata = {
        "general.architecture": ("str", "llama"), "llama.block_count": ("u32", len(params.blocks)), "llama.context_length": ("u32", context),
        "llama.embedding_length": ("u32", params.norm.gain.size), "llama.feed_forward_length": ("u32", params.blocks[0].feed_forward.up.weight.shape[1]),
        "llama.attention.head_count": ("u32", num_heads), "llama.attention.head_count_kv": ("u32", num_kv_heads), "llama.rope.freq_base": ("f32", 50.0),
        "llama.attention.layer_norm_rms_epsilon": ("f32", 2.0**-16), "tokenizer.ggml.model": ("str", "gpt2"), "tokenizer.ggml.pre": ("str", "smollm"),
        "tokenizer.ggml.add_bos_token": ("bool", False), "tokenizer.ggml.tokens": (["str"], [spellings[i] for i in range(vocabulary.size)]),
        "tokenizer.ggml.token_type": (["i32"], [3 if i in special else 1 for i in range(vocabulary.size)]), "tokenizer.ggml.merges": (["str"], merges),
    }  # fmt: skip
    kinds = {name: (0, f32) if "norm" in name else (kind, quantizer) for name, _ in tensors}
    return metadata, {name: (kinds[name][0], array.shape, kinds[name][1](array)) for name, array in tensors}


def written(metadata, tensors, **settings):
    """The bytes of what smollm gives."""
    return gguf([(key, *pair) for key, pair in metadata.items()], [(name, *rest) for name, rest in tensors.items()], **settings)
