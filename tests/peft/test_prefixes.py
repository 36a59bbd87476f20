"""Prefixes of all layers of whole models: they are trained, the model is not, and its own code decodes with them."""

from functools import partial

import numpy as np
import pytest

from minitransformers import trees
from minitransformers.attention.cache import key_value_cache
from minitransformers.attention.core import causal
from minitransformers.attention.softmax_off_by_one import SoftmaxOffByOne, softmax_off_by_one_attention
from minitransformers.foundation import assert_gradients
from minitransformers.models.gpt2 import Gpt2State, gpt2, gpt2_step, init_gpt2
from minitransformers.models.llama import LlamaState, init_llama, llama, llama_step
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model
from minitransformers.peft.prefix_attention import prefix_attention
from minitransformers.peft.prefixes import init_prefixes, with_prefixes

IDS = np.random.default_rng(0).integers(7, size=(2, 4))


def noisy(params, seed=1):
    rng = np.random.default_rng(seed)
    return trees.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape), params)


def a_gpt2(context=6):
    base = init_gpt2(np.random.default_rng(2), vocabulary=7, context=context, d_model=6, num_layers=2, num_heads=3, dtype=np.float64)
    return noisy(base), partial(gpt2, num_heads=3), 3, 2


def a_llama():
    sizes = {"vocabulary": 7, "d_model": 8, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "d_hidden": 5, "tied": True}
    return noisy(init_llama(np.random.default_rng(3), **sizes, dtype=np.float64)), partial(llama, num_heads=4), 2, 2


MODELS = {"gpt2": a_gpt2, "llama, grouped": a_llama}


def prefixes(heads, d_head, length=3, num_layers=2, std=1.0):
    rng = np.random.default_rng(4)
    return init_prefixes(rng, num_layers=num_layers, num_kv_heads=heads, length=length, d_head=d_head, std=std, dtype=np.float64)


def prefixed(base, run, ids=IDS, core=prefix_attention):
    """The model as a function of the prefixes alone."""

    def with_keys_and_values(keys, values):
        tree, back = with_prefixes(keys, values, base=base)
        logits, backward = run(tree, ids=ids, core=core)
        return logits, lambda dlogits: back(backward(dlogits))

    return with_keys_and_values


