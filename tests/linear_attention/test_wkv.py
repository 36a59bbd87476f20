"""WKV: the fading sum written out, the paper's two forms, what a state promises, and both of ours against them."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.foundation import check_gradients
from minitransformers.linear_attention.wkv import WkvState, wkv
from minitransformers.linear_attention.wkv_chunked import wkv_chunked

both = pytest.mark.parametrize("form", [wkv, wkv_chunked])


def case(positions=7, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.1, 2, size=3), rng.normal(size=3), *rng.normal(size=(2, 2, positions, 3))


def textbook(decay, bonus, key, value, mean=None, log_total=None):
    """Each position as the paper's quotient of two sums, equation 16; what came before is one more value."""
    rows = []
    for t in range(key.shape[1]):
        top = bottom = 0
        if mean is not None:
            bottom = anp.exp(log_total - t * decay)
            top = bottom * mean
        for i in range(t):
            weight = anp.exp(key[:, i] - (t - 1 - i) * decay)
            top, bottom = top + weight * value[:, i], bottom + weight
        own = anp.exp(bonus + key[:, t])
        rows.append((top + own * value[:, t]) / (bottom + own))
    return anp.stack(rows, axis=1)


def paper_s_state(decay, key, value):
    """Numerator, denominator and exponent as appendix D keeps them."""
    a, b, p = np.zeros_like(key[:, 0]), np.zeros_like(key[:, 0]), np.full_like(key[:, 0], -1e38)
    for t in range(key.shape[1]):
        larger = np.maximum(p - decay, key[:, t])
        a, b = (np.exp(p - decay - larger) * old + np.exp(key[:, t] - larger) * new for old, new in ((a, value[:, t]), (b, 1.0)))
        p = larger
    return a, b, p


@both
@pytest.mark.parametrize("positions", [1, 2, 3, 4, 7, 12])
def test_it_is_the_textbook_quotient_and_its_gradients_are_autograd_s(form, positions):
    args = case(positions)
    (out, _), backward = form(*args)
    dout = np.random.default_rng(1).normal(size=out.shape)
    np.testing.assert_allclose(out, textbook(*args), rtol=0, atol=1e-10)
    expected = autograd.grad(lambda *a: anp.sum(dout * textbook(*a)), (0, 1, 2, 3))(*args)
    *gradients, dstate = backward((dout, None))
    assert dstate is None
    for own, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)


@both
def test_what_came_before_is_one_more_value(form):
    args, state = case(), WkvState(*np.random.default_rng(2).normal(size=(2, 2, 3)))
    (out, _), backward = form(*args, state)
    dout = np.random.default_rng(1).normal(size=out.shape)
    np.testing.assert_allclose(out, textbook(*args, *state), rtol=0, atol=1e-10)
    expected = autograd.grad(lambda *a: anp.sum(dout * textbook(*a)), tuple(range(6)))(*args, *state)
    *gradients, dstate = backward((dout, None))
    for own, theirs in zip((*gradients, *dstate), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)


@both
@pytest.mark.parametrize("cut", [1, 3, 6])
def test_a_text_cut_in_two_is_the_whole_outputs_and_gradients(form, cut):
    decay, bonus, key, value = case()
    (whole, last), whole_backward = form(decay, bonus, key, value)
    (first, middle), first_backward = form(decay, bonus, key[:, :cut], value[:, :cut])
    (second, end), second_backward = form(decay, bonus, key[:, cut:], value[:, cut:], middle)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, rtol=0, atol=1e-12)
    np.testing.assert_allclose(end, last, rtol=0, atol=1e-12)
    dout, dlast = np.cos(whole), WkvState(*np.random.default_rng(3).normal(size=(2, 2, 3)))
    ddecay, dbonus, dkey, dvalue, _ = whole_backward((dout, dlast))
    later = second_backward((dout[:, cut:], dlast))
    earlier = first_backward((dout[:, :cut], later[-1]))
    for own, parts in ((ddecay, earlier[0] + later[0]), (dbonus, earlier[1] + later[1])):
        np.testing.assert_allclose(parts, own, rtol=0, atol=1e-12)
    for own, i in ((dkey, 2), (dvalue, 3)):
        np.testing.assert_allclose(np.concatenate([earlier[i], later[i]], axis=1), own, rtol=0, atol=1e-12)


