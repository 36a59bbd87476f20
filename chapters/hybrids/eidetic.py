"""What do a window, a fading memory and a few kept tokens recall?

Zancato et al. 2024, arXiv:2407.06324, abstract: beside a window and a state that fades, B'MOJO keeps word for word what came as a
surprise, up to a finite number of tokens, and recalls better than models of states alone. A layer set by hand, so that nothing rests on
training: a token is an address, a value and a question. Pairs of an address and a value lie in a background that repeats, once each, out of
the reach of a window of the questions at the end. The recurrence foretells the background, and adds a mean that fades.
"""

# %%
from functools import partial

import numpy as np

import minitransformers as mt
from minitransformers.foundation import trees
from minitransformers.reporting import Section, lines
from minitransformers.training.needles import surprising_pairs
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="arithmetic")
PART, PERIOD, LENGTH, WINDOW, MEMORY, TRIALS, PAIRS = 16, 8, 512, 32, 16, 16, (4, 8, 12, 16, 24, 32)  # PART: numbers of each third of a token
FADING, NEAR, BOTH, KEPT, TWICE, FULL = "fading", "window", "both (F)", f"and {MEMORY} kept", f"and {2 * MEMORY} kept", "full"


# %% A layer that looks up by address
def made_by_hand():
    width = 3 * PART
    eye, twice, none = np.eye(width), 2 * width, np.zeros((PART, PART))
    signs = np.concatenate([eye, -eye], axis=1)              # silu(v) - silu(-v) = v: two channels pass a number unchanged
    inlet = np.concatenate([signs, np.zeros((width, twice))], axis=1)
    gates = np.concatenate([np.zeros(twice), np.full(twice, 1.2784645)])  # silu of it is 1
    delay = np.eye(1, PERIOD) * np.ones((twice, 1))          # tap 0 is the one furthest back: the token PERIOD - 1 before
    ssm = mt.Mamba(
        mt.Linear(inlet, gates), mt.CausalConvolution(delay, None), mt.Linear(np.zeros((twice, 3)), np.array([0.0, 1.0, 1.0])),  # B = C = 1
        mt.Linear(np.zeros((1, twice)), np.full(twice, np.log(np.expm1(0.02)))), np.zeros((twice, 1)), np.ones(twice), mt.Linear(signs.T, None),
    )  # fmt: skip
    ask, address, value = (np.concatenate([part * np.eye(PART) if k == i else none for k in range(3)]) for i, part in ((2, 40), (0, 1), (1, 1)))
    return trees.cast(mt.Bmojo(ssm, *(mt.Linear(w, None) for w in (ask, address, value, value.T))), np.float32)


LAYER, SETTINGS = made_by_hand(), {"num_heads": 1, "core": partial(mt.softmax_attention, scale=1.0)}
FORMS = {
    FADING: partial(mt.bmojo_blocks, LAYER, window=1, memory=0, **SETTINGS),
    NEAR: partial(mt.sliding_window_attention, mt.GroupedQueryAttention(*LAYER[1:]), window=WINDOW, **SETTINGS),
    BOTH: partial(mt.bmojo_blocks, LAYER, window=WINDOW, memory=0, **SETTINGS),
    KEPT: partial(mt.bmojo_blocks, LAYER, window=WINDOW, memory=MEMORY, **SETTINGS),
    TWICE: partial(mt.bmojo_blocks, LAYER, window=WINDOW, memory=2 * MEMORY, **SETTINGS),
    FULL: partial(mt.multi_head_attention, mt.MultiHeadAttention(*LAYER[1:]), num_heads=1, core=partial(mt.causal_attention, scale=1.0)),
}


# %% Texts with pairs in them, and questions at the end
sizes = {"batch_size": TRIALS, "length": LENGTH, "part": PART, "period": PERIOD}
draw = partial(surprising_pairs, **sizes, first=4 * PERIOD, last=LENGTH - 3 * WINDOW)


def kept_among(x, places):
    """How many of the places a memory of MEMORY tokens holds at the end, on average."""
    kept = mt.bmojo_step(LAYER, x, None, window=WINDOW, memory=MEMORY, **SETTINGS)[1].eidetic.position
    return [np.mean([np.isin(own, slots).sum() for own, slots in zip(spots, kept, strict=True)]) for spots in (places, places + PERIOD)]


