"""How large should a tile be?

Dao 2023, arXiv:2307.08691, section 3.3: larger blocks need fewer loads, until they do not fit where the arithmetic is done; on a graphics
processor 64 or 128 positions on a side, chosen by hand. Here the fast memory is a processor's cache, and what a small tile costs
besides is NumPy's calls. One head of 64 features in float32, looking back, forward and backward.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.efficient.flash_attention import causal_flash_attention
from minitransformers.reporting import Section, lines, shortest_times, ticks_at
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="timed")
SIZES, DEFAULT, LENGTH, WIDTH = (64, 128, 256, 512, 1024), 256, 4096, 64


# %%
@section.experiment
def experiment(rng):
    hold_blas()                                              # one thread, so that its own time is all there is
    *arrays, dout = rng.standard_normal((4, 1, 512 if section.quick else LENGTH, WIDTH), np.float32)

    def forward_and_backward(size):
        _, backward = causal_flash_attention(None, *arrays, tile=size)
        backward(dout)

    calls = {size: partial(forward_and_backward, size) for size in SIZES}
    for size, seconds in shortest_times(calls, rounds=2).items():
        yield "tiles", size, {"seconds": seconds}


# %%
def relative(found):
    """Time by the size of a tile, that of the default as 1."""
    times = found["seconds"]["tiles"]
    return {size: float(np.ravel(times[size] / times[DEFAULT])[0]) for size in SIZES}


@section.claim(
    "Small tiles cost calls, and from 128 on the size hardly matters",
    paper="Dao 2023, arXiv:2307.08691, section 3.3: 64 or 128 on a side, chosen by hand for each width and device",
    measured=lambda found: ", ".join(f"{size:,} {time:.2f}" for size, time in relative(found).items()) + f" (time, {DEFAULT} = 1)",
)
def wide_range(found):
    """Tiles of 64 take at least 1.3 times the time of 256; those of 128, 512 and 1,024 between 0.7 and 1.5 times."""
    times = relative(found)
    return times[64] > 1.3 and all(0.7 < times[size] < 1.5 for size in (128, 512, 1024))


@section.report
def report(found):
    section.table("tile_size", ["tile", f"time, {DEFAULT} = 1"], [[size, float(f"{time:.2f}")] for size, time in relative(found).items()])
    section.values("tile_size", {"default": DEFAULT, "length": LENGTH, "small": relative(found)[64], "large": relative(found)[1024]})


@section.figure("tile_size", size=(4, 3))
def picture(ax, found):
    lines(ax, {"": relative(found)}, xlabel="positions on a side of a tile", ylabel=f"time, {DEFAULT} = 1", xscale="log", ylim=(0, None))
    ticks_at(ax, list(SIZES))


if __name__ == "__main__":
    section.main()
