"""Are a recurrence, a masked attention and an algorithm in chunks the same map?

Dao and Gu 2024, arXiv:2405.21060, sections 5.3 and 6: SSD has a linear form and a quadratic one, and its matrix can be cut into blocks of
which some are computed in one way and the rest in the other. True by construction, gradients included.
"""

# %%
from functools import partial

import numpy as np

from minitransformers import ssd, ssd_chunked, ssd_quadratic, ssd_recurrent
from minitransformers.reporting import Section

section = Section(__file__, __doc__, kind="exact")
LENGTH, HEADS, GROUPS, D_HEAD, D_STATE = 100, 4, 2, 6, 5
FORMS = {"quadratic": ssd_quadratic, **{f"chunks of {q}": partial(ssd_chunked, chunk=q) for q in (1, 7, 32, LENGTH)}}


# %%
@section.experiment
def experiment(rng):
    """Each form against the recurrence, with an initial state, a last one, and gradients of both."""
    x, (B, C) = rng.normal(size=(LENGTH, HEADS, D_HEAD)), rng.normal(size=(2, LENGTH, GROUPS, D_STATE))
    delta, A = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), (LENGTH, HEADS))), -rng.uniform(1, 16, HEADS)
    call = x, delta, A, B, C, rng.normal(size=(HEADS, 1)), None, rng.normal(size=(HEADS, D_HEAD, D_STATE))
    dout = rng.normal(size=x.shape), rng.normal(size=(HEADS, D_HEAD, D_STATE))

    def results(core):
        out, backward = ssd(*call, core=core)
        return [part for part in (*out, *backward(dout)) if part is not None]

    exact = results(ssd_recurrent)
    for name, core in FORMS.items():
        gaps = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(results(core), exact, strict=True)]
        yield name, "gap", {"outputs": max(gaps[:2]), "gradients": max(gaps[2:]), "how many": len(gaps) - 2}


def worst(found):
    return max(np.max(found[measure][name]["gap"]) for measure in ("outputs", "gradients") for name in FORMS)


# %%
@section.claim(
    "The recurrence, the masked attention and the chunked form are one map",
    paper="Dao and Gu 2024, arXiv:2405.21060, sections 5.3 and 6: a linear form, a quadratic one, and blocks of both",
    measured=lambda found: f"largest relative difference {worst(found):.1e} over {LENGTH} positions",
)
def one_map(found):
    """Equal to 1e-12 in float64 with all seven gradients, in chunks of 1, 7, 32 and 100."""
    return worst(found) < 1e-12 and all(of["gap"] == 7 for of in found["how many"].values())


@section.report
def report(found):
    rows = [[name, *(float(found[measure][name]["gap"][0]) for measure in ("outputs", "gradients"))] for name in FORMS]
    section.table("ssd-forms", ["against the recurrent form", "outputs", "gradients"], rows)
    section.value("duality.worst_gap", worst(found))


if __name__ == "__main__":
    section.main()
