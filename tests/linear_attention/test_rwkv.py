"""RWKV-4's time mixing: written out, step by step, in a language model, and beside Hugging Face's."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.linear import Linear
from minitransformers.foundation import assert_gradients, check_gradients
from minitransformers.linear_attention.rwkv import Rwkv, RwkvState, init_rwkv, rwkv, rwkv_step
from minitransformers.linear_attention.wkv import WkvState, wkv
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model, language_model, language_model_step

X = np.random.default_rng(9).normal(size=(2, 6, 4))


def time_mix(seed=0):
    rng = np.random.default_rng(seed)
    mixes, maps = rng.uniform(size=(3, 4)), [Linear(rng.normal(size=s) / 2, None) for s in ((4, 5), (4, 5), (4, 5), (5, 4))]
    return Rwkv(mixes[0], mixes[1], mixes[2], *maps[:3], rng.normal(size=5), rng.normal(size=5), maps[3])


def shifted(mix, x):
    return mix * x + (1 - mix) * anp.concatenate([0 * x[:, :1], x[:, :-1]], axis=1)


def textbook_time_mix(mix_r, mix_k, mix_v, W_r, W_k, W_v, log_decay, bonus, W_o, x):
    """Equations 11 to 17 of the paper, each sum over the past by itself."""
    r, k, v = (shifted(mix, x) @ W for mix, W in ((mix_r, W_r), (mix_k, W_k), (mix_v, W_v)))
    rows = []
    for t in range(x.shape[1]):
        weights = [anp.exp(-(t - 1 - i) * anp.exp(log_decay) + k[:, i]) for i in range(t)] + [anp.exp(bonus + k[:, t])]
        mean = sum(w * v[:, i] for i, w in enumerate(weights)) / sum(weights)
        rows.append((mean / (1 + anp.exp(-r[:, t]))) @ W_o)
    return anp.stack(rows, axis=1)


def flat(params):
    return [p.weight if isinstance(p, Linear) else p for p in params]


def test_it_is_the_textbook_and_its_gradients_are_autograd_s():
    args, naive = [*flat(time_mix()), X], textbook_time_mix
    out, backward = rwkv(time_mix(), X)
    dout = np.cos(out)
    np.testing.assert_allclose(out, naive(*args), rtol=0, atol=1e-10)
    expected = autograd.grad(lambda *a: anp.sum(dout * naive(*a)), tuple(range(len(args))))(*args)
    dparams, dx = backward(dout)[:2]
    for own, theirs in zip([*flat(dparams), dx], expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)


def test_any_recurrence_of_that_form_gives_the_same():
    np.testing.assert_allclose(rwkv(time_mix(), X, core=wkv)[0], rwkv(time_mix(), X)[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("sizes", [[1] * 6, [6], [2, 1, 3]])
def test_step_by_step_is_the_whole_and_the_state_does_not_grow(sizes):
    params, state, outs, kept = time_mix(), None, [], set()
    for start, size in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
        out, state = rwkv_step(params, X[:, start : start + size], state)
        outs.append(out)
        kept.add(sum(a.size for a in (state.past, *state.wkv)))
    np.testing.assert_allclose(np.concatenate(outs, axis=1), rwkv(params, X)[0], rtol=0, atol=1e-12)
    assert kept == {2 * (4 + 5 + 5)}


def test_the_future_has_no_influence_and_gets_no_gradient():
    out, backward = rwkv(time_mix(), X)
    other = X.copy()
    other[:, 4:] = 7
    np.testing.assert_allclose(rwkv(time_mix(), other)[0][:, :4], out[:, :4], rtol=0, atol=1e-13)
    dout = np.cos(out)
    dout[:, 4:] = 0
    assert not backward(dout)[1][:, 4:].any()


def test_a_closed_gate_lets_nothing_out():
    params = time_mix()
    closed = params._replace(receptance=Linear(np.full((4, 5), -1e4), None))
    assert np.abs(rwkv(closed, np.abs(X))[0]).max() < 1e-12


def test_it_starts_with_rates_and_mixes_spread_over_the_channels():
    rng = np.random.default_rng(0)
    time = init_rwkv(rng, 4, dtype=np.float64)
    assert_gradients(rwkv, time, X)
    assert init_rwkv(rng, 1).key.weight.dtype == np.float32
    assert np.all(np.diff(time.log_decay) > 0) and time.log_decay[0] == -5 and time.log_decay[-1] == pytest.approx(3)


def test_it_is_a_mixer_of_the_workbench_and_decodes_in_it():
    config = LanguageModelConfig(vocabulary_size=7, context=8, d_model=6, num_layers=2, mixer="rwkv", position="none")
    params = init_language_model(np.random.default_rng(0), config, dtype=np.float64)
    ids = np.random.default_rng(1).integers(7, size=(2, 6))
    whole, state, logits = language_model(params, ids=ids, config=config)[0], None, []
    for t in range(6):
        step, state = language_model_step(params, ids=ids[:, t : t + 1], state=state, config=config)
        logits.append(step)
    np.testing.assert_allclose(np.concatenate(logits, axis=1), whole, rtol=0, atol=1e-10)


def test_a_state_of_another_batch_is_refused():
    params = time_mix()
    state = rwkv_step(params, X, None)[1]
    with pytest.raises(ValueError, match=r"state\.past: got shape"):
        rwkv_step(params, X[:1], state)
    other = RwkvState(state.past, WkvState(state.wkv.mean[:, :3], state.wkv.log_total[:, :3]))
    with pytest.raises(ValueError, match=r"state\.wkv\.mean: got shape"):
        rwkv_step(params, X, other)


def test_the_checker_refuses_a_rate_that_forgets_that_it_is_an_exponential():
    def wrong(params, x):
        out, backward = rwkv(params, x)

        def without_the_chain(dout):
            dparams, dx = backward(dout)
            return dparams._replace(log_decay=dparams.log_decay / np.exp(params.log_decay)), dx

        return out, without_the_chain

    report = check_gradients(wrong, time_mix(), X)
    assert {a.path for a in report.arguments if a.error > 1e-2} == {"params.log_decay"}


@pytest.mark.parity
def test_it_is_hugging_face_s():
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.rwkv.modeling_rwkv")
    from transformers import RwkvConfig

    module = modeling.RwkvSelfAttention(RwkvConfig(vocab_size=8, hidden_size=4, attention_hidden_size=5, num_hidden_layers=1), 0).double()
    params = time_mix()
    names = {"time_decay": params.log_decay, "time_first": params.bonus, "time_mix_key": params.key_mix, "time_mix_value": params.value_mix,
             "time_mix_receptance": params.receptance_mix, "key.weight": params.key.weight.T, "value.weight": params.value.weight.T,
             "receptance.weight": params.receptance.weight.T, "output.weight": params.output.weight.T}  # fmt: skip
    module.load_state_dict({k: torch.tensor(np.array(v)).reshape(module.state_dict()[k].shape) for k, v in names.items()})
    x = torch.tensor(X, requires_grad=True)
    theirs = module(x)[0]
    out, backward = rwkv(params, X)
    np.testing.assert_allclose(out, theirs.detach(), rtol=0, atol=1e-5)  # its WKV keeps a state in float32
    theirs.backward(torch.tensor(np.cos(out), dtype=theirs.dtype))
    np.testing.assert_allclose(backward(np.cos(out))[1], x.grad, rtol=0, atol=1e-5)
