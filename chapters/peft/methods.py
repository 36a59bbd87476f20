"""How much of what all weights can learn do a few numbers learn?

A model of 19,216 numbers knows a language of 16 symbols; the language shifts by changes of rank two. Each way of fine-tuning gets as many updates
and a learning rate of its own, and is judged by the nats a symbol that it loses beside the new table: exact, 0 at best. Two trivial ways stand
in the table as well: nothing, and the head alone.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.foundation import trees
from minitransformers.reporting import Section, dots, mean_and_spread, ticks_at, tried
from minitransformers.reporting import adaptation as at
from minitransformers.reporting.peft import fine_tuning as tuned

section = Section(__file__, __doc__, kind="trained")
NONE, HEAD, ALL = "nothing", "head alone", "all weights"
WAYS = {
    HEAD: tuned.head_alone,
    ALL: tuned.all_weights,
    "biases (BitFit)": tuned.biases,
    "stretches ((IA)³)": tuned.stretched,
    "LoRA 1": partial(tuned.low_rank, rank=1),
    "LoRA 2": partial(tuned.low_rank, rank=2),
    "LoRA 4": partial(tuned.low_rank, rank=4),
    "LoRA 8": partial(tuned.low_rank, rank=8),
    "LoRA 4, queries and values": partial(tuned.low_rank, rank=4, patterns=tuned.QUERIES),
    "DoRA 4": partial(tuned.lengths_apart, rank=4),
    "adapters of 2": partial(tuned.bottlenecks, width=2),
    "adapters of 8": partial(tuned.bottlenecks, width=8),
    "Compacter of 8": partial(tuned.compacter, width=8),
    "prefix of 16": partial(tuned.prefixes, length=16),
    "prompt of 8": partial(tuned.prompt, length=8),
}
KEYS = {
    "none": NONE, "head": HEAD, "all": ALL, "biases": "biases (BitFit)", "stretches": "stretches ((IA)³)", "lora_1": "LoRA 1", "lora_4": "LoRA 4",
    "lora_few": "LoRA 4, queries and values", "dora": "DoRA 4", "adapters": "adapters of 8", "compacter": "Compacter of 8", "prefix": "prefix of 16",
    "prompt": "prompt of 8",
}  # fmt: skip
RATES = {
    ALL: (3e-4, 1e-3, 3e-3, 1e-2), "biases (BitFit)": (3e-2, 1e-1, 3e-1, 1.0), "stretches ((IA)³)": (3e-2, 1e-1, 3e-1, 1.0),
    "prefix of 16": (1e-1, 3e-1, 1.0, 3.0), "prompt of 8": (3e-2, 1e-1, 3e-1, 1.0),
}  # fmt: skip
USUAL = (1e-2, 3e-2, 1e-1, 3e-1)


def steps():
    return 10 if section.quick else 150


def lost(name, rng, language, peak):
    trained, run = WAYS[name](rng, at.load_reader())
    return at.left(at.fine_tuned(trained, run, language, rng, steps=steps(), peak=peak), run, language), trees.count_parameters(trained)


@section.tuning
def tuning(rng):
    language = at.shifted(at.language(), rng)
    yield from tried(lambda name, rng, rate: lost(name, rng, language, rate)[0], WAYS, {name: RATES.get(name, USUAL) for name in WAYS}, rng)


@section.experiment
def experiment(rng):
    language = at.shifted(at.language(), rng)
    yield NONE, 0, {"excess": at.left(at.load_reader(), at.reader, language), "numbers": 0}
    for name in WAYS:
        excess, count = lost(name, rng, language, section.rates[name])
        yield name, 0, {"excess": excess, "numbers": count}


# %%
def told(*names):
    return lambda found: "; ".join(f"{name} {mean_and_spread(found['excess'][name][0], '.3f')}" for name in names)


@section.report
def report(found):
    rows = [[name, f"{np.mean(found['numbers'][name][0]):,.0f}", mean_and_spread(of[0], ".3f")] for name, of in found["excess"].items()]
    section.table("methods", ["what is trained", "numbers", "nats too many"], rows)
    section.value("methods.steps", steps())
    section.values("methods.lost", {key: np.mean(found["excess"][name][0]) for key, name in KEYS.items()})


@section.claim(
    "LoRA's loss falls with its rank, and less with each doubling",
    paper="Hu et al. 2021, arXiv:2106.09685, section 7.2: a very small rank suffices", measured=told("LoRA 1", "LoRA 2", "LoRA 4", "LoRA 8"),
)
def falls_with_the_rank(found):
    """Each doubling of the rank lowers the loss, and by less than the one before."""
    lost = [found["excess"][f"LoRA {rank}"][0] for rank in (1, 2, 4, 8)]
    gains = -np.diff(lost)
    return (gains > 0).all() and (np.diff(gains) < 0).all()


@section.claim(
    "LoRA of rank 4 on all matrices beats the head alone, and all weights beat LoRA",
    paper="Hu et al. 2021, arXiv:2106.09685, table 2: LoRA is level with all weights", measured=told(HEAD, "LoRA 4", ALL),
)
def between_head_and_all(found):
    """LoRA loses at most 0.8 of what the head alone loses, and all weights at most 0.9 of what LoRA loses."""
    lost = {name: found["excess"][name][0] for name in (HEAD, "LoRA 4", ALL)}
    return lost["LoRA 4"] <= 0.8 * lost[HEAD] and lost[ALL] <= 0.9 * lost["LoRA 4"]


@section.claim(
    "More matrices with a smaller rank beat fewer with a larger one",
    paper="Hu et al. 2021, arXiv:2106.09685, section 7.1 and table 5", measured=told("LoRA 1", "LoRA 4, queries and values"),
)
def rather_everywhere(found):
    """Rank 1 on all matrices (896 numbers) loses at most 0.9 of what rank 4 on queries and values loses (1,024)."""
    return found["excess"]["LoRA 1"][0] <= 0.9 * found["excess"]["LoRA 4, queries and values"][0]


@section.claim(
    "Is DoRA better than LoRA of the same rank?",
    paper="Liu et al. 2024, arXiv:2402.09353, table 1: consistently", measured=told("LoRA 4", "DoRA 4"),
)
def dora_is_better(found):
    """DoRA loses at most 0.95 of what LoRA loses."""
    return found["excess"]["DoRA 4"][0] <= 0.95 * found["excess"]["LoRA 4"][0]


@section.claim(
    "Does Compacter keep up with adapters of the same width, with a quarter of their numbers or less?",
    paper="Karimi Mahabadi et al. 2021, arXiv:2106.04647, abstract: on par, with 0.047 % of the parameters",
    measured=told("adapters of 8", "Compacter of 8"),
)
def compacter_keeps_up(found):
    """At most a quarter of the numbers, and at most 1.25 times the loss."""
    few = found["numbers"]["Compacter of 8"][0] <= found["numbers"]["adapters of 8"][0] / 4
    return few and found["excess"]["Compacter of 8"][0] <= 1.25 * found["excess"]["adapters of 8"][0]


@section.claim(
    "A prefix and a prompt choose what a model knows; they do not teach it a new table",
    paper="Petrov et al. 2023, arXiv:2310.19698: they cannot change what attention attends to, relatively",
    measured=told(NONE, HEAD, "prefix of 16", "prompt of 8"),
)
def choose_rather_than_teach(found):
    """Each of the two loses at least twice what the head alone loses, which trains about a quarter of a prefix's numbers."""
    return min(found["excess"][name][0] for name in ("prefix of 16", "prompt of 8")) >= 2 * found["excess"][HEAD][0]


# %%
@section.figure("methods", size=(6.4, 4))
def numbers_and_loss(axes, found):
    order = sorted(WAYS, key=lambda name: np.mean(found["excess"][name][0]))
    rows = {f"{name}: {np.mean(found['numbers'][name][0]):,.0f}": found["excess"][name][0] for name in order}
    dots(axes, rows, at=float(np.mean(found["excess"][NONE][0])), xlabel="nats too many, one point a shift")
    axes.set_xscale("log")
    ticks_at(axes, [0.03, 0.1, 0.3])


if __name__ == "__main__":
    section.main()
