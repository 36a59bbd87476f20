"""Multi-head attention: one query of one head at a time, what heads and masks may change, and the sum of three gradients."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.core import causal, causal_attention, softmax_attention
from minitransformers.attention.gaussian_kernel_attention import GaussianKernel, gaussian_kernel_attention
from minitransformers.attention.masks import causal_mask
from minitransformers.attention.multi_head_attention import (
    MultiHeadAttention,
    init_multi_head_attention,
    multi_head_attention,
    multi_head_attention_step,
)
from minitransformers.attention.prepare import on_both, unprepared
from minitransformers.attention.scalable_softmax import init_scalable_softmax_attention, scalable_softmax_attention
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.attention.sigmoid_attention import sigmoid_attention
from minitransformers.attention.softmax_off_by_one import SoftmaxOffByOne, softmax_off_by_one_attention
from minitransformers.basics.chain import chain
from minitransformers.basics.linear import Linear
from minitransformers.foundation import assert_gradients, check_gradients, slot, trees, trusted
from minitransformers.positional.rope import rope


def random_params(rng, d_model=6, d_heads=4, d_values=None, bias=True):
    d_values = d_heads if d_values is None else d_values
    shapes = (d_model, d_heads), (d_model, d_heads), (d_model, d_values), (d_values, d_model)
    return MultiHeadAttention(*(Linear(rng.normal(size=s) / 2, rng.normal(size=s[1]) if bias else None) for s in shapes))


def textbook_attention(params, x, bias, allowed, num_heads, scale=None):
    """One head of one query of one sequence at a time, one feature slice a head, every allowed key by name."""
    (w_query, b_query), (w_key, b_key), (w_value, b_value), (w_output, b_output) = params
    d, d_value = w_query.shape[1] // num_heads, w_value.shape[1] // num_heads
    sequences = []
    for b in range(len(x)):
        rows = []
        for i in range(x.shape[1]):
            heads = []
            for h in range(num_heads):
                columns, value_columns = slice(h * d, (h + 1) * d), slice(h * d_value, (h + 1) * d_value)
                query = x[b, i] @ w_query[:, columns] + b_query[columns]
                total, mixed = 0.0, 0.0
                for j in np.flatnonzero(allowed[b, h, i]):
                    key = x[b, j] @ w_key[:, columns] + b_key[columns]
                    value = x[b, j] @ w_value[:, value_columns] + b_value[value_columns]
                    term = anp.exp(anp.sum(query * key) * (d**-0.5 if scale is None else scale) + bias[b, h, i, j])
                    total, mixed = total + term, mixed + term * value
                heads.append(mixed / total)
            rows.append(anp.concatenate(heads) @ w_output + b_output)
        sequences.append(anp.stack(rows))
    return anp.stack(sequences)


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("looks_back", [True, False])
@pytest.mark.parametrize("num_heads, d_values", [(1, 4), (2, 2), (4, 8)])
def test_equals_one_query_at_a_time_and_its_gradients(num_heads, d_values, looks_back, scale):
    rng = np.random.default_rng(0)
    params, x, bias = random_params(rng, d_values=d_values), rng.normal(size=(2, 3, 6)), rng.normal(size=(2, num_heads, 3, 3))
    mask = (rng.random((2, 1, 3, 3)) < 0.6) | np.eye(3, dtype=bool)
    allowed = np.broadcast_to(mask & np.tri(3, dtype=bool) if looks_back else mask, bias.shape)
    dout = rng.normal(size=x.shape)
    core = partial(causal_attention if looks_back else softmax_attention, scale=scale)
    out, backward = multi_head_attention(params, x, bias, num_heads=num_heads, mask=mask, core=core)
    plain = tuple(tuple(part) for part in params[:4])
    np.testing.assert_allclose(out, textbook_attention(plain, x, bias, allowed, num_heads, scale), rtol=0, atol=1e-12)
    loss = lambda *a: anp.sum(dout * textbook_attention(*a, allowed, num_heads, scale))  # noqa: E731
    expected = autograd.grad(loss, (0, 1, 2))(plain, x, bias)
    for (path, own), (_, theirs) in zip(trees.leaves(backward(dout)), trees.leaves(expected), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-11, err_msg=path)


def test_one_head_with_identity_weights_is_scaled_dot_product_attention():
    x, eye = np.random.default_rng(1).normal(size=(2, 5, 4)), Linear(np.eye(4), None)
    out, _ = multi_head_attention(MultiHeadAttention(eye, eye, eye, eye), x, num_heads=1, core=softmax_attention)
    np.testing.assert_allclose(out, scaled_dot_product_attention(x, x, x)[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize(("d_heads", "d_values"), [(4, 6), (6, 4)])
def test_heads_must_divide_the_queries_and_the_values(d_heads, d_values):
    params = MultiHeadAttention(*(Linear(np.ones(s), None) for s in ((6, d_heads), (6, d_heads), (6, d_values), (d_values, 6))))
    with pytest.raises(ValueError, match="num_heads"):
        multi_head_attention(params, np.ones((2, 4, 6)), num_heads=3)


def test_the_order_of_the_heads_does_not_matter():
    rng = np.random.default_rng(2)
    params, x = random_params(rng, d_heads=6), rng.normal(size=(2, 4, 6))
    columns = np.arange(6).reshape(3, 2)[[2, 0, 1]].ravel()     # heads 0 1 2 become 2 0 1
    moved = [Linear(part.weight[:, columns], part.bias[columns]) for part in params[:3]]
    moved = MultiHeadAttention(*moved, Linear(params.output.weight[columns], params.output.bias))
    out, backward = multi_head_attention(params, x, num_heads=3)
    moved_out, moved_backward = multi_head_attention(moved, x, num_heads=3)
    np.testing.assert_allclose(moved_out, out, rtol=0, atol=1e-13)
    np.testing.assert_allclose(moved_backward(x)[1], backward(x)[1], rtol=0, atol=1e-13)


def test_without_positions_the_order_of_the_tokens_is_not_seen():
    rng = np.random.default_rng(3)
    params, x, order = random_params(rng), rng.normal(size=(2, 5, 6)), rng.permutation(5)
    attend = partial(multi_head_attention, params, num_heads=2, core=softmax_attention)
    np.testing.assert_allclose(attend(x[:, order])[0], attend(x)[0][:, order], rtol=0, atol=1e-13)


def test_a_rotation_makes_the_order_count_but_not_the_starting_point():
    rng = np.random.default_rng(4)
    params, x = random_params(rng), rng.normal(size=(2, 5, 6))
    attend = partial(multi_head_attention, params, num_heads=2, core=softmax_attention)
    rotated, _ = attend(x, prepare=on_both(rope))
    shifted, _ = attend(x, prepare=on_both(lambda a, positions: rope(a, positions=np.arange(5) + 11)))
    backwards, _ = attend(x[:, ::-1], prepare=on_both(rope))
    np.testing.assert_allclose(shifted, rotated, rtol=0, atol=1e-13)
    assert np.abs(backwards[:, ::-1] - rotated).max() > 1e-2


def test_gradients_pass_through_the_rotation():
    rng = np.random.default_rng(5)
    assert_gradients(multi_head_attention, random_params(rng), rng.normal(size=(1, 3, 6)), num_heads=2, prepare=on_both(rope))


def test_the_key_bias_has_no_gradient():
    """It adds the same to all scores of a query, and softmax does not see that."""
    rng = np.random.default_rng(6)
    params, x = random_params(rng), rng.normal(size=(2, 5, 6))
    _, backward = multi_head_attention(params, x, num_heads=2)
    dparams, _, _ = backward(rng.normal(size=x.shape))
    np.testing.assert_allclose(dparams.key.bias, 0, atol=1e-14)
    assert np.abs(dparams.query.bias).max() > 1e-2


def test_later_tokens_change_nothing_and_get_no_gradient():
    rng = np.random.default_rng(7)
    params, x = random_params(rng), rng.normal(size=(2, 6, 6))
    changed = x.copy()
    changed[:, 4:] = rng.normal(size=(2, 2, 6))
    out, backward = multi_head_attention(params, x, num_heads=2)
    assert np.array_equal(multi_head_attention(params, changed, num_heads=2)[0][:, :4], out[:, :4])
    dout = np.zeros_like(x)
    dout[:, 3] = rng.normal(size=(2, 6))
    _, dx, _ = backward(dout)
    assert not dx[:, 4:].any() and dx[:, :4].all()


def test_a_core_put_in_takes_the_place_of_the_usual_one():
    rng = np.random.default_rng(8)
    params, x, dout = random_params(rng), rng.normal(size=(2, 4, 6)), rng.normal(size=(2, 4, 6))
    out, backward = multi_head_attention(params, x, num_heads=2, core=causal(slot(scaled_dot_product_attention)))
    expected, expected_backward = multi_head_attention(params, x, num_heads=2)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-14)
    for (path, own), (_, theirs) in zip(trees.leaves(backward(dout)), trees.leaves(expected_backward(dout)), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-13, err_msg=path)


def test_a_core_gets_the_heads_the_bias_and_the_mask_of_the_call():
    rng = np.random.default_rng(9)
    params, x = random_params(rng, d_values=8), rng.normal(size=(2, 4, 6))
    bias, mask, seen = rng.normal(size=(2, 4, 4)), rng.random((2, 1, 4, 4)) < 0.7, []

    def core(own, query, key, value, bias=None, *, mask=None):
        seen.append((own, query.shape, key.shape, value.shape, bias, mask))
        return softmax_attention(None, query, key, value, bias, mask=mask)

    learned = np.ones(2)
    multi_head_attention(params._replace(core=learned), x, bias, num_heads=2, mask=mask, core=core)
    assert seen == [(learned, (2, 2, 4, 2), (2, 2, 4, 2), (2, 2, 4, 4), bias, mask)]


@pytest.mark.parametrize("leading", [(), (3,), (2, 1, 3)])
def test_any_number_of_leading_axes(leading):
    rng = np.random.default_rng(10)
    params, x = random_params(rng), rng.normal(size=(*leading, 4, 6))
    out, backward = multi_head_attention(params, x, num_heads=2)
    alone = [multi_head_attention(params, part, num_heads=2)[0] for part in x.reshape(-1, 4, 6)]
    np.testing.assert_allclose(out.reshape(-1, 4, 6), alone, rtol=0, atol=1e-13)
    assert backward(out)[1].shape == x.shape


def test_a_query_that_may_see_nothing_puts_out_the_output_bias_and_sends_no_gradient():
    rng = np.random.default_rng(11)
    params, x = random_params(rng), rng.normal(size=(1, 3, 6))
    mask = np.ones((3, 3), bool)
    mask[1] = False
    out, backward = multi_head_attention(params, x, num_heads=2, mask=mask)
    np.testing.assert_array_equal(out[0, 1], params.output.bias)
    dout = np.zeros_like(x)
    dout[:, 1] = 1
    assert not backward(dout)[1].any()


def test_huge_float32_projections_stay_finite():
    rng = np.random.default_rng(12)
    params, x = trees.cast(random_params(rng), np.float32), rng.normal(size=(2, 5, 6)).astype(np.float32)
    out, backward = multi_head_attention(params, x * np.float32(1e6), num_heads=2)
    assert all(np.isfinite(leaf).all() for _, leaf in trees.leaves((out, backward(np.ones_like(x)))))


def test_fresh_weights_have_the_spread_asked_for():
    params = init_multi_head_attention(np.random.default_rng(13), 64, num_heads=4, std=0.02, residual_std=0.005)
    for part, std in zip(params[:4], (0.02, 0.02, 0.02, 0.005), strict=True):
        np.testing.assert_allclose(part.weight.std(), std, rtol=0.05)
        assert part.weight.dtype == np.float32 and not part.bias.any()
    with pytest.raises(ValueError, match="num_heads"):
        init_multi_head_attention(np.random.default_rng(13), 64, num_heads=5)


def test_the_checker_refuses_an_input_gradient_through_the_queries_alone():
    """x is read three times; forgetting the keys' and values' terms is the classic mistake."""
    rng = np.random.default_rng(14)
    params, x = random_params(rng), rng.normal(size=(2, 3, 6))

    def queries_alone(params, x):
        out, backward = multi_head_attention(params, x, num_heads=2)

        def wrong_backward(dout):
            fixed = [params.key, params.value]
            head = lambda x: (x @ params.query.weight + params.query.bias).reshape(2, 3, 2, 2).swapaxes(1, 2)  # noqa: E731
            key, value = ((x @ p.weight + p.bias).reshape(2, 3, 2, 2).swapaxes(1, 2) for p in fixed)
            _, core = scaled_dot_product_attention(head(x), key, value, mask=causal_mask(3))
            dquery = core((dout @ params.output.weight.T).reshape(2, 3, 2, 2).swapaxes(1, 2))[0]
            return backward(dout)[0], dquery.swapaxes(1, 2).reshape(2, 3, 4) @ params.query.weight.T

        return out, wrong_backward

    report = check_gradients(queries_alone, params, x)
    assert not report.passed
    assert [a.path for a in report.arguments if a.cause] == ["x"]
    assert "a term is missing" in report.worst.cause


def packed_for_torch(torch, module, params):
    """torch stacks q, k and v by rows, and its weights act on the left."""
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.tensor(np.concatenate([part.weight.T for part in params[:3]])))
        module.in_proj_bias.copy_(torch.tensor(np.concatenate([part.bias for part in params[:3]])))
        module.out_proj.weight.copy_(torch.tensor(params.output.weight.T))
        module.out_proj.bias.copy_(torch.tensor(params.output.bias))


@pytest.mark.parity
@pytest.mark.parametrize("looks_back", [True, False])
def test_equals_torch(looks_back):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(15)
    params, x, dout = random_params(rng, d_heads=6), rng.normal(size=(2, 5, 6)), rng.normal(size=(2, 5, 6))
    bias, real = rng.normal(size=(2, 3, 5, 5)), np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    module = torch.nn.MultiheadAttention(6, 3, batch_first=True, dtype=torch.float64)
    packed_for_torch(torch, module, params)
    inputs = torch.tensor(x, requires_grad=True)
    # torch adds a float mask of (batch * heads, queries, keys), and True in its boolean masks means hidden.
    added = torch.tensor(bias.reshape(6, 5, 5), requires_grad=True)
    hidden = torch.zeros(5, 5, dtype=torch.float64)
    if looks_back:
        hidden = hidden.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -torch.inf)
    padding = torch.zeros(2, 5, dtype=torch.float64).masked_fill(torch.tensor(~real), -torch.inf)
    theirs, _ = module(inputs, inputs, inputs, attn_mask=added + hidden, key_padding_mask=padding)
    theirs.backward(torch.tensor(dout))

    core = causal_attention if looks_back else softmax_attention
    out, backward = multi_head_attention(params, x, bias, num_heads=3, mask=real[:, None, None, :], core=core)
    dparams, dx, dbias = backward(dout)
    pairs = [
        (out, theirs.detach()),
        (dx, inputs.grad),
        (dbias.reshape(6, 5, 5), added.grad),
        (np.concatenate([part.weight.T for part in dparams[:3]]), module.in_proj_weight.grad),
        (np.concatenate([part.bias for part in dparams[:3]]), module.in_proj_bias.grad),
        (dparams.output.weight.T, module.out_proj.weight.grad),
        (dparams.output.bias, module.out_proj.bias.grad),
    ]
    for own, other in pairs:
        np.testing.assert_allclose(own, other.numpy(), rtol=0, atol=1e-11)


@pytest.mark.parity
def test_equals_gpt2_attention_of_hugging_face():
    """GPT-2 packs q, k and v by columns, and its Conv1D weights act on the right, as ours do."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

    rng = np.random.default_rng(16)
    params, x, dout = random_params(rng, d_heads=6), rng.normal(size=(2, 5, 6)), rng.normal(size=(2, 5, 6))
    config = transformers.GPT2Config(n_embd=6, n_head=3, attn_pdrop=0.0, resid_pdrop=0.0, attn_implementation="eager")
    module = GPT2Attention(config, layer_idx=0).double().eval()
    with torch.no_grad():
        module.c_attn.weight.copy_(torch.tensor(np.concatenate([part.weight for part in params[:3]], axis=1)))
        module.c_attn.bias.copy_(torch.tensor(np.concatenate([part.bias for part in params[:3]])))
        module.c_proj.weight.copy_(torch.tensor(params.output.weight))
        module.c_proj.bias.copy_(torch.tensor(params.output.bias))
    inputs = torch.tensor(x, requires_grad=True)
    hidden = torch.zeros(1, 1, 5, 5, dtype=torch.float64).masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -torch.inf)
    theirs = module(inputs, attention_mask=hidden)[0]
    theirs.backward(torch.tensor(dout))

    out, backward = multi_head_attention(params, x, num_heads=3)
    dparams, dx, _ = backward(dout)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-11)
    np.testing.assert_allclose(dx, inputs.grad.numpy(), rtol=0, atol=1e-11)
    packed = np.concatenate([part.weight for part in dparams[:3]], axis=1)
    np.testing.assert_allclose(packed, module.c_attn.weight.grad.numpy(), rtol=0, atol=1e-11)


