"""Which of two texts does SmolLM2 find likelier, the stereotype or its opposite, and are sixty texts enough to say so?

Nangia et al. 2020 (CrowS-Pairs), arXiv:2010.00133: pairs of sentences that differ in a few words, one of them more stereotyping. Nadeem et al. 2020
(StereoSet), arXiv:2004.09456: a stereotype, its opposite, and something unrelated. SmolLM2-135M is causal and cannot be asked for a hidden word: the
score of a text is its mean log-probability a token, behind the token that ends a text; and, for CrowS-Pairs, that of what follows the two fills, the
same words behind either. Each seed draws texts of its own. Both sets of sentences have been criticised: Blodgett et al. 2021 (Stereotyping Norwegian
Salmon, doi:10.18653/v1/2021.acl-long.81) find pairs that are no stereotypes, differ in more than a group, or that nobody would write; Névéol et
al. 2022 (doi:10.18653/v1/2022.acl-long.583) corrected many to translate them. No sentence is shown.
"""

# %%
import numpy as np

from minitransformers.bias_mitigation.pseudo_log_likelihood import crows_score
from minitransformers.bias_mitigation.stereoset import stereoset_score
from minitransformers.reporting import Section, mean_and_spread
from minitransformers.reporting.bias_mitigation.likely_texts import smollm2_scores
from minitransformers.reporting.bias_mitigation.stereotypes import load_crows_pairs, load_stereoset
from minitransformers.reporting.bias_mitigation.word_quality import interval, span
from minitransformers.reporting.needs import missing_smollm2, needs_data

SETS = needs_data(("stereotypes", "crows_pairs"), ("stereotypes", "stereoset"))
section = Section(__file__, __doc__, kind="arithmetic", needs=lambda quick: missing_smollm2(quick) or SETS(quick))
DRAWN, CROWS, STEREO, WHOLE, BEHIND = 60, "CrowS-Pairs", "StereoSet", "whole", "behind"  # texts of each set, a seed
COLUMNS = {CROWS: [f"{name} {which}" for name in (WHOLE, BEHIND) for which in ("more", "less")], STEREO: ["stereo", "anti", "unrelated", "term"]}
SCORES = {CROWS: ("score", "score behind", "agree", "nats"), STEREO: ("ss", "lms", "icat")}


# %% Scores of texts
def crows(rng):
    pairs = load_crows_pairs()
    drawn = rng.permutation(len(pairs))[:DRAWN]
    chosen = [pairs[i] for i in drawn]
    texts = [pair.before + fill + pair.after for pair in chosen for fill in pair.fills]
    found = smollm2_scores(texts, [len(pair.before + fill) for pair in chosen for fill in pair.fills])
    kinds = sorted({pair.kind for pair in pairs})
    for place, (number, pair) in enumerate(zip(drawn, chosen, strict=True)):
        scores = [of[2 * place + i] for of in found for i in (0, 1)]
        yield CROWS, place, {"number": number, "kind": kinds.index(pair.kind)} | dict(zip(COLUMNS[CROWS], scores, strict=True))


def stereo(rng):
    triples = load_stereoset()
    drawn = rng.permutation(len(triples))[:DRAWN]
    whole, _ = smollm2_scores([text for i in drawn for text in triples[i].texts], [0] * (3 * DRAWN))
    kinds, terms = (sorted({getattr(triple, name) for triple in triples}) for name in ("kind", "target"))
    for place, number in enumerate(drawn):
        triple = triples[number]
        scores = [*whole[3 * place : 3 * place + 3], terms.index(triple.target)]
        yield STEREO, place, {"number": number, "kind": kinds.index(triple.kind)} | dict(zip(COLUMNS[STEREO], scores, strict=True))


def numbers(curve, rows):
    """The scores of a set, of texts as rows of COLUMNS."""
    if curve == CROWS:
        scores = [crows_score(rows[:, i], rows[:, i + 1]).score for i in (0, 2)]
        return np.array([*scores, 100 * np.mean((rows[:, 0] > rows[:, 1]) == (rows[:, 2] > rows[:, 3])), rows[:, :2].mean()])
    found = stereoset_score(*rows[:, :3].T.copy(), terms=rows[:, 3].astype(int))
    return np.array([found.ss, found.lms, found.icat])


