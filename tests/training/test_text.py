import numpy as np
import pytest

from minitransformers.training.text import Corpus, python_reference, read_text
from minitransformers.training.vocabulary import ByteVocabulary, CharacterVocabulary, make_vocabulary, vocabulary_from_json

TEXT = "the quick brown fox jumps over the lazy dog. " * 9


def test_the_default_text_is_the_python_reference():
    text = python_reference()
    assert len(text) > 300_000 and "lambda" in text
    assert text == python_reference()


@pytest.mark.parametrize("kind", ["characters", "bytes"])
@pytest.mark.parametrize("text", ["hello", "naïve – “quotes” …", "𝕏 is outside the basic plane", "line\r\nends\n\0"])
def test_encoding_loses_nothing(kind, text):
    vocabulary = make_vocabulary(kind, text)
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert ids.dtype == np.intp and ids.min() >= 0 and ids.max() < vocabulary.size
    again = vocabulary_from_json(vocabulary.to_json())
    np.testing.assert_array_equal(again.encode(text), ids)


def test_character_ids_follow_code_points():
    assert CharacterVocabulary.of("banana").symbols == "abn"
    np.testing.assert_array_equal(CharacterVocabulary.of("banana").encode("nab"), [2, 0, 1])


@pytest.mark.parametrize(("text", "message"), [("cabbie!", r"'!' \(U\+0021\) at character 6"), ("a☃", r"'☃' \(U\+2603\) at character 1")])
def test_an_unknown_character_is_shown(text, message):
    with pytest.raises(ValueError, match=message):
        CharacterVocabulary.of("abcei").encode(text)


@pytest.mark.parametrize("wrong", [-1, 256, 2**70, 1.9, 1.0, np.nan, True, "1", None, np.float64(1.9), np.int64(-1), np.True_, [1]], ids=repr)
def test_what_is_no_id_of_a_vocabulary_is_refused_by_name(wrong):
    for vocabulary in (CharacterVocabulary("abc"), ByteVocabulary()):
        with pytest.raises(ValueError, match=rf"^ids: got .*, wants whole numbers from 0 to {vocabulary.size - 1}$"):
            vocabulary.decode([0, wrong])


@pytest.mark.parametrize("wrong", [1, 1.5, np.array(1), np.array([1.9]), np.array([[0, 1]]), np.array([True]), "01"], ids=repr)
def test_ids_are_a_list_of_whole_numbers(wrong):
    for vocabulary in (CharacterVocabulary("abc"), ByteVocabulary()):
        with pytest.raises(ValueError, match=r"^ids: got .*, wants whole numbers from 0 to"):
            vocabulary.decode(wrong)


@pytest.mark.parametrize("ids", [[1, 2], (1, 2), range(1, 3), iter([1, 2]), [np.int64(1), np.uint8(2)], np.array([1, 2], np.uint8)])
def test_ids_of_any_integer_kind_are_decoded(ids):
    assert CharacterVocabulary("abc").decode(ids) == "bc"


def test_half_a_surrogate_pair_has_no_bytes():
    with pytest.raises(ValueError, match=r"^text: got '\\udcff' at character 1, wants characters that UTF-8 has$"):
        ByteVocabulary().encode("a\udcff")


def test_bytes_that_are_no_text_are_marked():
    assert ByteVocabulary().decode([0x68, 0xC3]) == "h\ufffd"


@pytest.mark.parametrize("wrong", [{}, {"kind": "words"}, {"kind": "characters"}, {"kind": "characters", "symbols": "aa"}])
def test_a_vocabulary_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match=r"vocabulary|symbols"):
        vocabulary_from_json(wrong)


def test_the_last_tenth_is_for_validation():
    corpus = Corpus.from_text(TEXT, context=8)
    assert corpus.train_text + corpus.validation_text == TEXT
    assert len(corpus.validation_text) == round(len(TEXT) / 10)
    assert corpus.vocabulary.decode(corpus.train) == corpus.train_text
    assert corpus.vocabulary.decode(corpus.validation) == corpus.validation_text


def test_bytes_do_not_cut_a_character_in_two():
    corpus = Corpus.from_text("é" * 100, context=8, vocabulary="bytes")
    assert len(corpus.validation) == 20 and corpus.tokens_per_character == 2.0
    assert corpus.vocabulary.decode(corpus.validation) == "é" * 10


