"""Gates on heads: what each head has read is multiplied, and the slope by a gate says how much the loss hangs on the head."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from changed_models import IDS, checked

from minitransformers import trees
from minitransformers.attention.banded_attention_blocks import banded_attention_blocks
from minitransformers.attention.core import causal_attention
from minitransformers.attention.grouped_query_attention import grouped_query_attention, init_grouped_query_attention
from minitransformers.attention.multi_head_attention import (
    init_multi_head_attention,
    multi_head_attention,
    multi_head_attention_step,
)
from minitransformers.attention.softmax_off_by_one import SoftmaxOffByOne, softmax_off_by_one_attention
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.compression.gated_heads import HeadGates, gated_heads
from minitransformers.foundation import assert_gradients, check_gradients
from minitransformers.models.gpt2 import gpt2, gpt2_weights, init_gpt2
from minitransformers.models.llama import init_llama, llama

RNG = np.random.default_rng(0)
QUERY, KEY, VALUE = RNG.normal(size=(2, 3, 4, 5)), RNG.normal(size=(2, 3, 4, 5)), RNG.normal(size=(2, 3, 4, 7))
DOUT = RNG.normal(size=(2, 3, 4, 7))


def textbook(gates, query, key, value):
    """One query of one head of one text at a time; gates (heads,) or (texts, heads)."""
    texts = []
    for n in range(len(query)):
        heads = []
        for h in range(query.shape[1]):
            gate, rows = gates[n, h] if gates.ndim == 2 else gates[h], []
            for i in range(query.shape[2]):
                powers = [anp.exp(anp.sum(query[n, h, i] * key[n, h, j]) / query.shape[3] ** 0.5) for j in range(i + 1)]
                read = sum(power * value[n, h, j] for j, power in enumerate(powers)) / sum(powers)
                rows.append(gate * read)
            heads.append(anp.stack(rows))
        texts.append(anp.stack(heads))
    return anp.stack(texts)


@pytest.mark.parametrize("shape", [(3,), (2, 3)], ids=["gates of all texts", "gates of each text"])
def test_it_is_each_head_times_its_gate_and_its_gradients_are_autograd_s(shape):
    gates = RNG.normal(size=shape)
    out, backward = gated_heads(HeadGates(gates), QUERY, KEY, VALUE)
    np.testing.assert_allclose(out, textbook(gates, QUERY, KEY, VALUE), rtol=0, atol=1e-10)
    expected = autograd.grad(lambda *a: anp.sum(DOUT * textbook(*a)), (0, 1, 2, 3))(gates, QUERY, KEY, VALUE)
    (dgates, _), *dothers, dbias = backward(DOUT)
    assert dbias is None
    for own, theirs in zip((dgates, *dothers), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("gates", [np.array([0.5, 0.0, -2.0]), RNG.normal(size=(2, 3)), RNG.normal(size=(1, 3))], ids=np.shape)
def test_gradients_match_differences_with_a_core_inside_that_learns(gates):
    params = HeadGates(gates, SoftmaxOffByOne(RNG.normal(size=3)))
    assert_gradients(gated_heads, params, QUERY, KEY, VALUE, RNG.normal(size=(2, 3, 4, 4)), core=softmax_off_by_one_attention)


def test_gates_of_one_change_nothing():
    out, backward = gated_heads(HeadGates(np.ones(3)), QUERY, KEY, VALUE)
    plain, plain_backward = causal_attention(None, QUERY, KEY, VALUE)
    np.testing.assert_array_equal(out, plain)
    for own, theirs in zip(backward(DOUT)[1:], plain_backward(DOUT)[1:], strict=True):
        np.testing.assert_array_equal(own, theirs)


def test_bias_and_mask_are_those_of_the_core_inside():
    bias, mask = RNG.normal(size=(2, 3, 4, 4)), RNG.random((2, 1, 4, 4)) < 0.7
    out, _ = gated_heads(HeadGates(np.array([1.0, 2.0, -1.0])), QUERY, KEY, VALUE, bias, mask=mask)
    inside, _ = causal_attention(None, QUERY, KEY, VALUE, bias, mask=mask)
    np.testing.assert_array_equal(out, np.array([1.0, 2.0, -1.0])[:, None, None] * inside)


def test_a_gate_of_zero_silences_one_head_and_nothing_flows_back_through_it():
    out, backward = gated_heads(HeadGates(np.array([1.0, 0.0, 1.0])), QUERY, KEY, VALUE)
    dparams, dquery, dkey, dvalue, _ = backward(DOUT)
    for array in (out, dquery, dkey, dvalue):
        assert not array[:, 1].any() and array[:, 0].any() and array[:, 2].any()
    assert dparams.gates[1] != 0                             # it could be opened again


def test_a_gate_for_each_text_tells_in_one_backward_what_a_backward_for_each_text_tells():
    together = gated_heads(HeadGates(np.ones((2, 3))), QUERY, KEY, VALUE)[1](DOUT)[0].gates
    apart = [gated_heads(HeadGates(np.ones(3)), *(a[n : n + 1] for a in (QUERY, KEY, VALUE)))[1](DOUT[n : n + 1])[0].gates for n in range(2)]
    np.testing.assert_allclose(together, apart, rtol=0, atol=1e-13)
    of_all = gated_heads(HeadGates(np.ones(3)), QUERY, KEY, VALUE)[1](DOUT)[0].gates
    np.testing.assert_allclose(together.sum(axis=0), of_all, rtol=0, atol=1e-13)


def attentions():
    """Attention whose heads stand on one axis, and on two: 4 heads in 4, 2 and 1 groups."""
    rng, x = np.random.default_rng(1), np.random.default_rng(2).normal(size=(2, 3, 8))
    yield multi_head_attention, init_multi_head_attention(rng, 8, num_heads=4, dtype=np.float64), x, {"num_heads": 4}
    for groups in (4, 2, 1):
        params = init_grouped_query_attention(rng, 8, num_heads=4, num_kv_heads=groups, bias=True, dtype=np.float64)
        yield grouped_query_attention, params, x, {"num_heads": 4, "num_kv_heads": groups}


CASES = [pytest.param(*case, id=f"{case[0].__name__} {case[3].get('num_kv_heads', '')}") for case in attentions()]


@pytest.mark.parametrize(("attention", "params", "x", "sizes"), CASES)
@pytest.mark.parametrize("shape", [(4,), (2, 4)], ids=["all", "each"])
def test_in_an_attention_a_gate_acts_as_a_factor_of_the_head_s_rows_of_the_output(attention, params, x, sizes, shape):
    gates = np.random.default_rng(3).normal(size=shape)
    out, _ = attention(params._replace(core=HeadGates(gates)), x, core=gated_heads, **sizes)
    for n in range(2):
        factors = np.repeat(gates if gates.ndim == 1 else gates[n], 2)[:, None]
        folded = params._replace(output=params.output._replace(weight=factors * params.output.weight))
        np.testing.assert_allclose(out[n], attention(folded, x[n], **sizes)[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize(("attention", "params", "x", "sizes"), CASES)
def test_the_slope_stands_in_the_gradient_of_the_output_s_weight(attention, params, x, sizes):
    """<C_h, dC_h> = <R_h, dR_h>, of the head's rows R_h: no gate is needed to know the slope of a batch."""
    out, backward = attention(params._replace(core=HeadGates(np.ones(4))), x, core=gated_heads, **sizes)
    dparams = backward(np.random.default_rng(4).normal(size=out.shape))[0]
    of_rows = (params.output.weight * dparams.output.weight).reshape(4, -1).sum(axis=1)
    np.testing.assert_allclose(dparams.core.gates, of_rows, rtol=0, atol=1e-13)


