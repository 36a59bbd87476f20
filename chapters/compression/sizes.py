"""One model, every way of making it smaller: bytes, bits a character, tokens a second.

Li et al. 2024, arXiv:2402.05964, sort the ways: fewer weights, fewer bits a weight, smaller parts, thinner matrices. A small Llama of 155,000
numbers goes every way of this chapter (minitransformers/reporting/compression/ways.py). Inputs, where a way looks at them, are those of 64 windows of what the
model has read. Whatever learns has as many updates, and a rate of its own. Bytes are counted as they would be stored: codes packed, steps in 16
bits, a mask a bit a place, and all that is not made smaller in 16 bits.
"""

# %%
import numpy as np

from minitransformers.reporting import Section, counted_pairs, mean_and_spread, tried
from minitransformers.reporting.compression import smaller as of
from minitransformers.reporting.compression.ways import FLOAT, STUDENT, WAYS, made
from minitransformers.reporting.figures import front, named_points

section = Section(__file__, __doc__, kind="trained")
STEPS = 200
RATES = {name: way.learning.rates for name, way in WAYS.items() if way.learning is not None}
THREE, TWO, MIXED = "3 bits, learned", "2 bits, learned", "half, magnitude, 3 bits, learned"
PARTS = ["half of the heads, learned", "half of the units, learned", "two layers of three, learned"]
HALVED = [name for name in RATES if name not in (THREE, TWO, MIXED, STUDENT)]


# %%
def went(name, rng, *, rate, reported):
    """The model at the end of a way, its kilobytes, and the bits a character that it needs."""
    tree, kilobytes = made(WAYS[name], rng, steps=8 if section.quick else STEPS, rate=rate, reported=reported)
    return tree, kilobytes, of.bits_of(tree, base=tree, model=WAYS[name].model, reported=reported, windows=16 if section.quick else None)


@section.tuning
def tuning(rng):
    yield from tried(lambda name, rng, rate: went(name, rng, rate=rate, reported=False)[2], RATES, (1e-3,) if section.quick else RATES, rng)


@section.experiment
def experiment(rng):
    for name in WAYS:
        tree, kilobytes, bits = went(name, rng, rate=section.rates.get(name), reported=True)
        yield name, 0, {"kilobytes": kilobytes, "bits": bits, "pace": of.pace(WAYS[name].model, tree, rounds=3 if section.quick else 40)}


# %%
def mean(found, measure, name):
    return float(np.mean(found[measure][name][0]))


def cost(found, name):                                       # bits a character more than the floats need
    return found["bits"][name][0] - found["bits"][FLOAT][0]


def told(*names):
    return lambda found: "; ".join(f"{name}: {mean(found, 'kilobytes', name):.0f} kB, {mean_and_spread(found['bits'][name][0], '.3f')}" for name in (FLOAT, *names))


def points(found):
    return {name: (mean(found, "kilobytes", name), mean(found, "bits", name)) for name in WAYS}


@section.claim(
    "Do three bits a weight cost less than half of the weights?", paper="Kuzmin et al. 2023, arXiv:2307.02973, abstract: in most settings quantisation is better than pruning",
    measured=told(THREE, *HALVED),
)  # fmt: skip
def bits_first(found):
    """Three bits that learned are fewer bytes than a half that was pruned, thinned or left out, whichever way, and fewer bits a character."""
    return all(found[measure][THREE][0] < found[measure][name][0] for name in HALVED for measure in ("kilobytes", "bits"))


@section.claim(
    "Half pruned with three bits is better than two bits for all", paper="Han et al. 2015, arXiv:1510.00149: pruned first, then quantised",
    measured=told(THREE, MIXED, TWO),
)  # fmt: skip
def both(found):
    """It needs fewer bits a character, with at most 1.15 times the bytes."""
    return found["bits"][MIXED][0] < found["bits"][TWO][0] and found["kilobytes"][MIXED][0] <= 1.15 * found["kilobytes"][TWO][0]


