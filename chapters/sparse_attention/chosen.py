"""How much of dense attention's weight do hashes, clusters and chosen blocks keep?

Kitaev et al. 2020, arXiv:2001.04451, section 2: a softmax is decided by its largest scores, and hashing finds them. Roy et al. 2020,
arXiv:2003.05997, section 4: so do clusters. Lu et al. 2025, arXiv:2502.13189: a query chooses blocks. A small language model learns real text
with dense attention. Then each is laid on its weights, beside as many keys for every query that are drawn at random, that are the nearest,
and that are the best there are; and the model predicts from what it lets through.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.reporting import Section, bits, mean_and_spread, nats
from minitransformers.reporting.patterns import (
    centroids_of,
    clustered,
    dense,
    hashed,
    in_blocks,
    init_dense,
    kept_weight,
    met,
    read_through,
)
from minitransformers.sparse_attention.compressed_attention import most_read_blocks
from minitransformers.sparse_attention.moba import moba_selection
from minitransformers.training.fit import fit
from minitransformers.training.task import IGNORED, Labelled
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
LENGTH, WIDTH, HEADS, STEPS = 96, 48, 4, 300
TEXTS, FIRST = 16, 32                                        # that are measured, and their first query: earlier ones have few keys to choose from
LAYERS = ("first layer", "second layer")
ONE, FOUR, MOBA, NATIVE, ROUTING = "LSH, 1 round", "LSH, 4 rounds", "MoBA", "NSA's selected blocks", "routing"
BLOCK, TOP, BUCKETS, CLUSTERS = 8, 4, 8, 8                   # TOP blocks are chosen
model, corpus = partial(dense, num_heads=HEADS), Corpus.load(context=LENGTH)


# %% The model learns with dense attention
def trained(rng, *, rate):
    params = init_dense(rng, corpus.vocabulary.size, WIDTH, num_layers=len(LAYERS), num_heads=HEADS, std=0.1)
    task = Labelled(model, partial(corpus.batch, batch_size=8, context=LENGTH))
    return fit(params, task, steps=5 if section.quick else STEPS, peak=rate, rng=rng, warmup=0.1, floor=0.05)


def bits_of(params, texts, **settings):
    """Bits a character, from query FIRST on."""
    ids, targets = texts
    return bits(nats(model(params, ids, **settings)[0], np.where(np.arange(LENGTH) < FIRST, IGNORED, targets)))


@section.tuning
def tuning(rng):
    hold_blas()
    texts = next(corpus.evaluation_batches(batch_size=64, context=LENGTH, limit=64))
    for rate in (5e-3, 1e-2, 2e-2):
        yield "dense", rate, {"loss": bits_of(trained(np.random.default_rng(rng.integers(2**32)), rate=rate), texts)}


# %% Who sees whom
def of_each_head(query, key, **sizes):
    """The native choice where every head has keys of its own, and chooses for itself."""
    return most_read_blocks(query[..., None, :, :], key, **sizes)


def patterns(rng, params):
    """For each layer, by name. Clusters are found in a text to train on."""
    seed, learned = int(rng.integers(2**32)), met(params, corpus.batch(rng, batch_size=TEXTS, context=LENGTH)[0], num_heads=HEADS)
    alike = {name: hashed(rounds=rounds, num_buckets=BUCKETS, seed=seed) for name, rounds in ((ONE, 1), (FOUR, 4))}
    alike |= {name: in_blocks(choice, block=BLOCK, top=TOP) for name, choice in ((MOBA, moba_selection), (NATIVE, of_each_head))}
    return [{**alike, ROUTING: clustered(centroids_of(rng, *both, clusters=CLUSTERS), size=LENGTH // 4)} for both in learned]


@section.experiment
def experiment(rng):
    hold_blas()                                              # seeds run side by side, and the arrays are small
    params = trained(rng, rate=section.rates["dense"])
    seers = patterns(rng, params)
    texts = next(corpus.evaluation_batches(batch_size=TEXTS, context=LENGTH, limit=TEXTS))
    for name in seers[0]:
        yield name, "both", {"bits": bits_of(params, texts, cores=[read_through(of_layer[name]) for of_layer in seers])}
    for layer, both, of_layer in zip(LAYERS, met(params, texts[0], num_heads=HEADS), seers, strict=True):
        for name, shares in kept_weight(rng, *both, of_layer, first=FIRST).items():
            yield name, layer, shares


# %%
def told(found, other, *names):
    """What they keep in each layer, and then as many keys that are chosen otherwise."""

    def each(measure):
        return ", ".join(f"{name} {' and '.join(mean_and_spread(of) for of in found[measure][name].values())}" for name in names)

    return "; ".join(f"{measure}: {each(measure)}" for measure in ("kept", other))


def more(found, name, other):
    """How much more a pattern keeps than as many keys that are chosen otherwise, in each layer."""
    return [found["kept"][name][layer] - found[other][name][layer] for layer in LAYERS]


@section.claim(
    "Hashes and clusters keep more than as many random keys",
    paper="Kitaev et al. 2020, arXiv:2001.04451, section 2; Roy et al. 2020, arXiv:2003.05997, section 4: attention to the keys that are nearest",
    measured=lambda found: told(found, "random", FOUR, ROUTING),
)
def chance(found):
    """Four rounds of hashing and clusters keep at least 0.1 more of the weight than as many keys drawn at random, in each layer."""
    return min(more(found, FOUR, "random") + more(found, ROUTING, "random")) >= 0.1


@section.claim(
    "Do hashes or clusters keep more than as many nearest keys?",
    paper="no paper compares them at equal numbers of keys",
    measured=lambda found: told(found, "nearest", FOUR, ROUTING),
)
def nearest(found):
    """In one layer at least, four rounds of hashing or clusters keep 0.02 more of the weight than as many nearest keys."""
    return max(more(found, FOUR, "nearest") + more(found, ROUTING, "nearest")) >= 0.02


@section.claim(
    "Do blocks that a query chooses keep more than as many nearest keys?",
    paper="Lu et al. 2025, arXiv:2502.13189, section 2.2: a query attends to the blocks that matter most to it",
    measured=lambda found: told(found, "nearest", MOBA),
)
def chosen(found):
    """In one layer at least, MoBA keeps 0.02 more of the weight than as many nearest keys."""
    return max(more(found, MOBA, "nearest")) >= 0.02


@section.report
def report(found):
    measures, bits = ("pairs", "kept", "random", "nearest", "best"), {name: of["both"] for name, of in found["bits"].items()}
    rows = [[name, layer, *(mean_and_spread(found[measure][name][layer]) for measure in measures)] for layer in LAYERS for name in found["kept"]]
    section.table("chosen", ["pattern", "in the", "pairs seen", "weight kept", "as many at random", "as many nearest", "as many best"], rows)
    section.table("chosen_bits", ["read through", "bits a character"], [[name, mean_and_spread(of)] for name, of in bits.items()])
    for key, name in zip(("one", "four", "moba", "native", "routing"), found["kept"], strict=True):
        for layer, number in zip(LAYERS, ("first", "second"), strict=True):
            section.values(f"kept.{key}.{number}", {measure: found[measure][name][layer].mean() for measure in measures})
        section.value(f"kept.{key}.bits", bits[name].mean())


@section.figure("chosen", size=(7.2, 2.2), ncols=2, sharey=True)
def picture(axes, found):
    for ax, layer in zip(axes, LAYERS, strict=True):
        for place, name in enumerate(found["kept"]):
            at = {measure: np.mean(found[measure][name][layer]) for measure in ("kept", "random", "nearest", "best")}
            ax.plot([at["random"], at["best"]], [place, place], color="#808080", linewidth=3, alpha=0.5, solid_capstyle="butt")
            ax.plot(at["nearest"], place, "|", color="#d0691f", markersize=11, markeredgewidth=2)
            ax.plot(at["kept"], place, "o", color="#2f7ebf")
        ax.set(title=layer, xlabel="share of the weight", xlim=(0, 1.02))
    axes[0].set_yticks(range(len(found["kept"])), list(found["kept"]))
    axes[0].invert_yaxis()


if __name__ == "__main__":
    section.main()