def test_a_head_that_the_output_does_not_read_has_slope_exactly_zero():
    _, params, x, sizes = next(attentions())
    weight = params.output.weight.copy()
    weight[2:4] = 0
    params = params._replace(output=params.output._replace(weight=weight), core=HeadGates(np.ones(4)))
    out, backward = multi_head_attention(params, x, core=gated_heads, **sizes)
    dgates = backward(np.random.default_rng(5).normal(size=out.shape))[0].core.gates
    assert dgates[1] == 0 and np.all(dgates[[0, 2, 3]] != 0)


def test_steps_of_decoding_have_the_gates_too():
    _, params, x, _ = next(attentions())
    params = params._replace(core=HeadGates(np.array([[1.0, 0.0, 0.5, 2.0], [0.0, 1.0, 1.0, 1.0]])))
    whole, _ = multi_head_attention(params, x, num_heads=4, core=gated_heads)
    state, steps = None, []
    for i in range(3):
        out, state = multi_head_attention_step(params, x[:, i : i + 1], state, num_heads=4, core=gated_heads)
        steps.append(out)
    np.testing.assert_allclose(np.concatenate(steps, axis=1), whole, rtol=0, atol=1e-13)


def with_gates(params, gates):
    """The model with these gates in its layers, (layers, heads) or (layers, texts, heads)."""
    blocks = [b._replace(attention=b.attention._replace(core=HeadGates(own))) for b, own in zip(params.blocks, gates, strict=True)]
    return params._replace(blocks=blocks)


