"""Does a prefix tell one model which of two things to write?

Raffel et al. 2020, arXiv:1910.10683, section 2.1: every task is a text, and a prefix says which is meant. One T5 has read verses in either English,
that of the 1390s and that of 2000, behind one of two prefixes, "old: " and "modern: ", and learned to write what the prefix says: to translate, or
to repeat. The source does not tell which. It was trained once (minitransformers/reporting/models/translators.py). Which English a text is in is told by
counted trigrams. Beside it: the other prefix, and none.
"""

# %%
import numpy as np

from minitransformers import trees
from minitransformers.models.t5 import t5, t5_step
from minitransformers.reporting import Section, bits, mean_and_spread
from minitransformers.reporting.models.entries import by_trigrams
from minitransformers.reporting.models.translators import LETTERS, NOW, STEPS, THEN, greedy, load_two_way, nats, prefix
from minitransformers.reporting.models.verses import chrf, decoded, encoded, load_verses
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
VERSES = 100
OLD, NEW, NONE = "old", "modern", "none"
PREFIXES = {OLD: prefix(THEN), NEW: prefix(NOW), NONE: []}
TASKS = {(OLD, NEW): "old into modern", (NEW, OLD): "modern into old", (OLD, OLD): "old, repeated", (NEW, NEW): "modern, repeated"}  # what is read, and asked
known, unknown = ([verse for verse in verses if max(len(verse.then), len(verse.now)) <= LETTERS["t5"]] for verses in load_verses())
params = load_two_way()


# %%
def other(english):
    return NEW if english == OLD else OLD


