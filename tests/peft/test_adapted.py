"""An adapter behind a sub-layer: in the slots of GPT-2 and Llama, in a block of parts with Mamba, before a norm and behind one."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.attention.multi_head_attention import (
    init_multi_head_attention,
    multi_head_attention,
    multi_head_attention_step,
)
from minitransformers.basics.chain import chain
from minitransformers.basics.feed_forward import feed_forward, init_feed_forward
from minitransformers.basics.gated_feed_forward import gated_feed_forward
from minitransformers.basics.linear import Linear
from minitransformers.basics.residual import residual
from minitransformers.foundation import reparameterize, trusted
from minitransformers.models.gpt2 import gpt2, init_gpt2
from minitransformers.models.llama import init_llama, llama, llama_attention
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model, language_model
from minitransformers.norms.layer_norm import LayerNorm, layer_norm
from minitransformers.peft.adapted import Adapted, adapted, adapted_step
from minitransformers.peft.bottleneck_adapter import BottleneckAdapter, bottleneck_adapter, init_bottleneck_adapter

IDS = np.array([[1, 4, 1, 0], [0, 2, 2, 3]])
checked = trusted(check_gradients)


def random_adapter(rng, d_model):
    down, up = rng.normal(size=(d_model, 2)), rng.normal(size=(2, d_model))
    return BottleneckAdapter(Linear(down, rng.normal(size=2)), Linear(up, rng.normal(size=d_model)))


def with_adapters(model, make, slots=("attention", "feed_forward")):
    """The model with an adapter behind what stands in these slots of every block."""
    blocks = [block._replace(**{slot: Adapted(getattr(block, slot), make()) for slot in slots}) for block in model.blocks]
    return model._replace(blocks=blocks)


def tanh_gelu(z):
    return z / 2 * (1 + anp.tanh(anp.sqrt(2 / anp.pi) * (z + 0.044715 * z**3)))


def narrow(params, x):
    (w, b), (v, c) = params[:2]
    return x + tanh_gelu(x @ w + b) @ v + c


@pytest.mark.parametrize("position", ["post-norm", "pre-norm"])
def test_around_it_stand_the_norm_and_the_sum_of_the_paper(position):
    """LN(x + A(F(x))), and x + A(F(LN(x))): outputs and gradients."""
    rng = np.random.default_rng(0)
    work, own = Adapted(init_feed_forward(rng, 5, d_hidden=4, dtype=np.float64), random_adapter(rng, 5)), LayerNorm(*rng.normal(size=(2, 5)))
    x, dout = rng.normal(size=(3, 5)), rng.normal(size=(3, 5))
    part = partial(adapted, part=feed_forward)
    if position == "post-norm":
        params, whole = (work, own), partial(chain, parts=(partial(residual, part=part), layer_norm))
    else:
        params, whole = (own, work), partial(residual, part=partial(chain, parts=(layer_norm, part)))

    def normed(p, row):
        return p.gain * (row - anp.mean(row)) / anp.sqrt(anp.mean((row - anp.mean(row)) ** 2) + 1e-5) + p.bias

    def wide(p, row):
        return tanh_gelu(row @ p.up.weight + p.up.bias) @ p.down.weight + p.down.bias

    def textbook(leaves, x):
        one, two = trees.unflatten(params, leaves)
        if position == "post-norm":
            return anp.stack([normed(two, row + narrow(one.adapter, wide(one.part, row))) for row in x])
        return anp.stack([row + narrow(two.adapter, wide(two.part, normed(one, row))) for row in x])

    leaves = [leaf for _, leaf in trees.leaves(params)]
    out, backward = whole(params, x)
    np.testing.assert_allclose(out, textbook(leaves, x), rtol=0, atol=1e-10)
    expected = autograd.grad(lambda args: anp.sum(dout * textbook(*args)))((leaves, x))
    dparams, dx = backward(dout)
    np.testing.assert_allclose(dx, expected[1], rtol=0, atol=1e-10)
    for (path, found), theirs in zip(trees.leaves(dparams), expected[0], strict=True):
        np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-10, err_msg=path)
    report = check_gradients(whole, params, x)
    assert report.passed, str(report)


def test_it_is_the_chain_of_the_two_and_the_settings_are_the_part_s_alone():
    rng = np.random.default_rng(1)
    params = Adapted(init_multi_head_attention(rng, 6, num_heads=2, dtype=np.float64), random_adapter(rng, 6))
    x, dout = rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 3, 6))
    settings = {"num_heads": 2, "mask": rng.random((2, 1, 3, 3)) < 0.6}
    out, backward = adapted(params, x, part=multi_head_attention, **settings)
    theirs, their_backward = chain(tuple(params), x, parts=(partial(multi_head_attention, **settings), bottleneck_adapter))
    np.testing.assert_array_equal(out, theirs)
    for (_, own), expected in zip(trees.leaves(backward(dout)), (leaf for _, leaf in trees.leaves(their_backward(dout))), strict=True):
        np.testing.assert_array_equal(own, expected)
    with pytest.raises(TypeError, match="num_heads"):        # a chain hands settings to all its parts
        chain(tuple(params), x, parts=(multi_head_attention, bottleneck_adapter), **settings)


def small_gpt2(rng):
    return init_gpt2(rng, vocabulary=5, context=4, d_model=4, num_layers=2, num_heads=2, std=0.5, dtype=np.float64)


def small_llama(rng):
    return init_llama(rng, vocabulary=5, d_model=4, num_layers=2, num_heads=2, num_kv_heads=1, d_hidden=3, std=0.5, dtype=np.float64)


MODELS = {
    "gpt2": (small_gpt2, gpt2, multi_head_attention, feed_forward),
    "llama": (small_llama, llama, llama_attention, gated_feed_forward),
}


@pytest.fixture(params=MODELS)
def family(request):
    """A model, its function, and the same with adapters in both slots."""
    make, run, attention, work = MODELS[request.param]
    run = partial(run, ids=IDS, num_heads=2)
    return make(np.random.default_rng(2)), run, partial(run, attention=partial(adapted, part=attention), feed_forward=partial(adapted, part=work))


def test_whole_models_with_adapters_in_their_slots_have_the_right_gradients(family):
    model, _, run = family
    trained = with_adapters(model, partial(random_adapter, np.random.default_rng(3), 4))
    report = checked(run, trained, second_opinion=False)
    assert report.passed, str(report)
    assert sum(".adapter." in argument.path for argument in report.arguments) == 2 * 2 * 4


def test_adapters_that_say_nothing_leave_a_model_as_it_was(family):
    model, plain, run = family
    rng = np.random.default_rng(4)
    silent = with_adapters(model, lambda: init_bottleneck_adapter(rng, 4, d_bottleneck=2, std=0.5, residual_std=0.0, dtype=np.float64))
    np.testing.assert_array_equal(run(silent)[0], plain(model)[0])


def test_taken_out_again_they_leave_the_model_that_was_there(family):
    model, plain, run = family
    loud = with_adapters(model, partial(random_adapter, np.random.default_rng(5), 4))
    assert np.abs(run(loud)[0] - plain(model)[0]).max() > 0.1
    bare = loud._replace(blocks=[block._replace(attention=block.attention.part, feed_forward=block.feed_forward.part) for block in loud.blocks])
    np.testing.assert_array_equal(plain(bare)[0], plain(model)[0])


def test_only_adapters_and_norms_are_trained_where_the_rest_is_the_base(family):
    model, _, run = family
    base = with_adapters(model, partial(random_adapter, np.random.default_rng(6), 4))
    trained, _ = trees.partition(base, lambda path, leaf: ".adapter." in path or "norm" in path)

    def tuned(trained):
        tree, back = reparameterize(trained, base=base)
        out, backward = run(tree)
        return out, lambda dout: back(backward(dout))

    report = checked(tuned, trained, second_opinion=False)
    assert report.passed, str(report)
    assert all(".adapter." in argument.path or "norm" in argument.path for argument in report.arguments)
    logits, backward = tuned(trained)
    tree, _ = reparameterize(trees.map(lambda leaf, grad: leaf - 0.1 * grad, trained, backward(logits)), base=base)
    changed = {path for (path, old), (_, new) in zip(trees.leaves(base), trees.leaves(tree), strict=True) if (old != new).any()}
    assert changed == {path for path, _ in trees.leaves(trained)}


def test_two_a_block_have_as_many_parameters_as_the_formula_says():
    model = small_gpt2(np.random.default_rng(7))
    more = with_adapters(model, partial(init_bottleneck_adapter, np.random.default_rng(8), 4, d_bottleneck=3))
    assert trees.count_parameters(more) - trees.count_parameters(model) == 2 * 2 * (2 * 4 * 3 + 3 + 4)


class AdaptedConfig(LanguageModelConfig):
    """The model of parts with an adapter behind every mixer and every channel."""

    @property
    def bound(self):
        parts = LanguageModelConfig.bound.func(self)
        mixers = [mixer._replace(call=partial(adapted, part=mixer.call)) for mixer in parts.mixers]
        return parts._replace(mixers=mixers, channel=partial(adapted, part=parts.channel))


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_a_model_of_parts_with_mamba_takes_them(placement):
    rng = np.random.default_rng(9)
    config = AdaptedConfig(
        vocabulary_size=5, context=4, d_model=4, num_layers=1, num_heads=2, mixer="mamba", position="none", placement=placement,
        options={"channel": {"d_hidden": 3}, "mixer": {"d_state": 2, "expand": 1, "d_conv": 2}},
    )  # fmt: skip
    model = trees.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape), init_language_model(rng, config, dtype=np.float64))
    trained = with_adapters(model, partial(random_adapter, rng, 4), slots=("mixer", "channel"))
    report = checked(language_model, trained, ids=IDS[:, :3], config=config, second_opinion=False)
    assert report.passed, str(report)
    assert sum(".adapter." in argument.path for argument in report.arguments) == 2 * 4


def test_a_few_positions_at_a_time_give_the_same():
    rng = np.random.default_rng(10)
    params = Adapted(init_multi_head_attention(rng, 6, num_heads=2, dtype=np.float64), random_adapter(rng, 6))
    x = rng.normal(size=(2, 5, 6))
    out, _ = adapted(params, x, part=multi_head_attention, num_heads=2)
    for cuts in ([1, 1, 1, 1, 1], [2, 3], [4, 1]):
        state, found, start = None, [], 0
        for size in cuts:
            some, state = adapted_step(params, x[:, start : start + size], state, part=multi_head_attention_step, num_heads=2)
            found.append(some)
            start += size
        np.testing.assert_allclose(np.concatenate(found, axis=1), out, rtol=0, atol=1e-10)


def test_an_adapter_of_another_width_is_refused_by_name():
    rng = np.random.default_rng(11)
    model = small_gpt2(rng)
    wrong = with_adapters(model, partial(random_adapter, rng, 6), slots=("feed_forward",))
    with pytest.raises(ValueError, match=r"feed_forward\.adapter\.down\.weight: got shape \(6, 2\)"):
        gpt2(wrong, ids=IDS, num_heads=2, feed_forward=partial(adapted, part=feed_forward))


@pytest.mark.parametrize("forgotten", ["adapter", "part"])
def test_the_checker_refuses_a_backward_that_walks_through_one_of_the_two_only(forgotten):
    rng = np.random.default_rng(12)
    params = Adapted(init_feed_forward(rng, 5, d_hidden=4, dtype=np.float64), random_adapter(rng, 5))

    def wrong(params, x):
        out, _ = adapted(params, x, part=feed_forward)
        made, part_backward = feed_forward(params.part, x)
        _, adapter_backward = bottleneck_adapter(params.adapter, made)

        def lazy(dout):
            dadapter, dmade = adapter_backward(dout)
            dpart, dx = part_backward(dout if forgotten == "adapter" else dmade)
            return Adapted(dpart, dadapter), dmade if forgotten == "part" else dx

        return out, lazy

    assert not check_gradients(wrong, params, rng.normal(size=(3, 5))).passed


@pytest.mark.parity
def test_in_gpt2_it_is_pytorch_s_gpt2_with_adapters_behind_its_sub_layers():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from minitransformers.models.gpt2 import load_gpt2

    torch.manual_seed(0)
    sizes = transformers.GPT2Config(vocab_size=13, n_positions=8, n_embd=8, n_layer=2, n_head=2, resid_pdrop=0, attn_pdrop=0, embd_pdrop=0)
    theirs = transformers.GPT2LMHeadModel(sizes).double().eval()
    model = load_gpt2({name: tensor.numpy() for name, tensor in theirs.state_dict().items()})
    params, linears = with_adapters(model, partial(random_adapter, np.random.default_rng(13), 8)), []

    def behind(adapter):
        maps = []
        for side in (adapter.down, adapter.up):
            one = torch.nn.Linear(*side.weight.shape).double()
            one.load_state_dict({"weight": torch.tensor(side.weight.T.copy()), "bias": torch.tensor(side.bias)})
            maps.append(one)
        linears.extend(maps)
        return lambda out: out + maps[1](torch.nn.functional.gelu(maps[0](out), approximate="tanh"))

    for block, own in zip(theirs.transformer.h, params.blocks, strict=True):
        attended, worked = behind(own.attention.adapter), behind(own.feed_forward.adapter)
        block.attn.register_forward_hook(lambda _, __, out, add=attended: (add(out[0]), *out[1:]))
        block.mlp.register_forward_hook(lambda _, __, out, add=worked: add(out))
    ids, dlogits = np.random.default_rng(14).integers(13, size=(3, 7)), np.random.default_rng(15).normal(size=(3, 7, 13))
    logits, backward = gpt2(params, ids=ids, num_heads=2, attention=partial(adapted, part=multi_head_attention),
                            feed_forward=partial(adapted, part=feed_forward))  # fmt: skip
    expected = theirs(torch.tensor(ids)).logits
    np.testing.assert_allclose(logits, expected.detach(), rtol=0, atol=1e-9)
    expected.backward(torch.tensor(dlogits))
    found = [side for block in backward(dlogits).blocks for part in (block.attention, block.feed_forward) for side in part.adapter[:2]]
    for own, tensor in zip(found, linears, strict=True):
        np.testing.assert_allclose(own.weight, tensor.weight.grad.T, rtol=0, atol=1e-9)
        np.testing.assert_allclose(own.bias, tensor.bias.grad, rtol=0, atol=1e-9)
