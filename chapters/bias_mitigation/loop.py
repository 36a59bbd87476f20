"""Does a lean grow when models learn from what models wrote?

Shumailov et al. 2023, arXiv:2305.17493: each generation is trained on the text of the last. Zhao et al. 2017, arXiv:1707.09457:
models make a lean of their data larger. A model that only counts writes 2,000 sentences of an occupation, a pronoun and one of 30
words; five generations, each trained on those of the last alone. What else is done: a temperature, a cut of the unlikely, a half of
real sentences in each round, or the pronouns of each round swapped in a copy (Lu et al. 2018, arXiv:1807.11714). 20 loops a seed.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.bias_mitigation.amplification_loop import count_model, next_generation
from minitransformers.bias_mitigation.bootstrap import bootstrap_interval
from minitransformers.bias_mitigation.counterfactual_augmentation import counterfactual, swap_map
from minitransformers.models.decoding import next_token_probabilities
from minitransformers.reporting import Section, lines, mean_and_spread

section = Section(__file__, __doc__, kind="trained")
SENTENCES, ROUNDS, LOOPS, JOBS, WORDS = 2000, 5, 20, 10, 30  # fewer than 20 loops make no interval
SIZES, PRONOUNS = (JOBS, 2, WORDS), ("she", "he")
SHARES, ZIPF = np.linspace(0.2, 0.8, JOBS), 1 / np.arange(1, WORDS + 1)
PARTNER = np.array([PRONOUNS.index(counterfactual([word], swaps=swap_map([PRONOUNS]))[0]) for word in PRONOUNS])
COUNTED, COOL, COLD, CUT, SHORT = "as counted", "temperature 0.8", "temperature 0.7", "top-p 0.9", "top-p 0.7"
HALF, SWAPPED = "temperature 0.8, half real", "temperature 0.8, swapped copies"


def real(rng, sentences):
    job = rng.integers(JOBS, size=sentences)
    pronoun = (rng.random(sentences) < SHARES[job]).astype(int)
    return np.stack([job, pronoun, rng.choice(WORDS, p=ZIPF / ZIPF.sum(), size=sentences)], axis=1)


def with_half_real(written, first):
    return np.concatenate([first[: len(first) // 2], written[len(first) // 2 :]])


def with_copies(written, first):
    """Every sentence and its counterfactual; the next generation is as large as the first, for the prompts stand twice."""
    own = written[: len(first)]
    return np.concatenate([own, np.stack([own[:, 0], PARTNER[own[:, 1]], own[:, 2]], axis=1)])


def alone(written, first):
    return written


WAYS = {
    COUNTED: ({}, alone), COOL: ({"temperature": 0.8}, alone), COLD: ({"temperature": 0.7}, alone), CUT: ({"top_p": 0.9}, alone),
    SHORT: ({"top_p": 0.7}, alone),
    HALF: ({"temperature": 0.8}, with_half_real), SWAPPED: ({"temperature": 0.8}, with_copies),
}  # fmt: skip


# %% What is measured of the model that has counted a generation
def measured(sentences, asked):
    pronoun, word = count_model(sentences, sizes=SIZES)
    spoken = np.exp(word).mean(0)                            # the words after both pronouns, alike
    return {
        "gap": np.abs(pronoun[:, 0] - pronoun[:, 1]).mean(),
        "rarer": np.exp(pronoun).min(-1).mean(),
        "words": np.exp(-(spoken * np.log(spoken)).sum()),
        "nats": -(pronoun[asked[:, 0], asked[:, 1]] + word[asked[:, 1], asked[:, 2]]).mean(),
    }


def looped(name, rng):
    """What is measured of each generation, from the first, which has read real sentences."""
    settings, kept = WAYS[name]
    first, asked = (real(rng, 200 if section.quick else SENTENCES) for _ in range(2))
    sentences = kept(first, first) if name == SWAPPED else first
    yield measured(first, asked)
    for _ in range(ROUNDS):
        written = next_generation(sentences, sizes=SIZES, rng=rng, probabilities=partial(next_token_probabilities, **settings))
        sentences = kept(written, first)
        yield measured(sentences, asked)


@section.experiment
def experiment(rng):
    for name in WAYS:
        loops = [list(looped(name, rng)) for _ in range(LOOPS)]
        for step in range(ROUNDS + 1):
            found = {measure: np.array([loop[step][measure] for loop in loops]) for measure in loops[0][step]}
            interval = bootstrap_interval(found["gap"], statistic=np.mean, rng=rng, resamples=100 if section.quick else 2000)
            start = np.array([loop[0]["gap"] for loop in loops])
            ends = {"low": interval.low, "high": interval.high}
            ends |= {"least growth": (found["gap"] / start).min(), "drift": np.abs(found["gap"] - start).max()}
            yield name, step, {measure: values.mean() for measure, values in found.items()} | ends


# %%
def told(found, *names, measure="gap", form=".2f"):
    both = {name: [mean_and_spread(found[measure][name][step], form) for step in (0, ROUNDS)] for name in names}
    return "; ".join(f"{name}: {' to '.join(ends)}" for name, ends in both.items())


@section.claim(
    "Written at a temperature below 1, a lean at least doubles in five generations",
    paper="Zhao et al. 2017, arXiv:1707.09457: trained models make a lean of their data larger; there by structured prediction, not by a loop",
    measured=lambda found: told(found, COOL, COLD) + f"; the least of all loops {found['least growth'][COOL][ROUNDS].min():.2f} times",
)
def sharpened(found):
    """At temperature 0.8 the gap of the last generation is at least twice that of the first, in each of the loops."""
    return found["least growth"][COOL][ROUNDS] >= 2


@section.claim(
    "Written as counted, a lean drifts and does not grow",
    paper="Shumailov et al. 2023, arXiv:2305.17493, section 3: errors of sampling add up; no sharpening there",
    measured=lambda found: told(found, COUNTED) + f"; the largest drift of all loops {found['drift'][COUNTED][ROUNDS].max():.2f}",
)
def drifts(found):
    """The gap of the last generation is within 0.3 of that of the first in each loop, and within 0.1 in the mean over loops."""
    gap = found["gap"][COUNTED]
    return found["drift"][COUNTED][ROUNDS] <= 0.3 and abs(gap[ROUNDS] - gap[0]) <= 0.1


@section.claim(
    "A cut of the unlikely amplifies only what it reaches",
    paper="no paper: top-p 0.9 keeps a share above 0.1, top-p 0.7 takes any below 0.3",
    measured=lambda found: told(found, CUT, SHORT),
)
def cuts(found):
    """After top-p 0.9 the mean gap is within 0.3 of the start's, after top-p 0.7 at least twice it."""
    gap = found["gap"]
    return abs(gap[CUT][ROUNDS] - gap[CUT][0]) <= 0.3 and gap[SHORT][ROUNDS] >= 2 * gap[SHORT][0]


