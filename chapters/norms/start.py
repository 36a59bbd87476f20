"""Why does post-norm stall without a warm-up: is it the place of the norm, the size of the first weights, or the rate?

Xiong et al. 2020, arXiv:2002.04745, section 3: post-norm without warm-up trains badly, pre-norm well. All placements begin with the same
weights here: in their blocks of deviation 1/√d_in, or half of that, which is near DeepNorm's own beta (Wang et al. 2022, arXiv:2203.00555). So
what is left between DeepNorm and post-norm is the scaled stream. Beside them stands the model without a norm. Four layers with RoPE on real
text, each placement at a learning rate of its own, and some at pre-norm's as well.
"""

# %%
import numpy as np

from minitransformers.reporting import Section, counted_pairs, level, lines, mean_and_spread, size_and_time, tried
from minitransformers.reporting.norms import placements
from minitransformers.reporting.norms.placements import (
    DEEP,
    NONE,
    OWN,
    POST,
    PRE,
    SAME,
    STEPS,
    Placed,
    at_both_rates,
    corpus,
    told,
    trained,
)
from minitransformers.training.yardsticks import counted

section = Section(__file__, __doc__, kind="trained")
MODELS = {
    "pre": Placed(PRE), "post": Placed(POST), "post_warmed": Placed(POST, warmup=0.3), "deep": Placed(DEEP), "pre_half": Placed(PRE, 0.5),
    "post_half": Placed(POST, 0.5), "deep_half": Placed(DEEP, 0.5), "none": Placed(NONE), "deleted": Placed(PRE, 0.5, deleted=True),
}  # fmt: skip
ALIKE = ("pre", "post", "post_warmed", "deep", "post_half")          # also compared at the rate that suits pre-norm


# %%
@section.tuning
def tuning(rng):
    yield from tried(lambda name, rng, *, rate: trained(MODELS[name], rng, rate=rate, quick=section.quick), MODELS, placements.RATES, rng)


@section.experiment
def experiment(rng):
    yield from at_both_rates(MODELS, section.rates, rng, alike=ALIKE, quick=section.quick)


# %%
def of(found, name, rate=OWN):
    return found["bits"][name][rate]


@section.claim(
    "At pre-norm's rate and from a full start post-norm stalls, and a warm-up helps it",
    paper="Xiong et al. 2020, arXiv:2002.04745, section 3: post-norm without warm-up trains badly, pre-norm well",
    measured=lambda found: told(found, MODELS, "pre", "post", "post_warmed", rate=SAME),
)
def needs_warmup(found):
    """At the rate that suits pre-norm, at least 0.3 bits a character more than pre-norm, and 0.15 more than after a warm-up."""
    post = of(found, "post", SAME)
    return post >= of(found, "pre", SAME) + 0.3 and post >= of(found, "post_warmed", SAME) + 0.15


@section.claim(
    "At the same rate half the start takes the stall away",
    paper="Xiong et al. 2020, arXiv:2002.04745, do not vary the start; Wang et al. 2022, arXiv:2203.00555, section 3: a smaller start stabilises post-norm",
    measured=lambda found: told(found, MODELS, "post", "post_half", rate=SAME),
)
def start_decides(found):
    """At the rate that suits pre-norm, post-norm needs at least 0.3 bits a character less where its blocks start at half the weights."""
    return of(found, "post_half", SAME) <= of(found, "post", SAME) - 0.3


@section.claim(
    "From half the start, does post-norm learn as well as pre-norm?",
    paper="Xiong et al. 2020, arXiv:2002.04745, section 3: pre-norm trains well without warm-up, post-norm does not",
    measured=lambda found: told(found, MODELS, "pre_half", "post_half"),
)
def as_well(found):
    """Without a warm-up and each at its own rate, at most 0.1 bits a character more than pre-norm."""
    return of(found, "post_half") <= of(found, "pre_half") + 0.1


@section.claim(
    "At a rate of its own, does post-norm stay behind from a full start?",
    paper="Xiong et al. 2020, arXiv:2002.04745, section 3: without warm-up post-norm trains badly; rate and warm-up have to be tuned",
    measured=lambda found: told(found, MODELS, "pre", "post", "post_warmed"),
)
def own_rate(found):
    """Each at its own rate, post-norm without a warm-up needs at least 0.2 bits a character more than pre-norm."""
    return of(found, "post") >= of(found, "pre") + 0.2


@section.claim(
    "At the same rate and from the same full start DeepNorm's scaled stream learns where post-norm stalls",
    paper="Wang et al. 2022, arXiv:2203.00555, abstract: the good performance of post-norm and the stable training of pre-norm",
    measured=lambda found: f"{told(found, MODELS, 'post', 'deep', rate=SAME)}; {told(found, MODELS, 'post', 'deep')}",
)
def scaled_stream(found):
    """At the rate that suits pre-norm at least 0.3 bits a character less than post-norm."""
    return of(found, "deep", SAME) <= of(found, "post", SAME) - 0.3


@section.claim(
    "Where both start small, is DeepNorm better than post-norm?",
    paper="Wang et al. 2022, arXiv:2203.00555, abstract: the good performance of post-norm and the stable training of pre-norm",
    measured=lambda found: told(found, MODELS, "post_half", "deep_half"),
)
def both_small(found):
    """At half the weights and each at its own rate, at least 0.05 bits a character less than post-norm."""
    return of(found, "deep_half") <= of(found, "post_half") - 0.05


@section.claim(
    "Does a norm speed up learning from a full start?",
    paper="Ba, Kiros and Hinton 2016, arXiv:1607.06450, abstract: layer norm substantially reduces training time",
    measured=lambda found: told(found, MODELS, "pre", "none"),
)
def norm_helps(found):
    """After as many steps, each at its own rate, pre-norm needs at least 0.1 bits a character less than no norm."""
    return of(found, "pre") <= of(found, "none") - 0.1


@section.report
def report(found):
    pairs, letters, rows = counted_pairs(corpus()), counted(corpus().train_text, corpus().validation_text)["unigram"], []
    for name, (placement, start, warmup, deleted) in MODELS.items():
        cells = [placement + ", attention deleted" * deleted, f"{start:g}", round(warmup * STEPS), *size_and_time(found, name, OWN)]
        same = mean_and_spread(of(found, name, SAME)) if name in ALIKE else None
        rows.append([*cells, same, mean_and_spread(of(found, name)), section.rates[name]])
    rows += [[f"counted {what}", *[None] * 5, f"{bits:.2f}", None] for what, bits in (("pairs of characters", pairs), ("characters", letters))]
    columns = ["placement", "start", "warm-up steps", "parameters", "processor seconds", f"bits at {section.rates['pre']:g}", "bits at its own rate"]
    section.table("start", [*columns, "its rate"], rows)
    section.values("start", {name: np.mean(of(found, name)) for name in MODELS})
    section.values("start.same", {name: np.mean(of(found, name, SAME)) for name in ALIKE})
    section.values("start", {"layers": placements.LAYERS, "steps": STEPS, "pairs": pairs, "letters": letters, "rate": section.rates["pre"]})


@section.figure("start", size=(6.4, 3.4))
def picture(ax, found):
    curves = {str(MODELS[name]): found["training"][name] for name in ALIKE}
    lines(ax, curves, xlabel="step", ylabel="bits a character, training", ylim=(3, 6.5))
    level(ax, counted_pairs(corpus()), "counted pairs")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


if __name__ == "__main__":
    section.main()
