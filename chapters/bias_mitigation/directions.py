"""Do the published pairs of gender differ along one direction, and how much of it is in the names of professions?

Bolukbasi et al. 2016, arXiv:1607.06520: pairs of words differ along one direction, which can be taken out of words that should be neutral. Here
words of Google News (word2vec, 300 numbers), beside ten pairs drawn at random and directions drawn at random. The published pairs and lists are
binary, and so is this.
"""

# %%
import warnings

import numpy as np

from minitransformers.bias_mitigation.bias_direction import bias_direction, direct_bias
from minitransformers.bias_mitigation.hard_debias import neutralize
from minitransformers.bias_mitigation.weat import unit_rows
from minitransformers.reporting import Section, mean_and_spread
from minitransformers.reporting.bias_mitigation.former_sides import neutral_words
from minitransformers.reporting.bias_mitigation.word_quality import interval, span
from minitransformers.reporting.needs import needs_data

section = Section(__file__, __doc__, kind="trained", needs=needs_data(("fairness", "vectors")))
RANDOM, PAIRS = 5, 20                                        # random directions, sets of ten random pairs
GENDER, RANDOM_PAIRS, OTHERS = "gender", "ten random pairs", "random directions"


@section.experiment
def experiment(rng):
    (_, vectors), neutral, professions, (basis, shares) = neutral_words()
    x, jobs, g = vectors[neutral], vectors[professions], basis[:, 0]
    others = unit_rows("directions", rng.normal(size=(2 if section.quick else RANDOM, vectors.shape[1])))

    drawn = interval(jobs, lambda rows: direct_bias(rows, g), rng, resamples=100 if section.quick else 1000)
    after = np.abs(neutralize(jobs, basis=basis) @ g).max()
    ends = {"direct": drawn.estimate, "direct low": drawn.low, "direct high": drawn.high}
    yield GENDER, "pairs", {"first share": shares[0], "second share": shares[1], "after": after, "professions": len(jobs), **ends}
    with warnings.catch_warnings(action="ignore"):           # that pairs do not agree is what is asked
        found = [bias_direction(*x[rng.choice(len(x), (2, 10), replace=False)]) for _ in range(PAIRS)]
    of_pairs = [(f.shares[0], f.shares[1], direct_bias(jobs, f.basis[:, 0])) for f in found]
    means = dict(zip(("first share", "second share", "direct"), np.mean(of_pairs, axis=0), strict=True))
    yield RANDOM_PAIRS, "pairs", means | {"most": np.max(of_pairs, axis=0)[0]}
    yield OTHERS, "pairs", {"direct": np.mean([direct_bias(jobs, one) for one in others])}


# %% What was found
def at(found, curve):
    return {measure: of[curve]["pairs"] for measure, of in found.items() if curve in of}


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
    measured=lambda found: f"direct bias {span(at(found, GENDER), 'direct', '.3f')}, then at most {np.max(found['after'][GENDER]['pairs']):.0e}",
)
def no_part(found):
    """Afterwards no cosine is above 1e-12."""
    return found["after"][GENDER]["pairs"] < 1e-12


@section.report
def report(found):
    rows = []
    for name in (GENDER, RANDOM_PAIRS, OTHERS):
        of = at(found, name)
        shares = [mean_and_spread(of[share], ".3f") if share in of else "–" for share in ("first share", "second share")]
        direct = span(of, "direct", ".3f") if name == GENDER else mean_and_spread(of["direct"], ".3f")
        rows.append([name, *shares, direct, of["after"].max() if "after" in of else None])
    section.table("directions", ["direction of", "first share", "second share", "direct bias of professions", "after, at most"], rows)
    of = at(found, GENDER)
    section.values("directions", {name.split()[0]: np.mean(of[name]) for name in ("first share", "second share", "direct")})
    section.value("directions.professions", int(np.mean(of["professions"])))
    section.value("directions.random_first", np.mean(found["first share"][RANDOM_PAIRS]["pairs"]))
    section.value("directions.random_direct", np.mean(found["direct"][OTHERS]["pairs"]))


if __name__ == "__main__":
    section.main()
