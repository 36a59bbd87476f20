"""GPT-2 as a choice of parts, and its published weights in and out.

Source: Radford et al. 2019; weight names and layout: the Hugging Face implementation, whose Conv1D weights are (in, out)
as ours are. It packs query, key and value into one matrix along the output axis; here they are three.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy import ndarray as Array

from minitransformers.attention.multi_head_attention import MultiHeadAttention
from minitransformers.basics.embedding import Embedding
from minitransformers.basics.feed_forward import FeedForward
from minitransformers.basics.linear import Linear
from minitransformers.foundation import invalid
from minitransformers.models.language_model import LanguageModel, LanguageModelConfig
from minitransformers.models.transformer_block import TransformerBlock
from minitransformers.norms.layer_norm import LayerNorm
from minitransformers.positional.learned import Learned


def gpt2_config(
    *, vocabulary_size: int = 50257, context: int = 1024, d_model: int = 768, num_layers: int = 12, num_heads: int = 12
) -> LanguageModelConfig:
    """The configuration of GPT-2, by default of its smallest published size (124,439,808 parameters)."""
    return LanguageModelConfig(
        vocabulary_size=vocabulary_size, context=context, d_model=d_model, num_layers=num_layers, num_heads=num_heads,
        mixer="multi_head_attention", channel="feed_forward", norm="layer_norm", position="learned", placement="pre", tied=True,
    )  # fmt: skip


def load_gpt2(weights: Mapping[str, Array] | str | Path, *, num_heads: int) -> tuple[LanguageModel, LanguageModelConfig]:
    """Parameters and configuration from Hugging Face GPT-2 weights.

    weights is a dict of arrays or the path of a .safetensors file; the sizes are read off the arrays, the number of
    heads cannot be (12 for the smallest GPT-2). The dtype stays.
    Raises ValueError for missing, unexpected or mis-shaped weights, naming them, and for heads that do not divide.
    """
    if isinstance(weights, (str, Path)):
        from minitransformers.foundation.safetensors import read_safetensors

        weights, _ = read_safetensors(weights)
    # The causal mask is stored beside the weights in old files.
    masks = (".attn.bias", ".attn.masked_bias")
    named = [(name.removeprefix("transformer."), np.asarray(array)) for name, array in weights.items() if not name.endswith(masks)]
    arrays = dict(named)
    if len(arrays) < len(named):
        raise invalid("weights", got="a name with and without transformer. in front", wants="each weight once")
    for name in ("wte.weight", "wpe.weight"):
        if name not in arrays or arrays[name].ndim != 2:
            raise invalid("weights", got=f"no matrix {name}", wants="the names of Hugging Face's GPT-2")
    if not np.array_equal(arrays.pop("lm_head.weight", arrays["wte.weight"]), arrays["wte.weight"]):
        raise invalid("weights", got="an lm_head.weight of its own", wants="GPT-2's, which is wte.weight again")
    vocabulary, d_model = arrays["wte.weight"].shape
    num_layers = len({name.split(".")[1] for name in arrays if name.startswith("h.")})
    if num_heads < 1 or d_model % num_heads:
        raise invalid("num_heads", got=num_heads, wants=f"a divisor of the width {d_model}")
    hidden = arrays.get("h.0.mlp.c_fc.bias", np.zeros(4 * d_model)).shape[0]
    wanted = _shapes(vocabulary, arrays["wpe.weight"].shape[0], d_model, hidden, num_layers)
    problems = [f"missing {name}" for name in wanted.keys() - arrays.keys()]
    problems += [f"unexpected {name}" for name in arrays.keys() - wanted.keys()]
    problems += [
        f"{name} is {arrays[name].shape}, should be {shape}"
        for name, shape in wanted.items()
        if name in arrays and arrays[name].shape != shape
    ]
    if problems or not num_layers:
        raise invalid("weights", got="; ".join(sorted(problems)[:5]) or "no layers", wants="the weights of one GPT-2")
    config = gpt2_config(
        vocabulary_size=vocabulary, context=arrays["wpe.weight"].shape[0], d_model=d_model, num_layers=num_layers, num_heads=num_heads
    )
    if hidden != 4 * d_model:
        config = LanguageModelConfig.from_json({**config.to_json(), "options": {"channel": {"d_hidden": hidden}}})
    return _from_names(arrays, num_layers), config


def gpt2_weights(params: LanguageModel) -> dict[str, Array]:
    """The same parameters (or their gradients) under Hugging Face's names, "transformer." in front."""
    named: dict[str, Array] = {"wte.weight": params.embedding.weight, "wpe.weight": params.position.table}
    for i, block in enumerate(params.blocks):
        named |= {f"h.{i}.ln_1.weight": block.mixer_norm.gain, f"h.{i}.ln_1.bias": block.mixer_norm.bias}
        named |= {f"h.{i}.ln_2.weight": block.channel_norm.gain, f"h.{i}.ln_2.bias": block.channel_norm.bias}
        packed = (block.mixer.query, block.mixer.key, block.mixer.value)
        named[f"h.{i}.attn.c_attn.weight"] = np.concatenate([part.weight for part in packed], axis=1)
        named[f"h.{i}.attn.c_attn.bias"] = np.concatenate([part.bias for part in packed])
        for name, part in (("attn.c_proj", block.mixer.output), ("mlp.c_fc", block.channel.up), ("mlp.c_proj", block.channel.down)):
            named |= {f"h.{i}.{name}.weight": part.weight, f"h.{i}.{name}.bias": part.bias}
    named |= {"ln_f.weight": params.final_norm.gain, "ln_f.bias": params.final_norm.bias}
    return {f"transformer.{name}": array for name, array in named.items()}


