"""Does a language model learn as well with another weighting in the softmax's place?

Ramapuram et al. 2024, arXiv:2409.04431 (sigmoid), Wortsman et al. 2023, arXiv:2309.08586 (ReLU), Nakanishi 2025, arXiv:2501.19399
(SSMax), Saratchandran et al. 2024, arXiv:2410.18613 (polynomials): about as well as with the softmax. Equal models of two layers on Python's
language reference, from the same starting weights on the same batches, each weighting at a learning rate of its own. Beside them a
model that reads its own position alone, and counted pairs.
"""

# %%
import numpy as np

import minitransformers as mt
from minitransformers.reporting import Section, bits, counted_pairs, lines, mean_and_spread, processor_seconds
from minitransformers.training.fit import fit
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas
from minitransformers.training.workbench import workbench_task

section = Section(__file__, __doc__, kind="trained")
CONTEXT, WIDTH, STEPS, EVERY = 64, 32, 250, 50
SOFTMAX, SSMAX, DELETED = "softmax", "SSMax", "its own position alone"
CORES = {
    SOFTMAX: None,
    SSMAX: "scalable_softmax_attention",                     # with a scale for each head that is trained along
    "softmax off by one": "softmax_off_by_one_attention",
    "sigmoid": "sigmoid_attention",
    "ReLU": "relu_attention",
    "sparsemax": "sparsemax_attention",
    "cube / √n": "polynomial_attention",
    "Gaussian kernel": "gaussian_kernel_attention",          # weighs distances, not scores
}
KEYS = ("softmax", "ssmax", "off_by_one", "sigmoid", "relu", "sparsemax", "cube", "gaussian", "alone")
corpus = Corpus.load(context=CONTEXT)


# %%
def configuration(name):
    if name == DELETED:
        mixer = {"mixer": "sliding_window_attention", "options": {"mixer": {"window": 1}}}
    else:
        mixer = {"options": {"mixer": {"core": CORES[name]}}} if CORES[name] else {}
    return mt.LanguageModelConfig(corpus.vocabulary.size, context=CONTEXT, d_model=WIDTH, num_layers=2, num_heads=4, position="rope", **mixer)


def trained(name, rng, *, rate, watch=None):
    """The task, and the parameters."""
    config = configuration(name)
    task = workbench_task(corpus, config, batch_size=8, eval_windows=16 if section.quick else 128)
    steps = 5 if section.quick else STEPS
    return task, fit(mt.init_language_model(rng, config, std=0.1), task, steps=steps, peak=rate, rng=rng, floor=0.05, watch=watch)


def bits_of(task, params):
    """Bits a character on windows of the validation part, always the same."""
    return task.evaluate(params)["bits per character"]


@section.tuning
def tuning(rng):
    hold_blas()
    start = rng.integers(2**32)
    for name in (*CORES, DELETED):
        for rate in (1e-2,) if section.quick else (5e-3, 1e-2, 2e-2, 4e-2):
            yield name, rate, {"loss": bits_of(*trained(name, np.random.default_rng(start), rate=rate))}


@section.experiment
def experiment(rng):
    hold_blas()
    start = rng.integers(2**32)
    for name in (*CORES, DELETED):
        losses = []
        with processor_seconds() as spent:
            task, params = trained(
                name, np.random.default_rng(start), rate=section.rates[name], watch=lambda step, loss, _, losses=losses: losses.append(bits(loss))
            )
        yield name, "end", {"bits": bits_of(task, params), "parameters": mt.trees.count_parameters(params), "seconds": spent()}
        for first in range(0, len(losses), EVERY):
            yield name, first + EVERY, {"training": np.mean(losses[first : first + EVERY])}


# %%
def of(found, name):
    return found["bits"][name]["end"]


def in_training(found, name):
    """Bits a character of the batches, as a mean over all of training."""
    return sum(found["training"][name].values()) / len(found["training"][name])


def told(found, *names):
    return ", ".join(f"{name} {mean_and_spread(of(found, name))}" for name in names)


