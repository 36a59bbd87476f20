"""Hierarchical Transformer: words make sentences, sentences make the document, and the document goes back to the words.

An encoder reads each sentence for itself and pools it into one vector; a second encoder reads the vectors of all sentences; what it
makes of each is put behind the sentence's words, and these are read once more, now with the document in sight. With n sentences
of l words a layer costs O(n l^2) scores over words and O(n^2) over sentences, in the place of (n l)^2.

Source: Wu et al. 2021 (Hi-Transformer), arXiv:2106.01040, section 2; Zhang et al. 2019 (HiBERT), arXiv:1905.06566, for the two
encoders without the way back. Differs from the first: the second pass over words may be given layers of its own (the paper's "another
sentence Transformer") or share those of the first; layers and pooling are slots. Padding is read by nobody. A sentence without a word
is read by nobody either, and its vector is 0. W, S and V are the stacks over words, sentences and words again, P, Q and R
the poolings of words, of words again, and of sentences; a star is the backward of what it stands on. i is a sentence.

    h_i = W(x_i)                                             (1)
    s_i = P(h_i)                                             (2)
    c_i = s_i + row i of places                              (3)
    d = S(c), over the sentences that have words             (4)
    words_i, ignored_i = V([h_i, d_i])                       (5)
    sentences_i = Q(words_i)                                 (6)
    document = R(sentences), over those that have words      (7)
    dsentences = dsentences + R*(ddocument)                  (8)
    dwords = dwords + Q*(dsentences)                         (9)
    dh_i, dd_i = V*([dwords_i, 0])                           (10)
    dc = S*(dd)                                              (11)
    dplaces_i = the sum over texts of dc_i, ds = dc          (12)
    dh_i = dh_i + P*(ds_i)                                   (13)
    dx = W*(dh)                                              (14)
    dW = dW of (14) + dV of (10), dP = dP of (13) + dQ of (9), where the second pass shares the first's   (15)
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.basics.chain import chain
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, trees
from minitransformers.long_context.attentive_pooling import attentive_pooling, init_attentive_pooling
from minitransformers.long_context.encoder_block import encoder_block, init_encoder_block
from minitransformers.positional.learned import Learned, init_learned, learned


class PooledEncoder(NamedTuple):
    """The layers over the words of a sentence, and what pools them into one vector."""

    layers: list[Any]
    pool: Any


class HierarchicalTransformer(NamedTuple):
    """Words to sentences, a table of sentence numbers or None, the layers over sentences, words again, sentences to the document.

    again of None is the first encoder once more.
    """

    words: PooledEncoder
    places: Annotated[Learned, "max_sentences d_model"] | None
    sentences: list[Any]
    again: PooledEncoder | None
    pool: Any


class HierarchicalEncoding(NamedTuple):
    """A vector for each word, each sentence, and the document."""

    words: Float[Array, "*batch sentences words d_model"]
    sentences: Float[Array, "*batch sentences d_model"]
    document: Float[Array, "*batch d_model"]


@checked
def init_hierarchical_transformer(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, num_heads: Annotated[int, at_least(1)],
    max_sentences: Annotated[int, at_least(1)], num_layers: Annotated[int, at_least(1)] = 1, d_hidden: Annotated[int, at_least(1)] | None = None,
    shared: bool = False, std: Annotated[float, at_least(0)] | None = None, dtype: type = np.float32,
) -> HierarchicalTransformer:  # fmt: skip
    """Normal weights; num_layers in each of the three stacks, of which the third is the first again where shared."""

    def layers() -> list[Any]:
        return [init_encoder_block(rng, d_model, num_heads=num_heads, d_hidden=d_hidden, std=std, dtype=dtype) for _ in range(num_layers)]

    def pool() -> Any:
        return init_attentive_pooling(rng, d_model, std=std, dtype=dtype)

    places = init_learned(rng, d_model, max_positions=max_sentences, dtype=dtype)
    return HierarchicalTransformer(
        PooledEncoder(layers(), pool()), places, layers(), None if shared else PooledEncoder(layers(), pool()), pool()
    )  # fmt: skip


@concept(
    title="Hierarchical Transformer",
    source="Wu et al. 2021, arXiv:2106.01040, section 2; Zhang et al. 2019, arXiv:1905.06566",
    example=lambda rng: _example(rng),
    rejects=[
        bad("params.places", x=np.ones((2, 5, 2, 4)), mask=None), bad(mask=np.ones((2, 3, 3), bool)), bad(num_heads=3),
        bad("params.words.layers", params=init_hierarchical_transformer(np.random.default_rng(0), 4, num_heads=2, max_sentences=4, dtype=np.float64)._replace(words=PooledEncoder([], None))),
    ],
)  # fmt: skip
def hierarchical_transformer(
    params: HierarchicalTransformer, x: Float[Array, "*batch sentences words d_model"], *, num_heads: Annotated[int, at_least(1)],
    mask: Bool[Array, "*batch sentences words"] | None = None, layer: Callable = encoder_block, pool: Callable = attentive_pooling,
) -> tuple[HierarchicalEncoding, Backward]:  # fmt: skip
    """Read each sentence, then the document of sentences, then each sentence again beside what the document made of it.

    Positions of words are in x already, and begin again with each sentence. mask is True where there is a word. What comes out at
    padding means nothing; the vector of a sentence without a word is 0, and so is that of a document without one.
    layer(own, x, num_heads=, mask=) -> out, backward and pool(own, x, mask=) -> out, backward take the mask of what they read.
    Returns HierarchicalEncoding of words (*batch, sentences, words, d_model), sentences (*batch, sentences, d_model) and document
    (*batch, d_model), and backward: dout -> HierarchicalTransformer of gradients, dx. A part of dout may be None: zero.
    Raises ValueError where there are more sentences than places, a stack has no layer, or heads do not divide d_model.
    """
    sentences, words = x.shape[-3:-1]
    if params.places is not None and len(params.places.table) < sentences:
        raise invalid("params.places", got=f"{len(params.places.table)} rows", wants=f"one for each of {sentences} sentences")
    again = params.words if params.again is None else params.again
    for name, layers in (("words.layers", params.words.layers), ("sentences", params.sentences), ("again.layers", again.layers)):
        if not layers:
            raise invalid(f"params.{name}", got="no layer", wants="at least one")
    present = with_context = None
    if mask is not None:
        present = np.any(mask, axis=-1)                      # (*batch, sentences)
        with_context = np.concatenate([mask, present[..., None]], axis=-1)

    def stack(layers: list[Any], x: Array, mask: Array | None):
        return chain(layers, x, parts=[partial(layer, num_heads=num_heads, mask=mask)] * len(layers))

    h, words_backward = stack(params.words.layers, x, mask)  # (1)
    s, pool_words_backward = pool(params.words.pool, h, mask=mask)  # (*batch, sentences, d_model)  (2)
    c, places_backward = (s, None) if params.places is None else learned(params.places, s)  # (3)
    d, sentences_backward = stack(params.sentences, c, present)  # (4)
    joined = np.concatenate([h, d[..., None, :]], axis=-2)   # (*batch, sentences, words + 1, d_model)
    read, again_backward = stack(again.layers, joined, with_context)
    words_out = read[..., :words, :]                         # (5)
    sentences_out, pool_again_backward = pool(again.pool, words_out, mask=mask)  # (6)
    document, pool_backward = pool(params.pool, sentences_out, mask=present)  # (7)

    def backward(dout):
        dwords, dsentences, ddocument = dout
        dpool, dthrough = pool_backward(ddocument)
        dsentences = dsentences + dthrough                   # (8)
        dagain_pool, dthrough = pool_again_backward(dsentences)
        dwords = dwords + dthrough                           # (9)
        nothing = np.zeros_like(dwords[..., :1, :])          # what the context became is not looked at
        dagain, djoined = again_backward(np.concatenate([dwords, nothing], axis=-2))
        dh, dd = djoined[..., :words, :], djoined[..., words, :]  # (10)
        dstack, dc = sentences_backward(dd)                  # (11)
        dplaces, ds = (None, dc) if places_backward is None else places_backward(dc)  # (12)
        dwords_pool, dthrough = pool_words_backward(ds)
        dh = dh + dthrough                                   # words are pooled and read again: two gradients  (13)
        dlayers, dx = words_backward(dh)                     # (14)
        passes = PooledEncoder(dlayers, dwords_pool), PooledEncoder(dagain, dagain_pool)
        dfirst, dsecond = _of_passes(*passes, shared=params.again is None)  # (15)
        return HierarchicalTransformer(dfirst, dplaces, dstack, dsecond, dpool), dx

    return HierarchicalEncoding(words_out, sentences_out, document), backward


def _of_passes(dfirst: PooledEncoder, dsecond: PooledEncoder, *, shared: bool) -> tuple[PooledEncoder, PooledEncoder | None]:
    """The gradients of what each pass has, or of the one encoder that was used twice, which is their sum."""
    return (trees.map(np.add, dfirst, dsecond), None) if shared else (dfirst, dsecond)


def _example(rng: np.random.Generator):
    """Three sentences of two words; in the second document one word is missing in the first, and the last sentence is empty."""
    sizes: dict[str, Any] = {"num_heads": 2, "max_sentences": 4, "d_hidden": 3}
    params = init_hierarchical_transformer(rng, 4, **sizes, dtype=np.float64)
    params = trees.map(lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape), params)  # no gain is 1, no bias 0: each of them is tested
    mask = np.array([[[1, 1], [1, 1], [1, 1]], [[1, 0], [1, 1], [0, 0]]], bool)
    return example(params, rng.normal(size=(2, 3, 2, 4)), num_heads=2, mask=mask)
