"""Norms: keeping every layer's input at one scale, and what it buys.

What each norm forgets of its input, how depth and the place of the norm decide the size of the gradients and of a step,
what dropping the mean saves, and how models with each norm and without one learn real text.
"""

# %%
import time
from functools import partial
from typing import NamedTuple

import numpy as np

from minitransformers.attention.core import causal
from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.attention.prepare import unprepared
from minitransformers.attention.weighted_attention import weighted_attention
from minitransformers.basics.chain import chain
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.basics.feed_forward import FeedForward, feed_forward, init_feed_forward
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.relu import relu
from minitransformers.basics.residual import residual
from minitransformers.basics.softmax import softmax
from minitransformers.foundation import slot, trees
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model, language_model
from minitransformers.models.workbench.transformer_block import TransformerBlock, post_norm, pre_norm, transformer_block
from minitransformers.norms.capsule_norm import capsule_norm, init_capsule_norm
from minitransformers.norms.deep_norm import deep_norm, deep_norm_constants
from minitransformers.norms.dynamic_tanh import dynamic_tanh, init_dynamic_tanh
from minitransformers.norms.fix_norm import fix_norm
from minitransformers.norms.layer_norm import init_layer_norm, layer_norm
from minitransformers.norms.qk_norm import init_qk_norm, qk_norm
from minitransformers.norms.rms_norm import RmsNorm, init_rms_norm, rms_norm
from minitransformers.norms.scale_norm import ScaleNorm, init_scale_norm, scale_norm
from minitransformers.positional.learned import Learned, init_learned, learned
from minitransformers.reporting.chapter import Chapter
from minitransformers.training.fit import fit
from minitransformers.training.memory import keep_freed_memory
from minitransformers.training.optimizer import TrainingDiverged
from minitransformers.training.task import Labelled, on_ids
from minitransformers.training.text import Corpus

chapter = Chapter("norms", __doc__)


def no_norm(params, x):
    """What stands where a norm was: nothing."""
    return x, lambda dout: (params, dout)


NORMS = {
    "layer norm": (init_layer_norm, layer_norm),
    "RMS norm": (init_rms_norm, rms_norm),
    "no norm": (lambda rng, d_model: None, no_norm),
}
OTHERS = {
    "ScaleNorm": (init_scale_norm, scale_norm),
    "CapsuleNorm": (init_capsule_norm, capsule_norm),
    "Dynamic Tanh": (init_dynamic_tanh, dynamic_tanh),
}


# %% What a norm forgets: scale, shift, rotation
def invariance_section():
    rng, width = chapter.rng(), 64
    x = rng.normal(size=(100, width)) * 3 + 1
    rotation, _ = np.linalg.qr(rng.normal(size=(width, width)))
    rows, change = [], {}
    for name in ("layer norm", "RMS norm", *OTHERS):
        init, norm = {**NORMS, **OTHERS}[name]
        exact = {"eps": 0.0} if name in NORMS else {}        # the others have no eps in their formula, or a floor far below x
        apply = partial(norm, init(rng, width, dtype=np.float64), **exact)
        out, _ = apply(x)
        found = {
            "scaled by 7": np.abs(apply(7 * x)[0] - out).max(),
            "shifted by 4": np.abs(apply(x + 4)[0] - out).max(),
            "rotated": np.abs(apply(x @ rotation)[0] - out @ rotation).max(),
        }
        change[name] = found
        rows.append([name, *(0.0 if value < 1e-12 else float(value) for value in found.values())])
    chapter.table("invariance", ["norm", *change["layer norm"]], rows)
    layer, rms, scale, capsule, tanh = change.values()
    mixing_section(x)
    chapter.claim(
        "Layer norm forgets scale and shift, RMS norm the scale alone",
        paper="Zhang and Sennrich 2019, arXiv:1910.07467, table 1: re-centring of the data is undone by layer norm only, re-scaling by both",
        expect="exactly, at eps = 0: differences at float64 rounding; a shift must change RMS norm, a rotation layer norm",
        measured=f"scale: {layer['scaled by 7']:.0e} and {rms['scaled by 7']:.0e}; shift: {layer['shifted by 4']:.0e} and "
        f"{rms['shifted by 4']:.2f}; rotation: {layer['rotated']:.2f} and {rms['rotated']:.0e}",
        holds=max(layer["scaled by 7"], rms["scaled by 7"], layer["shifted by 4"], rms["rotated"]) < 1e-12
        and min(rms["shifted by 4"], layer["rotated"]) > 0.05,
    )
    chapter.claim(
        "ScaleNorm forgets what RMS norm forgets; CapsuleNorm and Dynamic Tanh forget nothing",
        paper="Nguyen and Salazar 2019, arXiv:1910.05895, section 2.2: projection on a sphere; Zhu et al. 2025, arXiv:2503.10622: no statistics",
        expect="ScaleNorm: scale forgotten, rotations let through; CapsuleNorm: rotations let through, scale not quite forgotten; Dynamic Tanh: neither",
        measured=f"scale: {scale['scaled by 7']:.0e}, {capsule['scaled by 7']:.0e} and {tanh['scaled by 7']:.2f}; "
        f"rotation: {scale['rotated']:.0e}, {capsule['rotated']:.0e} and {tanh['rotated']:.2f}",
        holds=max(scale["scaled by 7"], scale["rotated"], capsule["rotated"]) < 1e-12
        and min(capsule["scaled by 7"], tanh["scaled by 7"], tanh["rotated"]) > 1e-4,
    )


