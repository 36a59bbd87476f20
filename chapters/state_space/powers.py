"""Must S4D's kernel be made from a table of all powers?

Gu et al. 2022 (S4D), arXiv:2206.11893, section 3.3: the kernel is a Vandermonde product, and the authors' code writes the whole matrix out:
a complex number for every mode and position. Two short tables hold the same powers. Their layer, with both passes and the convolution,
against the one table's two products alone.
"""

# %%
from functools import partial

import numpy as np

from minitransformers import init_s4d, s4d, trees
from minitransformers.reporting import Section, shortest_times
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="timed")
LENGTH, CHANNELS = 4096, 32
ONE, TWO = "one table of all powers", "the layer, by two short tables"


# %%
def one_table(params, length):
    """The kernel, and its products on the way back, by a table with a number for every mode and position."""
    A = -np.exp(params.log_A_real) + 1j * params.A_imag
    lam = np.exp(params.log_step)[:, None] * A
    c = (params.C[..., 0] + 1j * params.C[..., 1]) * np.expm1(lam) / A
    table = np.exp(lam[..., None] * np.arange(length))
    kernel = 2 * (c[:, None] @ table).real[:, 0]
    return kernel, table.conj() @ kernel[..., None], table.conj() @ (kernel * np.arange(length))[..., None]


def two_tables(params, x):
    out, backward = s4d(params, x)
    return out, backward(out)


@section.experiment
def experiment(rng):
    hold_blas()                                              # one thread, so that its own time is all there is
    length = 512 if section.quick else LENGTH
    params = init_s4d(rng, CHANNELS, dtype=np.float64)
    params, pulse = params._replace(D=np.zeros(CHANNELS)), np.zeros((length, CHANNELS))
    pulse[0] = 1                                             # to a pulse the layer answers with its kernel
    kernel, response = one_table(params, length)[0].T, two_tables(params, pulse)[0]
    yield TWO, length, {"difference": np.abs(response - kernel).max() / np.abs(kernel).max()}
    params, x = trees.cast(params, np.float32), rng.standard_normal((1, length, CHANNELS), np.float32)
    calls = {ONE: partial(one_table, params, length), TWO: partial(two_tables, params, x)}
    for name, seconds in shortest_times(calls, rounds=2 if section.quick else 5).items():
        yield name, length, {"seconds": seconds}


def lone(found, measure, name):
    (number,) = found[measure][name].values()
    return float(np.ravel(number)[0])


# %%
@section.claim(
    "Two short tables hold the powers of one long one",
    paper="no paper: a position l is q i + j, and a power of the sum a product of two powers",
    kind="exact",
    measured=lambda found: f"kernels {lone(found, 'difference', TWO):.0e} apart",
)
def same(found):
    """The kernel by two tables is that of one table to 1e-10 of its largest number, in float64."""
    return lone(found, "difference", TWO) < 1e-10


@section.claim(
    "They take less time than writing out one",
    paper="no paper: of the order of the square root of the length many exponentials a mode, where the matrix has as many as positions",
    measured=lambda found: f"{1e3 * lone(found, 'seconds', ONE):.0f} ms and {1e3 * lone(found, 'seconds', TWO):.0f} ms at {LENGTH:,} positions",
)
def quicker(found):
    """The whole layer, forward and backward, takes at most a third of the time of the one table's products."""
    return lone(found, "seconds", TWO) <= lone(found, "seconds", ONE) / 3


@section.report
def report(found):
    section.values("s4d.table", {"length": LENGTH, "time_ratio": lone(found, "seconds", ONE) / lone(found, "seconds", TWO),
                                 "memory_ratio": LENGTH / (2 * np.ceil(np.sqrt(LENGTH)))})  # fmt: skip


if __name__ == "__main__":
    section.main()
