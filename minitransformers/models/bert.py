"""BERT, block and model, forward and backward, made of concepts: a text is read from both sides at once, to understand it.

Source: Devlin et al. 2018, arXiv:1810.04805, sections 3 and 3.1, and the published code for what the paper leaves open; the
small sizes are Turc et al. 2019, arXiv:1908.08962. GPT-2's parts in another order: norms stand after each sum, as in 2017, and
one over the embeddings; nothing hides the positions to the right; a token also says which of two segments it is in. Two heads
for pre-training: one names the tokens that were hidden, one says whether the second segment followed the first. A head whose
parameters are None is not there, and neither is what it returns. Differs from the training code: no dropout, and first weights
that are normal, not truncated at two deviations. A is multi-head attention that sees both sides, F the feed-forward network
with the exact GELU, N1, N2, N_0 and N_t are layer norms; E, S and P the tables of tokens, segments and positions; a star is the
backward of what it stands on.

    middle = N1(x + A(x))                                    (1)
    out = N2(middle + F(middle))                             (2)
    dsum = N2*(dout), dmiddle = dsum + F*(dsum)              (3)
    dsum = N1*(dmiddle), dx = dsum + A*(dsum)                (4)
    x = N_0(E[ids] + S[segments] + P)                        (5)
    hidden = block_l(x), l = 1 .. num_layers                 (6)
    pooled = tanh(hidden_1 W_p + b_p)                        (7)
    pair = pooled W_n + b_n                                  (8)
    h = N_t(GELU(hidden W_t + b_t))                          (9)
    tokens = h E^T + b                                       (10)
    dE = dtokens^T h, db = sum of dtokens, dhidden = dhidden + what comes back through (9)   (11)
    dpooled = dpooled + dpair W_n^T                          (12)
    dhidden_1 = dhidden_1 + dpooled (1 - pooled^2) W_p^T     (13)
    dx = block_l*(dhidden), l = num_layers .. 1              (14)
    dsum = N_0*(dx), dP = dsum summed over texts             (15)
    dE = dE + dsum scattered to the rows ids, dS = dsum scattered to the rows segments   (16)
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.attention.core import softmax_attention
from minitransformers.attention.multi_head_attention import MultiHeadAttention, init_multi_head_attention, multi_head_attention
from minitransformers.basics.chain import chain
from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.basics.feed_forward import FeedForward, feed_forward, init_feed_forward
from minitransformers.basics.gelu import gelu_exact
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.residual import residual
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, slot, trees
from minitransformers.models.configuration import Configuration
from minitransformers.models.weights import Names, plain, read_arrays, transposed
from minitransformers.norms.layer_norm import LayerNorm, init_layer_norm, layer_norm
from minitransformers.positional.learned import Learned, init_learned, learned


class BertBlock(NamedTuple):
    """Two sub-layers, each with the norm that follows it."""

    attention: MultiHeadAttention
    attention_norm: Annotated[LayerNorm, "d_model"]
    feed_forward: FeedForward
    feed_forward_norm: Annotated[LayerNorm, "d_model"]


class BertTransform(NamedTuple):
    """What is done to a hidden state before it is compared with the table of tokens."""

    dense: Annotated[Linear, "d_model d_model"]
    norm: Annotated[LayerNorm, "d_model"]


class Bert(NamedTuple):
    """All parameters. The heads are the last four: pooler and pair for the segments, transform and bias for the tokens."""

    embedding: Annotated[Embedding, "vocabulary d_model"]
    positions: Annotated[Learned, "context d_model"]
    segments: Annotated[Embedding, "kinds d_model"]
    norm: Annotated[LayerNorm, "d_model"]
    blocks: list[BertBlock]
    pooler: Annotated[Linear, "d_model d_model"] | None
    pair: Annotated[Linear, "d_model classes"] | None
    transform: BertTransform | None
    bias: Float[Array, "vocabulary"] | None


class BertOutput(NamedTuple):
    """The last block's hidden states, and what the heads make of them: None where a head is not there."""

    hidden: Float[Array, "... positions d_model"]
    pooled: Float[Array, "... d_model"] | None
    pair: Float[Array, "... classes"] | None
    tokens: Float[Array, "... positions vocabulary"] | None


