"""Mamba-2: the block written out naively, decoding that equals the whole pass, how it starts, the field's code."""

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
from minitransformers.models.decoding import generate, without_cache
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model, language_model, language_model_step
from minitransformers.state_space.gated_rms_norm import GatedRmsNorm
from minitransformers.state_space.mamba2 import Mamba2, init_mamba2, mamba2, mamba2_step
from minitransformers.state_space.ssd import ssd
from minitransformers.state_space.ssd_chunked import ssd_chunked
from minitransformers.state_space.ssd_quadratic import ssd_quadratic
from minitransformers.state_space.ssd_recurrent import ssd_recurrent

in_twos = partial(ssd_chunked, chunk=2)


def random_params(rng, d_model=3, heads=4, d_head=2, groups=2, d_state=5, width=3, bias=True):
    def normal(*shape):
        return 0.5 * rng.normal(size=shape)

    d_inner = heads * d_head
    d_mixed = d_inner + 2 * groups * d_state
    return Mamba2(
        Linear(normal(d_model, d_inner + d_mixed + heads), normal(d_inner + d_mixed + heads) if bias else None),
        CausalConvolution(normal(d_mixed, width), normal(d_mixed)), normal(heads), normal(heads), normal(heads),
        GatedRmsNorm(1 + normal(d_inner)), Linear(normal(d_inner, d_model), normal(d_model) if bias else None),
    )  # fmt: skip


def textbook(params, x, groups, eps=1e-5, limit=(0.0, np.inf)):
    """One sequence, one position, one head at a time."""
    (w_in, b_in), (taps, conv_bias), dt_bias, A_log, D, (gain,), (w_out, b_out) = params
    (d_mixed, width), heads, d_inner = taps.shape, len(A_log), len(gain)
    d_head, d_state = d_inner // heads, (d_mixed - d_inner) // (2 * groups)
    silu = lambda v: v / (1 + anp.exp(-v))  # noqa: E731
    sequences = []
    for sequence in x:
        read, states, rows = [anp.zeros(d_mixed)] * (width - 1), [anp.zeros((d_head, d_state))] * heads, []
        for t in range(len(sequence)):
            parts = anp.dot(sequence[t], w_in) + b_in
            z, step = parts[:d_inner], anp.log(1 + anp.exp(parts[d_inner + d_mixed :] + dt_bias))
            step = anp.where(step < limit[0], limit[0], anp.where(step > limit[1], limit[1], step))
            read.append(parts[d_inner : d_inner + d_mixed])
            active = silu(conv_bias + sum(taps[:, k] * read[t + k] for k in range(width)))
            outputs = []
            for h in range(heads):
                g, own = h * groups // heads, active[h * d_head : (h + 1) * d_head]
                B = active[d_inner + g * d_state : d_inner + (g + 1) * d_state]
                C = active[d_inner + (groups + g) * d_state : d_inner + (groups + g + 1) * d_state]
                states[h] = anp.exp(-step[h] * anp.exp(A_log[h])) * states[h] + anp.outer(step[h] * own, B)
                outputs.append(anp.dot(states[h], C) + D[h] * own)
            gated = anp.reshape(anp.concatenate(outputs) * silu(z), (groups, -1))
            unit = gated / anp.sqrt(anp.mean(gated**2, axis=1, keepdims=True) + eps)
            rows.append(anp.dot(gain * anp.reshape(unit, -1), w_out) + b_out)
            states = list(states)
        sequences.append(anp.stack(rows))
    return anp.stack(sequences)


@pytest.mark.parametrize("n, groups, limit", [(5, 2, None), (1, 2, None), (4, 1, None), (3, 4, None), (5, 2, (0.5, 0.8))])
def test_equals_the_block_one_position_at_a_time_and_its_gradients(n, groups, limit):
    rng = np.random.default_rng(0)
    params, x, dout = random_params(rng, groups=groups), rng.normal(size=(2, n, 3)), rng.normal(size=(2, n, 3))
    out, backward = mamba2(params, x, num_groups=groups, mix=partial(ssd, core=in_twos, delta_limit=limit))
    block = partial(textbook, groups=groups, limit=limit or (0.0, np.inf))
    np.testing.assert_allclose(out, block(params, x), rtol=0, atol=1e-12)
    loss = lambda values, x: anp.sum(dout * block(trees.unflatten(params, values), x))  # noqa: E731
    values = [leaf for _, leaf in trees.leaves(params)]
    expected, expected_dx = autograd.grad(loss, (0, 1))(values, x)
    dparams, dx = backward(dout)
    np.testing.assert_allclose(dx, expected_dx, rtol=0, atol=1e-11)
    for (path, own), theirs in zip(trees.leaves(dparams), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-11, err_msg=path)


