"""Positions in the slots of attention: RoPE prepares queries and keys, Shaw and Transformer-XL are cores, and the others are biases."""

from functools import partial

import numpy as np
import pytest

from minitransformers.attention.core import causal, causal_attention
from minitransformers.attention.grouped_query_attention import (
    GroupedQueryAttention,
    grouped_query_attention,
    grouped_query_attention_step,
)
from minitransformers.attention.multi_head_attention import MultiHeadAttention, multi_head_attention, multi_head_attention_step
from minitransformers.attention.prepare import on_both
from minitransformers.basics.linear import Linear
from minitransformers.foundation import check_gradients
from minitransformers.positional.alibi import Alibi, alibi
from minitransformers.positional.rope import rope
from minitransformers.positional.rope_fast import rope_fast
from minitransformers.positional.rope_interleaved import rope_interleaved
from minitransformers.positional.rope_linear import rope_linear
from minitransformers.positional.rope_ntk import rope_ntk
from minitransformers.positional.rope_partial import rope_partial
from minitransformers.positional.shaw import Shaw, shaw
from minitransformers.positional.t5_bias import T5Bias, t5_bias
from minitransformers.positional.toeplitz import Toeplitz, toeplitz
from minitransformers.positional.transformer_xl_relative import TransformerXlRelative, transformer_xl_relative

HEADS, KEY_HEADS, D_HEAD, D_MODEL = 4, 2, 4, 3
TURNS = {
    "rope": rope,
    "rope_fast": rope_fast,
    "rope_interleaved": rope_interleaved,
    "rope_linear": partial(rope_linear, factor=2.0),
    "rope_ntk": partial(rope_ntk, factor=2.0),
    "rope_partial": partial(rope_partial, rotary_dim=2),
}


def cores(rng):
    return {
        "shaw": (Shaw(*rng.normal(size=(2, 3, D_HEAD))), causal(shaw)),
        "transformer_xl": (TransformerXlRelative(rng.normal(size=(HEADS, 4, D_HEAD)), *rng.normal(size=(2, HEADS, D_HEAD))), transformer_xl_relative),
    }


def slots(name, rng):
    """What the name's slots learn, and the functions in them."""
    if name in TURNS:
        return {}, {"prepare": on_both(TURNS[name])}
    params, core = cores(rng)[name]
    return {"core": params}, {"core": core}


def mixer(kind, rng):
    """A small attention of that kind, as (function, step, params, config)."""
    key_heads = HEADS if kind == "multi-head" else KEY_HEADS
    shapes = [(D_MODEL, HEADS * D_HEAD), (D_MODEL, key_heads * D_HEAD), (D_MODEL, key_heads * D_HEAD), (HEADS * D_HEAD, D_MODEL)]
    parts = [Linear(rng.normal(size=shape), None) for shape in shapes]
    if kind == "multi-head":
        return multi_head_attention, multi_head_attention_step, MultiHeadAttention(*parts), {"num_heads": HEADS}
    config = {"num_heads": HEADS, "num_kv_heads": KEY_HEADS}
    return grouped_query_attention, grouped_query_attention_step, GroupedQueryAttention(*parts), config


NAMES, KINDS = [*TURNS, "shaw", "transformer_xl"], ["multi-head", "grouped-query"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_through_attention_are_right(name, kind):
    rng = np.random.default_rng(0)
    attention, _, params, config = mixer(kind, rng)
    learned, functions = slots(name, rng)
    x, bias = rng.normal(size=(2, 3, D_MODEL)), rng.normal(size=(HEADS, 3, 3))
    report = check_gradients(attention, params._replace(**learned), x, bias, **config, **functions)
    assert report.passed, report.failures()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_decoding_step_by_step_gives_what_the_whole_gives(name, kind):
    rng = np.random.default_rng(1)
    attention, step, params, config = mixer(kind, rng)
    learned, functions = slots(name, rng)
    params, x = params._replace(**learned), rng.normal(size=(2, 5, D_MODEL))
    whole, _ = attention(params, x, **config, **functions)
    state, start = None, 0
    for new in (2, 1, 2):
        out, state = step(params, x[:, start : start + new], state, **config, **functions)
        np.testing.assert_allclose(out, whole[:, start : start + new], rtol=0, atol=1e-12)
        start += new


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_the_same_text_further_on_gives_the_same_outputs(name, kind):
    # Five positions stand in front that nobody may see.
    rng = np.random.default_rng(2)
    attention, _, params, config = mixer(kind, rng)
    learned, functions = slots(name, rng)
    params, x = params._replace(**learned), rng.normal(size=(8, D_MODEL))
    moved, _ = attention(params, x, mask=(np.arange(8) >= 5)[None], **config, **functions)
    alone, _ = attention(params, x[5:], **config, **functions)
    np.testing.assert_allclose(moved[5:], alone, rtol=0, atol=1e-12)


BIASES = {
    "alibi": lambda rng: partial(alibi, Alibi(rng.normal(size=HEADS))),
    "t5_bias": lambda rng: partial(t5_bias, T5Bias(rng.normal(size=(4, HEADS)))),
    "toeplitz": lambda rng: partial(toeplitz, Toeplitz(rng.normal(size=(HEADS, 9)))),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BIASES)
def test_biases_are_decoded_by_their_last_rows(name, kind):
    rng = np.random.default_rng(3)
    attention, step, params, config = mixer(kind, rng)
    make, x = BIASES[name](rng), rng.normal(size=(2, 5, D_MODEL))
    config["core"] = partial(causal_attention, scale=1.0)    # as T5, which does not divide its scores
    whole, _ = attention(params, x, make(num_queries=5, num_keys=5)[0], **config)
    state, start = None, 0
    for new in (2, 1, 2):
        bias, _ = make(num_queries=new, num_keys=start + new)
        out, state = step(params, x[:, start : start + new], state, bias=bias, **config)
        np.testing.assert_allclose(out, whole[:, start : start + new], rtol=0, atol=1e-12)
        start += new
    unbiased, _ = attention(params, x, **config)
    assert np.abs(whole - unbiased).max() > 1e-3
