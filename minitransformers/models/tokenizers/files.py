"""Vocabularies in the files that they are published in: Hugging Face's tokenizer.json, GPT-2's vocab.json and merges.txt, BERT's vocab.txt.

A tokenizer.json can describe many tokenizers that are neither of the two here. One that does anything else to a text is refused by the name
of the part; otherwise it would be read, and encode wrongly. What such a file puts around a text ([CLS], [SEP]), and how it cuts and
fills texts to one length, is not read: that is for what a model is asked.

Every reader raises ValueError that names the file, where it is not there, is damaged, or describes something else.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from minitransformers.foundation import invalid
from minitransformers.foundation.atomic import write_atomically
from minitransformers.models.tokenizers.added import AddedTokens, by_id
from minitransformers.models.tokenizers.byte_pair_vocabulary import BytePairVocabulary, from_spelling, spelled
from minitransformers.models.tokenizers.wordpiece import WordPieceVocabulary, basic_words

Vocabulary = BytePairVocabulary | WordPieceVocabulary


def read_tokenizer(path: str | Path) -> Vocabulary:
    """The vocabulary of a tokenizer.json: byte-level BPE as GPT-2 and SmolLM2 have it, or BERT's WordPiece."""
    with _naming(path):
        content = _json(path)
        model = content["model"]
        kind = model.get("type", "BPE" if "merges" in model else "WordPiece")  # early files do not say
        _wants("model.type", kind, "BPE", "WordPiece")
        return _byte_pairs(content, model) if kind == "BPE" else _wordpiece(content, model)


def read_vocab_json(
    path: str | Path, merges: str | Path, *, digits: bool = False, special_tokens: Sequence[str] = ("<|endoftext|>",)
) -> BytePairVocabulary:
    """The vocabulary of GPT-2's two files: spelled tokens and their ids in JSON, and a text of merges, one a line, in the order of their ranks.

    The files do not say which tokens are special, nor whether digits are cut out (see pieces.cut).
    """
    with _naming(merges):
        lines = [line for line in _text(merges).split("\n") if line and not line.startswith("#version")]
        pairs = _pairs(lines)
    with _naming(path):
        ids = _json(path)
        return from_spelling(ids, pairs, added=_special(special_tokens, ids), digits=digits)


def read_vocab_txt(
    path: str | Path, *, lower: bool = True, special_tokens: Sequence[str] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
) -> WordPieceVocabulary:
    """The vocabulary of BERT's file: a token a line, whose id is the number of the line, from 0. [UNK] must be among them.

    The file does not say whether the model was trained on lower case without accents, nor which tokens are special.
    """
    with _naming(path):
        lines = _text(path).removesuffix("\n").split("\n")
        ids = {token: i for i, token in enumerate(lines)}
        if "" in ids or len(ids) < len(lines):
            line = next(i for i, token in enumerate(lines) if not token or ids[token] != i)
            raise ValueError(f"line {line + 1} is {'empty' if not lines[line] else f'{lines[line]!r:.60}, which stands there twice'}")
        words = basic_words if lower else partial(basic_words, strip_accents=False, lower=False)
        return WordPieceVocabulary(ids, _known("[UNK]", ids), _special(special_tokens, ids), words)


def write_tokenizer(path: str | Path, vocabulary: BytePairVocabulary) -> None:
    """Write a byte-pair vocabulary as a tokenizer.json, atomically. read_tokenizer reads it, and Hugging Face's tokenizers does.

    Raises ValueError where an added token is spelled as another token is: the file could not tell them apart.
    """
    added = {i: token for token, i in vocabulary.added.ids.items()}
    spellings = {i: added.get(i) or spelled(token) for i, token in sorted(vocabulary.tokens.items())}
    ids = {spelling: i for i, spelling in spellings.items()}
    if len(ids) < len(spellings):
        twice = next(spelling for i, spelling in spellings.items() if ids[spelling] != i)
        raise invalid("vocabulary", got=f"two tokens spelled {twice!r}", wants="added tokens that are spelled as no other")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    parted = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": token, **flags, "special": i in vocabulary.added.special} for i, token in sorted(added.items())],
        "normalizer": None,
        "pre_tokenizer": parted if vocabulary.digits else byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None if vocabulary.unknown is None else spellings[vocabulary.unknown],
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": ids, "merges": [[spellings[i] for i in pair] for pair, _ in sorted(vocabulary.merges.items(), key=lambda item: item[1])],
        },
    }  # fmt: skip
    write_atomically(path, [json.dumps(content, ensure_ascii=False, indent=1).encode()])


