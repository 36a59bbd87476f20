"""Is a gate worth its place at equal size?

Shazeer 2020, arXiv:2002.05202, section 3: feed-forward networks with a gate reach lower losses than those with ReLU or GELU, at as many
parameters and products. Three characters' vectors side by side, one of the networks that is added to them, and a linear map to the scores of
the next character: exactly as many parameters with a gate and without. Once each has the learning rate that suits it best, and once all
have the same small one.
"""

# %%
from functools import partial

import numpy as np

import minitransformers as mt
from minitransformers.reporting import Section, bits, counted_pairs, mean_and_spread, processor_seconds
from minitransformers.reporting.networks import network, side_by_side
from minitransformers.training.fit import fit
from minitransformers.training.task import Labelled, labelled_loss
from minitransformers.training.text import Corpus

section = Section(__file__, __doc__, kind="trained")
CONTEXT, WIDTH, STEPS, BATCH, SMALL = 3, 16, 800, 256, 4e-3
PAIRS = {"GELU": "GELU and a gate (GeGLU)", "SiLU": "SiLU and a gate (SwiGLU)"}
ALL, OWN, SHARED = [name for pair in PAIRS.items() for name in pair], "own rate", "small rate"
corpus = Corpus.load(context=CONTEXT)
known, unseen = (np.lib.stride_tricks.sliding_window_view(ids, CONTEXT + 1) for ids in (corpus.train, corpus.validation))


# %%
def contestant(name):
    """Its init and itself; both forms hold 2 · 4 · 48² numbers."""
    activation = mt.slot(mt.gelu if name.startswith("GELU") else mt.silu)
    if name in PAIRS:
        return partial(mt.init_feed_forward, bias=False), partial(mt.feed_forward, activation=activation)
    return mt.init_gated_feed_forward, partial(mt.gated_feed_forward, activation=activation)


def fresh(rng, name):
    init, _ = contestant(name)
    d_model, size = CONTEXT * WIDTH, corpus.vocabulary.size
    return mt.init_embedding(rng, size, WIDTH, std=1.0), None, init(rng, d_model), mt.init_linear(rng, d_model, size)


def model(params, ids, *, name):
    _, part = contestant(name)
    return network(side_by_side, partial(mt.residual, part=part), mt.linear)(params, ids)


def draw(rng):
    drawn = known[rng.integers(len(known), size=BATCH)]
    return drawn[:, :-1], drawn[:, -1]


def trained(name, rng, *, rate):
    params, task = fresh(rng, name), Labelled(partial(model, name=name), draw)
    return fit(params, task, steps=50 if section.quick else STEPS, peak=rate, rng=rng, warmup=0.05, floor=0.02)


def bits_of(params, name):
    windows = unseen[:: 50 if section.quick else 1]
    (nats, number), _ = labelled_loss(*model(params, windows[:, :-1], name=name), windows[:, -1])
    return bits(nats / number)


@section.tuning
def tuning(rng):
    for name in ALL:
        for rate in (2e-2,) if section.quick else (1e-2, 1.5e-2, 2e-2, 3e-2, 4e-2, 8e-2):
            yield name, rate, {"loss": bits_of(trained(name, np.random.default_rng(rng.integers(2**32)), rate=rate), name)}


@section.experiment
def experiment(rng):
    for name in ALL:
        for which, rate in ((OWN, section.rates[name]), (SHARED, SMALL)):
            with processor_seconds() as spent:
                params = trained(name, rng, rate=rate)
            yield name, which, {"bits": bits_of(params, name), "parameters": mt.trees.count_parameters(params), "seconds": spent()}


# %%
def told(found, which):
    return ", ".join(f"{name} {mean_and_spread(found['bits'][name][which], '.3f')}" for name in ALL) + " bits a character"


def gains(found, which):
    """Bits a character that a gate saves, for each activation."""
    return [found["bits"][plain][which] - found["bits"][gated][which] for plain, gated in PAIRS.items()]


@section.claim(
    "Is a gate worth its place at equal size?",
    paper="Shazeer 2020, arXiv:2002.05202, section 3: gated networks reach lower losses than ReLU or GELU, at as many parameters and products",
    measured=lambda found: told(found, OWN),
)
def worth_it(found):
    """With GELU and with SiLU a gate saves at least 0.02 bits a character, each network with the learning rate that suits it best."""
    return min(gains(found, OWN)) >= 0.02


@section.claim(
    "Does a gate look better than it is at one small rate for all?",
    paper="no paper: what learns faster at a given rate is ahead as long as the rate is too small for both",
    measured=lambda found: f"at {SMALL:g}: {told(found, SHARED)}",
)
def looks_better(found):
    """With GELU and with SiLU a gate saves at least 0.02 bits a character at a rate of 0.004, and at least 0.02 more than at own rates."""
    return min(gains(found, SHARED)) >= 0.02 and min(s - o for s, o in zip(gains(found, SHARED), gains(found, OWN), strict=True)) >= 0.02


@section.report
def report(found):
    rows = []
    for name in ALL:
        size, seconds = (np.mean(found[measure][name][OWN]) for measure in ("parameters", "seconds"))
        own, small = (mean_and_spread(found["bits"][name][which], ".3f") for which in (OWN, SHARED))
        rows.append([name, int(size), float(f"{seconds:.1f}"), section.rates[name], own, small])
    rows.append(["pairs of characters, counted", corpus.vocabulary.size**2, None, None, f"{counted_pairs(corpus):.3f}", None])
    section.table("gate", ["network", "parameters", "processor seconds", "own rate", "bits a character", f"at a rate of {SMALL:g}"], rows)
    for which, key in ((OWN, "gain"), (SHARED, "gain_at_small_rate")):
        section.values(f"gated_feed_forward.{key}", {plain.lower(): np.mean(gain) for plain, gain in zip(PAIRS, gains(found, which), strict=True)})
    spread = max(np.std(found["bits"][name][OWN]) for name in ALL)
    section.values("gated_feed_forward", {"small_rate": SMALL, "spread": spread, "seeds": np.size(gains(found, OWN)[0])})


@section.figure("gate", size=(6.4, 2.8), ncols=2, sharey=True)
def picture(axes, found):
    for ax, which, title in zip(axes, (OWN, SHARED), ("each at its own rate", f"all at {SMALL:g}"), strict=True):
        for row, name in enumerate(reversed(ALL)):
            numbers = np.atleast_1d(found["bits"][name][which])
            ax.plot(numbers, [row] * len(numbers), "o", alpha=0.8)
        ax.set(title=title, xlabel="bits a character", yticks=range(len(ALL)))
    axes[0].set_yticklabels(list(reversed(ALL)))


if __name__ == "__main__":
    section.main()
