"""What does a window cost on real text, in one layer and in two?

Jiang et al. 2023, arXiv:2310.06825, section 2: what a window cuts off comes back through the depth. Language models read 64 characters
of Python's language reference through windows of 1, 4, 16 and all positions, each at a learning rate of its own. A window of 1 is
attention deleted: a position reads itself. The models of one depth are equally large.
"""

# %%
import numpy as np

from minitransformers import LanguageModelConfig, init_language_model, trees
from minitransformers.reporting import Section, counted_pairs, mean_and_spread, processor_seconds
from minitransformers.training.fit import fit
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas
from minitransformers.training.workbench import workbench_task

section = Section(__file__, __doc__, kind="trained")
CONTEXT, WIDTH, STEPS = 64, 32, 250
MODELS = {f"window of {w}, {k} layer{'s' * (k > 1)}": (w, k) for k, windows in ((1, (4, 64)), (2, (1, 4, 16, 64))) for w in windows}
NAMES = {case: name for name, case in MODELS.items()}
corpus = Corpus.load(context=CONTEXT)


# %%
def trained(name, rng, *, rate):
    """Bits a character on windows of the validation part, always the same, and the parameters."""
    window, layers = MODELS[name]
    config = LanguageModelConfig(
        corpus.vocabulary.size, context=CONTEXT, d_model=WIDTH, num_layers=layers, num_heads=4, position="rope",
        mixer="sliding_window_attention", options={"mixer": {"window": window}},
    )  # fmt: skip
    task = workbench_task(corpus, config, batch_size=8, eval_windows=16 if section.quick else 128)
    fresh = init_language_model(rng, config, std=0.1)
    params = fit(fresh, task, steps=5 if section.quick else STEPS, peak=rate, rng=rng, floor=0.05)
    return task.evaluate(params)["bits per character"], params


@section.tuning
def tuning(rng):
    hold_blas()
    start = rng.integers(2**32)
    for name in MODELS:
        for rate in (1e-2,) if section.quick else (5e-3, 1e-2, 2e-2, 4e-2):
            yield name, rate, {"loss": trained(name, np.random.default_rng(start), rate=rate)[0]}


@section.experiment
def experiment(rng):
    hold_blas()
    start = rng.integers(2**32)                              # all models read the same batches
    for name in MODELS:
        with processor_seconds() as spent:
            bits, params = trained(name, np.random.default_rng(start), rate=section.rates[name])
        yield name, "end", {"bits": bits, "parameters": trees.count_parameters(params), "seconds": spent()}


# %%
def of(found, window, layers):
    return found["bits"][NAMES[window, layers]]["end"]


def told(found, *cases):
    return ", ".join(f"{NAMES[case]} {mean_and_spread(of(found, *case))}" for case in cases)


@section.claim(
    "A window of a quarter of the context loses little",
    paper="Jiang et al. 2023, arXiv:2310.06825, section 2: depth restores what a window cuts off",
    measured=lambda found: f"bits a character: {told(found, (16, 2), (64, 2), (1, 2))}",
)
def little(found):
    """Two layers, a window of 16 of 64: at most 0.1 bits a character more than all; a window of 1, which reads nothing, at least 0.2 more."""
    return of(found, 16, 2) <= of(found, 64, 2) + 0.1 and of(found, 1, 2) >= of(found, 64, 2) + 0.2


@section.claim(
    "Does one layer of windows of 4 lack something that a second layer gives back?",
    paper="Jiang et al. 2023, arXiv:2310.06825, section 2: depth restores what a window cuts off",
    measured=lambda found: f"bits a character: {told(found, (4, 1), (64, 1), (4, 2), (64, 2))}",
)
def second_layer(found):
    """In one layer the window of 4 needs at least 0.1 bits a character more than all, in two layers at most half as much more."""
    one, two = (of(found, 4, layers) - of(found, 64, layers) for layers in (1, 2))
    return one >= 0.1 and two <= one / 2


@section.report
def report(found):
    rows = []
    for name, (window, layers) in MODELS.items():
        size, seconds = (found[measure][name]["end"].mean() for measure in ("parameters", "seconds"))
        reach = min(CONTEXT, layers * (window - 1) + 1)
        rows.append([layers, "all" if window == CONTEXT else window, reach, mean_and_spread(of(found, window, layers)), section.rates[name],
                     int(size), float(f"{seconds:.1f}")])  # fmt: skip
        if layers == 2:
            section.value(f"windows.bits.{'all' if window == CONTEXT else window}", of(found, window, layers).mean())
        else:
            section.value(f"windows.one_layer.{'all' if window == CONTEXT else window}", of(found, window, layers).mean())
    rows.append(["counted pairs", *[None] * 2, f"{counted_pairs(corpus):.2f}", *[None] * 3])
    section.table("windows", ["layers", "window", "reach", "bits a character", "rate", "parameters", "processor seconds"], rows)
    section.values("windows", {"steps": STEPS, "context": CONTEXT, "pairs": counted_pairs(corpus)})


if __name__ == "__main__":
    section.main()
