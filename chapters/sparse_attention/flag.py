"""Can one global token carry news across a text that no window spans?

Beltagy, Peters and Cohan 2020, arXiv:2004.05150, section 3.1: windows alone are not flexible enough where a task needs the whole text,
so a few tokens attend to all, and all attend to them. One flag of eight stands somewhere among noise, and every position has to
name it. Two layers with a window of 4 to each side carry it 8 positions far. What counts here are the positions beyond.
"""

# %%
from functools import partial
from itertools import pairwise

import numpy as np

from minitransformers.attention.core import softmax_attention
from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.basics.chain import chain
from minitransformers.basics.embedding import embedding, init_embedding
from minitransformers.basics.feed_forward import feed_forward, init_feed_forward
from minitransformers.basics.linear import init_linear, linear
from minitransformers.basics.residual import residual
from minitransformers.norms.layer_norm import init_layer_norm, layer_norm
from minitransformers.reporting import Section, level, lines, mean_and_spread, ticks_at
from minitransformers.sparse_attention.longformer_attention import init_longformer_attention, longformer_attention
from minitransformers.training.fit import fit
from minitransformers.training.task import IGNORED, Labelled, accuracy, labelled_loss
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
LENGTH, FLAGS, NOISE, WIDTH, LAYERS, WINDOW, STEPS = 64, 8, 8, 32, 2, 4, 600
FIRST, REACH = FLAGS + NOISE, LAYERS * WINDOW                # the token at position 0, and how far two windows carry
BANDS, BEYOND = (4, 8, 16, 32, 63), "beyond"
ALONE, GLOBAL, DENSE = "window", "window and one global token", "dense"
MIXERS = {
    ALONE: (init_longformer_attention, partial(longformer_attention, num_heads=1, window=WINDOW, global_positions=())),
    GLOBAL: (init_longformer_attention, partial(longformer_attention, num_heads=1, window=WINDOW, global_positions=(0,))),
    DENSE: (init_multi_head_attention, partial(multi_head_attention, num_heads=1, core=softmax_attention)),
}


# %%
def draw(rng, *, batch_size=32):
    """Ids and the flag at every position, both (batch, length); the first token is the same in every text."""
    ids = rng.integers(FLAGS, FLAGS + NOISE, size=(batch_size, LENGTH))
    ids[:, 0] = FIRST
    flag, place = rng.integers(FLAGS, size=batch_size), rng.integers(1, LENGTH, size=batch_size)
    ids[np.arange(batch_size), place] = flag
    return ids, np.repeat(flag[:, None], LENGTH, axis=1)


def network(rng, mixer):
    """Fresh parameters, and the model: two pre-norm layers of attention and feed-forward, without positions."""
    init, attend = MIXERS[mixer]
    parts, params = [], []
    for _ in range(LAYERS):
        parts += [partial(residual, part=partial(chain, parts=(layer_norm, part))) for part in (attend, feed_forward)]
        params += [(init_layer_norm(rng, WIDTH), init(rng, WIDTH, num_heads=1)), (init_layer_norm(rng, WIDTH), init_feed_forward(rng, WIDTH, d_hidden=2 * WIDTH))]
    body = partial(chain, parts=(*parts, layer_norm, linear))

    def model(params, ids):
        x, embedding_backward = embedding(params[0], ids=ids)
        logits, body_backward = body(params[1], x)

        def backward(dlogits):
            dbody, dx = body_backward(dlogits)
            return embedding_backward(dx), dbody

        return logits, backward

    head = init_linear(rng, WIDTH, FLAGS)
    return (init_embedding(rng, FIRST + 1, WIDTH, std=1.0), [*params, init_layer_norm(rng, WIDTH), head]), model


def trained(mixer, rng, *, rate, steps):
    params, model = network(rng, mixer)
    return partial(model, fit(params, Labelled(model, draw), steps=steps, peak=rate, rng=rng, warmup=0.1, floor=0.02))


def examined(rng):
    """256 new texts, and their flags at the positions of each distance from the flag: {farthest: flags, IGNORED elsewhere}."""
    ids, flags = draw(rng, batch_size=256)
    distance = abs(np.arange(LENGTH) - (ids < FLAGS).argmax(1)[:, None])
    parts = {high: (low < distance) & (distance <= high) for low, high in pairwise((-1, *BANDS))} | {BEYOND: distance > REACH}
    return ids, {part: np.where(here, flags, IGNORED) for part, here in parts.items()}


