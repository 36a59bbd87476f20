"""Beam search: one beam is greedy, all beams are every text, and a score is what the model says of the text."""

from functools import partial
from itertools import product

import numpy as np
import pytest

from minitransformers import beam_search, gpt2, gpt2_step, init_gpt2, llama_step, log_softmax
from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention_step
from minitransformers.models.beam_search import length_penalty, rows_of
from minitransformers.models.decoding import generate, without_cache
from minitransformers.models.llama import init_llama


def toy(vocabulary=3, seed=0):
    """A model that knows the last two tokens: its state is the token before."""
    table = 2 * np.random.default_rng(seed).normal(size=(vocabulary, vocabulary, vocabulary))

    def step(ids, state):
        before = np.concatenate([np.zeros_like(ids[:, :1]) if state is None else state[:, None], ids[:, :-1]], axis=1)
        return table[before, ids], ids[:, -1].copy()

    return step


def log_probability(step, prompt, text):
    """Teacher-forced: the whole text is read at once."""
    logits, _ = step(np.array([[*prompt, *text[:-1]]]), None)
    log_p = log_softmax(logits[0, len(prompt) - 1 :])[0]
    return float(sum(log_p[i, token] for i, token in enumerate(text)))


def every_text(step, prompt, longest, vocabulary, end):
    """All texts that end, and those of the longest length that do not, with their log-probabilities."""
    for length in range(1, longest + 1):
        for text in product(range(vocabulary), repeat=length):
            stops = end in text
            if (stops and text.index(end) == length - 1) or (not stops and length == longest):
                yield list(text), log_probability(step, prompt, text)


@pytest.mark.parametrize("end", [None, 1])
@pytest.mark.parametrize("exponent", [0.0, 0.6, 1.0, -0.5])
@pytest.mark.parametrize("seed", range(3))
def test_with_a_beam_for_each_text_it_is_exhaustive_search(seed, exponent, end):
    step, prompt = toy(seed=seed), np.array([2, 0])
    found = beam_search(step, prompt, num_tokens=4, num_beams=81, end=end, penalty=partial(length_penalty, exponent=exponent))
    texts = sorted(every_text(step, prompt, 4, 3, end), key=lambda text: -text[1] / length_penalty(len(text[0]), exponent=exponent))
    # Texts of the same steps in another order are equally likely, and rounding decides between them: each is held to its own.
    known = {tuple(text): p for text, p in texts}
    assert len({tuple(hypothesis.ids) for hypothesis in found}) == len(found) == len(texts[:81])
    np.testing.assert_allclose([hypothesis.log_probability for hypothesis in found], [p for _, p in texts[:81]], atol=1e-12)
    for ids, _, log_p, ended in found:
        assert log_p == pytest.approx(known[tuple(ids)], abs=1e-12) and ended == (ids[-1] == end)


@pytest.fixture(scope="module")
def model():
    return init_gpt2(np.random.default_rng(3), vocabulary=11, context=24, d_model=12, num_layers=2, num_heads=3, std=0.5, dtype=np.float64)


def test_one_beam_is_the_greedy_text(model):
    step = partial(gpt2_step, model, num_heads=3)
    greedy = list(generate(step, prompt_ids=np.array([3, 1, 4]), num_tokens=12, temperature=0, rng=np.random.default_rng(0)))
    (found,) = beam_search(step, np.array([3, 1, 4]), num_tokens=12, num_beams=1)
    assert found.ids == greedy


@pytest.mark.parametrize("num_beams", [2, 5])
def test_a_score_is_what_the_model_says_of_the_text_and_a_cache_changes_nothing(model, num_beams):
    settings = {"num_tokens": 10, "num_beams": num_beams, "end": 4}
    step, prompt = partial(gpt2_step, model, num_heads=3), np.array([3, 1, 4])
    found = beam_search(step, prompt, **settings)
    assert found == sorted(found, key=lambda hypothesis: -hypothesis.score) and len({tuple(h.ids) for h in found}) == num_beams
    for hypothesis in found:
        assert hypothesis.log_probability == pytest.approx(log_probability(without_cache(partial(gpt2, model, num_heads=3)), prompt, hypothesis.ids))
        assert hypothesis.score == pytest.approx(hypothesis.log_probability / length_penalty(len(hypothesis.ids)))
    for own, other in zip(found, beam_search(without_cache(partial(gpt2, model, num_heads=3)), prompt, **settings), strict=True):
        assert own.ids == other.ids and own.score == pytest.approx(other.score)


