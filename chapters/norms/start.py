"""Why does post-norm stall without a warm-up: is it the place of the norm, the size of the first weights, or the rate?

Xiong et al. 2020, arXiv:2002.04745, section 3: post-norm without warm-up trains badly, pre-norm well. All placements begin with the same
weights here: in their blocks of deviation 1/√d_in, or half of that. Four layers with RoPE on real text, each placement at a learning rate
of its own, and some at pre-norm's as well.
"""

# %%
from functools import partial
from typing import NamedTuple

import numpy as np

import minitransformers as mt
from minitransformers.attention.prepare import on_both
from minitransformers.models.workbench.transformer_block import post_norm, pre_norm
from minitransformers.reporting import Section, bits_after, counted_pairs, level, lines, mean_and_spread, processor_seconds, tried
from minitransformers.reporting.networks import init_decoder, network, without
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas
from minitransformers.training.yardsticks import counted

section = Section(__file__, __doc__, kind="trained")
LAYERS, WIDTH, HEADS, CONTEXT, BATCH, STEPS = 4, 48, 4, 32, 8, 150
OWN, SAME = "at its own rate", "at the rate that suits pre-norm"
PRE, POST = "pre-norm", "post-norm"


class Setting(NamedTuple):
    """Start is of the blocks' weights, in units of 1/√d_in, warmup a part of the steps; deleted: attention sees its own position alone."""

    placement: str
    start: float = 1.0
    warmup: float = 0.0
    deleted: bool = False


MODELS = {
    "pre": Setting(PRE), "post": Setting(POST), "post_warmed": Setting(POST, warmup=0.3),
    "pre_half": Setting(PRE, 0.5), "post_half": Setting(POST, 0.5), "deleted": Setting(PRE, 0.5, deleted=True),
}  # fmt: skip
ALIKE = ("pre", "post", "post_warmed", "post_half")          # also compared at the rate that suits pre-norm
corpus = Corpus.load(context=CONTEXT)


# %%
def fresh(setting, rng):
    """Of one start all have the same weights: norms draw nothing."""
    sizes = {"num_layers": LAYERS, "num_heads": HEADS, "start": setting.start, "last": setting.placement == PRE}
    return init_decoder(rng, corpus.vocabulary.size, WIDTH, **sizes)


def model_of(setting):
    """(params, ids) -> logits of the next character, and backward."""
    alone = np.eye(CONTEXT, dtype=bool) if setting.deleted else None
    mixer, placement = partial(mt.multi_head_attention, num_heads=HEADS, prepare=on_both(mt.rope)), pre_norm if setting.placement == PRE else post_norm
    block = partial(mt.transformer_block, mixer=mixer, channel=mt.feed_forward, norm=mt.layer_norm, placement=placement, mask=alone)
    return network(*[block] * LAYERS, mt.layer_norm if setting.placement == PRE else without, mt.linear)


def trained(name, rng, *, rate, watch=None):
    """Bits a character."""
    setting, sizes = MODELS[name], {"context": CONTEXT, "batch_size": BATCH, "whole": not section.quick, "steps": 5 if section.quick else STEPS}
    params = fresh(setting, rng)
    return bits_after(model_of(setting), params, corpus, rng=rng, peak=rate, warmup=setting.warmup, floor=0.05, watch=watch, **sizes)


@section.tuning
def tuning(rng):
    yield from tried(trained, MODELS, (6e-4, 1.5e-3, 4e-3, 1e-2, 2.5e-2), rng)


