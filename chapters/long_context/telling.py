"""How much faster is a character told with a memory than from a window that is read anew?

Dai et al. 2019, arXiv:1901.02860, section 3.2 and table 9: without a memory every new character wants its whole context read again, and with one the
segment alone. Both reach as far back here: a segment of 32 characters with a memory of 32 in each of two layers, and a window of 96. What the model
has learned does not change its pace, so it has learned nothing.
"""

# %%
from functools import partial

from minitransformers.reporting import Section, mean_and_spread, shortest_times
from minitransformers.reporting.long_context.streams import LAYERS, LENGTH, init_model, segment_model
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="timed")
MEMORY, VOCABULARY = 32, 96
WINDOW = LAYERS * MEMORY + LENGTH


@section.experiment
def experiment(rng):
    hold_blas()
    read = partial(segment_model, init_model(rng, VOCABULARY), length=MEMORY)
    ids = rng.integers(VOCABULARY, size=(1, WINDOW))
    _, memory, _ = read(ids[:, :MEMORY], None)
    seconds = shortest_times({"segment": lambda: read(ids[:, :LENGTH], memory), "window": lambda: read(ids, None)}, rounds=3 if section.quick else 50)
    yield "told", WINDOW, {"faster": seconds["window"] / (seconds["segment"] / LENGTH)}


# %%
@section.claim(
    "A character is told at least five times as fast as from a window that is read anew", paper="Dai et al. 2019, arXiv:1901.02860, table 9: 363 to 1,874 times",
    measured=lambda found: f"{mean_and_spread(found['faster']['told'][WINDOW], '.0f')} times, at a reach of {LAYERS * MEMORY} positions before the segment",
)  # fmt: skip
def told_fast(found):
    """At least five times."""
    return found["faster"]["told"][WINDOW] >= 5


@section.report
def report(found):
    section.value("text.faster", found["faster"]["told"][WINDOW].mean())


if __name__ == "__main__":
    section.main()
