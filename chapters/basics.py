"""Basics: what every later chapter is made of, and the few places where it goes wrong.

Linear maps, embeddings, activations, softmax and losses are short. What is worth measuring is what the short formula
hides: repeats in a lookup, digits lost near the ends of a sigmoid, two functions that share the name GELU, a softmax
that overflows, a loss that cannot reach zero, wrong gradients that look right. At the end the parts are put together into
a small network that learns the next character of real text.
"""

# %%
import re
import time
from functools import partial
from statistics import median
from typing import NamedTuple

import numpy as np

from minitransformers.basics.chain import chain
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.dropout import dropout
from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.basics.feed_forward import feed_forward, init_feed_forward
from minitransformers.basics.gated_feed_forward import gated_feed_forward, init_gated_feed_forward
from minitransformers.basics.gelu import gelu, gelu_exact
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.log_softmax import log_softmax
from minitransformers.basics.mean_squared_error import mean_squared_error
from minitransformers.basics.relu import relu
from minitransformers.basics.residual import residual
from minitransformers.basics.sigmoid import sigmoid
from minitransformers.basics.silu import silu
from minitransformers.basics.softmax import softmax
from minitransformers.basics.softplus import softplus
from minitransformers.foundation import slot, trees
from minitransformers.reporting.chapter import Chapter
from minitransformers.training.flat_tree import FlatTree
from minitransformers.training.optimizer import AdamW
from minitransformers.training.text import Corpus, python_reference

chapter = Chapter("basics", __doc__)


def times_faster(fast, slow):
    """How many times as long the second takes: medians of rounds in which both run, on the same machine load."""
    fast(), slow()
    rounds = []
    for _ in range(5 if chapter.quick else 25):
        marks = [time.perf_counter()]
        for run in (fast, slow):
            run()
            marks.append(time.perf_counter())
        rounds.append(np.diff(marks))
    return median(r[1] for r in rounds) / median(r[0] for r in rounds)


def both_ways(function, x, dout, **config):
    """A call and its backward, for a stopwatch."""
    _, backward = function(x, **config)
    return backward(dout)


# %% Linear map: the spread of the weights decides what is left of a signal after many layers
def linear_section():
    rng, depth, width = chapter.rng(), 20, 64 if chapter.quick else 256
    spreads = {"1/sqrt(d_in)": None, "0.02": 0.02, "0.1": 0.1}
    sizes = {}
    for name, std in spreads.items():
        x = rng.standard_normal((64, width), np.float32)
        sizes[name] = [float(x.std())]
        for _ in range(depth):
            x, _ = linear(init_linear(rng, width, width, std=std, bias=False), x)
            sizes[name].append(float(x.std()))
    with chapter.figure("linear_depth") as (_, ax):
        for name, curve in sizes.items():
            ax.semilogy(range(depth + 1), curve, label=f"weights of {name}")
        ax.set(xlabel=f"linear maps of width {width}", ylabel="standard deviation of the features")
        ax.legend()
    kept, shrunk = sizes["1/sqrt(d_in)"][-1], sizes["0.02"][-1]
    chapter.value("linear.depth", depth)
    chapter.value("linear.width", width)
    chapter.value("linear.kept", kept)
    chapter.value("linear.shrunk", shrunk)
    chapter.claim(
        "Weights of spread 1/√d_in keep the size of a signal",
        paper="LeCun et al. 1998, Efficient BackProp, section 4.6: with weights of standard deviation 1/√d_in the outputs have the spread of the inputs",
        expect="the spread after many maps within a factor of two of the first; a fixed spread of 0.02 loses it",
        measured=f"after {depth} maps of width {width}: {kept:.2g} times the first, and {shrunk:.1g} times with 0.02",
        holds=0.5 < kept < 2 and shrunk < 0.05,
    )


linear_section()


