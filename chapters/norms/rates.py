"""What becomes of the scores where the learning rate is too high, and of what the model learns, with QK-norm and without?

Dehghani et al. 2023, arXiv:2302.05442, section 2: queries and keys are normed because scores grew until training diverged. Wortsman et al. 2023,
arXiv:2309.14322, section 3.1: with QK-norm a model loses less where the rate is higher than its best. Two layers with pre-norm and RoPE read real
text at three rates, without a warm-up.
"""

# %%
from functools import partial

import numpy as np

import minitransformers as mt
from minitransformers.foundation import trees
from minitransformers.reporting import (
    Section,
    bits_in_windows,
    counted_pairs,
    level,
    lines,
    mean_and_spread,
    processor_seconds,
    ticks_at,
)
from minitransformers.training.fit import fit
from minitransformers.training.task import Labelled
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
WIDTH, HEADS, CONTEXT, BATCH, STEPS, START, RATES = 48, 4, 32, 16, 150, 0.1, (1e-2, 3e-2, 1e-1)
PLAIN, NORMED, DELETED, TURN = "without", "QK-norm", "attention deleted", mt.on_both(mt.rope_fast)
corpus = Corpus.load(context=CONTEXT)


# %%
def fresh(name, rng):
    def block():
        attention = mt.init_multi_head_attention(rng, WIDTH, num_heads=HEADS, std=START, residual_std=START / 2)
        if name == NORMED:
            attention = attention._replace(prepare=(mt.init_qk_norm(rng, WIDTH // HEADS), None))
        channel = mt.init_feed_forward(rng, WIDTH, std=START, residual_std=START / 2)
        return mt.TransformerBlock(mt.init_layer_norm(rng, WIDTH), attention, mt.init_layer_norm(rng, WIDTH), channel)

    size = corpus.vocabulary.size
    head = mt.init_linear(rng, WIDTH, size, std=START, bias=False)
    return mt.init_embedding(rng, size, WIDTH, std=START), [block(), block(), mt.init_layer_norm(rng, WIDTH), head]


def model(params, ids, *, name, core=mt.causal_attention):
    """Logits of the next character, and backward."""
    prepare = partial(mt.chain, parts=(mt.qk_norm, TURN)) if name == NORMED else TURN
    alone = np.eye(ids.shape[-1], dtype=bool) if name == DELETED else None  # sees itself, and nobody else
    mixer = partial(mt.multi_head_attention, num_heads=HEADS, prepare=prepare, core=core)
    block = partial(mt.transformer_block, mixer=mixer, channel=mt.feed_forward, norm=mt.layer_norm, mask=alone)
    x, words_backward = mt.embedding(params[0], ids=ids)
    logits, body_backward = mt.chain(params[1], x, parts=(block, block, mt.layer_norm, mt.linear))

    def backward(dlogits):
        dbody, dx = body_backward(dlogits)
        return words_backward(dx), dbody

    return logits, backward


def largest_score(params, ids, *, name):
    """Of all scores of all heads the largest, as they come to the softmax."""
    found = []

    def softmax_that_looks(learned, scores, *, mask):
        found.append(float(np.abs(np.where(mask, scores, 0)).max()))
        return mt.softmax(np.where(mask, scores, np.float32(-np.inf)))

    model(params, ids, name=name, core=mt.causal(partial(mt.weighted_attention, weighting=softmax_that_looks)))
    return max(found)


@section.experiment
def experiment(rng):
    hold_blas()                                              # seeds run side by side, and the arrays are small
    seed, text = rng.integers(2**32), corpus.validation[: 2 * CONTEXT + 1] if section.quick else corpus.validation
    seen = corpus.validation[: 64 * CONTEXT].reshape(64, CONTEXT)
    for name in (PLAIN, NORMED, DELETED):
        for rate in RATES[:1] if name == DELETED else RATES:
            own = np.random.default_rng(seed)                # the same weights at the start, the same batches
            params, task = fresh(name, own), Labelled(partial(model, name=name), partial(corpus.batch, batch_size=BATCH, context=CONTEXT))
            with processor_seconds() as spent:
                params = fit(params, task, steps=3 if section.quick else STEPS, peak=rate, rng=own, warmup=0.0, floor=0.1)
            bits = bits_in_windows(lambda ids, params=params, name=name: model(params, ids, name=name), text, CONTEXT)
            numbers = {"bits": bits, "parameters": trees.count_parameters(params), "seconds": spent()}
            yield name, rate, numbers if name == DELETED else {**numbers, "score": largest_score(params, seen, name=name)}


# %%
def told(found, what, form):
    return "; ".join(f"{name} {', '.join(mean_and_spread(y, form) for y in found[what][name].values())}" for name in (PLAIN, NORMED))


@section.claim(
    "At a learning rate that is too high scores run away, and with QK-norm they do not",
    paper="Dehghani et al. 2023, arXiv:2302.05442, section 2: the norm was put in because logits grew until training diverged",
    measured=lambda found: f"largest scores at rates of {', '.join(f'{rate:g}' for rate in RATES)}: {told(found, 'score', '.0f')}",
)
def scores_run_away(found):
    """At the rate of 0.1 the largest score is at least ten times smaller with QK-norm."""
    return found["score"][PLAIN][RATES[-1]] >= 10 * found["score"][NORMED][RATES[-1]]


@section.claim(
    "Does QK-norm make a higher learning rate bearable?",
    paper="Wortsman et al. 2023, arXiv:2309.14322, section 3.1: the loss depends less on the rate with QK-norm",
    measured=lambda found: f"bits at rates of {', '.join(f'{rate:g}' for rate in RATES)}: {told(found, 'bits', '.2f')}",
)
def bearable(found):
    """At rates of 0.03 and of 0.1 at least 0.1 bits a character less with QK-norm."""
    return all(found["bits"][NORMED][rate] <= found["bits"][PLAIN][rate] - 0.1 for rate in RATES[1:])


@section.report
def report(found):
    rows = []
    for name, of in found["bits"].items():
        for rate, bits in of.items():
            size, seconds = (np.mean(found[what][name][rate]) for what in ("parameters", "seconds"))
            score = found["score"].get(name, {}).get(rate)
            rows.append([name, f"{rate:g}", int(size), float(f"{seconds:.1f}"), None if score is None else mean_and_spread(score, ".1f"), mean_and_spread(bits)])
    rows.append(["counted pairs of characters", *[None] * 4, f"{counted_pairs(corpus):.2f}"])
    section.table("learning_rates", ["model", "rate", "parameters", "processor seconds", "largest score", "bits a character"], rows)
    for key, name in (("plain", PLAIN), ("normed", NORMED)):
        section.value(f"learning_rates.{key}", np.mean(found["score"][name][RATES[-1]]))
        for rate, what in zip(RATES, ("best", "higher", "loss"), strict=True):
            section.value(f"learning_rates.{key}_{what}", np.mean(found["bits"][name][rate]))
    section.values("learning_rates", {"steps": STEPS, "times": RATES[-1] / RATES[0]})


@section.figure("learning_rates", size=(6.4, 2.8), ncols=2)
def picture(axes, found):
    curves = {name: found["bits"][name] for name in (PLAIN, NORMED)}
    lines(axes[0], found["score"], xlabel="learning rate", title="largest score", xscale="log", yscale="log")
    lines(axes[1], curves, xlabel="learning rate", title="bits a character", xscale="log")
    level(axes[1], counted_pairs(corpus), "counted pairs")
    for ax in axes:
        ticks_at(ax, list(RATES))
    axes[0].legend()


if __name__ == "__main__":
    section.main()
