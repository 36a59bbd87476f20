"""What does a window save when it is computed in blocks?

Beltagy, Peters and Cohan 2020, arXiv:2004.05150, section 3.1: time and memory grow with n W, linear in the length n. One head of 32
features in float32, window 64, forward and backward: in blocks, and with a mask on all n² scores.
"""

# %%
from functools import partial

import numpy as np

from minitransformers import banded_attention, banded_attention_blocks
from minitransformers.reporting import Section, fitted_exponent, lines, peak_megabytes, shortest_times, ticks_at
from minitransformers.training.memory import keep_freed_memory
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="timed")
WINDOW, WIDTH, DENSE, BLOCKS = 64, 32, "dense mask", "blocks"
FORMS = {BLOCKS: banded_attention_blocks, DENSE: banded_attention}
LENGTHS = {BLOCKS: (512, 1024, 2048, 4096, 8192, 16384), DENSE: (512, 1024, 2048, 4096)}  # blocks go on where a mask takes gigabytes
LONGEST = LENGTHS[DENSE][-1]                                 # that both forms do


# %%
def gradients(name, q, k, v):
    out, backward = FORMS[name](None, q, k, v, window=WINDOW)
    return out, *backward(v)[1:4]


@section.experiment
def experiment(rng):
    hold_blas()
    keep_freed_memory()                                      # otherwise fresh pages are timed, not arithmetic
    for n in (1, WINDOW, 3 * WINDOW + 5, 512):
        q, k, v = rng.normal(size=(3, n, WIDTH))
        yield BLOCKS, n, {"difference": max(np.abs(a - b).max() for a, b in zip(*(gradients(name, q, k, v) for name in FORMS), strict=True))}
    # One form after the other: next to the dense form's arrays, the blocks would be timed with cold caches.
    for name, lengths in LENGTHS.items():
        for n in lengths[:3] if section.quick else lengths:
            call = partial(gradients, name, *rng.standard_normal((3, n, WIDTH), np.float32))
            call()                                           # what a first call costs is not counted
            seconds = shortest_times({n: call}, rounds=1 if section.quick else 7)[n]
            yield name, n, {"seconds": seconds, "megabytes": peak_megabytes(call)}


# %%
def exponent(found, measure, name):
    """The fitted power over the longest three lengths, where the arrays have left the cache."""
    return fitted_exponent(*zip(*[(n, float(np.max(of))) for n, of in found[measure][name].items()][-3:], strict=True))


def told(found, measure):
    return ", ".join(f"{name} n^{exponent(found, measure, name):.2f}" for name in FORMS)


def ratio(found, measure, n):
    return float(np.max(found[measure][DENSE][n]) / np.max(found[measure][BLOCKS][n]))


def worst(found):
    return float(max(np.max(of) for of in found["difference"][BLOCKS].values()))


@section.claim(
    "Blocks give what a mask on all scores gives",
    paper="Beltagy et al. 2020, arXiv:2004.05150, section 3.1: the same attention, its forbidden scores left out",
    kind="exact",
    measured=lambda found: f"largest difference {worst(found):.0e}",
)
def same(found):
    """Output and gradients to 1e-12 in float64, where a text is shorter than a window, fills it, and leaves positions over."""
    return worst(found) < 1e-12


@section.claim(
    "In blocks a window's memory grows with n, not n²",
    paper="Beltagy et al. 2020, arXiv:2004.05150, section 3.1: memory O(n w), linear in n",
    kind="exact",
    measured=lambda found: told(found, "megabytes"),
)
def memory(found):
    """Exponents of the peak, forward and backward, over the longest three lengths: at most 1.1 in blocks, 2 to within 0.2 with the mask."""
    return exponent(found, "megabytes", BLOCKS) <= 1.1 and abs(exponent(found, "megabytes", DENSE) - 2) <= 0.2


@section.claim(
    "In blocks a window's time grows with n, not n²",
    paper="Beltagy et al. 2020, arXiv:2004.05150, section 3.1: time O(n w), linear in n",
    measured=lambda found: f"{told(found, 'seconds')}; at {max(found['seconds'][DENSE]):,} positions {ratio(found, 'seconds', max(found['seconds'][DENSE])):.0f} times as fast",
)
def time(found):
    """Exponents of the time, forward and backward, over the longest three lengths: 1 to within 0.2 in blocks, at least 1.8 with the mask."""
    return abs(exponent(found, "seconds", BLOCKS) - 1) <= 0.2 and exponent(found, "seconds", DENSE) >= 1.8


@section.report
def report(found):
    longest = max(found["seconds"][DENSE])
    for name, key in ((DENSE, "dense"), (BLOCKS, "banded")):
        section.values(f"cost.{key}", {"time_exponent": exponent(found, "seconds", name), "memory_exponent": exponent(found, "megabytes", name)})
    section.values("cost", {
        "longest": longest, "window": WINDOW, "times_faster": ratio(found, "seconds", longest), "times_smaller": ratio(found, "megabytes", longest),
        "difference": worst(found),
    })  # fmt: skip


@section.figure("banded_cost", size=(6.4, 2.9), ncols=2)
def picture(axes, found):
    first = found["seconds"][BLOCKS][LENGTHS[BLOCKS][0]]
    seconds = {name: {n: t / first for n, t in of.items()} for name, of in found["seconds"].items()}
    for ax, curves, title in zip(axes, (seconds, found["megabytes"]), (f"time (blocks at {LENGTHS[BLOCKS][0]} = 1)", "peak memory (MiB)"), strict=True):
        lines(ax, curves, xlabel="positions", title=title, xscale="log", yscale="log")
        ticks_at(ax, list(curves[BLOCKS])[::2])
    axes[0].legend()


if __name__ == "__main__":
    section.main()
