"""Who finds its partner anywhere in a text: a window, a global token, hashes or clusters?

Kitaev, Kaiser and Levskaya 2020, arXiv:2001.04451, section 2: hashing finds the keys that a query fits, wherever they stand, and more
rounds miss fewer of them. Roy et al. 2020, arXiv:2003.05997, section 4: clusters that are learned do as well. 32 names stand once in each
half of a text, in random orders. The first time a name carries one of 8 colours, the second time its colour is asked for.
"""

# %%
from functools import partial

import numpy as np

import minitransformers as mt
from minitransformers.reporting import Section, level, mean_and_spread, nats, tried
from minitransformers.reporting.networks import behind_norm, network, summed
from minitransformers.reporting.sparse_attention.by_content import ByClusters, by_hashes, by_place, pairs_seen
from minitransformers.reporting.sparse_attention.patterns import shared_attention
from minitransformers.training.fit import fit
from minitransformers.training.needles import matching
from minitransformers.training.task import Labelled, accuracy
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
NAMES, COLOURS, WIDTH, REACH, CHUNK, BUCKETS, STEPS = 32, 8, 32, 4, 8, 8, 300
LENGTH = 2 * NAMES
WINDOW, GLOBAL, ROUTING, DENSE = "window", "window and one global token", "routing", "dense"
ONE, WIDE, FOUR = "LSH, 1 round", "LSH, 1 round, wide", "LSH, 4 rounds"