def _from_names(arrays: Mapping[str, Array], num_layers: int) -> LanguageModel:
    def linear(name: str) -> Linear:
        return Linear(arrays[f"{name}.weight"], arrays[f"{name}.bias"])

    def norm(name: str) -> LayerNorm:
        return LayerNorm(arrays[f"{name}.weight"], arrays[f"{name}.bias"])

    def mixer(name: str) -> MultiHeadAttention:
        weights = np.split(arrays[f"{name}.c_attn.weight"], 3, axis=1)
        biases = np.split(arrays[f"{name}.c_attn.bias"], 3)
        query, key, value = (Linear(np.ascontiguousarray(w), b.copy()) for w, b in zip(weights, biases, strict=True))
        return MultiHeadAttention(query, key, value, linear(f"{name}.c_proj"))

    return LanguageModel(
        embedding=Embedding(arrays["wte.weight"]),
        position=Learned(arrays["wpe.weight"]),
        blocks=[
            TransformerBlock(
                mixer_norm=norm(f"h.{i}.ln_1"),
                mixer=mixer(f"h.{i}.attn"),
                channel_norm=norm(f"h.{i}.ln_2"),
                channel=FeedForward(linear(f"h.{i}.mlp.c_fc"), linear(f"h.{i}.mlp.c_proj")),
            )
            for i in range(num_layers)
        ],
        final_norm=norm("ln_f"),
        head=None,
    )


def _shapes(vocabulary: int, context: int, d_model: int, hidden: int, num_layers: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (vocabulary, d_model), "wpe.weight": (context, d_model)}
    linears = {"attn.c_attn": (d_model, 3 * d_model), "attn.c_proj": (d_model, d_model),
               "mlp.c_fc": (d_model, hidden), "mlp.c_proj": (hidden, d_model)}  # fmt: skip
    for i in range(num_layers):
        for name, (d_in, d_out) in linears.items():
            shapes |= {f"h.{i}.{name}.weight": (d_in, d_out), f"h.{i}.{name}.bias": (d_out,)}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"h.{i}.{name}.weight": (d_model,), f"h.{i}.{name}.bias": (d_model,)}
    return shapes | {"ln_f.weight": (d_model,), "ln_f.bias": (d_model,)}
