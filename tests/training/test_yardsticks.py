import collections
import itertools
import lzma
import math
import zlib

import numpy as np
import pytest

from minitransformers.training.text import Corpus
from minitransformers.training.yardsticks import yardsticks

TRAIN, VALIDATION = "abracadabra hocus pocus " * 5 + "zo", "abba cab ozz!"


def test_counting_models_equal_loops_over_the_definition():
    singles, alphabet = collections.Counter(TRAIN), sorted(set(TRAIN + VALIDATION))
    pairs = collections.Counter(itertools.pairwise(TRAIN))

    def unigram(b):
        return (singles[b] + 1) / (len(TRAIN) + len(alphabet))

    def bigram(a, b):
        leaving = sum(pairs[a, c] for c in alphabet)
        return (pairs[a, b] + unigram(b)) / (leaving + 1)

    measured, asked = yardsticks(TRAIN, VALIDATION), list(itertools.pairwise(VALIDATION))
    assert measured.uniform == math.log2(len(alphabet))
    assert measured.unigram == pytest.approx(-sum(math.log2(unigram(b)) for _, b in asked) / len(asked), rel=1e-13)
    assert measured.bigram == pytest.approx(-sum(math.log2(bigram(a, b)) for a, b in asked) / len(asked), rel=1e-13)
    for a in alphabet:  # both are distributions
        assert sum(bigram(a, b) for b in alphabet) == pytest.approx(1)


def test_oracles_are_the_entropies_of_the_validation_part():
    measured = yardsticks(TRAIN, "abab")  # after: b a b; pairs: ab ba ab
    assert measured.unigram_oracle == pytest.approx(-(2 * math.log2(2 / 3) + math.log2(1 / 3)) / 3)
    assert measured.bigram_oracle == 0.0  # what follows is certain once it has been seen


def test_compressors_count_what_the_validation_part_adds():
    measured = yardsticks(TRAIN, VALIDATION)
    assert measured.zlib_alone == 8 * len(zlib.compress(VALIDATION.encode(), 9)) / len(VALIDATION)
    added = len(lzma.compress((TRAIN + VALIDATION).encode())) - len(lzma.compress(TRAIN.encode()))
    assert measured.lzma_after_train == pytest.approx(8 * added / len(VALIDATION), abs=8 * 4 / len(VALIDATION))  # blocks of 4 bytes


def test_zlib_forgets_what_lies_further_back_than_its_window():
    rng = np.random.default_rng(0)
    page = "".join(map(chr, rng.integers(97, 123, size=4_000)))
    far = page + "".join(map(chr, rng.integers(97, 123, size=40_000)))
    measured = yardsticks(far, page)  # the validation part stands in the training part, 40,000 characters back
    assert measured.lzma_after_train < 0.2 < 4.5 < measured.zlib_after_train


def test_the_order_on_real_text():
    corpus = Corpus.load(context=64)
    measured = yardsticks(corpus.train_text, corpus.validation_text)
    assert measured.uniform > measured.unigram > measured.unigram_oracle > measured.bigram_oracle > measured.zlib_alone
    assert measured.unigram > measured.bigram > measured.bigram_oracle
    assert measured.zlib_alone > measured.zlib_after_train > measured.lzma_after_train


def test_empty_parts_are_refused():
    with pytest.raises(ValueError, match="train_text"):
        yardsticks("", "ab")
    with pytest.raises(ValueError, match="validation_text"):
        yardsticks("ab", "a")
