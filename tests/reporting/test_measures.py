"""What sections measure alike."""

import multiprocessing
import os
import signal
import sys
import time
import tracemalloc

import numpy as np
import pytest

from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.reporting import (
    along,
    apart,
    bits,
    bits_after,
    bits_in_windows,
    counted_pairs,
    crossing,
    fitted_exponent,
    mean_and_spread,
    nats,
    one_seed,
    paired_times,
    peak_megabytes,
    processor_seconds,
    shortest_times,
)
from minitransformers.reporting.seeds import collect, judge, tried
from minitransformers.training.task import IGNORED
from minitransformers.training.text import Corpus


def test_the_exponent_of_a_power_law():
    sizes = np.array([100, 200, 400, 800])
    assert fitted_exponent(sizes, 3 * sizes**1.7) == pytest.approx(1.7)
    assert fitted_exponent([1, 2, 4], [5, 5, 5]) == pytest.approx(0)


def test_paired_times_are_ratios_to_the_first():
    found = paired_times({"short": lambda: time.sleep(0.001), "long": lambda: time.sleep(0.004)}, rounds=5)
    assert found["short"] == (1, 1, 1)
    assert 1.5 < found["long"].low <= found["long"].median <= found["long"].high


def test_processor_seconds_do_not_count_sleep():
    with processor_seconds() as spent:
        time.sleep(0.05)
    idle = spent()
    with processor_seconds() as spent:
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass
    assert idle < 0.04 < 0.05 <= spent() == spent()


def test_the_shortest_time_of_each_call_is_that_of_its_quickest_round_and_calls_take_turns():
    order = []

    def busy(name, seconds):
        order.append(name)
        end = time.thread_time() + seconds[order.count(name) - 1]
        while time.thread_time() < end:
            pass

    found = shortest_times({"a": lambda: busy("a", (0.06, 0.02, 0.04)), 2: lambda: busy(2, (0.04, 0.06, 0.08))}, rounds=3)
    assert order == ["a", 2] * 3
    assert 0.02 <= found["a"] < 0.04 <= found[2] < 0.06


def test_the_peak_is_what_a_call_holds_at_once_beyond_what_there_was():
    kept = np.zeros(2**20)                                   # 8 MiB that were there before

    def call():
        for _ in range(3):                                   # one after the other, not all at once
            (kept + 1).sum()

    assert peak_megabytes(call) == pytest.approx(8, abs=0.1)
    assert peak_megabytes(lambda: [np.zeros(2**17) for _ in range(3)]) == pytest.approx(3, abs=0.1)
    with pytest.raises(ZeroDivisionError):
        peak_megabytes(lambda: 1 / 0)
    assert not tracemalloc.is_tracing()


def test_nats_a_label_leave_out_what_is_ignored():
    logits = np.log(np.array([[[1.0, 3.0], [1.0, 1.0], [9.0, 1.0]]]))
    assert nats(logits, np.array([[1, 0, IGNORED]])) == pytest.approx((np.log(4 / 3) + np.log(2)) / 2)


def test_how_far_apart_sizes_are():
    assert apart(iter([200, 210, 205])) == pytest.approx(5)
    assert apart([3]) == 0


def test_where_one_cost_overtakes_another():
    sizes = np.array([10.0, 100.0, 1000.0])
    assert crossing(sizes, 30 * sizes, sizes**2) == pytest.approx(30)
    assert crossing(sizes, sizes, 2 * sizes) == 10
    assert crossing(sizes, 2 * sizes, sizes) is None


def test_the_first_seed_alone():
    assert one_seed({4: np.array([1.5, 2.5]), 8: 3}) == {4: 1.5, 8: 3.0}


def test_bits():
    assert bits(np.log(8)) == pytest.approx(3)


@pytest.mark.parametrize("length", [4, 8, 4096])
def test_bits_in_windows_predict_every_token_but_the_first_once(length):
    text, read = np.random.default_rng(0).integers(4, size=4097), []

    def model(ids):
        """Takes 8 symbols for possible at even places of a window, and the 4 that there are at odd ones."""
        read.append(ids)
        logits = np.zeros((*ids.shape, 8))
        logits[:, 1::2, 4:] = -1e9
        return logits, None

    assert bits_in_windows(model, text, length) == pytest.approx((3 + 2) / 2, abs=1e-9)
    np.testing.assert_array_equal(np.concatenate(read).ravel(), text[:-1])


