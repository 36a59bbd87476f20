"""Native sparse attention: the layer one query at a time, its branches alone, decoding, and a language model made of it."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from mixers_at_work import (
    WORDS,
    assert_it_has_no_place_for,
    assert_it_writes_the_same_without_a_state,
    assert_steps_equal_the_whole_pass,
    losses,
    repeats,
)
from mixers_at_work import model as small_model

from minitransformers import trees
from minitransformers.attention.grouped_query_attention import GroupedQueryAttention, grouped_query_attention
from minitransformers.attention.prepare import on_both
from minitransformers.attention.sliding_window_attention import sliding_window_attention
from minitransformers.basics.linear import Linear
from minitransformers.foundation import check_gradients
from minitransformers.norms.qk_norm import QkNorm, qk_norm
from minitransformers.positional.rope import rope
from minitransformers.sparse_attention.native_sparse_attention import (
    NativeSparseAttention,
    init_native_sparse_attention,
    native_sparse_attention,
    native_sparse_attention_step,
)

D_MODEL, HEADS, GROUPS, D_HEAD, D_VALUE = 5, 4, 2, 2, 3
SETTINGS = {"num_heads": HEADS, "block": 2, "top": 4, "window": 3}


def random_params(rng):
    keys, values = 3 * GROUPS * D_HEAD, 3 * GROUPS * D_VALUE
    shapes = (D_MODEL, HEADS * D_HEAD), (D_MODEL, keys), (D_MODEL, values), (D_MODEL, 3 * HEADS), (HEADS * D_VALUE, D_MODEL)
    return NativeSparseAttention(*(Linear(rng.normal(size=s) / 2, rng.normal(size=s[1])) for s in shapes))


def case(seed, n=13):
    rng = np.random.default_rng(seed)
    return random_params(rng), rng.normal(size=(n, D_MODEL))


def projected(params, x):
    """The features of every head: queries, keys and values by branch and group, gates by branch and head."""
    q, k, v, z = (anp.dot(x, part.weight) + part.bias for part in params[:4])
    query = [q[:, h * D_HEAD : (h + 1) * D_HEAD] for h in range(HEADS)]
    key, value = (
        [[a[:, (c * GROUPS + g) * d : (c * GROUPS + g + 1) * d] for g in range(GROUPS)] for c in range(3)] for a, d in ((k, D_HEAD), (v, D_VALUE))
    )
    return query, key, value, [[1 / (1 + anp.exp(-z[:, c * HEADS + h])) for h in range(HEADS)] for c in range(3)]


def mixed(scores, values):
    powers = [anp.exp(s / D_HEAD**0.5) for s in scores]
    return sum(p * v for p, v in zip(powers, values, strict=True)) / sum(powers)


def means(a, i, block):
    """The means of the blocks that have ended at position i."""
    return [anp.mean(a[b * block : (b + 1) * block], axis=0) for b in range((i + 1) // block)]


def choices(params, x, block, top):
    """The blocks that each group reads at each position."""
    query, key, _, _ = projected(params, x)
    found = {}
    for i in range(len(x)):
        for g in range(GROUPS):
            importance = np.zeros((i + 1) // block)
            for h in range(g * HEADS // GROUPS, (g + 1) * HEADS // GROUPS):
                powers = np.array([np.exp(query[h][i] @ mean / D_HEAD**0.5) for mean in means(key[0][g], i, block)])
                importance += powers / powers.sum() if len(powers) else powers
            own = i // block
            always = list(dict.fromkeys([own, max(own - 1, 0), 0]))
            found[i, g] = (always + sorted(set(range(own)) - set(always), key=lambda b, w=importance: -w[b]))[:top]
    return found


def textbook(params, x, chosen, block, window):
    """One position and one head at a time."""
    query, key, value, gate = projected(params, x)
    rows = []
    for i in range(len(x)):
        heads = []
        for h in range(HEADS):
            g, q = h * GROUPS // HEADS, query[h][i]
            coarse = means(key[0][g], i, block)
            reads = [mixed([anp.dot(q, k) for k in coarse], means(value[0][g], i, block)) if coarse else 0.0]
            for c, near in ((1, [j for j in range(i + 1) if j // block in chosen[i, g]]), (2, range(max(0, i - window + 1), i + 1))):
                reads.append(mixed([anp.dot(q, key[c][g][j]) for j in near], [value[c][g][j] for j in near]))
            heads.append(sum(gate[c][h][i] * reads[c] for c in range(3)))
        rows.append(anp.dot(anp.concatenate(heads), params.output.weight) + params.output.bias)
    return anp.stack(rows)


@pytest.mark.parametrize(("n", "block", "top", "window"), [(13, 2, 4, 3), (9, 3, 1, 2), (8, 2, 2, 1), (7, 1, 5, 20), (3, 4, 16, 2), (1, 1, 1, 1), (6, 6, 2, 2)])
def test_it_is_the_textbook_layer_and_its_gradients_are_autograd_s(n, block, top, window):
    params, x = case(0, n)
    chosen = choices(params, x, block, top)
    out, backward = native_sparse_attention(params, x, num_heads=HEADS, block=block, top=top, window=window)
    np.testing.assert_allclose(out, textbook(params, x, chosen, block, window), rtol=0, atol=1e-10)
    dout = np.random.default_rng(1).normal(size=out.shape)
    flat = [a for part in params[:5] for a in part]

    def loss(arrays, x):
        pairs = NativeSparseAttention(*(Linear(*arrays[i : i + 2]) for i in range(0, 10, 2)))
        return anp.sum(dout * textbook(pairs, x, chosen, block, window))

    theirs, their_dx = autograd.grad(loss, (0, 1))(flat, x)
    dparams, dx = backward(dout)
    np.testing.assert_allclose(dx, their_dx, rtol=0, atol=1e-10)
    for own, other in zip([a for part in dparams[:5] for a in part], theirs, strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-10)
    assert dparams.prepare is None


def only(branch, params):
    """The layer whose gates are 1 for one branch and 0 for the others."""
    bias = np.repeat(np.where(np.arange(3) == branch, 1000.0, -1000.0), HEADS)
    return params._replace(gate=Linear(np.zeros_like(params.gate.weight), bias))


def alone(branch, params):
    """What grouped-query attention needs to compute that branch."""
    def part(linear):
        width = linear.weight.shape[1] // 3
        columns = slice(branch * width, (branch + 1) * width)
        return Linear(linear.weight[:, columns], linear.bias[columns])

    return GroupedQueryAttention(params.query, part(params.key), part(params.value), params.output)


BRANCHES = {
    "compressed, in blocks of one": (0, {"block": 1}, partial(grouped_query_attention, num_kv_heads=GROUPS)),
    "selected, all of them": (1, {"top": 7}, partial(grouped_query_attention, num_kv_heads=GROUPS)),
    "selected, more than there are": (1, {"top": 500}, partial(grouped_query_attention, num_kv_heads=GROUPS)),
    "window": (2, {}, partial(sliding_window_attention, window=3)),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_with_one_gate_open_it_is_that_branch_alone(name):
    branch, changes, form = BRANCHES[name]
    params, x = case(2)
    out, backward = native_sparse_attention(only(branch, params), x, **{**SETTINGS, **changes})
    wanted, wanted_backward = form(alone(branch, params), x, num_heads=HEADS)
    np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-12)
    dparams, dx = backward(out)
    theirs, their_dx, _ = wanted_backward(out)
    np.testing.assert_allclose(dx, their_dx, rtol=0, atol=1e-11)
    for (path, own), (_, other) in zip(trees.leaves(alone(branch, dparams)), trees.leaves(theirs), strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-11, err_msg=path)


@pytest.mark.parametrize("branch", [0, 1, 2])
def test_what_is_learned_by_one_branch_does_not_shape_the_others_and_choosing_has_no_gradient(branch):
    params, x = case(3)
    dparams, _ = native_sparse_attention(only(branch, params), x, **SETTINGS)[1](np.ones_like(x))
    for other in range(3):
        for linear in alone(other, dparams)[1:3]:
            assert linear.weight.any() == (other == branch)


def test_the_coarse_look_says_what_is_read_in_full():
    """The selected branch changes with the keys of the compressed one, though it does not read them."""
    params, x = case(4)
    width = params.key.weight.shape[1] // 3
    turned = Linear(np.where(np.arange(3 * width) < width, -5, 1) * params.key.weight, params.key.bias)
    for top, changes in ((4, True), (7, False)):
        before, after = (native_sparse_attention(only(1, p), x, **{**SETTINGS, "top": top})[0] for p in (params, params._replace(key=turned)))
        assert (np.abs(before - after).max() > 1e-3) == changes


def test_no_position_ahead_has_an_influence():
    params, x = case(5, 20)
    out, backward = native_sparse_attention(params, x, **SETTINGS)
    changed = np.concatenate([x[:11], np.random.default_rng(6).normal(size=(9, D_MODEL))])
    np.testing.assert_allclose(native_sparse_attention(params, changed, **SETTINGS)[0][:11], out[:11], rtol=0, atol=1e-13)
    dout = np.zeros_like(out)
    dout[10] = 1
    dx = backward(dout)[1]
    assert not dx[11:].any() and dx[:11].any(axis=-1).all()  # the means reach back to the first


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize(("block", "top", "window"), [(4, 2, 3), (1, 3, 1), (5, 50, 50), (64, 16, 512)])
def test_every_length_works_step_by_step_as_a_whole(n, block, top, window):
    params, x = case(7, n)
    settings = {"num_heads": HEADS, "block": block, "top": top, "window": window}
    whole, backward = native_sparse_attention(params, x, **settings)
    assert all(np.isfinite(leaf).all() for _, leaf in trees.leaves(backward(whole)))
    for sizes in ([1] * n, [n], [n - n // 3, *[1] * (n // 3)]):
        state, outs, start = None, [], 0
        for size in sizes:
            out, state = native_sparse_attention_step(params, x[start : start + size], state, **settings)
            outs.append(out)
            start += size
        np.testing.assert_allclose(np.concatenate(outs), whole, rtol=0, atol=1e-12)
        assert state.length == n


def test_two_may_go_on_from_one_state():
    params, x = case(8)
    _, state = native_sparse_attention_step(params, x[:7], None, **SETTINGS)
    ways = [native_sparse_attention_step(params, tail, state, **SETTINGS)[0] for tail in (x[7:], -x[7:], x[7:])]
    np.testing.assert_array_equal(ways[0], ways[2])
    for way, tail in zip(ways, (x[7:], -x[7:]), strict=False):
        np.testing.assert_allclose(way, native_sparse_attention(params, np.concatenate([x[:7], tail]), **SETTINGS)[0][7:], rtol=0, atol=1e-12)


def test_the_state_is_all_keys_of_one_branch_and_little_of_the_others():
    params, x = case(9, 50)
    state = None
    for t in range(50):
        _, state = native_sparse_attention_step(params, x[t : t + 1], state, **{**SETTINGS, "block": 4})
    assert state.compressed.mean_key.shape == (GROUPS, 1, 13, D_HEAD) and state.compressed.open_value.shape == (GROUPS, 1, 2, D_VALUE)
    assert state.window.keys.shape == (GROUPS, 1, 3, D_HEAD)
    assert state.bytes == 8 * GROUPS * (D_HEAD + D_VALUE) * (50 + 13 + 2 + 3)


@pytest.mark.parametrize("prepare", [on_both(rope), qk_norm], ids=["rope", "qk_norm"])
def test_what_is_prepared_is_prepared_in_every_branch_and_at_its_position(prepare):
    params, x = case(10)
    params = params._replace(prepare=QkNorm(*np.random.default_rng(11).normal(size=(2, D_HEAD))) if prepare is qk_norm else None)
    for branch, changes, form in BRANCHES.values():
        out, backward = native_sparse_attention(only(branch, params), x, prepare=prepare, **{**SETTINGS, **changes})
        wanted, wanted_backward = form(alone(branch, params)._replace(prepare=params.prepare), x, num_heads=HEADS, prepare=prepare)
        np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-12)
        np.testing.assert_allclose(backward(out)[1], wanted_backward(out)[1], rtol=0, atol=1e-11)
    whole, _ = native_sparse_attention(params, x, prepare=prepare, **SETTINGS)
    state = None
    for t in range(13):
        out, state = native_sparse_attention_step(params, x[t : t + 1], state, prepare=prepare, **SETTINGS)
        np.testing.assert_allclose(out[0], whole[t], rtol=0, atol=1e-12)
    assert np.abs(whole - native_sparse_attention(params._replace(prepare=None), x, **SETTINGS)[0]).max() > 1e-3


# In a language model -----------------------------------------------------------------------------------------------


model = partial(
    small_model, mixer="native_sparse_attention", d_model=16, num_heads=4, position="learned",
    options={"mixer": {"num_kv_heads": 2, "block": 2, "top": 2, "window": 2}},
)  # fmt: skip


@pytest.mark.parametrize("position", ["none", "learned", "rope"])
def test_a_language_model_takes_it_by_name_and_steps_equal_the_whole_pass(position):
    params, config = model(position=position)
    assert params.blocks[0].mixer.key.weight.shape == (16, 3 * 2 * 4)
    assert_steps_equal_the_whole_pass(params, config)


def test_it_writes_what_it_would_write_without_a_state():
    assert_it_writes_the_same_without_a_state(*model())


def test_masks_and_biases_are_refused_for_a_mean_has_no_place_for_them():
    assert_it_has_no_place_for("alibi", mixer="native_sparse_attention")


def test_a_model_of_it_learns_to_repeat_what_stood_four_places_back():
    """Neither the window of two nor the block before reaches so far, and means of two say but half of it: the block must be found."""
    params, config = model(17, num_layers=1, options={"mixer": {"block": 2, "top": 4, "window": 2}})
    found = losses(params, config, partial(repeats, back=4, positions=10), steps=200)
    assert found[0] > np.log(WORDS) and np.mean(found[-20:]) < 0.1  # without a block of one\'s choice 0.4 is left


def test_how_it_starts():
    params = init_native_sparse_attention(np.random.default_rng(13), 64, num_heads=4, num_kv_heads=2, std=0.02, residual_std=0.005)
    assert all(leaf.dtype == np.float32 for _, leaf in trees.leaves(params))
    assert [part.weight.shape for part in params[:5]] == [(64, 64), (64, 96), (64, 96), (64, 12), (64, 64)]
    assert [part.bias is None for part in params[:5]] == [True, True, True, False, True] and not params.gate.bias.any() and params.prepare is None
    np.testing.assert_allclose([part.weight.std() for part in params[:5]], [0.02] * 4 + [0.005], rtol=0.06)
    plain = init_native_sparse_attention(np.random.default_rng(13), 64, num_heads=4)
    assert plain.key.weight.shape == (64, 192)
    np.testing.assert_allclose([part.weight.std() * 8 for part in plain[:5]], 1, rtol=0.06)
    np.testing.assert_allclose(init_native_sparse_attention(np.random.default_rng(13), 64, num_heads=4, std=0.02).output.weight.std(), 0.02, rtol=0.05)
    for wrong, name in (({"num_heads": 5}, "num_heads"), ({"num_heads": 0}, "num_heads"), ({"num_heads": 4, "num_kv_heads": 3}, "num_kv_heads")):
        with pytest.raises(ValueError, match=name):
            init_native_sparse_attention(np.random.default_rng(13), 64, **wrong)


# What is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"num_heads": 3}, "num_heads: got 3, wants a number of heads that divides 8"),
        ({"num_heads": 2}, r"num_heads: got 2, wants 12 / 3"),
        ({"block": 0}, "block: got 0"),
        ({"top": 0}, "top: got 0"),
        ({"window": 0}, "window: got 0"),
        ({"key": Linear(np.ones((5, 18)), None)}, r"params\.key\.weight: got 18 features"),
        ({"key": Linear(np.ones((5, 4)), None)}, r"params\.key\.weight: got 4 features"),
        ({"key": Linear(np.ones((5, 13)), None)}, r"params\.key\.weight: got 13 features"),
        ({"value": Linear(np.ones((5, 17)), None)}, r"params\.value\.weight: got 17 features"),
        ({"output": Linear(np.ones((8, 5)), None)}, r"params\.output\.weight: got shape \(8, 5\), wants 12 rows"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, names):
    params, x = case(20)
    settings = {**SETTINGS, **{k: v for k, v in changes.items() if k in SETTINGS}}
    with pytest.raises(ValueError, match=names):
        native_sparse_attention(params._replace(**{k: v for k, v in changes.items() if k not in SETTINGS}), x, **settings)


def test_a_text_without_positions_is_refused():
    params, _ = case(21)
    with pytest.raises(ValueError, match="x: got"):
        native_sparse_attention(params, np.zeros((0, D_MODEL)), **SETTINGS)


# Wrong backwards ---------------------------------------------------------------------------------------------------


def query_of_one_branch(params, x):
    """The query of the window alone: that it is read three times is forgotten."""
    out, backward = native_sparse_attention(params, x, **{**SETTINGS, "top": 50})

    def wrong(dout):
        dparams, dx = backward(dout)
        window = native_sparse_attention(only(2, params), x, **SETTINGS)[1](dout)[0].query
        return dparams._replace(query=window), dx

    return out, wrong


def gates_without_their_slope(params, x):
    """What a gate lets pass for what it is: sigma (1 - sigma) is forgotten."""
    out, backward = native_sparse_attention(params, x, **{**SETTINGS, "top": 50})

    def wrong(dout):
        dparams, dx = backward(dout)
        gate = 1 / (1 + np.exp(-(x @ params.gate.weight + params.gate.bias)))
        slope = (gate * (1 - gate)).mean(axis=tuple(range(x.ndim - 1)))
        return dparams._replace(gate=Linear(dparams.gate.weight / slope, dparams.gate.bias / slope)), dx

    return out, wrong


@pytest.mark.parametrize(("mistake", "path"), [(query_of_one_branch, "query"), (gates_without_their_slope, "gate")])
def test_the_check_refuses(mistake, path):
    params, x = case(22, 4)
    report = check_gradients(mistake, params, x)
    assert not report.passed and path in report.worst.path


@pytest.mark.parity
def test_parity_with_the_three_branches_in_torch():
    torch = pytest.importorskip("torch")
    attend = torch.nn.functional.scaled_dot_product_attention
    params, x = case(23, 19)
    theirs = trees.map(lambda leaf: torch.tensor(leaf, requires_grad=True), params)
    their_x = torch.tensor(x, requires_grad=True)
    q, k, v, z = (their_x @ part.weight + part.bias for part in theirs[:4])
    q = q.unflatten(-1, (HEADS, -1)).transpose(0, 1)
    k, v = (a.unflatten(-1, (3, GROUPS, -1)).permute(1, 2, 0, 3).repeat_interleave(HEADS // GROUPS, dim=1) for a in (k, v))
    gate = torch.sigmoid(z).unflatten(-1, (3, HEADS)).permute(1, 2, 0)[..., None]
    place, blocks = torch.arange(19), torch.arange(10)
    ended = (blocks[:9] + 1) * 2 <= place[:, None] + 1
    pooled = [a[0, :, :18].unflatten(1, (9, 2)).mean(2) for a in (k, v)]
    coarse = torch.nan_to_num(attend(q, *pooled, attn_mask=ended))  # the first position reads nothing
    weights = torch.nan_to_num(torch.softmax((q @ pooled[0].mT / 2**0.5).masked_fill(~ended, -torch.inf), dim=-1)).detach()
    importance = torch.nn.functional.pad(weights.unflatten(0, (GROUPS, -1)).sum(1), (0, 1))
    own = place[:, None] // 2
    importance = importance.masked_fill((blocks == 0) | (blocks == own - 1) | (blocks == own), torch.inf).masked_fill(blocks > own, -torch.inf)
    best = torch.zeros_like(importance, dtype=torch.bool).scatter(-1, importance.topk(4, dim=-1).indices, True)
    causal = place <= place[:, None]
    seen = best.repeat_interleave(2, dim=-1)[..., :19].repeat_interleave(HEADS // GROUPS, dim=0) & causal
    reads = torch.stack([coarse, attend(q, k[1], v[1], attn_mask=seen), attend(q, k[2], v[2], attn_mask=causal & (place > place[:, None] - 3))])
    their_out = (gate * reads).sum(0).transpose(0, 1).flatten(1) @ theirs.output.weight + theirs.output.bias
    dout = np.random.default_rng(24).normal(size=their_out.shape)
    their_out.backward(torch.tensor(dout))
    out, backward = native_sparse_attention(params, x, **SETTINGS)
    dparams, dx = backward(dout)
    np.testing.assert_allclose(out, their_out.detach(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(dx, their_x.grad, rtol=0, atol=1e-9)
    for (path, own_gradient), (_, other) in zip(trees.leaves(dparams), trees.leaves(theirs), strict=True):
        np.testing.assert_allclose(own_gradient, other.grad, rtol=0, atol=1e-9, err_msg=path)
