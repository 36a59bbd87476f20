"""A prefix before keys and values: what a head reads is a mixture, every query sees it, and one gradient serves all texts."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.banded_attention_blocks import banded_attention_blocks
from minitransformers.attention.core import causal_attention, softmax_attention
from minitransformers.attention.grouped_query_attention import (
    grouped_query_attention,
    grouped_query_attention_step,
    init_grouped_query_attention,
)
from minitransformers.attention.masks import causal_mask, sliding_window_mask
from minitransformers.attention.multi_head_attention import (
    init_multi_head_attention,
    multi_head_attention,
    multi_head_attention_step,
)
from minitransformers.attention.prepare import on_both
from minitransformers.attention.softmax_off_by_one import SoftmaxOffByOne, softmax_off_by_one_attention
from minitransformers.foundation import assert_gradients, check_gradients, trees
from minitransformers.peft.prefix_attention import Prefix, prefix_attention
from minitransformers.positional.rope import rope


def case(seed=0, heads=3, prefix=2, positions=4):
    rng = np.random.default_rng(seed)
    params = Prefix(rng.normal(size=(heads, prefix, 5)), rng.normal(size=(heads, prefix, 6)))
    query, key, value = (rng.normal(size=(2, heads, positions, d)) for d in (5, 5, 6))
    return params, query, key, value, rng.normal(size=(2, heads, positions, positions))


def textbook(prefix, query, key, value, bias, allowed):
    """One query at a time: exponentials of the prefix's scores and of those of the text that it may see, and their mean."""
    texts = []
    for n in range(len(query)):
        heads = []
        for h in range(query.shape[1]):
            rows = []
            for i in range(query.shape[2]):
                terms = [(anp.exp(anp.sum(query[n, h, i] * k) / 5**0.5), v) for k, v in zip(prefix[0][h], prefix[1][h], strict=True)]
                terms += [(anp.exp(anp.sum(query[n, h, i] * key[n, h, j]) / 5**0.5 + bias[n, h, i, j]), value[n, h, j])
                          for j in np.flatnonzero(allowed[n, h, i])]  # fmt: skip
                rows.append(sum(e * v for e, v in terms) / sum(e for e, _ in terms))
            heads.append(anp.stack(rows))
        texts.append(anp.stack(heads))
    return anp.stack(texts)


def test_equals_the_textbook_sum_and_its_gradients_are_autograd_s():
    params, *arrays = case()
    mask = np.random.default_rng(1).random((2, 3, 4, 4)) < 0.6
    mask[0, 1] = False                                       # nothing of the text: the prefix is still there
    out, backward = prefix_attention(params, *arrays, mask=mask)
    allowed, dout = mask & np.tri(4, dtype=bool), np.random.default_rng(2).normal(size=out.shape)
    np.testing.assert_allclose(out, textbook(params[:2], *arrays, allowed), rtol=0, atol=1e-10)
    expected = autograd.grad(lambda *a: anp.sum(dout * textbook(*a, allowed)), (0, 1, 2, 3, 4))(params[:2], *arrays)
    for (path, own), (_, theirs) in zip(trees.leaves(backward(dout)), trees.leaves(expected), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10, err_msg=path)


def share(params, query, key):
    """lambda: the prefix's part of the sum that the softmax of a query divides by."""
    of_prefix = np.exp(query @ params.key.swapaxes(-1, -2) / 5**0.5).sum(-1, keepdims=True)
    of_text = (np.exp(query @ key.swapaxes(-1, -2) / 5**0.5) * causal_mask(query.shape[-2], key.shape[-2])).sum(-1, keepdims=True)
    return of_prefix / (of_prefix + of_text)


def test_what_is_read_is_a_mixture_of_the_text_and_the_prefix():
    params, query, key, value, _ = case()
    part = share(params, query, key)
    of_text = causal_attention(None, query, key, value)[0]
    of_prefix = softmax_attention(None, query, params.key, params.value)[0]
    out = prefix_attention(params, query, key, value)[0]
    np.testing.assert_allclose(out, (1 - part) * of_text + part * of_prefix, rtol=0, atol=1e-14)
    assert part.min() > 0.05 and part.max() < 0.95


def test_the_checker_refuses_a_share_that_is_held_still():
    """The gradient of the mixture with lambda as a number: right for the prefix's values, and wrong for its keys."""

    def wrong(params, query, key, value):
        out, backward = prefix_attention(params, query, key, value)

        def still(dout):
            _, of_prefix = softmax_attention(None, query, params.key, params.value)
            _, _, dkey, dvalue, _ = of_prefix(share(params, query, key) * dout)
            return Prefix(dkey, dvalue), *backward(dout)[1:4]

        return out, still

    report = check_gradients(wrong, *case()[:4], second_opinion=False)
    assert [(a.path, a.error > 1e-2) for a in report.arguments][:2] == [("params.key", True), ("params.value", False)]
    assert not report.passed


