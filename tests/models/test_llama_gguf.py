"""A Llama out of a GGUF file: the same numbers in the same places, the same vocabulary; and SmolLM2 itself, where it is there."""

from functools import partial

import numpy as np
import pytest
from gguf_files import f32, gguf, q4_1, q8_0, smollm, written

from minitransformers import trees
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.models.decoding import generate
from minitransformers.models.llama import SMOLLM2_135M, init_llama, llama, llama_step, llama_weights
from minitransformers.models.llama_gguf import load_llama_gguf, neighbours_to_halves
from minitransformers.models.published import published_file
from minitransformers.models.tokenizers.byte_pair_encoding import byte_pair_decode, byte_pair_encode, train_byte_pair_encoding
from minitransformers.positional.rope_interleaved import rope_interleaved

SONG = "row, row, row your boat, gently down the stream 12345: merrily, merrily"
VOCABULARY = train_byte_pair_encoding([SONG], vocabulary_size=275, special_tokens=("<|endoftext|>", "<|im_end|>"), digits=True)
HEADS = {"num_heads": 4, "num_kv_heads": 2}


def tiny(tied=True):
    rng = np.random.default_rng(0)
    params = init_llama(rng, vocabulary=VOCABULARY.size, d_model=32, num_layers=2, **HEADS, d_hidden=64, std=0.3, tied=tied)
    return trees.map(lambda leaf: leaf + rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype), params)


@pytest.fixture
def load(tmp_path):
    """Write metadata and tensors, and read them as a model."""

    def loading(metadata, tensors):
        (tmp_path / "model.gguf").write_bytes(written(metadata, tensors))
        return load_llama_gguf(tmp_path / "model.gguf")

    return loading


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_the_one_that_was_written(load, tied):
    params = tiny(tied)
    found = load(*smollm(params, VOCABULARY, **HEADS))
    assert (found.params.head is None) == tied
    for (path, own), (_, theirs) in zip(trees.leaves(found.params), trees.leaves(params), strict=True):
        np.testing.assert_array_equal(own, theirs, err_msg=path)
        longer_last = own.T if own.ndim == 2 and own.shape[0] > own.shape[1] else own
        assert own.dtype == np.float32 and own.flags.writeable and longer_last.flags.c_contiguous, path
    assert found.settings["num_heads"] == 4 and found.settings["eps"] == 2.0**-16 and found.context == 64
    assert found.settings["rope"].keywords == {"base": 50.0}


def test_the_rows_of_the_file_are_turned_as_neighbours():
    """The model as llama.cpp has it, rows as they lie in the file and rope on neighbours, is ours with other names for the features."""
    params = tiny()
    _, tensors = smollm(params, VOCABULARY, **HEADS)
    as_it_lies = params
    for i, block in enumerate(params.blocks):
        rows = {part: np.frombuffer(tensors[f"blk.{i}.attn_{part[0]}.weight"][2], "<f4").reshape(-1, 32) for part in ("query", "key")}
        attention = block.attention._replace(**{part: block.attention.query._replace(weight=array.T) for part, array in rows.items()})
        as_it_lies.blocks[i] = block._replace(attention=attention)
    ids = np.arange(20)[None] * 7 % VOCABULARY.size
    theirs, _ = llama(as_it_lies, ids=ids, num_heads=4, rope=partial(rope_interleaved, base=50.0))
    own, _ = llama(tiny(), ids=ids, num_heads=4, rope=partial(SMOLLM2_135M.settings["rope"], base=50.0))
    np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-4)
    wrong, _ = llama(as_it_lies, ids=ids, num_heads=4, rope=partial(SMOLLM2_135M.settings["rope"], base=50.0))
    assert np.abs(wrong - theirs).max() > 0.1


def test_rows_by_hand():
    """Two heads of width 4: the file has rows 0, 2, 1, 3 of each."""
    rows = np.array([0, 2, 1, 3, 4, 6, 5, 7])[:, None] * np.ones(3)
    assert neighbours_to_halves(rows, 2)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(("kind", "quantizer", "bound"), [(8, q8_0, 0.01), (3, q4_1, 0.1)])
def test_quantized_weights_are_nearly_those_that_were_written(load, kind, quantizer, bound):
    """Of normal numbers 8 bits keep half a hundredth, and 16 steps over some four deviations a step of 0.27, or 0.08 in the root of the mean square."""
    params = tiny()
    found = load(*smollm(params, VOCABULARY, **HEADS, kind=kind, quantizer=quantizer))
    for (path, own), (_, exact) in zip(trees.leaves(found.params), trees.leaves(params), strict=True):
        error = np.linalg.norm(own - exact) / np.linalg.norm(exact)
        assert error == 0 if path.endswith("gain") else bound / 5 < error < bound, path


