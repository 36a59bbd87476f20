"""B'MOJO, plain and in blocks: the loop and the dense mask by definition, what makes it B'MOJO, its slots, and PyTorch's attention."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from bmojo_cases import CORES, HEADS, PREPARES, SIZES, case, checked, noting, small, with_slots

from minitransformers import catalogue
from minitransformers.attention.core import softmax_attention
from minitransformers.attention.grouped_query_attention import GroupedQueryAttention
from minitransformers.attention.multi_head_attention import MultiHeadAttention, multi_head_attention
from minitransformers.attention.prepare import on_both
from minitransformers.attention.scalable_softmax import ScalableSoftmax
from minitransformers.attention.sliding_window_attention import sliding_window_attention
from minitransformers.foundation import trees
from minitransformers.hybrids import bmojo as plain_module
from minitransformers.hybrids import bmojo_blocks as blocks_module
from minitransformers.hybrids.bmojo import bmojo, init_bmojo
from minitransformers.hybrids.bmojo_blocks import bmojo_blocks
from minitransformers.hybrids.eidetic_memory import choose, innovation
from minitransformers.norms.qk_norm import QkNorm
from minitransformers.positional.rope import rope
from minitransformers.state_space.mamba import mamba

both = pytest.mark.parametrize("form", [bmojo, bmojo_blocks], ids=["plain", "blocks"])
MODULES = {bmojo: plain_module, bmojo_blocks: blocks_module}


def names_of(params):
    return dict(trees.leaves(params))


# The oracle: one sequence, one position at a time, from the formulas alone -----------------------------------------------


def naive_mamba(p, x):
    """p is a dict of path to array."""
    def softplus(v):
        return anp.log(1 + anp.exp(v))

    def silu(v):
        return v / (1 + anp.exp(-v))

    both = anp.dot(x, p["ssm.in_proj.weight"])
    d_inner, d_state = p["ssm.A_log"].shape
    inner, z = both[:, :d_inner], both[:, d_inner:]
    taps, h, rows = p["ssm.conv.weight"], anp.zeros((d_inner, d_state)), []
    for t in range(len(x)):
        u = p["ssm.conv.bias"]
        for k in range(taps.shape[1]):
            s = t - taps.shape[1] + 1 + k
            if s >= 0:
                u = u + taps[:, k] * inner[s]
        u = silu(u)
        low, B, C = anp.split(anp.dot(u, p["ssm.x_proj.weight"]), [p["ssm.dt_proj.weight"].shape[0], -d_state])
        delta = softplus(anp.dot(low, p["ssm.dt_proj.weight"]) + p["ssm.dt_proj.bias"])
        h = anp.exp(-delta[:, None] * anp.exp(p["ssm.A_log"])) * h + (delta * u)[:, None] * B
        y = (anp.dot(h, C) + p["ssm.D"] * u) * silu(z[t])
        rows.append(anp.dot(y, p["ssm.out_proj.weight"]))
    return anp.stack(rows)


def naive_innovations(x, fading):
    scores, products, squares, past = [], 0 * x[0], 0 * x[0], 0 * x[0]
    for t in range(len(x)):
        squares = squares + past**2
        gain = products / np.where(squares > 0, squares, 1)
        scores.append(((x[t] - gain * past) ** 2).sum())
        products, past = products + past * x[t], fading[t]
    return scores


def naive_sets(scores, n, window, memory):
    return [sorted(range(i - window + 1), key=lambda j: (-scores[j], j))[:memory] for i in range(n)]


def naive(p, x, sets, window, num_heads=HEADS):
    """The output, given which older tokens each query keeps."""
    fading = naive_mamba(p, x)
    def project(name, a):
        return anp.dot(a, p[f"{name}.weight"]) + p[f"{name}.bias"]

    q, k, v, fk, fv = project("query", x), project("key", x), project("value", x), project("key", fading), project("value", fading)
    d, dv, rows = q.shape[1] // num_heads, v.shape[1] // num_heads, []
    for i in range(len(x)):
        near = [*sets[i], *range(max(0, i - window + 1), i + 1)]
        faded = range(max(0, i - 2 * window + 1), i - window + 1)
        heads = []
        for h in range(num_heads):
            ks, vs = slice(h * d, h * d + d), slice(h * dv, h * dv + dv)
            pairs = [(k[j, ks], v[j, vs]) for j in near] + [(fk[j, ks], fv[j, vs]) for j in faded]
            powers = [anp.exp(anp.dot(q[i, ks], key) / d**0.5) for key, _ in pairs]
            heads.append(sum(power * value for power, (_, value) in zip(powers, pairs, strict=True)) / sum(powers))
        rows.append(project("output", anp.concatenate(heads)))
    return anp.stack(rows)


@both
@pytest.mark.parametrize(("window", "memory"), [(3, 2), (1, 4), (2, 0), (5, 20), (30, 3)])
def test_it_is_the_naive_loop_and_its_gradients_are_autograd_s(window, memory, form):
    params, x = case(positions=11, batch=())
    out, backward = form(params, x, num_heads=HEADS, window=window, memory=memory)
    p = names_of(params)
    sets = naive_sets(naive_innovations(x, naive_mamba(p, x)), len(x), window, memory)
    np.testing.assert_allclose(out, naive(p, x, sets, window), rtol=0, atol=1e-12)
    dp, dx = autograd.grad(lambda p, x: anp.sum(np.cos(out) * naive(p, x, sets, window)), (0, 1))(p, x)
    dparams, own_dx = backward(np.cos(out))
    np.testing.assert_allclose(own_dx, dx, rtol=0, atol=1e-11)
    for path, own in trees.leaves(dparams):
        np.testing.assert_allclose(own, dp[path], rtol=0, atol=1e-11, err_msg=path)


# What makes it B'MOJO ----------------------------------------------------------------------------------------------------


@both
def test_without_memory_and_with_silent_fading_it_is_sliding_window_attention_beside_a_sink_of_zeros(form):
    """A fading token of zeros still takes its share of the softmax: so its keys are pushed out of sight."""
    params, x = case()
    ssm = params.ssm._replace(out_proj=params.ssm.out_proj._replace(weight=0 * params.ssm.out_proj.weight))
    away = np.full(8, 1e3)                                   # all tokens and queries share a feature, which fading tokens lack
    query, key = (part._replace(bias=part.bias + push) for part, push in ((params.query, away), (params.key, 0)))
    x = np.concatenate([x[..., :-1], np.ones_like(x[..., :1])], axis=-1)
    key = key._replace(weight=np.concatenate([key.weight[:-1], np.full((1, 8), 1.0)]))
    params = params._replace(ssm=ssm, query=query, key=key)
    own = form(params, x, num_heads=HEADS, window=4, memory=0)[0]
    windowed = sliding_window_attention(GroupedQueryAttention(*params[1:]), x, num_heads=HEADS, window=4)[0]
    np.testing.assert_allclose(own, windowed, rtol=0, atol=1e-9)


@both
@pytest.mark.parametrize("memory", [0, 3])
def test_a_window_as_long_as_the_text_is_full_attention(memory, form):
    params, x = case()
    out, backward = form(params, x, num_heads=HEADS, window=14, memory=memory)
    full, full_backward = multi_head_attention(MultiHeadAttention(*params[1:]), x, num_heads=HEADS)
    np.testing.assert_allclose(out, full, rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(np.cos(out))[1], full_backward(np.cos(out))[1], rtol=0, atol=1e-12)


def dense(params, x, sees_token, sees_fading, prepare=None, core=None):
    """Multi-head attention over [x, fading] under a dense mask, by numpy alone, or with what stands in the slots."""
    fading, n = mamba(params.ssm, x)[0], x.shape[-2]
    tokens = np.concatenate([x, fading], axis=-2)
    q, k, v = ((t @ p.weight + p.bias).reshape(*t.shape[:-1], HEADS, -1).swapaxes(-2, -3) for p, t in zip(params[1:4], (x, tokens, tokens), strict=True))
    if prepare is not None:                                  # each stream by itself, so that its rows stand at 0, 1, ...
        (q, own), (_, faded) = (prepare(params.prepare, q, k[..., rows, :])[0] for rows in (slice(n), slice(n, None)))
        k = np.concatenate([own, faded], axis=-2)
    sees = np.concatenate(np.broadcast_arrays(sees_token, sees_fading), axis=-1)[..., None, :, :]
    if core is None:
        scores = np.where(sees, q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        heads = weights / weights.sum(-1, keepdims=True) @ v
    else:
        heads = core(params.core, q, k, v, mask=sees)[0]
    merged = heads.swapaxes(-2, -3).reshape(*x.shape[:-1], -1)
    return merged @ params.output.weight + params.output.bias


def masks(params, x, window, memory):
    n = x.shape[-2]
    i, j = np.arange(n)[:, None], np.arange(n)
    scores = innovation(x, mamba(params.ssm, x)[0])[0]
    kept = np.zeros((*scores.shape[:-1], n, n), bool)
    for index in np.ndindex(scores.shape[:-1]):
        for query, chosen in enumerate(naive_sets(scores[index], n, window, memory)):
            kept[index][query, chosen] = True
    return kept | ((i - window < j) & (j <= i)), (i - 2 * window < j) & (j <= i - window)


@both
@pytest.mark.parametrize("prepare", [None, on_both(rope)], ids=["unprepared", "rope"])
@pytest.mark.parametrize(("window", "memory"), [(3, 2), (4, 0), (1, 1), (2, 9), (14, 2), (5, 3)])
def test_both_forms_equal_the_dense_mask(window, memory, prepare, form):
    params, x = case(batch=(2, 3))
    out, _ = form(params, x, num_heads=HEADS, window=window, memory=memory, **({"prepare": prepare} if prepare else {}))
    np.testing.assert_allclose(out, dense(params, x, *masks(params, x, window, memory), prepare), rtol=0, atol=1e-12)


@both
def test_a_memory_for_all_is_full_attention_beside_the_fading_tokens(form):
    params, x = case()
    i, j = np.arange(14)[:, None], np.arange(14)
    own, _ = form(params, x, num_heads=HEADS, window=3, memory=14)
    np.testing.assert_allclose(own, dense(params, x, j <= i, (i - 6 < j) & (j <= i - 3)), rtol=0, atol=1e-12)


@both
def test_no_output_sees_a_later_token_though_the_choice_looks_at_all_of_them(form):
    params, x = case(batch=())
    out, _ = form(params, x, **SIZES)
    for t in range(14):
        changed = x.copy()
        changed[t] += 5                                      # a great surprise: it will push others out, later
        other, _ = form(params, changed, **SIZES)
        np.testing.assert_array_equal(other[:t], out[:t])
        assert (other[t] != out[t]).all()


@both
def test_only_a_chosen_token_reaches_beyond_both_windows(form):
    """With the recurrence cut off, x_j moves out_i if and only if j is in the window or in the set of i."""
    params, x = case(batch=())
    ssm = params.ssm._replace(out_proj=params.ssm.out_proj._replace(weight=0 * params.ssm.out_proj.weight))
    params = params._replace(ssm=ssm)
    sees, _ = masks(params, x, 3, 2)
    for i in range(14):
        dout = np.zeros_like(x)
        dout[i] = 1.0
        dx = form(params, x, **SIZES)[1](dout)[1]
        assert ((np.abs(dx).max(-1) > 0) == sees[i]).all()   # exactly zero elsewhere
    assert sees[13].sum() == 5


@both
def test_the_backward_is_the_gradient_of_the_map_with_the_choice_held_fixed(monkeypatch, form):
    """Freeze the choice, and the gradient check passes even where the innovations are all but equal."""
    module, name = {bmojo: (plain_module, "eidetic_mask"), bmojo_blocks: (blocks_module, "choose")}[form]
    params, x = small()
    x[:, :] = x[:, :1] + 1e-6 * x                            # nearly the same token: any step changes the choice
    found, original = {}, getattr(module, name)

    def frozen(surprise, **sizes):
        return found.setdefault("choice", original(surprise, **sizes))

    _, backward = form(params, x, **SIZES)
    dout = np.random.default_rng(1).normal(size=x.shape)
    free = backward(dout)
    monkeypatch.setattr(module, name, frozen)
    for (_, own), (_, other) in zip(trees.leaves(free), trees.leaves(form(params, x, **SIZES)[1](dout)), strict=True):
        np.testing.assert_array_equal(own, other)
    assert checked(partial(form, **SIZES), params, x, second_opinion=False).passed


def test_the_example_stays_on_one_side_of_its_choice_under_a_finite_difference():
    call = catalogue.find("bmojo").example(np.random.default_rng(0))

    def choice(params, x):
        return choose(innovation(x, mamba(params.ssm, x)[0])[0], window=3, memory=2)

    places, chosen = choice(*call.args)
    for which, (_, leaf) in enumerate(trees.leaves(call.args)):
        for index in np.ndindex(leaf.shape):
            for step in (2e-3, -2e-3):                       # the largest that a check takes
                leaves = [own.copy() for _, own in trees.leaves(call.args)]
                leaves[which][index] += step * max(1, abs(leaf[index]))
                own_places, own_chosen = choice(*trees.unflatten(call.args, leaves))
                assert np.array_equal(own_places, places) and np.array_equal(own_chosen, chosen)


# The slots ---------------------------------------------------------------------------------------------------------------


@both
def test_a_scale_is_a_setting_of_the_core(form):
    params, x = case()
    query = trees.map(lambda leaf: 0.6 * leaf, params.query)
    own, other = ((p, partial(softmax_attention, scale=scale)) for p, scale in ((params, 0.3), (params._replace(query=query), 0.5)))
    np.testing.assert_allclose(*(form(p, x, **SIZES, core=core)[0] for p, core in (own, other)), rtol=0, atol=1e-12)


@both
@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("prepare", PREPARES)
def test_whatever_stands_in_the_slots_sees_what_the_dense_mask_allows(prepare, core, form):
    params, slots = with_slots(case()[0], prepare, core)
    x = case()[1]
    own, _ = form(params, x, num_heads=HEADS, window=3, memory=2, **slots)
    expected = dense(params, x, *masks(params, x, 3, 2), slots["prepare"], slots["core"])
    np.testing.assert_allclose(own, expected, rtol=0, atol=1e-12)


@both
@pytest.mark.parametrize(("prepare", "core"), [("rope", "soft cap"), ("QK-norm", "SSMax"), ("QK-norm, then rope", "sink"), ("none", "sparsemax")])
def test_gradients_are_right_with_what_the_slots_learn(prepare, core, form):
    params, x = small()
    params, slots = with_slots(params, prepare, core)
    report = checked(partial(form, **SIZES, **slots), params, x, second_opinion=False)
    assert report.passed, str(report)
    learned = {a.path for a in report.arguments if a.path.startswith(("params.prepare", "params.core"))}
    assert len(learned) == len([*trees.leaves((params.prepare, params.core))])


def test_queries_and_both_kinds_of_key_are_prepared_at_their_own_positions():
    """One more position for all changes nothing under RoPE; one more for one stream alone would."""
    params, x = case()
    turn = lambda x, *, positions: rope(x, positions=3 + np.arange(x.shape[-2]))  # noqa: E731
    own, moved = (bmojo(params, x, **SIZES, prepare=on_both(t))[0] for t in (rope, turn))
    np.testing.assert_allclose(own, moved, rtol=0, atol=1e-12)
    assert np.abs(own - bmojo(params, x, **SIZES)[0]).max() > 1e-3


def test_a_prepare_is_told_the_positions_none_for_a_whole_text():
    params, x = case()
    seen = []
    bmojo(params, x, **SIZES, prepare=noting(seen))
    assert seen == [None]


@both
def test_the_core_learns_for_as_many_heads_as_there_are(form):
    params, x = case()
    with pytest.raises(ValueError, match=r"params\.core\.scale: got 3 heads, wants num_heads = 2"):
        form(params._replace(core=ScalableSoftmax(np.ones(3))), x, **SIZES, core=CORES["SSMax"][0])


@both
def test_what_is_learned_in_a_slot_is_not_dropped_in_silence(form):
    params, x = case()
    for field, learned in (("prepare", QkNorm(np.ones(4), np.ones(4))), ("core", ScalableSoftmax(np.ones(2)))):
        with pytest.raises(ValueError, match=r"params: got .*, wants None"):
            form(params._replace(**{field: learned}), x, **SIZES)


# Bad calls, and how it begins --------------------------------------------------------------------------------------------


@both
def test_heads_divide_the_values_too(form):
    params, x = case()
    value, output = (trees.map(lambda leaf: leaf[..., :7], params.value), params.output._replace(weight=params.output.weight[:7]))
    with pytest.raises(ValueError, match="num_heads: got 2"):
        form(params._replace(value=value, output=output), x, **SIZES)


@both
def test_a_recurrence_of_another_width_is_refused_by_name(form):
    params, x = case()
    with pytest.raises(ValueError, match=r"as in params\.ssm\.in_proj\.weight"):
        form(params._replace(ssm=case(d_model=6)[0].ssm), x, **SIZES)


def test_initial_maps_have_the_deviation_asked_for_and_the_recurrence_its_own():
    params = init_bmojo(np.random.default_rng(0), 64, num_heads=4, std=0.02, residual_std=0.005)
    found = [np.std(part.weight) for part in (params.query, params.key, params.value, params.output, params.ssm.out_proj)]
    np.testing.assert_allclose(found, [0.02, 0.02, 0.02, 0.005, 128**-0.5], rtol=0.1)
    assert params.query.bias is None and params.query.weight.dtype == np.float32


# Plausible mistakes ------------------------------------------------------------------------------------------------------


def refused(wrong):
    params, x = small(10)
    return {a.path for a in checked(wrong, params, x, second_opinion=False).arguments if a.error > 1e-4}


@both
def test_the_check_refuses_a_backward_that_forgets_the_way_through_the_recurrence(form):
    def wrong(params, x):
        out, backward = form(params, x, **SIZES)
        fading, ssm_backward = mamba(params.ssm, x)

        def forgetful(dout):
            dparams, dx = backward(dout)
            found = {}
            with pytest.MonkeyPatch.context() as patch:      # what mamba's backward gives is caught, and taken away again
                patch.setattr(MODULES[form], "mamba", lambda p, x: (fading, lambda dfading: found.setdefault("dx", ssm_backward(dfading))))
                form(params, x, **SIZES)[1](dout)
            return dparams, dx - found["dx"][1]

        return out, forgetful

    assert refused(wrong) == {"x"}


@both
def test_the_check_refuses_fading_tokens_of_one_position_too_young(form):
    def wrong(params, x):
        return form(params, x, **SIZES)[0], form(params, x, **{**SIZES, "window": 2})[1]

    assert refused(wrong)


# Parity ------------------------------------------------------------------------------------------------------------------


def torch_mamba(torch, p, x):
    """The recurrence as PyTorch operations; x is (batch, positions, d_model)."""
    F = torch.nn.functional
    d_inner, d_state = p["ssm.A_log"].shape
    inner, z = (x @ p["ssm.in_proj.weight"]).split(d_inner, dim=-1)
    width = p["ssm.conv.weight"].shape[1]
    conv = F.conv1d(inner.transpose(1, 2), p["ssm.conv.weight"][:, None], p["ssm.conv.bias"], padding=width - 1, groups=d_inner)
    u = F.silu(conv[..., : x.shape[1]].transpose(1, 2))
    low, B, C = (u @ p["ssm.x_proj.weight"]).split([p["ssm.dt_proj.weight"].shape[0], d_state, d_state], dim=-1)
    delta = F.softplus(low @ p["ssm.dt_proj.weight"] + p["ssm.dt_proj.bias"])
    h, rows = torch.zeros(len(x), d_inner, d_state, dtype=x.dtype), []
    for t in range(x.shape[1]):
        h = torch.exp(-delta[:, t, :, None] * torch.exp(p["ssm.A_log"])) * h + (delta * u)[:, t, :, None] * B[:, t, None]
        rows.append((h @ C[:, t, :, None])[..., 0] + p["ssm.D"] * u[:, t])
    return (torch.stack(rows, 1) * F.silu(z)) @ p["ssm.out_proj.weight"]


def torch_projections(torch, p, x):
    def heads(name, t):
        return (t @ p[f"{name}.weight"] + p[f"{name}.bias"]).unflatten(-1, (HEADS, -1)).transpose(1, 2)

    fading = torch_mamba(torch, p, x)
    return heads("query", x), heads("key", x), heads("value", x), heads("key", fading), heads("value", fading)


def compare(torch, form, params, x, settings, heads_of):
    tensors = {path: torch.tensor(leaf, requires_grad=True) for path, leaf in trees.leaves(params)}
    inputs = torch.tensor(x, requires_grad=True)
    theirs = heads_of(*torch_projections(torch, tensors, inputs)).transpose(1, 2).flatten(-2) @ tensors["output.weight"] + tensors["output.bias"]
    out, backward = form(params, x, **settings)
    np.testing.assert_allclose(out, theirs.detach(), rtol=0, atol=1e-9)
    theirs.backward(torch.tensor(np.cos(out)))
    dparams, dx = backward(np.cos(out))
    np.testing.assert_allclose(dx, inputs.grad, rtol=0, atol=1e-9)
    for path, own in trees.leaves(dparams):
        np.testing.assert_allclose(own, tensors[path].grad, rtol=0, atol=1e-9, err_msg=path)


@pytest.mark.parity
@both
def test_it_is_pytorch_s_attention_under_the_dense_mask(form):
    torch = pytest.importorskip("torch")
    params, x = case()
    sees = torch.tensor(np.concatenate(np.broadcast_arrays(*masks(params, x, 3, 2)), axis=-1))[:, None]

    def heads_of(q, k, v, fk, fv):
        return torch.nn.functional.scaled_dot_product_attention(q, torch.cat([k, fk], 2), torch.cat([v, fv], 2), attn_mask=sees)

    compare(torch, form, params, x, SIZES, heads_of)


@pytest.mark.parity
@both
def test_without_memory_it_is_two_attentions_merged_by_their_log_sums(form):
    """As B'MOJO-F is computed where attention is a kernel that cannot take two kinds of token: merged afterwards."""
    torch = pytest.importorskip("torch")
    params, x = case()
    window, fading = (torch.tensor(mask) for mask in masks(params, x, 3, 0))

    def one(q, k, v, mask):
        scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf)
        total = scores.logsumexp(-1, keepdim=True)
        seen = torch.isfinite(total)
        weights = torch.exp(scores - torch.where(seen, total, 0.0))
        return weights @ v, total

    def heads_of(q, k, v, fk, fv):
        (near, near_sum), (far, far_sum) = one(q, k, v, window[:, None] if window.ndim > 2 else window), one(q, fk, fv, fading)
        both = torch.logaddexp(near_sum, far_sum)
        return near * torch.exp(near_sum - both) + far * torch.exp(far_sum - both)

    compare(torch, form, params, x, {**SIZES, "memory": 0}, heads_of)
