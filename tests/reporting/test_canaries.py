"""Numbers planted in a text, and how likely a Llama finds them."""

import numpy as np

from minitransformers.reporting.base import load_base
from minitransformers.reporting.bias_mitigation.canaries import PART, as_ids, log_probs, model, planted, sentence


def test_each_number_stands_there_as_often_as_it_says():
    ids, numbers, often = planted(np.random.default_rng(0), times=(0, 1, 3), each=2)
    text = bytes(ids.astype(np.uint8)).decode()
    assert [text.count(sentence(place, number)) for place, number in enumerate(numbers)] == often.tolist() == [0, 0, 1, 1, 3, 3]
    assert len(text) == PART + sum(len(sentence(place, number)) * count for place, (number, count) in enumerate(zip(numbers, often, strict=True)))


def test_a_beginning_that_is_read_once_gives_what_the_whole_sentence_gives():
    params, numbers = load_base(), [123456, 7]
    found = log_probs(params, 4, numbers)
    for number, log_p in zip(numbers, found, strict=True):
        ids = as_ids(sentence(4, number))[:-2]
        logits = model(params, ids=ids[None])[0][0].astype(np.float64)
        each = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        np.testing.assert_allclose(log_p, each[np.arange(-7, -1), ids[-6:]].sum(), rtol=1e-4)
