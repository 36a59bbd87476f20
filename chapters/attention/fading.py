"""What do more and more keys do to the weight of each?

Nakanishi 2025, arXiv:2501.19399, figure 1: one score of 3 among scores of -2. As keys are added, a softmax's largest weight falls, and
with the number of keys as its base (scale 0.43) it stays near 1. Beside it random scores, and weightings without competition.
"""

# %%
from functools import partial

import numpy as np

import minitransformers as mt
from minitransformers.attention.fading import fading, largest_possible
from minitransformers.reporting import Section, fitted_exponent, lines, mean_and_spread, ticks_at

section = Section(__file__, __doc__, kind="arithmetic")
SIZES, RANDOM, MARKED = (64, 256, 1024, 4096, 16384), "random scores", "one marked key"
FORMS = {
    "softmax": mt.softmax,
    "SSMax": partial(mt.scalable_softmax, mt.ScalableSoftmax(np.array([0.43]))),  # the scale of the paper's figure 1
    "sigmoid": partial(mt.sigmoid_weights, None),
    "ReLU": mt.relu_weights,
    "sparsemax": mt.sparsemax,
    "cube / √n": partial(mt.polynomial_weights, None),
}
KEYS = {"softmax": "softmax", "SSMax": "ssmax", "sigmoid": "sigmoid", "ReLU": "relu", "sparsemax": "sparsemax", "cube / √n": "cube"}
INDEPENDENT = ("sigmoid", "ReLU", "cube / √n")


@section.experiment
def experiment(rng):
    sizes = SIZES[:3] if section.quick else SIZES
    tables = {RANDOM: rng.normal(size=(50, sizes[-1])), MARKED: np.where(np.arange(sizes[-1]) == 0, 3.0, -2.0)[None]}
    for kind, scores in tables.items():
        for name, weighting in FORMS.items():
            measured = fading(scores, sizes=sizes, weighting=weighting)
            for n, largest, entropy, support in zip(sizes, measured.largest, measured.entropy, measured.support, strict=True):
                yield name, n, {kind: largest, f"entropy, {kind}": entropy, f"support, {kind}": support}


# %%
def power(found, name):
    """With which power of the number of keys the largest share of random scores changes."""
    return fitted_exponent(list(found[RANDOM][name]), [np.mean(of) for of in found[RANDOM][name].values()])


def powers(found, *names):
    return ", ".join(f"{name} n^{power(found, name):.2f}" for name in names)


@section.claim(
    "A softmax loses the key that it marked as keys are added; with the base n it does not",
    paper="Nakanishi 2025, arXiv:2501.19399, figure 1: one score of 3 among scores of −2, scale 0.43",
    kind="exact",
    measured=lambda found: "; ".join(f"{name} {', '.join(f'{np.mean(of):.3f}' for of in found[MARKED][name].values())}" for name in ("softmax", "SSMax")),
)
def marked(found):
    """The softmax's share is its bound 1 / (1 + (n − 1) exp(−5)) at every n; SSMax's never falls, and is above 0.99 from 64 keys on."""
    softmaxs, ssmaxs = (np.array(list(found[MARKED][name].values())) for name in ("softmax", "SSMax"))
    bound = largest_possible(np.array(list(found[MARKED]["softmax"])), spread=5.0)
    return np.allclose(softmaxs, bound, rtol=1e-12) and np.all(np.diff(ssmaxs) >= 0) and ssmaxs[0] > 0.99


@section.claim(
    "For random scores a softmax fades, and with the base n it does not",
    paper="Nakanishi 2025, arXiv:2501.19399, section 1: the largest element of a softmax's output tends to zero as its input grows",
    measured=lambda found: powers(found, "softmax", "SSMax"),
)
def random(found):
    """The softmax's largest share falls at least as fast as n^-0.5; SSMax's changes with a power between -0.1 and 0.1."""
    return power(found, "softmax") <= -0.5 and abs(power(found, "SSMax")) <= 0.1


@section.claim(
    "Weights without competition fade as well",
    paper="no paper: a key's own weight does not depend on the others, but the sum that the values are mixed by does",
    measured=lambda found: f"{powers(found, *INDEPENDENT)}; sparsemax, for comparison, n^{power(found, 'sparsemax'):.2f}",
)
def independent(found):
    """The largest share of random scores falls at least as fast as n^-0.4 for sigmoid, ReLU and cube."""
    return max(power(found, name) for name in INDEPENDENT) <= -0.4


@section.report
def report(found):
    first, last = min(found[RANDOM]["softmax"]), max(found[RANDOM]["softmax"])
    rows = []
    for name in FORMS:
        shares = [mean_and_spread(found[RANDOM][name][n], ".3g") for n in (first, last)]
        entropy, support = (found[f"{what}, {RANDOM}"][name][last].mean() for what in ("entropy", "support"))
        rows.append([name, *shares, float(entropy / np.log(last)), float(support), float(found[MARKED][name][last].mean())])
        for what, number in {
            "exponent": power(found, name), "first": found[RANDOM][name][first].mean(), "last": found[RANDOM][name][last].mean(),
            "marked": found[MARKED][name][last].mean(),
        }.items():  # fmt: skip
            section.value(f"fading.{what}.{KEYS[name]}", number)
    columns = ["weighting", f"largest share, {first} keys", f"{last:,} keys", "entropy / log n", f"effective support of {last:,}", "marked key"]
    section.table("fading", columns, rows)


@section.figure("fading", size=(7.2, 3), ncols=2, sharey=True)
def picture(axes, found):
    sizes = list(found[RANDOM]["softmax"])
    for ax, kind, title in zip(axes, (RANDOM, MARKED), ("scores N(0, 1)", "one score 3, all others −2"), strict=True):
        lines(ax, found[kind], xlabel="keys", title=title, xscale="log", yscale="log")
        ticks_at(ax, sizes)
    axes[1].plot(sizes, largest_possible(np.array(sizes), spread=5.0), "k--", linewidth=0.8, label="bound (5) of the softmax")
    axes[0].set(ylabel="largest share")
    axes[1].legend(fontsize=7)


if __name__ == "__main__":
    section.main()
