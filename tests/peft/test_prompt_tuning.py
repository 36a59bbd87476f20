"""Learned embeddings before the text: as if they were words, for whatever model reads ids, and of each task its own."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import trees
from minitransformers.basics.embedding import Embedding
from minitransformers.foundation import assert_gradients, check_gradients, invalid
from minitransformers.models.gpt2 import gpt2, init_gpt2, load_gpt2
from minitransformers.models.llama import init_llama, llama
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model, language_model
from minitransformers.peft.prompt_tuning import (
    init_prompt_tuning,
    prompt_of_frequent_tokens,
    prompt_of_labels,
    prompt_tuning,
    prompted,
    prompted_ids,
)

IDS = np.random.default_rng(0).integers(7, size=(2, 4))
PROMPT = np.random.default_rng(1).normal(size=(3, 4))


def noisy(params):
    rng = np.random.default_rng(2)
    return trees.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape), params)


def a_gpt2(context=8):
    base = init_gpt2(np.random.default_rng(3), vocabulary=7, context=context, d_model=4, num_layers=2, num_heads=2, dtype=np.float64)
    return noisy(base), partial(gpt2, num_heads=2)


def a_llama(tied=False):
    sizes = {"vocabulary": 7, "d_model": 4, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "d_hidden": 5, "tied": tied}
    return noisy(init_llama(np.random.default_rng(4), **sizes, dtype=np.float64)), partial(llama, num_heads=2)


def a_mamba():
    config = LanguageModelConfig(7, context=8, d_model=4, num_layers=2, mixer="mamba", position="none", options={"mixer": {"d_state": 2, "d_conv": 2}})
    return noisy(init_language_model(np.random.default_rng(5), config, dtype=np.float64)), partial(language_model, config=config)


MODELS = {"gpt2": a_gpt2, "llama": a_llama, "llama, tied": partial(a_llama, tied=True), "mamba": a_mamba}


def test_the_table_is_that_of_the_base_and_the_prompt_behind_it():
    base = np.random.default_rng(6).normal(size=(7, 4))
    base.setflags(write=False)
    table, backward = prompt_tuning(PROMPT, base=base)
    ids = np.array([[0, 6, 7], [9, 8, 3]])

    def textbook(prompt):
        """Of each id by hand: a word of the base, or a row of the prompt."""
        return anp.stack([anp.stack([base[i] if i < 7 else prompt[i - 7] for i in row]) for row in ids])

    np.testing.assert_array_equal(table[ids], textbook(PROMPT))
    dout, dtable = np.random.default_rng(7).normal(size=(2, 3, 4)), np.zeros((10, 4))
    np.add.at(dtable, ids, dout)
    np.testing.assert_allclose(backward(dtable), autograd.grad(lambda p: anp.sum(dout * textbook(p)))(PROMPT), rtol=0, atol=1e-14)
    assert backward(dtable).flags.owndata


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_is_trained_through_any_model(name):
    base, model = MODELS[name]()
    for _, leaf in trees.leaves(base):
        leaf.setflags(write=False)
    report = assert_gradients(partial(prompted, base=base, ids=IDS, model=model), PROMPT, second_opinion=False)
    assert [argument.path for argument in report.arguments] == ["prompt"]


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_of_words_embeddings_is_these_words_in_front(name):
    base, model = MODELS[name]()
    words = np.array([5, 0, 5])
    logits = prompted(base.embedding.weight[words], base=base, ids=IDS, model=model)[0]
    whole = model(base, ids=np.concatenate([np.tile(words, (2, 1)), IDS], axis=1))[0]
    assert logits.shape == (2, 4, 7)
    np.testing.assert_allclose(logits, whole[:, 3:], rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_of_mixed_tasks_is_a_batch_of_each(name):
    base, model = MODELS[name]()
    prompts, tasks = np.random.default_rng(8).normal(size=(3, 2, 4)), np.array([2, 0, 2, 1])
    ids, dlogits = np.random.default_rng(9).integers(7, size=(4, 4)), np.random.default_rng(10).normal(size=(4, 4, 7))
    logits, backward = prompted(prompts.reshape(6, 4), base=base, ids=ids, model=model, tasks=tasks, num_tasks=3)
    dprompts = backward(dlogits).reshape(3, 2, 4)
    for task in range(3):
        of_task = tasks == task
        own, own_backward = prompted(prompts[task], base=base, ids=ids[of_task], model=model)
        np.testing.assert_allclose(logits[of_task], own, rtol=0, atol=1e-13)
        np.testing.assert_allclose(dprompts[task], own_backward(dlogits[of_task]), rtol=0, atol=1e-12)


def test_a_task_that_is_not_in_the_batch_learns_exactly_nothing():
    base, model = a_gpt2()
    backward = prompted(np.ones((6, 4)), base=base, ids=IDS, model=model, tasks=np.array([1, 1]), num_tasks=3)[1]
    dprompt = backward(np.random.default_rng(11).normal(size=(2, 4, 7)))
    assert not dprompt[:2].any() and not dprompt[4:].any() and dprompt[2:4].any()


def test_ids_in_front_name_the_rows_of_the_text_s_task():
    found = prompted_ids(IDS[:, :2], vocabulary=7, length=3, tasks=np.array([0, 2]))
    np.testing.assert_array_equal(found, [[7, 8, 9, *IDS[0, :2]], [13, 14, 15, *IDS[1, :2]]])
    np.testing.assert_array_equal(prompted_ids(np.array([4]), vocabulary=7, length=2), [7, 8, 4])
    assert prompted_ids(np.array([4], np.int32), vocabulary=7, length=2).dtype == np.int32


def test_ids_of_the_text_that_name_a_row_of_the_prompt_are_refused():
    base, model = a_gpt2()
    with pytest.raises(ValueError, match=r"ids: got ids from 0 to 7, wants 0 to 6, the words of the vocabulary"):
        prompted(PROMPT, base=base, ids=np.array([[0, 7]]), model=model)


def test_the_checker_refuses_a_prompt_that_forgets_the_batch():
    base, model = a_gpt2()

    def wrong(prompt):
        logits, _ = prompted(prompt, base=base, ids=IDS, model=model)
        backward = prompted(prompt, base=base, ids=IDS[:1], model=model)[1]
        return logits, lambda dlogits: backward(dlogits[:1])

    assert not check_gradients(wrong, PROMPT, second_opinion=False).passed


def test_prompt_and_text_beyond_the_table_of_positions_are_refused():
    base, model = a_gpt2(context=7)
    assert prompted(PROMPT, base=base, ids=IDS, model=model)[0].shape == (2, 4, 7)
    with pytest.raises(ValueError, match="ids: got 8 positions, wants at most the context, 7, of positions"):
        prompted(np.ones((4, 4)), base=base, ids=IDS, model=model)
    base, model = a_llama()
    assert prompted(np.ones((40, 4)), base=base, ids=IDS, model=model)[0].shape == (2, 4, 7)


def test_unknown_tasks_and_other_models_are_refused_by_name():
    base, model = a_gpt2()
    with pytest.raises(ValueError, match="tasks: got 0 to 3, wants 0 to 2, the prompts that there are"):
        prompted(PROMPT, base=base, ids=IDS, model=model, tasks=np.array([3, 0]), num_tasks=3)
    with pytest.raises(ValueError, match="tasks: got -1 to 0"):
        prompted(PROMPT, base=base, ids=IDS, model=model, tasks=np.array([0, -1]), num_tasks=3)
    with pytest.raises(ValueError, match="num_tasks: got 2, wants a number of prompts that share 3 rows evenly"):
        prompted(PROMPT, base=base, ids=IDS, model=model, num_tasks=2)
    with pytest.raises(ValueError, match="base: got Gpt2Block, wants the parameters of a model, with a field embedding"):
        prompted(PROMPT, base=base.blocks[0], ids=IDS, model=model)
    with pytest.raises(ValueError, match=r"prompt|base"):
        prompted(np.ones((3, 5)), base=base, ids=IDS, model=model)
    with pytest.raises(ValueError, match=r"prompt: got shape \(0, 4\), wants no empty axis"):
        prompt_tuning(np.ones((0, 4)), base=np.ones((7, 4)))


def test_the_uniform_start_fills_its_range():
    made = init_prompt_tuning(np.random.default_rng(12), 20, 100)
    assert made.shape == (20, 100) and made.dtype == np.float32 and trees.count_parameters(made) == 20 * 100
    assert made.min() >= -0.5 and made.max() < 0.5 and np.ptp(made) > 0.99 and abs(made.mean()) < 0.02


def test_frequent_tokens_come_without_repetition_while_there_are_enough():
    base, counts = np.random.default_rng(13).normal(size=(9, 4)), np.array([0, 5, 1, 0, 9, 9, 2, 0, 3])

    def drawn(length, most, seed=0):
        rows = prompt_of_frequent_tokens(np.random.default_rng(seed), length, base=base, counts=counts, most=most)
        assert rows.flags.owndata and not np.shares_memory(rows, base)
        return [int(np.flatnonzero((base == row).all(1))[0]) for row in rows]

    for seed in range(20):
        assert sorted(drawn(3, 3, seed)) == [1, 4, 5]
        assert set(drawn(2, 3, seed)) < {1, 4, 5}
    assert sorted(drawn(6, 5000)) == [1, 2, 4, 5, 6, 8]      # a token that never occurs is not frequent
    assert len(drawn(30, 3)) == 30 and set(drawn(30, 3)) == {1, 4, 5}
    with pytest.raises(ValueError, match="counts: got 0 for every token"):
        prompt_of_frequent_tokens(np.random.default_rng(0), 2, base=base, counts=0 * counts)


def test_labels_are_their_words_rows_and_an_absent_word_is_named():
    base, token_ids = np.random.default_rng(14).normal(size=(4, 3)), {"good": 2, "bad": 0, "very": 3}
    made = prompt_of_labels(["bad", "good", "very good"], base=base, token_ids=token_ids)
    np.testing.assert_array_equal(made[:2], base[[0, 2]])
    np.testing.assert_allclose(made[2], (base[3] + base[2]) / 2, rtol=0, atol=1e-15)
    assert not np.shares_memory(made, base)
    with pytest.raises(ValueError, match="labels: got 'fine', which is not in the vocabulary"):
        prompt_of_labels(["bad", "very fine"], base=base, token_ids=token_ids)
    for nothing in ([], ["bad", " "]):
        with pytest.raises(ValueError, match="labels: got"):
            prompt_of_labels(nothing, base=base, token_ids=token_ids)


def test_a_prompt_of_zeros_still_takes_its_positions():
    """It is no way to leave the model as it is: the text stands further back, and attention sees the slots."""
    base, model = a_gpt2()
    assert np.abs(prompted(0 * PROMPT, base=base, ids=IDS, model=model)[0] - model(base, ids=IDS)[0]).max() > 1e-2


def test_a_tied_head_learns_nothing_from_the_words_that_are_cut_off():
    """Where the head is the table, the prompt's rows are words of it; only their being read may teach them."""
    base, model = a_llama(tied=True)
    untied = base._replace(head=init_llama(np.random.default_rng(0), vocabulary=7, d_model=4, num_layers=1, num_heads=1, dtype=np.float64).head._replace(
        weight=base.embedding.weight.T.copy()))  # fmt: skip
    dlogits = np.random.default_rng(15).normal(size=(2, 4, 7))
    (logits, backward), (same, same_backward) = (prompted(PROMPT, base=own, ids=IDS, model=model) for own in (base, untied))
    np.testing.assert_allclose(logits, same, rtol=0, atol=1e-14)
    np.testing.assert_allclose(backward(dlogits), same_backward(dlogits), rtol=0, atol=1e-14)


