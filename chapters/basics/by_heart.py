"""Does dropout help a network that can learn its text by heart?

Srivastava et al. 2014, JMLR 15: silencing random features in training significantly reduces overfitting. Twenty pieces of a text, 21,000
characters in all, are read ten times by a small network that guesses the next character from three. Every rate of dropout has the learning
rate that suited it best: a network without dropout can do something against learning by heart, too, and learn more slowly.
"""

# %%
from functools import partial

import numpy as np

import minitransformers as mt
from minitransformers.foundation import slot
from minitransformers.reporting import Section, bits, level, lines, mean_and_spread
from minitransformers.reporting.networks import network, side_by_side
from minitransformers.training.fit import fit
from minitransformers.training.task import Labelled, labelled_loss
from minitransformers.training.text import Corpus
from minitransformers.training.yardsticks import counted

section = Section(__file__, __doc__, kind="trained")
CONTEXT, WIDTH, STEPS, BATCH, EVERY = 3, 16, 800, 256, 100
NONE, RATES = "no dropout", {"no dropout": 0.0, "dropout 0.2": 0.2, "dropout 0.4": 0.4}
corpus = Corpus.load(context=CONTEXT)
text = "".join(corpus.train_text[start : start + 1000] for start in range(0, len(corpus.train_text), 20_000))
PAIRS = counted(text, corpus.validation_text)["bigram"]
known, unseen = (np.lib.stride_tricks.sliding_window_view(ids, CONTEXT + 1) for ids in (corpus.vocabulary.encode(text), corpus.validation))
unseen = unseen[::4]                                         # one place of four: enough to tell, and it is read often


# %%
def fresh(rng):
    d_model = CONTEXT * WIDTH
    vectors, scores = mt.init_embedding(rng, corpus.vocabulary.size, WIDTH, std=1.0), mt.init_linear(rng, d_model, corpus.vocabulary.size)
    return vectors, None, mt.init_feed_forward(rng, d_model), None, scores


def model(params, ids, *, rate=0.0, rng=None):
    """Without a generator nothing is silenced."""
    silenced = slot(partial(mt.dropout, rate=rate, rng=rng))
    return network(side_by_side, partial(mt.residual, part=mt.feed_forward), silenced, mt.linear)(params, ids)


def draw(rng):
    drawn = known[rng.integers(len(known), size=BATCH)]
    return drawn[:, :-1], drawn[:, -1]


def bits_of(params, windows):
    (nats, number), _ = labelled_loss(*model(params, windows[:, :-1]), windows[:, -1])
    return bits(nats / number)


def trained(name, rng, *, rate, watch=None):
    task = Labelled(partial(model, rate=RATES[name]), draw, random=True)
    return fit(fresh(rng), task, steps=EVERY // 2 if section.quick else STEPS, peak=rate, rng=rng, warmup=0.05, floor=0.02, watch=watch)


@section.tuning
def tuning(rng):
    for name in RATES:
        for rate in (5e-3,) if section.quick else (1.25e-3, 2.5e-3, 5e-3, 1e-2, 2e-2):
            params = trained(name, np.random.default_rng(rng.integers(2**32)), rate=rate)
            yield name, rate, {"loss": bits_of(params, unseen)}


@section.experiment
def experiment(rng):
    for name in RATES:
        curve = {}

        def watch(step, loss, params, curve=curve):
            if step % EVERY == 0 or section.quick:
                curve[step] = bits_of(params, unseen)

        params = trained(name, rng, rate=section.rates[name], watch=watch)
        for step, on_the_way in curve.items():
            yield name, step, {"on the way": on_the_way}
        yield name, "all", {"known": bits_of(params, known), "unseen": bits_of(params, unseen), "best": min(curve.values())}


# %%
def of(found, measure, name):
    return found[measure][name]["all"]


def told(found, measure):
    return f"{measure} text " + ", ".join(f"{mean_and_spread(of(found, measure, name), '.3f')} with {name}" for name in RATES)


@section.claim(
    "Dropout lowers the loss on unseen text",
    paper="Srivastava et al. 2014, JMLR 15, abstract: it significantly reduces overfitting",
    measured=lambda found: told(found, "unseen") + " (bits a character)",
)
def helps(found):
    """With either rate of dropout at least 0.03 bits a character fewer than without, each side with the learning rate that suits it best."""
    return max(of(found, "unseen", name) for name in RATES if name != NONE) <= of(found, "unseen", NONE) - 0.03


@section.claim(
    "Does dropout make the text that is learned from harder?",
    paper="Srivastava et al. 2014, JMLR 15, section 1: a network that drops out cannot let its features make up for each other's mistakes",
    measured=lambda found: told(found, "known") + " (bits a character)",
)
def harder(found):
    """With either rate at least 0.03 bits a character more on the text that was learned from."""
    return min(of(found, "known", name) for name in RATES if name != NONE) >= of(found, "known", NONE) + 0.03


@section.report
def report(found):
    rows = []
    for name in RATES:
        rows.append([name, section.rates[name], *(mean_and_spread(of(found, measure, name), ".3f") for measure in ("known", "unseen", "best"))])
    rows.append(["pairs of characters, counted", None, None, f"{PAIRS:.3f}", None])
    section.table("dropout", ["network", "learning rate", "bits on the training text", "on unseen text", "best on the way"], rows)
    best = min(RATES, key=lambda name: np.mean(of(found, "unseen", name)))
    for prefix, name in (("", best), ("plain_", NONE)):
        section.values("dropout", {f"{prefix}train": np.mean(of(found, "known", name)), f"{prefix}unseen": np.mean(of(found, "unseen", name)),
                                   f"{prefix}best_on_the_way": np.mean(of(found, "best", name))})  # fmt: skip
    section.values("dropout", {"characters": len(text), "rate": RATES[best], "steps": STEPS, "counted": PAIRS})


@section.figure("dropout")
def picture(ax, found):
    lines(ax, found["on the way"], marker="", xlabel="step", ylabel="bits a character, unseen text")
    level(ax, PAIRS, "counted pairs")
    ax.legend()


if __name__ == "__main__":
    section.main()
