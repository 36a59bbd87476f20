"""Do frequent words grow long rows, and are rare ones predicted better where all rows have one length?

Nguyen and Chiang 2018, arXiv:1710.01329, abstract: the inner product with the words' vectors rewards frequent words disproportionately, and rare
words are translated better when lengths are fixed. A language of 256 words in 16 classes: the class of a word decides which two may follow, and
within a class frequencies fall as one over the rank (Zipf). Each seed has a language of its own. As its probabilities are known, the cross-entropy
is a sum over all pairs of words, without sampling.
"""

# %%
from functools import partial

import numpy as np

import minitransformers as mt
from minitransformers.reporting import Section, mean_and_spread
from minitransformers.reporting.networks import tied_network
from minitransformers.training.fit import fit
from minitransformers.training.task import Labelled
from minitransformers.training.threads import hold_blas
from minitransformers.training.zipf_language import zipf_language

section = Section(__file__, __doc__, kind="trained")
WORDS, CLASSES, WIDTH, STEPS, PLAIN, FIXED, BEST = 256, 16, 32, 300, "plain", "FixNorm", "best possible"
RARE = np.arange(WORDS) >= WORDS // 2                        # the half of the vocabulary that is seen least
HALVES = {"frequent": ~RARE, "rare": RARE, "all": RARE | ~RARE}


# %% One table for both ends, and what stands between
def fresh(rng):
    """Rows of length one for both."""
    table, _ = mt.fix_norm(rng.standard_normal((WORDS, WIDTH), np.float32))
    return mt.Embedding(table), [mt.init_feed_forward(rng, WIDTH, d_hidden=2 * WIDTH), mt.init_scale_norm(rng, WIDTH)]


def model_of(name):
    """With FixNorm the table is divided by its rows' lengths once, and used at both ends."""
    return tied_network(partial(mt.residual, part=mt.feed_forward), mt.scale_norm, rows=mt.fix_norm if name == FIXED else None)


def trained(name, rng, *, rate, language):
    steps = 20 if section.quick else STEPS
    return fit(fresh(rng), Labelled(model_of(name), language.draw), steps=steps, peak=rate, rng=rng, warmup=10 / steps, floor=0.1)


def nats(logs, pairs):
    """Cross-entropy of the next words of each half, over all pairs as often as they occur."""
    return {half: -(pairs * logs)[:, which].sum() / pairs[:, which].sum() for half, which in HALVES.items()}


def judged(params, name, language):
    logs, _ = mt.log_softmax(model_of(name)(params, np.arange(WORDS))[0].astype(float))
    return nats(logs, language.pairs)


@section.tuning
def tuning(rng):
    hold_blas()
    language, seed = zipf_language(rng, words=WORDS, classes=CLASSES), rng.integers(2**32)
    for name in (PLAIN, FIXED):
        for rate in (1e-2, 2e-2, 4e-2, 1.6e-1, 6.4e-1, 2.56):
            params = trained(name, np.random.default_rng(seed), rate=rate, language=language)
            yield name, rate, {"loss": judged(params, name, language)["all"]}


@section.experiment
def experiment(rng):
    hold_blas()
    language, seed = zipf_language(rng, words=WORDS, classes=CLASSES), rng.integers(2**32)
    for name in (PLAIN, FIXED):
        params = trained(name, np.random.default_rng(seed), rate=section.rates[name], language=language)
        stored = np.linalg.norm(params[0].weight, axis=1)
        used = np.linalg.norm(mt.fix_norm(params[0].weight)[0], axis=1) if name == FIXED else stored
        for half, value in judged(params, name, language).items():
            yield name, half, {"nats": value}
        correlation = np.corrcoef(np.log(language.share), stored)[0, 1]
        yield name, "rows", {"correlation": correlation, "longest": stored.max(), "off": abs(used - 1).max()}
        for word in range(WORDS):
            yield name, word, {"length": stored[word], "share": language.share[word]}
    for half, value in nats(np.log(np.where(language.following > 0, language.following, 1)), language.pairs).items():
        yield BEST, half, {"nats": value}