def mixing_section(x):
    """What of a position decides an output, and how long the outputs are: positions of sizes a hundredfold apart."""
    x = x * np.geomspace(0.1, 10, len(x))[:, None]
    others = x.copy()
    others[:, 1:] *= 2                                       # the first feature stays
    rows = []
    for name, (init, norm) in {**NORMS, **OTHERS}.items():
        if name == "no norm":
            continue
        apply = partial(norm, init(chapter.rng(), x.shape[-1], dtype=np.float64))
        out, _ = apply(x)
        length = np.linalg.norm(out, axis=-1)
        rows.append([name, float(np.abs(apply(others)[0] - out)[:, 0].max()), float(length.min()), float(length.max())])
    chapter.table("mixing", ["norm", "change by the other features", "shortest output", "longest output"], rows)
    layer, _, scale, capsule, tanh = rows
    chapter.claim(
        "ScaleNorm gives every position one length",
        paper="Nguyen and Salazar 2019, arXiv:1910.05895, section 2.2: the inputs are projected onto a sphere of a learned radius",
        expect="lengths equal to float64 rounding for inputs whose sizes differ a hundredfold; squashed vectors differ in length",
        measured=f"lengths within {scale[3] - scale[2]:.0e}; CapsuleNorm's from {capsule[2]:.2f} to {capsule[3]:.2f}",
        holds=scale[3] - scale[2] < 1e-12 and capsule[3] - capsule[2] > 0.05,
    )
    chapter.claim(
        "Dynamic Tanh looks at no other feature",
        paper="Zhu et al. 2025, arXiv:2503.10622, section 4: an element-wise operation, without statistics of the activations",
        expect="a feature's output is the same bits when all others are doubled; layer norm's is not",
        measured=f"it changes by {tanh[1]:.0f}, layer norm's by {layer[1]:.2f}",
        holds=tanh[1] == 0 and layer[1] > 0.05,
    )


invariance_section()


# %% RMS norm of vectors of two features: what it does to them, and to a gradient
def plane_section():
    along, lengths = np.array([0.96, 0.28]), np.array([0.6, 1.7, 2.6])       # one direction, three lengths
    ray, cloud = np.outer(lengths, along), chapter.rng().normal(size=(40, 2)) * (1.2, 0.9)
    turn = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(turn), np.sin(turn)], axis=-1)
    panels = (("circle", RmsNorm(np.ones(2)), "x and u"), ("ellipse", RmsNorm(np.array([1.4, 0.6])), "y with the gain (1.4, 0.6)"))
    for name, params, title in panels:
        with chapter.figure(f"rms_norm_{name}", size=(3.2, 3.2)) as (_, ax):
            ax.plot(*rms_norm(params, circle, eps=0.0)[0].T, color="#808080", linewidth=0.8)
            for x, colour in ((cloud, "#2f7ebf"), (ray, "#d0691f")):
                out, _ = rms_norm(params, x, eps=0.0)
                if name == "circle":
                    ax.plot(*np.stack([x, out]).transpose(2, 0, 1), color=colour, linewidth=0.7, alpha=0.6)
                    ax.plot(*x.T, "o", color=colour, markerfacecolor="none", markersize=3.5)
                ax.plot(*out.T, "o", color=colour)
            ticks = range(-3, 4)
            ax.set(aspect="equal", xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), xticks=ticks, yticks=ticks, title=title)
    dout = np.tile([0.2, 0.8], (len(lengths), 1))
    _, backward = rms_norm(RmsNorm(np.ones(2)), ray, eps=0.0)
    _, dx = backward(dout)
    with chapter.figure("rms_norm_gradient", size=(3.2, 2.4)) as (_, ax):
        ax.plot(*np.outer((0, 3), along).T, color="#808080", linewidth=0.8)
        for arrows, colour, label in ((dout, "#2f7ebf", "gradient of u"), (dx, "#d0691f", "gradient of x")):
            ax.quiver(*ray.T, *arrows.T, color=colour, angles="xy", scale_units="xy", scale=1, width=0.011, label=label)
        ax.plot(*ray.T, "ko", markersize=3.5)
        ax.set(aspect="equal", xlim=(-0.2, 3.2), ylim=(-0.2, 2.2), xticks=range(4), yticks=range(3))
        ax.legend()
    rows = zip(lengths, np.linalg.norm(dx, axis=-1), np.abs(np.vecdot(dx, along)).round(12), strict=True)
    chapter.table("plane", ["length of x", "length of its gradient", "part along x"], [list(map(float, row)) for row in rows])


plane_section()


# %% Before or after: the gradient of the last layer at the start of training
def gradients_at_the_start(rng, depth, placement, norm="layer norm", *, width=64, tokens=64):
    """The gradient norm of the last feed-forward block's second matrix, the last hidden size, and the first block's gradient."""
    blocks = [xavier_feed_forward(rng, width) for _ in range(depth)]
    init_norm, norm_function = {**NORMS, **OTHERS}[norm]
    gain = None if norm == "no norm" else init_norm(rng, width, dtype=np.float64)
    work = partial(feed_forward, activation=slot(relu))
    # One norm lies between the last block and the loss either way: pre-norm's final norm, post-norm's own.
    if placement == "pre":
        params = [(gain, block) for block in blocks]
        parts = [partial(residual, part=partial(chain, parts=(norm_function, work)))] * depth
    else:
        params = [own for block in blocks for own in (block, gain)][:-1]
        parts = ([partial(residual, part=work), norm_function] * depth)[:-1]
    hidden, backward = chain(params, rng.normal(size=(tokens, width)), parts=parts)
    _, norm_backward = norm_function(gain, hidden)
    _, dhidden = norm_backward(rng.normal(size=hidden.shape) / tokens)
    dparams, _ = backward(dhidden)
    first, last = (part[1] if placement == "pre" else part for part in (dparams[0], dparams[-1]))
    return np.linalg.norm(last.down.weight), float(hidden.std()), np.linalg.norm(first.down.weight)


def xavier_feed_forward(rng, width):
    """Both matrices with Xavier's standard deviation, as the theorem assumes."""
    std = (2 / (width + 4 * width)) ** 0.5
    return init_feed_forward(rng, width, std=std, dtype=np.float64)


