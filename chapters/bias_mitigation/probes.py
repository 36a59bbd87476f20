"""Does pulling a sentence and its counterfactual together hide the group from a probe?

He et al. 2022 (MABEL), arXiv:2210.14975, and Cheng et al. 2021 (FairFil), arXiv:2103.06413: an encoder learns that a sentence and
the same sentence with the words of groups exchanged mean the same. Here a sentence is a word of one of two groups, an occupation
and three words of a topic; a small encoder learns to tell the topic, with or without a term for pairs. Then probes that nothing
was trained against ask its vectors for the group (Elazar and Goldberg 2018, arXiv:1808.06640). Chance is not the floor:
exchanging the word leaves the occupation, which tells the group by itself, and how often is known exactly. Deleting the word by
hand trains nothing.
"""

# %%
from functools import cache, partial

import numpy as np

from minitransformers.basics.linear import linear
from minitransformers.bias_mitigation.alignment_loss import alignment_loss
from minitransformers.bias_mitigation.contrastive_loss import contrastive_loss
from minitransformers.bias_mitigation.inlp import fit_linear
from minitransformers.reporting import Section, dots, mean_and_spread, nats, tried
from minitransformers.reporting.bias_mitigation.probed import (
    BAYES,
    TOPICS,
    Telling,
    Way,
    encode,
    exchanged,
    learned,
    probe,
    sentences,
    standard,
)
from minitransformers.reporting.bias_mitigation.word_quality import beside_the_first, interval, span, with_ends

section = Section(__file__, __doc__, kind="trained")
TOPIC, CDA, DELETED = "topic alone", "both forms learned", "word deleted by hand"
ALIGNED, CHOSEN, BOTH = "alignment", "InfoNCE", "InfoNCE and alignment"
ARMS = {TOPIC: "topic", CDA: "cda", ALIGNED: "aligned", CHOSEN: "chosen", BOTH: "both", DELETED: "deleted"}
EXTRA = {ALIGNED: alignment_loss, CHOSEN: contrastive_loss, BOTH: partial(contrastive_loss, alignment=1.0)}
WAYS = {TOPIC: Way(), CDA: Way(both_forms=True), **{arm: Way(extra=extra) for arm, extra in EXTRA.items()}, DELETED: Way(deleted=True)}
PROBE, MEASURES = "probe of two layers", ("topic", "linear", "two layers")


# %% What is trained: an encoder in each way, and a probe
def count():
    return 500 if section.quick else 3000


def updates(name):
    return 10 if section.quick else 600 if name == PROBE else 400


@cache
def plain_vectors(seed):
    """Vectors of the encoder of topics alone, and groups: what the rate of the probe is chosen on."""
    rng = np.random.default_rng(seed)
    params = learned(WAYS[TOPIC], rng, steps=updates(TOPIC), rate=0.005)
    return [(encode(params, ids)[0], groups) for ids, _, groups in (sentences(rng, count()) for _ in range(2))]


@section.tuning
def tuning(rng):
    def lost(name, rng, rate):
        if name == PROBE:
            (x, groups), (other, others) = plain_vectors(int(rng.integers(2**32)))
            return nats(probe(standard(x, x), groups, rng, steps=updates(PROBE), rate=rate)(standard(other, x)), others)
        params, task = learned(WAYS[name], rng, steps=updates(name), rate=rate), Telling(WAYS[name])
        return np.mean([task.loss(params, task.batch(rng), rng=rng)[0][0] for _ in range(2 if section.quick else 20)])

    rates = dict.fromkeys(ARMS, (1e-3, 3e-3, 1e-2, 3e-2)) | dict.fromkeys((CHOSEN, BOTH), (1e-2, 3e-2, 0.1, 0.3)) | {PROBE: (1e-2, 3e-2, 0.1, 0.3)}
    yield from tried(lost, rates, {name: few[1:3] for name, few in rates.items()} if section.quick else rates, rng)


# %% What a probe that nothing was trained against reads
@section.experiment
def experiment(rng):
    (ids, _, groups), (other, topics, others) = sentences(rng, count()), sentences(rng, count())
    start, right = rng.integers(2**32), []
    for arm in ARMS:
        own = np.random.default_rng(start)
        params = learned(WAYS[arm], own, steps=updates(arm), rate=section.rates[arm])
        x, held, swapped = (encode(params, WAYS[arm].read(each))[0].astype(np.float64) for each in (ids, other, exchanged(other)))
        units = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (held, swapped)]
        yield arm, "all", {"pairs": np.sum(units[0] * units[1], axis=1).mean(), "others": np.sum(units[0][1:] * units[0][:-1], axis=1).mean()}
        logits = linear(params.head, held.astype(np.float32))[0]
        x, held = standard(x, x), standard(held, x)
        weight, intercept = fit_linear(x, groups, l2=1.0)
        asked = probe(x.astype(np.float32), groups, own, steps=updates(PROBE), rate=section.rates[PROBE])(held.astype(np.float32))
        right.append([logits.argmax(axis=1) == topics, (held @ weight + intercept)[:, 0] > 0, asked.argmax(axis=1)])
        right[-1][1:] = [guess == others for guess in right[-1][1:]]
    rows = np.array(right, float).transpose(2, 0, 1)         # (sentences, arms, measures)
    found = interval(rows, lambda drawn: beside_the_first(drawn.mean(axis=0)), rng, resamples=100 if section.quick else 500)
    for i, arm in enumerate(ARMS):
        for j, name in enumerate(MEASURES):
            yield arm, "all", with_ends(type(found)(*(values[..., j, :] for values in found)), i, name)


