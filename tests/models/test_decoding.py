"""Decoding: the cache changes nothing but the cost, and only allowed tokens are drawn."""

import inspect

import numpy as np
import pytest

from minitransformers import catalogue, trees
from minitransformers.models.generate import DecodingState, generate, language_model_step, next_token_probabilities
from minitransformers.models.language_model import LanguageModelConfig, init_language_model, language_model

OPTIONS = {"grouped_query_attention": {"num_kv_heads": 2}, "sliding_window_attention": {"window": 3, "num_kv_heads": 2},
           "bmojo": {"window": 2, "memory": 2}}  # fmt: skip


def model(seed=0, **changes):
    settings = {"vocabulary_size": 11, "context": 8, "d_model": 8, "num_layers": 2, "num_heads": 4}
    config = LanguageModelConfig(**{**settings, **changes})
    rng = np.random.default_rng(seed)
    params = init_language_model(rng, config, dtype=np.float64)
    return trees.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape), params), config


def mixers_with_a_step():
    return [name for name, entry in catalogue.concepts(role="mixer").items() if entry.step is not None]


def choices():
    """Every such mixer with every position that it has a place for."""
    for mixer in mixers_with_a_step():
        takes = inspect.signature(catalogue.find(mixer).function).parameters
        for position in ("learned", "sinusoidal", "none", *(["rope"] if "rotate" in takes else [])):
            yield mixer, position
        for position in catalogue.concepts(role="position/bias") if "bias" in takes else ():
            yield mixer, position
    for position in ("learned", "rope", "alibi"):
        yield "sliding_window_attention,grouped_query_attention", position


@pytest.mark.parametrize(("mixer", "position"), choices())
@pytest.mark.parametrize("pieces", [(1,) * 8, (5, 1, 1, 1), (3, 4, 1)])
def test_cached_logits_equal_the_whole_pass(mixer, position, pieces):
    params, config = model(mixer=mixer, position=position, scale_embedding=position == "sinusoidal", options={"mixer": OPTIONS.get(mixer.split(",")[0], {})})
    ids = np.random.default_rng(1).integers(11, size=(3, 8))
    whole, _ = language_model(params, ids=ids, config=config)
    state, logits, start = None, [], 0
    for size in pieces:
        part, state = language_model_step(params, ids[:, start : start + size], state, config=config)
        logits.append(part)
        start += size
    np.testing.assert_allclose(np.concatenate(logits, axis=1), whole, atol=1e-10)


@pytest.mark.parametrize("weighting", catalogue.concepts(role="weighting"))
def test_cached_logits_equal_the_whole_pass_under_every_weighting(weighting):
    params, config = model(options={"mixer": {"weighting": weighting}})
    ids = np.random.default_rng(5).integers(11, size=(2, 8))
    whole, _ = language_model(params, ids=ids, config=config)
    first, state = language_model_step(params, ids[:, :3], None, config=config)
    rest = []
    for i in range(3, 8):
        part, state = language_model_step(params, ids[:, i : i + 1], state, config=config)
        rest.append(part)
    np.testing.assert_allclose(np.concatenate([first, *rest], axis=1), whole, atol=1e-10)


@pytest.mark.parametrize("placement", ["pre", "post", "deep"])
@pytest.mark.parametrize(("tied", "fix_norm"), [(True, False), (False, False), (True, True)])
def test_cached_text_equals_uncached_text_even_past_the_context(placement, tied, fix_norm):
    params, config = model(placement=placement, tied=tied, fix_norm=fix_norm)
    settings = {"config": config, "prompt_ids": np.array([1, 2, 3]), "num_tokens": 30}
    cached = list(generate(params, rng=np.random.default_rng(2), **settings))
    plain = list(generate(params, rng=np.random.default_rng(2), use_cache=False, **settings))
    assert cached == plain
    assert len(cached) == 30


@pytest.mark.parametrize("changes", [{"placement": "deep"}, {"fix_norm": True}, {"placement": "deep", "fix_norm": True, "norm": "scale_norm"}])
def test_cached_logits_equal_the_whole_pass_under_deep_norm_and_fix_norm(changes):
    params, config = model(**changes)
    ids = np.random.default_rng(6).integers(11, size=(2, 8))
    whole, _ = language_model(params, ids=ids, config=config)
    first, state = language_model_step(params, ids[:, :5], None, config=config)
    second, _ = language_model_step(params, ids[:, 5:], state, config=config)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, atol=1e-10)


