"""Eidetic memory: innovations by a double loop, and one choice made in three ways: by its definition, in blocks, token by token."""

import numpy as np
import pytest

from minitransformers.hybrids.eidetic_memory import Eidetic, Predictor, admit, choose, eidetic_mask, innovation


def naive_innovation(x, fading):
    """One token and one feature at a time: the gain is the quotient of two sums over the past."""
    scores = np.zeros(len(x))
    for t in range(len(x)):
        for c in range(x.shape[1]):
            past = [fading[s - 1, c] if s else 0.0 for s in range(t + 1)]
            products, squares = sum(past[s] * x[s, c] for s in range(t)), sum(p * p for p in past)
            scores[t] += (x[t, c] - (past[t] * products / squares if squares else 0)) ** 2
    return scores


def naive_choice(scores, i, *, window, memory):
    left = sorted(range(i - window + 1), key=lambda j: (-scores[j], j))
    return set(left[:memory])


def as_sets(places, chosen, *, window, n):
    """The choice of every query as a set of positions."""
    memory, sets = places.shape[-1], []
    for i in range(n):
        block, row = divmod(i, window)
        kept = [places[block, c] for c in range(memory) if chosen[block, row, c]]
        sets.append({*kept, *(window * (block - 1) + c for c in range(window) if chosen[block, row, memory + c])})
        assert len(sets[-1]) == chosen[block, row].sum()     # none twice
    return sets


def streamed(scores, *, window, memory):
    """The sets again, one admission a position; what is kept of a token is its position."""
    kept, sets = None, []
    for i in range(len(scores)):
        j = i - window
        if j >= 0:
            kept = admit(kept, np.full((1, 1, 1), float(j)), scores[j], j, memory=memory)
        if kept is None:
            sets.append(set())
            continue
        assert kept.rows[0, :, 0].astype(int).tolist() == kept.position.tolist()
        assert kept.innovation.tolist() == scores[kept.position].tolist()
        sets.append(set(kept.position.tolist()))
    return sets


def test_the_innovation_is_the_naive_double_loop():
    rng = np.random.default_rng(0)
    x, fading = rng.normal(size=(2, 3, 9, 4)), rng.normal(size=(2, 3, 9, 4))
    scores, _ = innovation(x, fading)
    for index in np.ndindex(2, 3):
        np.testing.assert_allclose(scores[index], naive_innovation(x[index], fading[index]), rtol=2**-12)


@pytest.mark.parametrize("levels", [3, 1000])                # three levels: most innovations are equal
@pytest.mark.parametrize("memory", [0, 1, 2, 4, 30])
@pytest.mark.parametrize(("n", "window"), [(1, 1), (1, 3), (2, 1), (7, 3), (13, 1), (13, 5), (13, 20)])
def test_mask_blocks_and_stream_choose_what_sorting_all_of_the_past_would_choose(n, window, memory, levels):
    scores = np.random.default_rng(n).integers(levels, size=n).astype(float)
    places, chosen = choose(scores, window=window, memory=memory)
    expected = [naive_choice(scores, i, window=window, memory=memory) for i in range(n)]
    assert [set(np.flatnonzero(row).tolist()) for row in eidetic_mask(scores, window=window, memory=memory)] == expected
    assert as_sets(places, chosen, window=window, n=n) == expected
    assert streamed(scores, window=window, memory=memory) == expected


def test_batches_choose_for_themselves():
    scores = np.random.default_rng(1).normal(size=(2, 3, 11))
    places, chosen = choose(scores, window=2, memory=3)
    for index in np.ndindex(2, 3):
        own_places, own_chosen = choose(scores[index], window=2, memory=3)
        assert np.array_equal(places[index], own_places)
        assert np.array_equal(chosen[index], own_chosen)
    mask = eidetic_mask(scores, window=2, memory=3)
    for index in np.ndindex(2, 3):
        assert np.array_equal(mask[index], eidetic_mask(scores[index], window=2, memory=3))


def test_batches_are_admitted_by_themselves():
    rng = np.random.default_rng(7)
    scores, rows = rng.normal(size=(2, 9)), rng.normal(size=(2, 3, 9, 4))
    kept, alone = None, [None, None]
    for j in range(9):
        kept = admit(kept, rows[:, :, j : j + 1], scores[:, j], j, memory=2)
        alone = [admit(alone[b], rows[b, :, j : j + 1], scores[b, j], j, memory=2) for b in range(2)]
    for b in range(2):
        for own, other in zip(kept, alone[b], strict=True):
            assert np.array_equal(own[b], other)
        assert np.array_equal(kept.rows[b], rows[b][:, kept.position[b]])


def test_a_text_in_pieces_has_the_innovations_of_the_whole():
    rng = np.random.default_rng(2)
    x, fading = rng.normal(size=(2, 9, 3)), rng.normal(size=(2, 9, 3))
    whole, last = innovation(x, fading)
    parts, before = [], None
    for piece in (slice(0, 4), slice(4, 5), slice(5, 9)):
        scores, before = innovation(x[:, piece], fading[:, piece], before)
        parts.append(scores)
    assert np.array_equal(np.concatenate(parts, axis=-1), whole)
    for own, other in zip(before, last, strict=True):
        assert np.array_equal(own, other)