@section.claim(
    "Half of real sentences in each round hold a lean back",
    paper="Shumailov et al. 2023, arXiv:2305.17493, section 5: with a tenth of the original data collapse is slower",
    measured=lambda found: told(found, COOL, HALF),
)
def held_back(found):
    """At the same temperature the last gap is below 0.6 of the one without real sentences."""
    return found["gap"][HALF][ROUNDS] < 0.6 * found["gap"][COOL][ROUNDS]


@section.claim(
    "Swapped copies in each round mend the gap that is measured, and not the words that are lost",
    paper="Lu et al. 2018, arXiv:1807.11714, for one round of training; the gap is 0 by construction",
    measured=lambda found: told(found, SWAPPED) + "; words " + told(found, COOL, SWAPPED, HALF, measure="words", form=".1f"),
)
def mends_the_measure(found):
    """The last gap is below 0.01, and of the words less than a quarter of what the first generation has, in effective number."""
    words = found["words"][SWAPPED]
    return found["gap"][SWAPPED][ROUNDS] < 0.01 and words[ROUNDS] < words[0] / 4


@section.report
def report(found):
    forms = (("rarer", ".3f"), ("words", ".1f"), ("nats", ".3f"))

    def beside(name, step):
        return [mean_and_spread(found[measure][name][step], form) for measure, form in forms]

    rows = []
    for name in WAYS:
        gaps = [mean_and_spread(found["gap"][name][step], ".2f") for step in (0, 1, 3, ROUNDS)]
        ends = "{:.2f} to {:.2f}".format(*(np.mean(found[end][name][ROUNDS]) for end in ("low", "high")))
        rows.append([name, *gaps, ends, *beside(name, ROUNDS)])
    rows.append(["first generation", mean_and_spread(found["gap"][COUNTED][0]), *[""] * 4, *beside(COUNTED, 0)])
    rows.append(["uniform guess", *[""] * 7, f"{np.log(2 * WORDS):.3f}"])
    columns = ["written", "gap, first", "after 1", "after 3", "after 5", "middle 95 %", "rarer pronoun", "words", "nats of real text"]
    section.table("loop", columns, rows)
    keys = {"counted": COUNTED, "cool": COOL, "cold": COLD, "cut": CUT, "short": SHORT, "half": HALF, "swapped": SWAPPED}
    for key, name in keys.items():
        numbers = {measure: found[measure][name][ROUNDS].mean() for measure in ("gap", "rarer", "words", "nats")}
        section.values(f"loop.{key}", numbers)
    section.values("loop.start", {measure: found[measure][COUNTED][0].mean() for measure in ("gap", "rarer", "words", "nats")})
    section.values("loop", {"loops": LOOPS, "sentences": SENTENCES})


@section.figure("loop", size=(8, 3.2), ncols=2)
def picture(axes, found):
    lines(axes[0], found["gap"], xlabel="generation", ylabel="mean |log p / p'| of the pronouns")
    lines(axes[1], found["words"], xlabel="generation", ylabel="effective number of words", ylim=(0, None))
    axes[0].legend(fontsize=7)


if __name__ == "__main__":
    section.main()
