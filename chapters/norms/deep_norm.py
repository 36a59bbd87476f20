"""What does DeepNorm give to post-norm: its scaled stream, or its small start?

Wang et al. 2022, arXiv:2203.00555: DeepNorm, post-norm with a scaled stream and a small start, is as stable as pre-norm. Here both begin
with the same weights: in their blocks of deviation 1/√d_in, or half of that, which is near DeepNorm's own beta. So what is left between them
is the scale. Four layers with RoPE on real text, without a warm-up, at a learning rate of each one's own, and at pre-norm's as well.
"""

# %%
import numpy as np

from minitransformers.reporting import Section, counted_pairs, mean_and_spread, size_and_time, tried
from minitransformers.reporting.norms.placements import (
    DEEP,
    OWN,
    POST,
    PRE,
    RATES,
    SAME,
    Placed,
    at_both_rates,
    corpus,
    told,
    trained,
)

section = Section(__file__, __doc__, kind="trained")
MODELS = {
    "pre": Placed(PRE), "post": Placed(POST), "deep": Placed(DEEP), "post_half": Placed(POST, 0.5), "deep_half": Placed(DEEP, 0.5),
}  # fmt: skip


# %%
@section.tuning
def tuning(rng):
    yield from tried(lambda name, rng, *, rate: trained(MODELS[name], rng, rate=rate, quick=section.quick), MODELS, RATES, rng)


@section.experiment
def experiment(rng):
    yield from at_both_rates(MODELS, section.rates, rng, alike=MODELS, quick=section.quick)


# %%
def of(found, name, rate=OWN):
    return found["bits"][name][rate]


@section.claim(
    "At the same rate and from the same full start DeepNorm's scaled stream learns where post-norm stalls",
    paper="Wang et al. 2022, arXiv:2203.00555, abstract: the good performance of post-norm and the stable training of pre-norm",
    measured=lambda found: f"{told(found, MODELS, 'post', 'deep', rate=SAME)}; {told(found, MODELS, 'post', 'deep')}",
)
def scaled_stream(found):
    """At the rate that suits pre-norm at least 0.3 bits a character less than post-norm."""
    return of(found, "deep", SAME) <= of(found, "post", SAME) - 0.3


@section.claim(
    "Where both start small DeepNorm is better than post-norm",
    paper="Wang et al. 2022, arXiv:2203.00555, abstract: the good performance of post-norm and the stable training of pre-norm",
    measured=lambda found: told(found, MODELS, "post_half", "deep_half"),
)
def both_small(found):
    """At half the weights and each at its own rate, at least 0.05 bits a character less than post-norm."""
    return of(found, "deep_half") <= of(found, "post_half") - 0.05


@section.report
def report(found):
    rows = []
    for name, model in MODELS.items():
        bits = [mean_and_spread(of(found, name, rate)) for rate in (SAME, OWN)]
        rows.append([model.placement, f"{model.start:g}", *size_and_time(found, name, OWN), *bits, section.rates[name]])
    rows.append(["counted pairs of characters", *[None] * 4, f"{counted_pairs(corpus()):.2f}", None])
    columns = ["placement", "start", "parameters", "processor seconds", f"bits at {section.rates['pre']:g}", "bits at its own rate", "its rate"]
    section.table("scaled_stream", columns, rows)
    section.values("start", {name: np.mean(of(found, name)) for name in ("deep", "deep_half")})
    section.value("start.same.deep", np.mean(of(found, "deep", SAME)))


if __name__ == "__main__":
    section.main()
