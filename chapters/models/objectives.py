"""What does each objective of pre-training teach, for the same text and the same work?

Raffel et al. 2020, arXiv:1910.10683, section 3.2 and table 4, compare them: causal language modelling asks at every position, masked language
modelling (Devlin et al. 2018, arXiv:1810.04805) at 15 of 100, prefix language modelling behind a prefix, span corruption for the spans that were
taken out. One body learns by each of them from windows of Python's language reference, with nothing changed but who sees whom and what is asked.
Each is then read, frozen, by a linear map that sorts lines into the five entries they come from. As many updates, and about as many positions.
"""

# %%
from functools import partial

import numpy as np

import minitransformers as mt
from minitransformers.attention.masks import causal_mask
from minitransformers.reporting import Section, dots, mean_and_spread, nats, processor_seconds, tried
from minitransformers.reporting.base import base_corpus
from minitransformers.reporting.models import entries
from minitransformers.reporting.models.bodies import body, init_body
from minitransformers.training.fit import fit
from minitransformers.training.objectives import causal, masked, prefix, spans
from minitransformers.training.task import IGNORED, Labelled
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
LENGTH, WIDTH, HEADS, LAYERS, BATCH, STEPS, LABELS = 48, 48, 4, 2, 8, 600, 240
VOCABULARY, MASK = 288, 256                                  # bytes, the mask, and sentinels at the end
CAUSAL, PREFIX, MASKED, SPANS, NONE, COUNTED = "causal", "prefix", "masked", "span corruption", "none", "counted trigrams"
corpus = base_corpus()
windows = {part: np.lib.stride_tricks.sliding_window_view(ids, LENGTH) for part, ids in (("train", corpus.train), ("held", corpus.validation))}
known, unknown = entries.labelled_lines(shortest=20, longest=LENGTH)
CLASSES = int(known.labels.max()) + 1


# %% One body; who sees whom is a mask
model = partial(body, num_heads=HEADS)


# %% What is read, who sees whom, and what is asked
OBJECTIVES = {CAUSAL: causal, PREFIX: prefix, MASKED: partial(masked, mask_id=MASK), SPANS: partial(spans, vocabulary=VOCABULARY)}


def asked(name, part, rng, *, size=BATCH):
    """Inputs and targets of an objective, for random windows of a part of the text."""
    ids, mask, targets = OBJECTIVES[name](windows[part][rng.integers(len(windows[part]), size=size)], rng)
    return (ids, mask), targets


def trained(name, rng, *, rate):
    params = init_body(rng, VOCABULARY, WIDTH, num_layers=LAYERS, num_heads=HEADS)
    if name == NONE:
        return params
    task = Labelled(model, lambda rng: asked(name, "train", rng))
    return fit(params, task, steps=3 if section.quick else STEPS, peak=rate, rng=rng, warmup=0.1, floor=0.05)


def loss_of(params, name, rng):
    """Nats a label on text that was not learned from: each objective's own, not to be compared with another's."""
    inputs, targets = asked(name, "held", rng, size=32 if section.quick else 256)
    return nats(model(params, inputs)[0], targets)


def sorted_rightly(params, name, rng):
    """How many lines a linear map on the frozen body sorts rightly, all entries counting alike. The body reads as it has learned to."""

    def states(ids, real):
        sees = real[:, None, None, :] & (causal_mask(LENGTH) if name == CAUSAL else True)
        return model(params, (ids, sees), head=False)[0]

    probe = {"least": 1e-6, "rng": rng, "steps": 150, "peak": 3e-2, "batch_size": 32}
    return entries.probed(states, entries.chosen_lines(known, LABELS, rng), unknown, length=LENGTH, fill=MASK, **probe)


@section.tuning
def tuning(rng):
    rates = (1e-2,) if section.quick else (6e-4, 1.25e-3, 2.5e-3, 5e-3, 1e-2, 2e-2)
    yield from tried(lambda name, own, *, rate: loss_of(trained(name, own, rate=rate), name, own), OBJECTIVES, rates, rng, alike=False)


@section.experiment
def experiment(rng):
    hold_blas()
    start = rng.integers(2**32)                              # the same first weights and the same lines with labels for all
    counted = entries.by_trigrams(*entries.chosen_lines(known, LABELS, np.random.default_rng(start + 1)), unknown.lines)
    yield COUNTED, "all", {"right": entries.balanced_accuracy(counted, unknown.labels)}
    for name in (*OBJECTIVES, NONE):
        with processor_seconds() as spent:
            params = trained(name, np.random.default_rng(start), rate=section.rates.get(name))
        yield name, "all", {"right": sorted_rightly(params, name, np.random.default_rng(start + 1)), "seconds": spent()}
        if name != NONE:
            _, targets = asked(name, "train", np.random.default_rng(0), size=512)
            yield name, "all", {"labels": np.mean(targets != IGNORED), "loss": loss_of(params, name, rng), "parameters": mt.trees.count_parameters(params)}


# %%
def of(found, name, measure="right"):
    return found[measure][name]["all"]


def told(found, *names):
    return "lines sorted rightly: " + "; ".join(f"{name} {mean_and_spread(of(found, name))}" for name in names)


@section.claim(
    "Does every objective teach the body something that the task can use?",
    paper="Raffel et al. 2020, arXiv:1910.10683, table 4: all pre-training objectives help",
    measured=lambda found: told(found, *OBJECTIVES, NONE),
)
def helps(found):
    """A linear map sorts at least 0.03 more of the lines rightly on each of the four bodies than on one that learned nothing."""
    return min(of(found, name) for name in OBJECTIVES) >= of(found, NONE) + 0.03


@section.claim(
    "Do objectives that read in both directions teach more, for the same work?",
    paper="Devlin et al. 2018, arXiv:1810.04805, section 5.1: masked language modelling beats left to right",
    measured=lambda found: told(found, CAUSAL, PREFIX, MASKED, SPANS),
)
def both_directions(found):
    """Masked language modelling and span corruption both sort at least 0.02 more of the lines rightly than the causal objective."""
    return min(of(found, MASKED), of(found, SPANS)) >= of(found, CAUSAL) + 0.02


@section.report
def report(found):
    rows = []
    for name in (*OBJECTIVES, NONE):
        rate = f"{section.rates[name]:g}" if name in section.rates else ""
        share, loss = (f"{np.mean(of(found, name, measure)):.2f}" if name != NONE else "" for measure in ("labels", "loss"))
        rows.append([name, rate, share, loss, float(f"{np.mean(of(found, name, 'seconds')):.1f}"), mean_and_spread(100 * of(found, name), ".1f")])
    rows.append([COUNTED, "", "", "", None, mean_and_spread(100 * of(found, COUNTED), ".1f")])
    rows.append(["any entry", "", "", "", None, f"{100 / CLASSES:.1f}"])
    section.table("objectives", ["objective", "rate", "labels a position", "own loss, nats a label", "processor seconds", "lines sorted rightly, %"], rows)
    keys = {CAUSAL: "causal", PREFIX: "prefix", MASKED: "masked", SPANS: "spans", NONE: "none", COUNTED: "counted"}
    section.values("objectives.right", {key: 100 * np.mean(of(found, name)) for name, key in keys.items()})
    section.values("objectives", {"steps": STEPS, "labels": LABELS, "length": LENGTH})


@section.figure("objectives", size=(5.6, 2.4))
def picture(ax, found):
    right = {name: of(found, name) for name in (*OBJECTIVES, NONE, COUNTED)}
    dots(ax, right, at=1 / CLASSES, xlabel="lines sorted rightly, one point a seed; dotted: any entry")


if __name__ == "__main__":
    section.main()