def test_batches_are_windows_of_the_training_part_and_targets_are_one_place_on():
    corpus = Corpus.from_text(TEXT, context=8)
    inputs, targets = corpus.batch(np.random.default_rng(0), batch_size=5, context=8)
    assert inputs.shape == targets.shape == (5, 8)
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    for window in inputs:
        assert corpus.vocabulary.decode(window) in corpus.train_text
    again, _ = corpus.batch(np.random.default_rng(0), batch_size=5, context=8)
    np.testing.assert_array_equal(inputs, again)


def test_every_window_can_be_drawn():
    corpus = Corpus.from_text("abcdefghijk", context=8, validation_fraction=0.2)  # nine characters to train on: one window
    inputs, targets = corpus.batch(np.random.default_rng(0), batch_size=3, context=8)
    assert {corpus.vocabulary.decode(row) for row in inputs} == {"abcdefgh"}
    corpus = Corpus.from_text("abcdefghijkl", context=8, validation_fraction=0.2)  # ten characters, two windows
    _, targets = corpus.batch(np.random.default_rng(0), batch_size=30, context=8)
    assert {corpus.vocabulary.decode(row) for row in targets} == {"bcdefghi", "cdefghij"}


@pytest.mark.parametrize("length", [81, 80, 82, 88, 9, 2])
def test_evaluation_predicts_every_token_but_the_first_once(length):
    text = "".join(chr(200 + i) for i in range(length))
    corpus = Corpus.from_text("x" * 100 + text, context=8, validation_fraction=length / (100 + length))
    assert corpus.validation_text == text
    predicted = []
    for inputs, targets in corpus.evaluation_batches(batch_size=3, context=8):
        assert len(inputs) <= 3
        np.testing.assert_array_equal(inputs + 1, targets)  # the text counts upwards
        predicted += targets.ravel().tolist()
    assert predicted == corpus.validation[1:].tolist()


def test_a_limited_evaluation_is_spread_over_the_validation_part():
    corpus = Corpus.from_text("x" * 1000 + "".join(chr(200 + i) for i in range(101)), context=10, validation_fraction=101 / 1101)
    starts = [row[0] for inputs, _ in corpus.evaluation_batches(batch_size=2, context=10, limit=5) for row in inputs]
    np.testing.assert_array_equal(starts, corpus.validation[[0, 20, 40, 60, 80]])


def test_the_fingerprint_tells_texts_and_splits_apart():
    corpora = [Corpus.from_text(TEXT, context=8), Corpus.from_text(TEXT[::-1], context=8)]
    corpora += [Corpus.from_text(TEXT, context=8, validation_fraction=0.2), Corpus.from_text(TEXT, context=8, vocabulary="bytes")]
    assert len({str(corpus.to_json()) for corpus in corpora}) == 4
    assert Corpus.from_text(TEXT, context=4, name="elsewhere").to_json() == corpora[0].to_json()


def test_a_file_is_read_as_it_is(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffgrüße\r\n".encode())
    assert read_text(tmp_path / "a.txt") == "grüße\r\n"
    (tmp_path / "b.txt").write_text(TEXT)
    assert Corpus.load(tmp_path / "b.txt", context=8).train_text == TEXT[: len(TEXT) * 9 // 10 + 1]


def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin.txt").write_bytes(b"abc gr\xfc\xdfe")
    (tmp_path / "short.txt").write_text("abc")
    for name, message in {
        "missing.txt": "there is no such file",
        "": "is a folder",
        "empty.txt": "is empty",
        "latin.txt": "is not UTF-8: byte 0xfc at offset 6",
        "short.txt": r"is too short: 3 tokens to train on, wants at least context \+ 1 = 9",
    }.items():
        with pytest.raises(ValueError, match=message) as caught:
            Corpus.load(tmp_path / name, context=8)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validation_fraction": 0.0}, "validation_fraction"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"context": 0}, "context"),
        ({"vocabulary": "words"}, "vocabulary"),
        ({"validation_fraction": 0.001}, "to validate on"),
        ({"context": 10_000}, "too short"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Corpus.from_text(TEXT, **{"context": 8, **change})
