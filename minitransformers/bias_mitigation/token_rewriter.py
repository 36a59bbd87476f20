"""A rewriter for each token: read a token and its left neighbour, and say what is to stand in the token's place.

Not a sequence to sequence model: as many tokens go out as came in, each decided from two. That is enough to tell a name from a noun
where a title stands in front, and not for anything that changes a text's length. A bias for the token itself makes "leave it" the
choice unless something speaks for another. Two rows of a table and two matrices a token.

Source: a window of words over one hidden layer is Bengio, Ducharme, Vincent and Jauvin 2003, JMLR 3:1137; the task, text with neutral
words in the place of subjectively biased ones, is Pryzant et al. 2019, arXiv:1911.09709, where the models are much larger. E is the
table, x_t the tokens, x_0 the start, kappa the copy bias.

    pair_t = [E[x_t], E[x_t-1]]                              (1)
    hidden = pair W_1 + b_1                                  (2)
    logits = relu(hidden) W_2 + b_2 + kappa [v = x_t]        (3)
    dhidden = [hidden > 0] (dlogits W_2^T), dW_2 = relu(hidden)^T dlogits, db_2 = sum of dlogits   (4)
    dpair = dhidden W_1^T, dW_1 = pair^T dhidden, db_1 = sum of dhidden   (5)
    dE = first half of dpair scattered to the rows x_t, plus the second to the rows x_t-1   (6)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Int
from numpy import ndarray as Array

from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.relu import relu
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, finite, invalid


class TokenRewriter(NamedTuple):
    """A table that both tokens are looked up in, a hidden layer, and a head."""

    embedding: Annotated[Embedding, "vocabulary d_model"]
    hidden: Annotated[Linear, "d_pair d_hidden"]
    head: Annotated[Linear, "d_hidden vocabulary"]


@checked
def init_token_rewriter(
    rng: np.random.Generator, *, vocabulary: Annotated[int, at_least(2)], d_model: Annotated[int, at_least(1)],
    d_hidden: Annotated[int, at_least(1)], std: Annotated[float, at_least(0)] | None = None, dtype: type = np.float32,
) -> TokenRewriter:  # fmt: skip
    """Normal weights: rows of the table of deviation 1, those of the maps of 1/sqrt of the width that they read; ``std`` for all."""
    return TokenRewriter(
        init_embedding(rng, vocabulary, d_model, std=1.0 if std is None else std, dtype=dtype),
        init_linear(rng, 2 * d_model, d_hidden, std=std, dtype=dtype),
        init_linear(rng, d_hidden, vocabulary, std=std, dtype=dtype),
    )


def _example(rng: np.random.Generator, pair: int = 6):
    shapes = (pair, 5), (5, 7)
    params = TokenRewriter(Embedding(rng.normal(size=(7, 3))), *(Linear(rng.normal(size=s), rng.normal(size=s[1])) for s in shapes))
    return example(params, ids=np.array([[4, 0, 4, 2], [6, 2, 2, 1]]), start=3, copy_bias=1.5)


@concept(
    title="Rewriter for each token",
    source="Bengio, Ducharme, Vincent and Jauvin 2003, JMLR 3:1137; the task of Pryzant et al. 2019, arXiv:1911.09709",
    example=lambda rng: _example(rng),
    rejects=[bad(ids=np.array([[0, 7, 1]])), bad(ids=np.array([[0, -1, 1]])), bad(start=7), bad("params.hidden", params=_example(np.random.default_rng(0), pair=5).args[0])],
)  # fmt: skip
def token_rewriter(
    params: TokenRewriter, *, ids: Int[Array, "*batch positions"], start: Annotated[int, at_least(0)] = 0, copy_bias: Annotated[float, finite] = 2.0
) -> tuple[Array, Backward]:
    """Logits for what stands in each token's place, from the token and the one before it; start stands before the first.

    copy_bias is added to the logit of the token itself; it is not learned.
    Returns logits (*batch, positions, vocabulary), and backward: dlogits -> TokenRewriter of gradients.
    Raises ValueError where an id or start is not in the table, or the hidden layer does not read two rows of it.
    """
    vocabulary, d_model = params.embedding.weight.shape
    if start >= vocabulary:
        raise invalid("start", got=start, wants=f"an id from 0 to {vocabulary - 1}")
    if len(params.hidden.weight) != 2 * d_model:
        raise invalid("params.hidden", got=f"a map of {len(params.hidden.weight)} features", wants=f"{2 * d_model}: two rows of the table")
    before = np.concatenate([np.full_like(ids[..., :1], start), ids[..., :-1]], axis=-1)
    rows, rows_backward = embedding(params.embedding, ids=np.stack([ids, before], axis=-1))  # (..., positions, 2, d_model)
    pair = rows.reshape(*ids.shape, -1)                      # (1)
    hidden, hidden_backward = linear(params.hidden, pair)    # (2)
    active, active_backward = relu(hidden)
    logits, head_backward = linear(params.head, active)
    own = np.arange(vocabulary) == ids[..., None]
    logits = logits + logits.dtype.type(copy_bias) * own     # (3)

    def backward(dlogits):
        dhead, dactive = head_backward(dlogits)
        dhidden_out = active_backward(dactive)               # (4)
        dhidden, dpair = hidden_backward(dhidden_out)        # (5)
        dembedding = rows_backward(dpair.reshape(rows.shape))  # every token is read twice: as itself, and as a neighbour  (6)
        return TokenRewriter(dembedding, dhidden, dhead)

    return logits, backward
