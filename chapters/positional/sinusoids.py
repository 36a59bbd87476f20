"""Do two rows of sinusoids know how far apart they are?

Vaswani et al. 2017, arXiv:1706.03762, section 3.5: position p + k is a linear function of position p, for any fixed k. That
function turns every pair of features, so the product of two rows should depend on k alone. True by construction.
"""

# %%
import numpy as np

from minitransformers.positional.sinusoidal import sinusoidal
from minitransformers.reporting import Section

section = Section(__file__, __doc__, kind="exact")
LENGTH, WIDTH = 512, 64


@section.experiment
def experiment(rng):
    table, _ = sinusoidal(np.zeros((LENGTH, WIDTH)))
    for k in (0, 1, 4, 16, 64, 256):
        products = np.vecdot(table[k:], table[: LENGTH - k])  # of all pairs that are k apart
        yield "sinusoids", k, {"product": products.mean(), "spread": np.ptp(products)}


# %%
@section.claim(
    "Sinusoids know distance",
    paper="Vaswani et al. 2017, arXiv:1706.03762, section 3.5: position p + k is a linear function of position p, for any fixed k",
    measured=lambda found: f"they differ by at most {max(found['spread']['sinusoids'].values())[0]:.0e}, over {LENGTH} positions",
)
def rule(found):
    """Products of rows at one distance, from 0 to 256, differ by float64 rounding alone, below 1e-11."""
    return max(found["spread"]["sinusoids"].values()) < 1e-11


@section.report
def report(found):
    section.value("sinusoidal.spread", max(found["spread"]["sinusoids"].values())[0])
    section.value("sinusoidal.length", found["product"]["sinusoids"][0][0] ** 0.5)


@section.figure("sinusoidal_table", size=(6, 2.8))
def picture(ax, found):
    table, _ = sinusoidal(np.zeros((100, WIDTH)))
    image = ax.imshow(table.T, aspect="auto", cmap="RdBu", vmin=-1, vmax=1, interpolation="nearest")
    ax.set(xlabel="position", ylabel="feature")
    ax.grid(False)
    ax.figure.colorbar(image)


if __name__ == "__main__":
    section.main()
