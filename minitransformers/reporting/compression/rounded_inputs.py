"""The base in eight bits, whose matrices read inputs of eight bits as well: plainly, smoothed into the weights, or with outliers left in floats."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.compression.fake_quantize import fake_quantize
from minitransformers.compression.llm_int8 import outlier_columns
from minitransformers.compression.smooth_quant import fold_into_norm, smooth_factors
from minitransformers.models.llama import Llama, llama
from minitransformers.reporting.base import SETTINGS, load_base
from minitransformers.reporting.compression.smaller import at_matrices, base_inputs
from minitransformers.reporting.matrices import rounded
from minitransformers.reporting.observed import Inputs, slots_that_show


def in_eight_bits(x: Array) -> Array:
    """Inputs, rounded with a step for each position."""
    return fake_quantize(x, bits=8, axis=-1)[0]


def but_outliers(x: Array) -> Array:
    """The same, but for the features that are above 6 at some position: what LLM.int8 multiplies, where rows of its weight come from codes."""
    few = outlier_columns(x)
    return np.where(few, x, in_eight_bits(np.where(few, 0, x)))


def reads_rounded(params: Llama, *, ids: Any, round_off: Any = in_eight_bits) -> Any:
    """The logits of a model whose matrices read rounded inputs. Forward only."""
    slots: dict[str, Any] = slots_that_show(lambda paths, x: round_off(x))
    return llama(params, ids=ids, **slots, **SETTINGS)


def smoothed(rng: np.random.Generator) -> Llama:
    """The base whose norms divide by SmoothQuant's factors, while the matrices behind them multiply; these are in eight bits then."""
    base, inputs = load_base(), base_inputs(rng)
    blocks = [smoothed_block(block, inputs, f"blocks.{place}") for place, block in enumerate(base.blocks)]
    return at_matrices(partial(rounded, bits=8), base._replace(blocks=blocks))


def smoothed_block(block: Any, inputs: dict[str, Inputs], path: str) -> Any:
    """Both norms of a block, and what reads them."""
    query, key, value, *rest = block.attention
    (gate, up), bounds = block.feed_forward[:2], [inputs[f"{path}.{part}.weight"].largest for part in ("attention.query", "feed_forward.gate")]
    first, heads = folded(block.attention_norm, [query, key, value], bounds[0])
    second, network = folded(block.feed_forward_norm, [gate, up], bounds[1])
    return type(block)(first, type(block.attention)(*heads, *rest), second, type(block.feed_forward)(*network, *block.feed_forward[2:]))


def folded(norm: Any, maps: list[Any], bounds: Array) -> Any:
    """A norm and the maps that read it, with factors for inputs that reach so far."""
    return fold_into_norm(norm, maps, factors=smooth_factors(bounds, [each.weight for each in maps]))
