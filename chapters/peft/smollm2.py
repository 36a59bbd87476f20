"""What does it take to teach SmolLM2 the manner of one book?

Hu et al. 2021, arXiv:2106.09685: training thin matrices beside frozen weights does as well as training all weights. Li and Liang 2021,
arXiv:2101.00190: a prefix of keys and values in every layer is enough. SmolLM2-135M, out of its 4-bit file, learns from Python's language
reference for a few updates, and is asked about the last tenth, which it was not shown: all weights, LoRA beside queries and values, and a prefix.
LoRA and the prefix run block by block (frozen_stack), so that no dense gradient stays.
"""

# %%
import gc
import tracemalloc
from functools import partial

import numpy as np

from minitransformers.foundation import trees
from minitransformers.models.llama import llama
from minitransformers.models.llama_gguf import load_llama_gguf
from minitransformers.models.published import published_file
from minitransformers.reporting import Section, level, mean_and_spread, tried
from minitransformers.reporting.needs import missing_smollm2
from minitransformers.reporting.peft.smollm2_tuning import (
    AHEAD,
    FULL,
    LENGTH,
    LORA,
    PREFIX,
    RANK,
    WAYS,
    bits_of,
    bytes_of_file,
    learned,
    texts,
)
from minitransformers.training.task import on_ids

section = Section(__file__, __doc__, kind="trained", needs=missing_smollm2)
STEPS, ASKED = 12, 512
RATES = {FULL: (1e-5, 3e-5, 1e-4, 3e-4), LORA: (3e-4, 1e-3, 3e-3, 1e-2), AHEAD: (1e-2, 3e-2, 1e-1, 3e-1)}


# %%
@section.tuning
def tuning(rng):
    model = load_llama_gguf(published_file("smollm2"))
    known, _ = texts(model.vocabulary)

    def loss(name, rng, rate):
        params, run, _ = learned(name, model.params, model.settings, known[: -ASKED - 1], rng, steps=STEPS, peak=rate)
        return bits_of(params, run, known[-ASKED - 1 :])

    yield from tried(loss, RATES, RATES, rng)


@section.experiment
def experiment(rng):
    tracemalloc.start()
    model = load_llama_gguf(published_file("smollm2"))
    base, settings = model.params, model.settings
    known, asked = texts(model.vocabulary)
    asked = asked[: 2 * ASKED + 1]
    yield "before", 0, {"bits": bits_of(base, on_ids(partial(llama, **settings)), asked)}
    for name in WAYS:
        gc.collect()
        tracemalloc.reset_peak()
        params, run, seconds = learned(name, base, settings, known, rng, steps=STEPS, peak=section.rates[name])
        peak = tracemalloc.get_traced_memory()[1]
        # The base is there either way; all weights are trained in a copy of it, which a program that trains nothing else would not keep.
        peak -= sum(leaf.nbytes for _, leaf in trees.leaves(base)) if name == FULL else 0
        count = trees.count_parameters(params)
        yield name, 0, {"bits": bits_of(params, run, asked), "seconds": seconds, "megabytes": peak / 1e6, "numbers": count}
        if name == LORA:
            yield "file", 0, {"megabytes": bytes_of_file(base, params) / 1e6}
            yield "model", 0, {"megabytes": sum(leaf.nbytes for _, leaf in trees.leaves(base)) / 1e6}
        del params, run