def test_what_a_core_learns_is_trained_with_the_projections():
    rng = np.random.default_rng(21)
    params = init_multi_head_attention(rng, 4, num_heads=2, bias=False, dtype=np.float64)
    params = params._replace(core=init_scalable_softmax_attention(rng, num_heads=2, max_positions=5, dtype=np.float64))
    assert params.core.scale.shape == (2,)
    call, x = partial(multi_head_attention, num_heads=2, core=causal(scalable_softmax_attention)), rng.normal(size=(1, 3, 4))
    report = trusted(check_gradients)(call, params, x, second_opinion=False)
    assert report.passed, str(report)
    assert "params.core.scale" in [argument.path for argument in report.arguments]
    assert np.abs(call(params, x)[1](rng.normal(size=x.shape))[0].core.scale).max() > 1e-3


def test_another_core_reaches_the_heads():
    def nothing(params, query, key, value, bias=None, *, mask=None):
        return 0 * query, None

    params = init_multi_head_attention(np.random.default_rng(0), 4, num_heads=2, bias=False, dtype=np.float64)
    assert not multi_head_attention(params, np.ones((3, 4)), num_heads=2, core=nothing)[0].any()


def told(seen):
    """A prepare that notes the positions it is told, which every prepare is."""

    def prepare(params, query, key, *, positions):
        seen.append(positions)
        return unprepared(params, query, key, positions=positions)

    return prepare


