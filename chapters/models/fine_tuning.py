"""Does a model that has read much text learn a small labelled task better than one that begins from nothing?

Radford et al. 2018 (GPT), section 4.2, and Devlin et al. 2018, arXiv:1810.04805, section 4: one set of weights, learned on text without
labels, serves many tasks with few. The task: which of five entries of Python's language reference does a line come from? The base model has
read the rest of the reference and four fifths of these entries, and no line of the tests. It learns on in full; or stays as it is, and a
linear map reads the mean of its hidden states; or the same network starts from nothing. A table of trigrams, counted, stands beside them.
"""

# %%
from functools import partial

import numpy as np

import minitransformers as mt
from minitransformers.models.llama import llama_body
from minitransformers.reporting import Section, base, level, lines, mean_and_spread, processor_seconds, ticks_at, tried
from minitransformers.reporting.base import SETTINGS, SIZES
from minitransformers.reporting.models import entries
from minitransformers.training.classification import Classification
from minitransformers.training.fit import fit
from minitransformers.training.language_modelling import LanguageModelling
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
LABELS, STEPS, BATCH, SHORTEST, LONGEST, TUNED = (60, 240, 960), 100, 16, 20, 48, 240
SCRATCH, PROBE, FULL, COUNTED = "from nothing", "frozen, with a linear map", "all of it learns on", "counted trigrams"
pretrained, corpus = base.load_base(), base.base_corpus()


# %% Lines, and which of five entries each is from
known, unknown = entries.labelled_lines(shortest=SHORTEST, longest=LONGEST)
CLASSES = int(known.labels.max()) + 1


def padded(texts):
    """Bytes (texts, LONGEST), and a weight for each that makes sums means."""
    ids, real = entries.padded(texts, LONGEST)
    return ids, entries.shares_of(real)


def states(ids, real):
    """What a head would read the mean of, in the base model."""
    return llama_body(pretrained, ids=ids, **SETTINGS)[0]


# %% The four ways
def trained(way, rng, *, number, rate, held=None):
    """Whose share of right answers on held-out lines, every entry counting alike; and the parameters, where all of them learn."""
    chosen = entries.chosen_lines(known, number, rng)
    asked, truth = held or unknown
    if way == COUNTED:
        return entries.balanced_accuracy(entries.by_trigrams(*chosen, asked), truth), None
    steps = 3 if section.quick else STEPS
    if way == PROBE:
        probe = {"least": 1e-3, "rng": rng, "steps": steps, "peak": rate, "batch_size": BATCH}
        return entries.probed(states, chosen, held or unknown, length=LONGEST, **probe), None
    train, test = padded(chosen.lines), padded(asked)
    params = pretrained if way == FULL else mt.init_llama(rng, **SIZES, std=0.1), mt.init_linear(rng, SIZES["d_model"], CLASSES)
    task = Classification(entries.classifier, (train, chosen.labels), (test, truth), batch_size=BATCH)
    params = fit(params, task, steps=steps, peak=rate, rng=rng, warmup=0.1, weight_decay=0.1)
    return entries.balanced_accuracy(entries.classifier(params, test)[0].argmax(-1), truth), params


@section.tuning
def tuning(rng):
    cut = rng.permutation(len(known.labels))[:300]               # lines that may be learned from, and are not asked about later
    held = entries.Labelled([known.lines[i] for i in cut], known.labels[cut])
    rates = (1e-2,) if section.quick else (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)

    def lost(way, own, *, rate):
        return 1 - trained(way, own, number=TUNED, rate=rate, held=held)[0]

    yield from tried(lost, (SCRATCH, PROBE, FULL), rates, rng, alike=False, starts=2)


