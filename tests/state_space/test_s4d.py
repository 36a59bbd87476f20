"""S4D: the sum over modes written out, two views, decoding, the four starts, a bound on the kernel, and PyTorch."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.foundation import check_gradients
from minitransformers.state_space.lti import lti
from minitransformers.state_space.s4d import S4D, init_s4d, s4d, s4d_step


def kernel_written_out(log_step, log_A_real, A_imag, C, length):
    """Real numbers only: every mode and its conjugate are a damped cosine and a damped sine."""
    step = anp.exp(log_step)[:, None]
    a, b = -anp.exp(log_A_real), A_imag
    size = a**2 + b**2
    decay, cos, sin = anp.exp(step * a), anp.cos(step * b), anp.sin(step * b)
    # (e^lam - 1) / A by its real and imaginary parts.
    top_re, top_im = decay * cos - 1, decay * sin
    gain_re, gain_im = (top_re * a + top_im * b) / size, (top_im * a - top_re * b) / size
    c_re = C[..., 0] * gain_re - C[..., 1] * gain_im
    c_im = C[..., 0] * gain_im + C[..., 1] * gain_re
    taps = [2 * anp.sum(decay**l * (c_re * anp.cos(step * b * l) - c_im * anp.sin(step * b * l)), axis=-1) for l in range(length)]
    return anp.stack(taps, axis=-1)                          # (d_model, length)


def written_out(log_step, log_A_real, A_imag, C, D, x):
    kernel = kernel_written_out(log_step, log_A_real, A_imag, C, x.shape[-2])
    return anp.stack([D * x[:, t] + sum(kernel[:, l] * x[:, t - l] for l in range(t + 1)) for t in range(x.shape[1])], axis=1)


def random_params(rng, d_model=3, modes=2):
    return S4D(
        rng.uniform(-2, 0, size=d_model), rng.uniform(-1, 0.5, size=(d_model, modes)), rng.normal(size=(d_model, modes)) * 3,
        rng.normal(size=(d_model, modes, 2)), rng.normal(size=d_model),
    )  # fmt: skip


@pytest.mark.parametrize("length", [1, 2, 5, 9, 10])
@pytest.mark.parametrize("view", ["convolution", "recurrent"])
def test_equals_the_sum_written_out_and_its_gradients(view, length):
    rng = np.random.default_rng(0)
    params, x, dout = random_params(rng), rng.normal(size=(2, length, 3)), rng.normal(size=(2, length, 3))
    out, backward = s4d(params, x, view=view)
    np.testing.assert_allclose(out, written_out(*params, x), atol=1e-12)
    expected = autograd.grad(lambda *args: anp.sum(dout * written_out(*args)), tuple(range(6)))(*params, x)
    dparams, dx = backward(dout)
    for own, oracle in zip([*dparams, dx], expected, strict=True):
        np.testing.assert_allclose(own, oracle, atol=1e-11)


@pytest.mark.parametrize("kind", ["lin", "inv", "legs", "real"])
@pytest.mark.parametrize("length", [1, 8, 65])
def test_convolution_and_recurrence_are_one_map(kind, length):
    rng = np.random.default_rng(1)
    params = init_s4d(rng, 3, d_state=16, kind=kind, dtype=np.float64)
    x, dout = rng.normal(size=(2, length, 3)), rng.normal(size=(2, length, 3))
    one, one_backward = s4d(params, x, view="convolution")
    two, two_backward = s4d(params, x, view="recurrent")
    np.testing.assert_allclose(one, two, atol=1e-13)
    (dparams, dx), (others, other_dx) = one_backward(dout), two_backward(dout)
    for a, b in zip([*dparams, dx], [*others, other_dx], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12 * max(1, np.abs(a).max()))


@pytest.mark.parametrize("pieces", [[7], [1] * 7, [3, 1, 2, 1]])
def test_a_step_at_a_time_equals_all_at_once(pieces):
    rng = np.random.default_rng(2)
    params, x = init_s4d(rng, 3, d_state=8, dtype=np.float64), rng.normal(size=(2, 7, 3))
    state, outs, start = None, [], 0
    for new in pieces:
        out, state = s4d_step(params, x[:, start : start + new], state)
        assert state.shape == (2, 3, 4)                      # no longer, however much was read
        outs.append(out)
        start += new
    np.testing.assert_allclose(np.concatenate(outs, 1), s4d(params, x)[0], atol=1e-12)


def test_a_step_writes_to_nothing_and_keeps_float32():
    rng = np.random.default_rng(3)
    params, x = init_s4d(rng, 3, d_state=8), rng.normal(size=(3, 3)).astype(np.float32)
    _, state = s4d_step(params, x[:2], None)
    before, x_before = state.copy(), x.copy()
    out, later = s4d_step(params, x[2:], state)
    assert out.dtype == np.float32 and later.dtype == np.complex64
    np.testing.assert_array_equal(state, before)
    np.testing.assert_array_equal(x, x_before)
    with pytest.raises(ValueError, match="state"):
        s4d_step(params, np.ones((2, 1, 3), np.float32), state)
    for wrong in (np.ones((1, 1), np.float32), np.ones((0, 3), np.float32)):
        with pytest.raises(ValueError, match="x: got shape"):
            s4d_step(params, wrong, state)


@pytest.mark.parametrize("view", ["convolution", "recurrent"])
def test_no_output_sees_a_later_input(view):
    rng = np.random.default_rng(4)
    params, x = random_params(rng), rng.normal(size=(9, 3))
    _, backward = s4d(params, x, view=view)
    for t in (0, 4, 8):
        dout = np.zeros((9, 3))
        dout[t] = 1.0
        np.testing.assert_allclose(backward(dout)[1][t + 1 :], 0, atol=1e-14)


def test_the_kernel_never_exceeds_the_sum_of_its_decays():
    rng = np.random.default_rng(5)
    params = random_params(rng)._replace(D=np.zeros(3))
    kernel = s4d(params, np.eye(40)[:, :1] * np.ones(3))[0]  # the answer to a pulse
    A = -np.exp(params.log_A_real) + 1j * params.A_imag
    lam = np.exp(params.log_step)[:, None] * A
    c = np.abs((params.C[..., 0] + 1j * params.C[..., 1]) * np.expm1(lam) / A)
    bound = 2 * (c[None] * np.exp(lam.real[None] * np.arange(40)[:, None, None])).sum(-1)
    assert (np.abs(kernel) <= bound + 1e-14).all()
    assert (np.abs(kernel) > 0.5 * bound).any()              # and it comes near


def test_it_is_a_diagonal_lti_system():
    """One channel with one mode is lti with the matrix [[re, -im], [im, re]] and the real parts read twice."""
    rng = np.random.default_rng(6)
    params, u = random_params(rng, 1, 1), rng.normal(size=11)
    re, im = -np.exp(params.log_A_real[0, 0]), params.A_imag[0, 0]
    C = 2 * np.array([params.C[0, 0, 0], -params.C[0, 0, 1]])
    A, B = np.array([[re, -im], [im, re]]), np.array([1.0, 0.0])
    expected, _ = lti(A, B, C, np.array(params.D[0]), np.exp(np.array(params.log_step[0])), u)
    np.testing.assert_allclose(s4d(params, u[:, None])[0][:, 0], expected, atol=1e-13)


def test_it_is_stable_whatever_it_learns():
    params = random_params(np.random.default_rng(7))
    for size in (-30.0, 0.0, 5.0):
        wild = params._replace(log_A_real=params.log_A_real + size)
        out = s4d(wild, np.eye(500)[:, :1] * np.ones(3))[0]
        assert np.isfinite(out).all() and np.abs(out[100:]).max() <= 2 * np.abs(out[1:]).max()


def test_the_starts_are_the_papers():
    rng = np.random.default_rng(8)

    def start(kind):
        params = init_s4d(rng, 2, d_state=8, kind=kind, dtype=np.float64)
        return -np.exp(params.log_A_real[1]), params.A_imag[1]

    n, half = np.arange(4), np.full(4, -0.5)
    for kind, re, im in (
        ("lin", half, np.pi * n),
        ("inv", half, 8 / np.pi * (8 / (2 * n + 1) - 1)),
        ("real", -(n + 1.0), 0 * n),
    ):
        np.testing.assert_allclose(start(kind), (re, im), rtol=1e-14)
    p = np.sqrt(np.arange(8) + 0.5)
    A = -np.tril(2 * np.outer(p, p), -1) - np.diag(np.arange(8) + 1.0)
    values = np.linalg.eigvals(A + np.outer(p, p))           # HiPPO-LegS without its low rank
    re, im = start("legs")
    np.testing.assert_allclose(re, -0.5)
    np.testing.assert_allclose(im, np.sort(values.imag[values.imag > 0]), rtol=1e-12)


def test_fresh_steps_lie_in_their_range_and_parameters_have_their_shapes():
    params = init_s4d(np.random.default_rng(9), 400, d_state=6, step_min=0.01, step_max=0.2)
    step = np.exp(params.log_step)
    assert 0.01 <= step.min() < 0.011 and 0.18 < step.max() <= 0.2 * (1 + 1e-6)
    assert [a.shape for a in params] == [(400,), (400, 3), (400, 3), (400, 3, 2), (400,)]
    assert all(a.dtype == np.float32 for a in params)
    assert abs((params.C**2).sum(-1).mean() - 1) < 0.1 and abs(params.D.std() - 1) < 0.1
    real = init_s4d(np.random.default_rng(9), 400, d_state=6, kind="real")
    assert abs((real.C**2).sum(-1).mean() - 1) < 0.15 and not real.C[..., 1].any()


def test_the_real_kind_stays_real():
    rng = np.random.default_rng(10)
    params, x = init_s4d(rng, 3, d_state=8, kind="real", dtype=np.float64), rng.normal(size=(2, 7, 3))
    for view in ("convolution", "recurrent"):
        dparams, _ = s4d(params, x, view=view)[1](x)
        np.testing.assert_array_equal(dparams.A_imag, 0)
        np.testing.assert_array_equal(dparams.C[..., 1], 0)
        assert dparams.log_A_real.any() and dparams.C[..., 0].any()


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"d_state": 7}, "d_state"), ({"d_state": 0}, "d_state"), ({"kind": "random"}, "kind"), ({"step_min": 0.0}, "step_min"),
     ({"step_min": 0.2}, "step_min"), ({"step_max": np.inf}, "step_max")],
)  # fmt: skip
def test_bad_starts_are_refused(settings, name):
    with pytest.raises(ValueError, match=name):
        init_s4d(np.random.default_rng(0), 3, **settings)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("log_step", np.nan), ("log_step", 800.0), ("log_A_real", np.inf), ("log_A_real", 800.0), ("A_imag", np.nan), ("A_imag", -np.inf)],
)
def test_a_step_a_rate_or_a_frequency_that_is_not_finite_is_named(name, wrong):
    params = random_params(np.random.default_rng(14))
    spoilt = getattr(params, name).copy()
    spoilt.flat[1] = wrong
    with pytest.raises(ValueError, match=f"params.{name}: got numbers from"):
        s4d(params._replace(**{name: spoilt}), np.ones((5, 3)))
    with pytest.raises(ValueError, match="params"):          # a step trusts its arguments, and yet computes with no infinity
        s4d_step(params._replace(**{name: spoilt}), np.ones((1, 3)), None)


@pytest.mark.parametrize("wrong", [100.0, -110.0])
def test_a_logarithm_may_be_what_double_precision_holds_in_float32_too(wrong):
    params = S4D(*(a.astype(np.float32) for a in random_params(np.random.default_rng(15))))
    out, backward = s4d(params._replace(log_A_real=np.full_like(params.log_A_real, wrong)), np.ones((5, 3), np.float32))
    assert np.isfinite(out).all() and all(np.isfinite(a).all() for a in backward(out)[0])


def test_float32_keeps_its_digits_over_a_long_kernel():
    """Angles of thousands of radians, of which float32 would keep three digits behind the point."""
    rng = np.random.default_rng(11)
    params = init_s4d(rng, 2, d_state=64, step_min=0.1, step_max=0.1)
    params = params._replace(log_A_real=params.log_A_real - 6)  # so that the waves last
    pulse = np.eye(4000, dtype=np.float32)[:, :1] * np.ones(2, np.float32)
    exact = s4d(S4D(*(a.astype(np.float64) for a in params)), pulse.astype(np.float64))[0]
    assert np.abs(s4d(params, pulse)[0] - exact).max() < 2e-6 * np.abs(exact).max()


def with_gradients_that_are_not_conjugated(params, x):
    """The chain rule with f'(z) in place of its conjugate: right for real numbers."""
    out, backward = s4d(params, x)
    A = -np.exp(params.log_A_real) + 1j * params.A_imag
    gain = np.expm1(np.exp(params.log_step)[:, None] * A) / A

    def wrong(dout):
        dparams, dx = backward(dout)
        dC = (dparams.C[..., 0] + 1j * dparams.C[..., 1]) / gain.conj() * gain
        return dparams._replace(C=np.stack([dC.real, dC.imag], -1)), dx

    return out, wrong


