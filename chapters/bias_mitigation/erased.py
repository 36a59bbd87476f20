"""Does a probe find on new words what INLP and LEACE erased on others?

INLP (Ravfogel et al. 2020, arXiv:2004.07667) and LEACE (Belrose et al. 2023, arXiv:2306.03819) are fitted on half of the words of Google News
(word2vec, 300 numbers) that lie farthest to either side of the direction of gender (Bolukbasi et al. 2016, arXiv:1607.06520), and probes of the
former side on the other half; the same along a random direction. Beside it stands how related words are. The lists are binary, and so is this.
"""

# %%
import numpy as np

from minitransformers.bias_mitigation.hard_debias import neutralize
from minitransformers.bias_mitigation.inlp import inlp
from minitransformers.bias_mitigation.leace import erase, leace
from minitransformers.bias_mitigation.weat import unit_rows
from minitransformers.reporting import Section, mean_and_spread
from minitransformers.reporting.bias_mitigation.former_sides import PROBES, neutral_words, shares_told
from minitransformers.reporting.bias_mitigation.word_quality import relatedness, span
from minitransformers.reporting.bias_mitigation.word_vectors import both_ends
from minitransformers.reporting.needs import needs_data

section = Section(__file__, __doc__, kind="trained", needs=needs_data(("fairness", "vectors")))
SIDE, ROUNDS, TOLERANCE = 2000, 60, 0.02
GENDER, OTHER = "gender", "a random direction"
BEFORE, HARD, INLP, LEACE = "as published", "one direction out", "INLP", "LEACE"


def side():
    return 250 if section.quick else SIDE


@section.experiment
def experiment(rng):
    table, neutral, _, (basis, _) = neutral_words()
    vectors, x = table.vectors, table.vectors[neutral]
    asked, resamples = (table.words[:5000], 100) if section.quick else (table.words, 1000)  # words whose pairs are asked for
    other = unit_rows("directions", rng.normal(size=(1, x.shape[1])))[0]
    for name, one in ((GENDER, basis[:, 0]), (OTHER, other)):
        rows, labels = both_ends(x @ one, side())
        own, new = np.split(rng.permutation(len(rows)), 2)
        fit, stop = np.split(own, [3 * len(own) // 4])
        some = x[rows]
        found = inlp(some[fit], labels[fit], rounds=ROUNDS, tolerance=TOLERANCE, dev_x=some[stop], dev_labels=labels[stop])
        eraser = leace(some[own], np.eye(2)[labels[own]])
        out = vectors.copy()
        out[neutral] = neutralize(x, basis=one[:, None])
        erased, _ = erase(vectors, eraser=eraser)
        ways = {BEFORE: vectors, HARD: out, INLP: unit_rows(INLP, vectors @ found.projection), LEACE: unit_rows(LEACE, erased)}
        related = relatedness(asked, ways, rng, resamples=resamples)
        for way, directions in zip(ways, (0, 1, found.directions.shape[1], 1), strict=True):
            shares = shares_told(ways[way][neutral[rows[new]]], labels[new], rng, resamples=resamples)
            yield name, way, shares | related[way] | {"directions": directions}


# %% What was found
def at(found, name, way):
    return {measure: of[name][way] for measure, of in found.items()}


def listed(found, probe, names):
    return "; ".join(f"{name}: {way} {span(at(found, name, way), probe, '.3f')}" for name in names for way in (BEFORE, HARD, INLP, LEACE))


@section.claim(
    "Is a linear probe back at chance after INLP and LEACE, on new words?",
    paper="Ravfogel et al. 2020, arXiv:2004.07667, and Belrose et al. 2023, arXiv:2306.03819: so it is on the words that were fitted",
    measured=lambda found: listed(found, "linear", (GENDER,)),
)
def linear_at_chance(found):
    """After each of the two it is right about at most 0.55, where naming one side is right about half."""
    return all(found["linear"][GENDER][way] <= 0.55 for way in (INLP, LEACE))


@section.claim(
    "After INLP and LEACE the nearest words still tell the former side",
    paper="both papers, of linear classifiers alone",
    measured=lambda found: listed(found, "neighbours", (GENDER, OTHER)),
)
def neighbours_tell(found):
    """Most of the 15 nearest words are of the right side for at least 0.75 of the words, after each of the two."""
    return all(found["neighbours"][GENDER][way] >= 0.75 for way in (INLP, LEACE))


@section.report
def report(found):
    rows = []
    for kind, name in (("gender", GENDER), ("random", OTHER)):
        for key, way in (("before", BEFORE), ("hard", HARD), ("inlp", INLP), ("leace", LEACE)):
            of = at(found, name, way)
            change = span(of, "similarity more", ".3f") if way != BEFORE else "–"
            told = [span(of, measure, ".3f") for measure in (*PROBES[1:], "similarity")]
            rows.append([name, way, mean_and_spread(of["directions"], ".0f"), *told, change])
            stated = ("linear", "neighbours", "similarity", "directions")
            section.values(f"erased.{key}.{kind}", {measure: np.mean(of[measure]) for measure in stated})
    section.table("erased", ["side along", "vectors", "directions out", "linear probe", "neighbours", "rank correlation, MEN", "its change"], rows)
    section.value("erased.side", side())


if __name__ == "__main__":
    section.main()
