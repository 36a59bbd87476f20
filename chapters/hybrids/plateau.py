"""What keeps a recurrence at naming any value of the text: its state, what stands below it, or the time?

Arora et al. 2023, arXiv:2312.04927, section 4: recall needs a state that is large enough. But a model that has not found out how to bind a
value to its key names some value of the text, whatever its state, and is right once in as many pairs. Here one Mamba layer and
one feed-forward network stand in either order: the same parts and parameters. 2 to 8 pairs of 9 keys; lessons begin with 2 pairs. The other
arms have a state four times as large, three times as many updates, or all numbers of pairs from the start.
"""

# %%
from functools import partial
from typing import NamedTuple

import numpy as np

import minitransformers as mt
from minitransformers.reporting import Section, dots, mean_and_spread, nats
from minitransformers.reporting.networks import behind_norm, network
from minitransformers.training.fit import fit
from minitransformers.training.synthetic import few_first, packed_recall
from minitransformers.training.task import Labelled, accuracy
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
PAIRS, WORDS, WIDTH, HIDDEN, STEPS = (2, 3, 4, 6, 8), 20, 32, 64, 400


class Arm(NamedTuple):
    """Whether Mamba is the lowest layer, the size of its states, the steps, and whether lessons begin with 2 pairs."""

    lowest: bool = False
    size: int = 4
    steps: int = STEPS
    few_first: bool = True


LOWEST, ABOVE, LARGER, LONGER, AT_ONCE = "Mamba below", "Mamba above", "above, N = 16", "above, 3 times as long", "above, all pairs at once"
ARMS = {LOWEST: Arm(lowest=True), ABOVE: Arm(), LARGER: Arm(size=16), LONGER: Arm(steps=3 * STEPS), AT_ONCE: Arm(few_first=False)}


# %%
def fresh(rng, arm):
    layers = [(mt.init_rms_norm(rng, WIDTH), mt.init_mamba(rng, WIDTH, d_state=arm.size)),
              (mt.init_rms_norm(rng, WIDTH), mt.init_gated_feed_forward(rng, WIDTH, d_hidden=HIDDEN))]  # fmt: skip
    layers = layers if arm.lowest else layers[::-1]
    return [mt.init_embedding(rng, WORDS, WIDTH, std=0.5), *layers, mt.init_rms_norm(rng, WIDTH), mt.init_linear(rng, WIDTH, WORDS)]


draw = partial(packed_recall, vocabulary_size=WORDS)


def trained(name, rng, *, rate):
    """The trained model, as a function of ids."""
    arm, parts = ARMS[name], [behind_norm(mt.mamba), behind_norm(mt.gated_feed_forward)]
    steps = 5 if section.quick else arm.steps
    known = iter(few_first(steps, len(PAIRS)) if arm.few_first else [len(PAIRS)] * steps)
    model = network(*(parts if arm.lowest else parts[::-1]), mt.rms_norm, mt.linear)
    task = Labelled(model, lambda rng: draw(rng, batch_size=16, num_pairs=int(rng.choice(PAIRS[: next(known)]))))
    return partial(model, fit(fresh(rng, arm), task, steps=steps, peak=rate, rng=rng, warmup=1 / 12, floor=0.02))


@section.tuning
def tuning(rng):
    hold_blas()
    for name in ARMS:
        for rate in (1e-2,) if section.quick else (1e-2, 2e-2, 4e-2, 8e-2):
            starts = [np.random.default_rng(seed) for seed in rng.integers(2**32, size=1 if section.quick else 4)]  # one may be lucky
            yield name, rate, {"loss": np.mean([lost(trained(name, own, rate=rate), own) for own in starts])}


def lost(answer, rng):
    """Nats a question, a mean over the numbers of pairs."""
    drawn = (draw(rng, batch_size=128, num_pairs=pairs) for pairs in PAIRS)
    return np.mean([nats(answer(ids)[0], targets) for ids, targets in drawn])


@section.experiment
def experiment(rng):
    hold_blas()
    for name in ARMS:
        answer = trained(name, rng, rate=section.rates[name])
        for pairs in PAIRS:
            ids, targets = draw(rng, batch_size=512, num_pairs=pairs)
            yield name, pairs, {"right": accuracy(answer(ids)[0], targets)}


# %%
def told(found, *names):
    return "right of 2 and of 8 pairs: " + "; ".join(f"{name} {', '.join(mean_and_spread(found['right'][name][p]) for p in (2, 8))}" for name in names)


@section.claim(
    "With the same state, does what stands below a recurrence decide how soon it binds?",
    paper="no paper: the same parts in another order",
    measured=lambda found: told(found, LOWEST, ABOVE),
)
def order(found):
    """Of 8 pairs Mamba is right in at least 0.25 more below the feed-forward network than above it."""
    return found["right"][LOWEST][8] >= found["right"][ABOVE][8] + 0.25


@section.claim(
    "Would a larger state have got further in this time?",
    paper="Arora et al. 2023, arXiv:2312.04927, section 4: a recurrence recalls as far as its state is large",
    measured=lambda found: told(found, ABOVE, LARGER),
)
def state(found):
    """Above the feed-forward network, Mamba with N = 16 is right in at least 0.1 more of 8 pairs than with N = 4."""
    return found["right"][LARGER][8] >= found["right"][ABOVE][8] + 0.1


@section.claim(
    "Do more updates do what a larger state does not?",
    paper="no paper: a state that is too small would stay too small",
    measured=lambda found: told(found, ABOVE, LONGER),
)
def time(found):
    """Three times as many updates, above the feed-forward network and with N = 4: right in at least 0.9 of 8 pairs."""
    return found["right"][LONGER][8] >= 0.9


@section.claim(
    "Does a recurrence bind sooner if lessons begin with few pairs?",
    paper="Bengio et al. 2009, Curriculum Learning, ICML: easier examples first speed up training",
    measured=lambda found: told(found, AT_ONCE, ABOVE),
)
def lessons(found):
    """Above the network, lessons that begin with 2 pairs end with at least 0.1 more of 8 pairs than all numbers of pairs at once."""
    return found["right"][ABOVE][8] >= found["right"][AT_ONCE][8] + 0.1


@section.report
def report(found):
    rows = [[name, section.rates[name], *(mean_and_spread(100 * of[pairs], ".0f") for pairs in PAIRS)] for name, of in found["right"].items()]
    rows.append(["any value of the text", None, *(f"{100 / pairs:.0f}" for pairs in PAIRS)])
    section.table("plateau", ["model", "rate", *(f"{pairs} pairs, %" for pairs in PAIRS)], rows)
    section.values("plateau", {"steps": STEPS, "longer": 3 * STEPS, "keys": WORDS // 2 - 1})
    for key, name in {"lowest": LOWEST, "above": ABOVE, "larger": LARGER, "long": LONGER, "at_once": AT_ONCE}.items():
        section.value(f"plateau.{key}", 100 * np.mean(found["right"][name][8]))


@section.figure("plateau", size=(6, 2.4))
def picture(ax, found):
    right = {name: found["right"][name][8] for name in ARMS}
    dots(ax, right, at=1 / 8, xlabel="right of 8 pairs, one point a seed; dotted: any value of the text")
    ax.set_xlim(0, 1.03)


if __name__ == "__main__":
    section.main()
