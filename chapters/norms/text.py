"""The same model of real text with each norm, with none, and with norms of queries and keys or of words: who learns?

Ba, Kiros and Hinton 2016, arXiv:1607.06450: a norm shortens training. Zhang and Sennrich 2019, arXiv:1910.07467, Nguyen and Salazar 2019,
arXiv:1910.05895, and Zhu et al. 2025, arXiv:2503.10622: a simpler one does as well. Two layers with RoPE; of one seed all have the same
weights at the start and the same batches, and each has a learning rate of its own. Attention matters here: without it counted pairs win.
"""

# %%
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.attention.prepare import on_both
from minitransformers.basics.chain import chain
from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.basics.feed_forward import feed_forward, init_feed_forward
from minitransformers.basics.linear import Linear, linear
from minitransformers.foundation import trees
from minitransformers.models.workbench.transformer_block import TransformerBlock, transformer_block
from minitransformers.norms.capsule_norm import capsule_norm, init_capsule_norm
from minitransformers.norms.dynamic_tanh import dynamic_tanh, init_dynamic_tanh
from minitransformers.norms.fix_norm import fix_norm
from minitransformers.norms.layer_norm import init_layer_norm, layer_norm
from minitransformers.norms.qk_norm import init_qk_norm, qk_norm
from minitransformers.norms.rms_norm import init_rms_norm, rms_norm
from minitransformers.norms.scale_norm import init_scale_norm, scale_norm
from minitransformers.positional.rope import rope
from minitransformers.reporting import Section, bits_in_windows, counted_pairs, level, lines, mean_and_spread, processor_seconds
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
    LAYER: (init_layer_norm, layer_norm),
    RMS: (init_rms_norm, rms_norm),
    SCALE: (init_scale_norm, scale_norm),
    CAPSULE: (init_capsule_norm, capsule_norm),
    TANH: (init_dynamic_tanh, dynamic_tanh),
    NONE: (lambda rng, d_model: None, lambda params, x: (x, lambda dout: (params, dout))),
}
MODELS = (*NORMS, QK, FIX, DELETED)
corpus = Corpus.load(context=CONTEXT)


# %% One table for both ends, and blocks between
class Model(NamedTuple):
    words: Embedding
    body: list[Any]


def fresh(name, rng):
    """The same weights for all: norms draw nothing."""
    init_norm, _ = NORMS[name.partition(",")[0]]

    def block():
        attention = init_multi_head_attention(rng, WIDTH, num_heads=HEADS, std=START, residual_std=START / 2)
        if name == QK:
            attention = attention._replace(prepare=(init_qk_norm(rng, WIDTH // HEADS), None))
        channel = init_feed_forward(rng, WIDTH, std=START, residual_std=START / 2)
        return TransformerBlock(init_norm(rng, WIDTH), attention, init_norm(rng, WIDTH), channel)

    words = init_embedding(rng, corpus.vocabulary.size, WIDTH, std=START)
    return Model(words, [*(block() for _ in range(LAYERS)), init_norm(rng, WIDTH)])


def model(params, ids, *, name):
    """Logits of the next character; with FixNorm every row of the table is used at length one, at both ends."""
    norm, turn, size = NORMS[name.partition(",")[0]][1], on_both(rope), WIDTH**0.5
    prepare = partial(chain, parts=(qk_norm, turn)) if name == QK else turn
    mixer = partial(multi_head_attention, num_heads=HEADS, prepare=prepare)
    alone = np.eye(ids.shape[-1], dtype=bool) if name == DELETED else None  # sees itself, and nobody else
    block = partial(transformer_block, mixer=mixer, channel=feed_forward, norm=norm, mask=alone)
    table, fix_backward = fix_norm(params.words.weight) if name == FIX else (params.words.weight, lambda dtable: dtable)
    x, words_backward = embedding(Embedding(table), ids=ids)
    logits, body_backward = chain([*params.body, Linear(table.T, None)], size * x, parts=[block] * LAYERS + [norm, linear])

    def backward(dlogits):
        (*dbody, dhead), dx = body_backward(dlogits)
        dtable = dhead.weight.T + words_backward(size * dx).weight  # used at both ends: two gradients
        return Model(Embedding(fix_backward(dtable)), dbody)

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
    seed, nats = rng.integers(2**32), []
    for name in MODELS:
        nats.clear()
        with processor_seconds() as spent:
            bits = trained(name, np.random.default_rng(seed), rate=section.rates[name],
                           watch=lambda step, loss, params: nats.append(loss))  # fmt: skip
        yield name, "all", {"bits": bits, "parameters": trees.count_parameters(fresh(name, rng)), "seconds": spent()}
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
    "RMS norm learns as well as layer norm",
    paper="Zhang and Sennrich 2019, arXiv:1910.07467, section 5: comparable quality on all tasks",
    measured=lambda found: told(found, LAYER, RMS),
)
def rms_learns(found):
    """At most 0.07 bits (0.05 nats) a character more."""
    return of(found, RMS) <= of(found, LAYER) + 0.07


@section.claim(
    "ScaleNorm's one gain is enough",
    paper="Nguyen and Salazar 2019, arXiv:1910.05895, abstract: at least as good as layer norm, with one learned length",
    measured=lambda found: told(found, LAYER, SCALE),
)
def scale_learns(found):
    """At most 0.07 bits a character more than with layer norm."""
    return of(found, SCALE) <= of(found, LAYER) + 0.07


@section.claim(
    "Does a norm speed up learning?",
    paper="Ba, Kiros and Hinton 2016, arXiv:1607.06450, abstract: layer norm substantially reduces training time",
    measured=lambda found: told(found, LAYER, NONE),
)
def speeds_up(found):
    """After as many steps, each at its own rate, at least 0.1 bits a character less with layer norm than with none."""
    return of(found, LAYER) <= of(found, NONE) - 0.1


@section.claim(
    "Does Dynamic Tanh take the place of a norm?",
    paper="Zhu et al. 2025, arXiv:2503.10622, abstract: matches or exceeds models with norms, mostly without tuning",
    measured=lambda found: told(found, LAYER, TANH, NONE),
)
def tanh_learns(found):
    """With the paper's start of alpha = 0.5 at most 0.07 bits a character more than with layer norm."""
    return of(found, TANH) <= of(found, LAYER) + 0.07


@section.claim(
    "QK-norm costs no quality",
    paper="Dehghani et al. 2023, arXiv:2302.05442, section 2: put in for stability; Henry et al. 2020, arXiv:2010.04245: a gain of 0.9 BLEU",
    measured=lambda found: told(found, LAYER, QK),
)
def qk_learns(found):
    """At most 0.07 bits a character more than the same model without it."""
    return of(found, QK) <= of(found, LAYER) + 0.07


@section.claim(
    "Does FixNorm learn as well as words of any length?",
    paper="Nguyen and Salazar 2019, arXiv:1910.05895, abstract: pre-norm, ScaleNorm and FixNorm together gain 1.1 BLEU on five translation pairs",
    measured=lambda found: told(found, LAYER, FIX),
)
def fix_learns(found):
    """At most 0.07 bits a character more than a plain table, tied and times √width as well."""
    return of(found, FIX) <= of(found, LAYER) + 0.07


@section.report
def report(found):
    pairs = counted_pairs(corpus)
    rows = [[name, int(np.mean(found["parameters"][name]["all"])), float(f"{np.mean(found['seconds'][name]['all']):.1f}"),
             section.rates[name], mean_and_spread(of(found, name))] for name in MODELS]  # fmt: skip
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
