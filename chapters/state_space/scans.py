"""What does a scan cost in each order of work, in products and in time?

Blelloch 1990, section 1.4: a first-order recurrence in O(n) products and O(log n) steps; doubling the reach takes O(n log n) products. Gu
and Dao 2023, arXiv:2312.00752, section 3.3.2: on a GPU the loop's steps are what costs, so the scan is made parallel. Products are counted
while the code runs. Times are of forward and backward, on one core, for few and for many lanes side by side.
"""

# %%
from functools import partial

import numpy as np

from minitransformers import linear_scan
from minitransformers.reporting import Section, fitted_exponent, lines, shortest_times, ticks_at
from minitransformers.state_space.linear_scan import scan
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="timed")
COUNTED, LENGTHS, LANES = tuple(2**k for k in range(8, 14)), (512, 1024, 2048, 4096), (16, 1024)
LOOP, CHUNKED, TREE, DOUBLING = "sequential", "chunked", "associative", "Hillis-Steele"


# %% The orders
def hillis_steele(decay, drive):
    """Every position takes in the one 1, 2, 4, ... before it: few steps, but all positions work in each."""
    decay, states, reach = decay.copy(), drive.copy(), 1
    while reach < len(states):
        states[reach:] = states[reach:] + decay[reach:] * states[:-reach]
        decay[reach:] = decay[reach:] * decay[:-reach]
        reach *= 2
    return states


def in_order(form):
    return lambda decay, drive: scan(decay, drive, np.zeros_like(drive[0]), form=form)


ORDERS = {**{form: in_order(form) for form in (LOOP, CHUNKED, TREE)}, DOUBLING: hillis_steele}


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


def forward_and_backward(decay, drive, dout, form):
    linear_scan(decay, drive, form=form)[1](dout)


@section.experiment
def experiment(rng):
    hold_blas()                                              # one thread, so that its own time is all there is
    for name, order in ORDERS.items():
        for n in COUNTED[:3] if section.quick else COUNTED:
            Counted.products = Counted.operations = 0
            order(*np.ones((2, n, 1)).view(Counted))
            yield name, n, {"products": Counted.products / n, "operations": Counted.operations}
    for lanes in LANES:
        for n in LENGTHS[:2] if section.quick else LENGTHS:
            decay, *more = rng.uniform(0.5, 1, (n, lanes)).astype(np.float32), *rng.standard_normal((2, n, lanes), np.float32)
            calls = {form: partial(forward_and_backward, decay, *more, form) for form in (LOOP, CHUNKED, TREE)}
            for form, seconds in shortest_times(calls, rounds=1 if section.quick else 5).items():
                yield f"{form}, {lanes:,} lanes", n, {"ms": 1e3 * seconds}


# %%
def series(found, measure, curve):
    """Sizes and numbers of the one seed there is."""
    return list(found[measure][curve]), [float(np.ravel(of)[0]) for of in found[measure][curve].values()]


def last(found, measure, curve):
    return series(found, measure, curve)[1][-1]


def work(found, name):
    """The exponent of all products in the length."""
    sizes, each = series(found, "products", name)
    return fitted_exponent(sizes, np.multiply(sizes, each))


@section.claim(
    "A scan can be parallel without more than linear work",
    paper="Blelloch 1990, section 1.4: O(n) work in O(log n) steps; doubling the reach, O(n log n) work",
    kind="exact",
    measured=lambda found: "; ".join(f"{name} {', '.join(f'{each:.2f}' for each in np.take(series(found, 'products', name)[1], [0, -1]))}" for name in ORDERS)
    + f" products a position at {COUNTED[0]} positions and at {max(found['products'][LOOP]):,}",
)  # fmt: skip
def linear_work(found):
    """At most 3 products a position in the loop, in chunks and in the tree, however long the text; with Hillis and Steele's at least 1.9 more
    for every doubling of the length.
    """
    bounded = all(max(series(found, "products", name)[1]) <= 3 for name in (LOOP, CHUNKED, TREE))
    return bounded and min(np.diff(series(found, "products", DOUBLING)[1])) >= 1.9


@section.claim(
    "On one core the plain loop wins as soon as a step is long",
    paper="Gu and Dao 2023, section 3.3.2: on a GPU the loop's L steps are what costs, so the scan is made parallel",
    measured=lambda found: "; ".join(f"with {lanes:,} lanes chunks take {beside(found, CHUNKED, lanes):.2f} of the loop's time, the tree "
                                     f"{beside(found, TREE, lanes):.2f}" for lanes in LANES) + f", at {max(LENGTHS):,} positions",
)  # fmt: skip
def loop_wins(found):
    """At the longest text chunks and the tree take less time than the loop with 16 lanes, and more with 1,024."""
    few, many = ([beside(found, form, lanes) for form in (CHUNKED, TREE)] for lanes in LANES)
    return max(few) < 1 < min(many)


def beside(found, form, lanes):
    """The time of an order at the longest text, that of the loop as 1."""
    return last(found, "ms", f"{form}, {lanes:,} lanes") / last(found, "ms", f"{LOOP}, {lanes:,} lanes")


@section.report
def report(found):
    rows = [[name, last(found, "products", name), int(last(found, "operations", name)), work(found, name)] for name in ORDERS]
    longest = series(found, "products", LOOP)[0][-1]
    section.table("scan-work", ["order", f"products a position, L = {longest}", "sequential operations", "exponent in L"], rows)
    rows = [[lanes, form, last(found, "ms", f"{form}, {lanes:,} lanes"), fitted_exponent(*series(found, "ms", f"{form}, {lanes:,} lanes"))]
            for lanes in LANES for form in (LOOP, CHUNKED, TREE)]  # fmt: skip
    section.table("scan-times", ["lanes", "order", f"processor ms at L = {max(LENGTHS)}", "exponent in L"], rows)


@section.figure("scans", size=(7.6, 2.9), ncols=3)
def picture(axes, found):
    lines(axes[0], found["products"], xlabel="L", title="products a position", ylim=(0, None))
    axes[0].set_xscale("log", base=2)
    axes[0].legend()
    for ax, lanes in zip(axes[1:], LANES, strict=True):
        curves = {form: found["ms"][f"{form}, {lanes:,} lanes"] for form in (LOOP, CHUNKED, TREE)}
        lines(ax, curves, xlabel="L", title=f"{lanes:,} lanes: ms", xscale="log", yscale="log")
        ticks_at(ax, list(curves[LOOP]))


if __name__ == "__main__":
    section.main()
