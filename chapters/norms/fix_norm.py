"""Do frequent words grow long rows, and are rare ones predicted better where all rows have one length?

Nguyen and Chiang 2018, arXiv:1710.01329, abstract: the inner product with the words' vectors rewards frequent words disproportionately, and rare
words are translated better when lengths are fixed. A language of 256 words in 16 classes: the class of a word decides which two may follow, and
within a class frequencies fall as one over the rank (Zipf). Each seed has a language of its own. As its probabilities are known, the cross-entropy
is a sum over all pairs of words, without sampling.
"""

# %%
from functools import partial
from typing import NamedTuple

import numpy as np

from minitransformers.basics.chain import chain
from minitransformers.basics.embedding import Embedding, embedding
from minitransformers.basics.feed_forward import FeedForward, feed_forward, init_feed_forward
from minitransformers.basics.linear import Linear, linear
from minitransformers.basics.residual import residual
from minitransformers.norms.fix_norm import fix_norm
from minitransformers.norms.scale_norm import ScaleNorm, init_scale_norm, scale_norm
from minitransformers.reporting import Section, mean_and_spread
from minitransformers.training.fit import fit
from minitransformers.training.task import Labelled
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
WORDS, CLASSES, WIDTH, STEPS, PLAIN, FIXED, BEST = 256, 16, 32, 300, "plain", "FixNorm", "best possible"
RARE = np.arange(WORDS) >= WORDS // 2                        # the half of the vocabulary that is seen least
HALVES = {"frequent": ~RARE, "rare": RARE, "all": RARE | ~RARE}


# %% The language
def zipf_bigrams(rng):
    """Probabilities (words, words) of the next word, and (words,) of each: what comes next depends on a word's class alone.

    Words are dealt to the classes one after the other, so that each has frequent and rare ones.
    """
    of_word = np.arange(WORDS) % CLASSES
    within = np.where(of_word == np.arange(CLASSES)[:, None], 1 / np.arange(1, WORDS + 1), 0)
    within /= within.sum(axis=1, keepdims=True)
    follows = np.zeros((CLASSES, CLASSES))
    for _ in range(2):                                       # permutations: no class is more frequent than another
        follows[np.arange(CLASSES), rng.permutation(CLASSES)] += 0.5
    return (follows @ within)[of_word], within.mean(axis=0)


def draw(rng, *, following, share):
    ids = rng.choice(WORDS, size=256, p=share)
    return ids, np.minimum((rng.random((256, 1)) > following.cumsum(axis=1)[ids]).sum(axis=1), WORDS - 1)


def nats(logs, pairs):
    """Cross-entropy of the next words of each half, over all pairs as often as they occur."""
    return {half: -(pairs * logs)[:, which].sum() / pairs[:, which].sum() for half, which in HALVES.items()}


# %% One table for both ends, and what stands between
class Bigram(NamedTuple):
    words: Embedding
    channel: FeedForward
    norm: ScaleNorm


def fresh(rng):
    """Rows of length one for both."""
    table, _ = fix_norm(rng.standard_normal((WORDS, WIDTH), np.float32))
    return Bigram(Embedding(table), init_feed_forward(rng, WIDTH, d_hidden=2 * WIDTH), init_scale_norm(rng, WIDTH))


def bigram(params, ids, *, fixed):
    """Logits of the next word; the table is divided by its rows' lengths once, and used at both ends, where ``fixed``."""
    table, table_backward = fix_norm(params.words.weight) if fixed else (params.words.weight, lambda dtable: dtable)
    size = WIDTH**0.5
    x, x_backward = embedding(Embedding(table), ids=ids)
    parts = partial(residual, part=feed_forward), scale_norm, linear
    logits, parts_backward = chain((params.channel, params.norm, Linear(table.T, None)), size * x, parts=parts)

    def backward(dlogits):
        (dchannel, dnorm, dhead), dx = parts_backward(dlogits)
        dtable = dhead.weight.T + x_backward(size * dx).weight  # used at both ends: two gradients
        return Bigram(Embedding(table_backward(dtable)), dchannel, dnorm)

    return logits, backward


def trained(fixed, rng, *, rate, language):
    task = Labelled(partial(bigram, fixed=fixed), partial(draw, **language))
    steps = 20 if section.quick else STEPS
    return fit(fresh(rng), task, steps=steps, peak=rate, rng=rng, warmup=10 / steps, floor=0.1)


def judged(params, fixed, pairs):
    logits = bigram(params, np.arange(WORDS), fixed=fixed)[0].astype(float)
    logits -= logits.max(axis=1, keepdims=True)
    return nats(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), pairs)


@section.tuning
def tuning(rng):
    hold_blas()
    following, share = zipf_bigrams(rng)
    seed = rng.integers(2**32)
    for name in (PLAIN, FIXED):
        for rate in (1e-2, 2e-2, 4e-2, 1.6e-1, 6.4e-1, 2.56):
            params = trained(name == FIXED, np.random.default_rng(seed), rate=rate, language={"following": following, "share": share})
            yield name, rate, {"loss": judged(params, name == FIXED, share[:, None] * following)["all"]}


@section.experiment
def experiment(rng):
    hold_blas()
    following, share = zipf_bigrams(rng)
    pairs, seed = share[:, None] * following, rng.integers(2**32)
    for name in (PLAIN, FIXED):
        params = trained(name == FIXED, np.random.default_rng(seed), rate=section.rates[name], language={"following": following, "share": share})
        stored = np.linalg.norm(params.words.weight, axis=1)
        used = np.linalg.norm(fix_norm(params.words.weight)[0], axis=1) if name == FIXED else stored
        for half, value in judged(params, name == FIXED, pairs).items():
            yield name, half, {"nats": value}
        yield name, "rows", {"correlation": np.corrcoef(np.log(share), stored)[0, 1], "longest": stored.max(), "off": abs(used - 1).max()}
        for word in range(WORDS):
            yield name, word, {"length": stored[word], "share": share[word]}
    for half, value in nats(np.log(np.where(following > 0, following, 1)), pairs).items():
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
        section.values(f"fix_norm.{key}", {half: np.mean(found["nats"][name][half]) for half in HALVES})
        rows = {what: np.mean(found[what][name]["rows"]) for what in ("correlation", "longest")}
        section.values(f"fix_norm.{key}", {**rows, "correlations": each(found["correlation"][name]["rows"])})
        section.value(f"fix_norm.{key}.rare_each", each(found["nats"][name]["rare"], ".3f"))
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
