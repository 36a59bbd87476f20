"""How far apart are the bilinear rule and the zero-order hold?

Tustin 1947; in sequence models Gu, Goel and Re 2021, arXiv:2111.00396, eq. 3. With z the step times a rate, the hold is e^z and the
trapezium (1 + z/2) / (1 - z/2): the two agree up to the square of z. Here z is HiPPO's matrix times a step that is halved again and again.
"""

# %%
import itertools

import numpy as np

from minitransformers import discretize
from minitransformers.reporting import Section
from minitransformers.state_space.hippo import hippo_legs

section = Section(__file__, __doc__, kind="exact")
D_STATE, STEPS = 8, tuple(0.02 * 0.5**k for k in range(7))


# %%
@section.experiment
def experiment(rng):
    A, B = hippo_legs(D_STATE)
    for step in STEPS:
        hold, bilinear = (discretize(A, B, np.array(step), method=method)[0][0] for method in ("zoh", "bilinear"))
        yield "HiPPO", step, {"gap": np.abs(hold - bilinear).max()}


def ratios(found):
    """By how much each gap is smaller than the one before."""
    return [float(np.ravel(wide / narrow)[0]) for wide, narrow in itertools.pairwise(found["gap"]["HiPPO"].values())]


# %%
@section.claim(
    "Bilinear rule and zero-order hold differ by the cube of the step",
    paper="Gu, Goel and Re 2021, arXiv:2111.00396, eq. 3, after Tustin 1947; that the trapezium is right up to the second order is arithmetic",
    measured=lambda found: f"by {ratios(found)[0]:.2f} at first, where step times the fastest rate is {D_STATE * STEPS[0]:.2f}; "
    f"by {ratios(found)[-1]:.2f} in the end",
)
def rule(found):
    """Halving the step divides the gap by a factor that grows with each halving, and in the end is less than 0.1 from 8."""
    factors = ratios(found)
    return factors == sorted(factors) and abs(factors[-1] - 8) < 0.1


@section.report
def report(found):
    gaps = [float(gap[0]) for gap in found["gap"]["HiPPO"].values()]
    section.table("rules", ["step", "gap in Abar", "times smaller than before"], zip(STEPS, gaps, [None, *ratios(found)], strict=True))


if __name__ == "__main__":
    section.main()
