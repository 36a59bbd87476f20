"""Does depth give back what a window cuts off?

Jiang et al. 2023, arXiv:2310.06825, section 2: through the layers information moves beyond the window, W tokens a layer. Each token is to
be the one six places before it, among random symbols, so that nothing else helps. Windows of 3, 4 and 7 positions, in as many layers as
it takes to reach it, and in fewer: k layers should do it where k (W - 1) is at least 6. All have one rate: no rate helps the others.
"""

# %%
import numpy as np

from minitransformers import LanguageModelConfig, init_language_model, language_model
from minitransformers.reporting import Section, mean_and_spread
from minitransformers.training.fit import fit
from minitransformers.training.task import IGNORED, Labelled, accuracy
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
BACK, SYMBOLS, LENGTH, WIDTH, STEPS = 6, 8, 24, 32, 300
MODELS = {3: (1, 2, 3), 4: (1, 2), 7: (1,)}                  # numbers of layers for each window
GUESSING = 1 / SYMBOLS


# %%
def draw(rng, *, batch_size=16):
    ids = rng.integers(SYMBOLS, size=(batch_size, LENGTH))
    return ids, np.concatenate([np.full_like(ids[:, :BACK], IGNORED), ids[:, :-BACK]], axis=1)


def reaches(window, layers):
    return layers * (window - 1) >= BACK


@section.experiment
def experiment(rng):
    hold_blas()
    for window, depths in MODELS.items():
        for layers in depths:
            config = LanguageModelConfig(
                SYMBOLS, context=LENGTH, d_model=WIDTH, num_layers=layers, num_heads=2, position="rope", tied=False,
                mixer="sliding_window_attention", options={"mixer": {"window": window}, "channel": {"d_hidden": WIDTH}},
            )  # fmt: skip
            task = Labelled(lambda params, ids, config=config: language_model(params, ids=ids, config=config), draw)
            fresh = init_language_model(rng, config, std=0.1)
            params = fit(fresh, task, steps=5 if section.quick else STEPS, peak=5e-3, rng=rng, floor=0.05)
            ids, targets = draw(rng, batch_size=256)
            yield f"window of {window}", layers, {"right": accuracy(task.model(params, ids)[0], targets)}


# %%
def by_reach(found):
    """Shares of right answers, of the models that reach far enough and of those that do not."""
    shares = {(w, k): found["right"][f"window of {w}"][k] for w, depths in MODELS.items() for k in depths}
    return ([of for case, of in shares.items() if reaches(*case) == far] for far in (True, False))


def told(found):
    enough, short = by_reach(found)
    return f"where the layers reach far enough {np.min(enough):.2f} to {np.max(enough):.2f} are right, else {np.min(short):.2f} to {np.max(short):.2f}"


@section.claim(
    "Depth gives back what a window cuts off",
    paper="Jiang et al. 2023, arXiv:2310.06825, section 2: information moves forward by up to W tokens at each layer",
    measured=lambda found: f"{told(found)}; guessing {GUESSING:.2f}",
)
def restores(found):
    """At least 0.95 of all tokens are right where k (W - 1) reaches six back, and at most 0.05 more than by guessing where it does not."""
    enough, short = by_reach(found)
    return min(enough) >= 0.95 and max(short) <= GUESSING + 0.05


@section.report
def report(found):
    rows = [[name, *(mean_and_spread(of[k]) if k in of else None for k in MODELS[3])] for name, of in found["right"].items()]
    section.table("depth", ["share of right tokens", *(f"{k} layer{'s' * (k > 1)}" for k in MODELS[3])], rows)
    section.values("depth", {"back": BACK, "steps": STEPS, "guessing": GUESSING})


if __name__ == "__main__":
    section.main()
