"""A network makes the prefixes of all layers: they land where they belong, and it is not needed afterwards."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import trees
from minitransformers.basics.linear import Linear
from minitransformers.foundation import assert_gradients, check_gradients
from minitransformers.models.gpt2 import gpt2, init_gpt2
from minitransformers.peft.prefix_attention import prefix_attention
from minitransformers.peft.prefix_network import PrefixNetwork, init_prefix_network, prefix_network
from minitransformers.peft.prefixes import with_prefixes

SIZES = {"num_layers": 3, "num_kv_heads": 2}


def network(seed=0, length=4, num_layers=3, num_kv_heads=2, d_head=5):
    rng = np.random.default_rng(seed)
    params = init_prefix_network(
        rng, num_layers=num_layers, num_kv_heads=num_kv_heads, length=length, d_head=d_head, d_embedding=7, d_hidden=6, dtype=np.float64
    )
    return trees.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape), params)


def textbook(params):
    """One number of a key or value at a time, from the column of the last map that makes it."""
    embedding, (w_in, b_in), (w_out, b_out) = params
    made = []
    for part in range(2):
        layers = []
        for layer in range(3):
            heads = []
            for head in range(2):
                first = ((layer * 2 + part) * 2 + head) * 5
                rows = []
                for slot in embedding:
                    power = anp.exp(2 * (anp.dot(slot, w_in) + b_in))
                    rows.append(anp.dot((power - 1) / (power + 1), w_out[:, first : first + 5]) + b_out[first : first + 5])
                heads.append(anp.stack(rows))
            layers.append(anp.stack(heads))
        made.append(anp.stack(layers))
    return anp.stack(made)


def test_equals_the_textbook_and_its_gradients_are_autograd_s():
    params = network()
    out, backward = prefix_network(params, **SIZES)
    plain = tuple(tuple(part) if isinstance(part, Linear) else part for part in params)
    np.testing.assert_allclose(np.stack(out), textbook(plain), rtol=0, atol=1e-12)
    dout = np.random.default_rng(1).normal(size=(2, 3, 2, 4, 5))
    expected = autograd.grad(lambda own: anp.sum(dout * textbook(own)))(plain)
    for (path, own), (_, theirs) in zip(trees.leaves(backward(tuple(dout))), trees.leaves(expected), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-11, err_msg=path)


def test_each_place_is_filled_from_its_own_columns():
    """Layer first, then key or value, then head: the bias alone, with the number of its place."""
    params = network()
    numbered = params._replace(output=Linear(0 * params.output.weight, np.arange(60.0)))
    keys, values = prefix_network(numbered, **SIZES)[0]
    for slot in range(4):
        np.testing.assert_array_equal(np.stack([keys[:, :, slot], values[:, :, slot]], axis=1).ravel(), np.arange(60))


@pytest.mark.parametrize(("num_layers", "heads", "length", "d_head", "d_embedding", "d_hidden"), [(2, 3, 4, 5, 7, 6), (6, 4, 10, 8, 32, 20)])
def test_its_parameters_are_as_many_as_the_formula_says(num_layers, heads, length, d_head, d_embedding, d_hidden):
    params = init_prefix_network(
        np.random.default_rng(0), num_layers=num_layers, num_kv_heads=heads, length=length, d_head=d_head, d_hidden=d_hidden,
        d_embedding=None if d_embedding == heads * d_head else d_embedding,
    )  # fmt: skip
    d = heads * d_head
    made = length * d_embedding + d_embedding * d_hidden + d_hidden + 2 * num_layers * d * d_hidden + 2 * num_layers * d
    assert trees.count_parameters(params) == made
    keys, values = prefix_network(params, num_layers=num_layers, num_kv_heads=heads)[0]
    assert keys.size + values.size == 2 * num_layers * length * d
    assert keys.dtype == np.float32 and 0.3 < keys.std() < 1


def a_model():
    base = init_gpt2(np.random.default_rng(2), vocabulary=7, context=6, d_model=6, num_layers=2, num_heads=3, std=0.5, dtype=np.float64)
    ids = np.random.default_rng(3).integers(7, size=(2, 3))

    def run(params):
        (keys, values), make_backward = prefix_network(params, num_layers=2, num_kv_heads=3)
        tree, back = with_prefixes(keys, values, base=base)
        logits, backward = gpt2(tree, ids=ids, num_heads=3, core=prefix_attention)
        return logits, lambda dlogits: make_backward(back(backward(dlogits)))

    return base, ids, run


def test_it_is_trained_through_a_whole_model():
    assert_gradients(a_model()[2], network(4, num_layers=2, num_kv_heads=3, d_head=2), second_opinion=False)


def test_without_the_network_the_prefixes_give_the_same_bits():
    base, ids, run = a_model()
    params = network(5, num_layers=2, num_kv_heads=3, d_head=2)
    keys, values = (np.array(part) for part in prefix_network(params, num_layers=2, num_kv_heads=3)[0])
    tree, _ = with_prefixes(keys, values, base=base)
    np.testing.assert_array_equal(gpt2(tree, ids=ids, num_heads=3, core=prefix_attention)[0], run(params)[0])


def test_the_checker_refuses_keys_and_values_that_change_places():
    def wrong(params):
        out, backward = prefix_network(params, **SIZES)
        return out, lambda dout: backward((dout[1], dout[0]))

    report = check_gradients(wrong, network())
    assert all(argument.error > 1e-2 for argument in report.arguments)


@pytest.mark.parametrize(("num_layers", "num_kv_heads"), [(3, 4), (7, 2), (4, 3)])
def test_sizes_that_do_not_share_the_rows_are_refused(num_layers, num_kv_heads):
    with pytest.raises(ValueError, match=rf"params\.output: got 60 features, wants a multiple of 2 .* = {2 * num_layers * num_kv_heads}"):
        prefix_network(network(), num_layers=num_layers, num_kv_heads=num_kv_heads)


@pytest.mark.parity
def test_it_is_peft_s_prefix_encoder():
    torch, peft = (pytest.importorskip(name) for name in ("torch", "peft"))
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, token_dim=10, num_layers=3, num_attention_heads=2, prefix_projection=True, encoder_hidden_size=6,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = peft.tuners.PrefixEncoder(config).double()
    table, w_in, b_in, w_out, b_out = (leaf.detach().numpy() for leaf in theirs.parameters())
    params = PrefixNetwork(table, Linear(w_in.T, b_in), Linear(w_out.T, b_out))
    rows = theirs(torch.arange(4)[None])
    past = rows.view(1, 4, 6, 2, 5).permute(2, 0, 3, 1, 4).split(2)  # as its model cuts them, a pair for each layer
    out, backward = prefix_network(params, **SIZES)
    for layer, pair in enumerate(past):
        for own, other in zip(out, pair, strict=True):
            np.testing.assert_allclose(own[layer], other[0].detach(), rtol=0, atol=1e-12)
    dout = np.random.default_rng(1).normal(size=(2, 3, 2, 4, 5))
    sum((pair * torch.tensor(dout[:, layer])[:, None]).sum() for layer, pair in enumerate(past)).backward()
    gradients = [leaf.grad.numpy() for leaf in theirs.parameters()]
    dparams = backward(tuple(dout))
    for own, other in zip((dparams.embedding, dparams.hidden.weight.T, dparams.hidden.bias, dparams.output.weight.T, dparams.output.bias), gradients, strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-12)


def test_a_network_without_biases_works_too():
    params = network(6)
    bare = params._replace(hidden=params.hidden._replace(bias=None), output=params.output._replace(bias=None))
    assert_gradients(prefix_network, bare, **SIZES)
