"""Reformer attention: one projection for queries and keys, hashed company, and a step that keeps a bounded past."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.linear import Linear
from minitransformers.foundation import check_gradients, trees
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model, language_model, language_model_step
from minitransformers.sparse_attention.lsh_attention import lsh_buckets
from minitransformers.sparse_attention.reformer_attention import (
    ReformerAttention,
    init_reformer_attention,
    reformer_attention,
    reformer_attention_step,
)

SETTINGS = {"num_heads": 2, "rounds": 2, "num_buckets": 4, "chunk": 2, "seed": 1}


def case(seed=0, positions=9):
    rng = np.random.default_rng(seed)
    shapes = (6, 8), (6, 4), (4, 6)
    return ReformerAttention(*(Linear(rng.normal(size=s) / 2, rng.normal(size=s[1])) for s in shapes)), rng.normal(size=(positions, 6))


def textbook(params, x, *, num_heads, rounds, num_buckets, chunk, seed):
    """Head by head and position by position; which bucket a vector is in is looked up, as no gradient goes there."""
    shared, value = (anp.dot(x, p.weight) + p.bias for p in params[:2])
    heads = []
    for h in range(num_heads):
        s, v = (a[:, h * a.shape[1] // num_heads : (h + 1) * a.shape[1] // num_heads] for a in (shared, value))
        fixed = getattr(s, "_value", s)
        directions = np.random.default_rng(seed).normal(size=(rounds, s.shape[1], num_buckets // 2))
        buckets = [np.concatenate([fixed @ d, -fixed @ d], axis=-1).argmax(-1) for d in directions]
        rows = []
        for i in range(len(x)):
            members = [[j for j in range(i) if b[j] == b[i]] for b in buckets]
            met = [j for m in members for rank, j in enumerate(m) if len(m) // chunk - rank // chunk <= 1]
            powers = [anp.exp(anp.dot(s[i], s[j]) / anp.sqrt(anp.dot(s[j], s[j]))) for j in met]
            rows.append(sum(p * v[j] for p, j in zip(powers, met, strict=True)) / sum(powers) if met else v[i])
        heads.append(anp.stack(rows))
    return anp.dot(anp.concatenate(heads, axis=1), params.output.weight) + params.output.bias


@pytest.mark.parametrize("changes", [{}, {"rounds": 1, "chunk": 1}, {"num_heads": 4, "num_buckets": 2}, {"chunk": 20}])
def test_it_is_the_textbook_sum_and_its_gradients_are_autograd_s(changes):
    (params, x), settings = case(), {**SETTINGS, **changes}
    out, backward = reformer_attention(params, x, **settings)
    np.testing.assert_allclose(out, textbook(params, x, **settings), rtol=0, atol=1e-10)
    dout = np.random.default_rng(1).normal(size=out.shape)
    leaves = [leaf for _, leaf in trees.leaves((params, x))]

    def loss(*leaves):
        own, text = trees.unflatten((params, x), leaves)
        return anp.sum(dout * textbook(own, text, **settings))

    expected = autograd.grad(loss, tuple(range(len(leaves))))(*leaves)
    for (path, own), theirs in zip(trees.leaves(backward(dout)), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10, err_msg=path)


def decoded(params, x, sizes, **settings):
    state, outs, start = None, [], 0
    for size in sizes:
        out, state = reformer_attention_step(params, x[..., start : start + size, :], state, **settings)
        outs.append(out)
        start += size
    return np.concatenate(outs, axis=-2), state


@pytest.mark.parametrize("chunk", [1, 2, 3, 40])
def test_steps_of_any_size_give_the_whole_however_often_buckets_overflow(chunk):
    params, _ = case(2)
    x, settings = np.random.default_rng(3).normal(size=(2, 40, 6)), {**SETTINGS, "chunk": chunk, "num_buckets": 2}
    whole = reformer_attention(params, x, **settings)[0]
    for sizes in ([1] * 40, [40], [7, 1, 20, 12]):
        np.testing.assert_allclose(decoded(params, x, sizes, **settings)[0], whole, rtol=0, atol=1e-12)


def test_a_longer_text_changes_nothing_before():
    params, _ = case(4)
    x = np.random.default_rng(5).normal(size=(30, 6))
    whole = reformer_attention(params, x, **SETTINGS)[0]
    for length in (1, 2, 11, 29):
        np.testing.assert_allclose(reformer_attention(params, x[:length], **SETTINGS)[0], whole[:length], rtol=0, atol=1e-13)


def test_the_state_is_as_large_after_many_positions_as_after_one():
    params, _ = case(6)
    x = np.random.default_rng(7).normal(size=(60, 6))
    sizes = [[a.nbytes for a in decoded(params, x[:n], [n], **SETTINGS)[1]] for n in (1, 60)]
    assert sizes[0] == sizes[1] == [8 * 2 * 2 * (4 * 4) * 4, 8 * 2 * 2 * (4 * 4) * 2, 8 * 2 * 2 * 4]


def test_a_state_can_be_continued_in_two_ways():
    params, _ = case(8)
    x = np.random.default_rng(9).normal(size=(12, 6))
    _, state = reformer_attention_step(params, x[:8], None, **SETTINGS)
    reformer_attention_step(params, -x[:4], state, **SETTINGS)
    out, _ = reformer_attention_step(params, x[8:], state, **SETTINGS)
    np.testing.assert_allclose(out, reformer_attention(params, x, **SETTINGS)[0][8:], rtol=0, atol=1e-12)


def test_what_has_left_the_last_two_chunks_is_not_met_again():
    """All in one bucket, in chunks of two: the seventh position is the first of its chunk, and sees the chunk before, two positions."""
    params, x = case(10, positions=1)
    x = np.repeat(x, 7, axis=0)
    assert len(set(lsh_buckets(x @ params.shared.weight + params.shared.bias, rounds=1, num_buckets=2)[0])) == 1
    dout = np.zeros((7, 6))
    dout[6] = 1.0
    _, dx = reformer_attention(params, x, num_heads=1, rounds=1, num_buckets=2, chunk=2)[1](dout)
    assert [bool(np.abs(row).max() > 1e-12) for row in dx[:6]] == [False] * 4 + [True] * 2


def test_another_seed_looks_through_other_cuts_of_space():
    params, _ = case(11)
    x = np.random.default_rng(12).normal(size=(30, 6))
    one, again, other = (reformer_attention(params, x, **{**SETTINGS, "seed": seed})[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-2


def test_in_a_language_model_by_name_decoding_is_the_whole_pass():
    config = LanguageModelConfig(
        5, context=12, d_model=8, num_layers=2, num_heads=2, mixer="reformer_attention",
        options={"mixer": {"rounds": 2, "num_buckets": 4, "chunk": 2}},
    )  # fmt: skip
    params = init_language_model(np.random.default_rng(0), config, std=0.5, dtype=np.float64)
    ids = np.random.default_rng(1).integers(5, size=(2, 12))
    logits, _ = language_model(params, ids=ids, config=config)
    state = None
    for t in range(12):
        out, state = language_model_step(params, ids[:, t : t + 1], state, config=config)
        np.testing.assert_allclose(out[:, 0], logits[:, t], rtol=0, atol=1e-11)


def test_fresh_weights_have_the_deviations_that_are_asked_for():
    params = init_reformer_attention(np.random.default_rng(0), 64, num_heads=4, std=0.1, residual_std=0.02, bias=True)
    assert [round(float(p.weight.std()), 2) for p in params] == [0.1, 0.1, 0.02]
    assert all(p.weight.dtype == np.float32 and not p.bias.any() for p in params)
    plain = init_reformer_attention(np.random.default_rng(0), 64, num_heads=4)
    assert [round(8 * float(p.weight.std()), 1) for p in plain] == [1.0, 1.0, 1.0] and plain.output.bias is None


def test_the_checker_refuses_a_backward_that_takes_queries_and_keys_for_two():
    """As if there were a second projection, equal to the first, whose gradient nobody adds."""
    params, x = case(13, positions=5)
    settings = {**SETTINGS, "num_buckets": 2}

    def wrong(params, x):
        out, backward = reformer_attention(params, x, **settings)

        def halved(dout):
            dparams, dx = backward(dout)
            return dparams._replace(shared=trees.map(lambda a: a / 2, dparams.shared)), dx

        return out, halved

    assert {a.path for a in check_gradients(wrong, params, x).arguments if a.cause} == {"params.shared.weight", "params.shared.bias"}


@pytest.mark.parametrize(
    ("named", "changes"),
    [
        ("num_heads: got 3", {"num_heads": 3}),
        ("num_buckets: got 5", {"num_buckets": 5}),
        ("num_buckets: got 0", {"num_buckets": 0}),
        ("chunk: got 0", {"chunk": 0}),
        ("rounds: got 0", {"rounds": 0}),
        ("seed: got -1", {"seed": -1}),
    ],
)
def test_what_cannot_be_is_refused_by_name(named, changes):
    with pytest.raises(ValueError, match=named):
        reformer_attention(*case(), **{**SETTINGS, **changes})
