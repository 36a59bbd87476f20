"""What does each norm forget of a vector?

Zhang and Sennrich 2019, arXiv:1910.07467, table 1: layer norm undoes scale and shift, RMS norm the scale. Nguyen and Salazar 2019,
arXiv:1910.05895, section 2.2: ScaleNorm puts every vector on one sphere. Zhu et al. 2025, arXiv:2503.10622: Dynamic Tanh has no
statistics at all. What a norm forgets is true by construction; that it does not forget the rest is shown by what changes.
"""

# %%
from functools import partial

import numpy as np

from minitransformers import (
    capsule_norm,
    dynamic_tanh,
    init_capsule_norm,
    init_dynamic_tanh,
    init_layer_norm,
    init_rms_norm,
    init_scale_norm,
    layer_norm,
    rms_norm,
    scale_norm,
)
from minitransformers.reporting import Section

section = Section(__file__, __doc__, kind="exact")
WIDTH, ROUNDING, SEEN = 64, 1e-12, 0.05
LAYER, RMS, SCALE, CAPSULE, TANH = "layer norm", "RMS norm", "ScaleNorm", "CapsuleNorm", "Dynamic Tanh"
NORMS = {
    LAYER: (init_layer_norm, layer_norm, {"eps": 0.0}),      # the others have no eps, or a floor far below x
    RMS: (init_rms_norm, rms_norm, {"eps": 0.0}),
    SCALE: (init_scale_norm, scale_norm, {}),
    CAPSULE: (init_capsule_norm, capsule_norm, {}),
    TANH: (init_dynamic_tanh, dynamic_tanh, {}),
}


@section.experiment
def experiment(rng):
    x = rng.normal(size=(100, WIDTH)) * 3 + 1
    rotation, _ = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))
    sizes = np.geomspace(0.1, 10, len(x))[:, None] * x       # positions whose sizes differ a hundredfold
    others = sizes * np.where(np.arange(WIDTH) > 0, 2, 1)    # the first feature stays
    for name, (init, norm, exact) in NORMS.items():
        apply = partial(norm, init(rng, WIDTH, dtype=np.float64), **exact)
        out, sized = apply(x)[0], apply(sizes)[0]
        lengths = np.linalg.norm(sized, axis=-1)
        yield name, "scaled by 7", {"change": np.abs(apply(7 * x)[0] - out).max()}
        yield name, "shifted by 4", {"change": np.abs(apply(x + 4)[0] - out).max()}
        yield name, "rotated", {"change": np.abs(apply(x @ rotation)[0] - out @ rotation).max()}
        yield name, "other features doubled", {"change": np.abs(apply(others)[0] - sized)[:, 0].max()}
        yield name, "all", {"shortest": lengths.min(), "longest": lengths.max()}


# %%
def told(found, what, *names):
    return f"{what}: " + ", ".join(f"{name} {np.mean(found['change'][name][what]):.2g}" for name in names)


@section.claim(
    "Layer norm forgets scale and shift, RMS norm the scale alone",
    paper="Zhang and Sennrich 2019, arXiv:1910.07467, table 1: re-centring of the data is undone by layer norm only, re-scaling by both",
    measured=lambda found: "; ".join(told(found, what, LAYER, RMS) for what in ("scaled by 7", "shifted by 4", "rotated")),
)
def scale_and_shift(found):
    """At eps = 0: what is forgotten changes no output by more than 1e-12; a shift changes RMS norm, and a rotation layer norm, by more
    than 0.05.
    """
    layer, rms = found["change"][LAYER], found["change"][RMS]
    forgotten = max(layer["scaled by 7"], layer["shifted by 4"], rms["scaled by 7"], rms["rotated"])
    return forgotten <= ROUNDING and min(rms["shifted by 4"], layer["rotated"]) > SEEN


@section.claim(
    "ScaleNorm forgets what RMS norm forgets; CapsuleNorm and Dynamic Tanh forget nothing",
    paper="Nguyen and Salazar 2019, arXiv:1910.05895, section 2.2: projection on a sphere; Zhu et al. 2025, arXiv:2503.10622: no statistics",
    measured=lambda found: "; ".join(told(found, what, SCALE, CAPSULE, TANH) for what in ("scaled by 7", "shifted by 4", "rotated")),
)
def relatives(found):
    """ScaleNorm: scale and rotation to 1e-12. CapsuleNorm lets rotations through to 1e-12, and a scale changes it by more than 1e-4. A
    shift changes all three by more than 0.05, scale and rotation Dynamic Tanh.
    """
    scale, capsule, tanh = (found["change"][name] for name in (SCALE, CAPSULE, TANH))
    forgotten = max(scale["scaled by 7"], scale["rotated"], capsule["rotated"])
    seen = min(*(of["shifted by 4"] for of in (scale, capsule, tanh)), tanh["scaled by 7"], tanh["rotated"])
    return forgotten <= ROUNDING and seen > SEEN and capsule["scaled by 7"] > 1e-4


@section.claim(
    "ScaleNorm gives every position one length",
    paper="Nguyen and Salazar 2019, arXiv:1910.05895, section 2.2: the inputs are projected onto a sphere of a learned radius",
    measured=lambda found: "; ".join(f"{name} from {shortest(found, name):.4f} to {longest(found, name):.4f}" for name in (SCALE, CAPSULE)),
)
def one_length(found):
    """Sizes of the input differ a hundredfold: ScaleNorm's lengths agree to 1e-12, CapsuleNorm's differ by more than 0.05."""
    return longest(found, SCALE) - shortest(found, SCALE) <= ROUNDING and longest(found, CAPSULE) - shortest(found, CAPSULE) > SEEN


@section.claim(
    "Dynamic Tanh looks at no other feature",
    paper="Zhu et al. 2025, arXiv:2503.10622, section 4: an element-wise operation, without statistics of the activations",
    measured=lambda found: told(found, "other features doubled", TANH, LAYER),
)
def alone(found):
    """With all other features doubled, a feature's output has the same bits; layer norm's changes by more than 0.05."""
    return found["change"][TANH]["other features doubled"] == 0 and found["change"][LAYER]["other features doubled"] > SEEN


def shortest(found, name):
    return np.mean(found["shortest"][name]["all"])


def longest(found, name):
    return np.mean(found["longest"][name]["all"])


@section.report
def report(found):
    def change(name, what):
        value = np.mean(found["change"][name][what])
        return 0.0 if value <= ROUNDING else float(value)

    columns = ("scaled by 7", "shifted by 4", "rotated")
    section.table("invariance", ["norm", *columns], [[name, *(change(name, what) for what in columns)] for name in NORMS])
    rows = [[name, change(name, "other features doubled"), shortest(found, name), longest(found, name)] for name in NORMS]
    section.table("mixing", ["norm", "change by the other features", "shortest output", "longest output"], rows)


if __name__ == "__main__":
    section.main()
