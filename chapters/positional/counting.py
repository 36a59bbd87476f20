"""Trained on 32 tokens, tested on 256: which positions still count back two tokens?

Press, Smith and Lewis 2021, arXiv:2108.12409, section 2: sinusoidal and rotary models do not extrapolate, T5's bias does
better, ALiBi better still. The task is one that needs positions: each token is the one before last plus one, modulo 8, and one
in five is drawn at random. One layer, no text to hide behind.
"""

# %%
import functools

import numpy as np

from minitransformers import LanguageModelConfig, init_language_model, language_model
from minitransformers.reporting import Section, level, lines, mean_and_spread, nats, ticks_at
from minitransformers.training.fit import fit
from minitransformers.training.task import IGNORED, Labelled

section = Section(__file__, __doc__, kind="trained")
TRAINED, LENGTHS, SYMBOLS, LAST = 32, (32, 64, 128, 256), 8, 16
NOISE, GUESSING = -(0.825 * np.log(0.825) + 7 * 0.025 * np.log(0.025)), np.log(SYMBOLS)  # 0.8 + 0.2 / 8, and 0.2 / 8 for the others
SCHEMES = ("none", "sinusoidal", "learned", "rope", "alibi", "t5_bias", "t5_bias to 32", "toeplitz")
# The paper's slopes are constants; T5's last bucket begins near 128, and then near 32, so that all buckets occur in training.
SETTINGS = {"alibi": {"learned": False}, "t5_bias to 32": {"max_distance": 32}}
ENDS = ("learned", "toeplitz")                               # tables that have no position beyond those of training


# %%
def draw(rng, *, length, batch_size=32):
    """Inputs and targets, (batch, length)."""
    tokens = rng.integers(SYMBOLS, size=(batch_size, length + 1))
    random = rng.random(tokens.shape) < 0.2
    for t in range(2, length + 1):
        tokens[:, t] = np.where(random[:, t], tokens[:, t], (tokens[:, t - 2] + 1) % SYMBOLS)
    return tokens[:, :-1], tokens[:, 1:].copy()


def model_at(scheme, length):
    """Its configuration, and the model as a function of parameters and ids."""
    config = LanguageModelConfig(
        SYMBOLS, context=length, d_model=32, num_layers=1, num_heads=4, position=scheme.partition(" ")[0], tied=False,
        options={"channel": {"d_hidden": 64}, "position": SETTINGS.get(scheme, {})},
    )  # fmt: skip
    return config, lambda params, ids: language_model(params, ids=ids, config=config)


def trained(scheme, rng, *, rate, steps):
    config, model = model_at(scheme, TRAINED)
    task = Labelled(model, functools.partial(draw, length=TRAINED))
    return fit(init_language_model(rng, config, std=0.2), task, steps=steps, peak=rate, rng=rng, warmup=0.05, floor=0.1)


def loss_at(params, scheme, length, rng):
    """Nats a token, over the last tokens of 128 new sequences."""
    inputs, targets = draw(rng, length=length, batch_size=128)
    targets[:, :-LAST] = IGNORED
    return nats(model_at(scheme, length)[1](params, inputs)[0], targets)


@section.tuning
def tuning(rng):
    for scheme in SCHEMES:
        for rate in (2.5e-3, 5e-3, 1e-2, 2e-2):
            own = np.random.default_rng(rng.integers(2**32))
            params = trained(scheme, own, rate=rate, steps=20 if section.quick else 400)
            yield scheme, rate, {"loss": loss_at(params, scheme, TRAINED, own)}


@section.experiment
def experiment(rng):
    for scheme in SCHEMES:
        params = trained(scheme, rng, rate=section.rates[scheme], steps=20 if section.quick else 400)
        for length in LENGTHS[:1] if scheme in ENDS else LENGTHS:
            yield scheme, length, {"nats": loss_at(params, scheme, length, rng)}


# %%
def told(found, *schemes, lengths=LENGTHS):
    parts = (f"{scheme} {', '.join(mean_and_spread(found['nats'][scheme][n]) for n in lengths)}" for scheme in schemes)
    return f"{'; '.join(parts)} nats at {', '.join(map(str, lengths))}"


@section.claim(
    "Without positions one layer cannot count back",
    paper="Vaswani et al. 2017, arXiv:1706.03762, section 3.5: without recurrence or convolution, order must be put in",
    measured=lambda found: told(found, "sinusoidal", "learned", "rope", "none", lengths=[TRAINED]),
)
def needs_positions(found):
    """At the trained length sinusoidal, learned and RoPE are within 0.2 nats of the noise, and none is 0.5 above it."""
    nats = {scheme: of[TRAINED] for scheme, of in found["nats"].items()}
    return max(nats[s] for s in ("sinusoidal", "learned", "rope")) < NOISE + 0.2 and nats["none"] > NOISE + 0.5


@section.claim(
    "Trained short, tested long, sinusoidal and RoPE fail",
    paper="Press et al. 2021, arXiv:2108.12409, section 2: sinusoidal and rotary models do not extrapolate",
    measured=lambda found: told(found, "sinusoidal", "rope", lengths=LENGTHS[:3]),
)
def fail(found):
    """At four times the length both lose more than half a nat."""
    return all(found["nats"][s][128] > found["nats"][s][TRAINED] + 0.5 for s in ("sinusoidal", "rope"))


@section.claim(
    "Trained short, tested long, ALiBi holds",
    paper="Press et al. 2021, arXiv:2108.12409, section 4: trained at one length, as good or better at several times that length",
    measured=lambda found: told(found, "alibi"),
)
def holds(found):
    """At two, four and eight times the length within 0.15 nats of the loss at the trained length."""
    nats = found["nats"]["alibi"]
    return max(nats.values()) < nats[TRAINED] + 0.15


@section.claim(
    "T5's bias stands between RoPE and ALiBi",
    paper="Press et al. 2021, arXiv:2108.12409, section 2.2: T5's bias extrapolates better than rotary positions; section 4: ALiBi better still",
    measured=lambda found: told(found, "rope", "t5_bias to 32", "t5_bias", "alibi", lengths=[64, 128]),
)
def between(found):
    """All buckets filled in training: at two and four times the length half a nat better than RoPE; at four, 0.1 worse than ALiBi."""
    rope, t5, alibi = (found["nats"][s] for s in ("rope", "t5_bias to 32", "alibi"))
    return t5[64] < rope[64] - 0.5 and t5[128] < rope[128] - 0.5 and alibi[128] < t5[128] - 0.1


@section.report
def report(found):
    nats = found["nats"]
    rows = [[scheme, *(mean_and_spread(of[n]) if n in of else None for n in LENGTHS)] for scheme, of in nats.items()]
    section.table("train_short_test_long", ["nats, last 16 tokens", *(f"length {n}" for n in LENGTHS)], rows)
    for scheme, of in nats.items():
        name = scheme.replace(" ", "_")
        section.value(f"extrapolation.{name}", of[TRAINED].mean())
        for n in of.keys() & {128, 256}:
            section.value(f"extrapolation.{name}_{n}", of[n].mean())
    section.value("extrapolation.floor", NOISE)


@section.figure("train_short_test_long")
def picture(ax, found):
    lines(ax, found["nats"], xlabel=f"length in testing (trained at {TRAINED})", ylabel=f"nats, last {LAST} tokens", xscale="log")
    for height, word in ((NOISE, "the noise itself"), (GUESSING, "guessing")):
        level(ax, height, word)
    ticks_at(ax, list(LENGTHS))
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


if __name__ == "__main__":
    section.main()