def whole_models():
    rng = np.random.default_rng(6)
    sizes = {"vocabulary": 5, "d_model": 8, "num_layers": 2, "num_heads": 4, "std": 0.5, "dtype": np.float64}
    yield "gpt2", init_gpt2(rng, context=3, **sizes), partial(gpt2, ids=IDS, num_heads=4, core=gated_heads)
    llama_params = init_llama(rng, num_kv_heads=2, d_hidden=3, **sizes)
    yield "llama", llama_params, partial(llama, ids=IDS, num_heads=4, core=gated_heads)
    in_window = partial(gated_heads, core=partial(banded_attention_blocks, window=2))
    yield "mistral", llama_params, partial(llama, ids=IDS, num_heads=4, window=2, core=in_window)


@pytest.mark.parametrize(("params", "run"), [pytest.param(*case[1:], id=case[0]) for case in whole_models()])
def test_gates_fit_into_whole_models_whose_code_is_not_touched(params, run):
    report = checked(run, with_gates(params, np.random.default_rng(7).normal(size=(2, 4))))
    assert report.passed, str(report)


def lost(run, params, gates, targets):
    """The cross-entropy of a gated model, summed over the texts, and the slopes by its gates."""
    logits, backward = run(with_gates(params, gates))
    loss, loss_backward = cross_entropy(logits, targets=targets, reduction="sum")
    return loss, np.stack([block.attention.core.gates for block in backward(loss_backward(np.ones(()))).blocks])


def test_to_first_order_the_loss_changes_by_the_slope():
    _, params, run = next(whole_models())
    targets, gates = np.array([[4, 0, 2], [2, 3, 1]]), np.ones((2, 4))
    loss, slopes = lost(run, params, gates, targets)
    for place in np.ndindex(2, 4):
        errors = []
        for step in (1e-2, 5e-3):
            moved = gates.copy()
            moved[place] -= step
            errors.append(abs(lost(run, params, moved, targets)[0] - loss + step * slopes[place]))
        assert errors[1] < 0.3 * errors[0]                   # what is left falls with the square of the step


def test_gates_of_each_text_are_those_of_the_texts_by_themselves_in_a_whole_model():
    _, params, run = next(whole_models())
    targets = np.array([[4, 0, 2], [2, 3, 1]])
    loss, together = lost(run, params, np.ones((2, 2, 4)), targets)  # (layers, texts, heads)
    apart = [lost(partial(run, ids=IDS[n : n + 1]), params, np.ones((2, 4)), targets[n : n + 1]) for n in range(2)]
    np.testing.assert_allclose(loss, sum(one for one, _ in apart), rtol=0, atol=1e-12)
    np.testing.assert_allclose(together, np.stack([slopes for _, slopes in apart], axis=1), rtol=0, atol=1e-12)


