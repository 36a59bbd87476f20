"""What sections build small models of: words, parts behind norms, and widths that make models equally large."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.attention.multi_head_attention import init_multi_head_attention
from minitransformers.attention.prepare import on_both
from minitransformers.basics.causal_convolution import CausalConvolution, causal_convolution, init_causal_convolution
from minitransformers.basics.chain import chain
from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.basics.feed_forward import init_feed_forward
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.residual import residual
from minitransformers.foundation import Backward, slot, trees
from minitransformers.models.gru import gru, init_gru
from minitransformers.models.workbench.transformer_block import TransformerBlock
from minitransformers.norms.layer_norm import init_layer_norm
from minitransformers.norms.rms_norm import init_rms_norm, rms_norm
from minitransformers.positional.rope_fast import rope_fast
from minitransformers.training.task import on_arrays

_rotated = on_both(rope_fast)


def words(params: Embedding, ids: Array) -> tuple[Array, Backward]:
    """An embedding as a part of a chain, which hands on arrays: ids have no gradient."""
    out, backward = embedding(params, ids=ids)
    return out, lambda dout: (backward(dout), None)


def network(*parts: Callable) -> Callable:
    """``model(params, ids) -> out, backward``: words, then each part. params are of the embedding and of each part; so are the gradients."""
    return on_arrays(partial(chain, parts=(words, *parts)))


def tied_network(*parts: Callable, rows: Callable | None = None) -> Callable:
    """``model((words, [params of each part]), ids) -> logits, backward``, whose head is the table of its words, which enter times √width.

    rows: what is done to the table before it is used at both ends, such as fix_norm.
    """

    def model(params: tuple[Embedding, list[Any]], ids: Array) -> tuple[Array, Backward]:
        (weight,), body = params
        size = weight.shape[1] ** 0.5
        table, rows_backward = (weight, lambda dtable: dtable) if rows is None else rows(weight)
        x, words_backward = embedding(Embedding(table), ids=ids)
        logits, body_backward = chain([*body, Linear(table.T, None)], size * x, parts=(*parts, linear))

        def backward(dlogits):
            (*dbody, dhead), dx = body_backward(dlogits)
            dtable = dhead.weight.T + words_backward(size * dx).weight  # used at both ends: two gradients
            return Embedding(rows_backward(dtable)), dbody

        return logits, backward

    return model


@slot
def side_by_side(x: Array) -> tuple[Array, Backward]:
    """The vectors of a window, (windows, words, width), as one, (windows, words · width)."""
    return x.reshape(len(x), -1), lambda dout: dout.reshape(x.shape)


@slot
def summed(x: Array) -> tuple[Array, Backward]:
    """The vectors of all words that stand at a place, (batch, words, positions, width), as their sum, (batch, positions, width)."""
    return x.sum(axis=1), lambda dout: np.stack([dout] * x.shape[1], axis=1)


def behind_norm(part: Callable, *, norm: Callable = rms_norm) -> Callable:
    """x plus what the part makes of norm(x). Its parameters are those of the norm and of the part."""
    return partial(residual, part=partial(chain, parts=(norm, part)))


def init_gru_layer(rng: np.random.Generator, d_model: int, hidden: int, *, update: float = 0.0) -> tuple:
    """Parameters of gru_layer. update is what the biases of its update gates begin with: well below 0 they begin nearly shut."""
    cell, down = init_gru(rng, d_model, hidden), init_linear(rng, hidden, d_model)
    assert cell.input.bias is not None
    cell.input.bias[:hidden] = update
    return init_rms_norm(rng, d_model), (cell, down)


def gru_layer(params: tuple, x: Array) -> tuple[Array, Backward]:
    """x plus a map of the states of a GRU that reads rms_norm(x)."""
    return behind_norm(partial(chain, parts=(_states, linear)))(params, x)


def _states(params: Any, x: Array) -> tuple[Array, Backward]:
    (out, _), backward = gru(params, x)
    return out, lambda dout: backward((dout, None))[:2]      # nobody reads on from the last state


def init_decoder(
    rng: np.random.Generator, vocabulary: int, d_model: int, *, num_layers: int, num_heads: int, init_norm: Callable = init_layer_norm,
    start: float = 1.0, last: bool = True,
) -> list[Any]:  # fmt: skip
    """Words, blocks of attention and a feed-forward network, with two norms each, a last norm or None, and a head of its own.

    The weights of the blocks deviate by start / √d_in. Norms draw nothing: with any of them, or none, the other weights are the same.
    """
    blocks = []
    for _ in range(num_layers):
        first, second = init_norm(rng, d_model), init_norm(rng, d_model)
        attention = init_multi_head_attention(rng, d_model, num_heads=num_heads)
        blocks.append(TransformerBlock(first, attention, second, init_feed_forward(rng, d_model)))
    blocks = trees.map(lambda leaf: leaf * np.float32(start) if leaf.ndim > 1 else leaf, blocks)
    head = init_linear(rng, d_model, vocabulary, std=0.1, bias=False)
    return [init_embedding(rng, vocabulary, d_model, std=0.5), *blocks, init_norm(rng, d_model) if last else None, head]


def init_without(rng: np.random.Generator, d_model: int) -> None:
    """Parameters of without: none, and nothing is drawn."""


def without(params: Any, x: Array) -> tuple[Array, Backward]:
    """What stands where a part was: nothing."""
    return x, lambda dout: (params, dout)


def init_the_word_before(rng: np.random.Generator, d_model: int) -> CausalConvolution:
    """Parameters of with_the_word_before: a convolution over two words."""
    return init_causal_convolution(rng, d_model, width=2)


def with_the_word_before(params: CausalConvolution, query: Array, key: Array, *, positions: Any = None) -> tuple[tuple[Array, Array], Backward]:
    """What prepares queries and keys: RoPE, and keys that have met those before them, as Mamba's inputs do, so that a key finds its value."""
    key, convolution_backward = causal_convolution(params, key)
    turned, rotated_backward = _rotated(None, query, key, positions=positions)

    def backward(dturned):
        _, dquery, dkey = rotated_backward(dturned)
        dparams, dkey, _ = convolution_backward(dkey)
        return dparams, dquery, dkey

    return turned, backward


def convolved(params: tuple, query: Array, key: Array, value: Array, *more: Any, inner: Callable, **settings: Any) -> tuple[Any, Backward]:
    """A core, or a recurrence, of queries, keys and values that have met those before them. params: three convolutions, and those of inner."""
    convolutions, own = params
    (query, key, value), backwards = zip(*map(causal_convolution, convolutions, (query, key, value)), strict=True)
    out, inner_backward = inner(own, query, key, value, *more, **settings)

    def backward(dout):
        downs, dquery, dkey, dvalue, *dmore = inner_backward(dout)
        dconvolutions, dinputs, _ = zip(*(back(d) for back, d in zip(backwards, (dquery, dkey, dvalue), strict=True)), strict=True)
        return (dconvolutions, downs), *dinputs, *dmore

    return out, backward


def hidden_for(parameters: int, made: Callable[[int], trees.Tree]) -> int:
    """The number of hidden units at which made(hidden) has about so many parameters, each unit as many as the second."""
    one, two = (trees.count_parameters(made(hidden)) for hidden in (1, 2))
    return 1 + round((parameters - one) / (two - one))
