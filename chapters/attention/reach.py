"""How far does a stack of windows see?

Jiang et al. 2023, arXiv:2310.06825, section 2: a layer attends to W tokens, so k layers to up to k W. The gradient says which inputs an
output depends on, after one to four layers of sliding-window attention with windows of 4.
"""

# %%
from functools import partial

import numpy as np

from minitransformers import init_sliding_window_attention, sliding_window_attention, sliding_window_mask
from minitransformers.reporting import Section

section = Section(__file__, __doc__, kind="exact")
LENGTH, WINDOW, LAYERS, WIDTH = 24, 4, (1, 2, 3, 4), 16


# %%
def influences(rng):
    """For each number of layers the size of the gradient from every output to every input, (outputs, inputs)."""
    params = init_sliding_window_attention(rng, WIDTH, num_heads=4, num_kv_heads=2, dtype=np.float64)
    attend = partial(sliding_window_attention, params, num_heads=4, window=WINDOW)
    h, backwards, found = rng.normal(size=(LENGTH, WIDTH)), [], []
    for _ in LAYERS:
        h, backward = attend(h)
        backwards.append(backward)
        sizes = np.zeros((LENGTH, LENGTH))
        for i in range(LENGTH):
            dh = np.zeros_like(h)
            dh[i] = rng.normal(size=WIDTH)
            for back in reversed(backwards):
                _, dh, _ = back(dh)
            sizes[i] = np.linalg.norm(dh, axis=-1)
        found.append(sizes)
    return found


def predicted(layers):
    return layers * (WINDOW - 1) + 1


@section.experiment
def experiment(rng):
    for layers, sizes in zip(LAYERS, influences(rng), strict=True):
        other = (sizes > 0) != sliding_window_mask(LENGTH, window=predicted(layers))
        yield "windows", layers, {"positions": (sizes[-1] > 0).sum(), "other": other.sum()}


# %%
@section.claim(
    "k layers of windows reach k (W − 1) + 1 positions",
    paper="Jiang et al. 2023, arXiv:2310.06825, section 2: a token attends to W tokens a layer, so after k layers to up to k × W",
    measured=lambda found: f"W = {WINDOW}, one to {LAYERS[-1]} layers: {reached(found)} positions, the own one included; k W is that rounded up",
)
def rule(found):
    """Every output depends on its own and the k (W − 1) positions before it: no gradient is zero there, and all are exactly zero beyond."""
    right = all(positions == predicted(layers) for layers, positions in found["positions"]["windows"].items())
    return right and max(found["other"]["windows"].values()) == 0


def reached(found):
    return ", ".join(f"{int(positions[0])}" for positions in found["positions"]["windows"].values())


@section.report
def report(found):
    section.values("reach", {"window": WINDOW, "positions": reached(found)})


@section.figure("reach", size=(7.2, 2.2), ncols=len(LAYERS))
def picture(axes, found):
    for ax, layers, sizes in zip(axes, LAYERS, influences(np.random.default_rng(section.seed)), strict=True):
        logs = np.full_like(sizes, np.nan)
        np.log10(sizes, out=logs, where=sizes > 0)
        ax.imshow(logs, cmap="Blues", vmin=-5.5, vmax=0.5, interpolation="none")
        ax.set(title=f"{layers} layer{'s' * (layers > 1)}: {predicted(layers)}", xticks=[], yticks=[])
        ax.spines[:].set_visible(True)
        ax.grid(False)
    axes[0].set(xlabel="input position", ylabel="output position")


if __name__ == "__main__":
    section.main()
