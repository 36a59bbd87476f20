"""Does attention that is spread more evenly lean less on one word that happens to go with the answer?

Attanasio et al. 2022 (EAR), arXiv:2203.09192: a penalty in training for attention of low entropy. Zayed et al. 2023 (EAT),
arXiv:2305.13088: a temperature on the trained attention, chosen for the smallest gap at nearly the accuracy. A small model tells
which of two answers twelve words speak for. Some words are weak evidence; one is the word of one of two groups, which goes with
the answer in nine of ten training texts and in no way in the test. Gaps are those of true positive rates between the groups, and
how far the probability moves when the word is exchanged. Deleting the word by hand trains nothing.
"""

# %%
from typing import NamedTuple

import numpy as np

from minitransformers.attention.multi_head_attention import MultiHeadAttention, init_multi_head_attention, multi_head_attention
from minitransformers.basics.chain import chain
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.basics.gelu import gelu
from minitransformers.basics.linear import init_linear, linear
from minitransformers.basics.softmax import softmax
from minitransformers.bias_mitigation.attention_entropy_loss import attention_entropy_loss, double_softmax_entropy_loss
from minitransformers.bias_mitigation.group_metrics import equal_opportunity_gap, group_rates
from minitransformers.bias_mitigation.tempered_attention import InverseTemperature, tempered_attention
from minitransformers.foundation import slot
from minitransformers.norms.layer_norm import init_layer_norm, layer_norm
from minitransformers.reporting import Section, lines, mean_and_spread, tried
from minitransformers.reporting.word_quality import interval
from minitransformers.training.fit import fit
from minitransformers.training.task import Task

section = Section(__file__, __doc__, kind="trained")
LENGTH, EVIDENCE, NEUTRAL, WIDTH, HEADS, BATCH = 12, 20, 40, 32, 4, 64  # evidence: words for each answer
GROUPS, NOBODY = (0, 1), 2                                   # the words of the groups, and the one in their place where it is deleted
VOCABULARY = 3 + 2 * EVIDENCE + NEUTRAL
PLAIN, DELETED = "no penalty", "word deleted by hand"
PENALTIES = (0.01, 1.0, 10.0)
ARMS = {PLAIN: (None, 0.0), **{f"entropy, {weight:g}": (attention_entropy_loss, weight) for weight in PENALTIES},
        "entropy after a second softmax, 1": (double_softmax_entropy_loss, 1.0), DELETED: (None, 0.0)}  # fmt: skip
BETAS, FLOOR = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0), 0.02  # how much accuracy on training-like texts may be lost when beta is chosen
CHOSEN = "beta chosen"


# %% Texts, and the model
def texts(rng, count, *, with_answer):
    """Ids, answers and groups; with_answer is the share of texts in which the group's word goes with the answer."""
    answer = rng.integers(2, size=count)
    group = np.where(rng.random(count) < with_answer, answer, 1 - answer)
    speaks_for = np.where(rng.random((count, LENGTH)) < 0.7, answer[:, None], 1 - answer[:, None])
    evidence = 3 + speaks_for * EVIDENCE + rng.integers(EVIDENCE, size=(count, LENGTH))
    ids = np.where(rng.random((count, LENGTH)) < 0.4, evidence, 3 + 2 * EVIDENCE + rng.integers(NEUTRAL, size=(count, LENGTH)))
    ids[np.arange(count), rng.integers(LENGTH, size=count)] = group
    return ids, answer, group


class Reader(NamedTuple):
    words: Embedding
    attention: MultiHeadAttention
    head: tuple


def init_reader(rng):
    head = (init_layer_norm(rng, WIDTH), init_linear(rng, WIDTH, WIDTH), None, init_linear(rng, WIDTH, 2))
    return Reader(init_embedding(rng, VOCABULARY, WIDTH, std=0.5), init_multi_head_attention(rng, WIDTH, num_heads=HEADS), head)


def reader(params, ids, *, core=tempered_attention, beta=1.0):
    """Logits of the two answers: what attention gathers, a mean over all positions, and a small network."""
    x, words_backward = embedding(params.words, ids=ids)
    attention = params.attention._replace(core=InverseTemperature(np.full(HEADS, beta, x.dtype)))
    gathered, attention_backward = multi_head_attention(attention, x, num_heads=HEADS, core=core)
    logits, head_backward = chain(params.head, gathered.mean(axis=-2), parts=(layer_norm, linear, slot(gelu), linear))

    def backward(dlogits):
        dhead, dmean = head_backward(dlogits)
        dattention, dx, *_ = attention_backward(np.repeat(dmean[:, None] / LENGTH, LENGTH, axis=1))
        return Reader(words_backward(dx), dattention._replace(core=None), dhead)

    return logits, backward