# %% Residual: how much of a gradient comes back through many parts
def residual_section():
    rng, width, draws, depths = chapter.rng(), 64, 1 if chapter.quick else 2, [1, 2, 4, 8, 16, 32, 64]
    start = (4 * width) ** -0.5                              # of the map down of a feed-forward network, as its init has it
    forms = {
        "one after the other": (feed_forward, lambda depth: start),
        "each added to its input": (partial(residual, part=feed_forward), lambda depth: start),
        "added, and started smaller by √(2 · parts)": (partial(residual, part=feed_forward), lambda depth: start / (2 * depth) ** 0.5),
    }

    def comes_back(depth, part, residual_std):
        """The length of the gradient of the input over that of the output."""
        params = [init_feed_forward(rng, width, residual_std=residual_std, dtype=np.float64) for _ in range(depth)]
        out, backward = chain(params, rng.normal(size=(32, width)), parts=[part] * depth)
        dout = rng.normal(size=out.shape)
        return np.linalg.norm(backward(dout)[1]) / np.linalg.norm(dout)

    found = {
        name: [float(np.mean([comes_back(depth, part, std(depth)) for _ in range(draws)])) for depth in depths]
        for name, (part, std) in forms.items()
    }
    with chapter.figure("residual_depth") as (_, ax):
        for name, curve in found.items():
            ax.loglog(depths, curve, "o-", label=name)
        ax.set(xlabel="feed-forward networks", ylabel="gradient of the input\nover that of the output", xticks=depths, xticklabels=depths)
        ax.minorticks_off()
        ax.legend()
    chapter.value("residual.depth", depths[-1])
    for key, curve in zip(("plain", "added", "smaller"), found.values(), strict=True):
        chapter.value(f"residual.{key}", curve[-1])


residual_section()


# %% Embedding: in real text most tokens are repeats, and each repeat must be added
def embedding_section():
    words = re.findall(r"\w+|[^\w\s]", python_reference().lower())
    table = {word: i for i, word in enumerate(sorted(set(words)))}
    tokens, d_model = (512, 32) if chapter.quick else (4096, 128)
    ids = np.array([table[word] for word in words[:tokens]]).reshape(8, -1)
    repeats = 1 - len(np.unique(ids)) / ids.size
    rng = chapter.rng()
    params = init_embedding(rng, len(table), d_model)
    dout = rng.integers(-8, 9, size=(*ids.shape, d_model)).astype(np.float32)  # whole numbers: sums have no rounding
    _, backward = embedding(params, ids=ids)

    def with_add_at():
        dweight = np.zeros_like(params.weight)
        np.add.at(dweight, ids, dout)
        return dweight

    def last_wins():
        dweight = np.zeros_like(params.weight)
        dweight[ids] += dout
        return dweight

    exact = np.array_equal(backward(dout).weight, with_add_at())
    lost = float(np.mean(np.any(last_wins() != with_add_at(), axis=1)[np.unique(ids)]))
    ratio = times_faster(lambda: backward(dout), with_add_at)
    chapter.value("embedding.tokens", tokens)
    chapter.value("embedding.vocabulary", len(table))
    chapter.value("embedding.repeats", 100 * repeats)
    chapter.value("embedding.wrong_rows", 100 * lost)
    chapter.value("embedding.times_faster", ratio)
    chapter.claim(
        "Repeated ids add up, exactly",
        paper="the gradient of a lookup is the product with the one-hot matrix's transpose: a sum over occurrences",
        expect="equal to np.add.at to the last bit where sums are whole numbers",
        measured=f"{'equal' if exact else 'not equal'} on {tokens} words of real text, {100 * repeats:.0f} % of them repeats; "
        f"an indexed += gets {100 * lost:.0f} % of the rows that occur wrong",
        holds=exact and repeats > 0.5 and lost > 0.1,
    )
    chapter.claim(
        "The sparse product is faster than np.add.at",
        paper="not in a paper: both are the same sum",
        expect="several times faster",
        measured=f"{ratio:.0f} times as fast on {tokens} tokens of width {d_model} and a vocabulary of {len(table)}",
        holds=ratio > 1.5,
        full_only=True,
    )


embedding_section()


# %% Activations: six curves and their slopes
def activations_section():
    x = np.linspace(-5, 5, 1001)
    curves = {"relu": relu, "gelu": gelu, "silu": silu, "softplus": softplus, "sigmoid": sigmoid}
    with chapter.figure("activations", size=(8, 3.2), ncols=2) as (_, (values, slopes)):
        for name, function in curves.items():
            out, backward = function(x)
            values.plot(x, out, label=name)
            slopes.plot(x, backward(np.ones_like(x)), label=name)
        values.set(xlabel="x", title="output", ylim=(-0.5, 3))
        slopes.set(xlabel="x", title="slope")
        values.legend()
    for name, function in (("gelu", gelu), ("silu", silu)):
        out, backward = function(np.linspace(-6, 6, 1_200_001))
        slope = backward(np.ones(1_200_001))
        chapter.value(f"{name}.lowest", float(out.min()))
        chapter.value(f"{name}.lowest_at", float(np.linspace(-6, 6, 1_200_001)[out.argmin()]))
        chapter.value(f"{name}.largest_slope", float(slope.max()))
        chapter.value(f"{name}.smallest_slope", float(slope.min()))


