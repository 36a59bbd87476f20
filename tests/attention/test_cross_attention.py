"""Cross-attention: one query at a time, what padding of the memory may change, and gradients that meet in the memory."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.core import softmax_attention
from minitransformers.attention.cross_attention import CrossAttention, cross_attention, cross_attention_step, init_cross_attention
from minitransformers.attention.masks import padding_mask
from minitransformers.attention.multi_head_attention import MultiHeadAttention, multi_head_attention
from minitransformers.attention.prepare import on_both, unprepared
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.attention.softmax_off_by_one import SoftmaxOffByOne, softmax_off_by_one_attention
from minitransformers.basics.chain import chain
from minitransformers.basics.linear import Linear
from minitransformers.foundation import assert_gradients, check_gradients, trees, trusted
from minitransformers.norms.qk_norm import QkNorm, qk_norm
from minitransformers.positional.rope import rope


def random_params(rng, d_model=6, d_memory=5, d_heads=4):
    shapes = (d_model, d_heads), (d_memory, d_heads), (d_memory, d_heads), (d_heads, d_model)
    return CrossAttention(*(Linear(rng.normal(size=s) / 2, rng.normal(size=s[1])) for s in shapes))


def textbook_attention(params, x, memory, bias, allowed, num_heads, scale=None):
    """One query of one head at a time over the keys that it may see."""
    (w_query, b_query), (w_key, b_key), (w_value, b_value), (w_output, b_output) = params
    d = w_query.shape[1] // num_heads
    sequences = []
    for b in range(len(x)):
        rows = []
        for i in range(x.shape[1]):
            heads = []
            for h in range(num_heads):
                own = slice(h * d, (h + 1) * d)
                query = x[b, i] @ w_query[:, own] + b_query[own]
                total, mixed = 0.0, 0.0
                for j in np.flatnonzero(allowed[b, h, i]):
                    score = anp.sum(query * (memory[b, j] @ w_key[:, own] + b_key[own])) * (d**-0.5 if scale is None else scale)
                    term = anp.exp(score + bias[b, h, i, j])
                    total, mixed = total + term, mixed + term * (memory[b, j] @ w_value[:, own] + b_value[own])
                heads.append(mixed / total)
            rows.append(anp.concatenate(heads) @ w_output + b_output)
        sequences.append(anp.stack(rows))
    return anp.stack(sequences)


@pytest.mark.parametrize(("num_heads", "scale"), [(1, None), (2, None), (4, None), (2, 0.3)])
def test_equals_one_query_at_a_time_and_its_gradients(num_heads, scale):
    rng = np.random.default_rng(0)
    params, x, memory = random_params(rng), rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 4, 5))
    bias, dout = rng.normal(size=(2, num_heads, 3, 4)), rng.normal(size=(2, 3, 6))
    mask = rng.random((2, num_heads, 3, 4)) < 0.7
    mask[..., 0] = True
    out, backward = cross_attention(params, x, memory, bias, num_heads=num_heads, mask=mask, core=partial(softmax_attention, scale=scale))
    plain = tuple(tuple(part) for part in params[:4])
    np.testing.assert_allclose(out, textbook_attention(plain, x, memory, bias, mask, num_heads, scale), rtol=0, atol=1e-12)
    loss = lambda *a: anp.sum(dout * textbook_attention(*a, mask, num_heads, scale))  # noqa: E731
    expected = autograd.grad(loss, (0, 1, 2, 3))(plain, x, memory, bias)
    for (path, own), (_, theirs) in zip(trees.leaves(backward(dout)), trees.leaves(expected), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-11, err_msg=path)


def test_a_sequence_as_its_own_memory_is_self_attention_and_the_two_gradients_add_up():
    rng = np.random.default_rng(1)
    params, x, dout = random_params(rng, 6, 6), rng.normal(size=(2, 4, 6)), rng.normal(size=(2, 4, 6))
    out, backward = cross_attention(params, x, x, num_heads=2)
    expected, self_backward = multi_head_attention(MultiHeadAttention(*params), x, num_heads=2, core=softmax_attention)
    np.testing.assert_array_equal(out, expected)
    _, dx, dmemory, _ = backward(dout)
    np.testing.assert_allclose(dx + dmemory, self_backward(dout)[1], rtol=0, atol=1e-13)


@pytest.mark.parametrize(("d_heads", "d_values"), [(4, 6), (6, 4)])
def test_heads_must_divide_the_queries_and_the_values(d_heads, d_values):
    params = CrossAttention(*(Linear(np.ones(s), None) for s in ((6, d_heads), (5, d_heads), (5, d_values), (d_values, 6))))
    with pytest.raises(ValueError, match="num_heads"):
        cross_attention(params, np.ones((2, 3, 6)), np.ones((2, 4, 5)), num_heads=3)


def test_every_query_sees_the_whole_memory():
    """Nothing is causal between two sequences: the first query already depends on the last key."""
    rng = np.random.default_rng(2)
    params, x, memory = random_params(rng), rng.normal(size=(1, 3, 6)), rng.normal(size=(1, 4, 5))
    _, backward = cross_attention(params, x, memory, num_heads=2)
    dout = np.zeros_like(x)
    dout[:, 0] = rng.normal(size=6)
    assert backward(dout)[2].all()


def test_padding_of_the_memory_changes_nothing_and_gets_no_gradient():
    rng = np.random.default_rng(3)
    params, x, memory = random_params(rng), rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 4, 5))
    call = partial(cross_attention, params, x, num_heads=2, mask=padding_mask(np.array([4, 2]), 4))
    out, backward = call(memory)
    refilled = memory.copy()
    refilled[1, 2:] = rng.normal(size=(2, 5))
    np.testing.assert_array_equal(call(refilled)[0], out)
    dmemory = backward(rng.normal(size=out.shape))[2]
    assert not dmemory[1, 2:].any() and dmemory[0].all()


def test_the_order_of_the_memory_does_not_matter():
    rng = np.random.default_rng(4)
    params, x, memory = random_params(rng), rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 4, 5))
    np.testing.assert_allclose(
        cross_attention(params, x, memory[:, [2, 0, 3, 1]], num_heads=2)[0], cross_attention(params, x, memory, num_heads=2)[0], atol=1e-14
    )


def two_layer_decoder(layers, x, memory):
    """Two cross-attentions on a residual stream, both reading the same memory."""
    middle, first_backward = cross_attention(layers[0], x, memory, num_heads=2)
    middle = x + middle
    out, second_backward = cross_attention(layers[1], middle, memory, num_heads=2)

    def backward(dout):
        dsecond, dmiddle, dmemory_second, _ = second_backward(dout)
        dmiddle = dout + dmiddle
        dfirst, dx, dmemory_first, _ = first_backward(dmiddle)
        return [dfirst, dsecond], dmiddle + dx, dmemory_first + dmemory_second

    return middle + out, backward


def test_the_memory_gets_the_sum_of_what_every_layer_sends_it():
    rng = np.random.default_rng(5)
    assert_gradients(two_layer_decoder, [random_params(rng), random_params(rng)], rng.normal(size=(1, 3, 6)), rng.normal(size=(1, 4, 5)))


def test_the_checker_refuses_a_memory_gradient_through_the_values_alone():
    rng = np.random.default_rng(6)
    params, x, memory = random_params(rng), rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 4, 5))

    def split(features):
        return features.reshape(*features.shape[:2], 2, 2).swapaxes(1, 2)

    def values_alone(params, x, memory):
        out, backward = cross_attention(params, x, memory, num_heads=2)
        query, key, value = (split(y @ part.weight + part.bias) for part, y in zip(params[:3], (x, memory, memory), strict=True))
        _, core_backward = scaled_dot_product_attention(query, key, value)

        def wrong_backward(dout):
            dparams, dx, _, _ = backward(dout)
            _, _, dvalue, _ = core_backward(split(dout @ params.output.weight.T))
            return dparams, dx, dvalue.swapaxes(1, 2).reshape(2, 4, 4) @ params.value.weight.T

        return out, wrong_backward

    report = check_gradients(values_alone, params, x, memory)
    assert not report.passed
    assert [a.path for a in report.arguments if a.cause] == ["memory"]
    assert "a term is missing" in report.worst.cause


def test_steps_over_a_memory_equal_the_whole_and_project_it_once():
    rng = np.random.default_rng(7)
    params, x, memory = random_params(rng), rng.normal(size=(2, 5, 6)), rng.normal(size=(2, 4, 5))
    mask = padding_mask(np.array([4, 3]), 4)
    expected, _ = cross_attention(params, x, memory, num_heads=2, mask=mask)
    out, state = cross_attention_step(params, x[:, :2], None, memory=memory, num_heads=2, mask=mask)
    pieces, first = [out], state
    for t in range(2, 5):
        out, state = cross_attention_step(params, x[:, t : t + 1], state, num_heads=2, mask=mask)
        pieces.append(out)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), expected, rtol=0, atol=1e-13)
    assert state.length == 5 and first.length == 2
    assert state.key is first.key and state.value is first.value


NORMED = {"prepare": partial(chain, parts=(qk_norm, on_both(rope))), "core": softmax_off_by_one_attention}


def with_slots(rng):
    return random_params(rng, d_heads=4)._replace(prepare=(QkNorm(*rng.normal(size=(2, 2))), None), core=SoftmaxOffByOne(rng.normal(size=2)))


def test_what_prepare_and_core_learn_gets_its_gradient():
    rng = np.random.default_rng(11)
    sequences = rng.normal(size=(1, 2, 6)), rng.normal(size=(1, 3, 5))
    report = trusted(check_gradients)(cross_attention, with_slots(rng), *sequences, num_heads=2, second_opinion=False, **NORMED)
    assert report.passed, str(report)
    learned = {"params.prepare.0.query_gain", "params.prepare.0.key_gain", "params.core.sink"}
    assert learned <= {argument.path for argument in report.arguments}


@pytest.mark.parametrize("sizes", [[1] * 5, [5], [2, 1, 2]])
def test_steps_prepare_the_memory_once_and_every_query_at_its_own_place(sizes):
    rng = np.random.default_rng(12)
    params, x, memory = with_slots(rng), rng.normal(size=(2, 5, 6)), rng.normal(size=(2, 4, 5))
    expected, _ = cross_attention(params, x, memory, num_heads=2, **NORMED)
    state, pieces, start = None, [], 0
    for size in sizes:
        out, state = cross_attention_step(params, x[:, start : start + size], state, num_heads=2, memory=memory, **NORMED)
        pieces.append(out)
        start += size
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), expected, rtol=0, atol=1e-13)


def test_a_prepare_is_told_the_positions_none_for_whole_sequences():
    seen = []

    def told(params, query, key, *, positions):
        seen.append(positions)
        return unprepared(params, query, key, positions=positions)

    params, x, memory = random_params(np.random.default_rng(13)), np.ones((1, 3, 6)), np.ones((1, 4, 5))
    cross_attention(params, x, memory, num_heads=2, prepare=told)
    _, state = cross_attention_step(params, x, None, memory=memory, num_heads=2, prepare=told)
    cross_attention_step(params, x[:, :2], state, num_heads=2, prepare=told)
    assert [None if p is None else p.tolist() for p in seen] == [None, None, [0, 1, 2], [3, 4]]  # the memory's, then the queries'


def test_what_is_learned_for_another_number_of_heads_is_refused_even_where_it_would_broadcast():
    params = random_params(np.random.default_rng(14))._replace(core=SoftmaxOffByOne(np.ones(4)))
    with pytest.raises(ValueError, match=r"params\.core\.sink: got 4 heads"):
        cross_attention(params, np.ones((2, 3, 6)), np.ones((2, 4, 5)), num_heads=2, core=softmax_off_by_one_attention)


@pytest.mark.parametrize("argument", ["mask", "bias"])
def test_a_mask_or_a_bias_does_not_add_axes_to_the_output(argument):
    params, more = random_params(np.random.default_rng(15)), np.ones((5, 1, 1, 3, 4), bool if argument == "mask" else float)
    with pytest.raises(ValueError, match=rf"{argument}: got shape \(5, 1, 1, 3, 4\), wants a shape that broadcasts to the scores"):
        cross_attention(params, np.ones((2, 3, 6)), np.ones((2, 4, 5)), num_heads=2, **{argument: more})


def test_the_first_step_needs_the_memory():
    with pytest.raises(ValueError, match="memory"):
        cross_attention_step(random_params(np.random.default_rng(8)), np.ones((1, 1, 6)), None, num_heads=2)


def test_fresh_weights_read_the_width_of_the_memory():
    params = init_cross_attention(np.random.default_rng(9), 64, num_heads=4, d_memory=256, residual_std=0.01)
    assert [part.weight.shape for part in params[:4]] == [(64, 64), (256, 64), (256, 64), (64, 64)]
    np.testing.assert_allclose([part.weight.std() for part in params[:4]], [1 / 8, 1 / 16, 1 / 16, 0.01], rtol=0.05)


@pytest.mark.parity
def test_equals_torch_with_another_width_of_the_memory():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(10)
    params, x, memory, dout = (
        random_params(rng, 6, 5, 6), rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 4, 5)), rng.normal(size=(2, 3, 6))
    )  # fmt: skip
    real = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
    module = torch.nn.MultiheadAttention(6, 3, kdim=5, vdim=5, batch_first=True, dtype=torch.float64)
    projections = module.q_proj_weight, module.k_proj_weight, module.v_proj_weight, module.out_proj.weight
    with torch.no_grad():
        for part, weight in zip(params[:4], projections, strict=True):
            weight.copy_(torch.tensor(part.weight.T))
        module.in_proj_bias.copy_(torch.tensor(np.concatenate([part.bias for part in params[:3]])))
        module.out_proj.bias.copy_(torch.tensor(params.output.bias))
    inputs, memories = torch.tensor(x, requires_grad=True), torch.tensor(memory, requires_grad=True)
    theirs, _ = module(inputs, memories, memories, key_padding_mask=torch.tensor(~real))  # True hides, in torch
    theirs.backward(torch.tensor(dout))
    out, backward = cross_attention(params, x, memory, num_heads=3, mask=real[:, None, None, :])
    dparams, dx, dmemory, _ = backward(dout)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-11)
    np.testing.assert_allclose(dx, inputs.grad.numpy(), rtol=0, atol=1e-11)
    np.testing.assert_allclose(dmemory, memories.grad.numpy(), rtol=0, atol=1e-11)
    for own, weight in zip(dparams[:4], projections, strict=True):
        np.testing.assert_allclose(own.weight.T, weight.grad.numpy(), rtol=0, atol=1e-11)
    np.testing.assert_allclose(np.concatenate([p.bias for p in dparams[:3]]), module.in_proj_bias.grad.numpy(), rtol=0, atol=1e-11)
