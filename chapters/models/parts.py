"""From GPT-2's parts to Llama's, one at a time: which of them learns sooner?

Touvron et al. 2023, arXiv:2302.13971, section 2.2: RMSNorm, SwiGLU and RoPE in the place of LayerNorm, GELU and a table of positions;
Touvron et al. 2023, arXiv:2307.09288, section 2.2: heads that share keys and values. A small language model takes one more of them at a
time, RoPE first. Feed-forward networks are as wide as makes all models equally large, and each has a learning rate of its own. All
start at 0.1, and two of them at GPT-2's 0.02 as well: a gate multiplies two maps, and the product of two small numbers is smaller still.
"""

# %%
from functools import partial

import numpy as np

from minitransformers import LanguageModelConfig, init_language_model, trees
from minitransformers.reporting import Section, counted_pairs, mean_and_spread, processor_seconds
from minitransformers.reporting.networks import hidden_for
from minitransformers.training.fit import fit
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas
from minitransformers.training.workbench import workbench_task

section = Section(__file__, __doc__, kind="trained")
LENGTH, WIDTH, STEPS, BATCH, PARAMETERS = 64, 48, 300, 8, 66_000
GPT2, ROPE, NORM, GATED, LLAMA = "GPT-2's parts", "RoPE", "RoPE, RMSNorm", "RoPE, RMSNorm, SwiGLU", "with 2 key heads for 4: Llama's parts"
NORM_SMALL, GATED_SMALL = f"{NORM}, start 0.02", f"{GATED}, start 0.02"
NONE, DELETED = "GPT-2's parts without positions", "its own position alone"
TURN = {"position": "rope"}
TURN_NORM = {**TURN, "norm": "rms_norm"}
TURN_NORM_GATE = {**TURN_NORM, "channel": "gated_feed_forward"}
PARTS = {
    GPT2: {}, ROPE: TURN, NORM: TURN_NORM, GATED: TURN_NORM_GATE,
    LLAMA: {**TURN_NORM_GATE, "mixer": "grouped_query_attention", "options": {"mixer": {"num_kv_heads": 2}}},
    NORM_SMALL: TURN_NORM, GATED_SMALL: TURN_NORM_GATE, NONE: {"position": "none"},
    DELETED: {"mixer": "sliding_window_attention", "options": {"mixer": {"window": 1}}},
}  # fmt: skip
corpus = Corpus.load(context=LENGTH)
PAIRS, apart = counted_pairs(corpus), Corpus.from_text(corpus.train_text, context=LENGTH)  # rates are chosen without the validation part


# %%
def config_of(name, vocabulary, hidden):
    parts = PARTS[name]
    options = {**parts.get("options", {}), "channel": {"d_hidden": hidden}}
    return LanguageModelConfig(vocabulary.size, context=LENGTH, d_model=WIDTH, num_layers=2, num_heads=4, **{**parts, "options": options})


def sized(name, vocabulary):
    """The configuration whose feed-forward networks make up for what other parts have more or fewer."""
    of_width = partial(config_of, name, vocabulary)
    return of_width(hidden_for(PARAMETERS, lambda hidden: init_language_model(np.random.default_rng(0), of_width(hidden))))


def trained(name, rng, *, text, rate, steps):
    """Its parameters, and bits a character on the whole validation part of the text."""
    config = sized(name, text.vocabulary)
    params = init_language_model(rng, config, std=0.02 if name in (NORM_SMALL, GATED_SMALL) else 0.1)
    task = workbench_task(text, config, batch_size=BATCH, eval_windows=16 if section.quick else None)
    params = fit(params, task, steps=3 if section.quick else steps, peak=rate, rng=rng, warmup=0.1, floor=0.05)
    return params, task.evaluate(params)["bits per character"]