# %%
def told(found, measure, arms=tuple(ARMS)):
    return ", ".join(f"{arm} {mean_and_spread(found[measure][arm]['all'], '.3f')}" for arm in arms)


@section.claim(
    "Aligned pairs lower what a probe reads, and the topic is told as well",
    paper="He et al. 2022, arXiv:2210.14975, table 5: less bias at equal accuracy",
    measured=lambda found: f"probe of two layers: {told(found, 'two layers')}; topic: {told(found, 'topic')}; the occupation alone tells {BAYES:.3f}",
)
def aligned_lower(found):
    """The probe of two layers is right at least 0.1 less often behind alignment than behind the topic alone, and topics at most 0.02 less often."""
    return found["two layers more"][ALIGNED]["all"] <= -0.1 and found["topic more"][ALIGNED]["all"] >= -0.02


@section.claim(
    "Is learning from both forms enough?",
    paper="Zhao et al. 2018, arXiv:1804.06876: exchanged text, where the decision is what is measured",
    measured=lambda found: f"probe of two layers: {told(found, 'two layers', (TOPIC, CDA))}; linear: {told(found, 'linear', (TOPIC, CDA))}",
)
def both_forms(found):
    """The probe of two layers is right at least 0.1 less often than behind the topic alone."""
    return found["two layers more"][CDA]["all"] <= -0.1


@section.claim(
    "Does any term for pairs bring the probe to chance?",
    paper="no paper: what the other words tell of the group is left",
    measured=lambda found: f"linear: {told(found, 'linear', (*EXTRA, DELETED))}; two layers: {told(found, 'two layers', (*EXTRA, DELETED))}; the occupation alone {BAYES:.3f}",
)
def to_chance(found):
    """Behind one of the three terms the upper end of the interval of the probe of two layers is at most 0.52."""
    return any(found["two layers high"][arm]["all"] <= 0.52 for arm in EXTRA)


@section.claim(
    "Does the cosine of pairs show any of it?",
    paper="Cheng et al. 2021, arXiv:2103.06413: pairs are pulled together",
    measured=lambda found: f"of pairs: {told(found, 'pairs')}; of other sentences: {told(found, 'others')}",
)
def cosine_shows(found):
    """Without any term for pairs their mean cosine is below 0.95."""
    return found["pairs"][TOPIC]["all"] < 0.95


@section.report
def report(found):
    rows = []
    for arm, key in ARMS.items():
        of = {measure: curves[arm]["all"] for measure, curves in found.items()}
        cells = [f"{mean_and_spread(of[name], '.3f')} ({np.mean(of[name + ' low']):.3f} to {np.mean(of[name + ' high']):.3f})" for name in MEASURES]
        change = span(of, "two layers more", "+.3f") if arm != TOPIC else "–"
        rows.append([arm, *cells, change, mean_and_spread(of["pairs"], ".3f"), mean_and_spread(of["others"])])
        names = {"topic": "topic", "linear": "linear", "mlp": "two layers", "pairs": "pairs"}
        section.values(f"probes.{key}", {name: of[measure].mean() for name, measure in names.items()})
    rows.append(["the occupation alone, exactly", "–", f"{BAYES:.3f}", f"{BAYES:.3f}", "–", "–", "–"])
    rows.append(["always one group, one topic", f"{1 / TOPICS:.3f}", "0.500", "0.500", "–", "–", "–"])
    columns = ["learned with", "topic right, and 95 %", "group, linear probe", "group, probe of two layers", "its change", "cosine of pairs", "of others"]
    section.table("probes", columns, rows)
    section.values("probes", {"bayes": BAYES, "sentences": count(), "steps": 400})


@section.figure("probes", size=(6, 2.6))
def picture(ax, found):
    dots(ax, {arm: found["two layers"][arm]["all"] for arm in ARMS}, at=BAYES, xlabel="groups told right; dotted: by the occupation alone")


if __name__ == "__main__":
    section.main()
