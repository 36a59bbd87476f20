"""Grouped-query attention: neighbours share a key head, its gradient is the group's sum, and both ends of the range are known."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.core import causal, causal_attention
from minitransformers.attention.gaussian_kernel_attention import GaussianKernel, gaussian_kernel_attention
from minitransformers.attention.grouped_query_attention import (
    GroupedQueryAttention,
    grouped_query_attention,
    grouped_query_attention_step,
    init_grouped_query_attention,
    pool_heads,
)
from minitransformers.attention.masks import causal_mask
from minitransformers.attention.multi_head_attention import MultiHeadAttention, init_multi_head_attention, multi_head_attention
from minitransformers.attention.polynomial_attention import PolynomialAttention, polynomial_attention
from minitransformers.attention.prepare import on_both, unprepared
from minitransformers.attention.scalable_softmax import ScalableSoftmax, scalable_softmax_attention
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.attention.softmax_off_by_one import SoftmaxOffByOne, softmax_off_by_one_attention
from minitransformers.basics.chain import chain
from minitransformers.basics.linear import Linear
from minitransformers.foundation import assert_gradients, check_gradients, trees, trusted
from minitransformers.positional.rope import rope


def random_params(rng, num_heads=4, num_kv_heads=2, d_model=5, d_head=2, d_value=3):
    shapes = (d_model, num_heads * d_head), (d_model, num_kv_heads * d_head), (d_model, num_kv_heads * d_value), (num_heads * d_value, d_model)
    return GroupedQueryAttention(*(Linear(rng.normal(size=s) / 2, rng.normal(size=s[1])) for s in shapes))


def textbook_attention(params, x, bias, allowed, num_heads, num_kv_heads, scale=None):
    """One query head at a time; head h reads key head h // (num_heads / num_kv_heads)."""
    (w_query, b_query), (w_key, b_key), (w_value, b_value), (w_output, b_output) = params
    d, d_value = w_query.shape[1] // num_heads, w_value.shape[1] // num_kv_heads
    sequences = []
    for b in range(len(x)):
        heads = []
        for h in range(num_heads):
            g = h // (num_heads // num_kv_heads)
            query = x[b] @ w_query[:, h * d : (h + 1) * d] + b_query[h * d : (h + 1) * d]
            key = x[b] @ w_key[:, g * d : (g + 1) * d] + b_key[g * d : (g + 1) * d]
            value = x[b] @ w_value[:, g * d_value : (g + 1) * d_value] + b_value[g * d_value : (g + 1) * d_value]
            terms = anp.exp(query @ key.T * (d**-0.5 if scale is None else scale) + bias[b, h]) * allowed[b, h]
            heads.append(terms @ value / anp.sum(terms, axis=1, keepdims=True))
        sequences.append(anp.concatenate(heads, axis=1) @ w_output + b_output)
    return anp.stack(sequences)


@pytest.mark.parametrize(("num_kv_heads", "scale"), [(1, None), (2, None), (3, None), (6, None), (2, 0.3)])
def test_equals_one_head_at_a_time_and_its_gradients(num_kv_heads, scale):
    rng = np.random.default_rng(0)
    params, x, bias = random_params(rng, 6, num_kv_heads), rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 6, 3, 3))
    mask = (rng.random((2, 6, 3, 3)) < 0.6) | np.eye(3, dtype=bool)
    dout = rng.normal(size=x.shape)
    core = partial(causal_attention, scale=scale)
    out, backward = grouped_query_attention(params, x, bias, num_heads=6, num_kv_heads=num_kv_heads, mask=mask, core=core)
    plain, allowed = tuple(tuple(part) for part in params[:4]), mask & np.tri(3, dtype=bool)
    np.testing.assert_allclose(out, textbook_attention(plain, x, bias, allowed, 6, num_kv_heads, scale), rtol=0, atol=1e-12)
    loss = lambda *a: anp.sum(dout * textbook_attention(*a, allowed, 6, num_kv_heads, scale))  # noqa: E731
    expected = autograd.grad(loss, (0, 1, 2))(plain, x, bias)
    for (path, own), (_, theirs) in zip(trees.leaves(backward(dout)), trees.leaves(expected), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-11, err_msg=path)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_as_many_key_heads_as_query_heads_is_multi_head_attention_bit_for_bit(dtype):
    rng = np.random.default_rng(1)
    params = trees.cast(random_params(rng, 4, 4), dtype)
    x, bias, dout = (rng.normal(size=s).astype(dtype) for s in ((2, 7, 5), (4, 7, 7), (2, 7, 5)))
    out, backward = grouped_query_attention(params, x, bias, num_heads=4, num_kv_heads=4)
    expected, expected_backward = multi_head_attention(MultiHeadAttention(*params), x, bias, num_heads=4)
    np.testing.assert_array_equal(out, expected)
    for (path, own), (_, theirs) in zip(trees.leaves(backward(dout)), trees.leaves(expected_backward(dout)), strict=True):
        np.testing.assert_array_equal(own, theirs, err_msg=path)