def without_the_gain_of_the_hold(params, x):
    """That lam stands in the gain as well as in the kernel is forgotten."""
    out, backward = s4d(params, x)
    A = -np.exp(params.log_A_real) + 1j * params.A_imag
    step = np.exp(params.log_step)[:, None]
    lam = step * A
    C = params.C[..., 0] + 1j * params.C[..., 1]

    def wrong(dout):
        dparams, dx = backward(dout)
        dc = (dparams.C[..., 0] + 1j * dparams.C[..., 1]) / (np.expm1(lam) / A).conj()
        lost = (step * (A.conj() * ((C * np.exp(lam) / A).conj() * dc)).real).sum(-1)
        return dparams._replace(log_step=dparams.log_step - lost), dx

    return out, wrong


@pytest.mark.parametrize(("wrong", "path"), [(with_gradients_that_are_not_conjugated, "params.C"), (without_the_gain_of_the_hold, "params.log_step")])
def test_the_checker_refuses(wrong, path):
    rng = np.random.default_rng(12)
    report = check_gradients(wrong, random_params(rng), rng.normal(size=(2, 7, 3)))
    assert not report.passed and report.worst.path == path and report.error > 1e-2


@pytest.mark.parity
@pytest.mark.parametrize("view", ["convolution", "recurrent"])
def test_parity_with_the_authors_formula_in_torch(view):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(13)
    params, x, dout = random_params(rng), rng.normal(size=(2, 11, 3)), rng.normal(size=(2, 11, 3))
    log_step, log_A_real, A_imag, C, D = leaves = [torch.tensor(a, requires_grad=True) for a in params]
    u = torch.tensor(x, requires_grad=True)
    A = -torch.exp(log_A_real) + 1j * A_imag
    lam = A * torch.exp(log_step)[:, None]
    table = torch.exp(lam[..., None] * torch.arange(11))
    kernel = 2 * torch.einsum("hn,hnl->hl", torch.view_as_complex(C) * (torch.exp(lam) - 1) / A, table).real
    spectrum = torch.fft.rfft(u.transpose(-1, -2), n=22) * torch.fft.rfft(kernel, n=22)
    theirs = torch.fft.irfft(spectrum, n=22)[..., :11].transpose(-1, -2) + D * u
    theirs.backward(torch.tensor(dout))
    out, backward = s4d(params, x, view=view)
    dparams, dx = backward(dout)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-12)
    for own, other in zip([*dparams, dx], [*leaves, u], strict=True):
        np.testing.assert_allclose(own, other.grad.numpy(), rtol=0, atol=1e-11)
