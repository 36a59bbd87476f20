"""Prune first, or round first? And who teaches what is left?

Li et al. 2024, arXiv:2402.05964, section 6: pruning, quantisation and distillation work together, and their order is open. A small Llama loses the
half of its 21 matrices' numbers that are smallest, one threshold for all, and its weights are rounded to three bits: before, afterwards, or while
it learns on. What is left learns from the text or from the model as it was, from all of its text or from 96 windows of it over and over.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.compression.calibration import least_error_magnitude
from minitransformers.compression.fake_quantize import Latent, change_by, fake_quantize
from minitransformers.compression.magnitude_pruning import apply_masks, global_magnitude_masks
from minitransformers.compression.masked_weight import MaskedWeight, masked_weight
from minitransformers.foundation import reparameterize
from minitransformers.reporting import Section, counted_pairs, dots, matrices, mean_and_spread, tried
from minitransformers.reporting.base import load_base
from minitransformers.reporting.compression import smaller as of
from minitransformers.reporting.compression.changes import masked_and_rounded

section = Section(__file__, __doc__, kind="trained")
SPARSITY, BITS, STEPS, FEW = 0.5, 3, 200, 96
PRUNED, ROUNDED = "half pruned", "rounded"
AFTER, DURING, BEFORE = "pruned, learned, rounded", "pruned, learned rounded", "learned rounded, pruned"
PIPELINES = (PRUNED, ROUNDED, AFTER, DURING, BEFORE)
KEYS = {"pruned": PRUNED, "rounded": ROUNDED, "after": AFTER, "during": DURING, "before": BEFORE}
TEXT, TEACHER = "text", "teacher"
RUNS = {f"{pipeline}, {source}": (pipeline, source, None) for pipeline in PIPELINES for source in (TEXT, TEACHER)}
RUNS |= {f"{DURING}, {source}, {FEW} windows": (DURING, source, FEW) for source in (TEXT, TEACHER)}


# %% Pruning, rounding, and learning under either
def pruned(params):
    return apply_masks(params, masks=global_magnitude_masks(params, sparsity=SPARSITY, patterns=of.MATRICES))


def rounded(params):
    return of.at_matrices(partial(matrices.rounded, bits=BITS, clip=least_error_magnitude), params)


LEARNING = {  # what is trained for each weight, and the change that makes the weight
    PRUNED: (MaskedWeight, masked_weight), AFTER: (MaskedWeight, masked_weight), DURING: (MaskedWeight, partial(masked_and_rounded, bits=BITS)),
    ROUNDED: (Latent, change_by(partial(fake_quantize, bits=BITS))), BEFORE: (Latent, change_by(partial(fake_quantize, bits=BITS))),
}  # fmt: skip


def made(name, rng, *, rate, reported=False):
    """Bits a character at the end of a pipeline, and the share of the matrices' numbers that are not zero."""
    pipeline, source, few = RUNS[name]
    base = load_base()
    start = pruned(base) if pipeline in (PRUNED, AFTER, DURING) else base
    begin, change = LEARNING[pipeline]
    learning = {"base": start, "change": change, "reported": reported, "few": few, "teacher": base if source == TEACHER else None}
    params = of.learned(of.at_matrices(begin, start), rng, steps=5 if section.quick else STEPS, rate=rate, **learning)
    tree, _ = reparameterize(params, base=start, change=change)
    tree = rounded(tree) if pipeline == AFTER else pruned(tree) if pipeline == BEFORE else tree
    return asked(tree, reported), of.share_left(tree)


def asked(tree, reported=True):
    return of.bits_of(tree, base=tree, reported=reported, windows=16 if section.quick else None)