@checked
def init_bert(
    rng: np.random.Generator, *, vocabulary: Annotated[int, at_least(1)], d_model: Annotated[int, at_least(1)],
    num_layers: Annotated[int, at_least(1)], num_heads: Annotated[int, at_least(1)], d_hidden: Annotated[int, at_least(1)] | None = None,
    context: Annotated[int, at_least(1)] = 512, std: Annotated[float, at_least(0)] = 0.02, dtype: type = np.float32,
) -> Bert:  # fmt: skip
    """Normal weights of deviation ``std``, with both heads: ``init_bert(rng, **BERT_BASE.sizes)``, or sizes of your own.

    d_hidden is 4 d_model unless given; there are two segments and two classes of pairs. Without a head:
    ``init_bert(...)._replace(pooler=None, pair=None)``.
    """
    norm = partial(init_layer_norm, rng, d_model, dtype=dtype)
    dense = partial(init_linear, rng, d_model, std=std, dtype=dtype)

    def block() -> BertBlock:
        return BertBlock(
            init_multi_head_attention(rng, d_model, num_heads=num_heads, std=std, dtype=dtype), norm(),
            init_feed_forward(rng, d_model, d_hidden=d_hidden, std=std, dtype=dtype), norm(),
        )  # fmt: skip

    return Bert(
        init_embedding(rng, vocabulary, d_model, std=std, dtype=dtype), init_learned(rng, d_model, max_positions=context, std=std, dtype=dtype),
        init_embedding(rng, 2, d_model, std=std, dtype=dtype), norm(), [block() for _ in range(num_layers)],
        dense(d_model), dense(2), BertTransform(dense(d_model), norm()), np.zeros(vocabulary, dtype),
    )  # fmt: skip


