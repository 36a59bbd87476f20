"""Which heads can go, and does the slope of the loss know?

Michel, Levy and Neubig 2019, arXiv:1905.10650: many heads can be taken out of a trained model; which ones is told by how steeply the loss depends
on a gate at each. A reader with two layers of four heads is small enough to try all choices: 28 ways to lose two heads, 68 to lose four and keep
one in each layer. So every score has an exact rank among all choices, and taking heads out by lot an exact mean. Then the smaller model, really
smaller, learns on for a while, beside the whole one that does as well. Each seed has a language and a reader of its own.
"""

# %%
from functools import partial
from itertools import combinations

import numpy as np

from minitransformers.attention.multi_head_attention import multi_head_attention
from minitransformers.compression.head_pruning import heads_by_width, without_heads
from minitransformers.reporting import Section, dots, mean_and_spread
from minitransformers.reporting import adaptation as at
from minitransformers.reporting.compression.importance import LAYERED, LEFT_OUT, REVERSE, SIZE, SLOPE, SUMMED, head_scores

section = Section(__file__, __doc__, kind="trained")
BASE_STEPS, RECOVERY, RATE, SEEN = 900, 100, 1e-3, 64
DROPPED = (2, 4)
SCORES = (SLOPE, LAYERED, SUMMED, SIZE, LEFT_OUT, REVERSE)
KEYS = {"slope": SLOPE, "layered": LAYERED, "summed": SUMMED, "size": SIZE, "out": LEFT_OUT, "reverse": REVERSE}
WHOLE, BEST = "nothing taken out", "the best of all choices"


# %% All choices, and the model after one
def choices(number):
    """Sets of (layer, head) to take out, of which each layer keeps one."""
    all_heads = list(np.ndindex(at.LAYERS, at.HEADS))
    return [chosen for chosen in combinations(all_heads, number) if all(sum(place[0] == layer for place in chosen) < at.HEADS for layer in range(at.LAYERS))]


def chosen_by(scores, number):
    """Of all choices the one whose heads have the least sum of scores."""
    return min(choices(number), key=lambda chosen: sum(scores[place] for place in chosen))


def without(model, chosen):
    blocks = []
    for layer, block in enumerate(model.blocks):
        kept = [head for head in range(at.HEADS) if (layer, head) not in chosen]
        blocks.append(block._replace(attention=without_heads(block.attention, kept=kept, num_heads=at.HEADS)))
    return model._replace(blocks=blocks)


