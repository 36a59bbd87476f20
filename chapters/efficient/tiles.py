"""Do tiles give what all scores at once give?

Dao et al. 2022, arXiv:2205.14135, theorem 1: the algorithm returns softmax(Q K^T) V, though no row of scores is ever there as a whole. Dao 2023,
arXiv:2307.08691, section 3.1: looking back, half of the tiles are left out. Output and gradients beside those of the dense form, for texts that
are shorter than a tile, fill it, or leave one position over.
"""

# %%
import numpy as np

import minitransformers as mt
from minitransformers.reporting import Section
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="exact")
TILE, WIDTH = 256, 64                                        # tiles of the default size
PAIRS = {"looking back": (mt.causal_attention, mt.causal_flash_attention), "both ways": (mt.softmax_attention, mt.flash_attention)}


# %%
def gradients(core, arrays, dout):
    out, backward = core(None, *arrays)
    return out, *backward(dout)[1:4]


@section.experiment
def experiment(rng):
    hold_blas()
    for n in (1, TILE - 1, TILE, 2 * TILE + 1):
        *arrays, dout = rng.normal(size=(4, 2, n, WIDTH))
        for name, cores in PAIRS.items():
            both = zip(*(gradients(core, arrays, dout) for core in cores), strict=True)
            yield name, n, {"difference": max(np.abs(a - b).max() for a, b in both)}


# %%
def worst(found):
    return max(np.max(of) for points in found["difference"].values() for of in points.values())


@section.claim(
    "Tiles give what all scores at once give",
    paper="Dao et al. 2022, arXiv:2205.14135, theorem 1: the algorithm returns softmax(Q K^T) V",
    measured=lambda found: f"{worst(found):.0e} apart",
)
def same(found):
    """Output and gradients to 1e-12 in float64, where a text is shorter than a tile, fills it, or leaves one position over."""
    return worst(found) < 1e-12


@section.report
def report(found):
    section.value("flash.difference", worst(found))


if __name__ == "__main__":
    section.main()
