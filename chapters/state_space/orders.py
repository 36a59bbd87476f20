"""Does the selective scan come out the same in every order of work, and what must it keep?

Gu and Dao 2023, arXiv:2312.00752, section 3.3.2: the recurrence is an associative scan, so it may be worked off in any order; and the
backward computes the states again instead of storing them. Three orders in blocks against the plain loop, with all gradients.
"""

# %%
import tracemalloc
from functools import partial

import numpy as np

from minitransformers import selective_scan, selective_scan_blocks
from minitransformers.reporting import Section

section = Section(__file__, __doc__, kind="exact")
LENGTH, CHANNELS, D_STATE, LENGTHS = 200, 64, 16, (512, 1024, 2048)
ORDERS = {"sequential, 7": ("sequential", 7), "chunked, 16": ("chunked", 16), "chunked, 64": ("chunked", 64), "associative": ("associative", 64)}


# %%
def results(form, call, dout, dtype):
    """Two outputs and eight gradients."""
    result, backward = form(*(a.astype(dtype) for a in call))
    return [*result, *backward(tuple(d.astype(dtype) for d in dout))]


def gap(own, exact):
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(own, exact, strict=True))


def memory(rng, n, form):
    """MiB between forward and backward, and at the peak, of 64 channels in float32."""
    u, z, B, C = (rng.normal(size=(1, n, width)).astype(np.float32) for width in (CHANNELS, CHANNELS, D_STATE, D_STATE))
    delta, A = np.full_like(u, 0.01), np.full((CHANNELS, D_STATE), -1, np.float32)
    tracemalloc.start()
    result, backward = selective_scan_blocks(u, delta, A, B[:, :, None], C[:, :, None], None, z, form=form)
    kept = tracemalloc.get_traced_memory()[0]
    backward(result)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"kept": kept / 2**20, "peak": peak / 2**20}


@section.experiment
def experiment(rng):
    u, z, B, C = (rng.normal(size=(2, LENGTH, width)) for width in (6, 6, 4, 4))
    delta, A, D = np.exp(rng.uniform(np.log(1e-3), 0, (2, LENGTH, 6))), -np.exp(rng.uniform(-1, 1, (6, 4))), rng.normal(size=6)
    call = u, delta, A, B[:, :, None], C[:, :, None], D, z, rng.normal(size=(2, 6, 4))
    dout = rng.normal(size=u.shape), rng.normal(size=(2, 6, 4))
    exact = results(selective_scan, call, dout, np.float64)
    for name, (form, chunk) in ORDERS.items():
        double, single = (results(partial(selective_scan_blocks, form=form, chunk=chunk), call, dout, dtype) for dtype in (np.float64, np.float32))
        yield name, "gap", {"outputs": gap(double[:2], exact[:2]), "gradients": gap(double[2:], exact[2:]), "float32": gap(single, exact)}
    for form in ("sequential", "associative"):
        for n in LENGTHS:
            yield form, n, memory(rng, n, form)


def worst(found):
    return max(np.max(found[measure][name]["gap"]) for measure in ("outputs", "gradients") for name in ORDERS)


def mebibytes(found, measure, n, form="sequential"):
    return float(np.ravel(found[measure][form][n])[0])


def states(n):
    """What all states of the text take, in MiB."""
    return n * CHANNELS * D_STATE * 4 / 2**20


# %%
@section.claim(
    "Every order of work gives the same outputs and gradients",
    paper="Gu and Dao 2023, arXiv:2312.00752, section 3.3.2: the recurrence is an associative scan",
    measured=lambda found: f"largest relative difference {worst(found):.1e} over {LENGTH} positions",
)
def same(found):
    """Both outputs and all eight gradients are equal to 1e-12 in float64, in three orders and with chunks of 7, 16 and 64."""
    return worst(found) < 1e-12


@section.claim(
    "The backward needs no stored states",
    paper="Gu and Dao 2023, arXiv:2312.00752, section 3.3.2: intermediate states are not saved but recomputed in the backward",
    measured=lambda found: f"at L = {LENGTHS[-1]:,}: {mebibytes(found, 'kept', LENGTHS[-1]):.1f} MiB kept, {mebibytes(found, 'peak', LENGTHS[-1]):.1f} "
    f"at the peak; the states alone are {states(LENGTHS[-1]):.1f}",
)
def recomputed(found):
    """What is kept between forward and backward is less than half of all states, at every length."""
    return all(mebibytes(found, "kept", n) < states(n) / 2 for n in LENGTHS)


@section.report
def report(found):
    rows = []
    for name, (form, chunk) in ORDERS.items():
        gaps = (float(found[measure][name]["gap"][0]) for measure in ("outputs", "gradients", "float32"))
        rows.append([form, "-" if form == "associative" else chunk, *gaps])
    section.table("scan-errors", ["order", "chunk", "outputs, float64", "gradients, float64", "all, float32"], rows)
    rows = [[n, states(n), *(mebibytes(found, measure, n) for measure in ("kept", "peak")), mebibytes(found, "peak", n, "associative")] for n in LENGTHS]
    section.table("scan-memory", ["L", "all states, MiB", "kept for backward", "peak", "peak, associative"], rows)
    section.values("scans.memory", {"length": LENGTHS[-1], "states": states(LENGTHS[-1]), "kept": mebibytes(found, "kept", LENGTHS[-1])})


if __name__ == "__main__":
    section.main()
