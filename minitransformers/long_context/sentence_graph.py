"""Graph attention over sentences: each reads the few that it is related to, by edges of several kinds.

Neighbours, sentences of one section, sentences that share words: such relations are few, and each is of a kind. Dense attention
scores all pairs and has to find them; here scores exist on the edges alone. Time O(nodes d_in d_heads + edges d_heads), memory
O(nodes d_heads + edges heads). A matrix of weights with a place for every pair is never made.

Source: Velickovic et al. 2018, arXiv:1710.10903, eqs. 1 to 5; over sentences, Xu et al. 2020, arXiv:1910.14142 (DiscoBERT).
Differs from the first: each kind of edge has a learned number a head, added to the score inside the LeakyReLU, and without kinds
it is the paper's; no activation and no dropout at the end; a node without an edge to it gets zero. An edge e leads from source
j = s(e) to target i = t(e). Every equation is said of each head; sums into i are over the edges with t(e) = i, sums out of j over
those with s(e) = j.

    z = x W + b                                              (1)
    bent_e = target . z_i + source . z_j + kind of e         (2)
    scores_e = bent_e where it is positive, else slope bent_e  (3)
    exps_e = exp(scores_e - the largest score into i)        (4)
    weights_e = exps_e / the sum of exps into i              (5)
    out_i = sum into i of weights_e z_j                      (6)
    dz_j = sum out of j of weights_e dout_i                  (7)
    dweights_e = dout_i . z_j                                (8)
    dscores_e = weights_e (dweights_e - dout_i . out_i)      (9)
    dbent_e = dscores_e where bent_e is positive, else slope dscores_e  (10)
    dkind_c = sum over the edges of kind c of dbent_e        (11)
    into_i = sum into i of dbent_e, out_of_j = sum out of j of dbent_e  (12)
    dtarget = sum over i of into_i z_i, dsource = sum over j of out_of_j z_j  (13)
    dz_j = dz_j + into_j target + out_of_j source            (14)
    dW = x^T dz, db = sum of dz, dx = dz W^T                 (15)

Edges come sorted by their targets, so the edges into a node lie side by side, and (4) and (5) are reductions over pieces.
With the weights as a sparse matrix of targets and sources, (6) and (7) are products with it and its transpose.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.attention.heads import check_heads
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, from_to_below, invalid
from minitransformers.sparse_attention.scatter import scatter_add_rows

_FEW = 512  # edges


class SentenceGraph(NamedTuple):
    """The map to all heads side by side; in each head what scores a target and a source; a number for each kind of edge, or None."""

    value: Annotated[Linear, "d_in d_heads"]
    target: Float[Array, "heads d_head"]
    source: Float[Array, "heads d_head"]
    kind: Float[Array, "kinds heads"] | None = None


@checked
def init_sentence_graph(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, num_heads: Annotated[int, at_least(1)],
    kinds: Annotated[int, at_least(0)] = 0, std: Annotated[float, at_least(0)] | None = None, dtype: type = np.float32,
) -> SentenceGraph:  # fmt: skip
    """Normal weights of deviation ``std`` (default 1/sqrt(fan-in)) and no bias; numbers of 0 for so many kinds, None for 0 of them."""
    check_heads("num_heads", num_heads, d_model)
    d_head = d_model // num_heads
    value = init_linear(rng, d_model, d_model, std=std, bias=False, dtype=dtype)
    target, source = ((d_head**-0.5 if std is None else std) * rng.standard_normal((2, num_heads, d_head))).astype(dtype)
    return SentenceGraph(value, target, source, np.zeros((kinds, num_heads), dtype) if kinds else None)


@concept(
    title="Graph attention over sentences",
    source="Velickovic et al. 2018, arXiv:1710.10903, eqs. 1 to 5",
    example=lambda rng: _example(rng),
    rejects=[
        bad(sources=np.array([0, 1, 2, 0, 5, 4, 3, 1])), bad(targets=np.array([0, 0, 1, 2, 4, 4, 3, 4])),
        bad(targets=np.array([0, 0, 1, 2, 4, 4, 4, 5])), bad(kinds=np.array([0, 1, 2, 0, 1, 3, 0, 1])), bad(kinds=None),
        bad("params.target", params=SentenceGraph(Linear(np.ones((4, 7)), None), np.ones((2, 3)), np.ones((2, 3)), np.ones((3, 2)))),
    ],
)  # fmt: skip
def sentence_graph(
    params: SentenceGraph, x: Float[Array, "nodes d_in"], *, sources: Annotated[Int[Array, "edges"], at_least(0)],
    targets: Annotated[Int[Array, "edges"], at_least(0)], kinds: Annotated[Int[Array, "edges"], at_least(0)] | None = None,
    slope: Annotated[float, from_to_below(0, 1)] = 0.2,
) -> tuple[Array, Backward]:  # fmt: skip
    """What each node gathers along the edges that lead to it, in as many ways as there are heads.

    Edge e leads from node sources[e] to node targets[e], and is of kind kinds[e]; targets never go backwards. A pair of nodes may
    have several edges. Several documents are one graph: count their nodes on. A node without an edge to it gets 0, and sends
    its readers their gradients all the same. slope, dimensionless, is the LeakyReLU's below zero.
    Returns out (nodes, d_heads), and backward: dout -> SentenceGraph, dx.
    Raises ValueError where an edge leads from or to no node, targets go backwards, a kind is no row of params.kind, one of the two
    is without the other, or heads and their features do not make d_heads.
    """
    value, target, source, kind = params
    nodes, (heads, d_head) = len(x), target.shape
    if value.weight.shape[1] != heads * d_head:
        raise invalid("params.target", got=f"shape {target.shape}", wants=f"heads that make the {value.weight.shape[1]} features of params.value")
    _check_edges(nodes, sources, targets, kinds, kind)
    counts = np.bincount(targets, minlength=nodes)
    ends = np.cumsum(counts)
    counts_of_some, starts = counts[counts > 0], (ends - counts)[counts > 0]

    def spread(numbers: Array) -> Array:                     # from the nodes that have edges to these, in order
        return np.repeat(numbers, counts_of_some, axis=0)

    z, value_backward = linear(value, x)                     # (1)
    z = z.reshape(nodes, heads, d_head)
    bent = np.repeat(np.vecdot(z, target), counts, axis=0) + np.vecdot(z, source)[sources]  # (edges, heads)
    if kind is not None and kinds is not None:
        bent += kind[kinds]                                  # (2)
    scores = np.maximum(bent, slope * bent)                  # (3)
    weights = np.exp(scores - spread(np.maximum.reduceat(scores, starts)))  # (4)
    weights /= spread(np.add.reduceat(weights, starts))      # (5)
    matrix = _matrix(weights, sources, ends)                 # (heads nodes, heads nodes): a block of targets and sources for each head
    out = _by_node(matrix @ _by_head(z), heads)              # (nodes, heads, d_head)  (6)

    def backward(dout):
        dout = dout.reshape(out.shape)
        dz = _by_node(matrix.T @ _by_head(dout), heads)      # (7)
        dweights = _dots(dout, z, targets, sources)          # (8)
        shared = np.repeat(np.vecdot(dout, out), counts, axis=0)  # out is the mean of what was read
        dscores = weights * (dweights - shared)              # (9)
        dbent = np.where(bent > 0, dscores, slope * dscores)  # (10)
        dkind = None if kind is None or kinds is None else scatter_add_rows(kinds, dbent, len(kind))  # (11)
        dmatrix, ones = _matrix(dbent, sources, ends), np.ones(heads * nodes, x.dtype)
        into, out_of = (sums.reshape(heads, nodes).T for sums in (dmatrix @ ones, dmatrix.T @ ones))  # (nodes, heads)  (12)
        dtarget, dsource = (np.einsum("nh,nhd->hd", sums, z) for sums in (into, out_of))  # (13)
        dz = dz + into[..., None] * target + out_of[..., None] * source  # z is a value, a target and a source: three terms  (14)
        dvalue, dx = value_backward(dz.reshape(nodes, -1))   # (15)
        return SentenceGraph(dvalue, dtarget, dsource, dkind), dx

    return out.reshape(nodes, -1), backward


def _matrix(numbers: Float[Array, "edges heads"], sources: Array, ends: Array):
    """A number for each edge and head as a sparse matrix, heads one after the other: row target, column source of the same head."""
    from scipy.sparse import csr_array  # takes a tenth of a second to import

    (edges, heads), nodes = numbers.shape, len(ends)
    columns = (sources + nodes * np.arange(heads)[:, None]).reshape(-1)
    rows_end = (ends + edges * np.arange(heads)[:, None]).reshape(-1)
    return csr_array((numbers.T.reshape(-1), columns, np.concatenate([[0], rows_end])), shape=(heads * nodes, heads * nodes))


def _dots(a: Float[Array, "nodes heads d_head"], b: Float[Array, "nodes heads d_head"], at: Array, of: Array) -> Float[Array, "edges heads"]:
    """a at one end of each edge times b at the other: a few edges at a time, so that what is gathered stays in the cache."""
    ends = range(_FEW, len(at), _FEW)
    pieces = zip(np.split(at, ends), np.split(of, ends), strict=True)
    return np.concatenate([np.einsum("ehd,ehd->eh", a[i], b[j]) for i, j in pieces])


def _by_head(z: Float[Array, "nodes heads d_head"]) -> Float[Array, "heads_nodes d_head"]:
    return z.swapaxes(0, 1).reshape(-1, z.shape[-1])


def _by_node(z: Float[Array, "heads_nodes d_head"], heads: int) -> Float[Array, "nodes heads d_head"]:
    return np.ascontiguousarray(z.reshape(heads, -1, z.shape[-1]).swapaxes(0, 1))


def _check_edges(nodes: int, sources: Array, targets: Array, kinds: Array | None, kind: Array | None) -> None:
    """Raise ValueError for an edge from or to no node, targets that are not sorted, and kinds that have no number."""
    for name, ends in (("sources", sources), ("targets", targets)):
        if ends.max() >= nodes:
            raise invalid(name, got=f"{ends.min()} to {ends.max()}", wants=f"0 to {nodes - 1}: there are {nodes} nodes")
    if (targets[1:] < targets[:-1]).any():
        raise invalid("targets", got="nodes that go backwards", wants="edges sorted by their targets")
    if (kinds is None) != (kind is None):
        raise invalid("kinds", got="None" if kinds is None else "kinds of edges", wants="a kind for each edge where params.kind is given, else None")
    if kinds is not None and kind is not None and kinds.max() >= len(kind):
        raise invalid("kinds", got=f"{kinds.min()} to {kinds.max()}", wants=f"0 to {len(kind) - 1}, the rows of params.kind")


def _example(rng: np.random.Generator):
    """Node 3 has no edge to it; from 0 to 0 there are two, of different kinds."""
    shapes = (4, 6), (6,), (2, 3), (2, 3), (3, 2)
    weight, bias, *rest = (rng.normal(size=shape) for shape in shapes)
    edges = {"sources": np.array([0, 0, 2, 0, 1, 4, 3, 1]), "targets": np.array([0, 0, 1, 2, 2, 4, 4, 4]), "kinds": np.array([0, 1, 2, 0, 1, 2, 0, 1])}
    return example(SentenceGraph(Linear(weight, bias), *rest), rng.normal(size=(5, 4)), **edges, slope=0.3)
