"""Neutralising: the words that tell a group are replaced by one word that does not.

A swap keeps what a text says of a group and says it of the other as well. Here it is removed: both words of a pair get the same
target, and which of the two stood there is gone. "She" and "he" become "they", so the verb must follow; a tag says which verb.
Names become a placeholder. One look into a table a token, and there is no way back.

Source: the survey of Gallegos et al. 2023, arXiv:2309.00770, names the removal or neutralising of protected attribute words among
what is done before training. The pairs are those of counterfactual_augmentation, their targets ours. s is the swap there.

    n(w) = the target of w under its tag, in the case of w; w itself where it has none   (1)
    n(v) = the plural of the verb v, where its tag is "agrees"   (2)
"""

from collections.abc import Sequence

from minitransformers.bias_mitigation.word_map import WordMap, in_case_of, targets, word_map
from minitransformers.foundation import bad, example, invalid, procedure

NEUTRAL = (
    ("woman", "man", "person"), ("girl", "boy", "child"), ("she", "he", "they"), ("mother", "father", "parent"),
    ("daughter", "son", "offspring"), ("gal", "guy", "someone"), ("female", "male", "<gender>"), ("herself", "himself", "themselves"),
)  # fmt: skip
NEUTRAL_TAGGED = (("her", "him", "them", "object"), ("her", "his", "their", "possessive"), ("hers", "his", "theirs", "absolute"))
VERBS = (("is", "are"), ("was", "were"), ("has", "have"), ("does", "do"))


@procedure(
    title="Neutral map",
    source="the taxonomy of Gallegos et al. 2023, arXiv:2309.00770",
    example=lambda rng: example(NEUTRAL, tagged=NEUTRAL_TAGGED, names=["Mary", "John"]),
    rejects=[
        bad(groups=[]), bad(groups=[("she",)]), bad(groups=[("she", "he", "they"), ("she", "it")]), bad(groups=[("she", "he", "woman"), ("woman", "person")]),
        bad(groups=[("she", "she")]), bad(groups=[("She", "they")]), bad(tagged=[("her", "them")]), bad("tagged", groups=[("her", "them")]),
        bad(tagged=[("her", "them", "")]), bad(names=["<name>"]), bad("names", name=""),
    ],
)  # fmt: skip
def neutral_map(
    groups: Sequence[Sequence[str]], *, tagged: Sequence[Sequence[str]] = (), names: Sequence[str] = (), name: str = "<name>",
    keep: Sequence[Sequence[str]] = (), guess: bool = False,
) -> WordMap:  # fmt: skip
    """The table that neutralise_words reads: words of any number of groups in lower case, and behind them the word for all of them.

    tagged has a tag behind that, for words that it decides about. Each of names becomes name. keep and guess are those of swap_map.
    Raises ValueError where there is none, a word has two targets (under one tag), or a target is itself replaced.
    """
    for argument, least, rows in (("groups", 2, groups), ("tagged", 3, tagged)):
        for row in rows:
            if len(row) < least:
                raise invalid(argument, got=row, wants="words and their target" + (" and a tag" if least == 3 else ""))
    if not groups:
        raise invalid("groups", got="none", wants="at least one word and its target")
    plain = [(word, target) for *words, target in groups for word in words]
    by_tag = [(word, target, tag) for *words, target, tag in tagged for word in words]
    found = word_map(plain, by_tag, [(own, name) for own in names], keep=keep, guess=guess, argument="groups")
    for argument, target in [*(("groups", target) for _, target in plain), *(("tagged", target) for _, target, _ in by_tag), ("names", name)]:
        if target.lower() in {**found.plain, **found.tagged} or target in found.names:
            raise invalid(argument, got=f"the target {target!r}, which is replaced itself", wants="targets that stay")
    return found


@procedure(
    title="Neutralised words",
    source="the taxonomy of Gallegos et al. 2023, arXiv:2309.00770",
    example=lambda rng: example(["She", "is", "here"], ["", "agrees", ""], neutral=neutral_map(NEUTRAL, tagged=NEUTRAL_TAGGED)),
    rejects=[bad(tokens="she"), bad(tags=[""]), bad("tags", tokens=["saw", "her", "there"]), bad("tags", tokens=["she", "walks", "here"]), bad(verbs=[("is",)])],
)
def neutralise_words(
    tokens: Sequence[str], tags: Sequence[str] | None = None, *, neutral: WordMap, verbs: Sequence[Sequence[str]] = VERBS
) -> list[str]:
    """The text with every word of the table replaced by its target, lower, Title or UPPER as it was.

    tags stand beside the tokens: those of the table, and "agrees" at a verb that follows a replaced pronoun; verbs are pairs of the
    singular and the plural. As many tokens come out. Doing it twice changes no more than once.
    Raises ValueError, naming the word, where only a tag could tell the target, or a verb that agrees is not among verbs.
    """
    for row in verbs:
        if len(row) != 2:
            raise invalid("verbs", got=row, wants="a singular and a plural each")
    plural = {one: many for one, many in verbs}
    out = []
    for i, (token, target) in enumerate(zip(tokens, targets(tokens, tags, neutral), strict=True)):
        if target is not None:
            out.append(target)                               # (1)
        elif tags is not None and tags[i] == "agrees" and token.lower() not in plural.values():
            if token.lower() not in plural:
                raise invalid("tags", got=f"'agrees' at {token!r}", wants=f"one of {', '.join(plural)}, or its plural among verbs")
            out.append(in_case_of(token, plural[token.lower()]))  # (2)
        else:
            out.append(token)
    return out
