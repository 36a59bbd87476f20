"""Vocabularies in files: what is written is read again, and what is damaged or describes something else is refused by its name."""

import copy
import json

import numpy as np
import pytest
from tokenizer_lines import lines

from minitransformers.models.tokenizers.added import AddedTokens
from minitransformers.models.tokenizers.byte_pair_encoding import byte_pair_encode, train_byte_pair_encoding
from minitransformers.models.tokenizers.byte_pair_vocabulary import BytePairVocabulary, byte_order, from_spelling, spelled
from minitransformers.models.tokenizers.files import read_tokenizer, read_vocab_json, read_vocab_txt, write_tokenizer
from minitransformers.models.tokenizers.wordpiece import basic_words, wordpiece_encode

TEXT = "the cat sat on the mat, the rat sat on the cat " * 3
BYTE_PAIRS = train_byte_pair_encoding([TEXT], vocabulary_size=280, special_tokens=("<|endoftext|>",))
WORDPIECE = {
    "added_tokens": [{"id": 1, "content": "[MASK]", "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}],
    "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {"type": "TemplateProcessing"},
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 5,
              "vocab": {"[UNK]": 0, "[MASK]": 1, "un": 2, "##like": 3}},
}  # fmt: skip


@pytest.fixture
def file(tmp_path):
    """The path of a file with this content: text, bytes, or JSON of anything else."""

    def write(content, name="tokenizer.json"):
        raw = content if isinstance(content, bytes) else (content if isinstance(content, str) else json.dumps(content)).encode()
        (tmp_path / name).write_bytes(raw)
        return tmp_path / name

    return write


def changed(content, path, value):
    """A copy with one place in it changed; a value of ... takes the place away."""
    found = content = copy.deepcopy(content)
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in way:
        found = found[part]
    if value is ...:
        del found[last]
    else:
        found[last] = value
    return content


# What is read ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [False, True])
def test_a_byte_pair_vocabulary_is_read_as_it_was_written(digits, tmp_path):
    added = AddedTokens({"<|endoftext|>": 0, "<tool>": 300}, frozenset({0}))
    ours = BytePairVocabulary({**BYTE_PAIRS.tokens, 300: b"<tool>"}, BYTE_PAIRS.merges, added, digits, unknown=0)
    write_tokenizer(tmp_path / "t.json", ours)
    again = read_tokenizer(tmp_path / "t.json")
    assert again.tokens == ours.tokens and again.merges == ours.merges and again.size == 301
    assert (again.added.ids, again.added.special, again.digits, again.unknown) == (added.ids, added.special, digits, 0)
    for line in lines(50, seed=6):
        assert byte_pair_encode(line, vocabulary=again).tolist() == byte_pair_encode(line, vocabulary=ours).tolist()


def test_early_files_lack_what_they_take_for_granted(file, tmp_path):
    """No type of model, no use_regex, merges as text, and added tokens that say normalized: GPT-2's own file is such a one."""
    write_tokenizer(tmp_path / "t.json", BYTE_PAIRS)
    content = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    del content["model"]["type"], content["pre_tokenizer"]["use_regex"], content["model"]["byte_fallback"], content["model"]["ignore_merges"]
    content["model"] |= {"merges": [" ".join(pair) for pair in content["model"]["merges"]], "continuing_subword_prefix": "", "end_of_word_suffix": ""}
    content["added_tokens"][0]["normalized"] = True
    again = read_tokenizer(file(content))
    assert again.tokens == BYTE_PAIRS.tokens and again.merges == BYTE_PAIRS.merges


def test_vocab_and_merges_are_read_with_their_special_token(file):
    names = {i: spelled(token) for i, token in BYTE_PAIRS.tokens.items()} | {0: "<|endoftext|>"}
    vocab = file({name: i for i, name in names.items()}, "vocab.json")
    merges = file("#version: 0.2\n" + "".join(f"{names[a]} {names[b]}\n" for a, b in BYTE_PAIRS.merges), "merges.txt")
    again = read_vocab_json(vocab, merges)
    assert again.tokens == BYTE_PAIRS.tokens and again.merges == BYTE_PAIRS.merges and again.added.ids == {"<|endoftext|>": 0}
    assert not read_vocab_json(vocab, merges, special_tokens=()).added.ids and read_vocab_json(vocab, merges, digits=True).digits
    windows = file(merges.read_bytes().replace(b"\n", b"\r\n"), "merges.txt")
    assert read_vocab_json(vocab, windows).merges == BYTE_PAIRS.merges


def test_wordpiece_is_read_with_its_settings(file):
    found = read_tokenizer(file(WORDPIECE))
    assert wordpiece_encode("Únlike [MASK] unlikely", vocabulary=found).tolist() == [0, 1, 0], "unlike has six characters"
    found = read_tokenizer(file(changed(WORDPIECE, "model.max_input_chars_per_word", 100)))
    assert wordpiece_encode("Únlike [MASK] unlikely", vocabulary=found).tolist() == [2, 3, 1, 0]
    cased = read_tokenizer(file(changed(changed(WORDPIECE, "normalizer.lowercase", False), "model.max_input_chars_per_word", 100)))
    assert wordpiece_encode("Únlike unlike", vocabulary=cased).tolist() == [0, 2, 3], "accents go with case where nothing is said of them"
    kept = read_tokenizer(file(changed(WORDPIECE, "normalizer.strip_accents", False)))
    assert kept.words("É") == ["é"] and kept.words.keywords == {"clean": True, "space_chinese": True, "strip_accents": False, "lower": True}


def test_a_vocabulary_of_lines_numbers_them(file):
    path = file("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\n##m\n\u2028x\n", "vocab.txt")
    found = read_vocab_txt(path)
    assert found.ids["the"] == 5 and found.ids["\u2028x"] == 7 and found.unknown == 1 and found.added.special == set(range(5))
    assert found.words is basic_words and read_vocab_txt(path, lower=False).words("Thé") == ["Thé"]
    assert wordpiece_encode("Thém [MASK]", vocabulary=found).tolist() == [5, 6, 4]
    assert read_vocab_txt(file(path.read_bytes().rstrip(b"\n"), "vocab.txt")).ids == found.ids, "the last line may lack its end"


def test_two_tokens_of_one_spelling_are_not_written(tmp_path):
    vocabulary = train_byte_pair_encoding(["ab"], vocabulary_size=257, special_tokens=("a",))
    with pytest.raises(ValueError, match="vocabulary: got two tokens spelled 'a', wants added tokens that are spelled as no other"):
        write_tokenizer(tmp_path / "t.json", vocabulary)
    assert not (tmp_path / "t.json").exists()


# What is refused ------------------------------------------------------------------------------------------------------


def byte_pair_file():
    ids = {spelled(bytes([b])): i for i, b in enumerate(byte_order())} | {"ab": 256, "abc": 257}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {"added_tokens": [], "normalizer": None, "pre_tokenizer": byte_level, "decoder": byte_level,
            "model": {"type": "BPE", "vocab": ids, "merges": [["a", "b"], ["ab", "c"]]}}  # fmt: skip


ADDED = {"id": 300, "content": "<x>", "special": True}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model", ..., "is no whole vocabulary: KeyError at 'model'"),
        ("model", [], "is no whole vocabulary: AttributeError"),
        ("model.type", "Unigram", "model.type is 'Unigram', wants 'BPE' or 'WordPiece'"),
        ("model.vocab", ..., "is no whole vocabulary: KeyError at 'vocab'"),
        ("model.merges", ..., "is no whole vocabulary: KeyError at 'merges'"),
        ("model.merges.1", "ab", "merge 1 is 'ab', wants two tokens with a blank between them"),
        ("model.merges.1", "a b c", "merge 1 is 'a b c', wants two tokens"),
        ("model.merges.1", ["a", 7], "merge 1 is 'a 7', wants two tokens"),
        ("model.merges.0", ["b", "a"], "the merge of 'b' and 'a' wants 'ba' to be a token"),
        ("model.vocab.ab", 5, "the id 5 stands for two tokens"),
        ("model.vocab.ab", True, "the token 'ab' has the id True, wants a whole number of at least 0"),
        ("model.vocab.▁the", 258, "the token '▁the' holds '▁', which spells no byte"),
        ("model.dropout", 0.1, "model.dropout is 0.1, wants None or 0"),
        ("model.ignore_merges", True, "model.ignore_merges is True, wants None or False"),
        ("model.byte_fallback", True, "model.byte_fallback is True, wants None or False"),
        ("model.end_of_word_suffix", "</w>", "model.end_of_word_suffix is '</w>', wants None or ''"),
        ("model.unk_token", "<unk>", "the special token '<unk>' is not in the vocabulary"),
        ("normalizer", {"type": "NFC"}, "normalizer is {'type': 'NFC'}, wants None"),
        ("pre_tokenizer", None, r"the types of pre_tokenizer is \[None\], wants \['ByteLevel'\] or \['Digits', 'ByteLevel'\]"),
        ("pre_tokenizer.type", "Metaspace", r"the types of pre_tokenizer is \['Metaspace'\]"),
        ("pre_tokenizer.add_prefix_space", True, "pre_tokenizer.add_prefix_space is True, wants False"),
        ("pre_tokenizer.use_regex", False, "pre_tokenizer.use_regex is False, wants True"),
        ("decoder", None, "decoder.type is None, wants 'ByteLevel'"),
        ("added_tokens", [ADDED | {"lstrip": True}], "lstrip of the added token '<x>' is True, wants False"),
        ("added_tokens", [ADDED, ADDED], "the added token '<x>' wants to be a text, not empty, that stands there once"),
        ("added_tokens", [ADDED | {"content": ""}], "the added token '' wants to be a text"),
        ("added_tokens", [ADDED | {"id": 3}], "the id 3 stands for two tokens"),
        ("added_tokens", [{"id": 3}], "is no whole vocabulary: KeyError at 'content'"),
        ("added_tokens", [ADDED | {"content": "\ud83d"}], "the token '.ud83d' holds half a surrogate pair"),
    ],
)
def test_a_byte_pair_file_that_cannot_be_followed_names_itself_and_the_part(path, value, message, file):
    assert read_tokenizer(file(byte_pair_file())).size == 258
    with pytest.raises(ValueError, match=rf"tokenizer.json: {message}"):
        read_tokenizer(file(changed(byte_pair_file(), path, value)))


