"""Left padding: a text continues in a batch as it does alone, whatever its company, its padding and its length."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from minitransformers.attention.masks import padding_mask
from minitransformers.efficient.kv_cache import decode, prefill
from minitransformers.efficient.rolling_cache import rolling_attention
from minitransformers.foundation import trees
from minitransformers.models.beam_search import beam_search
from minitransformers.models.decoding import generate, sliding
from minitransformers.models.gemma2 import gemma2_step, init_gemma2
from minitransformers.models.gpt2 import gpt2, gpt2_step, init_gpt2
from minitransformers.models.left_padding import by_distance, generate_batch, left_pad, left_padded, of_one_length, sliding_apart
from minitransformers.models.llama import init_llama, llama_step
from minitransformers.models.sampling import min_p, repetition_penalty
from minitransformers.models.stopping import until
from minitransformers.models.t5 import init_t5, t5_step
from minitransformers.models.transformer import init_transformer, transformer_step
from minitransformers.positional.rope_fast import rope_fast

V = 11
PROMPTS = [np.random.default_rng(seed).integers(V, size=length) for seed, length in enumerate((3, 7, 1, 5))]
LLAMA = {"vocabulary": V, "d_model": 8, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "d_hidden": 6}


def noisy(params, seed):
    rng = np.random.default_rng(seed)
    return trees.map(lambda leaf: leaf + rng.normal(0, 0.2, leaf.shape), params)


GPT2 = noisy(init_gpt2(np.random.default_rng(0), vocabulary=V, context=24, d_model=8, num_layers=2, num_heads=2, std=0.5, dtype=np.float64), 1)
LLAMA_PARAMS = noisy(init_llama(np.random.default_rng(2), **LLAMA, std=0.5, dtype=np.float64), 3)
GEMMA = noisy(
    init_gemma2(
        np.random.default_rng(4), vocabulary=V, d_model=8, num_layers=2, num_heads=4, num_kv_heads=2, d_head=4, d_hidden=6, std=0.5, dtype=np.float64
    ),
    5,
)  # fmt: skip
llama_plain = partial(llama_step, LLAMA_PARAMS, num_heads=4, rope=partial(rope_fast, base=30.0))
llama_window = partial(llama_plain, window=3)
gemma = partial(gemma2_step, GEMMA, num_heads=4, query_pre_attn_scalar=4.0, window=3, attention_cap=2.0, final_cap=5.0)
gpt2_plain = partial(gpt2_step, GPT2, num_heads=2)
# How the step is called alone, and in a padded batch.
STEPS = {
    "gpt2: a table": (gpt2_plain, gpt2_plain), "llama: rope": (llama_plain, by_distance(llama_plain)),
    "llama: a window, a cache that forgets": (llama_window, by_distance(llama_window)),
    "gemma: layers near and far in turns": (gemma, by_distance(gemma)),
}  # fmt: skip


@pytest.fixture(params=STEPS, ids=str)
def steps(request):
    return STEPS[request.param]


def alone(step, prompt, continuation):
    """The logits after each token from the prompt's last on, for one text, read as it is."""
    logits, state = step(prompt[None], None)
    found = [logits[0, -1]]
    for token in continuation:
        logits, state = step(np.array([[token]]), state)
        found.append(logits[0, -1])
    return np.array(found)


@pytest.mark.parametrize("chunk", [None, 1, 2, 3])
def test_each_row_has_the_logits_that_it_has_alone(steps, chunk):
    """Twelve tokens behind prompts of 1 to 7, so that a window of 3 has left all padding behind; chunks may be nothing but padding."""
    step, padded = steps
    ids, padding = left_pad(PROMPTS)
    written = np.random.default_rng(7).integers(V, size=(4, 12))
    batch = left_padded(padded, padding)
    reading = prefill(batch, ids, chunk=chunk)
    found = [reading.logits]
    for token in written.T:
        reading = prefill(batch, token[:, None], reading)
        found.append(reading.logits)
    for row, prompt in enumerate(PROMPTS):
        np.testing.assert_allclose(np.array(found)[:, row], alone(step, prompt, written[row]), rtol=0, atol=1e-10)


