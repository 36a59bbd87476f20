"""From how many zeros on is a sparse product faster?

Li et al. 2024, arXiv:2402.05964, table 1: what is pruned without structure saves storage, and time only where a machine skips zeros. Here NumPy, one
thread, float32: a matrix with fewer and fewer numbers, as a dense product and by its stored numbers alone, each against the dense form in turn.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.basics.linear import Linear, linear
from minitransformers.compression.magnitude_pruning import magnitude_mask
from minitransformers.compression.sparse_linear import sparse_from_dense, sparse_linear
from minitransformers.reporting import Section, crossing, lines, ticks_at
from minitransformers.reporting.compression.paces import BOTH, FORWARD, compared, quiet, ratio, told

section = Section(__file__, __doc__, kind="timed")
ROWS, WIDTH = 128, 768
STORED = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)


# %%
@section.experiment
def experiment(rng):
    quiet()
    rounds = 3 if section.quick else 40
    x, weight = rng.standard_normal((ROWS, WIDTH), np.float32), rng.standard_normal((WIDTH, WIDTH), np.float32)
    dense = partial(linear, Linear(weight, None), x)
    for stored in STORED:
        masked = np.where(magnitude_mask(weight, sparsity=1 - stored), weight, 0)
        params, pattern = sparse_from_dense(masked)
        for name in (FORWARD, BOTH):
            yield f"stored numbers alone, {name}", stored, {"ratio": compared(dense, partial(sparse_linear, params, x, pattern=pattern), way=name, rounds=rounds)}
        yield "dense, with its zeros", stored, {"ratio": compared(dense, partial(linear, Linear(masked, None), x), way=FORWARD, rounds=rounds)}


# %%
def even(found, name):
    """The share of stored numbers from which on they take longer than the dense product, or None."""
    points = sorted((stored, ratio(found, name, stored)) for stored in found["ratio"][name])
    return crossing([x for x, _ in points], [1.0] * len(points), [y for _, y in points])


@section.claim(
    "Zeros in a dense product save nothing", paper="Li et al. 2024, arXiv:2402.05964, table 1",
    measured=lambda found: told(found, "dense, with its zeros", x=0.1) + " of the time without zeros, where a tenth is not zero",
)  # fmt: skip
def zeros_cost(found):
    """With nine tenths of zeros the dense product takes at least 0.9 of its time."""
    return ratio(found, "dense, with its zeros", 0.1) >= 0.9


@section.claim(
    "Stored numbers alone are faster only where few are left", paper="Gale et al. 2020, arXiv:2006.10901, section 1: sparse kernels need 95 % and more of zeros",
    measured=lambda found: "; ".join(f"{name}: level at {even(found, name) or float('nan'):.3f}" for name in found["ratio"] if name.startswith("stored")),
)  # fmt: skip
def few_are_left(found):
    """With half of the numbers they take longer than the dense product, with a hundredth less than half of its time, forward."""
    name = f"stored numbers alone, {FORWARD}"
    return ratio(found, name, 0.5) > 1 and ratio(found, name, 0.01) < 0.5


@section.report
def report(found):
    names = [f"stored numbers alone, {FORWARD}", f"stored numbers alone, {BOTH}", "dense, with its zeros"]
    section.table("sparse_time", ["time, dense as 1, of numbers that are not 0", *(f"{stored:.0%}" for stored in STORED)],
                  [[name, *(float(f"{ratio(found, name, stored):.2g}") for stored in STORED)] for name in names])  # fmt: skip


@section.figure("sparse_time", size=(6, 3.2))
def picture(ax, found):
    lines(ax, found["ratio"], xlabel="share of numbers that are not zero", ylabel="time, dense as 1", xscale="log", yscale="log")
    ticks_at(ax, list(STORED))
    ax.axhline(1, color="0.5", linestyle=":")
    ax.legend()


if __name__ == "__main__":
    section.main()
