"""What does DeepNorm give to post-norm: its scaled stream, or its small start?

Wang et al. 2022, arXiv:2203.00555: DeepNorm, post-norm with a scaled stream and a small start, is as stable as pre-norm. Here both begin
with the same weights: in their blocks of deviation 1/√d_in, or half of that, which is near DeepNorm's own beta. So what is left between them
is the scale. Four layers with RoPE on real text, without a warm-up, at a learning rate of each one's own, and at pre-norm's as well.
"""

# %%
from functools import partial

import numpy as np

import minitransformers as mt
from minitransformers.attention.prepare import on_both
from minitransformers.models.workbench.transformer_block import post_norm, pre_norm
from minitransformers.norms.deep_norm import deep_norm_constants
from minitransformers.reporting import Section, bits_after, counted_pairs, mean_and_spread, processor_seconds, tried
from minitransformers.reporting.networks import init_decoder, network, without
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
LAYERS, WIDTH, HEADS, CONTEXT, BATCH, STEPS = 4, 48, 4, 32, 8, 150
OWN, SAME = "at its own rate", "at the rate that suits pre-norm"
PRE, POST, DEEP = "pre-norm", "post-norm", "DeepNorm"
PLACEMENTS = {PRE: pre_norm, POST: post_norm, DEEP: partial(post_norm, alpha=deep_norm_constants(LAYERS).alpha)}
MODELS = {"pre": (PRE, 1.0), "post": (POST, 1.0), "deep": (DEEP, 1.0), "post_half": (POST, 0.5), "deep_half": (DEEP, 0.5)}  # and their starts
corpus = Corpus.load(context=CONTEXT)


# %%
def fresh(name, rng):
    """Of one start all have the same weights."""
    placement, start = MODELS[name]
    sizes = {"num_layers": LAYERS, "num_heads": HEADS, "start": start, "last": placement == PRE}
    return init_decoder(rng, corpus.vocabulary.size, WIDTH, **sizes)


def trained(name, rng, *, rate):
    """Bits a character."""
    placement, _ = MODELS[name]
    mixer = partial(mt.multi_head_attention, num_heads=HEADS, prepare=on_both(mt.rope))
    block = partial(mt.transformer_block, mixer=mixer, channel=mt.feed_forward, norm=mt.layer_norm, placement=PLACEMENTS[placement])
    model = network(*[block] * LAYERS, mt.layer_norm if placement == PRE else without, mt.linear)
    sizes = {"context": CONTEXT, "batch_size": BATCH, "whole": not section.quick, "steps": 5 if section.quick else STEPS}
    return bits_after(model, fresh(name, rng), corpus, rng=rng, peak=rate, warmup=0.0, floor=0.05, **sizes)


@section.tuning
def tuning(rng):
    yield from tried(trained, MODELS, (6e-4, 1.5e-3, 4e-3, 1e-2, 2.5e-2), rng)


@section.experiment
def experiment(rng):
    hold_blas()                                              # seeds run side by side, and the arrays are small
    seed = rng.integers(2**32)
    for name in MODELS:
        own, alike = section.rates[name], section.rates["pre"]
        for rate in dict.fromkeys((own, alike)):
            with processor_seconds() as spent:
                bits = trained(name, np.random.default_rng(seed), rate=rate)
            if rate == own:
                yield name, OWN, {"bits": bits, "parameters": mt.trees.count_parameters(fresh(name, rng)), "seconds": spent()}
            if rate == alike:
                yield name, SAME, {"bits": bits}


# %%
def of(found, name, rate=OWN):
    return found["bits"][name][rate]


def called(name):
    placement, start = MODELS[name]
    return placement + ", half start" * (start < 1)


def told(found, *names, rate=OWN):
    return ", ".join(f"{called(name)} {mean_and_spread(of(found, name, rate))}" for name in names) + f" bits a character, {rate}"


@section.claim(
    "At the same rate and from the same full start DeepNorm's scaled stream learns where post-norm stalls",
    paper="Wang et al. 2022, arXiv:2203.00555, abstract: the good performance of post-norm and the stable training of pre-norm",
    measured=lambda found: f"{told(found, 'post', 'deep', rate=SAME)}; {told(found, 'post', 'deep')}",
)
def scaled_stream(found):
    """At the rate that suits pre-norm at least 0.3 bits a character less than post-norm."""
    return of(found, "deep", SAME) <= of(found, "post", SAME) - 0.3


@section.claim(
    "Where both start small DeepNorm is better than post-norm",
    paper="Wang et al. 2022, arXiv:2203.00555, abstract: the good performance of post-norm and the stable training of pre-norm",
    measured=lambda found: told(found, "post_half", "deep_half"),
)
def both_small(found):
    """At half the weights and each at its own rate, at least 0.05 bits a character less than post-norm."""
    return of(found, "deep_half") <= of(found, "post_half") - 0.05


@section.report
def report(found):
    rows = []
    for name, (placement, start) in MODELS.items():
        size, seconds = (np.mean(found[what][name][OWN]) for what in ("parameters", "seconds"))
        bits = [mean_and_spread(of(found, name, rate)) for rate in (SAME, OWN)]
        rows.append([placement, f"{start:g}", int(size), float(f"{seconds:.1f}"), *bits, section.rates[name]])
    rows.append(["counted pairs of characters", *[None] * 4, f"{counted_pairs(corpus):.2f}", None])
    columns = ["placement", "start", "parameters", "processor seconds", f"bits at {section.rates['pre']:g}", "bits at its own rate", "its rate"]
    section.table("scaled_stream", columns, rows)
    section.values("start", {name: np.mean(of(found, name)) for name in ("deep", "deep_half")})
    section.value("start.same.deep", np.mean(of(found, "deep", SAME)))


if __name__ == "__main__":
    section.main()
