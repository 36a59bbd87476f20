"""RWKV-7's time mixing: one position at a time, decoding of constant size, what it can and RWKV-4 cannot, the authors' layer in PyTorch."""

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
from minitransformers.basics.linear import Linear
from minitransformers.foundation import check_gradients
from minitransformers.linear_attention.rank_one_recurrence import rank_one_recurrence
from minitransformers.linear_attention.rank_one_recurrence_chunked import rank_one_recurrence_chunked
from minitransformers.linear_attention.rwkv7 import Rwkv7, Rwkv7State, ThinMap, init_rwkv7, rwkv7, rwkv7_step
from minitransformers.norms.layer_norm import LayerNorm

FORMS = {"plain": rank_one_recurrence, "chunks of 1": partial(rank_one_recurrence_chunked, chunk=1), "chunks of 4": partial(rank_one_recurrence_chunked, chunk=4)}


def random_params(rng, d_model=5, keys=4, values=6, heads=2, ranks=(2, 3, 7)):
    def map_of(*shape):
        return Linear(rng.normal(size=shape) / 2, rng.normal(size=shape[1]) / 2)

    into = (map_of(d_model, out) for out in (keys, keys, values))
    thin = (ThinMap(map_of(d_model, r).weight, *map_of(r, out)) for r, out in zip(ranks, (keys, keys, values), strict=True))
    removal, blend = rng.uniform(0.5, 1.5, size=(2, keys))
    norm = LayerNorm(*rng.normal(size=(2, values)))
    return Rwkv7(rng.uniform(size=(6, d_model)), *into, *thin, removal, blend, rng.normal(size=(heads, keys // heads)), norm, map_of(values, d_model))


def textbook(params, x, eps=64e-5):
    """One text, one position, one head at a time; the state as in the paper, (values, keys), and its transition as a dense matrix."""
    mixes, (wr, br), (wk, bk), (wv, bv), decay, rate, gate, removal, blend, bonus, (gain, bias), (wo, bo) = params
    heads, d, p = len(bonus), len(removal) // len(bonus), len(gain) // len(bonus)
    logistic = lambda a: 1 / (1 + anp.exp(-a))  # noqa: E731
    sequences = []
    for text in x:
        states, rows, before = [anp.zeros((p, d))] * heads, [], anp.zeros(x.shape[-1])
        for token in text:
            r_in, w_in, k_in, v_in, a_in, g_in = (m * token + (1 - m) * before for m in mixes)
            r, k, v = anp.dot(r_in, wr) + br, anp.dot(k_in, wk) + bk, anp.dot(v_in, wv) + bv
            w = anp.exp(-anp.exp(-0.5) * logistic(anp.dot(anp.tanh(anp.dot(w_in, decay[0])), decay[1]) + decay[2]))
            a = logistic(anp.dot(anp.dot(a_in, rate[0]), rate[1]) + rate[2])
            g = anp.dot(logistic(anp.dot(g_in, gate[0])), gate[1]) + gate[2]
            kappa, kept, states, mixed = removal * k, k * (1 + (a - 1) * blend), list(states), []
            for h in range(heads):
                keys, values = slice(h * d, (h + 1) * d), slice(h * p, (h + 1) * p)
                direction = kappa[keys] / anp.sqrt(anp.sum(kappa[keys] ** 2))
                transition = anp.diag(w[keys]) - anp.outer(direction, a[keys] * direction)
                states[h] = anp.dot(states[h], transition) + anp.outer(v[values], kept[keys])
                y = anp.dot(states[h], r[keys])
                unit = (y - anp.mean(y)) / anp.sqrt(anp.mean((y - anp.mean(y)) ** 2) + eps)
                mixed.append(gain[values] * unit + bias[values] + anp.sum(r[keys] * bonus[h] * kept[keys]) * v[values])
            rows.append(anp.dot(g * anp.concatenate(mixed), wo) + bo)
            before = token
        sequences.append(anp.stack(rows))
    return anp.stack(sequences)


@pytest.mark.parametrize("positions, heads", [(5, 2), (1, 2), (4, 1)])
def test_equals_the_layer_one_position_at_a_time_and_its_gradients(positions, heads):
    rng = np.random.default_rng(0)
    params, x, dout = random_params(rng, heads=heads), rng.normal(size=(2, positions, 5)), rng.normal(size=(2, positions, 5))
    out, backward = rwkv7(params, x)
    np.testing.assert_allclose(out, textbook(params, x), rtol=0, atol=1e-11)
    loss = lambda values, x: anp.sum(dout * textbook(trees.unflatten(params, values), x))  # noqa: E731
    expected, expected_dx = autograd.grad(loss, (0, 1))([leaf for _, leaf in trees.leaves(params)], x)
    dparams, dx = backward(dout)
    np.testing.assert_allclose(dx, expected_dx, rtol=0, atol=1e-10)
    for (path, own), theirs in zip(trees.leaves(dparams), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10, err_msg=path)


def test_eps_is_the_one_given():
    rng = np.random.default_rng(1)
    params, x = random_params(rng), rng.normal(size=(2, 4, 5))
    np.testing.assert_allclose(rwkv7(params, x, eps=0.5)[0], textbook(params, x, eps=0.5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_the_recurrence_gives_the_same(form):
    rng = np.random.default_rng(2)
    params, x, dout = random_params(rng), rng.normal(size=(2, 7, 5)), rng.normal(size=(2, 7, 5))
    (out, backward), (own, own_backward) = (rwkv7(params, x, **c) for c in ({}, {"mix": form}))
    np.testing.assert_allclose(own, out, rtol=0, atol=1e-11)
    for (path, a), (_, b) in zip(trees.leaves(own_backward(dout)), trees.leaves(backward(dout)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10, err_msg=path)


@pytest.mark.parametrize("pieces", [(1,) * 9, (5, 1, 1, 1, 1), (2, 4, 3), (9,)])
def test_a_prefill_and_steps_equal_the_whole_pass(pieces):
    rng = np.random.default_rng(3)
    params, x = random_params(rng), rng.normal(size=(2, 9, 5))
    whole, _ = rwkv7(params, x)
    state, outs = None, []
    for piece in np.split(x, np.cumsum(pieces)[:-1], axis=1):
        out, state = rwkv7_step(params, piece, state, mix=FORMS["chunks of 4"])
        outs.append(out)
        assert state.past.shape == (2, 5) and state.state.shape == (2, 2, 2, 3)  # of one size, however long the text
    np.testing.assert_allclose(np.concatenate(outs, axis=1), whole, rtol=0, atol=1e-11)


def test_a_step_takes_the_eps_it_is_given_and_writes_to_nothing():
    rng = np.random.default_rng(4)
    params, x = random_params(rng), rng.normal(size=(2, 4, 5))
    _, state = rwkv7_step(params, x, None)
    before = trees.map(np.copy, state)
    first, second = (rwkv7_step(params, x, state, eps=0.5)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    for kept, was in zip(state, before, strict=True):
        np.testing.assert_array_equal(kept, was)
    np.testing.assert_allclose(first, rwkv7(params, np.tile(x, (1, 2, 1)), eps=0.5)[0][:, 4:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_state_of_another_model_or_batch_is_named(form):
    rng = np.random.default_rng(5)
    params, x = random_params(rng), rng.normal(size=(2, 4, 5))
    (_, one), (_, two) = rwkv7_step(params, x[:1], None), rwkv7_step(params, x, None)
    with pytest.raises(ValueError, match=r"state\.past: got shape \(1, 5\), wants \(2, 5\), as the model and x have it"):
        rwkv7_step(params, x, one, mix=form)
    with pytest.raises(ValueError, match=r"state: got shape \(1, 2, 2, 3\), wants \(2, 2, 2, 3\)"):
        rwkv7_step(params, x, Rwkv7State(two.past, one.state), mix=form)
    with pytest.raises(ValueError, match=r"state: got shape \(2, 2, 2, 3\), wants \(2, 2, 4, 3\)"):
        rwkv7_step(random_params(rng, keys=8), x, two, mix=form)


def test_no_output_sees_a_later_input_or_another_text():
    rng = np.random.default_rng(6)
    params, x = random_params(rng), rng.normal(size=(2, 6, 5))
    changed = x.copy()
    changed[1, 3] += 1
    before, after = (rwkv7(params, a, mix=FORMS["chunks of 4"])[0] for a in (x, changed))
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1, :3], after[1, :3])
    assert (before[1, 3] != after[1, 3]).all()


def noted(params, x):
    """What reaches the recurrence."""
    seen = []
    rwkv7(params, x, mix=lambda *inputs: seen.append(inputs) or rank_one_recurrence(*inputs))
    return seen[0]


def test_whatever_the_input_the_eigenvalues_of_a_transition_are_real_and_between_minus_0_46_and_1():
    # Rates are shares, directions have the length 1, and every row keeps exp(-exp(-1/2)) of itself or more, and less than all.
    rng = np.random.default_rng(7)
    params = random_params(rng, keys=8, values=8)
    params = params._replace(decay=params.decay._replace(high=10 * params.decay.high))
    *_, log_decay, read, write, before = noted(params, 5 * rng.normal(size=(3, 20, 5)))
    assert before is None and log_decay.max() < 0 and log_decay.min() > -np.exp(-0.5) - 1e-12 and log_decay.min() < -0.6
    np.testing.assert_allclose(np.linalg.norm(read, axis=-1), 1, rtol=0, atol=1e-12)
    rates = -write / read
    assert rates.min() > 0 and rates.max() < 1
    transitions = np.exp(log_decay)[..., None] * np.eye(4) + write[..., None] * read[..., None, :]
    eigenvalues = np.linalg.eigvals(transitions)
    assert np.abs(eigenvalues.imag).max() < 1e-6 and np.exp(-np.exp(-0.5)) - 1 < eigenvalues.real.min() < 0 and eigenvalues.real.max() < 1


def test_with_every_rate_1_a_key_is_written_as_it_is_and_with_0_its_blend_is_left():
    rng = np.random.default_rng(8)
    params, x = random_params(rng), rng.normal(size=(2, 6, 5))
    plain = np.stack([m * x + (1 - m) * np.concatenate([0 * x[:, :1], x[:, :-1]], axis=1) for m in params.mix])[2]
    key = plain @ params.key.weight + params.key.bias
    for bias, expected in ((1e3, key), (-1e3, key * (1 - params.blend))):
        rate = ThinMap(0 * params.rate.low, params.rate.high, np.full(4, bias))
        _, kept, *_, write, _ = noted(params._replace(rate=rate), x)
        np.testing.assert_allclose(kept.swapaxes(1, 2).reshape(2, 6, 4), expected, rtol=0, atol=1e-12)
        assert bias > 0 or not write.any()                   # with a rate of 0 nothing is taken away either


def test_a_direction_of_less_than_a_millionth_stays_short_in_proportion():
    rng = np.random.default_rng(19)
    params, x = random_params(rng), rng.normal(size=(2, 6, 5))
    keys = noted(params, x)
    lengths = np.linalg.norm((params.removal * (keys[1] / (1 + params.blend.reshape(2, 1, 2) * (-keys[5] / keys[4] - 1))).swapaxes(1, 2).reshape(2, 6, 4))
                             .reshape(2, 6, 2, 2), axis=-1).swapaxes(1, 2)  # fmt: skip
    short = params._replace(removal=1e-6 * params.removal)
    np.testing.assert_allclose(np.linalg.norm(noted(short, x)[4], axis=-1), np.minimum(lengths, 1), rtol=1e-9)
    assert lengths.min() < 0.9 and lengths.max() > 1.1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0.0, 1e-20, 1.0, 1e4])
def test_inputs_of_any_size_have_finite_gradients(size, dtype):
    rng = np.random.default_rng(9)
    params, x = trees.map(lambda leaf: leaf.astype(dtype), random_params(rng)), (size * rng.normal(size=(2, 40, 5))).astype(dtype)
    without = params._replace(**{n: Linear(getattr(params, n).weight, None) for n in ("receptance", "key", "value")})
    for own in (params, without):                            # with zeros for an input, and no bias, every key is a key of zeros
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            out, backward = rwkv7(own, x)
            gradients = backward(np.ones_like(out))
        assert all(np.isfinite(leaf).all() and leaf.dtype == dtype for _, leaf in trees.leaves((out, gradients)))


def test_parts_that_do_not_fit_are_named():
    rng = np.random.default_rng(10)
    x, params = rng.normal(size=(2, 3, 5)), random_params(rng)
    with pytest.raises(ValueError, match=r"params\.mix: got 5 rows, wants one each for receptance, decay, key, value, rate, gate"):
        rwkv7(params._replace(mix=np.ones((5, 5))), x)
    for wrong in ((2, 3), (4, 1), (3, 2), (1, 2)):
        with pytest.raises(ValueError, match=rf"params\.bonus: got {wrong[0]} heads of {wrong[1]} key features"):
            rwkv7(params._replace(bonus=np.ones(wrong)), x)
    with pytest.raises(ValueError, match=r"params\.bonus: got 2 heads of 2 key features, wants .* two or more each of 2 value features"):
        rwkv7(random_params(rng, values=2), x)


def test_how_it_starts():
    params = init_rwkv7(np.random.default_rng(11), 64, num_heads=4, std=0.02, residual_std=0.005)
    assert all(leaf.dtype == np.float32 for _, leaf in trees.leaves(params))
    for name, width in (("receptance", 0.02), ("key", 0.002), ("value", 0.02), ("output", 0.005)):
        part = getattr(params, name)
        assert part.weight.shape == (64, 64) and part.bias is None
        np.testing.assert_allclose(part.weight.std(), width, rtol=0.1, err_msg=name)
    for part, rank in ((params.decay, 20), (params.rate, 20), (params.gate, 40)):
        assert part.low.shape == (64, rank) and part.high.shape == (rank, 64) and not part.low.any()
        np.testing.assert_allclose(part.high.std(), 0.1 / 8, rtol=0.1)
    assert params.gate.bias is None and params.bonus.shape == (4, 16) and (params.norm.gain == 1).all() and not params.norm.bias.any()
    # By hand, the authors' formulas at the first, the second and the last feature of a first layer of 64 with heads of 16.
    at = [0, 1, 63]
    zigzag, linear = np.array([-1, -((6.5 / 7.5) ** 2), 1]), np.array([-0.5, 1 / 63 - 0.5, 0.5])
    np.testing.assert_allclose(params.decay.bias[at], -6 + 6 * (linear + 0.5) + 0.5 + 2.5 * zigzag, atol=1e-6)
    np.testing.assert_allclose(params.rate.bias[at], -0.19 + 0.3 * zigzag + 0.4 * linear, atol=1e-6)
    np.testing.assert_allclose(params.removal[at], 0.71 - 0.1 * linear, atol=1e-6)
    assert (params.blend == np.float32(1.02)).all() and (params.bonus == np.float32(-0.04)).all()
    np.testing.assert_allclose(params.mix[:, 32], [0.5**p for p in (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)], atol=1e-6)
    by_fan_in = init_rwkv7(np.random.default_rng(11), 64, num_heads=2, rank=3)
    np.testing.assert_allclose([by_fan_in.receptance.weight.std() * 8, by_fan_in.key.weight.std() * 80, by_fan_in.output.weight.std() * 8], 1, rtol=0.1)
    assert by_fan_in.rate.low.shape == (64, 3) and by_fan_in.gate.low.shape == (64, 6)
    np.testing.assert_allclose(init_rwkv7(np.random.default_rng(11), 64, num_heads=2, std=0.02).output.weight.std(), 0.02, rtol=0.1)
    tiny = init_rwkv7(np.random.default_rng(11), 2, num_heads=1)
    assert tiny.decay.low.shape == (2, 2) and all(np.isfinite(leaf).all() for _, leaf in trees.leaves(init_rwkv7(np.random.default_rng(11), 1, num_heads=1)))
    matrices = {f"{name}.weight" for name in ("receptance", "key", "value", "output")}
    assert set(trees.decayed(params)) == matrices | {f"{name}.{half}" for name in ("decay", "rate", "gate") for half in ("low", "high")}
    for wrong, name in (({"num_heads": 5}, "num_heads"), ({"num_heads": 4, "rank": 0}, "rank")):
        with pytest.raises(ValueError, match=name):
            init_rwkv7(np.random.default_rng(11), 64, **wrong)


model = partial(small_model, mixer="rwkv7")


@pytest.mark.parametrize("position", ["none", "learned"])
def test_a_language_model_takes_it_by_name_and_steps_equal_the_whole_pass(position):
    params, config = model(position=position, options={"mixer": {"rank": 3, "eps": 1e-3}})
    entry = catalogue.find("rwkv7", role="mixer")
    assert entry.step is rwkv7_step and entry.init is init_rwkv7
    assert params.blocks[0].mixer.decay.low.shape == (8, 3) and params.blocks[0].mixer.bonus.shape == (2, 4)
    assert_steps_equal_the_whole_pass(params, config)


def test_it_writes_what_it_would_write_without_a_state():
    assert_it_writes_the_same_without_a_state(*model())


def test_masks_biases_and_rotations_are_refused_for_it_has_no_scores():
    assert_it_has_no_place_for("alibi", "rope", mixer="rwkv7")


def test_a_model_of_it_learns_the_value_that_was_written_last_under_a_key():
    params, config = model(14, num_layers=1, d_model=16)
    found = losses(params, config, last_under_a_key, steps=160)
    assert found[0] > 1.2 and np.mean(found[-20:]) < 0.1


def without_a_gradient_of(index, params, x):
    """A backward that forgets one of the arguments of the recurrence."""

    def mix(*inputs):
        result, backward = rank_one_recurrence(*inputs)
        return result, lambda dresult: tuple(0 * g if i == index else g for i, g in enumerate(backward(dresult)[:6])) + (None,)

    return rwkv7(params, x, mix=mix)


@pytest.mark.parametrize(
    ("index", "wrong"),
    [(0, {"receptance.weight", "receptance.bias"}), (3, {"decay.low", "decay.high", "decay.bias"}), (4, {"key.weight", "key.bias", "removal"}),
     (5, {"key.weight", "key.bias", "removal", "rate.low", "rate.high", "rate.bias"})],
)  # fmt: skip
def test_the_check_refuses_a_forgotten_argument_of_the_recurrence(index, wrong):
    rng = np.random.default_rng(16)
    report = check_gradients(partial(without_a_gradient_of, index), random_params(rng), rng.normal(size=(1, 4, 5)), second_opinion=False)
    assert {a.path for a in report.arguments if a.error > 1e-3} == {"x", "params.mix", *(f"params.{name}" for name in wrong)}


@pytest.mark.parity
def test_parity_with_the_authors_layer_in_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(17)
    params, x, dout = random_params(rng), rng.normal(size=(2, 9, 5)), rng.normal(size=(2, 9, 5))
    p, their_x = trees.map(lambda leaf: torch.tensor(leaf, requires_grad=True), params), torch.tensor(x, requires_grad=True)
    F = torch.nn.functional
    drop = F.pad(their_x, (0, 0, 1, -1)) - their_x           # there a mix is the share of the position before
    r_in, w_in, k_in, v_in, a_in, g_in = (their_x + drop * (1 - m) for m in p.mix)
    r, k, v = (a @ own.weight + own.bias for a, own in ((r_in, p.receptance), (k_in, p.key), (v_in, p.value)))
    w = -F.softplus(-(p.decay.bias + torch.tanh(w_in @ p.decay.low) @ p.decay.high)) - 0.5
    a = torch.sigmoid(p.rate.bias + (a_in @ p.rate.low) @ p.rate.high)
    g = torch.sigmoid(g_in @ p.gate.low) @ p.gate.high + p.gate.bias
    kk = F.normalize((k * p.removal).unflatten(-1, (2, -1)), dim=-1)
    k = k * (1 + (a - 1) * p.blend)
    r, w, k, v, a = (part.unflatten(-1, (2, -1)) for part in (r, w, k, v, a))
    S, rows = torch.zeros(2, 2, 3, 2, dtype=torch.float64), []
    for t in range(9):
        S = S * torch.exp(-torch.exp(w[:, t, :, None])) + S @ -kk[:, t, :, :, None] @ (kk * a)[:, t, :, None] + v[:, t, :, :, None] @ k[:, t, :, None]
        rows.append((S @ r[:, t, :, :, None])[..., 0])
    normed = F.group_norm(torch.stack(rows, 1).flatten(0, 1).flatten(1), 2, p.norm.gain, p.norm.bias, 64e-5).unflatten(0, (2, 9))
    mixed = normed + ((r * k * p.bonus).sum(-1, keepdim=True) * v).flatten(-2)
    their_out = (mixed * g) @ p.output.weight + p.output.bias
    their_out.backward(torch.tensor(dout))
    out, backward = rwkv7(params, x)
    dparams, dx = backward(dout)
    np.testing.assert_allclose(out, their_out.detach().numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(dx, their_x.grad.numpy(), rtol=0, atol=1e-10)
    for (path, own), (_, other) in zip(trees.leaves(dparams), trees.leaves(p), strict=True):
        np.testing.assert_allclose(own, other.grad.numpy(), rtol=0, atol=1e-10, err_msg=path)