def test_the_vocabulary_is_the_one_that_was_written(load):
    found = load(*smollm(tiny(), VOCABULARY, **HEADS)).vocabulary
    text = "row merrily 345 <|im_end|> ☃ stream<|endoftext|>"
    ids = byte_pair_encode(text, vocabulary=found)
    assert ids.tolist() == byte_pair_encode(text, vocabulary=VOCABULARY).tolist()
    assert byte_pair_decode(ids, vocabulary=found) == text and found.digits and found.size == VOCABULARY.size
    assert found.added.ids == VOCABULARY.added.ids and found.added.special == VOCABULARY.added.special


def test_the_texts_end_is_any_token_that_is_no_part_of_one(load):
    assert load(*smollm(tiny(), VOCABULARY, **HEADS)).ends == {VOCABULARY.added.ids[token] for token in ("<|endoftext|>", "<|im_end|>")}


def test_what_is_not_said_is_as_llama_cpp_takes_it(load):
    metadata, tensors = smollm(tiny(), VOCABULARY, **HEADS)
    for name in ("llama.rope.freq_base", "tokenizer.ggml.add_bos_token"):
        del metadata[name]
    assert load(metadata, tensors).settings["rope"].keywords == {"base": 10_000.0}
    many, tensors = smollm(init_llama(np.random.default_rng(0), vocabulary=VOCABULARY.size, d_model=8, num_layers=1, num_heads=2, d_hidden=4, tied=True),
                           VOCABULARY, num_heads=2, num_kv_heads=2)  # fmt: skip
    del many["llama.attention.head_count_kv"]
    assert load(many, tensors).params.blocks[0].attention.key.weight.shape == (8, 8)


