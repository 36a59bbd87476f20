"""RWKV-4's channel mixing: written out, cut in two, and beside Hugging Face's."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.linear import Linear
from minitransformers.foundation import assert_gradients, check_gradients
from minitransformers.linear_attention.rwkv_channel_mix import RwkvChannelMix, init_rwkv_channel_mix, rwkv_channel_mix

X, PAST = (np.random.default_rng(9).normal(size=s) for s in ((2, 6, 4), (2, 4)))


def channel_mix(seed=0):
    rng = np.random.default_rng(seed)
    receptance, key, value = (Linear(rng.normal(size=s) / 2, None) for s in ((4, 4), (4, 7), (7, 4)))
    return RwkvChannelMix(*rng.uniform(size=(2, 4)), receptance, key, value)


def textbook(mix_r, mix_k, W_r, W_k, W_v, x, past):
    """Equations 18 to 20 of the paper."""
    before = anp.concatenate([past[:, None], x[:, :-1]], axis=1)
    hidden = anp.maximum((mix_k * x + (1 - mix_k) * before) @ W_k, 0) ** 2
    return (hidden @ W_v) / (1 + anp.exp(-((mix_r * x + (1 - mix_r) * before) @ W_r)))


def flat(params):
    return [p.weight if isinstance(p, Linear) else p for p in params]


@pytest.mark.parametrize("with_past", [True, False])
def test_it_is_the_textbook_and_its_gradients_are_autograd_s(with_past):
    params, past = channel_mix(), PAST if with_past else np.zeros_like(PAST)
    out, backward = rwkv_channel_mix(params, X, PAST if with_past else None)
    args, dout = [*flat(params), X, past], np.cos(out)
    np.testing.assert_allclose(out, textbook(*args), rtol=0, atol=1e-10)
    expected = autograd.grad(lambda *a: anp.sum(dout * textbook(*a)), tuple(range(7)))(*args)
    dparams, dx, dpast = backward(dout)
    assert (dpast is None) != with_past
    for own, theirs in zip([*flat(dparams), dx, *([dpast] if with_past else [])], expected, strict=False):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)


def test_it_goes_on_from_the_last_position():
    params = channel_mix()
    np.testing.assert_allclose(rwkv_channel_mix(params, X[:, 4:], X[:, 3])[0], rwkv_channel_mix(params, X)[0][:, 4:], rtol=0, atol=1e-13)


def test_a_position_sees_itself_and_the_one_before_and_no_other():
    other = X.copy()
    other[:, 3] = 7
    changed = np.any(rwkv_channel_mix(channel_mix(), other)[0] != rwkv_channel_mix(channel_mix(), X)[0], axis=(0, 2))
    assert changed.tolist() == [False, False, False, True, True, False]


def test_a_hidden_feature_that_is_off_has_no_slope():
    params = channel_mix()
    off = params._replace(key=Linear(-np.abs(params.key.weight), None))
    out, backward = rwkv_channel_mix(off, np.abs(X))
    assert not out.any() and not backward(np.ones_like(out))[0].key.weight.any()


def test_what_it_starts_with():
    params = init_rwkv_channel_mix(np.random.default_rng(0), 4, d_hidden=5, dtype=np.float64)
    assert_gradients(rwkv_channel_mix, params, X)
    wide = init_rwkv_channel_mix(np.random.default_rng(0), 4)
    assert wide.key.weight.shape == (4, 16) and wide.value.weight.dtype == np.float32
    assert wide.key_mix.tolist() == wide.receptance_mix.tolist() == [0, 0.25, 0.5, 0.75]


def test_the_checker_refuses_the_slope_of_a_plain_relu():
    def wrong(params, x):
        out, backward = rwkv_channel_mix(params, x)

        def with_slope_one(dout):
            dparams, dx, _ = backward(dout)
            before = np.concatenate([np.zeros_like(x[:, :1]), x[:, :-1]], axis=1)
            r_in, k_in = (mix * x + (1 - mix) * before for mix in (params.receptance_mix, params.key_mix))
            dhidden = (dout / (1 + np.exp(-(r_in @ params.receptance.weight)))) @ params.value.weight.T
            dpre = dhidden * (k_in @ params.key.weight > 0)
            return dparams._replace(key=Linear(np.einsum("btd,bth->dh", k_in, dpre), None)), dx

        return out, with_slope_one

    report = check_gradients(wrong, channel_mix(), X)
    assert {a.path for a in report.arguments if a.error > 1e-2} == {"params.key.weight"}


@pytest.mark.parity
def test_it_is_hugging_face_s():
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.rwkv.modeling_rwkv")
    from transformers import RwkvConfig

    module = modeling.RwkvFeedForward(RwkvConfig(vocab_size=8, hidden_size=4, intermediate_size=7, num_hidden_layers=1), 0).double()
    params = channel_mix()
    names = {"time_mix_key": params.key_mix, "time_mix_receptance": params.receptance_mix, "key.weight": params.key.weight.T,
             "receptance.weight": params.receptance.weight.T, "value.weight": params.value.weight.T}  # fmt: skip
    module.load_state_dict({k: torch.tensor(np.array(v)).reshape(module.state_dict()[k].shape) for k, v in names.items()})
    x = torch.tensor(X, requires_grad=True)
    theirs = module(x)[0]
    out, backward = rwkv_channel_mix(params, X)
    np.testing.assert_allclose(out, theirs.detach(), rtol=0, atol=1e-9)
    theirs.backward(torch.tensor(np.cos(out), dtype=theirs.dtype))
    np.testing.assert_allclose(backward(np.cos(out))[1], x.grad, rtol=0, atol=1e-9)