# %%
def each(values, form=".2f"):
    return ", ".join(f"{value:{form}}" for value in np.atleast_1d(values))


@section.claim(
    "In a plain tied table frequent words grow longer",
    paper="Nguyen and Chiang 2018, arXiv:1710.01329, abstract: the inner product with the words' vectors rewards frequent words disproportionately",
    measured=lambda found: f"{each(found['correlation'][PLAIN]['rows'])}; of the rows that FixNorm stores {each(found['correlation'][FIXED]['rows'])}",
)
def grow_longer(found):
    """Lengths and log frequencies have a correlation of more than 0.5."""
    return found["correlation"][PLAIN]["rows"] > 0.5


@section.claim(
    "With FixNorm no word is longer than another",
    paper="Nguyen and Salazar 2019, arXiv:1910.05895, section 2.3: word embeddings of unit length",
    kind="exact",
    measured=lambda found: f"off by {np.max(found['off'][FIXED]['rows']):.0e} as they are used, in float32",
)
def one_length(found):
    """After training, rows as they are used have length one, to 1e-6."""
    return found["off"][FIXED]["rows"] < 1e-6


@section.claim(
    "Are rare words predicted better with FixNorm?",
    paper="Nguyen and Chiang 2018, arXiv:1710.01329, abstract: rare words are translated better when the lengths are fixed",
    measured=lambda found: f"{each(found['nats'][FIXED]['rare'], '.3f')} against {each(found['nats'][PLAIN]['rare'], '.3f')} nats; all words "
    f"{each(found['nats'][FIXED]['all'], '.3f')} against {each(found['nats'][PLAIN]['all'], '.3f')}",
)
def rare_words(found):
    """The cross-entropy of the words of the rare half is lower by at least 0.02 nats."""
    return found["nats"][FIXED]["rare"] <= found["nats"][PLAIN]["rare"] - 0.02


@section.report
def report(found):
    rows = []
    for name in (PLAIN, FIXED, BEST):
        correlation = mean_and_spread(found["correlation"][name]["rows"]) if name != BEST else None
        rows.append([name, section.rates.get(name), correlation, *(mean_and_spread(found["nats"][name][half], ".3f") for half in HALVES)])
    columns = ["table", "rate", "length and log frequency, correlation", "nats, frequent half", "nats, rare half", "nats, all"]
    section.table("fix_norm", columns, rows)
    for key, name in (("plain", PLAIN), ("fixed", FIXED)):
        rows = {what: np.mean(found[what][name]["rows"]) for what in ("correlation", "longest")}
        section.values(f"fix_norm.{key}", {**rows, **{half: np.mean(found["nats"][name][half]) for half in HALVES}})
        section.values(f"fix_norm.{key}", {"correlations": each(found["correlation"][name]["rows"]), "rare_each": each(found["nats"][name]["rare"], ".3f")})
    rare = 100 * sum(np.mean(found["share"][PLAIN][word]) for word in np.flatnonzero(RARE))
    section.values("fix_norm", {"words": WORDS, "steps": STEPS, "seeds": 3, "rare_share": rare})


@section.figure("fix_norm", size=(6.8, 2.9), ncols=2)
def picture(axes, found):
    for ax, name in zip(axes, (PLAIN, FIXED), strict=True):
        share, stored = (np.array([np.atleast_1d(y)[0] for y in found[what][name].values()]) for what in ("share", "length"))
        ax.semilogx(share, stored, ".", markersize=3, label="row as stored, the first seed")
        ax.set(xlabel="frequency of the word", title=name, ylim=(0, 1.1 * stored.max()))
    axes[1].axhline(1, color="C1", label="row as used")
    axes[0].set(ylabel="length")
    axes[1].legend(loc="lower right")


if __name__ == "__main__":
    section.main()
