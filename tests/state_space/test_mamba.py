"""Mamba: the block written out naively, decoding that equals the whole pass, and how it starts."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import catalogue, trees
from minitransformers.basics.causal_convolution import CausalConvolution
from minitransformers.basics.linear import Linear
from minitransformers.basics.softplus import softplus
from minitransformers.foundation import check_gradients
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model
from minitransformers.state_space.mamba import Mamba, init_mamba, mamba, mamba_step
from minitransformers.state_space.selective_scan import selective_scan
from minitransformers.state_space.selective_scan_blocks import selective_scan_blocks


def random_params(rng, d_model=3, d_inner=4, d_state=2, dt_rank=5, width=3):
    def normal(*shape):
        return 0.5 * rng.normal(size=shape)

    return Mamba(
        Linear(normal(d_model, 2 * d_inner), None), CausalConvolution(normal(d_inner, width), normal(d_inner)),
        Linear(normal(d_inner, dt_rank + 2 * d_state), None), Linear(normal(dt_rank, d_inner), normal(d_inner)),
        normal(d_inner, d_state), normal(d_inner), Linear(normal(d_inner, d_model), None),
    )  # fmt: skip


def textbook(params, x):
    """One position of one sequence at a time, in the words of the paper."""
    (w_in, _), (taps, conv_bias), (w_x, _), (w_dt, b_dt), A_log, D, (w_out, _) = params
    (d_inner, width), dt_rank, d_state = taps.shape, w_dt.shape[0], A_log.shape[1]
    silu = lambda v: v / (1 + anp.exp(-v))  # noqa: E731
    sequences = []
    for b in range(len(x)):
        h, rows, read = anp.zeros((d_inner, d_state)), [], [anp.zeros(d_inner)] * (width - 1)
        for t in range(x.shape[1]):
            both = x[b, t] @ w_in
            read.append(both[:d_inner])
            u = silu(conv_bias + sum(taps[:, k] * read[t + k] for k in range(width)))
            parts = u @ w_x
            delta = anp.log(1 + anp.exp(parts[:dt_rank] @ w_dt + b_dt))
            B, C = parts[dt_rank : dt_rank + d_state], parts[dt_rank + d_state :]
            h = anp.exp(-delta[:, None] * anp.exp(A_log)) * h + anp.outer(delta * u, B)
            rows.append(((h @ C + D * u) * silu(both[d_inner:])) @ w_out)
        sequences.append(anp.stack(rows))
    return anp.stack(sequences)


@pytest.mark.parametrize("n", [5, 1])
def test_equals_the_block_one_position_at_a_time_and_its_gradients(n):
    rng = np.random.default_rng(0)
    params, x, dout = random_params(rng), rng.normal(size=(2, n, 3)), rng.normal(size=(2, n, 3))
    out, backward = mamba(params, x, scan=partial(selective_scan_blocks, chunk=2))
    plain = tuple(tuple(part) if isinstance(part, tuple) else part for part in params)
    np.testing.assert_allclose(out, textbook(plain, x), rtol=0, atol=1e-13)
    loss = lambda values, x: anp.sum(dout * textbook(trees.unflatten(params, values), x))  # noqa: E731
    values = [leaf for _, leaf in trees.leaves(params)]
    expected, expected_dx = autograd.grad(loss, (0, 1))(values, x)
    dparams, dx = backward(dout)
    np.testing.assert_allclose(dx, expected_dx, rtol=0, atol=1e-12)
    for (path, own), theirs in zip(trees.leaves(dparams), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12, err_msg=path)


FORMS = ("associative", "chunked", "sequential")
SCANS = [selective_scan, *(partial(selective_scan_blocks, form=form, chunk=2) for form in FORMS)]


@pytest.mark.parametrize("scan", SCANS, ids=["plain", *FORMS])
def test_every_scan_gives_the_same(scan):
    rng = np.random.default_rng(1)
    params, x, dout = random_params(rng), rng.normal(size=(2, 7, 3)), rng.normal(size=(2, 7, 3))
    (out, backward), (own, own_backward) = mamba(params, x), mamba(params, x, scan=scan)
    np.testing.assert_allclose(mamba_step(params, x, None, scan=scan)[0], out, rtol=0, atol=1e-12)
    np.testing.assert_allclose(own, out, rtol=0, atol=1e-12)
    for (path, a), (_, b) in zip(trees.leaves(own_backward(dout)), trees.leaves(backward(dout)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12, err_msg=path)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("pieces", [(1,) * 9, (5, 1, 1, 1, 1), (2, 4, 3), (9,)])
def test_a_prefill_and_steps_equal_the_whole_pass(pieces, width):
    rng = np.random.default_rng(2)
    params, x = random_params(rng, width=width), rng.normal(size=(2, 9, 3))
    whole, _ = mamba(params, x)
    state, outs = None, []
    for piece in np.split(x, np.cumsum(pieces)[:-1], axis=1):
        out, state = mamba_step(params, piece, state)
        outs.append(out)
        assert state.past.shape == (2, width - 1, 4) and state.state.shape == (2, 4, 2)  # of one size, however long the text
    np.testing.assert_allclose(np.concatenate(outs, axis=1), whole, rtol=0, atol=1e-12)


def test_a_step_writes_to_nothing():
    rng = np.random.default_rng(3)
    params, x = random_params(rng), rng.normal(size=(2, 4, 3))
    _, state = mamba_step(params, x, None)
    before = trees.map(np.copy, state)
    first, second = mamba_step(params, x, state)[0], mamba_step(params, x, state)[0]
    np.testing.assert_array_equal(first, second)
    for (_, a), (_, b) in zip(trees.leaves(before), trees.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_state_of_another_model_or_batch_is_named():
    rng = np.random.default_rng(4)
    params, x = random_params(rng), rng.normal(size=(2, 4, 3))
    _, state = mamba_step(params, x, None)
    with pytest.raises(ValueError, match=r"state.past: got shape \(2, 2, 4\), wants \(2, 4, 4\)"):
        mamba_step(random_params(rng, width=5), x, state)
    with pytest.raises(ValueError, match=r"state.state: got shape \(2, 4, 2\), wants \(2, 4, 6\)"):
        mamba_step(random_params(rng, d_state=6), x, state)
    with pytest.raises(ValueError, match=r"state.past"):
        mamba_step(params, x[:1], state)
    with pytest.raises(ValueError, match=r"x: got shape \(2, 0, 3\)"):
        mamba_step(params, x[:, :0], state)
    with pytest.raises(ValueError, match=r"x: got shape"):
        mamba_step(params, np.ones((2, 4, 5)), state)
    with pytest.raises(ValueError, match=r"params.x_proj.weight: got 9 columns, wants dt_rank \+ 2 d_state = 8"):
        mamba_step(params._replace(dt_proj=Linear(np.ones((4, 4)), None)), x, None)


@pytest.mark.parametrize(("wrong", "dtype"), [(np.nan, np.float64), (800.0, np.float64), (-800.0, np.float64), (100.0, np.float32), (-110.0, np.float32)])
def test_a_rate_that_is_0_or_infinite_in_its_dtype_is_named(wrong, dtype):
    params = trees.map(lambda leaf: leaf.astype(dtype), random_params(np.random.default_rng(12)))
    A_log = params.A_log.copy()
    A_log[1, 0] = wrong
    with pytest.raises(ValueError, match=r"params.A_log: got numbers from .*, wants finite numbers whose exponential is finite and above 0"):
        mamba(params._replace(A_log=A_log), np.ones((2, 5, 3), dtype))


def test_no_output_sees_a_later_input_or_another_sequence():
    rng = np.random.default_rng(5)
    params, x = random_params(rng), rng.normal(size=(2, 6, 3))
    changed = x.copy()
    changed[1, 3] += 1
    before, after = mamba(params, x)[0], mamba(params, changed)[0]
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1, :3], after[1, :3])
    assert (before[1, 3] != after[1, 3]).all()


def test_it_knows_the_order_without_positions():
    rng = np.random.default_rng(6)
    params, x = random_params(rng), rng.normal(size=(1, 6, 3))
    assert np.abs(mamba(params, x[:, ::-1])[0][:, ::-1] - mamba(params, x)[0]).max() > 1e-2


def test_how_it_starts():
    params = init_mamba(np.random.default_rng(7), 64, d_state=3, std=0.02, residual_std=0.005)
    assert all(leaf.dtype == np.float32 for _, leaf in trees.leaves(params))
    steps = softplus(params.dt_proj.bias.astype(np.float64))[0]
    assert steps.min() > 0.99e-3 and steps.max() < 1.01e-1
    np.testing.assert_allclose(np.log(steps).mean(), np.log(1e-2), atol=0.3)
    np.testing.assert_allclose(-np.exp(params.A_log), np.broadcast_to([-1.0, -2.0, -3.0], (128, 3)), rtol=1e-6)
    assert (params.D == 1).all() and params.dt_proj.weight.shape == (4, 128) and params.x_proj.weight.shape == (128, 10)
    np.testing.assert_allclose([params.in_proj.weight.std(), params.out_proj.weight.std()], [0.02, 0.005], rtol=0.05)
    by_fan_in = init_mamba(np.random.default_rng(7), 64)
    np.testing.assert_allclose(by_fan_in.in_proj.weight.std() * 8, 1, rtol=0.05)
    np.testing.assert_allclose(by_fan_in.out_proj.weight.std() * 128**0.5, 1, rtol=0.05)
    assert by_fan_in.A_log.shape == (128, 16) and by_fan_in.conv.weight.shape == (128, 4)
    wide = init_mamba(np.random.default_rng(7), 6, expand=3, d_conv=2, dt_rank=5)
    assert wide.conv.weight.shape == (18, 2) and wide.dt_proj.weight.shape == (5, 18)
    assert init_mamba(np.random.default_rng(7), 17).dt_proj.weight.shape == (2, 34)
    for name in ("d_state", "expand", "d_conv", "dt_rank"):
        with pytest.raises(ValueError, match=name):
            init_mamba(np.random.default_rng(7), 6, **{name: 0})


def test_a_language_model_takes_it_by_name_and_passes_its_options():
    config = LanguageModelConfig(vocabulary_size=7, d_model=6, num_layers=1, mixer="mamba", position="none", options={"mixer": {"d_state": 3}})
    params = init_language_model(np.random.default_rng(8), config)
    assert params.blocks[0].mixer.A_log.shape == (12, 3)
    np.testing.assert_allclose(params.blocks[0].mixer.in_proj.weight.std(), 0.02, rtol=0.2)
    assert catalogue.find("mamba", role="mixer").step is mamba_step


def bias_added_twice(params, x):
    twice = params._replace(dt_proj=Linear(params.dt_proj.weight, 2 * params.dt_proj.bias))
    out, backward = mamba(twice, x)
    return out, backward                                     # the gradient of the bias is half of what it should be


def scanned_but_not_asked(params, x):
    out, backward = mamba(params, x)

    def wrong(dout):                                         # as if u did not say how it is to be scanned
        fixed = params._replace(x_proj=Linear(np.zeros_like(params.x_proj.weight), None))
        return backward(dout)[0], mamba(fixed, x)[1](dout)[1]

    return out, wrong


@pytest.mark.parametrize("mistake", [bias_added_twice, scanned_but_not_asked])
def test_the_check_refuses(mistake):
    rng = np.random.default_rng(9)
    assert not check_gradients(mistake, random_params(rng), rng.normal(size=(2, 5, 3))).passed


@pytest.mark.parity
def test_parity_with_hugging_face():
    # That path computes in float32 inside, whatever comes in. Its weights are transposed, its taps have an axis more.
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("transformers.models.mamba.modeling_mamba")
    from transformers import MambaConfig

    rng = np.random.default_rng(10)
    params = trees.map(lambda leaf: leaf.astype(np.float32), random_params(rng, d_model=6, d_inner=12, d_state=4, dt_rank=2, width=4))
    x, dout = rng.normal(size=(2, 2, 9, 6)).astype(np.float32)
    config = MambaConfig(hidden_size=6, state_size=4, expand=2, conv_kernel=4, time_step_rank=2, use_bias=False, use_conv_bias=True)
    theirs = module.MambaMixer(config, layer_idx=0)
    pairs = {
        "in_proj.weight": params.in_proj.weight.T, "conv1d.weight": params.conv.weight[:, None], "conv1d.bias": params.conv.bias,
        "x_proj.weight": params.x_proj.weight.T, "dt_proj.weight": params.dt_proj.weight.T, "dt_proj.bias": params.dt_proj.bias,
        "A_log": params.A_log, "D": params.D, "out_proj.weight": params.out_proj.weight.T,
    }  # fmt: skip
    theirs.load_state_dict({name: torch.tensor(np.ascontiguousarray(value)) for name, value in pairs.items()})
    their_x = torch.tensor(x, requires_grad=True)
    their_out = theirs(their_x)
    their_out.backward(torch.tensor(dout))
    out, backward = mamba(params, x)
    d, dx = backward(dout)
    np.testing.assert_allclose(out, their_out.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(dx, their_x.grad.numpy(), atol=1e-5, rtol=1e-5)
    own = {
        "in_proj.weight": d.in_proj.weight.T, "conv1d.weight": d.conv.weight[:, None], "conv1d.bias": d.conv.bias,
        "x_proj.weight": d.x_proj.weight.T, "dt_proj.weight": d.dt_proj.weight.T, "dt_proj.bias": d.dt_proj.bias,
        "A_log": d.A_log, "D": d.D, "out_proj.weight": d.out_proj.weight.T,
    }  # fmt: skip
    for name, value in theirs.named_parameters():
        np.testing.assert_allclose(own[name], value.grad.numpy(), atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parity
def test_parity_with_a_loop_in_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(11)
    params, x, dout = random_params(rng, width=4), rng.normal(size=(2, 9, 3)), rng.normal(size=(2, 9, 3))
    theirs = trees.map(lambda leaf: torch.tensor(leaf, requires_grad=True), params)
    their_x, F = torch.tensor(x, requires_grad=True), torch.nn.functional
    inner, z = (their_x @ theirs.in_proj.weight).chunk(2, -1)
    u = F.silu(F.conv1d(inner.transpose(1, 2), theirs.conv.weight[:, None], theirs.conv.bias, padding=3, groups=4)[..., :9].transpose(1, 2))
    low, B, C = (u @ theirs.x_proj.weight).split([5, 2, 2], -1)
    delta, A = F.softplus(low @ theirs.dt_proj.weight + theirs.dt_proj.bias), -torch.exp(theirs.A_log)
    h, rows = torch.zeros(2, 4, 2, dtype=torch.float64), []
    for t in range(9):
        h = torch.exp(delta[:, t, :, None] * A) * h + delta[:, t, :, None] * B[:, t, None] * u[:, t, :, None]
        rows.append((h * C[:, t, None]).sum(-1))
    their_out = ((torch.stack(rows, 1) + theirs.D * u) * F.silu(z)) @ theirs.out_proj.weight
    their_out.backward(torch.tensor(dout))
    out, backward = mamba(params, x)
    dparams, dx = backward(dout)
    np.testing.assert_allclose(out, their_out.detach().numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(dx, their_x.grad.numpy(), rtol=0, atol=1e-12)
    for (path, own), (_, other) in zip(trees.leaves(dparams), trees.leaves(theirs), strict=True):
        np.testing.assert_allclose(own, other.grad.numpy(), rtol=0, atol=1e-12, err_msg=path)
