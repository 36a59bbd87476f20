"""How exact is the sine of a far position in float32?

No paper says it: a float32 holds seven digits, and the angle of a far position spends them on whole turns. Made in float64
and rounded last, sines are as exact as float32 can hold them.
"""

# %%
import numpy as np

from minitransformers.positional.sinusoidal import sinusoidal
from minitransformers.reporting import Section

section = Section(__file__, __doc__, kind="exact")
SINGLE, OURS = "float32 angles", "float64 angles, rounded last"


@section.experiment
def experiment(rng):
    frequency = 10_000.0 ** (-np.arange(32) / 32)
    for position in (10, 100, 1_000, 10_000, 100_000, 1_000_000):
        exact = np.sin(position * frequency)
        single = np.sin(np.float32(position) * frequency.astype(np.float32))
        ours = sinusoidal(np.zeros((1, 64), np.float32), positions=np.array([position]))[0][0, ::2]
        yield SINGLE, position, {"error": np.abs(single - exact).max()}
        yield OURS, position, {"error": np.abs(ours - exact).max()}


# %%
@section.claim(
    "Angles in float64, rounded last, keep far positions exact",
    paper="no paper: a float32 holds 7 digits, and a far angle spends them on whole turns",
    measured=lambda found: f"at position 100,000: {found['error'][SINGLE][100_000][0]:.0e} and {found['error'][OURS][100_000][0]:.0e}",
)
def rule(found):
    """Float32 angles are off by more than 1e-4 at position 100,000; rounded last, sines are never off by more than 1e-7."""
    return found["error"][SINGLE][100_000] > 1e-4 and max(found["error"][OURS].values()) < 1e-7


@section.report
def report(found):
    single, ours = (found["error"][name] for name in (SINGLE, OURS))
    rows = [[position, float(single[position][0]), float(ours[position][0])] for position in single]
    section.table("angles", ["position", f"error with {SINGLE}", f"error with {OURS}"], rows)
    section.value("angles.single", single[100_000][0])
    section.value("angles.ours", ours[100_000][0])


if __name__ == "__main__":
    section.main()
