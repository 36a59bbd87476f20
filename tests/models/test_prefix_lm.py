"""Prefix language modelling: who may see whom, entry by entry; its limits are the causal model and BERT; and nothing leaks."""

from functools import partial

import numpy as np
import pytest

from minitransformers.attention.core import causal_attention, softmax_attention
from minitransformers.attention.masks import causal_mask, padding_mask, prefix_mask
from minitransformers.attention.multi_head_attention import (
    init_multi_head_attention,
    multi_head_attention,
    multi_head_attention_step,
)
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.linear import Linear, linear
from minitransformers.foundation import check_gradients
from minitransformers.models.prefix_lm import prefix_lm
from minitransformers.models.transformer import init_transformer, transformer_encoder

VOCABULARY = 11
IDS = np.random.default_rng(0).integers(VOCABULARY, size=(4, 7))
PREFIXES, LENGTHS = np.array([0, 1, 3, 6]), np.array([7, 5, 6, 7])
PARAMS = init_transformer(np.random.default_rng(1), vocabulary=VOCABULARY, d_model=8, num_layers=2, num_heads=2, std=0.4, dtype=np.float64)


def logits_of(ids, mask, params=PARAMS):
    """A stack that sees what the mask says, and the head: the whole of a prefix language model. Also the gradient of the table by the head."""
    hidden, _ = transformer_encoder(params, ids, num_heads=2, mask=mask)
    return linear(Linear(params.embedding.weight.T, None), hidden)[0]


def test_each_rule_entry_by_entry():
    mask, labels = prefix_lm(IDS, prefixes=PREFIXES, lengths=LENGTHS)
    assert mask.shape == (4, 1, 7, 7) and labels.shape == (4, 7) and labels.dtype == np.int64
    for row, (m, n) in enumerate(zip(PREFIXES, LENGTHS, strict=True)):
        for query in range(7):
            for key in range(7):
                assert mask[row, 0, query, key] == (key < n and (key < m or key <= query))
            asked = query + 1 < n and query + 1 >= m
            assert labels[row, query] == (IDS[row, query + 1] if asked else -100)


def test_equal_prefixes_are_the_prefix_mask():
    for prefix in range(8):
        np.testing.assert_array_equal(prefix_lm(IDS, prefixes=np.full(4, prefix)).mask, np.tile(prefix_mask(7, prefix=prefix), (4, 1, 1, 1)))


@pytest.mark.parametrize("prefix", [0, 1])
def test_a_prefix_of_one_token_or_none_is_the_causal_model(prefix):
    """Its first token has nothing behind which it could look."""
    mask, labels = prefix_lm(IDS, prefixes=np.full(4, prefix))
    assert (mask == causal_mask(7)).all()
    np.testing.assert_array_equal(labels[:, :-1], IDS[:, 1:])
    assert (labels[:, -1] == -100).all()
    params, x = init_multi_head_attention(np.random.default_rng(2), 8, num_heads=2, dtype=np.float64), np.random.default_rng(3).normal(size=(4, 7, 8))
    seen, _ = multi_head_attention(params, x, num_heads=2, mask=mask, core=softmax_attention)
    np.testing.assert_allclose(seen, multi_head_attention(params, x, num_heads=2)[0], rtol=0, atol=1e-14)


def test_a_prefix_as_long_as_the_text_sees_as_bert_does_and_is_asked_nothing():
    mask, labels = prefix_lm(IDS, prefixes=LENGTHS, lengths=LENGTHS)
    assert (mask == padding_mask(LENGTHS, 7)).all() and (labels == -100).all()
    np.testing.assert_allclose(logits_of(IDS, mask), logits_of(IDS, padding_mask(LENGTHS, 7)), rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="targets: got -100 everywhere"):
        cross_entropy(logits_of(IDS, mask), targets=labels)


@pytest.mark.parametrize("place", range(7))
def test_what_comes_later_changes_nothing_before_it_and_what_is_in_the_prefix_changes_all(place):
    """The leak test: at every position that is asked, a change of any later token moves the logits by exactly nothing."""
    mask, labels = prefix_lm(IDS, prefixes=PREFIXES)
    changed = IDS.copy()
    changed[:, place] = (changed[:, place] + 1) % VOCABULARY
    moved = np.abs(logits_of(changed, mask) - logits_of(IDS, mask)).max(axis=-1)
    for row, prefix in enumerate(PREFIXES):
        if place < prefix:
            assert (moved[row] > 1e-9).all()                 # all see it, those in front of it as well
        else:
            assert (moved[row, :place] == 0).all() and (moved[row, place:] > 1e-9).all()
        asked = labels[row] != -100
        assert (moved[row, :place][asked[:place]] == 0).all()  # no label was seen


def test_the_control_a_label_within_the_prefix_would_have_been_seen():
    """A label at a position of the prefix asks for a token that the position reads: its logits move when that token does."""
    mask, labels = prefix_lm(IDS, prefixes=np.full(4, 5))
    assert (labels[:, :4] == -100).all() and (labels[:, 4:6] != -100).all()
    changed = IDS.copy()
    changed[:, 2] = (changed[:, 2] + 1) % VOCABULARY
    assert (np.abs(logits_of(changed, mask) - logits_of(IDS, mask))[:, 1].max(axis=-1) > 1e-9).all()


