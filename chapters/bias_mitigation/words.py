"""What do three ways to take a direction out of word vectors do to the associations in them?

The direction of gender is taken out of GloVe with 50 numbers a word: by hard debias (Bolukbasi et al. 2016, arXiv:1607.06520), by INLP
(Ravfogel et al. 2020, arXiv:2004.07667) and by LEACE (Belrose et al. 2023, arXiv:2306.03819). The last two are fitted on frequent words far out
along the direction, none of which stands in the tests of gender, 6 to 8 of Caliskan et al. 2017, arXiv:1608.07187. The tests are binary, as
their lists are. Beside them stand two tests of other things, and what vectors are good for: how related words are (Bruni et al. 2014, MEN), and
analogies within families. Intervals are of words drawn anew within each list, of pairs, and of the pairs that analogies begin with.
"""

# %%
import numpy as np

from minitransformers.reporting import Section, mean_and_spread
from minitransformers.reporting.bias_mitigation.gender_out import BEFORE, HARD, INLP, LEACE, RANDOM, ways
from minitransformers.reporting.bias_mitigation.tested_words import associations, sets_of, tested_words
from minitransformers.reporting.bias_mitigation.word_quality import family_analogies, relatedness, span
from minitransformers.reporting.bias_mitigation.word_vectors import association_tests
from minitransformers.reporting.needs import needs_data

section = Section(__file__, __doc__, kind="trained", needs=needs_data(("glove", "words"), ("fairness", "weat")))
FREQUENT, SIDE = 30_000, 2000                                # words; those at each end that INLP and LEACE are fitted with
GENDER, OTHER = (5, 6, 7), (0, 1)                            # places in the list of tests: 6 to 8; flowers and insects, instruments and weapons
WAYS = (HARD, INLP, LEACE)
COST = "what they are good for"
KEYS = dict(zip((BEFORE, HARD, INLP, LEACE, RANDOM), ("before", "hard", "inlp", "leace", "random"), strict=True))


@section.experiment
def experiment(rng):
    frequent, side = (10_000, 1000) if section.quick else (FREQUENT, SIDE)
    resamples, splits = (100, 1000) if section.quick else (1000, 20_000)
    table, tests = tested_words(frequent), association_tests()
    after, directions = ways(table, rng, frequent=frequent, side=side, tests=[tests[number] for number in GENDER])
    for number in (*OTHER, *GENDER):
        found = associations(sets_of(tests[number], table.words), after, rng, resamples=resamples, splits=splits)
        for way in after:
            yield tests[number].name, way, found[way]

    related = relatedness(table.words, after, rng, resamples=resamples)
    family = family_analogies(table.words[:frequent], {way: vectors[:frequent] for way, vectors in after.items()}, rng, resamples=resamples)
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
    rows = []
    for number in (*GENDER, *OTHER):
        for way in KEYS:
            of = at(found, name_of(number), way)
            left = np.mean(of["apart"]) / np.mean(found["apart"][name_of(number)][BEFORE])
            change = span(of, "d more") if way != BEFORE else "–"
            rows.append([name_of(number), way, span(of, "d"), change, span(of, "apart", ".3f"), f"{left:.0%}", np.mean(of["p"])])
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
