"""Decoding: the cache changes nothing but the cost, and only allowed tokens are drawn."""

from functools import partial

import numpy as np
import pytest
from workbench_models import NEEDED, decoded, in_slot, mixers_with, model, whole

from minitransformers import catalogue
from minitransformers.models.decoding import generate, next_token_probabilities, without_cache
from minitransformers.models.workbench.language_model import DecodingState, language_model, language_model_step


def step_of(params, config):
    return partial(language_model_step, params, config=config)


def step_without_cache(params, config):
    return without_cache(partial(language_model, params, config=config))


def choices():
    """Every mixer that has a step with every position that it has a place for."""
    rotations = catalogue.concepts(role="position/rotation")
    for mixer, entry in catalogue.concepts(role="mixer").items():
        if entry.step is not None:
            positions = ["learned", "sinusoidal", "none", *(rotations if mixer in mixers_with("prepare") else [])]
            for position in [*positions, *(catalogue.concepts(role="position/bias") if mixer in mixers_with("bias") else [])]:
                yield mixer, position
    for position in ("learned", "rope", "alibi"):
        yield "sliding_window_attention,grouped_query_attention", position


def chosen_model(mixer, position, **changes):
    options = {"mixer": NEEDED.get(mixer.split(",")[0], {}), "position": NEEDED.get(position, {})}
    settings = {"vocabulary_size": 11, "context": 8, "d_model": 16, "num_heads": 4}
    return model(**{**settings, **changes}, mixer=mixer, position=position, scale_embedding=position == "sinusoidal", options=options)


@pytest.mark.parametrize(("mixer", "position"), choices())
def test_cached_logits_equal_the_whole_pass(mixer, position):
    params, config = chosen_model(mixer, position)
    ids = np.random.default_rng(1).integers(11, size=(3, 8))
    logits = whole(params, config, ids)
    for pieces in ((1,) * 8, (5, 1, 1, 1), (3, 4, 1)):
        np.testing.assert_allclose(decoded(params, config, ids, pieces), logits, atol=1e-10, err_msg=str(pieces))


@pytest.mark.parametrize("stack", [name for name, entry in catalogue.concepts(role="stack").items() if entry.step is not None])
def test_cached_logits_equal_the_whole_pass_of_a_stack(stack):
    params, config = model(stack=stack, position="learned", options={"stack": NEEDED.get(stack, {})})
    ids = np.random.default_rng(2).integers(5, size=(2, 6))
    np.testing.assert_allclose(decoded(params, config, ids, (3, 1, 2)), whole(params, config, ids), atol=1e-10)


PLACEMENTS = [
    {"placement": placement, "tied": tied, "fix_norm": fix_norm}
    for placement in ("pre", "post", "deep") for tied, fix_norm in ((True, False), (False, False), (True, True))
]  # fmt: skip


@pytest.mark.parametrize("changes", PLACEMENTS, ids=str)
def test_cached_text_equals_uncached_text_even_past_the_context(changes):
    params, config = model(vocabulary_size=11, context=8, d_model=8, **changes)
    settings = {"prompt_ids": np.array([1, 2, 3]), "num_tokens": 30, "context": config.context}
    cached = list(generate(step_of(params, config), rng=np.random.default_rng(2), **settings))
    plain = list(generate(step_without_cache(params, config), rng=np.random.default_rng(2), **settings))
    assert cached == plain
    assert len(cached) == 30


@pytest.mark.parametrize("changes", [{"placement": "deep"}, {"fix_norm": True}, {"placement": "deep", "fix_norm": True, "norm": "scale_norm"}])
def test_cached_logits_equal_the_whole_pass_under_deep_norm_and_fix_norm(changes):
    params, config = model(**changes)
    ids = np.random.default_rng(6).integers(5, size=(2, 6))
    np.testing.assert_allclose(decoded(params, config, ids, (4, 2)), whole(params, config, ids), atol=1e-10)


def test_a_state_can_be_continued_twice():
    params, config = model(**in_slot("prepare", "qk_norm"), position="rope")
    ids = np.random.default_rng(7).integers(5, size=(2, 6))
    _, state = language_model_step(params, ids[:, :3], None, config=config)
    first, _ = language_model_step(params, ids[:, 3:], state, config=config)
    language_model_step(params, (ids[:, 3:5] + 1) % 5, state, config=config)
    again, _ = language_model_step(params, ids[:, 3:], state, config=config)
    np.testing.assert_array_equal(first, again)


