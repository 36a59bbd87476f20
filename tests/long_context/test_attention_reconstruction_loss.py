"""The compression's own losses: by loops, what they train and what they leave alone, and what each of them cares about."""

import autograd.numpy as anp
import numpy as np
import pytest
from xl_textbook import assert_same, gradients, joined, mapped, noisy, norm, softmax

from minitransformers.basics.linear import Linear
from minitransformers.foundation import check_gradients, slot, trees
from minitransformers.long_context.attention_reconstruction_loss import (
    AutoEncoding,
    attention_reconstruction_loss,
    auto_encoding_loss,
    init_auto_encoding,
)
from minitransformers.long_context.convolution_compression import init_convolution_compression, max_compression, mean_compression
from minitransformers.long_context.transformer_xl_layer import init_transformer_xl_layer
from minitransformers.norms.layer_norm import layer_norm

HEADS, WIDTH, RATE = 2, 4, 3


def random_call(seed=0, rows=6, positions=5):
    rng = np.random.default_rng(seed)
    layer = noisy(init_transformer_xl_layer(rng, WIDTH, num_heads=HEADS, d_hidden=3, dtype=np.float64), rng)
    params = noisy(init_convolution_compression(rng, WIDTH, rate=RATE, dtype=np.float64), rng)
    call = {"old": rng.normal(size=(2, rows, WIDTH)), "segment": rng.normal(size=(2, positions, WIDTH)), "layer": layer}
    return params, {**call, "num_heads": HEADS, "rate": RATE}


def read(p, row, rows):
    """What one position reads in some rows, by content alone, its heads side by side."""
    heads, d = [], WIDTH // HEADS
    for head in range(HEADS):
        cut = slice(head * d, (head + 1) * d)
        scores = anp.array([mapped(p.query, row)[cut] @ mapped(p.key, other)[cut] / d**0.5 for other in rows])
        heads.append(sum(w * mapped(p.value, other)[cut] for w, other in zip(softmax(scores), rows, strict=True)))
    return anp.concatenate(heads)


def textbook(params, old, segment, layer, first=False):
    apart = []
    for b in range(len(old)):
        small = [joined(params, list(old[b, j : j + RATE])) for j in range(0, old.shape[1], RATE)]
        seen = (lambda rows: [norm(layer.attention_norm, row) for row in rows]) if first else list
        for row in seen(segment[b]):
            apart.append(read(layer.attention, row, seen(small)) - read(layer.attention, row, seen(old[b])))
    return anp.mean(anp.stack(apart) ** 2)


@pytest.mark.parametrize("first", [False, True])
def test_it_is_the_loss_by_loops_and_its_gradient_is_autograd_s(first):
    params, call = random_call()
    out, backward = attention_reconstruction_loss(params, **call, norm=layer_norm if first else None)
    arguments = call["old"], call["segment"], call["layer"]
    np.testing.assert_allclose(out, textbook(params, *arguments, first), rtol=0, atol=1e-13)
    assert_same(backward(np.float64(0.7)), gradients(lambda own: 0.7 * textbook(own, *arguments, first), params))


def test_nothing_but_the_compression_gets_a_gradient():
    params, call = random_call()
    _, backward = attention_reconstruction_loss(params, **call)
    assert type(backward(np.float64(1))) is Linear           # of params alone, though the loss depends on all the rest:
    held = gradients(lambda old, segment, layer: textbook(params, old, segment, layer), call["old"], call["segment"], call["layer"])
    names = [path for path, _ in trees.leaves((call["old"], call["segment"], call["layer"]))]
    moving = {name for name, gradient in zip(names, held, strict=True) if np.abs(gradient).max() > 1e-6}
    assert moving >= {"0", "1", "2.attention.query.weight", "2.attention.key.weight", "2.attention.value.weight"}


def test_rows_that_repeat_can_be_compressed_without_loss():
    # A softmax over rows, each of them three times, is the softmax over the rows.
    params, call = random_call()
    once = np.random.default_rng(1).normal(size=(2, 2, WIDTH))
    call |= {"old": np.repeat(once, RATE, axis=1)}
    for compress in (slot(mean_compression), slot(max_compression)):
        loss, _ = attention_reconstruction_loss(None, **call, compress=compress)
        assert loss < 1e-28
    assert attention_reconstruction_loss(params, **call)[0] > 1e-3


def test_a_compression_that_learns_nothing_has_a_loss_and_no_gradient():
    _, call = random_call()
    loss, backward = attention_reconstruction_loss(None, **call, compress=slot(mean_compression))
    assert loss > 1e-3 and backward(np.float64(1)) is None


def blind_in(feature, layer):
    """The layer with maps of keys and values that do not look at one feature."""
    def without(own):
        weight = own.weight.copy()
        weight[feature] = 0
        return own._replace(weight=weight)

    attention = layer.attention
    return layer._replace(attention=attention._replace(key=without(attention.key), value=without(attention.value)))


