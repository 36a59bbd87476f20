"""Processors of logits: each by its rule, token by token; in the order of the field's libraries, and equal to them."""

from functools import partial

import numpy as np
import pytest

from minitransformers.models.decoding import generate, next_token_probabilities
from minitransformers.models.sampling import min_p, repetition_penalty, temperature, top_k, top_p

LOGITS = np.random.default_rng(0).normal(size=(2, 3, 9)) * 2
IDS = np.random.default_rng(1).integers(9, size=(2, 3, 4))


def probabilities(row):
    exps = [np.exp(x - max(row)) for x in row]
    return [e / sum(exps) for e in exps]


def naive_temperature(row, text, value):
    if value > 0:
        return [x / value for x in row]
    return [x if i == row.index(max(row)) else -np.inf for i, x in enumerate(row)]


def naive_top_k(row, text, k):
    edge = sorted(row, reverse=True)[min(k, len(row)) - 1]
    return [x if x >= edge else -np.inf for x in row]


def naive_top_p(row, text, p):
    likely, mass, kept = probabilities(row), 0.0, set()
    for i in sorted(range(len(row)), key=lambda i: -row[i]):
        if mass < p:
            kept.add(i)
        mass += likely[i]
    return [x if i in kept else -np.inf for i, x in enumerate(row)]


def naive_min_p(row, text, p):
    likely = probabilities(row)
    return [x if q >= p * max(likely) else -np.inf for x, q in zip(row, likely, strict=True)]


def naive_repetition_penalty(row, text, penalty):
    return [x if i not in text else x / penalty if x > 0 else x * penalty for i, x in enumerate(row)]


CASES = [
    *((temperature, naive_temperature, {"value": value}) for value in (0, 0.3, 1.0, 2.5)),
    *((top_k, naive_top_k, {"k": k}) for k in (1, 4, 9, 20)),
    *((top_p, naive_top_p, {"p": p}) for p in (1e-9, 0.3, 0.75, 0.999, 1.0)),
    *((min_p, naive_min_p, {"p": p}) for p in (0.01, 0.2, 0.7, 1.0)),
    *((repetition_penalty, naive_repetition_penalty, {"penalty": penalty}) for penalty in (0.8, 1.0, 1.3)),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("process", "naive", "settings"), CASES, ids=lambda case: getattr(case, "__name__", str(case)))
def test_is_the_rule_token_by_token(process, naive, settings, dtype):
    logits = LOGITS.astype(dtype)
    before = logits.copy()
    found = process(logits, IDS, **settings)
    expected = [[naive(row.tolist(), text.tolist(), *settings.values()) for row, text in zip(*rows, strict=True)] for rows in zip(logits, IDS, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-6 if dtype == np.float32 else 1e-14)
    assert found.dtype == dtype and not np.shares_memory(found, logits)
    np.testing.assert_array_equal(logits, before)
    reordered = process(np.asfortranarray(logits), IDS, **settings)
    np.testing.assert_array_equal(reordered, found)
    np.testing.assert_array_equal(process(logits[1, 2], IDS[1, 2], **settings), found[1, 2])


@pytest.mark.parametrize(("process", "settings"), [(temperature, {"value": 0.5}), (top_k, {"k": 3}), (top_p, {"p": 0.7}), (min_p, {"p": 0.1})])
def test_what_was_cut_off_stays_cut_off_and_a_constant_on_all_logits_changes_no_choice(process, settings):
    cut = np.where(np.arange(9) == 4, -np.inf, LOGITS)
    assert (process(cut, **settings)[..., 4] == -np.inf).all()
    np.testing.assert_array_equal(np.isfinite(process(LOGITS + 7.0, **settings)), np.isfinite(process(LOGITS, **settings)))
    assert np.isfinite(process(LOGITS, **settings).max(axis=-1)).all()


def test_ties_with_the_kth_stay_and_equals_at_the_edge_of_p_go_by_order():
    np.testing.assert_array_equal(top_k(np.array([1.0, 3.0, 2.0, 2.0]), k=2), [-np.inf, 3, 2, 2])
    np.testing.assert_array_equal(np.isfinite(top_p(np.zeros(4), p=0.5)), [True, True, False, False])
    np.testing.assert_array_equal(temperature(np.array([1.0, 3.0, 3.0]), value=0), [-np.inf, 3, -np.inf])
    np.testing.assert_array_equal(min_p(np.array([1.0, 3.0, 3.0]), p=1.0), [-np.inf, 3, 3])


def test_equals_at_the_edge_of_p_go_by_order_among_many_as_well():
    logits = np.tile([0.0, 1.0, 2.0], 200)
    mass = np.exp([1.0, 2.0]) / np.exp([0.0, 1.0, 2.0]).sum()  # of the 200 middle ones and of the 200 largest
    middle = int(np.ceil(200 * (0.8 - mass[1]) / mass[0]))
    kept = np.isfinite(top_p(logits, p=0.8))
    assert kept[logits == 2].all() and not kept[logits == 0].any() and middle == 111
    np.testing.assert_array_equal(kept[logits == 1], np.arange(200) < middle)
    np.testing.assert_array_equal(np.isfinite(top_p(np.zeros(49), p=1e-17)), np.arange(49) < 1)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.999, 1 - 1e-9])
