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
from minitransformers.reporting import Section, level, lines, mean_and_spread, nats, ticks_at
from minitransformers.training.fit import fit
from minitransformers.training.needles import keys_and_values
from minitransformers.training.task import Labelled, on_arrays
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
KEY, VALUES, HEADS, STEPS, QUESTIONS = 32, 8, 2, 1000, 256
TRAINED, LENGTHS, FAR, FARTHEST = 64, (64, 256, 1024, 4096), 1024, 4096
SOFTMAX, ALIKE, SSMAX, AFTER = "softmax", "softmax, at SSMax's rate", "SSMax", "SSMax, put in after training"
SHORT = {SOFTMAX: "softmax", ALIKE: "alike", SSMAX: "ssmax", AFTER: "after"}
CORES = {name: mt.causal(mt.softmax_attention if name in (SOFTMAX, ALIKE) else mt.scalable_softmax_attention) for name in SHORT}


# %% The task and the model: one layer of attention, and a head that names the value
draw = partial(keys_and_values, d_key=KEY, num_values=VALUES)


def model_with(core):
    return on_arrays(partial(mt.chain, parts=(partial(mt.multi_head_attention, num_heads=HEADS, core=core), mt.linear)))


def with_scales(params, rng):
    """The same parameters with a scale for each head, as SSMax starts: a mean sharpness of 1 over the trained lengths."""
    attention, head = params
    return attention._replace(core=mt.init_scalable_softmax(rng, num_heads=HEADS, max_positions=TRAINED)), head


def trained(name, rng, *, rate):
    width = 2 * KEY + VALUES
    params = mt.init_multi_head_attention(rng, width, num_heads=HEADS, bias=False), mt.init_linear(rng, width, VALUES)
    params = with_scales(params, rng) if name == SSMAX else params
    task = Labelled(model_with(CORES[name]), lambda rng: draw(rng, batch_size=8, length=TRAINED)[:2])
    return fit(params, task, steps=5 if section.quick else STEPS, peak=rate, rng=rng, weight_decay=0.1)


