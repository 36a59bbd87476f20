"""Prefill and decode: every cut of a text gives what the full pass gives, and no position is computed twice."""

from functools import partial

import numpy as np
import pytest

from minitransformers import (
    LanguageModelConfig,
    gpt2,
    gpt2_step,
    init_gpt2,
    init_language_model,
    language_model,
    language_model_step,
    trees,
)
from minitransformers.attention.core import causal_attention
from minitransformers.attention.multi_head_attention import (
    init_multi_head_attention,
    multi_head_attention,
    multi_head_attention_step,
)
from minitransformers.attention.prepare import on_both
from minitransformers.efficient.kv_cache import decode, most_likely, prefill, tokens
from minitransformers.models.decoding import without_cache
from minitransformers.positional.rope import rope

CHOICES = {
    "GPT-2": None,
    "rotations": {"position": "rope"},
    "linear biases, shared keys": {"position": "alibi", "mixer": "grouped_query_attention", "options": {"mixer": {"num_kv_heads": 2}}},
    "a window": {"position": "rope", "mixer": "sliding_window_attention", "options": {"mixer": {"window": 3}}},
    "a recurrence": {"position": "none", "mixer": "mamba2", "options": {"mixer": {"d_state": 2, "expand": 1, "d_conv": 2}}},
    "both": {"position": "rope", "mixer": "mamba2,sliding_window_attention", "options": {"mixer": {"d_state": 2, "expand": 1, "window": 3}}},
}
VOCABULARY, CONTEXT = 11, 24


def made(choice, seed=0):
    """The full pass ``ids=ids -> logits, backward`` of a model, and its step."""
    rng = np.random.default_rng(seed)
    if CHOICES[choice] is None:
        params = init_gpt2(rng, vocabulary=VOCABULARY, context=CONTEXT, d_model=12, num_layers=2, num_heads=3, std=0.5, dtype=np.float64)
        return partial(gpt2, params, num_heads=3), partial(gpt2_step, params, num_heads=3)
    config = LanguageModelConfig(VOCABULARY, context=CONTEXT, d_model=16, num_layers=2, num_heads=4, tied=False, **CHOICES[choice])
    params = trees.map(lambda a: a + 0.3 * rng.normal(size=a.shape), init_language_model(rng, config, dtype=np.float64))
    return partial(language_model, params, config=config), partial(language_model_step, params, config=config)


def texts(*shape, seed=1):
    return np.random.default_rng(seed).integers(VOCABULARY, size=shape)


def naive_text(table, params, ids, num_tokens, num_heads):
    """Greedy tokens of one layer of attention between a table and its transpose, everything again for each, by loops."""
    text = list(ids)
    for _ in range(num_tokens):
        x = table[text]
        query, key, value = (x @ part.weight + part.bias for part in params[:3])
        width, merged = x.shape[1] // num_heads, np.zeros(x.shape[1])
        for h in range(num_heads):
            part = slice(h * width, (h + 1) * width)
            weights = [np.exp(query[-1, part] @ key[j, part] / np.sqrt(width)) for j in range(len(text))]
            merged[part] = sum(w * value[j, part] for j, w in enumerate(weights)) / sum(weights)
        logits = table @ (merged @ params.output.weight + params.output.bias)
        text.append(max(range(len(logits)), key=lambda token: logits[token]))
    return text[len(ids) :]


def one_layer(seed, width=8, num_heads=2, **settings):
    rng = np.random.default_rng(seed)
    table, params = rng.normal(size=(VOCABULARY, width)), init_multi_head_attention(rng, width, num_heads=num_heads, dtype=np.float64)
    params = trees.map(lambda a: a + rng.normal(size=a.shape), params)

    def step(ids, state):
        mixed, state = multi_head_attention_step(params, table[ids], state, num_heads=num_heads, **settings)
        return mixed @ table.T, state

    def whole(ids):
        return multi_head_attention(params, table[ids], num_heads=num_heads, **settings)[0] @ table.T

    return table, params, step, whole


