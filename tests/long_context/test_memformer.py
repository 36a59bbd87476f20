"""Memformer: one segment with slots before and after, the past in a few unit vectors, and a gradient to them."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.attention.core import causal_attention
from minitransformers.attention.masks import padding_mask
from minitransformers.attention.prepare import on_both
from minitransformers.long_context.biased_memory_norm import biased_memory_norm
from minitransformers.long_context.memformer import init_memformer, memformer
from minitransformers.positional.rope import rope

RNG = np.random.default_rng(0)
PARAMS = init_memformer(RNG, 6, num_slots=3, num_layers=2, num_heads=2, d_hidden=5, dtype=np.float64)
PARAMS = trees.map(lambda leaf: leaf + RNG.normal(0, 0.2, leaf.shape), PARAMS)
X, SLOTS, DOUT, DSLOTS = (RNG.normal(size=shape) for shape in ((2, 4, 6), (2, 3, 6), (2, 4, 6), (2, 3, 6)))
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 1]], bool)[:, None, None]


def norm(gain, bias, x):
    centred = x - anp.mean(x, axis=-1, keepdims=True)
    return gain * centred / anp.sqrt(anp.mean(centred**2, axis=-1, keepdims=True) + 1e-5) + bias


def attend(x, memory, wq, bq, wk, bk, wv, bv, wo, bo, seen, heads=2):
    """One text: each head's attention written out."""
    query, key, value, found = x @ wq + bq, memory @ wk + bk, memory @ wv + bv, []
    for h in range(heads):
        part = slice(3 * h, 3 * h + 3)
        exps = anp.exp(query[:, part] @ key[:, part].T / 3**0.5) * seen
        found.append(exps / anp.sum(exps, axis=-1, keepdims=True) @ value[:, part])
    return anp.concatenate(found, axis=-1) @ wo + bo