def asked_at(params, name, length, rng, *, wrong):
    """The share of right answers of the last token, and the weight on the key by the head that looks at it most.

    wrong: all tokens but the one asked for carry one and the same wrong value.
    """
    right, weight, at_once = [], [], max(1, 16_384 // length)
    for start in range(0, QUESTIONS, at_once):
        tokens, answers, asked = draw(rng, batch_size=min(at_once, QUESTIONS - start), length=length)
        answer, there = answers[:, -1], np.arange(length) == asked[:, -1:]
        if wrong:
            other = (answer + rng.integers(1, VALUES, size=len(answer))) % VALUES
            tokens[..., 2 * KEY :] = np.eye(VALUES, dtype=np.float32)[np.where(there, answer[:, None], other[:, None])]

        def last_query(learned, query, key, value, bias, *, mask, there=there):
            """The core for the question that is judged. One more value, a one at the key asked for, becomes its weight."""
            one = np.broadcast_to(there[:, None, :, None], (*value.shape[:-1], 1)).astype(value.dtype)
            out, _ = CORES[name](learned, query[..., -1:, :], key, np.concatenate([value, one], axis=-1))
            weight.append(out[:, :, 0, -1])
            return out[..., :-1], None

        right.append(model_with(last_query)(params, tokens)[0][:, 0].argmax(-1) == answer)
    return {"right": np.concatenate(right).mean(), "weight": np.concatenate(weight).mean(0).max()}


@section.tuning
def tuning(rng):
    hold_blas()
    start = rng.integers(2**32)
    for name in (SOFTMAX, SSMAX):
        for rate in (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2):
            own = np.random.default_rng(start)
            params = trained(name, own, rate=rate)
            tokens, answers, _ = draw(own, batch_size=512, length=TRAINED)
            yield name, rate, {"loss": nats(model_with(CORES[name])(params, tokens)[0], answers)}


@section.experiment
def experiment(rng):
    hold_blas()
    rates = {**section.rates, ALIKE: section.rates[SSMAX]}   # at 64 tokens a softmax's rates hardly differ; far beyond they may
    models = {name: trained(name, rng, rate=rates[name]) for name in (SOFTMAX, ALIKE, SSMAX)}
    yield SSMAX, "learned", {"scale": models[SSMAX][0].core.scale.mean()}
    models[AFTER] = with_scales(models[SOFTMAX], rng)        # nothing is trained any more
    questions = rng.integers(2**32)
    for name, params in models.items():
        for length in LENGTHS[:2] if section.quick else LENGTHS:
            yield name, length, asked_at(params, name, length, np.random.default_rng(questions), wrong=True)
        any_values = asked_at(params, name, 256 if section.quick else FAR, np.random.default_rng(questions), wrong=False)
        yield name, FAR, {"any": any_values["right"]}


# %%
def ahead(found, measure, length, name=SSMAX, of=SOFTMAX):
    return found[measure][name][length] - found[measure][of][length]


def told(found, measure, *lengths, names=(SOFTMAX, ALIKE, SSMAX)):
    return "; ".join(f"{name} {', '.join(mean_and_spread(found[measure][name][n]) for n in lengths)}" for name in names)


@section.claim(
    "SSMax finds a key at 16 and 64 times the length of training, where a softmax no longer does",
    paper="Nakanishi 2025, arXiv:2501.19399, abstract: significantly better in long contexts and in the retrieval of key information",
    measured=lambda found: f"right at {', '.join(f'{n:,}' for n in LENGTHS)} tokens: {told(found, 'right', *LENGTHS)}",
)
def finds(found):
    """All are right in at least 0.95 of cases at 64 tokens; at 1,024 and 4,096 SSMax is at least 0.2 ahead of the softmax at either rate."""
    start = min(found["right"][name][TRAINED] for name in (SOFTMAX, ALIKE, SSMAX))
    return start >= 0.95 and min(ahead(found, "right", n, of=name) for n in (FAR, FARTHEST) for name in (SOFTMAX, ALIKE)) >= 0.2


@section.claim(
    "SSMax keeps its weight on the key at 16 times the length of training",
    paper="Nakanishi 2025, arXiv:2501.19399, abstract: SSMax enables the model to focus attention on key information even in long contexts",
    measured=lambda found: f"at {TRAINED}, {FAR:,} and {FARTHEST:,} tokens: {told(found, 'weight', TRAINED, FAR, FARTHEST)}",
)
def keeps(found):
    """From 64 to 1,024 tokens SSMax loses at most half of the weight that the softmax loses, at either rate."""
    lost = {name: of[TRAINED] - of[FAR] for name, of in found["weight"].items()}
    return lost[SSMAX] <= min(lost[SOFTMAX], lost[ALIKE]) / 2


@section.claim(
    "Put in after training, SSMax helps without any more training",
    paper="Nakanishi 2025, arXiv:2501.19399, abstract: models that have already started pre-training can still gain some of this ability",
    measured=lambda found: f"right at {FAR:,} and {FARTHEST:,} tokens: {told(found, 'right', FAR, FARTHEST, names=(SOFTMAX, AFTER))}",
)
def helps(found):
    """At 1,024 and at 4,096 tokens at least 0.1 more right than the softmax that it was put into."""
    return min(ahead(found, "right", n, AFTER) for n in (FAR, FARTHEST)) >= 0.1


@section.claim(
    "Does it help less than SSMax from the start?",
    paper="Nakanishi 2025, arXiv:2501.19399, abstract: models that use SSMax from the beginning achieve better length generalisation",
    measured=lambda found: f"right at {FAR:,} and {FARTHEST:,} tokens: {told(found, 'right', FAR, FARTHEST, names=(AFTER, SSMAX))}",
)
def less(found):
    """At 1,024 and at 4,096 tokens at least 0.05 more right with SSMax from the start."""
    return min(ahead(found, "right", n, SSMAX, AFTER) for n in (FAR, FARTHEST)) >= 0.05


@section.claim(
    "Where other tokens carry any values, answers do not show what is lost",
    paper="no paper: what a faded key loses then goes to all values alike, and the largest answer stays the same",
    measured=lambda found: f"right at {FAR:,} tokens, any values: {told(found, 'any', FAR)}; one wrong value: {told(found, 'right', FAR)}",
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
