"""Up to which score does softmax as printed work in float32, and does the shift cost digits?

Blanchard, Higham and Higham 2019, arXiv:1909.03469: subtracting the largest score first keeps exp from overflowing, and the shifted formulas
are of similar accuracy. Rows of 64 scores of which the first is the largest, as a trained model's attention has them.
"""

# %%
import numpy as np

from minitransformers import softmax
from minitransformers.reporting import Section, lines

section = Section(__file__, __doc__, kind="arithmetic")
PRINTED, SHIFTED, SCORES, WRONG = "as printed", "shifted", range(1, 121), 1e-3


# %%
def as_printed(x):
    exps = np.exp(x)
    return exps / exps.sum(axis=-1, keepdims=True)


@section.experiment
def experiment(rng):
    for score in SCORES:
        x = np.concatenate([np.full((8, 1), score), rng.uniform(-score, score, size=(8, 63))], axis=1).astype(np.float32)
        exact = as_printed(x.astype(np.float64))
        with np.errstate(all="ignore"):                      # overflowing is what is asked
            forms = {PRINTED: as_printed(x), SHIFTED: softmax(x)[0]}
        for name, weights in forms.items():
            error = np.abs(weights - exact).max()
            yield name, score, {"error": error if np.isfinite(error) else 1.0}  # not a number is as wrong as can be


# %%
def breaks_at(found, name):
    """The first score whose weights are wrong by more than 1e-3, or 121."""
    return next((score for score, error in found["error"][name].items() if np.max(error) > WRONG), SCORES[-1] + 1)


def worst(found, name):
    """The largest error at scores at which the formula as printed works."""
    return max(np.max(error) for score, error in found["error"][name].items() if score < breaks_at(found, PRINTED))


@section.claim(
    "Softmax as printed overflows where exp does, the shifted one never",
    paper="Blanchard, Higham and Higham 2019, arXiv:1909.03469, abstract: the evaluation is prone to overflow",
    measured=lambda found: f"as printed wrong from a score of {breaks_at(found, PRINTED)} on; shifted never wrong by more than {shifted(found):.0e}, up to {SCORES[-1]}",
)
def breaks(found):
    """As printed it is wrong from a score between 84 and 89 on: exp overflows at 88.7 in float32, a sum of 64 sooner. Shifted it is right to 1e-6
    at every score up to 120.
    """
    return 84 <= breaks_at(found, PRINTED) <= 89 and shifted(found) <= 1e-6


@section.claim(
    "The shift costs no digits",
    paper="Blanchard, Higham and Higham 2019, arXiv:1909.03469, abstract: the shifted formulas are of similar accuracy to the unshifted ones",
    measured=lambda found: f"largest errors where both work {worst(found, PRINTED):.1e} as printed, {worst(found, SHIFTED):.1e} shifted",
)
def no_digits(found):
    """Where both work, the largest error with the shift is at most twice that without it."""
    return worst(found, SHIFTED) <= 2 * worst(found, PRINTED)


def shifted(found):
    """The largest error with the shift, at any score."""
    return max(np.max(error) for error in found["error"][SHIFTED].values())


@section.report
def report(found):
    section.values("softmax", {"breaks_at": breaks_at(found, PRINTED), "naive_error": worst(found, PRINTED), "error": shifted(found)})


@section.figure("overflow")
def picture(ax, found):
    lines(ax, found["error"], marker="", xlabel="largest score", ylabel="largest error, float32", yscale="log")
    ax.legend()


if __name__ == "__main__":
    section.main()