def gelu(x):
    return 0.5 * x * (1 + anp.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def written_out(leaves, x, slots, seen, temperature, heads=2):
    """One text from end to end; leaves is a dict by path."""
    at = leaves.get
    home = at("forgetting.bias")
    if slots is None:
        slots = home / anp.sqrt(anp.sum(home**2, axis=-1, keepdims=True))
    for n in range(2):
        own = {path.removeprefix(f"blocks.{n}."): leaf for path, leaf in leaves.items() if path.startswith(f"blocks.{n}.")}
        maps = [[own[f"{place}.{part}.{kind}"] for part in ("query", "key", "value", "output") for kind in ("weight", "bias")] for place in ("attention", "reader.attention")]
        normed = norm(own["attention_norm.gain"], own["attention_norm.bias"], x)
        x = x + attend(normed, normed, *maps[0], seen)
        normed = norm(own["reader.norm.gain"], own["reader.norm.bias"], x)
        x = x + attend(normed, 6**0.5 * slots, *maps[1], np.ones(len(slots)))
        normed = norm(own["feed_forward_norm.gain"], own["feed_forward_norm.bias"], x)
        hidden = gelu(normed @ own["feed_forward.up.weight"] + own["feed_forward.up.bias"])
        x = x + hidden @ own["feed_forward.down.weight"] + own["feed_forward.down.bias"]
    out = norm(at("norm.gain"), at("norm.bias"), x)
    rows = []
    for i in range(len(slots)):
        query, parts = slots[i] @ at("writer.query.weight"), []
        for h in range(heads):
            part = slice(3 * h, 3 * h + 3)
            places = [slots[i] @ at("writer.key.weight")] + [out[j] @ at("writer.key.weight") for j in range(len(out)) if seen[j]]
            values = [slots[i]] + [out[j] @ at("writer.value.weight") for j in range(len(out)) if seen[j]]
            exps = [anp.exp(anp.sum(query[part] * place[part]) / (temperature * 3**0.5)) for place in places]
            parts.append(sum(e * value[part] for e, value in zip(exps, values, strict=True)) / sum(exps))
        moved = anp.concatenate(parts) + home[i]
        rows.append(moved / anp.sqrt(anp.sum(moved**2)))
    return out, anp.stack(rows)


@pytest.mark.parametrize(("start", "temperature"), [("slots from before", 0.7), ("no slots", 0.25)])
def test_it_is_what_is_written_out_and_its_gradients_are_autograd_s(start, temperature):
    paths = [path for path, _ in trees.leaves(PARAMS)]
    leaves, slots = tuple(leaf for _, leaf in trees.leaves(PARAMS)), SLOTS if start == "slots from before" else None
    (out, after), backward = memformer(PARAMS, X, slots, num_heads=2, mask=MASK, **{} if slots is None else {"temperature": temperature})

    def loss(leaves, x, slots):
        own, total = dict(zip(paths, leaves, strict=True)), 0.0
        for text in range(2):
            theirs = written_out(own, x[text], None if slots is None else slots[text], MASK[text, 0, 0], temperature)
            total = total + anp.sum(DOUT[text] * theirs[0]) + anp.sum(DSLOTS[text] * theirs[1])
        return total

    for text in range(2):
        theirs = written_out(dict(zip(paths, leaves, strict=True)), X[text], None if slots is None else slots[text], MASK[text, 0, 0], temperature)
        np.testing.assert_allclose(out[text], theirs[0], rtol=0, atol=1e-12)
        np.testing.assert_allclose(after[text], theirs[1], rtol=0, atol=1e-12)
    expected = autograd.grad(loss, (0, 1) if slots is None else (0, 1, 2))(leaves, X, slots)
    dparams, dx, dslots = backward((DOUT, DSLOTS))
    for (path, own), theirs in zip(trees.leaves(dparams), expected[0], strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10, err_msg=path)
    np.testing.assert_allclose(dx, expected[1], rtol=0, atol=1e-10)
    if slots is None:
        assert dslots is None
    else:
        np.testing.assert_allclose(dslots, expected[2], rtol=0, atol=1e-10)


def test_at_the_start_the_bias_has_two_gradients():
    """It is where slots start, and where they go."""
    _, backward = memformer(PARAMS, X, num_heads=2)
    start, start_backward = biased_memory_norm(PARAMS.forgetting)
    given = np.broadcast_to(start, (2, 3, 6))
    _, given_backward = memformer(PARAMS, X, given, num_heads=2)
    dgoing, _, dslots = given_backward((DOUT, DSLOTS))
    dstarting, _ = start_backward(dslots.sum(0))
    np.testing.assert_allclose(backward((DOUT, DSLOTS))[0].forgetting.bias, dgoing.forgetting.bias + dstarting.bias, rtol=0, atol=1e-13)
    assert np.abs(dstarting.bias).min() > 1e-4
    report = check_gradients(partial(memformer, num_heads=2), PARAMS, X)
    assert report.passed, str(report)


def test_slots_keep_length_one_over_many_segments():
    slots = None
    for _ in range(20):
        (_, slots), _ = memformer(PARAMS, RNG.normal(size=(2, 4, 6)), slots, num_heads=2)
        np.testing.assert_allclose(np.linalg.norm(slots, axis=-1), 1, rtol=0, atol=1e-14)


def test_the_past_is_as_large_after_many_segments_as_after_one():
    sizes, slots = [], None
    for _ in range(5):
        (_, slots), _ = memformer(PARAMS, X, slots, num_heads=2)
        sizes.append(slots.nbytes)
    assert len(set(sizes)) == 1


def test_what_stood_in_the_first_segment_reaches_the_last_and_so_does_the_gradient():
    def read(first):
        slots, outs, backwards = None, [], []
        for x in (first, *np.random.default_rng(1).normal(size=(4, 2, 4, 6))):
            (out, slots), backward = memformer(PARAMS, x, slots, num_heads=2)
            outs.append(out)
            backwards.append(backward)
        return outs, backwards

    outs, backwards = read(X)
    changed, _ = read(X + np.eye(4, 6))
    assert all(np.abs(a - b).max() > 0 for a, b in zip(outs, changed, strict=True))
    dslots, dout = None, DOUT
    for backward in backwards[:0:-1]:
        _, _, dslots = backward((dout, dslots))
        dout = None
        assert np.abs(dslots).max() > 0
    assert np.abs(backwards[0]((None, dslots))[1]).max() > 0


def test_slots_in_another_order_with_their_biases_change_nothing_but_the_order():
    order = [1, 2, 0]
    turned = PARAMS._replace(forgetting=PARAMS.forgetting._replace(bias=PARAMS.forgetting.bias[order]))
    (out, after), _ = memformer(PARAMS, X, SLOTS, num_heads=2)
    (other_out, other_after), _ = memformer(turned, X, SLOTS[:, order], num_heads=2)
    np.testing.assert_allclose(other_out, out, rtol=0, atol=1e-13)
    np.testing.assert_allclose(other_after, after[:, order], rtol=0, atol=1e-13)


def test_padding_is_neither_looked_at_nor_written():
    mask = padding_mask(np.array([4, 2]), 4)
    other = X.copy()
    other[1, 2:] = 1e3
    (out, after), _ = memformer(PARAMS, X, SLOTS, num_heads=2, mask=mask)
    (other_out, other_after), _ = memformer(PARAMS, other, SLOTS, num_heads=2, mask=mask)
    np.testing.assert_array_equal(other_after, after)
    np.testing.assert_array_equal(other_out[1, :2], out[1, :2])
    shorter, _ = memformer(PARAMS, X[1:, :2], SLOTS[1:], num_heads=2)
    np.testing.assert_allclose(shorter[1], after[1:], rtol=0, atol=1e-13)


def test_its_attention_looks_both_ways_unless_it_is_told_to_look_back():
    later = X.copy()
    later[:, 3] += np.arange(6)
    both = [memformer(PARAMS, x, SLOTS, num_heads=2)[0][0] for x in (X, later)]
    back = [memformer(PARAMS, x, SLOTS, num_heads=2, core=causal_attention)[0][0] for x in (X, later)]
    assert np.abs(both[0] - both[1])[:, 0].max() > 0
    np.testing.assert_array_equal(back[0][:, :3], back[1][:, :3])


def test_positions_are_what_prepare_makes_of_them():
    order = [3, 1, 0, 2]
    plain = [memformer(PARAMS, x, SLOTS, num_heads=2)[0] for x in (X, X[:, order])]
    np.testing.assert_allclose(plain[1][0], plain[0][0][:, order], rtol=0, atol=1e-13)
    np.testing.assert_allclose(plain[1][1], plain[0][1], rtol=0, atol=1e-13)
    wide = init_memformer(RNG, 8, num_slots=2, num_layers=1, num_heads=2, dtype=np.float64)
    x = RNG.normal(size=(4, 8))
    turned = [memformer(wide, rows, num_heads=2, prepare=on_both(rope))[0] for rows in (x, x[order])]
    assert np.abs(turned[1][0] - turned[0][0][order]).max() > 1e-3


def test_its_start_is_as_it_is_asked_for():
    params = init_memformer(np.random.default_rng(1), 6, num_slots=4, num_layers=3, num_heads=3, forgetting=0.3, std=0.5)
    assert len(params.blocks) == 3 and params.blocks[0].feed_forward.up.weight.shape == (6, 24)
    np.testing.assert_allclose(np.linalg.norm(params.forgetting.bias, axis=-1), np.full(4, 0.3), rtol=1e-6)
    assert {leaf.dtype for _, leaf in trees.leaves(params)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("forgotten", ["that the writer reads what goes up", "that blocks read the slots", "that slots start at their biases"])
def test_the_check_refuses_a_backward_that_forgets(forgotten):
    at_start = forgotten == "that slots start at their biases"

    def wrong(params, x, slots=None):
        result, backward = memformer(params, x, slots, num_heads=2)

        def careless(dresult):
            dparams, dx, dslots = backward(dresult)
            if forgotten == "that the writer reads what goes up":
                dx = backward((dresult[0], None))[1]
            elif forgotten == "that blocks read the slots":
                dslots = dslots - backward((dresult[0], None))[2]
            else:
                start = np.broadcast_to(biased_memory_norm(params.forgetting)[0], (2, 3, 6))
                dparams = memformer(params, x, start, num_heads=2)[1](dresult)[0]
            return (dparams, dx) if at_start else (dparams, dx, dslots)

        return result, careless

    assert not check_gradients(wrong, PARAMS, X, *(() if at_start else (SLOTS,))).passed


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"slots: got shape \(2, 4, 6\), wants \(2, 3, 6\)"):
        memformer(PARAMS, X, np.ones((2, 4, 6)), num_heads=2)
    with pytest.raises(ValueError, match="slots: got shape"):
        memformer(PARAMS, X, SLOTS[:1], num_heads=2)
    with pytest.raises(ValueError, match="temperature"):
        memformer(PARAMS, X, SLOTS, num_heads=2, temperature=-1.0)
    with pytest.raises(ValueError, match="mask: got shape"):
        memformer(PARAMS, X, SLOTS, num_heads=2, mask=np.ones((2, 1, 4, 4), bool))
    with pytest.raises(ValueError, match="num_heads"):
        memformer(PARAMS, X, SLOTS, num_heads=4)
