"""Deep and thin or shallow and wide: which learns more with as many parameters?

Ben Allal et al. 2025, arXiv:2502.02737 (SmolLM2): a model of 135 million parameters has 30 layers of width 576. Liu et al. 2024,
arXiv:2402.14905 (MobileLLM), section 2.2.2: below a billion parameters deep and thin is better than shallow and wide. Four models of
one size, from one layer to eight: feed-forward networks of about four times the width make up for the rest. Weights start at 1 over
the root of the width, as SmolLM2's do, and each model has a learning rate of its own.
"""

# %%
from functools import partial

import numpy as np

from minitransformers import LanguageModelConfig, init_language_model, trees
from minitransformers.reporting import Section, counted_pairs, level, lines, mean_and_spread, processor_seconds, ticks_at
from minitransformers.reporting.networks import hidden_for
from minitransformers.training.fit import fit
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas
from minitransformers.training.workbench import workbench_task

section = Section(__file__, __doc__, kind="trained")
LENGTH, BATCH, STEPS, PARAMETERS = 64, 8, 300, 106_000
SHAPES = {1: 88, 2: 64, 4: 48, 8: 32}                        # layers: width
DELETED = "2 x 64, its own position alone"
SELF = {"mixer": "sliding_window_attention", "options": {"mixer": {"window": 1}}}
MODELS = {**{f"{layers} x {width}": (layers, width, {}) for layers, width in SHAPES.items()}, DELETED: (2, 64, SELF)}
ONE, TWO, FOUR, EIGHT = list(MODELS)[:4]
corpus = Corpus.load(context=LENGTH)
PAIRS, apart = counted_pairs(corpus), Corpus.from_text(corpus.train_text, context=LENGTH)  # rates are chosen without the validation part


# %%
def config_of(name, vocabulary, hidden):
    layers, width, parts = MODELS[name]
    options = {**parts.get("options", {}), "channel": {"d_hidden": hidden}}
    settings = {"position": "rope", "norm": "rms_norm", **parts, "options": options}
    return LanguageModelConfig(vocabulary.size, context=LENGTH, d_model=width, num_layers=layers, num_heads=4, **settings)


def sized(name, vocabulary):
    """The configuration whose feed-forward networks make it as large as the others, to within half a feature of each."""
    of_width = partial(config_of, name, vocabulary)
    return of_width(hidden_for(PARAMETERS, lambda hidden: init_language_model(np.random.default_rng(0), of_width(hidden))))


def trained(name, rng, *, text, rate, steps):
    """Its parameters, and bits a character on the whole validation part of the text."""
    config = sized(name, text.vocabulary)
    task = workbench_task(text, config, batch_size=BATCH, eval_windows=16 if section.quick else None)
    params, steps = init_language_model(rng, config, std=config.d_model**-0.5), 2 if section.quick else steps
    params = fit(params, task, steps=steps, peak=rate, rng=rng, warmup=0.1, floor=0.05)
    return params, task.evaluate(params)["bits per character"]


@section.tuning
def tuning(rng):
    hold_blas()
    for name in MODELS:
        for rate in (1e-2,) if section.quick else (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2):
            own = np.random.default_rng(rng.integers(2**32))
            yield name, rate, {"loss": trained(name, own, text=apart, rate=rate, steps=STEPS // 2)[1]}


@section.experiment
def experiment(rng):
    hold_blas()
    for name in MODELS:
        with processor_seconds() as spent:
            params, measured = trained(name, rng, text=corpus, rate=section.rates[name], steps=STEPS)
        yield name, "all", {"bits": measured, "seconds": spent(), "parameters": trees.count_parameters(params)}


# %%
def of(found, name, measure="bits"):
    return found[measure][name]["all"]


def told(found, measure="bits", form=".2f"):
    return ", ".join(f"{name} {mean_and_spread(of(found, name, measure), form)}" for name in (ONE, TWO, FOUR, EIGHT))


@section.claim(
    "Is deep and thin better than shallow and wide?",
    paper="Liu et al. 2024, arXiv:2402.14905, section 2.2.2: deeper and thinner is better at 125 and 350 million parameters",
    measured=lambda found: told(found) + " bits a character",
)
def deeper(found):
    """Eight layers need at least 0.05 bits a character fewer than two, after the same updates."""
    return of(found, EIGHT) <= of(found, TWO) - 0.05


@section.claim(
    "One layer is not enough",
    paper="Olsson et al. 2022, arXiv:2209.11895: what copies from before takes two layers of attention",
    measured=lambda found: told(found) + " bits a character",
)
def one(found):
    """A single layer, the widest, needs at least 0.1 bits more than two, after the same updates."""
    return of(found, ONE) >= of(found, TWO) + 0.1


@section.claim(
    "Depth costs time, with as many parameters",
    paper="no paper: eight layers make four times as many calls as two, and eight times as many scores as one",
    kind="timed",
    measured=lambda found: told(found, "seconds", ".0f") + " seconds",
)
def slower(found):
    """Eight layers take at least 1.5 times the processor seconds of two."""
    return of(found, EIGHT, "seconds") >= 1.5 * of(found, TWO, "seconds")


@section.report
def report(found):
    rows = []
    for name in MODELS:
        size, seconds = (np.mean(of(found, name, measure)) for measure in ("parameters", "seconds"))
        hidden = sized(name, corpus.vocabulary).options["channel"]["d_hidden"]
        rows.append([name, hidden, mean_and_spread(of(found, name)), int(size), float(f"{seconds:.1f}"), f"{section.rates[name]:g}"])
    rows.append(["counted pairs", None, f"{PAIRS:.2f}", None, None, ""])
    columns = ["layers x width", "feed-forward width", "bits a character", "parameters", "processor seconds", "rate"]
    section.table("depth_and_width", columns, rows)
    for layers, name in zip(SHAPES, (ONE, TWO, FOUR, EIGHT), strict=True):
        section.values(f"depth.layers_{layers}", {"bits": np.mean(of(found, name)), "seconds": np.mean(of(found, name, "seconds"))})
    sizes = [np.mean(of(found, name, "parameters")) for name in MODELS]
    section.values("depth", {"steps": STEPS, "parameters": PARAMETERS, "apart": 100 * (max(sizes) / min(sizes) - 1)})


@section.figure("depth_and_width", size=(7.6, 3), ncols=2)
def picture(axes, found):
    for ax, measure, label in zip(axes, ("bits", "seconds"), ("bits a character", "processor seconds"), strict=True):
        points = {layers: of(found, name, measure) for layers, name in zip(SHAPES, (ONE, TWO, FOUR, EIGHT), strict=True)}
        lines(ax, {"": points}, xlabel="layers, all models of one size", ylabel=label, xscale="log")
        ticks_at(ax, list(SHAPES))
    axes[1].set_ylim(0)
    level(axes[0], PAIRS, "counted pairs")


if __name__ == "__main__":
    section.main()