@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 10.0])
def test_the_unlikely_are_left_out_of_the_sorting_and_nothing_else_changes(scale, p):
    logits = scale * np.random.default_rng(5).normal(size=(3, 1000))
    expected = [naive_top_p(row.tolist(), None, p) for row in logits]
    np.testing.assert_array_equal(top_p(logits, p=p), expected)


def test_all_of_the_mass_is_all_tokens_even_where_a_sum_has_rounded_to_it():
    logits = np.array([0.0, -50.0, -60.0, -70.0])
    np.testing.assert_array_equal(top_p(logits, p=1.0), logits)
    assert np.isfinite(top_p(logits, p=1 - 1e-16)).sum() == 1


@pytest.mark.parametrize("k", range(1, 60))
def test_top_k_of_many_keeps_k(k):
    logits = np.random.default_rng(k).normal(size=(4, 50))
    kept = np.isfinite(top_k(logits, k=k))
    assert (kept.sum(axis=-1) == min(k, 50)).all()
    assert all(row[some].min() > row[~some].max(initial=-np.inf) for row, some in zip(logits, kept, strict=True))


def test_a_temperature_leaves_the_quotients_as_they_are_where_tokens_are_cut_off():
    logits = np.array([[1.0, -np.inf, 3.0], [4.0, 5.0, 6.0]])
    np.testing.assert_array_equal(temperature(logits, value=0.5), 2 * logits)


def test_min_p_by_hand():
    """0.5 is the most; a tenth of it is 0.05, which 0.04 does not reach."""
    likely = np.array([0.5, 0.3, 0.1, 0.06, 0.04])
    np.testing.assert_array_equal(np.isfinite(min_p(np.log(likely), p=0.1)), [True, True, True, True, False])


def test_min_p_asks_for_more_where_the_model_is_sure_and_top_p_does_not():
    """The tail of a sure model has as much mass as its p leaves; its tokens are each far below the first."""
    sure = np.log(np.array([0.8] + [0.02] * 10))
    unsure = np.log(np.full(11, 1 / 11))
    assert np.isfinite(min_p(sure, p=0.1)).sum() == 1 and np.isfinite(min_p(unsure, p=0.1)).sum() == 11
    assert np.isfinite(top_p(sure, p=0.9)).sum() == 6        # five tokens of the tail, each as unlikely as the others


@pytest.mark.parametrize("hot", [1.0, 1.5, 3.0])
def test_min_p_at_a_temperature_is_a_power_of_p_without(hot):
    """z / T >= max z / T + log P where z >= max z + T log P: a hotter model keeps more, at the same P."""
    scaled = np.isfinite(min_p(temperature(LOGITS, value=hot), p=0.2))
    np.testing.assert_array_equal(scaled, np.isfinite(min_p(LOGITS, p=0.2**hot)))


def test_a_penalty_makes_every_repetition_unlikelier_whatever_its_sign():
    """The sign trap: dividing a negative logit, as the paper's formula does, makes its token likelier."""
    logits, ids = np.array([2.0, -2.0, 0.5, -0.5]), np.array([0, 1])
    punished = repetition_penalty(logits, ids, penalty=1.25)
    np.testing.assert_allclose(punished, [1.6, -2.5, 0.5, -0.5])
    before, after = next_token_probabilities(logits), next_token_probabilities(punished)
    assert (after[:2] < before[:2]).all() and (after[2:] > before[2:]).all()
    papers = np.where(np.isin(np.arange(4), ids), logits / 1.25, logits)
    assert next_token_probabilities(papers)[1] > before[1]   # the control


