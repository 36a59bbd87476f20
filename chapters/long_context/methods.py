"""One question, one long text: what does each way of reading it know?

Two marks of four stand in a text of eight segments, one segment each, anywhere. Which came first, or which came last? The question is the first token
of every segment, so whoever reads a piece knows what is asked; the noise between moves on, as the subject of a text does, from where it begins. Who
sees both marks but not their order is right half the time. What sees a part sees three segments of the eight. Each has one layer, as many updates
of as many texts, and a learning rate of its own. At best: what one can say who sees so much of the text.
"""

# %%
import numpy as np

from minitransformers.reporting import Section, lines, mean_and_spread, nats, processor_seconds, ticks_at, tried
from minitransformers.reporting.long_context.reading_methods import read_at_once, read_with_memory, taught
from minitransformers.reporting.long_context.reading_tasks import at_best, two_marks
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
SEGMENTS, LENGTH, MARKS, NOISE, SEEN, WIDTH, STEPS, BATCH, ASKED, PARTS = 8, 4, 4, 16, 3, 32, 400, 32, 2000, 3
ROWS = (SEEN - 1) * LENGTH                                   # of memory, before a segment of its own
READERS = read_at_once(segments=SEGMENTS, length=LENGTH, seen=SEEN, marks=MARKS) | read_with_memory(length=LENGTH, rows=ROWS)
SEEN_BY = {"head": range(3), "tail": range(5, 8), "ends": (0, 6, 7), "nothing": range(7, 8), "xl": range(5, 8), "squeezed": range(2, 8)}
BEST = {key: at_best(seen, segments=SEGMENTS, marks=MARKS) for key, seen in SEEN_BY.items()}


def draw(rng, texts=BATCH):
    return two_marks(rng, texts=texts, segments=SEGMENTS, length=LENGTH, marks=MARKS, noise=NOISE)


def learned(key, rng, *, rate):
    """logits_of(ids), and how many parameters it has."""
    sizes = {"marks": MARKS, "tokens": MARKS + NOISE + 2, "width": WIDTH, "length": LENGTH, "rows": ROWS, "max_parts": PARTS}
    return taught(key, READERS[key][1], rng, draw=lambda rng: draw(rng)[:2], **sizes, steps=3 if section.quick else STEPS, peak=rate, floor=0.05)


RATES = dict.fromkeys(READERS, (1e-3, 3e-3, 1e-2)) | dict.fromkeys(("graph", "written"), (3e-4, 1e-3, 3e-3, 1e-2))
RATES |= dict.fromkeys(("all", "deleted", "head", "tail", "ends", "mean", "cross", "xl", "same", "twice", "order"), (1e-3, 3e-3, 1e-2, 3e-2))
RATES |= dict.fromkeys(("bm25", "answers"), (1e-3, 3e-3, 1e-2, 3e-2, 1e-1))


@section.tuning
def tuning(rng):
    def of_two_starts(key, rng, rate):
        """Some learn from one start and not from another: what is chosen has to do so from both."""
        found = []
        for _ in range(1 if section.quick else 2):
            logits_of, _ = learned(key, rng, rate=rate)
            ids, asked, _ = draw(rng, 500)
            found.append(nats(logits_of(ids), asked))
        return np.mean(found)

    yield from tried(of_two_starts, READERS, (3e-3,) if section.quick else RATES, rng)


@section.experiment
def experiment(rng):
    hold_blas()
    for key in READERS:
        with processor_seconds() as spent:
            logits_of, count = learned(key, rng, rate=section.rates[key])
        ids, asked, places = draw(rng, 100 if section.quick else ASKED)
        right = logits_of(ids).argmax(axis=-1) == asked
        yield key, "all", {"right": right.mean(), "seconds": spent(), "parameters": count}
        for place in range(SEGMENTS):
            yield key, place, {"at": right[places == place].mean()}


# %%
def told(found, *keys):
    return "; ".join(f"{READERS[key][0]} {mean_and_spread(found['right'][key]['all'], '.3f')}" for key in keys)


def knows(found, *keys):
    return min(found["right"][key]["all"] for key in keys) >= 0.95