@section.claim(
    "Do three bits cost less with a look at the inputs?", paper="Frantar et al. 2022, arXiv:2210.17323, table 3; Lin et al. 2023, arXiv:2306.00978, table 4",
    measured=told("3 bits", "3 bits, GPTQ", "3 bits, AWQ", THREE),
)  # fmt: skip
def a_look(found):
    """GPTQ and AWQ cost at most 0.8 of what rounding costs."""
    return max(cost(found, name) for name in ("3 bits, GPTQ", "3 bits, AWQ")) <= 0.8 * cost(found, "3 bits")


@section.claim(
    "Inputs of eight bits cost nothing here, and leave nothing to smooth",
    paper="Dettmers et al. 2022, arXiv:2208.07339, section 3: features that break it come with models of 6.7 billion numbers", measured=told(*(name for name in WAYS if name.startswith("8 bits, inputs"))),
)  # fmt: skip
def inputs_too(found):
    """Eight bits for weights and inputs cost at most 0.005 bits a character, plainly, with SmoothQuant and with LLM.int8."""
    return max(cost(found, name) for name in WAYS if name.startswith("8 bits, inputs")) <= 0.005


@section.claim(
    "Does a half that inputs choose need no learning?", paper="Sun et al. 2023, arXiv:2306.11695, abstract: no retraining or weight update",
    measured=told(*(f"{kept}, {way}" for kept in ("half", "2 of 4") for way in ("magnitude", "Wanda", "magnitude, learned"))),
)  # fmt: skip
def no_learning(found):
    """Half of the weights, and two of each four, cost at most 1.5 times what those that magnitude chooses cost after learning."""
    return all(cost(found, f"{kept}, Wanda") <= 1.5 * cost(found, f"{kept}, magnitude, learned") for kept in ("half", "2 of 4"))


@section.claim(
    "Are trains of cores better than two thin matrices of as many numbers?", paper="Yang et al. 2024 (CoMERA), arXiv:2405.14377, abstract: high compression without loss, from random cores",
    measured=told("thin, learned", "thin, by inputs, learned", "tensor train, learned"),
)  # fmt: skip
def trains(found):
    """They cost at most 0.95 of what the matrices cost that plain truncation begins with, as they do."""
    return cost(found, "tensor train, learned") <= 0.95 * cost(found, "thin, learned")


@section.claim(
    "Is a student of half the width worth its bytes, after as many updates?", paper="no paper: students learn as long as their teachers did; Hinton et al. 2015, arXiv:1503.02531",
    measured=told(TWO, "half of the units, learned", STUDENT),
)  # fmt: skip
def students(found):
    """It needs fewer bits a character than the model of two bits a weight, which is smaller."""
    return found["bits"][STUDENT][0] < found["bits"][TWO][0]


@section.claim(
    "Are smaller parts faster, each of them?", paper="Li et al. 2024, arXiv:2402.05964, table 1: the others want kernels of their own", kind="timed",
    measured=lambda found: "; ".join(f"{name} {mean(found, 'pace', name):.2f}" for name in (*PARTS, STUDENT)) + " of the floats' tokens a second",
)  # fmt: skip
def smaller_parts(found):
    """Half of the heads, half of the units, two layers of three and the student read at least 1.15 times as many tokens a second as the whole model."""
    return min(found["pace"][name][0] for name in (*PARTS, STUDENT)) >= 1.15


@section.report
def report(found):
    rows, best = [["pairs of bytes counted", "", f"{counted_pairs(of.corpora()[True]):.3f}", "", ""]], front(points(found))
    for name, (kilobytes, bits) in points(found).items():
        row = [f"{kilobytes:.0f}", mean_and_spread(found["bits"][name][0], ".3f"), f"{mean(found, 'pace', name):.2f}", f"{section.rates[name]:g}" if name in RATES else ""]
        rows.append([name + (" *" if name in best else ""), *row])
        section.values("sizes." + "_".join(name.replace(",", "").replace(".", "_").split()), {"kilobytes": kilobytes, "bits": bits})
    section.table("sizes", ["way (* none is smaller and better)", "kilobytes", "bits a character", "tokens a second, floats as 1", "learning rate"], rows)
    section.value("sizes.steps", STEPS)


@section.figure("sizes", size=(6.4, 5))
def picture(ax, found):
    named_points(ax, points(found), xlabel="kilobytes", ylabel="bits a character", xscale="log")


if __name__ == "__main__":
    section.main()
