"""What joins three characters into a guess of the fourth?

Bengio et al. 2003, JMLR 3:1137: a neural network on learned vectors beats counted n-grams. Vaswani et al. 2017, arXiv:1706.03762, section 3.3:
two maps with an activation between them, at each position. Here: three vectors side by side, a feed-forward network that is added to them,
a linear map to the scores of the next character. Beside it stand the same without its activation, one without the network whose vectors are
wider, and one that sees the last character alone. All have the same number of parameters, to one in a hundred, and a learning rate of their own.
"""

# %%
from functools import partial

import numpy as np

import minitransformers as mt
from minitransformers.reporting import Section, bits, lines, mean_and_spread, processor_seconds, size_and_time
from minitransformers.reporting.networks import network, side_by_side
from minitransformers.training.fit import fit
from minitransformers.training.task import Labelled, labelled_loss
from minitransformers.training.text import Corpus
from minitransformers.training.yardsticks import counted

section = Section(__file__, __doc__, kind="trained")
CONTEXT, STEPS, BATCH, EVERY = 3, 800, 256, 100
NETWORK, UNBENT, WIDER, ALONE = "feed-forward", "feed-forward, no activation", "no feed-forward", "feed-forward, last character alone"
corpus = Corpus.load(context=CONTEXT)
characters = corpus.vocabulary.size
PAIRS, JUDGED = map(counted(corpus.train_text, corpus.validation_text).get, ("bigram", "bigram_oracle"))  # of the text learned from, and of the judged
known, unseen = (np.lib.stride_tricks.sliding_window_view(ids, CONTEXT + 1) for ids in (corpus.train, corpus.validation))


# %% Vectors side by side, a network that is added to them, and scores
@mt.slot
def identity(x):
    return x, lambda dout: dout


# What stands between the vectors and the scores, how many characters are seen, numbers of a vector, and of hidden features.
CONTESTANTS = {
    NETWORK: ((partial(mt.residual, part=mt.feed_forward),), CONTEXT, 16, 192),
    UNBENT: ((partial(mt.residual, part=partial(mt.feed_forward, activation=identity)),), CONTEXT, 16, 192),
    WIDER: ((), CONTEXT, 61, 0),
    ALONE: ((partial(mt.residual, part=mt.feed_forward),), 1, 48, 158),
}


def fresh(rng, name):
    networks, context, width, hidden = CONTESTANTS[name]
    between = [mt.init_feed_forward(rng, context * width, d_hidden=hidden, bias=False) for _ in networks]
    return mt.init_embedding(rng, characters, width, std=1.0), None, *between, mt.init_linear(rng, context * width, characters)


def model(params, ids, *, name):
    networks, context, *_ = CONTESTANTS[name]
    return network(side_by_side, *networks, mt.linear)(params, ids[:, -context:])


# %%
def draw(rng):
    drawn = known[rng.integers(len(known), size=BATCH)]
    return drawn[:, :-1], drawn[:, -1]


def bits_of(params, name, *, every=1):
    """Bits a character at every place of the unseen text, or at one of so many."""
    windows = unseen[:: 50 if section.quick else every]
    (nats, number), _ = labelled_loss(*model(params, windows[:, :-1], name=name), windows[:, -1])
    return bits(nats / number)


def trained(name, rng, *, rate, watch=None):
    params, task = fresh(rng, name), Labelled(partial(model, name=name), draw)
    return fit(params, task, steps=EVERY // 2 if section.quick else STEPS, peak=rate, rng=rng, warmup=0.05, floor=0.02, watch=watch)


@section.tuning
def tuning(rng):
    for name in CONTESTANTS:
        for rate in (2e-2,) if section.quick else (1e-2, 1.5e-2, 2e-2, 3e-2, 4e-2, 8e-2):
            yield name, rate, {"loss": bits_of(trained(name, np.random.default_rng(rng.integers(2**32)), rate=rate), name)}


@section.experiment
def experiment(rng):
    for name in CONTESTANTS:
        curve, aside = {}, []

        def watch(step, loss, params, name=name, curve=curve, aside=aside):
            if step % EVERY == 0 or section.quick:
                with processor_seconds() as measuring:
                    curve[step] = bits_of(params, name, every=9)
                aside.append(measuring())

        with processor_seconds() as spent:
            params = trained(name, rng, rate=section.rates[name], watch=watch)
        for step, on_the_way in curve.items():
            yield name, step, {"on the way": on_the_way}
        yield name, "all", {"bits": bits_of(params, name), "parameters": mt.trees.count_parameters(params), "seconds": spent() - sum(aside)}


# %%
def of(found, name, measure="bits"):
    return found[measure][name]["all"]


def told(found, *names):
    return ", ".join(f"{name} {mean_and_spread(of(found, name), '.3f')}" for name in names) + " bits a character"


@section.claim(
    "A small network on three characters beats counting pairs",
    paper="Bengio et al. 2003, JMLR 3:1137, section 4: a neural network on learned vectors beats counted n-grams",
    measured=lambda found: f"{told(found, NETWORK)}, against {PAIRS:.3f} for pairs counted on the training text and {JUDGED:.3f} on the text that is judged",
)
def beats_pairs(found):
    """At least 0.2 bits a character fewer than pairs counted on the very text that is judged, which no honest table of pairs can reach."""
    return of(found, NETWORK) <= JUDGED - 0.2


@section.claim(
    "The feed-forward network is what joins the three characters",
    paper="Vaswani et al. 2017, arXiv:1706.03762, section 3.3: two maps with an activation between them, at each position",
    measured=lambda found: told(found, *CONTESTANTS),
)
def joins(found):
    """Without its activation, or without the network, at least 0.3 bits a character more, at as many parameters: three characters only add up."""
    return min(of(found, UNBENT), of(found, WIDER)) >= of(found, NETWORK) + 0.3


@section.report
def report(found):
    rows = []
    for name in CONTESTANTS:
        rows.append([name, section.rates[name], *size_and_time(found, name), mean_and_spread(of(found, name), ".3f")])
    for name, number in zip(("pairs of characters, counted", "pairs, counted on the very text that is judged"), (PAIRS, JUDGED), strict=True):
        rows.append([name, None, characters**2, None, f"{number:.3f}"])
    section.table("next_character", ["model", "learning rate", "parameters", "processor seconds", "bits a character"], rows)
    keys = {"bits": NETWORK, "bits_unbent": UNBENT, "bits_without": WIDER, "bits_alone": ALONE}
    section.values("feed_forward", {key: np.mean(of(found, name)) for key, name in keys.items()})
    section.values("feed_forward", {"bits_counted": PAIRS, "bits_oracle": JUDGED, "steps": STEPS, "seeds": np.size(of(found, NETWORK))})


@section.figure("next_character", size=(7.6, 3.2))
def picture(ax, found):
    lines(ax, found["on the way"], marker="", xlabel="step", ylabel="bits a character, unseen text")
    ax.axhline(PAIRS, linestyle=":", color="#808080", label="counted pairs")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


if __name__ == "__main__":
    section.main()
