"""Multi-scale retention: the layer one position at a time, decoding of constant size, what the norm forgets, the field's code."""

from functools import partial
from typing import NamedTuple

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from jaxtyping import Float
from mixers_at_work import (
    WORDS,
    assert_it_has_no_place_for,
    assert_it_writes_the_same_without_a_state,
    assert_steps_equal_the_whole_pass,
    losses,
    repeats,
)
from mixers_at_work import model as small_model
from numpy import ndarray as Array

from minitransformers import catalogue, trees
from minitransformers.attention.prepare import on_both, unprepared
from minitransformers.basics.linear import Linear
from minitransformers.foundation import check_gradients, slot
from minitransformers.linear_attention.retention import retention
from minitransformers.linear_attention.retention_chunked import retention_chunked
from minitransformers.linear_attention.retention_recurrent import retention_recurrent
from minitransformers.linear_attention.retnet import RetNet, init_retnet, retnet, retnet_step, turn
from minitransformers.norms.qk_norm import QkNorm, qk_norm
from minitransformers.positional.rope import rope

FORMS = {
    "plain": slot(retention), "recurrent": slot(retention_recurrent), "chunks of 1": slot(partial(retention_chunked, chunk=1)),
    "chunks of 3": slot(partial(retention_chunked, chunk=3)),
}  # fmt: skip


def random_params(rng, d_model=5, keys=8, values=6, bias=True):
    def map_of(*shape):
        return Linear(rng.normal(size=shape) / 2, rng.normal(size=shape[1]) if bias else None)

    return RetNet(map_of(d_model, keys), map_of(d_model, keys), map_of(d_model, values), map_of(d_model, values), map_of(values, d_model))


def turned_by(x, position):
    """One vector, pair by pair; frequencies as they are evenly spaced in the logarithm, both ends taken."""
    pairs, parts = len(x) // 2, []
    for m in range(pairs):
        angle = position * 10_000.0 ** (-m / (pairs - 1) if pairs > 1 else 0)
        a, b = x[2 * m], x[2 * m + 1]
        parts += [a * anp.cos(angle) - b * anp.sin(angle), a * anp.sin(angle) + b * anp.cos(angle)]
    return anp.stack(parts)


def textbook(params, x, num_heads, eps=1e-6, decay=None):
    """One text, one position, one head at a time; decays as the paper gives them."""
    (wq, bq), (wk, bk), (wv, bv), (wg, bg), (wo, bo) = params[:5]
    d, p = wq.shape[1] // num_heads, wv.shape[1] // num_heads
    sequences = []
    for text in x:
        states, rows = [anp.zeros((d, p))] * num_heads, []
        for n in range(len(text)):
            q, k, v, g = (anp.dot(text[n], w) + b for w, b in ((wq, bq), (wk, bk), (wv, bv), (wg, bg)))
            units, states = [], list(states)
            for h in range(num_heads):
                gamma = 1 - 2.0 ** (-5 - h) if decay is None else decay[h]
                query, key = (turned_by(a[h * d : (h + 1) * d], n) for a in (q, k))
                states[h] = gamma * states[h] + anp.outer(key, v[h * p : (h + 1) * p])
                y = anp.dot(query / d**0.5, states[h])
                units.append((y - anp.mean(y)) / anp.sqrt(anp.mean((y - anp.mean(y)) ** 2) + eps))
            rows.append(anp.dot(g / (1 + anp.exp(-g)) * anp.concatenate(units), wo) + bo)
        sequences.append(anp.stack(rows))
    return anp.stack(sequences)


@pytest.mark.parametrize("positions, heads", [(5, 2), (1, 2), (4, 1)])
def test_equals_the_layer_one_position_at_a_time_and_its_gradients(positions, heads):
    rng = np.random.default_rng(0)
    params, x, dout = random_params(rng), rng.normal(size=(2, positions, 5)), rng.normal(size=(2, positions, 5))
    out, backward = retnet(params, x, num_heads=heads)
    np.testing.assert_allclose(out, textbook(params, x, heads), rtol=0, atol=1e-11)
    loss = lambda values, x: anp.sum(dout * textbook(trees.unflatten(params, values), x, heads))  # noqa: E731
    expected, expected_dx = autograd.grad(loss, (0, 1))([leaf for _, leaf in trees.leaves(params)], x)
    dparams, dx = backward(dout)
    np.testing.assert_allclose(dx, expected_dx, rtol=0, atol=1e-10)
    for (path, own), theirs in zip(trees.leaves(dparams), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10, err_msg=path)


