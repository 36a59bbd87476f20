"""Banned sequences: none comes up in any text, and apart from that nothing changes."""

from functools import partial
from itertools import pairwise, product

import numpy as np
import pytest

from minitransformers.basics.log_softmax import log_softmax
from minitransformers.bias_mitigation.constrained_decoding import ban, banned_sequences, tokenisations
from minitransformers.foundation import trusted
from minitransformers.models.beam_search import beam_search, length_penalty
from minitransformers.models.decoding import generate

SHORT = partial(length_penalty, exponent=0.0)


def bigrams(seed, vocabulary=4):
    table = 2 * np.random.default_rng(seed).normal(size=(vocabulary, vocabulary))
    return table, lambda ids, state: (table[ids], state)


def random_patterns(rng, vocabulary=4, count=3):
    return [rng.integers(1, vocabulary, size=rng.integers(1, 4)).tolist() for _ in range(count)]


def holds(text, sequence):
    return any(text[i : i + len(sequence)] == sequence for i in range(len(text)))


@pytest.mark.parametrize("seed", range(20))
def test_the_automaton_finds_every_end_of_a_sequence_however_they_overlap(seed):
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(2, size=rng.integers(1, 5)).tolist() for _ in range(4)]
    automaton = banned_sequences(sequences, vocabulary=3)
    text, state = rng.integers(2, size=60).tolist(), 0
    for place, token in enumerate(text):
        state = automaton.next[state, token]
        read = text[: place + 1]
        assert automaton.accept[state] == any(read[-len(sequence) :] == sequence for sequence in sequences)


def test_a_sequence_that_ends_inside_the_beginning_of_another_is_found_through_the_suffix_links():
    automaton = banned_sequences([[1, 2, 3, 0], [2, 3]], vocabulary=4)
    state = 0
    for token in (1, 2, 3):
        state = automaton.next[state, token]
    assert automaton.accept[state]


def without_suffix_links(sequences, vocabulary):
    """The plausible wrong automaton: only where a sequence itself is complete."""
    automaton = banned_sequences(sequences, vocabulary=vocabulary)
    accept = np.zeros_like(automaton.accept)
    for sequence in sequences:
        state = 0
        for token in sequence:
            state = automaton.next[state, token]
        accept[state] = True
    return automaton._replace(accept=accept)


def test_without_the_suffix_links_a_banned_sequence_comes_through():
    sequences, logits = [[1, 2, 3, 0], [2, 3]], np.zeros(4)
    assert ban(logits, np.array([1, 2]), banned=banned_sequences(sequences, vocabulary=4))[3] == -np.inf
    assert ban(logits, np.array([1, 2]), banned=without_suffix_links(sequences, 4))[3] == 0


@pytest.mark.parametrize("seed", range(10))
def test_exactly_those_tokens_are_banned_that_would_complete_a_sequence(seed):
    rng = np.random.default_rng(seed)
    sequences, ids, logits = random_patterns(rng), rng.integers(4, size=(2, 3, 9)), rng.normal(size=(2, 3, 4))
    found = ban(logits, ids, banned=banned_sequences(sequences, vocabulary=4))
    for place in product(range(2), range(3)):
        text = ids[place].tolist()
        for token in range(4):
            completed = any([*text, token][-len(sequence) :] == sequence for sequence in sequences)
            assert found[(*place, token)] == (-np.inf if completed else logits[(*place, token)])


def test_a_long_text_is_read_no_further_back_than_it_matters():
    sequences = [[1, 1, 1, 2], [3, 1]]
    automaton = banned_sequences(sequences, vocabulary=4)
    text = np.random.default_rng(0).integers(4, size=500)
    for length in range(1, 500, 7):
        state = 0
        for token in text[:length]:
            state = automaton.next[state, token]
        expected = np.where(automaton.accept[automaton.next[state]], -np.inf, 0.0)
        np.testing.assert_array_equal(ban(np.zeros(4), text[:length], banned=automaton), expected)