# %%
@section.report
def report(found):
    before, model = found["bits"]["before"][0], float(np.mean(found["numbers"][FULL][0]))
    rows = [["none", "0", "0 %", mean_and_spread(before), "", "", ""]]
    for name in WAYS:
        count = float(np.mean(found["numbers"][name][0]))
        rows.append([
            name, f"{count:,.0f}", f"{count / model:.2%}", mean_and_spread(found["bits"][name][0]), f"{8 * count / 1e6:,.1f}",
            f"{np.mean(found['megabytes'][name][0]):,.0f}", f"{np.mean(found['seconds'][name][0]):.1f}",
        ])  # fmt: skip
    columns = ["what is trained", "numbers", "of the model", "bits a token", "MB of Adam's moments", "MB in all, at most", "seconds an update"]
    section.table("smollm2", columns, rows)
    section.values("smollm2", {"steps": STEPS, "length": LENGTH, "rank": RANK, "prefix": PREFIX, "before": np.mean(before),
                               "memory": share_of_memory(found), "weight_share": 100 * np.mean(found["numbers"][LORA][0]) / model})  # fmt: skip
    for key, name in (("full", FULL), ("lora", LORA), ("prefixed", AHEAD)):
        section.value(f"smollm2.after.{key}", np.mean(found["bits"][name][0]))


def share_of_memory(found):
    return 100 * float(np.mean(found["megabytes"][LORA][0])) / float(np.mean(found["megabytes"][FULL][0]))


@section.claim(
    "Does LoRA gain as much as training all weights?",
    paper="Hu et al. 2021, arXiv:2106.09685, section 5: on par with full fine-tuning",
    measured=lambda found: "; ".join(f"{name} {mean_and_spread(found['bits'][name][0])}" for name in ("before", FULL, LORA)) + " bits a token",
)
def as_much(found):
    """LoRA gains at least 0.8 of the bits that all weights gain, which gain at least a quarter of a bit."""
    full, low = (found["bits"]["before"][0] - found["bits"][name][0] for name in (FULL, LORA))
    return full >= 0.25 and low >= 0.8 * full


@section.claim(
    "Is a prefix enough?",
    paper="Li and Liang 2021, arXiv:2101.00190, abstract: 0.1 % of the parameters, comparable performance with all the data",
    measured=lambda found: f"a prefix {mean_and_spread(found['bits'][AHEAD][0])}, LoRA {mean_and_spread(found['bits'][LORA][0])} bits a token",
)
def a_prefix_is_enough(found):
    """A prefix gains at least 0.8 of what LoRA gains, after as many updates."""
    ahead, low = (found["bits"]["before"][0] - found["bits"][name][0] for name in (AHEAD, LORA))
    return ahead >= 0.8 * low


@section.claim(
    "A LoRA update needs less than 40 % of the memory of one of all weights",
    paper="Hu et al. 2021, arXiv:2106.09685, section 4.2: 350 of 1,200 GB for GPT-3",
    kind="arithmetic",
    measured=lambda found: f"{share_of_memory(found):.0f} %, weights, gradients, moments and activations together",
)
def less_memory(found):
    """At most 40 % of the most that is in memory while all weights learn, activations included."""
    return found["megabytes"][LORA][0] <= 0.4 * found["megabytes"][FULL][0]


@section.claim(
    "The adapter's file is less than 1 % of the model",
    paper="Hu et al. 2021, arXiv:2106.09685, section 4.2: a checkpoint of 35 MB for a model of 350 GB", kind="arithmetic",
    measured=lambda found: f"{1000 * np.mean(found['megabytes']['file'][0]):,.0f} kB of {np.mean(found['megabytes']['model'][0]):,.0f} MB",
)
def small_file(found):
    """At most 0.01 of the bytes of the model's weights in float32."""
    return found["megabytes"]["file"][0] <= 0.01 * found["megabytes"]["model"][0]


# %%
@section.figure("smollm2", size=(6, 2.6))
def gained(axes, found):
    for i, name in enumerate(WAYS):
        axes.plot([i] * len(found["bits"][name][0]), found["bits"][name][0], "o")
    level(axes, float(np.mean(found["bits"]["before"][0])), "before")
    axes.set(xticks=range(len(WAYS)), xticklabels=list(WAYS), ylabel="bits a token", xlim=(-0.5, len(WAYS) - 0.5))


if __name__ == "__main__":
    section.main()
