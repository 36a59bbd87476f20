"""State-space duality: cores that give one map, steps within limits, the gate and the way past, and the authors' formula."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from naive_ssd import assert_same, everything, naive_ssd

from minitransformers.foundation import check_gradients
from minitransformers.state_space.selective_scan import selective_scan
from minitransformers.state_space.ssd import ssd
from minitransformers.state_space.ssd_chunked import ssd_chunked
from minitransformers.state_space.ssd_quadratic import ssd_quadratic
from minitransformers.state_space.ssd_recurrent import ssd_recurrent

CORES = {"recurrent": ssd_recurrent, "quadratic": ssd_quadratic, **{f"chunks of {q}": partial(ssd_chunked, chunk=q) for q in (1, 3, 4, 16)}}
every_core = pytest.mark.parametrize("core", CORES.values(), ids=CORES)
three_cores = pytest.mark.parametrize("core", list(CORES.values())[:3], ids=list(CORES)[:3])
either_skip = pytest.mark.parametrize("skips", [1, 3], ids=["D of a head", "D of a feature"])
in_fours = partial(ssd_chunked, chunk=4)


def case(n=11, heads=4, groups=2, d_head=3, d_state=5, seed=0, skips=1):
    """x, delta, A, B, C, D, z, state and a dout."""
    rng = np.random.default_rng(seed)
    arguments = (
        rng.normal(size=(n, heads, d_head)), rng.uniform(0.05, 1.0, size=(n, heads)), -rng.uniform(0.2, 2.0, size=heads),
        rng.normal(size=(n, groups, d_state)), rng.normal(size=(n, groups, d_state)), rng.normal(size=(heads, skips)),
        rng.normal(size=(n, heads, d_head)), rng.normal(size=(heads, d_head, d_state)),
    )  # fmt: skip
    return arguments, (rng.normal(size=(n, heads, d_head)), rng.normal(size=(heads, d_head, d_state)))


def naive(x, delta, A, B, C, D, z, state, limit):
    steps = anp.where(delta < limit[0], limit[0], anp.where(delta > limit[1], limit[1], delta))
    y, final = naive_ssd(steps[:, :, None] * x, steps * A, B, C, state)
    return (y + D * x) * z / (1 + anp.exp(-z)), final


@every_core
@either_skip
@pytest.mark.parametrize("limit", [None, (0.3, 0.7)], ids=["no limit", "limit"])
def test_every_core_equals_the_naive_loop_and_its_gradients(core, skips, limit):
    arguments, (dout, dstate) = case(skips=skips)
    oracle = partial(naive, limit=limit or (0.0, np.inf))

    def loss(arguments):
        out, final = oracle(*arguments)
        return anp.sum(dout * out) + anp.sum(dstate * final)

    expected = [*oracle(*arguments), *autograd.grad(loss)(arguments)]
    assert_same(everything(ssd, arguments, (dout, dstate), core=core, delta_limit=limit), expected)


@every_core
def test_every_core_does_without_a_skip_a_gate_and_a_state(core):
    (x, delta, A, B, C, D, _, state), dout = case()
    found = everything(ssd, (x, delta, A, B, C, None, None, None), dout, core=core)
    assert found[7:] == [None, None, None]
    (read, final), backward = core(delta[..., None] * x, delta * A, B, C, np.zeros_like(state))
    dinput, dlog_decay, dB, dC, _ = backward(dout)
    dx, ddelta, dA = delta[..., None] * dinput, np.vecdot(dinput, x) + A * dlog_decay, (delta * dlog_decay).sum(0)
    assert_same(found[:7], [read, final, dx, ddelta, dA, dB, dC])
    zeros = everything(ssd, (x, delta, A, B, C, np.zeros_like(D), None, np.zeros_like(state)), dout, core=core)
    assert_same(found[:7], zeros[:7])


@every_core
def test_one_position_is_one_step(core):
    (x, delta, A, B, C, D, z, state), _ = case(n=1)
    out, final = ssd(x, delta, A, B, C, D, z, state, core=core)[0]
    key = np.repeat(B[0], 2, axis=0)
    expected = np.exp(delta[0] * A)[:, None, None] * state + (delta[0, :, None] * x[0])[:, :, None] * key[:, None, :]
    np.testing.assert_allclose(final, expected, rtol=0, atol=1e-14)
    y = (expected @ np.repeat(C[0], 2, axis=0)[:, :, None])[..., 0] + D * x[0]
    np.testing.assert_allclose(out[0], y * z[0] / (1 + np.exp(-z[0])), rtol=0, atol=1e-13)


def no_mixing(values, log_decay, B, C, state):
    """A core that lets everything by, and its dout as well."""
    return (values, state), lambda dout: (dout[0], np.zeros_like(log_decay), np.zeros_like(B), np.zeros_like(C), dout[1])


def test_the_core_gets_values_decays_keys_queries_and_the_state_and_its_results_are_used():
    (x, delta, A, B, C, D, z, state), dout = case()
    asked = []

    def watched(*arguments):
        asked.append(arguments)
        return ssd_recurrent(*arguments)

    own = everything(ssd, (x, delta, A, B, C, D, z, state), dout, core=watched)
    assert_same(own, everything(ssd, (x, delta, A, B, C, D, z, state), dout))
    (arguments,) = asked
    assert_same(arguments, (delta[..., None] * x, delta * A, B, C, state), atol=0)
    assert_same(ssd(x, delta, A, B, C, D, None, state, core=no_mixing)[0], ((delta[..., None] + D) * x, state))


def test_a_core_that_hands_its_dout_back_does_not_see_it_overwritten():
    (x, delta, A, B, C, D, _, state), (dout, dstate) = case()
    before = dout.copy()
    dx, *_ = ssd(x, delta, A, B, C, D, None, state, core=no_mixing)[1]((dout, dstate))
    np.testing.assert_array_equal(dout, before)
    np.testing.assert_allclose(dx, (delta[..., None] + D) * dout, rtol=0, atol=1e-14)


@pytest.mark.parametrize("cuts", [(5,), (1, 2, 9)])
def test_pieces_of_a_sequence_with_the_state_handed_on_equal_the_whole(cuts):
    (x, delta, A, B, C, D, z, state), _ = case()
    run = partial(ssd, core=in_fours, delta_limit=(0.2, 0.8))
    whole, final = run(x, delta, A, B, C, D, z, state)[0]
    parts = []
    for start, end in zip((0, *cuts), (*cuts, 11), strict=True):
        part = np.s_[start:end]
        out, state = run(x[part], delta[part], A, B[part], C[part], D, z[part], state)[0]
        parts.append(out)
    assert_same([np.concatenate(parts), state], [whole, final])


def test_a_later_input_changes_no_earlier_output():
    (x, delta, A, B, C, D, z, state), _ = case()
    out, _ = ssd(x, delta, A, B, C, D, z, state, core=in_fours)[0]
    changed = [a.copy() for a in (x, delta, B, C, z)]
    for a in changed:
        a[6] += 1
    after, _ = ssd(changed[0], changed[1], A, *changed[2:4], D, changed[4], state, core=in_fours)[0]
    np.testing.assert_array_equal(after[:6], out[:6])
    assert np.abs(after[6:] - out[6:]).min(axis=(1, 2)).all()


def test_a_very_fast_decay_leaves_each_position_to_itself():
    (x, delta, A, B, C, D, _, state), _ = case()
    y, _ = ssd(x, delta, 1e6 * A, B, C, D, None, state)[0]
    own = np.repeat(np.vecdot(C, B), 2, axis=-1)             # C_t . B_t, for each head
    np.testing.assert_allclose(y, ((own * delta)[..., None] + D) * x, rtol=0, atol=1e-12)


def test_a_step_of_zero_makes_a_position_invisible():
    (x, delta, A, B, C, _, z, state), _ = case()
    delta[4] = 0
    rest = np.arange(11) != 4
    out, final = ssd(x, delta, A, B, C, None, z, state, core=in_fours)[0]
    out_rest, final_rest = ssd(x[rest], delta[rest], A, B[rest], C[rest], None, z[rest], state, core=in_fours)[0]
    assert_same([out[rest], final], [out_rest, final_rest])


def test_permuting_the_heads_permutes_the_outputs():
    (x, delta, A, B, C, D, z, state), _ = case(groups=1, skips=3)
    order = [2, 0, 3, 1]
    out, final = ssd(x, delta, A, B, C, D, z, state)[0]
    permuted = ssd(x[:, order], delta[:, order], A[order], B, C, D[order], z[:, order], state[order])[0]
    assert_same(permuted, [out[:, order], final[order]])


def test_heads_of_a_group_share_and_their_gradients_add():
    (x, delta, A, B, C, *rest), dout = case(groups=2)
    tiled = everything(ssd, (x, delta, A, np.repeat(B, 2, axis=1), np.repeat(C, 2, axis=1), *rest), dout)
    for place in (5, 6):                                     # dB, dC
        tiled[place] = tiled[place].reshape(11, 2, 2, 5).sum(2)
    assert_same(everything(ssd, (x, delta, A, B, C, *rest), dout), tiled)


def test_a_skip_of_a_head_is_one_for_each_of_its_features_and_their_gradients_add():
    (x, delta, A, B, C, D, z, state), dout = case(skips=1)
    of_features = everything(ssd, (x, delta, A, B, C, np.repeat(D, 3, axis=1), z, state), dout)
    of_features[7] = of_features[7].sum(1, keepdims=True)    # dD
    assert_same(everything(ssd, (x, delta, A, B, C, D, z, state), dout), of_features)


def test_the_gate_closes_and_opens_the_output_and_leaves_the_state_alone():
    (x, delta, A, B, C, D, z, state), (dout, dstate) = case()
    y, final = ssd(x, delta, A, B, C, D, None, state)[0]
    for gate, factor, slope in ((0.0, 0.0, 0.5), (-800.0, 0.0, 0.0), (800.0, 800.0, 1.0)):
        out, last, *_, dz, _ = everything(ssd, (x, delta, A, B, C, D, np.full_like(z, gate), state), (dout, dstate))
        assert_same([out, last, dz], [factor * y, final, slope * dout * y], atol=1e-10)


@three_cores
@either_skip
def test_it_is_the_selective_scan_with_one_rate_and_one_step_a_head(core, skips):
    (x, delta, A, B, C, D, z, state), (dout, dstate) = case(skips=skips)
    wide = lambda a: np.repeat(a, 3, axis=-1)  # noqa: E731  # a head's number for each of its channels
    flat = lambda a: a.reshape(*a.shape[:-2], 12)  # noqa: E731
    rates, skip = np.tile(wide(A)[:, None], 5), flat(np.broadcast_to(D, (4, 3)))
    tiled = (flat(x), wide(delta), rates, B, C, skip, flat(z), state.reshape(12, 5))
    out, final, du, ddelta, dA, dB, dC, dD, dz, dinitial = everything(selective_scan, tiled, (flat(dout), dstate.reshape(12, 5)))
    by_head = lambda a: a.reshape(*a.shape[:-1], 4, 3)  # noqa: E731
    dD = by_head(dD) if skips == 3 else by_head(dD).sum(1, keepdims=True)
    expected = [
        by_head(out), final.reshape(4, 3, 5), by_head(du), by_head(ddelta).sum(-1), by_head(dA.sum(-1)).sum(-1), dB, dC, dD, by_head(dz),
        dinitial.reshape(4, 3, 5),
    ]  # fmt: skip
    assert_same(everything(ssd, (x, delta, A, B, C, D, z, state), (dout, dstate), core=core), expected)


@three_cores
def test_float32_stays_finite_under_enormous_steps_and_rates(core):
    arguments, dout = case()
    x, delta, A, *rest = (a.astype(np.float32) for a in arguments)
    results = everything(ssd, (x, 1e4 * delta, 1e6 * A, *rest), [d.astype(np.float32) for d in dout], core=core)
    assert all(np.isfinite(a).all() and a.dtype == np.float32 for a in results)


# The limit of the steps ----------------------------------------------------------------------------------------------


def test_steps_outside_the_limit_are_clipped_and_have_no_gradient():
    (x, delta, A, *rest), dout = case()
    outside = (delta < 0.3) | (delta > 0.7)
    assert outside.any() and not outside.all()
    limited = everything(ssd, (x, delta, A, *rest), dout, delta_limit=(0.3, 0.7))
    clipped = everything(ssd, (x, np.minimum(np.maximum(delta, 0.3), 0.7), A, *rest), dout)
    clipped[3][outside] = 0                                  # ddelta; every other gradient is that at the clipped steps
    assert_same(limited, clipped, atol=0)
    assert (limited[3][~outside] != 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_step_on_the_edge_of_the_limit_is_inside(dtype):
    arguments, dout = case(n=3)
    x, delta, A, *rest = (a.astype(dtype) for a in arguments)
    dout = [d.astype(dtype) for d in dout]
    low, high = 0.1, 0.7                                     # neither is a binary fraction: in float32 they are other numbers
    delta[:] = np.array([low, 0.5, high], dtype)[:, None]
    assert_same(everything(ssd, (x, delta, A, *rest), dout, delta_limit=(low, high)), everything(ssd, (x, delta, A, *rest), dout), atol=0)
    beyond = delta + np.array([-1e-6, 0, 1e-6], dtype)[:, None]
    ddelta = everything(ssd, (x, beyond, A, *rest), dout, delta_limit=(low, high))[3]
    assert not ddelta[[0, 2]].any() and ddelta[1].all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("limit", [(0.0, np.inf), [0, np.float64(1e30)], (0.0, 1e300)], ids=str)
def test_a_limit_that_no_step_meets_changes_nothing(dtype, limit):
    arguments, dout = case()
    arguments, dout = ([a.astype(dtype) for a in part] for part in (arguments, dout))
    arguments[1][2] = 0
    limited, free = everything(ssd, arguments, dout, delta_limit=limit), everything(ssd, arguments, dout)
    assert all(a.dtype == dtype for a in limited)
    assert_same(limited, free, atol=0)


def test_a_low_limit_lets_no_position_pass_unnoticed_and_a_limit_of_one_step_makes_all_alike():
    (x, delta, A, *rest), _ = case()
    alike = ssd(x, np.full_like(delta, 0.4), A, *rest)[0]
    for steps in (np.zeros_like(delta), delta):
        assert_same(ssd(x, steps, A, *rest, delta_limit=(0.4, 0.4))[0], alike, atol=0)


def test_steps_times_rates_that_overflow_are_named_and_a_limit_prevents_it():
    (x, delta, A, *rest), _ = case()
    endless, steep = np.full_like(delta, 1e300), np.full_like(A, -1e300)
    with pytest.raises(ValueError, match="delta: got steps up to 1e\\+300 and rates down to -1e\\+300"):
        ssd(x, endless, steep, *rest)
    assert_same(ssd(x, endless, steep, *rest, delta_limit=(0, 2))[0], ssd(x, np.full_like(delta, 2.0), steep, *rest)[0], atol=0)


@pytest.mark.parametrize(
    "limit, message",
    [
        ((0.7, 0.3), r"delta_limit: got \(0.7, 0.3\), wants a finite low and a high step, the low one first"),
        ((np.inf, np.inf), r"delta_limit: got \(inf, inf\), wants a finite low and a high step, the low one first"),
        ((0.1, 0.2, 0.3), r"delta_limit: got \(0.1, 0.2, 0.3\), wants a finite low and a high step, the low one first"),
        ((-0.1, 0.7), "delta_limit.0: got -0.1, wants a finite number of at least 0, or infinity"),
        ((-0.3, -0.1), "delta_limit.0: got -0.3, wants a finite number of at least 0, or infinity"),
        ((np.nan, 0.7), "delta_limit.0: got nan, wants"),
        ((0.3, np.nan), "delta_limit.1: got nan, wants"),
        ((0.3, "long"), "delta_limit.1: got 'long', wants"),
        (0.3, "delta_limit: got 0.3, wants a list or a tuple"),
    ],
    ids=str,
)
def test_a_limit_that_is_none_is_named(limit, message):
    with pytest.raises(ValueError, match=message):
        ssd(*case()[0], delta_limit=limit)


@pytest.mark.parametrize("shape", [(4,), (3,), (3, 1), (4, 2), (1, 3), (11, 4, 3)], ids=str)
def test_a_skip_of_another_shape_is_named(shape):
    (x, delta, A, B, C, _, z, state), _ = case()
    with pytest.raises(ValueError, match=r"D: got shape .*, wants \(heads, #d_head\)"):
        ssd(x, delta, A, B, C, np.ones(shape), z, state)


# Mistakes that the check must refuse, and the authors' formula ---------------------------------------------------------


def with_the_step_on_the_input_only(x, delta, A, B, C, D, z, state):
    out, backward = ssd(x, delta, A, B, C, D, z, state)

    def wrong(dout):
        dx, _, dA, *rest = backward(dout)
        gated = dout[0] * z / (1 + np.exp(-z))
        dinput = (dx - D * gated) / delta[..., None]
        return dx, np.vecdot(dinput, x), dA, *rest           # the step's part in the decay is lost

    return out, wrong


def with_clipped_steps_that_learn(x, delta, A, B, C, D, z, state):
    rest = A, B, C, D, z, state
    out, backward = ssd(x, delta, *rest, delta_limit=(0.3, 0.7))

    def wrong(dout):
        dx, _, *others = backward(dout)
        _, free = ssd(x, np.clip(delta, 0.3, 0.7), *rest)
        return dx, free(dout)[1], *others                    # straight through the clip

    return out, wrong


def with_the_gate_before_the_skip(x, delta, A, B, C, D, z, state):
    out, backward = ssd(x, delta, A, B, C, D, z, state)
    return out, lambda dout: (*backward(dout)[:5], (dout[0] * x).sum((0, -1))[:, None], *backward(dout)[6:])


@pytest.mark.parametrize(
    "mistake, where",
    [(with_the_step_on_the_input_only, "delta"), (with_clipped_steps_that_learn, "delta"), (with_the_gate_before_the_skip, "D")],
)
def test_the_checker_refuses(mistake, where):
    report = check_gradients(mistake, *case(4, heads=2, groups=1, d_state=2)[0])
    assert not report.passed and report.worst.path == where
    assert [a.path for a in report.arguments if a.error > 1e-6] == [report.worst.path]


def published_minimal(torch, inputs, log_decay, B, C, block, initial):
    """The four steps of the paper's listing 1 in torch, with its einsums; one group, length a multiple of the block."""
    batch, n, heads, _ = inputs.shape

    def sums(a):
        size = a.shape[-1]
        low = torch.ones(size, size, dtype=torch.bool)
        repeated = a[..., :, None].expand(*a.shape, size).masked_fill(~low.tril(-1), 0)
        return repeated.cumsum(-2).masked_fill(~low.tril(0), -torch.inf)

    X, B, C = (a.reshape(batch, n // block, block, *a.shape[2:]) for a in (inputs, B, C))
    decay = log_decay.reshape(batch, n // block, block, heads).permute(0, 3, 1, 2)
    running = decay.cumsum(-1)
    diagonal = torch.einsum("bclgn,bcsgn,bhcls,bcshp->bclhp", C, B, sums(decay).exp(), X)
    states = torch.einsum("bclgn,bhcl,bclhp->bchpn", B, (running[..., -1:] - running).exp(), X)
    states = torch.cat([initial[:, None], states], dim=1)
    between = sums(torch.nn.functional.pad(running[..., -1], (1, 0))).exp()
    states = torch.einsum("bhzc,bchpn->bzhpn", between, states)
    before, final = states[:, :-1], states[:, -1]
    read = torch.einsum("bclgn,bchpn,bhcl->bclhp", C, before, running.exp())
    return (diagonal + read).reshape(inputs.shape), final


def as_channels(torch, x, delta, A, B, C, D, z, state, limit):
    """The formula that the authors hold their kernels against: each feature of a head a channel of a selective scan."""
    n, heads, d_head = x.shape
    share, steps = heads // B.shape[1], torch.clamp(delta, *limit)
    by_channel = lambda a: a.repeat_interleave(d_head, -1)  # noqa: E731
    steps, rates = by_channel(steps), by_channel(A)
    keys, queries = (a.repeat_interleave(share * d_head, 1) for a in (B, C))  # (n, channels, d_state)
    h, rows = state.flatten(0, 1), []
    for t in range(n):
        h = torch.exp(steps[t] * rates)[:, None] * h + (steps[t] * x[t].flatten())[:, None] * keys[t]
        rows.append((h * queries[t]).sum(-1))
    y = torch.stack(rows).unflatten(-1, (heads, d_head)) + D * x
    return y * torch.nn.functional.silu(z), h.unflatten(0, (heads, d_head))


def assert_parity(torch, formula, arguments, douts, own):
    theirs = [torch.tensor(a, requires_grad=True) for a in arguments]
    outputs = formula(*theirs)
    torch.autograd.backward(outputs, [torch.tensor(d) for d in douts])
    for ours, other in zip(own, [*outputs, *(a.grad for a in theirs)], strict=True):
        np.testing.assert_allclose(ours, other.detach().numpy(), rtol=0, atol=1e-12)


@pytest.mark.parity
@every_core
@either_skip
def test_parity_with_the_published_minimal_ssd(core, skips):
    torch = pytest.importorskip("torch")
    arguments, douts = case(n=12, groups=1, skips=skips)

    def formula(x, delta, A, B, C, D, z, state):
        y, final = published_minimal(torch, (x * delta[..., None])[None], (delta * A)[None], B[None], C[None], 4, state[None])
        return (y[0] + D * x) * torch.nn.functional.silu(z), final[0]

    assert_parity(torch, formula, arguments, douts, everything(ssd, arguments, douts, core=core))


@pytest.mark.parity
@every_core
@either_skip
def test_parity_with_the_authors_reference_on_the_edge_of_the_limit_too(core, skips):
    torch = pytest.importorskip("torch")
    arguments, douts = case(skips=skips)
    arguments[1][2], arguments[1][5] = 0.3, 0.7              # torch.clamp lets a gradient through on its edges
    own = everything(ssd, arguments, douts, core=core, delta_limit=(0.3, 0.7))
    assert own[3][[2, 5]].all() and not own[3].all()
    assert_parity(torch, partial(as_channels, torch, limit=(0.3, 0.7)), arguments, douts, own)
