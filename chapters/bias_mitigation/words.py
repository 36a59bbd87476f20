"""Do word vectors hold the associations that people have, and what do three ways to take one out do to them?

Caliskan, Bryson and Narayanan 2017, arXiv:1608.07187: ten tests with lists of words (WEAT), eight of them after tests with people. Here they are
asked of GloVe with 50 numbers a word. Then the direction of gender is taken out: by hard debias (Bolukbasi et al. 2016, arXiv:1607.06520), by
INLP (Ravfogel et al. 2020, arXiv:2004.07667) and by LEACE (Belrose et al. 2023, arXiv:2306.03819). The last two are fitted on frequent words far
out along the direction, none of which stands in the tests of gender, 6 to 8. The tests are binary, as their lists are. Beside them stand two
tests of other things, and what vectors are good for: how related words are (Bruni et al. 2014, MEN), and analogies within families.
Intervals are of words drawn anew within each list, of pairs, and of the pairs that analogies begin with.
"""

# %%
from functools import cache

import numpy as np

from minitransformers.bias_mitigation.bias_direction import bias_direction
from minitransformers.bias_mitigation.hard_debias import hard_debias, remove_subspace
from minitransformers.bias_mitigation.inlp import inlp
from minitransformers.bias_mitigation.leace import erase, leace
from minitransformers.bias_mitigation.weat import unit_rows, weat
from minitransformers.reporting import Section, mean_and_spread
from minitransformers.reporting.needs import needs_data
from minitransformers.reporting.word_quality import beside_the_first, family_analogies, interval, relatedness, span, with_ends
from minitransformers.reporting.word_vectors import (
    WordVectors,
    association_tests,
    both_ends,
    gender_lists,
    load_glove,
    similarity_pairs,
)

section = Section(__file__, __doc__, kind="trained", needs=needs_data(("glove", "words"), ("fairness", "weat")))
FREQUENT, SIDE, ROUNDS, TOLERANCE = 30_000, 2000, 45, 0.02   # words; those at each end, half of them to stop INLP by
GENDER, OTHER = (5, 6, 7), (0, 1)                            # places in the list of tests: 6 to 8; flowers and insects, instruments and weapons
BEFORE, HARD, INLP, LEACE, RANDOM = "as published", "hard debias", "INLP", "LEACE", "as many random directions"
WAYS = (HARD, INLP, LEACE)
COST = "what they are good for"
KEYS = dict(zip((BEFORE, HARD, INLP, LEACE, RANDOM), ("before", "hard", "inlp", "leace", "random"), strict=True))


# %% The words, and the ways
@cache
def table():
    """The most frequent words, and those of the tests and pairs as far as GloVe has them."""
    glove = load_glove()
    asked = [word for test in association_tests() for words in test[1:5] for word in words] + [word for pair in similarity_pairs() for word in pair[:2]]
    words = list(dict.fromkeys([*glove.words[:FREQUENT], *glove.known(asked)]))
    return WordVectors(words, glove.of(words))


def sets_of(test):
    """The numbers of the words of a test that have a vector, a list for each of its four sets."""
    place = {word: i for i, word in enumerate(table().words)}
    return [np.array([place[word] for word in words if word in place]) for words in test[1:5]]


def ways(rng):
    """The vectors of the table after each way, and how many directions it took out."""
    words, vectors = table()
    lists, place = gender_lists(), {word: i for i, word in enumerate(words)}
    basis = bias_direction(*(table().of([pair[i].lower() for pair in lists.pairs]) for i in (0, 1)), sign_pair=2).basis

    equal: dict[int, int] = {}                               # pairs in lower case, no word in two of them
    for one, other in ([place.get(word.lower(), -1) for word in pair] for pair in lists.equalize):
        if min(one, other) >= 0 and not {one, other} & {*equal, *equal.values()}:
            equal[one] = other
    specific = {word.lower() for word in lists.specific}
    neutral = [i for i, word in enumerate(words) if word not in specific and i not in {*equal, *equal.values()}]
    hard = hard_debias(vectors, basis=basis, neutral=np.array(neutral), equal=[np.array(pair) for pair in equal.items()])

    tested = {words[row] for i in GENDER for rows in sets_of(association_tests()[i]) for row in rows}
    allowed = np.array([i for i, word in enumerate(words[:FREQUENT]) if word.isalpha() and word not in tested])
    rows, labels = both_ends(vectors[allowed] @ basis[:, 0], SIDE)
    own, held = np.split(rng.permutation(2 * SIDE), 2)
    x = vectors[allowed[rows]]
    found = inlp(x[own], labels[own], rounds=ROUNDS, tolerance=TOLERANCE, dev_x=x[held], dev_labels=labels[held])
    erased, _ = erase(vectors, eraser=leace(x[own], np.eye(2)[labels[own]]))
    count = found.directions.shape[1]
    random, _ = np.linalg.qr(rng.normal(size=(vectors.shape[1], count)))
    after = {BEFORE: vectors, HARD: hard, INLP: vectors @ found.projection, LEACE: erased, RANDOM: remove_subspace(vectors, basis=random)[0]}
    return {way: unit_rows(way, of) for way, of in after.items()}, {BEFORE: 0, HARD: 1, INLP: count, LEACE: 1, RANDOM: count}


