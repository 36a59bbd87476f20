"""Where do activations bend, and how steep are they?

Hendrycks and Gimpel 2016, arXiv:1606.08415, section 4: unlike ReLU, GELU is not convex, not monotonic, and curved everywhere. Ramachandran,
Zoph and Le 2017, arXiv:1710.05941, section 4: SiLU, too, dips below zero before it rises. Five curves and their slopes.
"""

# %%
import numpy as np

from minitransformers import gelu, relu, sigmoid, silu, softplus
from minitransformers.reporting import Section

section = Section(__file__, __doc__, kind="exact")
CURVES = {"relu": relu, "gelu": gelu, "silu": silu, "softplus": softplus, "sigmoid": sigmoid}
POINTS = np.linspace(-6, 6, 1_200_001)


@section.experiment
def experiment(rng):
    for name, function in CURVES.items():
        out, backward = function(POINTS)
        slope = backward(np.ones_like(POINTS))
        yield name, "lowest", {"x": POINTS[out.argmin()], "out": out.min()}
        yield name, "slopes", {"smallest": slope.min(), "largest": slope.max(), "jump": np.abs(np.diff(slope)).max()}


# %%
def of(found, measure, name, place="slopes"):
    return float(np.ravel(found[measure][name][place])[0])


@section.claim(
    "GELU and SiLU fall before they rise, and rise more steeply than the identity",
    paper="Hendrycks and Gimpel 2016, arXiv:1606.08415, section 4: ReLU is convex and monotonic, GELU is neither",
    measured=lambda found: ", ".join(f"{name} {of(found, 'smallest', name):.2f} to {of(found, 'largest', name):.2f}" for name in CURVES),
)
def slopes(found):
    """Slopes of ReLU, softplus and sigmoid stay between 0 and 1; those of GELU and SiLU go below -0.05 and above 1.05."""
    within = all(of(found, "smallest", name) >= 0 and of(found, "largest", name) <= 1 for name in ("relu", "softplus", "sigmoid"))
    return within and all(of(found, "smallest", name) < -0.05 and of(found, "largest", name) > 1.05 for name in ("gelu", "silu"))


@section.claim(
    "ReLU alone has a slope that jumps",
    paper="Hendrycks and Gimpel 2016, arXiv:1606.08415, section 4: GELU is curved at all points, ReLU is linear but for one",
    measured=lambda found: ", ".join(f"{name} {of(found, 'jump', name):.0e}" for name in CURVES) + " from one point to the next, 1e-5 apart",
)
def jumps(found):
    """From one point to the next ReLU's slope changes by 1, those of the others by less than 2e-5."""
    return of(found, "jump", "relu") == 1 and all(of(found, "jump", name) < 2e-5 for name in CURVES if name != "relu")


@section.report
def report(found):
    for name in ("gelu", "silu"):
        section.values(name, {"lowest": of(found, "out", name, "lowest"), "lowest_at": of(found, "x", name, "lowest"),
                              "largest_slope": of(found, "largest", name), "smallest_slope": of(found, "smallest", name)})  # fmt: skip


@section.figure("activations", size=(8, 3.2), ncols=2)
def picture(axes, found):
    x = np.linspace(-5, 5, 1001)
    for name, function in CURVES.items():
        out, backward = function(x)
        axes[0].plot(x, out, label=name)
        axes[1].plot(x, backward(np.ones_like(x)))
    axes[0].set(xlabel="x", title="output", ylim=(-0.5, 3))
    axes[1].set(xlabel="x", title="slope")
    axes[0].legend()


if __name__ == "__main__":
    section.main()
