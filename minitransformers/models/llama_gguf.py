"""A Llama out of a GGUF file, such as SmolLM2's: parameters, settings and vocabulary are all in it.

    model = load_llama_gguf(published_file("smollm2"))
    logits, backward = llama(model.params, ids=ids, **model.settings)

The maps lie there as (d_out, d_in), and their quantized numbers become float32. Queries and keys have their features in another
order: llama.cpp turns neighbours, (2m, 2m + 1), where rope turns m and m + d/2. So its converter has moved row s d/2 + m of each
head, s = 0 or 1, to row 2m + s: rows that were numbered (s, m) are numbered (m, s) there, and exchanging the two axes once more
takes them back. Scores are sums over the features, and do not change where queries and keys are put into another order together.

    rows (heads, m, s) of the file -> rows (heads, s, m)     (1)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.foundation import invalid, trees
from minitransformers.models.gguf import GgufTensor, read_gguf
from minitransformers.models.llama import Llama, init_llama
from minitransformers.models.tokenizers.added import AddedTokens
from minitransformers.models.tokenizers.byte_pair_vocabulary import BytePairVocabulary, from_spelling
from minitransformers.models.weights import Names, plain, transposed
from minitransformers.positional.rope_fast import rope_fast

NAMES = Names(
    {
        "embedding.weight": plain("token_embd.weight"),
        "blocks.*.attention_norm.gain": plain("blk.*.attn_norm.weight"),
        "blocks.*.attention.query.weight": transposed("blk.*.attn_q.weight"),
        "blocks.*.attention.key.weight": transposed("blk.*.attn_k.weight"),
        "blocks.*.attention.value.weight": transposed("blk.*.attn_v.weight"),
        "blocks.*.attention.output.weight": transposed("blk.*.attn_output.weight"),
        "blocks.*.feed_forward_norm.gain": plain("blk.*.ffn_norm.weight"),
        "blocks.*.feed_forward.gate.weight": transposed("blk.*.ffn_gate.weight"),
        "blocks.*.feed_forward.up.weight": transposed("blk.*.ffn_up.weight"),
        "blocks.*.feed_forward.down.weight": transposed("blk.*.ffn_down.weight"),
        "norm.gain": plain("output_norm.weight"),
        "head.weight": transposed("output.weight"),
    }
)
_DIGITS = {"gpt-2": False, "smollm": True}                   # whether every digit is cut out of a text first
_CONTROL, _USER_DEFINED = 3, 4                               # types of tokens that are found by name


class GgufLlama(NamedTuple):
    """A model that is ready to run: settings are what llama and llama_step take, context the longest text that it was made for."""

    params: Llama
    settings: dict[str, Any]
    vocabulary: BytePairVocabulary
    context: int

    @property
    def ends(self) -> frozenset[int]:
        """The tokens at which a text ends: those that are no part of any."""
        return self.vocabulary.added.special


def load_llama_gguf(path: str | Path) -> GgufLlama:
    """The model of a GGUF file, in float32. A head that is missing is the embedding again.

    Raises ValueError that names the file as read_gguf does, and for another architecture, tensors that are missing, unexpected or
    of other shapes than the metadata say, and a tokenizer that is not read here.
    """
    metadata, tensors = read_gguf(path)
    try:
        vocabulary, sizes = gguf_vocabulary(metadata), _sizes(metadata)
        _check_shapes(tensors, sizes, vocabulary.size)
        arrays = {name: _in_our_order(name, tensor.dequantized(), sizes) for name, tensor in tensors.items()}
        if (layers := NAMES.count("blk.*.", arrays)) != sizes["block_count"]:
            raise invalid("weights", got=f"{layers} layers", wants=f"{sizes['block_count']}, as the metadata say")
        tied = "output.weight" not in arrays
        skeleton = init_llama(np.random.default_rng(0), vocabulary=1, d_model=1, num_layers=layers, num_heads=1, d_hidden=1, tied=tied)
        params = trees.map(_along_its_longer_axis, NAMES.tree(skeleton, arrays))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    base, eps = metadata.get("llama.rope.freq_base", 10_000.0), metadata["llama.attention.layer_norm_rms_epsilon"]
    settings = {"num_heads": sizes["attention.head_count"], "rope": partial(rope_fast, base=base), "eps": eps}
    return GgufLlama(params, settings, vocabulary, sizes["context_length"])


def gguf_vocabulary(metadata: Mapping[str, Any]) -> BytePairVocabulary:
    """The vocabulary among the metadata of a GGUF file: byte-level BPE as GPT-2 and SmolLM2 have it.

    A byte without a token is refused when a text is encoded: the unknown token that such files name, <|endoftext|>, was never meant.
    Raises ValueError for another tokenizer, and for one that is damaged.
    """
    _wants(metadata, "tokenizer.ggml.model", "gpt2")
    _wants(metadata, "tokenizer.ggml.pre", *_DIGITS)
    for absent in ("tokenizer.ggml.add_space_prefix", "tokenizer.ggml.add_bos_token"):
        _wants({absent: False, **metadata}, absent, False)
    tokens, kinds, merges = (metadata.get(f"tokenizer.ggml.{name}", []) for name in ("tokens", "token_type", "merges"))
    pairs = [tuple(merge.split(" ")) for merge in merges] if _are_texts(merges) else []
    if not _are_texts(tokens) or not pairs or any(len(pair) != 2 for pair in pairs):
        raise invalid("tokenizer.ggml", got="no list of tokens, or none of merges", wants="texts, and pairs of texts with a blank between them")
    if not isinstance(kinds, Array) or kinds.shape != (len(tokens),):
        raise invalid("tokenizer.ggml.token_type", got=f"{kinds!r:.40}", wants=f"a number for each of the {len(tokens)} tokens")
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) < len(tokens):
        raise invalid("tokenizer.ggml.tokens", got="a token twice", wants="each token once")
    special = frozenset(np.flatnonzero(kinds == _CONTROL).tolist())
    added = AddedTokens({tokens[i]: i for i in np.flatnonzero((kinds == _CONTROL) | (kinds == _USER_DEFINED)).tolist()}, special)
    return from_spelling(ids, pairs, added=added, digits=_DIGITS[metadata["tokenizer.ggml.pre"]])


def neighbours_to_halves(weight: Array, heads: int) -> Array:
    """The rows (d_out) of a map to queries or keys that llama.cpp turns, in the order that rope turns."""
    rows = weight.reshape(heads, -1, 2, weight.shape[1])     # (heads, m, s, d_in)
    return rows.swapaxes(1, 2).reshape(weight.shape)         # (1)


def _in_our_order(name: str, array: Array, sizes: Mapping[str, int]) -> Array:
    if name.endswith("attn_q.weight"):
        return neighbours_to_halves(array, sizes["attention.head_count"])
    return neighbours_to_halves(array, sizes["attention.head_count_kv"]) if name.endswith("attn_k.weight") else array


def _along_its_longer_axis(leaf: Array) -> Array:
    """The same numbers, laid so that products with a single row, of which decoding is made, read long stretches: a seventh less time a token.

    That is by columns for the maps down and for the table, whose transpose is the head where that is tied.
    """
    return np.asfortranarray(leaf) if leaf.ndim == 2 and leaf.shape[0] > leaf.shape[1] else leaf


def _sizes(metadata: Mapping[str, Any]) -> dict[str, int]:
    """The numbers that a Llama is made of. Raises ValueError where one is missing, or they say what llama does not do."""
    _wants(metadata, "general.architecture", "llama")
    _wants({"llama.rope.scaling.type": "none", **metadata}, "llama.rope.scaling.type", "none")
    names = ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count")
    heads: Any = metadata.get("llama.attention.head_count")
    found: dict[str, Any] = {name: metadata.get(f"llama.{name}") for name in names}
    found["attention.head_count_kv"] = metadata.get("llama.attention.head_count_kv", heads)
    for name, value in found.items():
        if type(value) is not int or value < 1:
            raise invalid(f"llama.{name}", got=f"{value!r:.40}", wants="a whole number of at least 1")
    d_model, kv_heads = found["embedding_length"], found["attention.head_count_kv"]
    if d_model % (2 * heads) or heads % kv_heads:
        raise invalid("llama.attention.head_count", got=f"{heads}, {kv_heads} of them of keys", wants=f"heads of even width that share {d_model}")
    _wants({"llama.rope.dimension_count": d_model // heads, **metadata}, "llama.rope.dimension_count", d_model // heads)
    for name, default in (("rope.freq_base", 1e4), ("attention.layer_norm_rms_epsilon", None)):
        value = metadata.get(f"llama.{name}", default)
        if not isinstance(value, float) or not 0 < value < float("inf"):
            raise invalid(f"llama.{name}", got=f"{value!r:.40}", wants="a number above 0")
    return found


def _check_shapes(tensors: Mapping[str, GgufTensor], sizes: Mapping[str, int], vocabulary: int) -> None:
    """Raise ValueError that names the first tensor whose shape is not what the metadata say."""
    d_model, d_hidden = sizes["embedding_length"], sizes["feed_forward_length"]
    d_keys = d_model // sizes["attention.head_count"] * sizes["attention.head_count_kv"]
    rows = {"token_embd": vocabulary, "output": vocabulary, "attn_q": d_model, "attn_k": d_keys, "attn_v": d_keys, "attn_output": d_model,
            "ffn_gate": d_hidden, "ffn_up": d_hidden}  # fmt: skip
    shapes = {name: (size, d_model) for name, size in rows.items()} | {"ffn_down": (d_model, d_hidden)}
    for name, tensor in tensors.items():
        wanted = shapes.get(re.sub(r"^blk\.\d+\.|\.weight$", "", name), (d_model,))
        if tensor.shape != wanted:
            raise invalid("weights", got=f"{name:.80} of shape {tensor.shape}", wants=f"{wanted}, as the metadata say")


def _wants(metadata: Mapping[str, Any], name: str, *allowed: Any) -> None:
    value = metadata.get(name)
    if not any(type(value) is type(one) and value == one for one in allowed):
        raise invalid(name, got=f"{value!r:.80}", wants=" or ".join(map(repr, allowed)))


def _are_texts(found: Any) -> bool:
    return isinstance(found, list) and bool(found) and all(isinstance(text, str) for text in found)
