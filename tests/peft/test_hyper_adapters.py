"""One network that writes the adapters of all tasks, layers and places: its formula, what tasks share, and whole models."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.attention.multi_head_attention import multi_head_attention
from minitransformers.basics.embedding import Embedding
from minitransformers.basics.feed_forward import feed_forward
from minitransformers.basics.gated_feed_forward import gated_feed_forward
from minitransformers.basics.linear import Linear
from minitransformers.foundation import trusted
from minitransformers.models.gpt2 import gpt2, init_gpt2
from minitransformers.models.llama import init_llama, llama, llama_attention
from minitransformers.norms.layer_norm import LayerNorm, layer_norm
from minitransformers.peft.adapted import Adapted, adapted
from minitransformers.peft.bottleneck_adapter import bottleneck_adapter
from minitransformers.peft.hyper_adapters import (
    hyper_adapter,
    hyper_adapter_weights,
    hyper_adapters,
    init_hyper_adapters,
)

IDS = np.array([[1, 4, 1], [0, 2, 2]])
SIZES = {"d_bottleneck": 2, "num_tasks": 3, "num_layers": 2, "d_row": 4, "d_hidden": 5, "d_code": 8}


def network(seed=0, d_model=3, **changes):
    rng = np.random.default_rng(seed)
    params = init_hyper_adapters(rng, d_model, **{**SIZES, **changes}, std=0.5, dtype=np.float64)
    return trees.map(lambda leaf: leaf + rng.normal(0, 0.2, leaf.shape), params)


def noise_like(tree, seed=1):
    rng = np.random.default_rng(seed)
    return trees.map(lambda leaf: rng.normal(size=leaf.shape), tree)


def normed(gain, bias, row, eps):
    centred = row - anp.sum(row) / len(row)
    return gain * centred / anp.sqrt(anp.sum(centred**2) / len(row) + eps) + bias


def textbook(params, task, layer, place):
    """The six arrays of one adapter, ravelled."""
    z = anp.concatenate([params.tasks.weight[task], params.layers.weight[layer], params.places.weight[place]])
    a = z @ params.inside.weight + params.inside.bias
    e = normed(params.norm.gain, params.norm.bias, anp.where(a > 0, a, 0 * a) @ params.outside.weight + params.outside.bias, 1e-6)
    return [e @ generator.weight + generator.bias for generator in params[6:]]


def textbook_adapter(arrays, x, d_model, width):
    w, b, v, c, gain, bias = arrays
    w, v = w.reshape(d_model, width), v.reshape(width, d_model)

    def position(row):
        z = row @ w + b
        return row + normed(gain, bias, z / 2 * (1 + anp.tanh(anp.sqrt(2 / anp.pi) * (z + 0.044715 * z**3))) @ v + c, 1e-5)

    return anp.stack([position(row) for row in x])


def test_one_adapter_is_the_textbook_formula_and_its_gradients_are_autograd_s():
    params = network()
    written, backward = hyper_adapter_weights(params, task=2, layer=0, place=1)
    assert written.bottleneck.down.weight.shape == (3, 2) and written.bottleneck.up.weight.shape == (2, 3)
    dwritten = noise_like(written)
    for (_, own), theirs in zip(trees.leaves(written), textbook(params, 2, 0, 1), strict=True):
        np.testing.assert_allclose(own.ravel(), theirs, rtol=0, atol=1e-10)
    cotangents = [leaf.ravel() for _, leaf in trees.leaves(dwritten)]

    def weighed(leaves):
        return sum(anp.sum(c * made) for c, made in zip(cotangents, textbook(trees.unflatten(params, leaves), 2, 0, 1), strict=True))

    expected = autograd.grad(weighed)([leaf for _, leaf in trees.leaves(params)])
    for (path, own), theirs in zip(trees.leaves(backward(dwritten)), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10, err_msg=path)


def test_a_written_adapter_at_work_is_the_textbook_formula_and_its_gradients_are_autograd_s():
    rng = np.random.default_rng(2)
    written, _ = hyper_adapter_weights(network(3), task=0, layer=1, place=0)
    x, dout = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    out, backward = hyper_adapter(written, x)
    arrays = [leaf.ravel() for _, leaf in trees.leaves(written)]
    np.testing.assert_allclose(out, textbook_adapter(arrays, x, 3, 2), rtol=0, atol=1e-10)
    expected, their_dx = autograd.grad(lambda both: anp.sum(dout * textbook_adapter(*both, 3, 2)))((arrays, x))
    dwritten, dx = backward(dout)
    np.testing.assert_allclose(dx, their_dx, rtol=0, atol=1e-10)
    for (path, own), theirs in zip(trees.leaves(dwritten), expected, strict=True):
        np.testing.assert_allclose(own.ravel(), theirs, rtol=0, atol=1e-10, err_msg=path)


def test_all_of_a_task_are_those_of_each_place_and_their_gradient_is_the_sum():
    params = network(4)
    written, backward = hyper_adapters(params, task=1)
    dwritten, total = noise_like(written), trees.zeros_like(params)
    assert len(written) == 2 and all(len(layer) == 2 for layer in written)
    for layer in range(2):
        for place in range(2):
            one, one_backward = hyper_adapter_weights(params, task=1, layer=layer, place=place)
            trees.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-13), written[layer][place], one)
            total = trees.map(np.add, total, one_backward(dwritten[layer][place]))
    trees.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-12), backward(dwritten), total)


def test_nothing_reaches_the_row_of_a_task_that_was_not_there():
    params = network(5)
    written, backward = hyper_adapters(params, task=1)
    gradient = backward(noise_like(written))
    assert not gradient.tasks.weight[[0, 2]].any() and gradient.tasks.weight[1].all()
    one = hyper_adapter_weights(params, task=1, layer=0, place=1)[1](noise_like(written[0][1]))
    assert not one.layers.weight[1].any() and not one.places.weight[0].any() and one.layers.weight[0].all() and one.places.weight[1].all()


def test_swapping_the_rows_of_two_tasks_swaps_what_is_written_for_them():
    params = network(6)
    swapped = params._replace(tasks=Embedding(params.tasks.weight[[1, 0, 2]]))
    for task, other in ((0, 1), (1, 0), (2, 2)):
        trees.map(np.testing.assert_array_equal, hyper_adapters(swapped, task=task)[0], hyper_adapters(params, task=other)[0])
    first, second = (hyper_adapters(params, task=task)[0][0][0].bottleneck.down.weight for task in (0, 1))
    assert np.abs(first - second).max() > 0.01


def test_what_is_written_does_not_grow_with_what_the_network_makes_before_its_norm():
    params = network(7)
    louder = params._replace(outside=trees.map(lambda leaf: 1000 * leaf, params.outside))
    trees.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-4), hyper_adapters(louder, task=0)[0], hyper_adapters(params, task=0)[0])


def test_it_has_as_many_parameters_as_the_formula_says_and_a_layer_more_costs_a_row():
    d, m, T, L, t, h, e = 12, 3, 5, 4, 7, 6, 9
    sizes = {"d_bottleneck": m, "num_tasks": T, "d_row": t, "d_hidden": h, "d_code": e}
    found = trees.count_parameters(init_hyper_adapters(np.random.default_rng(0), d, num_layers=L, **sizes))
    assert found == T * t + (L + 2) * t + (3 * t * h + h + h * e + e) + 2 * e + (e + 1) * (2 * d * m + m + d) + 2 * (e + 1) * d
    assert trees.count_parameters(init_hyper_adapters(np.random.default_rng(0), d, num_layers=2 * L, **sizes)) == found + L * t


def test_at_the_start_the_written_gain_is_about_zero_and_so_is_what_is_added():
    rng = np.random.default_rng(8)
    params, x = init_hyper_adapters(rng, 32, d_bottleneck=4, num_tasks=2, num_layers=2), rng.normal(size=(50, 32)).astype(np.float32)
    assert {leaf.dtype for _, leaf in trees.leaves(params)} == {np.dtype(np.float32)}
    assert not params.gain.bias.any() and 0.9 < params.tasks.weight.std() < 1.1
    for layer in hyper_adapters(params, task=1)[0]:
        for written in layer:
            assert np.abs(written.norm.gain).max() < 0.4 and abs(written.norm.gain.std() - 0.01 * 64**0.5) < 0.04
            assert np.linalg.norm(hyper_adapter(written, x)[0] - x) < 0.2 * np.linalg.norm(x)


def test_a_written_adapter_is_a_bottleneck_behind_which_a_norm_stands():
    rng = np.random.default_rng(9)
    written, _ = hyper_adapter_weights(network(10), task=0, layer=0, place=0)
    x = rng.normal(size=(4, 3))
    added = bottleneck_adapter(written.bottleneck, x)[0] - x
    np.testing.assert_allclose(hyper_adapter(written, x)[0], x + layer_norm(written.norm, added)[0], rtol=0, atol=1e-12)


def gpt2_of(rng):
    return init_gpt2(rng, vocabulary=5, context=4, d_model=4, num_layers=2, num_heads=2, std=0.5, dtype=np.float64)


def llama_of(rng):
    return init_llama(rng, vocabulary=5, d_model=4, num_layers=2, num_heads=2, num_kv_heads=1, d_hidden=3, std=0.5, dtype=np.float64)


def written_into(model, run):
    """``run`` of the frozen model as a function of the network that writes its adapters, of several tasks one after the other."""

    def tuned(params, *, tasks):
        outs, backwards = [], []
        for task in tasks:
            written, write_backward = hyper_adapters(params, task=task)
            blocks = [
                block._replace(attention=Adapted(block.attention, first), feed_forward=Adapted(block.feed_forward, second))
                for block, (first, second) in zip(model.blocks, written, strict=True)
            ]
            out, backward = run(model._replace(blocks=blocks))
            outs.append(out)
            backwards.append((backward, write_backward))

        def back(dout):
            total = trees.zeros_like(params)
            for (backward, write_backward), dtask in zip(backwards, dout, strict=True):
                dblocks = backward(dtask).blocks
                dparams = write_backward([(block.attention.adapter, block.feed_forward.adapter) for block in dblocks])
                total = trees.map(np.add, total, dparams)
            return total

        return np.stack(outs), back

    return tuned


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_whole_model_takes_what_is_written_for_two_tasks(family):
    make, run, attention, work = {
        "gpt2": (gpt2_of, gpt2, multi_head_attention, feed_forward), "llama": (llama_of, llama, llama_attention, gated_feed_forward),
    }[family]  # fmt: skip
    slots = {"attention": partial(adapted, part=attention, adapter=hyper_adapter), "feed_forward": partial(adapted, part=work, adapter=hyper_adapter)}
    tuned = written_into(make(np.random.default_rng(11)), partial(run, ids=IDS, num_heads=2, **slots))
    params = network(12, d_model=4)
    report = trusted(check_gradients)(tuned, params, tasks=(0, 2), second_opinion=False)
    assert report.passed, str(report)
    out, backward = tuned(params, tasks=(0, 2))
    assert np.abs(out[0] - out[1]).max() > 1e-3
    assert not backward(noise_like(out)).tasks.weight[1].any()


@pytest.mark.parametrize("forgotten", ["all uses but the last", "the norm of the code"])
def test_the_checker_refuses_a_backward_that_forgets(forgotten):
    def wrong(params):
        written, backward = hyper_adapters(params, task=1)

        def forgetful(dwritten):
            if forgotten == "all uses but the last":
                nothing = trees.zeros_like(dwritten)
                return backward((nothing[0], (nothing[1][0], dwritten[1][1])))
            return backward(dwritten)._replace(norm=LayerNorm(*np.zeros((2, 8))))

        return written, forgetful

    assert not check_gradients(wrong, network(13), second_opinion=False).passed


@pytest.mark.parametrize(("name", "config"), [
    ("task", {"task": 3}), ("task", {"task": -1}), ("layer", {"layer": 2}), ("layer", {"layer": -1}), ("place", {"place": 2}),
])  # fmt: skip
def test_what_nobody_knows_is_refused_by_name(name, config):
    params = network(14)
    call = {"task": 0, "layer": 0, "place": 0, **config}
    known = len(getattr(params, f"{name}s").weight) - 1
    with pytest.raises(ValueError, match=f"{name}: got {config[name]}, wants 0 to {known}, the {name}s that params know"):
        hyper_adapter_weights(params, **call)
    if name == "task":
        with pytest.raises(ValueError, match="task: got"):
            hyper_adapters(params, **config)


def test_maps_that_do_not_meet_are_refused():
    params = network(15)
    with pytest.raises(ValueError, match=r"down_weight\.weight: got 7 columns, wants 3 times 2"):
        hyper_adapters(params._replace(down_weight=Linear(np.ones((8, 7)), None), up_weight=Linear(np.ones((8, 7)), None)), task=0)
    with pytest.raises(ValueError, match=r"params\.inside\.weight: got 11 rows, wants 12"):
        hyper_adapters(params._replace(inside=Linear(np.ones((11, 5)), None)), task=0)
    with pytest.raises(ValueError, match=r"layers\.weight"):
        hyper_adapters(params._replace(layers=Embedding(np.ones((2, 3)))), task=0)
    with pytest.raises(ValueError, match="d_code: got 1"):
        init_hyper_adapters(np.random.default_rng(0), 3, **{**SIZES, "d_code": 1})


@pytest.mark.parity
def test_it_is_what_pytorch_computes():
    torch = pytest.importorskip("torch")
    from torch.nn.functional import gelu
    from torch.nn.functional import layer_norm as their_norm

    rng, params = np.random.default_rng(16), network(17)
    x, dout = rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 4, 3))
    tensors = [torch.tensor(leaf, requires_grad=True) for _, leaf in trees.leaves(params)]
    tasks, layers, places, w1, b1, w2, b2, g, h, *rest = tensors
    theirs = torch.tensor(x)
    for layer in range(2):                                   # all four adapters of task 1, one behind the other
        for place in range(2):
            code = their_norm(torch.relu(torch.cat([tasks[1], layers[layer], places[place]]) @ w1 + b1) @ w2 + b2, (8,), g, h, eps=1e-6)
            w, b, v, c, gain, bias = (code @ weight + own for weight, own in zip(rest[::2], rest[1::2], strict=True))
            hidden = gelu(theirs @ w.reshape(3, 2) + b, approximate="tanh")
            theirs = theirs + their_norm(hidden @ v.reshape(2, 3) + c, (3,), gain, bias)
    theirs.backward(torch.tensor(dout))
    written, write_backward = hyper_adapters(params, task=1)
    out, backwards = x, []
    for adapter in (place for layer in written for place in layer):
        out, backward = hyper_adapter(adapter, out)
        backwards.append(backward)
    np.testing.assert_allclose(out, theirs.detach(), rtol=0, atol=1e-9)
    found, dx = [], dout
    for backward in reversed(backwards):
        dadapter, dx = backward(dx)
        found.insert(0, dadapter)
    gradients = write_backward((tuple(found[:2]), tuple(found[2:])))
    for (path, own), tensor in zip(trees.leaves(gradients), tensors, strict=True):
        np.testing.assert_allclose(own, tensor.grad, rtol=0, atol=1e-9, err_msg=path)