# %% What is measured
def resamples():
    return 100 if section.quick else 1000


def found_by(vectors, sets):
    """Effect size, and difference of the mean associations, of a test."""
    found = weat(*(vectors[rows] for rows in sets), splits=0)
    return found.effect_size, found.associations_x.mean() - found.associations_y.mean()


def chance(vectors, sets, rng):
    """p of a test. Words are shared out between sets of one size: of the larger one as many are drawn as the other has."""
    size = min(map(len, sets[:2]))
    drawn = [rng.permutation(rows)[:size] for rows in sets[:2]]
    return weat(*(vectors[rows] for rows in (*drawn, *sets[2:])), splits=1000 if section.quick else 20_000, rng=rng).p_value


@section.experiment
def experiment(rng):
    after, directions = ways(rng)
    for number, test in enumerate(association_tests()):
        some = {way: after[way] for way in (after if number in (*GENDER, *OTHER) else [BEFORE])}
        sets = sets_of(test)
        rows, groups = np.concatenate(sets), np.repeat(np.arange(4), list(map(len, sets)))

        def both(drawn, some=some, rows=rows, groups=groups):  # drawn are places in rows
            each = [rows[drawn[groups[drawn] == group]] for group in range(4)]
            return beside_the_first(np.array([found_by(vectors, each) for vectors in some.values()]))

        found = interval(np.arange(len(rows)), both, rng, groups=groups, resamples=resamples())
        for i, way in enumerate(some):
            numbers = [with_ends(type(found)(*(values[..., j, :] for values in found)), i, name) for j, name in enumerate(("d", "apart"))]
            yield test.name, way, numbers[0] | numbers[1] | {"p": chance(some[way], sets, rng)}

    words = table().words
    related = relatedness(words, after, rng, resamples=resamples())
    family = family_analogies(words[:FREQUENT], {way: vectors[:FREQUENT] for way, vectors in after.items()}, rng, resamples=resamples())
    for way in after:
        yield COST, way, related[way] | family[way] | {"directions": directions[way]}


# %% What was found
def name_of(number):
    return association_tests()[number].name


def at(found, curve, way):
    return {measure: of[curve][way] for measure, of in found.items() if curve in of}


def told(found, measure, ways, numbers=GENDER, form=".2f"):
    return "; ".join(f"{way} " + ", ".join(mean_and_spread(found[measure][name_of(number)][way], form) for number in numbers) for way in ways)


@section.claim(
    "The associations that people have stand in the vectors",
    paper="Caliskan et al. 2017, arXiv:1608.07187, table 1: every test of ten, in GloVe with 300 numbers",
    kind="arithmetic",
    measured=lambda found: "; ".join(f"{test.name} {span(at(found, test.name, BEFORE), 'd')}" for test in association_tests()),
)
def in_vectors(found):
    """In all ten tests d is above 0, and p below 0.05."""
    return all(found["d"][test.name][BEFORE] > 0 and found["p"][test.name][BEFORE] < 0.05 for test in association_tests())


@section.claim(
    "Is the effect size of the tests of gender small after each way?",
    paper="no paper: where the direction was planted, d falls to about 0",
    measured=lambda found: "d of tests 6, 7, 8: " + told(found, "d", (BEFORE, *WAYS, RANDOM)),
)
def small_effect(found):
    """|d| is at most 0.5 in each of the three tests, after each of the three ways."""
    return all(abs(found["d"][name_of(number)][way]) <= 0.5 for number in GENDER for way in WAYS)


