"""Routing attention by gathering: the members of a cluster are copied side by side, and only they meet.

All clusters of all heads and texts are one batch of small dense attentions: time O(clusters (size^2 + positions) d_head), and
memory O(clusters size^2). With about sqrt(n) clusters of sqrt(n) members both are n^1.5, against clusters n^2 for the plain form.
The equations are those of routing, and so are the numbers on the lines. What differs:

    near_q = q at the positions Q_c, near_k and near_v = k and v at K_c, for every cluster; (4) is attention of these
    out_i, dk_j and dv_j add up over the places where i or j was copied to

A gather's adjoint is a scatter-add. A mask or a bias that is given for all pairs is picked for the near ones.
Source: Roy, Saffar, Vaswani and Grangier 2020, arXiv:2003.05997, section 4, algorithm 1.
"""

import math
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.core import softmax_attention
from minitransformers.attention.heads import sum_to
from minitransformers.foundation import Backward, at_least, bad, concept
from minitransformers.sparse_attention.routing import RoutingMembers, chosen_members, example_call
from minitransformers.sparse_attention.scatter import scatter_add_rows


@concept(
    title="Routing attention, by gathering",
    source="Roy, Saffar, Vaswani and Grangier 2020, arXiv:2003.05997, section 4",
    example=lambda rng: example_call(rng),
    rejects=[bad("query", query=np.ones((2, 2, 8, 3)), bias=None), bad("centroids", members=None), bad("params", params=np.ones(2))],
    form_of="routing",
)
def routing_gathered(
    params: None,
    query: Float[Array, "*#batch queries d_head"],
    key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"],
    bias: Float[Array, "*#batch #queries #keys"] | None = None,
    *,
    centroids: Float[Array, "*#batch clusters d_head"] | None = None,
    size: Annotated[int, at_least(1)] | None = None,
    members: RoutingMembers | None = None,
    causal: bool = True,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
) -> tuple[Array, Backward]:
    """What routing gives, without the pairs that share no cluster; arguments, results and errors are its own."""
    members = chosen_members(params, query, key, centroids, size, members)
    queries, keys = query.shape[-2], key.shape[-2]
    i, j = members.queries[..., :, None], members.keys[..., None, :]
    seen = (j <= i + (keys - queries)) | (not causal)        # (..., clusters, queried, read)  (3)
    seen = seen if mask is None else seen & _pick_pairs(mask, i, j)
    near_query, near_key, near_value = _pick(query, members.queries), _pick(key, members.keys), _pick(value, members.keys)
    near_bias = None if bias is None else _pick_pairs(bias, i, j)
    read, read_backward = softmax_attention(None, near_query, near_key, near_value, near_bias, mask=seen)  # (4)
    sees = np.broadcast_to(seen.any(-1)[..., None], (*read.shape[:-1], 1)).astype(query.dtype)
    times = np.maximum(_put_back(sees, members.queries, queries), 1)  # (..., queries, 1)  (5)
    out = _put_back(read, members.queries, queries) / times  # (6)

    def backward(dout):
        dread = _pick(dout / times, members.queries)         # (7)
        _, dnear_query, dnear_key, dnear_value, dnear_bias = read_backward(dread)
        dquery = sum_to(_put_back(dnear_query, members.queries, queries), query.shape)
        dkey = sum_to(_put_back(dnear_key, members.keys, keys), key.shape)
        dvalue = sum_to(_put_back(dnear_value, members.keys, keys), value.shape)
        dbias = None if bias is None else _put_back_pairs(dnear_bias, i, j, bias.shape)
        return None, dquery, dkey, dvalue, dbias             # (8)

    return out, backward


def _pick(x: Array, places: Array) -> Array:
    """x at the places of each cluster: (..., n, d) and (..., clusters, size) to (..., clusters, size, d)."""
    *batch, n, d = x.shape
    text = np.arange(math.prod(batch)).reshape(*batch, 1, 1)
    return x.reshape(-1, d).take(n * text + places, axis=0)


def _put_back(near: Array, places: Array, n: int) -> Array:
    """The adjoint: (..., n, d), the sum of what stands at each place in all clusters."""
    flat = near.reshape(*near.shape[:-3], -1, near.shape[-1])
    return scatter_add_rows(places.reshape(*places.shape[:-2], -1), flat, n)


def _cells(shape: tuple[int, ...], i: Array, j: Array) -> Array:
    """Where the pairs of queries i and keys j stand in a mask or bias of that shape, row by row, as (..., clusters, pairs)."""
    cells = i * (shape[-2] > 1) * shape[-1] + j * (shape[-1] > 1)
    return cells.reshape(*cells.shape[:-2], -1)


def _pick_pairs(scores: Array, i: Array, j: Array) -> Array:
    """A mask or bias of all pairs for the near ones: (..., clusters, queried, read)."""
    picked = _pick(scores.reshape(*scores.shape[:-2], -1, 1), _cells(scores.shape, i, j))
    return picked.reshape(*picked.shape[:-2], i.shape[-2], j.shape[-1])


def _put_back_pairs(near: Array, i: Array, j: Array, shape: tuple[int, ...]) -> Array:
    """The adjoint, of that shape."""
    flat = near.reshape(*near.shape[:-2], -1, 1)
    whole = _put_back(flat, _cells(shape, i, j), shape[-2] * shape[-1])
    return sum_to(whole.reshape(*whole.shape[:-2], *shape[-2:]), shape)