def placement_section():
    rng, draws, depths = chapter.rng(), 2 if chapter.quick else 8, (2, 4, 8, 16, 32)
    found = {
        placement: np.array(
            [np.mean([gradients_at_the_start(rng, depth, placement) for _ in range(draws)], axis=0)
             for depth in chapter.progress(depths, f"{placement}-norm")]
        )
        for placement in ("post", "pre")
    }  # fmt: skip
    gradient = {placement: values[:, 0] for placement, values in found.items()}
    slope = float(np.polyfit(np.log(depths), np.log(gradient["pre"]), 1)[0])
    spread = float(np.abs(gradient["post"] / gradient["post"].mean() - 1).max())
    growth = float(np.polyfit(np.log(depths), np.log(found["pre"][:, 1] ** 2), 1)[0])
    chapter.table(
        "gradient_by_depth",
        ["layers", "post-norm", "pre-norm", "pre-norm, hidden spread"],
        [[n, *map(float, row)] for n, *row in zip(depths, gradient["post"], gradient["pre"], found["pre"][:, 1], strict=True)],
    )
    with chapter.figure("gradient_by_depth") as (_, ax):
        for placement, values in gradient.items():
            ax.loglog(depths, values, "o-", base=2, label=f"{placement}-norm")
        ax.loglog(depths, gradient["pre"][-1] * (32 / np.array(depths)) ** 0.5, ":", base=2, label="1/√depth")
        ax.set(xlabel="feed-forward layers", ylabel="gradient norm, last matrix")
        ax.legend()
    chapter.value("placement.slope_pre", slope)
    chapter.value("placement.spread_post", spread)
    chapter.value("placement.variance_growth", growth)
    chapter.claim(
        "Depth shrinks the last gradient under pre-norm and not under post-norm",
        paper="Xiong et al. 2020, arXiv:2002.04745, theorem 1: at the start it is O(1) in depth after post-norm, O(1/√depth) with pre-norm",
        expect="post-norm within 20 % from 2 to 32 layers; pre-norm a slope between −0.6 and −0.2, steeper the deeper",
        measured=f"post-norm within {spread:.0%}, pre-norm with slope {slope:.2f}",
        holds=spread < 0.2 and -0.6 < slope < -0.2,
    )
    ratio = {placement: values[:, 2] / values[:, 0] for placement, values in found.items()}
    chapter.table(
        "first_over_last",
        ["layers", "post-norm, first over last", "pre-norm, first over last"],
        [[n, *map(float, row)] for n, *row in zip(depths, ratio["post"], ratio["pre"], strict=True)],
    )
    chapter.value("placement.first_over_last_post", float(ratio["post"][-1]))
    chapter.value("placement.first_over_last_pre", float(ratio["pre"][-1]))
    chapter.claim(
        "Pre-norm's gradients are of one size from the first layer to the last",
        paper="Xiong et al. 2020, arXiv:2002.04745, abstract: with pre-norm the gradients are well-behaved at initialisation",
        expect="gradient of the first layer over the last's, at 32 layers: within a factor of five",
        measured=f"{ratio['pre'][-1]:.2f}; post-norm {ratio['post'][-1]:.2f}: in feed-forward layers alone what its norm divides away "
        "the layer's own gradient gives back",
        holds=0.2 < ratio["pre"][-1] < 5,
    )


placement_section()


# %% The same depths with every norm, in pre-norm's place
def every_norm_by_depth_section():
    rng, draws, depths = chapter.rng(), 1 if chapter.quick else 4, (2, 8, 32)
    last = {
        name: [float(np.mean([gradients_at_the_start(rng, n, "pre", name)[0] for _ in range(draws)])) for n in depths]
        for name in chapter.progress({**NORMS, **OTHERS}, "depth with each norm")
    }
    slope = {name: float(np.polyfit(np.log(depths), np.log(values), 1)[0]) for name, values in last.items()}
    chapter.table(
        "gradient_by_norm",
        ["norm", *(f"{n} layers" for n in depths), "slope"],
        [[name, *values, slope[name]] for name, values in last.items()],
    )
    dividing = [slope[name] for name in ("layer norm", "RMS norm", "ScaleNorm")]
    chapter.claim(
        "What shrinks the last gradient is the division by the stream's size",
        paper="Xiong et al. 2020, arXiv:2002.04745, theorem 1, proved for layer norm: the final norm divides by a spread that grows as √depth",
        expect="RMS norm and ScaleNorm, which divide too, have layer norm's slope within 0.1; with no norm nothing shrinks",
        measured=f"{', '.join(f'{value:.2f}' for value in dividing)}; with no norm {slope['no norm']:.2f}, CapsuleNorm "
        f"{slope['CapsuleNorm']:.2f}, Dynamic Tanh {slope['Dynamic Tanh']:.2f}",
        holds=max(dividing) - min(dividing) < 0.1 and slope["no norm"] > -0.05,
        full_only=True,
    )


every_norm_by_depth_section()


# %% DeepNorm: one step of a deep stack
def change_after_one_step(rng, depth, alpha, beta, *, width=16, rate=0.005):
    """How far the output of a post-norm stack moves, root mean square a position, when all its layers take one gradient step."""
    std = beta * (2 / (width + 4 * width)) ** 0.5
    params = [init_feed_forward(rng, width, std=std, residual_std=std, dtype=np.float64) for _ in range(depth)]
    norm_params, start = init_layer_norm(rng, width, dtype=np.float64), rng.normal(size=(32, width))

    def run(params):
        x, backwards = start, []
        for layer in params:
            added, layer_backward = feed_forward(layer, x, activation=slot(relu))
            x, norm_backward = deep_norm(norm_params, x, added, alpha=alpha)
            backwards.append((layer_backward, norm_backward))
        return x, backwards

    out, backwards = run(params)
    dx, gradients = (out - rng.normal(size=out.shape)) / len(start), []
    for layer_backward, norm_backward in reversed(backwards):
        _, dx, dadded = norm_backward(dx)
        dlayer, dx_of_layer = layer_backward(dadded)
        dx = dx + dx_of_layer
        gradients.append(dlayer)
    stepped = trees.map(lambda p, d: p - rate * d, params, gradients[::-1])
    return float(np.linalg.norm(run(stepped)[0] - out) / len(start) ** 0.5)


