"""How many random features does Performer need?

Choromanski et al. 2021, arXiv:2009.14794, section 3: attention with positive random features converges to the softmax's, uniformly,
and how many features an error takes grows exponentially with the squares of the lengths of queries and keys (theorem 4). The mean of
m draws has an error that falls as m^(-1/2). What counts is the output of the attention, a ratio of such means.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.foundation import slot
from minitransformers.linear_attention.linear_attention_bidirectional import linear_attention_bidirectional
from minitransformers.linear_attention.positive_random_features import orthogonal_projection, positive_random_features
from minitransformers.reporting import Section, along, fitted_exponent, lines, mean_and_spread, ticks_at

section = Section(__file__, __doc__, kind="arithmetic")
POSITIONS, WIDTH, FEATURES, DRAWS = 256, 16, (16, 32, 64, 128, 256, 512, 1024), 8
SIZES = {"a quarter": 0.25, "half": 0.5, "ordinary": 1.0, "one and a half": 1.5}  # the deviation of each entry of queries and keys
PROJECTIONS = {
    "orthogonal": orthogonal_projection,
    "independent": lambda *, num_features, d_head, rng: rng.normal(size=(num_features, d_head)),
}  # fmt: skip


@section.experiment
def experiment(rng):
    query, key, value = rng.normal(size=(3, POSITIONS, WIDTH))
    for name, size in SIZES.items():
        exact, _ = scaled_dot_product_attention(size * query, size * key, value)
        for kind in PROJECTIONS if name == "half" else ("orthogonal",):
            for m in FEATURES:
                squares = [np.square(estimate(size * query, size * key, value, kind, m, rng) - exact).sum() for _ in range(DRAWS)]
                curve = name if kind == "orthogonal" else f"{name}, {kind}"
                yield curve, m, {"error": (np.mean(squares) / np.square(exact).sum()) ** 0.5}


def estimate(query, key, value, kind, num_features, rng):
    """What attention in both directions gives with features of a fresh draw."""
    projection = PROJECTIONS[kind](num_features=num_features, d_head=WIDTH, rng=rng)
    feature_map = slot(partial(positive_random_features, projection=projection))
    return linear_attention_bidirectional(None, query, key, value, feature_map=feature_map)[0]


# %%
def slope(found, curve):
    """The power of the number of features with which the error goes."""
    return fitted_exponent(FEATURES, along(found["error"][curve]))


def told(found, *curves):
    def slopes(curve):
        errors = along(found["error"][curve])
        return ", ".join(f"{fitted_exponent(FEATURES, own):.2f}" for own in errors.T)

    ends = [[mean_and_spread(found["error"][curve][m]) for m in (FEATURES[0], FEATURES[-1])] for curve in curves]
    return "; ".join(f"{curve}: {first} to {last}, slopes {slopes(curve)}" for curve, (first, last) in zip(curves, ends, strict=True))


@section.claim(
    "Where queries and keys are short, Performer's error falls as the root of the number of features",
    paper="Choromanski et al. 2021, arXiv:2009.14794, lemma 2: the mean square error of m features is one m-th of that of one",
    measured=lambda found: told(found, "a quarter"),
)
def root(found):
    """With entries of deviation 1/4 the error goes as m^p with p between -0.6 and -0.4."""
    return -0.6 < slope(found, "a quarter") < -0.4


@section.claim(
    "At ordinary size more features hardly help",
    paper="Choromanski et al. 2021, arXiv:2009.14794, section 3, theorem 4: features needed grow exponentially with squared lengths",
    measured=lambda found: f"{told(found, 'ordinary', 'one and a half')}; an output of zero has the error 1",
)
def at_ordinary_size(found):
    """With entries of deviation 1 p is above -0.2."""
    return slope(found, "ordinary") > -0.2


@section.report
def report(found):
    rows = [[curve, *(mean_and_spread(of[m], ".3f") for m in FEATURES), float(slope_of_mean(of))] for curve, of in found["error"].items()]
    section.table("features", ["size of queries and keys", *(f"{m:,}" for m in FEATURES), "slope"], rows)
    for curve, of in found["error"].items():
        name = curve.replace(", ", "_").replace(" ", "_")
        section.values(f"features.{name}", {"slope": slope_of_mean(of), "few": of[FEATURES[0]].mean(), "many": of[FEATURES[-1]].mean()})


def slope_of_mean(errors):
    return fitted_exponent(FEATURES, along(errors).mean(1))


@section.figure("features")
def picture(ax, found):
    lines(ax, found["error"], xlabel="features", ylabel="error of the output", xscale="log", yscale="log")
    ax.axhline(1.0, linestyle=":", color="#808080", label="an output of zero")
    ticks_at(ax, list(FEATURES))
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title="queries and keys")


if __name__ == "__main__":
    section.main()
