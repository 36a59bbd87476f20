"""What does each objective of pre-training teach, for the same text and the same work?

Raffel et al. 2020, arXiv:1910.10683, section 3.2 and table 4, compare them: causal language modelling asks at every position, masked language
modelling (Devlin et al. 2018, arXiv:1810.04805) at 15 of 100, prefix language modelling behind a prefix, span corruption for the spans that were
taken out. One body learns by each of them from windows of Python's language reference, with nothing changed but who sees whom and what is asked.
Each is then read, frozen, by a linear map that sorts lines into the five entries they come from. As many updates, and about as many positions.
"""

# %%
from functools import partial

import numpy as np

from minitransformers import trees
from minitransformers.attention.core import softmax_attention
from minitransformers.attention.masks import causal_mask
from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.attention.prepare import on_both
from minitransformers.basics.chain import chain
from minitransformers.basics.embedding import embedding, init_embedding
from minitransformers.basics.gated_feed_forward import gated_feed_forward, init_gated_feed_forward
from minitransformers.basics.linear import init_linear, linear
from minitransformers.basics.residual import residual
from minitransformers.models.masked_language_modelling import masked_language_modelling
from minitransformers.models.prefix_lm import prefix_lm
from minitransformers.models.span_corruption import span_corruption
from minitransformers.norms.rms_norm import init_rms_norm, rms_norm
from minitransformers.positional.rope_fast import rope_fast
from minitransformers.reporting import Section, mean_and_spread, processor_seconds
from minitransformers.reporting.base import balanced_accuracy, base_corpus, by_trigrams, labelled_lines
from minitransformers.training.fit import fit
from minitransformers.training.task import IGNORED, Labelled, labelled_loss, on_arrays
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
LENGTH, WIDTH, HEADS, LAYERS, BATCH, STEPS, LABELS = 48, 48, 4, 2, 8, 600, 240
VOCABULARY, MASK = 288, 256                                  # bytes, the mask, and sentinels at the end
CAUSAL, PREFIX, MASKED, SPANS, NONE, COUNTED = "causal", "prefix", "masked", "span corruption", "none", "counted trigrams"
corpus = base_corpus()
windows = {part: np.lib.stride_tricks.sliding_window_view(ids, LENGTH) for part, ids in (("train", corpus.train), ("held", corpus.validation))}
known, unknown = labelled_lines(shortest=20, longest=LENGTH)
CLASSES = int(known.labels.max()) + 1


# %% One body; who sees whom is a mask
def fresh(rng):
    def block():
        return [(init_rms_norm(rng, WIDTH), part) for part in (init_multi_head_attention(rng, WIDTH, num_heads=HEADS, std=0.1), init_gated_feed_forward(rng, WIDTH, std=0.1))]

    body = [part for _ in range(LAYERS) for part in block()]
    return [init_embedding(rng, VOCABULARY, WIDTH, std=0.1), *body, init_rms_norm(rng, WIDTH), init_linear(rng, WIDTH, VOCABULARY)]


def model(params, inputs, *, head=True):
    ids, mask = inputs
    attention = partial(multi_head_attention, num_heads=HEADS, core=softmax_attention, prepare=on_both(rope_fast), mask=mask)
    block = [partial(residual, part=partial(chain, parts=(rms_norm, part))) for part in (attention, gated_feed_forward)]
    words, words_backward = embedding(params[0], ids=ids)
    parts = (*(block * LAYERS), rms_norm, *((linear,) if head else ()))
    out, body_backward = chain(params[1 : 1 + len(parts)], words, parts=parts)

    def backward(dout):
        dbody, dwords = body_backward(dout)
        return [words_backward(dwords), *dbody]

    return out, backward


# %% What is read, who sees whom, and what is asked
def causal(ids, rng):
    return ids, causal_mask(LENGTH), np.concatenate([ids[:, 1:], np.full((len(ids), 1), IGNORED)], axis=1)


def prefix(ids, rng):
    task = prefix_lm(ids, prefixes=rng.integers(1, LENGTH, size=len(ids)))
    return ids, task.mask, task.labels


def masked(ids, rng):
    hidden = masked_language_modelling(ids, rng=rng, mask_id=MASK, vocabulary=MASK + 1)
    return hidden.ids, None, hidden.labels


def spans(ids, rng):
    """The text without its spans as a prefix, and behind it the spans, which are written."""
    task = span_corruption(ids, rng=rng, vocabulary=VOCABULARY, end=None)
    both, given = np.concatenate(task, axis=1), task.source.shape[1]
    rest = prefix_lm(both, prefixes=np.full(len(both), given))
    return both, rest.mask, rest.labels


OBJECTIVES = {CAUSAL: causal, PREFIX: prefix, MASKED: masked, SPANS: spans}


def asked(name, part, rng, *, size=BATCH):
    """Inputs and targets of an objective, for random windows of a part of the text."""
    ids, mask, targets = OBJECTIVES[name](windows[part][rng.integers(len(windows[part]), size=size)], rng)
    return (ids, mask), targets


def trained(name, rng, *, rate):
    params = fresh(rng)
    if name == NONE:
        return params
    task = Labelled(model, lambda rng: asked(name, "train", rng))
    return fit(params, task, steps=3 if section.quick else STEPS, peak=rate, rng=rng, warmup=0.1, floor=0.05)


def loss_of(params, name, rng):
    """Nats a label on text that was not learned from: each objective's own, not to be compared with another's."""
    inputs, targets = asked(name, "held", rng, size=32 if section.quick else 256)
    (total, count), _ = labelled_loss(*model(params, inputs), targets)
    return float(total) / count


