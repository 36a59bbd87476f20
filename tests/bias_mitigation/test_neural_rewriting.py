"""The neural rewriter: its parts against those written out, what its mask hides, and that it learns to copy what it never wrote."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import catalogue, check_gradients, trees
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.linear import Linear
from minitransformers.bias_mitigation.neural_rewriting import greedy_rewriting, init_neural_rewriting, neural_rewriting
from minitransformers.models.transformer import transformer

EXAMPLE = catalogue.find("neural_rewriting").example(np.random.default_rng(0))
PARAMS, CONFIG = EXAMPLE.args[0], EXAMPLE.config
OUT, BACKWARD = neural_rewriting(PARAMS, **CONFIG)
DOUT = np.random.default_rng(1).normal(size=OUT.shape)


def gate_of(number):
    return PARAMS._replace(gate=Linear(np.zeros((4, 1)), np.array([number])))


def test_with_an_open_gate_it_is_the_transformer():
    """Output and gradient: of the copy path nothing is left."""
    out, backward = neural_rewriting(gate_of(800.0), **CONFIG)
    logits, logits_backward = transformer(PARAMS.transformer, **{**CONFIG, "mask": CONFIG["mask"][:, None, None]})
    shifted = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(out, shifted, rtol=0, atol=1e-12)
    dlogits = DOUT - np.exp(shifted) * DOUT.sum(-1, keepdims=True)
    for (path, own), (_, their) in zip(trees.leaves(backward(DOUT).transformer), trees.leaves(logits_backward(dlogits)), strict=True):
        np.testing.assert_allclose(own, their, rtol=0, atol=1e-10, err_msg=path)


def test_with_a_closed_gate_only_tokens_of_the_source_can_come():
    out, _ = neural_rewriting(gate_of(-800.0), **CONFIG)
    for text, source, mask in zip(np.exp(out), CONFIG["source"], CONFIG["mask"], strict=True):
        there = np.isin(np.arange(6), source[mask])
        assert (text[:, ~there] == 0).all() and (text[:, there] > 0).all()


def textbook(params):
    """All equations: one text, one position, one head at a time, in probabilities."""
    model, (table,) = params.transformer, params.transformer.embedding

    def inputs(ids):
        waves = [[f(p / 10_000 ** (2 * m / 4)) for m in range(2) for f in (np.sin, np.cos)] for p in range(len(ids))]
        return 2 * table[ids] + np.array(waves)

    def norm(p, x):
        centred = x - anp.mean(x, axis=-1, keepdims=True)
        return p.gain * centred / anp.sqrt(anp.mean(centred**2, axis=-1, keepdims=True) + 1e-5) + p.bias

    def weights(query, keys, d):
        e = anp.exp(keys @ query / np.sqrt(d))
        return e / anp.sum(e)

    def attention(p, x, memory, seen):
        q, k, v = x @ p.query.weight, memory @ p.key.weight, memory @ p.value.weight
        rows = []
        for i in range(len(x)):
            n = seen(i)
            rows.append(anp.concatenate([weights(q[i, h : h + 2], k[:n, h : h + 2], 2) @ v[:n, h : h + 2] for h in (0, 2)]))
        return anp.stack(rows) @ p.output.weight

    def work(p, x):
        return anp.maximum(x @ p.up.weight + p.up.bias, 0) @ p.down.weight + p.down.bias

    out = []
    for source, target, mask in zip(CONFIG["source"], CONFIG["target"], CONFIG["mask"], strict=True):
        n = int(mask.sum())
        x, y = inputs(source), inputs(target)
        for b in model.encoder:
            x = norm(b.attention_norm, x + attention(b.attention, x, x, lambda i, n=n: n))
            x = norm(b.feed_forward_norm, x + work(b.feed_forward, x))
        for b in model.decoder:
            y = norm(b.attention_norm, y + attention(b.attention, y, y, lambda i: i + 1))
            y = norm(b.cross_attention_norm, y + attention(b.cross_attention, y, x, lambda i, n=n: n))
            y = norm(b.feed_forward_norm, y + work(b.feed_forward, y))
        for state in y:
            p = anp.exp(table @ state)
            p = p / anp.sum(p)
            w = weights(state @ params.query.weight, x[:n] @ params.key.weight, 4)
            g = 1 / (1 + anp.exp(-(state @ params.gate.weight + params.gate.bias)[0]))
            out.append(anp.stack([anp.log(g * p[v] + (1 - g) * sum((w[j] for j in range(n) if source[j] == v), 0.0)) for v in range(6)]))
    return anp.reshape(anp.stack(out), (2, 4, 6))


def test_it_is_the_equations_one_by_one_and_its_gradients_are_autograd_s():
    np.testing.assert_allclose(OUT, textbook(PARAMS), rtol=0, atol=1e-10)
    values = [leaf for _, leaf in trees.leaves(PARAMS)]
    expected = autograd.grad(lambda own: anp.sum(DOUT * textbook(trees.unflatten(PARAMS, own))))(values)
    for (path, own), theirs in zip(trees.leaves(BACKWARD(DOUT)), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10, err_msg=path)


def test_what_comes_later_and_what_is_padding_is_not_seen():
    target = CONFIG["target"].copy()
    target[:, 2] = (target[:, 2] + 1) % 6
    other, _ = neural_rewriting(PARAMS, **{**CONFIG, "target": target})
    np.testing.assert_array_equal(other[:, :2], OUT[:, :2])
    assert (other[:, 2:] != OUT[:, 2:]).any()
    source = CONFIG["source"].copy()
    source[1, 2] = (source[1, 2] + 1) % 6
    np.testing.assert_allclose(neural_rewriting(PARAMS, **{**CONFIG, "source": source})[0], OUT, rtol=0, atol=1e-14)


def test_gradients_are_those_of_differences_without_a_mask_too():
    report = check_gradients(neural_rewriting, PARAMS, **{**CONFIG, "mask": None})
    assert report.passed, str(report)


@pytest.mark.parametrize("lost", ["query", "key", "gate"])
def test_the_checker_refuses_a_path_whose_gradient_stops(lost):
    """Its own map learns, and what the map has read does not hear of it."""

    def of_the_table(table, broken):
        params = PARAMS._replace(transformer=PARAMS.transformer._replace(embedding=table))
        out, backward = neural_rewriting(params, **CONFIG)
        if not broken:
            return out, lambda dout: backward(dout).transformer.embedding
        part = getattr(params, lost)
        silent = params._replace(**{lost: part._replace(weight=0 * part.weight)})
        return out, lambda dout: neural_rewriting(silent, **CONFIG)[1](dout).transformer.embedding

    assert check_gradients(partial(of_the_table, broken=False), PARAMS.transformer.embedding).passed
    assert not check_gradients(partial(of_the_table, broken=True), PARAMS.transformer.embedding).passed


def test_at_the_start_most_of_the_probability_is_for_copying():
    params = init_neural_rewriting(np.random.default_rng(2), vocabulary=6, d_model=4, num_layers=1, num_heads=2, dtype=np.float64)
    out, _ = neural_rewriting(params, **CONFIG)
    for text, source, mask in zip(np.exp(out), CONFIG["source"], CONFIG["mask"], strict=True):
        assert (text[:, np.isin(np.arange(6), source[mask])].sum(-1) > 1 / (1 + np.exp(-2.0))).all()
    assert {leaf.dtype for _, leaf in trees.leaves(init_neural_rewriting(np.random.default_rng(2), vocabulary=6, d_model=4, num_layers=1, num_heads=2))} == {
        np.dtype(np.float32)
    }


def test_greedy_writing_takes_the_likeliest_token_each_time():
    source, mask = CONFIG["source"], CONFIG["mask"]
    found = greedy_rewriting(PARAMS, source, start=0, num_tokens=4, num_heads=2, mask=mask)
    target = np.concatenate([np.zeros((2, 1), int), found[:, :-1]], axis=1)
    np.testing.assert_array_equal(neural_rewriting(PARAMS, source=source, target=target, num_heads=2, mask=mask)[0].argmax(-1), found)
    end = int(found[0, 1])
    stopped = greedy_rewriting(PARAMS, source, start=0, num_tokens=4, num_heads=2, mask=mask, end=end)
    for row, free in zip(stopped, found, strict=True):
        place = np.flatnonzero(free == end)
        if place.size:
            np.testing.assert_array_equal(row[: place[0]], free[: place[0]])
            assert (row[place[0] :] == end).all()
        else:
            np.testing.assert_array_equal(row, free)


def adam(params, step, steps, rate):
    """The optimiser, in three lines: the package's own belongs to training."""
    flat = [leaf for _, leaf in trees.leaves(params)]
    first, second = [np.zeros_like(a) for a in flat], [np.zeros_like(a) for a in flat]
    for n in range(1, steps + 1):
        gradient = [leaf for _, leaf in trees.leaves(step(trees.unflatten(params, flat)))]
        first = [0.9 * m + 0.1 * g for m, g in zip(first, gradient, strict=True)]
        second = [0.99 * v + 0.01 * g * g for v, g in zip(second, gradient, strict=True)]
        flat = [a - rate * (m / (1 - 0.9**n)) / (np.sqrt(v / (1 - 0.99**n)) + 1e-8) for a, m, v in zip(flat, first, second, strict=True)]
    return trees.unflatten(params, flat)


