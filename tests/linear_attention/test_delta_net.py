"""DeltaNet: the layer one position at a time, decoding of constant size, what overwriting is good for, the authors' layer in PyTorch."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from mixers_at_work import (
    assert_it_has_no_place_for,
    assert_it_writes_the_same_without_a_state,
    assert_steps_equal_the_whole_pass,
    last_under_a_key,
    losses,
)
from mixers_at_work import model as small_model

from minitransformers import catalogue, trees
from minitransformers.basics.causal_convolution import CausalConvolution
from minitransformers.basics.linear import Linear
from minitransformers.foundation import check_gradients
from minitransformers.linear_attention.delta_net import DeltaNet, DeltaNetState, delta_net, delta_net_step, init_delta_net
from minitransformers.linear_attention.delta_rule import delta_rule
from minitransformers.linear_attention.delta_rule_chunked import delta_rule_chunked
from minitransformers.norms.rms_norm import RmsNorm

FORMS = {"plain": delta_rule, "chunks of 1": partial(delta_rule_chunked, chunk=1), "chunks of 4": partial(delta_rule_chunked, chunk=4)}


def random_params(rng, d_model=5, keys=4, values=6, heads=2, width=3):
    def map_of(*shape):
        return Linear(rng.normal(size=shape) / 2, rng.normal(size=shape[1]))

    into = (map_of(d_model, out) for out in (keys, keys, values, heads))
    conv = CausalConvolution(rng.normal(size=(2 * keys + values, width)), rng.normal(size=2 * keys + values))
    return DeltaNet(*into, conv, RmsNorm(rng.normal(size=values // heads)), map_of(values, d_model))


def textbook(params, x, num_heads, eps=1e-5):
    """One text, one position, one head at a time; three convolutions, each over its own past; dense matrices I - beta k k^T."""
    maps, beta, (taps, bias), (gain,), (wo, bo) = params[:3], params[3], *params[4:]
    width, d, p = taps.shape[1], maps[0][0].shape[1] // num_heads, maps[2][0].shape[1] // num_heads
    ends = np.cumsum([0, *(m[0].shape[1] for m in maps)])
    sequences = []
    for text in x:
        parts = []
        for (w, b), first, last in zip(maps, ends[:-1], ends[1:], strict=True):
            projected = [anp.zeros(last - first)] * (width - 1) + [anp.dot(token, w) + b for token in text]
            sums = [sum(taps[first:last, j] * projected[t + j] for j in range(width)) + bias[first:last] for t in range(len(text))]
            parts.append([a / (1 + anp.exp(-a)) for a in sums])
        states, rows = [anp.zeros((p, d))] * num_heads, []
        for t, token in enumerate(text):
            states, normed, shares = list(states), [], 1 / (1 + anp.exp(-(anp.dot(token, beta[0]) + beta[1])))
            for h in range(num_heads):
                q, k, v = (part[t][h * size : (h + 1) * size] for part, size in zip(parts, (d, d, p), strict=True))
                q, k = (a / anp.sqrt(anp.sum(a**2) + 1e-6) for a in (q, k))
                states[h] = anp.dot(states[h], anp.eye(d) - shares[h] * anp.outer(k, k)) + shares[h] * anp.outer(v, k)
                y = anp.dot(states[h], q)
                normed.append(gain * y / anp.sqrt(anp.mean(y**2) + eps))
            rows.append(anp.dot(anp.concatenate(normed), wo) + bo)
        sequences.append(anp.stack(rows))
    return anp.stack(sequences)


@pytest.mark.parametrize("positions, heads, width", [(5, 2, 3), (1, 2, 4), (4, 1, 1)])
def test_equals_the_layer_one_position_at_a_time_and_its_gradients(positions, heads, width):
    rng = np.random.default_rng(0)
    params, x, dout = random_params(rng, heads=heads, width=width), rng.normal(size=(2, positions, 5)), rng.normal(size=(2, positions, 5))
    out, backward = delta_net(params, x, num_heads=heads)
    np.testing.assert_allclose(out, textbook(params, x, heads), rtol=0, atol=1e-11)
    loss = lambda values, x: anp.sum(dout * textbook(trees.unflatten(params, values), x, heads))  # noqa: E731
    expected, expected_dx = autograd.grad(loss, (0, 1))([leaf for _, leaf in trees.leaves(params)], x)
    dparams, dx = backward(dout)
    np.testing.assert_allclose(dx, expected_dx, rtol=0, atol=1e-10)
    for (path, own), theirs in zip(trees.leaves(dparams), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10, err_msg=path)


def test_eps_is_the_one_given():
    rng = np.random.default_rng(1)
    params, x = random_params(rng), rng.normal(size=(2, 4, 5))
    np.testing.assert_allclose(delta_net(params, x, num_heads=2, eps=0.5)[0], textbook(params, x, 2, eps=0.5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_the_recurrence_gives_the_same(form):
    rng = np.random.default_rng(2)
    params, x, dout = random_params(rng), rng.normal(size=(2, 7, 5)), rng.normal(size=(2, 7, 5))
    (out, backward), (own, own_backward) = (delta_net(params, x, num_heads=2, **c) for c in ({}, {"mix": form}))
    np.testing.assert_allclose(own, out, rtol=0, atol=1e-11)
    for (path, a), (_, b) in zip(trees.leaves(own_backward(dout)), trees.leaves(backward(dout)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10, err_msg=path)


@pytest.mark.parametrize("pieces", [(1,) * 9, (5, 1, 1, 1, 1), (2, 4, 3), (9,)])
@pytest.mark.parametrize("width", [1, 3, 6])
def test_a_prefill_and_steps_equal_the_whole_pass(pieces, width):
    rng = np.random.default_rng(3)
    params, x = random_params(rng, width=width), rng.normal(size=(2, 9, 5))
    whole, _ = delta_net(params, x, num_heads=2)
    state, outs = None, []
    for piece in np.split(x, np.cumsum(pieces)[:-1], axis=1):
        out, state = delta_net_step(params, piece, state, num_heads=2, mix=FORMS["chunks of 4"])
        outs.append(out)
        assert state.past.shape == (2, width - 1, 14) and state.state.shape == (2, 2, 2, 3)  # of one size, however long the text
    np.testing.assert_allclose(np.concatenate(outs, axis=1), whole, rtol=0, atol=1e-11)


def test_a_step_takes_the_eps_it_is_given_and_writes_to_nothing():
    rng = np.random.default_rng(4)
    params, x = random_params(rng), rng.normal(size=(2, 4, 5))
    _, state = delta_net_step(params, x, None, num_heads=2)
    before = trees.map(np.copy, state)
    first, second = (delta_net_step(params, x, state, num_heads=2, eps=0.5)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    for kept, was in zip(state, before, strict=True):
        np.testing.assert_array_equal(kept, was)
    np.testing.assert_allclose(first, delta_net(params, np.tile(x, (1, 2, 1)), num_heads=2, eps=0.5)[0][:, 4:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_state_of_another_model_or_batch_is_named(form):
    rng = np.random.default_rng(5)
    params, x = random_params(rng), rng.normal(size=(2, 4, 5))
    _, one = delta_net_step(params, x[:1], None, num_heads=2)
    _, two = delta_net_step(params, x, None, num_heads=2)
    with pytest.raises(ValueError, match=r"state\.past: got shape \(1, 2, 14\), wants \(2, 2, 14\), as the model and x have it"):
        delta_net_step(params, x, one, num_heads=2, mix=form)
    with pytest.raises(ValueError, match=r"state: got shape \(1, 2, 2, 3\), wants \(2, 2, 2, 3\)"):
        delta_net_step(params, x, DeltaNetState(two.past, one.state), num_heads=2, mix=form)
    with pytest.raises(ValueError, match=r"state\.past: got shape \(2, 2, 14\), wants \(2, 3, 14\)"):
        delta_net_step(random_params(rng, width=4), x, two, num_heads=2, mix=form)


def test_no_output_sees_a_later_input_or_another_text():
    rng = np.random.default_rng(6)
    params, x = random_params(rng), rng.normal(size=(2, 6, 5))
    changed = x.copy()
    changed[1, 3] += 1
    before, after = (delta_net(params, a, num_heads=2, mix=FORMS["chunks of 4"])[0] for a in (x, changed))
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1, :3], after[1, :3])
    assert (before[1, 3] != after[1, 3]).all()


def noted(params, x, **config):
    """What reaches the recurrence."""
    seen = []
    delta_net(params, x, num_heads=2, mix=lambda *inputs: seen.append(inputs) or delta_rule(*inputs), **config)
    return seen[0]


def test_queries_and_keys_have_the_length_1_and_every_beta_is_a_share():
    rng = np.random.default_rng(7)
    params = random_params(rng)
    far_from_0 = params._replace(conv=params.conv._replace(bias=np.full(14, 8.0)))  # SiLU makes nearly nothing of what is far below it
    query, key, _, beta, before = noted(far_from_0, rng.normal(size=(2, 6, 5)))
    for a in (query, key):
        np.testing.assert_allclose(np.linalg.norm(a, axis=-1), 1, rtol=0, atol=1e-6)
    assert beta.shape == (2, 2, 6) and (beta > 0).all() and (beta < 1).all() and before is None


def test_no_key_is_longer_than_1_and_a_key_of_zeros_stays_one():
    rng = np.random.default_rng(8)
    params = random_params(rng)
    _, key, *_ = noted(params, 1e4 * rng.normal(size=(2, 20, 5)))
    assert np.linalg.norm(key, axis=-1).max() < 1 + 1e-12
    below = params._replace(conv=params.conv._replace(bias=np.full(14, -50.0)))
    query, key, *_ = noted(below, rng.normal(size=(2, 20, 5)))
    assert max(np.abs(query).max(), np.abs(key).max()) < 1e-9


def test_the_norm_takes_away_how_large_all_values_are():
    rng = np.random.default_rng(18)
    params, x = random_params(rng), rng.normal(size=(2, 6, 5))
    louder = delta_net(params, x, num_heads=2, eps=1e-14, mix=lambda q, k, v, beta, state: delta_rule(q, k, 10 * v, beta, state))[0]
    np.testing.assert_allclose(louder, delta_net(params, x, num_heads=2, eps=1e-14)[0], rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0.0, 1e-20, 1.0, 1e15])
def test_inputs_of_any_size_have_finite_gradients(size, dtype):
    rng = np.random.default_rng(9)
    params, x = trees.map(lambda leaf: leaf.astype(dtype), random_params(rng)), (size * rng.normal(size=(2, 40, 5))).astype(dtype)
    without = params._replace(**{n: Linear(getattr(params, n).weight, None) for n in ("query", "key", "value")}, conv=params.conv._replace(bias=None))
    for own in (params, without):                            # with zeros for an input, and no bias, every key is a key of zeros
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            out, backward = delta_net(own, x, num_heads=2)
            gradients = backward(np.ones_like(out))
        assert all(np.isfinite(leaf).all() and leaf.dtype == dtype for _, leaf in trees.leaves((out, gradients)))


def test_parts_that_do_not_fit_are_named():
    rng = np.random.default_rng(10)
    x, params = rng.normal(size=(2, 3, 5)), random_params(rng)
    for keys, values in ((5, 6), (4, 5)):
        with pytest.raises(ValueError, match=r"num_heads: got 2, wants a number of heads that divides"):
            delta_net(random_params(rng, keys=keys, values=values), x, num_heads=2)
    with pytest.raises(ValueError, match=r"params\.beta\.weight: got 2 columns, wants num_heads = 1: one for each head"):
        delta_net(params, x, num_heads=1)
    with pytest.raises(ValueError, match=r"params\.conv\.weight: got 13 features, wants those of query, key and value: 14"):
        delta_net(params._replace(conv=CausalConvolution(np.ones((13, 3)), None)), x, num_heads=2)


def test_how_it_starts():
    params = init_delta_net(np.random.default_rng(11), 64, num_heads=4, std=0.02, residual_std=0.005)
    assert all(leaf.dtype == np.float32 for _, leaf in trees.leaves(params))
    maps = {name: part for name, part in params._asdict().items() if isinstance(part, Linear)}
    assert {name: part.weight.shape for name, part in maps.items()} == {
        "query": (64, 64), "key": (64, 64), "value": (64, 64), "beta": (64, 4), "output": (64, 64)
    }  # fmt: skip
    assert all(part.bias is None for part in (*maps.values(), params.conv))
    assert params.conv.weight.shape == (192, 4) and params.norm.gain.shape == (16,) and (params.norm.gain == 1).all()
    assert np.abs(params.conv.weight).max() <= 0.5
    for name, part in maps.items():
        np.testing.assert_allclose(part.weight.std(), 0.005 if name == "output" else 0.02, rtol=0.1, err_msg=name)
    by_fan_in = init_delta_net(np.random.default_rng(11), 64, num_heads=2, d_conv=3, std=None)
    np.testing.assert_allclose([by_fan_in.query.weight.std() * 8, by_fan_in.output.weight.std() * 8], 1, rtol=0.1)
    assert by_fan_in.conv.weight.shape == (192, 3) and by_fan_in.beta.weight.shape == (64, 2)
    np.testing.assert_allclose(init_delta_net(np.random.default_rng(11), 64, num_heads=2, std=0.02).output.weight.std(), 0.02, rtol=0.1)
    assert set(trees.decayed(params)) == {*(f"{name}.weight" for name in maps), "conv.weight"}
    for wrong, name in (({"num_heads": 5}, "num_heads"), ({"num_heads": 4, "d_conv": 0}, "d_conv")):
        with pytest.raises(ValueError, match=name):
            init_delta_net(np.random.default_rng(11), 64, **wrong)


model = partial(small_model, mixer="delta_net")


@pytest.mark.parametrize("position", ["none", "learned"])
def test_a_language_model_takes_it_by_name_and_steps_equal_the_whole_pass(position):
    params, config = model(position=position, options={"mixer": {"d_conv": 3, "eps": 1e-3}})
    entry = catalogue.find("delta_net", role="mixer")
    assert entry.step is delta_net_step and entry.init is init_delta_net
    assert params.blocks[0].mixer.conv.weight.shape == (24, 3)
    assert_steps_equal_the_whole_pass(params, config)


def test_it_writes_what_it_would_write_without_a_state():
    assert_it_writes_the_same_without_a_state(*model())


def test_masks_biases_and_rotations_are_refused_for_it_has_no_scores():
    assert_it_has_no_place_for("alibi", "rope", mixer="delta_net")


def test_a_model_of_it_learns_the_value_that_was_written_last_under_a_key():
    params, config = model(14, num_layers=1, d_model=16)
    found = losses(params, config, last_under_a_key, steps=240)
    assert found[0] > 1.2 and np.mean(found[-20:]) < 0.1


def without_a_gradient_of(index, params, x):
    """A backward that forgets one of the arguments of the recurrence."""

    def mix(*inputs):
        result, backward = delta_rule(*inputs)
        return result, lambda dresult: tuple(0 * g if i == index else g for i, g in enumerate(backward(dresult)[:4])) + (None,)

    return delta_net(params, x, num_heads=2, mix=mix)


@pytest.mark.parametrize(("index", "name"), enumerate(("query", "key", "value", "beta")))
def test_the_check_refuses_a_forgotten_argument_of_the_recurrence(index, name):
    rng = np.random.default_rng(16)
    report = check_gradients(partial(without_a_gradient_of, index), random_params(rng), rng.normal(size=(1, 4, 5)), second_opinion=False)
    wrong = {a.path for a in report.arguments if a.error > 1e-2}
    assert wrong == {f"params.{name}.weight", f"params.{name}.bias", "x", *(("params.conv.weight", "params.conv.bias") if index < 3 else ())}


@pytest.mark.parity
def test_parity_with_the_authors_layer_in_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(17)
    params, x, dout = random_params(rng, width=4), rng.normal(size=(2, 9, 5)), rng.normal(size=(2, 9, 5))
    theirs, their_x = trees.map(lambda leaf: torch.tensor(leaf, requires_grad=True), params), torch.tensor(x, requires_grad=True)
    F = torch.nn.functional
    parts, ends = [], [0, 4, 8, 14]
    for own, first, last in zip(theirs[:3], ends[:-1], ends[1:], strict=True):  # three convolutions, as there
        taps, bias = theirs.conv.weight[first:last, None], theirs.conv.bias[first:last]
        padded = F.pad((their_x @ own.weight + own.bias).transpose(1, 2), (3, 0))
        parts.append(F.silu(F.conv1d(padded, taps, bias, groups=last - first)).transpose(1, 2).unflatten(-1, (2, -1)))
    q, k, v = parts
    q, k = (a * torch.rsqrt((a * a).sum(-1, keepdim=True) + 1e-6) for a in (q, k))
    beta = torch.sigmoid(their_x @ theirs.beta.weight + theirs.beta.bias)
    h, rows = torch.zeros(2, 2, 2, 3, dtype=torch.float64), []
    for t in range(9):
        write = beta[:, t, :, None] * (v[:, t] - (k[:, t, :, :, None] * h).sum(-2))
        h = h + k[:, t, :, :, None] * write[:, :, None]
        rows.append((q[:, t, :, :, None] * h).sum(-2))
    normed = F.rms_norm(torch.stack(rows, 1), (3,), theirs.norm.gain, 1e-5)
    their_out = normed.flatten(-2) @ theirs.output.weight + theirs.output.bias
    their_out.backward(torch.tensor(dout))
    out, backward = delta_net(params, x, num_heads=2)
    dparams, dx = backward(dout)
    np.testing.assert_allclose(out, their_out.detach().numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(dx, their_x.grad.numpy(), rtol=0, atol=1e-10)
    for (path, own), (_, other) in zip(trees.leaves(dparams), trees.leaves(theirs), strict=True):
        np.testing.assert_allclose(own, other.grad.numpy(), rtol=0, atol=1e-10, err_msg=path)