@section.claim(
    "Every weighting learns to attend",
    paper="Ramapuram et al. 2024, Wortsman et al. 2023, Nakanishi 2025, Saratchandran et al. 2024: each weighting trains",
    measured=lambda found: f"{told(found, *CORES, DELETED)}; counted pairs {counted_pairs(corpus):.2f}",
)
def attends(found):
    """Each needs at least 0.2 bits a character less than a model that reads its own position alone, and less than counted pairs."""
    worst = max(of(found, name) for name in CORES)
    return worst <= of(found, DELETED) - 0.2 and worst < counted_pairs(corpus)


@section.claim(
    "Does every weighting learn as well as the softmax?",
    paper="Ramapuram et al. 2024, Wortsman et al. 2023, Nakanishi 2025, Saratchandran et al. 2024: about as well as the softmax",
    measured=lambda found: f"more than 0.1 bits behind the softmax: {', '.join(behind(found)) or 'none'}",
)
def as_well(found):
    """Same start, batches and updates, each at its own rate: all within 0.1 bits a character of the softmax."""
    return max(of(found, name) for name in CORES) <= of(found, SOFTMAX) + 0.1


@section.claim(
    "SSMax learns as well in pre-training",
    paper="Nakanishi 2025, arXiv:2501.19399, abstract: faster loss reduction during pre-training",
    measured=lambda found: f"{told(found, SSMAX, SOFTMAX)}; on average over training {training(found)}",
)
def ssmax_as_well(found):
    """At most 0.03 bits a character more than the softmax, in training on average and on the validation part at the end."""
    return of(found, SSMAX) <= of(found, SOFTMAX) + 0.03 and in_training(found, SSMAX) <= in_training(found, SOFTMAX) + 0.03


@section.claim(
    "Does SSMax learn faster in pre-training?",
    paper="Nakanishi 2025, arXiv:2501.19399, abstract: faster loss reduction during pre-training",
    measured=lambda found: f"bits a character, on average over training: {training(found)}",
)
def ssmax_faster(found):
    """At least 0.03 bits a character less than the softmax, on average over training."""
    return in_training(found, SSMAX) <= in_training(found, SOFTMAX) - 0.03


def training(found):
    return ", ".join(f"{name} {mean_and_spread(in_training(found, name), '.3f')}" for name in (SSMAX, SOFTMAX))


def behind(found):
    return [name for name in CORES if of(found, name).mean() > of(found, SOFTMAX).mean() + 0.1]


@section.report
def report(found):
    rows = []
    for name in sorted((*CORES, DELETED), key=lambda name: of(found, name).mean()):
        size, seconds = (found[measure][name]["end"].mean() for measure in ("parameters", "seconds"))
        more = (of(found, name) - of(found, SOFTMAX)).mean()
        rows.append([name, mean_and_spread(of(found, name)), f"{more:+.2f}", section.rates[name], int(size), float(f"{seconds:.1f}")])
    rows.append(["counted pairs of characters", f"{counted_pairs(corpus):.2f}", *[None] * 4])
    section.table("weightings", ["weighting", "bits a character", "more than the softmax", "rate", "parameters", "processor seconds"], rows)
    for name, key in zip((*CORES, DELETED), KEYS, strict=True):
        section.value(f"weightings.bits.{key}", of(found, name).mean())
    section.values("weightings", {
        "steps": STEPS, "behind": ", ".join(behind(found)) or "none", "spread_of_seeds": np.ptp(of(found, SOFTMAX)), "pairs": counted_pairs(corpus),
        "training.softmax": in_training(found, SOFTMAX).mean(), "training.ssmax": in_training(found, SSMAX).mean(),
    })  # fmt: skip


@section.figure("weightings", size=(6.5, 3.4))
def picture(ax, found):
    lines(ax, found["training"], xlabel=f"update (means over {EVERY})", ylabel="bits a character, in training")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


if __name__ == "__main__":
    section.main()
