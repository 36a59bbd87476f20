"""Is what a direction held gone when the direction is?

Bolukbasi et al. 2016, arXiv:1607.06520: pairs of words differ along one direction, which can be taken out of words that should be neutral. Gonen
and Goldberg 2019, arXiv:1903.03862: such words still cluster by the side on which they were. Here words of Google News (word2vec, 300 numbers)
that lie farthest to either side are taken, made neutral, and asked for their former side: by k-means, by a linear probe and by their nearest
neighbours, probes on words that they were not fitted on. The same is done along random directions, and with labels shuffled. Then INLP (Ravfogel
et al. 2020, arXiv:2004.07667) and LEACE (Belrose et al. 2023, arXiv:2306.03819) are fitted on half of the words, and probes on the other half.
The published pairs and lists are binary, and so is this.
"""

# %%
import warnings
from functools import cache

import numpy as np

from minitransformers.bias_mitigation.bias_direction import bias_direction, direct_bias
from minitransformers.bias_mitigation.hard_debias import neutralize
from minitransformers.bias_mitigation.inlp import inlp
from minitransformers.bias_mitigation.leace import erase, leace
from minitransformers.bias_mitigation.weat import unit_rows
from minitransformers.reporting import Section, mean_and_spread
from minitransformers.reporting.former_sides import PROBES, shares_told, told
from minitransformers.reporting.needs import needs_data
from minitransformers.reporting.word_quality import interval, relatedness, span
from minitransformers.reporting.word_vectors import both_ends, gender_lists, load_word2vec

section = Section(__file__, __doc__, kind="trained", needs=needs_data(("fairness", "vectors")))
RANDOM, PAIRS, SIDES = 5, 20, (250, 2000)                     # random directions, sets of ten random pairs, words a side
ROUNDS, TOLERANCE = 60, 0.02
GENDER, OUT, SHUFFLED = "gender", "gender, out", "gender, out, labels shuffled"
RANDOM_PAIRS, OTHERS, OTHER = "ten random pairs", "random directions", "a random direction"
BEFORE, HARD, INLP, LEACE = "as published", "one direction out", "INLP", "LEACE"


# %% Words and directions
@cache
def words():
    """All words and their vectors, the numbers of those that should be neutral, and those of professions among them."""
    table, lists = load_word2vec(), gender_lists()
    place = {word: i for i, word in enumerate(table.words)}
    neutral = [i for word, i in place.items() if word.isalpha() and word not in lists.specific]
    return table, np.array(neutral), np.array([place[word] for word in table.known(lists.professions) if word not in lists.specific])


def gender():
    return bias_direction(*(words()[0].of([pair[i] for pair in gender_lists().pairs]) for i in (0, 1)), sign_pair=2)


def random_directions(rng):
    return unit_rows("directions", rng.normal(size=(2 if section.quick else RANDOM, words()[0].vectors.shape[1])))


def resamples():
    return 100 if section.quick else 1000


def sizes():
    return SIDES[:1] if section.quick else SIDES


