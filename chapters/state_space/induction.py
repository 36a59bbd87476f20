"""Trained on 64 tokens, tested on 1,024: who still finds what followed the special token?

Gu and Dao 2023 (Mamba), arXiv:2312.00752, figure 2 and table 11: trained at 256, no attention works beyond twice its length, Mamba up to a
million positions. A special token stands somewhere, and something follows it; when it comes again the same must follow. Mamba and attention
with RoPE, equally large by the width of their feed-forward networks, each at its own learning rate. Attention gets three times the updates:
it takes longer to find out, and an update costs it less. Training rows ask up to eight times, which teaches more, and tests once, at the end.
"""

# %%
from functools import partial

import numpy as np

from minitransformers import LanguageModelConfig, init_language_model, language_model, trees
from minitransformers.reporting import Section, level, lines, mean_and_spread, nats, processor_seconds, ticks_at
from minitransformers.training.fit import fit
from minitransformers.training.memory import keep_freed_memory
from minitransformers.training.synthetic import induction_heads
from minitransformers.training.task import Labelled, accuracy
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
TRAINED, LENGTHS, KINDS, WIDTH = 64, (64, 128, 256, 512, 1024), 8, 32
MAMBA, ATTENTION, GUESSING = "Mamba", "attention, RoPE", 1 / (KINDS - 1)
STEPS = {MAMBA: 200, ATTENTION: 600}                         # about as many processor seconds
MODELS = {                                                   # hidden units that make both equally large
    MAMBA: {"mixer": "mamba", "position": "none", "options": {"mixer": {"d_state": 8}, "channel": {"d_hidden": 32}}},
    ATTENTION: {"mixer": "multi_head_attention", "position": "rope", "options": {"channel": {"d_hidden": 96}}},
}


# %%
def config_of(name):
    return LanguageModelConfig(KINDS, context=LENGTHS[-1], d_model=WIDTH, num_layers=2, num_heads=2, norm="rms_norm", **MODELS[name])


def model(params, ids, *, name):
    return language_model(params, ids=ids, config=config_of(name))


def draw(rng, *, length=TRAINED, rows=16, questions=None):
    """From one question to eight, unless it is said how many."""
    questions = int(2 ** rng.integers(4)) if questions is None else questions
    return induction_heads(rng, batch_size=rows, length=length, vocabulary_size=KINDS, num_questions=questions)


def trained(name, rng, *, rate):
    params, steps = init_language_model(rng, config_of(name), std=WIDTH**-0.5), 5 if section.quick else STEPS[name]
    return fit(params, Labelled(partial(model, name=name), draw), steps=steps, peak=rate, rng=rng)


@section.tuning
def tuning(rng):
    hold_blas()
    keep_freed_memory()                                      # a step of training frees and takes the same arrays again and again
    for name in MODELS:
        for rate in (1e-2,) if section.quick else (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2):
            own = np.random.default_rng(rng.integers(2**32))
            params = trained(name, own, rate=rate)
            ids, targets = draw(own, rows=256, questions=1)
            yield name, rate, {"loss": nats(model(params, ids, name=name)[0], targets)}


@section.experiment
def experiment(rng):
    hold_blas()
    keep_freed_memory()
    for name in MODELS:
        with processor_seconds() as spent:
            params = trained(name, rng, rate=section.rates[name])
        yield name, "training", {"parameters": trees.count_parameters(params), "seconds": spent()}
        for length in LENGTHS[:2] if section.quick else LENGTHS:
            rows = [draw(rng, length=length, rows=16, questions=1) for _ in range(1 if section.quick else 8)]
            yield name, length, {"right": np.mean([accuracy(model(params, ids, name=name)[0], targets) for ids, targets in rows])}


# %%
def told(found, name):
    return f"{name} {', '.join(mean_and_spread(100 * right, '.0f') for right in found['right'][name].values())} %"


@section.claim(
    "Does attention lose the thread beyond the length of its training sooner than Mamba?",
    paper="Gu and Dao 2023, arXiv:2312.00752, figure 2 and table 11: trained at 256, no attention works beyond twice its length, Mamba up to a million",
    measured=lambda found: f"at {', '.join(f'{n:,}' for n in found['right'][MAMBA])}: {told(found, MAMBA)}; {told(found, ATTENTION)}",
)
def sooner(found):
    """Both are right in more than 0.95 of all cases at the trained length; at 256, 512 and 1,024 Mamba is right in at least 0.1 more."""
    one, other = found["right"][MAMBA], found["right"][ATTENTION]
    return min(one[TRAINED], other[TRAINED]) > 0.95 and all(one[n] >= other[n] + 0.1 for n in LENGTHS[2:])


@section.claim(
    "Does what Mamba has learned work at any length?",
    paper="Gu and Dao 2023, arXiv:2312.00752, table 11: right at every length up to a million, after 200,000 updates",
    measured=lambda found: f"after {STEPS[MAMBA]} updates, at {', '.join(f'{n:,}' for n in found['right'][MAMBA])}: {told(found, MAMBA)}",
)
def any_length(found):
    """It is right in more than 0.95 of all cases up to 1,024 positions, 16 times the length of training."""
    return min(found["right"][MAMBA].values()) > 0.95


@section.report
def report(found):
    rows = []
    for name, of in found["right"].items():
        size, seconds = (found[measure][name]["training"].mean() for measure in ("parameters", "seconds"))
        rows.append([name, section.rates[name], STEPS[name], int(size), float(f"{seconds:.2g}"), *(float(right.mean()) for right in of.values())])
    lengths = list(found["right"][MAMBA])
    section.table("induction", ["model", "rate", "updates", "parameters", "processor seconds", *(f"length {n}" for n in lengths)], rows)
    for key, name in (("mamba", MAMBA), ("rope", ATTENTION)):
        section.values(f"induction.{key}", {f"at_{n}": 100 * right.mean() for n, right in found["right"][name].items()})
    section.values("induction", {"guessing": 100 * GUESSING, "rows": 16})
    section.values("induction.steps", {"mamba": STEPS[MAMBA], "attention": STEPS[ATTENTION]})


@section.figure("induction", size=(5, 3))
def picture(ax, found):
    lines(ax, found["right"], xlabel=f"length in testing (trained at {TRAINED})", ylabel="answers that are right", xscale="log", ylim=(0, 1.05))
    ticks_at(ax, list(found["right"][MAMBA]))
    ax.legend(loc="lower left", bbox_to_anchor=(0, 0.18))
    level(ax, GUESSING, "guessing")


if __name__ == "__main__":
    section.main()
