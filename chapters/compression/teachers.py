"""What is a teacher worth, by how much of it is seen?

Hinton et al. 2015, arXiv:1503.02531: a teacher's probabilities say more an example than its answers. Jiao et al. 2019, arXiv:1909.10351: its hidden
states say more still. Kim and Rush 2016, arXiv:1606.07947: where only its text is seen, learn from that. A student of the teacher's size starts at
random and reads the same 96 texts of a language of 16 symbols, over and over; what it loses beside the language itself is exact. The teacher knows
the language nearly, and shows text, answers, its three likeliest symbols, all probabilities, or what it thinks in between.
"""

# %%
from functools import partial
from typing import NamedTuple

import numpy as np

from minitransformers import trees
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.embedding import embedding
from minitransformers.basics.linear import init_linear, linear
from minitransformers.basics.softmax import softmax
from minitransformers.compression.hidden_state_loss import hidden_state_loss
from minitransformers.compression.top_k_loss import renormalised_top_k_loss, top_k_loss
from minitransformers.models.distillation_loss import distillation_loss
from minitransformers.models.gpt2 import gpt2_block
from minitransformers.norms.layer_norm import layer_norm
from minitransformers.positional.learned import learned
from minitransformers.reporting import Section, dots, mean_and_spread, tried
from minitransformers.reporting import adaptation as at
from minitransformers.training.fit import fit
from minitransformers.training.task import IGNORED, Task

section = Section(__file__, __doc__, kind="trained")
TEXTS, HELD, STEPS, BATCH, EVERY, SHARE = 96, 64, 200, 32, 25, 0.3
HARD, TEXT, DRAWN, TOP, RENORMALISED = "the texts", "texts that it wrote", "an answer of its, drawn anew", "its three likeliest and the rest", "its three likeliest alone"
SOFT, WARM, STATES = "all its probabilities", "all of them, at temperature 2", "probabilities and hidden states"
KEYS = {"hard": HARD, "text": TEXT, "drawn": DRAWN, "top": TOP, "renormalised": RENORMALISED, "soft": SOFT, "warm": WARM, "states": STATES}


class Shown(NamedTuple):
    """Texts, what follows each symbol, and the teacher's logits and hidden states there."""

    ids: np.ndarray
    targets: np.ndarray
    logits: np.ndarray
    states: np.ndarray


# %% What is learned from: loss(logits, shown, rng) -> sum in nats, backward
def answers(logits, shown, rng):
    return cross_entropy(logits, targets=shown.targets, reduction="sum")


def drawn_answers(logits, shown, rng):
    climbing = np.cumsum(softmax(shown.logits.astype(np.float64))[0], axis=-1)
    drawn = (climbing < rng.random((*shown.ids.shape, 1))).sum(-1).clip(max=at.SYMBOLS - 1)
    return cross_entropy(logits, targets=np.where(shown.targets == IGNORED, IGNORED, drawn), reduction="sum")


def likeliest(logits, shown, rng, *, loss):
    ids = np.argsort(-shown.logits, axis=-1)[..., :3]
    shares = np.take_along_axis(softmax(shown.logits)[0], ids, axis=-1)
    return loss(logits, ids=ids, probabilities=shares, targets=shown.targets, reduction="sum")


def probabilities(logits, shown, rng, *, temperature=1.0):
    return distillation_loss(logits, teacher=shown.logits, targets=shown.targets, temperature=temperature, reduction="sum")


SOURCES = {
    HARD: answers, TEXT: answers, DRAWN: drawn_answers, TOP: partial(likeliest, loss=top_k_loss),
    RENORMALISED: partial(likeliest, loss=renormalised_top_k_loss), SOFT: probabilities, WARM: partial(probabilities, temperature=2.0), STATES: probabilities,
}  # fmt: skip


# %% The student, and what it has to do
def with_states(params, ids):
    """The reader's logits, and what leaves each of its blocks, (layers, batch, positions, width); backward takes the gradients of both."""
    words, words_backward = embedding(params.embedding, ids=ids)
    x, places_backward = learned(params.positions, words)
    states, backwards = [], []
    for block in params.blocks:
        x, back = gpt2_block(block, x, num_heads=at.HEADS)
        states.append(x)
        backwards.append(back)
    normed, norm_backward = layer_norm(params.norm, x)
    logits, head_backward = linear(params.head, normed)

    def backward(dlogits, dstates):
        dhead, dnormed = head_backward(dlogits)
        dnorm, dx = norm_backward(dnormed)
        dblocks = []
        for back, dstate in zip(reversed(backwards), reversed(dstates), strict=True):
            dblock, dx = back(dx + dstate)                   # a state is read by the next block and by the loss
            dblocks.append(dblock)
        dplaces, dwords = places_backward(dx)
        return at.Reader(words_backward(dwords), dplaces, dblocks[::-1], dnorm, dhead)

    return (logits, np.stack(states)), backward


class Taught(Task):
    """params are the student, and a map from its hidden states to the teacher's."""

    def __init__(self, source, shown):
        self.source, self.shown = source, shown

    def batch(self, rng):
        rows = rng.integers(len(self.shown.ids), size=BATCH)
        return Shown(*(part[rows] for part in self.shown))

    def loss(self, params, shown, *, rng):
        (student, bridge), count = params, int((shown.targets != IGNORED).sum())
        (logits, states), backward = with_states(student, shown.ids)
        total, loss_backward = SOURCES[self.source](logits, shown, rng)
        if self.source != STATES:
            return (total, count), lambda dloss: (backward(loss_backward(dloss[0]), np.zeros_like(states)), trees.zeros_like(bridge))
        apart, apart_backward = hidden_state_loss(bridge, states, teacher=np.moveaxis(shown.states, 1, 0))

        def back(dloss):
            dbridge, dstates = apart_backward(SHARE * count * dloss[0])
            return backward(loss_backward(dloss[0]), dstates), dbridge

        return (total + SHARE * count * apart, count), back


