"""One model, every way of making it smaller: bytes, bits a character, tokens a second.

Li et al. 2024, arXiv:2402.05964, sort the ways: fewer weights, fewer bits a weight, smaller parts, thinner matrices. A small Llama of 115,000
numbers goes every way that this chapter has. Where a way learns, it learns for as many updates as all others that do, with a rate of its own.
Bytes are counted as they would be stored: codes packed, steps in 16 bits, a mask a bit a place, and what is not made smaller in 16 bits.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.compression.calibration import least_error_magnitude
from minitransformers.compression.fake_quantize import change_by
from minitransformers.compression.layer_pruning import without_layers
from minitransformers.compression.learned_step import Stepped, init_step, learned_step
from minitransformers.compression.low_rank_linear import break_even_rank, low_rank_weight, svd_factors
from minitransformers.compression.magnitude_pruning import magnitude_mask
from minitransformers.compression.masked_weight import MaskedWeight, masked_weight
from minitransformers.compression.n_m_sparsity import n_m_mask
from minitransformers.compression.neuron_pruning import neuron_importance, without_neurons
from minitransformers.compression.quantize import dequantize_symmetric, quantize_symmetric
from minitransformers.foundation import reparameterize, trees
from minitransformers.models.llama import llama
from minitransformers.peft.nf4 import dequantize_nf4, quantize_nf4
from minitransformers.reporting import Section, counted_pairs, mean_and_spread, processor_seconds, tried
from minitransformers.reporting import smaller as of
from minitransformers.reporting.base import SETTINGS, load_base

section = Section(__file__, __doc__, kind="trained")
STEPS = 200


# %% Ways: what the model begins as, what makes its weights, and the bits that a matrix takes
def stored(weight, bits):
    """So many bits a number, and a step of 16 bits for each column."""
    return bits * weight.size + 16 * weight.shape[1]


def rounded(bits):
    return of.at_matrices(lambda weight: dequantize_symmetric(quantize_symmetric(weight, bits=bits, clip=least_error_magnitude)), load_base())


def halves(weight):
    return weight.astype(np.float16).astype(np.float32)


def pruned(mask_of):
    return of.at_matrices(lambda weight: np.where(mask_of(weight), weight, 0), load_base())


def fewer_units(rng):
    """Without the half of each layer's hidden units whose gates the loss of a batch depends on least."""
    base = load_base()
    ids, targets = of.corpora()[True].batch(rng, batch_size=64, context=64)
    logits, backward = llama(base, ids=ids, **SETTINGS)
    gradients = backward(cross_entropy(logits, targets=targets)[1](np.float32(1.0)))
    blocks = []
    for block, own in zip(base.blocks, gradients.blocks, strict=True):
        scores = neuron_importance(block.feed_forward, own.feed_forward)
        kept = np.argsort(-scores, kind="stable")[: len(scores) // 2]
        blocks.append(block._replace(feed_forward=without_neurons(block.feed_forward, kept=[int(unit) for unit in kept])))
    return base._replace(blocks=blocks)


def fewer_layers(rng):
    """Without the middle of three layers."""
    base = load_base()
    return base._replace(blocks=without_layers(base.blocks, kept=[0, 2]))


def thin(weight):
    return svd_factors(weight, rank=int(0.5 * break_even_rank(*weight.shape)))


def above_zero(weight, step, *, bits):
    return learned_step(weight, np.maximum(step, 1e-4), bits=bits)


def stepped(weight, *, bits):
    return Stepped(weight, init_step(weight, bits=bits, axis=-2))


def masked_and_stepped(own, *, base):
    """Three bits for each number that is not zero: straight through a mask and a learned step."""
    masked, mask_backward = masked_weight(MaskedWeight(own.weight), base=base)
    out, backward = above_zero(masked, own.step, bits=3)

    def back(dout):
        dmasked, dstep = backward(dout)
        return Stepped(mask_backward(dmasked).weight, dstep)

    return out, back


def half(weight):
    return magnitude_mask(weight, sparsity=0.5)


def pairs(weight):
    return n_m_mask(weight, n=2, m=4)


FLOAT = "floats of 32 bits"
AS_THEY_ARE = {  # the model, and bits of a matrix
    FLOAT: (load_base, lambda weight: 32 * weight.size),
    "floats of 16 bits": (lambda: of.at_matrices(halves, load_base()), lambda weight: 16 * weight.size),
    **{f"{bits} bits": (partial(rounded, bits), partial(stored, bits=bits)) for bits in (8, 4, 3)},
    "NF4": (lambda: of.at_matrices(lambda weight: dequantize_nf4(quantize_nf4(weight)), load_base()), lambda weight: (4 + 16 / 64) * weight.size),
}
LEARNED = {  # the model that learning begins with, what is trained for a weight, the change that makes the weight, and bits of a matrix
    "3 bits, learned": (lambda rng: load_base(), partial(stepped, bits=3), change_by(partial(above_zero, bits=3)), partial(stored, bits=3)),
    "2 bits, learned": (lambda rng: load_base(), partial(stepped, bits=2), change_by(partial(above_zero, bits=2)), partial(stored, bits=2)),
    "half pruned, learned": (lambda rng: pruned(half), MaskedWeight, masked_weight, lambda weight: (8 + 1) * weight.size),
    "2 of 4, learned": (lambda rng: pruned(pairs), MaskedWeight, masked_weight, lambda weight: (8 + 1) * weight.size),
    "half pruned, 3 bits, learned": (lambda rng: pruned(half), partial(stepped, bits=3), masked_and_stepped, lambda weight: stored(weight, 1.5 + 1)),
    "half of the units, learned": (fewer_units, None, None, lambda weight: 16 * weight.size),
    "two layers of three, learned": (fewer_layers, None, None, lambda weight: 16 * weight.size),
    "thin, half of the numbers, learned": (lambda rng: load_base(), thin, low_rank_weight, lambda weight: 8 * weight.size),
}


def learned(name, rng, *, rate, reported=False):
    """The model with its weights made, after the updates."""
    begin, train, change, _ = LEARNED[name]
    start = begin(rng)
    params = start if train is None else of.at_matrices(train, start)
    params = of.learned(params, rng, steps=5 if section.quick else STEPS, rate=rate, base=start, change=change, reported=reported)
    return reparameterize(params, base=start, change=change)[0]


def asked(tree, reported=True):
    return of.bits_of(tree, base=tree, reported=reported, windows=16 if section.quick else None)


def kilobytes(name, tree):
    bits_of_matrix, bits = {**AS_THEY_ARE, **LEARNED}[name][-1], 0
    chosen = set(of.targets(tree, of.MATRICES))
    for path, leaf in trees.leaves(tree):
        bits += bits_of_matrix(leaf) if path in chosen else (32 if name == FLOAT else 16) * leaf.size
    return bits / 8000


@section.tuning
def tuning(rng):
    rates = (1e-3,) if section.quick else (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    yield from tried(lambda name, rng, rate: asked(learned(name, rng, rate=rate), False), LEARNED, rates, rng)


@section.experiment
def experiment(rng):
    for name in {**AS_THEY_ARE, **LEARNED}:
        tree = AS_THEY_ARE[name][0]() if name in AS_THEY_ARE else learned(name, rng, rate=section.rates[name], reported=True)
        with processor_seconds() as spent:
            bits = asked(tree)
        tokens = 16 * 64 if section.quick else len(of.corpora()[True].validation)
        yield name, 0, {"bits": bits, "kilobytes": kilobytes(name, tree), "speed": tokens / spent()}


# %%
def of_name(found, measure, name):
    return found[measure][name][0]


def told(found, *names):
    return "; ".join(f"{name}: {np.mean(of_name(found, 'kilobytes', name)):.0f} kB, {mean_and_spread(of_name(found, 'bits', name), '.3f')}" for name in names)


def front(found):
    """The names of which no other has fewer bytes and fewer bits a character, in the means over seeds."""
    points = {name: (np.mean(of_name(found, "kilobytes", name)), np.mean(of_name(found, "bits", name))) for name in found["bits"]}
    return [name for name, own in points.items() if not any(other[0] <= own[0] and other[1] < own[1] for other in points.values())]


@section.claim(
    "Do three bits a weight cost less than half of the weights?", paper="Kuzmin et al. 2023, arXiv:2307.02973, abstract: in most settings quantisation is better than pruning",
    measured=lambda found: told(found, "4 bits", "3 bits, learned", "half pruned, learned", "2 of 4, learned", "thin, half of the numbers, learned"),
)  # fmt: skip
def bits_first(found):
    """Three bits that learned are fewer bytes than a half that was pruned, thinned or left out, and fewer bits a character."""
    others = [name for name in LEARNED if "bits" not in name]
    own = "3 bits, learned"
    return all(of_name(found, "kilobytes", own) < of_name(found, "kilobytes", name) and of_name(found, "bits", own) < of_name(found, "bits", name) for name in others)


@section.claim(
    "Half pruned with three bits is better than two bits for all", paper="Han et al. 2015, arXiv:1510.00149: pruned first, then quantised",
    measured=lambda found: told(found, "3 bits, learned", "half pruned, 3 bits, learned", "2 bits, learned"),
)  # fmt: skip
def both(found):
    """It needs fewer bits a character, with at most 1.15 times the bytes."""
    one, other = "half pruned, 3 bits, learned", "2 bits, learned"
    return of_name(found, "bits", one) < of_name(found, "bits", other) and of_name(found, "kilobytes", one) <= 1.15 * of_name(found, "kilobytes", other)


@section.claim(
    "Only smaller parts are faster here", paper="Li et al. 2024, arXiv:2402.05964, table 1: the others want kernels of their own",
    measured=lambda found: "; ".join(f"{name} {np.mean(of_name(found, 'speed', name)) / np.mean(of_name(found, 'speed', FLOAT)):.2f}" for name in found["speed"] if "units" in name or "layers" in name) + " of the floats' tokens a second",
    kind="timed",
)  # fmt: skip
def smaller_parts(found):
    """Half of the units and two layers of three each read at least 1.15 times as many tokens a second as the whole model."""
    return min(of_name(found, "speed", name) for name in ("half of the units, learned", "two layers of three, learned")) >= 1.15 * of_name(found, "speed", FLOAT)


@section.report
def report(found):
    best = front(found)
    rows = [["pairs of bytes counted", "", f"{counted_pairs(of.corpora()[True]):.3f}", "", ""]]
    for name in found["bits"]:
        rate = f"{section.rates[name]:g}" if name in LEARNED else ""
        size, speed = np.mean(of_name(found, "kilobytes", name)), np.mean(of_name(found, "speed", name))
        rows.append([name + (" *" if name in best else ""), f"{size:.0f}", mean_and_spread(of_name(found, "bits", name), ".3f"), f"{speed:,.0f}", rate])
    section.table("sizes", ["way (* none is smaller and better)", "kilobytes", "bits a character", "tokens a processor second", "learning rate"], rows)
    keys = {"three": "3 bits, learned", "two": "2 bits, learned", "half": "half pruned, learned", "both": "half pruned, 3 bits, learned", "units": "half of the units, learned", "thin": "thin, half of the numbers, learned"}
    for key, name in keys.items():
        section.values(f"sizes.{key}", {"kilobytes": np.mean(of_name(found, "kilobytes", name)), "bits": np.mean(of_name(found, "bits", name))})
    section.values("sizes", {"kilobytes": np.mean(of_name(found, "kilobytes", FLOAT)), "bits": np.mean(of_name(found, "bits", FLOAT)), "steps": STEPS})


@section.figure("sizes", size=(6.4, 4))
def picture(ax, found):
    best, points = front(found), {}
    for name in found["bits"]:
        x, y = np.mean(of_name(found, "kilobytes", name)), np.mean(of_name(found, "bits", name))
        points[name] = x, y
        ax.plot(x, y, "o" if name in best else "x", color="C0" if name in best else "C1")
        ax.annotate(name.removesuffix(", learned"), (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7)
    ax.plot(*zip(*sorted(points[name] for name in best), strict=True), color="C0", linewidth=1)
    ax.set(xlabel="kilobytes", ylabel="bits a character", xscale="log")


if __name__ == "__main__":
    section.main()