@pytest.mark.parametrize("positions", [1, 2, 5, 16, 31])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_chunked_form_is_the_plain_one(positions, dtype):
    args = [a.astype(dtype) for a in case(positions)]
    state = WkvState(*np.random.default_rng(2).normal(size=(2, 2, 3)).astype(dtype))
    (out, last), backward = wkv(*args, state)
    (fast, fast_last), fast_backward = wkv_chunked(*args, state)
    bound = 1e-12 if dtype == np.float64 else 2e-5
    dresult = np.cos(out), WkvState(np.sin(last.mean), np.cos(last.mean))
    for own, plain in zip((fast, *fast_last), (out, *last), strict=True):
        np.testing.assert_allclose(own, plain, rtol=0, atol=bound)
    *fast_gradients, fast_dstate = fast_backward(dresult)
    *gradients, dstate = backward(dresult)
    for own, plain in zip((*fast_gradients, *fast_dstate), (*gradients, *dstate), strict=True):
        np.testing.assert_allclose(own, plain, rtol=0, atol=bound * 10)


@both
def test_the_state_is_the_paper_s_in_other_numbers(form):
    decay, bonus, key, value = case()
    (_, state), _ = form(decay, bonus, key, value)
    a, b, p = paper_s_state(decay, key, value)
    np.testing.assert_allclose(state.mean, a / b, rtol=1e-12)
    np.testing.assert_allclose(state.log_total, p + np.log(b), rtol=0, atol=1e-12)


@both
def test_every_output_lies_between_the_values_so_far(form):
    decay, bonus, key, value = case(20)
    (out, _), _ = form(decay, bonus, 3 * key, value)
    assert np.all(out <= np.maximum.accumulate(value, axis=1) + 1e-12) and np.all(out >= np.minimum.accumulate(value, axis=1) - 1e-12)


@both
def test_a_number_added_to_all_keys_changes_nothing(form):
    decay, bonus, key, value = case()
    np.testing.assert_allclose(form(decay, bonus, key + 700, value)[0][0], form(decay, bonus, key, value)[0][0], rtol=0, atol=1e-12)


@both
def test_the_first_output_is_the_first_value(form):
    decay, bonus, key, value = case()
    np.testing.assert_array_equal(form(decay, bonus, key, value)[0][0][:, 0], value[:, 0])


@both
def test_the_current_position_gets_the_bonus_and_does_not_fade_and_the_one_before_has_not_faded_yet(form):
    decay, bonus, key = np.array([1.3]), np.array([0.4]), np.array([[0.2], [0.7]])
    (out, _), _ = form(decay, bonus, key, np.array([[1.0], [0.0]]))
    np.testing.assert_allclose(out[1], np.exp(0.2) / (np.exp(0.2) + np.exp(0.4 + 0.7)), rtol=1e-14)


@both
def test_the_future_has_no_influence(form):
    decay, bonus, key, value = case()
    other_key, other_value = key.copy(), value.copy()
    other_key[:, 4:], other_value[:, 4:] = 9, -9
    np.testing.assert_allclose(form(decay, bonus, other_key, other_value)[0][0][:, :4], form(decay, bonus, key, value)[0][0][:, :4], rtol=0, atol=1e-14)


@both
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_keys_of_any_size_give_finite_numbers(form, dtype):
    decay, bonus, key, value = (a.astype(dtype) for a in case(9))
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        (out, state), backward = form(decay, bonus, 1000 * key, value)
        gradients = backward((np.ones_like(out), WkvState(*np.ones_like(state))))
    assert all(np.isfinite(a).all() for a in (out, *state, *gradients[:4]))


@both
def test_the_checker_refuses_a_decay_that_is_taken_for_a_constant_of_the_mean(form):
    def wrong(decay, bonus, key, value):
        (out, _), backward = form(decay, bonus, key, value)
        return out, lambda dout: (0 * decay, *backward((dout, None))[1:4])

    report = check_gradients(wrong, *case())
    assert [a.error > 1e-2 for a in report.arguments] == [True, False, False, False]


@pytest.mark.parity
@both
def test_it_is_hugging_face_s_loop(form):
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.rwkv.modeling_rwkv")
    decay, bonus, key, value = case()
    tensors = [torch.tensor(a, requires_grad=True) for a in (np.log(decay), bonus, key, value)]
    theirs, _ = modeling.rwkv_linear_attention_cpu(*tensors, return_state=True)
    (out, _), backward = form(decay, bonus, key, value)
    np.testing.assert_allclose(out, theirs.detach(), rtol=0, atol=1e-5)  # its state is float32
    theirs.backward(torch.tensor(np.cos(out), dtype=theirs.dtype))
    ddecay, *gradients, _ = backward((np.cos(out), None))
    for own, tensor in zip((decay * ddecay, *gradients), tensors, strict=True):  # it stores the logarithm of the decay
        np.testing.assert_allclose(own, tensor.grad, rtol=0, atol=1e-5)
