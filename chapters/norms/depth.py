"""How does the depth of a stack, with its norm before or after each layer, decide the gradients at the start?

Xiong et al. 2020, arXiv:2002.04745, theorem 1: at the start of training the gradient of the last layer does not depend on the depth under
post-norm, and falls as one over its root with pre-norm, because the final norm divides by a stream that has grown. The theorem speaks of
layer norm; here every norm takes its place in turn. Feed-forward layers with Xavier's start, as the theorem assumes.
"""

# %%
from functools import partial

import numpy as np

import minitransformers as mt
from minitransformers.foundation import slot
from minitransformers.reporting import Section, fitted_exponent, lines, ticks_at

section = Section(__file__, __doc__, kind="arithmetic")
WIDTH, TOKENS, DEPTHS, DRAWS = 64, 64, (2, 4, 8, 16, 32), 3
POST, PRE, RMS, SCALE, CAPSULE, TANH, NONE = "post-norm", "pre-norm", "RMS norm", "ScaleNorm", "CapsuleNorm", "Dynamic Tanh", "no norm"


def no_norm(params, x):
    """What stands where a norm was: nothing."""
    return x, lambda dout: (params, dout)


STACKS = {
    POST: (mt.init_layer_norm, mt.layer_norm),
    PRE: (mt.init_layer_norm, mt.layer_norm),                      # and the others are pre-norm as well
    RMS: (mt.init_rms_norm, mt.rms_norm),
    SCALE: (mt.init_scale_norm, mt.scale_norm),
    CAPSULE: (mt.init_capsule_norm, mt.capsule_norm),
    TANH: (mt.init_dynamic_tanh, mt.dynamic_tanh),
    NONE: (lambda rng, d_model, dtype: None, no_norm),
}


# %%
def at_the_start(rng, stack, depth):
    """Norms of the gradients of the last and the first layer's second matrix, and the spread of the stream before the last norm."""
    init_norm, norm = STACKS[stack]
    xavier = (2 / (WIDTH + 4 * WIDTH)) ** 0.5
    layers = [mt.init_feed_forward(rng, WIDTH, std=xavier, dtype=np.float64) for _ in range(depth)]
    gain, work = init_norm(rng, WIDTH, dtype=np.float64), partial(mt.feed_forward, activation=slot(mt.relu))
    # One norm lies between the last layer and the loss either way: pre-norm's final norm, post-norm's own.
    if stack == POST:
        params = [part for layer in layers for part in (layer, gain)]
        parts = [partial(mt.residual, part=work), norm] * depth
    else:
        params = [(gain, layer) for layer in layers] + [gain]
        parts = [partial(mt.residual, part=partial(mt.chain, parts=(norm, work)))] * depth + [norm]
    stream, body_backward = mt.chain(params[:-1], rng.normal(size=(TOKENS, WIDTH)), parts=parts[:-1])
    _, norm_backward = norm(params[-1], stream)
    _, dstream = norm_backward(rng.normal(size=stream.shape) / TOKENS)
    dparams, _ = body_backward(dstream)
    first, last = (dparams[0], dparams[-1]) if stack == POST else (dparams[0][1], dparams[-1][1])
    return np.linalg.norm(last.down.weight), np.linalg.norm(first.down.weight), stream.std()


@section.experiment
def experiment(rng):
    for stack in STACKS:
        for depth in DEPTHS:
            draws = [at_the_start(rng, stack, depth) for _ in range(1 if section.quick else DRAWS)]
            last, first, spread = np.mean(draws, axis=0)
            yield stack, depth, {"last": last, "first over last": first / last, "spread": spread}


# %%
def slope(found, stack, depths=DEPTHS):
    """Of the last gradient, on a log-log plot."""
    return fitted_exponent(depths, [np.mean(found["last"][stack][n]) for n in depths])


def off(found):
    """How far post-norm's last gradient is from its mean over depths, at most."""
    of = np.array([np.mean(y) for y in found["last"][POST].values()])
    return abs(of / of.mean() - 1).max()


