"""Behind an adversary, is the sex harder to read from the hidden layer?

Ganin et al. 2015, arXiv:1505.07818: an encoder that an adversary trains against makes domains hard to tell apart. Elazar and Goldberg 2018,
arXiv:1808.06640: a fresh classifier still reads what the adversary no longer does. Decisions about the Adult census (Kohavi 1996) are
learned as in the section census, and then a probe with one hidden layer reads the sex, which is not among the features: from the
features, from the hidden layer of each way, and from that of no way at the learning rates of the adversaries, for a rate does something too.
"""

# %%
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.reporting import Section, dots, mean_and_spread
from minitransformers.reporting.bias_mitigation.census_ways import WAYS, adult, each_learned, losses, read, trained
from minitransformers.reporting.needs import needs_data

section = Section(__file__, __doc__, kind="trained", needs=needs_data(("fairness", "adult_train"), ("fairness", "adult_test")))
NONE, WEIGHTED, WEAK, STRONG, *_ = WAYS
FEATURES = "features"
SAME = {name: f"{NONE}, at the rate of {name}" for name in (WEAK, STRONG)}
KEYS = {"features": FEATURES, "none": NONE, "weighted": WEIGHTED, "weak": WEAK, "strong": STRONG}
KEYS |= {"same_weak": SAME[WEAK], "same_strong": SAME[STRONG]}


@section.tuning
def tuning(rng):
    yield from losses(rng, quick=section.quick)


@section.experiment
def experiment(rng):
    people, asked = adult()
    yield FEATURES, 0, {"probe": read(rng, quick=section.quick)}
    for name, learned in each_learned(section.rates, rng, quick=section.quick):
        nats = cross_entropy(learned.asked, targets=asked.labels)[0]
        probe = read(rng, encoder=learned.encoder, quick=section.quick)
        yield name, 0, {"probe": probe, "accuracy": (learned.asked.argmax(-1) == asked.labels).mean(), "nats": nats}
    for name, same in SAME.items():
        params = trained(NONE, people, rng, section.rates[name], quick=section.quick)
        yield same, 0, {"probe": read(rng, encoder=params.encoder, quick=section.quick)}


# %%
def probed(found):
    names = (NONE, WEAK, SAME[WEAK], STRONG, SAME[STRONG], FEATURES)
    return "; ".join(f"{name}: probe {mean_and_spread(found['probe'][name][0], '.3f')}" for name in names) + "; chance 0.5"


@section.claim(
    "Does an adversary make the sex harder to read for a fresh probe?",
    paper="Ganin et al. 2015, arXiv:1505.07818, section 5.2, of domains: what is made of them can hardly be told apart",
    measured=probed,
)
def harder_to_read(found):
    """With λ = 1 the probe's balanced accuracy is lower than without."""
    return found["probe"][WEAK][0] < found["probe"][NONE][0]


@section.claim(
    "Behind an adversary a fresh probe still reads the sex",
    paper="Elazar and Goldberg 2018, arXiv:1808.06640, abstract: a post-hoc classifier reads what the adversary no longer does",
    measured=probed,
)
def still_readable(found):
    """At both strengths its balanced accuracy is at least 0.65."""
    return min(found["probe"][name][0] for name in (WEAK, STRONG)) >= 0.65


@section.report
def report(found):
    rows = []
    for name in (FEATURES, *WAYS, *SAME.values()):
        task = [mean_and_spread(found[measure][name][0], ".3f") if name in found[measure] else "" for measure in ("accuracy", "nats")]
        rows.append([name, mean_and_spread(found["probe"][name][0], ".3f"), *task])
    section.table("behind", ["read from", "sex read by a probe", "accuracy of the task", "nats of the task"], rows)
    section.values("behind", {key: found["probe"][name][0].mean() for key, name in KEYS.items()})


@section.figure("behind", size=(6, 2.8))
def picture(ax, found):
    dots(ax, {name: of[0] for name, of in found["probe"].items()}, at=0.5, xlabel="balanced accuracy of a fresh probe for the sex")


if __name__ == "__main__":
    section.main()
