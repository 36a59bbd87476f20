"""What does each norm cost, and what does dropping the mean save?

Zhang and Sennrich 2019, arXiv:1910.07467, abstract: RMS norm takes 7 to 64 % off the time of whole models. Nguyen and Salazar 2019,
arXiv:1910.05895, abstract: ScaleNorm trains faster. Zhu et al. 2025, arXiv:2503.10622: layers of Dynamic Tanh take less time than RMS norm's in
a Llama of 7B on a graphics processor. Here each norm alone, forward and backward, float32, in turn on one array.
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
    init_qk_norm,
    init_rms_norm,
    init_scale_norm,
    layer_norm,
    qk_norm,
    rms_norm,
    scale_norm,
)
from minitransformers.reporting import Section, shortest_times
from minitransformers.training.memory import keep_freed_memory
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="timed")
SHAPES = ((768, 128, 4), (256, 768, 12))                     # positions, features, heads
LAYER, RMS, SCALE, CAPSULE, TANH, QK = "layer norm", "RMS norm", "ScaleNorm", "CapsuleNorm", "Dynamic Tanh", "QK-norm, queries and keys"
NORMS = {
    LAYER: (init_layer_norm, layer_norm),
    RMS: (init_rms_norm, rms_norm),
    SCALE: (init_scale_norm, scale_norm),
    CAPSULE: (init_capsule_norm, capsule_norm),
    TANH: (init_dynamic_tanh, dynamic_tanh),
}


# %%
def both_ways(norm, params, x, dout):
    _, backward = norm(params, x)
    backward(dout)


def both_ways_of_two(params, x, dout):
    _, backward = qk_norm(params, x, x)
    backward((dout, dout))


@section.experiment
def experiment(rng):
    keep_freed_memory()                                      # otherwise fresh pages are timed, not arithmetic
    hold_blas()
    for tokens, width, heads in SHAPES:
        x, dout = rng.standard_normal((2, tokens, width), np.float32)
        calls = {name: partial(both_ways, norm, init(rng, width), x, dout) for name, (init, norm) in NORMS.items()}
        x_heads, dout_heads = (np.ascontiguousarray(a.reshape(tokens, heads, -1).swapaxes(0, 1)) for a in (x, dout))
        calls[QK] = partial(both_ways_of_two, init_qk_norm(rng, width // heads), x_heads, dout_heads)
        times = shortest_times(calls, rounds=7 if section.quick else 300)
        for name, seconds in times.items():
            yield name, f"{tokens} x {width}", {"ratio": seconds / times[LAYER]}


# %%
def ratio(found, name):
    """Time over layer norm's, mean of the shapes."""
    return np.mean(list(found["ratio"][name].values()))


def told(found, *names):
    return ", ".join(f"{name} {ratio(found, name):.2f}" for name in names) + " of layer norm's time, forward and backward"


@section.claim(
    "RMS norm costs less than layer norm",
    paper="Zhang and Sennrich 2019, arXiv:1910.07467, abstract: 7 to 64 % less running time, of whole models",
    measured=lambda found: told(found, RMS),
)
def rms_cheaper(found):
    """At least 7 % less time: four reductions and four element-wise passes fewer."""
    return ratio(found, RMS) <= 0.93


@section.claim(
    "ScaleNorm costs less than layer norm",
    paper="Nguyen and Salazar 2019, arXiv:1910.05895, abstract: faster training",
    measured=lambda found: told(found, SCALE),
)
def scale_cheaper(found):
    """At least 7 % less time: one gain, and no mean."""
    return ratio(found, SCALE) <= 0.93


@section.claim(
    "Does Dynamic Tanh cost less than RMS norm?",
    paper="Zhu et al. 2025, arXiv:2503.10622: in a LLaMA 7B on a GPU, its layers take less time than RMS norm's",
    measured=lambda found: told(found, TANH, RMS),
)
def tanh_cheaper(found):
    """At least 7 % less time: nothing is summed over features, but every element needs a tanh."""
    return ratio(found, TANH) <= 0.93 * ratio(found, RMS)


@section.report
def report(found):
    shapes = list(found["ratio"][LAYER])
    rows = [[name, *(float(f"{np.mean(of[shape]):.2f}") for shape in shapes)] for name, of in found["ratio"].items()]
    section.table("cost", ["time, layer norm's as 1", *shapes], rows)
    section.value("cost.ratio", ratio(found, RMS))


if __name__ == "__main__":
    section.main()
