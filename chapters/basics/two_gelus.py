"""How far apart are the two functions that are called GELU, and what does each cost?

Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2: x times the normal distribution function, or a form with tanh that approximates it.
GPT-2 has the second, BERT the first. The module works in pieces that fit into the cache and has no x**3; the formula as printed is timed
beside it, forward and backward.
"""

# %%
import numpy as np

from minitransformers import gelu, gelu_exact
from minitransformers.reporting import Section, paired_times

section = Section(__file__, __doc__, kind="exact")
K, C = np.float32(np.sqrt(2 / np.pi)), np.float32(0.044715)
TANH, EXACT, PRINTED = "tanh form", "exact form", "tanh form as printed"
POINTS = np.linspace(-6, 6, 1_200_001)


# %%
def as_printed(x, dout):
    """Output and gradient, of whole arrays."""
    tanh = np.tanh(K * (x + C * x**3))
    return 0.5 * x * (1 + tanh), dout * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * K * (1 + 3 * C * x**2))


def both_ways(function, x, dout):
    out, backward = function(x)
    return out, backward(dout)


@section.experiment
def experiment(rng):
    apart = np.abs(gelu(POINTS)[0] - gelu_exact(POINTS)[0])
    yield EXACT, "apart", {"largest": apart.max(), "at": abs(POINTS[apart.argmax()])}
    x, dout = rng.standard_normal((2, 64 if section.quick else 1024, 1024), np.float32)
    gaps = [np.abs(a - b).max() for a, b in zip(both_ways(gelu, x, dout), as_printed(x, dout), strict=True)]
    yield PRINTED, "apart", {"largest": max(gaps)}
    forms = {TANH: lambda: both_ways(gelu, x, dout), EXACT: lambda: both_ways(gelu_exact, x, dout), PRINTED: lambda: as_printed(x, dout)}
    for name, ratio in paired_times(forms, rounds=2 if section.quick else 25).items():
        yield name, "time", {"low": ratio.low, "median": ratio.median}


# %%
def of(found, measure, name, place="time"):
    return float(np.ravel(found[measure][name][place])[0])


@section.claim(
    "The tanh form of GELU is not the exact form",
    paper="Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2: the tanh form is an approximation",
    measured=lambda found: f"{of(found, 'largest', EXACT, 'apart'):.2g} apart, at |x| = {of(found, 'at', EXACT, 'apart'):.2f}",
)
def apart(found):
    """Up to 4.7e-4 apart, to two digits: enough to tell GPT-2 from BERT, and a thousand times float32's rounding."""
    return f"{of(found, 'largest', EXACT, 'apart'):.1e}" == "4.7e-04"


@section.claim(
    "The module computes the tanh form as it is printed",
    paper="Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2, and its derivative",
    measured=lambda found: f"{of(found, 'largest', PRINTED, 'apart'):.0e} apart at most",
)
def same(found):
    """Outputs and gradients of a million float32 numbers to 1e-5."""
    return of(found, "largest", PRINTED, "apart") <= 1e-5


@section.claim(
    "GELU in pieces that fit the cache, without x**3, is faster than the formula as printed",
    paper="no paper: the same numbers in another order",
    kind="timed",
    measured=lambda found: f"the formula as printed takes {of(found, 'median', PRINTED):.1f} times as long",
)
def faster(found):
    """The formula as printed takes at least twice as long in three rounds of four, forward and backward, float32."""
    return of(found, "low", PRINTED) >= 2


@section.report
def report(found):
    section.values("gelu", {"difference": of(found, "largest", EXACT, "apart"), "difference_at": of(found, "at", EXACT, "apart"),
                            "times_faster": of(found, "median", PRINTED), "exact_cost": of(found, "median", EXACT)})  # fmt: skip


@section.figure("gelu_difference")
def picture(ax, found):
    x = POINTS[::600]
    ax.plot(x, 1e4 * (gelu(x)[0] - gelu_exact(x)[0]))
    ax.set(xlabel="x", ylabel="tanh form − exact form, ×10⁻⁴")


if __name__ == "__main__":
    section.main()
