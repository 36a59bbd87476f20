"""A sentence matters because of the one before it: who can know?

Xu et al. 2020, arXiv:1910.14142 (DiscoBERT), and Wang et al. 2020, arXiv:2004.12393: sentences are linked, by what they share and by where they
stand, and a graph network over the links chooses better than one that reads each alone. A text has twelve sentences of noise, and one of them a cue.
The sentence behind it is to be named. Each reader sees its sentences as vectors: alone, along edges to neighbours, along edges that say whether the
neighbour comes before or after, or all at once, as a hierarchical Transformer does.
"""

# %%
import numpy as np

from minitransformers.reporting import Section, dots, mean_and_spread, nats, tried
from minitransformers.reporting.long_context.neighbours import (
    ALONE,
    CONTEXTS,
    EDGES,
    KINDS,
    NO_PLACES,
    PLACES,
    draw_neighbours,
    init_reader,
    reader_with,
)
from minitransformers.training.fit import fit
from minitransformers.training.task import Labelled, accuracy
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
STEPS, ASKED = 300, 2000
KEYS = {"alone": ALONE, "edges": EDGES, "kinds": KINDS, "places": PLACES, "without": NO_PLACES}
ALONE_AT_BEST, EDGES_AT_BEST = 1 / 11, 6 / 11                # a guess among eleven; a guess between two but at the text's start


def learned_reader(name, rng, *, rate):
    model = reader_with(name)
    params = fit(init_reader(name, rng), Labelled(model, draw_neighbours), steps=5 if section.quick else STEPS, peak=rate, rng=rng)
    return params, model


@section.tuning
def tuning(rng):
    def of_two_starts(name, rng, rate):
        """Some learn from one start and not from another: what is chosen has to do so from both."""
        found = []
        for _ in range(1 if section.quick else 2):
            params, model = learned_reader(name, rng, rate=rate)
            ids, answers = draw_neighbours(rng, texts=500)
            found.append(nats(model(params, ids)[0], answers))
        return np.mean(found)

    yield from tried(of_two_starts, CONTEXTS, (1e-2,) if section.quick else (1e-3, 3e-3, 1e-2, 3e-2), rng)


@section.experiment
def experiment(rng):
    hold_blas()
    for name in CONTEXTS:
        params, model = learned_reader(name, rng, rate=section.rates[name])
        ids, answers = draw_neighbours(rng, texts=100 if section.quick else ASKED)
        yield name, 0, {"right": accuracy(model(params, ids)[0], answers)}


# %%
def told(found, *names):
    return ", ".join(f"{name} {mean_and_spread(found['right'][name][0], '.3f')}" for name in names)


@section.claim(
    "Alone no sentence knows", paper="Wang et al. 2020, arXiv:2004.12393, section 1: relations between sentences decide what is salient",
    measured=lambda found: f"{told(found, ALONE)}; a guess {ALONE_AT_BEST:.3f}",
)  # fmt: skip
def alone_guesses(found):
    """Right in at most 0.13 of cases."""
    return found["right"][ALONE][0] <= 0.13


@section.claim(
    "Edges without kinds cannot tell before from after", paper="no paper: one weight for both neighbours, and a sum over them",
    measured=lambda found: f"{told(found, EDGES)}; at best {EDGES_AT_BEST:.3f}",
)  # fmt: skip
def edges_halve(found):
    """Within 0.05 of six elevenths, the best that a guess between the two neighbours of the cue can do."""
    return abs(found["right"][EDGES][0] - EDGES_AT_BEST) <= 0.05


@section.claim(
    "Edges of two kinds solve it", paper="Xu et al. 2020, arXiv:1910.14142: discourse relations are kinds of edges",
    measured=lambda found: told(found, KINDS),
)  # fmt: skip
def kinds_solve(found):
    """Right in at least 0.98 of cases."""
    return found["right"][KINDS][0] >= 0.98


@section.claim(
    "Does a Transformer over sentences solve it that knows their places?", paper="Wu et al. 2021, arXiv:2106.01040: sentences as the words of a document",
    measured=lambda found: told(found, PLACES, NO_PLACES),
)  # fmt: skip
def places_solve(found):
    """Right in at least 0.98 of cases; without places in at most 0.13."""
    return found["right"][PLACES][0] >= 0.98 and found["right"][NO_PLACES][0] <= 0.13


@section.report
def report(found):
    rows = [[name, mean_and_spread(found["right"][name][0], ".3f"), f"{section.rates[name]:g}"] for name in CONTEXTS]
    section.table("graph", ["the sentence behind the cue, of twelve", "right", "learning rate"], rows)
    section.values("graph", {key: found["right"][name][0].mean() for key, name in KEYS.items()})
    section.values("graph.best", {"alone": ALONE_AT_BEST, "edges": EDGES_AT_BEST})


@section.figure("graph", size=(5.5, 2.6))
def picture(ax, found):
    dots(ax, {name: found["right"][name][0] for name in CONTEXTS}, at=ALONE_AT_BEST, xlabel="share of right answers")


if __name__ == "__main__":
    section.main()