@pytest.mark.parametrize("chunk", [None, 1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_the_text_is_that_of_a_naive_model_which_reads_everything_again(seed, chunk):
    table, params, step, _ = one_layer(seed)
    ids = texts(3, 4, seed=seed)
    written, _ = decode(step, ids, num_tokens=8, chunk=chunk)
    assert written.tolist() == [naive_text(table, params, row, 8, num_heads=2) for row in ids]


@pytest.mark.parametrize("chunk", [None, 1, 4, 30])
@pytest.mark.parametrize("choice", CHOICES)
def test_any_cut_of_the_prompt_gives_the_logits_of_the_full_pass_at_every_position(choice, chunk):
    model, step = made(choice)
    ids = texts(2, 9)
    logits = model(ids=ids)[0]
    for end in (1, 5, 8, 9):
        reading = prefill(step, ids[:, :end], chunk=chunk)
        np.testing.assert_allclose(reading.logits, logits[:, end - 1], rtol=0, atol=1e-12)
        assert reading.length == end


@pytest.mark.parametrize("cut", [1, 7])
@pytest.mark.parametrize("choice", CHOICES)
def test_a_text_that_is_read_on_equals_the_text_read_at_once(choice, cut):
    model, step = made(choice)
    ids = texts(2, 9)
    reading = prefill(step, ids[:, cut:], prefill(step, ids[:, :cut], chunk=3), chunk=2)
    np.testing.assert_allclose(reading.logits, model(ids=ids)[0][:, -1], rtol=0, atol=1e-12)
    assert reading.length == 9


@pytest.mark.parametrize("choice", CHOICES)
def test_greedy_tokens_are_the_same_with_a_cache_and_without(choice):
    model, step = made(choice)
    ids = texts(3, 5)
    cached, reading = decode(step, ids, num_tokens=12, chunk=2)
    plain, _ = decode(without_cache(model), ids, num_tokens=12)
    np.testing.assert_array_equal(cached, plain)
    assert cached.shape == (3, 12) and reading.length == 5 + 12 - 1
    assert (cached[:, 1:] != cached[:, :-1]).any(), "a model that repeats itself would tell nothing"


def test_a_step_that_counts_positions_from_zero_is_found_out():
    """The commonest mistake: the first piece is right, and what follows is turned as if it stood at the start."""
    forgetful = on_both(lambda x, positions: rope(x, positions=None))
    *_, whole = one_layer(3, prepare=on_both(rope))
    *_, step, _ = one_layer(3, prepare=forgetful)
    ids = texts(2, 9)
    np.testing.assert_allclose(prefill(step, ids).logits, whole(ids)[:, -1], rtol=0, atol=1e-12)
    assert np.abs(prefill(step, ids, chunk=4).logits - whole(ids)[:, -1]).max() > 1e-2


def test_two_calls_write_what_one_writes_and_the_last_token_is_what_goes_in_next():
    _, step = made("rotations")
    ids = texts(2, 5)
    once, end = decode(step, ids, num_tokens=9)
    first, middle = decode(step, ids, num_tokens=4)
    second, last = decode(step, first[:, -1:], middle, num_tokens=5)
    np.testing.assert_array_equal(np.concatenate([first, second], axis=1), once)
    assert last.length == end.length == 13


def test_a_reading_can_be_continued_in_two_ways():
    model, step = made("GPT-2")
    ids = texts(1, 6)
    past = prefill(step, ids)
    before = past.logits.copy()
    for other in (3, 7, 3):
        more = np.array([[other, 2]])
        expected = model(ids=np.concatenate([ids, more], axis=1))[0][:, -1]
        np.testing.assert_allclose(prefill(step, more, past).logits, expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(past.logits, before)


class Watched:
    """A core that notes how many scores it makes at once."""

    def __init__(self):
        self.scores = []

    def __call__(self, params, query, key, value, bias=None, *, mask=None):
        self.scores.append(query.shape[-2] * key.shape[-2])
        return causal_attention(params, query, key, value, bias, mask=mask)


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 6, 12])
def test_pieces_make_fewer_scores_and_hold_few_at_once(chunk):
    """n (n + C) / 2 of them where C divides n, of which at most C n at once; the whole at once makes n^2."""
    n, core = 12, Watched()
    *_, step, _ = one_layer(0, core=core)
    prefill(step, texts(1, n), chunk=chunk)
    assert sum(core.scores) == n * (n + chunk) // 2
    assert max(core.scores) == chunk * n


def test_each_position_is_computed_once_with_a_cache_and_again_and_again_without():
    model, step = made("rotations")
    counted = {"with": 0, "without": 0}

    def with_cache(ids, state):
        counted["with"] += ids.shape[-1]
        return step(ids, state)

    def whole(*, ids):
        counted["without"] += ids.shape[-1]
        return model(ids=ids)

    prompt, written = 5, 8
    decode(with_cache, texts(1, prompt), num_tokens=written)
    decode(without_cache(whole), texts(1, prompt), num_tokens=written)
    assert counted["with"] == prompt + written - 1
    assert counted["without"] == sum(prompt + t for t in range(written)) == written * prompt + written * (written - 1) // 2


def test_a_choice_may_draw_and_the_same_seed_draws_the_same():
    _, step = made("rotations")

    def drawn(seed):
        rng = np.random.default_rng(seed)
        return decode(step, texts(3, 4), num_tokens=12, choose=lambda logits: most_likely(logits + rng.gumbel(size=logits.shape)))[0]

    np.testing.assert_array_equal(drawn(5), drawn(5))
    assert not np.array_equal(drawn(5), drawn(6))


def test_tokens_come_without_end_and_the_step_is_asked_only_when_the_next_is_wanted():
    asked = []

    def step(ids, state):
        asked.append(ids.tolist())
        return np.eye(5)[(ids + 1) % 5], state

    stream = tokens(step, np.array([[3, 4]]), choose=most_likely)
    assert asked == []
    assert [next(stream)[0].tolist() for _ in range(3)] == [[0], [1], [2]]
    assert asked == [[[3, 4]], [[0]], [[1]]]


def test_decode_reads_its_prompt_in_pieces_and_to_a_capacity():
    _, step = made("rotations")
    given = []

    def watched(ids, state):
        given.append(ids.shape[-1])
        return step(ids, state)

    _, reading = decode(watched, texts(2, 5), num_tokens=3, chunk=2, capacity=9)
    assert given == [2, 2, 1, 1, 1] and reading.capacity == 9


def never(ids, state):
    raise AssertionError("nothing is to be computed")


def test_what_outgrows_the_capacity_is_refused_by_name_before_anything_is_computed():
    _, step = made("rotations")
    ids = texts(2, 5)
    with pytest.raises(ValueError, match="ids: got 5 tokens after 0, wants at most 4, for a capacity of 4"):
        prefill(never, ids, capacity=4)
    past = prefill(step, ids, capacity=7)
    with pytest.raises(ValueError, match="ids: got 3 tokens after 5, wants at most 2, for a capacity of 7"):
        prefill(never, ids[:, :3], past)
    with pytest.raises(ValueError, match="num_tokens: got 3 after 6, wants at most 2, for a capacity of 7"):
        decode(never, ids[:, :1], past, num_tokens=3)
    written, full = decode(step, ids[:, :1], past, num_tokens=2)   # the last token is written and not read
    assert full.length == full.capacity == 7 and written.shape == (2, 2)
    with pytest.raises(ValueError, match="ids: got 1 tokens after 7, wants at most 0"):
        decode(never, written[:, -1:], full, num_tokens=1)
    assert past.length == 5


def test_a_capacity_belongs_to_a_reading():
    _, step = made("rotations")
    past = prefill(step, texts(1, 3), capacity=9)
    assert prefill(step, texts(1, 2), past, capacity=9).capacity == prefill(step, texts(1, 2), past).capacity == 9
    with pytest.raises(ValueError, match="capacity: got 12, wants 9, as the reading was started with, or None"):
        prefill(never, texts(1, 2), past, capacity=12)
    with pytest.raises(ValueError, match="capacity: got 12, wants None"):
        prefill(never, texts(1, 2), prefill(step, texts(1, 3)), capacity=12)


def test_a_model_that_ends_refuses_by_itself():
    _, step = made("GPT-2")
    with pytest.raises(ValueError, match=f"context of {CONTEXT}"):
        decode(step, texts(1, 20), num_tokens=6, chunk=7)
    assert decode(step, texts(1, 20), num_tokens=5, chunk=7)[1].length == CONTEXT


@pytest.mark.parametrize("other", CHOICES)
@pytest.mark.parametrize("choice", CHOICES)
def test_what_another_kind_of_model_has_read_is_refused(choice, other):
    (_, step), (_, own) = made(other), made(choice)
    past, ids = prefill(step, texts(1, 4)), texts(1, 3)
    if choice == other:
        assert prefill(own, ids, past).length == 7
        return
    with pytest.raises(ValueError, match=r"^(state|state\.past|key|window): got "):
        prefill(own, ids, past)
    assert prefill(step, ids, past).length == 7, "and what was read can still be read on"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 3}, "state: got that of a model of 2 blocks, wants that of this model, of 3"),
        ({"num_layers": 1}, "state: got that of a model of 2 blocks, wants that of this model, of 1"),
        ({"d_model": 12}, r"(state: got .* words \(11, 8\) in float64, wants .* words \(11, 12\) in float64)|(key: got .*, as the cache has)"),
        ({"num_heads": 4}, r"key: got float64 of shape \(1, 4, 3, 2\), wants float64 of shape \(1, 2, 4, 4\) at any length, as the cache has"),
        ({"dtype": np.float32}, "(state: got .* in float64, wants .* in float32)|(key: got float32 of shape .*, wants float64 of shape .*, as the cache has)"),
    ],
    ids=["more layers", "fewer layers", "a wider model", "more heads", "another dtype"],
)
@pytest.mark.parametrize("kind", ["GPT-2", "workbench"])
def test_what_the_same_kind_of_model_in_other_sizes_has_read_is_refused(kind, changes, message):
    def sized(d_model=8, num_layers=2, num_heads=2, dtype=np.float64):
        rng, sizes = np.random.default_rng(0), {"context": CONTEXT, "d_model": d_model, "num_layers": num_layers}
        if kind == "GPT-2":
            return partial(gpt2_step, init_gpt2(rng, vocabulary=VOCABULARY, num_heads=num_heads, **sizes, dtype=dtype), num_heads=num_heads)
        config = LanguageModelConfig(VOCABULARY, num_heads=num_heads, tied=False, position="rope", **sizes)
        return partial(language_model_step, init_language_model(rng, config, dtype=dtype), config=config)

    with pytest.raises(ValueError, match=message):
        prefill(sized(**changes), texts(1, 3), prefill(sized(), texts(1, 4)))


