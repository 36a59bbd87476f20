"""Which weights can go: the small ones, or those that move towards zero?

Sanh, Wolf and Rush 2020, arXiv:2005.07683, section 6: in a model that is trained for something new, how a weight moves says more than how large
it was, the more so the fewer stay; where half stay, magnitude is as good. The reader of the shifting language learns the language as it became,
and meanwhile loses weights along Zhu and Gupta's cubic schedule (arXiv:1710.01878), each of its twelve matrices as many. The mask is made anew
before each update, of magnitudes, of scores that learn, or once and by lot. A dense reader takes the same updates beside them.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.compression.masked_weight import MaskedWeight
from minitransformers.compression.movement_pruning import init_movement_pruning
from minitransformers.foundation import reparameterize, trees
from minitransformers.peft.targets import targets
from minitransformers.reporting import Section, lines, mean_and_spread, tried
from minitransformers.reporting import adaptation as at
from minitransformers.reporting.compression.changes import Sparser
from minitransformers.training.fit import fit
from minitransformers.training.task import Labelled

section = Section(__file__, __doc__, kind="trained")
EVERYWHERE, STEPS = ["attention.*.weight", "feed_forward.*.weight"], 400
KEPT = (0.5, 0.15, 0.05)
DENSE, MAGNITUDE, ONCE, MOVEMENT, RANDOM = "all weights", "magnitude", "magnitude, of the old model", "movement", "by lot"
KEYS = {"magnitude": MAGNITUDE, "once": ONCE, "movement": MOVEMENT, "random": RANDOM}


# %% What a mask goes by: scores(weight, base)
def by_lot(weight, base, *, seed):
    """Scores that are drawn once for each matrix: its old numbers are a part of the seed."""
    return np.random.default_rng([seed, *base[0].view(np.uint32)]).random(base.shape)


WAYS = {  # what is trained for a weight, and the scores, given a seed
    MAGNITUDE: (MaskedWeight, lambda seed: lambda weight, base: weight),
    ONCE: (MaskedWeight, lambda seed: lambda weight, base: base),
    MOVEMENT: (init_movement_pruning, lambda seed: None),
    RANDOM: (MaskedWeight, lambda seed: partial(by_lot, seed=seed)),
}
RUNS = {DENSE: (DENSE, 1.0), **{f"{way}, {kept:.0%} stay": (way, kept) for way in WAYS for kept in KEPT}}


def learned(name, rng, *, rate, language):
    """Nats too many after the updates, and the share of each matrix that is not zero."""
    way, kept = RUNS[name]
    base, steps = at.load_reader(), 10 if section.quick else STEPS
    chosen = set(targets(base, EVERYWHERE))
    begin, change = None, None
    if way != DENSE:
        begin, scores = WAYS[way]
        change = Sparser(kept, steps, scores=scores(rng.integers(2**32)))
    params = trees.unflatten(base, [begin(leaf) if begin and path in chosen else leaf for path, leaf in trees.leaves(base)])
    task = Labelled(at.reader_of(base, change), partial(at.draw, language))
    params = fit(params, task, steps=steps, peak=rate, rng=rng, watch=None if change is None else change.follow)
    tree, _ = reparameterize(params, base=base, change=change)
    share = [np.count_nonzero(leaf) / leaf.size for path, leaf in trees.leaves(tree) if path in chosen]
    return at.left(tree, at.reader, language), float(np.mean(share))


@section.tuning
def tuning(rng):
    language = at.shifted(at.language(), rng)
    rates = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
    yield from tried(lambda name, rng, rate: learned(name, rng, rate=rate, language=language)[0], RUNS, rates[:2] if section.quick else rates, rng)


@section.experiment
def experiment(rng):
    language = at.shifted(at.language(), rng)
    yield "nothing", 1.0, {"excess": at.left(at.load_reader(), at.reader, language)}
    for name, (way, kept) in RUNS.items():
        excess, share = learned(name, rng, rate=section.rates[name], language=language)
        yield way, kept, {"excess": excess, "share": share}


# %%
def told(found, kept, *ways):
    return ", ".join(f"{way} {mean_and_spread(found['excess'][way][kept], '.3f')}" for way in ways)


@section.claim(
    "Where half of the weights stay, magnitude loses no more than movement",
    paper="Sanh, Wolf and Rush 2020, arXiv:2005.07683, figure 2: from 70 % down to 30 % that stay, magnitude is better",
    measured=lambda found: told(found, 0.5, MAGNITUDE, MOVEMENT, RANDOM),
)
def half(found):
    """Magnitude is at most at 1.05 of movement's loss."""
    return found["excess"][MAGNITUDE][0.5] <= 1.05 * found["excess"][MOVEMENT][0.5]


