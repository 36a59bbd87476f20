"""Neural rewriting: a small encoder and decoder that reads a text and writes it anew, with a path to copy what need not change.

The Transformer of models/transformer.py reads the source and writes the target; where it has decided on a position, it can also point
at a place of the source and take the token from there. A gate, computed from the decoder's last state, shares the probability out. Its
bias starts below 0, so that before training most of the probability is for copying. Costs one more map of each position and one
product of target and source beside the Transformer's.

Source: Vaswani et al. 2017, arXiv:1706.03762, for encoder and decoder; See, Liu and Manning 2017, arXiv:1704.04368, for the copy path;
the task is that of Pryzant et al. 2019, arXiv:1911.09709, whose models start from BERT. Differs: attention for copying is of its own,
one head, in the place of the last block's. E is the table, d the width, a star the backward of what it stands on.

    memory = encoder(source)                                 (1)
    y = sqrt(d) E[target] + waves, then y = decoder_l(y, memory), l = 1 .. num_layers   (2)
    z = y E^T                                                (3)
    query = y W_q, key = memory W_k                          (4)
    a = query key^T / sqrt(d)                                (5)
    g = y w_g + b_g                                          (6)
    out = copy_logits(z, a, g) with the tokens of the source   (7)
    dz, da, dg = copy_logits*(dout)                          (8)
    dquery = da key / sqrt(d), dkey = da^T query / sqrt(d)   (9)
    dy = dz E + dquery W_q^T + dg w_g^T                      (10)
    dmemory = dkey W_k^T + what each decoder block sends     (11)
    dE = dz^T y + what the target's rows and the encoder send   (12)
"""

from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray as Array

from minitransformers.basics.embedding import Embedding, check_ids, embedding
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.bias_mitigation.copy_logits import copy_logits
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, finite, invalid, procedure, trees
from minitransformers.models.transformer import Transformer, init_transformer, transformer_decoder_block, transformer_encoder
from minitransformers.positional.sinusoidal import sinusoidal


class NeuralRewriter(NamedTuple):
    """The Transformer, maps of the decoder's state and of the memory to where they meet, and of the state to the gate."""

    transformer: Transformer
    query: Annotated[Linear, "d_model d_copy"]
    key: Annotated[Linear, "d_model d_copy"]
    gate: Annotated[Linear, "d_model one"]


@checked
def init_neural_rewriting(
    rng: np.random.Generator, *, gate_bias: Annotated[float, finite] = -2.0, dtype: type = np.float32, **sizes: Any
) -> NeuralRewriter:
    """A Transformer of these sizes (init_transformer), and a gate that copies with probability sigmoid(-gate_bias) at the start."""
    model = init_transformer(rng, dtype=dtype, **sizes)
    d_model = model.embedding.weight.shape[1]
    query, key = (init_linear(rng, d_model, d_model, bias=False, dtype=dtype) for _ in range(2))
    return NeuralRewriter(model, query, key, Linear(np.zeros((d_model, 1), dtype), np.full(1, gate_bias, dtype)))


def _example(rng: np.random.Generator, gates: int = 1):
    sizes = {"vocabulary": 6, "d_model": 4, "num_layers": 2, "num_heads": 2, "d_hidden": 5}
    params = init_neural_rewriting(rng, std=0.5, dtype=np.float64, **sizes)
    params = params._replace(gate=Linear(np.zeros((4, gates)), np.zeros(gates)))
    params = trees.map(lambda leaf: leaf + rng.normal(0, 0.2, leaf.shape), params)  # no gain is 1, no bias 0: each of them is tested
    mask = np.array([[1, 1, 1], [1, 1, 0]], bool)
    return example(params, source=rng.integers(6, size=(2, 3)), target=rng.integers(6, size=(2, 4)), num_heads=2, mask=mask)