def toy(ids, seen):
    """A model that expects, after every token, the next number, and counts what it was given."""
    seen = (0 if seen is None else seen) + ids.shape[-1]
    return np.eye(5)[(ids + 1) % 5] * 50.0, seen


def test_any_function_with_the_form_of_a_step_can_write():
    text = generate(toy, prompt_ids=np.array([3]), num_tokens=6, temperature=0, rng=np.random.default_rng(0))
    assert list(text) == [4, 0, 1, 2, 3, 4]


def test_a_model_without_a_step_answers_for_the_new_positions_alone():
    params, config = model(vocabulary_size=11, context=8, d_model=8)
    ids = np.random.default_rng(3).integers(11, size=(2, 8))
    step, state, found = step_without_cache(params, config), None, []
    for start, end in ((0, 3), (3, 4), (4, 8)):
        logits, state = step(ids[:, start:end], state)
        found.append(logits)
    np.testing.assert_allclose(np.concatenate(found, axis=1), whole(params, config, ids), rtol=0, atol=1e-12)


def test_a_step_gets_only_what_is_new_and_without_a_context_it_gets_it_once():
    given = []

    def watched(ids, state):
        given.append((ids.tolist(), state))
        return toy(ids, state)

    list(generate(watched, prompt_ids=np.array([0, 1, 2]), num_tokens=4, temperature=0, rng=np.random.default_rng(0)))
    assert given == [([[0, 1, 2]], None), ([[3]], 3), ([[4]], 4), ([[0]], 5)]


def test_where_the_context_is_full_the_newer_half_is_read_again():
    given = []

    def watched(ids, state):
        given.append((ids.shape[-1], state))
        return toy(ids, state)

    list(generate(watched, prompt_ids=np.array([0, 1, 2]), num_tokens=6, temperature=0, rng=np.random.default_rng(0), context=4))
    assert given == [(3, None), (1, 3), (2, None), (1, 2), (1, 3), (2, None)]


def test_a_prompt_longer_than_the_context_is_read_from_its_end():
    params, config = model(vocabulary_size=11, context=8, d_model=8)
    long = np.arange(20) % 11
    settings = {"num_tokens": 3, "temperature": 0, "context": config.context}
    one, two = (list(generate(step_of(params, config), prompt_ids=p, rng=np.random.default_rng(0), **settings)) for p in (long, long[-8:]))
    assert one == two


def test_temperature_zero_takes_the_largest_logit():
    params, config = model(vocabulary_size=11, context=8, d_model=8)
    ids = [4]
    for token in generate(step_of(params, config), prompt_ids=np.array(ids), num_tokens=5, temperature=0, rng=np.random.default_rng(0)):
        assert token == whole(params, config, np.array([ids]))[0, -1].argmax()
        ids.append(token)


def test_top_k_keeps_ties_at_the_edge():
    kept = next_token_probabilities(np.array([1.0, 3.0, 2.0, 2.0]), top_k=2) > 0
    assert kept.tolist() == [False, True, True, True]


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    logits = np.log(np.array([0.15, 0.5, 0.05, 0.3]))
    assert (next_token_probabilities(logits, top_p=0.6) > 0).tolist() == [False, True, False, True]
    assert (next_token_probabilities(logits, top_p=0.45) > 0).tolist() == [False, True, False, False]
    assert (next_token_probabilities(logits, top_p=1e-9) > 0).sum() == 1


def test_open_settings_leave_the_distribution_unchanged():
    logits = np.random.default_rng(3).normal(size=(2, 9))
    exact = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(next_token_probabilities(logits, top_k=9, top_p=1.0), exact, atol=1e-15)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_a_temperature_divides_the_logits(temperature):
    logits = np.random.default_rng(4).normal(size=(2, 9))
    exps = np.exp(logits / temperature)
    np.testing.assert_allclose(next_token_probabilities(logits, temperature=temperature), exps / exps.sum(-1, keepdims=True), atol=1e-15)


def test_top_k_comes_before_top_p():
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1]))  # two kept: renormalised 0.571 and 0.429, and 0.55 needs the first alone
    assert (next_token_probabilities(logits, top_k=2, top_p=0.55) > 0).tolist() == [True, False, False, False]


