"""Does a norm speed up learning, from a full start?

Ba, Kiros and Hinton 2016, arXiv:1607.06450: layer norm reduces training time. Four layers with RoPE on real text, pre-norm and with nothing in
the place of norms. Both begin with the same weights, of deviation 1/√d_in in their blocks, and each has a learning rate of its own.
"""

# %%
from functools import partial

import numpy as np

import minitransformers as mt
from minitransformers.attention.prepare import on_both
from minitransformers.reporting import Section, bits_after, counted_pairs, mean_and_spread, processor_seconds, tried
from minitransformers.reporting.networks import init_decoder, network, without
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
LAYERS, WIDTH, HEADS, CONTEXT, BATCH, STEPS = 4, 48, 4, 32, 8, 150
PRE, NONE = "pre-norm", "no norm"
NORMS = {PRE: (mt.init_layer_norm, mt.layer_norm), NONE: (lambda rng, d_model: None, without)}
corpus = Corpus.load(context=CONTEXT)


# %%
def fresh(name, rng):
    """The same weights for both: norms draw nothing."""
    return init_decoder(rng, corpus.vocabulary.size, WIDTH, num_layers=LAYERS, num_heads=HEADS, init_norm=NORMS[name][0])


def trained(name, rng, *, rate):
    """Bits a character."""
    _, norm = NORMS[name]
    mixer = partial(mt.multi_head_attention, num_heads=HEADS, prepare=on_both(mt.rope))
    block = partial(mt.transformer_block, mixer=mixer, channel=mt.feed_forward, norm=norm)
    sizes = {"context": CONTEXT, "batch_size": BATCH, "whole": not section.quick, "steps": 5 if section.quick else STEPS}
    model = network(*[block] * LAYERS, norm, mt.linear)
    return bits_after(model, fresh(name, rng), corpus, rng=rng, peak=rate, warmup=0.0, floor=0.05, **sizes)


@section.tuning
def tuning(rng):
    yield from tried(trained, NORMS, (6e-4, 1.5e-3, 4e-3, 1e-2, 2.5e-2), rng)


@section.experiment
def experiment(rng):
    hold_blas()                                              # seeds run side by side, and the arrays are small
    seed = rng.integers(2**32)
    for name in NORMS:
        with processor_seconds() as spent:
            bits = trained(name, np.random.default_rng(seed), rate=section.rates[name])
        yield name, "all", {"bits": bits, "parameters": mt.trees.count_parameters(fresh(name, rng)), "seconds": spent()}


# %%
def of(found, name):
    return found["bits"][name]["all"]


@section.claim(
    "Does a norm speed up learning from a full start?",
    paper="Ba, Kiros and Hinton 2016, arXiv:1607.06450, abstract: layer norm substantially reduces training time",
    measured=lambda found: ", ".join(f"{name} {mean_and_spread(of(found, name))}" for name in NORMS) + " bits a character, at its own rate",
)
def norm_helps(found):
    """After as many steps, each at its own rate, pre-norm needs at least 0.1 bits a character less than no norm."""
    return of(found, PRE) <= of(found, NONE) - 0.1


@section.report
def report(found):
    rows = []
    for name in NORMS:
        size, seconds = (np.mean(found[measure][name]["all"]) for measure in ("parameters", "seconds"))
        rows.append([name, int(size), float(f"{seconds:.1f}"), section.rates[name], mean_and_spread(of(found, name))])
    rows.append(["counted pairs of characters", None, None, None, f"{counted_pairs(corpus):.2f}"])
    section.table("no_norm", ["model", "parameters", "processor seconds", "rate", "bits a character"], rows)
    section.value("start.none", np.mean(of(found, NONE)))


if __name__ == "__main__":
    section.main()
