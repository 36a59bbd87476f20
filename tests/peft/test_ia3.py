"""Numbers that scale what maps make and read: equal to scaling the activations, merged by being used, and taken out by division."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import trees
from minitransformers.attention.grouped_query_attention import grouped_query_attention
from minitransformers.attention.multi_head_attention import multi_head_attention
from minitransformers.basics.linear import Linear
from minitransformers.foundation import assert_gradients, check_gradients
from minitransformers.models.bert import bert, load_bert
from minitransformers.models.gpt2 import gpt2, init_gpt2
from minitransformers.models.llama import init_llama, llama
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model, language_model
from minitransformers.peft.ia3 import Ia3, ia3, init_ia3, unmerge_ia3, with_ia3

IDS = np.random.default_rng(0).integers(7, size=(2, 4))


def noisy(params, seed=1):
    rng = np.random.default_rng(seed)
    return trees.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(leaf.dtype), params)


def a_gpt2(d_model=4, num_layers=2, dtype=np.float64):
    base = init_gpt2(np.random.default_rng(2), vocabulary=7, context=6, d_model=d_model, num_layers=num_layers, num_heads=2, dtype=dtype)
    return noisy(base), partial(gpt2, num_heads=2), {}


def a_llama():
    sizes = {"vocabulary": 7, "d_model": 8, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "d_hidden": 5, "tied": True}
    return noisy(init_llama(np.random.default_rng(3), **sizes, dtype=np.float64)), partial(llama, num_heads=4), {}


def a_mamba():
    """What is scaled there is what the gate lets through, on its way to the output."""
    config = LanguageModelConfig(7, context=8, d_model=4, num_layers=2, mixer="mamba", position="none",
                                 options={"mixer": {"d_state": 2, "d_conv": 2}, "channel": {"d_hidden": 3}})  # fmt: skip
    base = noisy(init_language_model(np.random.default_rng(4), config, dtype=np.float64))
    return base, partial(language_model, config=config), {"outputs": ["dt_proj"], "inputs": ["out_proj", "channel.down"]}


MODELS = {"gpt2": a_gpt2, "llama": a_llama, "mamba": a_mamba}


@pytest.mark.parametrize("none", [None, "inputs", "outputs"])
def test_scaling_the_weight_is_scaling_what_goes_in_and_what_comes_out(none):
    rng = np.random.default_rng(5)
    weight, x, dout = rng.normal(size=(5, 4)), rng.normal(size=(3, 5)), rng.normal(size=(3, 4))
    params = Ia3(rng.normal(size=5), rng.normal(size=4))
    if none:
        params = params._replace(**{none: None})

    def textbook(inputs, outputs):
        """One output of one row at a time."""
        return anp.stack([
            anp.stack([sum(x[n, i] * inputs[i] * weight[i, j] for i in range(5)) * outputs[j] for j in range(4)]) for n in range(3)
        ])  # fmt: skip

    ones = [np.ones(n) if own is None else own for n, own in zip((5, 4), params, strict=True)]
    scaled, backward = ia3(params, base=weight)
    np.testing.assert_allclose(x @ scaled, textbook(*ones), rtol=0, atol=1e-12)
    expected = autograd.grad(lambda *own: anp.sum(dout * textbook(*own)), (0, 1))(*ones)
    for own, given, theirs in zip(backward(x.T @ dout), params, expected, strict=True):
        if given is None:
            assert own is None
        else:
            np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)
    assert_gradients(partial(ia3, base=weight), params)


@pytest.mark.parametrize("name", MODELS)
def test_ones_leave_every_bit_of_the_model(name):
    base, run, patterns = MODELS[name]()
    for model in (base, trees.cast(base, np.float32)):
        trained = init_ia3(model, **patterns)
        tree, _ = with_ia3(trained, base=model)
        for (path, own), (_, theirs) in zip(trees.leaves(tree), trees.leaves(model), strict=True):
            np.testing.assert_array_equal(own, theirs, err_msg=path)
        np.testing.assert_array_equal(run(tree, ids=IDS)[0], run(model, ids=IDS)[0])
        assert {leaf.dtype for _, leaf in trees.leaves(trained)} == {model.embedding.weight.dtype}


def scaled(base, run, trained):
    def of_the_scales(own):
        tree, back = with_ia3(own, base=base)
        logits, backward = run(tree, ids=IDS)
        return logits, lambda dlogits: back(backward(dlogits))

    return of_the_scales


@pytest.mark.parametrize("name", MODELS)
def test_scales_are_trained_in_any_model_and_nothing_else_is(name):
    base, run, patterns = MODELS[name]()
    for _, leaf in trees.leaves(base):
        leaf.setflags(write=False)
    trained = noisy(init_ia3(base, **patterns))
    report = assert_gradients(scaled(base, run, trained), trained, second_opinion=False)
    assert {argument.path.rpartition(".")[2] for argument in report.arguments} == {"inputs", "outputs"}
    assert len(report.arguments) == 2 * 3


def test_scaled_weights_and_biases_of_a_block_are_scaled_keys_values_and_hidden_features():
    base, run, _ = a_gpt2(num_layers=1)
    trained = noisy(init_ia3(base))
    l_key, l_value = (getattr(trained.blocks[0].attention, name).outputs for name in ("key", "value"))
    l_hidden = trained.blocks[0].feed_forward.down.inputs
    seen = {}

    def attention(params, x, **settings):
        """The same attention with keys and values multiplied where they arrive at the core."""

        def core(own, query, key, value, bias=None, *, mask=None):
            seen["key"] = key
            at_heads = (scale.reshape(2, 1, 2) for scale in (l_key, l_value))
            key, value = (part * scale for part, scale in zip((key, value), at_heads, strict=True))
            return settings["core"](own, query, key, value, bias, mask=mask)

        return multi_head_attention(params, x, **{**settings, "core": core})

    def feed_forward(params, x):
        hidden = x @ params.up.weight + params.up.bias
        hidden = 0.5 * hidden * (1 + np.tanh((2 / np.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)))
        return (hidden * l_hidden) @ params.down.weight + params.down.bias, None

    activations = run(base, ids=IDS, attention=attention, feed_forward=feed_forward)[0]
    np.testing.assert_allclose(run(with_ia3(trained, base=base)[0], ids=IDS)[0], activations, rtol=0, atol=1e-12)
    assert seen["key"].shape == (2, 2, 4, 2)


def test_in_grouped_attention_a_scale_belongs_to_a_head_of_keys():
    base, run, _ = a_llama()
    trained = noisy(init_ia3(base))

    def attention(params, x, **settings):
        def core(own, query, key, value, bias=None, *, mask=None):
            key, value = key * l_key.reshape(2, 1, 1, 2), value * l_value.reshape(2, 1, 1, 2)
            return settings["core"](own, query, key, value, bias, mask=mask)

        return grouped_query_attention(params, x, **{**settings, "num_kv_heads": 2, "core": core, "prepare": settings["prepare"]})

    one = base._replace(blocks=base.blocks[:1])
    own = trained._replace(blocks=trained.blocks[:1])
    own.blocks[0] = own.blocks[0]._replace(feed_forward=trees.map(lambda leaf: None, own.blocks[0].feed_forward))
    # RoPE pairs the features m and m + 1 of a head: scaled alike, a key that is turned and one that is to be are scaled the same.
    l_key, l_value = np.repeat([0.7, 1.9], 2), own.blocks[0].attention.value.outputs
    own.blocks[0] = own.blocks[0]._replace(attention=own.blocks[0].attention._replace(key=Ia3(None, l_key)))
    np.testing.assert_allclose(
        run(with_ia3(own, base=one)[0], ids=IDS)[0], run(one, ids=IDS, attention=attention)[0], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(("d_model", "num_layers"), [(4, 2), (8, 3)])
def test_a_block_has_twice_the_width_and_the_hidden_one(d_model, num_layers):
    base, _, _ = a_gpt2(d_model, num_layers)
    hidden = len(base.blocks[0].feed_forward.down.weight)
    assert trees.count_parameters(init_ia3(base)) == num_layers * (2 * d_model + hidden)
    assert trees.count_parameters(init_ia3(a_llama()[0])) == 2 * (2 * 4 + 5)  # keys and values are half as wide there


def test_what_scales_the_inputs_leaves_the_bias_alone():
    rng = np.random.default_rng(6)
    base = (Linear(rng.normal(size=(5, 4)), rng.normal(size=4)), Linear(rng.normal(size=(4, 3)), None))
    both = Ia3(rng.normal(size=5), rng.normal(size=4))
    (made, _), _ = with_ia3((both, None), base=base)
    np.testing.assert_array_equal(made.weight, both.inputs[:, None] * base[0].weight * both.outputs)
    np.testing.assert_array_equal(made.bias, base[0].bias * both.outputs)
    (made, _), _ = with_ia3((Ia3(both.inputs, None), None), base=base)
    assert made.bias is base[0].bias
    (_, made), _ = with_ia3((None, Ia3(None, np.ones(3))), base=base)
    assert made.bias is None


def test_dividing_gives_the_model_back_to_rounding():
    base, _, _ = a_gpt2()
    trained = noisy(init_ia3(base))
    tree, _ = with_ia3(trained, base=base)
    for (path, own), (_, theirs) in zip(trees.leaves(unmerge_ia3(tree, trained)), trees.leaves(base), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=1e-14, err_msg=path)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_scale_that_cannot_be_divided_by_is_refused_with_its_place(bad):
    base, _, _ = a_gpt2()
    trained = init_ia3(base)
    trained.blocks[1].attention.value.outputs[2] = bad
    with pytest.raises(ValueError, match=r"trained\.blocks\.1\.attention\.value\.outputs: got a scale of 0 or one that is not finite"):
        unmerge_ia3(base, trained)


def test_the_checker_refuses_a_bias_that_is_scaled_and_forgotten():
    base, run, _ = a_gpt2(num_layers=1)
    trained = noisy(init_ia3(base))

    def wrong(own):
        tree, back = with_ia3(own, base=base)
        logits, backward = run(tree, ids=IDS)

        def without_biases(dlogits):
            dtree = backward(dlogits)
            attention = dtree.blocks[0].attention
            attention = attention._replace(value=attention.value._replace(bias=np.zeros_like(attention.value.bias)))
            return back(dtree._replace(blocks=[dtree.blocks[0]._replace(attention=attention)]))

        return logits, without_biases

    report = check_gradients(wrong, trained, second_opinion=False)
    assert [argument.error > 1e-2 for argument in report.arguments] == ["value" in argument.path for argument in report.arguments]


def test_patterns_and_scales_that_do_not_fit_are_refused_by_name():
    base, _, _ = a_gpt2()
    with pytest.raises(ValueError, match=r"patterns: got 'k_proj\.weight', wants .*blocks\.\*\.attention\.key\.weight"):
        init_ia3(base, outputs=["k_proj"])
    trained = init_ia3(base)
    trained.blocks[0] = trained.blocks[0]._replace(attention=trained.blocks[0].attention._replace(key=Ia3(None, np.ones(3))))
    with pytest.raises(ValueError, match=r"scales of nothing and 3, wants as many as base, \(4, 4\), has rows and columns"):
        with_ia3(trained, base=base)
    trained = init_ia3(base)._replace(norm=Ia3(None, np.ones(4)))
    with pytest.raises(ValueError, match=r"trained\.norm: got Ia3, wants LayerNorm or None, as base has"):
        with_ia3(trained, base=base)


def test_one_of_the_two_may_be_asked_for_alone():
    base, _, _ = a_gpt2()
    assert {path.rpartition(".")[2] for path, _ in trees.leaves(init_ia3(base, inputs=[]))} == {"outputs"}
    assert {path.rpartition(".")[2] for path, _ in trees.leaves(init_ia3(base, outputs=[]))} == {"inputs"}
    both = init_ia3(base, outputs=["attention.key"], inputs=["0.attention.key"])
    assert both.blocks[0].attention.key.inputs is not None and both.blocks[0].attention.key.outputs is not None
    assert both.blocks[1].attention.key.inputs is None


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_it_is_what_peft_makes_of_bert():
    torch, transformers, peft = (pytest.importorskip(name) for name in ("torch", "transformers", "peft"))
    torch.manual_seed(0)
    sizes = {"vocab_size": 7, "hidden_size": 6, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 5}
    config = transformers.BertConfig(**sizes, max_position_embeddings=6, attn_implementation="eager")
    theirs = transformers.BertModel(config, add_pooling_layer=False).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    base = trees.map(np.array, load_bert({name: leaf.detach().numpy() for name, leaf in theirs.state_dict().items()}))
    hidden = r"encoder\.layer\.\d\.output\.dense"
    wrapped = peft.get_peft_model(theirs, peft.IA3Config(target_modules=rf".*self\.(key|value)|{hidden}", feedforward_modules=hidden)).double().eval()
    trained = noisy(init_ia3(base))
    places = {"attention.self.key": "attention.key.outputs", "attention.self.value": "attention.value.outputs", "output.dense": "feed_forward.down.inputs"}
    ours, tensors = dict(trees.leaves(trained)), {}
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            layer, _, rest = name.partition("encoder.layer.")[2].partition(".")
            path = f"blocks.{layer}.{places[rest.partition('.ia3_l')[0]]}"
            with torch.no_grad():
                parameter.copy_(torch.tensor(ours[path]).reshape(parameter.shape))
            tensors[path] = parameter
    assert tensors.keys() == ours.keys()
    tree, back = with_ia3(trained, base=base)
    out, backward = bert(tree, ids=IDS, num_heads=2)
    reference = wrapped(input_ids=torch.tensor(IDS)).last_hidden_state
    np.testing.assert_allclose(out.hidden, reference.detach(), rtol=0, atol=1e-12)
    dhidden = np.random.default_rng(7).normal(size=reference.shape)
    reference.backward(torch.tensor(dhidden))
    for path, own in trees.leaves(back(backward(out._replace(hidden=dhidden)._replace(**{name: None for name in out._fields if name != "hidden"})))):
        np.testing.assert_allclose(own, tensors[path].grad.reshape(own.shape), rtol=0, atol=1e-11, err_msg=path)