@section.claim(
    "Depth shrinks the last gradient under pre-norm and not under post-norm",
    paper="Xiong et al. 2020, arXiv:2002.04745, theorem 1: at the start it is O(1) in depth after post-norm, O(1/√depth) with pre-norm",
    measured=lambda found: f"post-norm within {off(found):.0%}; pre-norm's slope {slope(found, PRE):.2f}, "
    f"{slope(found, PRE, DEPTHS[:3]):.2f} up to 8 layers and {slope(found, PRE, DEPTHS[2:]):.2f} from there",
)
def shrinks(found):
    """From 2 to 32 layers post-norm's stays within 20 % of its mean; pre-norm's slope is between −0.6 and −0.2, and steeper from 8 to 32
    layers than from 2 to 8.
    """
    return off(found) <= 0.2 and -0.6 < slope(found, PRE) < -0.2 and slope(found, PRE, DEPTHS[2:]) < slope(found, PRE, DEPTHS[:3])


@section.claim(
    "Pre-norm's gradients are of one size from the first layer to the last, and so are post-norm's",
    paper="Xiong et al. 2020, arXiv:2002.04745, abstract: gradients are well-behaved with pre-norm, and large near the output after post-norm",
    measured=lambda found: ", ".join(f"{stack} {np.mean(found['first over last'][stack][32]):.2f}" for stack in (PRE, POST)) + " at 32 layers",
)
def one_size(found):
    """At 32 layers the first layer's gradient over the last's is between 1/5 and 5, with the norm before and after."""
    return all(0.2 < found["first over last"][stack][32] < 5 for stack in (PRE, POST))


@section.claim(
    "What divides by the size of the stream shrinks the last gradient, and what does not divide does not",
    paper="Xiong et al. 2020, arXiv:2002.04745, theorem 1, proved for layer norm: the final norm divides by a spread that grows as √depth",
    measured=lambda found: ", ".join(f"{stack} {slope(found, stack):.2f}" for stack in STACKS if stack != POST) + " (slopes)",
)
def divides(found):
    """The slopes of RMS norm and ScaleNorm, which divide too, are within 0.1 of layer norm's. With no norm and with Dynamic Tanh, which
    do not, slopes are above −0.05.
    """
    dividing = [slope(found, stack) for stack in (PRE, RMS, SCALE)]
    return np.ptp(dividing) < 0.1 and min(slope(found, NONE), slope(found, TANH)) > -0.05


@section.report
def report(found):
    last, ratio = found["last"], found["first over last"]

    def row(depth, *curves):
        return [depth, *(float(np.mean(of[depth])) for of in curves)]

    rows = [row(n, last[POST], last[PRE], found["spread"][PRE]) for n in DEPTHS]
    section.table("gradient_by_depth", ["layers", POST, PRE, "pre-norm, spread of the stream"], rows)
    columns = ["layers", "post-norm, first over last", "pre-norm, first over last"]
    section.table("first_over_last", columns, [row(n, ratio[POST], ratio[PRE]) for n in DEPTHS])
    rows = [["layer norm" if s == PRE else s, *(float(np.mean(last[s][n])) for n in DEPTHS), slope(found, s)] for s in STACKS if s != POST]
    section.table("gradient_by_norm", ["norm, in pre-norm's place", *(f"{n} layers" for n in DEPTHS), "slope"], rows)
    section.values("placement", {"slope_pre": slope(found, PRE), "spread_post": off(found), "steeper": slope(found, PRE, DEPTHS[2:])})
    section.values("placement", {"first_over_last_post": np.mean(ratio[POST][32]), "first_over_last_pre": np.mean(ratio[PRE][32])})
    section.value("placement.growth_none", np.mean(last[NONE][32]) / np.mean(last[NONE][2]))


@section.figure("gradient_by_depth")
def picture(ax, found):
    lines(ax, {stack: found["last"][stack] for stack in (POST, PRE)}, xlabel="feed-forward layers", ylabel="gradient norm, last matrix",
          xscale="log", yscale="log")  # fmt: skip
    deepest = np.mean(found["last"][PRE][DEPTHS[-1]])
    ax.plot(DEPTHS, deepest * (DEPTHS[-1] / np.array(DEPTHS)) ** 0.5, ":", color="#808080", label="1/√depth")
    ticks_at(ax, list(DEPTHS))
    ax.set_yticks(range(2, 9), range(2, 9))
    ax.legend()


if __name__ == "__main__":
    section.main()
