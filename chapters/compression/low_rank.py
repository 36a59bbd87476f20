"""How thin can a matrix be, and does it matter what it is multiplied with?

Eckart and Young 1936: no matrix of the same rank is nearer than the one that the largest singular values make. But nearer to the matrix is not
nearer to what the model computes. Wang et al. 2024 (SVD-LLM), arXiv:2403.07378: weigh by the inputs, and the loss is that of the outputs. The 21
matrices of a small Llama become products of two thin ones, which hold a part of their numbers; inputs are those of some windows of what it has
read. Then they learn on for some updates, thin as they are.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.compression.low_rank_linear import low_rank_weight
from minitransformers.foundation import trees
from minitransformers.peft.targets import targets
from minitransformers.reporting import Section, counted_pairs, lines, matrices, mean_and_spread, tried
from minitransformers.reporting.base import load_base
from minitransformers.reporting.compression import smaller as of

section = Section(__file__, __doc__, kind="trained")
SHARES, STEPS, WINDOWS = (0.3, 0.5, 0.75, 0.9), 200, 64
PLAIN, WEIGHTED = "plain", "weighted by inputs"
LATER = "{}, then learned on"
FLOAT = "whole, as many updates"
RECOVERED = {LATER.format(way) + f", {share:.0%}": (way, share) for way in (PLAIN, WEIGHTED) for share in SHARES[:2]}


def thin(way, share, rng):
    """The base with thin matrices in the place of its own, and the share of numbers that they hold."""
    base = load_base()
    tree = of.at_matrices(partial(matrices.thin, share=share), base, of.base_inputs(rng, windows=WINDOWS) if way == WEIGHTED else None)
    chosen = set(targets(base, of.MATRICES))
    whole = sum(leaf.size for path, leaf in trees.leaves(base) if path in chosen)
    rest = trees.count_parameters(base) - whole
    return tree, (trees.count_parameters(tree) - rest) / whole


def settings(reported):
    return {"base": load_base(), "change": low_rank_weight, "reported": reported, "windows": 16 if section.quick else None}


def recovered(name, rng, *, rate, reported=False):
    if name == FLOAT:
        params = load_base()
    else:
        params, _ = thin(*RECOVERED[name], rng)
    steps = 5 if section.quick else STEPS
    return of.bits_of(of.learned(params, rng, steps=steps, rate=rate, **settings(reported)), **settings(reported))


@section.tuning
def tuning(rng):
    rates = {FLOAT: (1e-3,) if section.quick else (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)}
    rates |= dict.fromkeys(RECOVERED, (1e-3, 3e-3) if section.quick else (3e-4, 1e-3, 3e-3, 1e-2))
    yield from tried(recovered, (FLOAT, *RECOVERED), rates, rng)


@section.experiment
def experiment(rng):
    yield FLOAT, 0.0, {"whole": of.bits_of(load_base(), **settings(True))}
    for way in (PLAIN, WEIGHTED):
        for share in SHARES:
            params, held = thin(way, share, rng)
            yield way, share, {"bits": of.bits_of(params, **settings(True)), "held": held}
    for name in (FLOAT, *RECOVERED):
        way, share = RECOVERED.get(name, (FLOAT, 1.0))
        yield LATER.format(way) if name != FLOAT else FLOAT, share, {"bits": recovered(name, rng, rate=section.rates[name], reported=True)}


# %%
def told(found, *ways, shares=SHARES):
    return "; ".join(f"{share:.0%}: " + ", ".join(f"{way} {mean_and_spread(found['bits'][way][share], '.3f')}" for way in ways) for share in shares)


def whole(found):
    return found["whole"][FLOAT][0.0]


@section.claim(
    "Weighed by inputs thin matrices lose less",
    paper="Wang et al. 2024, arXiv:2403.07378, table 2: the more so the thinner",
    measured=lambda found: f"whole {mean_and_spread(whole(found), '.3f')}; " + told(found, PLAIN, WEIGHTED),
)
def weights_help(found):
    """At every share they cost at most 0.8 of the bits that plain ones cost."""
    return all(found["bits"][WEIGHTED][share] - whole(found) <= 0.8 * (found["bits"][PLAIN][share] - whole(found)) for share in SHARES)


@section.claim(
    "Is it still worth it when the model learns on?",
    paper="no paper: where nothing is retrained, weighing is all there is",
    measured=lambda found: told(found, LATER.format(PLAIN), LATER.format(WEIGHTED), shares=SHARES[:2]) + f"; {FLOAT} {mean_and_spread(found['bits'][FLOAT][1.0], '.3f')}",
)
def still_worth(found):
    """At 30 % and 50 % of the numbers the weighted start ends at most at 0.9 of the bits above the whole model that the plain one ends at."""
    after = found["bits"][FLOAT][1.0]
    return all(found["bits"][LATER.format(WEIGHTED)][share] - after <= 0.9 * (found["bits"][LATER.format(PLAIN)][share] - after) for share in SHARES[:2])


@section.claim(
    "Matrices of a small language model are not of low rank",
    paper="Hsu et al. 2022, arXiv:2207.00112, abstract: how near a matrix comes says little about how well the model does",
    measured=lambda found: f"whole {mean_and_spread(whole(found), '.3f')}; {told(found, PLAIN, WEIGHTED, shares=SHARES[-1:])}",
)
def not_low(found):
    """Even with nine tenths of the numbers that would break even, plain truncation costs at least 0.1 bits a character."""
    return found["bits"][PLAIN][SHARES[-1]] - whole(found) >= 0.1


@section.report
def report(found):
    ways = [PLAIN, WEIGHTED, LATER.format(PLAIN), LATER.format(WEIGHTED)]
    rows = [["pairs of bytes counted", f"{counted_pairs(of.corpora()[True]):.3f}", *[""] * len(SHARES)], ["whole", mean_and_spread(whole(found), ".3f"), *[""] * len(SHARES)]]
    rows.append([FLOAT, mean_and_spread(found["bits"][FLOAT][1.0], ".3f"), *[""] * len(SHARES)])
    rows += [[way, "", *(mean_and_spread(found["bits"][way][share], ".3f") if share in found["bits"][way] else "" for share in SHARES)] for way in ways]
    section.table("low_rank", ["bits a character, with of the numbers", "all", *(f"{share:.0%}" for share in SHARES)], rows)
    for key, way in (("plain", PLAIN), ("weighted", WEIGHTED)):
        section.values(f"low_rank.{key}", {f"s{100 * share:.0f}": found["bits"][way][share].mean() for share in SHARES})
    section.values("low_rank", {"whole": whole(found).mean(), "steps": STEPS, "windows": WINDOWS})


@section.figure("low_rank", size=(6, 3.4))
def picture(ax, found):
    lines(ax, {way: of_shares for way, of_shares in found["bits"].items() if way != FLOAT}, xlabel="share of the numbers", ylabel="bits a character")
    ax.axhline(float(np.mean(whole(found))), color="0.5", linestyle=":")
    ax.legend()


if __name__ == "__main__":
    section.main()
