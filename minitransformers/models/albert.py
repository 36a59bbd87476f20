"""ALBERT, forward and backward, made of concepts: BERT with one block that is used over and over, and a narrow table of tokens.

Source: Lan et al. 2019, arXiv:1909.11942, sections 3.1 and 3.2, and the published code for what the paper leaves open. BERT's block
(bert_block), norms after each sum. Three things differ. The table of tokens is d_embedding wide, and one map W_e opens its rows out to
d_model. All layers are one block: its gradient is a sum over its uses. And the second head of pre-training says whether two segments
stand in their order. A head whose parameters are None is not there, and neither is what it returns. Differs from the training code: no
dropout, and first weights that are normal, not truncated at two deviations. N_0 and N_t are layer norms over d_embedding features, phi
the activation; E, S and P the tables of tokens, segments and positions; a star is the backward of what it stands on.

    x = N_0(E[ids] + S[segments] + P)                        (1)
    x_0 = x W_e + b_e                                        (2)
    x_l = block(x_{l-1}), l = 1 .. num_layers, hidden = x_L: the same block each time   (3)
    pooled = tanh(hidden_1 W_p + b_p)                        (4)
    pair = pooled W_o + b_o                                  (5)
    h = N_t(phi(hidden W_t + b_t))                           (6)
    tokens = h E^T + b                                       (7)
    dE = dtokens^T h, db = sum of dtokens, dhidden = dhidden + what comes back through (6)   (8)
    dpooled = dpooled + dpair W_o^T                          (9)
    dhidden_1 = dhidden_1 + dpooled (1 - pooled^2) W_p^T     (10)
    duse_l, dx_{l-1} = block_l*(dx_l), l = num_layers .. 1   (11)
    dblock = sum over l of duse_l                            (12)
    dx = dx_0 W_e^T, dW_e = x^T dx_0, db_e = sum of dx_0     (13)
    dsum = N_0*(dx), dP = dsum summed over texts             (14)
    dE = dE + dsum scattered to the rows ids, dS = dsum scattered to the rows segments   (15)
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.attention.multi_head_attention import init_multi_head_attention
from minitransformers.basics.chain import chain
from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.basics.feed_forward import init_feed_forward
from minitransformers.basics.gelu import gelu
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, slot, trees
from minitransformers.models.bert import BertBlock, BertOutput, bert_block, check_heads
from minitransformers.models.configuration import Configuration
from minitransformers.models.weights import Names, plain, read_arrays, transposed
from minitransformers.norms.layer_norm import LayerNorm, init_layer_norm, layer_norm
from minitransformers.positional.learned import Learned, init_learned, learned


class AlbertTransform(NamedTuple):
    """What is done to a hidden state before it is compared with the table of tokens: it is as narrow as the table."""

    dense: Annotated[Linear, "d_model d_embedding"]
    norm: Annotated[LayerNorm, "d_embedding"]


class Albert(NamedTuple):
    """All parameters. One block, however many layers; the heads are the last four: pooler and pair, transform and bias."""

    embedding: Annotated[Embedding, "vocabulary d_embedding"]
    positions: Annotated[Learned, "context d_embedding"]
    segments: Annotated[Embedding, "kinds d_embedding"]
    norm: Annotated[LayerNorm, "d_embedding"]
    widen: Annotated[Linear, "d_embedding d_model"]
    block: BertBlock
    pooler: Annotated[Linear, "d_model d_model"] | None
    pair: Annotated[Linear, "d_model classes"] | None
    transform: AlbertTransform | None
    bias: Float[Array, "vocabulary"] | None


@checked
def init_albert(
    rng: np.random.Generator, *, vocabulary: Annotated[int, at_least(1)], d_model: Annotated[int, at_least(1)],
    num_heads: Annotated[int, at_least(1)], d_embedding: Annotated[int, at_least(1)] = 128,
    d_hidden: Annotated[int, at_least(1)] | None = None, context: Annotated[int, at_least(1)] = 512,
    std: Annotated[float, at_least(0)] = 0.02, dtype: type = np.float32,
) -> Albert:  # fmt: skip
    """Normal weights of deviation ``std``, with both heads: ``init_albert(rng, **ALBERT_BASE.sizes)``, or sizes of your own.

    The number of layers is no size: they are all one. d_hidden is 4 d_model unless given; there are two segments and two classes
    of pairs. Without a head: ``init_albert(...)._replace(pooler=None, pair=None)``.
    """
    norm = partial(init_layer_norm, rng, dtype=dtype)
    dense = partial(init_linear, rng, std=std, dtype=dtype)
    return Albert(
        init_embedding(rng, vocabulary, d_embedding, std=std, dtype=dtype),
        init_learned(rng, d_embedding, max_positions=context, std=std, dtype=dtype),
        init_embedding(rng, 2, d_embedding, std=std, dtype=dtype), norm(d_embedding), dense(d_embedding, d_model),
        BertBlock(
            init_multi_head_attention(rng, d_model, num_heads=num_heads, std=std, dtype=dtype), norm(d_model),
            init_feed_forward(rng, d_model, d_hidden=d_hidden, std=std, dtype=dtype), norm(d_model),
        ),
        dense(d_model, d_model), dense(d_model, 2), AlbertTransform(dense(d_model, d_embedding), norm(d_embedding)), np.zeros(vocabulary, dtype),
    )  # fmt: skip


def _published(*, d_model: int, num_layers: int, num_heads: int) -> Configuration:
    """Tables are 128 wide in all of them, and hold 30,000 tokens."""
    heads = {"num_heads": num_heads}
    return Configuration({"vocabulary": 30_000, "d_model": d_model, **heads}, {"num_layers": num_layers, **heads})


ALBERT_BASE = _published(d_model=768, num_layers=12, num_heads=12)
ALBERT_LARGE = _published(d_model=1024, num_layers=24, num_heads=16)
ALBERT_XLARGE = _published(d_model=2048, num_layers=24, num_heads=16)
ALBERT_XXLARGE = _published(d_model=4096, num_layers=12, num_heads=64)


@concept(
    title="ALBERT",
    source="Lan et al. 2019, arXiv:1909.11942, sections 3.1 and 3.2",
    example=lambda rng: _example(rng),
    rejects=[
        bad("ids", ids=np.array([[0, 7]]), segments=None, mask=None),
        bad("positions", ids=np.zeros((1, 6), int), segments=None, mask=None),
        bad(segments=np.full((2, 4), 2)),
        bad(segments=np.zeros((2, 3), int)),
        bad(num_heads=2),
        bad(mask=np.ones((2, 1, 1, 3), bool)),
    ],
)
def albert(
    params: Albert, *, ids: Int[Array, "*batch positions"], segments: Int[Array, "*batch positions"] | None = None,
    num_layers: Annotated[int, at_least(1)] = 12, num_heads: Annotated[int, at_least(1)] = 12,
    mask: Bool[Array, "*#scores #positions #positions"] | None = None, eps: Annotated[float, at_least(0)] = 1e-12,
    activation: Callable = slot(gelu),
) -> tuple[BertOutput, Backward]:  # fmt: skip
    """A text, or a pair of texts, read from both sides by one block that is used num_layers times.

    segments says of each token which text it is in, None for 0 everywhere. mask, broadcastable to (*batch, heads, queries,
    keys), is True where a query may see a key (padding_mask). eps is that of the norms. activation is that of the block's
    network and of the head for tokens, and learns nothing: GELU by tanh, slot(gelu_exact) in the first of the published files.
    Returns BertOutput: hidden (*batch, positions, d_model), pooled (*batch, d_model), pair (*batch, 2), the order of the two
    segments, tokens (*batch, positions, vocabulary); and backward: dout -> Albert of gradients. A part of dout may be None: zero.
    Raises ValueError where ids or segments lie outside their tables, ids are longer than that of positions, heads do not divide,
    mask does not fit the scores, or there is a pair without a pooler.

    Published models by name, ``albert(params, ids=ids, **ALBERT_BASE.settings)``, their parameters by
    ``init_albert(rng, **ALBERT_BASE.sizes)`` or load_albert. d_hidden is 4 d_model, d_embedding 128, positions are 512:

        name            layers  d_model  heads  vocabulary  with the pooler alone  with the head for tokens alone  with both heads
        ALBERT_BASE         12      768     12       30000             11,683,584                      11,221,680       11,813,810
        ALBERT_LARGE        24     1024     16       30000             17,683,968                      16,795,824       17,847,474
        ALBERT_XLARGE       24     2048     16       30000             58,724,864                      54,821,040       59,021,490
        ALBERT_XXLARGE      12     4096     64       30000            222,595,584                     206,368,944      223,158,450
    """
    kinds = np.zeros_like(ids) if segments is None else segments
    check_heads(params, kinds)
    norm = partial(layer_norm, eps=eps)
    read, embedding_backward = embedding(params.embedding, ids=ids)
    kind, segments_backward = embedding(params.segments, ids=kinds)
    placed, positions_backward = learned(params.positions, read + kind)
    narrow, norm_backward = norm(params.norm, placed)        # (*batch, positions, d_embedding)  (1)
    x, widen_backward = linear(params.widen, narrow)         # (*batch, positions, d_model)  (2)
    backwards = []
    for _ in range(num_layers):
        x, block_backward = bert_block(params.block, x, num_heads=num_heads, mask=mask, eps=eps, activation=activation)  # (3)
        backwards.append(block_backward)
    pooled: Any = None
    pair = tokens = None
    if params.pooler is not None:
        first, pooler_backward = linear(params.pooler, x[..., 0, :])
        pooled = np.tanh(first)                              # (4)
    if params.pair is not None:
        pair, pair_backward = linear(params.pair, pooled)    # (5)
    if params.transform is not None:
        transform = partial(chain, parts=(linear, activation, norm))
        h, transform_backward = transform((params.transform.dense, None, params.transform.norm), x)  # as narrow as E  (6)
        tokens, tokens_backward = linear(Linear(params.embedding.weight.T, params.bias), h)  # (7)

    def backward(dout):
        dx, dpooled, dpair, dtokens = dout
        dpooler = dscore = dtransform = dbias = None
        dtable = 0
        if params.transform is not None:
            (dhead, dbias), dh = tokens_backward(dtokens)
            (ddense, _, dtransform_norm), dthrough = transform_backward(dh)
            dtransform, dtable, dx = AlbertTransform(ddense, dtransform_norm), dhead.T, dx + dthrough  # (8)
        if params.pair is not None:
            dscore, dthrough = pair_backward(dpair)
            dpooled = dpooled + dthrough                     # (9)
        if params.pooler is not None:
            dpooler, dfirst = pooler_backward(dpooled * (1 - pooled * pooled))
            dx = np.concatenate([dx[..., :1, :] + dfirst[..., None, :], dx[..., 1:, :]], axis=-2)  # (10)
        dblock: Any = None
        for block_backward in reversed(backwards):
            duse, dx = block_backward(dx)                    # (11)
            dblock = duse if dblock is None else trees.map(np.add, dblock, duse)  # one block, used in every layer: its gradients add  (12)
        dwiden, dnarrow = widen_backward(dx)                 # (13)
        dnorm, dplaced = norm_backward(dnarrow)
        dpositions, dsum = positions_backward(dplaced)       # (14)
        dsegments = segments_backward(dsum)
        dembedding = Embedding(embedding_backward(dsum).weight + dtable)  # the table is used at both ends: two gradients  (15)
        return Albert(dembedding, dpositions, dsegments, dnorm, dwiden, dblock, dpooler, dscore, dtransform, dbias)

    return BertOutput(x, pooled, pair, tokens), backward


# Hugging Face's names; torch.nn.Linear keeps a weight as (d_out, d_in). Its block stands in a group, and the group in a list: one of each.
_TABLES, _LAYER = "albert.embeddings.", "albert.encoder.albert_layer_groups.0.albert_layers.0."
_DENSE = {
    "widen": "albert.encoder.embedding_hidden_mapping_in",
    "block.attention.query": f"{_LAYER}attention.query", "block.attention.key": f"{_LAYER}attention.key",
    "block.attention.value": f"{_LAYER}attention.value", "block.attention.output": f"{_LAYER}attention.dense",
    "block.feed_forward.up": f"{_LAYER}ffn", "block.feed_forward.down": f"{_LAYER}ffn_output",
    "pooler": "albert.pooler", "pair": "sop_classifier.classifier", "transform.dense": "predictions.dense",
}  # fmt: skip
_NORMS = {
    "norm": f"{_TABLES}LayerNorm", "block.attention_norm": f"{_LAYER}attention.LayerNorm",
    "block.feed_forward_norm": f"{_LAYER}full_layer_layer_norm", "transform.norm": "predictions.LayerNorm",
}  # fmt: skip
NAMES = Names(
    {
        "embedding.weight": plain(f"{_TABLES}word_embeddings.weight"),
        "positions.table": plain(f"{_TABLES}position_embeddings.weight"),
        "segments.weight": plain(f"{_TABLES}token_type_embeddings.weight"),
        **{f"{own}.weight": transposed(f"{theirs}.weight") for own, theirs in _DENSE.items()},
        **{f"{own}.bias": plain(f"{theirs}.bias") for own, theirs in _DENSE.items()},
        **{f"{own}.gain": plain(f"{theirs}.weight") for own, theirs in _NORMS.items()},
        **{f"{own}.bias": plain(f"{theirs}.bias") for own, theirs in _NORMS.items()},
        "bias": plain("predictions.bias"),
    },
    ignored=(".position_ids",),                              # 0, 1, 2, ..., in old files
    tied={"predictions.decoder.weight": f"{_TABLES}word_embeddings.weight", "predictions.decoder.bias": "predictions.bias"},
)


def load_albert(source: Mapping[str, Array] | str | Path) -> Albert:
    """The parameters of Hugging Face's AlbertForPreTraining, AlbertForMaskedLM or AlbertModel: from a dict of arrays, or from files.

    Sizes and heads are read off the arrays; the numbers of layers and of heads of attention cannot be. The dtype stays.
    Raises ValueError for missing, unexpected or mis-shaped weights, naming them: groups of blocks that are not shared among them.
    """
    arrays = NAMES.stripped({_full(name): array for name, array in read_arrays(source).items()})
    skeleton = init_albert(np.random.default_rng(0), vocabulary=1, context=1, d_model=1, num_heads=1, d_embedding=1, d_hidden=1)
    if not any(name.startswith("sop_classifier.") for name in arrays):
        pooled = any(name.startswith("albert.pooler.") for name in arrays)
        skeleton = skeleton._replace(pair=None, pooler=skeleton.pooler if pooled else None)
    if not any(name.startswith("predictions.") for name in arrays):
        skeleton = skeleton._replace(transform=None, bias=None)
    return NAMES.tree(skeleton, arrays)


def _full(name: str) -> str:
    """A name of AlbertModel as the models with heads write it."""
    return f"albert.{name}" if name.startswith(("embeddings.", "encoder.", "pooler.")) else name


def albert_weights(params: Albert) -> dict[str, Array]:
    """The same parameters (or their gradients) under Hugging Face's names: those of AlbertModel where there is no head but the pooler."""
    arrays = NAMES.arrays(params)
    bare = params.pair is None and params.transform is None
    return {name.removeprefix("albert.") if bare else name: array for name, array in arrays.items()}


def _example(rng: np.random.Generator):
    params = init_albert(rng, vocabulary=6, context=5, d_embedding=4, d_model=3, num_heads=3, d_hidden=7, std=0.5, dtype=np.float64)
    params = trees.map(lambda leaf: leaf + rng.normal(0, 0.2, leaf.shape), params)  # no gain is 1, no bias 0: each of them is tested
    mask = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool)[:, None, None]
    segments = np.array([[0, 0, 1, 1], [0, 1, 1, 1]])
    return example(params, ids=rng.integers(6, size=(2, 4)), segments=segments, num_layers=3, num_heads=3, mask=mask)
