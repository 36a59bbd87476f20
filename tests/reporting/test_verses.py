"""Verses to translate, and the two models that have learned from them."""

import numpy as np
import pytest

from minitransformers.foundation.safetensors import read_metadata
from minitransformers.reporting.models import translators, verses
from minitransformers.reporting.models.verses import END, GAP, SIZE, START
from minitransformers.training.task import IGNORED


def test_no_test_was_learned_from():
    known, tests = verses.load_verses()
    assert len(known) > 8000 and len(tests) > 900
    assert not {v.number // 1000 for v in known} & {v.number // 1000 for v in tests}, "a chapter is on one side"
    assert not {text for v in known for text in v[1:]} & {text for v in tests for text in v[1:]}
    assert all(12 <= len(text) <= 110 for v in known + tests for text in v[1:])


def test_texts_come_back_from_their_tokens():
    for verse in verses.load_verses()[1][::50]:
        for text in verse[1:]:
            ids = verses.encoded(text)
            assert verses.decoded(ids) == text and ids[-1] == END and max(ids) < SIZE
    assert verses.decoded([*verses.encoded("And God"), 500, 600]) == "And God", "what stands behind the end is not read"
    assert START not in verses.encoded("<start>"), "text is text"


def test_pairs_are_padded_and_moved():
    batch = verses.pairs([[5, 6, END], [7, END]], [[8, END], [9, 10, END]])
    assert batch.source.tolist() == [[5, 6, END], [7, END, 0]]
    assert batch.mask[:, 0, 0].tolist() == [[True, True, True], [True, True, False]]
    assert batch.target[:, :2].tolist() == [[START, 8], [START, 9]] and batch.target[1].tolist() == [START, 9, 10]
    assert batch.labels.tolist() == [[8, END, IGNORED], [9, 10, END]]


def test_chrf_by_hand():
    assert verses.chrf(["a b c"], ["abc"], longest=3) == pytest.approx(100), "blanks do not count"
    assert verses.chrf(["xyz"], ["abc"]) == 0
    # one letter: 2 of 2 and 2 of 4; two letters: 1 of 1 and 1 of 3
    precision, recall = (1 + 1) / 2, (2 / 4 + 1 / 3) / 2
    assert verses.chrf(["ab"], ["abcd"], longest=2) == pytest.approx(100 * 5 * precision * recall / (4 * precision + recall))


def test_a_batch_hides_what_was_written_and_nothing_else():
    sides = [[[10 + i, 20, END] for i in range(40)], [[60 + i, 70, 71, END] for i in range(40)]]
    batch = translators.drawn(np.random.default_rng(0), sides, np.arange(40), hidden=0.25)
    assert (batch.target[:, 0] == START).all() and not (batch.source == GAP).any() and not (batch.labels == GAP).any()
    hidden = batch.target == GAP
    assert 0.1 < hidden[:, 1:].mean() < 0.4
    assert (batch.target[:, 1:] == batch.labels[:, :-1])[~hidden[:, 1:]].all()
    assert (batch.labels[:, 0] - batch.source[:, 0] == 50).all(), "the right pairs"


def test_a_prefix_says_what_is_asked():
    sides = [[[10 + i, END] for i in range(40)], [[60 + i, END] for i in range(40)]]
    rng, ways = np.random.default_rng(1), set()
    for _ in range(4):
        batch = translators.drawn(rng, sides, np.arange(40), hidden=0.25, prefixes=[[3], [4]])
        assert ((batch.labels[:, 0] >= 60) == (batch.source[:, 0] == 4)).all()
        assert ((batch.labels[:, 0] - batch.source[:, 1]) % 50 == 0).all()
        ways |= set(zip(batch.source[:, 0].tolist(), (batch.source[:, 1] >= 60).tolist(), strict=True))
    assert len(ways) == 4


@pytest.mark.parametrize("name", ["transformer", "t5"])
def test_a_kept_model_is_as_good_as_its_file_says(name):
    params = translators.load_translator() if name == "transformer" else translators.load_two_way()
    said = float(read_metadata(translators.FILES[name])["bits per character"])
    tests = [verse for verse in verses.load_verses()[1] if max(len(verse.then), len(verse.now)) <= translators.LETTERS[name]]
    right, wrong = translators.into_modern(name, params, tests[::8])
    assert right == pytest.approx(said, abs=0.15) and right < wrong - 0.15
    again = translators.trained(name, np.random.default_rng(0), steps=1, peak=1e-3)
    assert again.embedding.weight.shape == params.embedding.weight.shape