@section.experiment
def experiment(rng):
    hold_blas()
    reading = LanguageModelling(corpus, partial(mt.llama, **SETTINGS), context=base.LENGTH, batch_size=8, eval_windows=4 if section.quick else 64)
    yield FULL, 0, {"read": reading.evaluate(pretrained)["bits per character"]}
    for number in LABELS[:1] if section.quick else LABELS:
        start = rng.integers(2**32)
        for way in (SCRATCH, PROBE, FULL, COUNTED):
            with processor_seconds() as spent:
                right, params = trained(way, np.random.default_rng(start), number=number, rate=section.rates.get(way))
            yield way, number, {"right": right, "seconds": spent()}
            if way == FULL:                                  # what is left of what it knew
                yield FULL, number, {"read": reading.evaluate(params[0])["bits per character"]}


# %%
def told(found, *ways):
    each = (f"{way} {', '.join(mean_and_spread(found['right'][way][n]) for n in LABELS)}" for way in ways)
    return f"right with {', '.join(map(str, LABELS))} labels: {'; '.join(each)}"


@section.claim(
    "Does the model that has read beat the same network from nothing?",
    paper="Radford et al. 2018, table 5: without pre-training the same network loses 14.8 per cent on average",
    measured=lambda found: told(found, SCRATCH, FULL),
)
def beats_nothing(found):
    """With 60, 240 and 960 labels it is right in at least 0.05 more of the lines."""
    return all(found["right"][FULL][n] >= found["right"][SCRATCH][n] + 0.05 for n in LABELS)


@section.claim(
    "Is it enough to read its hidden states?",
    paper="Devlin et al. 2018, arXiv:1810.04805, section 5.3: frozen features come close to fine-tuning",
    measured=lambda found: told(found, PROBE, FULL),
)
def probe(found):
    """A linear map on the frozen model is within 0.03 of the model that learns on, or ahead, with 60, 240 and 960 labels."""
    return all(found["right"][PROBE][n] >= found["right"][FULL][n] - 0.03 for n in LABELS)


@section.claim(
    "Does a small model that has read beat counting three characters?",
    paper="no paper: the trivial baseline",
    measured=lambda found: told(found, COUNTED, PROBE, FULL),
)
def beats_counting(found):
    """The better of the two that begin with the base model is ahead of counted trigrams with 60 and with 240 labels."""
    return all(max(found["right"][PROBE][n], found["right"][FULL][n]) > found["right"][COUNTED][n] for n in LABELS[:2])


@section.report
def report(found):
    rows, numbers = [], list(found["right"][FULL])
    for way in (SCRATCH, PROBE, FULL, COUNTED):
        rate = f"{section.rates[way]:g}" if way in section.rates else ""
        seconds = float(f"{np.mean(found['seconds'][way][numbers[-1]]):.1f}")
        rows.append([way, rate, seconds, *(mean_and_spread(100 * found["right"][way][n], ".1f") for n in numbers)])
    rows.append(["any entry", "", None, *[f"{100 / CLASSES:.1f}"] * len(numbers)])
    section.table("fine_tuning", ["the model", "rate", "processor seconds", *(f"{n:,} labels, %" for n in numbers)], rows)
    section.values("fine_tuning", {"classes": CLASSES, "lines": len(known.labels), "tests": len(unknown.labels), "steps": STEPS})
    for key, way in {"scratch": SCRATCH, "probe": PROBE, "full": FULL, "counted": COUNTED}.items():
        section.values(f"fine_tuning.{key}", {f"n{n}": 100 * np.mean(found["right"][way][n]) for n in numbers})
    section.values("fine_tuning.read", {f"n{n}": np.mean(bits) for n, bits in found["read"][FULL].items()})


@section.figure("fine_tuning", size=(5.6, 3.2))
def picture(ax, found):
    lines(ax, found["right"], xlabel="labels", ylabel="right", xscale="log")
    ticks_at(ax, list(found["right"][FULL]))
    level(ax, 1 / CLASSES, "any entry")
    ax.legend(fontsize=8)


if __name__ == "__main__":
    section.main()
