"""Where should a long text be cut?

A model reads so many tokens, and the text has more. Cut anywhere, and paragraphs are torn: half of an argument is in one chunk and half in the
next. Overlap repairs some of it and is paid for in tokens read twice. Cuts at ends of paragraphs cost nothing but shorter chunks. The text is
Python's language reference, an entry a section, in words; each seed takes other entries. Knuth and Plass 1981 break lines by least cost; so can
chunks be broken.
"""

# %%
import re
from itertools import pairwise

import numpy as np

from minitransformers.long_context.chunking import overlapping_chunks
from minitransformers.long_context.discourse_chunking import chunking_cost, greedy_chunks, optimal_chunks
from minitransformers.reporting import Section, lines, mean_and_spread

section = Section(__file__, __doc__, kind="arithmetic")
SIZES, ENTRIES = (64, 128, 256, 512), 12
FIXED, OVERLAP, GREEDY, OPTIMAL = "every so many words", "with a quarter shared", "at ends, filled one by one", "at ends, of least cost"
KEYS = {"fixed": FIXED, "overlap": OVERLAP, "greedy": GREEDY, "optimal": OPTIMAL}


# %% A text as sentences: how long each is, and what ends behind it (1 a sentence, 2 a paragraph, 3 an entry)
def sentences_of(entries):
    lengths, levels = [], []
    for entry in entries:
        for paragraph in re.split(r"\n\s*\n", entry):
            found = [len(sentence.split()) for sentence in re.split(r"(?<=[.:;!?])\s", paragraph) if sentence.strip()]
            lengths += found
            levels += [1] * (len(found) - 1) + [2] if found else []
        levels[-1] = 3
    return np.array(lengths), np.array(levels)


def whole_paragraphs(spans, lengths, levels, size):
    """The share of paragraphs, of those that a chunk can hold, that stand in one chunk as they are; spans are (begin, end) of chunks."""
    ends = np.cumsum(lengths)[levels >= 2]
    starts = np.r_[0, ends[:-1]]
    begins, stops = np.array(spans).T
    fits = ends - starts <= size
    held = (begins[None] <= starts[:, None]) & (ends[:, None] <= stops[None])
    return held.any(axis=1)[fits].mean()


@section.experiment
def experiment(rng):
    from pydoc_data.topics import topics

    entries = [topics[name] for name in rng.choice(sorted(name for name in topics if len(topics[name]) > 4000), ENTRIES, replace=False)]
    lengths, levels = sentences_of(entries)
    total = int(lengths.sum())
    for size in SIZES[:2] if section.quick else SIZES:
        for name, overlap in ((FIXED, 0), (OVERLAP, size // 4)):
            starts = overlapping_chunks(np.arange(total), size=size, overlap=overlap).starts
            spans = [(start, start + size) for start in starts]
            yield name, size, {"whole": whole_paragraphs(spans, lengths, levels, size), "chunks": len(spans) * size / total}
        for name, cut in ((GREEDY, greedy_chunks), (OPTIMAL, optimal_chunks)):
            cuts = cut(lengths, levels, size=size)
            spans = list(pairwise(cuts))
            cost = chunking_cost(cuts, lengths, levels, size=size)
            yield name, size, {"whole": whole_paragraphs(spans, lengths, levels, size), "chunks": len(spans) * size / total, "cost": cost}


# %%
def told(found, measure, *names, size=128):
    return ", ".join(f"{name} {mean_and_spread(found[measure][name][size], '.2f')}" for name in names)


@section.claim(
    "Cuts at ends of paragraphs keep nearly all of them whole", paper="no paper: what a chunk can hold is held, if the cut is moved",
    measured=lambda found: f"chunks of 128 words: {told(found, 'whole', *KEYS.values())}",
)  # fmt: skip
def keeps(found):
    """With chunks of 128 words at least 0.95 of the paragraphs that fit into one are whole, by either way, and 0.1 more than with fixed cuts."""
    whole = {name: of[128] for name, of in found["whole"].items()}
    return min(whole[GREEDY], whole[OPTIMAL]) >= max(0.95, whole[FIXED] + 0.1)


@section.claim(
    "Overlap keeps fewer than cuts at ends do, and is read twice", paper="Devlin et al. 2019, arXiv:1810.04805, the code for SQuAD: chunks that overlap",
    measured=lambda found: f"chunks of 128 words: whole {told(found, 'whole', OVERLAP, GREEDY)}; places of chunks for each word {told(found, 'chunks', OVERLAP, GREEDY)}",
)  # fmt: skip
def overlap_costs(found):
    """With a quarter shared fewer paragraphs are whole than with greedy cuts, and chunks have more places for each word of the text."""
    return found["whole"][OVERLAP][128] < found["whole"][GREEDY][128] and found["chunks"][OVERLAP][128] > found["chunks"][GREEDY][128]


@section.claim(
    "Least cost is no more than the greedy way's", paper="Knuth and Plass 1981: the optimum over all ways to break", kind="exact",
    measured=lambda found: f"chunks of 128 words: cost {told(found, 'cost', GREEDY, OPTIMAL)}",
)  # fmt: skip
def least(found):
    """At every size, to rounding."""
    return all(found["cost"][OPTIMAL][size] <= found["cost"][GREEDY][size] + 1e-9 for size in found["cost"][OPTIMAL])


@section.report
def report(found):
    sizes = list(found["whole"][FIXED])
    rows = [[name, *(mean_and_spread(100 * found["whole"][name][size], ".0f") for size in sizes), mean_and_spread(found["chunks"][name][128], ".2f")] for name in KEYS.values()]
    section.table("chunks", ["% of paragraphs whole, chunks of", *(f"{size} words" for size in sizes), "places a word, 128"], rows)
    for key, name in KEYS.items():
        section.values(f"chunks.{key}", {"whole": 100 * found["whole"][name][128].mean(), "places": found["chunks"][name][128].mean()})


@section.figure("chunks", size=(6, 3.2))
def picture(ax, found):
    lines(ax, found["whole"], xlabel="words a chunk", ylabel="share of paragraphs whole", xscale="log", ylim=(0, 1.05))
    ax.legend()


if __name__ == "__main__":
    section.main()
