"""How many labels does each objective of pre-training ask of a text?

Raffel et al. 2020, arXiv:1910.10683, section 3.2: causal language modelling asks at every position, masked language modelling (Devlin et al. 2018,
arXiv:1810.04805) at 15 of 100, prefix language modelling behind a prefix, span corruption for the spans that were taken out. Counted in the
windows that the section on objectives learns from.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.reporting import Section, base
from minitransformers.training.objectives import causal, masked, prefix, spans
from minitransformers.training.task import IGNORED

section = Section(__file__, __doc__, kind="exact")
LENGTH, WINDOWS, VOCABULARY, MASK = 48, 512, 288, 256        # bytes, the mask, and sentinels at the end
CAUSAL, PREFIX, MASKED, SPANS = "causal", "prefix", "masked", "span corruption"
OBJECTIVES = {CAUSAL: causal, PREFIX: prefix, MASKED: partial(masked, mask_id=MASK), SPANS: partial(spans, vocabulary=VOCABULARY)}
windows = np.lib.stride_tricks.sliding_window_view(base.base_corpus().train, LENGTH)


# %%
@section.experiment
def experiment(rng):
    drawn = windows[rng.integers(len(windows), size=WINDOWS)]
    for name, objective in OBJECTIVES.items():
        _, _, targets = objective(drawn, rng)
        yield name, "all", {"labels": np.mean(targets != IGNORED)}


# %%
def of(found, name):
    return np.mean(found["labels"][name]["all"])


@section.claim(
    "Labels a position",
    paper="counted: what a window of 48 tokens is asked, over all its positions",
    measured=lambda found: ", ".join(f"{name} {of(found, name):.3f}" for name in OBJECTIVES),
)
def labels_counted(found):
    """47 of 48 for the causal objective; 9 of 52 for span corruption (7 tokens are taken, and each side has 2 sentinels); 0.15 within 0.01
    for the masked one; half for a prefix, within 0.05.
    """
    each = {name: of(found, name) for name in OBJECTIVES}
    counted = np.isclose(each[CAUSAL], 47 / 48) and np.isclose(each[SPANS], 9 / 52)
    return counted and abs(each[MASKED] - 0.15) < 0.01 and abs(each[PREFIX] - 0.5) < 0.05


@section.report
def report(found):
    section.table("labels", ["objective", "labels a position"], [[name, f"{of(found, name):.2f}"] for name in OBJECTIVES])


if __name__ == "__main__":
    section.main()