def test_more_beams_find_a_text_that_greed_walks_past():
    logits = np.log(np.array([[[0.6, 0.4], [0.55, 0.45]], [[0.01, 0.99], [0.5, 0.5]]]))  # 0 is likelier after 0; but after 0, 1 comes 1 for sure

    def step(ids, state):
        before = np.zeros_like(ids[:, 0]) if state is None else state
        return logits[ids[:, -1], before][:, None].repeat(ids.shape[1], axis=1), ids[:, -1].copy()

    wide, greedy = (beam_search(step, np.array([0]), num_tokens=2, num_beams=beams)[0] for beams in (2, 1))
    assert wide.log_probability > greedy.log_probability


def test_the_penalty_decides_between_short_and_long():
    step = toy(seed=5)
    short, long = (
        beam_search(step, np.array([0]), num_tokens=8, num_beams=4, end=2, penalty=partial(length_penalty, exponent=exponent))[0] for exponent in (0, 3)
    )
    assert len(short.ids) < len(long.ids)
    assert length_penalty(1) == 1 and length_penalty(7, exponent=1.0) == 2


def test_it_stops_when_no_live_text_can_win():
    calls = []

    def step(ids, state):
        calls.append(ids.shape)
        return np.broadcast_to([5.0, 0.0, 9.0], (*ids.shape, 3)), state  # the end is nearly certain

    beam_search(step, np.array([0]), num_tokens=1000, num_beams=2, end=2)
    assert len(calls) < 30


def test_a_cache_that_two_beams_continue_keeps_them_apart():
    rng = np.random.default_rng(1)
    params, x = init_multi_head_attention(rng, 4, num_heads=2, dtype=np.float64), rng.normal(size=(2, 6, 4))
    _, state = multi_head_attention_step(params, x[:, :3], None, num_heads=2)
    crossed = rows_of(state, [1, 1, 0])
    out, crossed = multi_head_attention_step(params, x[[0, 1, 0], 3:5], crossed, num_heads=2)
    again, _ = multi_head_attention_step(params, x[:, 3:5], state, num_heads=2)  # the state of before is as it was
    expected = [np.concatenate([x[a, :3], x[b, 3:5]]) for a, b in ((1, 0), (1, 1), (0, 0))]
    np.testing.assert_allclose(out, multi_head_attention_step(params, np.stack(expected), None, num_heads=2)[0][:, 3:], atol=1e-14)
    np.testing.assert_allclose(again, multi_head_attention_step(params, x[:, :5], None, num_heads=2)[0][:, 3:], atol=1e-14)


def test_windows_and_grouped_queries_follow_the_beams_too():
    params = init_llama(np.random.default_rng(2), vocabulary=11, d_model=8, num_layers=2, num_heads=4, num_kv_heads=2, d_hidden=5, std=0.6, dtype=np.float64)
    step = partial(llama_step, params, num_heads=4, window=3)
    for hypothesis in beam_search(step, np.array([1, 2, 3, 4, 5]), num_tokens=9, num_beams=4):
        assert hypothesis.log_probability == pytest.approx(log_probability(step, [1, 2, 3, 4, 5], hypothesis.ids), abs=1e-10)