def test_a_penalty_of_one_is_none_one_below_it_invites_and_how_often_does_not_count():
    np.testing.assert_array_equal(repetition_penalty(LOGITS, IDS, penalty=1.0), LOGITS)
    once, thrice = (repetition_penalty(LOGITS[0, 0], np.array(text), penalty=1.5) for text in ([3], [3, 3, 3]))
    np.testing.assert_array_equal(once, thrice)
    assert repetition_penalty(np.array([-1.0, 1.0]), np.array([0, 1]), penalty=0.5).tolist() == [-0.5, 2.0]
    cut = np.array([-np.inf, 1.0])
    np.testing.assert_array_equal(repetition_penalty(cut, np.array([0]), penalty=2.0), cut)


def test_a_penalty_must_come_before_what_moves_zero():
    """Its logits are looked at by their sign, so a constant on all of them changes what it does, which it does to no other."""
    moved = next_token_probabilities(repetition_penalty(LOGITS + 5, IDS, penalty=1.5))
    assert np.abs(moved - next_token_probabilities(repetition_penalty(LOGITS, IDS, penalty=1.5))).max() > 1e-2


@pytest.mark.parametrize("seed", range(10))
def test_keywords_are_short_for_processors_behind_the_others(seed):
    rng = np.random.default_rng(seed)
    value, k, p, penalty, floor = rng.uniform(0.3, 2), int(rng.integers(1, 10)), rng.uniform(0.1, 1), rng.uniform(1, 2), rng.uniform(0.01, 0.3)
    own = (partial(repetition_penalty, penalty=penalty), partial(min_p, p=floor))
    keywords = next_token_probabilities(LOGITS, IDS, processors=own, temperature=value, top_k=k, top_p=p)
    row = (*own, partial(temperature, value=value), partial(top_k, k=k), partial(top_p, p=p))
    np.testing.assert_array_equal(next_token_probabilities(LOGITS, IDS, processors=row), keywords)
    logits = LOGITS
    for process in row:
        logits = process(logits, IDS)
    exps = np.exp(logits)
    np.testing.assert_allclose(keywords, exps / exps.sum(axis=-1, keepdims=True), rtol=1e-12)


def test_the_order_matters():
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1]))          # two kept: 0.571 and 0.429, and 0.55 needs the first alone
    first, second = partial(top_k, k=2), partial(top_p, p=0.55)
    assert (next_token_probabilities(logits, processors=(first, second)) > 0).tolist() == [True, False, False, False]
    assert (next_token_probabilities(logits, processors=(second, first)) > 0).tolist() == [True, True, False, False]


def test_any_function_of_the_form_is_a_processor():
    """A list of forbidden tokens, a grammar, a watermark: nothing in the loop knows them."""
    def only_even(logits, ids):
        return np.where(np.arange(logits.shape[-1]) % 2 == 0, logits, -np.inf)

    def no_token_twice(logits, ids):
        seen = np.zeros(logits.shape, bool)
        np.put_along_axis(seen, ids, True, axis=-1)
        return np.where(seen, -np.inf, logits)

    step = lambda ids, state: (np.zeros((*ids.shape, 12)), state)  # noqa: E731
    text = list(generate(step, prompt_ids=np.array([2]), num_tokens=5, rng=np.random.default_rng(0), processors=(only_even, no_token_twice)))
    assert sorted(text) == [0, 4, 6, 8, 10]
    with pytest.raises(ValueError, match=r"processors.1: got NaN, \+inf or nothing but -inf"):
        list(generate(step, prompt_ids=np.array([2]), num_tokens=6, rng=np.random.default_rng(0), processors=(only_even, no_token_twice)))


def test_generate_shows_its_processors_the_whole_text_and_greed_comes_after_them():
    seen = []

    def watch(logits, ids):
        seen.append(ids.tolist())
        return logits

    step = lambda ids, state: (np.eye(5)[(ids + 1) % 5], state)  # noqa: E731
    settings = {"prompt_ids": np.array([3, 4]), "num_tokens": 3, "temperature": 0, "rng": np.random.default_rng(0)}
    assert list(generate(step, processors=(watch,), **settings)) == [0, 1, 2]
    assert seen == [[3, 4], [3, 4, 0], [3, 4, 0, 1]]
    always = lambda ids, state: (np.broadcast_to([3.0, 2.0, 1.0], (*ids.shape, 3)), state)  # noqa: E731
    settings = {"prompt_ids": np.array([2]), "num_tokens": 4, "temperature": 0, "rng": np.random.default_rng(0)}
    assert list(generate(always, **settings)) == [0, 0, 0, 0]
    assert list(generate(always, processors=(partial(repetition_penalty, penalty=2.0),), **settings)) == [0, 1, 0, 0]  # 3; 1.5 < 2; 1.5 > 1