def naive_probabilities(logits, temperature, top_k, top_p):
    """One row, token by token in pure Python."""
    logits = [x / temperature for x in logits]
    edge = sorted(logits, reverse=True)[min(top_k, len(logits)) - 1]
    powers = [np.exp(x - max(logits)) if x >= edge else 0.0 for x in logits]
    powers = [p / sum(powers) for p in powers]
    kept, mass = set(), 0.0
    for i in sorted(range(len(powers)), key=lambda i: -powers[i]):
        if mass >= top_p:
            break
        kept.add(i)
        mass += powers[i]
    powers = [p if i in kept else 0.0 for i, p in enumerate(powers)]
    return [p / sum(powers) for p in powers]


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_steps_one_by_one(seed):
    rng = np.random.default_rng(seed)
    logits, temperature, top_k, top_p = rng.normal(size=(3, 8)), rng.uniform(0.3, 2), int(rng.integers(1, 10)), rng.uniform(0.1, 1)
    expected = [naive_probabilities(row, temperature, top_k, top_p) for row in logits]
    found = next_token_probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)


def test_drawn_frequencies_follow_the_model():
    params, config = model(vocabulary_size=11, context=4, d_model=8)
    draws, prompt = 4000, np.array([5])
    logits, _ = language_model_step(params, prompt[None], None, config=config)
    expected = next_token_probabilities(logits[0, -1], temperature=0.7, top_k=5)
    text = generate(lambda ids, state: (logits, state), prompt_ids=prompt, num_tokens=draws, temperature=0.7, top_k=5, rng=np.random.default_rng(4))
    counts = np.bincount(list(text), minlength=11)
    assert not counts[expected == 0].any()
    spread = np.sqrt(draws * expected * (1 - expected))
    assert (np.abs(counts - draws * expected) <= 4 * spread + 1e-9).all()


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"temperature": -1}, "temperature"), ({"temperature": float("nan")}, "temperature"), ({"top_k": 0}, "top_k"),
        ({"top_k": 1.5}, "top_k"), ({"top_k": 2.0}, "top_k"), ({"prompt_ids": np.array([0.9, 1.7])}, "prompt_ids"), ({"top_p": 0.0}, "top_p"), ({"top_p": 1.5}, "top_p"), ({"num_tokens": -1}, "num_tokens"),
        ({"prompt_ids": np.array([], int)}, "prompt_ids"), ({"prompt_ids": np.array([11])}, "prompt_ids"),
        ({"prompt_ids": np.array([-1])}, "prompt_ids"), ({"prompt_ids": np.array([[1]])}, "prompt_ids"), ({"context": 0}, "context"),
        ({"rng": None}, "rng"), ({"step": None}, "step"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_before_the_first_token(settings, name):
    call = {"step": toy, "prompt_ids": np.array([1]), "num_tokens": 1, "rng": np.random.default_rng(0), "vocabulary_size": 11, **settings}
    with pytest.raises(ValueError, match=name):
        generate(call.pop("step"), **call)


def test_negative_ids_are_refused_where_the_vocabulary_is_not_told():
    with pytest.raises(ValueError, match="prompt_ids: got ids from -1 to 3, wants ids of at least 0"):
        generate(toy, prompt_ids=np.array([3, -1]), num_tokens=1, rng=np.random.default_rng(0))


def test_logits_without_a_finite_number_are_refused():
    for logits in (np.full(3, -np.inf), np.array([0.0, np.nan, 1.0]), np.array([0.0, np.inf])):
        with pytest.raises(ValueError, match="logits"):
            next_token_probabilities(logits)


def test_a_step_past_the_context_is_refused():
    params, config = model(context=8)
    _, state = language_model_step(params, np.zeros((1, 8), int), None, config=config)
    assert isinstance(state, DecodingState)
    with pytest.raises(ValueError, match="context of 8"):
        language_model_step(params, np.zeros((1, 1), int), state, config=config)


def test_the_smallest_temperature_is_nearly_zero_and_no_error():
    np.testing.assert_array_equal(next_token_probabilities(np.array([1.0, 3.0, -2.0]), temperature=1e-308), [0, 1, 0])