@pytest.mark.parametrize("seed", range(8))
def test_nothing_that_is_written_holds_a_banned_sequence_drawn_or_searched(seed):
    rng = np.random.default_rng(seed)
    sequences = random_patterns(rng)
    automaton = banned_sequences(sequences, vocabulary=4, end=0)
    _, step = bigrams(seed)
    process = partial(ban, banned=automaton)
    drawn = list(generate(step, prompt_ids=np.array([0]), num_tokens=40, processors=(process,), rng=rng))
    found = beam_search(step, np.array([0]), num_tokens=8, num_beams=4, end=0, processors=(process,))
    for text in (drawn, *(hypothesis.ids for hypothesis in found)):
        assert not any(holds(text, sequence) for sequence in sequences)


def test_with_nothing_banned_the_beam_is_the_plain_one():
    for seed in range(5):
        _, step = bigrams(seed)
        plain = beam_search(step, np.array([1]), num_tokens=6, num_beams=3, end=0)
        assert beam_search(step, np.array([1]), num_tokens=6, num_beams=3, end=0, processors=(partial(ban, banned=banned_sequences([], vocabulary=4)),)) == plain


@trusted
def best_of_every_text(table, start, length, sequences):
    log_p, best = log_softmax(table)[0], -np.inf
    for text in product(range(len(table)), repeat=length):
        whole = [start, *text]
        if not any(holds(whole, sequence) for sequence in sequences):
            best = max(best, sum(log_p[a, b] for a, b in pairwise(whole)))
    return best


@pytest.mark.parametrize("block", range(4))
def test_with_a_beam_for_each_text_the_best_is_that_of_all_allowed_texts(block):
    for seed in range(50 * block, 50 * block + 50):
        rng = np.random.default_rng(seed)
        drawn = (rng.integers(3, size=rng.integers(1, 4)).tolist() for _ in range(rng.integers(1, 4)))
        sequences = [sequence for sequence in drawn if sequence != [0]]  # which is the prompt
        table, step = bigrams(seed, vocabulary=3)
        expected = best_of_every_text(table, 0, 4, sequences)
        if expected == -np.inf:
            continue                                         # nothing is allowed: refused, see below
        process = partial(ban, banned=banned_sequences(sequences, vocabulary=3))
        found = beam_search(step, np.array([0]), num_tokens=4, num_beams=27, penalty=SHORT, processors=(process,))
        assert found[0].log_probability == pytest.approx(expected, abs=1e-12)


def test_where_no_token_is_left_the_text_is_dropped_and_where_no_text_is_left_the_call_is_refused():
    table = np.log([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.4, 0.5, 0.1]])

    def step(ids, state):
        return table[ids], state

    dead_end = banned_sequences([[1, 0], [1, 1], [1, 2]], vocabulary=3)
    found = beam_search(step, np.array([0]), num_tokens=3, num_beams=3, processors=(partial(ban, banned=dead_end),))
    assert found and all(1 not in hypothesis.ids[:-1] for hypothesis in found)
    everything = banned_sequences([[0], [1], [2]], vocabulary=3)
    with pytest.raises(ValueError, match="processors: got -inf for every token of every text"):
        beam_search(step, np.array([0]), num_tokens=3, processors=(partial(ban, banned=everything),))


def test_the_end_is_always_allowed():
    everything_else = banned_sequences([[1], [2]], vocabulary=3, end=0)
    found = beam_search(bigrams(0, 3)[1], np.array([1]), num_tokens=3, end=0, processors=(partial(ban, banned=everything_else),))
    assert [hypothesis.ids for hypothesis in found] == [[0]]
    with pytest.raises(ValueError, match=r"sequences\.0: got 0, wants ids from 0 to 2, without the end, 0"):
        banned_sequences([[1, 0]], vocabulary=3, end=0)


VOCABULARY = ["a", "b", "c", "ab", "bc", "abc", "ca"]


def test_every_way_to_spell_a_text_is_found_once():
    every = [list(way) for length in range(1, 6) for way in product(range(7), repeat=length) if "".join(VOCABULARY[t] for t in way) == "abcab"]
    found = tokenisations("abcab", vocabulary=VOCABULARY)
    assert sorted(found) == sorted(every) and len(found) == len({tuple(way) for way in found})