@section.experiment
def experiment(rng):
    hold_blas()
    for pairs in PAIRS[1::2] if section.quick else PAIRS:
        x, value, asked, places = draw(rng, num_pairs=pairs)
        for name, form in FORMS.items():
            read = form(x)[0][:, -pairs:, PART : 2 * PART]
            yield name, pairs, {"right": ((read @ value.swapaxes(-1, -2)).argmax(-1) == asked).mean()}
        own, echoes = kept_among(x, places)
        yield KEPT, pairs, {"pairs": own, "echoes": echoes}


# %%
def told(found, pairs, *names):
    return ", ".join(f"{name} {np.mean(found['right'][name][pairs]):.2f}" for name in names) + f", of {pairs} pairs"


@section.claim(
    "What fades is not recalled; a few tokens kept word for word are",
    paper="Zancato et al. 2024, arXiv:2407.06324, abstract: on associative recall B'MOJO is better than state-space models and other hybrids",
    measured=lambda found: told(found, 8, BOTH, KEPT),
)
def kept_word_for_word(found):
    """Of 8 pairs far outside the window at most 0.25 right without a memory (guessing: 0.125), at least 0.95 with one of 16 tokens."""
    return found["right"][BOTH][8] <= 0.25 and found["right"][KEPT][8] >= 0.95


@section.claim(
    "A memory recalls until it is full",
    paper="Zancato et al. 2024, arXiv:2407.06324, abstract: memory grows to a finite bound",
    measured=lambda found: told(found, 32, KEPT, TWICE, FULL),
)
def full(found):
    """32 pairs: with 16 places at most half of them, as 16 places can hold no more; with 32 places at least 0.1 more; full attention all."""
    few, more, every = (found["right"][name][32] for name in (KEPT, TWICE, FULL))
    return few <= 0.5 and more >= few + 0.1 and every == 1


@section.claim(
    "A surprise echoes, and the echo takes a place",
    paper="not in the paper; a consequence of the innovation test wherever the predictor reads past tokens",
    measured=lambda found: f"of {MEMORY} places {np.mean(found['pairs'][KEPT][16]):.1f} have pairs and {np.mean(found['echoes'][KEPT][16]):.1f} echoes",
)
def echo(found):
    """With 16 pairs for 16 places at most 15 are kept, and more than half of the other places hold what came 8 positions after a pair."""
    own, echoes = found["pairs"][KEPT][16], found["echoes"][KEPT][16]
    return own <= MEMORY - 1 and echoes > (MEMORY - own) / 2


@section.report
def report(found):
    right, own, echoes = found["right"], found["pairs"][KEPT], found["echoes"][KEPT]
    asked = list(right[FULL])
    section.table("eidetic", ["pairs", *right], [[pairs, *(float(of[pairs].mean()) for of in right.values())] for pairs in asked])
    held = [[pairs, float(own[pairs].mean()), float(echoes[pairs].mean())] for pairs in asked]
    section.table("eidetic-held", ["pairs in the text", f"of {MEMORY} kept: pairs", "echoes"], held)
    section.values("eidetic", {
        "length": LENGTH, "window": WINDOW, "memory": MEMORY, "trials": TRIALS, "period": PERIOD, "without": right[BOTH][8].mean(),
        "with": right[KEPT][8].mean(), "full_memory": right[KEPT][16].mean(), "twice": right[TWICE][16].mean(), "held": own[16].mean(),
        "echoes": echoes[16].mean(),
    })  # fmt: skip


@section.figure("eidetic", size=(6, 5.4), nrows=2)
def picture(axes, found):
    above, below = axes
    x, _, _, places = draw(np.random.default_rng(section.seed), num_pairs=8)
    surprise, spots = mt.innovation(x, mt.mamba(LAYER.ssm, x)[0])[0][0], places[0]
    shown = np.arange(4 * PERIOD, LENGTH - WINDOW)
    above.plot(shown, surprise[shown], color="#808080", linewidth=1.0, label="innovation")
    above.plot(spots, surprise[spots], "o", color="#2f7ebf", label="a pair")
    above.plot(spots + PERIOD, surprise[spots + PERIOD], "x", color="#d0691f", label=f"{PERIOD} positions later")
    above.set(xlabel="position", ylabel="innovation", ylim=(-0.2, 1.35 * surprise[shown].max()))
    above.legend(loc="upper center", ncols=3, columnspacing=1.0, handletextpad=0.4)
    lines(below, found["right"], marker=".", xlabel="pairs", ylabel="recalled", ylim=(-0.03, 1.05))
    below.axvline(MEMORY, color="#808080", linewidth=0.8, linestyle=":")
    below.legend(loc="lower left", bbox_to_anchor=(0.01, 0.3))


if __name__ == "__main__":
    section.main()
