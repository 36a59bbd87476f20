"""How does time grow with the text: a scan, SSD in its three forms, attention?

Dao and Gu 2024, arXiv:2405.21060, theorem 6.1 and section 6.3: SSD in chunks takes time T N^2, attention T^2 N. Section 9.3: SSD is 2 to 8 times as fast as Mamba's scan, and faster than FlashAttention-2 from 2,000 positions on. Forward and backward
of the cores alone, at equal width, in float32 on one core. The scan has a state of 16 numbers a channel, SSD of 64.
"""

# %%
from functools import partial

import numpy as np

import minitransformers as mt
from minitransformers.attention.masks import causal_mask
from minitransformers.reporting import Section, crossing, growth, one_seed, shortest_times, ticks_at
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="timed")
WIDTH, HEADS, WINDOW, COMMON = 256, 4, 256, 2048             # COMMON is the longest text that all of them read
CHUNKED, RECURRENT, QUADRATIC = "SSD, chunked", "SSD, recurrent", "SSD, quadratic"
SCAN, ATTENTION, BANDED = "selective scan", "attention", f"attention, window {WINDOW}"
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
LONGEST = {QUADRATIC: COMMON, ATTENTION: 4096, RECURRENT: 8192, BANDED: 8192}
SHORT = {CHUNKED: "chunked", RECURRENT: "recurrent", QUADRATIC: "quadratic", SCAN: "scan", ATTENTION: "attention", BANDED: "window"}


# %%
def ssd_call(rng, n):
    """x, delta, A, B, C with steps and rates as Mamba-2 starts them."""
    x, (B, C) = rng.standard_normal((n, HEADS, 64), np.float32), rng.standard_normal((2, n, 1, 64), np.float32)
    delta = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), (n, HEADS))).astype(np.float32)
    return x, delta, -rng.uniform(1, 16, HEADS).astype(np.float32), B, C


def both_ways(core, call, *dout):
    """Forward and backward; an output whose gradient is not given has none."""
    out, backward = core(*call)
    backward((*dout, *[None] * (len(out) - len(dout))) if isinstance(out, tuple) else dout[0])


def cores(rng, n):
    """What mixes n positions of width 256, without maps around it."""
    u, z, dy = rng.standard_normal((3, n, WIDTH), np.float32)
    A = -np.tile(np.arange(1, 17, dtype=np.float32), (WIDTH, 1))
    scan_call = u, np.full_like(u, 0.01), A, *rng.standard_normal((2, n, 1, 16), np.float32), None, z
    ssd_of_n, dheads = ssd_call(rng, n), dy.reshape(n, HEADS, -1)
    q, k, v, dvalues = rng.standard_normal((4, HEADS, n, 64), np.float32)
    every = {form: partial(both_ways, partial(mt.ssd, core=core), ssd_of_n, dheads)
             for form, core in ((CHUNKED, mt.ssd_chunked), (RECURRENT, mt.ssd_recurrent), (QUADRATIC, mt.ssd_quadratic))}  # fmt: skip
    every[SCAN] = partial(both_ways, mt.selective_scan_blocks, scan_call, dy)
    every[BANDED] = partial(both_ways, partial(mt.banded_attention_blocks, window=WINDOW), (None, q, k, v), dvalues)
    if n <= LONGEST[ATTENTION]:
        every[ATTENTION] = partial(both_ways, partial(mt.scaled_dot_product_attention_fast, mask=causal_mask(n)), (q, k, v), dvalues)
    return {name: every[name] for name in SHORT if n <= LONGEST.get(name, n)}


@section.experiment
def experiment(rng):
    hold_blas()                                              # one thread, so that its own time is all there is
    for n in LENGTHS[:3] if section.quick else LENGTHS:
        for name, seconds in shortest_times(cores(rng, n), rounds=1 if n > 1024 or section.quick else 3).items():
            yield name, n, {"ms": 1e3 * seconds}


