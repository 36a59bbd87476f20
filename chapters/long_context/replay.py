"""Learning through a memory: what must be kept?

Wu et al. 2020 (Memformer), arXiv:2010.06891, section 3.5: back-propagation through many segments keeps what each of them computed, and a long text
does not fit. Keep the slots between segments alone, and compute each segment once more on the way back: the gradients are the same. What that saves
and costs: peak memory and time, forward and backward, of one Memformer and of as many segments as there are.
"""

# %%
import numpy as np

from minitransformers.foundation import trees
from minitransformers.long_context.memformer import init_memformer, memformer
from minitransformers.long_context.memory_replay import memory_replay
from minitransformers.reporting import Section, fitted_exponent, lines, one_seed, paired_times, peak_megabytes, ticks_at
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="timed")
SEGMENTS, BATCH, LENGTH, WIDTH, HEADS, SLOTS = (2, 4, 8, 16, 32), 4, 64, 32, 2, 4
KEPT, REPLAYED = "all is kept", "replayed"


# %%
def step(params, x, memory):
    return memformer(params, x, memory, num_heads=HEADS)


def all_kept(params, x):
    """The outputs of all segments, and backward: dout -> dparams; every segment's arrays stay until then."""
    memory, outs, backwards = None, [], []
    for segment in x:
        (out, memory), back = step(params, segment, memory)
        outs.append(out)
        backwards.append(back)

    def backward(dout):
        total, dmemory = trees.zeros_like(params), None
        for back, own in zip(reversed(backwards), reversed(dout), strict=True):
            dparams, _, dmemory = back((own, dmemory))
            total = trees.map(np.add, total, dparams)
        return total

    return np.stack(outs), backward


def replayed(params, x):
    (out, _), backward = memory_replay(params, x, None, step=step)
    return out, lambda dout: backward((dout, None))[0]


def both_ways(form, params, x, dout):
    return lambda: form(params, x)[1](dout)


FORMS = {KEPT: all_kept, REPLAYED: replayed}


@section.experiment
def experiment(rng):
    hold_blas()
    params = init_memformer(rng, WIDTH, num_slots=SLOTS, num_layers=1, num_heads=HEADS)
    for segments in SEGMENTS[:3] if section.quick else SEGMENTS:
        x, dout = rng.standard_normal((2, segments, BATCH, LENGTH, WIDTH), np.float32)
        calls = {name: both_ways(form, params, x, dout) for name, form in FORMS.items()}
        times = paired_times(calls, rounds=3 if section.quick else 10)
        for name, call in calls.items():
            yield name, segments, {"megabytes": peak_megabytes(call), "ratio": times[name].median}
        apart = [np.abs(one - other).max() / np.abs(one).max() for (_, one), (_, other) in zip(*(trees.leaves(call()) for call in calls.values()), strict=True)]
        yield REPLAYED, segments, {"apart": max(apart)}


# %%
def exponent(found, name):
    points = one_seed(found["megabytes"][name])
    return fitted_exponent(list(points), list(points.values()))


@section.claim(
    "The gradients are the same", paper="Wu et al. 2020, arXiv:2010.06891, algorithm 1", kind="exact",
    measured=lambda found: f"apart by at most {max(one_seed(found['apart'][REPLAYED]).values()):.0e} of the largest number",
)  # fmt: skip
def same(found):
    """To the rounding of float32."""
    return max(found["apart"][REPLAYED].values()) <= 1e-5


@section.claim(
    "Memory hardly grows with the number of segments", paper="Wu et al. 2020, arXiv:2010.06891, section 3.5, figure 4", kind="exact",
    measured=lambda found: ", ".join(f"{name}: segments to the power {exponent(found, name):.2f}" for name in FORMS),
)  # fmt: skip
def flat(found):
    """The peak of what is allocated grows as the segments to the power 0.2 at most, outputs and their gradients included; with all kept to 0.8."""
    return exponent(found, REPLAYED) <= 0.2 and exponent(found, KEPT) >= 0.8


@section.claim(
    "It costs one more forward pass", paper="Wu et al. 2020, arXiv:2010.06891, section 3.5",
    measured=lambda found: ", ".join(f"{n} segments {ratio:.2f}" for n, ratio in one_seed(found["ratio"][REPLAYED]).items()) + " of the time",
)  # fmt: skip
def one_more(found):
    """At most 1.6 times the time of what keeps all."""
    return max(found["ratio"][REPLAYED].values()) <= 1.6


@section.report
def report(found):
    rows = [[name, *(float(f"{mb:.3g}") for mb in one_seed(found["megabytes"][name]).values())] for name in FORMS]
    section.table("replay", ["megabytes at the peak, segments", *map(str, one_seed(found["megabytes"][KEPT]))], rows)
    section.values("replay", {"kept": exponent(found, KEPT), "replayed": exponent(found, REPLAYED), "time": float(np.median(list(one_seed(found["ratio"][REPLAYED]).values())))})


@section.figure("replay", size=(5, 3))
def picture(ax, found):
    lines(ax, found["megabytes"], xlabel="segments", ylabel="megabytes at the peak", xscale="log", yscale="log")
    ticks_at(ax, list(found["megabytes"][KEPT]))
    ax.legend()


if __name__ == "__main__":
    section.main()