def deep_norm_section():
    rng, draws, depths = chapter.rng(), 8, (2, 8, 32)
    constants = {"post-norm": lambda depth: (1.0, 1.0), "DeepNorm": deep_norm_constants}
    change = {
        name: [float(np.mean([change_after_one_step(rng, depth, *of(depth)) for _ in range(draws)])) for depth in depths]
        for name, of in constants.items()
    }
    chapter.table("deep_norm", ["layers", *change], [[n, *row] for n, *row in zip(depths, *change.values(), strict=True)])
    growth = {name: values[-1] / values[0] for name, values in change.items()}
    chapter.value("deep_norm.growth_post", growth["post-norm"])
    chapter.value("deep_norm.growth_deep", growth["DeepNorm"])
    chapter.claim(
        "With DeepNorm one step moves a deep stack little more than a shallow one",
        paper="Wang et al. 2022, arXiv:2203.00555, section 4: the change of the output is bounded by a constant, post-norm's grows with depth",
        expect="from 2 to 32 feed-forward layers: under post-norm more than tenfold, with DeepNorm less than threefold",
        measured=f"{growth['post-norm']:.0f} times as much under post-norm, {growth['DeepNorm']:.1f} times with DeepNorm",
        holds=growth["post-norm"] > 10 and growth["DeepNorm"] < 3,
    )


deep_norm_section()