# %%
def series(found, name):
    """Lengths, and milliseconds at them."""
    of = one_seed(found["ms"][name])
    return list(of), list(of.values())


def exponent(found, name):
    return growth(found["ms"][name], last=4)


def times(found, name):
    """What a form takes at the longest text that all read, that of chunks as 1."""
    one, other = (one_seed(found["ms"][form]) for form in (CHUNKED, name))
    at = max(n for n in other if n <= COMMON)
    return other[at] / one[at]


def overtaken(found):
    """From where on attention takes longer than chunks."""
    sizes, attention = series(found, ATTENTION)
    return crossing(sizes, series(found, CHUNKED)[1][: len(sizes)], attention)


@section.claim(
    "Chunks cost linear time, attention and the quadratic form quadratic time",
    paper="Dao and Gu 2024, arXiv:2405.21060, theorem 6.1 and section 6.3: T N^2 for SSD in chunks, T^2 N for attention",
    measured=lambda found: ", ".join(f"{name} {exponent(found, name):.2f}" for name in (CHUNKED, QUADRATIC, ATTENTION)),
)
def linear_time(found):
    """Exponents over the four longest lengths of each: at most 1.15 in chunks, at least 1.8 for both others."""
    chunked, *others = (exponent(found, name) for name in (CHUNKED, QUADRATIC, ATTENTION))
    return chunked <= 1.15 and min(others) >= 1.8


@section.claim(
    "Matrix products make a state four times as large cheaper than a scan",
    paper="Dao and Gu 2024, arXiv:2405.21060, section 9.3: SSD is 2 to 8 times as fast as Mamba's scan, with larger states",
    measured=lambda found: f"the scan takes {times(found, SCAN):.1f} times as long, the recurrent form {times(found, RECURRENT):.1f} times",
)
def cheaper(found):
    """At 2,048 positions the scan with a state of 16 takes at least twice the time of SSD with 64, and SSD's own recurrent form three times."""
    return times(found, SCAN) >= 2 and times(found, RECURRENT) >= 3


@section.claim(
    "From some length on SSD is faster than attention",
    paper="Dao and Gu 2024, arXiv:2405.21060, section 9.3, figure 10: faster than FlashAttention-2 from 2,000 positions on",
    measured=lambda found: "no crossing" if overtaken(found) is None else f"from {overtaken(found):,.0f} positions on",
)
def faster(found):
    """A crossing at 2,048 positions or earlier: attention here is dense and unfused."""
    return overtaken(found) is not None and overtaken(found) <= 2048


@section.report
def report(found):
    common, rows = max(series(found, QUADRATIC)[0]), []
    for name in SHORT:
        sizes, ms = series(found, name)
        rows.append([name, ms[0], ms[sizes.index(common)], ms[-1], sizes[-1], exponent(found, name)])
    section.table("length", ["core", f"ms at {LENGTHS[0]}", f"ms at {common:,}", "ms at the longest", "longest", "exponent"], rows)
    section.values("length.exponent", {short: exponent(found, name) for name, short in SHORT.items()})
    longest = max(series(found, CHUNKED)[0])
    section.values("length.speed", {"common": common, "longest": longest, "over_recurrent": times(found, RECURRENT), "over_scan": times(found, SCAN)})
    if overtaken(found) is not None:
        section.value("length.speed.crossing", round(overtaken(found)))


@section.figure("length", size=(6.4, 3.4))
def picture(ax, found):
    for name, marker in zip(SHORT, "osD^vP", strict=True):
        sizes, ms = series(found, name)
        ax.plot(sizes, ms, marker=marker, label=f"{name} ({exponent(found, name):.1f})")
    ax.set(xlabel="positions", ylabel="ms, forward and backward", xscale="log", yscale="log")
    ticks_at(ax, series(found, CHUNKED)[0])
    ax.legend()


if __name__ == "__main__":
    section.main()