def test_windows_that_overlap_predict_their_end_alone():
    text, read = np.random.default_rng(0).integers(4, size=33), []

    def model(ids):
        """Is sure of the truth at the last two places of a window, and of another token before them."""
        read.append(ids)
        logits = np.zeros((*ids.shape, 4))
        places = [np.flatnonzero((np.lib.stride_tricks.sliding_window_view(text, 8) == row).all(1))[0] for row in ids]
        for row, place in zip(logits, places, strict=True):
            row[np.arange(8), (text[place + 1 : place + 9] + (np.arange(8) < 6)) % 4] = 1e9
        return logits, None

    assert bits_in_windows(model, text, 8, new=2) == 0
    assert len(np.concatenate(read)) == 13 and bits_in_windows(model, text, 8) > 1e6


def test_bits_after_a_fit_and_after_one_that_diverged():
    corpus = Corpus.from_text("ab" * 300, context=8)

    def counts(params, ids):
        """Logits of each character are those of the one before it: a table of pairs."""
        return embedding(params, ids=ids)

    params = init_embedding(np.random.default_rng(0), 2, 2)
    settings = {"context": 8, "batch_size": 4, "steps": 30, "peak": 0.5}
    assert bits_after(counts, params, corpus, rng=np.random.default_rng(0), **settings) < 0.1
    assert bits_after(counts, params, corpus, rng=np.random.default_rng(0), **settings, whole=False) < 0.1
    lost = Embedding(np.full((2, 2), np.nan, np.float32))
    assert bits_after(counts, lost, corpus, rng=np.random.default_rng(0), **settings) == 1


def test_counted_pairs_beat_single_characters():
    corpus = Corpus.from_text("ab" * 300 + "ba" * 200, context=8, validation_fraction=0.4)
    assert 0 < counted_pairs(corpus) < 1


def test_seeds_become_arrays_and_verdicts_are_of_each_alone():
    def experiment(rng):
        for x in (2, 3):
            yield "curve", x, {"number": x * rng.integers(100), "other": 1}

    seen = []
    found = collect(experiment, range(4), watch=lambda: seen.append(1))
    draws = [np.random.default_rng(seed) for seed in range(4)]
    expected = [[x * rng.integers(100) for x in (2, 3)] for rng in draws]
    assert np.array_equal(along(found["number"]["curve"]).T, expected)
    assert list(found) == ["number", "other"] and len(seen) == 8
    rule = lambda found: found["number"]["curve"][2] > 50  # noqa: E731
    assert judge(rule, found, 3) == [bool(first > 50) for first, _ in expected[:3]]


def test_an_error_in_a_seed_is_raised():
    def experiment(rng):
        yield "curve", 0, {"number": 1}
        raise RuntimeError("broke")

    with pytest.raises(RuntimeError, match="broke"):
        collect(experiment, range(2))


def test_a_seed_whose_process_is_killed_is_an_error_and_the_others_end():
    def experiment(rng):
        yield "curve", 0, {"number": 1}
        os.kill(os.getpid(), signal.SIGKILL)

    if sys.platform != "linux":
        pytest.skip("seeds are threads here")
    with pytest.raises(RuntimeError, match="its process ended with exit code -9"):
        collect(experiment, range(2))
    assert not multiprocessing.active_children()


def test_mean_and_spread():
    assert mean_and_spread(np.array([1.0, 3.0])) == "2.00 ± 1.00"
    assert mean_and_spread(np.array([2.0]), "+.1f") == "+2.0"
    assert mean_and_spread(np.array([1.0, 3.0]), "+.1f") == "+2.0 ± 1.0"


def test_every_contestant_is_tried_at_every_rate_from_one_start():
    def loss(name, rng, rate):
        return len(name) * rate + rng.random()

    found = {(name, rate): point["loss"] for name, rate, point in tried(loss, ["a", "bb"], (0.1, 0.2), np.random.default_rng(0))}
    start = np.random.default_rng(np.random.default_rng(0).integers(2**32)).random()
    assert found == {(name, rate): len(name) * rate + start for name in ("a", "bb") for rate in (0.1, 0.2)}
    own = tried(loss, ["a", "bb"], {"a": (0.1,), "bb": (0.3, 0.4)}, np.random.default_rng(0))
    assert [(name, rate) for name, rate, _ in own] == [("a", 0.1), ("bb", 0.3), ("bb", 0.4)]