@section.experiment
def experiment(rng):
    hold_blas()                                              # seeds run side by side, and the arrays are small
    seed = rng.integers(2**32)
    for name in MODELS:
        own, alike = section.rates[name], section.rates["pre"]
        for rate in dict.fromkeys((own, alike) if name in ALIKE else (own,)):
            nats = []
            with processor_seconds() as spent:
                bits = trained(name, np.random.default_rng(seed), rate=rate, watch=lambda step, loss, params, nats=nats: nats.append(loss))
            if rate == own:
                yield name, OWN, {"bits": bits, "parameters": mt.trees.count_parameters(fresh(MODELS[name], rng)), "seconds": spent()}
            if rate == alike and name in ALIKE:
                yield name, SAME, {"bits": bits}
                every = max(1, len(nats) // 15)
                for step in range(every, len(nats) + 1, every):
                    yield name, step, {"training": np.mean(nats[step - every : step]) / np.log(2)}


# %%
def of(found, name, rate=OWN):
    return found["bits"][name][rate]


def called(name):
    placement, start, warmup, deleted = MODELS[name]
    return placement + ", half start" * (start < 1) + ", warm-up" * (warmup > 0) + ", attention deleted" * deleted


def told(found, *names, rate=OWN):
    return ", ".join(f"{called(name)} {mean_and_spread(of(found, name, rate))}" for name in names) + f" bits a character, {rate}"


@section.claim(
    "At pre-norm's rate and from a full start post-norm stalls, and a warm-up helps it",
    paper="Xiong et al. 2020, arXiv:2002.04745, section 3: post-norm without warm-up trains badly, pre-norm well",
    measured=lambda found: told(found, "pre", "post", "post_warmed", rate=SAME),
)
def needs_warmup(found):
    """At the rate that suits pre-norm, at least 0.3 bits a character more than pre-norm, and 0.15 more than after a warm-up."""
    post = of(found, "post", SAME)
    return post >= of(found, "pre", SAME) + 0.3 and post >= of(found, "post_warmed", SAME) + 0.15


@section.claim(
    "At the same rate half the start takes the stall away",
    paper="Xiong et al. 2020, arXiv:2002.04745, do not vary the start; Wang et al. 2022, arXiv:2203.00555, section 3: a smaller start stabilises post-norm",
    measured=lambda found: told(found, "post", "post_half", rate=SAME),
)
def start_decides(found):
    """At the rate that suits pre-norm, post-norm needs at least 0.3 bits a character less where its blocks start at half the weights."""
    return of(found, "post_half", SAME) <= of(found, "post", SAME) - 0.3


@section.claim(
    "From half the start, does post-norm learn as well as pre-norm?",
    paper="Xiong et al. 2020, arXiv:2002.04745, section 3: pre-norm trains well without warm-up, post-norm does not",
    measured=lambda found: told(found, "pre_half", "post_half"),
)
def as_well(found):
    """Without a warm-up and each at its own rate, at most 0.1 bits a character more than pre-norm."""
    return of(found, "post_half") <= of(found, "pre_half") + 0.1


@section.claim(
    "At a rate of its own, does post-norm stay behind from a full start?",
    paper="Xiong et al. 2020, arXiv:2002.04745, section 3: without warm-up post-norm trains badly; rate and warm-up have to be tuned",
    measured=lambda found: told(found, "pre", "post", "post_warmed"),
)
def own_rate(found):
    """Each at its own rate, post-norm without a warm-up needs at least 0.2 bits a character more than pre-norm."""
    return of(found, "post") >= of(found, "pre") + 0.2


@section.report
def report(found):
    pairs, letters, rows = counted_pairs(corpus), counted(corpus.train_text, corpus.validation_text)["unigram"], []
    for name, (placement, start, warmup, deleted) in MODELS.items():
        size, seconds = (np.mean(found[what][name][OWN]) for what in ("parameters", "seconds"))
        cells = [placement + ", attention deleted" * deleted, f"{start:g}", round(warmup * STEPS), int(size), float(f"{seconds:.1f}")]
        same = mean_and_spread(of(found, name, SAME)) if name in ALIKE else None
        rows.append([*cells, same, mean_and_spread(of(found, name)), section.rates[name]])
    rows += [[f"counted {what}", *[None] * 5, f"{bits:.2f}", None] for what, bits in (("pairs of characters", pairs), ("characters", letters))]
    columns = ["placement", "start", "warm-up steps", "parameters", "processor seconds", f"bits at {section.rates['pre']:g}", "bits at its own rate"]
    section.table("start", [*columns, "its rate"], rows)
    section.values("start", {name: np.mean(of(found, name)) for name in MODELS})
    section.values("start.same", {name: np.mean(of(found, name, SAME)) for name in ALIKE})
    section.values("start", {"layers": LAYERS, "steps": STEPS, "pairs": pairs, "letters": letters, "rate": section.rates["pre"]})


@section.figure("start", size=(6.4, 3.4))
def picture(ax, found):
    curves = {called(name): found["training"][name] for name in ALIKE}
    lines(ax, curves, xlabel="step", ylabel="bits a character, training", ylim=(3, 6.5))
    level(ax, counted_pairs(corpus), "counted pairs")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


if __name__ == "__main__":
    section.main()