def test_digits_that_stay_together_are_refused(file):
    steps = [{"type": "Digits", "individual_digits": False}, byte_pair_file()["pre_tokenizer"]]
    with pytest.raises(ValueError, match=r"tokenizer.json: pre_tokenizer.individual_digits is False, wants True"):
        read_tokenizer(file(byte_pair_file() | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("normalizer", None, "normalizer.type is None, wants 'BertNormalizer'"),
        ("normalizer.lowercase", 1, "strip_accents is 1, wants True or False"),
        ("normalizer.clean_text", ..., "is no whole vocabulary: KeyError at 'clean_text'"),
        ("pre_tokenizer.type", "Whitespace", "pre_tokenizer.type is 'Whitespace', wants 'BertPreTokenizer'"),
        ("decoder.prefix", "@@", "decoder.prefix is '@@', wants '##'"),
        ("model.continuing_subword_prefix", "", "model.continuing_subword_prefix is '', wants '##'"),
        ("model.max_input_chars_per_word", 0, "model.max_input_chars_per_word is 0, wants a whole number of at least 1"),
        ("model.unk_token", "<unk>", "the special token '<unk>' is not in the vocabulary"),
        ("model.vocab.un", 0, "the id 0 stands for two tokens"),
        ("model.vocab.un", "2", "the token 'un' has the id '2', wants a whole number"),
        ("added_tokens.0.normalized", True, "normalized of the added token '\\[MASK\\]' is True, wants False"),
    ],
)
def test_a_wordpiece_file_that_cannot_be_followed_names_itself_and_the_part(path, value, message, file):
    with pytest.raises(ValueError, match=rf"tokenizer.json: {message}"):
        read_tokenizer(file(changed(WORDPIECE, path, value)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON: Expecting value"),
        (json.dumps(byte_pair_file())[:-100], "is not JSON: "),
        (b'{"model": "\xff"}', "is not UTF-8: the byte 0xff at offset 11"),
        ("[]", "is not a JSON object"),
        ('{"model": {"vocab": {"a": 0, "a": 1}}}', "a name stands twice in it"),
        ("[" * 100_000, "is nested too deeply"),
    ],
    ids=["empty", "cut off", "not UTF-8", "a list", "a name twice", "nested"],
)
def test_a_damaged_file_names_itself(content, message, file):
    for name, read in (("tokenizer.json", read_tokenizer), ("vocab.json", lambda path: read_vocab_json(path, file("", "merges.txt")))):
        with pytest.raises(ValueError, match=rf"{name}: {message}"):
            read(file(content, name))


