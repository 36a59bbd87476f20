"""What is a teacher worth, by how much of it is seen?

Hinton et al. 2015, arXiv:1503.02531: a teacher's probabilities say more an example than its answers. Jiao et al. 2019, arXiv:1909.10351: its hidden
states say more still. Kim and Rush 2016, arXiv:1606.07947: where only its text is seen, learn from that. A student of the teacher's size starts at
random and reads the same 96 texts of a language of 16 symbols, over and over; what it loses beside the language itself is exact. The teacher knows
the language nearly, and shows text, answers, its three likeliest symbols, all probabilities, or what it thinks in between.
"""

# %%
import numpy as np

from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.linear import init_linear
from minitransformers.reporting import Section, dots, mean_and_spread, tried
from minitransformers.reporting import adaptation as at
from minitransformers.reporting.compression.lessons import (
    DRAWN,
    HARD,
    RENORMALISED,
    SOFT,
    SOURCES,
    STATES,
    TEXT,
    TOP,
    WARM,
    Taught,
    shown_by,
)
from minitransformers.training.fit import fit

section = Section(__file__, __doc__, kind="trained")
TEXTS, HELD, STEPS, EVERY = 96, 64, 200, 25
KEYS = {"hard": HARD, "text": TEXT, "drawn": DRAWN, "top": TOP, "renormalised": RENORMALISED, "soft": SOFT, "warm": WARM, "states": STATES}


# %%
def taught(source, rng, *, rate):
    """Nats too many at the end, and where 64 texts that nobody learns from were said best on the way."""
    teacher = at.load_reader()
    shown, (held, after) = shown_by(teacher, source, rng, texts=TEXTS), at.draw(at.language(), rng, count=HELD)
    on_the_way = {}

    def watch(step, _, params):
        if step % EVERY == 0 or section.quick:
            logits, _ = at.reader(params[0], held)
            on_the_way[float(cross_entropy(logits, targets=after)[0])] = at.left(params[0], at.reader, at.language())

    params = at.init_reader(rng), init_linear(rng, at.WIDTH, at.WIDTH)
    params = fit(params, Taught(source, shown), steps=5 if section.quick else STEPS, peak=rate, rng=rng, watch=watch)
    return at.left(params[0], at.reader, at.language()), on_the_way[min(on_the_way)]


@section.tuning
def tuning(rng):
    yield from tried(lambda source, rng, rate: taught(source, rng, rate=rate)[1], SOURCES, (3e-3, 1e-2) if section.quick else (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1), rng)


@section.experiment
def experiment(rng):
    yield "the teacher", 0, {"end": at.left(at.load_reader(), at.reader, at.language())}
    for source in SOURCES:
        end, best = taught(source, rng, rate=section.rates[source])
        yield source, 0, {"end": end, "best": best}


# %%
def lost(found, source, measure="best"):
    return found[measure][source][0]


def told(found, *sources):
    return "; ".join(f"{source} {mean_and_spread(lost(found, source), '.3f')}" for source in sources)


@section.claim(
    "Probabilities teach more than texts", paper="Hinton et al. 2015, arXiv:1503.02531, section 2: more information an example",
    measured=lambda found: told(found, HARD, SOFT),
)  # fmt: skip
def soft_is_better(found):
    """With all probabilities the student loses at most 0.3 of what it loses with the texts, each where it was best."""
    return lost(found, SOFT) <= 0.3 * lost(found, HARD)


@section.claim(
    "The less of the teacher is seen, the less is learned", paper="no paper compares them all; each reports what it hides",
    measured=lambda found: told(found, SOFT, DRAWN, TOP, RENORMALISED),
)  # fmt: skip
def less_is_less(found):
    """All probabilities lose at most half of what drawn answers lose, and of what the three likeliest and the rest lose."""
    return lost(found, SOFT) <= 0.5 * min(lost(found, DRAWN), lost(found, TOP))


@section.claim(
    "The rest belongs to the three likeliest", paper="no paper: three that are renormalised teach that nothing else can follow",
    measured=lambda found: told(found, TOP, RENORMALISED),
)  # fmt: skip
def tail_matters(found):
    """With one class for the rest the student loses at most 0.9 of what it loses without."""
    return lost(found, TOP) <= 0.9 * lost(found, RENORMALISED)


@section.claim(
    "Do hidden states teach more than probabilities alone?", paper="Jiao et al. 2019, arXiv:1909.10351, table 5: without them the student is worse",
    measured=lambda found: told(found, SOFT, WARM, STATES),
)  # fmt: skip
def states_help(found):
    """With them the student loses at most 0.8 of what it loses with probabilities at temperature 1."""
    return lost(found, STATES) <= 0.8 * lost(found, SOFT)


@section.claim(
    "Do texts that the teacher wrote teach more than as many of the language's own?",
    paper="Kim and Rush 2016, arXiv:1606.07947, section 3.2: sequences of the teacher are easier to learn",
    measured=lambda found: told(found, HARD, TEXT),
)
def own_text(found):
    """The student loses at most 0.95 of what it loses with the language's own."""
    return lost(found, TEXT) <= 0.95 * lost(found, HARD)


@section.report
def report(found):
    rows = [[source, mean_and_spread(lost(found, source, "end"), ".3f"), mean_and_spread(lost(found, source), ".3f"), f"{section.rates[source]:g}"] for source in SOURCES]
    section.table("teachers", ["what is learned from", "nats too many", "where it was best", "learning rate"], rows)
    for key, source in KEYS.items():
        section.values(f"teachers.{key}", {"end": lost(found, source, "end").mean(), "best": lost(found, source).mean()})
    section.values("teachers", {"steps": STEPS, "texts": TEXTS, "teacher": found["end"]["the teacher"][0].mean()})


@section.figure("teachers", size=(6, 3.4))
def picture(ax, found):
    dots(ax, {source: lost(found, source) for source in SOURCES}, at=float(np.mean(found["end"]["the teacher"][0])), xlabel="nats too many, where it was best")


if __name__ == "__main__":
    section.main()
