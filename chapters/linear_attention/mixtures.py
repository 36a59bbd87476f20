"""How many mixtures of the keys does attention need, and does a mixture that nobody trained help?

Wang et al. 2020, arXiv:2006.04768, section 3 and theorem 1: weights of attention are close to a matrix of low rank, and a random
projection of a size that does not depend on the number of positions is enough. Held against the best matrix of each rank (from
the singular values), on random queries and keys and on clustered ones; the error is that of what is read, over its own size.
"""

# %%
import numpy as np

from minitransformers.attention.scaled_dot_product_attention import attention_weights
from minitransformers.linear_attention.linformer import Linformer, linformer
from minitransformers.reporting import Section, fitted_exponent, level

section = Section(__file__, __doc__, kind="arithmetic")
POSITIONS, WIDTH, CLUSTERS, RANKS = 256, 16, 8, (8, 16, 32, 64, 128)
INPUTS = ("random", "clustered")
BEST, POOLED, RANDOM, LAYER = "best of this rank", "means of neighbours", "random projection", "Linformer, untrained"


def text(rng, kind):
    """Queries, keys and values of a text: independent, or near one of a few centres, in any order."""
    if kind == "random":
        return rng.normal(size=(3, POSITIONS, WIDTH))
    member = rng.integers(CLUSTERS, size=POSITIONS)
    centres = rng.normal(size=(3, CLUSTERS, WIDTH))
    centres[1] = centres[0]                                  # a query looks for the keys of its own cluster
    return centres[:, member] + 0.2 * rng.normal(size=(3, POSITIONS, WIDTH))


def error(approximate, exact):
    return np.linalg.norm(approximate - exact) / np.linalg.norm(exact)


@section.experiment
def experiment(rng):
    for kind in INPUTS:
        query, key, value = text(rng, kind)
        weights = attention_weights(query, key)
        exact = weights @ value
        left, sizes, right = np.linalg.svd(weights)
        for rank in RANKS:
            best = (left[:, :rank] * sizes[:rank]) @ (right[:rank] @ value)
            means = np.kron(np.eye(rank), np.full((1, POSITIONS // rank), rank / POSITIONS))
            drawn = rng.normal(size=(rank, POSITIONS)) / rank**0.5
            yield BEST, (kind, rank), {"error": error(best, exact)}
            yield POOLED, (kind, rank), {"error": error(linformer(Linformer(means[None], None), query, key, value)[0], exact)}
            yield RANDOM, (kind, rank), {"error": error(weights @ drawn.T @ (drawn @ value), exact)}
            yield LAYER, (kind, rank), {"error": error(linformer(Linformer(drawn[None], None), query, key, value)[0], exact)}


# %%
@section.claim(
    "Weights are of low rank where queries and keys are clustered, not by themselves",
    paper="Wang et al. 2020, section 3.1: the self-attention matrix is low-rank",
    measured=lambda found: f"error of the best matrix of rank {RANKS[0]}: {mean(found, BEST, 'clustered', 8):.3f} clustered, "
    f"{mean(found, BEST, 'random', 8):.2f} random",
)
def low_rank(found):
    """With as many singular values as there are clusters the error is at most 0.05; of random queries and keys it is at least 0.4."""
    of = found["error"][BEST]
    return of["clustered", CLUSTERS] <= 0.05 and of["random", CLUSTERS] >= 0.4


@section.claim(
    "Does a random projection get better with the root of its rank, and slowly?",
    paper="Wang et al. 2020, theorem 1: an error of epsilon asks for a rank that grows as 1 over epsilon squared",
    measured=lambda found: f"exponent {slope(found, 'random'):.2f} random, {slope(found, 'clustered'):.2f} clustered; "
    f"at rank {RANKS[-1]} the error is still {mean(found, RANDOM, 'random', RANKS[-1]):.1f} and {mean(found, RANDOM, 'clustered', RANKS[-1]):.2f}",
)
def root(found):
    """The error falls with an exponent between -0.35 and -0.6, for both kinds of text."""
    return all(-0.6 <= slope(found, kind) <= -0.35 for kind in INPUTS)


@section.claim(
    "Few mixtures that nobody trained are worse than reading nothing",
    paper="Wang et al. 2020, section 4: the projections are learned",
    measured=lambda found: "; ".join(f"{kind}, rank {r}: {mean(found, LAYER, kind, r):.1f}" for kind in INPUTS for r in (RANKS[0], RANKS[-1])),
)
def untrained(found):
    """With a mixture for 32 positions the layer's error is above 1, that of reading nothing, for both kinds of text."""
    return all(found["error"][LAYER][kind, RANKS[0]] > 1 for kind in INPUTS)


def mean(found, name, kind, rank):
    return float(np.mean(found["error"][name][kind, rank]))


def slope(found, kind):
    return fitted_exponent(RANKS, [mean(found, RANDOM, kind, rank) for rank in RANKS])


@section.report
def report(found):
    columns = ["error of what is read", *(f"{kind}, rank {rank}" for kind in INPUTS for rank in (8, 32, 128))]
    names = (BEST, POOLED, RANDOM, LAYER)
    section.table("mixtures", columns, [[n, *(mean(found, n, k, r) for k in INPUTS for r in (8, 32, 128))] for n in names])
    section.values("linformer", {"low": mean(found, BEST, "clustered", 8), "full": mean(found, BEST, "random", 8),
                                 "untrained": mean(found, LAYER, "clustered", 8)})  # fmt: skip


@section.figure("mixtures", size=(7, 3), ncols=2, sharey=True)
def picture(axes, found):
    for ax, kind in zip(axes, INPUTS, strict=True):
        for name in (BEST, POOLED, RANDOM, LAYER):
            errors = np.array([found["error"][name][kind, rank] for rank in RANKS])
            ax.plot(RANKS, errors.mean(-1), label=name)
            ax.fill_between(RANKS, errors.min(-1), errors.max(-1), alpha=0.2)
        level(ax, 1.0, "reading nothing")
        ax.set(xscale="log", yscale="log", xlabel="rank", title=f"{kind} queries and keys", ylim=(1e-4, 200))
    axes[0].set_ylabel("error of what is read, over its size")
    axes[0].legend(loc="lower left", fontsize=7)


if __name__ == "__main__":
    section.main()