NO = object()
BAD = {
    "general.architecture": ("str", "qwen2", "general.architecture: got 'qwen2', wants 'llama'"),
    "llama.rope.scaling.type": ("str", "yarn", "llama.rope.scaling.type: got 'yarn', wants 'none'"),
    "llama.rope.dimension_count": ("u32", 4, "llama.rope.dimension_count: got 4, wants 8"),
    "llama.rope.freq_base": ("f32", float("nan"), "llama.rope.freq_base: got nan, wants a number above 0"),
    "llama.attention.layer_norm_rms_epsilon": (NO, NO, "layer_norm_rms_epsilon: got None, wants a number above 0"),
    "llama.attention.head_count": ("u32", 3, "llama.attention.head_count: got 3, 2 of them of keys"),
    "llama.attention.head_count_kv": ("u32", 0, "llama.attention.head_count_kv: got 0, wants a whole number of at least 1"),
    "llama.context_length": (NO, NO, "llama.context_length: got None"),
    "llama.block_count": ("u32", 3, "weights: got 2 layers, wants 3, as the metadata say"),
    "llama.embedding_length": ("u32", 64, r"weights: got token_embd.weight of shape \(268, 32\), wants \(268, 64\)"),
    "tokenizer.ggml.model": ("str", "llama", "tokenizer.ggml.model: got 'llama', wants 'gpt2'"),
    "tokenizer.ggml.pre": ("str", "llama-bpe", "tokenizer.ggml.pre: got 'llama-bpe', wants 'gpt-2' or 'smollm'"),
    "tokenizer.ggml.add_bos_token": ("bool", True, "tokenizer.ggml.add_bos_token: got True, wants False"),
    "tokenizer.ggml.tokens": (["u8"], [1, 2], "tokenizer.ggml: got no list of tokens"),
    "tokenizer.ggml.merges": (["str"], ["a b c"], "tokenizer.ggml: got no list of tokens, or none of merges"),
    "tokenizer.ggml.token_type": (["i32"], [1], "tokenizer.ggml.token_type: got .*, wants a number for each of the 268 tokens"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_file_of_another_model_is_refused_by_what_is_other(load, name):
    metadata, tensors = smollm(tiny(), VOCABULARY, **HEADS)
    kind, content, message = BAD[name]
    metadata.pop(name, None)
    if kind is not NO:
        metadata[name] = (kind, content)
    with pytest.raises(ValueError, match=message) as error:
        load(metadata, tensors)
    assert "model.gguf: " in str(error.value)


def test_tensors_that_are_missing_unexpected_or_misshapen_are_named(load):
    metadata, tensors = smollm(tiny(), VOCABULARY, **HEADS)
    with pytest.raises(ValueError, match=r"missing blk\.1\.ffn_up\.weight"):
        load(metadata, {name: tensor for name, tensor in tensors.items() if name != "blk.1.ffn_up.weight"})
    with pytest.raises(ValueError, match=r"unexpected rope_freqs\.weight"):
        load(metadata, tensors | {"rope_freqs.weight": (0, (32,), f32(np.ones(32)))})
    with pytest.raises(ValueError, match=r"weights: got blk\.0\.attn_k\.weight of shape \(32, 32\), wants \(16, 32\), as the metadata say"):
        load(metadata, tensors | {"blk.0.attn_k.weight": tensors["blk.0.attn_q.weight"]})
    with pytest.raises(ValueError, match="of type 14, which is not read here"):
        load(metadata, tensors | {"blk.0.attn_k.weight": (14, (1, 256), bytes(210))})
    with pytest.raises(ValueError, match="no arrays"):
        load(metadata, {})


def test_mutated_files_are_a_model_or_refused(tmp_path):
    rng, refused = np.random.default_rng(1), 0
    metadata, tensors = smollm(tiny(), VOCABULARY, **HEADS)
    content, path = written(metadata, tensors), tmp_path / "model.gguf"
    for _ in range(150):
        raw = bytearray(content)
        for _ in range(3):
            raw[int(rng.integers(900 if rng.random() < 0.5 else 10_000))] = int(rng.integers(256))
        path.write_bytes(raw)
        try:
            load_llama_gguf(path)
        except ValueError as error:
            refused += 1
            assert str(error).startswith(str(path))
    assert 75 < refused < 150


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "x.gguf").write_bytes(gguf([("general.architecture", "str", "clip")]))
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.model: got None"):
        load_llama_gguf(tmp_path / "x.gguf")


# SmolLM2 --------------------------------------------------------------------------------------------------------------------

TOWER = "The tower is 324 metres tall, about the same height as an 81-storey building, and the tallest structure in Paris."


@pytest.fixture(scope="module")
def smollm2():
    try:
        path = published_file("smollm2")
    except ValueError as error:
        pytest.skip(str(error))
    return load_llama_gguf(path)


@pytest.mark.weights
def test_it_is_the_published_size(smollm2):
    assert trees.count_parameters(smollm2.params) == 134_515_008
    sizes, held = SMOLLM2_135M.sizes, smollm2.params
    assert held.embedding.weight.shape == (sizes["vocabulary"], sizes["d_model"]) and len(held.blocks) == sizes["num_layers"] and held.head is None
    assert smollm2.settings["num_heads"] == 9 and smollm2.settings["rope"].keywords == SMOLLM2_135M.settings["rope"].keywords
    assert smollm2.settings["eps"] == pytest.approx(1e-5) and smollm2.context == 8192


@pytest.mark.weights
def test_it_says_paris(smollm2):
    ids = byte_pair_encode("The capital of France is", vocabulary=smollm2.vocabulary)
    assert ids.tolist() == [504, 3575, 282, 4649, 314]
    step = partial(llama_step, smollm2.params, **smollm2.settings)
    written = generate(step, prompt_ids=ids, num_tokens=2, rng=np.random.default_rng(0), temperature=0)
    assert byte_pair_decode(list(written), vocabulary=smollm2.vocabulary) == " Paris."


@pytest.mark.weights
def test_its_perplexity_of_a_sentence(smollm2):
    ids = byte_pair_encode(TOWER, vocabulary=smollm2.vocabulary)
    assert len(ids) == 31
    logits, _ = llama(smollm2.params, ids=ids[None, :-1], **smollm2.settings)
    loss, _ = cross_entropy(logits, targets=ids[None, 1:])
    assert np.exp(loss) == pytest.approx(20.49, abs=0.005)
    first, state = llama_step(smollm2.params, ids[None, :20], None, **smollm2.settings)
    second, _ = llama_step(smollm2.params, ids[None, 20:-1], state, **smollm2.settings)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), logits, rtol=0, atol=3e-4)  # a hundred-thousandth of the largest


@pytest.mark.weights
@pytest.mark.parity
def test_its_logits_equal_hugging_faces(smollm2):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0}, rms_norm_eps=smollm2.settings["eps"], tie_word_embeddings=True,
        max_position_embeddings=8192, attn_implementation="eager",
    )  # fmt: skip
    with torch.device("meta"):
        theirs = transformers.LlamaForCausalLM(config)
    weights = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in llama_weights(smollm2.params).items()}
    theirs.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}, assign=True)
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(config)
    ids = byte_pair_encode(TOWER, vocabulary=smollm2.vocabulary)[None]
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(ids)).logits.numpy()
    own, _ = llama(smollm2.params, ids=ids, **smollm2.settings)
    assert np.abs(expected).max() > 20
    np.testing.assert_allclose(own, expected, rtol=0, atol=3e-4)
    np.testing.assert_array_equal(own.argmax(-1), expected.argmax(-1))
