"""Exponentials or waves: which random features estimate exp(x . y) better?

Choromanski et al. 2021, arXiv:2009.14794, lemma 2: waves, cos and sin of w . x, err most where exp(x . y) is small, as most weights of
attention are; positive features err least there. Theorem 2: draws that are orthogonal vary less. x and y have one length, and
the angle between them says how large exp(x . y) is.
"""

# %%
import numpy as np

from minitransformers.linear_attention.positive_random_features import orthogonal_projection, positive_random_features
from minitransformers.reporting import Section, along, lines

section = Section(__file__, __doc__, kind="arithmetic")
WIDTH, FEATURES, DRAWS, LENGTH = 16, 16, 20_000, 0.8
ANGLES = (0, 30, 60, 90, 120, 150, 180)
POSITIVE, ORTHOGONAL, WAVES = "positive", "positive, orthogonal", "waves"


def pair(angle):
    """x and y, of that length and at that angle."""
    turned = np.radians(angle)
    return LENGTH * np.eye(2, WIDTH)[0], LENGTH * (np.cos(turned) * np.eye(2, WIDTH)[0] + np.sin(turned) * np.eye(2, WIDTH)[1])


def positive_products(x, y, draws):
    """phi(x) . phi(y) for projections (draws, features, width)."""
    both = WIDTH**0.25 * np.stack([x, y])                    # the features divide by that root: attention has its 1 / sqrt(d) there
    features, _ = positive_random_features(both, projection=draws.reshape(-1, WIDTH))
    return len(draws) * np.multiply(*features).reshape(len(draws), -1).sum(-1)


def wave_products(x, y, draws):
    """The same for cos and sin: the products of the two add up to the cosine of a difference."""
    return np.exp((x @ x + y @ y) / 2) * np.cos(draws @ (x - y)).mean(-1)


@section.experiment
def experiment(rng):
    independent = rng.normal(size=(DRAWS, FEATURES, WIDTH))
    orthogonal = np.stack([orthogonal_projection(num_features=FEATURES, d_head=WIDTH, rng=rng) for _ in range(DRAWS)])
    for angle in ANGLES:
        x, y = pair(angle)
        exact = np.exp(x @ y)
        products = {
            POSITIVE: positive_products(x, y, independent), ORTHOGONAL: positive_products(x, y, orthogonal),
            WAVES: wave_products(x, y, independent),
        }  # fmt: skip
        for name, estimates in products.items():
            yield name, angle, {"error": np.square(estimates / exact - 1).mean() ** 0.5}
        yield "exact", angle, {"value": exact}


# %%
def lemma(name, angle):
    """The relative error that lemma 2 gives."""
    x, y = pair(angle)
    exact, total, apart = np.exp(x @ y), np.square(x + y).sum(), np.square(x - y).sum()
    if name == POSITIVE:
        return (np.exp(total) * (1 - np.exp(-total)) / FEATURES) ** 0.5
    return (np.exp(total) * exact**-4 * (1 - np.exp(-apart)) ** 2 / (2 * FEATURES)) ** 0.5


def ratios(found, one, other, angles):
    return [float(np.mean(found["error"][one][a] / found["error"][other][a])) for a in angles]


@section.claim(
    "The errors are those of the lemma",
    paper="Choromanski et al. 2021, arXiv:2009.14794, lemma 2",
    measured=lambda found: f"furthest from it: {worst(found):.1%}",
)
def lemma_holds(found):
    """At every angle within a tenth of the formula, for positive features and for waves; zero where the formula has zero."""
    exact = max(found["error"][POSITIVE][180], found["error"][WAVES][0])
    return exact < 1e-12 and worst(found) < 0.1


def worst(found):
    """The error furthest from the lemma's, as a share of that."""
    pairs = [(name, angle) for name, zero in ((POSITIVE, 180), (WAVES, 0)) for angle in ANGLES if angle != zero]
    return max(np.max(abs(found["error"][name][angle] / lemma(name, angle) - 1)) for name, angle in pairs)


@section.claim(
    "Positive features err less where the exponential is small, waves where it is large",
    paper="Choromanski et al. 2021, arXiv:2009.14794, section 2.3 and lemma 2: waves fail where the kernel is near zero, where most of it is",
    measured=lambda found: f"positive over waves {', '.join(f'{r:.2f}' for r in ratios(found, POSITIVE, WAVES, ANGLES[1:-1]))} at "
    f"{', '.join(map(str, ANGLES[1:-1]))} degrees",
)
def where_it_is_small(found):
    """Less than waves at 120 degrees and beyond, where exp(x . y) is below 3/4; more at a right angle and below."""
    less = along(found["error"][POSITIVE]) < along(found["error"][WAVES])
    return less[4:].all() and not less[:4].any()


@section.claim(
    "Do orthogonal draws err less at every angle?",
    paper="Choromanski et al. 2021, arXiv:2009.14794, theorem 2: orthogonal draws have a strictly smaller mean square error",
    measured=lambda found: f"orthogonal over independent {', '.join(f'{r:.2f}' for r in ratios(found, ORTHOGONAL, POSITIVE, ANGLES[:-1]))} at "
    f"{', '.join(map(str, ANGLES[:-1]))} degrees",
)
def orthogonal_is_better(found):
    """At every angle but 180 degrees, where both are exact."""
    return (along(found["error"][ORTHOGONAL]) < along(found["error"][POSITIVE]))[:-1].all()


@section.report
def report(found):
    def shown(number):
        return float(number) if number > 1e-12 else 0.0

    names = (POSITIVE, ORTHOGONAL, WAVES)
    rows = [[a, *(shown(of[a].mean()) for of in (found["value"]["exact"], *(found["error"][name] for name in names)))] for a in ANGLES]
    section.table("estimates", ["angle", "exp(x · y)", *(f"error, {name}" for name in names)], rows)
    section.values("estimates", {"features": FEATURES, "ratio_60": ratios(found, ORTHOGONAL, POSITIVE, [60])[0], "worst": worst(found)})


@section.figure("estimates")
def picture(ax, found):
    shown = {name: {angle: e for angle, e in of.items() if np.mean(e) > 1e-9} for name, of in found["error"].items()}
    lines(ax, shown, xlabel="angle between x and y, degrees", ylabel="relative error", yscale="log")
    ax.set_xticks(ANGLES)
    ax.legend()


if __name__ == "__main__":
    section.main()
