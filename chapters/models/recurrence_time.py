"""What does it cost a recurrence that each position waits for the one before it?

Vaswani et al. 2017, arXiv:1706.03762, section 4 and table 1: a recurrent layer takes as many dependent steps as there are positions,
attention a fixed number; attention's arithmetic grows with the square of the length. A GRU and two blocks of attention, as large as each
other, read whole texts of growing length and write one character after them, on one thread.
"""

# %%
from functools import partial

from minitransformers.reporting import Section, lines, one_seed, paired_times, ticks_at
from minitransformers.reporting.models.readers import VOCABULARY, attention_reader, recurrent_reader
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="timed")
LENGTHS = (64, 128, 256, 512, 1024)
GRU, TRANSFORMER = "GRU", "Transformer"


# %%
@section.experiment
def experiment(rng):
    hold_blas()
    made = {GRU: recurrent_reader(rng), TRANSFORMER: attention_reader(rng, LENGTHS[-1])}
    whole, writing = {}, {}
    for n in LENGTHS[:2] if section.quick else LENGTHS:
        ids = rng.integers(VOCABULARY, size=(1, n))
        for name, (params, read, step) in made.items():
            _, before = step(params, ids[:, :-1], None)
            whole[name, n], writing[name, n] = partial(read, params, ids), partial(step, params, ids[:, -1:], before)
    for measure, calls in (("whole", whole), ("writing", writing)):
        for (name, n), ratio in paired_times(calls, rounds=2 if section.quick else 25).items():
            yield name, n, {measure: ratio.median / (n / LENGTHS[0] if measure == "whole" else 1)}


# %%
def told(found, measure, form):
    return "; ".join(f"{name} " + ", ".join(f"{x:{form}}" for x in one_seed(of).values()) for name, of in found[measure].items())


@section.claim(
    "A GRU reads a long text at the same pace as a short one",
    paper="Vaswani et al. 2017, arXiv:1706.03762, table 1: n d^2 for a recurrent layer",
    measured=lambda found: f"time a character, the GRU's at {LENGTHS[0]} = 1: {told(found, 'whole', '.2f')}",
)
def even(found):
    """The longest time a character is at most 2.5 times the shortest."""
    times = one_seed(found["whole"][GRU]).values()
    return max(times) <= 2.5 * min(times)


@section.claim(
    "Does a Transformer's time a character grow with the text?",
    paper="Vaswani et al. 2017, arXiv:1706.03762, table 1: n^2 d for a layer of attention",
    measured=lambda found: f"time a character, the GRU's at {LENGTHS[0]} = 1: {told(found, 'whole', '.2f')}",
)
def grows(found):
    """At 512 characters at least 2.5 times that at 64."""
    times = one_seed(found["whole"][TRANSFORMER])
    return times[512] >= 2.5 * times[64]


@section.claim(
    "Does waiting make the GRU slower on one thread?",
    paper="Vaswani et al. 2017, arXiv:1706.03762, section 1: sequential computation precludes parallelization within training examples",
    measured=lambda found: f"time a character, the GRU's at {LENGTHS[0]} = 1: {told(found, 'whole', '.2f')}",
)
def slower(found):
    """A whole text takes the GRU at least 1.5 times as long as the Transformer, at each length."""
    ours, theirs = one_seed(found["whole"][GRU]), one_seed(found["whole"][TRANSFORMER])
    return all(ours[n] >= 1.5 * theirs[n] for n in ours)


@section.claim(
    "Does a GRU write the next character in a third of the time?",
    paper="Katharopoulos et al. 2020, arXiv:2006.16236, section 3.4: a recurrence writes at a constant cost, a cache grows",
    measured=lambda found: f"time of the next character, the GRU's after {LENGTHS[0]} = 1: {told(found, 'writing', '.1f')}",
)
def writes(found):
    """At most a third of the Transformer's, which has its cache, after each length."""
    ours, theirs = one_seed(found["writing"][GRU]), one_seed(found["writing"][TRANSFORMER])
    return all(ours[n] <= theirs[n] / 3 for n in ours)


@section.report
def report(found):
    lengths = list(found["whole"][GRU])
    labels = {"whole": "time a character, whole text", "writing": "time of the next character"}
    rows = []
    for measure, label in labels.items():
        for name in (GRU, TRANSFORMER):
            rows.append([f"{name}, {label}", *(float(f"{x:.2f}") for x in one_seed(found[measure][name]).values())])
    section.table("recurrence_time", ["characters", *map(str, lengths)], rows)
    for measure in ("whole", "writing"):
        ours, theirs = one_seed(found[measure][GRU]), one_seed(found[measure][TRANSFORMER])
        section.values(f"recurrence_time.{measure}", {f"of_{n}": theirs[n] / ours[n] for n in lengths})


@section.figure("recurrence_time", size=(7.6, 3), ncols=2)
def picture(axes, found):
    for ax, measure, label in zip(axes, ("whole", "writing"), ("a character of whole texts", "the next character"), strict=True):
        lines(ax, found[measure], xlabel="characters", ylabel="time, the GRU's first = 1", title=label, xscale="log")
        ax.set_ylim(0)
        ticks_at(ax, list(found[measure][GRU]))
    axes[0].legend()


if __name__ == "__main__":
    section.main()