def test_it_is_multi_head_attention_with_copied_keys_whose_gradients_add_up():
    rng = np.random.default_rng(2)
    params, x, dout = random_params(rng, 6, 2), rng.normal(size=(2, 4, 5)), rng.normal(size=(2, 4, 5))

    def copied(part, d):                                     # each key head three times in a row
        return Linear(
            np.repeat(part.weight.reshape(5, 2, d), 3, axis=1).reshape(5, -1), np.repeat(part.bias.reshape(2, d), 3, axis=0).ravel()
        )

    full = MultiHeadAttention(params.query, copied(params.key, 2), copied(params.value, 3), params.output)
    out, backward = grouped_query_attention(params, x, num_heads=6, num_kv_heads=2)
    expected, full_backward = multi_head_attention(full, x, num_heads=6)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-13)
    (own, dx, _), (theirs, full_dx, _) = backward(dout), full_backward(dout)
    np.testing.assert_allclose(dx, full_dx, rtol=0, atol=1e-13)
    np.testing.assert_allclose(own.key.weight, theirs.key.weight.reshape(5, 2, 3, 2).sum(2).reshape(5, -1), rtol=0, atol=1e-13)
    np.testing.assert_allclose(own.value.bias, theirs.value.bias.reshape(2, 3, 3).sum(1).ravel(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(3, 3), (1, 3), (1, 1, 1), (4, 1, 3), (1, 4, 3, 3), (2, 1, 3, 1)])
def test_a_bias_may_lack_heads_or_batch_and_gets_the_sum_over_them(shape):
    rng = np.random.default_rng(3)
    params, x, bias, dout = random_params(rng), rng.normal(size=(2, 3, 5)), rng.normal(size=shape), rng.normal(size=(2, 3, 5))
    full = np.broadcast_to(bias, (2, 4, 3, 3))
    out, backward = grouped_query_attention(params, x, bias, num_heads=4, num_kv_heads=2)
    expected, full_backward = grouped_query_attention(params, x, full, num_heads=4, num_kv_heads=2)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-14)
    dfull = full_backward(dout)[2]
    summed = [i for i, n in enumerate((1,) * (4 - len(shape)) + shape) if n == 1]
    np.testing.assert_allclose(backward(dout)[2], dfull.sum(tuple(summed), keepdims=True).reshape(shape), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("num_kv_heads", "d_keys", "d_values"), [(3, 6, 6), (2, 4, 3)])
def test_key_heads_must_divide_the_query_heads_and_the_values(num_kv_heads, d_keys, d_values):
    shapes = (5, 8), (5, d_keys), (5, d_values), (8, 5)
    params = GroupedQueryAttention(*(Linear(np.ones(s), None) for s in shapes))
    with pytest.raises(ValueError, match="num_kv_heads"):
        grouped_query_attention(params, np.ones((2, 3, 5)), num_heads=4, num_kv_heads=num_kv_heads)


