"""The base model that sections begin with, and the lines that they ask it about."""

import sys
from functools import partial

import numpy as np
import pytest

from minitransformers.foundation.safetensors import read_metadata
from minitransformers.models.llama import llama
from minitransformers.reporting import base
from minitransformers.reporting.models import entries
from minitransformers.training.language_modelling import LanguageModelling


def test_it_is_as_good_as_its_file_says():
    task = LanguageModelling(base.base_corpus(), partial(llama, **base.SETTINGS), context=base.LENGTH, batch_size=32, eval_windows=128)
    said = float(read_metadata(base.BASE)["bits per character"])
    assert said < 1.9
    slack = 0.15 if sys.version_info[:2] == (3, 11) else 0.4   # other versions of Python have a somewhat other reference
    assert task.evaluate(base.load_base())["bits per character"] == pytest.approx(said, abs=slack)


def test_training_it_again_makes_the_same_kind_of_model():
    params, task = base.trained_base(np.random.default_rng(0), steps=2)
    kept = base.load_base()
    assert params.embedding.weight.shape == kept.embedding.weight.shape and len(params.blocks) == len(kept.blocks)
    assert task.context == base.LENGTH


def test_no_line_of_the_tests_was_read_and_none_stands_in_two_entries():
    known, tests = entries.labelled_lines(shortest=20, longest=48)
    corpus = base.base_corpus()
    lines = {line.strip()[:48] for line in (corpus.train_text + "\n" + corpus.validation_text).splitlines()}
    assert not lines & set(tests.lines)
    for found in (known, tests):
        assert len(set(found.lines)) == len(found.lines) == len(found.labels)
        assert all(20 <= len(line) <= 48 for line in found.lines)
    assert set(known.labels) == set(tests.labels) == set(range(known.labels.max() + 1))
    assert np.bincount(tests.labels).min() >= 40
    assert set(known.lines) - lines == set(), "what is learned from was read"


@pytest.mark.parity
def test_transformers_loads_it(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = base.SIZES
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=sizes["d_model"], num_hidden_layers=sizes["num_layers"], num_attention_heads=sizes["num_heads"],
        num_key_value_heads=sizes["num_kv_heads"], intermediate_size=sizes["d_hidden"], rms_norm_eps=1e-5, tie_word_embeddings=True,
    )  # fmt: skip
    (tmp_path / "model.safetensors").write_bytes(base.BASE.read_bytes())
    config.save_pretrained(tmp_path)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    ids = np.frombuffer(b"An identifier is", np.uint8)[None].astype(int)
    logits, _ = llama(base.load_base(), ids=ids, **base.SETTINGS)
    assert np.abs(theirs(torch.tensor(ids)).logits.detach().numpy() - logits).max() < 1e-3
