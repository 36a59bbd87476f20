"""How many bits does a weight need: rounded afterwards, or learned with?

Nagel et al. 2021, arXiv:2106.08295: eight bits cost nothing, and below four a model has to learn with its rounding. Esser et al. 2020,
arXiv:1902.08153: a learned step is better than one computed from the weights, most of all at two bits. The 21 matrices of a small Llama that has
read Python's reference are rounded, each column with a step of its own, by the largest weight or by least squared error; or they learn on
for some updates, straight through the rounding, with steps computed by either or learned. The model in floats takes the same updates beside them.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.compression.calibration import least_error_magnitude
from minitransformers.compression.fake_quantize import Latent, change_by, fake_quantize
from minitransformers.compression.quantize import largest_magnitude
from minitransformers.reporting import Section, counted_pairs, lines, matrices, mean_and_spread, tried
from minitransformers.reporting.base import load_base
from minitransformers.reporting.compression import smaller as of
from minitransformers.reporting.compression.changes import above_zero, stepped

section = Section(__file__, __doc__, kind="trained")
BITS, STEPS = (8, 4, 3, 2), 200
LARGEST, ERROR = "rounded, largest weight", "rounded, least error"
THROUGH, FITTED, LEARNED = "learned, largest weight", "learned, least error", "learned, steps as well"
FLOAT = "floats, as many updates"
KEYS = {"largest": LARGEST, "error": ERROR, "through": THROUGH, "fitted": FITTED, "learned": LEARNED}
CLIPS = {LARGEST: largest_magnitude, ERROR: least_error_magnitude}


def rounded(bits, clip):
    return of.at_matrices(partial(matrices.rounded, bits=bits, clip=clip), load_base())


WAYS = {  # what is trained in the place of a weight, and what makes the weight of it
    FLOAT: (lambda weight, bits: weight, None),
    THROUGH: (lambda weight, bits: Latent(weight), fake_quantize),
    FITTED: (lambda weight, bits: Latent(weight), partial(fake_quantize, clip=partial(least_error_magnitude, candidates=10))),
    LEARNED: (lambda weight, bits: stepped(weight, bits=bits), above_zero),
}
TRIED = {FLOAT: (32,), THROUGH: BITS, FITTED: BITS[2:], LEARNED: BITS}  # with four bits and more both bounds are the same thing
TRAINED = {f"{way}, {bits} bits" if way != FLOAT else FLOAT: (way, bits) for way in WAYS for bits in TRIED[way]}


def trained(name, rng, *, rate, reported=False):
    """Bits a character after the updates."""
    (begin, concept), bits, base = WAYS[TRAINED[name][0]], TRAINED[name][1], load_base()
    change = None if concept is None else change_by(partial(concept, bits=bits))
    params = of.at_matrices(lambda weight: begin(weight, bits), base)
    settings = {"base": base, "change": change, "reported": reported, "windows": 16 if section.quick else None}
    return of.bits_of(of.learned(params, rng, steps=5 if section.quick else STEPS, rate=rate, **settings), **settings)


@section.tuning
def tuning(rng):
    yield from tried(trained, TRAINED, (1e-3, 3e-3) if section.quick else (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3), rng)


@section.experiment
def experiment(rng):
    base, windows = load_base(), 16 if section.quick else None
    yield FLOAT, "before", {"lost": of.bits_of(base, base=base, windows=windows)}
    for name, clip in CLIPS.items():
        for bits in BITS:
            yield name, bits, {"bits": of.bits_of(rounded(bits, clip), base=base, windows=windows)}
    for name, (way, bits) in TRAINED.items():
        yield way, bits, {"bits": trained(name, rng, rate=section.rates[name], reported=True)}


# %%
def told(found, bits, *names):
    return ", ".join(f"{name} {mean_and_spread(found['bits'][name][bits], '.3f')}" for name in names)


def before(found):
    return found["lost"][FLOAT]["before"]


def cost(found, name, bits, beside):
    """Bits a character more than beside."""
    return found["bits"][name][bits] - beside


@section.claim(
    "Eight bits a weight cost nothing",
    paper="Nagel et al. 2021, arXiv:2106.08295, section 3.5, table 5: within a percent of the model in floats",
    measured=lambda found: f"in floats {np.mean(before(found)):.4f}; {told(found, 8, LARGEST, ERROR)}",
)
def eight(found):
    """At most 0.005 bits a character more, by either bound."""
    return max(cost(found, name, 8, before(found)) for name in CLIPS) <= 0.005


@section.claim(
    "Below four bits a bound of least error beats the largest weight",
    paper="Nagel et al. 2021, arXiv:2106.08295, section 3.1: clipping by squared error, for few bits above all",
    measured=lambda found: "; ".join(f"{bits} bits: {told(found, bits, LARGEST, ERROR)}" for bits in (3, 2)),
)
def least_error(found):
    """At 3 and at 2 bits it costs at most 0.9 of what the largest weight costs."""
    return all(cost(found, ERROR, bits, before(found)) <= 0.9 * cost(found, LARGEST, bits, before(found)) for bits in (3, 2))


@section.claim(
    "Learning with the rounding repairs most of what rounding afterwards costs",
    paper="Nagel et al. 2021, arXiv:2106.08295, section 4.4: where rounding afterwards fails, learning with it does not",
    measured=lambda found: "; ".join(f"{bits} bits: {told(found, bits, ERROR, THROUGH, FITTED, LEARNED)}" for bits in (3, 2)) + f"; {FLOAT} {mean_and_spread(found['bits'][FLOAT][32], '.3f')}",
)
def repairs(found):
    """At 3 and at 2 bits all ways of learning cost at most half of what rounding by least error costs, beside floats after as many updates."""
    after = found["bits"][FLOAT][32]
    return all(max(cost(found, way, bits, after) for way in (THROUGH, FITTED, LEARNED)) <= 0.5 * cost(found, ERROR, bits, before(found)) for bits in (3, 2))


@section.claim(
    "Is a learned step better than a computed one, at two bits?",
    paper="Esser et al. 2020, arXiv:1902.08153, table 1: at two bits ahead of all others",
    measured=lambda found: told(found, 2, THROUGH, FITTED, LEARNED),
)
def steps_learn(found):
    """It costs at most 0.75 of what the better of the computed steps costs, beside floats after as many updates."""
    after = found["bits"][FLOAT][32]
    return cost(found, LEARNED, 2, after) <= 0.75 * min(cost(found, way, 2, after) for way in (THROUGH, FITTED))


@section.report
def report(found):
    rows = [[name, *(mean_and_spread(of_bits[bits], ".3f") if bits in of_bits else "" for bits in BITS)] for name, of_bits in found["bits"].items() if name != FLOAT]
    floats = [["floats, as they are", f"{np.mean(before(found)):.3f}", "", "", ""], [FLOAT, mean_and_spread(found["bits"][FLOAT][32], ".3f"), "", "", ""]]
    pairs = ["pairs of bytes counted", f"{counted_pairs(of.corpora()[True]):.3f}", "", "", ""]
    section.table("bits", ["bits a character with weights of", *(f"{bits} bits" for bits in BITS)], [pairs, *floats, *rows])
    section.values("bits", {"steps": STEPS, "before": before(found).mean(), "after": found["bits"][FLOAT][32].mean()})
    for key, name in KEYS.items():
        section.values(f"bits.{key}", {f"b{bits}": of_bits.mean() for bits, of_bits in found["bits"][name].items()})


@section.figure("bits", size=(6, 3.4))
def picture(ax, found):
    lines(ax, {name: of_bits for name, of_bits in found["bits"].items() if name != FLOAT}, xlabel="bits a weight", ylabel="bits a character", ylim=(1.7, 3.1))
    ax.axhline(np.mean(before(found)), color="0.5", linestyle=":")
    ax.legend()


if __name__ == "__main__":
    section.main()