def test_a_prepare_is_told_the_positions_none_for_a_whole_text():
    params, x, seen = random_params(np.random.default_rng(0)), np.ones((1, 3, 6)), []
    multi_head_attention(params, x, num_heads=2, prepare=told(seen))
    _, state = multi_head_attention_step(params, x, None, num_heads=2, prepare=told(seen))
    multi_head_attention_step(params, x[:, :2], state, num_heads=2, prepare=told(seen))
    assert seen[0] is None and seen[1].tolist() == [0, 1, 2] and seen[2].tolist() == [3, 4]


@pytest.mark.parametrize("heads", [4, 3])
def test_what_is_learned_for_another_number_of_heads_is_refused_even_where_it_would_broadcast(heads):
    """Two texts with two heads each have four rows of scores, but not four heads."""
    params = random_params(np.random.default_rng(1))._replace(core=SoftmaxOffByOne(np.ones(heads)))
    with pytest.raises(ValueError, match=f"params.core.sink: got {heads} heads"):
        multi_head_attention(params, np.ones((2, 3, 6)), num_heads=2, core=causal(softmax_off_by_one_attention))


@pytest.mark.parametrize("argument", ["mask", "bias"])
def test_a_mask_or_a_bias_does_not_add_axes_to_the_output(argument):
    params, more = random_params(np.random.default_rng(2)), np.ones((5, 1, 1, 3, 3), bool if argument == "mask" else float)
    with pytest.raises(ValueError, match=rf"{argument}: got shape \(5, 1, 1, 3, 3\), wants a shape that broadcasts to the scores"):
        multi_head_attention(params, np.ones((2, 3, 6)), num_heads=2, **{argument: more})