def test_the_order_of_the_slots_says_nothing():
    params, *arrays = case(prefix=4)
    order = [2, 0, 3, 1]
    (out, backward), (same, same_backward) = (
        prefix_attention(own, *arrays) for own in (params, Prefix(params.key[:, order], params.value[:, order]))
    )
    np.testing.assert_allclose(out, same, rtol=0, atol=1e-14)
    np.testing.assert_allclose(backward(out)[0].key[:, order], same_backward(out)[0].key, rtol=0, atol=1e-14)


def test_scores_of_minus_infinity_for_the_prefix_leave_the_attention_without_it():
    def blind(params, query, key, value, bias, *, mask):
        no_prefix = np.where(np.arange(key.shape[-2]) < 2, -np.inf, 0.0)
        return causal_attention(params, query, key, value, bias + no_prefix, mask=mask)

    params, *arrays = case()
    out, backward = prefix_attention(params, *arrays, core=blind)
    expected, expected_backward = causal_attention(None, *arrays)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-14)
    dprefix, *gradients = backward(out)
    assert not dprefix.key.any() and not dprefix.value.any()
    for own, theirs in zip(gradients, expected_backward(out)[1:], strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(4, 4), (1, 4), (4, 1), (1, 1), (3, 4, 1), (2, 1, 1, 1)])
def test_a_bias_or_mask_may_lack_any_axis_and_is_about_the_text_alone(shape):
    """One number for all keys is none for the prefix: it decides between the two."""
    rng = np.random.default_rng(3)
    params, query, key, value, _ = case()
    bias, mask = rng.normal(size=shape), rng.random(shape) < 0.6
    full = [np.broadcast_to(a, (2, 3, 4, 4)) for a in (bias, mask)]
    out, backward = prefix_attention(params, query, key, value, bias, mask=mask)
    expected, full_backward = prefix_attention(params, query, key, value, full[0], mask=full[1])
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-14)
    axes = tuple(i for i, n in enumerate((1,) * (4 - len(shape)) + shape) if n == 1)
    np.testing.assert_allclose(backward(out)[4], full_backward(out)[4].sum(axes, keepdims=True).reshape(shape), rtol=0, atol=1e-13)


def test_a_text_of_which_nothing_is_seen_leaves_the_prefix_alone():
    params, query, key, value, _ = case()
    out = prefix_attention(params, query, key, value, mask=np.zeros((1, 1), bool))[0]
    np.testing.assert_allclose(out, softmax_attention(None, query, params.key, params.value)[0], rtol=0, atol=1e-14)


def test_one_prefix_for_all_heads_gets_the_sum_of_their_gradients():
    params, *arrays = case(4)
    one, many = (trees.map(lambda leaf: leaf[:1].repeat(n, axis=0), params) for n in (1, 3))
    (out, backward), (same, same_backward) = (prefix_attention(own, *arrays) for own in (one, many))
    np.testing.assert_allclose(out, same, rtol=0, atol=1e-14)
    np.testing.assert_allclose(backward(out)[0].key, same_backward(out)[0].key.sum(0, keepdims=True), rtol=0, atol=1e-13)
    assert_gradients(prefix_attention, one, *arrays)


def test_without_an_axis_of_heads_there_is_one():
    params, query, key, value, bias = case(5, heads=1)
    bare = prefix_attention(params, query[0, 0], key[0, 0], value[0, 0], bias[0, 0])[0]
    np.testing.assert_allclose(bare, prefix_attention(params, query, key, value, bias)[0][0, 0], rtol=0, atol=1e-14)


def test_it_gradients_are_right_with_a_core_inside_that_learns():
    params, *arrays = case(6)
    learned = params._replace(core=SoftmaxOffByOne(np.array([0.3, -0.4, 1.1])))
    report = assert_gradients(prefix_attention, learned, *arrays, core=softmax_off_by_one_attention, mask=np.tri(4, dtype=bool))
    assert "params.core.sink" in {argument.path for argument in report.arguments}


