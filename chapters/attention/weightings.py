"""Does a language model learn as well with another weighting in the softmax's place?

Ramapuram et al. 2024, arXiv:2409.04431 (sigmoid), Wortsman et al. 2023, arXiv:2309.08586 (ReLU), Nakanishi 2025, arXiv:2501.19399
(SSMax), Saratchandran et al. 2024, arXiv:2410.18613 (polynomials): about as well as with the softmax. Equal models of two layers on Python's
language reference, from the same starting weights on the same batches, each weighting at a learning rate of its own. Beside them a
model that reads its own position alone, and counted pairs.
"""

# %%
import numpy as np

import minitransformers as mt
from minitransformers.reporting import Section, bits, counted_pairs, lines, listed, mean_and_spread, processor_seconds, tried
from minitransformers.training.fit import fit
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas
from minitransformers.training.workbench import workbench_task

section = Section(__file__, __doc__, kind="trained")
CONTEXT, WIDTH, STEPS, EVERY = 64, 32, 250, 50
SOFTMAX, SSMAX, DELETED = "softmax", "SSMax", "its own position alone"
CORES = {                                                    # and a key of the record for each
    SOFTMAX: (None, "softmax"),
    SSMAX: ("scalable_softmax_attention", "ssmax"),          # with a scale for each head that is trained along
    "softmax off by one": ("softmax_off_by_one_attention", "off_by_one"),
    "sigmoid": ("sigmoid_attention", "sigmoid"),
    "ReLU": ("relu_attention", "relu"),
    "sparsemax": ("sparsemax_attention", "sparsemax"),
    "cube / √n": ("polynomial_attention", "cube"),
    "Gaussian kernel": ("gaussian_kernel_attention", "gaussian"),  # weighs distances, not scores
}
corpus = Corpus.load(context=CONTEXT)


# %%
def configuration(name):
    if name == DELETED:
        mixer = {"mixer": "sliding_window_attention", "options": {"mixer": {"window": 1}}}
    else:
        mixer = {"options": {"mixer": {"core": CORES[name][0]}}} if name != SOFTMAX else {}
    return mt.LanguageModelConfig(corpus.vocabulary.size, context=CONTEXT, d_model=WIDTH, num_layers=2, num_heads=4, position="rope", **mixer)


def trained(name, rng, *, rate, watch=None):
    """The parameters, and bits a character on windows of the validation part, always the same."""
    config = configuration(name)
    task = workbench_task(corpus, config, batch_size=8, eval_windows=16 if section.quick else 128)
    params, steps = mt.init_language_model(rng, config, std=0.1), 5 if section.quick else STEPS
    params = fit(params, task, steps=steps, peak=rate, rng=rng, floor=0.05, watch=watch)
    return params, task.evaluate(params)["bits per character"]


@section.tuning
def tuning(rng):
    rates = (1e-2,) if section.quick else (5e-3, 1e-2, 2e-2, 4e-2)
    yield from tried(lambda name, rng, *, rate: trained(name, rng, rate=rate)[1], (*CORES, DELETED), rates, rng)


@section.experiment
def experiment(rng):
    hold_blas()
    start = rng.integers(2**32)
    for name in (*CORES, DELETED):
        losses = []
        with processor_seconds() as spent:
            settings = {"rate": section.rates[name], "watch": lambda step, loss, _, losses=losses: losses.append(bits(loss))}
            params, measured = trained(name, np.random.default_rng(start), **settings)
        yield name, "end", {"bits": measured, "in training": np.mean(losses), "parameters": mt.trees.count_parameters(params), "seconds": spent()}
        for first in range(0, len(losses), EVERY):
            yield name, first + EVERY, {"training": np.mean(losses[first : first + EVERY])}


# %%
def of(found, name, measure="bits"):
    """Bits a character: on the validation part, or "in training", of the batches, as a mean over all of training."""
    return found[measure][name]["end"]


@section.claim(
    "Every weighting learns to attend",
    paper="Ramapuram et al. 2024, Wortsman et al. 2023, Nakanishi 2025, Saratchandran et al. 2024: each weighting trains",
    measured=lambda found: f"{listed(found['bits'], (*CORES, DELETED), 'end')}; counted pairs {counted_pairs(corpus):.2f}",
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
    measured=lambda found: f"{listed(found['bits'], (SSMAX, SOFTMAX), 'end')}; on average over training {listed(found['in training'], (SSMAX, SOFTMAX), 'end', '.3f')}",
)
def ssmax_as_well(found):
    """At most 0.03 bits a character more than the softmax, in training on average and on the validation part at the end."""
    return all(of(found, SSMAX, measure) <= of(found, SOFTMAX, measure) + 0.03 for measure in ("bits", "in training"))


@section.claim(
    "Does SSMax learn faster in pre-training?",
    paper="Nakanishi 2025, arXiv:2501.19399, abstract: faster loss reduction during pre-training",
    measured=lambda found: f"bits a character, on average over training: {listed(found['in training'], (SSMAX, SOFTMAX), 'end', '.3f')}",
)
def ssmax_faster(found):
    """At least 0.03 bits a character less than the softmax, on average over training."""
    return of(found, SSMAX, "in training") <= of(found, SOFTMAX, "in training") - 0.03


def behind(found):
    return [name for name in CORES if of(found, name).mean() > of(found, SOFTMAX).mean() + 0.1]


@section.report
def report(found):
    rows = []
    for name in sorted((*CORES, DELETED), key=lambda name: of(found, name).mean()):
        size, seconds = (of(found, name, measure).mean() for measure in ("parameters", "seconds"))
        more = (of(found, name) - of(found, SOFTMAX)).mean()
        rows.append([name, mean_and_spread(of(found, name)), f"{more:+.2f}", section.rates[name], int(size), float(f"{seconds:.1f}")])
    rows.append(["counted pairs of characters", f"{counted_pairs(corpus):.2f}", *[None] * 4])
    section.table("weightings", ["weighting", "bits a character", "more than the softmax", "rate", "parameters", "processor seconds"], rows)
    keys = {DELETED: "alone", **{name: key for name, (_, key) in CORES.items()}}
    section.values("weightings.bits", {key: of(found, name).mean() for name, key in keys.items()})
    section.values("weightings", {
        "steps": STEPS, "behind": ", ".join(behind(found)) or "none", "spread_of_seeds": np.ptp(of(found, SOFTMAX)), "pairs": counted_pairs(corpus),
        "training.softmax": of(found, SOFTMAX, "in training").mean(), "training.ssmax": of(found, SSMAX, "in training").mean(),
    })  # fmt: skip


@section.figure("weightings", size=(6.5, 3.4))
def picture(ax, found):
    lines(ax, found["training"], xlabel=f"update (means over {EVERY})", ylabel="bits a character, in training")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


if __name__ == "__main__":
    section.main()