def test_it_learns_to_rewrite_one_word_and_to_copy_words_that_it_has_never_written():
    """Word 1 becomes 2, all others stay. Words 9 to 11 stand in no training text: the copy path is all that can bring them."""
    rng = np.random.default_rng(0)
    params = init_neural_rewriting(rng, vocabulary=12, d_model=16, num_layers=1, num_heads=2, d_hidden=32, dtype=np.float64)

    def texts(count, words):
        source = rng.choice(words, size=(count, 4))
        return source, np.where(source == 1, 2, source)

    source, written = texts(192, np.array([1, 3, 4, 5, 6, 7, 8]))

    def step(params):
        target = np.concatenate([np.zeros((192, 1), int), written[:, :-1]], axis=1)
        out, backward = neural_rewriting(params, source=source, target=target, num_heads=2)
        return backward(cross_entropy(out, targets=written)[1](np.array(1.0)))

    params = adam(params, step, 60, 0.01)
    fresh, wanted = texts(64, np.array([1, 3, 4, 5, 6, 7, 8]))
    assert np.mean(greedy_rewriting(params, fresh, start=0, num_tokens=4, num_heads=2) == wanted) > 0.95
    unseen, wanted = texts(64, np.array([9, 10, 11]))
    target = np.concatenate([np.zeros((64, 1), int), wanted[:, :-1]], axis=1)
    with_copy, _ = neural_rewriting(params, source=unseen, target=target, num_heads=2)
    without, _ = neural_rewriting(params._replace(gate=Linear(np.zeros((16, 1)), np.array([800.0]))), source=unseen, target=target, num_heads=2)
    right = [np.mean(np.take_along_axis(np.exp(out), wanted[..., None], -1)) for out in (with_copy, without)]
    assert right[0] > 10 * right[1]
