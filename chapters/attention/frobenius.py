"""What does a softmax bound, and what does a root of n do for a polynomial?

Saratchandran et al. 2024, arXiv:2410.18613: the matrix of a softmax has a Frobenius norm of at most √n. Powers of random normal scores
have one of order n, and so has their derivative by the query's weights; divided by √n both grow as the softmax's bound does.
"""

# %%
from functools import partial

import numpy as np

from minitransformers import polynomial_weights, softmax
from minitransformers.reporting import Section, fitted_exponent, lines, mean_and_spread, ticks_at

section = Section(__file__, __doc__, kind="arithmetic")
SIZES, WIDTH, HEAD, DRAWS = (64, 128, 256, 512, 1024), 64, 32, 2
FORMS = {  # weighting, factor on the scores
    "softmax": (softmax, 1.0),
    "softmax, scores × 30": (softmax, 30.0),
    "cube": (partial(polynomial_weights, None, decay=0.0), 1.0),
    "cube / √n": (partial(polynomial_weights, None, decay=0.5), 1.0),
}
PREDICTED = {"softmax": 0.5, "softmax, scores × 30": 0.5, "cube": 1.0, "cube / √n": 0.5}  # at most, for a softmax
KEYS = {"softmax": "softmax", "softmax, scores × 30": "sharp", "cube": "cube", "cube / √n": "scaled"}


# %%
def norms(weighting, factor, x, q, k):
    """Of the weights, and of their derivative by W_q: weight (i, j) moves with entry (a, b) as x_ia (K_jb - what a softmax takes off) / √d."""
    weights, backward = weighting(factor * q @ k.T / HEAD**0.5)
    if weighting is softmax:
        means = weights @ k
        squares = weights**2 * ((k**2).sum(-1) - 2 * means @ k.T + (means**2).sum(-1, keepdims=True))
    else:
        squares = backward(np.ones_like(weights))[1] ** 2 * (k**2).sum(-1)
    slope = factor * np.sqrt((squares * (x**2).sum(-1, keepdims=True)).sum() / HEAD)
    return np.linalg.norm(weights), slope


@section.experiment
def experiment(rng):
    for n in SIZES[:3] if section.quick else SIZES:
        found = {name: [] for name in FORMS}
        for _ in range(DRAWS):
            x = rng.normal(size=(n, WIDTH))
            q, k = (x @ rng.normal(scale=WIDTH**-0.5, size=(WIDTH, HEAD)) for _ in range(2))
            for name, (weighting, factor) in FORMS.items():
                found[name].append(norms(weighting, factor, x, q, k))
        for name, pairs in found.items():
            weights, slope = np.mean(pairs, axis=0)
            yield name, n, {"norm": weights, "slope": slope}


# %%
def power(found, measure, name):
    return fitted_exponent(list(found[measure][name]), [np.mean(of) for of in found[measure][name].values()])


def told(found, *names):
    return "; ".join(f"{name}: n^{power(found, 'norm', name):.2f}, derivative n^{power(found, 'slope', name):.2f}" for name in names)


@section.claim(
    "A softmax bounds the norm of its weights by √n",
    paper="Saratchandran et al. 2024, arXiv:2410.18613: the Frobenius norm of a softmax of any matrix is at most √n",
    kind="exact",
    measured=lambda found: told(found, "softmax", "softmax, scores × 30") + "; that of random scores stays far below, only sharp rows come near",
)
def bounded(found):
    """At every length the norm is at most √n, for random scores and for 30 times as large ones."""
    return all(norm <= n**0.5 for name in FORMS if "softmax" in name for n, norm in found["norm"][name].items())


@section.claim(
    "A cube grows like n, and 1/√n brings it and its derivative to the power of the softmax's bound",
    paper="Saratchandran et al. 2024, arXiv:2410.18613: for random normal inputs a power of the scores and its derivative by W_q are O(n)",
    measured=lambda found: told(found, "cube", "cube / √n"),
)
def grows(found):
    """Exponents of the norm and of its derivative by W_q from 64 to 1,024 keys: 1 ± 0.15 for the cube, 0.5 ± 0.15 divided by √n."""
    return all(abs(power(found, m, name) - PREDICTED[name]) <= 0.15 for m in ("norm", "slope") for name in ("cube", "cube / √n"))


@section.report
def report(found):
    longest, rows = max(found["norm"]["cube"]), []
    for name, predicted in PREDICTED.items():
        weights, slope = power(found, "norm", name), power(found, "slope", name)
        said = ("at most " if "softmax" in name else "") + f"{predicted:.1f}"
        rows.append([name, said, weights, slope, mean_and_spread(found["norm"][name][longest], ".3g")])
        section.values(f"frobenius.{KEYS[name]}", {"weights": weights, "slope": slope})
    section.table("frobenius", ["weighting", "exponent predicted", "measured", "of the derivative by W_q", f"norm at {longest:,}"], rows)


@section.figure("frobenius", size=(6.2, 3))
def picture(ax, found):
    sizes = list(found["norm"]["cube"])
    lines(ax, found["norm"], xlabel="n", title="Frobenius norm of the weights", xscale="log", yscale="log")
    ax.plot(sizes, np.sqrt(sizes), "k--", linewidth=0.8, label="√n")
    ticks_at(ax, sizes)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


if __name__ == "__main__":
    section.main()