@pytest.mark.parametrize("name", MODELS)
def test_prefixes_of_all_layers_are_trained(name):
    base, run, heads, d_head = MODELS[name]()
    report = assert_gradients(prefixed(base, run), *prefixes(heads, d_head), second_opinion=False)
    assert [argument.path for argument in report.arguments] == ["keys", "values"]


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_of_the_whole_tree_is_right_along_directions(name):
    base, run, heads, d_head = MODELS[name]()
    tree, _ = with_prefixes(*prefixes(heads, d_head), base=base)
    rng, h = np.random.default_rng(5), 1e-4
    logits, backward = run(tree, ids=IDS, core=prefix_attention)
    dlogits = rng.normal(size=logits.shape)
    gradient = backward(dlogits)
    for _ in range(3):
        direction = trees.map(lambda leaf: rng.normal(size=leaf.shape), tree)

        def moved(by, direction=direction):
            there = trees.map(lambda leaf, along: leaf + by * h * along, tree, direction)
            return np.sum(dlogits * run(there, ids=IDS, core=prefix_attention)[0])

        slope = (8 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))) / (12 * h)
        products = trees.map(lambda leaf, along: np.sum(leaf * along), gradient, direction)
        np.testing.assert_allclose(sum(total for _, total in trees.leaves(products)), slope, rtol=1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_the_base_stays_as_it_is_and_is_not_copied(name):
    base, run, heads, d_head = MODELS[name]()
    for _, leaf in trees.leaves(base):
        leaf.setflags(write=False)
    tree, back = with_prefixes(*prefixes(heads, d_head), base=base)
    back(run(tree, ids=IDS, core=prefix_attention)[1](np.ones((2, 4, 7))))
    own = {path: leaf for path, leaf in trees.leaves(tree) if ".core." not in path}
    assert own.keys() == dict(trees.leaves(base)).keys()
    assert all(own[path] is leaf for path, leaf in trees.leaves(base))


@pytest.mark.parametrize("name", MODELS)
def test_each_layer_gets_its_own_and_all_of_them_matter(name):
    base, run, heads, d_head = MODELS[name]()
    keys, values = prefixes(heads, d_head)
    tree, back = with_prefixes(keys, values, base=base)
    for layer in range(2):
        np.testing.assert_array_equal(tree.blocks[layer].attention.core.key, keys[layer])
        np.testing.assert_array_equal(tree.blocks[layer].attention.core.value, values[layer])
    logits, backward = run(tree, ids=IDS, core=prefix_attention)
    gradient = backward(np.cos(logits))
    dkeys, dvalues = back(gradient)
    np.testing.assert_array_equal(dkeys[1], gradient.blocks[1].attention.core.key)
    np.testing.assert_array_equal(dvalues[0], gradient.blocks[0].attention.core.value)
    assert np.abs(dkeys).max(axis=(2, 3)).min() > 0 and np.abs(logits - run(base, ids=IDS)[0]).max() > 0.1


@pytest.mark.parametrize(("num_layers", "heads", "length", "d_head"), [(2, 3, 5, 4), (30, 3, 16, 64)])
def test_there_are_two_numbers_for_each_layer_slot_and_feature(num_layers, heads, length, d_head):
    made = init_prefixes(np.random.default_rng(0), num_layers=num_layers, num_kv_heads=heads, length=length, d_head=d_head)
    assert trees.count_parameters(made) == 2 * num_layers * length * heads * d_head
    assert all(leaf.dtype == np.float32 and abs(leaf.std() / 0.02 - 1) < 0.15 and abs(leaf.mean()) < 0.005 for leaf in made)


def test_words_in_front_are_prefixes_for_gpt2_where_the_text_goes_on_counting():
    base, run, _, _ = a_gpt2()
    words = np.array([[3, 1]])
    state = gpt2_step(base, words, None, num_heads=3)[1]
    keys, values = (np.stack([getattr(cache, name)[0] for cache in state.blocks]) for name in ("keys", "values"))
    tree, _ = with_prefixes(keys, values, base=base)
    whole = run(base, ids=np.concatenate([np.repeat(words, 2, axis=0), IDS], axis=1))[0]
    after = run(tree, ids=IDS, positions=np.arange(2, 6), core=prefix_attention)[0]
    np.testing.assert_allclose(after, whole[:, 2:], rtol=0, atol=1e-13)
    assert np.abs(run(tree, ids=IDS, core=prefix_attention)[0] - whole[:, 2:]).max() > 1e-2  # the text's own positions begin at 0


@pytest.mark.parametrize("pieces", [(4,), (1, 1, 1, 1), (3, 1), (2, 2)])
def test_the_prefix_may_be_the_beginning_of_the_cache(pieces):
    """It has taken no position: the model's own steps then decode with it, and copy nothing."""
    for name in MODELS:
        base, run, heads, d_head = MODELS[name]()
        keys, values = prefixes(heads, d_head)
        at_heads = (keys, values) if name == "gpt2" else (keys[:, :, None], values[:, :, None])  # grouped: the axis of the group
        caches = [key_value_cache(None, *(np.repeat(a[None], 2, axis=0) for a in own))._replace(length=0) for own in zip(*at_heads, strict=True)]
        state = Gpt2State(caches, 0) if name == "gpt2" else LlamaState(caches)
        step = partial(gpt2_step, num_heads=3) if name == "gpt2" else partial(llama_step, num_heads=4)
        parts, start = [], 0
        for size in pieces:
            part, state = step(base, IDS[:, start : start + size], state)
            parts.append(part)
            start += size
        tree, _ = with_prefixes(keys, values, base=base)
        np.testing.assert_allclose(np.concatenate(parts, axis=1), run(tree, ids=IDS, core=prefix_attention)[0], rtol=0, atol=1e-12, err_msg=name)


def test_padding_in_front_changes_nothing():
    base, run, heads, d_head = a_llama()
    tree, _ = with_prefixes(*prefixes(heads, d_head), base=base)
    run = partial(run, core=prefix_attention)
    mask = (np.arange(6) >= 2)[None, None, None]
    padded = run(tree, ids=np.concatenate([np.zeros((2, 2), int), IDS], axis=1), mask=mask)[0]
    moved = run(tree, ids=np.concatenate([np.ones((2, 2), int), IDS], axis=1), mask=mask)[0]
    np.testing.assert_array_equal(padded[:, 2:], moved[:, 2:])


def test_what_the_base_s_own_cores_learned_stays_inside():
    base, run, heads, d_head = a_gpt2()
    sinks = [SoftmaxOffByOne(np.array([0.5, -1.0, 2.0]) + i) for i in range(2)]
    with_sinks = base._replace(blocks=[b._replace(attention=b.attention._replace(core=s)) for b, s in zip(base.blocks, sinks, strict=True)])
    inside = causal(softmax_off_by_one_attention)
    core = partial(prefix_attention, core=inside)
    keys, values = prefixes(heads, d_head)
    assert_gradients(prefixed(with_sinks, run, core=core), keys, values, second_opinion=False)
    tree, _ = with_prefixes(keys, values, base=with_sinks)
    assert all(block.attention.core.core is sink for block, sink in zip(tree.blocks, sinks, strict=True))


@pytest.mark.parametrize("num_layers", [1, 3])
def test_as_many_prefixes_as_attentions(num_layers):
    base, _, heads, d_head = a_gpt2()
    with pytest.raises(ValueError, match=rf"keys: got those of {num_layers} layers, wants one for each attention of base: blocks\.0\.attention, blocks\.1"):
        with_prefixes(*prefixes(heads, d_head, num_layers=num_layers), base=base)
    keys, values = prefixes(heads, d_head)
    with pytest.raises(ValueError, match="values"):
        with_prefixes(keys, values[:1], base=base)


def test_a_model_without_attention_has_no_place_for_one():
    config = LanguageModelConfig(5, context=6, d_model=4, num_layers=1, mixer="mamba", position="none")
    base = init_language_model(np.random.default_rng(7), config, dtype=np.float64)
    with pytest.raises(ValueError, match="keys: got those of 2 layers, wants one for each attention of base: there is none"):
        with_prefixes(*prefixes(3, 2), base=base)


def test_heads_of_queries_are_not_those_of_keys():
    base, _, _, _ = a_llama()
    with pytest.raises(ValueError, match=r"keys: got 4 heads of 2, wants heads that are together as wide as blocks\.0\.attention\.key, 4"):
        with_prefixes(*prefixes(4, 2), base=base)
    keys, values = prefixes(2, 2)
    with pytest.raises(ValueError, match=r"values: got 2 heads of 1, wants .* blocks\.0\.attention\.value, 4"):
        with_prefixes(keys, values[..., :1], base=base)
    with pytest.raises(ValueError, match=r"base\.embedding\.weight: got float32, wants float64, as keys is"):
        with_prefixes(keys, values, base=trees.cast(base, np.float32))


def test_a_prefix_longer_than_the_context_is_refused_where_there_is_one():
    base, run, heads, d_head = a_gpt2(context=4)
    with pytest.raises(ValueError, match=r"keys: got 5 positions, wants at most the context, 4, of positions"):
        with_prefixes(*prefixes(heads, d_head, length=5), base=base)
    tree, _ = with_prefixes(*prefixes(heads, d_head, length=4), base=base)
    assert run(tree, ids=IDS, core=prefix_attention)[0].shape == (2, 4, 7)  # the text has all of its own positions
    base, run, heads, d_head = a_llama()
    tree, _ = with_prefixes(*prefixes(heads, d_head, length=50), base=base)
    assert run(tree, ids=IDS, core=prefix_attention)[0].shape == (2, 4, 7)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_it_is_what_peft_does_to_gpt2_but_for_the_positions():
    """There the text's positions begin behind the prefix."""
    torch, transformers, peft = (pytest.importorskip(name) for name in ("torch", "transformers", "peft"))
    from minitransformers.models.gpt2 import load_gpt2

    torch.manual_seed(0)
    sizes = transformers.GPT2Config(vocab_size=7, n_positions=9, n_embd=6, n_layer=2, n_head=3, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    theirs = transformers.GPT2LMHeadModel(sizes).double()
    base = load_gpt2({name: leaf.detach().numpy() for name, leaf in theirs.state_dict().items()})
    base = trees.map(np.array, base)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    wrapped = peft.get_peft_model(theirs, config).double()
    table = next(p for n, p in wrapped.named_parameters() if "prompt_encoder" in n)  # (P, 2 layers heads d_head)
    keys, values = prefixes(3, 2)
    with torch.no_grad():
        table.copy_(torch.tensor(np.stack([keys, values], axis=1).transpose(3, 0, 1, 2, 4).reshape(3, -1)))
    logits = wrapped(input_ids=torch.tensor(IDS)).logits
    tree, back = with_prefixes(keys, values, base=base)
    out, backward = gpt2(tree, ids=IDS, num_heads=3, positions=np.arange(3, 7), core=prefix_attention)
    np.testing.assert_allclose(out, logits.detach(), rtol=0, atol=1e-12)
    dlogits = np.random.default_rng(6).normal(size=out.shape)
    logits.backward(torch.tensor(dlogits))
    dtable = np.stack(back(backward(dlogits)), axis=1).transpose(3, 0, 1, 2, 4).reshape(3, -1)
    np.testing.assert_allclose(dtable, table.grad, rtol=0, atol=1e-12)