class Answering(Task):
    """Telling the answer, with the weight of a penalty on the entropy of attention."""

    def __init__(self, name):
        self.name, (self.penalty, self.weight) = name, ARMS[name]

    def batch(self, rng):
        return texts(rng, BATCH, with_answer=0.9)[:2]

    def loss(self, params, batch, *, rng):
        ids, answers = batch
        found = []

        def core(own, query, key, value, bias=None, *, mask=None):
            """The core, whose queries and keys get the gradient of the penalty as well."""
            heads, backward = tempered_attention(own, query, key, value, bias, mask=mask)
            scale = query.dtype.type(query.shape[-1] ** -0.5)
            value_of, penalty_backward = self.penalty(scale * query @ key.swapaxes(-1, -2))
            found.append(value_of)

            def both(dheads):
                down, dquery, dkey, *rest = backward(dheads)
                dscores = scale * penalty_backward(query.dtype.type(self.weight))
                return down, dquery + dscores @ key, dkey + dscores.swapaxes(-1, -2) @ query, *rest

            return heads, both

        logits, backward = reader(params, read(self.name, ids), core=tempered_attention if self.penalty is None else core)
        loss, loss_backward = cross_entropy(logits, targets=answers)
        return (loss + self.weight * sum(found), 1), lambda dtotal: backward(loss_backward(dtotal[0]))


def read(name, ids):
    """What the reader of an arm is given."""
    return np.where(ids <= max(GROUPS), NOBODY, ids) if name == DELETED else ids


def trained(name, rng, rate):
    return fit(init_reader(rng), Answering(name), steps=10 if section.quick else 400, peak=rate, rng=rng)


@section.tuning
def tuning(rng):
    def lost(name, rng, rate):
        params, task = trained(name, rng, rate), Answering(name)
        return np.mean([task.loss(params, task.batch(rng), rng=rng)[0][0] for _ in range(2 if section.quick else 20)])

    yield from tried(lost, ARMS, (3e-3, 1e-2) if section.quick else (1e-3, 3e-3, 1e-2, 3e-2, 0.1), rng)


# %% What is measured
def said(params, name, ids, beta):
    """The probability of the second answer."""
    return softmax(reader(params, read(name, ids), beta=beta)[0].astype(np.float64))[0][:, 1]


def numbers(rows):
    """Of rows (probability, probability with the word exchanged, answer, group): accuracy, both gaps, and the accuracy of the worse group."""
    p, other, answers, groups = rows.T
    rates = group_rates((p > 0.5).astype(int), labels=answers.astype(int), groups=groups.astype(int))
    right = (p > 0.5) == answers
    worst = min(right[groups == group].mean() for group in GROUPS)
    return np.array([right.mean(), equal_opportunity_gap(rates).difference, np.abs(p - other).mean(), worst])


MEASURES = ("right", "gap", "moved", "worst")


def rows_of(params, name, drawn, beta):
    ids, answers, groups = drawn
    exchanged = np.where(ids <= max(GROUPS), 1 - ids, ids)
    return np.stack([said(params, name, ids, beta), said(params, name, exchanged, beta), answers, groups], axis=1)


def measured(params, name, drawn, rng, beta=1.0):
    found = interval(rows_of(params, name, drawn, beta), numbers, rng, groups=2 * drawn[1] + drawn[2], resamples=100 if section.quick else 300)
    ends = (("", found.estimate), (" low", found.low), (" high", found.high))
    return {measure + end: values[i] for i, measure in enumerate(MEASURES) for end, values in ends}


def spread(params, name, ids):
    """Nats of entropy of the mean of the heads' attention, which the penalty is about, and of a single head's."""
    found = []

    def core(own, query, key, *rest, **settings):
        scores = query.shape[-1] ** -0.5 * query.astype(np.float64) @ key.swapaxes(-1, -2)
        found.extend(-attention_entropy_loss(each)[0] for each in (scores, scores.reshape(-1, 1, LENGTH, LENGTH)))
        return tempered_attention(own, query, key, *rest, **settings)

    reader(params, read(name, ids), core=core)
    return dict(zip(("of the mean", "of a head"), found, strict=True))


@section.experiment
def experiment(rng):
    count = 400 if section.quick else 3000
    test, like, dev = (texts(rng, count, with_answer=share) for share in (0.5, 0.9, 0.9))
    start = rng.integers(2**32)
    for name in ARMS:
        params = trained(name, np.random.default_rng(start), section.rates[name])
        own = measured(params, name, test, rng) | {"like": numbers(rows_of(params, name, like, 1.0))[0]}
        yield name, "all", own | spread(params, name, test[0])
        if name == PLAIN:
            on_dev = {}
            for beta in BETAS:
                on_dev[beta] = numbers(rows_of(params, name, dev, beta))
                on_test = dict(zip(MEASURES, numbers(rows_of(params, name, test, beta)), strict=True))
                yield "beta", beta, on_test | {"like": numbers(rows_of(params, name, like, beta))[0]}
            allowed = [beta for beta in BETAS if on_dev[beta][0] >= on_dev[1.0][0] - FLOOR]
            beta = min(allowed, key=lambda beta: on_dev[beta][2])  # the probability that moves, as true positives of one group are few there
            yield CHOSEN, "all", measured(params, name, test, rng, beta) | {"like": numbers(rows_of(params, name, like, beta))[0], "beta": beta}