activations_section()


# %% GELU: two functions of one name
def gelu_section():
    x = np.linspace(-6, 6, 1_200_001)
    difference = gelu(x)[0] - gelu_exact(x)[0]
    largest, at = float(np.abs(difference).max()), float(np.abs(x[np.abs(difference).argmax()]))
    chapter.value("gelu.difference", largest)
    chapter.value("gelu.difference_at", at)
    with chapter.figure("gelu_difference") as (_, ax):
        ax.plot(x[::600], 1e4 * difference[::600])
        ax.set(xlabel="x", ylabel="tanh form − exact form, ×10⁻⁴")
    chapter.claim(
        "The tanh form of GELU is not the exact form",
        paper="Hendrycks and Gimpel 2016, section 2: the tanh form is an approximation",
        expect="up to 4.7·10⁻⁴ apart: enough to tell GPT-2 from BERT, far above float32 rounding",
        measured=f"{largest:.2g} apart, at |x| = {at:.2f}",
        holds=4.6e-4 < largest < 4.8e-4,
    )

    rng, shape = chapter.rng(), (64, 1024) if chapter.quick else (1024, 1024)
    x, dout = rng.standard_normal(shape, np.float32), rng.standard_normal(shape, np.float32)
    k, c = np.sqrt(2 / np.pi).astype(np.float32), np.float32(0.044715)

    def textbook():
        tanh = np.tanh(k * (x + c * x**3))
        out = 0.5 * x * (1 + tanh)
        return out, dout * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * k * (1 + 3 * c * x**2))

    def as_written():
        return both_ways(gelu, x, dout)

    gap = float(np.abs(textbook()[1] - as_written()).max())
    ratio = times_faster(as_written, textbook)
    exact_cost = times_faster(as_written, lambda: both_ways(gelu_exact, x, dout))
    chapter.value("gelu.times_faster", ratio)
    chapter.value("gelu.exact_cost", exact_cost)
    chapter.claim(
        "GELU in pieces that fit the cache, without x**3, is faster than the formula as printed",
        paper="not in a paper: the same numbers in another order",
        expect="several times faster, forward and backward, float32",
        measured=f"{ratio:.1f} times as fast; largest difference of the gradients {gap:.0e}",
        holds=ratio > 1.5 and gap < 1e-5,
        full_only=True,
    )


gelu_section()


# %% Sigmoid and softplus: the digits at the ends
def digits_section():
    x = np.linspace(-80, -1, 3161).astype(np.float32)
    truth = 1 / (1 + np.exp(-x.astype(np.float64)))
    through_tanh = 0.5 * np.tanh(0.5 * x) + 0.5
    with np.errstate(over="ignore"):
        logged, safe = np.log(1 + np.exp(x)), softplus(x)[0]
    exact = np.log1p(np.exp(x.astype(np.float64)))
    errors = {
        "sigmoid, 1 / (1 + exp(−x))": (sigmoid(x)[0], truth),
        "sigmoid, ½ + ½ tanh(x/2)": (through_tanh, truth),
        "softplus, log1p": (safe, exact),
        "softplus, log(1 + exp(x))": (logged, exact),
    }
    relative = {name: np.abs(found - true) / true for name, (found, true) in errors.items()}
    with chapter.figure("lost_digits") as (_, ax):
        for name, error in relative.items():
            ax.semilogy(x, np.maximum(error, 1e-9), label=name)
        ax.set(xlabel="x", ylabel="relative error, float32", xlim=(-40, -1))
        ax.legend()
    worst = {name: float(error.max()) for name, error in relative.items()}
    sure, tanh, log1p, log = worst.values()
    chapter.value("sigmoid.error", sure)
    chapter.value("sigmoid.error_through_tanh", tanh)
    chapter.value("softplus.error", log1p)
    chapter.value("softplus.error_as_printed", log)
    chapter.claim(
        "Small sigmoids and softpluses keep their digits",
        paper="not in a paper: a matter of how the formula is arranged",
        expect="relative errors near float32 rounding down to x = −80, where the other arrangements lose every digit",
        measured=f"sigmoid {sure:.0e} (through tanh {tanh:.0e}), softplus {log1p:.0e} (log(1 + exp(x)) {log:.0e})",
        holds=max(sure, log1p) < 1e-5 and min(tanh, log) > 0.99,
    )


