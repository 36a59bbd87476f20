"""What does a confidently wrong classifier learn from, cross-entropy or squared error?

Goodfellow, Bengio and Courville 2016, section 6.2.2: the logarithm of the loss undoes the exponential of the softmax, so the gradient stays
where the answer is wrong. A squared error behind a softmax has no logarithm. Two classes, and the distance of their scores.
"""

# %%
import numpy as np

from minitransformers import cross_entropy, mean_squared_error, softmax
from minitransformers.reporting import Section

section = Section(__file__, __doc__, kind="exact")
DISTANCES, ASKED = np.linspace(-12, 12, 97), -10.0           # of the right score from the wrong one
ENTROPY, SQUARED = "cross-entropy", "squared error after softmax"


@section.experiment
def experiment(rng):
    for distance in DISTANCES:
        scores = np.array([[distance, 0.0]])
        _, backward = cross_entropy(scores, targets=np.array([0]))
        yield ENTROPY, float(distance), {"gradient": abs(backward(np.float64(1))[0, 0])}
        weights, softmax_backward = softmax(scores)
        _, error_backward = mean_squared_error(weights, np.array([[1.0, 0.0]]))
        dweights, _ = error_backward(np.float64(1))
        yield SQUARED, float(distance), {"gradient": abs(softmax_backward(dweights)[0, 0])}


# %%
def at(found, name, distance=ASKED):
    return float(np.ravel(found["gradient"][name][distance])[0])


@section.claim(
    "A confidently wrong classifier learns from cross-entropy and not from squared error",
    paper="Goodfellow, Bengio and Courville 2016, section 6.2.2: the logarithm undoes the exponential, so the gradient does not vanish",
    measured=lambda found: f"{at(found, ENTROPY):.4f} and {at(found, SQUARED):.1e}",
)
def learns(found):
    """Wrong by 10: the gradient of cross-entropy is within 2 exp(-10) of 1, that of squared error within 2 exp(-10) of 0."""
    return 1 - at(found, ENTROPY) <= 2 * np.exp(-10) and at(found, SQUARED) <= 2 * np.exp(-10)


@section.report
def report(found):
    section.values("mean_squared_error", {"saturated": at(found, SQUARED), "gap": -ASKED})
    section.value("cross_entropy.when_wrong", at(found, ENTROPY))


@section.figure("saturation")
def picture(ax, found):
    for name, of in found["gradient"].items():
        ax.semilogy(list(of), [np.ravel(size)[0] for size in of.values()], label=name)
    ax.set(xlabel="score of the right class minus score of the wrong one", ylabel="size of the gradient")
    ax.legend()


if __name__ == "__main__":
    section.main()
