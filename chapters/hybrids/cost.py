"""How do the costs of three memories grow with the text?

Zancato et al. 2024, arXiv:2407.06324, abstract: B'MOJO's resources are finite. A query sees so many tokens of its window, as many that
fade and so many that are kept, wherever it stands; a token costs the same however long the text is. Full attention beside it, whose
queries see all that came before. Forward and backward of one layer in float32, at growing lengths.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.hybrids.bmojo import init_bmojo
from minitransformers.hybrids.bmojo_blocks import bmojo_blocks
from minitransformers.reporting import Section, fitted_exponent, lines, peak_megabytes, shortest_times, ticks_at
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="timed")
LENGTHS, WIDTH, HEADS, WINDOW, MEMORY = (512, 1024, 2048, 4096, 8192), 32, 2, 32, 16
THREE, FULL = "three memories", "full attention"


# %%
@section.experiment
def experiment(rng):
    hold_blas()                                              # one thread, so that its own time is all there is
    layers = {
        THREE: partial(bmojo_blocks, init_bmojo(rng, WIDTH, num_heads=HEADS), num_heads=HEADS, window=WINDOW, memory=MEMORY),
        FULL: partial(multi_head_attention, init_multi_head_attention(rng, WIDTH, num_heads=HEADS), num_heads=HEADS),
    }
    for n in LENGTHS[1:4] if section.quick else LENGTHS:
        text = rng.standard_normal((n, WIDTH), np.float32)
        names = layers if n < LENGTHS[-1] else [THREE]       # the longest would take a gigabyte of scores
        calls = {name: partial(gradients, layers[name], text) for name in names}
        seconds = shortest_times(calls, rounds=1 if section.quick else 5)
        for name, call in calls.items():
            yield name, n, {"seconds": seconds[name], "megabytes": peak_megabytes(call)}


def gradients(layer, text):
    out, backward = layer(text)
    return backward(out)


# %%
def single(found, measure, name):
    """The numbers of the one seed there is, by length."""
    return {n: float(np.ravel(of)[0]) for n, of in found[measure][name].items()}


def exponent(found, measure, name):
    """The fitted power over the longest three lengths."""
    return fitted_exponent(*zip(*list(single(found, measure, name).items())[-3:], strict=True))


def told(found, measure):
    return ", ".join(f"{name}: length to the power {exponent(found, measure, name):.2f}" for name in (THREE, FULL))


@section.claim(
    "Three memories take as much memory a token however long the text is",
    paper="Zancato et al. 2024, arXiv:2407.06324, abstract: finite resources in use",
    kind="exact",
    measured=lambda found: told(found, "megabytes"),
)
def memory(found):
    """The peak of forward and backward grows as the length to the power 1, to within 0.1; that of full attention to 1.8 at least."""
    return abs(exponent(found, "megabytes", THREE) - 1) <= 0.1 and exponent(found, "megabytes", FULL) >= 1.8


@section.claim(
    "Three memories cost as much time a token however long the text is",
    paper="Zancato et al. 2024, arXiv:2407.06324, abstract: finite resources in use, and models up to 10 % faster to train than others of their size",
    measured=lambda found: told(found, "seconds"),
)
def time(found):
    """Time of forward and backward grows as the length to the power 1, to within 0.25."""
    return abs(exponent(found, "seconds", THREE) - 1) <= 0.25


@section.report
def report(found):
    def cells(name, n):
        return [float(f"{scale * single(found, measure, name)[n]:.3g}") if n in found[measure][name] else None
                for measure, scale in (("seconds", 1e3), ("megabytes", 1))]  # fmt: skip

    rows = [[n, *cells(THREE, n), *cells(FULL, n)] for n in found["seconds"][THREE]]
    section.table("cost", ["positions", "three memories, ms", "MiB", "full attention, ms", "MiB "], rows)
    section.values("eidetic", {"time_exponent": exponent(found, "seconds", THREE), "memory_exponent": exponent(found, "megabytes", THREE)})
    section.values("full", {"time_exponent": exponent(found, "seconds", FULL), "memory_exponent": exponent(found, "megabytes", FULL)})


@section.figure("cost", size=(7.6, 3.2), ncols=2)
def picture(axes, found):
    milliseconds = {name: {n: 1e3 * t for n, t in of.items()} for name, of in found["seconds"].items()}
    for ax, curves, name in zip(axes, (milliseconds, found["megabytes"]), ("ms, forward and backward", "MiB at most"), strict=True):
        lines(ax, curves, xlabel="positions", ylabel=name, xscale="log", yscale="log")
        ticks_at(ax, list(curves[THREE]))
    axes[0].legend()


if __name__ == "__main__":
    section.main()
