"""The same model of real text with each norm, with none, and with norms of queries and keys or of words: who learns?

Ba, Kiros and Hinton 2016, arXiv:1607.06450: a norm shortens training. Zhang and Sennrich 2019, arXiv:1910.07467, Nguyen and Salazar 2019,
arXiv:1910.05895, and Zhu et al. 2025, arXiv:2503.10622: a simpler one does as well. Two layers with RoPE; of one seed all have the same
weights at the start and the same batches, and each has a learning rate of its own. Attention matters here: without it counted pairs win.
"""

# %%
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import minitransformers as mt
from minitransformers.attention.prepare import on_both
from minitransformers.reporting import Section, bits_in_windows, counted_pairs, level, lines, mean_and_spread, processor_seconds
from minitransformers.reporting.networks import without
from minitransformers.training.fit import fit
from minitransformers.training.optimizer import TrainingDiverged
from minitransformers.training.task import Labelled
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
LAYERS, WIDTH, HEADS, CONTEXT, BATCH, STEPS, START = 2, 48, 4, 32, 16, 300, 0.1
LAYER, RMS, SCALE, CAPSULE, TANH, NONE = "layer norm", "RMS norm", "ScaleNorm", "CapsuleNorm", "Dynamic Tanh", "no norm"
QK, FIX, DELETED = "layer norm, QK-norm", "layer norm, FixNorm", "layer norm, attention deleted"
NORMS = {
    LAYER: (mt.init_layer_norm, mt.layer_norm),
    RMS: (mt.init_rms_norm, mt.rms_norm),
    SCALE: (mt.init_scale_norm, mt.scale_norm),
    CAPSULE: (mt.init_capsule_norm, mt.capsule_norm),
    TANH: (mt.init_dynamic_tanh, mt.dynamic_tanh),
    NONE: (lambda rng, d_model: None, without),
}
MODELS, ENOUGH = (*NORMS, QK, FIX, DELETED), 0.07            # who needs at most so many bits a character more learns as well
corpus = Corpus.load(context=CONTEXT)


# %% One table for both ends, and blocks between
class Model(NamedTuple):
    words: mt.Embedding
    body: list[Any]


def fresh(name, rng):
    """The same weights for all: norms draw nothing."""
    init_norm, _ = NORMS[name.partition(",")[0]]
    small = {"std": START, "residual_std": START / 2}

    def block():
        attention = mt.init_multi_head_attention(rng, WIDTH, num_heads=HEADS, **small)
        if name == QK:
            attention = attention._replace(prepare=(mt.init_qk_norm(rng, WIDTH // HEADS), None))
        return mt.TransformerBlock(init_norm(rng, WIDTH), attention, init_norm(rng, WIDTH), mt.init_feed_forward(rng, WIDTH, **small))

    words = mt.init_embedding(rng, corpus.vocabulary.size, WIDTH, std=START)
    return Model(words, [*(block() for _ in range(LAYERS)), init_norm(rng, WIDTH)])


def model(params, ids, *, name):
    """Logits of the next character; with FixNorm every row of the table is used at length one, at both ends."""
    norm, turn, size = NORMS[name.partition(",")[0]][1], on_both(mt.rope), WIDTH**0.5
    prepare = partial(mt.chain, parts=(mt.qk_norm, turn)) if name == QK else turn
    mixer = partial(mt.multi_head_attention, num_heads=HEADS, prepare=prepare)
    alone = np.eye(ids.shape[-1], dtype=bool) if name == DELETED else None  # sees itself, and nobody else
    block = partial(mt.transformer_block, mixer=mixer, channel=mt.feed_forward, norm=norm, mask=alone)
    table, fix_backward = mt.fix_norm(params.words.weight) if name == FIX else (params.words.weight, lambda dtable: dtable)
    x, words_backward = mt.embedding(mt.Embedding(table), ids=ids)
    logits, body_backward = mt.chain([*params.body, mt.Linear(table.T, None)], size * x, parts=[block] * LAYERS + [norm, mt.linear])

    def backward(dlogits):
        (*dbody, dhead), dx = body_backward(dlogits)
        dtable = dhead.weight.T + words_backward(size * dx).weight  # used at both ends: two gradients
        return Model(mt.Embedding(fix_backward(dtable)), dbody)

    return logits, backward


# %%
def trained(name, rng, *, rate, watch=None):
    """Bits a character of the whole validation text; where it diverged, those of guessing."""
    params, task = fresh(name, rng), Labelled(partial(model, name=name), partial(corpus.batch, batch_size=BATCH, context=CONTEXT))
    try:
        learned = fit(params, task, steps=5 if section.quick else STEPS, peak=rate, rng=rng, warmup=0.1, floor=0.05, watch=watch)
    except TrainingDiverged:
        return np.log2(corpus.vocabulary.size)
    text = corpus.validation[: 2 * CONTEXT + 1] if section.quick else corpus.validation
    return bits_in_windows(lambda ids: model(learned, ids, name=name), text, CONTEXT)


@section.tuning
def tuning(rng):
    hold_blas()
    seed = rng.integers(2**32)
    for name in MODELS:
        for rate in (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2):
            yield name, rate, {"loss": trained(name, np.random.default_rng(seed), rate=rate)}


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
    QK: ("QK-norm costs no quality", "Dehghani et al. 2023, arXiv:2302.05442, section 2: put in for stability; Henry et al. 2020, arXiv:2010.04245: a gain of 0.9 BLEU"),
    FIX: ("Does FixNorm learn as well as words of any length?", "Nguyen and Salazar 2019, arXiv:1910.05895, abstract: pre-norm, ScaleNorm and FixNorm "
          "together gain 1.1 BLEU on five translation pairs"),
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
    keys = ("layer_norm", "rms_norm", "scale_norm", "capsule_norm", "dynamic_tanh", "no_norm", "qk_norm", "fix_norm", "deleted")
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
