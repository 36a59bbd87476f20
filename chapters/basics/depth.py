"""How much of a gradient comes back through many networks in a row?

He et al. 2016, arXiv:1603.05027, eq. 5: where each part is added to its input, the gradient of the output reaches every input as it is,
and beside it what goes through the parts. Radford et al. 2019 (GPT-2), section 2.3: parts start smaller by the square root of their number,
so that what they add does not add up with depth. Feed-forward networks as they start, nothing is trained.
"""

# %%
from functools import partial

import numpy as np

from minitransformers import chain, feed_forward, init_feed_forward, residual
from minitransformers.reporting import Section, lines, ticks_at

section = Section(__file__, __doc__, kind="arithmetic")
WIDTH, DEPTHS = 64, (1, 2, 4, 8, 16, 32, 64)
START = (4 * WIDTH) ** -0.5                                  # of the map down of a feed-forward network, as its init has it
PLAIN, ADDED, SMALLER = "one after the other", "each added to its input", "added, and started smaller by √(2 · parts)"
PARTS = {PLAIN: feed_forward, ADDED: partial(residual, part=feed_forward), SMALLER: partial(residual, part=feed_forward)}


@section.experiment
def experiment(rng):
    for name, part in PARTS.items():
        for depth in DEPTHS:
            std = START / (2 * depth) ** 0.5 if name == SMALLER else START
            params = [init_feed_forward(rng, WIDTH, residual_std=std, dtype=np.float64) for _ in range(depth)]
            out, backward = chain(params, rng.normal(size=(32, WIDTH)), parts=[part] * depth)
            dout = rng.normal(size=out.shape)
            yield name, depth, {"gradient": np.linalg.norm(backward(dout)[1]) / np.linalg.norm(dout)}


# %%
def deepest(found, name):
    return found["gradient"][name][DEPTHS[-1]]


@section.claim(
    "Added to its input, no network can stop a gradient",
    paper="He et al. 2016, arXiv:1603.05027, eq. 5: the gradient of a layer does not vanish even when the weights are arbitrarily small",
    measured=lambda found: f"through {DEPTHS[-1]} networks {np.mean(deepest(found, PLAIN)):.0e} one after the other, {np.mean(deepest(found, ADDED)):.0e} added",
)
def nothing_lost(found):
    """Through 64 networks, one after the other, less than 1e-9 of the gradient comes back; added, at every depth at least as much as arrived."""
    return deepest(found, PLAIN) < 1e-9 and min(found["gradient"][ADDED].values()) >= 1


@section.claim(
    "Parts that start smaller by the root of their number keep a gradient's size at any depth",
    paper="Radford et al. 2019 (GPT-2), section 2.3: weights of residual layers are scaled at the start by 1/√N, N the number of residual layers",
    measured=lambda found: f"{', '.join(f'{np.mean(y):.2f}' for y in found['gradient'][SMALLER].values())} of it at {', '.join(map(str, DEPTHS))} parts",
)
def same_size(found):
    """At every depth from 1 to 64 the gradient comes back with between 0.9 and 1.3 times its size."""
    return all(0.9 < y < 1.3 for y in found["gradient"][SMALLER].values())


@section.report
def report(found):
    section.value("residual.depth", DEPTHS[-1])
    section.values("residual", {"plain": np.mean(deepest(found, PLAIN)), "added": np.mean(deepest(found, ADDED)), "smaller": np.mean(deepest(found, SMALLER))})


@section.figure("residual_depth")
def picture(ax, found):
    lines(ax, found["gradient"], xlabel="feed-forward networks", ylabel="gradient of the input\nover that of the output", xscale="log", yscale="log")
    ticks_at(ax, list(DEPTHS))
    ax.legend()


if __name__ == "__main__":
    section.main()
