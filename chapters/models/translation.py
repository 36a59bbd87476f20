"""Does a small encoder-decoder read what it translates?

Vaswani et al. 2017, arXiv:1706.03762, section 3: each block of the decoder attends over the whole source. The texts are verses in the English of
the 1390s and in that of 2000. The model was trained once (minitransformers/reporting/models/translators.py) and is asked about chapters that it has not
seen: with the right source, with that of another verse, and with none. What it writes is held against the source as it stands, against a
dictionary that was counted, and against what it writes for another verse. Three seeds choose the verses.
"""

# %%
from collections import Counter
from functools import cache, partial

import numpy as np

from minitransformers import trees
from minitransformers.models.beam_search import beam_search
from minitransformers.models.transformer import transformer, transformer_step
from minitransformers.reporting import Section, bits, mean_and_spread
from minitransformers.reporting.models.translators import LONGEST, SETTINGS, greedy, load_translator, nats
from minitransformers.reporting.models.verses import END, START, chrf, decoded, encoded, load_verses
from minitransformers.training.threads import hold_blas
from minitransformers.training.yardsticks import counted

section = Section(__file__, __doc__, kind="trained")
VERSES, SHOWN = 150, (40005008, 41005001, 42015011, 43015009, 46015056, 49005022, 52005021)
RIGHT, OTHER, NONE = "its own source", "the source of another verse", "no source"
GREEDY, BEAMS, BLIND, COPY, WORDS, COMMON = "greedy", "four beams", "greedy, another verse's source", "the source as it is", "word by word", "the commonest verse"
known, unknown = load_verses()
params = load_translator()


# %% What there is without a network
@cache
def dictionary():
    """For each old word the new one that it shares most verses with, for its frequency and for that of the other (Dice)."""
    both, then, now = Counter(), Counter(), Counter()
    for verse in known[:: 8 if section.quick else 1]:
        old, new = set(verse.then.split()), set(verse.now.split())
        then.update(old)
        now.update(new)
        both.update((a, b) for a in old for b in new)
    best = {}
    for (a, b), count in both.items():
        best[a] = max(best.get(a, (0, a)), (count / (then[a] + now[b]), b))
    return {a: b for a, (_, b) in best.items()}


def commonest():
    """What most verses of today say word for word."""
    return Counter(verse.now for verse in known).most_common(1)[0][0]


# %% Writing
written = partial(greedy, transformer_step, params)


def with_beams(sources):
    """The best of four beams, with the paper's length penalty."""
    steps = (partial(transformer_step, params, source=np.array([ids]), **SETTINGS) for ids in sources)
    return [decoded(beam_search(step, np.array([START]), num_tokens=LONGEST, num_beams=4, end=END)[0].ids) for step in steps]


# %%
@section.experiment
def experiment(rng):
    hold_blas()
    chosen = [unknown[i] for i in rng.permutation(len(unknown))[: 6 if section.quick else VERSES]]
    sources, targets, truth = [encoded(v.then) for v in chosen], [encoded(v.now) for v in chosen], [v.now for v in chosen]
    others = sources[1:] + sources[:1]
    for name, given in {RIGHT: sources, OTHER: others, NONE: [[END]] * len(chosen)}.items():
        yield name, "all", {"bits": bits(nats(transformer, params, given, targets)) / sum(len(text) + 1 for text in truth)}
    texts_of = {
        GREEDY: written(sources), BLIND: written(others), COPY: [v.then for v in chosen], COMMON: [commonest()] * len(chosen),
        WORDS: [" ".join(dictionary().get(word, word) for word in v.then.split()) for v in chosen],
    }  # fmt: skip
    for name, texts in {**texts_of, BEAMS: with_beams(sources)}.items():
        yield name, "all", {"like": chrf(texts, truth)}


# %%
def of(found, measure, name):
    return found[measure][name]["all"]


def told(found, measure, *names, digits=".1f"):
    return "; ".join(f"{name} {mean_and_spread(of(found, measure, name), digits)}" for name in names)


@section.claim(
    "A small encoder-decoder reads its source",
    paper="Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3: every position of the decoder attends over all positions of the input",
    measured=lambda found: f"bits a character of verses it has not seen: {told(found, 'bits', RIGHT, OTHER, NONE, digits='.2f')}",
)
def reads(found):
    """Given its own source a verse costs at least 0.3 bits a character less than given another's, and than given none."""
    return of(found, "bits", RIGHT) <= min(of(found, "bits", OTHER), of(found, "bits", NONE)) - 0.3


@section.claim(
    "Is what it writes closer to today's verse than what needs no network?",
    paper="no paper: the trivial baselines",
    measured=lambda found: f"chrF: {told(found, 'like', GREEDY, WORDS, COPY, COMMON, BLIND)}",
)
def closer(found):
    """By chrF at least 2 points above the source as it is, its words from a counted dictionary, the commonest verse, and its own text for another verse."""
    return of(found, "like", GREEDY) >= max(of(found, "like", name) for name in (WORDS, COPY, COMMON, BLIND)) + 2


@section.claim(
    "Are four beams better than the most likely token each time?",
    paper="Vaswani et al. 2017, arXiv:1706.03762, section 6.1: four beams, chosen after experimentation",
    measured=lambda found: f"chrF: {told(found, 'like', GREEDY, BEAMS)}",
)
def beams(found):
    """By chrF at least half a point."""
    return of(found, "like", BEAMS) >= of(found, "like", GREEDY) + 0.5


# %%
@section.report
def report(found):
    losses = [[f"the Transformer, given {name}", mean_and_spread(of(found, "bits", name)), None] for name in (RIGHT, OTHER, NONE)]
    pair = counted("\n".join(v.now for v in known), "\n".join(v.now for v in unknown))["bigram"]
    likes = [[name, None, mean_and_spread(of(found, "like", name), ".1f")] for name in (GREEDY, BEAMS, BLIND, WORDS, COPY, COMMON)]
    section.table("translation", ["what", "bits a character", "chrF"], [*losses, ["counted pairs of characters", f"{pair:.2f}", None], *likes])
    picked = [verse for verse in unknown if verse.number in SHOWN]
    texts = written([encoded(verse.then) for verse in picked])
    section.table("translated", ["then", "now", "written"], [[v.then, v.now, text] for v, text in zip(picked, texts, strict=True)])
    section.values("translation.bits", {key: np.mean(of(found, "bits", name)) for key, name in {"right": RIGHT, "other": OTHER, "none": NONE}.items()})
    names = {"greedy": GREEDY, "beams": BEAMS, "blind": BLIND, "copy": COPY, "words": WORDS, "common": COMMON}
    section.values("translation.chrf", {key: np.mean(of(found, "like", name)) for key, name in names.items()})
    section.values("translation", {"verses": len(known), "tests": len(unknown), "asked": VERSES, "parameters": trees.count_parameters(params)})


if __name__ == "__main__":
    section.main()