def test_gradients_pass_through_the_rotation_of_the_shared_keys():
    rng = np.random.default_rng(4)
    assert_gradients(grouped_query_attention, random_params(rng), rng.normal(size=(1, 3, 5)), num_heads=4, num_kv_heads=2, prepare=on_both(rope))


def test_a_core_put_in_gets_a_group_axis_and_one_copy_of_the_keys():
    rng, seen = np.random.default_rng(5), []

    def core(params, query, key, value, bias=None, *, mask=None):
        seen.extend(a.shape for a in (query, key, value, bias, mask))
        return causal_attention(params, query, key, value, bias, mask=mask)

    params, x, bias, mask = random_params(rng, 6, 2), rng.normal(size=(2, 3, 5)), rng.normal(size=(6, 3, 3)), rng.random((2, 1, 3, 3)) < 0.7
    out, backward = grouped_query_attention(params, x, bias, num_heads=6, num_kv_heads=2, mask=mask, core=core)
    expected, expected_backward = grouped_query_attention(params, x, bias, num_heads=6, num_kv_heads=2, mask=mask)
    assert seen == [(2, 2, 3, 3, 2), (2, 2, 1, 3, 2), (2, 2, 1, 3, 3), (2, 3, 3, 3), (2, 1, 1, 3, 3)]
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(backward(x)[1], expected_backward(x)[1])


def test_pooling_takes_the_mean_of_each_group():
    rng = np.random.default_rng(6)
    params = MultiHeadAttention(*random_params(rng, 4, 4))
    pooled = pool_heads(params, num_heads=4, num_kv_heads=2)
    heads = params.key.weight.reshape(5, 4, 2)
    np.testing.assert_allclose(pooled.key.weight[:, :2], (heads[:, 0] + heads[:, 1]) / 2, rtol=0, atol=1e-15)
    np.testing.assert_allclose(pooled.value.bias[3:], params.value.bias[6:].reshape(2, 3).mean(0), rtol=0, atol=1e-15)
    assert pooled.query is params.query and pooled.output is params.output
    with pytest.raises(ValueError, match="num_kv_heads"):
        pool_heads(params, num_heads=4, num_kv_heads=3)


def test_pooling_heads_that_agree_already_changes_nothing():
    rng = np.random.default_rng(7)
    grouped, x = random_params(rng, 4, 2), rng.normal(size=(2, 3, 5))
    double = lambda part, d: Linear(np.repeat(part.weight.reshape(5, 2, d), 2, axis=1).reshape(5, -1), None)  # noqa: E731
    full = MultiHeadAttention(grouped.query, double(grouped.key, 2), double(grouped.value, 3), grouped.output)
    out, _ = grouped_query_attention(pool_heads(full, num_heads=4, num_kv_heads=2), x, num_heads=4, num_kv_heads=2)
    np.testing.assert_allclose(out, multi_head_attention(full, x, num_heads=4)[0], rtol=0, atol=1e-14)
    same = pool_heads(full, num_heads=4, num_kv_heads=4)
    np.testing.assert_array_equal(same.key.weight, full.key.weight)


def test_fresh_key_projections_are_as_narrow_as_the_groups_are_few():
    params = init_grouped_query_attention(np.random.default_rng(8), 64, num_heads=8, num_kv_heads=2, std=0.1, residual_std=0.01)
    assert [part.weight.shape for part in params[:4]] == [(64, 64), (64, 16), (64, 16), (64, 64)]
    np.testing.assert_allclose([part.weight.std() for part in params[:4]], [0.1, 0.1, 0.1, 0.01], rtol=0.05)
    with pytest.raises(ValueError, match="num_kv_heads"):
        init_grouped_query_attention(np.random.default_rng(8), 64, num_heads=8, num_kv_heads=3)