# %%
def told(found, measure, curves, form=".3f"):
    return ", ".join(f"{curve} {mean_and_spread(found[measure][curve]['all'], form)}" for curve in curves)


@section.claim(
    "Does the penalty on entropy lower the gap?",
    paper="Attanasio et al. 2022, arXiv:2203.09192, table 2: the most bias measures improve, at a weight of 0.01",
    measured=lambda found: f"gap of true positives: {told(found, 'gap', ARMS)}; right: {told(found, 'right', ARMS)}",
)
def penalty_helps(found):
    """At one of the weights the gap of true positive rates is at most 0.8 of that without, and accuracy on training-like texts at most 0.02 lower."""
    gap, like = found["gap"], found["like"]
    names = [f"entropy, {weight:g}" for weight in PENALTIES]
    return any(gap[name]["all"] <= 0.8 * gap[PLAIN]["all"] and like[name]["all"] >= like[PLAIN]["all"] - 0.02 for name in names)


@section.claim(
    "Does a temperature that is chosen afterwards lower the gap?",
    paper="Zayed et al. 2023, arXiv:2305.13088, section 4: at most 3 % of performance is given for it",
    measured=lambda found: f"beta {mean_and_spread(found['beta'][CHOSEN]['all'])}; gap {told(found, 'gap', (PLAIN, CHOSEN))}; right {told(found, 'right', (PLAIN, CHOSEN))}; "
    f"right on training-like texts {told(found, 'like', (PLAIN, CHOSEN))}",
)
def temperature_helps(found):
    """The gap of true positive rates at the beta that was chosen on other texts is at most 0.8 of that at 1."""
    return found["gap"][CHOSEN]["all"] <= 0.8 * found["gap"][PLAIN]["all"]


@section.claim(
    "Deleting the word does more than either",
    paper="no paper: both know nothing of the word, which is their point",
    measured=lambda found: f"gap {told(found, 'gap', (*ARMS, CHOSEN))}; right {told(found, 'right', (*ARMS, CHOSEN))}",
)
def deleting(found):
    """Its gap is the smallest, and its accuracy on test texts the highest."""
    others = [name for name in (*ARMS, CHOSEN) if name != DELETED]
    gap, right = found["gap"], found["right"]
    return all(gap[DELETED]["all"] < gap[name]["all"] and right[DELETED]["all"] > right[name]["all"] for name in others)


@section.report
def report(found):
    rows = []
    keys = {PLAIN: "plain", DELETED: "deleted", CHOSEN: "chosen"} | {f"entropy, {weight:g}": f"w{1000 * weight:.0f}" for weight in PENALTIES}
    for name in (*ARMS, CHOSEN):
        of = {measure: curves[name]["all"] for measure, curves in found.items() if name in curves}
        cells = [f"{mean_and_spread(of[name], '.3f')} ({of[name + ' low'].mean():.3f} to {of[name + ' high'].mean():.3f})" for name in MEASURES[:3]]
        label = name if name != CHOSEN else f"no penalty, {CHOSEN}: {mean_and_spread(of['beta'])}"
        entropies = [mean_and_spread(of[which]) if which in of else "–" for which in ("of the mean", "of a head")]
        rows.append([label, *cells, mean_and_spread(of["worst"], ".3f"), mean_and_spread(of["like"], ".3f"), *entropies])
        if name in keys:
            section.values(f"shortcut.{keys[name]}", {measure: of[measure].mean() for measure in (*MEASURES, "like")})
        if name in keys and name != CHOSEN:
            section.values(f"shortcut.{keys[name]}.entropy", {"mean": of["of the mean"].mean(), "head": of["of a head"].mean()})
    rows.append(["always one answer", "0.500", "0.000", "0.000", "0.500", "0.500", "–", "–"])
    columns = ["gap of true positives", "moved by the word", "right, worse group", "right on training-like texts"]
    section.table("shortcut", ["learned with", "right, and 95 %", *columns, "entropy, mean of heads", "entropy of a head"], rows)
    rows = [[f"{beta:g}", *(mean_and_spread(found[measure]["beta"][beta], ".3f") for measure in (*MEASURES, "like"))] for beta in BETAS]
    section.table("betas", ["beta", "right", *columns], rows)
    section.values("shortcut", {"beta": found["beta"][CHOSEN]["all"].mean(), "texts": 3000, "steps": 400})


@section.figure("betas", size=(6, 3.2))
def picture(ax, found):
    names = {"right": "right, test", "like": "right, training-like", "gap": "gap of true positives", "moved": "moved by the word"}
    lines(ax, {label: found[measure]["beta"] for measure, label in names.items()}, xlabel="beta, an inverse temperature", ylim=(0, 1))
    ax.axvline(1, color="#808080", linestyle=":")
    ax.legend()


if __name__ == "__main__":
    section.main()
