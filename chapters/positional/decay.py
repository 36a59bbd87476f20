"""Do RoPE's scores fade with the distance?

Su et al. 2021, arXiv:2104.09864, section 3.3: the inner product decays as the relative distance grows. For a key that equals
the query the score is a weighted mean of cos(distance * frequency) over the pairs. For a key that has nothing to do with the
query it is a sum of random signs, and a rotation changes nothing about that.
"""

# %%
import numpy as np

from minitransformers.positional.rope import rope
from minitransformers.reporting import Section, along, lines, ticks_at

section = Section(__file__, __doc__, kind="arithmetic")
WIDTH, SHOWN = 64, (0, 1, 4, 16, 64, 256, 1024)
BASES = {"equal, base 10,000": 10_000.0, "equal, base 500,000": 500_000.0}  # Llama 3 has the second
UNRELATED = "unrelated, base 10,000"


@section.experiment
def experiment(rng):
    everywhere = np.arange(SHOWN[-1] + 1)
    query = rng.normal(size=(100, 1, WIDTH)) / WIDTH**0.5    # the query stands at 0, where nothing is turned
    for name, base in BASES.items():
        score = np.vecdot(query, turned(query, everywhere, base)).mean(0)
        for k in SHOWN:
            yield name, k, {"score": score[k]}
        yield name, "rises", {"share": (np.diff(score) > 0).mean()}
    query, key = rng.normal(size=(2, 10_000, 1, WIDTH)) / WIDTH**0.5
    size = np.sqrt(np.square(np.vecdot(query, turned(key, np.array(SHOWN), 10_000.0))).mean(0))
    for k, root_mean_square in zip(SHOWN, size, strict=True):
        yield UNRELATED, k, {"score": root_mean_square}


def turned(key, distances, base):
    """Every key at all the distances."""
    return rope(np.broadcast_to(key, (len(key), len(distances), WIDTH)), positions=distances, base=base)[0]


# %%
@section.claim(
    "RoPE's scores fade with distance, where query and key are alike",
    paper="Su et al. 2021, arXiv:2104.09864, section 3.3: the inner product decays as the relative distance grows",
    measured=lambda found: f"{', '.join(f'{s.mean():.2f}' for s in found['score']['equal, base 10,000'].values())} at {', '.join(map(str, SHOWN))}",
)
def fades(found):
    """Equal queries and keys: the mean score falls over each factor of four in distance, to less than a third at 1,024."""
    scores = along(found["score"]["equal, base 10,000"])
    return np.all(np.diff(scores) < 0) and scores[-1] < scores[0] / 3


@section.claim(
    "Is it lower from each distance to the next?",
    paper="Su et al. 2021, arXiv:2104.09864, section 3.3: it decays; what is shown is that a bound does",
    measured=lambda found: f"it rises in {rises(found):.0%} of all steps from one distance to the next",
)
def each_step(found):
    """Up to distance 1,024 it rises in fewer than one of ten steps from one distance to the next."""
    return found["share"]["equal, base 10,000"]["rises"] < 0.1


@section.claim(
    "The score of an unrelated key does not fade",
    paper="Su et al. 2021, arXiv:2104.09864, section 3.3 does not tell the two apart",
    measured=lambda found: f"{', '.join(f'{s.mean():.3f}' for s in found['score'][UNRELATED].values())}",
)
def stays(found):
    """Independent queries and keys: the score's root mean square is the same, within a tenth, at all distances."""
    sizes = along(found["score"][UNRELATED])
    return np.ptp(sizes) < 0.1 * sizes.mean()


def rises(found):
    return found["share"]["equal, base 10,000"]["rises"].mean()


@section.report
def report(found):
    section.table("decay", ["distance", *found["score"]], [[k, *(float(of[k].mean()) for of in found["score"].values())] for k in SHOWN])
    section.value("rope.rises", rises(found))


@section.figure("decay")
def picture(ax, found):
    curves = {name: {k: y for k, y in of.items() if k} for name, of in found["score"].items()}
    lines(ax, curves, xlabel="distance", ylabel="score", xscale="log", ylim=(0, 1.05))
    ticks_at(ax, list(SHOWN[1:]))
    ax.legend()


if __name__ == "__main__":
    section.main()
