import numpy as np
import pytest

from minitransformers.training.objectives import causal, masked, prefix, spans
from minitransformers.training.task import IGNORED

IDS = np.random.default_rng(0).integers(20, size=(40, 12))


def test_causal_asks_for_the_next_token_and_sees_none_of_it():
    ids, mask, targets = causal(IDS, np.random.default_rng(1))
    np.testing.assert_array_equal(ids, IDS)
    np.testing.assert_array_equal(targets[:, :-1], IDS[:, 1:])
    assert (targets[:, -1] == IGNORED).all()
    np.testing.assert_array_equal(mask, np.tri(12, dtype=bool))


def test_a_prefix_sees_itself_and_only_what_is_behind_it_is_asked():
    ids, mask, targets = prefix(IDS, np.random.default_rng(1))
    lengths = (targets == IGNORED).argmin(axis=1) + 1
    assert set(lengths) == set(range(1, 12))
    for row, sees, wanted, length in zip(ids, np.broadcast_to(mask, (40, 1, 12, 12))[:, 0], targets, lengths, strict=True):
        assert sees[:length, :length].all() and not sees[:-1, -1].any()
        np.testing.assert_array_equal(wanted[length - 1 : -1], row[length:])


def test_hidden_tokens_are_asked_for_where_they_stood():
    ids, mask, targets = masked(IDS, np.random.default_rng(1), mask_id=20)
    asked = targets != IGNORED
    assert mask is None and 0.05 < asked.mean() < 0.25 and (ids == 20).any()
    np.testing.assert_array_equal(targets[asked], IDS[asked])
    np.testing.assert_array_equal(ids[~asked], IDS[~asked])


@pytest.mark.parametrize("seed", range(3))
def test_spans_are_written_behind_the_text_without_them(seed):
    ids, mask, targets = spans(IDS, np.random.default_rng(seed), vocabulary=40)
    for row, sees, wanted, window in zip(ids, np.broadcast_to(mask, (len(ids), 1, *mask.shape[-2:]))[:, 0], targets, IDS, strict=True):
        given = int(sees[0].sum())
        assert sees[:given, :given].all() and not sees[:given, given:].any()
        np.testing.assert_array_equal(wanted[given - 1 : -1], row[given:])
        pieces = {s: list(_behind(row[given:], s)) for s in row[:given] if s >= 20}
        whole = [token for s in row[:given] for token in pieces.get(s, [s])]
        assert whole == list(window), "spans put back where their sentinels stand"


def _behind(written, sentinel):
    for token in written[list(written).index(sentinel) + 1 :]:
        if token >= 20:
            return
        yield token