digits_section()


# %% Softmax: the shift that changes nothing but saves everything
def naive_softmax(x):
    exps = np.exp(x)
    return exps / exps.sum(axis=-1, keepdims=True)


def softmax_section():
    rng, scales = chapter.rng(), np.arange(1, 121)
    broken, worst_naive, worst_shifted = 0, 0.0, 0.0
    with np.errstate(all="ignore"):
        for scale in scales:
            # The largest score is the scale itself; the others lie below it, as in the attention of a trained model.
            x = np.concatenate([np.full((8, 1), scale), rng.uniform(-scale, scale, size=(8, 63))], axis=1)
            single = x.astype(np.float32)
            exact = naive_softmax(single.astype(np.float64))
            error = float(np.abs(naive_softmax(single) - exact).max())
            if broken or not error < 1e-3:
                broken = broken or int(scale)
            else:
                worst_naive = max(worst_naive, error)
            worst_shifted = max(worst_shifted, float(np.abs(softmax(single)[0] - exact).max()))
    chapter.value("softmax.breaks_at", broken)
    chapter.value("softmax.error", worst_shifted)
    chapter.value("softmax.naive_error", worst_naive)
    chapter.claim(
        "The shifted softmax does not overflow, and the shift costs no digits",
        paper="Blanchard, Higham and Higham 2019: the shifted formulas are of similar accuracy to the unshifted ones",
        expect="in float32 the plain formula breaks where exp or its sum overflows, just below a score of 88.7; the shifted one never",
        measured=f"plain: wrong or not finite from a score of {broken} on, largest error before that {worst_naive:.0e}; "
        f"shifted: largest error up to a score of {scales[-1]} {worst_shifted:.0e}",
        holds=84 <= broken <= 89 and worst_shifted < 2 * worst_naive,
    )

    gaps = np.linspace(0, 120, 481).astype(np.float32)
    x = np.stack([np.zeros_like(gaps), -gaps], axis=1)
    truth = -gaps.astype(np.float64) - np.log1p(np.exp(-gaps.astype(np.float64)))
    with np.errstate(divide="ignore"):
        through_softmax = np.log(softmax(x)[0])[:, 1]
    direct = log_softmax(x)[0][:, 1]
    with chapter.figure("log_of_softmax") as (_, ax):
        ax.plot(gaps, through_softmax, label="log(softmax(x))")
        ax.plot(gaps, direct, "--", label="log_softmax(x)")
        ax.set(xlabel="how far a score lies below the largest", ylabel="its log-probability, float32")
        ax.legend()
    lost = float(gaps[~np.isfinite(through_softmax)].min())
    error = float(np.abs(direct / truth - 1).max())
    chapter.value("log_softmax.lost_at", lost)
    chapter.value("log_softmax.error", error)
    chapter.claim(
        "Log-softmax keeps what softmax has rounded away",
        paper="Goodfellow, Bengio and Courville 2016, section 4.1: log softmax must be a function of its own",
        expect="in float32 a weight is 0, and its logarithm lost, about 104 below the largest score",
        measured=f"log(softmax) is −∞ from {lost:.1f} on; log_softmax has a relative error of {error:.0e} at most",
        holds=103 < lost < 105 and error < 1e-6,
    )


softmax_section()


# %% Why the checker draws dout at random: with ones, some wrong backwards look right
def differences(function, x, dout, h=1e-5):
    """The gradient of <dout, function(x)> by central differences, an element at a time."""
    numeric = np.empty_like(x)
    for index in np.ndindex(x.shape):
        moved = []
        for by in (h, -h):
            changed = x.copy()
            changed[index] += by
            moved.append(np.sum(dout * function(changed)[0]))
        numeric[index] = (moved[0] - moved[1]) / (2 * h)
    return numeric


