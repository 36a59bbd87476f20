"""How do time and memory grow with the text?

Beltagy, Peters and Cohan 2020, arXiv:2004.05150, figure 1: full attention grows with the square of the length, a window linearly, in
time and in memory. Child et al. 2019, arXiv:1904.10509, section 4: strided attention with the power 1.5. Blocks that each query chooses
cost the square of the length over their size, and its product with what is read: the power 1.5 where the size is the root of the length.
One head, forward and backward, at growing lengths; what every pattern must do is not to compute what it then throws away.
"""

# %%
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

import minitransformers as mt
from minitransformers.reporting import Section, growth, lines, one_seed, peak_megabytes, shortest_times, ticks_at
from minitransformers.reporting.sparse_attention.cores import longformer, lsh, native
from minitransformers.sparse_attention.routing import random_centroids
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="timed")
LENGTHS, WIDTH, WINDOW = (1024, 2048, 4096, 8192), 64, 128


class Form(NamedTuple):
    """A core, its settings for a text of n positions, and the power of n with which its cost should grow."""

    core: Callable
    settings: Callable[[int], dict]
    power: float


def clusters(n):
    """As many centroids as clusters have members."""
    return {"centroids": random_centroids(np.random.default_rng(0), round(n**0.5), WIDTH, dtype=np.float32)}


# A line for each: whatever is called like a core can be added.
FORMS = {
    "dense": Form(mt.causal_attention, lambda n: {}, 2.0),
    "window": Form(mt.banded_attention_blocks, lambda n: {"window": WINDOW + 1}, 1.0),
    "longformer": Form(longformer, lambda n: {"window": WINDOW}, 1.0),
    "big_bird": Form(mt.big_bird_blocks, lambda n: {"block": WINDOW // 2}, 1.0),
    "strided": Form(mt.strided_fast, lambda n: {"stride": round(n**0.5)}, 1.5),
    "fixed": Form(mt.fixed_attention_fast, lambda n: {"stride": round(n**0.5)}, 1.5),
    "lsh": Form(lsh, lambda n: {"chunk": WINDOW // 2}, 1.0),
    "routing": Form(mt.routing_gathered, clusters, 1.5),
    "moba": Form(mt.moba, lambda n: {"block": round(n**0.5), "top": 4}, 1.5),
    "native": Form(native, lambda n: {"block": round(n**0.5), "top": 4, "window": WINDOW}, 1.5),
}


# %%
def forward_and_backward(form, arrays, dout):
    _, backward = form.core(None, *arrays, **form.settings(len(dout[0])))
    backward(dout)


@section.experiment
def experiment(rng):
    hold_blas()                                              # one thread, so that its own time is all there is
    lengths, calls = (LENGTHS[:2] if section.quick else LENGTHS), {}
    for n in lengths:
        *arrays, dout = rng.normal(size=(4, 1, n, WIDTH)).astype(np.float32)
        calls |= {(name, n): partial(forward_and_backward, form, arrays, dout) for name, form in FORMS.items()}
    for (name, n), call in calls.items():
        if n == lengths[0]:
            call()                                           # what is imported at the first call is no cost of the form
        yield name, n, {"megabytes": peak_megabytes(call)}
    for (name, n), seconds in shortest_times(calls, rounds=2 if section.quick else 8).items():
        yield name, n, {"seconds": seconds}


# %%
def exponents(found, measure):
    return {name: growth(of) for name, of in found[measure].items()}


def as_pairs(found, measure):
    """No form grows faster than its pairs, by more than 0.2 in the exponent, and dense attention about as its own do."""
    powers = exponents(found, measure)
    return all(power <= FORMS[name].power + 0.2 for name, power in powers.items()) and powers["dense"] > 1.8


def told(found, measure):
    return ", ".join(f"{name} {power:.2f}" for name, power in exponents(found, measure).items())


@section.claim(
    "Memory grows as the number of pairs does",
    paper="Beltagy et al. 2020, arXiv:2004.05150, figure 1; Child et al. 2019, arXiv:1904.10509, section 4",
    kind="exact",
    measured=lambda found: told(found, "megabytes"),
)
def memory(found):
    """Exponents of peak memory: at most 1.2 for windows, blocks and hashes, 1.7 for strides, clusters and chosen blocks; dense at least 1.8."""
    return as_pairs(found, "megabytes")


@section.claim(
    "Time grows as the number of pairs does",
    paper="Beltagy et al. 2020, arXiv:2004.05150, figure 1; Child et al. 2019, arXiv:1904.10509, section 4",
    measured=lambda found: told(found, "seconds"),
)
def time(found):
    """Exponents of time: at most 1.2 for windows, blocks and hashes, 1.7 for strides, clusters and chosen blocks; dense at least 1.8."""
    return as_pairs(found, "seconds")


@section.claim(
    "Sparse attention is the faster one where texts are long",
    paper="Beltagy et al. 2020, arXiv:2004.05150, figure 1",
    measured=lambda found: ", ".join(f"{name} {times(found, name, max(of)):.1f} times" for name, of in found["seconds"].items() if name != "dense"),
)
def faster(found):
    """At the longest text every form takes at most half of dense attention's time."""
    return all(times(found, name, max(of)) > 2 for name, of in found["seconds"].items() if name != "dense")


def times(found, name, n, measure="seconds"):
    """How many times cheaper than dense attention a form is."""
    return one_seed(found[measure]["dense"])[n] / one_seed(found[measure][name])[n]


@section.report
def report(found):
    longest, rows = max(found["seconds"]["dense"]), []
    time, memory = (exponents(found, measure) for measure in ("seconds", "megabytes"))
    for name in FORMS:
        faster, smaller = (times(found, name, longest, measure) for measure in ("seconds", "megabytes"))
        rows.append([name, *(float(f"{power[name]:.2f}") for power in (time, memory)), float(f"{faster:.1f}"), float(f"{smaller:.1f}")])
        section.values(f"scaling.{name}", {"time": time[name], "memory": memory[name], "faster": faster, "smaller": smaller})
        crossing = [n for n in found["seconds"][name] if times(found, name, n) > 1]
        if name != "dense" and crossing:
            section.value(f"scaling.{name}.from", min(crossing))
    section.table("scaling", ["form", "exponent of time", "of memory", f"times faster than dense at {longest:,}", "times smaller"], rows)
    section.values("scaling", {"reach": WINDOW, "longest": longest, "width": WIDTH})


@section.figure("scaling", size=(7.2, 3.2), ncols=2)
def picture(axes, found):
    for ax, measure, name in zip(axes, ("seconds", "megabytes"), ("seconds", "MiB at most"), strict=True):
        lines(ax, found[measure], xlabel="positions", ylabel=name, xscale="log", yscale="log")
        ticks_at(ax, list(found[measure]["dense"]))
    axes[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


if __name__ == "__main__":
    section.main()