def open_to_all(params, *arrays, **config):
    """The slope is right, but the context's gradient passes as if every gate were 1."""
    out, backward = gated_heads(params, *arrays, **config)
    plain = causal_attention(None, *arrays)[1]
    return out, lambda dout: (backward(dout)[0], *plain(dout)[1:])


def by_what_comes_out(params, *arrays, **config):
    """The slope taken from the output, which the gate has multiplied already."""
    out, backward = gated_heads(params, *arrays, **config)
    return out, lambda dout: (HeadGates(np.sum(out * dout, axis=(0, 2, 3))), *backward(dout)[1:])


@pytest.mark.parametrize("wrong", [open_to_all, by_what_comes_out])
def test_the_check_refuses_a_backward_that_is_right_at_gates_of_one_alone(wrong):
    arrays, (ones, others) = (QUERY, KEY, VALUE), (HeadGates(np.ones(3)), HeadGates(np.array([0.5, 0.0, -2.0])))
    for own, theirs in zip(trees.leaves(wrong(ones, *arrays)[1](DOUT)), trees.leaves(gated_heads(ones, *arrays)[1](DOUT)), strict=True):
        np.testing.assert_allclose(own[1], theirs[1], rtol=0, atol=1e-13)
    assert not check_gradients(wrong, others, *arrays).passed


def test_gates_that_do_not_fit_are_refused():
    for shape in [(4,), (1,), (3, 3), (1, 2, 3)]:
        with pytest.raises(ValueError, match=r"params\.gates: got shape"):
            gated_heads(HeadGates(np.ones(shape)), QUERY, KEY, VALUE)
    with pytest.raises(ValueError, match=r"params\.gates: got numbers from nan"):
        gated_heads(HeadGates(np.array([1.0, np.nan, 1.0])), QUERY, KEY, VALUE)
    with pytest.raises(ValueError, match=r"params\.core\.gates: got 8 heads, wants num_heads = 4"):
        _, params, x, _ = next(attentions())
        multi_head_attention(params._replace(core=HeadGates(np.ones(8))), x, num_heads=4, core=gated_heads)


@pytest.mark.parity
def test_slopes_are_those_of_gates_in_hugging_face_s_gpt2():
    """The gates multiply what goes into the output map; PyTorch differentiates."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    rng = np.random.default_rng(8)
    params = init_gpt2(rng, vocabulary=5, context=3, d_model=8, num_layers=2, num_heads=4, std=0.5, dtype=np.float64)
    settings = {"vocab_size": 5, "n_positions": 3, "n_embd": 8, "n_layer": 2, "n_head": 4}
    settings |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings, attn_implementation="eager")).double()
    theirs.load_state_dict({name: torch.tensor(array) for name, array in gpt2_weights(params).items()}, strict=False)
    gates = torch.ones(2, 2, 4, dtype=torch.float64, requires_grad=True)  # (layers, texts, heads)
    for layer, block in enumerate(theirs.transformer.h):
        block.attn.c_proj.register_forward_pre_hook(lambda module, given, own=layer: given[0] * gates[own].repeat_interleave(2, dim=-1)[:, None])
    targets = np.array([[4, 0, 2], [2, 3, 1]])
    logits = theirs(torch.tensor(IDS)).logits
    torch.nn.functional.cross_entropy(logits.reshape(-1, 5), torch.tensor(targets).reshape(-1), reduction="sum").backward()
    _, slopes = lost(partial(gpt2, ids=IDS, num_heads=4, core=gated_heads), params, np.ones((2, 2, 4)), targets)
    np.testing.assert_allclose(slopes, gates.grad.numpy(), rtol=0, atol=1e-9)