def means(params, name, texts):
    """The mean hidden state of each line, read as the body has learned to read."""
    found = []
    for start in range(0, len(texts), 64):
        rows = [list(text.encode()[:LENGTH]) for text in texts[start : start + 64]]
        ids = np.array([row + [MASK] * (LENGTH - len(row)) for row in rows])
        real = np.arange(LENGTH) < np.array([len(row) for row in rows])[:, None]
        sees = real[:, None, None, :] & (causal_mask(LENGTH) if name == CAUSAL else True)
        hidden, _ = model(params, (ids, sees), head=False)
        found.append(((hidden * real[..., None]).sum(axis=1) / real.sum(axis=1, keepdims=True)).astype(np.float32))
    return np.concatenate(found)


def chosen(rng):
    """As many lines with labels of each entry."""
    return np.concatenate([rng.permutation(np.flatnonzero(known.labels == label))[: LABELS // CLASSES] for label in range(CLASSES)])


def sorted_rightly(params, name, rng):
    """How many lines a linear map on the frozen body sorts rightly, all entries counting alike."""
    order = chosen(rng)
    train, test = (means(params, name, texts) for texts in ([known.lines[i] for i in order], unknown.lines))
    middle, spread = train.mean(0), train.std(0) + 1e-6
    train, test = ((found - middle) / spread for found in (train, test))
    labels = known.labels[order]

    def draw(rng):
        rows = rng.integers(len(labels), size=32)
        return train[rows], labels[rows]

    head = fit(init_linear(rng, WIDTH, CLASSES), Labelled(on_arrays(linear), draw), steps=150, peak=3e-2, rng=rng, weight_decay=0.1)
    return balanced_accuracy(linear(head, test)[0].argmax(-1), unknown.labels)


@section.tuning
def tuning(rng):
    hold_blas()
    for name in OBJECTIVES:
        for rate in (1e-2,) if section.quick else (6e-4, 1.25e-3, 2.5e-3, 5e-3, 1e-2, 2e-2):
            own = np.random.default_rng(rng.integers(2**32))
            yield name, rate, {"loss": loss_of(trained(name, own, rate=rate), name, own)}


@section.experiment
def experiment(rng):
    hold_blas()
    start = rng.integers(2**32)                              # the same first weights and the same lines with labels for all
    order = chosen(np.random.default_rng(start + 1))
    counted = by_trigrams([known.lines[i] for i in order], known.labels[order], unknown.lines)
    yield COUNTED, "all", {"right": balanced_accuracy(counted, unknown.labels)}
    for name in (*OBJECTIVES, NONE):
        with processor_seconds() as spent:
            params = trained(name, np.random.default_rng(start), rate=section.rates.get(name))
        yield name, "all", {"right": sorted_rightly(params, name, np.random.default_rng(start + 1)), "seconds": spent()}
        if name != NONE:
            _, targets = asked(name, "train", np.random.default_rng(0), size=512)
            yield name, "all", {"labels": np.mean(targets != IGNORED), "loss": loss_of(params, name, rng), "parameters": trees.count_parameters(params)}


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


@section.claim(
    "Labels a position",
    paper="counted: what a window of 48 tokens is asked, over all its positions",
    kind="exact",
    measured=lambda found: ", ".join(f"{name} {np.mean(of(found, name, 'labels')):.3f}" for name in OBJECTIVES),
)
def labels_counted(found):
    """47 of 48 for the causal objective; 9 of 52 for span corruption (7 tokens are taken, and each side has 2 sentinels); 0.15 within 0.01
    for the masked one; half for a prefix, within 0.05.
    """
    return (
        np.isclose(of(found, CAUSAL, "labels"), 47 / 48) and np.isclose(of(found, SPANS, "labels"), 9 / 52)
        and abs(of(found, MASKED, "labels") - 0.15) < 0.01 and 0.45 < of(found, PREFIX, "labels") < 0.55
    )  # fmt: skip


@section.report
def report(found):
    rows = []
    for name in (*OBJECTIVES, NONE):
        rate = f"{section.rates[name]:g}" if name in section.rates else ""
        share, loss = (f"{np.mean(of(found, name, measure)):{form}}" if name != NONE else "" for measure, form in (("labels", ".2f"), ("loss", ".2f")))
        rows.append([name, rate, share, loss, float(f"{np.mean(of(found, name, 'seconds')):.1f}"), mean_and_spread(100 * of(found, name), ".1f")])
    rows.append([COUNTED, "", "", "", None, mean_and_spread(100 * of(found, COUNTED), ".1f")])
    rows.append(["any entry", "", "", "", None, f"{100 / CLASSES:.1f}"])
    section.table("objectives", ["objective", "rate", "labels a position", "own loss, nats a label", "processor seconds", "lines sorted rightly, %"], rows)
    for name, key in {CAUSAL: "causal", PREFIX: "prefix", MASKED: "masked", SPANS: "spans", NONE: "none", COUNTED: "counted"}.items():
        section.value(f"objectives.right.{key}", 100 * np.mean(of(found, name)))
    section.values("objectives", {"steps": STEPS, "labels": LABELS, "length": LENGTH})


@section.figure("objectives", size=(5.6, 2.4))
def picture(ax, found):
    names = [*OBJECTIVES, NONE, COUNTED][::-1]
    for row, name in enumerate(names):
        ax.plot(np.atleast_1d(of(found, name)), [row] * np.size(of(found, name)), "o", alpha=0.8)
    ax.axvline(1 / CLASSES, linestyle=":", color="#808080")
    ax.set(yticks=range(len(names)), xlabel="lines sorted rightly, one point a seed; dotted: any entry")
    ax.set_yticklabels(names)


if __name__ == "__main__":
    section.main()