# %% Who sees whom; nobody sees itself
place = np.arange(LENGTH)
near, first = abs(place - place[:, None]) <= REACH, place == 0
MIXERS = {
    WINDOW: lambda rng: by_place(near),
    GLOBAL: lambda rng: by_place(near | first | first[:, None]),  # one token cannot hold 32 colours
    ONE: lambda rng: by_hashes(1, num_buckets=BUCKETS, chunk=CHUNK),
    WIDE: lambda rng: by_hashes(1, num_buckets=2, chunk=2 * CHUNK),  # about as many pairs as four rounds
    FOUR: lambda rng: by_hashes(4, num_buckets=BUCKETS, chunk=CHUNK),
    ROUTING: lambda rng: ByClusters(rng, LENGTH // CHUNK, WIDTH, size=CHUNK),
    DENSE: lambda rng: by_place(np.ones((LENGTH, LENGTH), bool)),
}


# %% The task and the model: one layer, no positions
draw = partial(matching, num_names=NAMES, num_colours=COLOURS)


def fresh(rng):
    layers = [(mt.init_layer_norm(rng, WIDTH), mt.init_reformer_attention(rng, WIDTH, num_heads=1)),
              (mt.init_layer_norm(rng, WIDTH), mt.init_feed_forward(rng, WIDTH, d_hidden=2 * WIDTH))]  # fmt: skip
    words = mt.init_embedding(rng, NAMES + COLOURS + 1, WIDTH, std=1.0)
    return [words, None, *layers, mt.init_layer_norm(rng, WIDTH), mt.init_linear(rng, WIDTH, COLOURS)]


def model(params, ids, *, attend, rng):
    mixer = partial(shared_attention, attend=partial(attend, rng=rng))
    layers = [behind_norm(part, norm=mt.layer_norm) for part in (mixer, mt.feed_forward)]
    return network(summed, *layers, mt.layer_norm, mt.linear)(params, ids)


def examined(mixer, rng, *, rate):
    """What a trained model makes of 256 texts that are new to it, and the share of all pairs of positions that it joins."""
    attend, settings = MIXERS[mixer](rng), {"steps": 5 if section.quick else STEPS, "peak": rate, "warmup": 1 / 6, "floor": 0.02}
    task = Labelled(partial(model, attend=attend), partial(draw, batch_size=32), random=True)
    params = fit(fresh(rng), task, rng=rng, watch=getattr(attend, "follow", None), **settings)
    ids, colours = draw(rng, batch_size=256)
    logits, _ = model(params, ids, attend=attend, rng=rng)
    words, _, (norm, own), *_ = params
    shared, _ = mt.linear(own.shared, mt.layer_norm(norm, summed(None, mt.embedding(words, ids=ids)[0])[0])[0])
    return {"right": accuracy(logits, colours), "nats": nats(logits, colours), "pairs": pairs_seen(attend, shared, rng)}


@section.tuning
def tuning(rng):
    rates = (3e-3, 6e-3) if section.quick else (1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2)
    yield from tried(lambda mixer, rng, *, rate: examined(mixer, rng, rate=rate)["nats"], MIXERS, rates, rng, alike=False)


@section.experiment
def experiment(rng):
    hold_blas()                                              # seeds run side by side, and the arrays are small
    for mixer in MIXERS:
        yield mixer, "all", examined(mixer, rng, rate=section.rates[mixer])


# %%
def told(found, *mixers):
    return ", ".join(f"{mixer} {', '.join(f'{share:.2f}' for share in np.atleast_1d(found['right'][mixer]['all']))}" for mixer in mixers)


@section.claim(
    "Hashes and clusters find a partner that no window sees",
    paper="Kitaev et al. 2020, arXiv:2001.04451, section 2; Roy et al. 2020, arXiv:2003.05997, section 4",
    measured=lambda found: f"{told(found, WINDOW, GLOBAL, FOUR, ROUTING, DENSE)}; guessing {1 / COLOURS}",
)
def finds(found):
    """Right: at most 0.25 with a window, with or without a global token; at least 0.8 with four rounds, 0.5 with clusters, 0.95 dense."""
    right = {mixer: of["all"] for mixer, of in found["right"].items()}
    return max(right[WINDOW], right[GLOBAL]) <= 0.25 and right[FOUR] >= 0.8 and right[ROUTING] >= 0.5 and right[DENSE] >= 0.95


@section.claim(
    "Do more rounds of hashing miss fewer partners?",
    paper="Kitaev et al. 2020, arXiv:2001.04451, section 2: with several rounds it is less likely that similar items fall in different buckets",
    measured=lambda found: told(found, ONE, FOUR),
)
def rounds(found):
    """Four rounds are right in at least 0.2 more of all cases than one."""
    return found["right"][FOUR]["all"] >= found["right"][ONE]["all"] + 0.2


@section.claim(
    "Are four rounds better than one that sees as many pairs?",
    paper="no paper compares them at equal numbers of pairs: four rounds also see three times as many as one",
    measured=lambda found: told(found, WIDE, FOUR) + f"; pairs {pairs(found, WIDE):.2f} and {pairs(found, FOUR):.2f}",
)
def fair(found):
    """Four rounds are right in at least 0.05 more of all cases than one round of a quarter of the buckets and chunks twice as long."""
    return found["right"][FOUR]["all"] >= found["right"][WIDE]["all"] + 0.05


def pairs(found, mixer):
    return found["pairs"][mixer]["all"].mean()


@section.report
def report(found):
    rows = [[mixer, mean_and_spread(of["all"], ".3f"), float(f"{pairs(found, mixer):.2f}")] for mixer, of in found["right"].items()]
    section.table("match", ["mixer", "right answers", "share of pairs seen"], rows)
    for mixer, key in zip(MIXERS, ("window", "global", "one", "wide", "four", "routing", "dense"), strict=True):
        section.values(f"match.{key}", {"right": found["right"][mixer]["all"].mean(), "pairs": pairs(found, mixer)})
    section.values("match", {"chance": 1 / COLOURS, "steps": STEPS, "names": NAMES})


@section.figure("match", size=(5.2, 3))
def picture(ax, found):
    for mixer, of in found["right"].items():
        ax.plot(np.atleast_1d(found["pairs"][mixer]["all"]), np.atleast_1d(of["all"]), "o", label=mixer)
    ax.set(xlabel="share of pairs seen", ylabel="share of right answers", ylim=(0, 1.05))
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    level(ax, 1 / COLOURS, "guessing")


if __name__ == "__main__":
    section.main()
