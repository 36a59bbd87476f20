"""Can one global token carry news across a text that no window spans?

Beltagy, Peters and Cohan 2020, arXiv:2004.05150, section 3.1: windows alone are not flexible enough where a task needs the whole text,
so a few tokens attend to all, and all attend to them. One flag of eight stands somewhere among noise, and every position has to
name it. Two layers with a window of 4 to each side carry it 8 positions far. What counts here are the positions beyond.
"""

# %%
from functools import partial
from itertools import pairwise

import numpy as np

import minitransformers as mt
from minitransformers.reporting import Section, level, lines, mean_and_spread, nats, ticks_at
from minitransformers.reporting.networks import behind_norm, network
from minitransformers.training.fit import fit
from minitransformers.training.needles import flags
from minitransformers.training.task import IGNORED, Labelled, accuracy
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
LENGTH, FLAGS, NOISE, WIDTH, LAYERS, WINDOW, STEPS = 64, 8, 8, 32, 2, 4, 600
REACH, BANDS, BEYOND = LAYERS * WINDOW, (4, 8, 16, 32, 63), "beyond"  # REACH is how far two windows carry
ALONE, GLOBAL, DENSE = "window", "window and one global token", "dense"
MIXERS = {
    ALONE: (mt.init_longformer_attention, partial(mt.longformer_attention, num_heads=1, window=WINDOW, global_positions=())),
    GLOBAL: (mt.init_longformer_attention, partial(mt.longformer_attention, num_heads=1, window=WINDOW, global_positions=(0,))),
    DENSE: (mt.init_multi_head_attention, partial(mt.multi_head_attention, num_heads=1, core=mt.softmax_attention)),
}


# %%
draw = partial(flags, length=LENGTH, num_flags=FLAGS, num_noise=NOISE)


def fresh(rng, mixer):
    layers = []
    for _ in range(LAYERS):
        layers += [(mt.init_layer_norm(rng, WIDTH), MIXERS[mixer][0](rng, WIDTH, num_heads=1)),
                   (mt.init_layer_norm(rng, WIDTH), mt.init_feed_forward(rng, WIDTH, d_hidden=2 * WIDTH))]  # fmt: skip
    head = mt.init_linear(rng, WIDTH, FLAGS)
    return [mt.init_embedding(rng, FLAGS + NOISE + 1, WIDTH, std=1.0), *layers, mt.init_layer_norm(rng, WIDTH), head]


def trained(mixer, rng, *, rate):
    """The trained model, two pre-norm layers without positions, as a function of ids."""
    layers = [behind_norm(part, norm=mt.layer_norm) for part in (MIXERS[mixer][1], mt.feed_forward)] * LAYERS
    model, steps = network(*layers, mt.layer_norm, mt.linear), 5 if section.quick else STEPS
    task = Labelled(model, partial(draw, batch_size=32))
    return partial(model, fit(fresh(rng, mixer), task, steps=steps, peak=rate, rng=rng, warmup=0.1, floor=0.02))


def examined(rng):
    """256 new texts, and their flags at the positions of each distance from the flag: {farthest: flags, IGNORED elsewhere}."""
    ids, flag = draw(rng, batch_size=256)
    distance = abs(np.arange(LENGTH) - (ids < FLAGS).argmax(1)[:, None])
    parts = {high: (low < distance) & (distance <= high) for low, high in pairwise((-1, *BANDS))} | {BEYOND: distance > REACH}
    return ids, {part: np.where(here, flag, IGNORED) for part, here in parts.items()}


@section.tuning
def tuning(rng):
    hold_blas()
    for mixer in MIXERS:
        for rate in (1.5e-3, 3e-3, 6e-3):
            losses = []
            for _ in range(1 if section.quick else 2):       # learning sets in suddenly, at another time in each run: one says little
                own = np.random.default_rng(rng.integers(2**32))
                answer = trained(mixer, own, rate=rate)
                ids, asked = examined(own)
                losses.append(nats(answer(ids)[0], asked[BEYOND]))
            yield mixer, rate, {"loss": np.mean(losses)}


@section.experiment
def experiment(rng):
    hold_blas()                                              # seeds run side by side, and the arrays are small
    for mixer in MIXERS:
        answer = trained(mixer, rng, rate=section.rates[mixer])
        ids, asked = examined(rng)
        logits, _ = answer(ids)
        for distance, own in asked.items():
            yield mixer, distance, {"right": accuracy(logits, own)}
        by_flag = [accuracy(logits, np.where(asked[BEYOND] == flag, flag, IGNORED)) for flag in range(FLAGS)]
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
