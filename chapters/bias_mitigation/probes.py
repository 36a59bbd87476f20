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
from typing import NamedTuple

import numpy as np

from minitransformers.basics.chain import chain
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.basics.gelu import gelu
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.bias_mitigation.alignment_loss import alignment_loss
from minitransformers.bias_mitigation.contrastive_loss import contrastive_loss
from minitransformers.bias_mitigation.inlp import fit_linear
from minitransformers.foundation import slot
from minitransformers.reporting import Section, dots, mean_and_spread, nats, tried
from minitransformers.reporting.word_quality import beside_the_first, interval, span, with_ends
from minitransformers.training.fit import fit
from minitransformers.training.task import Labelled, Task, on_arrays

section = Section(__file__, __doc__, kind="trained")
OCCUPATIONS, TOPICS, EACH, CLEAN, WIDTH, BATCH = 12, 4, 10, 0.8, 32, 128
SHARES = np.linspace(0.1, 0.9, OCCUPATIONS)                  # of each occupation, how often it stands with the second group
VOCABULARY = 3 + OCCUPATIONS + TOPICS * EACH                 # words of two groups, one for neither, occupations, topics
BAYES = float(np.maximum(SHARES, 1 - SHARES).mean())         # right, from the occupation alone
TOPIC, CDA, DELETED = "topic alone", "both forms learned", "word deleted by hand"
ALIGNED, CHOSEN, BOTH = "alignment", "InfoNCE", "InfoNCE and alignment"
ARMS = {TOPIC: "topic", CDA: "cda", ALIGNED: "aligned", CHOSEN: "chosen", BOTH: "both", DELETED: "deleted"}
EXTRA = {ALIGNED: alignment_loss, CHOSEN: contrastive_loss, BOTH: partial(contrastive_loss, alignment=1.0)}
PROBE, MEASURES = "probe of two layers", ("topic", "linear", "two layers")


# %% Sentences, and the encoder
def sentences(rng, count):
    """Ids (sentences, 5), their topics and groups."""
    who, topic = rng.integers(OCCUPATIONS, size=count), rng.integers(TOPICS, size=count)
    group = (rng.random(count) < SHARES[who]).astype(int)
    of = np.where(rng.random((count, 3)) < CLEAN, topic[:, None], rng.integers(TOPICS, size=(count, 3)))
    words = 3 + OCCUPATIONS + of * EACH + rng.integers(EACH, size=(count, 3))
    return np.concatenate([group[:, None], 3 + who[:, None], words], axis=1), topic, group


def exchanged(ids):
    return np.concatenate([1 - ids[:, :1], ids[:, 1:]], axis=1)


class Encoder(NamedTuple):
    words: Embedding
    layers: tuple
    head: Linear


def encode(params, ids):
    x, words_backward = embedding(params.words, ids=ids)
    vectors, layers_backward = chain(params.layers, x.mean(axis=1), parts=(linear, slot(gelu), linear))

    def backward(dvectors):
        dlayers, dmean = layers_backward(dvectors)
        return words_backward(np.repeat(dmean[:, None] / ids.shape[1], ids.shape[1], axis=1)), dlayers

    return vectors, backward


class Telling(Task):
    """The topic of sentences, and what an arm asks of pairs."""

    def __init__(self, arm):
        self.arm = arm

    def batch(self, rng):
        return sentences(rng, BATCH)[:2]

    def loss(self, params, batch, *, rng):
        ids, topics = batch
        if self.arm == DELETED:
            ids = read(self.arm, ids)
        vectors, encode_backward = encode(params, np.concatenate([ids, exchanged(ids)]) if self.arm in (CDA, *EXTRA) else ids)
        told = len(vectors) if self.arm == CDA else len(ids)
        logits, head_backward = linear(params.head, vectors[:told])
        loss, loss_backward = cross_entropy(logits, targets=np.resize(topics, told))
        extra, extra_backward = EXTRA[self.arm](vectors[: len(ids)], vectors[len(ids) :]) if self.arm in EXTRA else (0.0, None)

        def backward(dtotal):
            dhead, dtold = head_backward(loss_backward(dtotal[0]))
            dvectors = np.concatenate([dtold, np.zeros_like(vectors[told:])])
            if extra_backward is not None:
                dvectors = dvectors + np.concatenate(extra_backward(dtotal[0]))
            return Encoder(*encode_backward(dvectors), dhead)

        return (loss + extra, 1), backward