@concept(
    title="Neural rewriting (encoder, decoder, copy)",
    source="Vaswani et al. 2017, arXiv:1706.03762; See, Liu and Manning 2017, arXiv:1704.04368; the task of Pryzant et al. 2019, arXiv:1911.09709",
    example=lambda rng: _example(rng),
    rejects=[
        bad(source=np.array([[0, 7, 1], [0, 1, 2]])), bad(target=np.array([[0, -1], [1, 1]])), bad(num_heads=3), bad(mask=np.zeros((2, 3), bool)),
        bad("params.gate", params=_example(np.random.default_rng(0), gates=2).args[0]), bad(target=np.zeros((3, 2), int)),
    ],
)  # fmt: skip
def neural_rewriting(
    params: NeuralRewriter, *, source: Int[Array, "*batch source"], target: Int[Array, "*batch target"], num_heads: Annotated[int, at_least(1)],
    mask: Bool[Array, "*batch source"] | None = None, eps: Annotated[float, at_least(0)] = 1e-5,
) -> tuple[Array, Backward]:  # fmt: skip
    """Log-probabilities of the token after each position of the target, written or copied, given the source and the target so far.

    target starts with a token that means the start. mask is True where the source has a token. eps is that of the norms.
    Returns out (*batch, target, vocabulary), in nats, and backward: dout -> NeuralRewriter of gradients.
    Raises ValueError where ids lie outside the vocabulary, heads do not divide, there is not one gate, or a source is all padding.
    """
    model = params.transformer
    for name, ids in (("source", source), ("target", target)):
        check_ids(name, ids, model.embedding)
    if params.gate.weight.shape[1] != 1:
        raise invalid("params.gate", got=f"{params.gate.weight.shape[1]} features", wants="one")
    settings: dict[str, Any] = {"num_heads": num_heads, "mask": None if mask is None else mask[..., None, None, :], "eps": eps}
    memory, encoder_backward = transformer_encoder(model, source, **settings)  # (1)
    rows, rows_backward = embedding(model.embedding, ids=target)
    scale = rows.shape[-1] ** 0.5
    y, _ = sinusoidal(scale * rows)
    backwards = []
    for block in model.decoder:
        y, block_backward = transformer_decoder_block(block, y, memory, **settings)  # (2)
        backwards.append(block_backward)
    logits, head_backward = linear(Linear(model.embedding.weight.T, None), y)  # (3)
    query, query_backward = linear(params.query, y)
    key, key_backward = linear(params.key, memory)           # (4)
    width = query.shape[-1] ** -0.5
    scores = width * (query @ key.swapaxes(-1, -2))          # (5)
    gate, gate_backward = linear(params.gate, y)             # (6)
    out, copy_backward = copy_logits(logits, scores, gate[..., 0], source=source, mask=mask)  # (7)

    def backward(dout):
        dlogits, dscores, dgate = copy_backward(dout)        # (8)
        dquery, dkey = width * (dscores @ key), width * (dscores.swapaxes(-1, -2) @ query)  # (9)
        dhead, dy = head_backward(dlogits)
        dgate_map, dy_gate = gate_backward(dgate[..., None])
        dquery_map, dy_query = query_backward(dquery)
        dy = dy + dy_query + dy_gate                         # the last state is read three times  (10)
        dkey_map, dmemory = key_backward(dkey)
        ddecoder = []
        for block_backward in reversed(backwards):
            dblock, dy, dmemory_block = block_backward(dy)
            ddecoder.append(dblock)
            dmemory = dmemory + dmemory_block                # (11)
        dread, dencoder = encoder_backward(dmemory)
        dembedding = Embedding(dhead.weight.T + rows_backward(scale * dy).weight + dread)  # (12)
        return NeuralRewriter(Transformer(dembedding, dencoder, ddecoder[::-1]), dquery_map, dkey_map, dgate_map)

    return out, backward


@procedure(
    title="Greedy rewriting",
    source="the decoding of Vaswani et al. 2017, arXiv:1706.03762, with one beam",
    example=lambda rng: _greedy_example(rng),
    rejects=[bad(start=6), bad(end=6), bad(source=np.array([[0, 7, 1], [0, 1, 2]])), bad(num_heads=3)],
)
def greedy_rewriting(
    params: NeuralRewriter, source: Int[Array, "*batch source"], *, start: Annotated[int, at_least(0)], num_tokens: Annotated[int, at_least(1)],
    num_heads: Annotated[int, at_least(1)], end: Annotated[int, at_least(0)] | None = None, mask: Bool[Array, "*batch source"] | None = None,
    eps: Annotated[float, at_least(0)] = 1e-5,
) -> Int[Array, "*batch num_tokens"]:  # fmt: skip
    """num_tokens tokens for each source, every one the likeliest after those before it; behind the token end nothing but end.

    The whole target is read again for each token. Raises ValueError as neural_rewriting does, and where start or end is no id.
    """
    vocabulary = len(params.transformer.embedding.weight)
    for name, own in (("start", start), ("end", end)):
        if own is not None and own >= vocabulary:
            raise invalid(name, got=own, wants=f"an id from 0 to {vocabulary - 1}")
    target = np.full((*source.shape[:-1], 1), start, source.dtype)
    for _ in range(num_tokens):
        out, _ = neural_rewriting(params, source=source, target=target, num_heads=num_heads, mask=mask, eps=eps)
        best = out[..., -1, :].argmax(axis=-1).astype(source.dtype)
        if end is not None:
            best = np.where((target[..., 1:] == end).any(axis=-1), end, best)
        target = np.concatenate([target, best[..., None]], axis=-1)
    return target[..., 1:]


def _greedy_example(rng: np.random.Generator):
    params, config = _example(rng).args[0], _example(rng).config
    return example(params, config["source"], start=0, end=5, num_tokens=4, num_heads=2, mask=config["mask"])