@section.experiment
def experiment(rng):
    table, neutral, professions = words()
    vectors, x, jobs = table.vectors, table.vectors[neutral], table.vectors[professions]
    basis, shares = gender()
    g, others = basis[:, 0], random_directions(rng)

    drawn = interval(jobs, lambda rows: direct_bias(rows, g), rng, resamples=resamples())
    after = np.abs(neutralize(jobs, basis=basis) @ g).max()
    ends = {"direct": drawn.estimate, "direct low": drawn.low, "direct high": drawn.high}
    yield GENDER, "pairs", {"first share": shares[0], "second share": shares[1], "after": after, "professions": len(jobs), **ends}
    with warnings.catch_warnings(action="ignore"):           # that pairs do not agree is what is asked
        found = [bias_direction(*x[rng.choice(len(x), (2, 10), replace=False)]) for _ in range(PAIRS)]
    of_pairs = [(f.shares[0], f.shares[1], direct_bias(jobs, f.basis[:, 0])) for f in found]
    yield RANDOM_PAIRS, "pairs", dict(zip(("first share", "second share", "direct"), np.mean(of_pairs, axis=0), strict=True)) | {"most": np.max(of_pairs, axis=0)[0]}
    yield OTHERS, "pairs", {"direct": np.mean([direct_bias(jobs, one) for one in others])}

    for side in sizes():
        rows, labels = both_ends(x @ g, side)
        out = neutralize(x[rows], basis=basis)
        yield GENDER, side, shares_told(x[rows], labels, rng, resamples=resamples())
        yield OUT, side, shares_told(out, labels, rng, resamples=resamples())
        yield SHUFFLED, side, shares_told(out, rng.permutation(labels), rng, resamples=resamples())
        found = []
        for one in others:
            rows, labels = both_ends(x @ one, side)
            hits = told(neutralize(x[rows], basis=one[:, None]), labels, rng)
            found.append([hits[probe].mean() for probe in PROBES])
        ends = (("", np.mean), (" low", np.min), (" high", np.max))
        yield OTHERS, side, {probe + end: of(np.array(found)[:, i]) for i, probe in enumerate(PROBES) for end, of in ends}

    for name, one in ((GENDER, g), (OTHER, others[0])):
        rows, labels = both_ends(x @ one, sizes()[-1])
        own, new = np.split(rng.permutation(len(rows)), 2)
        fit, stop = np.split(own, [3 * len(own) // 4])
        some = x[rows]
        found = inlp(some[fit], labels[fit], rounds=ROUNDS, tolerance=TOLERANCE, dev_x=some[stop], dev_labels=labels[stop])
        eraser = leace(some[own], np.eye(2)[labels[own]])
        out = vectors.copy()
        out[neutral] = neutralize(x, basis=one[:, None])
        ways = {BEFORE: vectors, HARD: out, INLP: unit_rows(INLP, vectors @ found.projection), LEACE: unit_rows(LEACE, erase(vectors, eraser=eraser)[0])}
        related = relatedness(table.words, ways, rng, resamples=resamples())
        for way, directions in zip(ways, (0, 1, found.directions.shape[1], 1), strict=True):
            shares = shares_told(ways[way][neutral[rows[new]]], labels[new], rng, resamples=resamples())
            yield f"{name}: {way}", "new words", shares | related[way] | {"directions": directions}


# %% What was found
def at(found, curve, x):
    return {measure: of[curve][x] for measure, of in found.items() if x in of.get(curve, {})}


def listed(found, probe, curves, x):
    return "; ".join(f"{curve} {span(at(found, curve, x), probe, '.3f')}" for curve in curves)


@section.claim(
    "The published pairs differ along one direction",
    paper="Bolukbasi et al. 2016, arXiv:1607.06520, figure 6: one direction explains most of ten pairs",
    measured=lambda found: f"shares {np.mean(found['first share'][GENDER]['pairs']):.3f} and {np.mean(found['second share'][GENDER]['pairs']):.3f}; "
    f"ten random pairs {mean_and_spread(found['first share'][RANDOM_PAIRS]['pairs'], '.3f')}, at most {np.max(found['most'][RANDOM_PAIRS]['pairs']):.3f}",
)
def one_direction(found):
    """The first share is at least twice the second, and above that of every set of random pairs."""
    first = found["first share"][GENDER]["pairs"]
    return first >= 2 * found["second share"][GENDER]["pairs"] and first > found["most"][RANDOM_PAIRS]["pairs"]


@section.claim(
    "Made neutral, professions have no part along it",
    paper="Bolukbasi et al. 2016, arXiv:1607.06520, section 6",
    kind="exact",
    measured=lambda found: f"direct bias {span(at(found, GENDER, 'pairs'), 'direct', '.3f')}, then at most {np.max(found['after'][GENDER]['pairs']):.0e}",
)
def no_part(found):
    """Afterwards no cosine is above 1e-12."""
    return found["after"][GENDER]["pairs"] < 1e-12


@section.claim(
    "A linear probe tells the former side of neutral words",
    paper="Gonen and Goldberg 2019, arXiv:1903.03862, section 4: clusters and classifiers find it, in thousands of words",
    measured=lambda found: ". ".join(f"{side} words a side: {listed(found, 'linear', (GENDER, OUT, SHUFFLED), side)}" for side in SIDES),
)
def still_told(found):
    """On words that it was not fitted on at least 0.75 are right, with shuffled labels at most 0.6, with few words and with many."""
    linear = found["linear"]
    return all(linear[OUT][side] >= 0.75 and linear[SHUFFLED][side] <= 0.6 for side in SIDES)


@section.claim(
    "The same is true along directions that mean nothing",
    paper="no paper: the control that clusters of gender alone lack",
    measured=lambda found: ". ".join(f"{side} words a side, {probe}: {listed(found, probe, (OUT, OTHERS), side)}" for side in SIDES for probe in PROBES),
)
def random_as_well(found):
    """Along each of the random directions the linear probe is right about at least 0.75 too, with few words and with many."""
    return all(found["linear low"][OTHERS][side] >= 0.75 for side in SIDES)


@section.claim(
    "Is a linear probe back at chance after INLP and LEACE, on new words?",
    paper="Ravfogel et al. 2020, arXiv:2004.07667, and Belrose et al. 2023, arXiv:2306.03819: so it is on the words that were fitted",
    measured=lambda found: listed(found, "linear", [f"{GENDER}: {way}" for way in (BEFORE, HARD, INLP, LEACE)], "new words"),
)
def linear_at_chance(found):
    """After each of the two it is right about at most 0.55, where naming one side is right about half."""
    return all(found["linear"][f"{GENDER}: {way}"]["new words"] <= 0.55 for way in (INLP, LEACE))


@section.claim(
    "After INLP and LEACE the nearest words still tell the former side",
    paper="both papers, of linear classifiers alone",
    measured=lambda found: listed(found, "neighbours", [f"{name}: {way}" for name in (GENDER, OTHER) for way in (BEFORE, HARD, INLP, LEACE)], "new words"),
)
def neighbours_tell(found):
    """Most of the 15 nearest words are of the right side for at least 0.75 of the words, after each of the two."""
    return all(found["neighbours"][f"{GENDER}: {way}"]["new words"] >= 0.75 for way in (INLP, LEACE))


@section.report
def report(found):
    rows = []
    for name in (GENDER, RANDOM_PAIRS, OTHERS):
        of = at(found, name, "pairs")
        shares = [mean_and_spread(of[share], ".3f") if share in of else "–" for share in ("first share", "second share")]
        rows.append([name, *shares, span(of, "direct", ".3f") if name == GENDER else mean_and_spread(of["direct"], ".3f"), of["after"].max() if "after" in of else None])
    section.table("directions", ["direction of", "first share", "second share", "direct bias of professions", "after, at most"], rows)
    names = {f"{GENDER}, {BEFORE}": GENDER, f"{GENDER}, {HARD}": OUT, f"{OTHERS}, {HARD}": OTHERS, SHUFFLED: SHUFFLED}
    rows = [[side, label, *(span(at(found, name, side), probe, ".3f") for probe in PROBES)] for side in sizes() for label, name in names.items()]
    section.table("recovery", ["words a side", "former side along, vectors", *PROBES], rows)
    rows = []
    for name in (GENDER, OTHER):
        for way in (BEFORE, HARD, INLP, LEACE):
            of = at(found, f"{name}: {way}", "new words")
            change = span(of, "similarity more", ".3f") if way != BEFORE else "–"
            rows.append([name, way, mean_and_spread(of["directions"], ".0f"), *(span(of, probe, ".3f") for probe in PROBES[1:]), span(of, "similarity", ".3f"), change])
    section.table("erased", ["side along", "vectors", "directions out", "linear probe", "neighbours", "rank correlation, MEN", "its change"], rows)

    of = at(found, GENDER, "pairs")
    section.values("directions", {"first": np.mean(of["first share"]), "second": np.mean(of["second share"]), "direct": np.mean(of["direct"]),
                                  "professions": int(np.mean(of["professions"])), "neutral": len(words()[1]), "side": sizes()[-1],
                                  "random_first": np.mean(found["first share"][RANDOM_PAIRS]["pairs"]), "random_direct": np.mean(found["direct"][OTHERS]["pairs"])})  # fmt: skip
    for key, name in (("before", GENDER), ("out", OUT), ("random", OTHERS), ("shuffled", SHUFFLED)):
        for side in sizes():
            section.values(f"recovery.{key}.s{side}", {probe.replace("-", ""): np.mean(found[probe][name][side]) for probe in PROBES})
    for key, way in (("before", BEFORE), ("hard", HARD), ("inlp", INLP), ("leace", LEACE)):
        for kind, name in (("gender", GENDER), ("random", OTHER)):
            of = at(found, f"{name}: {way}", "new words")
            section.values(f"erased.{key}.{kind}", {measure: np.mean(of[measure]) for measure in ("linear", "neighbours", "similarity", "directions")})


@section.figure("directions", size=(7, 3.2), ncols=len(SIDES), sharey=True)
def picture(axes, found):
    for ax, side in zip(axes, sizes(), strict=False):
        for i, (name, label) in enumerate(((OUT, GENDER), (OTHERS, OTHERS), (SHUFFLED, SHUFFLED))):
            middle, low, high = (np.array([np.mean(found[probe + end][name][side]) for probe in PROBES]) for end in ("", " low", " high"))
            ax.errorbar(np.arange(len(PROBES)) + 0.15 * (i - 1), middle, yerr=[middle - low, high - middle], fmt="o", linewidth=1, label=label)
        ax.axhline(0.5, color="#808080", linestyle=":")
        ax.set(title=f"{side:,} words a side, the direction out", xticks=range(len(PROBES)), xticklabels=PROBES, ylim=(0.4, 1.02))
    axes[0].set_ylabel("former side told")
    axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


if __name__ == "__main__":
    section.main()