def test_the_checker_refuses_the_gradient_of_one_head_of_the_group():
    """The keys are read by every head of their group: one head's gradient is not the sum."""

    def first_of_the_group(params, query, key, value, bias=None, *, mask=None):
        copies = [np.repeat(a, query.shape[-3], axis=-3) for a in (key, value)]
        out, backward = scaled_dot_product_attention(query, *copies, mask=causal_mask(3))

        def wrong_backward(dout):
            dquery, dkey, dvalue, _ = backward(dout)
            return None, dquery, dkey[..., :1, :, :], dvalue[..., :1, :, :], None

        return out, wrong_backward

    rng = np.random.default_rng(9)
    report = check_gradients(
        partial(grouped_query_attention, num_heads=4, num_kv_heads=2, core=first_of_the_group), random_params(rng), rng.normal(size=(2, 3, 5))
    )
    assert not report.passed
    assert {a.path.split(".", 1)[-1] for a in report.arguments if a.cause} == {"key.weight", "value.weight", "value.bias", "x"}


def test_the_oracle_tells_neighbours_from_every_other_head():
    """Tiling the key heads (0 1 0 1) instead of repeating each (0 0 1 1) has the right shapes and gives another result."""
    rng = np.random.default_rng(10)
    params, x = random_params(rng, 4, 2), rng.normal(size=(2, 3, 5))

    def tiled(part, d):
        return Linear(np.tile(part.weight.reshape(5, 2, d), (1, 2, 1)).reshape(5, -1), np.tile(part.bias, 2))

    wrong, _ = multi_head_attention(
        MultiHeadAttention(params.query, tiled(params.key, 2), tiled(params.value, 3), params.output), x, num_heads=4
    )
    allowed = np.broadcast_to(np.tri(3), (2, 4, 3, 3))
    right = textbook_attention(tuple(map(tuple, params[:4])), x, np.zeros((2, 4, 3, 3)), allowed, 4, 2)
    assert np.abs(wrong - right).max() > 0.1


@pytest.mark.parity
def test_equals_torch_with_enable_gqa():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(11)
    params, x, dout = random_params(rng, 6, 2), rng.normal(size=(2, 4, 5)), rng.normal(size=(2, 4, 5))
    weights = [torch.tensor(leaf, requires_grad=True) for _, leaf in trees.leaves(params)]
    inputs = torch.tensor(x, requires_grad=True)
    query, key, value = (
        (inputs @ weights[2 * i] + weights[2 * i + 1]).unflatten(-1, (heads, -1)).transpose(1, 2) for i, heads in enumerate((6, 2, 2))
    )
    heads = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    theirs = heads.transpose(1, 2).flatten(-2) @ weights[6] + weights[7]
    theirs.backward(torch.tensor(dout))
    out, backward = grouped_query_attention(params, x, num_heads=6, num_kv_heads=2)
    dparams, dx, _ = backward(dout)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-11)
    np.testing.assert_allclose(dx, inputs.grad.numpy(), rtol=0, atol=1e-11)
    for (path, own), weight in zip(trees.leaves(dparams), weights, strict=True):
        np.testing.assert_allclose(own, weight.grad.numpy(), rtol=0, atol=1e-11, err_msg=path)


