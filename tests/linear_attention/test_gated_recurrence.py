"""The gated recurrence in both forms: the naive sum over pairs, texts cut anywhere, what a gate does, resets, PyTorch."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from naive_gated_recurrence import naive_gated_recurrence, random_case
from naive_retention import assert_same, everything

from minitransformers.attention.masks import causal_mask
from minitransformers.foundation import check_gradients
from minitransformers.linear_attention.gated_recurrence import gated_recurrence
from minitransformers.linear_attention.gated_recurrence_chunked import gated_recurrence_chunked
from minitransformers.linear_attention.retention import retention

FORMS = {"plain": gated_recurrence, "chunks of 4": partial(gated_recurrence_chunked, chunk=4), "one chunk": partial(gated_recurrence_chunked, chunk=64)}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@every_form
@pytest.mark.parametrize("positions", [1, 2, 7])
def test_equals_the_naive_sum_over_pairs_and_its_gradients(form, positions):
    arguments, (dout, dstate) = random_case(positions)
    own = everything(form, arguments, (dout, dstate))

    def loss(arguments):
        out, final = naive_gated_recurrence(*arguments)
        return anp.sum(dout * out) + anp.sum(dstate * final)

    assert_same(own, [*naive_gated_recurrence(*arguments), *autograd.grad(loss)(arguments)])


@every_form
def test_no_state_is_a_state_of_zeros(form):
    (*arrays, state), dout = random_case(batch=(2,))
    without = everything(form, (*arrays, None), dout)
    assert without[-1] is None
    assert_same(without[:-1], everything(form, (*arrays, 0 * state), dout)[:-1])


@every_form
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("cut", [1, 3, 4, 6])
def test_a_text_cut_anywhere_gives_the_same_with_every_gradient(form, cut, given):
    (*arrays, state), (dout, dlast) = random_case(batch=(2,))
    state = state if given else None
    first, second = ([a[..., part, :] for a in arrays] for part in (np.s_[:cut], np.s_[cut:]))
    (start, middle), first_backward = form(*first, state)
    (end, last), second_backward = form(*second, middle)
    *d_second, dmiddle = second_backward((dout[..., cut:, :], dlast))
    *d_first, dstate = first_backward((dout[..., :cut, :], dmiddle))
    joined = [np.concatenate(pair, axis=-2) for pair in zip((start, *d_first), (end, *d_second), strict=True)]
    assert_same([joined[0], last, *joined[1:], dstate], everything(form, (*arrays, state), (dout, dlast)))


@every_form
def test_no_output_sees_a_later_position_or_another_text(form):
    (*arrays, _), _ = random_case(batch=(2,))
    before = form(*arrays)[0][0]
    for a in arrays[:3]:
        a[1, :, 4] += 1
    arrays[3][1, :, 4] -= 1
    after = form(*arrays)[0][0]
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1, :, :4], after[1, :, :4])
    assert (before[1, :, 4:] != after[1, :, 4:]).any(-1).all()


@every_form
def test_the_future_has_no_part_in_the_gradients_of_the_past(form):
    (*arrays, state), (dout, _) = random_case()
    dout[:, 4:] = 0
    for gradient in form(*arrays, state)[1]((dout, None))[:4]:
        assert not gradient[:, 4:].any()                     # exactly zero, not small


@every_form
def test_with_one_constant_for_a_head_it_is_retention(form):
    (query, key, value, log_decay, state), dout = random_case(batch=(2,))
    decay = np.array([0.9, 0.4])
    log_decay[...] = np.log(decay)[:, None, None]
    own, theirs = everything(form, (query, key, value, log_decay, state), dout), everything(retention, (query, key, value, state), dout, decay=decay)
    assert_same([*own[:5], own[6]], theirs)


@every_form
def test_without_decay_it_is_causal_attention_without_a_softmax(form):
    (query, key, value, log_decay, _), _ = random_case()
    weights = np.where(causal_mask(7), query @ key.swapaxes(-1, -2), 0) / 3**0.5
    np.testing.assert_allclose(form(query, key, value, 0 * log_decay)[0][0], weights @ value, rtol=0, atol=1e-13)


@every_form
def test_features_fade_each_by_its_own_gate(form):
    key, value = np.zeros((1, 6, 2)), np.ones((1, 6, 1))
    key[:, 0] = 1
    log_decay = np.log(np.tile([0.5, 1.0], (1, 6, 1)))
    log_decay[:, 3, 1] = np.log(0.25)                        # the second feature is kept, until a position says otherwise
    reads = [form(2**0.5 * np.tile(np.eye(2)[feature], (1, 6, 1)), key, value, log_decay)[0][0][0, :, 0] for feature in range(2)]
    np.testing.assert_allclose(reads, [[1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32], [1, 1, 1, 1 / 4, 1 / 4, 1 / 4]], rtol=0, atol=1e-15)


@every_form
@pytest.mark.parametrize("reset", [2, 3, 4, 5])
def test_behind_a_reset_nothing_is_known_of_what_was_before(form, reset):
    (query, key, value, log_decay, state), (dout, dlast) = random_case()
    log_decay[:, reset] = -1e6
    own = everything(form, (query, key, value, log_decay, state), (dout, dlast))
    later = everything(form, [a[:, reset:] for a in (query, key, value, log_decay)] + [None], (dout[:, reset:], dlast))
    np.testing.assert_allclose(own[0][:, reset:], later[0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(own[1], later[1], rtol=0, atol=1e-13)
    earlier = everything(form, [a[:, :reset] for a in (query, key, value, log_decay)] + [state], (dout[:, :reset], None))
    for whole, part in zip(own[2:6], earlier[2:6], strict=True):
        np.testing.assert_allclose(whole[:, :reset], part, rtol=0, atol=1e-13)
    assert not own[5][:, reset].any()                        # nothing crosses it


@every_form
def test_strong_decays_and_resets_have_right_gradients_in_float32(form):
    arguments, dout = random_case(64, 16, 16)
    arguments[3][...], arguments[3][:, 20] = -16.0, -1e6
    exact = everything(gated_recurrence, arguments, dout)
    single = [a.astype(np.float32) for a in arguments], [d.astype(np.float32) for d in dout]
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        own = everything(form, *single)
    for ours, theirs in zip(own, exact, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * max(1, np.abs(theirs).max()))
    dlog_decay, small = own[5], np.abs(exact[5]).max()
    np.testing.assert_allclose(dlog_decay, exact[5], rtol=0, atol=1e-5 * small)  # themselves as small as exp(-16)
    query, key, dquery, dkey = single[0][0], single[0][1], own[2], own[3]
    balance = query * dquery - key * dkey                    # the gates' gradients as the paper takes them, right on paper
    balance[:, -1] += (single[1][1] * own[1]).sum(-1)
    lost = np.cumsum(balance[:, ::-1], axis=1)[:, ::-1]
    assert np.abs(lost - exact[5]).max() > 0.1 * small       # what that would give


@every_form
def test_on_paper_the_gates_gradient_is_a_balance_in_one_line(form):
    (query, key, value, log_decay, state), (dout, dlast) = random_case()
    _, last, dquery, dkey, _, dlog_decay, _ = everything(form, (query, key, value, log_decay, state), (dout, dlast))
    balance = query * dquery - key * dkey
    balance[:, -1] += (dlast * last).sum(-1)
    np.testing.assert_allclose(np.cumsum(balance[:, ::-1], axis=1)[:, ::-1], dlog_decay, rtol=0, atol=1e-12)


@every_form
def test_float32_is_close_to_float64_over_a_long_text(form):
    arguments, dout = random_case(300, 8, 6, batch=(1,))
    arguments[3][...] /= 16
    single = everything(form, [a.astype(np.float32) for a in arguments], [d.astype(np.float32) for d in dout])
    for own, exact in zip(single, everything(gated_recurrence, arguments, dout), strict=True):
        assert own.dtype == np.float32
        np.testing.assert_allclose(own, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


@every_form
def test_results_may_be_overwritten_before_the_backward(form):
    arguments, dout = random_case()
    expected = everything(form, arguments, dout)[2:]
    (out, state), backward = form(*arguments)
    out += 1
    state += 1
    assert_same(backward(dout), expected, atol=0)


@every_form
def test_gates_that_let_the_past_grow_are_named(form):
    (query, key, value, log_decay, state), _ = random_case()
    for wrong in (1e-9, np.nan, np.inf, -np.inf):
        bad = log_decay.copy()
        bad[1, 3, 2] = wrong
        with pytest.raises(ValueError, match=r"log_decay: got numbers from .*, wants finite numbers of at most 0"):
            form(query, key, value, bad, state)


@every_form
def test_axes_that_do_not_fit_are_named(form):
    (query, key, value, log_decay, state), _ = random_case(batch=(2,))
    for arguments, name in (
        ((query, key[:, :1], value, log_decay, state), "key"), ((query, key, value[..., :6, :], log_decay, state), "value"),
        ((query, key, value, log_decay[..., :1], state), "log_decay"), ((query, key, value, log_decay, state[..., :3]), "state"),
        ((query, key, value, log_decay, state[:1]), "state"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            form(*arguments)


def wrong(query, key, value, log_decay, state, *, mistake):
    out, backward = gated_recurrence(query, key, value, log_decay, state)

    def careless(dout):
        dquery, dkey, dvalue, dlog_decay, dstate = backward(dout)
        if mistake == "the decay's own factor is forgotten":
            dlog_decay = dlog_decay / np.exp(log_decay)
        elif mistake == "the state after the position in the place of the one before":
            dlog_decay = dlog_decay + key * dkey
        else:
            dstate = dstate / np.exp(log_decay[..., 0, :, None])
        return dquery, dkey, dvalue, dlog_decay, dstate

    return out, careless


@pytest.mark.parametrize(
    ("mistake", "path"),
    [
        ("the decay's own factor is forgotten", "log_decay"),
        ("the state after the position in the place of the one before", "log_decay"),
        ("the first position does not let the state fade", "state"),
    ],
)
def test_the_checker_refuses(mistake, path):
    report = check_gradients(wrong, *random_case(4)[0], mistake=mistake)
    assert not report.passed and report.worst.path == path


@pytest.mark.parity
@every_form
def test_parity_with_a_loop_in_torch(form):
    torch = pytest.importorskip("torch")
    arguments, dout = random_case(9, 4, 6, 3, batch=(2,))
    query, key, value, log_decay, h = leaves = [torch.tensor(a, requires_grad=True) for a in arguments]
    rows = []
    for t in range(9):
        h = h * log_decay[:, :, t].exp()[..., None] + key[:, :, t, :, None] * value[:, :, t, None]
        rows.append((query[:, :, t, :, None] / 2 * h).sum(-2))
    outputs = torch.stack(rows, 2), h
    gradients = torch.autograd.grad(outputs, leaves, [torch.tensor(d) for d in dout])
    for own, theirs in zip(everything(form, arguments, dout), (*outputs, *gradients), strict=True):
        np.testing.assert_allclose(own, theirs.detach().numpy(), rtol=0, atol=1e-12)
