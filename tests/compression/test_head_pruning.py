"""Attention without some heads computes what the gated one computes, in arrays as much smaller as the formula says."""

from functools import partial

import numpy as np
import pytest

from minitransformers import trees
from minitransformers.attention.cross_attention import cross_attention, init_cross_attention
from minitransformers.attention.grouped_query_attention import (
    GroupedQueryAttention,
    grouped_query_attention,
    init_grouped_query_attention,
    pool_heads,
)
from minitransformers.attention.multi_head_attention import (
    MultiHeadAttention,
    init_multi_head_attention,
    multi_head_attention,
)
from minitransformers.attention.softmax_off_by_one import SoftmaxOffByOne, softmax_off_by_one_attention
from minitransformers.basics.linear import Linear
from minitransformers.compression.gated_heads import HeadGates, gated_heads
from minitransformers.compression.head_pruning import head_importance, heads_by_width, without_heads
from minitransformers.models.gpt2 import gpt2, gpt2_step, init_gpt2
from minitransformers.models.llama import init_llama, llama, llama_attention, llama_step
from minitransformers.peft.prefix_attention import Prefix, prefix_attention

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 8))
IDS = np.array([[1, 4, 0], [2, 2, 3]])
DGATES = RNG.normal(size=(7, 2, 4))                          # (examples, layers, heads)


