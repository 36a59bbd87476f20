"""How does the memory of SSD grow with the text?

Dao and Gu 2024, arXiv:2405.21060, section 6.3: in chunks SSD takes memory T N, where attention, written out, takes T^2. Forward and backward of the
core alone, two heads of 16, in float32; beside the chunks stands the quadratic form at the shortest length.
"""

# %%
from functools import partial

import numpy as np

import minitransformers as mt
from minitransformers.reporting import Section, growth, one_seed, peak_megabytes
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="exact")
CHUNKED, QUADRATIC, HEADS = "SSD, chunked", "SSD, quadratic", 2
CORES = {CHUNKED: mt.ssd_chunked, QUADRATIC: mt.ssd_quadratic}
LENGTHS = (1024, 2048, 4096, 8192)


# %%
def ssd_call(rng, n):
    """x, delta, A, B, C with steps and rates as Mamba-2 starts them."""
    x, (B, C) = rng.standard_normal((n, HEADS, 16), np.float32), rng.standard_normal((2, n, 1, 16), np.float32)
    delta = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), (n, HEADS))).astype(np.float32)
    return x, delta, -rng.uniform(1, 16, HEADS).astype(np.float32), B, C


def both_ways(core, call, dout):
    """Forward and backward; nobody reads the last state."""
    _, backward = mt.ssd(*call, core=core)
    backward((dout, None))


@section.experiment
def experiment(rng):
    hold_blas()
    for n in LENGTHS[:2] if section.quick else LENGTHS:
        call = ssd_call(rng, n)
        for name, core in CORES.items() if n == LENGTHS[0] else [(CHUNKED, mt.ssd_chunked)]:
            forward_and_backward = partial(both_ways, core, call, np.ones_like(call[0]))
            forward_and_backward()                           # what is imported at the first call is no cost of the form
            yield name, n, {"MiB": peak_megabytes(forward_and_backward)}


# %%
def megabytes(found, name):
    return list(one_seed(found["MiB"][name]).values())


@section.claim(
    "In chunks the memory of forward and backward is linear",
    paper="Dao and Gu 2024, arXiv:2405.21060, section 6.3: memory T N, against T^2 for attention written out",
    measured=lambda found: f"to the power {growth(found['MiB'][CHUNKED], last=4):.2f}, {megabytes(found, CHUNKED)[-1]:.1f} MiB at the longest (2 heads of 16)",
)
def linear_memory(found):
    """The peak grows with the length, from 1,024 positions on, to a power of at most 1.05."""
    return growth(found["MiB"][CHUNKED], last=4) <= 1.05


@section.report
def report(found):
    chunked, quadratic = (megabytes(found, name)[0] for name in (CHUNKED, QUADRATIC))
    power = growth(found["MiB"][CHUNKED], last=4)
    section.values("length.memory", {"exponent": power, "at": LENGTHS[0], "short": chunked, "quadratic": quadratic})


if __name__ == "__main__":
    section.main()
