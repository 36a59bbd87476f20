"""Is a sentence found sooner by its place in the structure than by the numbers of its tokens?

No one paper: BERT adds the number of the sentence, HiBERT counts in sentences and in documents, and neither measures it alone.
The task: does sentence 2 of paragraph 1 contain a word? With a row for each level the sentence is a conjunction of two rows.
In a flat table it stands somewhere else in every document. The rows that levels save go into hidden units.
"""

# %%
from functools import partial

import numpy as np

import minitransformers as mt
from minitransformers.positional.hierarchical import places_of
from minitransformers.reporting import Section, level, lines, mean_and_spread
from minitransformers.training.fit import fit
from minitransformers.training.task import Labelled, accuracy

section = Section(__file__, __doc__, kind="trained")
WIDTH, HIDDEN, WORDS, PARAGRAPHS, SENTENCES, LONGEST = 32, 64, 10, 3, 3, 6
LEVELS, FLAT, STEPS, EVERY = "paragraph, sentence, word", "flat learned table", 160, 20
ROWS = {LEVELS: PARAGRAPHS + SENTENCES + LONGEST, FLAT: PARAGRAPHS * SENTENCES * LONGEST}
WIDER = {LEVELS: WIDTH * (ROWS[FLAT] - ROWS[LEVELS]) // (2 * WIDTH + 1), FLAT: 0}  # hidden units that the saved rows pay for


# %% The task
def documents(rng, size):
    """Documents (tokens, which are no padding, places at every level), and whether sentence 2 of paragraph 1 contains the word 0.

    Sentences have 3 to LONGEST tokens, the last a full stop or the end of a paragraph; each contains the word, once, or not, by chance.
    """
    lengths = rng.integers(3, LONGEST + 1, size=(size, PARAGRAPHS * SENTENCES))
    ends = lengths.cumsum(axis=1)
    places = np.arange(ends.max())
    real = places < ends[:, -1:]
    sentence = np.minimum((places[:, None] >= ends[:, None]).sum(-1), PARAGRAPHS * SENTENCES - 1)
    tokens = np.where(real, rng.integers(1, WORDS, size=real.shape), WORDS + 2)
    contains = rng.random(lengths.shape) < 0.5
    at = (ends - lengths + rng.integers(lengths - 1))[contains]
    tokens[np.nonzero(contains)[0], at] = 0
    stops = np.where(np.arange(1, PARAGRAPHS * SENTENCES + 1) % SENTENCES == 0, WORDS + 1, WORDS)
    np.put_along_axis(tokens, ends - 1, stops[None], axis=1)
    first = np.diff(sentence, prepend=-1, axis=1) > 0
    begins = np.stack([first & (sentence % SENTENCES == 0), first], axis=1)
    return (tokens, real, places_of(begins) * real[:, None]), contains[:, SENTENCES + 2].astype(int)


# %% The model: words, positions, one block, the mean over the document, an answer
def init_reader(rng, scheme):
    block = mt.TransformerBlock(
        mt.init_layer_norm(rng, WIDTH), mt.init_multi_head_attention(rng, WIDTH, num_heads=2),
        mt.init_layer_norm(rng, WIDTH), mt.init_feed_forward(rng, WIDTH, d_hidden=HIDDEN + WIDER[scheme]),
    )  # fmt: skip
    table = partial(mt.init_hierarchical, places=[PARAGRAPHS, SENTENCES, LONGEST]) if scheme == LEVELS else partial(mt.init_learned, max_positions=ROWS[FLAT])
    positions = table(rng, WIDTH, std=0.5)
    return mt.init_embedding(rng, WORDS + 3, WIDTH, std=0.5), (positions, block, mt.init_layer_norm(rng, WIDTH), None, mt.init_linear(rng, WIDTH, 2))


def reader(params, document, *, scheme):
    tokens, real, places = document
    positions = partial(mt.hierarchical, ids=places) if scheme == LEVELS else mt.learned
    mixer = partial(mt.multi_head_attention, num_heads=2, core=mt.softmax_attention)
    block = partial(mt.transformer_block, mixer=mixer, channel=mt.feed_forward, norm=mt.layer_norm, mask=real[:, None, None])
    x, words_backward = mt.embedding(params[0], ids=tokens)
    logits, body_backward = mt.chain(params[1], x, parts=(positions, block, mt.layer_norm, mt.slot(partial(mean_over, real=real)), mt.linear))

    def backward(dlogits):
        dbody, dx = body_backward(dlogits)
        return words_backward(dx), dbody

    return logits, backward


def mean_over(x, *, real):
    """The mean of the real tokens, (size, d_model)."""
    share = (real / real.sum(axis=1, keepdims=True)).astype(x.dtype)[:, None]
    return (share @ x)[:, 0], lambda dout: share.swapaxes(-1, -2) * dout[:, None]


def curve(scheme, rng, *, rate):
    """The share of new documents that is answered rightly, every few steps, and the number of parameters."""
    steps, model = 20 if section.quick else STEPS, partial(reader, scheme=scheme)
    test, answers = documents(np.random.default_rng([section.seed, 1000]), 64 if section.quick else 256)
    params, right = init_reader(rng, scheme), {}
    def watch(step, _, params):
        if step % EVERY == 0:
            right[step] = accuracy(model(params, test)[0], answers)

    fit(params, Labelled(model, partial(documents, size=32)), steps=steps, peak=rate, rng=rng, warmup=0.06, floor=0.1, watch=watch)
    return right, mt.trees.count_parameters(params)


@section.tuning
def tuning(rng):
    for scheme in ROWS:
        for rate in (2.5e-3, 5e-3, 1e-2):
            right, _ = curve(scheme, np.random.default_rng(rng.integers(2**32)), rate=rate)
            yield scheme, rate, {"loss": 1 - np.mean(list(right.values()))}  # wrong answers, over the whole of training


@section.experiment
def experiment(rng):
    for scheme in ROWS:
        right, size = curve(scheme, rng, rate=section.rates[scheme])
        yield scheme, "all", {"parameters": size}
        for step, share in right.items():
            yield scheme, step, {"right": share}


@section.claim(
    "Levels find a sentence sooner than flat positions",
    paper="no one paper: BERT adds the number of the sentence, HiBERT counts in sentences and in documents, and neither measures it alone",
    measured=lambda found: f"levels above 95 % after {arrived(found)} steps; flat tables after {STEPS} steps at "
    f"{100 * last(found, FLAT).min():.0f} to {100 * last(found, FLAT).max():.0f} %",
)
def sooner(found):
    """With equal parameters (1 %): levels are above 95 % by the end, and flat tables are not above 90 % by then."""
    sizes = [found["parameters"][scheme]["all"] for scheme in ROWS]
    return last(found, LEVELS) > 0.95 and last(found, FLAT) < 0.9 and abs(sizes[0] - sizes[1]) < 0.01 * sizes[1]


def last(found, scheme):
    return found["right"][scheme][max(found["right"][scheme])]


def arrived(found):
    """For each seed the first step at which levels are above 95 %."""
    steps, shares = list(found["right"][LEVELS]), np.array(list(found["right"][LEVELS].values()))
    return ", ".join(str(steps[int(np.argmax(own))]) if own.any() else "no" for own in (shares > 0.95).T)


@section.report
def report(found):
    steps = list(found["right"][LEVELS])[::2]
    rows = [[name, *(mean_and_spread(100 * of[s], ".0f") for s in steps), int(found["parameters"][name]["all"][0])] for name, of in found["right"].items()]
    section.table("documents", ["% right, step:", *map(str, steps), "parameters"], rows)
    for name, scheme in (("levels", LEVELS), ("flat", FLAT)):
        section.values(f"documents.{name}", {"rows": ROWS[scheme], "right": 100 * last(found, scheme).mean()})
    section.values("documents", {"steps": STEPS, "seeds": len(last(found, FLAT)), "wider": WIDER[LEVELS], "arrived": arrived(found)})


@section.figure("documents")
def picture(ax, found):
    lines(ax, found["right"], xlabel="step", ylabel="new documents answered rightly", ylim=(0.45, 1.02))
    level(ax, 0.5, "guessing")
    ax.legend(loc="lower right", bbox_to_anchor=(1, 0.13))


if __name__ == "__main__":
    section.main()
