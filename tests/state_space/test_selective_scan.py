"""Selective scan: one number at a time, what selection means, who shares B and C, and terms that are easily lost."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.foundation import check_gradients
from minitransformers.state_space.selective_scan import selective_scan
from minitransformers.state_space.selective_scan_blocks import selective_scan_blocks

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "state")


def random_call(rng, batch=2, n=5, d_inner=6, groups=3, d_state=4):
    rows, shared = (batch, n, d_inner), (batch, n, groups, d_state)
    u, z, delta = rng.normal(size=rows), rng.normal(size=rows), rng.uniform(0.1, 1.5, size=rows)
    B, C, A, D = rng.normal(size=shared), rng.normal(size=shared), -rng.uniform(0.3, 2, (d_inner, d_state)), rng.normal(size=d_inner)
    return u, delta, A, B, C, D, z, rng.normal(size=(batch, d_inner, d_state))


def textbook(u, delta, A, B, C, D, z, state):
    """One state of one channel of one sequence at a time."""
    batch, n, d_inner = u.shape
    r = d_inner // B.shape[2]                                # channels 0 to r - 1 are group 0
    outs, lasts = [], []
    for b in range(batch):
        for d in range(d_inner):
            h = [0.0 if state is None else state[b, d, j] for j in range(A.shape[1])]
            for t in range(n):
                h = [anp.exp(delta[b, t, d] * A[d, j]) * h[j] + delta[b, t, d] * B[b, t, d // r, j] * u[b, t, d] for j in range(A.shape[1])]
                y = sum(C[b, t, d // r, j] * h[j] for j in range(A.shape[1]))
                if D is not None:
                    y = y + D[d] * u[b, t, d]
                if z is not None:
                    y = y * z[b, t, d] / (1 + anp.exp(-z[b, t, d]))
                outs.append(y)
            lasts.extend(h)
    out = anp.swapaxes(anp.reshape(anp.stack(outs), (batch, d_inner, n)), 1, 2)
    return out, anp.reshape(anp.stack(lasts), (batch, d_inner, A.shape[1]))


def without(call, *names):
    return tuple(None if name in names else value for name, value in zip(NAMES, call, strict=True))


@pytest.mark.parametrize(
    ("n", "groups", "missing"),
    [*((n, 3, missing) for n in (5, 1) for missing in ((), ("D",), ("z",), ("state",), ("D", "z", "state"))), (5, 1, ()), (5, 2, ()), (5, 6, ())],
    ids=str,
)
def test_equals_one_state_at_a_time_and_its_gradients(n, groups, missing):
    rng = np.random.default_rng(0)
    call = without(random_call(rng, n=n, groups=groups), *missing)
    (out, last), backward = selective_scan(*call)
    expected_out, expected_last = textbook(*call)
    np.testing.assert_allclose(out, expected_out, rtol=0, atol=1e-13)
    np.testing.assert_allclose(last, expected_last, rtol=0, atol=1e-13)
    dout, dlast = rng.normal(size=out.shape), rng.normal(size=last.shape)
    given = [i for i, value in enumerate(call) if value is not None]

    def loss(*values):
        arguments = list(call)
        for i, value in zip(given, values, strict=True):
            arguments[i] = value
        own_out, own_last = textbook(*arguments)
        return anp.sum(dout * own_out) + anp.sum(dlast * own_last)

    expected = autograd.grad(loss, tuple(range(len(given))))(*(call[i] for i in given))
    own = backward((dout, dlast))
    assert [i for i, gradient in enumerate(own) if gradient is not None] == given
    for i, theirs in zip(given, expected, strict=True):
        np.testing.assert_allclose(own[i], theirs, rtol=0, atol=1e-12, err_msg=NAMES[i])


def test_groups_are_scans_side_by_side():
    rng = np.random.default_rng(1)
    u, delta, A, B, C, D, z, state = random_call(rng)
    (out, last), backward = selective_scan(u, delta, A, B, C, D, z, state)
    dout, dlast = rng.normal(size=out.shape), rng.normal(size=last.shape)
    gradients = backward((dout, dlast))
    for g in range(3):
        own, one = slice(2 * g, 2 * g + 2), slice(g, g + 1)  # two channels a group
        (part, part_last), part_backward = selective_scan(
            u[..., own], delta[..., own], A[own], B[:, :, one], C[:, :, one], D[own], z[..., own], state[:, own]
        )
        du, ddelta, dA, dB, dC, dD, dz, dstate = gradients
        expected = (du[..., own], ddelta[..., own], dA[own], dB[:, :, one], dC[:, :, one], dD[own], dz[..., own], dstate[:, own])
        np.testing.assert_allclose(part, out[..., own], rtol=0, atol=1e-13)
        np.testing.assert_allclose(part_last, last[:, own], rtol=0, atol=1e-13)
        for name, theirs, ours in zip(NAMES, part_backward((dout[..., own], dlast[:, own])), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12, err_msg=name)


def test_one_group_is_many_alike_whose_gradients_add():
    rng = np.random.default_rng(14)
    u, delta, A, B, C, *rest = random_call(rng, groups=1)
    (out, last), backward = selective_scan(u, delta, A, B, C, *rest)
    (same, same_last), many_backward = selective_scan(u, delta, A, np.repeat(B, 3, axis=2), np.repeat(C, 3, axis=2), *rest)
    np.testing.assert_allclose(same, out, rtol=0, atol=1e-13)
    np.testing.assert_allclose(same_last, last, rtol=0, atol=1e-13)
    dout = rng.normal(size=out.shape), rng.normal(size=last.shape)
    for name, own, many in zip(NAMES, backward(dout), many_backward(dout), strict=True):
        np.testing.assert_allclose(own, many.sum(2, keepdims=True) if name in "BC" else many, rtol=0, atol=1e-12, err_msg=name)


def test_no_output_sees_a_later_input():
    call = random_call(np.random.default_rng(2))
    for i in (0, 1, 3, 4, 6):
        changed = list(call)
        changed[i] = call[i].copy()
        changed[i][:, 3] *= 1.5
        before, after = selective_scan(*call)[0][0], selective_scan(*changed)[0][0]
        np.testing.assert_array_equal(before[:, :3], after[:, :3])
        assert (before[:, 3] != after[:, 3]).all()


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_two_parts_that_pass_on_the_state_equal_the_whole_with_their_gradients(cut):
    rng = np.random.default_rng(3)
    u, delta, A, B, C, D, z, state = random_call(rng, n=9)
    (out, last), backward = selective_scan(u, delta, A, B, C, D, z, state)
    left, right = ([a[:, part] for a in (u, delta, B, C, z)] for part in (slice(cut), slice(cut, None)))
    run = lambda part, start: selective_scan(*part[:2], A, *part[2:4], D, part[4], start)  # noqa: E731
    (left_out, middle), left_backward = run(left, state)
    (right_out, own_last), right_backward = run(right, middle)
    np.testing.assert_allclose(np.concatenate([left_out, right_out], axis=1), out, rtol=0, atol=1e-13)
    np.testing.assert_allclose(own_last, last, rtol=0, atol=1e-13)
    dout, dlast = rng.normal(size=out.shape), rng.normal(size=last.shape)
    du, _, dA, *_, dstate = backward((dout, dlast))
    right_du, _, right_dA, *_, dmiddle = right_backward((dout[:, cut:], dlast))
    left_du, _, left_dA, *_, own_dstate = left_backward((dout[:, :cut], dmiddle))
    np.testing.assert_allclose(np.concatenate([left_du, right_du], axis=1), du, rtol=0, atol=1e-12)
    np.testing.assert_allclose(left_dA + right_dA, dA, rtol=0, atol=1e-12)
    np.testing.assert_allclose(own_dstate, dstate, rtol=0, atol=1e-12)


def test_a_step_of_zero_passes_a_position_over_and_a_long_step_forgets_all_before():
    u, delta, A, B, C, _, _, _ = random_call(np.random.default_rng(4))
    passed, reset = delta.copy(), delta.copy()
    passed[:, 2], reset[:, 2] = 0.0, 1e4
    changed = u.copy()
    changed[:, 2] += 5
    np.testing.assert_array_equal(selective_scan(u, passed, A, B, C)[0][1], selective_scan(changed, passed, A, B, C)[0][1])
    changed = u.copy()
    changed[:, :2] += 5
    np.testing.assert_array_equal(selective_scan(u, reset, A, B, C)[0][0][:, 2:], selective_scan(changed, reset, A, B, C)[0][0][:, 2:])


def test_without_selection_it_is_a_convolution():
    # delta, B and C the same at every position: a linear time-invariant system with the kernel sum_n C_n exp(A_n delta)^k delta B_n.
    rng = np.random.default_rng(5)
    u, _, A, _, _, _, _, _ = random_call(rng, n=7)
    delta, B, C = rng.uniform(0.1, 1, size=6), rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    spread = lambda row: np.broadcast_to(row, (*u.shape[:-1], *row.shape))  # noqa: E731
    (out, _), _ = selective_scan(u, spread(delta), A, spread(B), spread(C))
    weight = delta[:, None] * np.repeat(B * C, 2, axis=0)    # two channels a group
    kernel = np.stack([(np.exp(k * delta[:, None] * A) * weight).sum(-1) for k in range(7)])
    expected = [sum(kernel[k] * u[:, t - k] for k in range(t + 1)) for t in range(7)]
    np.testing.assert_allclose(out, np.stack(expected, axis=1), rtol=0, atol=1e-13)


def test_eulers_drive_agrees_with_the_zero_order_hold_to_first_order():
    u, delta, A, B, C, _, _, _ = random_call(np.random.default_rng(6), n=1, groups=1)
    gaps = []
    for scale in (1e-2, 5e-3):
        step = scale * delta
        held = np.expm1(step[..., None] * A) / A * B * u[..., None]
        (out, _), _ = selective_scan(u, step, A, B, C)
        gaps.append(np.abs(out - np.sum(held * C, axis=-1)).max())
    np.testing.assert_allclose(gaps[0] / gaps[1], 4, rtol=0.02)


@pytest.mark.parametrize("size", [1e3, 1e19])
def test_long_steps_and_fast_rates_stay_finite_in_float32(size):
    # delta A is -1e6, then -inf: the decay is 0, and so is its gradient.
    rng = np.random.default_rng(7)
    u, delta, A, B, C, D, z, state = (a.astype(np.float32) for a in random_call(rng))
    (out, last), backward = selective_scan(u / np.float32(size), delta * np.float32(size), A * np.float32(size) ** 2, B, C, D, z, state)
    for array in (out, last, *backward((np.ones_like(out), np.ones_like(last)))):
        assert array.dtype == np.float32 and np.isfinite(array).all()


def test_a_decay_that_underflows_costs_no_digits_of_the_others():
    # The short form h = P cumsum(x / P), P = cumprod(decay), divides by 0 here.
    n = 200
    u, delta, A = np.ones((n, 1), np.float32), np.full((n, 1), 2, np.float32), np.array([[-1, -1e-3]], np.float32)
    B = C = np.ones((n, 1, 2), np.float32)
    (out, _), _ = selective_scan(u, delta, A, B, C)
    (exact, _), _ = selective_scan(*(a.astype(np.float64) for a in (u, delta, A, B, C)))
    np.testing.assert_allclose(out, exact, rtol=1e-5)


def test_every_length_that_differs_is_named():
    call = dict(zip(NAMES, random_call(np.random.default_rng(9)), strict=True))
    for name in ("delta", "B", "C", "z"):
        with pytest.raises(ValueError, match=name):
            selective_scan(*{**call, name: call[name][:, :4]}.values())
    with pytest.raises(ValueError, match=r"A: got numbers from -\d.* to 0.5, wants finite numbers below 0"):
        selective_scan(*{**call, "A": np.where(call["A"] == call["A"].max(), 0.5, call["A"])}.values())
    with pytest.raises(ValueError, match=r"delta: got numbers from -0.01 to \d.*, wants finite numbers of at least 0"):
        selective_scan(*{**call, "delta": np.where(call["delta"] == call["delta"].min(), -0.01, call["delta"])}.values())


@pytest.mark.parametrize("scan", [selective_scan, selective_scan_blocks])
def test_groups_that_do_not_fit_are_named(scan):
    u, delta, A, B, C, *rest = random_call(np.random.default_rng(15))
    for groups in (4, 5, 12):
        many = np.ones((2, 5, groups, 4))
        with pytest.raises(ValueError, match=f"^B: got {groups} groups, wants a number of groups that divides the 6 channels$"):
            scan(u, delta, A, many, many, *rest)
    with pytest.raises(ValueError, match=r"^C: got shape \(2, 5, 1, 4\), wants .* with groups = 3 as in B$"):
        scan(u, delta, A, B, C[:, :, :1], *rest)             # one group would broadcast
    with pytest.raises(ValueError, match=r"^B: got shape \(2, 5, 4\), wants \(\*batch, positions, groups, d_state\)"):
        scan(u, delta, A, B[:, :, 0], C[:, :, 0], *rest)


@pytest.mark.parametrize("stray", [np.nan, np.inf])
def test_one_stray_number_does_not_hide_another(stray):
    call = dict(zip(NAMES, random_call(np.random.default_rng(9)), strict=True))
    for name, bad in (("delta", -0.01), ("A", 0.5)):
        spoilt = call[name].copy()
        spoilt.flat[:2] = stray, bad
        with pytest.raises(ValueError, match=f"^{name}: got"):
            selective_scan(*{**call, name: spoilt}.values())


def wrong_backward(change):
    def scan_with_a_mistake(*call):
        (out, last), backward = selective_scan(*call)
        return (out, last), lambda dout: change(call, backward(dout), backward, dout)
    return scan_with_a_mistake


def decay_term_lost(call, grads, backward, dout):
    """delta stands in the decay and in the drive; here only in the drive, where delta ddelta = u du (without D and z)."""
    return (grads[0], call[0] * grads[0] / call[1], *grads[2:])


def last_state_has_no_gradient(call, grads, backward, dout):
    return backward((dout[0], np.zeros_like(dout[1])))


def read_from_the_first_channel(call, grads, backward, dout):
    u, _, _, _, C, *_ = call
    dC = np.zeros_like(C)
    for d in range(u.shape[-1]):                             # B and C serve all channels of a group: their gradients add
        one = np.zeros_like(u)
        one[..., d] = dout[0][..., d]
        dC = np.maximum(dC, backward((one, np.zeros_like(dout[1])))[4])
    return (*grads[:4], dC, *grads[5:])


def summed_over_all_channels(call, grads, backward, dout):
    """dC of one group, for which only its own channels count."""
    return (*grads[:4], np.broadcast_to(grads[4].sum(2, keepdims=True), grads[4].shape), *grads[5:])


WRONG = [decay_term_lost, last_state_has_no_gradient, read_from_the_first_channel, summed_over_all_channels]


@pytest.mark.parametrize("change", WRONG)
def test_the_check_refuses_a_backward_that_forgets(change):
    call = without(random_call(np.random.default_rng(10), batch=1, n=3), "D", "z")
    right = wrong_backward(lambda call, grads, backward, dout: grads)
    assert check_gradients(right, *call).passed
    assert not check_gradients(wrong_backward(change), *call).passed


def in_torch(torch, call):
    return [None if a is None else torch.tensor(a, requires_grad=True) for a in call]


@pytest.mark.parity
def test_parity_with_a_loop_in_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(11)
    call = random_call(rng, n=13)
    u, delta, A, B, C, D, z, state = theirs = in_torch(torch, call)
    write, read = (part.repeat_interleave(2, dim=2) for part in (B, C))  # two channels a group
    h, outs = state, []
    for t in range(13):
        h = torch.exp(delta[:, t, :, None] * A) * h + delta[:, t, :, None] * write[:, t] * u[:, t, :, None]
        outs.append(((h * read[:, t]).sum(-1) + D * u[:, t]) * torch.nn.functional.silu(z[:, t]))
    their_out = torch.stack(outs, 1)
    dout, dlast = rng.normal(size=call[0].shape), rng.normal(size=call[7].shape)
    torch.autograd.backward([their_out, h], [torch.tensor(dout), torch.tensor(dlast)])
    (out, last), backward = selective_scan(*call)
    np.testing.assert_allclose(out, their_out.detach().numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(last, h.detach().numpy(), rtol=0, atol=1e-12)
    for name, own, other in zip(NAMES, backward((dout, dlast)), theirs, strict=True):
        np.testing.assert_allclose(own, other.grad.numpy(), rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parity
@pytest.mark.parametrize("use_mambapy", [False, True])
def test_parity_with_hugging_face(use_mambapy):
    # Features before positions there, one group, no initial state, and B cast to float32: it agrees to float32.
    torch = pytest.importorskip("torch")
    if use_mambapy:
        pytest.importorskip("mambapy")
    module = pytest.importorskip("transformers.models.mamba.modeling_mamba")
    rng = np.random.default_rng(12)
    call = without(tuple(a.astype(np.float32) for a in random_call(rng, n=8, groups=1)), "state")
    u, delta, A, B, C, D, z, _ = theirs = in_torch(torch, call)
    turned = [a.transpose(1, 2) for a in (u, delta, B[:, :, 0], C[:, :, 0], z)]
    their_out, their_last = module.mamba_selective_scan(
        *turned[:2], A, *turned[2:4], D, turned[4], return_last_state=True, use_mambapy=use_mambapy
    )
    (out, last), backward = selective_scan(*call)
    dout, dlast = (rng.normal(size=a.shape).astype(np.float32) for a in (out, last))
    torch.autograd.backward([their_out, their_last], [torch.tensor(dout).transpose(1, 2), torch.tensor(dlast)])
    np.testing.assert_allclose(out, their_out.detach().numpy().swapaxes(1, 2), atol=1e-5)
    np.testing.assert_allclose(last, their_last.detach().numpy(), atol=1e-5)
    for name, own, other in zip(NAMES[:7], backward((dout, dlast)), theirs, strict=False):
        np.testing.assert_allclose(own, other.grad.numpy(), atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parity
def test_parity_with_mambapy_in_float64():
    torch = pytest.importorskip("torch")
    pscan = pytest.importorskip("mambapy.pscan").pscan
    rng = np.random.default_rng(13)
    call = without(random_call(rng, n=8), "D", "z", "state")
    u, delta, A, B, C, *_ = theirs = in_torch(torch, call)
    write, read = (part.repeat_interleave(2, dim=2) for part in (B, C))  # two channels a group
    h = pscan(torch.exp(delta[..., None] * A), delta[..., None] * write * u[..., None])
    their_out = (h * read).sum(-1)
    dout = rng.normal(size=call[0].shape)
    their_out.backward(torch.tensor(dout))
    (out, last), backward = selective_scan(*call)
    np.testing.assert_allclose(out, their_out.detach().numpy(), rtol=0, atol=1e-12)
    for name, own, other in zip(NAMES[:5], backward((dout, np.zeros_like(last))), theirs, strict=False):
        np.testing.assert_allclose(own, other.grad.numpy(), rtol=0, atol=1e-12, err_msg=name)