def read(arm, ids):
    """What the encoder of an arm is given."""
    return np.concatenate([np.full_like(ids[:, :1], 2), ids[:, 1:]], axis=1) if arm == DELETED else ids


def trained(arm, rng, rate):
    layers = (init_linear(rng, WIDTH, 2 * WIDTH), None, init_linear(rng, 2 * WIDTH, WIDTH))
    params = Encoder(init_embedding(rng, VOCABULARY, WIDTH, std=0.5), layers, init_linear(rng, WIDTH, TOPICS))
    return fit(params, Telling(arm), steps=10 if section.quick else 400, peak=rate, rng=rng)


# %% Probes
def probe(x, groups, rng, rate):
    """A network of one hidden layer that tells the group: x -> logits."""
    def draw(rng):
        rows = rng.integers(len(x), size=BATCH)
        return x[rows], groups[rows]

    model = partial(chain, parts=(linear, slot(gelu), linear))
    start = (init_linear(rng, x.shape[1], 64), None, init_linear(rng, 64, 2))
    found = fit(start, Labelled(on_arrays(model), draw), steps=10 if section.quick else 600, peak=rate, rng=rng)
    return lambda rows: model(found, rows)[0]


def standard(x, like):
    return (x - like.mean(axis=0)) / (like.std(axis=0) + 1e-6)


def count():
    return 500 if section.quick else 3000


@cache
def plain_vectors(seed):
    """Vectors of the encoder of topics alone, and groups: what the rate of the probe is chosen on."""
    rng = np.random.default_rng(seed)
    params = trained(TOPIC, rng, 0.005)
    return [(encode(params, ids)[0], groups) for ids, _, groups in (sentences(rng, count()) for _ in range(2))]


@section.tuning
def tuning(rng):
    def lost(name, rng, rate):
        if name == PROBE:
            (x, groups), (other, others) = plain_vectors(int(rng.integers(2**32)))
            return nats(probe(standard(x, x), groups, rng, rate)(standard(other, x)), others)
        params, task = trained(name, rng, rate), Telling(name)
        return np.mean([task.loss(params, task.batch(rng), rng=rng)[0][0] for _ in range(2 if section.quick else 20)])

    rates = dict.fromkeys(ARMS, (1e-3, 3e-3, 1e-2, 3e-2)) | dict.fromkeys((CHOSEN, BOTH), (1e-2, 3e-2, 0.1, 0.3)) | {PROBE: (1e-2, 3e-2, 0.1, 0.3)}
    yield from tried(lost, rates, {name: few[1:3] for name, few in rates.items()} if section.quick else rates, rng)


@section.experiment
def experiment(rng):
    (ids, _, groups), (other, topics, others) = sentences(rng, count()), sentences(rng, count())
    start, right = rng.integers(2**32), []
    for arm in ARMS:
        own = np.random.default_rng(start)
        params = trained(arm, own, section.rates[arm])
        x, held, swapped = (encode(params, read(arm, each))[0].astype(np.float64) for each in (ids, other, exchanged(other)))
        units = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (held, swapped)]
        yield arm, "all", {"pairs": np.sum(units[0] * units[1], axis=1).mean(), "others": np.sum(units[0][1:] * units[0][:-1], axis=1).mean()}
        logits = linear(params.head, held.astype(np.float32))[0]
        x, held = standard(x, x), standard(held, x)
        weight, intercept = fit_linear(x, groups, l2=1.0)
        asked = probe(x.astype(np.float32), groups, own, section.rates[PROBE])(held.astype(np.float32))
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
