"""What is a memory worth on real text, and how long should it be?

Dai et al. 2019, arXiv:1901.02860: cut into segments, a text is fragmented: the first tokens of each know nothing. With the hidden states of the
segment before, fewer bits a character, and the longer the memory in evaluation the fewer. A Transformer-XL of two layers and 64 features reads
Python's language reference in segments of 32 characters, with a memory of 32 positions or without one, for as many updates or for as much processor
time; then the validation text, with memories of other lengths than it learned with.
"""

# %%
import numpy as np

from minitransformers.reporting import Section, counted_pairs, lines, mean_and_spread, processor_seconds, tried
from minitransformers.reporting.long_context.streams import LENGTH, Streams, bits_in_streams, init_model
from minitransformers.training.fit import fit
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
MEMORY, STEPS = 32, 600
WITHOUT, WITH, AS_LONG, DELETED = "without a memory", "with a memory", "with a memory, as much time", "its own position alone"
RUNS = {WITHOUT: (0, STEPS), WITH: (MEMORY, STEPS), AS_LONG: (MEMORY, STEPS * 3 // 4), DELETED: (None, STEPS // 2)}  # memory, updates
LENGTHS = (0, 8, 16, 32, 64, 128)
KEYS = {"without": WITHOUT, "with": WITH, "as_long": AS_LONG}
corpus = Corpus.load(context=LENGTH)
apart = Corpus.from_text(corpus.train_text, context=LENGTH)  # rates are chosen without the validation part


def learned(name, rng, text, *, rate):
    length, steps = RUNS[name]
    params = init_model(rng, text.vocabulary.size)
    return fit(params, Streams(text.train, length, rng), steps=3 if section.quick else steps, peak=rate, rng=rng, warmup=0.05, floor=0.05)


def bits_of(params, text, length):
    """Of the whole validation part, each segment with a memory of so many positions before it."""
    return bits_in_streams(params, text.validation, length, segments=4 if section.quick else None)


@section.tuning
def tuning(rng):
    def loss(name, rng, rate):
        return bits_of(learned(name, rng, apart, rate=rate), apart, RUNS[name][0])

    yield from tried(loss, RUNS, (1e-2,) if section.quick else (1e-3, 3e-3, 1e-2, 2e-2), rng)


@section.experiment
def experiment(rng):
    hold_blas()
    for name, (length, steps) in RUNS.items():
        with processor_seconds() as spent:
            params = learned(name, rng, corpus, rate=section.rates[name])
        yield name, "learned", {"seconds": spent(), "updates": steps}
        for other in LENGTHS if length else (length,):
            yield name, -1 if other is None else other, {"bits": bits_of(params, corpus, other)}


# %%
def at_own(found, name):
    return found["bits"][name][RUNS[name][0]]


def told(found, *names):
    return "; ".join(f"{name} {mean_and_spread(at_own(found, name), '.3f')} ({np.mean(found['seconds'][name]['learned']):.0f} s)" for name in names)


@section.claim(
    "After as many updates a memory saves bits", paper="Dai et al. 2019, arXiv:1901.02860, section 4.2: ablation of the recurrence",
    measured=lambda found: told(found, WITHOUT, WITH),
)  # fmt: skip
def saves(found):
    """At least 0.05 bits a character fewer."""
    return at_own(found, WITH) <= at_own(found, WITHOUT) - 0.05


@section.claim(
    "Does it after as much processor time?", paper="no paper compares them so: keys and values of the memory are computed anew in every segment",
    measured=lambda found: told(found, WITHOUT, AS_LONG),
)  # fmt: skip
def saves_time(found):
    """At least 0.05 bits a character fewer, with three quarters of the updates."""
    return at_own(found, AS_LONG) <= at_own(found, WITHOUT) - 0.05


@section.claim(
    "Does a memory that is longer than in training save more?", paper="Dai et al. 2019, arXiv:1901.02860, section 4.1 and table 8: it does, up to a few times the length",
    measured=lambda found: f"{WITH}, positions in evaluation: " + ", ".join(f"{n} {mean_and_spread(found['bits'][WITH][n], '.3f')}" for n in LENGTHS),
)  # fmt: skip
def longer(found):
    """With 128 positions at least 0.01 bits a character fewer than with 32."""
    return found["bits"][WITH][128] <= found["bits"][WITH][MEMORY] - 0.01


@section.claim(
    "Does taking the memory away cost more than never having had one?", paper="Dai et al. 2019, arXiv:1901.02860, section 3.2: context fragmentation",
    measured=lambda found: f"{WITH}, read without: {mean_and_spread(found['bits'][WITH][0], '.3f')}; {told(found, WITHOUT)}",
)  # fmt: skip
def fragmented(found):
    """Read without its memory the model needs more bits a character than the one that learned without."""
    return found["bits"][WITH][0] > at_own(found, WITHOUT)


@section.report
def report(found):
    rows = [["pairs of characters counted", "", f"{counted_pairs(corpus):.3f}", "", ""]]
    for name in RUNS:
        seconds, updates = (np.mean(found[measure][name]["learned"]) for measure in ("seconds", "updates"))
        own = -1 if RUNS[name][0] is None else RUNS[name][0]
        rows.append([name, f"{updates:.0f}", mean_and_spread(found["bits"][name][own], ".3f"), f"{seconds:.0f}", f"{section.rates[name]:g}"])
    section.table("text", ["segments of 32", "updates", "bits a character", "processor seconds", "learning rate"], rows)
    section.table("memory_length", ["positions of memory in evaluation", *map(str, LENGTHS)], [[name, *(mean_and_spread(found["bits"][name][n], ".3f") for n in LENGTHS)] for name in (WITH, AS_LONG)])
    for key, name in KEYS.items():
        section.value(f"text.{key}", at_own(found, name).mean())
    section.values("text", {"taken": found["bits"][WITH][0].mean(), "longest": found["bits"][WITH][128].mean()})


@section.figure("memory_length", size=(5, 3))
def picture(ax, found):
    lines(ax, {WITH: found["bits"][WITH]}, xlabel="positions of memory in evaluation", ylabel="bits a character")
    ax.axhline(float(np.mean(at_own(found, WITHOUT))), color="0.5", linestyle=":", label=WITHOUT)
    ax.legend()


if __name__ == "__main__":
    section.main()
