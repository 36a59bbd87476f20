"""State spaces: what a state of fixed size can carry along a text, and the matrices that such a recurrence is.

Linear systems in their two views, the selective scan and what it selects, the duality of recurrence and attention in
numbers, what each form costs as the text grows, and models with each on real text.
"""

# %%
import time
import tracemalloc

import numpy as np

from minitransformers.cli.chapter import Chapter
from minitransformers.state_space.linear_scan import linear_scan, scan
from minitransformers.state_space.selective_scan import selective_scan

chapter = Chapter("state_space", __doc__)


def exponent(sizes, costs):
    """The slope of a straight line through the logarithms: cost grows as size to this power."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


# %% Linear systems: two views of one map, and what HiPPO's matrix remembers


# %% S4D: a delay, learned


# %% Scans: one recurrence, three orders of work
class Counted(np.ndarray):
    """An array that counts the multiplications done on it, one an element, and the operations that do them."""

    products = operations = 0

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **settings):
        if out is not None:
            settings["out"] = tuple(np.asarray(o) for o in out)
        result = getattr(ufunc, method)(*(np.asarray(i) for i in inputs), **settings)
        if ufunc is np.multiply:
            Counted.products, Counted.operations = Counted.products + result.size, Counted.operations + 1
        return out[0] if out is not None else result.view(Counted)


def hillis_steele(decay, drive):
    """Every position takes in the one 1, 2, 4, ... before it: few steps, but all positions work in each."""
    decay, states, reach = decay.copy(), drive.copy(), 1
    while reach < len(states):
        states[reach:] = states[reach:] + decay[reach:] * states[:-reach]
        decay[reach:] = decay[reach:] * decay[:-reach]
        reach *= 2
    return states


ORDERS = {
    "sequential": lambda decay, drive: scan(decay, drive, np.zeros_like(drive[0])),
    "chunked": lambda decay, drive: scan(decay, drive, np.zeros_like(drive[0]), form="chunked"),
    "associative": lambda decay, drive: scan(decay, drive, np.zeros_like(drive[0]), form="associative"),
    "Hillis-Steele": hillis_steele,
}


def scan_work_section():
    sizes, rows, counts = [2**k for k in range(8, 14)], [], {}  # from a few chunks on
    for name, order in ORDERS.items():
        counts[name], steps = [], 0
        for n in sizes:
            Counted.products = Counted.operations = 0
            order(*np.ones((2, n, 1)).view(Counted))
            counts[name].append(Counted.products)
            steps = Counted.operations
        chapter.value(f"scans.{name}.exponent", exponent(sizes, counts[name]))
        rows.append((name, counts[name][-1] / sizes[-1], steps, exponent(sizes, counts[name])))
    chapter.table("scan-work", ["order", f"products a position, L = {sizes[-1]}", "operations in turn", "exponent in L"], rows)
    linear = max(exponent(sizes, counts[name]) for name in ("sequential", "chunked", "associative"))
    doubling = exponent(sizes, counts["Hillis-Steele"])
    chapter.claim(
        "A scan can be parallel without more than linear work",
        paper="Blelloch 1990, section 1.4: O(n) work in O(log n) steps; doubling the reach, O(n log n) work",
        expect="fitted exponents near 1 for three orders, above 1.1 for Hillis-Steele, on counted products",
        measured=f"at most {linear:.2f} for the three, {doubling:.2f} for Hillis-Steele, with "
        f"{counts['associative'][-1] / sizes[-1]:.2f} and {counts['Hillis-Steele'][-1] / sizes[-1]:.2f} products a position",
        holds=linear < 1.03 and doubling > 1.1,
    )
    return sizes, counts


def scan_error_section():
    rng, n, rows, worst = chapter.rng(), 200, [], 0.0
    u, z, B, C = (rng.normal(size=(2, n, width)) for width in (6, 6, 4, 4))
    delta, A, D = np.exp(rng.uniform(np.log(1e-3), 0, (2, n, 6))), -np.exp(rng.uniform(-1, 1, (6, 4))), rng.normal(size=6)
    call, dout = (u, delta, A, B, C, D, z, rng.normal(size=(2, 6, 4))), (rng.normal(size=u.shape), rng.normal(size=(2, 6, 4)))

    def results(form, chunk, dtype):
        result, backward = selective_scan(*(a.astype(dtype) for a in call), form=form, chunk=chunk)
        return [*result, *backward(tuple(d.astype(dtype) for d in dout))]

    def gap(own, exact):
        return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(own, exact, strict=True))

    exact = results("sequential", 64, np.float64)
    for form, chunk in (("sequential", 7), ("chunked", 16), ("chunked", 64), ("associative", 64)):
        double, single = results(form, chunk, np.float64), results(form, chunk, np.float32)
        worst = max(worst, gap(double, exact))
        rows.append((form, chunk if form != "associative" else "-", gap(double[:2], exact[:2]), gap(double[2:], exact[2:]), gap(single, exact)))
    chapter.table("scan-errors", ["order", "chunk", "outputs, float64", "gradients, float64", "all, float32"], rows)
    chapter.value("scans.worst_gap", worst)
    chapter.claim(
        "Every order of work gives the same outputs and gradients",
        paper="Gu and Dao 2023, section 3.3.2: the recurrence is an associative scan; the backward computes the states again",
        expect="equal to 1e-12 in float64, at any chunk, in all eight gradients",
        measured=f"largest relative difference {worst:.1e} over {n} positions",
        holds=worst < 1e-12,
    )


def scan_memory_section():
    rng, rows = chapter.rng(), []
    sizes = [256, 512] if chapter.quick else [512, 1024, 2048]
    for n in sizes:
        u, z, B, C = (rng.normal(size=(1, n, width)).astype(np.float32) for width in (64, 64, 16, 16))
        delta, A = np.full_like(u, 0.01), np.full((64, 16), -1, np.float32)
        peaks = []
        for form in ("sequential", "associative"):
            tracemalloc.start()
            result, backward = selective_scan(u, delta, A, B, C, None, z, form=form)
            kept = tracemalloc.get_traced_memory()[0]
            backward(result)
            peaks += [kept / 2**20, tracemalloc.get_traced_memory()[1] / 2**20]
            tracemalloc.stop()
        rows.append((n, n * 64 * 16 * 4 / 2**20, *peaks[:2], peaks[3]))
    chapter.table("scan-memory", ["L", "all states, MiB", "kept for backward", "peak", "peak, associative"], rows)
    n, states, kept, peak, _ = rows[-1]
    chapter.value("scans.memory", {"length": n, "states": states, "kept": kept, "peak": peak})
    chapter.claim(
        "The backward needs no stored states",
        paper="Gu and Dao 2023, section 3.3.2: intermediate states are not saved but recomputed in the backward",
        expect="what is kept between forward and backward is less than half of all states",
        measured=f"at L = {n}: {kept:.1f} MiB kept, {peak:.1f} at the peak; the states alone are {states:.1f}",
        holds=kept < states / 2,
    )


def scan_time_section(sizes, counts):
    rng, rounds = chapter.rng(), 1 if chapter.quick else 5
    lengths, lanes = ([128, 256], (16, 512)) if chapter.quick else ([512, 1024, 2048, 4096], (16, 1024))
    forms, times = ("sequential", "chunked", "associative"), {}
    for width in lanes:
        for n in lengths:
            decay, drive, dout = rng.uniform(0.5, 1, (n, width)).astype(np.float32), *rng.standard_normal((2, n, width), np.float32)
            taken = {form: [] for form in forms}
            for _ in range(rounds):
                for form in rng.permutation(forms):
                    start = time.process_time()              # not the clock on the wall: one thread, on a machine that may be busy
                    linear_scan(decay, drive, form=str(form))[1](dout)
                    taken[form].append(time.process_time() - start)
            for form in forms:
                times.setdefault((width, form), []).append(1e3 * float(np.median(taken[form])))
    with chapter.figure("scans", size=(7.6, 2.9), ncols=3) as (_, axes):
        for name, products in counts.items():
            axes[0].semilogx(sizes, np.array(products) / np.array(sizes), base=2, marker="o", label=name)
        axes[0].set(xlabel="L", title="products a position", ylim=(0, None))
        axes[0].legend()
        for ax, width in zip(axes[1:], lanes, strict=True):
            for form in forms:
                ax.loglog(lengths, times[width, form], marker="o", base=2, label=form)
            ax.set(xlabel="L", title=f"{width} lanes: ms")
            ax.set_xticks(lengths, [str(n) for n in lengths])
            ax.minorticks_off()
    rows = [(width, form, times[width, form][-1], exponent(lengths, times[width, form])) for width in lanes for form in forms]
    chapter.table("scan-times", ["lanes", "order", f"processor ms at L = {lengths[-1]}", "exponent in L"], rows)
    few, many = (times[width, "chunked"][-1] / times[width, "sequential"][-1] for width in lanes)
    chapter.claim(
        "On one core the plain loop wins as soon as a step is long",
        paper="Gu and Dao 2023, section 3.3.2: on a GPU the loop's L steps are what costs, so the scan is made parallel",
        expect="chunks faster than the loop with 16 lanes, where a step is mostly overhead; slower with 1024, where more work is more time",
        measured=f"chunked takes {few:.2f} times the loop's time with {lanes[0]} lanes, {many:.2f} times with {lanes[1]}, "
        f"forward and backward at L = {lengths[-1]}",
        holds=few < 1 < many,
        full_only=True,
    )


scan_error_section()
scan_memory_section()
scan_time_section(*scan_work_section())


# %% Duality: one map in three forms, and the ranks of its matrix


# %% Time against length: scan, SSD and attention


# %% Decoding: a state of fixed size against a cache that grows


# %% Selective copying: what a system that cannot choose cannot do


# %% Induction heads: trained at 64, read up to 1,024


# %% Real text: bits a character beside attention


# %%
if __name__ == "__main__":
    raise SystemExit(chapter.finish())
