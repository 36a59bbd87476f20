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

from minitransformers.basics.chain import chain
from minitransformers.basics.embedding import embedding, init_embedding
from minitransformers.basics.gated_feed_forward import gated_feed_forward, init_gated_feed_forward
from minitransformers.basics.linear import init_linear, linear
from minitransformers.basics.residual import residual
from minitransformers.norms.rms_norm import init_rms_norm, rms_norm
from minitransformers.reporting import Section, mean_and_spread
from minitransformers.state_space.mamba import init_mamba, mamba
from minitransformers.training.fit import fit
from minitransformers.training.synthetic import associative_recall
from minitransformers.training.task import Labelled, accuracy, labelled_loss
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
def behind_norm(part):
    return partial(residual, part=partial(chain, parts=(rms_norm, part)))


def fresh(rng, arm):
    layers = [(init_rms_norm(rng, WIDTH), init_mamba(rng, WIDTH, d_state=arm.size)),
              (init_rms_norm(rng, WIDTH), init_gated_feed_forward(rng, WIDTH, d_hidden=HIDDEN))]  # fmt: skip
    layers = layers if arm.lowest else layers[::-1]
    return [init_embedding(rng, WORDS, WIDTH, std=0.5), *layers, init_rms_norm(rng, WIDTH), init_linear(rng, WIDTH, WORDS)]


def model(params, ids, *, arm):
    parts = [behind_norm(mamba), behind_norm(gated_feed_forward)]
    words, words_backward = embedding(params[0], ids=ids)
    logits, body_backward = chain(params[1:], words, parts=(*(parts if arm.lowest else parts[::-1]), rms_norm, linear))

    def backward(dlogits):
        dbody, dwords = body_backward(dlogits)
        return [words_backward(dwords), *dbody]

    return logits, backward


def draw(rng, *, pairs, batch_size=16):
    """Pairs, then their keys in another order: texts of three tokens a pair."""
    ids_and_targets = associative_recall(
        rng, batch_size=batch_size, length=4 * pairs, num_pairs=pairs, vocabulary_size=WORDS, power=1.0, random_filler=False
    )  # fmt: skip
    kept = np.concatenate([np.arange(2 * pairs), np.arange(2 * pairs, 4 * pairs, 2)])  # every place asks: what is between is left out
    return tuple(a[:, kept] for a in ids_and_targets)


def trained(name, rng, *, rate):
    """The trained model, as a function of ids. Lessons: 2 pairs for three tenths of the steps, then more, evenly, until seven tenths."""
    arm = ARMS[name]
    steps = 5 if section.quick else arm.steps
    done = np.arange(steps) / steps if arm.few_first else np.ones(steps)
    known = iter(1 + np.clip(np.ceil((done - 0.3) / 0.4 * (len(PAIRS) - 1)), 0, len(PAIRS) - 1).astype(int))
    task = Labelled(partial(model, arm=arm), lambda rng: draw(rng, pairs=int(rng.choice(PAIRS[: next(known)]))))
    return partial(model, fit(fresh(rng, arm), task, steps=steps, peak=rate, rng=rng, warmup=1 / 12, floor=0.02), arm=arm)


@section.tuning
def tuning(rng):
    hold_blas()
    for name in ARMS:
        for rate in (1e-2,) if section.quick else (1e-2, 2e-2, 4e-2, 8e-2):
            starts = [np.random.default_rng(seed) for seed in rng.integers(2**32, size=1 if section.quick else 4)]  # one may be lucky
            yield name, rate, {"loss": np.mean([nats(trained(name, own, rate=rate), own) for own in starts])}


def nats(answer, rng):
    """Nats a question, a mean over the numbers of pairs."""
    losses = []
    for pairs in PAIRS:
        ids, targets = draw(rng, pairs=pairs, batch_size=128)
        (total, count), _ = labelled_loss(*answer(ids), targets)
        losses.append(float(total) / count)
    return np.mean(losses)


@section.experiment
def experiment(rng):
    hold_blas()
    for name in ARMS:
        answer = trained(name, rng, rate=section.rates[name])
        for pairs in PAIRS:
            ids, targets = draw(rng, pairs=pairs, batch_size=512)
            yield name, pairs, {"right": accuracy(answer(ids)[0], targets)}


# %%
def told(found, *names):
    return "right of 2 and of 8 pairs: " + "; ".join(f"{name} {', '.join(mean_and_spread(found['right'][name][p]) for p in (2, 8))}" for name in names)


@section.claim(
    "With the same state, what stands below a recurrence decides how soon it binds",
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
    """Above the feed-forward network, lessons that begin with 2 pairs end with at least 0.1 more of 8 pairs than all numbers of pairs at
    once, in as many updates.
    """
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
    for row, name in enumerate(reversed(ARMS)):
        right = np.atleast_1d(found["right"][name][8])
        ax.plot(right, [row] * len(right), "o", alpha=0.8)
    ax.axvline(1 / 8, linestyle=":", color="#808080")
    ax.set(yticks=range(len(ARMS)), xlim=(0, 1.03), xlabel="right of 8 pairs, one point a seed; dotted: any value of the text")
    ax.set_yticklabels(list(reversed(ARMS)))


if __name__ == "__main__":
    section.main()