@pytest.mark.parametrize("d_model", [6])
def test_in_multi_head_attention_it_is_trained_and_decodes(d_model):
    rng = np.random.default_rng(7)
    params = init_multi_head_attention(rng, d_model, num_heads=3, dtype=np.float64)
    params = params._replace(core=Prefix(*rng.normal(size=(2, 3, 2, 2))))
    x, bias = rng.normal(size=(2, 5, d_model)), rng.normal(size=(3, 5, 5))
    mask = rng.random((2, 1, 5, 5)) < 0.7
    settings = {"num_heads": 3, "prepare": on_both(rope), "core": prefix_attention}
    assert_gradients(multi_head_attention, params, x, bias, mask=mask, **settings)
    out = multi_head_attention(params, x, bias, mask=mask, **settings)[0]
    for sizes in ((5,), (1, 1, 1, 1, 1), (3, 1, 1), (2, 3)):
        state, parts, start = None, [], 0
        for size in sizes:
            new = slice(start, start + size)
            about = {"bias": bias[..., new, : new.stop], "mask": mask[..., new, : new.stop]}
            part, state = multi_head_attention_step(params, x[:, new], state, **about, **settings)
            parts.append(part)
            start += size
        np.testing.assert_allclose(np.concatenate(parts, axis=1), out, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_under_grouped_queries_a_prefix_belongs_to_a_head_of_keys(num_kv_heads):
    rng = np.random.default_rng(8)
    params = init_grouped_query_attention(rng, 8, num_heads=4, num_kv_heads=num_kv_heads, dtype=np.float64)
    prefix, x, bias = Prefix(*rng.normal(size=(2, num_kv_heads, 3, 2))), rng.normal(size=(2, 5, 8)), rng.normal(size=(4, 5, 5))
    settings = {"num_heads": 4, "num_kv_heads": num_kv_heads, "prepare": on_both(rope), "core": prefix_attention}
    params = params._replace(core=prefix)
    assert_gradients(grouped_query_attention, params, x, bias, **settings)

    def copied(leaf):                                        # the features of a head of keys, once for each head of queries
        heads = leaf.reshape(*leaf.shape[:-1], num_kv_heads, 2)
        return np.repeat(heads, 4 // num_kv_heads, axis=-2).reshape(*leaf.shape[:-1], -1)

    own = trees.map(lambda leaf: np.repeat(leaf, 4 // num_kv_heads, axis=0), prefix)
    full = init_multi_head_attention(rng, 8, num_heads=4, bias=False, dtype=np.float64)._replace(
        query=params.query, key=trees.map(copied, params.key), value=trees.map(copied, params.value), output=params.output, core=own
    )
    out, backward = grouped_query_attention(params, x, bias, **settings)
    del settings["num_kv_heads"]
    expected, full_backward = multi_head_attention(full, x, bias, **settings)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-13)
    summed = trees.map(lambda leaf: leaf.reshape(num_kv_heads, -1, 3, 2).sum(1), full_backward(out)[0].core)
    for name in ("key", "value"):
        np.testing.assert_allclose(getattr(backward(out)[0].core, name), getattr(summed, name), rtol=0, atol=1e-12)


def test_under_grouped_queries_it_decodes():
    rng = np.random.default_rng(9)
    params = init_grouped_query_attention(rng, 8, num_heads=4, num_kv_heads=2, dtype=np.float64)
    params = params._replace(core=Prefix(*rng.normal(size=(2, 2, 3, 2))))
    x, settings = rng.normal(size=(2, 5, 8)), {"num_heads": 4, "num_kv_heads": 2, "prepare": on_both(rope), "core": prefix_attention}
    out = grouped_query_attention(params, x, **settings)[0]
    first, state = grouped_query_attention_step(params, x[:, :2], None, **settings)
    last, _ = grouped_query_attention_step(params, x[:, 2:], state, **settings)
    np.testing.assert_allclose(np.concatenate([first, last], axis=1), out, rtol=0, atol=1e-12)


def test_a_rotation_does_not_turn_the_prefix_so_that_it_stands_at_position_0():
    rng = np.random.default_rng(10)
    params, x = init_multi_head_attention(rng, 4, num_heads=1, dtype=np.float64), rng.normal(size=(5, 4))
    prefix = Prefix(*rng.normal(size=(2, 1, 2, 4)))
    out = multi_head_attention(params._replace(core=prefix), x, num_heads=1, prepare=on_both(rope), core=prefix_attention)[0]
    query, key, value = ((x @ part.weight + part.bias)[None] for part in params[:3])
    positions = np.array([0, 0, 0, 1, 2, 3, 4])              # two slots, then five words
    keys, values = (np.concatenate([own, of_text], axis=1) for own, of_text in ((prefix.key, key), (prefix.value, value)))
    turned = rope(query)[0], rope(keys, positions=positions)[0]
    heads = softmax_attention(None, *turned, values, mask=causal_mask(5, 7))[0][0]
    np.testing.assert_allclose(out, heads @ params.output.weight + params.output.bias, rtol=0, atol=1e-13)


def test_a_window_around_it_holds_for_the_text_alone():
    params, *arrays = case(11, positions=7)
    inside = partial(prefix_attention, core=softmax_attention)
    out, backward = banded_attention_blocks(params, *arrays, window=2, core=inside)
    expected, expected_backward = prefix_attention(params, *arrays, mask=sliding_window_mask(7, window=2))
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-13)
    for (path, own), (_, theirs) in zip(trees.leaves(backward(out)), trees.leaves(expected_backward(out)), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12, err_msg=path)
    # Inside, the prefix is what lies before the window, and is out of reach of all but the first words.
    other = prefix_attention(params, *arrays, core=partial(banded_attention_blocks, window=2))[0]
    plain = banded_attention_blocks(None, *arrays, window=2)[0]
    np.testing.assert_allclose(other[..., 2:, :], plain[..., 2:, :], rtol=0, atol=1e-13)


def test_a_text_in_front_is_a_prefix_of_the_keys_and_values_that_it_leaves_behind():
    rng = np.random.default_rng(12)
    params, words, x = init_multi_head_attention(rng, 6, num_heads=3, dtype=np.float64), rng.normal(size=(3, 6)), rng.normal(size=(4, 6))
    cache = multi_head_attention_step(params, words, None, num_heads=3)[1]
    prefixed = params._replace(core=Prefix(cache.keys, cache.values))
    whole = multi_head_attention(params, np.concatenate([words, x]), num_heads=3)[0]
    np.testing.assert_allclose(multi_head_attention(prefixed, x, num_heads=3, core=prefix_attention)[0], whole[3:], rtol=0, atol=1e-13)


def test_heads_that_are_not_those_of_the_keys_are_refused_inside_an_attention_too():
    rng = np.random.default_rng(13)
    x, prefix = rng.normal(size=(2, 5, 8)), Prefix(*rng.normal(size=(2, 4, 3, 2)))
    grouped = init_grouped_query_attention(rng, 8, num_heads=4, num_kv_heads=2, dtype=np.float64)._replace(core=prefix)
    with pytest.raises(ValueError, match=r"params\.key: got 4 heads, wants as many as keys and values have"):
        grouped_query_attention(grouped, x, num_heads=4, num_kv_heads=2, core=prefix_attention)
    single = init_multi_head_attention(rng, 8, num_heads=4, dtype=np.float64)
    for spoiled, name in ((trees.cast(prefix, np.float32), "float32"), (prefix._replace(value=prefix.value[:, :2]), "value"),
                          (prefix._replace(value=prefix.value[:2]), "value"), (prefix._replace(key=prefix.key[..., :1]), "key")):  # fmt: skip
        with pytest.raises(ValueError, match=rf"params\..*{name}"):
            multi_head_attention(single._replace(core=spoiled), x, num_heads=4, core=prefix_attention)


def test_a_prefix_of_no_slots_is_refused():
    params, *arrays = case()
    with pytest.raises(ValueError, match=r"params\.key: got shape \(3, 0, 5\), wants no empty axis"):
        prefix_attention(trees.map(lambda leaf: leaf[:, :0], params), *arrays)


@pytest.mark.parity
def test_it_is_pytorch_s_attention_to_concatenated_keys():
    torch = pytest.importorskip("torch")
    params, query, key, value, bias = case(14)
    tensors = [torch.tensor(a, requires_grad=True) for a in (*params[:2], query, key, value, bias)]
    prefix_key, prefix_value, q, k, v, b = tensors
    keys, values = (torch.cat([own.expand(2, -1, -1, -1), text], dim=2) for own, text in ((prefix_key, k), (prefix_value, v)))
    hidden = torch.full((4, 4), -torch.inf, dtype=torch.float64).triu(1)
    scores = torch.cat([torch.zeros(2, 3, 4, 2, dtype=torch.float64), b + hidden], dim=3)
    theirs = torch.nn.functional.scaled_dot_product_attention(q, keys, values, attn_mask=scores)
    out, backward = prefix_attention(params, query, key, value, bias)
    np.testing.assert_allclose(out, theirs.detach(), rtol=0, atol=1e-12)
    dout = np.random.default_rng(15).normal(size=out.shape)
    theirs.backward(torch.tensor(dout))
    for (path, own), tensor in zip(trees.leaves(backward(dout)), tensors, strict=True):
        np.testing.assert_allclose(own, tensor.grad, rtol=0, atol=1e-12, err_msg=path)
