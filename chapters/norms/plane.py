"""What does RMS norm do to a vector of two features, and to its gradient?

Zhang and Sennrich 2019, arXiv:1910.07467, section 4: what is normalised may grow, and the output stays; so the gradient
gets smaller as it grows. In the plane both can be drawn. True by construction.
"""

# %%
import numpy as np

from minitransformers.norms.rms_norm import RmsNorm, rms_norm
from minitransformers.reporting import Section

section = Section(__file__, __doc__, kind="exact")
ALONG, LENGTHS, DOUT = np.array([0.96, 0.28]), (0.6, 1.7, 2.6), np.array([0.2, 0.8])
BLUE, ORANGE, GREY = "#2f7ebf", "#d0691f", "#808080"
ray = np.outer(LENGTHS, ALONG)                               # one direction, three lengths


def gradients():
    _, backward = rms_norm(RmsNorm(np.ones(2)), ray, eps=0.0)
    return backward(np.tile(DOUT, (len(ray), 1)))[1]


@section.experiment
def experiment(rng):
    for length, dx in zip(LENGTHS, gradients(), strict=True):
        yield "gradient of x", length, {"length": np.linalg.norm(dx), "part along x": abs(dx @ ALONG)}


# %%
@section.claim(
    "RMS norm's gradient is orthogonal to x, and the shorter the longer x is",
    paper="Zhang and Sennrich 2019, arXiv:1910.07467, section 4: gradient and scale are negatively correlated",
    measured=lambda found: f"lengths {', '.join(f'{np.mean(y):.3f}' for y in found['length']['gradient of x'].values())} at {', '.join(map(str, LENGTHS))}",
)
def shorter(found):
    """At eps = 0 and with a gain of one: no part along x above 1e-12, and the product of both lengths is the same to 1e-12."""
    products = [x * y for x, y in found["length"]["gradient of x"].items()]
    return max(found["part along x"]["gradient of x"].values()) < 1e-12 and np.ptp(products) < 1e-12


@section.report
def report(found):
    lengths, along = (found[name]["gradient of x"] for name in ("length", "part along x"))
    rows = [[x, float(np.mean(lengths[x])), float(np.round(np.mean(along[x]), 12))] for x in LENGTHS]
    section.table("plane", ["length of x", "length of its gradient", "part along x"], rows)


# %%
def normed(ax, params, title, *, rays):
    turn = np.linspace(0, 2 * np.pi, 200)
    ax.plot(*rms_norm(params, np.stack([np.cos(turn), np.sin(turn)], axis=-1), eps=0.0)[0].T, color=GREY, linewidth=0.8)
    for x, colour in ((np.random.default_rng(0).normal(size=(40, 2)) * (1.2, 0.9), BLUE), (ray, ORANGE)):
        out, _ = rms_norm(params, x, eps=0.0)
        if rays:
            ax.plot(*np.stack([x, out]).transpose(2, 0, 1), color=colour, linewidth=0.7, alpha=0.6)
            ax.plot(*x.T, "o", color=colour, markerfacecolor="none", markersize=3.5)
        ax.plot(*out.T, "o", color=colour)
    ticks = range(-3, 4)
    ax.set(aspect="equal", xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), xticks=ticks, yticks=ticks, title=title)


@section.figure("rms_norm_circle", size=(3.2, 3.2))
def circle(ax, found):
    normed(ax, RmsNorm(np.ones(2)), "x and u", rays=True)


@section.figure("rms_norm_ellipse", size=(3.2, 3.2))
def ellipse(ax, found):
    normed(ax, RmsNorm(np.array([1.4, 0.6])), "y with the gain (1.4, 0.6)", rays=False)


@section.figure("rms_norm_gradient", size=(3.2, 2.4))
def arrows(ax, found):
    ax.plot(*np.outer((0, 3), ALONG).T, color=GREY, linewidth=0.8)
    for vectors, colour, label in ((np.tile(DOUT, (len(ray), 1)), BLUE, "gradient of u"), (gradients(), ORANGE, "gradient of x")):
        ax.quiver(*ray.T, *vectors.T, color=colour, angles="xy", scale_units="xy", scale=1, width=0.011, label=label)
    ax.plot(*ray.T, "ko", markersize=3.5)
    ax.set(aspect="equal", xlim=(-0.2, 3.2), ylim=(-0.2, 2.2), xticks=range(4), yticks=range(3))
    ax.legend()


if __name__ == "__main__":
    section.main()
