"""Retention in its three forms: the naive double loop, texts cut anywhere, decays of any strength, the field's code."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from naive_retention import assert_same, everything, naive_retention, random_case

from minitransformers.attention.masks import causal_mask
from minitransformers.foundation import check_gradients
from minitransformers.linear_attention.retention import multi_scale_decays, retention
from minitransformers.linear_attention.retention_chunked import retention_chunked
from minitransformers.linear_attention.retention_recurrent import retention_recurrent
from minitransformers.positional.rope import rope

FORMS = {"plain": retention, "recurrent": retention_recurrent, "chunked": partial(retention_chunked, chunk=3)}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@every_form
@pytest.mark.parametrize("positions", [1, 2, 7])
def test_equals_the_naive_loop_and_its_gradients(form, positions):
    arguments, (dout, dstate), decay = random_case(positions)
    own = everything(form, arguments, (dout, dstate), decay=decay)

    def loss(arguments):
        out, final = naive_retention(*arguments, decay)
        return anp.sum(dout * out) + anp.sum(dstate * final)

    assert_same(own, [*naive_retention(*arguments, decay), *autograd.grad(loss)(arguments)])


@every_form
def test_no_state_is_a_state_of_zeros(form):
    (*arrays, state), dout, decay = random_case(batch=(2,))
    without = everything(form, (*arrays, None), dout, decay=decay)
    assert without[-1] is None
    assert_same(without[:-1], everything(form, (*arrays, 0 * state), dout, decay=decay)[:-1])


@every_form
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("cut", [1, 3, 6])
def test_a_text_cut_anywhere_gives_the_same_with_every_gradient(form, cut, given):
    (*arrays, state), (dout, dlast), decay = random_case(batch=(2,))
    state = state if given else None
    first, second = ([a[..., part, :] for a in arrays] for part in (np.s_[:cut], np.s_[cut:]))
    (start, middle), first_backward = form(*first, state, decay=decay)
    (end, last), second_backward = form(*second, middle, decay=decay)
    *d_second, dmiddle = second_backward((dout[..., cut:, :], dlast))
    *d_first, dstate = first_backward((dout[..., :cut, :], dmiddle))
    joined = [np.concatenate(pair, axis=-2) for pair in zip((start, *d_first), (end, *d_second), strict=True)]
    assert_same([joined[0], last, *joined[1:], dstate], everything(form, (*arrays, state), (dout, dlast), decay=decay))


@every_form
def test_no_output_sees_a_later_position_or_another_text(form):
    (*arrays, _), _, decay = random_case(batch=(2,))
    before = form(*arrays, decay=decay)[0][0]
    for a in arrays:
        a[1, :, 4] += 1
    after = form(*arrays, decay=decay)[0][0]
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1, :, :4], after[1, :, :4])
    assert (before[1, :, 4:] != after[1, :, 4:]).any(-1).all()


@every_form
def test_the_future_has_no_part_in_the_gradients_of_the_past(form):
    (*arrays, state), (dout, _), decay = random_case()
    dout[:, 4:] = 0
    for gradient in form(*arrays, state, decay=decay)[1]((dout, None))[:3]:
        assert not gradient[:, 4:].any()                     # exactly zero, not small


@every_form
def test_decays_may_come_as_an_array_a_tuple_or_a_list(form):
    arguments, dout, decay = random_case()
    expected = everything(form, arguments, dout, decay=decay)
    for given in (tuple(decay.tolist()), decay.tolist()):
        assert_same(everything(form, arguments, dout, decay=given), expected, atol=0)


@every_form
def test_without_decays_they_are_the_papers(form):
    arguments, dout, _ = random_case(heads=4)
    decay = (31 / 32, 63 / 64, 127 / 128, 255 / 256)
    assert multi_scale_decays(4).tolist() == list(decay)
    assert_same(everything(form, arguments, dout), everything(form, arguments, dout, decay=decay), atol=0)


@every_form
def test_with_a_decay_of_one_it_is_causal_attention_without_a_softmax(form):
    (query, key, value, _), _, _ = random_case()
    weights = np.where(causal_mask(7), query @ key.swapaxes(-1, -2), 0) / 3**0.5
    np.testing.assert_allclose(form(query, key, value, decay=(1.0, 1.0))[0][0], weights @ value, rtol=0, atol=1e-13)


@every_form
def test_what_a_position_has_written_is_read_the_fainter_the_later(form):
    decay, key = (0.5, 0.25), np.zeros((2, 6, 1))
    key[:, 1] = 1
    out, state = form(np.ones((2, 6, 1)), key, np.ones((2, 6, 1)), decay=decay)[0]
    np.testing.assert_allclose(out[..., 0], [[0, 1, 1 / 2, 1 / 4, 1 / 8, 1 / 16], [0, 1, 1 / 4, 1 / 16, 1 / 64, 1 / 256]], rtol=0, atol=1e-15)
    np.testing.assert_allclose(state[:, 0, 0], [1 / 16, 1 / 256], rtol=0, atol=1e-15)


@every_form
def test_turned_queries_and_keys_see_distances_alone(form):
    (query, key, value, _), _, decay = random_case(d_head=4)
    here, there = (np.arange(7) + shift for shift in (0, 1000))
    outs = [form(rope(query, positions=at)[0], rope(key, positions=at)[0], value, decay=decay)[0][0] for at in (here, there)]
    np.testing.assert_allclose(*outs, rtol=0, atol=1e-10)


@every_form
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_strong_decays_underflow_to_nothing_and_overflow_nowhere(form, dtype):
    (*arrays, state), dout, _ = random_case(200, batch=(2,))
    arguments, dout = [a.astype(dtype) for a in (*arrays, state)], [d.astype(dtype) for d in dout]
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        strong = everything(form, arguments, dout, decay=(1e-30, 5e-324))
    assert all(np.isfinite(a).all() and a.dtype == dtype for a in strong)
    query, key, value = arguments[:3]
    alone = (query * key).sum(-1, keepdims=True) * value / 3**0.5  # each position hears itself, and the first the state
    np.testing.assert_allclose(strong[0][..., 1:, :], alone[..., 1:, :], rtol=0, atol=1e-5 if dtype == np.float32 else 1e-12)


@every_form
def test_float32_is_close_to_float64_over_a_long_text(form):
    arguments, dout, decay = random_case(600, 8, 6, batch=(1,))
    decay[0] = 1 - 2**-10
    single = everything(form, [a.astype(np.float32) for a in arguments], [d.astype(np.float32) for d in dout], decay=decay)
    for own, exact in zip(single, everything(retention_recurrent, arguments, dout, decay=decay), strict=True):
        assert own.dtype == np.float32
        np.testing.assert_allclose(own, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


@every_form
def test_results_may_be_overwritten_before_the_backward(form):
    arguments, dout, decay = random_case()
    expected = everything(form, arguments, dout, decay=decay)[2:]
    (out, state), backward = form(*arguments, decay=decay)
    out += 1
    state += 1
    assert_same(backward(dout), expected, atol=0)


@every_form
@pytest.mark.parametrize("decay", [(0.5,), (0.5, 0.5, 0.5), (0.5, 0.0), (-0.5, 0.5), (0.5, 1 + 1e-9), (0.5, np.nan), 0.5, "fast", [None, 1], [[0.5, 0.5]]], ids=str)
def test_what_is_no_decay_for_each_head_is_named(form, decay):
    arguments, _, _ = random_case()
    with pytest.raises(ValueError, match=r"decay: got .*, wants a number above 0 and up to 1 for each of the 2 heads"):
        form(*arguments, decay=decay)


@every_form
def test_axes_that_do_not_fit_are_named(form):
    (query, key, value, state), _, decay = random_case(batch=(2,))
    for wrong, name in (
        ((query, key[:, :1], value, state), "key"), ((query, key, value[..., :6, :], state), "value"),
        ((query, key, value, state[..., :3]), "state"), ((query, key, value, state[:1]), "state"), ((query, key[..., :2], value, state), "key"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            form(*wrong, decay=decay)


def wrong(query, key, value, state, *, decay, mistake):
    out, backward = retention(query, key, value, state, decay=decay)

    def careless(dout):
        gradients = list(backward(dout))
        if mistake == "the state that passes through is forgotten":
            gradients[3] = gradients[3] - np.asarray(decay)[:, None, None] ** query.shape[-2] * dout[1]
        elif mistake == "the carry counts from 0":
            gradients[3] = gradients[3] / np.asarray(decay)[:, None, None]
        elif mistake == "the scale is on the way out only":
            gradients[0] = gradients[0] * query.shape[-1] ** 0.5
        else:
            gradients[1] = backward((dout[0], np.zeros_like(dout[1])))[1]
        return tuple(gradients)

    return out, careless


@pytest.mark.parametrize(
    ("mistake", "path"),
    [
        ("the state that passes through is forgotten", "state"), ("the carry counts from 0", "state"),
        ("the scale is on the way out only", "query"), ("keys are read, and not kept", "key"),
    ],
)  # fmt: skip
def test_the_checker_refuses(mistake, path):
    arguments, _, decay = random_case(4)
    report = check_gradients(wrong, *arguments, decay=tuple(decay.tolist()), mistake=mistake)
    assert not report.passed and report.worst.path == path


@pytest.mark.parity
@every_form
def test_parity_with_powers_in_torch(form):
    torch = pytest.importorskip("torch")
    arguments, dout, decay = random_case(9, 4, 6, 3, batch=(2,))
    query, key, value, state = leaves = [torch.tensor(a, requires_grad=True) for a in arguments]
    gamma, place = torch.tensor(decay)[:, None, None], torch.arange(9)
    mask = torch.tril(gamma ** (place[:, None] - place).clamp(min=0))
    out = (query @ key.transpose(-1, -2) * mask) @ value + gamma ** (place[:, None] + 1) * (query @ state)
    last = (gamma ** (8 - place[:, None]) * key).transpose(-1, -2) @ value + gamma**9 * state
    gradients = torch.autograd.grad((out / 2, last), leaves, [torch.tensor(d) for d in dout])
    expected = [a.detach().numpy() for a in (out / 2, last, *gradients)]
    for own, theirs in zip(everything(form, arguments, dout, decay=decay), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


@pytest.mark.parity
@every_form
def test_parity_with_yet_another_retnet(form):
    # It scales the keys, so that its state is scaled as well; its decays are spaced by their logarithms, and made in the dtype.
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("yet_another_retnet.retention")
    (query, key, value, state), (dout, dlast), _ = random_case(9, 4, 6, 3, batch=(2,))
    decay = module._build_decay_gammas(3, dtype=torch.float64).numpy()
    leaves = [torch.tensor(a, requires_grad=True) for a in (query, key, value, state / 2)]
    out, last = module.retention_chunkwise(*leaves)
    gradients = torch.autograd.grad((out, last), leaves, [torch.tensor(dout), torch.tensor(2 * dlast)])
    own = everything(form, (query, key, value, state), (dout, dlast), decay=decay)
    expected = [out, 2 * last, *gradients[:3], gradients[3] / 2]
    for ours, theirs in zip(own, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=0, atol=1e-12)
    out, _ = module.retention_parallel(*leaves[:3])
    np.testing.assert_allclose(form(query, key, value, decay=decay)[0][0], out.detach().numpy(), rtol=0, atol=1e-12)
    state, outs = None, []
    for t in range(9):
        y, state = module.retention_recurrent(*(a[:, :, t] for a in leaves[:3]), state)
        outs.append(y)
    np.testing.assert_allclose(form(query, key, value, decay=decay)[0][0], torch.stack(outs, 2).detach().numpy(), rtol=0, atol=1e-12)


