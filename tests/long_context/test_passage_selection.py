"""Choosing passages: the best that fit, in the order of the text."""

import numpy as np
import pytest

from minitransformers.long_context.passage_selection import select_passages, top_documents

RNG = np.random.default_rng(0)
SCORES, LENGTHS = RNG.normal(size=12), RNG.integers(1, 9, size=12)


def naive(scores, lengths, budget, neighbours, separator):
    """Passage by passage, with the text measured anew each time."""
    taken = []
    for passage in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        for distance in range(neighbours + 1):
            for place in (passage,) if distance == 0 else (passage - distance, passage + distance):
                whole = [*taken, place]
                if 0 <= place < len(scores) and place not in taken and sum(lengths[i] for i in whole) + separator * (len(whole) - 1) <= budget:
                    taken = whole
    return sorted(taken)


@pytest.mark.parametrize("k", [1, 4, 12])
def test_the_best_are_those_that_sorting_finds(k):
    scores = RNG.normal(size=(3, 12))
    found = top_documents(scores, k=k)
    for row, numbers, best in zip(scores, *found, strict=True):
        assert numbers.tolist() == sorted(range(12), key=lambda i: -row[i])[:k]
        np.testing.assert_array_equal(best, row[numbers])


def test_of_equal_scores_the_smaller_number_comes_first():
    assert top_documents(np.array([1.0, 2.0, 2.0, 1.0, 2.0]), k=4).documents.tolist() == [1, 2, 4, 0]
    assert top_documents(np.arange(300) % 2 + 0.0, k=9).documents.tolist() == list(range(1, 18, 2))


@pytest.mark.parametrize("separator", [0, 2])
@pytest.mark.parametrize("neighbours", [0, 1, 3])
@pytest.mark.parametrize("budget", [1, 5, 17, 30, 1000])
def test_passages_are_taken_one_after_the_other_while_they_fit(budget, neighbours, separator):
    lengths = LENGTHS.copy()
    lengths[5] = 1
    found = select_passages(SCORES, lengths=lengths, budget=budget, neighbours=neighbours, separator=separator)
    assert found.tolist() == naive(SCORES, lengths.tolist(), budget, neighbours, separator)
    assert lengths[found].sum() + separator * (len(found) - 1) <= budget


def test_the_order_of_the_text_is_restored():
    found = select_passages(np.array([0.1, 3.0, 0.2, 1.0, 2.0]), lengths=np.ones(5, int), budget=3)
    assert found.tolist() == [1, 3, 4]


def test_what_is_too_long_is_passed_over_and_the_next_best_taken():
    assert select_passages(np.array([3.0, 2.0, 1.0]), lengths=np.array([2, 9, 2]), budget=4).tolist() == [0, 2]


def test_neighbours_come_before_the_next_best():
    scores, lengths = np.array([0.0, 5.0, 0.0, 0.0, 4.0]), np.ones(5, int)
    assert select_passages(scores, lengths=lengths, budget=3).tolist() == [0, 1, 4]
    assert select_passages(scores, lengths=lengths, budget=3, neighbours=1).tolist() == [0, 1, 2]


def test_the_best_passage_is_given_wherever_it_stands_if_it_fits():
    for place in range(12):
        scores = SCORES.copy()
        scores[place] = 100
        assert place in select_passages(scores, lengths=LENGTHS, budget=int(LENGTHS[place]))


def test_stopping_at_the_first_that_does_not_fit_is_told_apart():
    def wrong(scores, lengths, budget):
        order = np.argsort(-scores)
        return np.sort(order[lengths[order].cumsum() <= budget])

    scores, lengths = np.array([3.0, 2.0, 1.0]), np.array([2, 9, 2])
    assert wrong(scores, lengths, 4).tolist() == [0] != select_passages(scores, lengths=lengths, budget=4).tolist()


def test_bad_choices_are_refused():
    with pytest.raises(ValueError, match="k: got 13, wants at most 12"):
        top_documents(SCORES, k=13)
    with pytest.raises(ValueError, match="k: got 0"):
        top_documents(SCORES, k=0)
    with pytest.raises(ValueError, match="scores: got numbers from nan"):
        top_documents(np.array([1.0, np.nan]), k=1)
    with pytest.raises(ValueError, match="scores: got shape"):
        top_documents(np.zeros(0), k=1)
    with pytest.raises(ValueError, match="budget: got 2, wants at least 3, the length of the shortest"):
        select_passages(SCORES, lengths=np.full(12, 3), budget=2)
