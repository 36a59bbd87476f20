"""State-space duality: three forms of one map, its steps and rates, its special cases, and the published minimal code."""

import sys

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from naive_ssd import assert_same, everything, naive_ssd

from minitransformers.foundation import check_gradients
from minitransformers.state_space.selective_scan import selective_scan
from minitransformers.state_space.ssd import ssd

FORMS = ({"form": "recurrent"}, {"form": "quadratic"}, *({"chunk": chunk} for chunk in (1, 3, 4, 16)))


def case(n=11, heads=4, groups=2, d_head=3, d_state=5, seed=0):
    """x, delta, A, B, C, D, state and a dout."""
    rng = np.random.default_rng(seed)
    arguments = (
        rng.normal(size=(n, heads, d_head)), rng.uniform(0.05, 1.0, size=(n, heads)), -rng.uniform(0.2, 2.0, size=heads),
        rng.normal(size=(n, groups, d_state)), rng.normal(size=(n, groups, d_state)), rng.normal(size=heads),
        rng.normal(size=(heads, d_head, d_state)),
    )  # fmt: skip
    return arguments, (rng.normal(size=(n, heads, d_head)), rng.normal(size=(heads, d_head, d_state)))


def naive(x, delta, A, B, C, D, state):
    y, final = naive_ssd(delta[:, :, None] * x, delta * A, B, C, state)
    return y + D[:, None] * x, final


@pytest.mark.parametrize("config", FORMS, ids=str)
def test_every_form_equals_the_naive_loop_and_its_gradients(config):
    arguments, (dy, dstate) = case()

    def loss(arguments):
        y, final = naive(*arguments)
        return anp.sum(dy * y) + anp.sum(dstate * final)

    assert_same(everything(ssd, arguments, (dy, dstate), **config), [*naive(*arguments), *autograd.grad(loss)(arguments)])


@pytest.mark.parametrize("config", FORMS, ids=str)
def test_every_form_does_without_a_skip_and_a_state(config):
    arguments, dout = case()
    found = everything(ssd, (*arguments[:5], None, None), dout, **config)
    assert found[-1] is None and found[-2] is None
    zeros = (*arguments[:5], np.zeros(4), np.zeros_like(arguments[6]))
    assert_same(found[:-2], everything(ssd, zeros, dout, form="recurrent")[:-2])


