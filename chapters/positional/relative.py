"""Does the score of a query and a key change when both are moved along the text together?

Su et al. 2021, arXiv:2104.09864, eq. 16: with RoPE the inner product is a function of q, k and their relative position. Rows
that are added to q and k, sinusoids or learned ones, leave products of content with position in the score.
"""

# %%
import numpy as np

from minitransformers.positional.learned import init_learned, learned
from minitransformers.positional.rope import rope
from minitransformers.positional.sinusoidal import sinusoidal
from minitransformers.reporting import Section

section = Section(__file__, __doc__, kind="exact")
WIDTH, FAR, DISTANCES = 64, 1000, (0, 1, 10, 100)
PLACES = np.arange(0, FAR, 10)


def schemes(rng):
    table = init_learned(rng, WIDTH, max_positions=FAR + 101, std=1.0, dtype=np.float64)
    return {
        "RoPE": lambda x, p: rope(x, positions=p)[0],
        "sinusoidal": lambda x, p: sinusoidal(x, positions=p)[0],
        "learned": lambda x, p: learned(table, x, positions=p)[0],
    }


def scores(put, query, key, distance):
    """Of one query and one key, the key at each of the places and the query so much later."""
    return np.vecdot(put(np.tile(query, (len(PLACES), 1)), PLACES + distance), put(np.tile(key, (len(PLACES), 1)), PLACES))


@section.experiment
def experiment(rng):
    query, key = rng.normal(size=(2, WIDTH))
    for name, put in schemes(rng).items():
        for k in DISTANCES:
            yield name, k, {"spread": np.ptp(scores(put, query, key, k))}


# %%
@section.claim(
    "RoPE's scores depend on the distance alone",
    paper="Su et al. 2021, arXiv:2104.09864, eq. 16: the inner product is a function of q, k and the relative position",
    measured=lambda found: f"scores differ over {FAR} places by {worst(found, 'RoPE'):.0e}; by {worst(found, 'sinusoidal'):.1f} with "
    f"sinusoids added, by {worst(found, 'learned'):.0f} with random rows added",
)
def rule(found):
    """The same score wherever the pair stands, to float64 rounding (1e-10); with rows that are added it changes by more than 1."""
    return worst(found, "RoPE") < 1e-10 and min(worst(found, "sinusoidal"), worst(found, "learned")) > 1


def worst(found, name):
    return float(np.max(list(found["spread"][name].values())))


@section.report
def report(found):
    rows = [[name, *(0.0 if s[0] < 1e-11 else s[0] for s in of.values())] for name, of in found["spread"].items()]
    section.table("relative", ["spread of the score over places, at distance", *map(str, DISTANCES)], rows)
    section.value("rope.spread", worst(found, "RoPE"))
    section.value("rope.spread_sinusoidal", worst(found, "sinusoidal"))


@section.figure("relative", size=(6.5, 3), ncols=2, sharey=True)
def picture(axes, found):
    rng = np.random.default_rng(section.seed)
    query, key = rng.normal(size=(2, WIDTH))
    put = schemes(rng)
    for ax, name in zip(axes, ("RoPE", "sinusoidal"), strict=True):
        for k in DISTANCES:
            ax.plot(PLACES, scores(put[name], query, key, k), label=f"distance {k}")
        ax.set(title=name, xlabel="position of the key")
    axes[0].set_ylabel("score of one query and one key")
    axes[0].legend(loc="upper left")


if __name__ == "__main__":
    section.main()
