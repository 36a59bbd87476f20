"""RoPE pairs neighbours, or one half with the other: is it the same map, and which costs less?

Su et al. 2021, arXiv:2104.09864, eq. 34 pairs features 2m and 2m + 1; GPT-NeoX and Hugging Face's Llama pair m and m + d/2.
Each is the other with the features in another order, and weights that were trained with one must be permuted for the other.
"""

# %%
import numpy as np

from minitransformers.positional.rope import rope
from minitransformers.positional.rope_fast import rope_fast
from minitransformers.positional.rope_interleaved import rope_interleaved
from minitransformers.reporting import Section, paired_times

section = Section(__file__, __doc__, kind="exact")
SLICES, PLAIN, FAST, COMPLEX = "every second feature", "plain", "fast", "interleaved, as complex numbers"


@section.experiment
def experiment(rng):
    x, width = rng.normal(size=(4, 128, 32)), 32
    order = np.concatenate([np.arange(0, width, 2), np.arange(1, width, 2)])
    half, interleaved = rope(x[..., order])[0], rope_interleaved(x)[0]
    yield "permuted", width, {"difference": np.abs(half - interleaved[..., order]).max()}
    yield "not permuted", width, {"difference": np.abs(rope(x)[0] - interleaved).max()}

    x, dout = rng.standard_normal((2, 8, 512, 64), np.float32)
    angle = np.outer(np.arange(512), 10_000.0 ** (-np.arange(32) / 32))
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)

    def by_slices():                                         # the formula as it stands, tables given
        for a, s in ((x, sin), (dout, -sin)):
            out = np.empty_like(a)
            out[..., ::2] = a[..., ::2] * cos - a[..., 1::2] * s
            out[..., 1::2] = a[..., ::2] * s + a[..., 1::2] * cos

    forms = {SLICES: by_slices, PLAIN: lambda: rope(x)[1](dout), FAST: lambda: rope_fast(x)[1](dout), COMPLEX: lambda: rope_interleaved(x)[1](dout)}
    for form, ratio in paired_times(forms, rounds=5 if section.quick else 100).items():
        for quartile, number in ratio._asdict().items():
            yield form, quartile, {"time": number}


# %%
@section.claim(
    "The two layouts of RoPE are one permutation apart",
    paper="Su et al. 2021, arXiv:2104.09864, eq. 34 pairs neighbours; GPT-NeoX and Hugging Face's Llama pair feature m with m + d/2",
    measured=lambda found: "{:.0e} apart with the permutation, {:.1f} without".format(*(of[32][0] for of in found["difference"].values())),
)
def same(found):
    """Equal to rounding (1e-12) after [0, 2, 4, ..., 1, 3, 5, ...]; without, some feature differs by more than 1."""
    return found["difference"]["permuted"][32] < 1e-12 and found["difference"]["not permuted"][32] > 1


@section.claim(
    "A pair of neighbours is turned faster as a complex number",
    paper="no paper: memory that lies in a row is read at full speed, every second number is not",
    kind="timed",
    measured=lambda found: ", ".join(f"{form}: {of['median'][0]:.2f}" for form, of in found["time"].items()) + " (median time, slices = 1)",
)
def faster(found):
    """Forward and backward in at most half the time of slices of every second feature."""
    return found["time"][COMPLEX]["median"] <= 0.5


@section.report
def report(found):
    rows = [[form, *(float(number[0]) for number in of.values())] for form, of in found["time"].items()]
    section.table("layout_cost", ["form", "time, forward and backward: lower quartile", "median", "upper quartile"], rows)
    section.value("layout.same", found["difference"]["permuted"][32][0])
    section.value("layout.forgotten", found["difference"]["not permuted"][32][0])


if __name__ == "__main__":
    section.main()
