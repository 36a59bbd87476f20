"""Head pruning: which heads matter least, and attention without them, in smaller arrays.

A head that is set to zero still costs all that it did. Its columns of the projections to queries, keys and values and its rows of
the output serve nobody else; without them the same function is computed in arrays that are dense and smaller. Which heads to take
out is told by the slope of the loss by their gates (``gated_heads``): to first order the loss changes by -slope when a gate goes
from 1 to 0. Slopes of opposite signs cancel in a mean, so the absolute value comes first.

Source: Michel, Levy and Neubig 2019, arXiv:1905.10650, eq. 2 and section 4; the first-order estimate and the norm of a layer:
Molchanov et al. 2017, arXiv:1611.06440, section 2. Differs from common code: where all scores of a layer are 0 they stay 0 (there
1e-20 is added to the norm). n counts examples, or mini-batches; l is a layer, h a head, K the heads kept, C_h the columns of a
head, R_h its rows.

    score_lh = mean_n |dgate_nlh|                            (1)
    score_lh = score_lh / sqrt(sum_h score_lh^2), per layer  (2)
    W_q = W_q[:, C_h], b_q = b_q[C_h], for h in K            (3)
    W_k, W_v, b_k, b_v likewise, of the heads of keys that a head in K reads   (4)
    W_o = W_o[R_h, :], for h in K; b_o stays                 (5)
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.attention.cross_attention import CrossAttention
from minitransformers.attention.grouped_query_attention import GroupedQueryAttention, init_grouped_query_attention
from minitransformers.attention.multi_head_attention import MultiHeadAttention
from minitransformers.basics.linear import Linear
from minitransformers.compression.kept import cut_axes, kept_places
from minitransformers.foundation import Backward, at_least, bad, example, finite, invalid, procedure


@procedure(
    title="Head importance",
    source="Michel, Levy and Neubig 2019, arXiv:1905.10650, eq. 2",
    example=lambda rng: example(rng.normal(size=(5, 2, 3)), per_layer=True),
)
def head_importance(
    dgates: Annotated[Float[Array, "examples ... heads"], finite], *, per_layer: bool = False
) -> Float[Array, "... heads"]:
    """How much each head matters to the loss, of slopes by its gate: a row for each example, or for each mini-batch.

    A row of a mini-batch holds the slope of its whole loss, in which slopes of its examples have cancelled already: that is
    another score, cheaper and blunter. per_layer divides the scores of a layer, the last axis, by their Euclidean norm, as
    published; then heads can no longer be compared between layers.
    """
    scores = np.abs(dgates).mean(axis=0)                     # (..., heads)  (1)
    if per_layer:
        norms = np.linalg.norm(scores, axis=-1, keepdims=True)
        scores = scores / np.where(norms > 0, norms, 1)      # (2)
    return scores


@procedure(
    title="Attention without some heads",
    source="Michel, Levy and Neubig 2019, arXiv:1905.10650, section 4",
    example=lambda rng: example(
        init_grouped_query_attention(rng, 8, num_heads=4, num_kv_heads=2, bias=True, dtype=np.float64), kept=[0, 1], num_heads=4
    ),
    rejects=[
        bad(kept=[]), bad(kept=[0, 4]), bad(kept=[-1, 1]), bad(kept=[1, 1]), bad(kept=[0, 1, 2]), bad(num_heads=3),
        bad("num_heads", num_heads=1, kept=[0]),
    ],
)  # fmt: skip
def without_heads(
    params: MultiHeadAttention | GroupedQueryAttention | CrossAttention, *, kept: Sequence[int], num_heads: Annotated[int, at_least(1)]
) -> Any:
    """Parameters of the same attention with the heads kept alone, in the order in which they stood: ``num_heads=len(kept)`` then.

    kept are the numbers of query heads, from 0, in any order. A head of keys and values goes when no query head is left that
    reads it; those that stay must have equally many. What core and prepare learned for each head is cut as well. The width of
    a head stays, and so does the scale of its scores.
    Raises ValueError where no head is kept, one is named twice or does not exist, groups of queries would be left unequal, or
    the projections are not those of so many heads.
    """
    num_kv_heads = _kv_heads(params, num_heads)
    places = kept_places(kept, num_heads, units="heads")
    readers = Counter(place * num_kv_heads // num_heads for place in places)  # of each head of keys that stays
    if len(set(readers.values())) > 1:
        wants = f"equally many of each group of {num_heads // num_kv_heads} that read one head of keys, or none of it"
        raise invalid("kept", got=places, wants=wants)
    groups = list(readers)
    query = _columns(params.query, num_heads, places)        # (3)
    key, value = _columns(params.key, num_kv_heads, groups), _columns(params.value, num_kv_heads, groups)  # (4)
    weight, bias = params.output
    output = Linear(weight.reshape(num_heads, -1, weight.shape[1])[places].reshape(-1, weight.shape[1]), bias)  # (5)
    slots = (cut_axes(cut_axes(own, "heads", places), "kv_heads", groups) for own in (params.prepare, params.core))
    return type(params)(query, key, value, output, *slots)


def _kv_heads(params: Any, num_heads: int) -> int:
    """How many heads of keys and values there are, each of them read by equally many of the queries'."""
    widths = [part.weight.shape[1] for part in params[:3]] + [len(params.output.weight)]
    query, key, value, output = widths
    if query % num_heads == 0:
        num_kv_heads, rest = divmod(key, query // num_heads)
        if num_kv_heads and not (rest or num_heads % num_kv_heads or value % num_kv_heads) and output == value // num_kv_heads * num_heads:
            return num_kv_heads
    wants = f"heads that share queries, keys, values and the output's rows, {', '.join(map(str, widths))} wide"
    raise invalid("num_heads", got=num_heads, wants=wants)


def _columns(part: Linear, heads: int, places: list[int]) -> Linear:
    """The columns of some heads of a projection, and their biases."""

    def those(a: Array) -> Array:
        return a.reshape(*a.shape[:-1], heads, -1)[..., places, :].reshape(*a.shape[:-1], -1)

    return Linear(those(part.weight), None if part.bias is None else those(part.bias))


def heads_by_width(
    params: Any, x: Array, *, attention: Callable, d_head: int, num_heads: int | None = None, **settings: Any
) -> tuple[Array, Backward]:
    """Attention of as many heads as params hold: for the slot of a model whose layers have kept different numbers of them.

    ``gpt2(params, ids=ids, attention=partial(heads_by_width, attention=multi_head_attention, d_head=64))``. The model's own
    num_heads is not read.
    """
    return attention(params, x, num_heads=params.query.weight.shape[1] // d_head, **settings)
