"""Trained on 64 tokens, asked among 4,096: who still finds a key?

Nakanishi 2025, arXiv:2501.19399: a softmax's focus fades as the context grows, models with SSMax retrieve far beyond the training length;
put in after pre-training it still helps, but less than from the start. Every token stores a key and a value, and asks for the key
of one that it may see. Training has 64 tokens, so that causal queries have 1 to 64 keys. In the test the last token asks, and all others
carry one and the same wrong value: the weight that the key loses then counts against it. Where they carry any values, it cancels.
"""

# %%
from functools import partial

import numpy as np

import minitransformers as mt
from minitransformers.reporting import Section, level, lines, listed, mean_and_spread, mean_nats, ticks_at, tried
from minitransformers.reporting.attention.keyed import HEADS, VALUES, asked_at, draw, init_keyed, keyed
from minitransformers.training.fit import fit
from minitransformers.training.task import Labelled
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
STEPS, QUESTIONS = 1000, 256
TRAINED, LENGTHS, FAR, FARTHEST = 64, (64, 256, 1024, 4096), 1024, 4096
SOFTMAX, ALIKE, SSMAX, AFTER = "softmax", "softmax, at SSMax's rate", "SSMax", "SSMax, put in after training"
LEARN = (SOFTMAX, ALIKE, SSMAX)                               # and the fourth is made of the first
SHORT = {SOFTMAX: "softmax", ALIKE: "alike", SSMAX: "ssmax", AFTER: "after"}
CORES = {name: mt.causal(mt.softmax_attention if name in (SOFTMAX, ALIKE) else mt.scalable_softmax_attention) for name in SHORT}


# %% One layer of attention, and a head that names the value
def with_scales(params, rng):
    """The same parameters with a scale for each head, as SSMax starts: a mean sharpness of 1 over the trained lengths."""
    attention, head = params
    return attention._replace(core=mt.init_scalable_softmax(rng, num_heads=HEADS, max_positions=TRAINED)), head


def trained(name, rng, *, rate):
    params = with_scales(init_keyed(rng), rng) if name == SSMAX else init_keyed(rng)
    task = Labelled(keyed(CORES[name]), lambda rng: draw(rng, batch_size=8, length=TRAINED)[:2])
    return fit(params, task, steps=5 if section.quick else STEPS, peak=rate, rng=rng, weight_decay=0.1)


@section.tuning
def tuning(rng):
    def lost(name, own, *, rate):
        answer = partial(keyed(CORES[name]), trained(name, own, rate=rate))
        return mean_nats(answer, [draw(own, batch_size=512, length=TRAINED)[:2]])

    yield from tried(lost, (SOFTMAX, SSMAX), (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2), rng)


@section.experiment
def experiment(rng):
    hold_blas()
    rates = {**section.rates, ALIKE: section.rates[SSMAX]}   # at 64 tokens a softmax's rates hardly differ; far beyond they may
    models = {name: trained(name, rng, rate=rates[name]) for name in LEARN}
    yield SSMAX, "learned", {"scale": models[SSMAX][0].core.scale.mean()}
    models[AFTER] = with_scales(models[SOFTMAX], rng)        # nothing is trained any more
    questions = rng.integers(2**32)
    for name, params in models.items():
        ask = partial(asked_at, CORES[name], params, questions=QUESTIONS)
        for length in LENGTHS[:2] if section.quick else LENGTHS:
            yield name, length, ask(length, np.random.default_rng(questions), wrong=True)
        yield name, FAR, {"any": ask(256 if section.quick else FAR, np.random.default_rng(questions), wrong=False)["right"]}


# %%
def ahead(found, measure, length, name=SSMAX, of=SOFTMAX):
    return found[measure][name][length] - found[measure][of][length]


@section.claim(
    "SSMax finds a key at 16 and 64 times the length of training, where a softmax no longer does",
    paper="Nakanishi 2025, arXiv:2501.19399, abstract: significantly better in long contexts and in the retrieval of key information",
    measured=lambda found: f"right at {', '.join(f'{n:,}' for n in LENGTHS)} tokens: {listed(found['right'], LEARN, [*LENGTHS])}",
)
def finds(found):
    """All are right in at least 0.95 of cases at 64 tokens; at 1,024 and 4,096 SSMax is at least 0.2 ahead of the softmax at either rate."""
    start = min(found["right"][name][TRAINED] for name in LEARN)
    return start >= 0.95 and min(ahead(found, "right", n, of=name) for n in (FAR, FARTHEST) for name in (SOFTMAX, ALIKE)) >= 0.2


