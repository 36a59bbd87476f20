"""What is smaller: is it faster as well?

Li et al. 2024, arXiv:2402.05964, table 1: what is pruned in whole heads and units saves storage and time. Jacob et al. 2018, arXiv:1712.05877: whole
numbers multiply faster, where there are instructions for them. Here NumPy, one thread, float32: blocks with half of their heads or hidden units, a
tensor train, two of each four numbers, and codes instead of floats. Each against the dense form in turn.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.basics.feed_forward import feed_forward, init_feed_forward
from minitransformers.basics.linear import Linear, linear
from minitransformers.compression.head_pruning import without_heads
from minitransformers.compression.integer_matmul import integer_matmul, integer_matmul_fast
from minitransformers.compression.n_m_linear import NmLinear, n_m_linear
from minitransformers.compression.n_m_sparsity import compress_n_m, n_m_mask
from minitransformers.compression.neuron_pruning import without_neurons
from minitransformers.compression.quantize import quantize_symmetric
from minitransformers.compression.tt_linear import init_tt_linear, tt_linear
from minitransformers.compression.tt_linear_by_core import tt_linear_by_core
from minitransformers.reporting import Section
from minitransformers.reporting.compression.paces import BOTH, FORWARD, compared, quiet, ratio, told

section = Section(__file__, __doc__, kind="timed")
ROWS, WIDTH, HEADS, HIDDEN = 128, 768, 12, 3072
HALF_HEADS, HALF_UNITS = "attention, half of the heads", "feed-forward, half of the units"
TRAIN, BY_CORE, DIGITS, RANKS = "tensor train, cores first", "tensor train, core by core", (8, 12, 8), (8, 16, 16, 16, 8)
PAIRS, LOOP, CODES = "2 of 4, stored numbers alone", "8-bit codes, NumPy's loop", "8-bit codes, by floats"


# %%
@section.experiment
def experiment(rng):
    quiet()
    rounds = 3 if section.quick else 40
    x, weight = rng.standard_normal((ROWS, WIDTH), np.float32), rng.standard_normal((WIDTH, WIDTH), np.float32)
    dense = partial(linear, Linear(weight, None), x)
    attention, network = init_multi_head_attention(rng, WIDTH, num_heads=HEADS), init_feed_forward(rng, WIDTH, d_hidden=HIDDEN)
    half = without_heads(attention, kept=range(HEADS // 2), num_heads=HEADS)
    blocks = {
        HALF_HEADS: (partial(multi_head_attention, attention, x, num_heads=HEADS), partial(multi_head_attention, half, x, num_heads=HEADS // 2)),
        HALF_UNITS: (partial(feed_forward, network, x), partial(feed_forward, without_neurons(network, kept=range(HIDDEN // 2)), x)),
    }
    for name, (whole, smaller) in blocks.items():
        for way in (FORWARD, BOTH):
            yield name, way, {"ratio": compared(whole, smaller, way=way, rounds=rounds)}
    train = init_tt_linear(rng, DIGITS, DIGITS, ranks=RANKS)
    for name, layer in ((TRAIN, tt_linear), (BY_CORE, tt_linear_by_core)):
        for way in (FORWARD, BOTH):
            yield name, way, {"ratio": compared(dense, partial(layer, train, x), way=way, rounds=rounds)}
    values, places = compress_n_m(np.where(n_m_mask(weight, n=2, m=4), weight, 0), n=2, m=4)
    yield PAIRS, FORWARD, {"ratio": compared(dense, partial(n_m_linear, NmLinear(values, None), x, places=places, m=4), way=FORWARD, rounds=rounds)}
    left, right = quantize_symmetric(x, bits=8, axis=-1).codes, quantize_symmetric(weight, bits=8).codes
    for name, product in ((LOOP, integer_matmul), (CODES, integer_matmul_fast)):
        yield name, FORWARD, {"ratio": compared(lambda: x @ weight, partial(product, left, right), way=FORWARD, rounds=rounds)}


# %%
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
    rows = [[name, *(float(f"{ratio(found, name, x):.2g}") if x in found["ratio"][name] else "" for x in (FORWARD, BOTH))] for name in (HALF_HEADS, HALF_UNITS, TRAIN, BY_CORE, PAIRS, LOOP, CODES)]
    section.table("smaller_time", ["time, whole and dense as 1", FORWARD, BOTH], rows)
    section.values("speed", {"heads": ratio(found, HALF_HEADS), "units": ratio(found, HALF_UNITS), "loop": ratio(found, LOOP), "codes": ratio(found, CODES), "pairs": ratio(found, PAIRS), "train": ratio(found, TRAIN, BOTH), "by_core": ratio(found, BY_CORE, BOTH)})


if __name__ == "__main__":
    section.main()