def test_what_the_model_refuses_it_still_refuses():
    def model(tree, *, ids):
        raise invalid("ids", got="these", wants="others")

    with pytest.raises(ValueError, match="ids: got these"):
        prompted(PROMPT, base=a_gpt2()[0], ids=IDS, model=model)


@pytest.mark.parity
def test_it_is_gpt2_on_embeddings_with_the_prompt_in_front():
    torch, transformers = (pytest.importorskip(name) for name in ("torch", "transformers"))
    torch.manual_seed(0)
    sizes = transformers.GPT2Config(vocab_size=7, n_positions=8, n_embd=4, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0)
    theirs = transformers.GPT2LMHeadModel(sizes).double()
    base = trees.map(np.array, load_gpt2({name: leaf.detach().numpy() for name, leaf in theirs.state_dict().items()}))
    front = torch.tensor(PROMPT, requires_grad=True)
    embedded = torch.cat([front.expand(2, -1, -1), theirs.transformer.wte(torch.tensor(IDS))], dim=1)
    logits = theirs(inputs_embeds=embedded).logits[:, 3:]
    own, backward = prompted(PROMPT, base=base, ids=IDS, model=partial(gpt2, num_heads=2))
    np.testing.assert_allclose(own, logits.detach(), rtol=0, atol=1e-12)
    dlogits = np.random.default_rng(16).normal(size=(2, 4, 7))
    logits.backward(torch.tensor(dlogits))
    np.testing.assert_allclose(backward(dlogits), front.grad, rtol=0, atol=1e-12)


def test_the_tree_that_the_model_sees_is_the_base_with_another_table():
    base, model = a_gpt2()
    seen = []

    def watching(tree, *, ids):
        seen.append((tree, ids))
        return model(tree, ids=ids)

    prompted(PROMPT, base=base, ids=IDS, model=watching)
    (tree, ids), = seen
    assert isinstance(tree.embedding, Embedding) and tree.blocks is base.blocks and tree.positions is base.positions
    np.testing.assert_array_equal(tree.embedding.weight, np.concatenate([base.embedding.weight, PROMPT]))
    np.testing.assert_array_equal(ids, prompted_ids(IDS, vocabulary=7, length=3))