def softmax_with_a_plain_mean(x):
    weights, _ = softmax(x)
    return weights, lambda dout: weights * (dout - dout.mean(axis=-1, keepdims=True))


def softmax_without_a_gradient(x):
    weights, _ = softmax(x)
    return weights, np.zeros_like


def layer_norm_without_the_variance_term(x):
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred * centred).mean(axis=-1, keepdims=True))
    return centred / deviation, lambda dout: (dout - dout.mean(axis=-1, keepdims=True)) / deviation


def log_softmax_with_a_mean_for_the_sum(x):
    out, _ = log_softmax(x)
    return out, lambda dout: dout - np.exp(out) * dout.mean(axis=-1, keepdims=True)


def random_dout_section():
    rng = chapter.rng()
    x, random = rng.normal(size=(3, 5)), rng.normal(size=(3, 5))
    wrong = {
        "softmax, plain mean for the weighted one": softmax_with_a_plain_mean,
        "softmax, gradient of zero": softmax_without_a_gradient,
        "LayerNorm, variance term lost": layer_norm_without_the_variance_term,
        "log-softmax, mean for the sum": log_softmax_with_a_mean_for_the_sum,
    }
    rows = []
    for name, function in wrong.items():
        errors = [float(np.abs(function(x)[1](dout) - differences(function, x, dout)).max()) for dout in (np.ones_like(x), random)]
        rows.append([name, *errors])
    chapter.table("wrong_backwards", ["wrong backward", "error, dout of ones", "error, random dout"], rows)
    hidden = [row for row in rows if row[1] < 1e-9]
    chapter.value("softmax.hidden_by_ones", len(hidden))
    chapter.claim(
        "A dout of ones hides wrong backwards of softmax and LayerNorm, a random one does not",
        paper="not in a paper: the outputs of both sum to a constant, so the gradient of their sum is zero",
        expect="no error at all with ones, an error of the gradient's own size with random numbers",
        measured=f"{len(hidden)} of {len(rows)} wrong backwards pass with ones (errors up to {max(row[1] for row in hidden):.0e}), "
        f"none with random numbers (errors from {min(row[2] for row in rows):.2g} up)",
        holds=len(hidden) == 3 and min(row[2] for row in rows) > 1e-2,
    )


random_dout_section()


# %% Cross-entropy: the floor under a smoothed loss, a gradient that does not fade, and what fusing saves
def smoothing_section():
    num_classes, smoothing, steps = 10, 0.1, 400
    targets, curves = np.array([3]), {}
    for s in (0.0, smoothing):
        logits, curves[s] = np.zeros((1, num_classes)), []
        for _ in range(steps):
            loss, backward = cross_entropy(logits, targets=targets, label_smoothing=s)
            curves[s].append(float(loss))
            logits = logits - 4.0 * backward(np.float64(1))
    target = smoothing / num_classes + (1 - smoothing) * np.eye(num_classes)[3]
    floor = float(-np.sum(target * np.log(target)))
    gap = float(logits[0, 3] - logits[0, 0])
    with chapter.figure("smoothing_floor") as (_, ax):
        for s, curve in curves.items():
            ax.semilogy(range(1, steps + 1), curve, label=f"label smoothing {s:g}")
        ax.axhline(floor, color="#808080", linestyle=":", label="entropy of the smoothed target")
        ax.set(xlabel="steps of gradient descent on free logits", ylabel="loss in nats", xscale="log")
        ax.legend()
    chapter.value("cross_entropy.floor", floor)
    chapter.value("cross_entropy.smoothed", curves[smoothing][-1])
    chapter.value("cross_entropy.plain", curves[0.0][-1])
    chapter.value("cross_entropy.logit_gap", gap)
    chapter.value("cross_entropy.best_gap", float(np.log(target[3] / target[0])))
    chapter.claim(
        "The smallest label-smoothed loss is the entropy of the smoothed target",
        paper="Szegedy et al. 2015, section 7: smoothing keeps the largest logit from growing without bound",
        expect=f"descent on free logits ends at {floor:.4f} nats with a logit gap of log({target[3] / target[0]:.0f}) = "
        f"{np.log(target[3] / target[0]):.2f}; without smoothing the loss goes on towards 0",
        measured=f"{curves[smoothing][-1]:.4f} nats, gap {gap:.2f}; without smoothing {curves[0.0][-1]:.1e} nats and falling",
        holds=abs(curves[smoothing][-1] - floor) < 1e-6 and curves[0.0][-1] < 0.01,
    )