@pytest.mark.parametrize("config", FORMS, ids=str)
def test_one_position_is_one_step(config):
    (x, delta, A, B, C, D, state), _ = case(n=1)
    y, final = ssd(x, delta, A, B, C, D, state, **config)[0]
    key = np.repeat(B[0], 2, axis=0)
    expected = np.exp(delta[0] * A)[:, None, None] * state + (delta[0, :, None] * x[0])[:, :, None] * key[:, None, :]
    np.testing.assert_allclose(final, expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(y[0], (expected @ np.repeat(C[0], 2, axis=0)[:, :, None])[..., 0] + D[:, None] * x[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("form", ["chunked", "recurrent", "quadratic"])
@pytest.mark.parametrize("n", [1, 2])
def test_the_form_that_is_asked_for_does_the_work_and_one_position_is_one_step(monkeypatch, n, form):
    asked, module = [], sys.modules[ssd.__module__]

    def watched(own):
        return lambda *args, **config: (asked.append((own.__name__, config)), own(*args, **config))[1]

    for name in ("ssd_chunked", "ssd_recurrent", "ssd_quadratic"):
        monkeypatch.setattr(module, name, watched(getattr(module, name)))
    ssd(*case(n=n)[0], form=form, chunk=3)
    assert asked == [("ssd_recurrent", {}) if n == 1 else (f"ssd_{form}", {"chunk": 3} if form == "chunked" else {})]


@pytest.mark.parametrize("cuts", [(5,), (1, 2, 9)])
def test_pieces_of_a_sequence_with_the_state_handed_on_equal_the_whole(cuts):
    (x, delta, A, B, C, D, state), _ = case()
    whole, final = ssd(x, delta, A, B, C, D, state, chunk=4)[0]
    parts = []
    for start, end in zip((0, *cuts), (*cuts, 11), strict=True):
        part = np.s_[start:end]
        y, state = ssd(x[part], delta[part], A, B[part], C[part], D, state, chunk=4)[0]
        parts.append(y)
    assert_same([np.concatenate(parts), state], [whole, final])


def test_a_later_input_changes_no_earlier_output():
    (x, delta, A, B, C, D, state), _ = case()
    y, _ = ssd(x, delta, A, B, C, D, state, chunk=4)[0]
    changed = [a.copy() for a in (x, delta, B, C)]
    for a in changed:
        a[6] += 1
    y_changed, _ = ssd(changed[0], changed[1], A, changed[2], changed[3], D, state, chunk=4)[0]
    np.testing.assert_array_equal(y_changed[:6], y[:6])
    assert np.abs(y_changed[6:] - y[6:]).min(axis=(1, 2)).all()


def test_a_very_fast_decay_leaves_each_position_to_itself():
    (x, delta, A, B, C, D, state), _ = case()
    y, _ = ssd(x, delta, 1e6 * A, B, C, D, state)[0]
    own = np.repeat(np.vecdot(C, B), 2, axis=-1)             # C_t . B_t, for each head
    np.testing.assert_allclose(y, (own * delta + D)[..., None] * x, rtol=0, atol=1e-12)


def test_a_step_of_zero_makes_a_position_invisible():
    (x, delta, A, B, C, _, state), _ = case()
    delta[4] = 0
    rest = np.arange(11) != 4
    y, final = ssd(x, delta, A, B, C, None, state, chunk=4)[0]
    y_rest, final_rest = ssd(x[rest], delta[rest], A, B[rest], C[rest], None, state, chunk=4)[0]
    assert_same([y[rest], final], [y_rest, final_rest])


def test_permuting_the_heads_permutes_the_outputs():
    (x, delta, A, B, C, D, state), _ = case(groups=1)
    order = [2, 0, 3, 1]
    y, final = ssd(x, delta, A, B, C, D, state)[0]
    permuted = ssd(x[:, order], delta[:, order], A[order], B, C, D[order], state[order])[0]
    assert_same(permuted, [y[:, order], final[order]])


def test_heads_of_a_group_share_and_their_gradients_add():
    (x, delta, A, B, C, D, state), dout = case(groups=2)
    tiled = everything(ssd, (x, delta, A, np.repeat(B, 2, axis=1), np.repeat(C, 2, axis=1), D, state), dout)
    for place in (5, 6):                                     # dB, dC
        tiled[place] = tiled[place].reshape(11, 2, 2, 5).sum(2)
    assert_same(everything(ssd, (x, delta, A, B, C, D, state), dout), tiled)


@pytest.mark.parametrize("config", FORMS[:3], ids=str)
def test_it_is_the_selective_scan_with_one_rate_and_one_step_a_head(config):
    (x, delta, A, B, C, D, state), (dy, dstate) = case(groups=2)
    wide = lambda a: np.repeat(a, 3, axis=-1)  # noqa: E731  # a head's number for each of its channels
    rates = np.tile(wide(A)[:, None], 5)
    tiled = (x.reshape(11, 12), wide(delta), rates, B, C, wide(D), None, state.reshape(12, 5))
    y, final, du, ddelta, dA, dB, dC, dD, _, dinitial = everything(selective_scan, tiled, (dy.reshape(11, 12), dstate.reshape(12, 5)))
    by_head = lambda a: a.reshape(*a.shape[:-1], 4, 3)  # noqa: E731
    expected = [
        by_head(y), final.reshape(4, 3, 5), by_head(du), by_head(ddelta).sum(-1), by_head(dA.sum(-1)).sum(-1), dB, dC,
        by_head(dD).sum(-1), dinitial.reshape(4, 3, 5),
    ]  # fmt: skip
    assert_same(everything(ssd, (x, delta, A, B, C, D, state), (dy, dstate), **config), expected)


@pytest.mark.parametrize("config", FORMS[:3], ids=str)
def test_float32_stays_finite_under_enormous_steps_and_rates(config):
    arguments, dout = case()
    x, delta, A, *rest = (a.astype(np.float32) for a in arguments)
    results = everything(ssd, (x, 1e4 * delta, 1e6 * A, *rest), [d.astype(np.float32) for d in dout], **config)
    assert all(np.isfinite(a).all() and a.dtype == np.float32 for a in results)


def test_steps_times_rates_that_overflow_are_named():
    (x, delta, A, *rest), _ = case()
    with pytest.raises(ValueError, match="delta: got steps up to 1e\\+300 and rates down to -1e\\+300"):
        ssd(x, np.full_like(delta, 1e300), np.full_like(A, -1e300), *rest)


def with_the_step_on_the_input_only(x, delta, A, B, C, D, state):
    out, backward = ssd(x, delta, A, B, C, D, state)

    def wrong(dout):
        dx, ddelta, dA, *rest = backward(dout)
        dlog_decay = everything(ssd, (x, delta, A, B, C, D, state), dout)[3] - ddelta
        dinput = (dx - D[:, None] * dout[0]) / delta[..., None]
        return dx, np.vecdot(dinput, x) + dlog_decay, dA, *rest  # the step's part in the decay is lost

    return out, wrong


def test_the_checker_refuses_a_step_that_only_scales_the_input():
    report = check_gradients(with_the_step_on_the_input_only, *case(5)[0])
    assert not report.passed and report.worst.path == "delta"


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


@pytest.mark.parity
@pytest.mark.parametrize("config", FORMS, ids=str)
def test_parity_with_the_published_minimal_ssd(config):
    torch = pytest.importorskip("torch")
    (x, delta, A, B, C, D, state), (dy, dstate) = case(n=12, groups=1)
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, delta, A, B, C, D, state)]
    tx, tdelta, tA, tB, tC, tD, tstate = theirs
    y, final = published_minimal(
        torch, (tx * tdelta[..., None])[None], (tdelta * tA)[None], tB[None], tC[None], 4, tstate[None]
    )
    y, final = y[0] + tD[:, None] * tx, final[0]
    torch.autograd.backward((y, final), (torch.tensor(dy), torch.tensor(dstate)))
    own = everything(ssd, (x, delta, A, B, C, D, state), (dy, dstate), **config)
    for ours, other in zip(own, [y.detach(), final.detach(), *(a.grad for a in theirs)], strict=True):
        np.testing.assert_allclose(ours, other.numpy(), rtol=0, atol=1e-12)