@pytest.mark.parity
def test_equals_llama_attention_of_hugging_face():
    """Rotations of half features, repeat_kv, no biases: the attention of Llama 3 and Mistral."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaAttention

    rng = np.random.default_rng(12)
    params = init_grouped_query_attention(rng, 24, num_heads=6, num_kv_heads=2, dtype=np.float64)
    x, dout = rng.normal(size=(2, 5, 24)), rng.normal(size=(2, 5, 24))
    config = transformers.LlamaConfig(hidden_size=24, num_attention_heads=6, num_key_value_heads=2, attn_implementation="sdpa")  # "eager" takes its softmax in float32
    module = LlamaAttention(config, layer_idx=0).double().eval()
    projections = (module.q_proj, module.k_proj, module.v_proj, module.o_proj)
    with torch.no_grad():
        for part, projection in zip(params[:4], projections, strict=True):
            projection.weight.copy_(torch.tensor(part.weight.T))
    inputs = torch.tensor(x, requires_grad=True)
    angles = torch.arange(5, dtype=torch.float64)[:, None] * 100.0 ** (-torch.arange(2, dtype=torch.float64) / 2)
    angles = torch.cat([angles, angles], -1)[None]
    hidden = torch.zeros(1, 1, 5, 5, dtype=torch.float64).masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -torch.inf)
    theirs = module(inputs, position_embeddings=(angles.cos(), angles.sin()), attention_mask=hidden)[0]
    theirs.backward(torch.tensor(dout))
    out, backward = grouped_query_attention(params, x, num_heads=6, num_kv_heads=2, prepare=on_both(partial(rope, base=100.0)))
    dparams, dx, _ = backward(dout)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-11)
    np.testing.assert_allclose(dx, inputs.grad.numpy(), rtol=0, atol=1e-11)
    for own, projection in zip(dparams[:4], projections, strict=True):
        np.testing.assert_allclose(own.weight.T, projection.weight.grad.numpy(), rtol=0, atol=1e-11)


def test_another_core_reaches_the_heads():
    def nothing(params, query, key, value, bias=None, *, mask=None):
        return 0 * query, None

    params = init_grouped_query_attention(np.random.default_rng(0), 4, num_heads=2, num_kv_heads=1, bias=False, dtype=np.float64)
    assert not grouped_query_attention(params, np.ones((3, 4)), num_heads=2, num_kv_heads=1, core=nothing)[0].any()


def told(seen):
    """A prepare that notes the positions it is told, which every prepare is."""

    def prepare(params, query, key, *, positions):
        seen.append(positions)
        return unprepared(params, query, key, positions=positions)

    return prepare


def test_a_prepare_is_told_the_positions_none_for_a_whole_text():
    params, x, seen = random_params(np.random.default_rng(0)), np.ones((1, 3, 5)), []
    config = {"num_heads": 4, "num_kv_heads": 2, "prepare": told(seen)}
    grouped_query_attention(params, x, **config)
    _, state = grouped_query_attention_step(params, x, None, **config)
    grouped_query_attention_step(params, x[:, :2], state, **config)
    assert seen[0] is None and seen[1].tolist() == [0, 1, 2] and seen[2].tolist() == [3, 4]


@pytest.mark.parametrize("heads", [2, 8, 3])
def test_what_is_learned_for_another_number_of_heads_is_refused_even_where_it_would_broadcast(heads):
    """A group has two heads, and two texts have eight rows of scores, but there are four heads."""
    params = random_params(np.random.default_rng(1))._replace(core=SoftmaxOffByOne(np.ones(heads)))
    with pytest.raises(ValueError, match=f"params.core.sink: got {heads} heads"):
        grouped_query_attention(params, np.ones((2, 3, 5)), num_heads=4, num_kv_heads=2, core=causal(softmax_off_by_one_attention))


@pytest.mark.parametrize("argument", ["mask", "bias"])
def test_a_mask_or_a_bias_does_not_add_axes_to_the_output(argument):
    params, more = random_params(np.random.default_rng(2)), np.ones((5, 1, 1, 3, 3), bool if argument == "mask" else float)
    with pytest.raises(ValueError, match=rf"{argument}: got shape \(5, 1, 1, 3, 3\), wants a shape that broadcasts to the scores"):
        grouped_query_attention(params, np.ones((2, 3, 5)), num_heads=4, num_kv_heads=2, **{argument: more})


def stretched(gains, query, key, *, positions=None):
    """A prepare that is linear: a gain for each feature of a head's query, and of its key."""
    return (gains[0] * query, gains[1] * key), lambda dboth: (None, gains[0] * dboth[0], gains[1] * dboth[1])


def test_a_prepare_acts_on_each_head_in_the_order_of_the_chain():
    rng = np.random.default_rng(0)
    params, x = random_params(rng), rng.normal(size=(2, 3, 5))
    gains = tuple(np.random.default_rng(1).normal(size=(2, 2)))
    query, key = (
        Linear(part.weight * np.tile(gain, heads), part.bias * np.tile(gain, heads))
        for part, gain, heads in zip((params.query, params.key), gains, (4, 2), strict=True)
    )
    call = partial(grouped_query_attention, num_heads=4, num_kv_heads=2)
    expected, _ = call(params._replace(query=query, key=key), x, prepare=on_both(rope))
    out, _ = call(params._replace(prepare=(gains, None)), x, prepare=partial(chain, parts=(stretched, on_both(rope))))
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-13)