def saturation_section():
    gaps, targets, onehot = np.linspace(-12, 12, 97), np.array([0]), np.array([[1.0, 0.0]])
    entropy, squared = [], []
    for gap in gaps:
        logits = np.array([[gap, 0.0]])
        _, backward = cross_entropy(logits, targets=targets)
        entropy.append(abs(backward(np.float64(1))[0, 0]))
        weights, softmax_backward = softmax(logits)
        _, error_backward = mean_squared_error(weights, onehot)
        squared.append(abs(softmax_backward(error_backward(np.float64(1))[0])[0, 0]))
    with chapter.figure("saturation") as (_, ax):
        ax.semilogy(gaps, entropy, label="cross-entropy")
        ax.semilogy(gaps, squared, label="squared error after softmax")
        ax.set(xlabel="score of the right class minus score of the wrong one", ylabel="size of the gradient")
        ax.legend()
    chapter.value("mean_squared_error.saturated", squared[8])
    chapter.value("mean_squared_error.gap", -gaps[8])
    chapter.value("cross_entropy.when_wrong", entropy[8])
    chapter.claim(
        "A confidently wrong classifier learns from cross-entropy and not from squared error",
        paper="Goodfellow, Bengio and Courville 2016, section 6.2.2: the logarithm undoes the exponential, so the gradient does not vanish",
        expect="10 logits on the wrong side: a gradient near 1 for cross-entropy, near e⁻¹⁰ for squared error",
        measured=f"{entropy[8]:.4f} and {squared[8]:.1e}",
        holds=entropy[8] > 0.999 and squared[8] < 1e-4,
    )


def fused_section():
    ratios = {}
    for name, rows, classes in (("characters", 768, 65), ("words", 32 if chapter.quick else 128, 50_257)):
        rng = chapter.rng()
        logits, targets = rng.standard_normal((rows, classes), np.float32), rng.integers(0, classes, size=rows)
        positions = np.arange(rows)

        def fused(logits=logits, targets=targets):
            return both_ways(cross_entropy, logits, np.float32(1), targets=targets)

        def in_parts(logits=logits, targets=targets, positions=positions):
            log_probabilities, backward = log_softmax(logits)
            loss = -log_probabilities[positions, targets].mean()
            dlog = np.zeros_like(log_probabilities)
            dlog[positions, targets] = -1 / np.float32(len(targets))
            return loss, backward(dlog)

        gap = float(np.abs(fused() - in_parts()[1]).max())
        ratios[name] = times_faster(fused, in_parts)
        chapter.value(f"cross_entropy.times_faster_{name}", ratios[name])
        chapter.value(f"cross_entropy.gap_{name}", gap)
    chapter.claim(
        "Cross-entropy in one piece is faster than log-softmax followed by a choice",
        paper="not in a paper: the same numbers with fewer passes over the logits",
        expect="clearly faster; the gradient of the choice, zero almost everywhere, is never built",
        measured=f"{ratios['characters']:.1f} times as fast at 768 × 65 and {ratios['words']:.1f} times at 50,257 classes, forward and backward",
        holds=min(ratios.values()) > 1.1,
        full_only=True,
    )


smoothing_section()
saturation_section()
fused_section()


# %% A small network on real text: the next character from the three before it
CONTEXT, WIDTH = 3, 48


class NextCharacter(NamedTuple):
    """Three vectors side by side, a channel part on a residual stream, a head."""

    embedding: Embedding
    channel: tuple | None
    head: Linear


@slot
def nothing(x):
    """A part that adds nothing."""
    return np.zeros_like(x), np.zeros_like


def next_character(params, *, contexts, channel, rate=0.0, rng=None):
    """Logits (positions, vocabulary) of the character after each context, and backward: dlogits -> gradients."""
    parts = partial(residual, part=channel), slot(partial(dropout, rate=rate, rng=rng)), linear
    vectors, embedding_backward = embedding(params.embedding, ids=contexts)
    logits, backward_of_parts = chain((params.channel, None, params.head), vectors.reshape(-1, WIDTH), parts=parts)

    def backward(dlogits):
        (dchannel, _, dhead), dx = backward_of_parts(dlogits)
        return NextCharacter(embedding_backward(dx.reshape(vectors.shape)), dchannel, dhead)

    return logits, backward


