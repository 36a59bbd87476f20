"""Routing attention: clusters of alike vectors, found while training, and attention inside each of them.

Centroids stand on the sphere. Each takes the queries and the keys that point most nearly its way, as many as every other one,
and these attend to each other. With about sqrt(n) clusters of sqrt(n) members the cost is n^1.5. A query may be taken by several
clusters and reads their mean, or by none and reads zero: another head must serve it. This is the plain form, under a mask for
each cluster; routing_gathered computes the chosen pairs alone.

Source: Roy, Saffar, Vaswani and Grangier 2020 (Routing Transformer), arXiv:2003.05997, section 4. Differs from the paper: only
the choice looks at directions, attention reads queries and keys as they come (QK-norm in ``prepare`` is the paper's);
a cluster in which a query sees no key does not count in its mean. See update_centroids for what differs there. c is a cluster.

    near_ci = mu_c . q_i / |q_i|, and the same of keys       (1)
    Q_c = the size queries of largest near_c, K_c the size keys   (2)
    seen^c_ij = i in Q_c and j in K_c, and j is not later than i if causal   (3)
    read^c = softmax attention of q, k, v over the pairs seen^c, 0 where there are none   (4)
    times_i = the number of clusters in which i sees a key   (5)
    out_i = sum over c of read^c_i / times_i, 0 where times_i is 0   (6)
    dread^c_i = dout_i / times_i                             (7)
    dq, dk, dv, dbias = sums over c of the backward of (4) at dread^c   (8)

    mean_c = the sum of unit vectors that are nearest to mu_c, at length one   (9)
    mu_c = decay mu_c + (1 - decay) mean_c, at length one    (10)

(1), (2) and the centroids have no gradient: a choice is held fixed, and centroids follow by (10), step by step of training.
Under ``causal`` no value comes from the future, but the choice does: a later token may take an earlier one's place in a
cluster. So a text that grows is chosen anew at every length, and there is no decoding step that equals the whole.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.attention.core import softmax_attention
from minitransformers.foundation import Backward, at_least, bad, between, concept, example, invalid, procedure
from minitransformers.sparse_attention.lsh_attention import unit_vectors


class RoutingMembers(NamedTuple):
    """Which queries and which keys are in each cluster, by position, in order."""

    queries: Int[Array, "*#batch clusters queried"]
    keys: Int[Array, "*#batch clusters read"]


@procedure(
    title="Members of clusters",
    source="Roy et al. 2020, arXiv:2003.05997, section 4, algorithm 1",
    example=lambda rng: example(*rng.normal(size=(2, 2, 7, 3)), centroids=random_centroids(rng, 4, 3), size=2),
    rejects=[bad(centroids=np.ones((4, 3)))],
)
def routing_members(
    query: Float[Array, "*#batch queries d_head"], key: Float[Array, "*#batch keys d_head"], *,
    centroids: Float[Array, "*#batch clusters d_head"], size: Annotated[int, at_least(1)] | None = None,
) -> RoutingMembers:  # fmt: skip
    """The ``size`` queries and keys that are nearest to each centroid, or all where there are fewer.

    size is the number of keys over that of clusters, rounded up, where None. Among equally near ones the choice is arbitrary.
    Raises ValueError where centroids are not of length one.
    """
    check_centroids(centroids)
    size = -(-key.shape[-2] // centroids.shape[-2]) if size is None else size

    def nearest(x):
        near = centroids @ unit_vectors(x)[0].swapaxes(-1, -2)  # (..., clusters, positions)  (1)
        taken = min(size, x.shape[-2])
        return np.sort(np.argpartition(-near, taken - 1, axis=-1)[..., :taken], axis=-1)  # (2)

    return RoutingMembers(nearest(query), nearest(key))


@procedure(
    title="Centroids that follow by moving averages",
    source="Roy et al. 2020, arXiv:2003.05997, section 4.1",
    example=lambda rng: example(random_centroids(rng, 4, 3), rng.normal(size=(9, 3)), decay=0.7),
    rejects=[bad(centroids=np.ones((4, 3)))],
)
def update_centroids(
    centroids: Float[Array, "*heads clusters d_head"], x: Float[Array, "*heads positions d_head"], *,
    decay: Annotated[float, between(0, 1)] = 0.999,
) -> Float[Array, "*heads clusters d_head"]:  # fmt: skip
    """New centroids, nearer to the vectors that are nearest to each: one step of k-means on the sphere, taken in part.

    x are queries and keys, all texts of a batch one after the other. A centroid that is nearest to none stays where it is; decay 0
    is a whole step of k-means. Differs from the paper, which adds sums: means are brought to length one, and so is the result.
    Raises ValueError where centroids are not of length one.
    """
    check_centroids(centroids)
    unit = unit_vectors(x)[0]
    nearest = np.argmax(unit @ centroids.swapaxes(-1, -2), axis=-1)
    onehot = (nearest[..., None, :] == np.arange(centroids.shape[-2])[:, None]).astype(x.dtype)  # (..., clusters, positions)
    total = onehot @ unit
    mean = np.where(np.vecdot(total, total)[..., None] > 0, unit_vectors(total)[0], centroids)  # (9)
    return unit_vectors(decay * centroids + (1 - decay) * mean)[0]  # (10)


def random_centroids(rng: np.random.Generator, *shape: int, dtype: type = np.float64) -> Array:
    """Centroids to start from, uniform on the sphere: shape is (heads, clusters, d_head), or what of it there is."""
    return unit_vectors(rng.normal(size=shape))[0].astype(dtype)


def check_centroids(centroids: Array) -> None:
    """Raise ValueError unless all centroids are of length one: a longer one would look nearer."""
    length = np.sqrt(np.vecdot(centroids, centroids))
    if not np.all(np.abs(length - 1) < 1e-3):
        raise invalid("centroids", got=f"lengths from {length.min():.4g} to {length.max():.4g}", wants="length one")


@concept(
    title="Routing attention",
    source="Roy, Saffar, Vaswani and Grangier 2020, arXiv:2003.05997, section 4",
    example=lambda rng: example_call(rng),
    rejects=[
        bad("query", query=np.ones((2, 2, 8, 3)), bias=None), bad("centroids", members=None), bad("params", params=np.ones(2)),
        bad("members", members=RoutingMembers(np.full((2, 2, 3, 2), 5), np.zeros((2, 1, 3, 2), int))),
        bad("members", members=RoutingMembers(np.zeros((2, 2, 3, 2), int), np.full((2, 1, 3, 2), -1))),
        bad("members", members=RoutingMembers(np.zeros((2, 2, 3, 2), int), np.zeros((2, 1, 4, 2), int))),
    ],
)  # fmt: skip
def routing(
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
    """Mix the values inside clusters. Called as a core is, but without a step: what a cluster takes depends on the whole text.

    centroids, of length one, and size are those of routing_members, which chooses; members is a choice that was made before, in the
    place of both. Queries are the last of the positions that the keys span. bias and mask as in scaled_dot_product_attention.
    Returns out (*batch, queries, d_value), and backward: dout -> None, dquery, dkey, dvalue, dbias (None without a bias).
    Raises ValueError when axes do not fit, there are more queries than keys, or not just one of centroids and members is given.
    """
    members = chosen_members(params, query, key, centroids, size, members)
    queries, keys = query.shape[-2], key.shape[-2]
    takes_query, takes_key = (_is_member(m, n) for m, n in zip(members, (queries, keys), strict=True))  # (..., clusters, positions)
    seen = takes_query[..., :, None] & takes_key[..., None, :]
    if causal:
        seen = seen & (np.arange(keys) <= np.arange(keys - queries, keys)[:, None])
    seen = seen if mask is None else seen & np.expand_dims(mask, -3)  # (..., clusters, queries, keys)  (3)
    arrays = (a if a is None else np.expand_dims(a, -3) for a in (query, key, value, bias))  # an axis of clusters
    read, read_backward = softmax_attention(None, *arrays, mask=seen)  # (4)
    times = np.maximum(seen.any(-1).sum(-2), 1)[..., None].astype(query.dtype)  # (..., queries, 1)  (5)
    out = read.sum(-3) / times                               # (6)

    def backward(dout):
        dread = np.broadcast_to((dout / times)[..., None, :, :], read.shape)  # (7)
        return None, *(d if d is None else d[..., 0, :, :] for d in read_backward(dread)[1:])  # (8)

    return out, backward


def chosen_members(params: None, query: Array, key: Array, centroids: Array | None, size: int | None, members: RoutingMembers | None) -> RoutingMembers:
    """The members that are given, or those that centroids take. Raises ValueError for what does not fit together."""
    if params is not None:                                   # inside an attention no annotation is checked
        raise invalid("params", got=type(params).__name__, wants="None: centroids are no parameters")
    queries, keys = query.shape[-2], key.shape[-2]
    if queries > keys:
        raise invalid("query", got=f"{queries} queries", wants=f"at most as many as keys, {keys}: they are the last of their positions")
    if members is None:
        if centroids is None:
            raise invalid("centroids", got="neither centroids nor members", wants="one of them")
        return routing_members(query, key, centroids=centroids, size=size)
    if centroids is not None or size is not None:
        raise invalid("members", got="centroids or a size besides", wants="members alone: they are chosen already")
    if members.queries.shape[-2] != members.keys.shape[-2]:
        raise invalid("members", got=f"{members.queries.shape[-2]} and {members.keys.shape[-2]} clusters", wants="as many for queries as for keys")
    for own, n in zip(members, (queries, keys), strict=True):
        if own.min() < 0 or own.max() >= n:
            raise invalid("members", got=f"positions {own.min()} to {own.max()}", wants=f"0 to {n - 1}")
        if np.any(np.diff(own, axis=-1) <= 0):
            raise invalid("members", got="positions twice in a cluster or out of order", wants="each at most once, in order")
    return members


def _is_member(members: Array, positions: int) -> Array:
    """(..., clusters, positions), True where a cluster has taken a position."""
    taken = np.zeros((*members.shape[:-1], positions), bool)
    np.put_along_axis(taken, members, True, axis=-1)
    return taken


def example_call(rng: np.random.Generator):
    """The small call of both forms: three clusters, one query in none of them, one that sees no key in one of two; a key is in two."""
    members = RoutingMembers(
        np.array([[[[0, 1], [1, 2], [2, 3]], [[0, 3], [0, 1], [1, 3]]]]), np.array([[[[1, 2], [3, 5], [0, 2]]]])
    )
    shapes = (2, 2, 5, 3), (2, 1, 6, 3), (2, 1, 6, 4), (1, 2, 5, 6)
    return example(None, *(rng.normal(size=shape) for shape in shapes), members=members, mask=rng.random((2, 1, 1, 6)) < 0.8)
