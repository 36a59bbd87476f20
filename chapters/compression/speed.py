"""What is smaller: is it faster as well?

Li et al. 2024, arXiv:2402.05964, table 1: what is pruned without structure saves storage, and time only where a machine skips zeros; what is pruned
in whole heads and units saves both. Jacob et al. 2018, arXiv:1712.05877: whole numbers multiply faster, where there are instructions for them. Here
NumPy, one thread, float32: a matrix with fewer and fewer numbers, as a dense product and by its stored numbers alone; blocks with half of their
heads or hidden units; codes instead of floats. Each against the dense form in turn.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.basics.feed_forward import feed_forward, init_feed_forward
from minitransformers.basics.linear import Linear, linear
from minitransformers.compression.head_pruning import without_heads
from minitransformers.compression.integer_matmul import integer_matmul, integer_matmul_fast
from minitransformers.compression.magnitude_pruning import magnitude_mask
from minitransformers.compression.n_m_linear import NmLinear, n_m_linear
from minitransformers.compression.n_m_sparsity import compress_n_m, n_m_mask
from minitransformers.compression.neuron_pruning import without_neurons
from minitransformers.compression.quantize import quantize_symmetric
from minitransformers.compression.sparse_linear import sparse_from_dense, sparse_linear
from minitransformers.compression.tt_linear import init_tt_linear, tt_linear
from minitransformers.compression.tt_linear_by_core import tt_linear_by_core
from minitransformers.reporting import Section, crossing, lines, paired_times, ticks_at
from minitransformers.training.memory import keep_freed_memory
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="timed")
ROWS, WIDTH, HEADS, HIDDEN = 128, 768, 12, 3072
STORED = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
FORWARD, BOTH = "forward", "forward and backward"
HALF_HEADS, HALF_UNITS = "attention, half of the heads", "feed-forward, half of the units"
TRAIN, BY_CORE, DIGITS, RANKS = "tensor train, cores first", "tensor train, core by core", (8, 12, 8), (8, 16, 16, 16, 8)
PAIRS, LOOP, CODES = "2 of 4, stored numbers alone", "8-bit codes, NumPy's loop", "8-bit codes, by floats"


# %%
def forward(call):
    call()


def both_ways(call):
    out, backward = call()
    backward(out)


def compared(dense, other, *, run):
    """The time of other over that of dense."""
    return paired_times({"dense": partial(run, dense), "other": partial(run, other)}, rounds=3 if section.quick else 40)["other"].median


@section.experiment
def experiment(rng):
    keep_freed_memory()
    hold_blas()
    x, weight = rng.standard_normal((ROWS, WIDTH), np.float32), rng.standard_normal((WIDTH, WIDTH), np.float32)
    dense = partial(linear, Linear(weight, None), x)
    for stored in STORED:
        masked = np.where(magnitude_mask(weight, sparsity=1 - stored), weight, 0)
        params, pattern = sparse_from_dense(masked)
        for name, run in ((FORWARD, forward), (BOTH, both_ways)):
            yield f"stored numbers alone, {name}", stored, {"ratio": compared(dense, partial(sparse_linear, params, x, pattern=pattern), run=run)}
            if name == FORWARD:
                yield "dense, with its zeros", stored, {"ratio": compared(dense, partial(linear, Linear(masked, None), x), run=run)}
    attention, network = init_multi_head_attention(rng, WIDTH, num_heads=HEADS), init_feed_forward(rng, WIDTH, d_hidden=HIDDEN)
    half = without_heads(attention, kept=range(HEADS // 2), num_heads=HEADS)
    blocks = {
        HALF_HEADS: (partial(multi_head_attention, attention, x, num_heads=HEADS), partial(multi_head_attention, half, x, num_heads=HEADS // 2)),
        HALF_UNITS: (partial(feed_forward, network, x), partial(feed_forward, without_neurons(network, kept=range(HIDDEN // 2)), x)),
    }
    for name, (whole, smaller) in blocks.items():
        for measure, run in ((FORWARD, forward), (BOTH, both_ways)):
            yield name, measure, {"ratio": compared(whole, smaller, run=run)}
    train = init_tt_linear(rng, DIGITS, DIGITS, ranks=RANKS)
    for name, layer in ((TRAIN, tt_linear), (BY_CORE, tt_linear_by_core)):
        for measure, run in ((FORWARD, forward), (BOTH, both_ways)):
            yield name, measure, {"ratio": compared(dense, partial(layer, train, x), run=run)}
    values, places = compress_n_m(np.where(n_m_mask(weight, n=2, m=4), weight, 0), n=2, m=4)
    yield PAIRS, FORWARD, {"ratio": compared(dense, partial(n_m_linear, NmLinear(values, None), x, places=places, m=4), run=forward)}
    left, right = quantize_symmetric(x, bits=8, axis=-1).codes, quantize_symmetric(weight, bits=8).codes
    for name, product in ((LOOP, integer_matmul), (CODES, integer_matmul_fast)):
        yield name, FORWARD, {"ratio": compared(lambda: x @ weight, partial(product, left, right), run=forward)}


# %%
def ratio(found, name, x=FORWARD):
    return float(np.ravel(found["ratio"][name][x])[0])


def told(found, *names, x=FORWARD):
    return ", ".join(f"{name} {ratio(found, name, x):.2f}" for name in names)


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


@section.claim(
    "Half of the heads or of the hidden units, and a forward pass is 1.6 times as fast", paper="Michel et al. 2019, arXiv:1905.10650, table 4: up to 17.5 % of a whole model's time, with half of its heads",
    measured=lambda found: told(found, HALF_HEADS, HALF_UNITS),
)  # fmt: skip
def structure_pays(found):
    """Both take at most 1 / 1.6 of the time of the whole."""
    return max(ratio(found, HALF_HEADS), ratio(found, HALF_UNITS)) <= 1 / 1.6


@section.claim(
    "A step through a tensor train is faster than through the matrix", paper="Yang et al. 2024 (CoMERA), arXiv:2405.14377, abstract: two to three times as fast an epoch, on a GPU",
    measured=lambda found: f"{told(found, TRAIN, BY_CORE, x=BOTH)}, for {WIDTH} by {WIDTH}, ranks {', '.join(map(str, RANKS))}, {ROWS} rows",
)  # fmt: skip
def train_is_faster(found):
    """Forward and backward, in the cheaper order, less time than the dense map."""
    return min(ratio(found, name, BOTH) for name in (TRAIN, BY_CORE)) < 1


@section.claim(
    "Are products of 8-bit codes faster in NumPy?", paper="Jacob et al. 2018, arXiv:1712.05877, section 2.4: where the processor has instructions for them",
    measured=lambda found: told(found, LOOP, CODES),
)  # fmt: skip
def codes_are_faster(found):
    """By floats they take less time than the product of floats."""
    return ratio(found, CODES) < 1


@section.report
def report(found):
    names = [f"stored numbers alone, {FORWARD}", f"stored numbers alone, {BOTH}", "dense, with its zeros"]
    section.table("sparse_time", ["time, dense as 1, of numbers that are not 0", *(f"{stored:.0%}" for stored in STORED)],
                  [[name, *(float(f"{ratio(found, name, stored):.2g}") for stored in STORED)] for name in names])  # fmt: skip
    rows = [[name, *(float(f"{ratio(found, name, x):.2g}") if x in found["ratio"][name] else "" for x in (FORWARD, BOTH))] for name in (HALF_HEADS, HALF_UNITS, TRAIN, BY_CORE, PAIRS, LOOP, CODES)]
    section.table("smaller_time", ["time, whole and dense as 1", FORWARD, BOTH], rows)
    section.values("speed", {"heads": ratio(found, HALF_HEADS), "units": ratio(found, HALF_UNITS), "loop": ratio(found, LOOP), "codes": ratio(found, CODES), "pairs": ratio(found, PAIRS), "train": ratio(found, TRAIN, BOTH), "by_core": ratio(found, BY_CORE, BOTH)})


@section.figure("sparse_time", size=(6, 3.2))
def picture(ax, found):
    lines(ax, {name: of for name, of in found["ratio"].items() if 0.5 in of}, xlabel="share of numbers that are not zero", ylabel="time, dense as 1", xscale="log", yscale="log")
    ticks_at(ax, list(STORED))
    ax.axhline(1, color="0.5", linestyle=":")
    ax.legend()


if __name__ == "__main__":
    section.main()