def test_the_coldest_temperatures_leave_numbers():
    for dtype, value in ((np.float32, 1e-30), (np.float64, 1e-308)):
        for logits in ([1.0, 3.0, -2.0], [-5.0, -3.0, -4.0], [2e9, 3e9, -np.inf]):
            found = temperature(np.array(logits, dtype), value=value)
            assert np.isfinite(found[1]) and found.argmax() == 1
            np.testing.assert_array_equal(next_token_probabilities(found), [0, 1, 0])


@pytest.mark.parametrize(
    ("process", "settings", "name"),
    [
        (temperature, {"value": -1.0}, "value"), (temperature, {"value": float("nan")}, "value"), (top_k, {"k": 0}, "k"), (top_k, {"k": 1.5}, "k"),
        (top_p, {"p": 0.0}, "p"), (top_p, {"p": 1.1}, "p"), (min_p, {"p": 0.0}, "p"), (min_p, {"p": -0.1}, "p"),
        (repetition_penalty, {"penalty": 0.0}, "penalty"), (repetition_penalty, {"penalty": -1.0}, "penalty"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(process, settings, name):
    with pytest.raises(ValueError, match=f"^{name}"):
        process(LOGITS, IDS, **settings)


@pytest.mark.parametrize(("process", "naive", "settings"), CASES[::4], ids=lambda case: getattr(case, "__name__", str(case)))
@pytest.mark.parametrize("logits", [np.full((1, 3), -np.inf), np.array([[0.0, np.nan, 1.0]]), np.array([[0.0, np.inf, 1.0]])], ids=str)
def test_logits_of_which_none_is_finite_are_refused(process, naive, settings, logits):
    with pytest.raises(ValueError, match="logits: got NaN"):
        process(logits, np.array([[0, 1]]), **settings)


def test_a_penalty_needs_the_text():
    with pytest.raises(ValueError, match="ids: got None, wants the ids of the text so far"):
        next_token_probabilities(LOGITS, processors=(partial(repetition_penalty, penalty=1.2),))
    with pytest.raises(ValueError, match="ids: got ids from 0 to 9, wants 0 to 8"):
        repetition_penalty(LOGITS[0, 0], np.array([0, 9]), penalty=1.2)


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(5))
def test_each_and_all_in_their_order_are_hugging_faces(seed):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    rng = np.random.default_rng(seed)
    logits, ids = 1.5 * rng.normal(size=(6, 500)), rng.integers(500, size=(6, 40))
    ours = [
        partial(repetition_penalty, penalty=1.3), partial(temperature, value=0.7), partial(top_k, k=60), partial(top_p, p=0.9), partial(min_p, p=0.04),
    ]  # fmt: skip
    theirs = [
        transformers.RepetitionPenaltyLogitsProcessor(1.3), transformers.TemperatureLogitsWarper(0.7), transformers.TopKLogitsWarper(60),
        transformers.TopPLogitsWarper(0.9), transformers.MinPLogitsWarper(0.04),
    ]  # fmt: skip
    for own, other in zip(ours, theirs, strict=True):
        expected = other(torch.tensor(ids), torch.tensor(logits)).numpy()
        found, kept = own(logits, ids), np.isfinite(expected)
        np.testing.assert_array_equal(np.isfinite(found), kept)
        np.testing.assert_allclose(found[kept], expected[kept], rtol=1e-14)
    expected = torch.tensor(logits)
    for other in theirs:
        expected = other(torch.tensor(ids), expected)
    found = next_token_probabilities(logits, ids, processors=ours)
    np.testing.assert_allclose(found, torch.softmax(expected, dim=-1).numpy(), rtol=0, atol=1e-14)
    assert (found > 0).sum(axis=-1).min() > 1 and (found > 0).sum(axis=-1).max() < 60


@pytest.mark.parity
def test_hugging_faces_own_list_has_this_order():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=4, n_layer=1, n_head=1)
    model = transformers.GPT2LMHeadModel(config)
    settings = transformers.GenerationConfig(do_sample=True, temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=1.2, max_length=8)
    names = [type(processor).__name__ for processor in model._get_logits_processor(settings, input_ids_seq_length=1)]
    wanted = ["RepetitionPenaltyLogitsProcessor", "TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper"]
    assert names == wanted