@section.claim(
    "SSMax keeps its weight on the key at 16 times the length of training",
    paper="Nakanishi 2025, arXiv:2501.19399, abstract: SSMax enables the model to focus attention on key information even in long contexts",
    measured=lambda found: f"at {TRAINED}, {FAR:,} and {FARTHEST:,} tokens: {listed(found['weight'], LEARN, [TRAINED, FAR, FARTHEST])}",
)
def keeps(found):
    """From 64 to 1,024 tokens SSMax loses at most half of the weight that the softmax loses, at either rate."""
    lost = {name: of[TRAINED] - of[FAR] for name, of in found["weight"].items()}
    return lost[SSMAX] <= min(lost[SOFTMAX], lost[ALIKE]) / 2


@section.claim(
    "Put in after training, SSMax helps without any more training",
    paper="Nakanishi 2025, arXiv:2501.19399, abstract: models that have already started pre-training can still gain some of this ability",
    measured=lambda found: f"right at {FAR:,} and {FARTHEST:,} tokens: {listed(found['right'], (SOFTMAX, AFTER), [FAR, FARTHEST])}",
)
def helps(found):
    """At 1,024 and at 4,096 tokens at least 0.1 more right than the softmax that it was put into."""
    return min(ahead(found, "right", n, AFTER) for n in (FAR, FARTHEST)) >= 0.1


@section.claim(
    "Does it help less than SSMax from the start?",
    paper="Nakanishi 2025, arXiv:2501.19399, abstract: models that use SSMax from the beginning achieve better length generalisation",
    measured=lambda found: f"right at {FAR:,} and {FARTHEST:,} tokens: {listed(found['right'], (AFTER, SSMAX), [FAR, FARTHEST])}",
)
def less(found):
    """At 1,024 and at 4,096 tokens at least 0.05 more right with SSMax from the start."""
    return min(ahead(found, "right", n, SSMAX, AFTER) for n in (FAR, FARTHEST)) >= 0.05


@section.claim(
    "Where other tokens carry any values, answers do not show what is lost",
    paper="no paper: what a faded key loses then goes to all values alike, and the largest answer stays the same",
    measured=lambda found: f"right at {FAR:,} tokens, any values: {listed(found['any'], LEARN, [FAR])}; one wrong value: {listed(found['right'], LEARN, [FAR])}",
)
def hides(found):
    """At 1,024 tokens the two differ by at most 0.05 there, and by at least 0.2 where all others carry one wrong value."""
    return abs(ahead(found, "any", FAR)) <= 0.05 and ahead(found, "right", FAR) >= 0.2


@section.report
def report(found):
    heads = {"right": ("retrieval", "% answered rightly, tokens:"), "weight": ("retrieval_weight", "weight on the key, tokens:")}
    for measure, (table, head) in heads.items():
        unit, form = (100, ".1f") if measure == "right" else (1, ".2f")
        rows = [[name, *(mean_and_spread(unit * y, form) for y in of.values())] for name, of in found[measure].items()]
        section.table(table, [head, *(f"{n:,}" for n in found[measure][SOFTMAX])], rows)
        for name, key in SHORT.items():
            section.values(f"retrieval.{key}.{measure}", {f"n{n}": unit * y.mean() for n, y in found[measure][name].items()})
    for name, key in SHORT.items():
        section.value(f"retrieval.{key}.any", 100 * found["any"][name][FAR].mean())
    scale = found["scale"][SSMAX]["learned"]
    section.value("retrieval.ssmax.learned.scale", scale.mean())
    section.values("retrieval", {"trained": TRAINED, "far": FAR, "longest": FARTHEST, "steps": STEPS, "questions": QUESTIONS, "seeds": len(scale)})


@section.figure("retrieval", size=(6.8, 3), ncols=2, sharey=True)
def picture(axes, found):
    for ax, measure, title in zip(axes, ("right", "weight"), ("questions answered rightly", "weight on the key asked for"), strict=True):
        lines(ax, found[measure], xlabel=f"length in testing (trained at {TRAINED})", title=title, xscale="log", ylim=(0, 1.05))
        ticks_at(ax, list(found[measure][SOFTMAX]))
    level(axes[0], 1 / VALUES, "guessing")
    axes[1].legend(loc="lower left")


if __name__ == "__main__":
    section.main()