def test_a_prompt_longer_than_the_context_is_read_from_its_end():
    params, config = model()
    long = np.arange(20) % 11
    one = list(generate(params, config=config, prompt_ids=long, num_tokens=3, temperature=0, rng=np.random.default_rng(0)))
    two = list(generate(params, config=config, prompt_ids=long[-8:], num_tokens=3, temperature=0, rng=np.random.default_rng(0)))
    assert one == two


def test_temperature_zero_takes_the_largest_logit():
    params, config = model()
    ids = [4]
    for token in generate(params, config=config, prompt_ids=np.array(ids), num_tokens=5, temperature=0, rng=np.random.default_rng(0)):
        assert token == language_model(params, ids=np.array([ids]), config=config)[0][0, -1].argmax()
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


def test_top_k_comes_before_top_p():
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1]))  # two kept: renormalised 0.571 and 0.429, and 0.55 needs the first alone
    assert (next_token_probabilities(logits, top_k=2, top_p=0.55) > 0).tolist() == [True, False, False, False]


def test_drawn_frequencies_follow_the_model():
    params, config = model(context=4)
    draws, prompt = 4000, np.array([5])
    expected = next_token_probabilities(language_model(params, ids=prompt[None], config=config)[0][0, -1], temperature=0.7, top_k=5)
    rng = np.random.default_rng(4)
    counts = np.zeros(11)
    for _ in range(draws):
        (token,) = generate(params, config=config, prompt_ids=prompt, num_tokens=1, temperature=0.7, top_k=5, rng=rng)
        counts[token] += 1
    assert not counts[expected == 0].any()
    spread = np.sqrt(draws * expected * (1 - expected))
    assert (np.abs(counts - draws * expected) <= 4 * spread + 1e-9).all()


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"temperature": -1}, "temperature"), ({"temperature": float("nan")}, "temperature"), ({"top_k": 0}, "top_k"),
        ({"top_k": 1.5}, "top_k"), ({"top_k": 2.0}, "top_k"), ({"prompt_ids": np.array([0.9, 1.7])}, "prompt_ids"), ({"top_p": 0.0}, "top_p"), ({"top_p": 1.5}, "top_p"), ({"num_tokens": -1}, "num_tokens"),
        ({"prompt_ids": np.array([], int)}, "prompt_ids"), ({"prompt_ids": np.array([11])}, "prompt_ids"),
        ({"prompt_ids": np.array([-1])}, "prompt_ids"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_before_the_first_token(settings, name):
    params, config = model()
    call = {"config": config, "prompt_ids": np.array([1]), "num_tokens": 1, "rng": np.random.default_rng(0)}
    with pytest.raises(ValueError, match=name):
        generate(params, **{**call, **settings})


def test_logits_without_a_finite_number_are_refused():
    for logits in (np.full(3, -np.inf), np.array([0.0, np.nan, 1.0]), np.array([0.0, np.inf])):
        with pytest.raises(ValueError, match="logits"):
            next_token_probabilities(logits)


def test_a_step_past_the_context_is_refused():
    params, config = model()
    _, state = language_model_step(params, np.zeros((1, 8), int), None, config=config)
    assert isinstance(state, DecodingState)
    with pytest.raises(ValueError, match="context of 8"):
        language_model_step(params, np.zeros((1, 1), int), state, config=config)


@pytest.mark.parametrize("mixer", ["multi_head_attention", "grouped_query_attention"])
@pytest.mark.parametrize("core", catalogue.concepts(role="core"))
def test_cached_logits_equal_the_whole_pass_with_every_core(core, mixer):
    params, config = model(mixer=mixer, position="rope", options={"mixer": {"attend": core, **OPTIONS.get(mixer, {})}})
    ids = np.random.default_rng(6).integers(11, size=(2, 8))
    whole, _ = language_model(params, ids=ids, config=config)
    state, parts, start = None, [], 0
    for size in (3, 2, 1, 1, 1):
        part, state = language_model_step(params, ids[:, start : start + size], state, config=config)
        parts.append(part)
        start += size
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-10)


def test_the_smallest_temperature_is_nearly_zero_and_no_error():
    np.testing.assert_array_equal(next_token_probabilities(np.array([1.0, 3.0, -2.0]), temperature=1e-308), [0, 1, 0])