@section.claim(
    "The association itself is less than half as large after each way",
    paper="no paper: d divides by the spread of the associations, which falls as well",
    measured=lambda found: "difference of mean cosines in tests 6, 7, 8: " + told(found, "apart", (BEFORE, *WAYS, RANDOM), form=".3f"),
)
def smaller_association(found):
    """The difference of the mean associations is at most half of what it was, whatever its sign, in each of the three tests after each way."""
    apart = found["apart"]
    return all(abs(apart[name_of(number)][way]) <= 0.5 * apart[name_of(number)][BEFORE] for number in GENDER for way in WAYS)


@section.claim(
    "Do tests of other things stay as they were?",
    paper="no paper: a way that moves them takes out more than it was asked to",
    measured=lambda found: "d of tests 1, 2: " + told(found, "d", (BEFORE, *WAYS, RANDOM), OTHER),
)
def others_stay(found):
    """The interval of the change of d holds 0, for flowers and insects and for instruments and weapons, after each way."""
    return all(found["d more low"][name_of(number)][way] <= 0 <= found["d more high"][name_of(number)][way] for number in OTHER for way in WAYS)


@section.claim(
    "How related words are is told about as well as before",
    paper="Bolukbasi et al. 2016, arXiv:1607.06520, table 1: standard tests do not notice that the direction is gone",
    measured=lambda found: ", ".join(f"{way} {span(at(found, COST, way), 'similarity', '.3f')}" for way in (BEFORE, *WAYS, RANDOM)),
)
def still_related(found):
    """The rank correlation with people's judgement is at most 0.02 lower after each way."""
    return all(found["similarity more"][COST][way] >= -0.02 for way in WAYS)


@section.report
def report(found):
    glove = set(table().words)
    rows = []
    for test in association_tests():
        known = ", ".join(f"{sum(word in glove for word in words)} of {len(words)}" for words in test[1:5])
        of = at(found, test.name, BEFORE)
        rows.append([test.name, known, span(of, "d"), np.mean(of["p"]), "–" if test.people is None else f"{test.people:.2f}"])
    section.table("weat", ["test", "words found: X, Y, A, B", "d, and 95 %", "p", "d in people"], rows)
    rows = []
    for number in (*GENDER, *OTHER):
        for way in KEYS:
            of = at(found, name_of(number), way)
            left = np.mean(of["apart"]) / np.mean(found["apart"][name_of(number)][BEFORE])
            rows.append([name_of(number), way, span(of, "d"), span(of, "d more") if way != BEFORE else "–", span(of, "apart", ".3f"), f"{left:.0%}", np.mean(of["p"])])
            for key, measure in (("d", "d"), ("p", "p"), ("apart", "apart")):
                section.value(f"words.{KEYS[way]}.test{number + 1}.{key}", np.mean(of[measure]))
    section.table("words_after", ["test", "vectors", "d, and 95 %", "change of d", "difference of means", "left of it", "p"], rows)
    rows = []
    for way, key in KEYS.items():
        of = at(found, COST, way)
        changes = [span(of, f"{name} more", ".3f") if way != BEFORE else "–" for name in ("similarity", "family")]
        rows.append([way, mean_and_spread(of["directions"], ".0f"), span(of, "similarity", ".3f"), changes[0], span(of, "family", ".3f"), changes[1]])
        section.values(f"words.{key}", {name: np.mean(of[name]) for name in ("similarity", "family", "directions")})
    section.table("words_cost", ["vectors", "directions out", "rank correlation, MEN", "its change", "family analogies right", "their change"], rows)
    of = at(found, COST, BEFORE)
    section.values("words", {"pairs": int(np.mean(of["pairs"])), "questions": int(np.mean(of["questions"])), "fitted": SIDE, "frequent": FREQUENT})


@section.figure("words", size=(7, 3.6), ncols=2, sharey=True)
def picture(axes, found):
    names = [name_of(number) for number in (*GENDER, *OTHER)]
    for i, way in enumerate(KEYS):
        heights = -np.arange(len(names)) + 0.3 - 0.15 * i
        for ax, measure in zip(axes, ("d", "apart"), strict=True):
            middle, low, high = (np.array([np.mean(found[measure + end][name][way]) for name in names]) for end in ("", " low", " high"))
            ax.errorbar(middle, heights, xerr=[middle - low, high - middle], fmt="o", linewidth=1, label=way)
    for ax, label in zip(axes, ("effect size d", "difference of mean cosines"), strict=True):
        ax.axvline(0, color="#808080", linestyle=":")
        ax.set(xlabel=label, yticks=-np.arange(len(names)))
    axes[0].set_yticklabels([name.replace(" / ", " /\n") for name in names])
    axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)


if __name__ == "__main__":
    section.main()
