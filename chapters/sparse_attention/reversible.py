"""Does a deep stack of reversible layers need no more memory than a shallow one, and what does it pay?

Kitaev, Kaiser and Levskaya 2020, arXiv:2001.04451, section 3: activations need not be kept for each layer, and the layers are run
once more on the way back. Layers of hashed attention and a feed-forward network behind norms, with random weights, forward and
backward, beside the same layers on a usual residual stream. And do the inputs come back, in float32, where layers hash them?
"""

# %%
from functools import partial

import numpy as np

from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.basics.chain import chain
from minitransformers.basics.feed_forward import feed_forward, init_feed_forward
from minitransformers.basics.residual import residual
from minitransformers.norms.layer_norm import init_layer_norm, layer_norm
from minitransformers.reporting import Section, along, fitted_exponent, lines, paired_times, peak_megabytes, ticks_at
from minitransformers.sparse_attention.reformer_attention import init_reformer_attention, reformer_attention
from minitransformers.sparse_attention.reversible import Reversible, reversible, reversible_inputs
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="exact")
POSITIONS, WIDTH, DEPTHS = 1024, 16, (2, 4, 8, 16, 32)
TURNING, KEEPING, DENSE, HASHED = "reversible", "residual, activations kept", "dense attention", "hashed attention"
STACKS, DEEP, LOST = 8, 16, 1e-2                             # so many stacks of so many layers; an input that is off by more is lost
PARTS = {
    HASHED: (init_reformer_attention, partial(reformer_attention, num_heads=4, rounds=8, num_buckets=8, chunk=8), 2048),
    DENSE: (init_multi_head_attention, partial(multi_head_attention, num_heads=4), 256),
}
F, G = (partial(chain, parts=(layer_norm, part)) for part in (partial(reformer_attention, num_heads=2, rounds=2, num_buckets=8), feed_forward))


# %%
def layers(rng, depth, init=init_reformer_attention):
    def behind_norm(part):
        return init_layer_norm(rng, WIDTH), part

    return [
        Reversible(behind_norm(init(rng, WIDTH, num_heads=4)), behind_norm(init_feed_forward(rng, WIDTH, d_hidden=2 * WIDTH, std=1.0)))
        for _ in range(depth)
    ]


def turning(params, x):
    out, backward = reversible(params, x, x, f=F, g=G)
    return backward(out)


def keeping(params, x):
    parts = [partial(residual, part=part) for _ in params for part in (F, G)]
    out, backward = chain([own for layer in params for own in layer], x, parts=parts)
    return backward(out)


@section.experiment
def experiment(rng):
    hold_blas()
    x = rng.standard_normal((POSITIONS, WIDTH), np.float32)
    turning(layers(rng, 1), x)                               # what is imported at the first call is no cost of a layer
    for depth in DEPTHS[1:4] if section.quick else DEPTHS:
        params = layers(rng, depth)
        for name, run in ((TURNING, turning), (KEEPING, keeping)):
            yield name, depth, {"megabytes": peak_megabytes(partial(run, params, x))}
    params = layers(rng, 4)
    ratio = paired_times({KEEPING: partial(keeping, params, x), TURNING: partial(turning, params, x)}, rounds=3 if section.quick else 15)
    yield TURNING, "all", {"time": ratio[TURNING].median}
    for name, (init, attend, positions) in PARTS.items():
        parts, gone = {"f": partial(chain, parts=(layer_norm, attend)), "g": G}, []
        for _ in range(stacks()):
            params, x = layers(rng, DEEP, init), rng.standard_normal((positions, WIDTH), np.float32)
            found = reversible_inputs(params, *reversible(params, x, x, **parts)[0], **parts)
            error = np.max([abs(part - x).max(-1) for part in found], axis=0)
            gone.append((error > LOST).any())
            if not gone[-1]:
                yield name, len(gone), {"error": error.max()}
        yield name, "all", {"lost": sum(gone)}


# %%
def power(found, name):
    """Of the number of layers, over the three deepest stacks: below, the memory of a single layer still shows."""
    points = found["megabytes"][name]
    return fitted_exponent(list(points)[-3:], along(points).reshape(-1)[-3:])


@section.claim(
    "The memory of reversible layers does not grow with their number",
    paper="Kitaev et al. 2020, arXiv:2001.04451, section 3: the factor of the number of layers in the memory for activations vanishes",
    measured=lambda found: f"exponents {power(found, TURNING):.2f} and, where activations are kept, {power(found, KEEPING):.2f}",
)
def memory(found):
    """Peak memory of forward and backward grows with depth to a power of at most 0.1, and of at least 0.8 where activations are kept."""
    return power(found, TURNING) <= 0.1 and power(found, KEEPING) >= 0.8


@section.claim(
    "They pay with one more forward pass",
    paper="Gomez et al. 2017, arXiv:1707.04585, section 3: about 50 % more computation in the backward pass",
    kind="timed",
    measured=lambda found: f"{found['time'][TURNING]['all'].mean():.2f} times as long",
)
def time(found):
    """Forward and backward together take at most twice as long as where activations are kept."""
    return found["time"][TURNING]["all"] <= 2


@section.claim(
    "A hash can come out otherwise when a layer runs again",
    paper="Kitaev et al. 2020, arXiv:2001.04451, section 3 does not say; reformer-pytorch keeps the buckets of the forward pass for this",
    measured=lambda found: f"lost in {lost(found, HASHED)} of {stacks()} stacks with hashed attention, in {lost(found, DENSE)} with dense",
)
def hashes(found):
    """In float32 at least one of eight stacks with hashed attention does not get its inputs back within 0.01; with dense attention all do."""
    return found["lost"][HASHED]["all"] >= 1 and found["lost"][DENSE]["all"] == 0


def stacks():
    return STACKS // 2 if section.quick else STACKS


def lost(found, name):
    return int(np.sum(found["lost"][name]["all"]))


@section.report
def report(found):
    rows = [[depth, *(float(f"{found['megabytes'][name][depth].mean():.1f}") for name in (TURNING, KEEPING))] for depth in found["megabytes"][TURNING]]
    section.table("reversible", ["layers", f"MiB at most, {TURNING}", KEEPING], rows)
    section.values("reversible", {"exponent": power(found, TURNING), "kept_exponent": power(found, KEEPING), "time": found["time"][TURNING]["all"].mean()})
    section.values("reversible.lost", {"hashed": lost(found, HASHED), "dense": lost(found, DENSE), "stacks": STACKS, "layers": DEEP})
    section.value("reversible.error", max(error.max() for error in found["error"][DENSE].values()))


@section.figure("reversible", size=(5.2, 3))
def picture(ax, found):
    lines(ax, found["megabytes"], xlabel="layers", ylabel="MiB at most", xscale="log", yscale="log")
    ticks_at(ax, list(found["megabytes"][TURNING]))
    ax.legend()


if __name__ == "__main__":
    section.main()
