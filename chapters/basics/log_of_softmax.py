"""Why is log-softmax a function of its own?

Goodfellow, Bengio and Courville 2016, section 4.1: a softmax may underflow to zero, and the logarithm of what it returns is then minus
infinity; so log softmax must be computed in one step. Two scores, the second ever farther below the first, in float32.
"""

# %%
import numpy as np

from minitransformers import log_softmax, softmax
from minitransformers.reporting import Section

section = Section(__file__, __doc__, kind="exact")
TWO_STEPS, ONE_STEP = "log(softmax(x))", "log_softmax(x)"
DISTANCES = np.linspace(0, 120, 481).astype(np.float32)


# %%
def log_probabilities():
    """Of the second score, at each distance: in two steps, in one, and in float64."""
    x = np.stack([np.zeros_like(DISTANCES), -DISTANCES], axis=1)
    with np.errstate(divide="ignore"):
        two_steps = np.log(softmax(x)[0])[:, 1]
    exact = -DISTANCES.astype(np.float64) - np.log1p(np.exp(-DISTANCES.astype(np.float64)))
    return two_steps, log_softmax(x)[0][:, 1], exact


@section.experiment
def experiment(rng):
    two_steps, one_step, exact = log_probabilities()
    yield TWO_STEPS, "all", {"lost": DISTANCES[~np.isfinite(two_steps)].min()}
    yield ONE_STEP, "all", {"error": np.abs(one_step / exact - 1).max()}


# %%
def of(found, measure, name):
    return float(np.ravel(found[measure][name]["all"])[0])


@section.claim(
    "Log-softmax keeps what softmax has rounded away",
    paper="Goodfellow, Bengio and Courville 2016, section 4.1: log softmax must be a function of its own",
    measured=lambda found: f"log(softmax) is −∞ from {of(found, 'lost', TWO_STEPS):.1f} on; log_softmax has a relative error of {of(found, 'error', ONE_STEP):.0e} at most",
)
def keeps(found):
    """In float32 a weight is 0, and its logarithm lost, from about 104 below the largest score on (103 to 105); in one step it is right to a
    relative 1e-6 at every distance up to 120.
    """
    return 103 <= of(found, "lost", TWO_STEPS) <= 105 and of(found, "error", ONE_STEP) <= 1e-6


@section.report
def report(found):
    section.values("log_softmax", {"lost_at": of(found, "lost", TWO_STEPS), "error": of(found, "error", ONE_STEP)})


@section.figure("log_of_softmax")
def picture(ax, found):
    two_steps, one_step, _ = log_probabilities()
    ax.plot(DISTANCES, two_steps, label=TWO_STEPS)
    ax.plot(DISTANCES, one_step, "--", label=ONE_STEP)
    ax.set(xlabel="how far a score lies below the largest", ylabel="its log-probability, float32")
    ax.legend()


if __name__ == "__main__":
    section.main()