@section.claim(
    "Where few stay, is movement better?",
    paper="Sanh, Wolf and Rush 2020, arXiv:2005.07683, section 6: below 15 % that stay, movement clearly",
    measured=lambda found: "; ".join(f"{kept:.0%} stay: {told(found, kept, MAGNITUDE, MOVEMENT)}" for kept in KEPT[1:]),
)
def few(found):
    """Where 5 % stay movement loses at most 0.9 of what magnitude loses."""
    return found["excess"][MOVEMENT][0.05] <= 0.9 * found["excess"][MAGNITUDE][0.05]


@section.claim(
    "Is a mask that follows the weights better than one of the old model's?",
    paper="Zhu and Gupta 2017, arXiv:1710.01878, section 3: masks are made anew while the model trains",
    measured=lambda found: "; ".join(f"{kept:.0%} stay: {told(found, kept, MAGNITUDE, ONCE)}" for kept in KEPT),
)
def follows(found):
    """Wherever 15 % or 5 % stay, it loses at most 0.95 of what the old model's loses."""
    return all(found["excess"][MAGNITUDE][kept] <= 0.95 * found["excess"][ONCE][kept] for kept in KEPT[1:])


@section.claim(
    "Is any choice better than the lot?",
    paper="the trivial baseline; no paper needs it, and a table without it says little",
    measured=lambda found: "; ".join(f"{kept:.0%} stay: {told(found, kept, MAGNITUDE, MOVEMENT, RANDOM)}" for kept in KEPT),
)
def better_than_chance(found):
    """Magnitude and movement lose at most 0.9 of what weights chosen by lot lose, however many stay."""
    return all(max(found["excess"][way][kept] for way in (MAGNITUDE, MOVEMENT)) <= 0.9 * found["excess"][RANDOM][kept] for kept in KEPT)


@section.report
def report(found):
    excess = found["excess"]
    rows = [["nothing", mean_and_spread(excess["nothing"][1.0], ".3f"), "", "", ""], [DENSE, mean_and_spread(excess[DENSE][1.0], ".3f"), "", "", ""]]
    rows += [[way, "", *(mean_and_spread(excess[way][kept], ".3f") for kept in KEPT)] for way in WAYS]
    section.table("pruning", ["nats too many, where of the weights stay", "all", *(f"{kept:.0%}" for kept in KEPT)], rows)
    section.values("pruning", {"steps": STEPS, "dense": excess[DENSE][1.0].mean(), "nothing": excess["nothing"][1.0].mean()})
    for key, way in KEYS.items():
        section.values(f"pruning.{key}", {f"k{100 * kept:.0f}": excess[way][kept].mean() for kept in KEPT})


@section.figure("pruning", size=(6, 3.4))
def picture(ax, found):
    lines(ax, {way: found["excess"][way] for way in WAYS}, xlabel="share of weights that stay", ylabel="nats too many", xscale="log", yscale="log")
    ax.axhline(np.mean(found["excess"][DENSE][1.0]), color="0.5", linestyle=":")
    ax.legend()


if __name__ == "__main__":
    section.main()
