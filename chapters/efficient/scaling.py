"""How do time and memory of exact attention grow with the text, with all scores at once and in tiles?

Dao et al. 2022, arXiv:2205.14135, theorem 1 and figure 3: tiles give the same numbers, in memory that grows with the length and not
with its square, and in less time. Dao 2023, arXiv:2307.08691, section 3.1: looking back, half of the tiles are left out. One head of
64 features in float32, forward and backward, at growing lengths.
"""

# %%
from functools import partial

import numpy as np

import minitransformers as mt
from minitransformers.reporting import Section, growth, lines, one_seed, peak_megabytes, shortest_times, ticks_at
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="timed")
LENGTHS, WIDTH, TILE = (256, 512, 1024, 2048, 4096, 8192), 64, 256  # tiles of the default size
DENSE, TILES, DENSE_BOTH, TILES_BOTH = "dense", "tiles", "dense, both ways", "tiles, both ways"
FORMS = {DENSE: mt.causal_attention, TILES: mt.causal_flash_attention, DENSE_BOTH: mt.softmax_attention, TILES_BOTH: mt.flash_attention}
PAIRS = ((DENSE, TILES), (DENSE_BOTH, TILES_BOTH))           # looking back, and both ways, where there is no tile to leave out


# %%
def gradients(core, arrays, dout):
    out, backward = core(None, *arrays)
    return out, *backward(dout)[1:4]


def passes(name, arrays, dout):
    """Forward and backward as two calls, so that each has a time of its own."""
    kept = {}

    def forward():
        _, kept["backward"] = FORMS[name](None, *arrays)

    return {(name, "forward"): forward, (name, "backward"): lambda: kept.pop("backward")(dout)}


@section.experiment
def experiment(rng):
    hold_blas()                                              # one thread, so that its own time is all there is
    for n in LENGTHS[1:4] if section.quick else LENGTHS:
        *arrays, dout = rng.standard_normal((4, 1, n, WIDTH), np.float32)
        names = [name for pair in (PAIRS if n < LENGTHS[-1] else PAIRS[:1]) for name in pair]
        for name in names:
            yield name, n, {"megabytes": peak_megabytes(partial(gradients, FORMS[name], arrays, dout))}
        calls = {key: call for name in names for key, call in passes(name, arrays, dout).items()}
        times = shortest_times(calls, rounds=1 if section.quick else 2 if n > 2048 else 4)
        for name in names:
            yield name, n, {"seconds": times[name, "forward"] + times[name, "backward"], "forward": times[name, "forward"]}


# %%
def share(found, measure, pair, n=None):
    """What tiles take of what the dense form takes, at a length or at the longest."""
    dense, tiles = (one_seed(found[measure][name]) for name in pair)
    return tiles[n or max(tiles)] / dense[n or max(dense)]


def shares(found, pair):
    return ", ".join(f"{share(found, 'seconds', pair, n):.2f} at {n:,}" for n in found["seconds"][pair[1]])


def told(found, measure):
    return ", ".join(f"{name} {growth(found[measure][name]):.2f}" for name in FORMS)


@section.claim(
    "Memory grows with the length in tiles, and else with its square",
    paper="Dao et al. 2022, arXiv:2205.14135, theorem 1 and figure 3: memory beyond inputs and outputs grows with the length",
    kind="exact",
    measured=lambda found: told(found, "megabytes"),
)
def memory(found):
    """Exponents of the peak, forward and backward, over the longest three lengths: at most 1.1 in tiles, and 2 to within 0.15 else."""
    powers = {name: growth(found["megabytes"][name]) for name in FORMS}
    return all(powers[tiles] <= 1.1 and abs(powers[dense] - 2) < 0.15 for dense, tiles in PAIRS)


@section.claim(
    "Time still grows with the square",
    paper="Dao et al. 2022, arXiv:2205.14135, section 3.1: the same arithmetic, and some of it twice",
    measured=lambda found: told(found, "seconds"),
)
def time(found):
    """Exponents of the time, forward and backward, over the longest three lengths: 1.5 to 2.2 in tiles, and at least 1.9 else."""
    powers = {name: growth(found["seconds"][name]) for name in FORMS}
    return all(1.5 < powers[tiles] < 2.2 and powers[dense] > 1.9 for dense, tiles in PAIRS)


@section.claim(
    "Looking back, tiles are the quicker form",
    paper="Dao et al. 2022, arXiv:2205.14135, figure 3: up to 3 times as quick as PyTorch's attention; Dao 2023, section 3.1: without half of the tiles",
    measured=lambda found: shares(found, PAIRS[0]) + " (dense = 1)",
)
def quicker(found):
    """At the longest text less than half of the dense form's time."""
    return share(found, "seconds", PAIRS[0]) < 0.5


@section.claim(
    "Where no tile is left out they are about as quick",
    paper="Dao et al. 2022, arXiv:2205.14135, section 3.1: less traffic more than makes up for scores that are computed twice",
    measured=lambda found: shares(found, PAIRS[1]) + " (dense = 1)",
)
def as_quick(found):
    """At 4,096 positions the dense form's time, to within a third: what is not moved pays for what is computed twice."""
    return 2 / 3 < share(found, "seconds", PAIRS[1]) < 4 / 3


@section.report
def report(found):
    rows = []
    for n in found["seconds"][DENSE]:
        cells = []
        for measure, factor in (("seconds", 1e3), ("megabytes", 1)):
            cells += [*(factor * one_seed(found[measure][name])[n] for name in PAIRS[0]), share(found, measure, PAIRS[0], n)]
        rows.append([n, *(float(f"{cell:.3g}") for cell in cells)])
    section.table("flash", ["positions", "ms, dense", "tiles", "ratio", "MiB, dense", "in tiles", "of it"], rows)
    for pair, short in zip(PAIRS, ("back", "both"), strict=True):
        for name, form in zip(pair, ("dense", "tiles"), strict=True):
            section.values(f"flash.{short}.{form}", {"time": growth(found["seconds"][name]), "memory": growth(found["megabytes"][name])})
        shares = {"time": share(found, "seconds", pair), "forward": share(found, "forward", pair), "memory": share(found, "megabytes", pair)}
        section.values(f"flash.{short}", {**shares, "longest": max(found["seconds"][pair[0]])})
        quicker = [n for n in found["seconds"][pair[1]] if share(found, "seconds", pair, n) < 1]
        if quicker:
            section.value(f"flash.{short}.from", min(quicker))
    section.values("flash", {"tile": TILE, "width": WIDTH})


@section.figure("flash", size=(7.6, 3.2), ncols=2)
def picture(axes, found):
    milliseconds = {name: {n: 1e3 * t for n, t in of.items()} for name, of in found["seconds"].items()}
    for ax, curves, name in zip(axes, (milliseconds, found["megabytes"]), ("ms, forward and backward", "MiB at most"), strict=True):
        lines(ax, curves, xlabel="positions", ylabel=name, xscale="log", yscale="log")
        ticks_at(ax, list(curves[DENSE]))
    axes[0].legend()


if __name__ == "__main__":
    section.main()
