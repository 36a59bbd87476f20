"""Parts that sections build their models of: what they compute, and their gradients beside differences."""

from functools import partial

import numpy as np

from minitransformers import (
    Embedding,
    Linear,
    causal_attention,
    causal_convolution,
    chain,
    embedding,
    feed_forward,
    fix_norm,
    init_causal_convolution,
    init_embedding,
    init_feed_forward,
    init_linear,
    init_rms_norm,
    linear,
    multi_head_attention,
    rms_norm,
    transformer_block,
)
from minitransformers.foundation import trees
from minitransformers.foundation.gradients import assert_gradients
from minitransformers.reporting.networks import (
    behind_norm,
    convolved,
    hidden_for,
    init_decoder,
    network,
    side_by_side,
    tied_network,
    with_the_word_before,
    without,
)

IDS = np.array([[4, 0, 4, 2], [1, 3, 3, 0]])


def test_a_network_is_words_and_then_its_parts():
    rng = np.random.default_rng(0)
    params = [init_embedding(rng, 5, 4, dtype=np.float64), (init_rms_norm(rng, 4, dtype=np.float64), init_feed_forward(rng, 4, dtype=np.float64)),
              None, init_linear(rng, 4, 3, dtype=np.float64)]  # fmt: skip
    model = network(behind_norm(feed_forward), without, linear)
    words, _ = embedding(params[0], ids=IDS)
    inside, _ = chain(params[1], words, parts=(rms_norm, feed_forward))
    out, backward = model(params, IDS)
    np.testing.assert_array_equal(out, linear(params[3], words + inside)[0])
    assert isinstance(backward(out)[0], Embedding) and isinstance(backward(out)[3], Linear)

    def only_params(params):
        out, backward = model(params, IDS)
        return out, lambda dout: (backward(dout),)

    assert_gradients(only_params, params)


def test_a_table_at_both_ends_gets_both_gradients():
    rng = np.random.default_rng(7)
    params = init_embedding(rng, 5, 4, std=1.0, dtype=np.float64), [init_feed_forward(rng, 4, dtype=np.float64)]
    table, _ = fix_norm(params[0].weight)
    out, _ = tied_network(feed_forward, rows=fix_norm)(params, IDS)
    np.testing.assert_allclose(out, feed_forward(params[1][0], 2 * table[IDS])[0] @ table.T)
    np.testing.assert_array_equal(tied_network(feed_forward)((Embedding(table), params[1]), IDS)[0], out)

    def only_params(params):
        out, backward = tied_network(feed_forward, rows=fix_norm)(params, IDS)
        return out, lambda dout: (backward(dout),)

    assert_gradients(only_params, params)


def test_the_vectors_of_a_window_stand_side_by_side():
    x = np.random.default_rng(6).normal(size=(3, 2, 4))
    out, _ = side_by_side(None, x)
    np.testing.assert_array_equal(out, np.concatenate([x[:, 0], x[:, 1]], axis=1))
    assert_gradients(side_by_side, None, x)


def test_keys_meet_the_one_before_and_queries_do_not():
    rng = np.random.default_rng(1)
    params, query, key = init_causal_convolution(rng, 4, width=2, dtype=np.float64), *rng.normal(size=(2, 3, 5, 4))
    (turned, keys), _ = with_the_word_before(params, query, key)
    moved = key.copy()
    moved[:, 2] += 1
    (_, others), _ = with_the_word_before(params, query, moved)
    assert list(np.flatnonzero(np.abs(keys - others).max((0, 2)))) == [2, 3]
    (same, _), _ = with_the_word_before(params, query, moved)
    np.testing.assert_array_equal(turned, same)
    assert_gradients(with_the_word_before, params, query, key)


def test_a_core_of_what_was_convolved():
    rng = np.random.default_rng(2)
    convolutions = tuple(init_causal_convolution(rng, 4, width=2, dtype=np.float64) for _ in range(3))
    query, key, value = rng.normal(size=(3, 5, 4))
    core = partial(convolved, inner=causal_attention)
    mixed = (causal_convolution(params, x)[0] for params, x in zip(convolutions, (query, key, value), strict=True))
    np.testing.assert_allclose(core((convolutions, None), query, key, value)[0], causal_attention(None, *mixed)[0])
    assert_gradients(core, (convolutions, None), query, key, value)


def test_hidden_units_that_make_models_equally_large():
    made = lambda hidden: init_feed_forward(np.random.default_rng(0), 6, d_hidden=hidden)  # noqa: E731
    hidden = hidden_for(1000, made)
    sizes = [abs(trees.count_parameters(made(near)) - 1000) for near in (hidden - 1, hidden, hidden + 1)]
    assert sizes[1] == min(sizes)


def test_a_decoder_has_the_same_weights_with_norms_and_without():
    sizes = {"num_layers": 2, "num_heads": 2}
    plain = init_decoder(np.random.default_rng(3), 5, 4, **sizes)
    bare = init_decoder(np.random.default_rng(3), 5, 4, **sizes, init_norm=lambda rng, d_model: None, last=False)
    half = init_decoder(np.random.default_rng(3), 5, 4, **sizes, start=0.5)
    np.testing.assert_array_equal(plain[1].mixer.query.weight, bare[1].mixer.query.weight)
    np.testing.assert_array_equal(plain[1].mixer.query.weight, 2 * half[1].mixer.query.weight)
    np.testing.assert_array_equal(plain[0].weight, half[0].weight)
    assert bare[1].mixer_norm is None and bare[-2] is None
    block = partial(transformer_block, mixer=partial(multi_head_attention, num_heads=2), channel=feed_forward, norm=without)
    assert network(block, block, without, linear)(bare, IDS)[0].shape == (2, 4, 5)