@section.tuning
def tuning(rng):
    hold_blas()
    for mixer in MIXERS:
        for rate in (1.5e-3, 3e-3, 6e-3):
            losses = []
            for _ in range(1 if section.quick else 2):       # learning sets in suddenly, at another time in each run: one says little
                own = np.random.default_rng(rng.integers(2**32))
                model = trained(mixer, own, rate=rate, steps=5 if section.quick else STEPS)
                ids, flags = examined(own)
                (nats, count), _ = labelled_loss(*model(ids), flags[BEYOND])
                losses.append(float(nats) / count)
            yield mixer, rate, {"loss": np.mean(losses)}


@section.experiment
def experiment(rng):
    hold_blas()                                              # seeds run side by side, and the arrays are small
    for mixer in MIXERS:
        model = trained(mixer, rng, rate=section.rates[mixer], steps=5 if section.quick else STEPS)
        ids, flags = examined(rng)
        logits, _ = model(ids)
        for distance, own in flags.items():
            yield mixer, distance, {"right": accuracy(logits, own)}
        by_flag = [accuracy(logits, np.where(flags[BEYOND] == flag, flag, IGNORED)) for flag in range(FLAGS)]
        yield mixer, BEYOND, {"missed": sum(share < 0.5 for share in by_flag)}


# %%
def told(found):
    return ", ".join(f"{mixer} {', '.join(f'{share:.2f}' for share in np.atleast_1d(of[BEYOND]))}" for mixer, of in found["right"].items())


@section.claim(
    "One global token carries what no window reaches",
    paper="Beltagy et al. 2020, arXiv:2004.05150, section 3.1: windows are not flexible enough to learn task-specific representations",
    measured=lambda found: f"{told(found)}; guessing {1 / FLAGS}",
)
def carries(found):
    """More than 8 positions from the flag a window alone is right at most in a quarter of all places, with one global token in 0.4 more."""
    return found["right"][ALONE][BEYOND] <= 0.25 and found["right"][GLOBAL][BEYOND] >= found["right"][ALONE][BEYOND] + 0.4


@section.claim(
    "Is the flag always found, within 600 updates?",
    paper="Beltagy et al. 2020, arXiv:2004.05150, section 3.1: a global token builds a representation of the whole text",
    measured=lambda found: "right in fewer than half of the places are, of 8 flags, " + "; ".join(
        f"{mixer} {', '.join(f'{flags:.0f}' for flags in np.atleast_1d(of[BEYOND]))}" for mixer, of in found["missed"].items()
    ),
)
def solves(found):
    """More than 8 positions from the flag at least nine of ten answers are right with one global token, as with dense attention."""
    return found["right"][GLOBAL][BEYOND] >= 0.9 and found["right"][DENSE][BEYOND] >= 0.9


@section.report
def report(found):
    rows = [[mixer, mean_and_spread(of[BEYOND], ".3f"), mean_and_spread(found["missed"][mixer][BEYOND], ".1f")] for mixer, of in found["right"].items()]
    section.table("flag", ["mixer", f"right beyond {REACH} positions", f"flags missed, of {FLAGS}"], rows)
    names = {"window": ALONE, "global": GLOBAL, "dense": DENSE}
    section.values("flag", {name: found["right"][mixer][BEYOND].mean() for name, mixer in names.items()})
    section.values("flag", {"chance": 1 / FLAGS, "steps": STEPS, "length": LENGTH, "reach": REACH})


@section.figure("flag", size=(5.2, 3))
def picture(ax, found):
    curves = {mixer: {distance: share for distance, share in of.items() if distance != BEYOND} for mixer, of in found["right"].items()}
    lines(ax, curves, xlabel="distance from the flag, at most", ylabel="share of right answers", xscale="log", ylim=(0, 1.05))
    ticks_at(ax, list(BANDS))
    ax.legend()
    level(ax, 1 / FLAGS, "guessing")


if __name__ == "__main__":
    section.main()
