"""The same model of real text with each norm, and with none: who learns?

Ba, Kiros and Hinton 2016, arXiv:1607.06450: a norm shortens training. Zhang and Sennrich 2019, arXiv:1910.07467, Nguyen and Salazar 2019,
arXiv:1910.05895, and Zhu et al. 2025, arXiv:2503.10622: a simpler one does as well. Two layers with RoPE; of one seed all have the same
weights at the start and the same batches, and each has a learning rate of its own. Attention matters here: without it counted pairs win.
"""

# %%
from functools import partial

import numpy as np

import minitransformers as mt
from minitransformers.attention.prepare import on_both
from minitransformers.reporting import Section, bits_after, counted_pairs, level, lines, mean_and_spread, processor_seconds, tried
from minitransformers.reporting.networks import tied_network, without
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
LAYERS, WIDTH, HEADS, CONTEXT, BATCH, STEPS, START = 2, 48, 4, 32, 16, 300, 0.1
LAYER, RMS, SCALE, CAPSULE, TANH, NONE = "layer norm", "RMS norm", "ScaleNorm", "CapsuleNorm", "Dynamic Tanh", "no norm"
DELETED, ENOUGH = "layer norm, attention deleted", 0.07      # who needs at most so many bits a character more learns as well
NORMS = {
    LAYER: (mt.init_layer_norm, mt.layer_norm),
    RMS: (mt.init_rms_norm, mt.rms_norm),
    SCALE: (mt.init_scale_norm, mt.scale_norm),
    CAPSULE: (mt.init_capsule_norm, mt.capsule_norm),
    TANH: (mt.init_dynamic_tanh, mt.dynamic_tanh),
    NONE: (lambda rng, d_model: None, without),
}
MODELS, corpus = (*NORMS, DELETED), Corpus.load(context=CONTEXT)


# %% One table for both ends, and blocks between
def fresh(name, rng):
    """The same weights for all: norms draw nothing."""
    init_norm, _ = NORMS.get(name, NORMS[LAYER])
    small, body = {"std": START, "residual_std": START / 2}, []
    words = mt.init_embedding(rng, corpus.vocabulary.size, WIDTH, std=START)
    for _ in range(LAYERS):
        attention = mt.init_multi_head_attention(rng, WIDTH, num_heads=HEADS, **small)
        body.append(mt.TransformerBlock(init_norm(rng, WIDTH), attention, init_norm(rng, WIDTH), mt.init_feed_forward(rng, WIDTH, **small)))
    return words, [*body, init_norm(rng, WIDTH)]


def trained(name, rng, *, rate, watch=None):
    """Bits a character of the validation text."""
    _, norm = NORMS.get(name, NORMS[LAYER])
    alone = np.eye(CONTEXT, dtype=bool) if name == DELETED else None  # sees itself, and nobody else
    mixer = partial(mt.multi_head_attention, num_heads=HEADS, prepare=on_both(mt.rope))
    block = partial(mt.transformer_block, mixer=mixer, channel=mt.feed_forward, norm=norm, mask=alone)
    sizes = {"context": CONTEXT, "batch_size": BATCH, "whole": not section.quick, "steps": 5 if section.quick else STEPS}
    model = tied_network(*[block] * LAYERS, norm)
    return bits_after(model, fresh(name, rng), corpus, rng=rng, peak=rate, warmup=0.1, floor=0.05, watch=watch, **sizes)


@section.tuning
def tuning(rng):
    yield from tried(trained, MODELS, (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2), rng)


@section.experiment
def experiment(rng):
    hold_blas()                                              # seeds run side by side, and the arrays are small
    seed = rng.integers(2**32)
    for name in MODELS:
        nats = []
        with processor_seconds() as spent:
            bits = trained(name, np.random.default_rng(seed), rate=section.rates[name], watch=lambda step, loss, params, nats=nats: nats.append(loss))
        yield name, "all", {"bits": bits, "parameters": mt.trees.count_parameters(fresh(name, rng)), "seconds": spent()}
        every = min(20, len(nats))
        for step in range(every, len(nats) + 1, every):
            yield name, step, {"training": np.mean(nats[step - every : step]) / np.log(2)}


# %%
def of(found, name):
    return found["bits"][name]["all"]


def told(found, *names):
    return ", ".join(f"{name} {mean_and_spread(of(found, name), '.3f')}" for name in names) + " bits a character"


@section.claim(
    "Does attention matter in this model?",
    paper="no paper: in a model that makes no use of attention norms are compared of something else",
    measured=lambda found: f"{told(found, LAYER, DELETED)}; counted pairs {counted_pairs(corpus):.2f}",
)
def attention_matters(found):
    """With layer norm at least 0.3 bits a character less than with attention deleted, and less than counted pairs."""
    return of(found, LAYER) <= of(found, DELETED) - 0.3 and of(found, LAYER) < counted_pairs(corpus)


@section.claim(
    "Does a norm speed up learning?",
    paper="Ba, Kiros and Hinton 2016, arXiv:1607.06450, abstract: layer norm substantially reduces training time",
    measured=lambda found: told(found, LAYER, NONE),
)
def speeds_up(found):
    """After as many steps, each at its own rate, at least 0.1 bits a character less with layer norm than with none."""
    return of(found, LAYER) <= of(found, NONE) - 0.1


AS_WELL = {
    RMS: ("RMS norm learns as well as layer norm", "Zhang and Sennrich 2019, arXiv:1910.07467, section 5: comparable quality on all tasks"),
    SCALE: ("ScaleNorm's one gain is enough", "Nguyen and Salazar 2019, arXiv:1910.05895, abstract: at least as good as layer norm, with one learned length"),
    TANH: ("Does Dynamic Tanh take the place of a norm?", "Zhu et al. 2025, arXiv:2503.10622, abstract: matches or exceeds models with norms, mostly without tuning"),
}  # fmt: skip


def as_well(name):
    def rule(found):
        return of(found, name) <= of(found, LAYER) + ENOUGH

    rule.__doc__ = f"At most {ENOUGH} bits (0.05 nats) a character more than with layer norm alone."
    return rule


for name, (claim, paper) in AS_WELL.items():
    section.claim(claim, paper=paper, measured=lambda found, name=name: told(found, LAYER, name))(as_well(name))


@section.report
def report(found):
    pairs, rows = counted_pairs(corpus), []
    for name in MODELS:
        size, seconds = (np.mean(found[measure][name]["all"]) for measure in ("parameters", "seconds"))
        rows.append([name, int(size), float(f"{seconds:.1f}"), section.rates[name], mean_and_spread(of(found, name))])
    rows.append(["counted pairs of characters", None, None, None, f"{pairs:.2f}"])
    section.table("training", ["model", "parameters", "processor seconds", "rate", "bits a character"], rows)
    keys = ("layer_norm", "rms_norm", "scale_norm", "capsule_norm", "dynamic_tanh", "no_norm", "deleted")
    section.values("training", {key: np.mean(of(found, name)) for key, name in zip(keys, MODELS, strict=True)})
    section.values("training", {"steps": STEPS, "pairs": pairs, "characters": BATCH * CONTEXT})


@section.figure("training", size=(6.4, 3.4))
def picture(ax, found):
    shown = (LAYER, RMS, TANH, NONE, DELETED)
    lines(ax, {name: found["training"][name] for name in shown}, xlabel="step", ylabel="bits a character, training", ylim=(2.4, 5))
    level(ax, counted_pairs(corpus), "counted pairs")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


if __name__ == "__main__":
    section.main()