def test_eps_is_that_of_the_norm():
    rng = np.random.default_rng(13)
    params, x = random_params(rng), rng.normal(size=(2, 3, 3))
    np.testing.assert_allclose(mamba2(params, x, num_groups=2, eps=0.5)[0], textbook(params, x, 2, eps=0.5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("core", [ssd_recurrent, ssd_quadratic, *(partial(ssd_chunked, chunk=q) for q in (1, 3, 64))])
def test_every_core_of_ssd_gives_the_same(core):
    rng = np.random.default_rng(1)
    params, x, dout = random_params(rng), rng.normal(size=(2, 7, 3)), rng.normal(size=(2, 7, 3))
    (out, backward), (own, own_backward) = mamba2(params, x, num_groups=2), mamba2(params, x, num_groups=2, mix=partial(ssd, core=core))
    np.testing.assert_allclose(own, out, rtol=0, atol=1e-12)
    for (path, a), (_, b) in zip(trees.leaves(own_backward(dout)), trees.leaves(backward(dout)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12, err_msg=path)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("pieces", [(1,) * 9, (5, 1, 1, 1, 1), (2, 4, 3), (9,)])
def test_a_prefill_and_steps_equal_the_whole_pass(pieces, width):
    rng = np.random.default_rng(2)
    params, x = random_params(rng, width=width), rng.normal(size=(2, 9, 3))
    mix = partial(ssd, core=in_twos, delta_limit=(0.5, 0.8))  # clips some steps: those of single positions as well
    whole, _ = mamba2(params, x, num_groups=2, mix=mix)
    assert np.abs(whole - mamba2(params, x, num_groups=2)[0]).max() > 1e-2
    state, outs = None, []
    for piece in np.split(x, np.cumsum(pieces)[:-1], axis=1):
        out, state = mamba2_step(params, piece, state, num_groups=2, mix=mix)
        outs.append(out)
        assert state.past.shape == (2, width - 1, 28) and state.state.shape == (2, 4, 2, 5)  # of one size, however long the text
    np.testing.assert_allclose(np.concatenate(outs, axis=1), whole, rtol=0, atol=1e-12)


def test_a_step_writes_to_nothing():
    rng = np.random.default_rng(3)
    params, x = random_params(rng), rng.normal(size=(2, 4, 3))
    _, state = mamba2_step(params, x, None, num_groups=2)
    before = trees.map(np.copy, state)
    first, second = (mamba2_step(params, x, state, num_groups=2)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    for (_, a), (_, b) in zip(trees.leaves(before), trees.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_state_of_another_model_or_batch_is_named():
    rng = np.random.default_rng(4)
    params, x = random_params(rng), rng.normal(size=(2, 4, 3))
    _, state = mamba2_step(params, x, None, num_groups=2)
    with pytest.raises(ValueError, match=r"state.past: got shape \(2, 2, 28\), wants \(2, 4, 28\)"):
        mamba2_step(random_params(rng, width=5), x, state, num_groups=2)
    with pytest.raises(ValueError, match=r"state.state: got shape \(2, 4, 2, 5\), wants \(2, 2, 4, 5\)"):
        mamba2_step(random_params(rng, heads=2, d_head=4), x, state, num_groups=2)
    with pytest.raises(ValueError, match=r"state.past"):
        mamba2_step(params, x[:1], state, num_groups=2)
    for wrong in (np.ones((2, 4, 5)), np.ones((2, 0, 3))):
        with pytest.raises(ValueError, match="x: got shape"):
            mamba2_step(params, wrong, state, num_groups=2)


@pytest.mark.parametrize("wrong", [np.nan, 800.0, -800.0])
def test_a_rate_that_is_0_or_infinite_is_named(wrong):
    params = random_params(np.random.default_rng(12))
    with pytest.raises(ValueError, match=r"params.A_log: got numbers from .*, wants finite numbers whose exponential is finite and above 0"):
        mamba2(params._replace(A_log=np.array([0.0, 0.0, wrong, 0.0])), np.ones((2, 5, 3)), num_groups=2)


def test_no_output_sees_a_later_input_or_another_sequence():
    rng = np.random.default_rng(5)
    params, x = random_params(rng), rng.normal(size=(2, 6, 3))
    changed = x.copy()
    changed[1, 3] += 1
    before, after = (mamba2(params, a, num_groups=2, mix=partial(ssd, core=in_twos))[0] for a in (x, changed))
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1, :3], after[1, :3])
    assert (before[1, 3] != after[1, 3]).all()


def test_how_it_starts():
    params = init_mamba2(np.random.default_rng(7), 64, d_state=3, d_head=2, num_groups=4, std=0.02, residual_std=0.005)
    assert all(leaf.dtype == np.float32 for _, leaf in trees.leaves(params))
    steps, rates = softplus(params.dt_bias.astype(np.float64))[0], np.exp(params.A_log)
    assert steps.min() > 0.99e-3 and steps.max() < 1.01e-1 and abs(np.log(steps).mean() - np.log(1e-2)) < 0.4
    assert rates.min() > 0.99 and rates.max() < 16.01 and abs(rates.mean() - 8.5) < 1.5
    assert (params.D == 1).all() and params.in_proj.weight.shape == (64, 128 + 128 + 24 + 64)
    np.testing.assert_allclose([params.in_proj.weight.std(), params.out_proj.weight.std()], [0.02, 0.005], rtol=0.05)
    by_fan_in = init_mamba2(np.random.default_rng(7), 64)
    np.testing.assert_allclose(by_fan_in.in_proj.weight.std() * 8, 1, rtol=0.05)
    np.testing.assert_allclose(by_fan_in.out_proj.weight.std() * 128**0.5, 1, rtol=0.05)
    assert by_fan_in.A_log.shape == (2,) and by_fan_in.conv.weight.shape == (128 + 2 * 64, 4)
    assert init_mamba2(np.random.default_rng(7), 6, expand=3, d_conv=2).A_log.shape == (9,)  # heads of 2 features: 18 = 2 * 9
    assert init_mamba2(np.random.default_rng(7), 6, expand=3, d_conv=2).conv.weight.shape == (18 + 128, 2)


@pytest.mark.parametrize(
    "bad", [{"d_head": 5}, {"d_head": 0}, {"num_groups": 0}, {"num_groups": 5}, {"d_state": 0}, {"expand": 0}, {"d_conv": 0}], ids=str
)
def test_sizes_that_do_not_fit_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        init_mamba2(np.random.default_rng(0), 6, **bad)


def test_weight_decay_leaves_the_rates_steps_and_skips_alone():
    assert set(trees.decayed(init_mamba2(np.random.default_rng(0), 8))) == {"in_proj.weight", "conv.weight", "out_proj.weight"}


def test_a_language_model_takes_it_by_name_passes_its_options_and_writes_with_its_state():
    options = {"mixer": {"d_state": 3, "d_head": 2, "num_groups": 3}}
    config = LanguageModelConfig(vocabulary_size=7, context=12, d_model=6, num_layers=2, mixer="mamba2", position="none", options=options)
    params = init_language_model(np.random.default_rng(8), config, dtype=np.float64)
    assert params.blocks[0].mixer.conv.weight.shape == (12 + 18, 4)
    np.testing.assert_allclose(params.blocks[0].mixer.in_proj.weight.std(), 0.02, rtol=0.2)
    assert catalogue.find("mamba2", role="mixer").step is mamba2_step
    steps = partial(language_model_step, params, config=config), without_cache(partial(language_model, params, config=config))
    written = [
        list(generate(step, prompt_ids=np.array([1, 2, 3]), num_tokens=8, rng=np.random.default_rng(0), context=12)) for step in steps
    ]
    assert written[0] == written[1]


def gate_first(params, x):
    """The parts read in another order, x before z, as in Mamba: another function, and its gradient must not pass for this one's."""
    out, _ = mamba2(params, x, num_groups=2)
    order = [*range(8, 16), *range(8), *range(16, params.in_proj.weight.shape[1])]
    other = params._replace(in_proj=Linear(params.in_proj.weight[:, order], params.in_proj.bias[order]))
    _, backward = mamba2(other, x, num_groups=2)
    return out, backward


def rate_in_the_place_of_its_logarithm(params, x):
    out, backward = mamba2(params, x, num_groups=2)

    def wrong(dout):
        dparams, dx = backward(dout)
        return dparams._replace(A_log=-dparams.A_log / np.exp(params.A_log)), dx

    return out, wrong


@pytest.mark.parametrize("mistake", [gate_first, rate_in_the_place_of_its_logarithm])
def test_the_check_refuses(mistake):
    rng = np.random.default_rng(9)
    assert not check_gradients(mistake, random_params(rng), rng.normal(size=(1, 4, 3))).passed


@pytest.mark.parity
@pytest.mark.parametrize("limit", [(0.0, np.inf), (0.5, 0.8)], ids=["no limit", "limit"])
@pytest.mark.parametrize("groups", [1, 2])
def test_parity_with_hugging_face(groups, limit):
    # That path computes in float32 inside, whatever comes in. Its weights are transposed, its taps have an axis more.
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    from transformers import Mamba2Config

    rng = np.random.default_rng(10)
    params = random_params(rng, d_model=4, heads=4, d_head=2, groups=groups, d_state=5, width=4, bias=False)
    params = trees.map(lambda leaf: leaf.astype(np.float32), params)
    x, dout = rng.normal(size=(2, 2, 9, 4)).astype(np.float32)
    config = Mamba2Config(
        hidden_size=4, num_heads=4, head_dim=2, state_size=5, expand=2, n_groups=groups, conv_kernel=4, chunk_size=4, use_bias=False,
        use_conv_bias=True, layer_norm_epsilon=1e-5, num_hidden_layers=1, time_step_limit=limit,
    )  # fmt: skip
    theirs = module.Mamba2Mixer(config, layer_idx=0).eval()

    def named(p):
        return {
            "in_proj.weight": p.in_proj.weight.T, "conv1d.weight": p.conv.weight[:, None], "conv1d.bias": p.conv.bias, "dt_bias": p.dt_bias,
            "A_log": p.A_log, "D": p.D, "norm.weight": p.norm.gain, "out_proj.weight": p.out_proj.weight.T,
        }  # fmt: skip

    theirs.load_state_dict({name: torch.tensor(np.ascontiguousarray(value)) for name, value in named(params).items()})
    their_x = torch.tensor(x, requires_grad=True)
    their_out = theirs(their_x)
    their_out.backward(torch.tensor(dout))
    out, backward = mamba2(params, x, num_groups=groups, mix=partial(ssd, delta_limit=limit))
    dparams, dx = backward(dout)
    np.testing.assert_allclose(out, their_out.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(dx, their_x.grad.numpy(), atol=1e-5, rtol=1e-5)
    own = named(dparams)
    for name, value in theirs.named_parameters():
        np.testing.assert_allclose(own[name], value.grad.numpy(), atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parity
def test_parity_with_a_loop_in_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(11)
    params, x, dout = random_params(rng, width=4), rng.normal(size=(2, 9, 3)), rng.normal(size=(2, 9, 3))
    theirs = trees.map(lambda leaf: torch.tensor(leaf, requires_grad=True), params)
    their_x, F = torch.tensor(x, requires_grad=True), torch.nn.functional
    z, xBC, step = (their_x @ theirs.in_proj.weight + theirs.in_proj.bias).split([8, 28, 4], -1)
    xBC = F.silu(F.conv1d(xBC.transpose(1, 2), theirs.conv.weight[:, None], theirs.conv.bias, padding=3, groups=28)[..., :9].transpose(1, 2))
    u, B, C = xBC.split([8, 10, 10], -1)
    u = u.unflatten(-1, (4, 2))
    B, C = (a.unflatten(-1, (2, 5)).repeat_interleave(2, 2) for a in (B, C))
    delta, A = F.softplus(step + theirs.dt_bias), -torch.exp(theirs.A_log)
    h, rows = torch.zeros(2, 4, 2, 5, dtype=torch.float64), []
    for t in range(9):
        fade = torch.exp(delta[:, t] * A)[..., None, None]
        h = fade * h + (delta[:, t, :, None] * u[:, t])[..., None] * B[:, t, :, None]
        rows.append((h * C[:, t, :, None]).sum(-1))
    y = (torch.stack(rows, 1) + theirs.D[:, None] * u).flatten(-2)
    normed = F.rms_norm((y * F.silu(z)).unflatten(-1, (2, 4)), (4,), None, 1e-5).flatten(-2) * theirs.norm.gain
    their_out = normed @ theirs.out_proj.weight + theirs.out_proj.bias
    their_out.backward(torch.tensor(dout))
    out, backward = mamba2(params, x, num_groups=2)
    dparams, dx = backward(dout)
    np.testing.assert_allclose(out, their_out.detach().numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(dx, their_x.grad.numpy(), rtol=0, atol=1e-11)
    for (path, own), (_, other) in zip(trees.leaves(dparams), trees.leaves(theirs), strict=True):
        np.testing.assert_allclose(own, other.grad.numpy(), rtol=0, atol=1e-11, err_msg=path)