def test_errors_name_what_does_not_fit():
    _, step = made("rotations")
    past = prefill(step, texts(2, 3))
    with pytest.raises(ValueError, match=r"past.logits: got shape \(2, 11\), wants .* with batch = \(3,\) as in ids"):
        prefill(step, texts(3, 2), past)
    with pytest.raises(ValueError, match="step: got logits of shape"):
        prefill(lambda ids, state: (np.zeros((2, 5)), state), texts(2, 3))
    for choose in (lambda logits: logits, lambda logits: 3, lambda logits: logits.argmax(), lambda logits: logits.argmax(-1).astype(float)):
        with pytest.raises(ValueError, match="choose: got"):
            decode(step, texts(2, 3), num_tokens=2, choose=choose)
    with pytest.raises(ValueError, match="chunk: got 0"):
        prefill(step, texts(2, 3), chunk=0)
    with pytest.raises(ValueError, match="past: got int"):
        prefill(step, texts(2, 3), 7)
    with pytest.raises(ValueError, match=r"ids: got shape \(2, 0\), wants no empty axis"):
        prefill(step, texts(2, 0))
    with pytest.raises(ValueError, match="capacity: got 0"):
        prefill(step, texts(2, 3), capacity=0)
    with pytest.raises(ValueError, match="num_tokens: got 0"):
        decode(step, texts(2, 3), num_tokens=0)