def test_processors_see_the_prompt_and_the_text_and_what_they_make_is_what_is_summed():
    seen = []

    def halved(log_p, ids):
        seen.append(ids.copy())
        return log_p / 2

    def never_two(log_p, ids):
        return np.where(np.arange(3) == 2, -np.inf, log_p)

    settings = {"num_tokens": 4, "num_beams": 81, "penalty": partial(length_penalty, exponent=0.0)}
    found = beam_search(toy(), np.array([2, 0]), processors=(halved, never_two), **settings)
    texts = [(text, p / 2) for text, p in every_text(toy(), [2, 0], 4, 3, None) if 2 not in text]
    assert {tuple(h.ids) for h in found} == {tuple(text) for text, _ in texts} and len(found) == 16
    known = {tuple(text): p for text, p in texts}
    assert all(h.log_probability == pytest.approx(known[tuple(h.ids)], abs=1e-12) for h in found)
    assert [ids.shape for ids in seen] == [(1, 2), (2, 3), (4, 4), (8, 5)] and all(np.all(ids[:, :2] == [2, 0]) for ids in seen)


def test_without_processors_or_with_one_that_changes_nothing_the_bits_are_the_same(model):
    step = partial(gpt2_step, model, num_heads=3)
    plain = beam_search(step, np.array([3, 1, 4]), num_tokens=8, num_beams=3, end=4)
    assert beam_search(step, np.array([3, 1, 4]), num_tokens=8, num_beams=3, end=4, processors=(lambda log_p, ids: log_p,)) == plain


def test_a_text_without_a_token_left_is_dropped_and_without_a_text_left_the_call_is_refused():
    def nothing_after_zero(log_p, ids):
        return np.where(ids[:, -1:] == 0, -np.inf, log_p)

    found = beam_search(toy(), np.array([1]), num_tokens=4, num_beams=3, processors=(nothing_after_zero,))
    assert len(found) == 3 and all(0 not in hypothesis.ids[:-1] for hypothesis in found)
    with pytest.raises(ValueError, match="processors: got -inf for every token of every text"):
        beam_search(toy(), np.array([0]), num_tokens=4, processors=(nothing_after_zero,))
    with pytest.raises(ValueError, match=r"processors\.1: got NaN or \+inf"):
        beam_search(toy(), np.array([1]), num_tokens=4, processors=(nothing_after_zero, lambda log_p, ids: np.full_like(log_p, np.nan)))


@pytest.mark.parametrize("changes", [{"num_beams": 0}, {"num_tokens": 0}, {"end": 3}, {"end": -1}, {"ids": np.zeros(0, int)}, {"ids": np.array([0.5])}])
def test_bad_settings_are_refused_by_name(changes):
    with pytest.raises(ValueError, match=f"^{next(iter(changes))}"):
        beam_search(toy(), **{"ids": np.array([0]), "num_tokens": 3, **changes})


@pytest.mark.parity
@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_the_best_texts_and_scores_are_hugging_faces(model, exponent):
    """Theirs drops an end that is not among the best num_beams continuations, and so may miss a text whose score is better."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from minitransformers.models.gpt2 import gpt2_weights

    config = transformers.GPT2Config(vocab_size=11, n_positions=24, n_embd=12, n_layer=2, n_head=3, bos_token_id=None, eos_token_id=4, pad_token_id=4)
    theirs = transformers.GPT2LMHeadModel(config).double().eval()
    theirs.load_state_dict({name: torch.tensor(array) for name, array in gpt2_weights(model).items()}, strict=False)
    for prompt in ([3, 1, 5], [7, 7], [10, 2, 6, 9]):
        found = beam_search(partial(gpt2_step, model, num_heads=3), np.array(prompt), num_tokens=12, num_beams=3, end=4, penalty=lambda n: n**exponent)
        expected = theirs.generate(
            torch.tensor([prompt]), num_beams=3, num_return_sequences=3, max_new_tokens=12, do_sample=False, length_penalty=exponent,
            early_stopping="never", return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        texts = [row[len(prompt) :].tolist() for row in expected.sequences]
        texts = [text[: text.index(4) + 1] if 4 in text else text for text in texts]
        assert found[0].score >= float(expected.sequences_scores[0]) - 1e-5
        if exponent == 0.5:
            continue
        assert [hypothesis.ids for hypothesis in found] == texts
        np.testing.assert_allclose([hypothesis.score for hypothesis in found], expected.sequences_scores.numpy(), rtol=1e-5)  # theirs in float32
