"""Which word takes the place of which: a table that is checked once, and read without regard to case.

No entry of its own; counterfactual_augmentation and neutralising are made of it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from minitransformers.foundation import invalid


@dataclass(frozen=True, eq=False)
class WordMap:
    """Targets of words that have one, of words whose tag decides, and of names; what hides from it, and what to do without a tag."""

    plain: dict[str, str]
    tagged: dict[str, dict[str, str]]
    names: dict[str, str]
    keep: tuple[tuple[str, ...], ...]
    unpaired: frozenset[str]
    guess: bool


def word_map(
    plain: Iterable[tuple[str, str]], tagged: Iterable[tuple[str, str, str]], names: Iterable[tuple[str, str]], *,
    keep: Sequence[Sequence[str]] = (), unpaired: Sequence[str] = (), guess: bool = False, argument: str,
) -> WordMap:  # fmt: skip
    """A table of (word, target), (word, target, tag) and (name, target). Raises ValueError, naming the word, for one with two targets."""
    words: dict[str, str] = {}
    by_tag: dict[str, dict[str, str]] = {}
    own_names: dict[str, str] = {}
    for word, target in plain:
        _put(words, word, target, argument)
    for word, target, tag in tagged:
        if not tag:
            raise invalid("tagged", got=f"no tag for {word!r}", wants="a tag that tells its targets apart")
        if word in words:
            raise invalid("tagged", got=f"{word!r}, which has the target {words[word]!r} under every tag", wants="a word in one list")
        _put(by_tag.setdefault(word, {}), tag, target, "tagged", said=f"{word!r} as {tag!r}")
    for name, target in names:
        _put(own_names, name, target, "names")
    both = sorted(set(unpaired) & set(own_names))
    if both:
        raise invalid("unpaired", got=repr(both[0]), wants="names that have no partner in names")
    if not all(map(len, keep)):
        raise invalid("keep", got="a name of no words", wants="at least one word each")
    return WordMap(words, by_tag, own_names, tuple(map(tuple, keep)), frozenset(unpaired), guess)


def _put(table: dict[str, str], word: str, target: str, argument: str, said: str = "") -> None:
    if not word or not target:
        raise invalid(argument, got="an empty word", wants="words of at least one letter")
    if argument != "names" and not said and word != word.lower():
        raise invalid(argument, got=repr(word), wants="lower case: that of the text is kept")
    if table.setdefault(word, target) != target:
        raise invalid(argument, got=f"{said or repr(word)} with the targets {table[word]!r} and {target!r}", wants="one target")


def kept(tokens: Sequence[str], words: WordMap) -> list[bool]:
    """Which tokens are part of a proper name that is to stay as it is."""
    hidden = [False] * len(tokens)
    for name in words.keep:
        for start in range(len(tokens) - len(name) + 1):
            if tuple(tokens[start : start + len(name)]) == name:
                hidden[start : start + len(name)] = [True] * len(name)
    return hidden


def targets(tokens: Sequence[str], tags: Sequence[str] | None, words: WordMap) -> list[str | None]:
    """For each token what takes its place, in its own case, or None. Raises ValueError where only a tag could tell, and there is none."""
    if tags is not None and len(tags) != len(tokens):
        raise invalid("tags", got=f"{len(tags)} of them", wants=f"one for each of the {len(tokens)} tokens, empty where there is none")
    hidden = kept(tokens, words)
    found: list[str | None] = []
    for i, token in enumerate(tokens):
        word, target = token.lower(), None
        if token in words.names and not hidden[i]:
            target = words.names[token]                      # as it is written
        elif token in (word, _titled(word), word.upper()) and not hidden[i]:  # a word in MiXed case is none of ours
            target = words.plain.get(word) or _by_tag(word, "" if tags is None else tags[i], i, words)
            target = target and in_case_of(token, target)
        found.append(target)
    return found


def _by_tag(word: str, tag: str, place: int, words: WordMap) -> str | None:
    choices = words.tagged.get(word)
    if choices is None or tag in choices:
        return None if choices is None else choices[tag]
    if len(set(choices.values())) > 1 and not words.guess:
        wants = " or ".join(f"{own!r} for {target!r}" for own, target in choices.items())
        raise invalid("tags", got=f"{tag!r} for {word!r} at {place}", wants=wants)
    return next(iter(choices.values()))


def in_case_of(token: str, target: str) -> str:
    """The target as the token is written: all capitals, a capital in front, or as it stands in the table; a <placeholder> as it is."""
    if target.startswith("<"):
        return target
    if len(token) > 1 and token.isupper():
        return target.upper()
    return _titled(target) if token[:1].isupper() else target


def _titled(word: str) -> str:
    return word[:1].upper() + word[1:]