@section.tuning
def tuning(rng):
    rates = (1e-3,) if section.quick else (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    yield from tried(lambda name, rng, rate: made(name, rng, rate=rate)[0], RUNS, rates, rng)


@section.experiment
def experiment(rng):
    base = load_base()
    yield "whole", "nothing learned", {"bits": asked(base)}
    first = {PRUNED: pruned(base), ROUNDED: rounded(base), AFTER: rounded(pruned(base)), BEFORE: pruned(rounded(base))}
    for pipeline, tree in first.items():
        yield pipeline, "nothing learned", {"bits": asked(tree)}
    for name, (pipeline, source, few) in RUNS.items():
        bits, share = made(name, rng, rate=section.rates[name], reported=True)
        yield pipeline, source if few is None else f"{source}, few", {"bits": bits, "share": share}


# %%
def told(found, source, *pipelines):
    return ", ".join(f"{pipeline} {mean_and_spread(found['bits'][pipeline][source], '.3f')}" for pipeline in pipelines)


def cost(found, pipeline, source):
    return found["bits"][pipeline][source] - found["bits"]["whole"]["nothing learned"]


@section.claim(
    "Prune first, and learn with the rounding afterwards",
    paper="Li et al. 2024, arXiv:2402.05964, section 6: the order of methods is an open question",
    measured=lambda found: "; ".join(f"from the {source}: {told(found, source, AFTER, DURING, BEFORE)}" for source in (TEXT, TEACHER)),
)
def prune_first(found):
    """From either source it costs at most 0.6 of what learning with the rounding and pruning afterwards costs."""
    return all(cost(found, DURING, source) <= 0.6 * cost(found, BEFORE, source) for source in (TEXT, TEACHER))


@section.claim(
    "Is the teacher better than the text?",
    paper="Sanh, Wolf and Rush 2020, arXiv:2005.07683, section 6: distillation helps all ways of pruning",
    measured=lambda found: "; ".join(f"{pipeline}: {told(found, TEXT, pipeline)} from the text, {told(found, TEACHER, pipeline)} from the teacher" for pipeline in (PRUNED, DURING)),
)
def teacher_helps(found):
    """What is pruned and learns rounded costs at most 0.8 of the bits with the teacher that it costs with the text, beside the whole model."""
    return cost(found, DURING, TEACHER) <= 0.8 * cost(found, DURING, TEXT)


@section.claim(
    "Where there is little text, a teacher keeps the model from learning it by heart",
    paper="Hinton et al. 2015, arXiv:1503.02531, section 6: soft targets as a regulariser, with three percent of the data",
    measured=lambda found: f"{FEW} windows: {told(found, f'{TEXT}, few', DURING)} from the text, {told(found, f'{TEACHER}, few', DURING)} from the teacher",
)
def little_text(found):
    """With 96 windows the teacher's way costs at most 0.8 of what the text's costs."""
    return cost(found, DURING, f"{TEACHER}, few") <= 0.8 * cost(found, DURING, f"{TEXT}, few")


@section.claim(
    "Without learning, too, pruning comes first",
    paper="no paper",
    measured=lambda found: told(found, "nothing learned", AFTER, BEFORE),
)
def order_matters(found):
    """Pruned and then rounded costs at most 0.9 of what rounded and then pruned costs."""
    return cost(found, AFTER, "nothing learned") <= 0.9 * cost(found, BEFORE, "nothing learned")


@section.report
def report(found):
    sources = ("nothing learned", TEXT, TEACHER, f"{TEXT}, few", f"{TEACHER}, few")
    rows = [["pairs of bytes counted", f"{counted_pairs(of.corpora()[True]):.3f}", "", "", "", ""]]
    for pipeline in ("whole", *PIPELINES):
        rows.append([pipeline, *(mean_and_spread(found["bits"][pipeline][s], ".3f") if s in found["bits"][pipeline] else "" for s in sources)])
    section.table("order", ["bits a character, learned from", "nothing", "the text", "the teacher", f"{FEW} windows", f"{FEW} windows, the teacher"], rows)
    for key, pipeline in KEYS.items():
        section.values(f"order.{key}", {source: found["bits"][pipeline][source].mean() for source in (TEXT, TEACHER)})
    section.values("order", {"steps": STEPS, "whole": found["bits"]["whole"]["nothing learned"].mean(), "few": FEW})


@section.figure("order", size=(6, 3))
def picture(ax, found):
    whole = float(np.mean(found["bits"]["whole"]["nothing learned"]))
    curves = {f"{pipeline}, {source}": found["bits"][pipeline][source] for pipeline in PIPELINES for source in (TEXT, TEACHER)}
    dots(ax, curves, at=whole, xlabel="bits a character")


if __name__ == "__main__":
    section.main()
