"""Do norms of queries and keys, or of words, cost a model of real text anything?

Dehghani et al. 2023, arXiv:2302.05442, section 2, put QK-norm in for stability; Nguyen and Salazar 2019, arXiv:1910.05895, FixNorm, which uses
every word at length one. Two layers with layer norm and RoPE, and the same with each of them; of one seed all have the same weights at the
start and the same batches, and each has a learning rate of its own.
"""

# %%
from functools import partial

import numpy as np

import minitransformers as mt
from minitransformers.attention.prepare import on_both
from minitransformers.reporting import Section, bits_after, counted_pairs, mean_and_spread, processor_seconds, tried
from minitransformers.reporting.networks import tied_network
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
LAYERS, WIDTH, HEADS, CONTEXT, BATCH, STEPS, START = 2, 48, 4, 32, 16, 300, 0.1
LAYER, QK, FIX = MODELS = ("layer norm", "layer norm, QK-norm", "layer norm, FixNorm")
ENOUGH = 0.07                                                # who needs at most so many bits a character more learns as well
corpus = Corpus.load(context=CONTEXT)


# %% One table for both ends, and blocks between
def fresh(name, rng):
    """The same weights for all: norms draw nothing."""
    small, body = {"std": START, "residual_std": START / 2}, []
    words = mt.init_embedding(rng, corpus.vocabulary.size, WIDTH, std=START)
    for _ in range(LAYERS):
        attention = mt.init_multi_head_attention(rng, WIDTH, num_heads=HEADS, **small)
        if name == QK:
            attention = attention._replace(prepare=(mt.init_qk_norm(rng, WIDTH // HEADS), None))
        norms = mt.init_layer_norm(rng, WIDTH), mt.init_layer_norm(rng, WIDTH)
        body.append(mt.TransformerBlock(norms[0], attention, norms[1], mt.init_feed_forward(rng, WIDTH, **small)))
    return words, [*body, mt.init_layer_norm(rng, WIDTH)]


def trained(name, rng, *, rate):
    """Bits a character."""
    turn = on_both(mt.rope)
    mixer = partial(mt.multi_head_attention, num_heads=HEADS, prepare=partial(mt.chain, parts=(mt.qk_norm, turn)) if name == QK else turn)
    block = partial(mt.transformer_block, mixer=mixer, channel=mt.feed_forward, norm=mt.layer_norm)
    model = tied_network(*[block] * LAYERS, mt.layer_norm, rows=mt.fix_norm if name == FIX else None)
    sizes = {"context": CONTEXT, "batch_size": BATCH, "whole": not section.quick, "steps": 5 if section.quick else STEPS}
    return bits_after(model, fresh(name, rng), corpus, rng=rng, peak=rate, warmup=0.1, floor=0.05, **sizes)


@section.tuning
def tuning(rng):
    yield from tried(trained, MODELS, (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2), rng)


@section.experiment
def experiment(rng):
    hold_blas()                                              # seeds run side by side, and the arrays are small
    seed = rng.integers(2**32)
    for name in MODELS:
        with processor_seconds() as spent:
            bits = trained(name, np.random.default_rng(seed), rate=section.rates[name])
        yield name, "all", {"bits": bits, "parameters": mt.trees.count_parameters(fresh(name, rng)), "seconds": spent()}


# %%
def of(found, name):
    return found["bits"][name]["all"]


def told(found, *names):
    return ", ".join(f"{name} {mean_and_spread(of(found, name), '.3f')}" for name in names) + " bits a character"


@section.claim(
    "QK-norm costs no quality",
    paper="Dehghani et al. 2023, arXiv:2302.05442, section 2: put in for stability; Henry et al. 2020, arXiv:2010.04245: a gain of 0.9 BLEU",
    measured=lambda found: told(found, LAYER, QK),
)
def qk_learns(found):
    """At most 0.07 bits (0.05 nats) a character more than the same model without it."""
    return of(found, QK) <= of(found, LAYER) + ENOUGH


@section.claim(
    "Does FixNorm learn as well as words of any length?",
    paper="Nguyen and Salazar 2019, arXiv:1910.05895, abstract: pre-norm, ScaleNorm and FixNorm together gain 1.1 BLEU on five translation pairs",
    measured=lambda found: told(found, LAYER, FIX),
)
def fix_learns(found):
    """At most 0.07 bits (0.05 nats) a character more than a plain table, tied and times √width as well."""
    return of(found, FIX) <= of(found, LAYER) + ENOUGH


@section.report
def report(found):
    rows = []
    for name in MODELS:
        size, seconds = (np.mean(found[measure][name]["all"]) for measure in ("parameters", "seconds"))
        rows.append([name, int(size), float(f"{seconds:.1f}"), section.rates[name], mean_and_spread(of(found, name))])
    rows.append(["counted pairs of characters", None, None, None, f"{counted_pairs(corpus):.2f}"])
    section.table("elsewhere", ["model", "parameters", "processor seconds", "rate", "bits a character"], rows)
    section.values("training", {"qk_norm": np.mean(of(found, QK)), "fix_norm": np.mean(of(found, FIX))})


if __name__ == "__main__":
    section.main()