def test_what_attention_does_not_look_at_costs_nothing_and_costs_the_other_loss():
    params, call = random_call()
    call |= {"layer": blind_in(0, call["layer"])}
    noise = np.zeros((2, 6, WIDTH))
    noise[..., 0] = 10 * np.random.default_rng(2).normal(size=(2, 6))
    auto = init_auto_encoding(np.random.default_rng(3), WIDTH, rate=RATE, compress=None, dtype=np.float64)
    quiet, loud = (call["old"] + extra for extra in (0, noise))
    losses = [attention_reconstruction_loss(None, **{**call, "old": old}, compress=slot(mean_compression))[0] for old in (quiet, loud)]
    np.testing.assert_allclose(*losses, rtol=1e-12)
    encodings = [auto_encoding_loss(auto, old=old, rate=RATE, compress=slot(mean_compression))[0] for old in (quiet, loud)]
    assert encodings[1] > 5 * encodings[0]
    assert not attention_reconstruction_loss(params, **call)[1](np.float64(1)).weight[:, 0].any()  # nor is it learned


def test_it_is_a_mean_so_a_larger_batch_does_not_change_it():
    params, call = random_call()
    twice = {**call, "old": np.tile(call["old"], (2, 1, 1)), "segment": np.tile(call["segment"], (2, 1, 1))}
    (loss, backward), (again, backward_again) = (attention_reconstruction_loss(params, **own) for own in (call, twice))
    np.testing.assert_allclose(again, loss, rtol=1e-13)
    np.testing.assert_allclose(backward_again(np.float64(1)).weight, backward(np.float64(1)).weight, rtol=0, atol=1e-13)


def test_a_few_steps_down_its_gradient_make_the_compression_better_than_the_mean():
    _, call = random_call()
    params = init_convolution_compression(np.random.default_rng(4), WIDTH, rate=RATE, std=0.0, dtype=np.float64)
    start, _ = attention_reconstruction_loss(params, **call)
    for _ in range(50):
        loss, backward = attention_reconstruction_loss(params, **call)
        params = trees.map(lambda leaf, step: leaf - 0.1 * step, params, backward(np.float64(1)))
    assert loss < start


def test_auto_encoding_is_that_of_the_loops_and_its_gradients_are_autograd_s():
    rng = np.random.default_rng(5)
    old = rng.normal(size=(2, 6, WIDTH))
    params = AutoEncoding(noisy(init_convolution_compression(rng, WIDTH, rate=RATE, dtype=np.float64), rng), noisy(Linear(np.zeros((4, 12)), np.zeros(12)), rng))

    def loops(params):
        apart = []
        for text in old:
            for j in range(0, 6, RATE):
                again = mapped(params.decoder, joined(params.compress, list(text[j : j + RATE])))
                apart += [again[k * WIDTH : (k + 1) * WIDTH] - text[j + k] for k in range(RATE)]
        return anp.mean(anp.stack(apart) ** 2)

    out, backward = auto_encoding_loss(params, old=old, rate=RATE)
    np.testing.assert_allclose(out, loops(params), rtol=0, atol=1e-13)
    assert_same(backward(np.float64(0.7)), gradients(lambda own: 0.7 * loops(own), params))


def test_at_the_start_the_decoder_repeats_each_row():
    repeated = np.repeat(np.random.default_rng(6).normal(size=(2, 2, WIDTH)), RATE, axis=1)
    params = init_auto_encoding(np.random.default_rng(7), WIDTH, rate=RATE, compress=None, std=0.0, dtype=np.float64)
    assert auto_encoding_loss(params, old=repeated, rate=RATE, compress=slot(mean_compression))[0] < 1e-30


def test_the_checker_refuses_the_gradient_of_a_sum():
    params, call = random_call()

    def of_the_sum(params):
        out, backward = attention_reconstruction_loss(params, **call)
        return out, lambda dout: backward(call["segment"].size * dout)

    assert not check_gradients(of_the_sum, params).passed


@pytest.mark.parity
def test_parity_with_the_same_in_torch():
    torch = pytest.importorskip("torch")
    params, call = random_call()
    attention = trees.map(torch.tensor, call["layer"].attention._replace(core=None))
    weight, bias = (torch.tensor(part, requires_grad=True) for part in params)
    old, segment = torch.tensor(call["old"]), torch.tensor(call["segment"])

    def heads(own, rows):
        out = rows @ own.weight if own.bias is None else rows @ own.weight + own.bias
        return out.view(2, -1, HEADS, 2).transpose(1, 2)

    small = torch.nn.functional.conv1d(old.transpose(1, 2), weight.view(RATE, WIDTH, WIDTH).permute(2, 1, 0), bias, stride=RATE).transpose(1, 2)
    query = heads(attention.query, segment)
    read, target = (
        torch.nn.functional.scaled_dot_product_attention(query, heads(attention.key, rows), heads(attention.value, rows)) for rows in (small, old)
    )
    theirs = torch.nn.functional.mse_loss(read, target)
    theirs.backward()
    out, backward = attention_reconstruction_loss(params, **call)
    np.testing.assert_allclose(out, theirs.item(), rtol=0, atol=1e-13)
    dparams = backward(np.float64(1))
    np.testing.assert_allclose(dparams.weight, weight.grad.numpy(), rtol=0, atol=1e-13)
    np.testing.assert_allclose(dparams.bias, bias.grad.numpy(), rtol=0, atol=1e-13)
