"""What is left of a small sigmoid, and of a small softplus, in float32?

No paper: it is a matter of how the formula is arranged. 1 / (1 + exp(-x)) is small where exp(-x) is large, and keeps its digits; the same
function through tanh is the difference of two halves. log(1 + exp(x)) loses exp(x) beside the 1; log1p does not.
"""

# %%
import numpy as np

from minitransformers import sigmoid, softplus
from minitransformers.reporting import Section

section = Section(__file__, __doc__, kind="exact")
SIGMOID, TANH = "sigmoid, 1 / (1 + exp(−x))", "sigmoid, ½ + ½ tanh(x/2)"
SOFTPLUS, PRINTED = "softplus, log1p", "softplus, log(1 + exp(x))"
POINTS = np.linspace(-80, -1, 3161).astype(np.float32)


# %%
def relative_errors():
    """Of each arrangement in float32, at each point."""
    exps = np.exp(POINTS.astype(np.float64))
    small, positive = exps / (1 + exps), np.log1p(exps)
    forms = {
        SIGMOID: (sigmoid(POINTS)[0], small),
        TANH: (0.5 * np.tanh(0.5 * POINTS) + 0.5, small),
        SOFTPLUS: (softplus(POINTS)[0], positive),
        PRINTED: (np.log(1 + np.exp(POINTS)), positive),
    }
    return {name: np.abs(single - exact) / exact for name, (single, exact) in forms.items()}


@section.experiment
def experiment(rng):
    for name, errors in relative_errors().items():
        yield name, "worst", {"error": errors.max()}


# %%
def worst(found, name):
    return float(np.ravel(found["error"][name]["worst"])[0])


@section.claim(
    "Small sigmoids and softpluses keep their digits",
    paper="no paper: a matter of how the formula is arranged",
    measured=lambda found: "; ".join(f"{name}: {worst(found, name):.0e}" for name in found["error"]),
)
def keep(found):
    """Relative errors of at most ten float32 roundings, 1.2e-6, from x = -80 to -1; of the other arrangements no digit is left: 0.99 or more."""
    rounding = 10 * float(np.finfo(np.float32).eps)
    return max(worst(found, SIGMOID), worst(found, SOFTPLUS)) <= rounding and min(worst(found, TANH), worst(found, PRINTED)) >= 0.99


@section.report
def report(found):
    section.values("sigmoid", {"error": worst(found, SIGMOID), "error_through_tanh": worst(found, TANH)})
    section.values("softplus", {"error": worst(found, SOFTPLUS), "error_as_printed": worst(found, PRINTED)})


@section.figure("lost_digits")
def picture(ax, found):
    for name, errors in relative_errors().items():
        ax.semilogy(POINTS, np.maximum(errors, 1e-9), label=name)
    ax.set(xlabel="x", ylabel="relative error, float32", xlim=(-40, -1))
    ax.legend()


if __name__ == "__main__":
    section.main()
