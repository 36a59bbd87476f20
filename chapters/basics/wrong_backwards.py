"""Does a check with a gradient of ones see a wrong backward?

No paper: softmax's outputs sum to one, a layer norm's to zero, so the gradient of their sum is zero, and so is a backward that has lost what
matters. Four wrong backwards are compared with differences, once where ones arrive and once where random numbers do.
"""

# %%
import numpy as np

from minitransformers import log_softmax, softmax
from minitransformers.reporting import Section

section = Section(__file__, __doc__, kind="arithmetic")
ONES, RANDOM = "dout of ones", "random dout"


# %% The forwards are right; each backward has one mistake
def plain_mean(x):
    weights, _ = softmax(x)
    return weights, lambda dout: weights * (dout - dout.mean(axis=-1, keepdims=True))


def no_gradient(x):
    weights, _ = softmax(x)
    return weights, np.zeros_like


def no_variance_term(x):
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred * centred).mean(axis=-1, keepdims=True))
    return centred / deviation, lambda dout: (dout - dout.mean(axis=-1, keepdims=True)) / deviation


def mean_for_the_sum(x):
    out, _ = log_softmax(x)
    return out, lambda dout: dout - np.exp(out) * dout.mean(axis=-1, keepdims=True)


WRONG = {
    "softmax, plain mean for the weighted one": plain_mean,
    "softmax, gradient of zero": no_gradient,
    "LayerNorm, variance term lost": no_variance_term,
    "log-softmax, mean for the sum": mean_for_the_sum,
}


def differences(function, x, dout, h=1e-5):
    """The gradient of <dout, function(x)> by central differences, an element at a time."""
    numeric = np.empty_like(x)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = h
        numeric[index] = np.sum(dout * (function(x + step)[0] - function(x - step)[0])) / (2 * h)
    return numeric


@section.experiment
def experiment(rng):
    x, random = rng.normal(size=(2, 3, 5))
    for name, function in WRONG.items():
        for arrives, dout in ((ONES, np.ones_like(x)), (RANDOM, random)):
            right = differences(function, x, dout)
            yield name, arrives, {"error": np.abs(function(x)[1](dout) - right).max(), "size": np.abs(right).max()}


# %%
def hidden(found):
    """Those that look right where ones arrive."""
    return [name for name, of in found["error"].items() if np.max(of[ONES]) <= 1e-9]


@section.claim(
    "A gradient of ones hides wrong backwards of softmax and LayerNorm, a random one does not",
    paper="no paper: the outputs of both sum to a constant, so the gradient of their sum is zero",
    measured=lambda found: f"{len(hidden(found))} of {len(WRONG)} look right with ones; with random numbers errors from {least(found):.3f} of the gradient up",
)
def ones_hide(found):
    """With ones the three of softmax and LayerNorm are right to 1e-9, the accuracy of the differences. With random numbers every error is at
    least a hundredth of the gradient's largest element, ten thousand times what a check allows.
    """
    return hidden(found) == list(WRONG)[:3] and least(found) >= 0.01


def least(found):
    return min(np.min(of[RANDOM] / found["size"][name][RANDOM]) for name, of in found["error"].items())


@section.report
def report(found):
    rows = [[name, *(float(np.max(of[arrives])) for arrives in (ONES, RANDOM))] for name, of in found["error"].items()]
    section.table("wrong_backwards", ["wrong backward", f"largest error, {ONES}", f"largest error, {RANDOM}"], rows)
    section.value("softmax.hidden_by_ones", len(hidden(found)))


if __name__ == "__main__":
    section.main()
