"""Graph attention over sentences: scores on typed edges alone, and no matrix of pairs."""

import tracemalloc

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.basics.linear import Linear
from minitransformers.long_context.sentence_graph import SentenceGraph, init_sentence_graph, sentence_graph

# Node 3 has no edge to it, and from 1 to 2 there are two edges, of different kinds.
EDGES = {
    "sources": np.array([0, 2, 1, 1, 4, 3, 0, 4]), "targets": np.array([0, 1, 2, 2, 2, 4, 4, 4]), "kinds": np.array([0, 2, 1, 0, 2, 1, 2, 0]),
}  # fmt: skip
CHAIN = [(j, i) for i in range(7) for j in (i - 1, i, i + 1) if 0 <= j < 7]


def edges_of(pairs, kind=None):
    """The keywords of a graph from pairs (source, target), and what kind(source, target) is."""
    pairs = sorted(pairs, key=lambda pair: (pair[1], pair[0]))
    sources, targets = (np.array(ends) for ends in zip(*pairs, strict=True))
    kinds = {} if kind is None else {"kinds": np.array([kind(*pair) for pair in pairs])}
    return {"sources": sources, "targets": targets, **kinds}


def random_params(seed, d_in=4, heads=2, d_head=3, kinds=3):
    rng = np.random.default_rng(seed)
    shapes = (d_in, heads * d_head), (heads * d_head,), (heads, d_head), (heads, d_head), (kinds, heads)
    weight, bias, target, source, kind = (rng.normal(size=shape) for shape in shapes)
    return SentenceGraph(Linear(weight, bias), target, source, kind if kinds else None), rng


def textbook(weight, bias, target, source, kind, x, sources, targets, kinds, slope=0.2):
    """One node, one head, one edge at a time."""
    z, (heads, d) = x @ weight + bias, target.shape
    rows = []
    for i in range(len(x)):
        parts = []
        for h in range(heads):
            piece, total, out = slice(h * d, (h + 1) * d), 0.0, anp.zeros(d)
            for e in range(len(sources)):
                if targets[e] == i:
                    j = sources[e]
                    bent = anp.dot(target[h], z[i, piece]) + anp.dot(source[h], z[j, piece]) + kind[kinds[e], h]
                    exp = anp.exp(bent if bent > 0 else slope * bent)
                    total, out = total + exp, out + exp * z[j, piece]
            parts.append(out / total if (targets == i).any() else out)
        rows.append(anp.concatenate(parts))
    return anp.stack(rows)


def test_equals_the_loops_over_edges_and_their_gradients():
    params, rng = random_params(0)
    x, dout = rng.normal(size=(5, 4)), rng.normal(size=(5, 6))
    flat = (*params.value, params.target, params.source, params.kind, x)
    out, backward = sentence_graph(params, x, **EDGES)
    np.testing.assert_allclose(out, textbook(*flat, **EDGES), rtol=0, atol=1e-13)
    expected = autograd.grad(lambda *all_of: anp.sum(dout * textbook(*all_of, **EDGES)), tuple(range(6)))(*flat)
    dparams, dx = backward(dout)
    found = (*dparams.value, dparams.target, dparams.source, dparams.kind, dx)
    for own, their in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, their, rtol=0, atol=1e-11)


def test_it_is_dense_attention_under_the_mask_of_its_edges():
    params, rng = random_params(1, kinds=0)
    x, edges = rng.normal(size=(7, 4)), edges_of(CHAIN)
    z = (x @ params.value.weight + params.value.bias).reshape(7, 2, 3)
    scores = np.sum(z * params.target, axis=-1)[:, None] + np.sum(z * params.source, axis=-1)
    scores = np.where(scores > 0, scores, 0.2 * scores)      # (targets, sources, heads)
    present = np.zeros((7, 7, 1), bool)
    present[edges["targets"], edges["sources"]] = True
    exps = np.where(present, np.exp(scores), 0)
    dense = np.einsum("ijh,jhd->ihd", exps / exps.sum(axis=1, keepdims=True), z)
    np.testing.assert_allclose(sentence_graph(params, x, **edges)[0], dense.reshape(7, 6), rtol=0, atol=1e-13)