def test_what_stands_in_the_padding_is_read_by_nobody(steps):
    _, padded = steps
    first, second = (left_pad(PROMPTS, pad=pad) for pad in (0, 9))
    assert (first.ids != second.ids).any()
    for one, other in zip(
        prefill(left_padded(padded, first.padding), first.ids)[:1], prefill(left_padded(padded, second.padding), second.ids)[:1], strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("wrong", ["mask", "positions"])
def test_the_controls_without_its_mask_or_its_positions_a_row_is_another(wrong):
    ids, padding = left_pad(PROMPTS)

    def careless(ids, state, **given):
        return gpt2_plain(ids, state, **{name: value for name, value in given.items() if name != wrong})

    found = prefill(left_padded(careless, padding), ids).logits
    for row, prompt in enumerate(PROMPTS):
        apart = np.abs(found[row] - alone(gpt2_plain, prompt, [])[0]).max()
        assert apart < 1e-12 if padding[row] == 0 else apart > 1e-3


@pytest.mark.parametrize("window", [1, 3, 4])
def test_a_ring_of_slots_forgets_padding_first_and_hides_what_it_still_holds(window):
    """Mistral's rolling cache, a position at a time and in pieces: 5 positions behind 4 of padding, and the same 5 alone."""
    query, key, value = np.random.default_rng(40).normal(size=(3, 2, 9, 4))
    mask, ring, rows = np.arange(9) >= 4, None, []
    cuts = (0, 1, 2, 4, 5, 6, 8, 9) if window > 1 else range(10)
    for start, end in pairwise(cuts):
        at = slice(start, end)
        out, ring = rolling_attention(None, query[:, at], key[:, at], value[:, at], ring, window=window, mask=mask[None, None, :end])
        rows.append(out)
    found, ring, rows = np.concatenate(rows, axis=1)[:, 4:], None, []
    for t in range(4, 9):
        out, ring = rolling_attention(None, query[:, t : t + 1], key[:, t : t + 1], value[:, t : t + 1], ring, window=window)
        rows.append(out)
    np.testing.assert_allclose(found, np.concatenate(rows, axis=1), rtol=0, atol=1e-12)


def test_gpt2_reads_a_padded_batch_at_once_as_its_texts_alone():
    """The whole pass with the same mask and positions; the table's rows behind a text's end get no gradient from it."""
    ids, padding = left_pad(PROMPTS)
    places = np.arange(7) - padding[:, None]
    logits, backward = gpt2(GPT2, ids=ids, num_heads=2, mask=(places >= 0)[:, None, None], positions=np.maximum(places, 0))
    dlogits, expected = np.random.default_rng(8).normal(size=logits.shape), 0.0
    for row, prompt in enumerate(PROMPTS):
        own, own_backward = gpt2(GPT2, ids=prompt[None], num_heads=2)
        np.testing.assert_allclose(logits[row, padding[row] :], own[0], rtol=0, atol=1e-12)
        grads = own_backward(dlogits[row : row + 1, padding[row] :])
        expected = grads if row == 0 else trees.map(np.add, expected, grads)
    dlogits[places < 0] = 0
    for (_, own), (_, wanted) in zip(trees.leaves(backward(dlogits)), trees.leaves(expected), strict=True):
        np.testing.assert_allclose(own, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("settings", [
    {"temperature": 0.0}, {"temperature": 1.3, "top_k": 6},
    {"processors": (partial(repetition_penalty, penalty=1.4), partial(min_p, p=0.05)), "temperature": 0.8},
], ids=["greedy", "drawn", "processors"])  # fmt: skip
def test_each_text_is_written_as_it_is_alone(steps, settings):
    step, padded = steps
    together = generate_batch(padded, prompts=PROMPTS, num_tokens=10, rng=np.random.default_rng(9), **settings)
    generators = np.random.default_rng(9).spawn(4)
    for text, prompt, rng in zip(together, PROMPTS, generators, strict=True):
        assert text == list(generate(step, prompt_ids=prompt, num_tokens=10, rng=rng, **settings))


def test_company_does_not_matter_and_texts_of_one_prompt_differ():
    settings = {"num_tokens": 12, "temperature": 1.5}
    first = generate_batch(gpt2_plain, prompts=PROMPTS[:2], rng=np.random.default_rng(10), **settings)
    second = generate_batch(gpt2_plain, prompts=[*PROMPTS[:2], np.arange(10)], rng=np.random.default_rng(10), **settings)
    assert second[:2] == first
    one, other = generate_batch(gpt2_plain, prompts=[PROMPTS[0]] * 2, rng=np.random.default_rng(10), **settings)
    assert one != other


def test_each_text_ends_at_its_own_stop_which_is_not_shown_and_the_last_ends_the_work():
    calls = []

    def step(ids, state, *, mask, positions):
        calls.append(ids.tolist())
        return 50.0 * np.eye(9)[(ids + 1) % 9], state

    prompts = [np.array([0]), np.array([4, 5]), np.array([8])]
    texts = generate_batch(step, prompts=prompts, num_tokens=100, temperature=0, rng=np.random.default_rng(0), stop=[[7], [2, 3]])
    assert texts == [[1], [6], [0, 1]]
    assert len(calls) == 4                                   # the third ends last, with its fourth token
    assert generate_batch(step, prompts=prompts, num_tokens=2, temperature=0, rng=np.random.default_rng(0)) == [[1, 2], [6, 7], [0, 1]]
    assert generate_batch(step, prompts=prompts, num_tokens=0, temperature=0, rng=np.random.default_rng(0)) == [[], [], []]


def test_prompts_of_one_length_need_no_padding_and_are_what_decode_does():
    ids = np.array([[3, 1, 4], [1, 5, 9]])
    padded = left_pad(list(ids))
    np.testing.assert_array_equal(padded.ids, ids)
    assert padded.padding.tolist() == [0, 0]
    expected, _ = decode(gpt2_plain, ids, num_tokens=6)
    assert generate_batch(gpt2_plain, prompts=list(ids), num_tokens=6, temperature=0, rng=np.random.default_rng(0)) == expected.tolist()


def test_texts_may_reach_the_end_of_the_table_and_not_beyond():
    """24 rows: a prompt of 7 and 17 tokens, of which the last is not read, fill 23 columns and as many rows."""
    settings = {"prompts": PROMPTS, "temperature": 0, "rng": np.random.default_rng(0), "context": 24}
    texts = generate_batch(gpt2_plain, num_tokens=18, **settings)
    for text, prompt in zip(texts, PROMPTS, strict=True):
        assert text == list(generate(gpt2_plain, prompt_ids=prompt, num_tokens=18, temperature=0, rng=np.random.default_rng(0)))
    with pytest.raises(ValueError, match="num_tokens: got 19 after 7, wants at most 18, for a context of 24"):
        generate_batch(gpt2_plain, num_tokens=19, **settings)
    with pytest.raises(ValueError, match="positions: got"):  # and where nobody says how long the table is
        generate_batch(gpt2_plain, num_tokens=19, **{**settings, "context": None})


@pytest.mark.parametrize("context", [7, 8, 13])
def test_past_the_context_each_row_has_the_logits_that_it_has_alone(steps, context):
    """Thirty tokens behind prompts of 1 to 7, so that each text slides several times, and they do at different times."""
    step, padded = steps
    ids, padding = left_pad(PROMPTS)
    written = np.random.default_rng(50).integers(V, size=(4, 30))
    batch = left_padded(sliding_apart(padded, context=context), padding)
    reading = prefill(batch, ids, chunk=3)
    found = [reading.logits]
    for token in written.T:
        reading = prefill(batch, token[:, None], reading)
        found.append(reading.logits)
    for row, prompt in enumerate(PROMPTS):
        np.testing.assert_allclose(np.array(found)[:, row], alone(sliding(step, context=context), prompt, written[row]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 1.3, "top_k": 6}], ids=["greedy", "drawn"])
def test_past_the_context_each_text_is_written_as_it_is_alone(steps, settings):
    """GPT-2's table has 24 rows, and the texts become 47 tokens long."""
    step, padded = steps
    together = generate_batch(sliding_apart(padded, context=24), prompts=PROMPTS, num_tokens=40, rng=np.random.default_rng(51), **settings)
    for text, prompt, rng in zip(together, PROMPTS, np.random.default_rng(51).spawn(4), strict=True):
        assert text == list(generate(step, prompt_ids=prompt, num_tokens=40, rng=rng, context=24, **settings))


@pytest.mark.parametrize("name", ["llama: a window, a cache that forgets", "gemma: layers near and far in turns"])
def test_a_model_whose_cache_forgets_needs_no_context_and_does_not_slide(name):
    step, padded = STEPS[name]
    together = generate_batch(padded, prompts=PROMPTS, num_tokens=60, temperature=0, rng=np.random.default_rng(0))
    for text, prompt in zip(together, PROMPTS, strict=True):
        assert text == list(generate(step, prompt_ids=prompt, num_tokens=60, temperature=0, rng=np.random.default_rng(0)))


def test_all_are_read_again_when_one_is_full_and_only_then():
    calls = []

    def step(ids, state, *, mask, positions):
        calls.append((ids.shape[1], mask.sum(axis=-1).ravel().tolist()))
        return 50.0 * np.eye(9)[(ids + 1) % 9], state

    prompts = [np.array([0, 1, 2]), np.array([4])]
    texts = generate_batch(sliding_apart(step, context=4), prompts=prompts, num_tokens=7, temperature=0, rng=np.random.default_rng(0))
    assert texts == [[3, 4, 5, 6, 7, 8, 0], [5, 6, 7, 8, 0, 1, 2]]
    assert calls == [(3, [3, 1]), (1, [4, 2]), (3, [2, 3]), (1, [3, 4]), (4, [4, 2]), (3, [2, 3]), (1, [3, 4])]


def test_a_prompt_longer_than_the_context_is_refused_and_so_are_unequal_texts_of_a_step_without_a_mask():
    settings = {"num_tokens": 9, "temperature": 0, "rng": np.random.default_rng(0)}
    with pytest.raises(ValueError, match="prompts: got a text of 7 tokens, wants at most 6, as many as the context"):
        generate_batch(sliding_apart(gpt2_plain, context=6), prompts=PROMPTS, **settings)
    step = of_one_length(lambda ids, state: (50.0 * np.eye(9)[(ids + 1) % 9], state))
    assert generate_batch(sliding_apart(step, context=4), prompts=[np.array([1, 2]), np.array([5, 6])], **settings)[1] == [7, 8, 0, 1, 2, 3, 4, 5, 6]


ENCODER_DECODERS = {
    "transformer": (transformer_step, noisy(init_transformer(
        np.random.default_rng(20), vocabulary=V, d_model=8, num_layers=2, num_heads=2, d_hidden=6, std=0.5, dtype=np.float64), 21)),
    "t5": (t5_step, noisy(init_t5(
        np.random.default_rng(22), vocabulary=V, d_model=8, num_layers=2, num_heads=2, d_head=4, d_hidden=6, dtype=np.float64), 23)),
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_sources_of_unequal_length_are_translated_together_as_alone(name):
    """Their padding is on the right and behind a mask; the memory's keys are made once, for all of them."""
    whole_step, params = ENCODER_DECODERS[name]
    sources = [np.random.default_rng(30 + length).integers(V, size=length) for length in (2, 6, 4)]
    lengths = np.array([2, 6, 4])
    together, mask = np.stack([np.pad(source, (0, 6 - len(source)), constant_values=9) for source in sources]), padding_mask(lengths, 6)
    step = partial(whole_step, params, num_heads=2, source=together, mask=mask)
    starts = [np.array([0])] * 3
    reading = prefill(step, np.zeros((3, 1), int))
    texts = generate_batch(of_one_length(step), prompts=starts, num_tokens=9, rng=np.random.default_rng(31), temperature=1.2, stop=[[1]])
    generators = np.random.default_rng(31).spawn(3)
    for row, (source, text, rng) in enumerate(zip(sources, texts, generators, strict=True)):
        own = partial(whole_step, params, num_heads=2, source=source[None])
        np.testing.assert_allclose(reading.logits[row], prefill(own, np.zeros((1, 1), int)).logits[0], rtol=0, atol=1e-10)
        assert text == list(until(generate(own, prompt_ids=starts[0], num_tokens=9, rng=rng, temperature=1.2), stop=[[1]]))
        padded = partial(whole_step, params, num_heads=2, source=together[row : row + 1], mask=mask[row : row + 1])
        for found, expected in zip(*(beam_search(one, starts[0], num_tokens=5, num_beams=3, end=1) for one in (padded, own)), strict=True):
            assert found.ids == expected.ids and abs(found.log_probability - expected.log_probability) < 1e-10
    unmasked = prefill(partial(whole_step, params, num_heads=2, source=together), np.zeros((3, 1), int)).logits
    assert np.abs(unmasked - reading.logits).max(axis=-1)[[0, 2]].min() > 1e-3  # the control: padding would have been read


def test_a_step_without_a_mask_is_not_given_padding():
    step = lambda ids, state: (50.0 * np.eye(9)[(ids + 1) % 9], state)  # noqa: E731
    settings = {"num_tokens": 2, "temperature": 0, "rng": np.random.default_rng(0)}
    assert generate_batch(of_one_length(step), prompts=[np.array([3, 4]), np.array([7, 8])], **settings) == [[5, 6], [0, 1]]
    with pytest.raises(ValueError, match="prompts: got texts of unequal length, wants one length, as the step takes no mask"):
        generate_batch(of_one_length(step), prompts=[np.array([3, 4]), np.array([7])], **settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "prompts: got none, wants at least one text"),
        ({"prompts": [np.array([1]), np.zeros(0, int)]}, "prompts.1"),
        ({"prompts": [np.array([1]), np.array([[1]])]}, "prompts.1"),
        ({"prompts": [np.array([0.5])]}, "prompts.0"),
        ({"prompts": [np.array([1]), np.array([-1, 2])]}, "prompts.1: got ids from -1 to 2"),
        ({"prompts": [np.array([1]), np.array([11])], "vocabulary_size": 11}, "prompts.1: got ids from 11 to 11, wants ids from 0 to 10"),
        ({"num_tokens": -1}, "num_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"stop": [[]]}, "stop.0"),
        ({"context": 6}, "num_tokens: got 3 after 7"),
        ({"rng": None}, "rng"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_by_name_before_anything_is_computed(changes, message):
    call = {"prompts": PROMPTS, "num_tokens": 3, "rng": np.random.default_rng(0), **changes}
    with pytest.raises(ValueError, match=message):
        generate_batch(lambda ids, state, **given: pytest.fail("the model was asked"), **call)


@pytest.mark.parity
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_greedy_batches_are_hugging_faces(family):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from minitransformers.models.gpt2 import gpt2_weights
    from minitransformers.models.llama import llama_weights

    common = {"vocab_size": V, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    if family == "gpt2":
        config = transformers.GPT2Config(n_positions=24, n_embd=8, n_layer=2, n_head=2, **common)
        theirs, weights, step = transformers.GPT2LMHeadModel(config), gpt2_weights(GPT2), gpt2_plain
    else:
        config = transformers.LlamaConfig(
            hidden_size=8, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=6, rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 30.0}, tie_word_embeddings=False, **common,
        )  # fmt: skip
        theirs, weights, step = transformers.LlamaForCausalLM(config), llama_weights(LLAMA_PARAMS), by_distance(llama_plain)
    theirs = theirs.double().eval()
    theirs.load_state_dict({name: torch.tensor(array) for name, array in weights.items()}, strict=False)
    ids, padding = left_pad(PROMPTS)
    mask = torch.tensor((np.arange(7) >= padding[:, None]).astype(int))
    out = theirs.generate(torch.tensor(ids), attention_mask=mask, max_new_tokens=12, do_sample=False)
    found = generate_batch(step, prompts=PROMPTS, num_tokens=12, temperature=0, rng=np.random.default_rng(0))
    assert found == out[:, 7:].tolist()
    positions = torch.tensor(np.maximum(np.arange(7) - padding[:, None], 0))
    expected = theirs(torch.tensor(ids), attention_mask=mask, position_ids=positions).logits.detach().numpy()[:, -1]
    logits = prefill(left_padded(step, padding), ids).logits
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-10 if family == "gpt2" else 1e-5)  # Llama's norm: float32
