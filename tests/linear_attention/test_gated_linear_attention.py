"""Gated linear attention: the layer one position at a time, decoding of constant size, what its gates do, PyTorch."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from mixers_at_work import (
    assert_it_has_no_place_for,
    assert_it_writes_the_same_without_a_state,
    assert_steps_equal_the_whole_pass,
    last_of_three,
    losses,
)
from mixers_at_work import model as small_model

from minitransformers import catalogue, trees
from minitransformers.basics.linear import Linear
from minitransformers.foundation import check_gradients
from minitransformers.linear_attention.gated_linear_attention import (
    GatedLinearAttention,
    gated_linear_attention,
    gated_linear_attention_step,
    init_gated_linear_attention,
)
from minitransformers.linear_attention.gated_recurrence import gated_recurrence
from minitransformers.linear_attention.gated_recurrence_chunked import gated_recurrence_chunked
from minitransformers.norms.layer_norm import LayerNorm

FORMS = {"plain": gated_recurrence, "chunks of 1": partial(gated_recurrence_chunked, chunk=1), "chunks of 4": partial(gated_recurrence_chunked, chunk=4)}


def random_params(rng, d_model=5, keys=4, values=6, rank=3, heads=2):
    def map_of(*shape):
        return Linear(rng.normal(size=shape) / 2, rng.normal(size=shape[1]))

    into = (d_model, keys), (d_model, keys), (d_model, values), (d_model, rank), (rank, keys), (d_model, values)
    norm = LayerNorm(*rng.normal(size=(2, values // heads)))
    return GatedLinearAttention(*(map_of(*shape) for shape in into), norm, map_of(values, d_model))


def textbook(params, x, num_heads, temperature=16.0, eps=1e-5):
    """One text, one position, one head at a time; gates as roots of sigmoids."""
    (wq, bq), (wk, bk), (wv, bv), (wl, bl), (wa, ba), (wg, bg), (gain, bias), (wo, bo) = params
    d, p = wq.shape[1] // num_heads, wv.shape[1] // num_heads
    sequences = []
    for text in x:
        states, rows = [anp.zeros((d, p))] * num_heads, []
        for token in text:
            q, k, v, g = (anp.dot(token, w) + b for w, b in ((wq, bq), (wk, bk), (wv, bv), (wg, bg)))
            alpha = (1 / (1 + anp.exp(-(anp.dot(anp.dot(token, wl) + bl, wa) + ba)))) ** (1 / temperature)
            normed, states = [], list(states)
            for h in range(num_heads):
                keys, values = slice(h * d, (h + 1) * d), slice(h * p, (h + 1) * p)
                states[h] = alpha[keys][:, None] * states[h] + anp.outer(k[keys], v[values])
                y = anp.dot(q[keys] / d**0.5, states[h])
                normed.append(gain * (y - anp.mean(y)) / anp.sqrt(anp.mean((y - anp.mean(y)) ** 2) + eps) + bias)
            rows.append(anp.dot(g / (1 + anp.exp(-g)) * anp.concatenate(normed), wo) + bo)
        sequences.append(anp.stack(rows))
    return anp.stack(sequences)


@pytest.mark.parametrize("positions, heads", [(5, 2), (1, 2), (4, 1)])
def test_equals_the_layer_one_position_at_a_time_and_its_gradients(positions, heads):
    rng = np.random.default_rng(0)
    params, x, dout = random_params(rng, heads=heads), rng.normal(size=(2, positions, 5)), rng.normal(size=(2, positions, 5))
    out, backward = gated_linear_attention(params, x, num_heads=heads)
    np.testing.assert_allclose(out, textbook(params, x, heads), rtol=0, atol=1e-11)
    loss = lambda values, x: anp.sum(dout * textbook(trees.unflatten(params, values), x, heads))  # noqa: E731
    expected, expected_dx = autograd.grad(loss, (0, 1))([leaf for _, leaf in trees.leaves(params)], x)
    dparams, dx = backward(dout)
    np.testing.assert_allclose(dx, expected_dx, rtol=0, atol=1e-10)
    for (path, own), theirs in zip(trees.leaves(dparams), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10, err_msg=path)


def test_eps_and_temperature_are_those_given():
    rng = np.random.default_rng(1)
    params, x = random_params(rng), rng.normal(size=(2, 4, 5))
    out, _ = gated_linear_attention(params, x, num_heads=2, temperature=0.7, eps=0.5)
    np.testing.assert_allclose(out, textbook(params, x, 2, temperature=0.7, eps=0.5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_the_recurrence_gives_the_same(form):
    rng = np.random.default_rng(2)
    params, x, dout = random_params(rng), rng.normal(size=(2, 7, 5)), rng.normal(size=(2, 7, 5))
    (out, backward), (own, own_backward) = (gated_linear_attention(params, x, num_heads=2, **c) for c in ({}, {"mix": form}))
    np.testing.assert_allclose(own, out, rtol=0, atol=1e-11)
    for (path, a), (_, b) in zip(trees.leaves(own_backward(dout)), trees.leaves(backward(dout)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10, err_msg=path)


@pytest.mark.parametrize("pieces", [(1,) * 9, (5, 1, 1, 1, 1), (2, 4, 3), (9,)])
def test_a_prefill_and_steps_equal_the_whole_pass(pieces):
    rng = np.random.default_rng(3)
    params, x = random_params(rng), rng.normal(size=(2, 9, 5))
    whole, _ = gated_linear_attention(params, x, num_heads=2)
    state, outs = None, []
    for piece in np.split(x, np.cumsum(pieces)[:-1], axis=1):
        out, state = gated_linear_attention_step(params, piece, state, num_heads=2, mix=FORMS["chunks of 4"])
        outs.append(out)
        assert state.shape == (2, 2, 2, 3)                   # of one size, however long the text
    np.testing.assert_allclose(np.concatenate(outs, axis=1), whole, rtol=0, atol=1e-11)


def test_a_step_writes_to_nothing():
    rng = np.random.default_rng(4)
    params, x = random_params(rng), rng.normal(size=(2, 4, 5))
    _, state = gated_linear_attention_step(params, x, None, num_heads=2)
    before = state.copy()
    first, second = (gated_linear_attention_step(params, x, state, num_heads=2)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(state, before)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_state_of_another_model_or_batch_is_named(form):
    rng = np.random.default_rng(5)
    params, x = random_params(rng), rng.normal(size=(2, 4, 5))
    _, state = gated_linear_attention_step(params, x[:1], None, num_heads=2)
    with pytest.raises(ValueError, match=r"state: got shape \(1, 2, 2, 3\), wants \(2, 2, 2, 3\)"):
        gated_linear_attention_step(params, x, state, num_heads=2, mix=form)
    with pytest.raises(ValueError, match=r"state: got shape \(1, 2, 2, 3\), wants \(1, 2, 4, 3\)"):
        gated_linear_attention_step(random_params(rng, keys=8), x[:1], state, num_heads=2, mix=form)


def test_no_output_sees_a_later_input_or_another_text():
    rng = np.random.default_rng(6)
    params, x = random_params(rng), rng.normal(size=(2, 6, 5))
    changed = x.copy()
    changed[1, 3] += 1
    before, after = (gated_linear_attention(params, a, num_heads=2, mix=FORMS["chunks of 4"])[0] for a in (x, changed))
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1, :3], after[1, :3])
    assert (before[1, 3] != after[1, 3]).all()


def shut(params, logit):
    """The same model with gates that do not depend on the input."""
    rank, keys = params.decay.weight.shape
    return params._replace(decay=Linear(np.zeros((rank, keys)), np.full(keys, logit)))


def test_shut_gates_leave_each_position_to_itself_and_open_ones_forget_nothing():
    rng = np.random.default_rng(7)
    params, x = random_params(rng), rng.normal(size=(1, 6, 5))
    alone = np.concatenate([gated_linear_attention(params, x[:, t : t + 1], num_heads=2)[0] for t in range(6)], axis=1)
    np.testing.assert_allclose(gated_linear_attention(shut(params, -1e5), x, num_heads=2)[0], alone, rtol=0, atol=1e-12)
    kept = gated_linear_attention(params, x, num_heads=2, mix=lambda *inputs: gated_recurrence(*inputs[:3], 0 * inputs[3], inputs[4]))[0]
    np.testing.assert_allclose(gated_linear_attention(shut(params, 1e5), x, num_heads=2)[0], kept, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("logit", [-1e30, -1e5, 0.0, 1e5, 1e30])
def test_gates_of_any_size_have_finite_gradients(logit, dtype):
    rng = np.random.default_rng(8)
    params, x = trees.map(lambda leaf: leaf.astype(dtype), shut(random_params(rng), logit)), rng.normal(size=(2, 40, 5)).astype(dtype)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        out, backward = gated_linear_attention(params, x, num_heads=2)
        gradients = backward(np.ones_like(out))
    assert all(np.isfinite(leaf).all() and leaf.dtype == dtype for _, leaf in trees.leaves((out, gradients)))


def test_what_the_norm_has_taken_away_has_no_gradient():
    rng = np.random.default_rng(9)
    params, x, dout = random_params(rng), rng.normal(size=(1, 6, 5)), rng.normal(size=(1, 6, 5))
    dvalue = gated_linear_attention(params, x, num_heads=2)[1](dout)[0].value.weight.reshape(5, 2, 3)
    np.testing.assert_allclose(dvalue.sum(-1), 0, rtol=0, atol=1e-12)  # the mean of a head's features


def test_heads_that_do_not_fit_are_named():
    rng = np.random.default_rng(10)
    x = rng.normal(size=(2, 3, 5))
    for keys, values in ((5, 6), (4, 5)):
        with pytest.raises(ValueError, match=r"num_heads: got 2, wants a number of heads that divides"):
            gated_linear_attention(random_params(rng, keys=keys, values=values), x, num_heads=2)
    with pytest.raises(ValueError, match=r"num_heads: got 4, wants two value features a head or more"):
        gated_linear_attention(random_params(rng, values=4, heads=4), x, num_heads=4)


def test_how_it_starts():
    params = init_gated_linear_attention(np.random.default_rng(11), 64, num_heads=4, std=0.02, residual_std=0.005)
    assert all(leaf.dtype == np.float32 for _, leaf in trees.leaves(params))
    maps = params._asdict() | {"norm": None}
    shapes = {name: part.weight.shape for name, part in maps.items() if part is not None}
    assert shapes == {
        "query": (64, 32), "key": (64, 32), "value": (64, 64), "low": (64, 16), "decay": (16, 32), "gate": (64, 64), "output": (64, 64)
    }  # fmt: skip
    assert {name for name, part in maps.items() if part is not None and part.bias is not None} == {"decay", "gate"}
    assert (params.decay.bias == 0).all() and (params.gate.bias == 0).all() and (params.norm.gain == 1).all() and params.norm.bias.shape == (16,)
    for name in shapes:
        np.testing.assert_allclose(maps[name].weight.std(), 0.005 if name == "output" else 0.02, rtol=0.1, err_msg=name)
    by_fan_in = init_gated_linear_attention(np.random.default_rng(11), 64, num_heads=2, d_keys=128, rank=8)
    np.testing.assert_allclose([by_fan_in.query.weight.std() * 8, by_fan_in.decay.weight.std() * 8**0.5, by_fan_in.output.weight.std() * 8], 1, rtol=0.1)
    assert by_fan_in.key.weight.shape == (64, 128) and by_fan_in.low.weight.shape == (64, 8)
    np.testing.assert_allclose(init_gated_linear_attention(np.random.default_rng(11), 64, num_heads=2, std=0.02).output.weight.std(), 0.02, rtol=0.1)
    assert init_gated_linear_attention(np.random.default_rng(11), 1, num_heads=1).key.weight.shape == (1, 1)
    assert set(trees.decayed(params)) == {f"{name}.weight" for name in shapes}
    for wrong, name in (({"num_heads": 5}, "num_heads"), ({"num_heads": 64}, "num_heads"), ({"num_heads": 4, "d_keys": 6}, "num_heads"),
                        ({"num_heads": 4, "rank": 0}, "rank"), ({"num_heads": 4, "d_keys": 0}, "d_keys")):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            init_gated_linear_attention(np.random.default_rng(11), 64, **wrong)


def test_at_the_start_nearly_all_is_kept():
    seen, rng = [], np.random.default_rng(12)
    params = init_gated_linear_attention(rng, 64, num_heads=4, std=0.02)

    def noting(*inputs):
        seen.append(np.exp(inputs[3]))
        return gated_recurrence(*inputs)

    gated_linear_attention(params, rng.standard_normal((2, 9, 64), np.float32), num_heads=4, mix=noting)
    np.testing.assert_allclose(seen[0], 0.5 ** (1 / 16), rtol=0, atol=2e-3)  # sigmoid(0)^(1/16) = 0.958


model = partial(small_model, mixer="gated_linear_attention")


@pytest.mark.parametrize("position", ["none", "learned"])
def test_a_language_model_takes_it_by_name_and_steps_equal_the_whole_pass(position):
    params, config = model(position=position, options={"mixer": {"rank": 3, "d_keys": 12, "temperature": 2.0}})
    entry = catalogue.find("gated_linear_attention", role="mixer")
    assert entry.step is gated_linear_attention_step and entry.init is init_gated_linear_attention
    assert params.blocks[0].mixer.decay.weight.shape == (3, 12)
    assert_steps_equal_the_whole_pass(params, config)


def test_it_writes_what_it_would_write_without_a_state():
    assert_it_writes_the_same_without_a_state(*model())


def test_masks_biases_and_rotations_are_refused_for_it_has_no_scores():
    assert_it_has_no_place_for("alibi", "rope", mixer="gated_linear_attention")


def test_a_model_of_it_learns_which_of_three_words_came_last_among_others():
    # What a gate that the input decides is for: one of the three overwrites, the others let everything stand.
    params, config = model(14, num_layers=1, d_model=16)
    found = losses(params, config, last_of_three, steps=150)
    assert found[0] > np.log(3) and np.mean(found[-20:]) < 0.1


def slope_on_the_wrong_side(params, x):
    """The slope of softplus(-logits) taken at +logits: sigmoid(logits) for sigmoid(-logits)."""
    out, backward = gated_linear_attention(params, x, num_heads=2)
    arrived = []

    def noting(*inputs):
        result, mix_backward = gated_recurrence(*inputs)
        return result, lambda dresult: arrived.append(mix_backward(dresult)) or arrived[-1]

    _, noting_backward = gated_linear_attention(params, x, num_heads=2, mix=noting)

    def wrong(dout):
        noting_backward(dout)
        dparams, dx = backward(dout)
        logits = (x @ params.low.weight + params.low.bias) @ params.decay.weight + params.decay.bias
        dlog_decay = arrived[-1][3].swapaxes(-2, -3).reshape(logits.shape)
        dlogits = dlog_decay / 16 / (1 + np.exp(-logits))
        return dparams._replace(decay=dparams.decay._replace(bias=dlogits.reshape(-1, logits.shape[-1]).sum(0))), dx

    return out, wrong


def one_reader_of_x_forgotten(params, x):
    """x read by queries, values and both gates, and no gradient through the keys."""
    out, backward = gated_linear_attention(params, x, num_heads=2)
    keys = (x @ params.key.weight + params.key.bias).reshape(*x.shape[:-1], 2, -1).swapaxes(-2, -3)
    deaf = params._replace(key=Linear(0 * params.key.weight, None))

    def wrong(dout):
        _, without = gated_linear_attention(deaf, x, num_heads=2, mix=lambda query, _, *rest: gated_recurrence(query, keys, *rest))
        return backward(dout)[0], without(dout)[1]

    return out, wrong


@pytest.mark.parametrize(("mistake", "path"), [(slope_on_the_wrong_side, "decay.bias"), (one_reader_of_x_forgotten, "x")])
def test_the_check_refuses(mistake, path):
    rng = np.random.default_rng(16)
    report = check_gradients(mistake, random_params(rng), rng.normal(size=(1, 4, 5)))
    assert not report.passed and path in report.worst.path


@pytest.mark.parity
def test_parity_with_a_loop_in_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(17)
    params, x, dout = random_params(rng), rng.normal(size=(2, 9, 5)), rng.normal(size=(2, 9, 5))
    theirs, their_x = trees.map(lambda leaf: torch.tensor(leaf, requires_grad=True), params), torch.tensor(x, requires_grad=True)
    F = torch.nn.functional
    q, k, v, low, g = (their_x @ part.weight + part.bias for part in (theirs.query, theirs.key, theirs.value, theirs.low, theirs.gate))
    alpha = F.logsigmoid(low @ theirs.decay.weight + theirs.decay.bias) / 16
    q, k, v, alpha = (a.unflatten(-1, (2, -1)) for a in (q, k, v, alpha))
    h, rows = torch.zeros(2, 2, 2, 3, dtype=torch.float64), []
    for t in range(9):
        h = h * alpha[:, t].exp()[..., None] + k[:, t, :, :, None] * v[:, t, :, None]
        rows.append((q[:, t, :, :, None] * 2**-0.5 * h).sum(-2))
    normed = F.layer_norm(torch.stack(rows, 1), (3,), theirs.norm.gain, theirs.norm.bias, 1e-5)
    their_out = (F.silu(g) * normed.flatten(-2)) @ theirs.output.weight + theirs.output.bias
    their_out.backward(torch.tensor(dout))
    out, backward = gated_linear_attention(params, x, num_heads=2)
    dparams, dx = backward(dout)
    np.testing.assert_allclose(out, their_out.detach().numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(dx, their_x.grad.numpy(), rtol=0, atol=1e-11)
    for (path, own), (_, other) in zip(trees.leaves(dparams), trees.leaves(theirs), strict=True):
        np.testing.assert_allclose(own, other.grad.numpy(), rtol=0, atol=1e-11, err_msg=path)