def test_on_a_complete_graph_without_scores_it_is_the_mean():
    params, rng = random_params(2, kinds=0)
    params = params._replace(target=np.zeros((2, 3)), source=np.zeros((2, 3)))
    x = rng.normal(size=(5, 4))
    out, _ = sentence_graph(params, x, **edges_of([(j, i) for i in range(5) for j in range(5)]))
    mean = (x @ params.value.weight + params.value.bias).mean(axis=0)
    np.testing.assert_allclose(out, np.tile(mean, (5, 1)), rtol=0, atol=1e-14)


def test_nodes_may_be_numbered_in_any_order():
    params, rng = random_params(3)
    x, order = rng.normal(size=(5, 4)), np.array([3, 0, 4, 2, 1])
    new_number = np.argsort(order)
    sources, targets = new_number[EDGES["sources"]], new_number[EDGES["targets"]]
    by_target = np.argsort(targets, kind="stable")
    moved = {"sources": sources[by_target], "targets": targets[by_target], "kinds": EDGES["kinds"][by_target]}
    np.testing.assert_allclose(sentence_graph(params, x[order], **moved)[0], sentence_graph(params, x, **EDGES)[0][order], rtol=0, atol=1e-13)


def test_edges_into_one_node_may_come_in_any_order():
    params, rng = random_params(4)
    x, order = rng.normal(size=(5, 4)), np.array([0, 1, 4, 2, 3, 7, 5, 6])
    other = {name: edges[order] for name, edges in EDGES.items()}
    np.testing.assert_allclose(sentence_graph(params, x, **other)[0], sentence_graph(params, x, **EDGES)[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_so_many_layers_reach_so_many_hops_and_no_further(layers):
    x, backwards = np.random.default_rng(5).normal(size=(7, 4)), []
    for layer in range(layers):
        params, _ = random_params(layer, d_head=2, kinds=0)
        x, backward = sentence_graph(params, x, **edges_of(CHAIN))
        backwards.append(backward)
    dx = np.zeros((7, 4))
    dx[0] = np.random.default_rng(6).normal(size=4)
    for backward in reversed(backwards):
        _, dx = backward(dx)
    assert (dx[: layers + 1] != 0).all() and not dx[layers + 1 :].any()


def test_a_node_without_an_edge_to_it_gets_zero_and_is_heard_all_the_same():
    params, rng = random_params(7)
    x, dout = rng.normal(size=(5, 4)), np.zeros((5, 6))
    out, backward = sentence_graph(params, x, **EDGES)
    np.testing.assert_array_equal(out[3], 0)
    dout[3] = rng.normal(size=6)
    dparams, dx = backward(dout)
    for gradient in (dx, dparams.value.weight, dparams.target, dparams.kind):
        np.testing.assert_array_equal(gradient, 0)
    dout[4] = rng.normal(size=6)
    assert (backward(dout)[1][3] != 0).all()


def test_a_node_with_one_edge_to_it_gets_what_is_there_whatever_the_score():
    params, rng = random_params(8)
    x = rng.normal(size=(5, 4))
    out, backward = sentence_graph(params, x, **EDGES)
    np.testing.assert_allclose(out[1], x[2] @ params.value.weight + params.value.bias, rtol=0, atol=1e-14)
    dout = np.zeros((5, 6))
    dout[1] = rng.normal(size=6)
    np.testing.assert_allclose(backward(dout)[0].target, 0, rtol=0, atol=1e-14)


def test_only_kinds_tell_the_sentence_before_from_the_sentence_after():
    params, rng = random_params(9)
    x = np.tile(rng.normal(size=4), (7, 1))
    x[3] = rng.normal(size=4)                                # the cue; all other sentences are alike
    untyped, _ = sentence_graph(params._replace(kind=None), x, **edges_of(CHAIN))
    typed, _ = sentence_graph(params, x, **edges_of(CHAIN, kind=lambda j, i: 1 + np.sign(j - i)))
    np.testing.assert_allclose(untyped[2], untyped[4], rtol=0, atol=1e-14)
    assert np.abs(typed[2] - typed[4]).max() > 1e-2


def test_without_kinds_every_target_ranks_its_sources_in_the_same_order_and_with_kinds_it_need_not():
    rng, pairs = np.random.default_rng(19), [(j, i) for i in range(5) for j in range(5)]
    scored = [3 * rng.normal(size=(1, 5)) for _ in range(2)]
    nodes = Linear(np.eye(5), None)                          # a feature for each node: what comes out are the weights
    untyped, _ = sentence_graph(SentenceGraph(nodes, *scored), np.eye(5), **edges_of(pairs))
    np.testing.assert_array_equal(np.argsort(untyped, axis=1), np.tile(np.argsort(scored[1][0]), (5, 1)))
    assert np.abs(untyped - untyped[0]).max() > 0.01         # in the same order, and not by as much
    typed = SentenceGraph(nodes, *scored, 3 * rng.normal(size=(9, 1)))
    weights, _ = sentence_graph(typed, np.eye(5), **edges_of(pairs, kind=lambda j, i: j - i + 4))
    assert len({tuple(row) for row in np.argsort(weights, axis=1)}) > 1


def test_kinds_that_all_count_alike_are_none():
    params, rng = random_params(10)
    x = rng.normal(size=(5, 4))
    typed, _ = sentence_graph(params._replace(kind=np.zeros((3, 2))), x, **EDGES)
    untyped, _ = sentence_graph(params._replace(kind=None), x, sources=EDGES["sources"], targets=EDGES["targets"])
    np.testing.assert_array_equal(typed, untyped)


def test_documents_side_by_side_are_one_graph():
    params, rng = random_params(11)
    x, dout = rng.normal(size=(2, 5, 4)), rng.normal(size=(2, 5, 6))
    both = {name: np.concatenate([edges, edges + (0 if name == "kinds" else 5)]) for name, edges in EDGES.items()}
    out, backward = sentence_graph(params, x.reshape(10, 4), **both)
    for text in range(2):
        alone, alone_backward = sentence_graph(params, x[text], **EDGES)
        np.testing.assert_allclose(out.reshape(2, 5, 6)[text], alone, rtol=0, atol=1e-14)
        np.testing.assert_allclose(backward(dout.reshape(10, 6))[1].reshape(2, 5, 4)[text], alone_backward(dout[text])[1], rtol=0, atol=1e-13)


def test_scores_of_any_size_are_survived():
    params, rng = random_params(12)
    with np.errstate(over="raise", invalid="raise"):
        out, backward = sentence_graph(params, 1e4 * rng.normal(size=(5, 4)), **EDGES)
        backward(rng.normal(size=(5, 6)))
    assert np.isfinite(out).all()


def test_ten_thousand_edges_never_become_a_matrix_of_pairs():
    rng, nodes, count = np.random.default_rng(13), 5000, 10_000
    params = init_sentence_graph(rng, 8, num_heads=2, kinds=4)
    edges = {"sources": rng.integers(nodes, size=count), "targets": np.sort(rng.integers(nodes, size=count)), "kinds": rng.integers(4, size=count)}
    x = rng.normal(size=(nodes, 8)).astype(np.float32)
    sentence_graph(params, x, **edges)[1](x)                 # what is loaded once is not counted
    tracemalloc.start()
    out, backward = sentence_graph(params, x, **edges)
    backward(out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6 < nodes * nodes * 4                   # bytes; with a matrix for all pairs it would be a hundred million


def test_it_starts_without_a_preference_for_any_kind():
    params = init_sentence_graph(np.random.default_rng(14), 64, num_heads=4, kinds=5)
    assert params.target.shape == params.source.shape == (4, 16) and params.kind.shape == (5, 4) and not params.kind.any()
    assert init_sentence_graph(np.random.default_rng(14), 64, num_heads=4).kind is None
    with pytest.raises(ValueError, match="num_heads: got 5"):
        init_sentence_graph(np.random.default_rng(14), 64, num_heads=5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": EDGES["targets"][::-1]}, "targets: got nodes that go backwards, wants edges sorted by their targets"),
        ({"sources": EDGES["sources"] + 1}, "sources: got 1 to 5, wants 0 to 4: there are 5 nodes"),
        ({"sources": EDGES["sources"] - 1}, "sources: got numbers from -1"),
        ({"kinds": EDGES["kinds"] + 1}, r"kinds: got 1 to 3, wants 0 to 2, the rows of params\.kind"),
        ({"kinds": None}, "kinds: got None, wants a kind for each edge"),
        ({"targets": EDGES["targets"][:7]}, "targets: got shape"),
    ],
)
def test_edges_that_do_not_fit_are_refused_by_name(changes, message):
    params, rng = random_params(15)
    with pytest.raises(ValueError, match=message):
        sentence_graph(params, rng.normal(size=(5, 4)), **{**EDGES, **changes})


@pytest.mark.parametrize("forgotten", ["nothing", "that weights sum to one", "the slope", "that a source is scored", "who was read"])
def test_the_check_refuses_a_backward_that_forgets(forgotten):
    def by_hand(params, x):
        (weight, bias), target, source, kind = params
        s, t, k = EDGES.values()
        z = (x @ weight + bias).reshape(5, 2, 3)
        bent = np.sum(z * target, -1)[t] + np.sum(z * source, -1)[s] + kind[k]
        exps, totals, out = np.exp(np.where(bent > 0, bent, 0.2 * bent)), np.zeros((5, 2)), np.zeros((5, 2, 3))
        np.add.at(totals, t, exps)
        weights = exps / totals[t]
        np.add.at(out, t, weights[..., None] * z[s])

        def backward(dout):
            dout, dz = dout.reshape(5, 2, 3), np.zeros((5, 2, 3))
            shared = 0 if forgotten == "that weights sum to one" else np.sum(dout * out, -1)[t]
            dbent = weights * (np.sum(dout[t] * z[s], -1) - shared)
            if forgotten != "the slope":
                dbent = np.where(bent > 0, dbent, 0.2 * dbent)
            into, out_of, dkind = np.zeros((5, 2)), np.zeros((5, 2)), np.zeros((3, 2))
            np.add.at(into, t, dbent)
            np.add.at(dkind, k, dbent)
            if forgotten != "that a source is scored":
                np.add.at(out_of, s, dbent)
            np.add.at(dz, t if forgotten == "who was read" else s, weights[..., None] * dout[t])
            dz = (dz + into[..., None] * target + out_of[..., None] * source).reshape(5, 6)
            scored = (np.einsum("nh,nhd->hd", sums, z) for sums in (into, out_of))
            return SentenceGraph(Linear(x.T @ dz, dz.sum(axis=0)), *scored, dkind), dz @ weight.T

        return out.reshape(5, 6), backward

    params, rng = random_params(16)
    assert check_gradients(by_hand, params, rng.normal(size=(5, 4))).passed is (forgotten == "nothing")


@pytest.mark.parity
def test_parity_with_the_scatter_formula_in_torch():
    torch = pytest.importorskip("torch")
    rng, nodes, count = np.random.default_rng(17), 40, 300
    params, _ = random_params(18, d_in=8, heads=2, d_head=5)
    edges = {"sources": rng.integers(nodes, size=count), "targets": np.sort(rng.integers(nodes, size=count)), "kinds": rng.integers(3, size=count)}
    x, dout = rng.normal(size=(nodes, 8)), rng.normal(size=(nodes, 10))
    leaves = [torch.tensor(a, requires_grad=True) for a in (*params.value, params.target, params.source, params.kind, x)]
    weight, bias, target, source, kind, tx = leaves
    s, t, k = (torch.tensor(edges[name]) for name in ("sources", "targets", "kinds"))
    z = (tx @ weight + bias).view(nodes, 2, 5)
    scores = torch.nn.functional.leaky_relu((z * target).sum(-1)[t] + (z * source).sum(-1)[s] + kind[k], 0.2)
    top = torch.full((nodes, 2), -torch.inf, dtype=z.dtype).scatter_reduce(0, t[:, None].expand(-1, 2), scores.detach(), "amax")
    exps = torch.exp(scores - top[t])
    weights = exps / torch.zeros(nodes, 2, dtype=z.dtype).index_add(0, t, exps)[t]
    theirs = torch.zeros(nodes, 2, 5, dtype=z.dtype).index_add(0, t, weights[..., None] * z[s]).reshape(nodes, 10)
    theirs.backward(torch.tensor(dout))
    out, backward = sentence_graph(params, x, **edges)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-12)
    dparams, dx = backward(dout)
    for own, leaf in zip((*dparams.value, dparams.target, dparams.source, dparams.kind, dx), leaves, strict=True):
        np.testing.assert_allclose(own, leaf.grad.numpy(), rtol=0, atol=1e-10)