# %% What each norm costs, and what dropping the mean saves
def cost_section():
    keep_freed_memory()                                      # otherwise fresh pages are timed, not arithmetic
    rng, found = chapter.rng(), {}
    for tokens, width, heads in ((768, 128, 4), (256, 768, 12)):
        x, dout = rng.standard_normal((2, tokens, width), np.float32)
        norms = {name: norm for name, norm in {**NORMS, **OTHERS}.items() if name != "no norm"}
        calls = {name: partial(run_both_ways, norm, init(rng, width), x, dout) for name, (init, norm) in norms.items()}
        x_heads, dout_heads = (np.ascontiguousarray(a.reshape(tokens, heads, -1).swapaxes(0, 1)) for a in (x, dout))
        calls["QK-norm, queries and keys"] = partial(run_qk_norm, init_qk_norm(rng, width // heads), x_heads, dout_heads)
        times = []
        for _ in range(7 if chapter.quick else 200):
            times.append([])
            for call in calls.values():
                call()                                       # brings x into the cache, whatever ran before
                began = time.perf_counter()
                call()
                times[-1].append(time.perf_counter() - began)
        best = np.min(times, axis=0)                                                      # the rounds in which nothing else ran
        found[f"{tokens} x {width}"] = dict(zip(calls, map(float, best / best[0]), strict=True))
    chapter.table("cost", ["time of layer norm's", *found], [[name, *(ratios[name] for ratios in found.values())] for name in calls])
    mean = {name: float(np.mean([ratios[name] for ratios in found.values()])) for name in calls}
    ratio, scale, tanh = mean["RMS norm"], mean["ScaleNorm"], mean["Dynamic Tanh"]
    chapter.value("cost.ratio", ratio)
    chapter.claim(
        "RMS norm costs less than layer norm",
        paper="Zhang and Sennrich 2019, arXiv:1910.07467, abstract: 7 to 64 % less running time, of whole models",
        expect="forward and backward together below 1: four reductions and four element-wise passes fewer",
        measured=f"{ratio:.2f} of layer norm's time, forward and backward",
        holds=ratio < 1,
        full_only=True,
    )
    chapter.claim(
        "ScaleNorm costs less than layer norm",
        paper="Nguyen and Salazar 2019, arXiv:1910.05895, abstract: faster training",
        expect="forward and backward together below 1: one gain, and no mean",
        measured=f"{scale:.2f} of layer norm's time, forward and backward",
        holds=scale < 1,
        full_only=True,
    )
    chapter.claim(
        "Dynamic Tanh costs less than RMS norm",
        paper="Zhu et al. 2025, arXiv:2503.10622: in a LLaMA 7B on a GPU, its layers take less time than RMS norm's",
        expect="open: nothing is summed over features, but every element needs a tanh, which is many multiplications",
        measured=f"{tanh:.2f} of layer norm's time, RMS norm {ratio:.2f}",
        holds=tanh < ratio,
        toy_scale="in NumPy on a CPU; its backward has three sums, as many as RMS norm in all, and the tanh of every element comes on top",
        full_only=True,
    )


def run_both_ways(norm, params, x, dout):
    _, backward = norm(params, x)
    return backward(dout)


def run_qk_norm(params, x, dout):
    _, backward = qk_norm(params, x, x)
    return backward((dout, dout))


cost_section()


# %% A small model of real text in which the norm and its place can be chosen
class Model(NamedTuple):
    tokens: Embedding
    positions: Learned
    blocks: list[TransformerBlock]
    final_norm: object
    head: Linear


WIDTH, HEADS, CONTEXT = 48, 4, 32
PLACEMENTS = {"pre": pre_norm, "post": post_norm}


def init_model(rng, norm, *, vocabulary, depth, placement="pre", prepare=unprepared):
    init_norm, _ = {**NORMS, **OTHERS}[norm]

    def attention():
        made = init_multi_head_attention(rng, WIDTH, num_heads=HEADS)
        return made._replace(prepare=init_qk_norm(rng, WIDTH // HEADS)) if prepare is qk_norm else made

    blocks = [TransformerBlock(init_norm(rng, WIDTH), attention(), init_norm(rng, WIDTH), init_feed_forward(rng, WIDTH)) for _ in range(depth)]
    final = init_norm(rng, WIDTH) if placement == "pre" else None
    head = init_linear(rng, WIDTH, vocabulary, bias=False)
    return Model(
        init_embedding(rng, vocabulary, WIDTH, std=0.5), init_learned(rng, WIDTH, max_positions=CONTEXT, std=0.5), blocks, final, head
    )


def model(params, *, ids, norm, placement="pre", **attention):
    """Logits of the next token, and backward: dlogits -> Model of gradients."""
    _, norm_function = {**NORMS, **OTHERS}[norm]
    block = partial(
        transformer_block, mixer=partial(multi_head_attention, num_heads=HEADS, **attention), channel=feed_forward, norm=norm_function,
        placement=PLACEMENTS[placement],
    )  # fmt: skip
    final = norm_function if placement == "pre" else no_norm
    x, tokens_backward = embedding(params.tokens, ids=ids)
    parts = learned, partial(chain, parts=[block] * len(params.blocks)), final, linear
    logits, parts_backward = chain(params[1:], x, parts=parts)

    def backward(dlogits):
        dparams, dx = parts_backward(dlogits)
        return Model(tokens_backward(dx), *dparams)

    return logits, backward


CORPUS = Corpus.load(context=CONTEXT)


def train(seed, norm, *, depth=4, placement="pre", rate=3e-3, steps=150, warmup=0, batch_size=16):
    """Training losses of every step, the validation loss after the last, and the parameters; where it diverged, the loss
    of the uniform guess, and None."""
    rng = np.random.default_rng([chapter.seed, seed])
    params = init_model(rng, norm, vocabulary=CORPUS.vocabulary.size, depth=depth, placement=placement)
    return learn(params, partial(model, norm=norm, placement=placement), rng, rate=rate, steps=steps, warmup=warmup, batch_size=batch_size)


def learn(params, model, rng, *, rate, steps, warmup, batch_size):
    """What train returns, for any parameters and their model."""
    losses, task = [], Labelled(on_ids(model), partial(CORPUS.batch, batch_size=batch_size, context=CONTEXT))
    with np.errstate(over="ignore", invalid="ignore"):
        try:
            params = fit(
                params, task, steps=steps, peak=rate, rng=rng, warmup=warmup / steps, floor=0.1, clip=None, weight_decay=0.01,
                watch=lambda step, loss, params: losses.append(loss),
            )  # fmt: skip
        except TrainingDiverged:
            return losses, float(np.log(CORPUS.vocabulary.size)), None
        batches = CORPUS.evaluation_batches(batch_size=64, context=CONTEXT, limit=64)
        return losses, float(np.mean([cross_entropy(model(params, ids=ids)[0], targets=targets)[0] for ids, targets in batches])), params


# %% With layer norm, with RMS norm, with none
def training_section():
    seeds, steps = range(1 if chapter.quick else 3), 20 if chapter.quick else 120
    chapter.value("training.steps", steps)
    runs = [(norm, seed) for norm in NORMS for seed in seeds]
    found = {run: train(run[1], run[0], steps=steps) for run in chapter.progress(runs, "training with each norm")}
    final = {norm: [found[norm, seed][1] for seed in seeds] for norm in NORMS}
    with chapter.figure("training") as (_, ax):
        for norm in NORMS:
            curve = np.mean([found[norm, seed][0] for seed in seeds], axis=0)
            ax.plot(np.convolve(curve, np.ones(5) / 5, mode="valid"), "--" if norm == "RMS norm" else "-", label=norm)
        ax.set(xlabel="step", ylabel="training loss in nats a character", ylim=(2.4, 5))
        ax.legend()
    chapter.table(
        "training", ["norm", "validation loss", "spread over seeds"], [[n, float(np.mean(f)), float(np.std(f))] for n, f in final.items()]
    )
    layer, rms, none = (float(np.mean(final[norm])) for norm in NORMS)
    chapter.value("training.layer_norm", layer)
    chapter.value("training.rms_norm", rms)
    chapter.value("training.no_norm", none)
    chapter.claim(
        "RMS norm learns as well as layer norm",
        paper="Zhang and Sennrich 2019, arXiv:1910.07467, section 5: comparable quality on all tasks",
        expect="validation losses of the same small model within 0.05 nats, three seeds",
        measured=f"{layer:.3f} and {rms:.3f} nats a character",
        holds=abs(layer - rms) < 0.05,
        full_only=True,
    )
    chapter.claim(
        "A norm speeds up learning",
        paper="Ba, Kiros and Hinton 2016, arXiv:1607.06450, abstract: layer norm substantially reduces training time",
        expect="a lower loss after the same number of steps at the same learning rate",
        measured=f"{layer:.2f} nats a character with layer norm, {none:.2f} with none",
        holds=layer < none,
        full_only=True,
    )
    others_section(seeds, steps, layer, none)
    options_section(range(1 if chapter.quick else 2), 10 if chapter.quick else 80)


def others_section(seeds, steps, layer, none):
    """One gain for all features, a squashed length, no statistics: the same model and the same steps."""
    runs = [(norm, seed) for norm in OTHERS for seed in seeds]
    found = {run: train(run[1], run[0], steps=steps)[1] for run in chapter.progress(runs, "training with other norms")}
    final = {norm: [found[norm, seed] for seed in seeds] for norm in OTHERS}
    count = {norm: trees.count_parameters(init(np.random.default_rng(0), WIDTH)) for norm, (init, _) in OTHERS.items()}
    chapter.table(
        "others",
        ["norm", "parameters a norm", "validation loss", "spread over seeds"],
        [[n, count[n], float(np.mean(f)), float(np.std(f))] for n, f in final.items()],
    )
    scale, capsule, tanh = (float(np.mean(losses)) for losses in final.values())
    chapter.value("training.scale_norm", scale)
    chapter.value("training.capsule_norm", capsule)
    chapter.value("training.dynamic_tanh", tanh)
    chapter.claim(
        "ScaleNorm's one gain is enough",
        paper="Nguyen and Salazar 2019, arXiv:1910.05895, abstract: at least as good as layer norm, with one learned length",
        expect="validation loss within 0.05 nats of layer norm's, three seeds",
        measured=f"{scale:.3f} nats a character, layer norm {layer:.3f}",
        holds=scale < layer + 0.05,
        full_only=True,
    )
    chapter.claim(
        "Dynamic Tanh takes the place of a norm",
        paper="Zhu et al. 2025, arXiv:2503.10622, abstract: matches or exceeds models with norms, mostly without tuning",
        expect="validation loss within 0.05 nats of layer norm's, with the paper's start of alpha = 0.5",
        measured=f"{tanh:.3f} nats a character, layer norm {layer:.3f}, none {none:.3f}",
        holds=tanh < layer + 0.05,
        toy_scale="the paper's models are trained to the end, some with a tuned start; this one takes 120 steps",
        full_only=True,
    )


def train_with_option(seed, config, *, steps):
    """train, for the language model of the workbench: what it does with its norms, its queries and its words is a setting."""
    rng = np.random.default_rng([chapter.seed, seed])
    return learn(
        init_language_model(rng, config), partial(language_model, config=config), rng, rate=3e-3, steps=steps, warmup=0, batch_size=8
    )


def options_section(seeds, steps):
    """QK-norm, FixNorm and DeepNorm beside what they are changes of: words and positions as each was meant, and FixNorm as not."""
    sizes = {"vocabulary_size": CORPUS.vocabulary.size, "context": CONTEXT, "d_model": WIDTH, "num_layers": 4, "num_heads": HEADS}
    options = {
        "pre-norm, RoPE": {"position": "rope"},
        "QK-norm, RoPE": {"position": "rope", "options": {"mixer": {"prepare": "qk_norm"}}},
        "FixNorm, RoPE": {"position": "rope", "fix_norm": True},
        "FixNorm, learned positions": {"fix_norm": True},
        "post-norm, learned positions": {"placement": "post"},
        "DeepNorm, learned positions": {"placement": "deep"},
    }
    configs = {name: LanguageModelConfig(**sizes, scale_embedding=True, **changes) for name, changes in options.items()}
    runs = [(name, seed) for name in options for seed in seeds]
    found = {(name, seed): train_with_option(seed, configs[name], steps=steps) for name, seed in chapter.progress(runs, "training with each option")}
    final = {name: [found[name, seed][1] for seed in seeds] for name in options}
    with chapter.figure("options") as (_, ax):
        for name in options:
            curve = np.mean([found[name, seed][0] for seed in seeds], axis=0)
            ax.plot(np.convolve(curve, np.ones(9) / 9, mode="valid"), "-" if "RoPE" in name else "--", label=name)
        ax.set(xlabel="step", ylabel="training loss in nats a character", ylim=(2.4, 5))
        ax.legend()
    chapter.table(
        "options", ["model", "validation loss", "spread over seeds"], [[n, float(np.mean(f)), float(np.std(f))] for n, f in final.items()]
    )
    pre, qk, fix, fix_learned, post, deep = (float(np.mean(losses)) for losses in final.values())
    chapter.value("options.steps", steps)
    for name, loss in (("pre_norm", pre), ("qk_norm", qk), ("fix_norm", fix), ("fix_norm_learned", fix_learned)):
        chapter.value(f"options.{name}", loss)
    chapter.claim(
        "QK-norm costs no quality",
        paper="Dehghani et al. 2023, arXiv:2302.05442, section 2: without it, training at 8 billion parameters diverges after a few thousand steps",
        expect="validation loss within 0.1 nats of the same model without it, two seeds",
        measured=f"{qk:.2f} nats a character, without it {pre:.2f}",
        holds=qk < pre + 0.1,
        full_only=True,
    )
    chapter.claim(
        "DeepNorm learns where post-norm stalls",
        paper="Wang et al. 2022, arXiv:2203.00555, abstract: the good performance of post-norm and the stable training of pre-norm",
        expect="four layers at the full rate from the first step: a lower loss than post-norm's after the same steps",
        measured=f"{deep:.2f} nats a character, post-norm {post:.2f}, means of two seeds",
        holds=deep < post - 0.1,
        full_only=True,
    )
    chapter.claim(
        "FixNorm learns as well as words of any length",
        paper="Nguyen and Salazar 2019, arXiv:1910.05895, abstract: pre-norm, ScaleNorm and FixNorm together gain 1.1 BLEU on five translation pairs",
        expect="with RoPE, validation loss within 0.05 nats of the same model with a plain table times the same factor, two seeds",
        measured=f"{fix:.2f} nats a character, plain {pre:.2f}; {fix_learned:.2f} with learned positions, which start fifty times smaller than the words",
        holds=fix < pre + 0.05,
        full_only=True,
    )


training_section()


# %% Post-norm without warm-up
def warmup_section():
    depth, seeds, steps = (2, range(1), 10) if chapter.quick else (6, range(2), 150)
    settings = (("pre", 0), ("post", 0), ("post", steps // 2))
    losses = {setting: [] for setting in settings}
    for setting, seed in chapter.progress([(s, n) for n in seeds for s in settings], "pre-norm, post-norm, warm-up"):
        placement, warmup = setting
        losses[setting].append(train(seed, "layer norm", depth=depth, placement=placement, steps=steps, warmup=warmup, batch_size=8)[1])
    pre, post, warmed = (float(np.mean(found)) for found in losses.values())
    counts = np.bincount(CORPUS.train, minlength=CORPUS.vocabulary.size) + 1
    letters = float(-np.log(counts / counts.sum())[CORPUS.validation].mean())
    chapter.table(
        "warmup", ["placement", "warm-up steps", "validation loss"],
        [[f"{placement}-norm", warmup, float(np.mean(found))] for (placement, warmup), found in losses.items()],
    )  # fmt: skip
    chapter.value("warmup.layers", depth)
    chapter.value("warmup.steps", steps)
    chapter.value("warmup.pre", pre)
    chapter.value("warmup.post", post)
    chapter.value("warmup.post_warmed", warmed)
    chapter.value("warmup.letters", letters)
    chapter.claim(
        "Post-norm needs a warm-up, pre-norm does not",
        paper="Xiong et al. 2020, arXiv:2002.04745, section 4: post-norm without warm-up trains badly, pre-norm well",
        expect=f"six layers at the full rate from the first step: post-norm stalls near {letters:.2f} nats, which letter frequencies alone "
        "give; pre-norm learns; a warm-up helps post-norm",
        measured=f"{pre:.2f} nats a character for pre-norm, {post:.2f} for post-norm, {warmed:.2f} for post-norm with {steps // 2} of "
        f"{steps} steps of warm-up, means of two seeds",
        holds=pre < post - 0.3 and warmed < post - 0.1,
        full_only=True,
    )


warmup_section()


# %% QK-norm: scores that cannot grow
def largest_score_and_weight(q, k):
    """Of all scores the largest, and the largest weight of a query, mean over queries."""
    scores = q @ k.T / q.shape[-1] ** 0.5
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return float(np.abs(scores).max()), float((weights / weights.sum(axis=-1, keepdims=True)).max(axis=-1).mean())


def score_section():
    rng, tokens, width = chapter.rng(), 256, 64
    q, k = rng.normal(size=(2, tokens, width))
    params, rows = init_qk_norm(rng, width, dtype=np.float64), []
    for size in (1, 3, 10, 100):
        (normed_q, normed_k), _ = qk_norm(params, size * q, size * k)
        rows.append([size, *largest_score_and_weight(size * q, size * k), *largest_score_and_weight(normed_q, normed_k)])
    columns = ["queries and keys times", "largest score", "mean largest weight", "largest score, QK-norm", "mean largest weight, QK-norm"]
    chapter.table("scores", columns, rows)
    _, free, sharp, _, weight = rows[-1]
    bounded = max(row[3] for row in rows)
    chapter.claim(
        "QK-norm bounds the scores, and with them how sharp attention can be",
        paper="Dehghani et al. 2023, arXiv:2302.05442, section 2: without it, scores grow until the weights have almost no entropy",
        expect=f"with gains of one, no score above √{width} = {width**0.5:.0f} however large queries and keys are; without, they grow as the square",
        measured=f"queries and keys times a hundred: scores up to {free:,.0f} and a largest weight of {sharp:.3f}; with QK-norm "
        f"{bounded:.1f} and {weight:.3f}",
        holds=bounded <= width**0.5 and sharp > 0.95 and weight < 0.2 and free > 1e3,
    )


score_section()


# %% QK-norm: a learning rate that is too high
def largest_score(params, ids, **attention):
    """Of all scores of all heads the largest, as they come to the softmax."""
    found = []

    def softmax_that_looks(learned, scores, *, mask):
        found.append(float(np.abs(np.where(mask, scores, 0)).max()))
        return softmax(np.where(mask, scores, np.float32(-np.inf)))

    core = causal(partial(weighted_attention, weighting=softmax_that_looks))
    model(params, ids=ids, norm="layer norm", core=core, **attention)
    return max(found)


def learning_rate_section():
    rates, seeds, steps = ((3e-3, 1e-1), 1, 5) if chapter.quick else ((3e-3, 1e-2, 3e-2, 1e-1), 2, 80)
    ids = CORPUS.validation[: 64 * CONTEXT].reshape(64, CONTEXT)
    losses, scores = ({name: np.empty((len(rates), seeds)) for name in ("plain", "QK-norm")} for _ in range(2))
    runs = [(name, i, seed) for name in losses for i in range(len(rates)) for seed in range(seeds)]
    for name, i, seed in chapter.progress(runs, "rates that are too high"):
        rng = np.random.default_rng([chapter.seed, seed])
        attention = {"prepare": qk_norm} if name == "QK-norm" else {}
        params = init_model(rng, "layer norm", vocabulary=CORPUS.vocabulary.size, depth=2, **attention)
        _, losses[name][i, seed], params = learn(
            params, partial(model, norm="layer norm", **attention), rng, rate=rates[i], steps=steps, warmup=0, batch_size=8
        )
        scores[name][i, seed] = np.inf if params is None else largest_score(params, ids, **attention)
    with chapter.figure("learning_rates", size=(6.4, 2.8), ncols=2) as (_, axes):
        for ax, found, what in zip(axes, (scores, losses), ("largest score", "validation loss in nats"), strict=True):
            for name, values in found.items():
                ax.plot(rates, values.mean(axis=1), "o-", label=name)
            ax.set(xscale="log", xlabel="learning rate", title=what)
        axes[0].set(yscale="log")
        axes[0].legend()
    columns = ["learning rate", "largest score", "largest score, QK-norm", "validation loss", "validation loss, QK-norm"]
    measured = [found[name].mean(axis=1) for found in (scores, losses) for name in found]
    chapter.table("learning_rates", columns, [[f"{rate:g}", *map(float, row)] for rate, row in zip(rates, np.transpose(measured), strict=True)])
    (plain, normed), (plain_loss, normed_loss) = ([float(found[name][-1].mean()) for name in found] for found in (scores, losses))
    for key, value in {"steps": steps, "plain": plain, "normed": normed, "plain_loss": plain_loss, "normed_loss": normed_loss}.items():
        chapter.value(f"learning_rates.{key}", value)
    chapter.claim(
        "At a learning rate that is too high scores run away, and with QK-norm they do not",
        paper="Dehghani et al. 2023, arXiv:2302.05442, section 2: the norm was put in because logits grew until training diverged",
        expect=f"after {steps} steps at a rate of {rates[-1]:g} a largest score at least ten times smaller with QK-norm, in every seed",
        measured=f"{plain:.0f} without, {normed:.1f} with QK-norm, means of {seeds} seeds",
        holds=bool((scores["plain"][-1] > 10 * scores["QK-norm"][-1]).all()),
        full_only=True,
    )
    chapter.claim(
        "QK-norm makes a higher learning rate bearable",
        paper="Dehghani et al. 2023, arXiv:2302.05442, section 2: with it, training was stable at 8 billion parameters",
        expect=f"at a rate of {rates[-1]:g} a validation loss that is lower by 0.1 nats, mean of {seeds} seeds",
        measured=f"{normed_loss:.2f} nats a character with QK-norm, {plain_loss:.2f} without",
        holds=normed_loss < plain_loss - 0.1,
        toy_scale="two layers with pre-norm: attention that has run away costs little here, and at that rate the other weights lose as much",
        full_only=True,
    )


learning_rate_section()


# %% FixNorm: words of one length
class Bigram(NamedTuple):
    """One table for both ends, and what stands between."""

    tokens: Embedding
    channel: FeedForward
    norm: ScaleNorm


def zipf_bigrams(rng, *, words, classes=16):
    """Probabilities (words, words) of the next word, and (words,) of each: what comes next depends on a word's class alone.

    Words are dealt to the classes one after the other, so that each has frequent and rare ones; within a class, frequencies fall as
    1 / rank. Two classes may follow each class, with the same probability.
    """
    of_word = np.arange(words) % classes
    within = np.where(of_word == np.arange(classes)[:, None], 1 / np.arange(1, words + 1), 0)
    within /= within.sum(axis=1, keepdims=True)
    follows = np.zeros((classes, classes))
    for _ in range(2):                                       # permutations: no class is more frequent than another
        follows[np.arange(classes), rng.permutation(classes)] += 0.5
    return (follows @ within)[of_word], within.mean(axis=0)


def bigram(params, ids, *, fixed):
    """Logits of the next word; the table is divided by its rows' lengths once, and used at both ends, where ``fixed``."""
    table, table_backward = fix_norm(params.tokens.weight) if fixed else (params.tokens.weight, lambda dtable: dtable)
    size = table.shape[1] ** 0.5
    x, x_backward = embedding(Embedding(table), ids=ids)
    parts = partial(residual, part=feed_forward), scale_norm, linear
    logits, parts_backward = chain((params.channel, params.norm, Linear(table.T, None)), size * x, parts=parts)

    def backward(dlogits):
        (dchannel, dnorm, dhead), dx = parts_backward(dlogits)
        dtable = dhead.weight.T + x_backward(size * dx).weight                             # two uses, two gradients
        return Bigram(Embedding(table_backward(dtable)), dchannel, dnorm)

    return logits, backward


def fix_norm_section():
    words, width, rate = 256, 32, 1e-2
    steps, seeds = (20, 1) if chapter.quick else (300, 3)
    following, share = zipf_bigrams(chapter.rng(), words=words)
    rare = np.arange(words) >= words // 2                    # the half of the vocabulary that is seen least
    cumulated = following.cumsum(axis=1)
    pairs = share[:, None] * following

    def nats(log_probabilities, which):
        """Cross-entropy in nats of the next words that are ``which``, over all pairs as often as they occur: no sampling."""
        return float(-(pairs * log_probabilities)[:, which].sum() / pairs[:, which].sum())

    def learn(fixed, seed):
        rng = np.random.default_rng([chapter.seed, seed])
        table, _ = fix_norm(rng.standard_normal((words, width), np.float32))             # both begin with rows of length one
        channel = init_feed_forward(rng, width, d_hidden=2 * width)

        def draw(rng):
            ids = rng.choice(words, size=256, p=share)
            return ids, np.minimum((rng.random((256, 1)) > cumulated[ids]).sum(axis=1), words - 1)

        return fit(
            Bigram(Embedding(table), channel, init_scale_norm(rng, width)), Labelled(partial(bigram, fixed=fixed), draw),
            steps=steps, peak=rate, rng=rng, warmup=min(1, 10 / steps), floor=0.1, progress=partial(chapter.progress, text="bigrams"),
        )  # fmt: skip

    names = {"plain": False, "FixNorm": True}
    losses, stored, correlation = ({name: [] for name in names} for _ in range(3))
    for name, fixed in names.items():
        for seed in range(seeds):
            params = learn(fixed, seed)
            logits = bigram(params, np.arange(words), fixed=fixed)[0].astype(float)
            logits -= logits.max(axis=1, keepdims=True)
            logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            losses[name].append([nats(logs, which) for which in (~rare, rare, rare | ~rare)])
            stored[name].append(np.linalg.norm(params.tokens.weight, axis=1))
            correlation[name].append(float(np.corrcoef(np.log(share), stored[name][-1])[0, 1]))
    floor = [nats(np.log(np.where(following > 0, following, 1)), which) for which in (~rare, rare, rare | ~rare)]
    with chapter.figure("fix_norm", size=(6.8, 2.9), ncols=2, sharey=True) as (_, axes):
        for ax, name in zip(axes, names, strict=True):
            ax.semilogx(share, stored[name][0], ".", markersize=3, label="row as stored")
            ax.set(xlabel="frequency of the word", title=name)
        axes[1].axhline(1, color="C1", label="row as used")
        axes[0].set(ylabel="length", ylim=(0, None))
        axes[1].legend(loc="lower right")
    mean = {name: np.mean(values, axis=0) for name, values in losses.items()}
    spread = {name: np.std(values, axis=0) for name, values in losses.items()}
    chapter.table(
        "fix_norm",
        ["table", "length and log frequency, correlation", "nats, frequent half", "nats, rare half", "seeds, rare half", "nats, all"],
        [[name, float(np.mean(correlation[name])), *mean[name][:2], spread[name][1], mean[name][2]] for name in names]
        + [["best possible", None, *floor[:2], None, floor[2]]],
    )
    for name, key in (("plain", "plain"), ("FixNorm", "fixed")):
        chapter.value(f"fix_norm.{key}.correlation", float(np.mean(correlation[name])))
        for value, what in zip(mean[name], ("frequent", "rare", "all"), strict=True):
            chapter.value(f"fix_norm.{key}.{what}", float(value))
        chapter.value(f"fix_norm.{key}.shortest", float(np.mean([lengths.min() for lengths in stored[name]])))
        chapter.value(f"fix_norm.{key}.longest", float(np.mean([lengths.max() for lengths in stored[name]])))
    for name, number in (("words", words), ("steps", steps), ("seeds", seeds), ("rare_share", 100 * float(share[rare].sum()))):
        chapter.value(f"fix_norm.{name}", number)
    used = np.linalg.norm(fix_norm(params.tokens.weight)[0], axis=1)
    chapter.claim(
        "In a plain tied table frequent words grow longer; with FixNorm no word is longer than another",
        paper="Nguyen and Chiang 2018, arXiv:1710.01329, abstract: the inner product with the words' vectors rewards frequent words disproportionately",
        expect="lengths and log frequencies correlated by more than 0.5 in every seed; FixNorm's rows of length one, as they are used, to rounding",
        measured=f"{', '.join(f'{r:.2f}' for r in correlation['plain'])} in a plain table; FixNorm's rows are off by {np.abs(used - 1).max():.0e} "
        f"as used, and as stored {', '.join(f'{r:.2f}' for r in correlation['FixNorm'])}",
        holds=min(correlation["plain"]) > 0.5 and float(np.abs(used - 1).max()) < 1e-6,
        full_only=True,
    )
    plain, fixed = (np.array(losses[name])[:, 1] for name in names)
    chapter.claim(
        "With FixNorm rare words are predicted better",
        paper="Nguyen and Chiang 2018, arXiv:1710.01329, abstract: rare words are translated better when the lengths are fixed",
        expect="a lower cross-entropy of the words of the rare half, in every seed",
        measured=f"{fixed.mean():.3f} against {plain.mean():.3f} nats, lower in {int((fixed < plain).sum())} of {seeds} seeds; of all words "
        f"{mean['FixNorm'][2]:.3f} against {mean['plain'][2]:.3f}",
        holds=bool(np.all(fixed < plain)),
        toy_scale="in this language a class says all about the next word but how frequent it is, so the length of a row is knowledge and no mistake",
        full_only=True,
    )


fix_norm_section()


# %%
if __name__ == "__main__":
    raise SystemExit(chapter.finish())