def shown_by(teacher, source, rng):
    """The texts, the language's own or the teacher's, and all that it has to say about them."""
    ids = at.written(at.language(), rng, TEXTS)
    if source == TEXT:
        for place in range(2, ids.shape[1]):                 # it begins as the language does, with any two symbols, and goes on itself
            chances = softmax(at.reader(teacher, ids[:, :place])[0][:, -1].astype(np.float64))[0]
            ids[:, place] = (np.cumsum(chances, axis=-1) < rng.random((TEXTS, 1))).sum(-1).clip(max=at.SYMBOLS - 1)
    targets = ids[:, 1:].copy()
    targets[:, 0] = IGNORED
    (logits, states), _ = with_states(teacher, ids[:, :-1])
    return Shown(ids[:, :-1], targets, logits, np.moveaxis(states, 0, 1))


def taught(source, rng, *, rate):
    """Nats too many at the end, and where 64 texts that nobody learns from were said best on the way."""
    teacher = at.load_reader()
    shown, (held, after) = shown_by(teacher, source, rng), at.draw(at.language(), rng, count=HELD)
    on_the_way = {}

    def watch(step, _, params):
        if step % EVERY == 0 or section.quick:
            logits, _ = at.reader(params[0], held)
            on_the_way[float(cross_entropy(logits, targets=after)[0])] = at.left(params[0], at.reader, at.language())

    params = at.init_reader(rng), init_linear(rng, at.WIDTH, at.WIDTH)
    params = fit(params, Taught(source, shown), steps=5 if section.quick else STEPS, peak=rate, rng=rng, watch=watch)
    return at.left(params[0], at.reader, at.language()), on_the_way[min(on_the_way)]


@section.tuning
def tuning(rng):
    yield from tried(lambda source, rng, rate: taught(source, rng, rate=rate)[1], SOURCES, (3e-3, 1e-2) if section.quick else (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1), rng)


@section.experiment
def experiment(rng):
    yield "the teacher", 0, {"end": at.left(at.load_reader(), at.reader, at.language())}
    for source in SOURCES:
        end, best = taught(source, rng, rate=section.rates[source])
        yield source, 0, {"end": end, "best": best}


# %%
def lost(found, source, measure="best"):
    return found[measure][source][0]


def told(found, *sources):
    return "; ".join(f"{source} {mean_and_spread(lost(found, source), '.3f')}" for source in sources)


@section.claim(
    "Probabilities teach more than texts", paper="Hinton et al. 2015, arXiv:1503.02531, section 2: more information an example",
    measured=lambda found: told(found, HARD, SOFT),
)  # fmt: skip
def soft_is_better(found):
    """With all probabilities the student loses at most 0.3 of what it loses with the texts, each where it was best."""
    return lost(found, SOFT) <= 0.3 * lost(found, HARD)


@section.claim(
    "The less of the teacher is seen, the less is learned", paper="no paper compares them all; each reports what it hides",
    measured=lambda found: told(found, SOFT, DRAWN, TOP, RENORMALISED),
)  # fmt: skip
def less_is_less(found):
    """All probabilities lose at most half of what drawn answers lose, and of what the three likeliest and the rest lose."""
    return lost(found, SOFT) <= 0.5 * min(lost(found, DRAWN), lost(found, TOP))


@section.claim(
    "The rest belongs to the three likeliest", paper="no paper: three that are renormalised teach that nothing else can follow",
    measured=lambda found: told(found, TOP, RENORMALISED),
)  # fmt: skip
def tail_matters(found):
    """With one class for the rest the student loses at most 0.9 of what it loses without."""
    return lost(found, TOP) <= 0.9 * lost(found, RENORMALISED)


@section.claim(
    "Do hidden states teach more than probabilities alone?", paper="Jiao et al. 2019, arXiv:1909.10351, table 5: without them the student is worse",
    measured=lambda found: told(found, SOFT, WARM, STATES),
)  # fmt: skip
def states_help(found):
    """With them the student loses at most 0.8 of what it loses with probabilities at temperature 1."""
    return lost(found, STATES) <= 0.8 * lost(found, SOFT)


@section.claim(
    "Do texts that the teacher wrote teach more than as many of the language's own?",
    paper="Kim and Rush 2016, arXiv:1606.07947, section 3.2: sequences of the teacher are easier to learn",
    measured=lambda found: told(found, HARD, TEXT),
)
def own_text(found):
    """The student loses at most 0.95 of what it loses with the language's own."""
    return lost(found, TEXT) <= 0.95 * lost(found, HARD)


@section.report
def report(found):
    rows = [[source, mean_and_spread(lost(found, source, "end"), ".3f"), mean_and_spread(lost(found, source), ".3f"), f"{section.rates[source]:g}"] for source in SOURCES]
    section.table("teachers", ["what is learned from", "nats too many", "where it was best", "learning rate"], rows)
    for key, source in KEYS.items():
        section.values(f"teachers.{key}", {"end": lost(found, source, "end").mean(), "best": lost(found, source).mean()})
    section.values("teachers", {"steps": STEPS, "texts": TEXTS, "teacher": found["end"]["the teacher"][0].mean()})


@section.figure("teachers", size=(6, 3.4))
def picture(ax, found):
    dots(ax, {source: lost(found, source) for source in SOURCES}, at=float(np.mean(found["end"]["the teacher"][0])), xlabel="nats too many, where it was best")


if __name__ == "__main__":
    section.main()