def test_a_core_that_looks_back_takes_the_prefixs_sight_away():
    params, x = init_multi_head_attention(np.random.default_rng(4), 8, num_heads=2, dtype=np.float64), np.random.default_rng(5).normal(size=(4, 7, 8))
    mask, _ = prefix_lm(IDS, prefixes=np.full(4, 5))
    blind, _ = multi_head_attention(params, x, num_heads=2, mask=mask, core=causal_attention)
    np.testing.assert_allclose(blind, multi_head_attention(params, x, num_heads=2)[0], rtol=0, atol=1e-14)
    seeing, _ = multi_head_attention(params, x, num_heads=2, mask=mask, core=softmax_attention)
    assert np.abs(seeing - blind)[:, :4].max(axis=-1).min() > 1e-3
    np.testing.assert_allclose(seeing[:, 4:], blind[:, 4:], rtol=0, atol=1e-14)  # in one layer the rest reads the same keys


@pytest.mark.parametrize("prefix", [1, 3, 6])
def test_read_at_once_and_then_written_a_token_at_a_time_it_is_the_same(prefix):
    """A step needs no mask: the prefix, read in one piece, sees itself, and what is written comes when all it sees is there."""
    layers = [init_multi_head_attention(np.random.default_rng(seed), 8, num_heads=2, dtype=np.float64) for seed in (6, 7)]
    x, mask = np.random.default_rng(8).normal(size=(4, 7, 8)), prefix_lm(IDS, prefixes=np.full(4, prefix)).mask
    whole = x
    for params in layers:
        whole = whole + multi_head_attention(params, whole, num_heads=2, mask=mask, core=softmax_attention)[0]
    states, pieces = [None, None], []
    for start, end in [(0, prefix), *((t, t + 1) for t in range(prefix, 7))]:
        piece = x[:, start:end]
        for layer, params in enumerate(layers):
            out, states[layer] = multi_head_attention_step(params, piece, states[layer], num_heads=2, core=softmax_attention)
            piece = piece + out
        pieces.append(piece)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=0, atol=1e-10)


def test_texts_of_a_batch_are_as_they_are_alone():
    """Unequal prefixes and lengths: each row's loss is that of its text, without padding."""
    mask, labels = prefix_lm(IDS, prefixes=PREFIXES, lengths=LENGTHS)
    logits = logits_of(IDS, mask)
    for row, (m, n) in enumerate(zip(PREFIXES, LENGTHS, strict=True)):
        alone = prefix_lm(IDS[row, :n], prefixes=np.array(m))
        assert alone.mask.shape == (1, n, n)
        expected = logits_of(IDS[row, :n], alone.mask)
        np.testing.assert_allclose(logits[row, :n], expected, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(labels[row, :n], alone.labels)
        assert (labels[row, n:] == -100).all()


def test_its_gradient_is_exactly_zero_where_nothing_is_asked():
    mask, labels = prefix_lm(IDS, prefixes=PREFIXES, lengths=LENGTHS)
    _, loss_backward = cross_entropy(logits_of(IDS, mask), targets=labels)
    dlogits = loss_backward(np.float64(1))
    assert not dlogits[labels == -100].any() and (np.abs(dlogits[labels != -100]).max(axis=-1) > 0).all()
    assert (labels != -100).sum() == sum(n - max(m, 1) for m, n in zip(PREFIXES, LENGTHS, strict=True))


def test_the_mask_trains_any_attention():
    mask, _ = prefix_lm(IDS[:2], prefixes=np.array([2, 5]))
    params, x = init_multi_head_attention(np.random.default_rng(9), 4, num_heads=2, dtype=np.float64), np.random.default_rng(10).normal(size=(2, 7, 4))
    assert check_gradients(partial(multi_head_attention, num_heads=2, core=softmax_attention, mask=mask), params, x).passed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefixes": np.array([0, 1, 8, 2])}, r"prefixes: got \[0, 1, 8, 2\], wants at most the tokens of the texts, \[7, 7, 7, 7\]"),
        ({"prefixes": np.array([0, -1, 2, 2])}, "prefixes"),
        ({"prefixes": np.array([0, 1])}, "prefixes"),
        ({"prefixes": 3}, "prefixes"),
        ({"lengths": np.array([7, 7, 8, 7])}, "lengths: got 7 to 8, wants numbers from 1 to the 7 positions"),
        ({"lengths": np.array([7, 7, 0, 7])}, "lengths"),
        ({"prefixes": np.array([0, 1, 6, 2]), "lengths": np.array([7, 7, 5, 7])}, "prefixes: got"),
        ({"ids": IDS - 5}, "ids: got the id -5"),
        ({"ids": np.zeros((4, 0), int)}, "ids"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    call = {"ids": IDS, "prefixes": PREFIXES, **changes}
    with pytest.raises(ValueError, match=message):
        prefix_lm(call.pop("ids"), **call)