@pytest.mark.parametrize("text", ["bca", "a", "cab"])
def test_every_cover_is_found_once(text):
    """All sequences of tokens in which the text begins in the first and ends in the last."""
    vocabulary, every = [*VOCABULARY, "bcab", "aa"], []
    for length in range(1, 4):
        for way in product(range(9), repeat=length):
            pieces = [vocabulary[t] for t in way]
            whole, first, last = "".join(pieces), len(pieces[0]), len(pieces[-1])
            places = [i for i in range(first) if whole.startswith(text, i)]
            if any(i + len(text) > len(whole) - last for i in places):
                every.append(list(way))
    assert sorted(tokenisations(text, vocabulary=vocabulary, inside=True)) == sorted(every)


def test_with_all_covers_banned_the_text_never_comes_up_and_with_one_spelling_banned_it_does():
    rng = np.random.default_rng(0)
    covers = banned_sequences(tokenisations("bca", vocabulary=VOCABULARY, inside=True), vocabulary=7)
    first = banned_sequences(tokenisations("bca", vocabulary=VOCABULARY)[:1], vocabulary=7)

    def written(automaton):
        tokens = generate(lambda ids, state: (np.zeros((*ids.shape, 7)), state), prompt_ids=np.array([0]), num_tokens=300, rng=rng,
                          processors=(partial(ban, banned=automaton),))  # fmt: skip
        return "".join(VOCABULARY[token] for token in tokens)

    assert "bca" not in written(covers)
    assert "bca" in written(first)


def test_no_more_is_banned_than_must_be():
    """A cover ends where the text does, or in the token that ends it: without its last token it does not hold the text."""
    for way in tokenisations("bca", vocabulary=VOCABULARY, inside=True):
        assert "bca" in "".join(VOCABULARY[t] for t in way)
        assert "bca" not in "".join(VOCABULARY[t] for t in way[:-1]) and "bca" not in "".join(VOCABULARY[t] for t in way[1:])


@pytest.mark.parity
def test_it_bans_what_transformers_bans():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    rng = np.random.default_rng(1)
    for _ in range(20):
        sequences = random_patterns(rng)
        ids, logits = rng.integers(4, size=(5, 6)), rng.normal(size=(5, 4))
        theirs = transformers.NoBadWordsLogitsProcessor(sequences, eos_token_id=None)(torch.tensor(ids), torch.tensor(logits)).numpy()
        np.testing.assert_array_equal(ban(logits, ids, banned=banned_sequences(sequences, vocabulary=4)), theirs)


@pytest.mark.parity
def test_the_beam_finds_what_that_of_transformers_finds():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from minitransformers import gpt2_step, init_gpt2
    from minitransformers.models.gpt2 import gpt2_weights

    model = init_gpt2(np.random.default_rng(3), vocabulary=11, context=24, d_model=12, num_layers=2, num_heads=3, std=0.5, dtype=np.float64)
    config = transformers.GPT2Config(vocab_size=11, n_positions=24, n_embd=12, n_layer=2, n_head=3, bos_token_id=None, eos_token_id=4, pad_token_id=4)
    theirs = transformers.GPT2LMHeadModel(config).double().eval()
    theirs.load_state_dict({name: torch.tensor(array) for name, array in gpt2_weights(model).items()}, strict=False)
    step = partial(gpt2_step, model, num_heads=3)
    for prompt in ([3, 1, 5], [7, 7]):
        free = beam_search(step, np.array(prompt), num_tokens=8, num_beams=3, end=4, penalty=lambda n: n)[0].ids
        sequences = [free[:2], [free[0], 9], [2]]
        process = partial(ban, banned=banned_sequences([s for s in sequences if 4 not in s], vocabulary=11, end=4))
        found = beam_search(step, np.array(prompt), num_tokens=8, num_beams=3, end=4, penalty=lambda n: n, processors=(process,))
        expected = theirs.generate(
            torch.tensor([prompt]), num_beams=3, max_new_tokens=8, do_sample=False, length_penalty=1.0, early_stopping="never",
            bad_words_ids=[s for s in sequences if 4 not in s], return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        text = expected.sequences[0, len(prompt) :].tolist()
        assert found[0].ids == (text[: text.index(4) + 1] if 4 in text else text)
        np.testing.assert_allclose(found[0].score, float(expected.sequences_scores[0]), rtol=1e-5)  # theirs in float32