def test_what_the_recurrence_foretells_is_no_news_and_what_it_does_not_is():
    rng = np.random.default_rng(3)
    x = np.tile(rng.normal(size=(4, 5)), (30, 1))
    fading = -3 * np.concatenate([x[1:], x[:1]])             # all of the next token, in other units
    x[70] += 2
    scores, _ = innovation(x, fading)
    assert scores.argmax() == 70
    assert scores[40:70].max() < 0.02 * scores[70]
    assert scores[0] == pytest.approx(x[0] @ x[0], rel=2**-12)  # nothing is known yet: all of it is news


def test_no_scale_of_the_recurrence_changes_a_choice():
    rng = np.random.default_rng(4)
    x, fading = rng.normal(size=(20, 3)), rng.normal(size=(20, 3))
    np.testing.assert_allclose(innovation(x, 1e-6 * fading)[0], innovation(x, fading)[0], rtol=2**-11)
    np.testing.assert_allclose(innovation(7 * x, fading)[0], 49 * innovation(x, fading)[0], rtol=2**-11)


def test_a_first_guess_is_bounded_by_what_was_seen():
    x, fading = np.ones((3, 1)), np.array([[1e-9], [1.0], [1.0]])  # a gain of 1e9, had the present place not been counted
    scores, _ = innovation(x, fading)
    assert scores.max() <= 1 + 1e-8


def test_what_differs_by_rounding_alone_is_a_tie_and_the_earlier_stays():
    token = np.random.default_rng(6).normal(size=4)
    x = np.stack([token, token * (1 + 4e-16), np.zeros(4), np.zeros(4)])
    scores, _ = innovation(x, np.zeros((4, 4)))
    assert scores[0] == scores[1] > 0
    places, _ = choose(scores, window=1, memory=1)
    assert places[:, 0].tolist() == [-1, -1, 0, 0]


def test_silence_predicts_silence():
    scores, _ = innovation(np.zeros((5, 2)), np.zeros((5, 2)))
    assert np.array_equal(scores, np.zeros(5))


def test_float32_is_judged_in_double_precision():
    rng = np.random.default_rng(5)
    x, fading = rng.normal(size=(40, 3)).astype(np.float32), rng.normal(size=(40, 3)).astype(np.float32)
    scores, _ = innovation(x, fading)
    exact, last = innovation(x.astype(float), fading.astype(float))
    assert exact.dtype == np.float64 and scores.dtype == np.float32
    assert np.array_equal(scores, exact)                     # 12 bits: float32 holds them, to the bit
    parts, before = [], None
    for piece in (slice(0, 9), slice(9, 10), slice(10, 40)):  # what the fit remembers stays in float64
        part, before = innovation(x[piece], fading[piece], before)
        parts.append(part)
    assert np.array_equal(np.concatenate(parts), scores)
    for own, other in zip(before, last, strict=True):
        assert own.dtype == np.float64 and np.array_equal(own, other)


def test_what_overflows_is_the_greatest_surprise_and_is_kept():
    x = np.array([1.0, 1e25, 1.0, 1.0, 1.0, 1.0], np.float32)[:, None]
    scores, _ = innovation(x, np.zeros_like(x))
    assert np.isinf(scores[1])
    places, _ = choose.__wrapped__(scores, window=1, memory=1)  # as B'MOJO calls it; a caller from outside is told
    assert places[:, 0].tolist() == [-1, -1, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="innovation: got numbers from 1 to inf"):
        choose(scores, window=1, memory=1)


def test_no_argument_is_written_to():
    kept = Eidetic(np.ones((1, 2, 3)), np.array([1.0, 2.0]), np.array([0, 1]))
    admit(kept, np.zeros((1, 1, 3)), np.array(5.0), 2, memory=2)
    assert kept.innovation.tolist() == [1, 2] and kept.position.tolist() == [0, 1] and kept.rows.min() == 1


@pytest.mark.parametrize(("changes", "named"), [
    ({"row": np.zeros((2, 1, 3))}, "row: got shape"), ({"row": np.zeros((1, 1, 4))}, "row: got shape"),
    ({"innovation": np.zeros(2)}, "innovation: got shape"), ({"memory": 1}, "kept: got 2 tokens, wants at most memory = 1"),
])  # fmt: skip
def test_a_token_of_another_kind_is_not_admitted(changes, named):
    call = {"kept": Eidetic(np.ones((1, 2, 3)), np.array([1.0, 2.0]), np.array([0, 1])), "row": np.zeros((1, 1, 3)), "innovation": np.array(5.0),
            "position": 2, "memory": 2}  # fmt: skip
    with pytest.raises(ValueError, match=named):
        admit(**{**call, **changes})


def test_a_fit_of_another_text_is_refused_by_name():
    with pytest.raises(ValueError, match=r"before\.last: got shape"):
        innovation(np.ones((2, 4, 3)), np.ones((2, 4, 3)), Predictor(*np.zeros((3, 1, 3))))
