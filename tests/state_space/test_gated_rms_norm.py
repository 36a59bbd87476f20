"""Gated RMSNorm: the textbook loops, its kinship with silu and RMSNorm, what its groups forget, the field's code."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.silu import silu
from minitransformers.foundation import check_gradients
from minitransformers.norms.rms_norm import RmsNorm, rms_norm
from minitransformers.state_space.gated_rms_norm import GatedRmsNorm, gated_rms_norm, init_gated_rms_norm


def textbook(gain, x, z, groups, eps):
    """One position and one group at a time."""
    size, rows = len(gain) // groups, []
    for row, gate in zip(anp.reshape(x, (-1, len(gain))), anp.reshape(z, (-1, len(gain))), strict=True):
        gated, parts = row * gate / (1 + anp.exp(-gate)), []
        for g in range(groups):
            part = gated[g * size : (g + 1) * size]
            parts.append(part / anp.sqrt(anp.sum(part**2) / size + eps))
        rows.append(gain * anp.concatenate(parts))
    return anp.reshape(anp.stack(rows), x.shape)


def case(seed=0, shape=(2, 3, 6)):
    rng = np.random.default_rng(seed)
    return GatedRmsNorm(rng.normal(size=shape[-1])), 2 * rng.normal(size=shape), rng.normal(size=shape), rng.normal(size=shape)


@pytest.mark.parametrize("eps, dtype", [(1e-50, np.float32), (1e39, np.float32), (np.inf, np.float64), (-1e-5, np.float64)])
def test_an_eps_that_the_dtype_cannot_hold_is_refused(eps, dtype):
    params, x, z, _ = case()
    with pytest.raises(ValueError, match="eps: got"):
        gated_rms_norm(GatedRmsNorm(params.gain.astype(dtype)), x.astype(dtype), z.astype(dtype), eps=eps)


@pytest.mark.parametrize("groups, eps", [(1, 1e-5), (2, 1e-5), (3, 0.1), (6, 1e-2)])
def test_equals_the_textbook_loops_and_their_gradients(groups, eps):
    params, x, z, dout = case()
    out, backward = gated_rms_norm(params, x, z, groups=groups, eps=eps)
    np.testing.assert_allclose(out, textbook(params.gain, x, z, groups, eps), rtol=0, atol=1e-13)
    loss = lambda gain, x, z: anp.sum(dout * textbook(gain, x, z, groups, eps))  # noqa: E731
    expected = autograd.grad(loss, (0, 1, 2))(params.gain, x, z)
    (dgain,), dx, dz = backward(dout)
    for own, theirs in zip((dgain, dx, dz), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


def test_in_one_group_it_is_rms_norm_of_the_gated_input():
    params, x, z, _ = case()
    expected, _ = rms_norm(RmsNorm(params.gain), x * silu(z)[0], eps=1e-5)
    np.testing.assert_allclose(gated_rms_norm(params, x, z)[0], expected, rtol=0, atol=1e-14)


def test_each_group_is_normed_by_itself():
    params, x, z, _ = case()
    halves = [gated_rms_norm(GatedRmsNorm(params.gain[part]), x[..., part], z[..., part])[0] for part in (np.s_[:3], np.s_[3:])]
    np.testing.assert_allclose(gated_rms_norm(params, x, z, groups=2)[0], np.concatenate(halves, axis=-1), rtol=0, atol=1e-14)


def test_the_size_of_a_group_is_forgotten():
    params, x, z, _ = case()
    scaled = x * np.repeat([1e3, 1e-2], 3)
    out, scaled_out = (gated_rms_norm(params, a, z, groups=2, eps=1e-14)[0] for a in (x, scaled))
    np.testing.assert_allclose(scaled_out, out, rtol=1e-7)


def test_the_gradient_has_no_part_along_a_group_of_x():
    params, x, z, dout = case()
    _, dx, _ = gated_rms_norm(params, x, z, groups=2, eps=1e-30)[1](dout)
    np.testing.assert_allclose((dx * x).reshape(2, 3, 2, 3).sum(-1), 0, atol=1e-13)


def test_a_closed_gate_lets_neither_values_nor_gradients_through():
    params, x, z, dout = case()
    z[..., 1] = -800.0
    out, backward = gated_rms_norm(params, x, z)
    assert not out[..., 1].any() and not backward(dout)[1][..., 1].any()
    assert np.isfinite(backward(dout)[2]).all()


def test_how_it_starts():
    assert init_gated_rms_norm(np.random.default_rng(0), 3).gain.tolist() == [1, 1, 1]


def with_the_gate_taken_for_a_constant(params, x, z):
    out, backward = gated_rms_norm(params, x, z, groups=2)

    def wrong(dout):
        dparams, dx, _ = backward(dout)
        return dparams, dx, dx * x                           # as if the gate were z itself

    return out, wrong


def test_the_checker_refuses_a_gate_without_its_slope():
    report = check_gradients(with_the_gate_taken_for_a_constant, *case()[:3])
    assert not report.passed and report.worst.path == "z"


@pytest.mark.parity
def test_parity_with_torch():
    torch = pytest.importorskip("torch")
    params, x, z, dout = case(1)
    gain, their_x, their_z = (torch.tensor(a, requires_grad=True) for a in (params.gain, x, z))
    gated = (their_x * torch.nn.functional.silu(their_z)).unflatten(-1, (2, 3))
    theirs = torch.nn.functional.rms_norm(gated, (3,), None, 1e-5).flatten(-2) * gain
    theirs.backward(torch.tensor(dout))
    out, backward = gated_rms_norm(params, x, z, groups=2)
    (dgain,), dx, dz = backward(dout)
    for own, other in ((out, theirs.detach()), (dgain, gain.grad), (dx, their_x.grad), (dz, their_z.grad)):
        np.testing.assert_allclose(own, other.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parity
@pytest.mark.parametrize("family, name, groups", [("mamba2", "MambaRMSNormGated", 1), ("zamba2", "Zamba2RMSNormGated", 2)])
def test_parity_with_hugging_face(family, name, groups):
    # These compute in float32 whatever comes in.
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import importlib

    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    params, x, z, dout = case(2)
    theirs = getattr(module, name)(6, group_size=6 // groups, eps=1e-5).double()
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(params.gain))
    their_x, their_z = (torch.tensor(a, requires_grad=True) for a in (x, z))
    their_out = theirs(their_x, their_z)
    their_out.double().backward(torch.tensor(dout))
    out, backward = gated_rms_norm(params, x, z, groups=groups)
    (dgain,), dx, dz = backward(dout)
    for own, other in ((out, their_out.detach()), (dgain, theirs.weight.grad), (dx, their_x.grad), (dz, their_z.grad)):
        np.testing.assert_allclose(own, other.numpy(), rtol=0, atol=5e-6)