def test_eps_and_decays_are_those_given():
    rng = np.random.default_rng(1)
    params, x, decay = random_params(rng), rng.normal(size=(2, 4, 5)), (0.5, 0.2)
    out, _ = retnet(params, x, num_heads=2, eps=0.5, recurrence=slot(partial(retention, decay=decay)))
    np.testing.assert_allclose(out, textbook(params, x, 2, eps=0.5, decay=decay), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_retention_gives_the_same(form):
    rng = np.random.default_rng(2)
    params, x, dout = random_params(rng), rng.normal(size=(2, 7, 5)), rng.normal(size=(2, 7, 5))
    (out, backward), (own, own_backward) = retnet(params, x, num_heads=2), retnet(params, x, num_heads=2, recurrence=form)
    np.testing.assert_allclose(own, out, rtol=0, atol=1e-11)
    for (path, a), (_, b) in zip(trees.leaves(own_backward(dout)), trees.leaves(backward(dout)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10, err_msg=path)


@pytest.mark.parametrize("pieces", [(1,) * 9, (5, 1, 1, 1, 1), (2, 4, 3), (9,)])
def test_a_prefill_and_steps_equal_the_whole_pass(pieces):
    rng = np.random.default_rng(3)
    params, x = random_params(rng), rng.normal(size=(2, 9, 5))
    whole, _ = retnet(params, x, num_heads=2)
    state, outs = None, []
    for piece in np.split(x, np.cumsum(pieces)[:-1], axis=1):
        out, state = retnet_step(params, piece, state, num_heads=2, recurrence=slot(partial(retention_chunked, chunk=2)))
        outs.append(out)
        assert state.state.shape == (2, 2, 4, 3)             # of one size, however long the text
    assert state.length == 9
    np.testing.assert_allclose(np.concatenate(outs, axis=1), whole, rtol=0, atol=1e-11)


def test_a_step_writes_to_nothing():
    rng = np.random.default_rng(4)
    params, x = random_params(rng), rng.normal(size=(2, 4, 5))
    _, state = retnet_step(params, x, None, num_heads=2)
    before = state.state.copy()
    first, second = (retnet_step(params, x, state, num_heads=2)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(state.state, before)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_state_of_another_model_or_batch_is_named(form):
    rng = np.random.default_rng(5)
    params, x = random_params(rng), rng.normal(size=(2, 4, 5))
    _, state = retnet_step(params, x[:1], None, num_heads=2)
    with pytest.raises(ValueError, match=r"state: got shape \(1, 2, 4, 3\), wants \(2, 2, 4, 3\)"):
        retnet_step(params, x, state, num_heads=2, recurrence=form)
    with pytest.raises(ValueError, match=r"state: got shape \(1, 2, 4, 3\), wants \(1, 2, 2, 3\)"):
        retnet_step(random_params(rng, keys=4), x[:1], state, num_heads=2, recurrence=form)


def test_no_output_sees_a_later_input_or_another_text():
    rng = np.random.default_rng(6)
    params, x = random_params(rng), rng.normal(size=(2, 6, 5))
    changed = x.copy()
    changed[1, 3] += 1
    before, after = (retnet(params, a, num_heads=2, recurrence=FORMS["chunks of 3"])[0] for a in (x, changed))
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1, :3], after[1, :3])
    assert (before[1, 3] != after[1, 3]).all()


def test_the_norm_forgets_how_loud_a_head_is():
    rng = np.random.default_rng(7)
    params, x = random_params(rng, bias=False), rng.normal(size=(2, 6, 5))
    louder = params._replace(value=Linear(params.value.weight * np.repeat([7.0, 300.0], 3), None))
    outs = [retnet(p, x, num_heads=2, eps=1e-300)[0] for p in (params, louder)]
    np.testing.assert_allclose(*outs, rtol=0, atol=1e-12)


def normed(params, x, **config):
    """What the gate is given, of a model as wide as its values: silu(100) is 100."""
    read = params._replace(gate=Linear(np.zeros((6, 6)), np.full(6, 100.0)), output=Linear(np.eye(6) / 100, None))
    return retnet(read, x, num_heads=2, **config)[0]


def test_the_norm_is_of_one_head_at_one_position():
    rng = np.random.default_rng(8)
    params, x = random_params(rng, d_model=6), rng.normal(size=(2, 4, 6))
    unit = normed(params, x, eps=1e-300).reshape(2, 4, 2, 3)
    np.testing.assert_allclose(unit.mean(-1), 0, rtol=0, atol=1e-12)
    np.testing.assert_allclose((unit**2).mean(-1), 1, rtol=0, atol=1e-12)


def test_what_the_norm_has_taken_away_has_no_gradient():
    rng = np.random.default_rng(9)
    params, x, dout = random_params(rng, bias=False), rng.normal(size=(1, 6, 5)), rng.normal(size=(1, 6, 5))
    dvalue = retnet(params, x, num_heads=2, eps=1e-300)[1](dout)[0].value.weight.reshape(5, 2, 3)
    np.testing.assert_allclose(dvalue.sum(-1), 0, rtol=0, atol=1e-12)  # the mean of a head's features
    np.testing.assert_allclose((dvalue * params.value.weight.reshape(5, 2, 3)).sum((0, 2)), 0, rtol=0, atol=1e-12)  # and its loudness


def test_turned_by_a_constant_more_nothing_changes():
    rng = np.random.default_rng(10)
    params, x = random_params(rng), rng.normal(size=(2, 6, 5))
    later = on_both(lambda a, positions=None: turn(a, positions=np.arange(6) + 500))
    np.testing.assert_allclose(retnet(params, x, num_heads=2, prepare=later)[0], retnet(params, x, num_heads=2)[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("d_head", [2, 4, 8, 64])
def test_the_angles_are_evenly_spaced_in_their_logarithm_with_both_ends_taken(d_head):
    ones = np.tile([1.0, 0.0], (3, d_head // 2))
    turned = turn(ones)[0].reshape(3, -1, 2)
    angle = np.arange(3)[:, None] * 10_000.0 ** -np.linspace(0, 1, d_head // 2)
    np.testing.assert_allclose(turned, np.stack([np.cos(angle), np.sin(angle)], -1), rtol=0, atol=1e-14)


def test_heads_that_cannot_be_turned_or_normalised_are_named():
    rng = np.random.default_rng(11)
    x = rng.normal(size=(2, 3, 5))
    with pytest.raises(ValueError, match=r"num_heads: got heads of 3 features, wants an even number"):
        retnet(random_params(rng, keys=6), x, num_heads=2)
    retnet(random_params(rng, keys=6), x, num_heads=2, prepare=unprepared)
    with pytest.raises(ValueError, match=r"num_heads: got 2, wants two value features a head or more"):
        retnet(random_params(rng, values=2), x, num_heads=2)
    for keys, values in ((7, 6), (8, 5)):
        with pytest.raises(ValueError, match=r"num_heads: got 2, wants a number of heads that divides"):
            retnet(random_params(rng, keys=keys, values=values), x, num_heads=2)


class PerHead(NamedTuple):
    gain: Float[Array, "heads"]


def test_a_recurrence_with_parameters_for_other_heads_is_named():
    rng = np.random.default_rng(22)
    for heads, fits in ((1, True), (2, True), (3, False)):
        params = random_params(rng)._replace(recurrence=PerHead(np.ones(heads)))
        call = partial(retnet, params, rng.normal(size=(2, 3, 5)), num_heads=2, recurrence=lambda _, *arrays: retention(*arrays))
        if fits:
            call()
        else:
            with pytest.raises(ValueError, match=r"params\.recurrence\.gain: got 3 heads, wants num_heads = 2, or 1 for all"):
                call()


def louder(gain, query, key, value, state=None):
    """A recurrence that learns: a gain for each value feature."""
    (heads, state), backward = retention(query, key, value, state)

    def gained(dresult):
        dheads, dstate = dresult
        return (dheads * heads).sum(tuple(range(heads.ndim - 1))), *backward((dheads * gain, dstate))

    return (heads * gain, state), gained


def test_what_the_slots_learn_gets_its_gradient():
    rng = np.random.default_rng(12)
    params = random_params(rng, 3, 4, 6)._replace(prepare=QkNorm(*rng.normal(size=(2, 2))), recurrence=rng.normal(size=3))
    report = check_gradients(retnet, params, rng.normal(size=(1, 3, 3)), num_heads=2, prepare=qk_norm, recurrence=louder, eps=1e-2)
    assert report.passed, str(report)


def test_how_it_starts():
    params = init_retnet(np.random.default_rng(13), 64, num_heads=4, std=0.02, residual_std=0.005)
    assert all(leaf.dtype == np.float32 for _, leaf in trees.leaves(params))
    assert [part.weight.shape for part in params[:5]] == [(64, 64), (64, 64), (64, 128), (64, 128), (128, 64)]
    assert all(part.bias is None for part in params[:5]) and params.prepare is params.recurrence is None
    np.testing.assert_allclose([part.weight.std() for part in params[:5]], [0.02] * 4 + [0.005], rtol=0.05)
    by_fan_in = init_retnet(np.random.default_rng(13), 64, num_heads=4, expand=1)
    np.testing.assert_allclose([part.weight.std() * 8 for part in by_fan_in[:5]], 1, rtol=0.05)
    assert by_fan_in.value.weight.shape == (64, 64)
    np.testing.assert_allclose(init_retnet(np.random.default_rng(13), 64, num_heads=4).output.weight.std() * 128**0.5, 1, rtol=0.05)
    np.testing.assert_allclose(init_retnet(np.random.default_rng(13), 64, num_heads=4, std=0.02).output.weight.std(), 0.02, rtol=0.05)
    assert set(trees.decayed(params)) == {f"{name}.weight" for name in ("query", "key", "value", "gate", "output")}
    for wrong in ({"num_heads": 5}, {"num_heads": 0}, {"num_heads": 4, "expand": 0}):
        with pytest.raises(ValueError, match=list(wrong)[-1]):
            init_retnet(np.random.default_rng(13), 64, **wrong)


model = partial(small_model, mixer="retnet")


@pytest.mark.parametrize("position", ["none", "learned", "rope"])
def test_a_language_model_takes_it_by_name_and_steps_equal_the_whole_pass(position):
    params, config = model(position=position, options={"mixer": {"expand": 1}})
    assert config.mixers[0].entry.step is retnet_step and catalogue.find("retnet", role="mixer").init is init_retnet
    assert params.blocks[0].mixer.value.weight.shape == (8, 8)
    assert_steps_equal_the_whole_pass(params, config)


def test_a_rotation_chosen_by_name_stands_in_the_place_of_its_own():
    params, config = model(position="rope")
    mixer, x = params.blocks[0].mixer, np.random.default_rng(15).normal(size=(2, 5, 8))
    own = config.bound.mixers[0].call(mixer, x)[0]
    np.testing.assert_allclose(own, retnet(mixer, x, num_heads=2, prepare=on_both(rope))[0], rtol=0, atol=1e-13)
    assert np.abs(own - retnet(mixer, x, num_heads=2)[0]).max() > 1e-3


def test_decays_and_forms_are_chosen_by_name():
    params, config = model(options={"mixer": {"recurrence": "retention", "recurrence.decay": [0.5, 0.25], "recurrence.chunk": 3}})
    assert config.mixers[0].slots["recurrence"].entry.name == "retention_chunked"
    mixer, x = params.blocks[0].mixer, np.random.default_rng(16).normal(size=(2, 5, 8))
    expected = retnet(mixer, x, num_heads=2, recurrence=slot(partial(retention, decay=(0.5, 0.25))))[0]
    np.testing.assert_allclose(config.bound.mixers[0].call(mixer, x)[0], expected, rtol=0, atol=1e-12)


def test_it_writes_what_it_would_write_without_a_state():
    assert_it_writes_the_same_without_a_state(*model())


def test_a_mask_is_refused_for_it_has_no_scores():
    assert_it_has_no_place_for("alibi", mixer="retnet")


def test_a_model_of_it_learns_to_repeat_what_stood_two_places_back():
    params, config = model(17, num_layers=1, d_model=16)
    found = losses(params, config, partial(repeats, back=2, positions=8), steps=150)
    assert found[0] > np.log(WORDS) and np.mean(found[-20:]) < np.log(WORDS) / 2


def turned_on_and_not_back(params, x):
    """A rotation whose backward turns by the same angle once more."""
    wrong = on_both(lambda a, positions=None: (turn(a)[0], lambda dout: turn(dout)[0]))
    return retnet(params, x, num_heads=2, prepare=wrong)


def gate_without_its_slope(params, x):
    """silu' taken for the sigmoid: x sigma (1 - sigma) is forgotten."""
    out, backward = retnet(params, x, num_heads=2)

    def wrong(dout):
        dparams, dx = backward(dout)
        z = x @ params.gate.weight + params.gate.bias
        dz = (dout @ params.output.weight.T) * normed(params, x) / (1 + np.exp(-z))
        return dparams._replace(gate=Linear(x.reshape(-1, 6).T @ dz.reshape(-1, 6), dparams.gate.bias)), dx

    return out, wrong


@pytest.mark.parametrize(("mistake", "paths"), [(turned_on_and_not_back, ("query", "key", "x")), (gate_without_its_slope, ("gate",))])
def test_the_check_refuses(mistake, paths):
    rng = np.random.default_rng(19)
    report = check_gradients(mistake, random_params(rng, d_model=6), rng.normal(size=(1, 4, 6)))
    assert not report.passed and any(path in report.worst.path for path in paths)


def torch_tree(torch, params):
    return trees.map(lambda leaf: torch.tensor(leaf, requires_grad=True), params)


@pytest.mark.parity
def test_parity_with_the_parallel_form_in_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(20)
    params, x, dout = random_params(rng), rng.normal(size=(2, 9, 5)), rng.normal(size=(2, 9, 5))
    theirs, their_x = torch_tree(torch, params), torch.tensor(x, requires_grad=True)
    F = torch.nn.functional
    q, k, v, g = (their_x @ part.weight + part.bias for part in theirs[:4])
    q, k, v = (a.unflatten(-1, (2, -1)).transpose(1, 2) for a in (q, k, v))
    place = torch.arange(9, dtype=torch.float64)
    turns = torch.polar(torch.ones(9, 2, dtype=torch.float64), place[:, None] / 10_000 ** torch.linspace(0, 1, 2, dtype=torch.float64))
    q, k = (torch.view_as_real(torch.view_as_complex(a.unflatten(-1, (2, 2)).contiguous()) * turns).flatten(-2) for a in (q, k))
    gamma = 1 - 2.0 ** (-5 - torch.arange(2, dtype=torch.float64))[:, None, None]
    decay = torch.tril(gamma ** (place[:, None] - place).clamp(min=0))
    heads = (q @ k.transpose(-1, -2) / 2 * decay) @ v
    unit = F.layer_norm(heads, (3,), eps=1e-6).transpose(1, 2).flatten(-2)
    their_out = (F.silu(g) * unit) @ theirs.output.weight + theirs.output.bias
    their_out.backward(torch.tensor(dout))
    out, backward = retnet(params, x, num_heads=2)
    dparams, dx = backward(dout)
    np.testing.assert_allclose(out, their_out.detach().numpy(), rtol=0, atol=1e-11)
    np.testing.assert_allclose(dx, their_x.grad.numpy(), rtol=0, atol=1e-10)
    for (path, own), (_, other) in zip(trees.leaves(dparams), trees.leaves(theirs), strict=True):
        np.testing.assert_allclose(own, other.grad.numpy(), rtol=0, atol=1e-10, err_msg=path)


@pytest.mark.parity
@pytest.mark.parametrize("form", [retention, retention_recurrent, partial(retention_chunked, chunk=4)], ids=["plain", "recurrent", "chunked"])
def test_parity_with_yet_another_retnet(form):
    # Its values are as wide as the model, and its decays are spaced by their logarithms.
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("yet_another_retnet.retention")
    rng = np.random.default_rng(21)
    layer = module.MultiScaleRetention(16, 2, dtype=torch.float64)
    theirs = (layer.q_proj, layer.k_proj, layer.v_proj, layer.g_proj, layer.out_proj)
    params = RetNet(*(Linear(rng.normal(size=(16, 16)) / 4, rng.normal(size=16)) for _ in theirs))
    for part, own in zip(theirs, params[:5], strict=True):
        part.weight.data, part.bias.data = torch.tensor(own.weight.T.copy()), torch.tensor(own.bias)
    x, dout = rng.normal(size=(2, 2, 9, 16))
    their_x = torch.tensor(x, requires_grad=True)
    their_out, _ = layer(their_x, their_x, their_x)
    their_out.backward(torch.tensor(dout))
    decay = tuple(module._build_decay_gammas(2, dtype=torch.float64).tolist())
    out, backward = retnet(params, x, num_heads=2, recurrence=slot(partial(form, decay=decay)))
    dparams, dx = backward(dout)
    np.testing.assert_allclose(out, their_out.detach().numpy(), rtol=0, atol=1e-11)
    np.testing.assert_allclose(dx, their_x.grad.numpy(), rtol=0, atol=1e-10)
    for part, own in zip(theirs, dparams[:5], strict=True):
        np.testing.assert_allclose(own.weight, part.weight.grad.numpy().T, rtol=0, atol=1e-10)
        np.testing.assert_allclose(own.bias, part.bias.grad.numpy(), rtol=0, atol=1e-10)