def test_a_file_that_is_not_there_names_itself(tmp_path):
    for read in (read_tokenizer, read_vocab_txt, lambda path: read_vocab_json(path, path)):
        with pytest.raises(ValueError, match=r"nowhere.json: cannot be read: No such file or directory"):
            read(tmp_path / "nowhere.json")
        with pytest.raises(ValueError, match="cannot be read: Is a directory"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[UNK]\n\nthe\n", "line 2 is empty"),
        ("[UNK]\nthe\nthe\n", "line 2 is 'the', which stands there twice"),
        ("[PAD]\nthe\n", r"the special token '\[UNK\]' is not in the vocabulary"),
        ("[UNK]\nthe\n", r"the special token '\[PAD\]' is not in the vocabulary"),
        ("", "line 1 is empty"),
        (b"[UNK]\n\xff\n", "is not UTF-8: the byte 0xff at offset 6"),
    ],
)
def test_a_damaged_vocabulary_of_lines_names_itself_and_the_line(content, message, file):
    with pytest.raises(ValueError, match=rf"vocab.txt: {message}"):
        read_vocab_txt(file(content, "vocab.txt"))


def test_damaged_merges_name_their_own_file(file):
    vocab = file({"a": 0, "b": 1, "ab": 2}, "vocab.json")
    with pytest.raises(ValueError, match=r"merges.txt: merge 1 is 'ab', wants two tokens with a blank"):
        read_vocab_json(vocab, file("#version: 0.2\na b\nab\n", "merges.txt"), special_tokens=())
    with pytest.raises(ValueError, match=r"vocab.json: the special token '<\|endoftext\|>' is not in the vocabulary"):
        read_vocab_json(vocab, file("a b\n", "merges.txt"))


def test_every_part_that_is_taken_away_is_noticed(file):
    """Random cuts and holes: a vocabulary that can be used comes out, or an error with the file's name."""
    rng, whole = np.random.default_rng(0), json.dumps(byte_pair_file())
    refused = 0
    for _ in range(150):
        start = int(rng.integers(len(whole)))
        damaged = whole[:start] + whole[start + int(rng.integers(1, 30)) :]
        try:
            read_tokenizer(file(damaged))
        except ValueError as error:
            refused += 1
            assert "tokenizer.json: " in str(error)
    assert refused > 75
    assert from_spelling({"a": 3}, [], added=AddedTokens()).size == 4, "ids may have holes"
