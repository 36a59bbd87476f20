"""Stop sequences: where the first is complete, however the text is cut; never shown, not even begun; and nothing is computed after."""

from itertools import count

import numpy as np
import pytest

from minitransformers.models.decoding import generate
from minitransformers.models.stopping import until, until_text


def naive(text, stops):
    """The text before the stop that is complete first, the longest of those; by looking at every end."""
    for end in range(1, len(text) + 1):
        if found := [stop for stop in stops if len(stop) <= end and text[end - len(stop) : end] == stop]:
            return text[: end - len(max(found, key=len))]
    return text


def cuts(rng, text):
    """The text in pieces, some of them empty."""
    places = sorted(rng.integers(len(text) + 1, size=int(rng.integers(1, 9))).tolist())
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize("seed", range(60))
def test_is_the_text_before_the_first_stop_however_it_is_cut(seed):
    rng = np.random.default_rng(seed)
    text = "".join(rng.choice(list("ab\n"), size=30))
    stops = ["".join(rng.choice(list("ab\n"), size=rng.integers(2, 6))) for _ in range(rng.integers(1, 4))]
    expected = naive(text, stops)
    for pieces in (list(text), [text], cuts(rng, text), cuts(rng, text)):
        shown = list(until_text(pieces, stop=stops))
        assert "".join(shown) == expected and all(shown)
    ids = [ord(letter) for letter in text]
    assert list(until(ids, stop=[[ord(letter) for letter in stop] for stop in stops])) == [ord(letter) for letter in expected]


def test_by_hand():
    assert list(until([5, 1, 2, 7, 1, 2, 3, 9], stop=[[1, 2, 3]])) == [5, 1, 2, 7]
    assert list(until([1, 1, 1, 2], stop=[[1, 1, 2]])) == [1]  # begun one place too early, and found all the same
    assert list(until([4, 9, 4], stop=[[9]])) == [4]         # a token that ends a text
    assert list(until([4, 5], stop=[])) == [4, 5]
    assert list(until([7, 8], stop=[[7, 8, 9]])) == [7, 8]   # held back, and then shown: nothing more came
    assert "".join(until_text(["One.\n", "\nTwo"], stop=["\n\n"])) == "One."
    assert "".join(until_text(["abcd"], stop=["abcd", "bc"])) == "a"  # "bc" is complete first
    assert "".join(until_text(["abcd"], stop=["abcd", "bcd"])) == ""  # both at once: the longest


def test_a_stop_is_found_across_the_boundaries_of_tokens():
    """No token is the stop, and none ends where it begins."""
    pieces = ["Q: 2+", "2?\n", "A: 4\n\nQ", ": 3+3", "?"]
    shown = list(until_text(pieces, stop=["\nQ:"]))
    assert "".join(shown) == "Q: 2+2?\nA: 4\n"


def test_what_is_shown_is_never_taken_back_and_shown_as_soon_as_it_is_safe():
    pieces, given = iter(["a", "E", "N", "x", "E", "N", "D", "b"]), []

    def watched():
        for piece in pieces:
            given.append(piece)
            yield piece

    steps = [(piece, "".join(given)) for piece in until_text(watched(), stop=["END"])]
    assert steps == [("a", "a"), ("ENx", "aENx")]            # "EN" waits for the letter that tells
    assert "".join(given) == "aENxEND"                       # nothing behind the stop was asked for


def test_no_token_is_computed_after_the_stop():
    calls = []

    def step(ids, state):
        calls.append(ids.tolist())
        return 50.0 * np.eye(6)[(ids + 1) % 6], state

    ids = generate(step, prompt_ids=np.array([0]), num_tokens=1000, temperature=0, rng=np.random.default_rng(0))
    assert list(until(ids, stop=[[4, 5]])) == [1, 2, 3]
    assert len(calls) == 5
    assert next(until(count(), stop=[[3]])) == 0             # an endless text is read as far as it must be


def test_stops_may_be_arrays_ids_of_numpy_and_characters_of_many_bytes():
    assert list(until(np.array([3, 4, 5]), stop=[(4, 5)])) == [3]
    assert "".join(until_text(["né", "e ✓", " 漢字"], stop=["✓ 漢"])) == "née "


@pytest.mark.parametrize(
    ("function", "stop", "message"),
    [
        (until, [[]], "stop.0: got"), (until, [[1], []], "stop.1: got"), (until, [3], "stop.0"), (until, 3, "stop"), (until_text, [""], "stop.0: got ''"),
        (until_text, "\n", r"stop: got '\\n', wants a list"), (until_text, [3], "stop.0"),
    ],
)  # fmt: skip
def test_a_stop_of_nothing_is_refused_by_name_and_at_once(function, stop, message):
    with pytest.raises(ValueError, match=message):
        function(iter([]), stop=stop)
