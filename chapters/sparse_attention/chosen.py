"""How much of dense attention's weight do hashes, clusters and chosen blocks keep?

Kitaev et al. 2020, arXiv:2001.04451, section 2: a softmax is decided by its largest scores, and hashing finds them. Roy et al. 2020,
arXiv:2003.05997, section 4: so do clusters. Lu et al. 2025, arXiv:2502.13189: a query chooses blocks. A small language model learns real text
with dense attention. Then each is laid on its weights, beside as many keys for every query that are drawn at random, that are the nearest,
and that are the best there are; and the model predicts from what it lets through.
"""

# %%
from minitransformers.reporting import Section, mean_and_spread, tried
from minitransformers.reporting.sparse_attention import dense_weights
from minitransformers.reporting.sparse_attention.dense_weights import (
    HEADS,
    LENGTH,
    TEXTS,
    bits_of,
    corpus,
    laid_on,
    more,
    told,
    unread,
)
from minitransformers.reporting.sparse_attention.patterns import centroids_of, clustered, hashed, in_blocks, met
from minitransformers.sparse_attention.compressed_attention import most_read_blocks
from minitransformers.sparse_attention.moba import moba_selection
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
ONE, FOUR, MOBA, NATIVE, ROUTING = "LSH, 1 round", "LSH, 4 rounds", "MoBA", "NSA's selected blocks", "routing"
BLOCK, TOP, BUCKETS, CLUSTERS = 8, 4, 8, 8                   # TOP blocks are chosen


# %% The model learns with dense attention
def trained(rng, *, rate):
    return dense_weights.trained(rng, rate=rate, steps=5 if section.quick else dense_weights.STEPS)


@section.tuning
def tuning(rng):
    yield from tried(lambda _, rng, *, rate: bits_of(trained(rng, rate=rate), unread(64)), ["dense"], (5e-3, 1e-2, 2e-2), rng, alike=False)


# %% Who sees whom
def of_each_head(query, key, **sizes):
    """The native choice where every head has keys of its own, and chooses for itself."""
    return most_read_blocks(query[..., None, :, :], key, **sizes)


def patterns(rng, params):
    """For each layer, by name. Clusters are found in a text to train on."""
    seed, learned = int(rng.integers(2**32)), met(params, corpus().batch(rng, batch_size=TEXTS, context=LENGTH)[0], num_heads=HEADS)
    alike = {name: hashed(rounds=rounds, num_buckets=BUCKETS, seed=seed) for name, rounds in ((ONE, 1), (FOUR, 4))}
    alike |= {name: in_blocks(choice, block=BLOCK, top=TOP) for name, choice in ((MOBA, moba_selection), (NATIVE, of_each_head))}
    return [{**alike, ROUTING: clustered(centroids_of(rng, *both, clusters=CLUSTERS), size=LENGTH // 4)} for both in learned]


@section.experiment
def experiment(rng):
    hold_blas()                                              # seeds run side by side, and the arrays are small
    params = trained(rng, rate=section.rates["dense"])
    yield from laid_on(params, patterns(rng, params), rng)


# %%
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
    section.table("chosen", dense_weights.COLUMNS, dense_weights.rows(found))
    section.table("chosen_bits", ["read through", "bits a character"], [[name, mean_and_spread(of["both"])] for name, of in found["bits"].items()])
    for key, name in zip(("one", "four", "moba", "native", "routing"), found["kept"], strict=True):
        section.values(f"kept.{key}", dense_weights.means(found, name))


@section.figure("chosen", size=(7.2, 2.2), ncols=2, sharey=True)
def picture(axes, found):
    dense_weights.draw(axes, found)


if __name__ == "__main__":
    section.main()