def windows(ids):
    """Every context of the ids and the character that follows it."""
    cut = np.lib.stride_tricks.sliding_window_view(ids, CONTEXT + 1)
    return cut[:, :CONTEXT], cut[:, CONTEXT]


def bits(params, ids, channel):
    """Bits a character on all windows of the ids."""
    contexts, targets = windows(ids)
    loss = cross_entropy(next_character(params, contexts=contexts, channel=channel)[0], targets=targets)[0]
    return float(loss / np.log(2))


def train(ids, unseen, vocabulary, channel, init_channel, *, steps, seed, text, rate=0.0, watch=0):
    """Train on the ids; return the parameters, and (step, bits on the first unseen ids) every ``watch`` steps."""
    rng = np.random.default_rng([chapter.seed, seed])
    params = FlatTree.pack(
        NextCharacter(
            init_embedding(rng, vocabulary, WIDTH // CONTEXT, std=1.0),
            init_channel(rng, WIDTH),
            init_linear(rng, WIDTH, vocabulary),
        )
    )
    gradient, optimizer, curve = params.zeros_like(), AdamW(params, weight_decay=0.0), []
    contexts, targets = windows(ids)
    for step in chapter.progress(range(1, steps + 1), text):
        drawn = rng.integers(len(targets), size=256)
        logits, backward = next_character(params.tree, contexts=contexts[drawn], channel=channel, rate=rate, rng=rng)
        _, loss_backward = cross_entropy(logits, targets=targets[drawn])
        gradient.assign(backward(loss_backward(np.float32(1))))
        optimizer.step(gradient, learning_rate=4e-3 * (1 - (step - 1) / steps))
        if watch and step % watch == 0:
            curve.append((step, bits(params.tree, unseen[:10_000], channel)))
    return params.tree, curve


def bits_of_counted_pairs(known, unseen, vocabulary):
    """Bits a character of pairs counted on known text, one added to each count; and of pairs counted on the unseen text."""
    pairs = [np.bincount(ids[:-1] * vocabulary + ids[1:], minlength=vocabulary**2).reshape(vocabulary, -1) for ids in (known, unseen)]
    tables = pairs[0] + 1, pairs[1]
    probabilities = [table / np.maximum(table.sum(axis=1, keepdims=True), 1) for table in tables]
    return [float(-np.log2(p[unseen[:-1], unseen[1:]]).mean()) for p in probabilities]


def text_section():
    corpus = Corpus.load(context=CONTEXT)
    steps, seeds = (60, 1) if chapter.quick else (800, 3)
    unseen = corpus.validation[:5000] if chapter.quick else corpus.validation
    counted, oracle = bits_of_counted_pairs(corpus.train, unseen, corpus.vocabulary.size)
    channels = {
        "no feed-forward network": (nothing, lambda rng, width: None),
        "feed-forward, GELU": (feed_forward, lambda rng, width: init_feed_forward(rng, width, bias=False)),
        "gated feed-forward, SwiGLU": (gated_feed_forward, init_gated_feed_forward),
    }
    rows, finals, curves = [], {}, {}
    for name, (channel, init_channel) in channels.items():
        runs = [
            train(
                corpus.train, unseen, corpus.vocabulary.size, channel, init_channel,
                steps=steps, seed=seed, text=name, watch=40 if seed == 0 else 0,
            )
            for seed in range(seeds)
        ]
        curves[name] = runs[0][1]
        finals[name] = [bits(params, unseen, channel) for params, _ in runs]
        rows.append([name, trees.count_parameters(runs[0][0]), float(np.mean(finals[name])), float(np.ptp(finals[name]))])
    rows.append(["pairs of characters, counted", None, counted, None])
    rows.append(["pairs, counted on the very text that is judged", None, oracle, None])
    chapter.table("next_character", ["model", "parameters", "bits a character", "range over seeds"], rows)
    with chapter.figure("next_character") as (_, ax):
        for name, curve in curves.items():
            ax.plot(*zip(*curve, strict=True), label=name)
        ax.axhline(counted, color="#808080", linestyle=":", label="pairs of characters, counted")
        ax.set(xlabel="step", ylabel="bits a character, validation text")
        ax.legend()
    none, plain, gated = (float(np.mean(values)) for values in finals.values())
    chapter.value("feed_forward.bits", plain)
    chapter.value("feed_forward.bits_without", none)
    chapter.value("feed_forward.bits_counted", counted)
    chapter.value("feed_forward.bits_oracle", oracle)
    chapter.value("feed_forward.steps", steps)
    chapter.value("gated_feed_forward.bits", gated)
    chapter.value("gated_feed_forward.gain", plain - gated)
    chapter.value("gated_feed_forward.seeds", seeds)
    chapter.claim(
        "A small network on three characters beats counting pairs",
        paper="Bengio et al. 2003, JMLR 3: a neural network on learned vectors beats counted n-grams",
        expect="fewer bits on unseen text than pairs counted on that very text",
        measured=f"{plain:.3f} bits a character, against {counted:.3f} for pairs counted on the training text and "
        f"{oracle:.3f} for pairs counted on the text that is judged",
        holds=plain < oracle,
        full_only=True,
    )
    chapter.claim(
        "The feed-forward network is what joins the three characters",
        paper="Vaswani et al. 2017, section 3.3: two maps with an activation between them, at each position",
        expect="without it the three characters only add up, and the loss is clearly worse",
        measured=f"{none:.3f} bits without, {plain:.3f} with",
        holds=plain < none - 0.1,
        full_only=True,
    )
    better = sum(g < p for g, p in zip(finals["gated feed-forward, SwiGLU"], finals["feed-forward, GELU"], strict=True))
    chapter.claim(
        "A gate is worth a little at equal size",
        paper="Shazeer 2020, section 3: gated networks reach lower losses than ReLU or GELU, at as many parameters and products",
        expect="a small gain, maybe within the differences between seeds",
        measured=f"{gated:.3f} bits against {plain:.3f}; better with {better} of {seeds} seeds",
        holds=better == seeds,
        toy_scale="a single block on three characters is far from the paper's setting",
        full_only=True,
    )


def dropout_section():
    corpus = Corpus.load(context=CONTEXT)
    few = corpus.train[: 5_000 if chapter.quick else 20_000]
    unseen = corpus.validation[:5_000 if chapter.quick else 10_000]
    steps, rates = (60 if chapter.quick else 800), (0.0, 0.3)
    rows, curves = [], {}
    for rate in rates:
        params, curves[rate] = train(
            few, unseen, corpus.vocabulary.size, feed_forward, init_feed_forward,
            steps=steps, seed=0, rate=rate, text=f"dropout {rate:g}", watch=40,
        )
        rows.append([rate, bits(params, few, feed_forward), bits(params, unseen, feed_forward), min(unseen_bits for _, unseen_bits in curves[rate])])
    chapter.table("dropout", ["rate", "bits on the training text", "bits on unseen text", "best on the way"], rows)
    with chapter.figure("dropout") as (_, ax):
        for rate, curve in curves.items():
            ax.plot(*zip(*curve, strict=True), label=f"dropout {rate:g}")
        ax.set(xlabel="step", ylabel="bits a character, unseen text")
        ax.legend()
    plain, best = rows[0], min(rows[1:], key=lambda row: row[2])
    chapter.value("dropout.characters", len(few))
    chapter.value("dropout.plain_train", plain[1])
    chapter.value("dropout.plain_unseen", plain[2])
    chapter.value("dropout.rate", best[0])
    chapter.value("dropout.train", best[1])
    chapter.value("dropout.unseen", best[2])
    chapter.value("dropout.plain_best_on_the_way", plain[3])
    chapter.value("dropout.best_on_the_way", best[3])
    chapter.claim(
        "Dropout narrows the distance between known and unseen text",
        paper="Srivastava et al. 2014, abstract: it significantly reduces overfitting",
        expect=f"on {len(few):,} characters only: worse on the training text, better on unseen text",
        measured=f"unseen text {plain[2]:.3f} bits without and {best[2]:.3f} with rate {best[0]:g}; training text {plain[1]:.3f} and "
        f"{best[1]:.3f}; stopped at the best moment, unseen text {plain[3]:.3f} and {best[3]:.3f}",
        holds=best[2] < plain[2] and best[1] > plain[1],
        toy_scale="the model is small, so it has little to overfit with",
        full_only=True,
    )


text_section()
dropout_section()


# %%
if __name__ == "__main__":
    raise SystemExit(chapter.finish())
