"""Basics: what every later chapter is made of, and the few places where it goes wrong.

Linear maps, embeddings, activations, softmax and losses are short. What is worth measuring is what the short formula
hides: repeats in a lookup, digits lost near the ends of a sigmoid, and two functions that share the name GELU.
"""

# %%
import re
import time
from statistics import median

import numpy as np

from minitransformers.basics.embedding import embedding, init_embedding
from minitransformers.basics.gelu import gelu
from minitransformers.basics.linear import init_linear, linear
from minitransformers.basics.relu import relu
from minitransformers.basics.sigmoid import sigmoid
from minitransformers.basics.silu import silu
from minitransformers.basics.softplus import softplus
from minitransformers.cli.chapter import Chapter
from minitransformers.training.text import python_reference

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
    difference = gelu(x)[0] - gelu(x, approximate="none")[0]
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
    exact_cost = times_faster(as_written, lambda: both_ways(gelu, x, dout, approximate="none"))
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


# %%
if __name__ == "__main__":
    raise SystemExit(chapter.finish())