def share_modern(texts):
    """The share of each list of texts that counted trigrams take for today's English. They were counted in 2,000 verses of each."""
    some = known[:: len(known) // 2000][:2000]
    labels = np.repeat([0, 1], len(some))
    answers = by_trigrams([v.then for v in some] + [v.now for v in some], labels, [text for each in texts.values() for text in each])
    return dict(zip(texts, answers.reshape(len(texts), -1).mean(-1), strict=True))


@section.experiment
def experiment(rng):
    hold_blas()
    chosen = [unknown[i] for i in rng.permutation(len(unknown))[: 8 if section.quick else VERSES]]
    truth = {OLD: [v.then for v in chosen], NEW: [v.now for v in chosen]}
    ids = {english: [encoded(text) for text in texts] for english, texts in truth.items()}
    texts = dict(truth)                                      # and what is written, by what is read and the prefix
    for read in (OLD, NEW):
        for told, ahead in PREFIXES.items():
            texts[read, told] = greedy(t5_step, params, [[*ahead, *source] for source in ids[read]])
    modern = share_modern(texts)
    for english in (OLD, NEW):
        yield "truth", english, {"modern": modern[english]}
    for (read, told), share in list(modern.items())[2:]:
        yield read, told, {"modern": share}
    for (read, asked), task in TASKS.items():
        letters = sum(len(text) + 1 for text in truth[asked])
        for way, told in {"right": asked, "wrong": other(asked), "none": NONE}.items():
            cost = nats(t5, params, [[*PREFIXES[told], *source] for source in ids[read]], ids[asked])
            yield way, task, {"bits": bits(cost) / letters, "like": chrf(texts[read, told], truth[asked])}
        exact = [a == b for a, b in zip(texts[read, asked], truth[asked], strict=True)]
        yield "right", task, {"exact": np.mean(exact)}
        yield "source", task, {"like": chrf(truth[read], truth[asked])}


# %%
def asked_for(found, read, asked, *, told=None):
    """The share of texts in the English that is asked for, behind its prefix or behind another."""
    share = found["modern"][read][told or asked]
    return share if asked == NEW else 1 - share


def told_of(found, measure, way):
    return ", ".join(f"{task} {mean_and_spread(value)}" for task, value in found[measure][way].items())


@section.claim(
    "The prefix decides which English is written",
    paper="Raffel et al. 2020, arXiv:1910.10683, section 2.1: a prefix specifies which task the model should perform",
    measured=lambda found: "; ".join(f"{told} asked, {read} read: {mean_and_spread(asked_for(found, read, told))}" for read, told in TASKS),
)
def decides(found):
    """Of the texts behind each prefix, whichever English is read, at least 0.9 are in the English that is asked for."""
    return all(asked_for(found, read, told) >= 0.9 for read, told in TASKS)


@section.claim(
    "Each of the four tasks is lost behind the other prefix",
    paper="Raffel et al. 2020, arXiv:1910.10683, section 2.1",
    measured=lambda found: f"bits a character: {told_of(found, 'bits', 'right')}; behind the other prefix {told_of(found, 'bits', 'wrong')}",
)
def wrong_prefix(found):
    """What should be written costs at least half a bit a character more behind the other prefix."""
    return all(found["bits"]["wrong"][task] >= found["bits"]["right"][task] + 0.5 for task in TASKS.values())


@section.claim(
    "A text whose English is already the one asked for is repeated",
    paper="no paper: to repeat is the simplest thing an encoder-decoder can be asked for",
    measured=lambda found: f"chrF {told_of(found, 'like', 'right')}; letter for letter {told_of(found, 'exact', 'right')}",
)
def repeats(found):
    """By chrF at least 90."""
    return all(found["like"]["right"][TASKS[english, english]] >= 90 for english in (OLD, NEW))


@section.claim(
    "It translates better than the source would do as it is",
    paper="no paper: the trivial baseline",
    measured=lambda found: f"chrF {told_of(found, 'like', 'right')}; the source: {told_of(found, 'like', 'source')}",
)
def translates(found):
    """In both directions, by chrF, at least 2 points."""
    return all(found["like"]["right"][TASKS[pair]] >= found["like"]["source"][TASKS[pair]] + 2 for pair in ((OLD, NEW), (NEW, OLD)))


@section.report
def report(found):
    costs = [[task, f'"{asked}: "', *(mean_and_spread(found["bits"][way][task]) for way in ("right", "wrong", "none"))] for (_, asked), task in TASKS.items()]
    section.table("prefixes", ["task", "its prefix", "bits a character", "behind the other prefix", "behind none"], costs)
    likes = []
    for (read, asked), task in TASKS.items():
        cells = (mean_and_spread(found["like"][way][task], ".1f") for way in ("right", "source"))
        likes.append([task, *cells, mean_and_spread(100 * asked_for(found, read, asked), ".0f"), mean_and_spread(100 * asked_for(found, read, asked, told=NONE), ".0f")])
    section.table("prefixes_like", ["task", "chrF", "the source as it is", "in the English asked for, %", "without a prefix, %"], likes)
    for way in ("right", "wrong", "none"):
        section.values(f"prefixes.{way}", {"_".join(pair): np.mean(found["bits"][way][task]) for pair, task in TASKS.items()})
    section.values("prefixes.modern", {f"{read}_{told}": 100 * np.mean(found["modern"][read][told]) for read in (OLD, NEW) for told in PREFIXES})
    section.values("prefixes.sorted", {english: 100 * np.mean(found["modern"]["truth"][english]) for english in (OLD, NEW)})
    section.values("prefixes.chrf", {"_".join(pair): np.mean(found["like"]["right"][task]) for pair, task in TASKS.items()})
    section.values("prefixes", {"asked": VERSES, "tests": len(unknown), "steps": STEPS["t5"], "parameters": trees.count_parameters(params)})
    verse = next(verse for verse in unknown if verse.number == 40005008)
    read = {OLD: encoded(verse.then), NEW: encoded(verse.now)}
    examples = [[f"{decoded(ahead)}{decoded(read[english])}", *greedy(t5_step, params, [[*ahead, *read[english]]])] for english in read for ahead in PREFIXES.values()]
    section.table("prefixes_written", ["read", "written"], examples)


@section.figure("prefixes", size=(5.6, 2.8), ncols=2, sharey=True)
def picture(axes, found):
    for ax, read in zip(axes, (OLD, NEW), strict=True):
        shares = [np.atleast_1d(found["modern"][read][told]) for told in PREFIXES]
        ax.bar(range(len(shares)), [share.mean() for share in shares], width=0.6)
        ax.set_xticks(range(len(shares)), [f'"{told}: "' if told != NONE else "none" for told in PREFIXES])
        ax.set(title=f"the source is {read}", xlabel="prefix", ylim=(0, 1.05))
    axes[0].set(ylabel="written in modern English")


if __name__ == "__main__":
    section.main()