LEARNED = {
    "scalable_softmax": (scalable_softmax_attention, lambda rng: ScalableSoftmax(*rng.normal(size=(2, 4)))),
    "softmax_off_by_one": (softmax_off_by_one_attention, lambda rng: SoftmaxOffByOne(rng.normal(size=4))),
    "polynomial_attention": (polynomial_attention, lambda rng: PolynomialAttention(rng.normal(size=3))),  # which has no axis of heads
    "gaussian_kernel_attention": (gaussian_kernel_attention, lambda rng: GaussianKernel(np.exp(rng.normal(size=4)))),
}


@pytest.mark.parametrize("name", LEARNED)
def test_what_a_core_learns_is_trained_with_the_projections(name):
    rng, (core, learn) = np.random.default_rng(13), LEARNED[name]
    params, x = random_params(rng, d_model=3, d_value=2)._replace(core=learn(rng)), rng.normal(size=(1, 3, 3))
    mask, bias = rng.random((4, 3, 3)) < 0.8, rng.normal(size=(4, 1, 3))
    call = partial(grouped_query_attention, num_heads=4, num_kv_heads=2, core=causal(core), mask=mask)
    report = trusted(check_gradients)(call, params, x, bias, second_opinion=False)
    assert report.passed, str(report)
    assert f"params.core.{params.core._fields[0]}" in [argument.path for argument in report.arguments]
    assert all(np.abs(part).max() > 1e-3 for part in call(params, x, bias)[1](rng.normal(size=x.shape))[0].core)


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
def test_learned_cores_are_those_of_multi_head_attention_with_copied_keys(name, num_kv_heads):
    rng, (core, learn) = np.random.default_rng(14), LEARNED[name]
    params, x, dout = random_params(rng, 4, num_kv_heads), *rng.normal(size=(2, 2, 5, 5))
    learned = learn(rng)

    def copied(part):
        return Linear(*(a.reshape(*a.shape[:-1], num_kv_heads, -1).repeat(4 // num_kv_heads, -2).reshape(*a.shape[:-1], -1) for a in part))

    same = MultiHeadAttention(params.query, copied(params.key), copied(params.value), params.output, core=learned)
    wanted, wanted_backward = multi_head_attention(same, x, num_heads=4, core=causal(core))
    out, backward = grouped_query_attention(params._replace(core=learned), x, num_heads=4, num_kv_heads=num_kv_heads, core=causal(core))
    np.testing.assert_allclose(out, wanted, rtol=1e-13, atol=1e-12)
    (dparams, dx, _), (wanted_dparams, wanted_dx, _) = backward(dout), wanted_backward(dout)
    np.testing.assert_allclose(dx, wanted_dx, rtol=1e-12, atol=1e-11)
    for own, theirs in zip(dparams.core, wanted_dparams.core, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=1e-12, atol=1e-11)
    if num_kv_heads == 4:
        for (path, own), (_, theirs) in zip(trees.leaves(dparams), trees.leaves(wanted_dparams), strict=True):
            np.testing.assert_allclose(own, theirs, rtol=1e-12, atol=1e-11, err_msg=path)


def test_what_the_slots_learn_goes_along_when_heads_are_pooled():
    rng = np.random.default_rng(15)
    whole = init_multi_head_attention(rng, 8, num_heads=4, dtype=np.float64)._replace(prepare=(1.0, None), core=ScalableSoftmax(np.ones(4)))
    pooled = pool_heads(whole, num_heads=4, num_kv_heads=2)
    assert pooled.core is whole.core and pooled.prepare is whole.prepare
    fresh = init_grouped_query_attention(rng, 8, num_heads=4, num_kv_heads=2)
    assert fresh.core is None and fresh.prepare is None
