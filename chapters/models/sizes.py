"""Do larger models learn more from the same text?

Radford et al. 2019, figure 1 and section 3, and Kaplan et al. 2020, arXiv:2001.08361, section 3: the loss falls steadily with the number
of parameters. One language model at three widths, for as many updates on the same text, each with a learning rate of its own.
"""

# %%
import numpy as np

from minitransformers import LanguageModelConfig, init_language_model, trees
from minitransformers.reporting import Section, counted_pairs, level, lines, mean_and_spread, processor_seconds
from minitransformers.training.fit import fit
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas
from minitransformers.training.workbench import workbench_task

section = Section(__file__, __doc__, kind="trained")
LENGTH, WIDTHS, STEPS, BATCH, DELETED = 64, (16, 32, 64), 300, 8, "its own position alone"
SELF = {"mixer": "sliding_window_attention", "options": {"mixer": {"window": 1}}}
MODELS = {**{f"width {width}": (width, {}) for width in WIDTHS}, DELETED: (WIDTHS[-1], SELF)}
corpus = Corpus.load(context=LENGTH)
PAIRS, apart = counted_pairs(corpus), Corpus.from_text(corpus.train_text, context=LENGTH)  # rates are chosen without the validation part


# %%
def trained(name, rng, *, text, rate, steps):
    """Its parameters, and bits a character on the whole validation part of the text."""
    width, parts = MODELS[name]
    config = LanguageModelConfig(
        text.vocabulary.size, context=LENGTH, d_model=width, num_layers=2, num_heads=4, position="rope", norm="rms_norm", **parts
    )  # fmt: skip
    task = workbench_task(text, config, batch_size=BATCH, eval_windows=16 if section.quick else None)
    params, steps = init_language_model(rng, config, std=0.1), 3 if section.quick else steps
    params = fit(params, task, steps=steps, peak=rate, rng=rng, warmup=0.1, floor=0.05)
    return params, task.evaluate(params)["bits per character"]


@section.tuning
def tuning(rng):
    hold_blas()
    for name in MODELS:
        for rate in (1e-2,) if section.quick else (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2, 8e-2):
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


@section.claim(
    "Does every doubling of the width save a tenth of a bit?",
    paper="Radford et al. 2019, figure 1; Kaplan et al. 2020, arXiv:2001.08361, section 3",
    measured=lambda found: ", ".join(f"{name} {mean_and_spread(of(found, name))}" for name in MODELS) + " bits a character",
)
def larger(found):
    """After the same updates each doubling of the width saves at least 0.1 bits a character."""
    narrow, middle, wide = (of(found, f"width {width}") for width in WIDTHS)
    return middle <= narrow - 0.1 and wide <= middle - 0.1


@section.report
def report(found):
    rows = []
    for name in MODELS:
        size, seconds = (np.mean(of(found, name, measure)) for measure in ("parameters", "seconds"))
        rows.append([name, mean_and_spread(of(found, name)), int(size), float(f"{seconds:.1f}"), f"{section.rates[name]:g}"])
    rows.append(["counted pairs", f"{PAIRS:.2f}", None, None, ""])
    section.table("sizes", ["model", "bits a character", "parameters", "processor seconds", "rate"], rows)
    section.values("sizes", {f"width_{width}": np.mean(of(found, f"width {width}")) for width in WIDTHS})
    section.value("sizes.steps", STEPS)


@section.figure("sizes", size=(5, 3))
def picture(ax, found):
    sizes = {int(np.mean(of(found, f"width {width}", "parameters"))): of(found, f"width {width}") for width in WIDTHS}
    lines(ax, {"2 layers": sizes}, xlabel="parameters", ylabel="bits a character", xscale="log")
    level(ax, PAIRS, "counted pairs")


if __name__ == "__main__":
    section.main()
