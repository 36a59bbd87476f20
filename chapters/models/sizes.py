"""Do larger models learn more from the same text, and can one foretell how much?

Radford et al. 2019, figure 1 and section 3, and Kaplan et al. 2020, arXiv:2001.08361, section 3: the loss falls steadily with the number
of parameters, and along a straight line where both are logarithms. One language model at five widths, for as many updates on the same
text, each with a learning rate of its own. A line through all but the largest says what the largest should need.
"""

# %%
import numpy as np

from minitransformers import LanguageModelConfig, init_language_model, trees
from minitransformers.reporting import Section, counted_pairs, fitted_exponent, level, lines, mean_and_spread, processor_seconds
from minitransformers.training.fit import fit
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas
from minitransformers.training.workbench import workbench_task

section = Section(__file__, __doc__, kind="trained")
LENGTH, WIDTHS, STEPS, BATCH, DELETED = 64, (8, 16, 32, 64, 96), 300, 8, "width 64, its own position alone"
SELF = {"mixer": "sliding_window_attention", "options": {"mixer": {"window": 1}}}
MODELS = {**{f"width {width}": (width, {}) for width in WIDTHS}, DELETED: (64, SELF)}
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
        without = trees.count_parameters(params._replace(embedding=None))
        yield name, "all", {"bits": measured, "seconds": spent(), "parameters": trees.count_parameters(params), "without": without}


# %%
def of(found, name, measure="bits"):
    return found[measure][name]["all"]


def along_widths(found, measure="bits"):
    """From the smallest to the largest; means over seeds where there are several."""
    return np.array([np.mean(of(found, f"width {width}", measure)) for width in WIDTHS])


def line(found):
    """The exponent of the power law through all but the largest, and what it says at each size, parameters counted without embeddings."""
    sizes, needed = along_widths(found, "without"), along_widths(found)
    power = fitted_exponent(sizes[:-1], needed[:-1])
    at = np.log(needed[:-1]).mean() + power * (np.log(sizes) - np.log(sizes[:-1]).mean())
    return power, np.exp(at)


@section.claim(
    "Does every doubling of the width save a tenth of a bit?",
    paper="Radford et al. 2019, figure 1; Kaplan et al. 2020, arXiv:2001.08361, section 3",
    measured=lambda found: ", ".join(f"{name} {mean_and_spread(of(found, name))}" for name in MODELS) + " bits a character",
)
def larger(found):
    """After the same updates each doubling of the width, from 8 to 64, saves at least 0.1 bits a character."""
    doubled = along_widths(found)[:-1]
    return all(doubled[1:] <= doubled[:-1] - 0.1)


@section.claim(
    "Does a line through the smaller models foretell the largest?",
    paper="Kaplan et al. 2020, arXiv:2001.08361, section 3.2 and figure 6: a power law of the parameters, embeddings not counted",
    measured=lambda found: f"exponent {line(found)[0]:.3f}; foretold {line(found)[1][-1]:.2f}, "
    f"measured {mean_and_spread(of(found, f'width {WIDTHS[-1]}'))} bits a character",
)
def foretold(found):
    """A power law that is fitted to widths 8 to 64 comes within 0.05 bits a character of width 96."""
    return abs(line(found)[1][-1] - along_widths(found)[-1]) <= 0.05


@section.report
def report(found):
    rows, foretelling = [], line(found)[1]
    for i, name in enumerate(MODELS):
        size, seconds = (np.mean(of(found, name, measure)) for measure in ("parameters", "seconds"))
        on_line = None if name == DELETED else float(f"{foretelling[i]:.2f}")
        rows.append([name, mean_and_spread(of(found, name)), on_line, int(size), float(f"{seconds:.1f}"), f"{section.rates[name]:g}"])
    rows.append(["counted pairs", f"{PAIRS:.2f}", None, None, None, ""])
    section.table("sizes", ["model", "bits a character", "on the line", "parameters", "processor seconds", "rate"], rows)
    section.values("sizes", {f"width_{width}": np.mean(of(found, f"width {width}")) for width in WIDTHS})
    section.values("sizes", {"steps": STEPS, "exponent": line(found)[0], "foretold": foretelling[-1]})
    for measure in ("seconds", "parameters"):
        first, *_, last = along_widths(found, measure)
        section.value(f"sizes.growth.{measure}", last / first)


@section.figure("sizes", size=(5.5, 3.2))
def picture(ax, found):
    sizes = along_widths(found, "without")
    measured = {size: of(found, f"width {width}") for size, width in zip(sizes, WIDTHS, strict=True)}
    lines(ax, {"2 layers": measured}, xlabel="parameters without embeddings", ylabel="bits a character", xscale="log", yscale="log")
    ax.plot(sizes, line(found)[1], "--", color="#808080", label="a line through all but the largest")
    ax.set_yticks([2.5, 3, 3.5], ["2.5", "3", "3.5"])
    ax.minorticks_off()
    ax.legend(loc="lower left")
    level(ax, PAIRS, "counted pairs")


if __name__ == "__main__":
    section.main()
