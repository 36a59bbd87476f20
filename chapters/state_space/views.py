"""Is a linear recurrence a convolution?

Gu, Goel and Re 2021 (S4), arXiv:2111.00396, section 2.3: unrolled, the discrete system is one convolution with a kernel. So the same
map can be computed position by position or all at once, and so can its gradients. True by construction.
"""

# %%
import numpy as np

from minitransformers import lti
from minitransformers.reporting import Section
from minitransformers.state_space.hippo import hippo_legs

section = Section(__file__, __doc__, kind="exact")
D_STATE, LENGTH = 64, 1024


# %%
@section.experiment
def experiment(rng):
    """Outputs and six gradients of both views, for a HiPPO system and four sequences."""
    length = 256 if section.quick else LENGTH
    A, B = hippo_legs(D_STATE)
    call = A, B, rng.normal(size=D_STATE) / D_STATE, np.array(0.5), np.array(1 / length), rng.normal(size=(4, length))
    dout = rng.normal(size=(4, length))
    for rule in ("zoh", "bilinear"):
        (one, one_backward), (two, two_backward) = (lti(*call, discretization=rule, view=view) for view in ("recurrent", "convolution"))
        pairs = [(one, two), *zip(one_backward(dout), two_backward(dout), strict=True)]
        yield rule, length, {"gap": max(np.abs(a - b).max() / np.abs(a).max() for a, b in pairs)}


def worst(found):
    return max(np.max(gap) for of in found["gap"].values() for gap in of.values())


# %%
@section.claim(
    "A linear recurrence is a convolution",
    paper="Gu, Goel and Re 2021 (S4), arXiv:2111.00396, section 2.3: unrolled, the discrete system is one convolution with a kernel",
    measured=lambda found: f"largest relative difference {worst(found):.0e} over {next(iter(found['gap']['zoh'])):,} positions, d_state {D_STATE}",
)
def rule(found):
    """Outputs and all six gradients of the two views are equal to 1e-11, by either discretisation."""
    return worst(found) < 1e-11


@section.report
def report(found):
    section.values("lti.views", {"gap": worst(found), "length": LENGTH})


if __name__ == "__main__":
    section.main()