def _byte_pairs(content: dict[str, Any], model: dict[str, Any]) -> BytePairVocabulary:
    steps = content["pre_tokenizer"] or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    _wants("the types of pre_tokenizer", [step.get("type") for step in steps], ["ByteLevel"], ["Digits", "ByteLevel"])
    _wants("normalizer", content.get("normalizer"), None)
    _wants("pre_tokenizer.add_prefix_space", steps[-1]["add_prefix_space"], False)
    _wants("pre_tokenizer.use_regex", steps[-1].get("use_regex", True), True)
    _wants("pre_tokenizer.individual_digits", steps[0].get("individual_digits", True), True)
    _wants("decoder.type", (content.get("decoder") or {}).get("type"), "ByteLevel")
    for name, allowed in (("dropout", 0), ("continuing_subword_prefix", ""), ("end_of_word_suffix", ""), ("byte_fallback", False),
                          ("ignore_merges", False), ("fuse_unk", False)):  # fmt: skip
        _wants(f"model.{name}", model.get(name), None, allowed)
    added, ids, unknown = _added(content), model["vocab"], model.get("unk_token")
    unknown_id = None if unknown is None else _known(unknown, {**ids, **added.ids})
    return from_spelling(ids, _pairs(model["merges"]), added=added, digits=len(steps) == 2, unknown=unknown_id)


def _wordpiece(content: dict[str, Any], model: dict[str, Any]) -> WordPieceVocabulary:
    steps, decoder, longest = content["normalizer"] or {}, content.get("decoder") or {}, model["max_input_chars_per_word"]
    _wants("normalizer.type", steps.get("type"), "BertNormalizer")
    _wants("pre_tokenizer.type", (content["pre_tokenizer"] or {}).get("type"), "BertPreTokenizer")
    _wants("decoder.type", decoder.get("type"), "WordPiece")
    _wants("decoder.prefix", decoder["prefix"], "##")
    _wants("model.continuing_subword_prefix", model["continuing_subword_prefix"], "##")
    if type(longest) is not int or longest < 1:
        raise ValueError(f"model.max_input_chars_per_word is {longest!r:.40}, wants a whole number of at least 1")
    lower, strip = steps["lowercase"], steps["strip_accents"]
    settings = {"clean": steps["clean_text"], "space_chinese": steps["handle_chinese_chars"], "strip_accents": lower if strip is None else strip, "lower": lower}
    for name, value in {**settings, "decoder.cleanup": decoder["cleanup"]}.items():
        _wants(name, value, True, False)
    ids, added = model["vocab"], _added(content, normalized=False)
    by_id({**ids, **added.ids})
    return WordPieceVocabulary(ids, _known(model["unk_token"], ids), added, partial(basic_words, **settings), longest, decoder["cleanup"])


def _added(content: dict[str, Any], **wanted: bool) -> AddedTokens:
    """The added tokens of a tokenizer.json, without what would take more than their own characters out of a text."""
    ids: dict[str, int] = {}
    special = set()
    for token in content.get("added_tokens") or []:
        text, i = token["content"], token["id"]
        for name, value in {"single_word": False, "lstrip": False, "rstrip": False, **wanted}.items():
            _wants(f"{name} of the added token {text!r:.60}", token.get(name, value), value)
        if not isinstance(text, str) or not text or text in ids:
            raise ValueError(f"the added token {text!r:.60} wants to be a text, not empty, that stands there once")
        ids[text] = i
        special |= {i} if token.get("special") else set()
    return AddedTokens(ids, frozenset(special))


def _special(tokens: Iterable[str], ids: Mapping[str, int]) -> AddedTokens:
    found = {token: _known(token, ids) for token in tokens}
    return AddedTokens(found, frozenset(found.values()))


def _known(token: str, ids: Mapping[str, int]) -> int:
    if token not in ids:
        raise ValueError(f"the special token {token!r:.60} is not in the vocabulary")
    return ids[token]


def _pairs(merges: Iterable[str | list[str]]) -> list[tuple[str, str]]:
    pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
    for rank, pair in enumerate(pairs):
        if len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            raise ValueError(f"merge {rank} is {' '.join(map(str, pair))!r:.60}, wants two tokens with a blank between them")
    return pairs  # type: ignore[return-value]


def _wants(what: str, got: Any, *allowed: Any) -> None:
    if not any(got == one and isinstance(got, bool) == isinstance(one, bool) for one in allowed):
        raise ValueError(f"{what} is {got!r:.120}, wants {' or '.join(map(repr, allowed))}")


@contextlib.contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """What goes wrong inside is said of this file."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path}: is no whole vocabulary: {type(error).__name__} at {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8: the byte 0x{error.object[error.start]:02x} at offset {error.start}") from None


def _json(path: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(_text(path), object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError("is not a JSON object")
    return content


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in it")
    return found
