"""Can a memory of one matrix forget a value and take another in its place?

Schlag, Irie and Schmidhuber 2021, arXiv:2102.11174, section 4.2: linear attention only adds, so a key that is written again reads a
mixture; the delta rule replaces. Sixteen orthonormal keys are written twice, with new values the second time. The error is that
of what they read against the second values, over the size of those. True by construction.
"""

# %%
import numpy as np

from minitransformers.linear_attention.delta_rule import delta_rule
from minitransformers.linear_attention.linear_attention import linear_attention
from minitransformers.reporting import Section

section = Section(__file__, __doc__, kind="exact")
KEYS, WIDTH = 16, 16
DELTA, ADDING, MEAN = "delta rule", "sum, no denominator", "linear attention"


@section.experiment
def experiment(rng):
    values = rng.normal(size=(2, KEYS, WIDTH))
    keys, axes = np.linalg.qr(rng.normal(size=(KEYS, KEYS)))[0], np.eye(KEYS)  # features of linear attention may not be negative
    written, beta = values.reshape(2 * KEYS, WIDTH), np.ones(2 * KEYS)
    (_, memory), _ = delta_rule(np.tile(keys, (2, 1)), np.tile(keys, (2, 1)), written, beta)
    (mean, sums), _ = linear_attention(None, np.tile(axes, (2, 1)), np.tile(axes, (2, 1)), written, feature_map=lambda _, x: (x, None))
    for name, read in ((DELTA, keys @ memory), (ADDING, axes @ sums[:, :-1]), (MEAN, mean[KEYS:])):
        yield name, "all", {"error": np.linalg.norm(read - values[1]) / np.linalg.norm(values[1])}
        for key in range(KEYS):
            yield name, key, {"of the key": np.linalg.norm(read[key] - values[1, key]) / np.linalg.norm(values[1, key])}
    yield ADDING, "all", {"foretold": np.linalg.norm(values[0]) / np.linalg.norm(values[1])}
    yield MEAN, "all", {"foretold": np.linalg.norm(values[0] - values[1]) / 2 / np.linalg.norm(values[1])}


# %%
def error(found, name, of="error"):
    return float(np.mean(found[of][name]["all"]))


@section.claim(
    "The delta rule overwrites, linear attention adds",
    paper="Schlag, Irie and Schmidhuber 2021, section 4.2: a new value replaces the old one under its key; sums only grow",
    measured=lambda found: f"error of the second values: {error(found, DELTA):.0e} delta rule, {error(found, ADDING):.2f} added, "
    f"{error(found, MEAN):.2f} as a mean",
)
def rule(found):
    """The delta rule errs by rounding; the sum by the size of the first values, and the mean by half of the difference."""
    as_foretold = all(abs(error(found, name) - error(found, name, "foretold")) < 1e-14 for name in (ADDING, MEAN))
    return error(found, DELTA) < 1e-14 and as_foretold


@section.report
def report(found):
    section.values("overwriting", {"delta": error(found, DELTA), "additive": error(found, ADDING), "mean": error(found, MEAN)})


@section.figure("overwriting")
def picture(ax, found):
    for name in (ADDING, MEAN, DELTA):
        ax.plot(range(KEYS), [np.mean(found["of the key"][name][key]) for key in range(KEYS)], "o-", label=name)
    ax.set(xlabel="key", ylabel="error of what is read, over its size", ylim=(-0.1, None))
    ax.legend()


if __name__ == "__main__":
    section.main()