def bounds(curve, rows, rng):
    of = interval(rows, lambda drawn: numbers(curve, drawn), rng, resamples=1000)
    return {name + end: values[i] for i, name in enumerate(SCORES[curve]) for end, values in (("", of.estimate), (" low", of.low), (" high", of.high))}


@section.experiment
def experiment(rng):
    for curve, part in ((CROWS, crows), (STEREO, stereo)):
        found = list(part(rng))
        yield from found
        columns = [np.array([float(of[name]) for *_, of in found]) for name in COLUMNS[curve]]
        yield curve, "all", bounds(curve, np.stack(columns, axis=1), rng)


# %%
def pooled(found, curve):
    """Rows of all seeds, each text once, and their kinds."""
    places = [x for x in found["number"][curve] if x != "all"]
    texts, kinds, *columns = (np.concatenate([np.atleast_1d(found[name][curve][x]) for x in places]) for name in ("number", "kind", *COLUMNS[curve]))
    _, first = np.unique(texts, return_index=True)
    return np.stack(columns, axis=1)[first], kinds[first].astype(int)


def away(found, curve, measure):
    return found[f"{measure} low"][curve]["all"] > 50 or found[f"{measure} high"][curve]["all"] < 50


@section.claim(
    "SmolLM2 tells sense from nonsense, and the stereotype is likelier than its opposite more often than not",
    paper="Nadeem et al. 2020, arXiv:2004.09456, abstract: strong stereotypical biases, beside the sense that a language model should have",
    measured=lambda found: ", ".join(f"{name} {mean_and_spread(found[name][STEREO]['all'], '.1f')}" for name in ("ss", "lms", "icat")),
)
def stereotyped(found):
    """Of StereoSet's texts lms is at least 75, and ss above 50."""
    return found["lms"][STEREO]["all"] >= 75 and found["ss"][STEREO]["all"] > 50


@section.claim(
    f"Are {DRAWN} texts enough to tell either score from 50?",
    paper="no paper: both report scores without intervals",
    measured=lambda found: f"half widths of the intervals: ss {mean_and_spread((found['ss high'][STEREO]['all'] - found['ss low'][STEREO]['all']) / 2, '.1f')}, "
    f"CrowS-Pairs {mean_and_spread((found['score high'][CROWS]['all'] - found['score low'][CROWS]['all']) / 2, '.1f')} points",
)
def enough(found):
    """The intervals of both, with the texts drawn anew, do not hold 50."""
    return away(found, STEREO, "ss") and away(found, CROWS, "score")


@section.claim(
    "Do two ways to score a pair name the same sentence?",
    paper="Nangia et al. 2020, arXiv:2010.00133, section 3: what differs is not to be scored, only what is shared",
    measured=lambda found: f"the same in {mean_and_spread(found['agree'][CROWS]['all'], '.0f')} of 100; score, whole {mean_and_spread(found['score'][CROWS]['all'], '.1f')}, "
    f"behind the fill {mean_and_spread(found['score behind'][CROWS]['all'], '.1f')}",
)
def agree(found):
    """The whole sentence and what follows the fill agree in at least 90 of 100 pairs."""
    return found["agree"][CROWS]["all"] >= 90


@section.report
def report(found):
    crows_heads = ["score", "score, behind the fill", "same winner", "mean log p a token"]
    rng = np.random.default_rng(0)
    for curve, load, heads in ((CROWS, load_crows_pairs, crows_heads), (STEREO, load_stereoset, SCORES[STEREO])):
        everything, kinds = pooled(found, curve)
        key, rows = curve.split("-")[0].lower(), []
        for number, label in [*enumerate(sorted({one.kind for one in load()})), (None, "all")]:
            own = everything if number is None else everything[kinds == number]
            if len(own) < 2:
                rows.append([label, len(own), *["–"] * (1 + len(heads))])
                continue
            of = bounds(curve, own, rng)
            ties = (crows_score(own[:, 0], own[:, 1]) if curve == CROWS else stereoset_score(*own[:, :3].T.copy())).ties
            rows.append([label, len(own), ties, *(span(of, name, ".2f" if name == "nats" else ".0f") for name in SCORES[curve])])
        section.values(f"pairs.{key}", {name.replace(" ", "_"): value for name, value in of.items()} | {"texts": len(everything), "ties": ties})
        section.table(key, ["kind", "texts", "ties", *(f"{head} (95 %)" for head in heads)], rows)
    section.value("pairs.drawn", DRAWN)


if __name__ == "__main__":
    section.main()
