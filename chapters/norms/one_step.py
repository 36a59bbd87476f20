"""How far does one step move a deep post-norm stack: is it DeepNorm's small start that holds it, or its factor on the stream?

Wang et al. 2022, arXiv:2203.00555, section 4: the change of a post-norm model's output after one step grows with depth; with DeepNorm, which
multiplies the stream by alpha above 1 and the first weights by beta below 1, it is bounded. Each of the two is tried alone as well. The
bound speaks of the layers' weights; gains and biases of the norms stay, and beside that is shown what happens when they step too.
"""

# %%
from functools import partial

import numpy as np

from minitransformers import (
    chain,
    feed_forward,
    init_feed_forward,
    init_layer_norm,
    layer_norm,
    relu,
    residual,
    trees,
)
from minitransformers.foundation import slot
from minitransformers.norms.deep_norm import deep_norm_constants
from minitransformers.reporting import Section, lines, ticks_at

section = Section(__file__, __doc__, kind="arithmetic")
WIDTH, TOKENS, RATE, DEPTHS, DRAWS = 16, 32, 0.005, (2, 8, 32), 8
POST, START, FACTOR, DEEP = "post-norm", "post-norm, small start (beta)", "post-norm, scaled stream (alpha)", "DeepNorm: both"
LAYERS, NORMS = "layers step", "norms step too"
STACKS = {POST: (False, False), START: (False, True), FACTOR: (True, False), DEEP: (True, True)}


# %%
def change_after_one_step(rng, depth, *, scaled, small):
    """How far the output moves, root mean square a position, when all layers of a stack take one gradient step, and with their norms."""
    alpha, beta = deep_norm_constants(depth)
    std = (beta if small else 1.0) * (2 / (WIDTH + 4 * WIDTH)) ** 0.5
    params = []
    for _ in range(depth):
        params += [init_feed_forward(rng, WIDTH, std=std, dtype=np.float64), init_layer_norm(rng, WIDTH, dtype=np.float64)]
    work = partial(residual, part=partial(feed_forward, activation=slot(relu)), scale=alpha if scaled else 1.0)
    x, parts = rng.normal(size=(TOKENS, WIDTH)), [work, layer_norm] * depth
    out, backward = chain(params, x, parts=parts)
    dparams, _ = backward((out - rng.normal(size=out.shape)) / TOKENS)
    stepped = [trees.map(lambda p, d: p - RATE * d, *both) for both in zip(params, dparams, strict=True)]
    layers_alone = [new if i % 2 == 0 else old for i, (old, new) in enumerate(zip(params, stepped, strict=True))]
    return [np.linalg.norm(chain(new, x, parts=parts)[0] - out) / TOKENS**0.5 for new in (layers_alone, stepped)]


@section.experiment
def experiment(rng):
    for stack, (scaled, small) in STACKS.items():
        for depth in DEPTHS:
            draws = [change_after_one_step(rng, depth, scaled=scaled, small=small) for _ in range(2 if section.quick else DRAWS)]
            yield stack, depth, dict(zip((LAYERS, NORMS), np.mean(draws, axis=0), strict=True))


# %%
def growth(found, stack, what=LAYERS):
    """How many times as far the deepest stack moves as the shallowest."""
    of = found[what][stack]
    return np.mean(of[DEPTHS[-1]]) / np.mean(of[DEPTHS[0]])


def told(found, *stacks, what=LAYERS):
    return ", ".join(f"{stack} {growth(found, stack, what):.1f}" for stack in stacks) + " times as far at 32 layers as at 2"


@section.claim(
    "With DeepNorm one step moves a deep stack little more than a shallow one",
    paper="Wang et al. 2022, arXiv:2203.00555, section 4: the change of the output is bounded by a constant, post-norm's grows with depth",
    measured=lambda found: told(found, POST, DEEP),
)
def bounded(found):
    """From 2 to 32 feed-forward layers whose weights step: under post-norm more than ten times as far, with DeepNorm less than three times."""
    return growth(found, POST) > 10 and growth(found, DEEP) < 3


@section.claim(
    "Is it the scaled stream that bounds the step, or the small start?",
    paper="Wang et al. 2022, arXiv:2203.00555, section 4.2: both constants come out of one bound",
    measured=lambda found: told(found, START, FACTOR),
)
def both(found):
    """Neither does alone: with the small start, and with the scaled stream, more than three times as far."""
    return min(growth(found, START), growth(found, FACTOR)) > 3


@section.claim(
    "Is it bounded where gains and biases of the norms step as well?",
    paper="Wang et al. 2022, arXiv:2203.00555, section 4.2: the bound leaves them out",
    measured=lambda found: told(found, POST, DEEP, what=NORMS),
)
def norms_too(found):
    """At one rate for all, with DeepNorm less than three times as far."""
    return growth(found, DEEP, NORMS) < 3


@section.report
def report(found):
    rows = [[n, *(float(np.mean(of[n])) for of in found[LAYERS].values())] for n in DEPTHS]
    section.table("deep_norm", ["layers", *found[LAYERS]], rows)
    section.values("deep_norm", {"growth_post": growth(found, POST), "growth_deep": growth(found, DEEP)})
    section.values("deep_norm", {"growth_start": growth(found, START), "growth_factor": growth(found, FACTOR)})
    section.value("deep_norm.growth_deep_norms", growth(found, DEEP, NORMS))


@section.figure("one_step")
def picture(ax, found):
    lines(ax, found[LAYERS], xlabel="feed-forward layers", ylabel="change of the output", xscale="log", yscale="log")
    ticks_at(ax, list(DEPTHS))
    ax.legend()


if __name__ == "__main__":
    section.main()