@section.claim(
    "Do those who see a part know all that stands there?", paper="Sun et al. 2019, arXiv:1905.05583, section 5.3.1; Dai et al. 2019, arXiv:1901.02860, section 3.2",
    measured=lambda found: "; ".join(f"{told(found, key)}, at best {BEST[key]:.3f}" for key in BEST),
)  # fmt: skip
def parts_know(found):
    """Each within 0.07 of the best that its part allows."""
    return all(abs(found["right"][key]["all"] - BEST[key]) <= 0.07 for key in BEST)


@section.claim(
    "Pieces that are read apart know the marks and seldom their order", paper="Pappagari et al. 2019, arXiv:1910.10781: chunks want a recurrence or a Transformer over them",
    measured=lambda found: told(found, "mean", "max", "attentive", "answers", "deleted"),
)  # fmt: skip
def pieces_know(found):
    """Chunks are right in 0.5 to 0.85 of cases, segments and tokens read alone in at most 0.6."""
    right = {key: of["all"] for key, of in found["right"].items()}
    return all(0.5 <= right[key] <= 0.85 for key in ("mean", "max", "attentive")) and max(right["answers"], right["deleted"]) <= 0.6


@section.claim(
    "Is what was found by its words read as a short text is?", paper="Ding et al. 2020, CogLTX, NeurIPS 33: a few passages, in the order of the text, for a reader",
    measured=lambda found: told(found, "bm25", "all"),
)  # fmt: skip
def found_is_read(found):
    """Right in at least 0.95 of cases, as is all at once."""
    return knows(found, "bm25", "all")


@section.claim(
    "Do segments know that hear of each other?", paper="Chalkidis et al. 2022, arXiv:2210.05529; Wu et al. 2021, arXiv:2106.01040; Velickovic et al. 2018, arXiv:1710.10903",
    measured=lambda found: told(found, "hat", "cross", "levels", "graph", "near", "discourse"),
)  # fmt: skip
def segments_know(found):
    """By first tokens, summaries, sentences of a document and edges to all: right in at least 0.95 of cases."""
    return knows(found, "hat", "cross", "levels", "graph")


@section.claim(
    "Do memories know what their rows no longer hold?", paper="Wu et al. 2020, arXiv:2010.06891; Ding et al. 2020, arXiv:2012.15688, section 3.3",
    measured=lambda found: told(found, "xl", "written", "same"),
)  # fmt: skip
def memories_know(found):
    """Slots are right in at least 0.95 of cases, the same layer's rows 0.1 more often than Transformer-XL's."""
    return knows(found, "written") and found["right"]["same"]["all"] >= found["right"]["xl"]["all"] + 0.1


@section.claim(
    "Does reading twice help, or being asked for the order of parts?", paper="Ding et al. 2020, arXiv:2012.15688, sections 3.2 and 3.4, table 6: both do",
    measured=lambda found: told(found, "same", "twice", "order"),
)  # fmt: skip
def twice_helps(found):
    """One of them is right at least 0.05 more often."""
    return max(found["right"][key]["all"] for key in ("twice", "order")) >= found["right"]["same"]["all"] + 0.05


@section.report
def report(found):
    rows = [["a guess among the marks", "", f"{1 / MARKS:.3f}", "", "", ""]]
    for key, (name, _) in READERS.items():
        count, seconds = (found[measure][key]["all"].mean() for measure in ("parameters", "seconds"))
        rows.append([name, f"{BEST[key]:.3f}" if key in BEST else "", mean_and_spread(found["right"][key]["all"], ".3f"), f"{count:,.0f}", f"{seconds:.1f}", f"{section.rates[key]:g}"])
    section.table("methods", ["reads", "at best", "right", "parameters", "processor seconds", "learning rate"], rows)
    section.values("methods", {key: found["right"][key]["all"].mean() for key in READERS})


@section.figure("methods", size=(7.2, 3.2))
def picture(ax, found):
    shown = ("head", "attentive", "xl", "squeezed", "same", "written")
    lines(ax, {READERS[key][0]: found["at"][key] for key in shown}, xlabel="segment of the mark that is asked for", ylabel="share of right answers", ylim=(0, 1.05))
    ticks_at(ax, range(SEGMENTS))
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


if __name__ == "__main__":
    section.main()