def _published(*, d_model: int, num_layers: int) -> Configuration:
    """Heads are 64 wide in all of them, and the vocabulary is that of lower case."""
    heads = {"num_heads": d_model // 64}
    return Configuration({"vocabulary": 30_522, "d_model": d_model, "num_layers": num_layers, **heads}, heads)


BERT_TINY = _published(d_model=128, num_layers=2)
BERT_MINI = _published(d_model=256, num_layers=4)
BERT_SMALL = _published(d_model=512, num_layers=4)
BERT_MEDIUM = _published(d_model=512, num_layers=8)
BERT_BASE = _published(d_model=768, num_layers=12)
BERT_LARGE = _published(d_model=1024, num_layers=24)


def bert_block(
    params: BertBlock, x: Float[Array, "... positions d_model"], *, num_heads: int, mask: Array | None = None, eps: float = 1e-12,
    activation: Callable = slot(gelu_exact),
):  # fmt: skip
    """One block; the activation is the feed-forward network's. Returns out, shaped like x, and backward: dout -> BertBlock of gradients, dx."""
    norm = partial(layer_norm, eps=eps)
    attention = partial(multi_head_attention, num_heads=num_heads, mask=mask, core=softmax_attention)
    attend = partial(chain, parts=(partial(residual, part=attention), norm))
    work = partial(chain, parts=(partial(residual, part=partial(feed_forward, activation=activation)), norm))
    middle, attend_backward = attend(params[:2], x)          # (1)
    out, work_backward = work(params[2:], middle)            # (2)

    def backward(dout):
        dwork, dmiddle = work_backward(dout)                 # (3)
        dattend, dx = attend_backward(dmiddle)               # (4)
        return BertBlock(*dattend, *dwork), dx

    return out, backward


@concept(
    title="BERT",
    source="Devlin et al. 2018, arXiv:1810.04805, sections 3 and 3.1",
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
def bert(
    params: Bert, *, ids: Int[Array, "*batch positions"], segments: Int[Array, "*batch positions"] | None = None,
    num_heads: Annotated[int, at_least(1)] = 12, mask: Bool[Array, "*#scores #positions #positions"] | None = None,
    eps: Annotated[float, at_least(0)] = 1e-12,
) -> tuple[BertOutput, Backward]:  # fmt: skip
    """A text, or a pair of texts, read from both sides: hidden states, and what each head that params hold makes of them.

    segments says of each token which text it is in, None for 0 everywhere. mask, broadcastable to (*batch, heads, queries,
    keys), is True where a query may see a key (padding_mask). eps is that of the norms.
    Returns BertOutput: hidden (*batch, positions, d_model), pooled (*batch, d_model), pair (*batch, 2), tokens (*batch,
    positions, vocabulary); and backward: dout -> Bert of gradients. A part of dout may be None: zero.
    Raises ValueError where ids or segments lie outside their tables, ids are longer than that of positions, heads do not divide,
    mask does not fit the scores, or there is a pair without a pooler.

    Published models by name, ``bert(params, ids=ids, **BERT_BASE.settings)``, their parameters by
    ``init_bert(rng, **BERT_BASE.sizes)`` or load_bert:

        name         layers  d_model  heads  d_hidden  vocabulary  positions  with the pooler alone  with the head for tokens alone
        BERT_TINY         2      128      2       512       30522        512              4,385,920                       4,416,698
        BERT_MINI         4      256      4      1024       30522        512             11,170,560                      11,201,594
        BERT_SMALL        4      512      8      2048       30522        512             28,763,648                      28,795,194
        BERT_MEDIUM       8      512      8      2048       30522        512             41,373,184                      41,404,730
        BERT_BASE        12      768     12      3072       30522        512            109,482,240                     109,514,298
        BERT_LARGE       24     1024     16      4096       30522        512            335,141,888                     335,174,458
    """
    kinds = np.zeros_like(ids) if segments is None else segments
    check_heads(params, kinds)
    norm = partial(layer_norm, eps=eps)
    read, embedding_backward = embedding(params.embedding, ids=ids)
    kind, segments_backward = embedding(params.segments, ids=kinds)
    placed, positions_backward = learned(params.positions, read + kind)
    x, norm_backward = norm(params.norm, placed)             # (5)
    backwards = []
    for block in params.blocks:
        x, block_backward = bert_block(block, x, num_heads=num_heads, mask=mask, eps=eps)  # (6)
        backwards.append(block_backward)
    pooled: Any = None
    pair = tokens = None
    if params.pooler is not None:
        first, pooler_backward = linear(params.pooler, x[..., 0, :])
        pooled = np.tanh(first)                              # (7)
    if params.pair is not None:
        pair, pair_backward = linear(params.pair, pooled)    # (8)
    if params.transform is not None:
        transform = partial(chain, parts=(linear, slot(gelu_exact), norm))
        h, transform_backward = transform((params.transform.dense, None, params.transform.norm), x)  # (9)
        tokens, tokens_backward = linear(Linear(params.embedding.weight.T, params.bias), h)  # (10)

    def backward(dout):
        dx, dpooled, dpair, dtokens = dout
        dpooler = dscore = dtransform = dbias = None
        dtable = 0
        if params.transform is not None:
            (dhead, dbias), dh = tokens_backward(dtokens)
            (ddense, _, dtransform_norm), dthrough = transform_backward(dh)
            dtransform, dtable, dx = BertTransform(ddense, dtransform_norm), dhead.T, dx + dthrough  # (11)
        if params.pair is not None:
            dscore, dthrough = pair_backward(dpair)
            dpooled = dpooled + dthrough                     # (12)
        if params.pooler is not None:
            dpooler, dfirst = pooler_backward(dpooled * (1 - pooled * pooled))
            dx = np.concatenate([dx[..., :1, :] + dfirst[..., None, :], dx[..., 1:, :]], axis=-2)  # (13)
        dblocks = []
        for block_backward in reversed(backwards):
            dblock, dx = block_backward(dx)                  # (14)
            dblocks.append(dblock)
        dnorm, dplaced = norm_backward(dx)
        dpositions, dsum = positions_backward(dplaced)       # (15)
        dsegments = segments_backward(dsum)
        dembedding = Embedding(embedding_backward(dsum).weight + dtable)  # the table is used at both ends: two gradients  (16)
        return Bert(dembedding, dpositions, dsegments, dnorm, dblocks[::-1], dpooler, dscore, dtransform, dbias)

    return BertOutput(x, pooled, pair, tokens), backward


def check_heads(params: Any, kinds: Array) -> None:
    """Raise ValueError for a head without what it reads, and for a segment that is not one of the table's rows."""
    if params.pair is not None and params.pooler is None:
        raise invalid("params.pair", got="a head for pairs and no pooler", wants="a pooler, which it reads")
    if (params.transform is None) is not (params.bias is None):
        raise invalid("params.bias", got="a transform without a bias, or the reverse", wants="both, for the head for tokens, or neither")
    if kinds.min() < 0 or kinds.max() >= len(params.segments.weight):
        wants = f"0 to {len(params.segments.weight) - 1}, the rows of params.segments.weight"
        raise invalid("segments", got=f"numbers from {kinds.min()} to {kinds.max()}", wants=wants)


# Hugging Face's names; torch.nn.Linear keeps a weight as (d_out, d_in).
_LAYER = "bert.encoder.layer.*."
_PARTS = {
    "attention.query": "attention.self.query", "attention.key": "attention.self.key", "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense", "feed_forward.up": "intermediate.dense", "feed_forward.down": "output.dense",
}  # fmt: skip
NAMES = Names(
    {
        "embedding.weight": plain("bert.embeddings.word_embeddings.weight"),
        "positions.table": plain("bert.embeddings.position_embeddings.weight"),
        "segments.weight": plain("bert.embeddings.token_type_embeddings.weight"),
        "norm.gain": plain("bert.embeddings.LayerNorm.weight"),
        "norm.bias": plain("bert.embeddings.LayerNorm.bias"),
        **{f"blocks.*.{own}.weight": transposed(f"{_LAYER}{theirs}.weight") for own, theirs in _PARTS.items()},
        **{f"blocks.*.{own}.bias": plain(f"{_LAYER}{theirs}.bias") for own, theirs in _PARTS.items()},
        "blocks.*.attention_norm.gain": plain(f"{_LAYER}attention.output.LayerNorm.weight"),
        "blocks.*.attention_norm.bias": plain(f"{_LAYER}attention.output.LayerNorm.bias"),
        "blocks.*.feed_forward_norm.gain": plain(f"{_LAYER}output.LayerNorm.weight"),
        "blocks.*.feed_forward_norm.bias": plain(f"{_LAYER}output.LayerNorm.bias"),
        "pooler.weight": transposed("bert.pooler.dense.weight"),
        "pooler.bias": plain("bert.pooler.dense.bias"),
        "pair.weight": transposed("cls.seq_relationship.weight"),
        "pair.bias": plain("cls.seq_relationship.bias"),
        "transform.dense.weight": transposed("cls.predictions.transform.dense.weight"),
        "transform.dense.bias": plain("cls.predictions.transform.dense.bias"),
        "transform.norm.gain": plain("cls.predictions.transform.LayerNorm.weight"),
        "transform.norm.bias": plain("cls.predictions.transform.LayerNorm.bias"),
        "bias": plain("cls.predictions.bias"),
    },
    ignored=(".position_ids",),                              # 0, 1, 2, ..., in old files
    tied={"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.bias": "cls.predictions.bias"},
)


def load_bert(source: Mapping[str, Array] | str | Path) -> Bert:
    """The parameters of Hugging Face's BertForPreTraining, BertForMaskedLM or BertModel: from a dict of arrays, or from files.

    Sizes and heads are read off the arrays; the number of heads of attention cannot be (d_model / 64 in published models). The
    dtype stays. A norm's weight and bias may be called gamma and beta, as in the first files.
    Raises ValueError for missing, unexpected or mis-shaped weights, naming them.
    """
    arrays = NAMES.stripped({_today(name): array for name, array in read_arrays(source).items()})
    num_layers = NAMES.count(_LAYER, arrays)
    skeleton = init_bert(np.random.default_rng(0), vocabulary=1, context=1, d_model=1, num_layers=num_layers, num_heads=1, d_hidden=1)
    if not any(name.startswith("cls.seq_relationship.") for name in arrays):
        pooled = any(name.startswith("bert.pooler.") for name in arrays)
        skeleton = skeleton._replace(pair=None, pooler=skeleton.pooler if pooled else None)
    if not any(name.startswith("cls.predictions.") for name in arrays):
        skeleton = skeleton._replace(transform=None, bias=None)
    return NAMES.tree(skeleton, arrays)


def _today(name: str) -> str:
    """A name as it is written today: norms have weights and biases, and what is no head has bert. in front."""
    for old, new in ((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias")):
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return f"bert.{name}" if name.startswith(("embeddings.", "encoder.", "pooler.")) else name


def bert_weights(params: Bert) -> dict[str, Array]:
    """The same parameters (or their gradients) under Hugging Face's names: those of BertModel where there is no head but the pooler."""
    arrays = NAMES.arrays(params)
    bare = params.pair is None and params.transform is None
    return {name.removeprefix("bert.") if bare else name: array for name, array in arrays.items()}


def _example(rng: np.random.Generator):
    params = init_bert(rng, vocabulary=6, context=5, d_model=3, num_layers=2, num_heads=3, d_hidden=4, std=0.5, dtype=np.float64)
    params = trees.map(lambda leaf: leaf + rng.normal(0, 0.2, leaf.shape), params)  # no gain is 1, no bias 0: each of them is tested
    mask = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool)[:, None, None]
    return example(params, ids=rng.integers(6, size=(2, 4)), segments=np.array([[0, 0, 1, 1], [0, 1, 1, 1]]), num_heads=3, mask=mask)