def linears(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [Linear(rng.normal(size=shape) / 2, rng.normal(size=shape[1])) for shape in shapes]


# 4 heads of width 3 whose values are 5 wide; and the same in 2 groups.
PLAIN = MultiHeadAttention(*linears(1, (8, 12), (8, 12), (8, 20), (20, 8)))
GROUPED = GroupedQueryAttention(*linears(2, (8, 12), (8, 6), (8, 10), (20, 8)))


def opened(kept, heads=4):
    return np.isin(np.arange(heads), kept).astype(float)


def test_importance_is_the_mean_of_sizes_over_examples():
    expected = np.zeros((2, 4))
    for layer in range(2):
        for head in range(4):
            expected[layer, head] = sum(abs(DGATES[n, layer, head]) for n in range(7)) / 7
    np.testing.assert_allclose(head_importance(DGATES), expected, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(head_importance(DGATES[:, 0]), head_importance(DGATES)[0])


def test_slopes_of_opposite_signs_do_not_cancel_as_they_do_in_a_mini_batch():
    dgates = np.array([[3.0, 1.0], [-3.0, 1.0]])
    np.testing.assert_array_equal(head_importance(dgates), [3.0, 1.0])
    np.testing.assert_array_equal(head_importance(dgates.sum(axis=0, keepdims=True)), [0.0, 2.0])
    assert np.all(head_importance(DGATES) >= np.abs(DGATES.mean(axis=0)))


def test_per_layer_every_layer_has_norm_one_and_its_own_order():
    raw, normed = head_importance(DGATES), head_importance(DGATES, per_layer=True)
    for layer in range(2):
        np.testing.assert_allclose(normed[layer], raw[layer] / np.sqrt(sum(score**2 for score in raw[layer])), rtol=1e-14)
        np.testing.assert_array_equal(np.argsort(normed[layer]), np.argsort(raw[layer]))


def test_per_layer_hides_that_one_layer_matters_more():
    dgates = np.concatenate([100 * DGATES[:, :1], DGATES[:, 1:]], axis=1)
    assert head_importance(dgates)[0].min() > head_importance(dgates)[1].max()
    for size in (1.0, 1e-3):
        np.testing.assert_allclose(head_importance(size * dgates, per_layer=True), head_importance(DGATES, per_layer=True), rtol=1e-13)


def test_a_layer_without_slopes_stays_zero():
    np.testing.assert_array_equal(head_importance(np.zeros((3, 1, 4)), per_layer=True), np.zeros((1, 4)))


def test_slopes_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="dgates: got numbers from nan"):
        head_importance(np.array([[1.0, np.nan]]))


@pytest.mark.parametrize("kept", [[0], [2], [0, 3], [1, 2, 3], [0, 1, 2, 3]], ids=str)
def test_without_heads_the_output_is_that_of_gates_of_zero(kept):
    gated, _ = multi_head_attention(PLAIN._replace(core=HeadGates(opened(kept))), X, num_heads=4, core=gated_heads)
    smaller, _ = multi_head_attention(without_heads(PLAIN, kept=kept, num_heads=4), X, num_heads=len(kept))
    np.testing.assert_allclose(smaller, gated, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kept", "groups"), [([0, 1], 1), ([2, 3], 1), ([0, 2], 2), ([1, 2], 2), ([0, 1, 2, 3], 2), ([3], 1)], ids=str)
def test_grouped_a_head_of_keys_goes_with_its_last_query_head(kept, groups):
    gated, _ = grouped_query_attention(GROUPED._replace(core=HeadGates(opened(kept))), X, num_heads=4, num_kv_heads=2, core=gated_heads)
    params = without_heads(GROUPED, kept=kept, num_heads=4)
    assert params.key.weight.shape == (8, 3 * groups) and params.value.weight.shape == (8, 5 * groups)
    smaller, _ = grouped_query_attention(params, X, num_heads=len(kept), num_kv_heads=groups)
    np.testing.assert_allclose(smaller, gated, rtol=0, atol=1e-12)


def test_in_cross_attention_too():
    params = trees.map(lambda a: a + RNG.normal(size=a.shape), init_cross_attention(RNG, 8, num_heads=4, d_memory=5, dtype=np.float64))
    memory, sinks = RNG.normal(size=(2, 6, 5)), SoftmaxOffByOne(RNG.normal(size=4))
    core = partial(gated_heads, core=softmax_off_by_one_attention)
    gated, _ = cross_attention(params._replace(core=HeadGates(opened([1, 3]), sinks)), X, memory, num_heads=4, core=core)
    smaller = without_heads(params._replace(core=sinks), kept=[1, 3], num_heads=4)
    out, _ = cross_attention(smaller, X, memory, num_heads=2, core=softmax_off_by_one_attention)
    np.testing.assert_allclose(out, gated, rtol=0, atol=1e-12)


def test_the_arrays_are_the_heads_columns_and_rows_and_nothing_else():
    kept, smaller = [1, 3], without_heads(PLAIN, kept=[1, 3], num_heads=4)
    for name, width in (("query", 3), ("key", 3), ("value", 5)):
        columns = [head * width + i for head in kept for i in range(width)]
        part, own = getattr(PLAIN, name), getattr(smaller, name)
        np.testing.assert_array_equal(own.weight, np.stack([part.weight[:, column] for column in columns], axis=1))
        np.testing.assert_array_equal(own.bias, [part.bias[column] for column in columns])
    rows = [head * 5 + i for head in kept for i in range(5)]
    np.testing.assert_array_equal(smaller.output.weight, np.stack([PLAIN.output.weight[row] for row in rows]))
    np.testing.assert_array_equal(smaller.output.bias, PLAIN.output.bias)


def test_the_order_in_which_heads_are_named_does_not_matter():
    one, other = (without_heads(PLAIN, kept=kept, num_heads=4) for kept in ([3, 0, 2], [0, 2, 3]))
    trees.map(np.testing.assert_array_equal, one, other)


def test_the_gradients_of_the_smaller_attention_are_those_of_the_gated_one():
    dout = RNG.normal(size=X.shape)
    gated = multi_head_attention(PLAIN._replace(core=HeadGates(opened([0, 3]))), X, num_heads=4, core=gated_heads)[1](dout)
    smaller = multi_head_attention(without_heads(PLAIN, kept=[0, 3], num_heads=4), X, num_heads=2)[1](dout)
    np.testing.assert_allclose(smaller[1], gated[1], rtol=0, atol=1e-12)
    cut = without_heads(gated[0]._replace(core=None), kept=[0, 3], num_heads=4)
    for (path, own), (_, theirs) in zip(trees.leaves(smaller[0]), trees.leaves(cut), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12, err_msg=path)


@pytest.mark.parametrize("pruned", [1, 2, 3])
def test_the_parameters_fall_by_the_formula(pruned):
    d, d_head = 8, 2
    params = init_multi_head_attention(RNG, d, num_heads=4, dtype=np.float64)
    smaller = without_heads(params, kept=list(range(pruned, 4)), num_heads=4)
    drop = trees.count_parameters(params) - trees.count_parameters(smaller)
    assert drop == pruned * (4 * d * d_head + 3 * d_head)


def test_grouped_the_parameters_fall_by_heads_of_queries_and_heads_of_keys():
    d, d_head = 8, 2
    params = init_grouped_query_attention(RNG, d, num_heads=4, num_kv_heads=2, bias=True, dtype=np.float64)
    for kept, keys_gone in (([0, 1], 1), ([0, 2], 0), ([3], 1)):
        drop = trees.count_parameters(params) - trees.count_parameters(without_heads(params, kept=kept, num_heads=4))
        assert drop == (4 - len(kept)) * (2 * d * d_head + d_head) + keys_gone * (2 * d * d_head + 2 * d_head)


def test_what_a_core_has_learned_for_each_head_is_cut_with_it():
    sinks = SoftmaxOffByOne(RNG.normal(size=4))
    gates = HeadGates(RNG.normal(size=(2, 4)) * opened([0, 2]), sinks)  # of each text, and not all 1
    inside = partial(gated_heads, core=softmax_off_by_one_attention)
    gated, _ = multi_head_attention(PLAIN._replace(core=gates), X, num_heads=4, core=inside)
    params = without_heads(PLAIN._replace(core=gates), kept=[0, 2], num_heads=4)
    np.testing.assert_array_equal(params.core.core.sink, sinks.sink[[0, 2]])
    np.testing.assert_allclose(multi_head_attention(params, X, num_heads=2, core=inside)[0], gated, rtol=0, atol=1e-12)


def test_a_prefix_loses_its_heads_of_keys():
    prefix = Prefix(RNG.normal(size=(2, 1, 3)), RNG.normal(size=(2, 1, 5)))
    params = without_heads(GROUPED._replace(core=prefix), kept=[2, 3], num_heads=4)
    np.testing.assert_array_equal(params.core.key, prefix.key[1:])
    inside, core = partial(gated_heads, core=prefix_attention), HeadGates(opened([2, 3]), prefix)
    gated, _ = grouped_query_attention(GROUPED._replace(core=core), X, num_heads=4, num_kv_heads=2, core=inside)
    smaller, _ = grouped_query_attention(params, X, num_heads=2, num_kv_heads=1, core=prefix_attention)
    np.testing.assert_allclose(smaller, gated, rtol=0, atol=1e-12)


def test_what_serves_all_heads_stays():
    sink = SoftmaxOffByOne(RNG.normal(size=1))
    np.testing.assert_array_equal(without_heads(PLAIN._replace(core=sink), kept=[2, 3], num_heads=4).core.sink, sink.sink)


def interleaved(params, kept):
    """The columns of a head taken to lie num_heads apart, as they do where features are split the other way."""
    order = np.arange(12).reshape(3, 4).T.ravel()
    parts = [Linear(part.weight[:, order], part.bias[order]) for part in params[:3]]
    return without_heads(params._replace(query=parts[0], key=parts[1], value=parts[2]), kept=kept, num_heads=4)


def with_gone_biases(params, kept):
    """The output's bias shortened with its rows, in proportion."""
    smaller = without_heads(params, kept=kept, num_heads=4)
    return smaller._replace(output=smaller.output._replace(bias=params.output.bias * len(kept) / 4))


@pytest.mark.parametrize("wrong", [interleaved, with_gone_biases])
def test_the_test_tells_wrong_columns_and_a_bias_that_went_with_the_heads(wrong):
    params = MultiHeadAttention(*linears(3, (8, 12), (8, 12), (8, 12), (12, 8)))
    gated, _ = multi_head_attention(params._replace(core=HeadGates(opened([0, 3]))), X, num_heads=4, core=gated_heads)
    right, _ = multi_head_attention(without_heads(params, kept=[0, 3], num_heads=4), X, num_heads=2)
    np.testing.assert_allclose(right, gated, rtol=0, atol=1e-12)
    assert np.abs(multi_head_attention(wrong(params, [0, 3]), X, num_heads=2)[0] - gated).max() > 0.1


def noisy(params):
    rng = np.random.default_rng(4)
    return trees.map(lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape), params)


SIZES = {"vocabulary": 5, "d_model": 8, "num_layers": 2, "num_heads": 4, "std": 0.5, "dtype": np.float64}
GPT2 = noisy(init_gpt2(np.random.default_rng(5), context=3, **SIZES))
LLAMA = noisy(init_llama(np.random.default_rng(6), num_kv_heads=2, d_hidden=3, **SIZES))


def in_layers(params, change):
    """The model with change(attention, layer) in the place of each layer's attention."""
    return params._replace(blocks=[b._replace(attention=change(b.attention, layer)) for layer, b in enumerate(params.blocks)])


def gated_and_smaller(params, kept):
    gated = in_layers(params, lambda attention, layer: attention._replace(core=HeadGates(opened(kept[layer]))))
    return gated, in_layers(params, lambda attention, layer: without_heads(attention, kept=kept[layer], num_heads=4))


def test_a_whole_gpt2_with_as_many_heads_less_in_each_layer_is_gpt2_with_fewer_heads():
    gated, smaller = gated_and_smaller(GPT2, [[0, 3], [1, 2]])
    expected, _ = gpt2(gated, ids=IDS, num_heads=4, core=gated_heads)
    np.testing.assert_allclose(gpt2(smaller, ids=IDS, num_heads=2)[0], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(gpt2_step(smaller, IDS, None, num_heads=2)[0], expected, rtol=0, atol=1e-12)
    assert trees.count_parameters(GPT2) - trees.count_parameters(smaller) == 4 * (4 * 8 * 2 + 3 * 2)


def test_a_whole_gpt2_may_keep_different_numbers_of_heads():
    gated, smaller = gated_and_smaller(GPT2, [[0, 1, 3], [2]])
    expected, _ = gpt2(gated, ids=IDS, num_heads=4, core=gated_heads)
    attention = partial(heads_by_width, attention=multi_head_attention, d_head=2)
    logits, backward = gpt2(smaller, ids=IDS, num_heads=4, attention=attention)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12)
    assert [leaf.shape for _, leaf in trees.leaves(backward(np.ones_like(logits)))] == [leaf.shape for _, leaf in trees.leaves(smaller)]
    assert trees.count_parameters(GPT2) - trees.count_parameters(smaller) == 4 * (4 * 8 * 2 + 3 * 2)


def test_a_whole_llama_without_a_group_in_each_layer():
    gated, smaller = gated_and_smaller(LLAMA, [[0, 1], [2, 3]])
    expected, _ = llama(gated, ids=IDS, num_heads=4, core=gated_heads)
    np.testing.assert_allclose(llama(smaller, ids=IDS, num_heads=2)[0], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(llama_step(smaller, IDS, None, num_heads=2)[0], expected, rtol=0, atol=1e-12)
    assert trees.count_parameters(LLAMA) - trees.count_parameters(smaller) == 4 * 2 * 8 * 2 + 2 * 2 * 8 * 2


def test_a_whole_llama_may_keep_different_groups():
    gated, smaller = gated_and_smaller(LLAMA, [[0, 3], [1]])
    expected, _ = llama(gated, ids=IDS, num_heads=4, core=gated_heads)
    attention = partial(heads_by_width, attention=llama_attention, d_head=2)
    np.testing.assert_allclose(llama(smaller, ids=IDS, num_heads=4, attention=attention)[0], expected, rtol=0, atol=1e-12)


def test_pooled_heads_can_be_pruned_after():
    params = pool_heads(MultiHeadAttention(*linears(7, (8, 8), (8, 8), (8, 8), (8, 8))), num_heads=4, num_kv_heads=2)
    gated, _ = grouped_query_attention(params._replace(core=HeadGates(opened([2, 3]))), X, num_heads=4, num_kv_heads=2, core=gated_heads)
    smaller, _ = grouped_query_attention(without_heads(params, kept=[2, 3], num_heads=4), X, num_heads=2, num_kv_heads=1)
    np.testing.assert_allclose(smaller, gated, rtol=0, atol=1e-12)


def test_what_cannot_be_is_refused():
    for kept, words in (([], "no heads"), ([0, 4], "got 4, wants heads from 0 to 3"), ([-1, 2], "got -1"), ([2, 2], "at most once")):
        with pytest.raises(ValueError, match=f"kept: .*{words}"):
            without_heads(PLAIN, kept=kept, num_heads=4)
    with pytest.raises(ValueError, match=r"kept: .*equally many of each group of 2"):
        without_heads(GROUPED, kept=[0, 1, 2], num_heads=4)
    for wrong in (5, 8, 12):
        with pytest.raises(ValueError, match=f"num_heads: got {wrong}"):
            without_heads(PLAIN, kept=[0], num_heads=wrong)


@pytest.mark.parity
def test_the_arrays_are_those_of_hugging_face_s_pruning():
    """prune_linear_layer, given the rows of torch's (d_out, d_in) that the heads are."""
    torch, utils = pytest.importorskip("torch"), pytest.importorskip("transformers.pytorch_utils")
    params = MultiHeadAttention(*linears(8, (8, 12), (8, 12), (8, 12), (12, 8)))
    params = trees.cast(params, np.float32)                  # theirs makes layers of float32
    smaller = without_heads(params, kept=[0, 2], num_heads=4)
    index = torch.arange(12).view(4, 3)[[0, 2]].reshape(-1)
    for part, own, dim in zip(params[:4], smaller[:4], (0, 0, 0, 1), strict=True):
        layer = torch.nn.Linear(*part.weight.shape)
        layer.load_state_dict({"weight": torch.tensor(part.weight.T.copy()), "bias": torch.tensor(part.bias)})
        theirs = utils.prune_linear_layer(layer, index, dim=dim)
        np.testing.assert_allclose(own.weight, theirs.weight.detach().numpy().T, rtol=0, atol=0)
        np.testing.assert_allclose(own.bias, theirs.bias.detach().numpy(), rtol=0, atol=0)