smaller = partial(at.reader, attention=partial(heads_by_width, attention=multi_head_attention, d_head=at.WIDTH // at.HEADS))


@section.experiment
def experiment(rng):
    language, model = at.own_reader(rng, steps=None if section.quick else BASE_STEPS)
    scores = head_scores(model, *at.draw(language, rng, count=SEEN))
    yield WHOLE, 0, {"lost": at.left(model, at.reader, language)}
    for number in DROPPED[:1] if section.quick else DROPPED:
        lost = {chosen: at.left(without(model, chosen), smaller, language, count=128) for chosen in choices(number)}
        every = np.array(list(lost.values()))
        yield "all choices", number, {"mean": every.mean(), "best": every.min(), "worst": every.max()}
        for name in SCORES:
            own = lost[chosen_by(scores[name], number)]
            yield name, number, {"lost": own, "rank": (every < own).mean()}
    picks = {name: chosen_by(scores[name], number) for name in (SLOPE, SIZE, REVERSE)}
    for name, chosen in {WHOLE: (), **picks, BEST: min(lost, key=lost.get)}.items():
        start = without(model, chosen)
        recovered = at.fine_tuned(start, smaller, language, rng, steps=5 if section.quick else RECOVERY, peak=RATE)
        yield name, "after", {"lost": at.left(recovered, smaller, language)}


# %%
def told(found, number, *names):
    return ", ".join(f"{name} {mean_and_spread(found['lost'][name][number], '.3f')}" for name in names)


@section.claim(
    "Do four heads taken out by slope lose half of what they lose by lot?",
    paper="Michel et al. 2019, arXiv:1905.10650, section 4.2: pruning by this score keeps more than pruning by lot",
    measured=lambda found: f"of 68 choices the mean loses {mean_and_spread(found['mean']['all choices'][4], '.3f')}, the best {mean_and_spread(found['best']['all choices'][4], '.3f')}; "
    f"{told(found, 4, SLOPE)}, of rank {mean_and_spread(100 * found['rank'][SLOPE][4], '.0f')} %",
)
def slopes_know(found):
    """Four of eight heads taken out by slope lose at most half of the mean of all choices, and are among the best tenth of them."""
    return found["lost"][SLOPE][4] <= 0.5 * found["mean"]["all choices"][4] and found["rank"][SLOPE][4] <= 0.1


@section.claim(
    "Does a norm for each layer help, as published?",
    paper="Michel et al. 2019, arXiv:1905.10650, section 4.1, after Molchanov et al. 2017: scores are divided by the norm of their layer",
    measured=lambda found: "; ".join(f"{number} taken out: {told(found, number, SLOPE, LAYERED)}" for number in DROPPED),
)
def norm_helps(found):
    """With it four heads taken out lose no more than without."""
    return found["lost"][LAYERED][4] <= found["lost"][SLOPE][4]


@section.claim(
    "Do slopes know more than the size of the weights?",
    paper="Michel et al. 2019, arXiv:1905.10650, compare with the loss without each head only",
    measured=lambda found: "; ".join(f"{number} taken out: {told(found, number, SLOPE, SIZE, LEFT_OUT)}" for number in DROPPED),
)
def more_than_size(found):
    """Four heads taken out by slope lose at most 0.9 of what four by size lose."""
    return found["lost"][SLOPE][4] <= 0.9 * found["lost"][SIZE][4]


@section.claim(
    "Some updates later, are the right four heads hardly missed, and the wrong ones five times as much?",
    paper="no paper at this size; Voita et al. 2019, arXiv:1905.09418, train on while heads go",
    measured=lambda found: told(found, "after", WHOLE, SLOPE, SIZE, BEST, REVERSE),
)
def recovers(found):
    """Four heads fewer by slope end below twice the whole model after as many updates, those by the reversed slope above five times."""
    after = {name: of["after"] for name, of in found["lost"].items() if "after" in of}
    return after[SLOPE] <= 2 * after[WHOLE] and after[REVERSE] >= 5 * after[WHOLE]


@section.report
def report(found):
    rows = [[WHOLE, mean_and_spread(found["lost"][WHOLE][0], ".3f"), "", mean_and_spread(found["lost"][WHOLE]["after"], ".3f")]]
    rows += [[f"{kind} of all choices", *(mean_and_spread(found[kind]["all choices"][n], ".3f") if n in found[kind]["all choices"] else "" for n in DROPPED), ""] for kind in ("mean", "best", "worst")]
    for name in SCORES:
        of = found["lost"][name]
        rows.append([name, *(mean_and_spread(of[n], ".3f") if n in of else "" for n in DROPPED), mean_and_spread(of["after"], ".3f") if "after" in of else ""])
    section.table("heads", ["nats too many, heads taken out by", "2 of 8", "4 of 8", f"4 of 8, {RECOVERY} updates later"], rows)
    for key, name in KEYS.items():
        section.values(f"heads.{key}", {f"n{n}": of.mean() for n, of in found["lost"][name].items() if n != "after"})
    section.values("heads", {"recovery": RECOVERY, "base_steps": BASE_STEPS, "whole": found["lost"][WHOLE][0].mean()})


@section.figure("heads", size=(6, 3))
def picture(ax, found):
    last = max(found["mean"]["all choices"])
    dots(ax, {name: found["lost"][name][last] for name in SCORES}, at=float(np.mean(found["mean"]["all choices"][last])), xlabel=f"nats too many without {last} heads")


if __name__ == "__main__":
    section.main()
