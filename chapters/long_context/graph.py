"""A sentence matters because of the one before it: who can know?

Xu et al. 2020, arXiv:1910.14142 (DiscoBERT), and Wang et al. 2020, arXiv:2004.12393: sentences are linked, by what they share and by where they
stand, and a graph network over the links chooses better than one that reads each alone. A text has twelve sentences of noise, and one of them a cue.
The sentence behind it is to be named. Each reader sees its sentences as vectors: alone, along edges to neighbours, along edges that say whether the
neighbour comes before or after, or all at once, as a hierarchical Transformer does.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.basics.embedding import embedding, init_embedding
from minitransformers.basics.gelu import gelu
from minitransformers.basics.linear import init_linear, linear
from minitransformers.basics.relu import relu
from minitransformers.long_context.encoder_block import encoder_block, init_encoder_block
from minitransformers.long_context.sentence_graph import init_sentence_graph, sentence_graph
from minitransformers.positional.learned import init_learned, learned
from minitransformers.reporting import Section, dots, mean_and_spread, nats, tried
from minitransformers.training.fit import fit
from minitransformers.training.task import Labelled, accuracy
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
SENTENCES, LENGTH, NOISE, WIDTH, HEADS, STEPS, BATCH, ASKED = 12, 6, 38, 32, 2, 300, 64, 2000
ALONE, EDGES, KINDS, PLACES, NO_PLACES = "each alone", "edges to neighbours", "edges of two kinds", "a Transformer over sentences", "the same without places"
KEYS = {"alone": ALONE, "edges": EDGES, "kinds": KINDS, "places": PLACES, "without": NO_PLACES}
ALONE_AT_BEST, EDGES_AT_BEST = 1 / 11, 6 / 11                # a guess among eleven; a guess between two but at the text's start


def draw(rng, *, texts=BATCH):
    ids = rng.integers(NOISE, size=(texts, SENTENCES, LENGTH))
    cue = rng.integers(SENTENCES - 1, size=texts)
    ids[np.arange(texts), cue, rng.integers(LENGTH, size=texts)] = NOISE
    return ids, cue + 1


def edges_of(texts):
    """From each sentence to itself and its neighbours, sorted by target: sources, targets, and a kind (0 before, 1 itself, 2 after)."""
    steps = np.array([-1, 0, 1])
    source = np.arange(SENTENCES)[:, None] + steps
    inside = (source >= 0) & (source < SENTENCES)
    own = [source[inside], np.repeat(np.arange(SENTENCES), inside.sum(axis=1)), np.broadcast_to([0, 1, 2], source.shape)[inside]]
    shift = SENTENCES * np.arange(texts)[:, None]
    return (own[0] + shift).ravel(), (own[1] + shift).ravel(), np.tile(own[2], texts)


# %% What a sentence learns of the others: context(params, h) -> z, backward
def alone(params, h):
    return h, lambda dz: (None, dz)


def graph(params, h, *, kinds):
    sources, targets, kind = edges_of(len(h))
    out, backward = sentence_graph(params, h.reshape(-1, WIDTH), sources=sources, targets=targets, kinds=kind if kinds else None)
    z, active_backward = gelu(out)

    def back(dz):
        dparams, dh = backward(active_backward(dz.reshape(-1, WIDTH)))
        return dparams, dh.reshape(h.shape)

    return z.reshape(h.shape), back


def over_sentences(params, h):
    places, block = params
    x, places_backward = learned(places, h) if places is not None else (h, lambda dx: (None, dx))
    z, block_backward = encoder_block(block, x, num_heads=HEADS)

    def back(dz):
        dblock, dx = block_backward(dz)
        dplaces, dh = places_backward(dx)
        return (dplaces, dblock), dh

    return z, back


CONTEXTS = {
    ALONE: (lambda rng: None, alone),
    EDGES: (lambda rng: init_sentence_graph(rng, WIDTH, num_heads=HEADS), partial(graph, kinds=False)),
    KINDS: (lambda rng: init_sentence_graph(rng, WIDTH, num_heads=HEADS, kinds=3), partial(graph, kinds=True)),
    PLACES: (lambda rng: (init_learned(rng, max_positions=SENTENCES, d_model=WIDTH), init_encoder_block(rng, WIDTH, num_heads=HEADS, d_hidden=WIDTH)), over_sentences),
    NO_PLACES: (lambda rng: (None, init_encoder_block(rng, WIDTH, num_heads=HEADS, d_hidden=WIDTH)), over_sentences),
}


# %% The reader: words to sentences, what they learn of each other, a score for each
def fresh(name, rng):
    words = init_embedding(rng, NOISE + 1, WIDTH, std=1.0)
    return [words, init_linear(rng, WIDTH, WIDTH), CONTEXTS[name][0](rng), init_linear(rng, 2 * WIDTH, WIDTH), init_linear(rng, WIDTH, 1)]


def reader(params, ids, *, context):
    words, lift, own, inner, outer = params
    e, words_backward = embedding(words, ids=ids)
    lifted, lift_backward = linear(lift, e)
    active, active_backward = relu(lifted)
    h = active.mean(axis=-2)
    z, context_backward = context(own, h)
    hidden, inner_backward = linear(inner, np.concatenate([h, z], axis=-1))
    rectified, rectified_backward = relu(hidden)
    scores, outer_backward = linear(outer, rectified)

    def backward(dscores):
        douter, drectified = outer_backward(dscores[..., None])
        dinner, dboth = inner_backward(rectified_backward(drectified))
        down, dh = context_backward(dboth[..., WIDTH:])
        dh = dh + dboth[..., :WIDTH]                         # h is read by the scorer and by the context
        dactive = np.broadcast_to(dh[..., None, :] / LENGTH, active.shape)
        dlift, de = lift_backward(active_backward(dactive))
        return [words_backward(de), dlift, down, dinner, douter]

    return scores[..., 0], backward


def learned_reader(name, rng, *, rate):
    model = partial(reader, context=CONTEXTS[name][1])
    params = fit(fresh(name, rng), Labelled(model, draw), steps=5 if section.quick else STEPS, peak=rate, rng=rng)
    return params, model


@section.tuning
def tuning(rng):
    def of_two_starts(name, rng, rate):
        """Some learn from one start and not from another: what is chosen has to do so from both."""
        found = []
        for _ in range(1 if section.quick else 2):
            params, model = learned_reader(name, rng, rate=rate)
            ids, answers = draw(rng, texts=500)
            found.append(nats(model(params, ids)[0], answers))
        return np.mean(found)

    yield from tried(of_two_starts, CONTEXTS, (1e-2,) if section.quick else (1e-3, 3e-3, 1e-2, 3e-2), rng)


@section.experiment
def experiment(rng):
    hold_blas()
    for name in CONTEXTS:
        params, model = learned_reader(name, rng, rate=section.rates[name])
        ids, answers = draw(rng, texts=100 if section.quick else ASKED)
        yield name, 0, {"right": accuracy(model(params, ids)[0], answers)}


# %%
def told(found, *names):
    return ", ".join(f"{name} {mean_and_spread(found['right'][name][0], '.3f')}" for name in names)


@section.claim(
    "Alone no sentence knows", paper="Wang et al. 2020, arXiv:2004.12393, section 1: relations between sentences decide what is salient",
    measured=lambda found: f"{told(found, ALONE)}; a guess {ALONE_AT_BEST:.3f}",
)  # fmt: skip
def alone_guesses(found):
    """Right in at most 0.13 of cases."""
    return found["right"][ALONE][0] <= 0.13


@section.claim(
    "Edges without kinds cannot tell before from after", paper="no paper: one weight for both neighbours, and a sum over them",
    measured=lambda found: f"{told(found, EDGES)}; at best {EDGES_AT_BEST:.3f}",
)  # fmt: skip
def edges_halve(found):
    """Within 0.05 of six elevenths, the best that a guess between the two neighbours of the cue can do."""
    return abs(found["right"][EDGES][0] - EDGES_AT_BEST) <= 0.05


@section.claim(
    "Edges of two kinds solve it", paper="Xu et al. 2020, arXiv:1910.14142: discourse relations are kinds of edges",
    measured=lambda found: told(found, KINDS),
)  # fmt: skip
def kinds_solve(found):
    """Right in at least 0.98 of cases."""
    return found["right"][KINDS][0] >= 0.98


@section.claim(
    "Does a Transformer over sentences solve it that knows their places?", paper="Wu et al. 2021, arXiv:2106.01040: sentences as the words of a document",
    measured=lambda found: told(found, PLACES, NO_PLACES),
)  # fmt: skip
def places_solve(found):
    """Right in at least 0.98 of cases; without places in at most 0.13."""
    return found["right"][PLACES][0] >= 0.98 and found["right"][NO_PLACES][0] <= 0.13


@section.report
def report(found):
    rows = [[name, mean_and_spread(found["right"][name][0], ".3f"), f"{section.rates[name]:g}"] for name in CONTEXTS]
    section.table("graph", ["the sentence behind the cue, of twelve", "right", "learning rate"], rows)
    section.values("graph", {key: found["right"][name][0].mean() for key, name in KEYS.items()})
    section.values("graph.best", {"alone": ALONE_AT_BEST, "edges": EDGES_AT_BEST})


@section.figure("graph", size=(5.5, 2.6))
def picture(ax, found):
    dots(ax, {name: found["right"][name][0] for name in CONTEXTS}, at=ALONE_AT_BEST, xlabel="share of right answers")


if __name__ == "__main__":
    section.main()