def stretched(gains, query, key, *, positions=None):
    """A prepare that is linear: a gain for each feature of a head's query, and of its key."""
    return (gains[0] * query, gains[1] * key), lambda dboth: (None, gains[0] * dboth[0], gains[1] * dboth[1])


def test_a_prepare_acts_on_each_head_in_the_order_of_the_chain():
    rng = np.random.default_rng(0)
    params, x = random_params(rng), rng.normal(size=(2, 3, 6))
    gains = tuple(np.random.default_rng(1).normal(size=(2, 2)))
    query, key = (
        Linear(part.weight * np.tile(gain, heads), part.bias * np.tile(gain, heads))
        for part, gain, heads in zip((params.query, params.key), gains, (2, 2), strict=True)
    )
    expected, _ = multi_head_attention(params._replace(query=query, key=key), x, num_heads=2, prepare=on_both(rope))
    both = partial(chain, parts=(stretched, on_both(rope)))
    out, _ = multi_head_attention(params._replace(prepare=(gains, None)), x, num_heads=2, prepare=both)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("looks_back", [True, False])
def test_a_core_under_causal_gets_the_causal_mask(looks_back):
    rng = np.random.default_rng(21)
    params = init_multi_head_attention(rng, 6, num_heads=2, dtype=np.float64)
    params, x, dout = params._replace(core=GaussianKernel(np.ones(2))), rng.normal(size=(2, 4, 6)), rng.normal(size=(2, 4, 6))
    core, mask = (causal if looks_back else lambda c: c)(gaussian_kernel_attention), causal_mask(4) if looks_back else None
    out, backward = multi_head_attention(params, x, num_heads=2, core=core)
    theirs, their_backward = multi_head_attention(params, x, num_heads=2, mask=mask, core=gaussian_kernel_attention)
    np.testing.assert_array_equal(out, theirs)
    for (path, own), (_, other) in zip(trees.leaves(backward(dout)), trees.leaves(their_backward(dout)), strict=True):
        np.testing.assert_array_equal(own, other, err_msg=path)


def test_what_a_core_learns_is_not_taken_for_a_bias():
    rng = np.random.default_rng(31)
    params, x = init_multi_head_attention(rng, 8, num_heads=2, dtype=np.float64), rng.normal(size=(6, 8))
    params = params._replace(core=GaussianKernel(np.ones(2)))
    out, backward = multi_head_attention(params, x, num_heads=2, core=causal(gaussian_kernel_attention))
    dparams, _, dbias = backward(out)
    assert dbias is None and dparams.core.bandwidth.all()


def test_the_bias_of_the_keys_matters_once_a_rotation_knows_their_places_or_keys_do_not_share_what_all_scores_share():
    rng = np.random.default_rng(32)
    params, x = init_multi_head_attention(rng, 8, num_heads=2, dtype=np.float64), rng.normal(size=(6, 8))
    dout = rng.normal(size=x.shape)
    for config, zero in (({}, True), ({"prepare": on_both(rope)}, False), ({"core": causal(sigmoid_attention)}, False)):
        dkey = multi_head_attention(params, x, num_heads=2, **config)[1](dout)[0].key
        assert (np.abs(dkey.bias).max() < 1e-14) == zero