@section.tuning
def tuning(rng):
    hold_blas()
    for name in PARTS:
        for rate in (1e-2,) if section.quick else (1.25e-3, 2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2):
            own = np.random.default_rng(rng.integers(2**32))
            yield name, rate, {"loss": trained(name, own, text=apart, rate=rate, steps=STEPS // 2)[1]}


@section.experiment
def experiment(rng):
    hold_blas()
    for name in PARTS:
        with processor_seconds() as spent:
            params, measured = trained(name, rng, text=corpus, rate=section.rates[name], steps=STEPS)
        yield name, "all", {"bits": measured, "seconds": spent(), "parameters": trees.count_parameters(params)}


# %%
def of(found, name, measure="bits"):
    return found[measure][name]["all"]


def told(found, *names):
    return ", ".join(f"{name} {mean_and_spread(of(found, name))}" for name in names) + " bits a character"


@section.claim(
    "Llama's parts learn sooner than GPT-2's",
    paper="Touvron et al. 2023, arXiv:2302.13971, section 2.2: RMSNorm for stability, SwiGLU for performance, RoPE",
    measured=lambda found: told(found, GPT2, LLAMA),
)
def sooner(found):
    """Equally large, from the same start: at least 0.1 bits a character fewer after the same updates."""
    return of(found, LLAMA) <= of(found, GPT2) - 0.1


@section.claim(
    "RoPE alone makes most of the difference",
    paper="Su et al. 2021, arXiv:2104.09864, section 4.2: a language model with rotary positions converges faster",
    measured=lambda found: told(found, GPT2, ROPE, NORM, GATED, LLAMA),
)
def rope_alone(found):
    """RoPE alone saves at least 0.1 bits, more than half of what all four save, and more than any part that comes after it."""
    gpt2, rope, *later = (of(found, name) for name in (GPT2, ROPE, NORM, GATED, LLAMA))
    steps = [before - after for before, after in zip([rope, *later], later, strict=False)]
    return gpt2 - rope >= 0.1 and gpt2 - rope > (gpt2 - later[-1]) / 2 and gpt2 - rope > max(steps)


@section.claim(
    "Does a gated network need the wider start more than a plain one?",
    paper="the product of two maps that start small starts as the square of small (see the gated feed-forward page)",
    measured=lambda found: told(found, NORM_SMALL, NORM, GATED_SMALL, GATED),
)
def wider(found):
    """SwiGLU saves at least 0.1 bits when it starts at 0.1 and not at 0.02, and at least 0.1 more than GELU saves."""
    gated, plain = of(found, GATED_SMALL) - of(found, GATED), of(found, NORM_SMALL) - of(found, NORM)
    return gated >= 0.1 and gated >= plain + 0.1


@section.report
def report(found):
    rows = []
    for name in PARTS:
        size, seconds = (np.mean(of(found, name, measure)) for measure in ("parameters", "seconds"))
        rows.append([name, mean_and_spread(of(found, name)), int(size), float(f"{seconds:.1f}"), f"{section.rates[name]:g}"])
    rows.append(["counted pairs", f"{PAIRS:.2f}", None, None, ""])
    section.table("parts", ["parts", "bits a character", "parameters", "processor seconds", "rate"], rows)
    short = {
        "gpt2": GPT2, "rope": ROPE, "rms_norm": NORM, "swiglu": GATED, "llama": LLAMA, "rms_norm_small_start": NORM_SMALL,
        "swiglu_small_start": GATED_SMALL, "none": NONE, "deleted": DELETED,
    }  # fmt: skip
    section.values("parts", {key: np.mean(of(found, name)) for key, name in short.items()})
    sizes = [np.mean(of(found, name, "parameters")) for name in PARTS]
    section.values("parts", {"steps": STEPS, "width": WIDTH, "pairs": PAIRS, "apart": 100 * (max(sizes) / min(sizes) - 1)})


@section.figure("parts", size=(6, 3.6))
def picture(ax, found):
    names = list(PARTS)[::-1]
    for row, name in enumerate(names):
        ax.plot(np.atleast_1d(of(found, name)), [row] * np.size(of(found, name)), "o", alpha=0.8)
    ax.axvline(PAIRS, linestyle=":", color="#808080")
    ax.set(yticks=range(len(names)), xlabel="bits a character; dotted: counted pairs")
    ax.set_yticklabels(names)


if __name__ == "__main__":
    section.main()
