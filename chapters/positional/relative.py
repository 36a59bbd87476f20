"""Does the score of a query and a key change when both are moved along the text together?

Su et al. 2021, arXiv:2104.09864, eq. 16: with RoPE the inner product is a function of q, k and their relative position. Rows
that are added to q and k, sinusoids or learned ones, leave products of content with position in the score.
"""

# %%
import numpy as np
from matplotlib.patches import Circle, Wedge

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


@section.figure("rope_turns", size=(4.8, 4), nrows=2, sharex=True, gridspec_kw={"height_ratios": (1, 4)})
def turns(axes, found):
    columns, query, key = np.arange(7), np.array([1.0, 0.25]), np.array([0.75, -0.6])
    (meet, clocks), angles = axes, {}
    for x, colour, later in ((query, "C0", 1), (key, "C1", 0)):                  # the key at p, the query right after it
        turned, _ = rope(np.tile(x, (len(columns), 1)), positions=columns + later)
        angles[colour] = np.degrees(np.arctan2(turned[:, 1], turned[:, 0]))
        hands(meet, columns, 0, turned, colour)
    for p, start, stop in zip(columns, angles["C1"], angles["C0"], strict=True):
        meet.add_patch(Wedge((p, 0), 0.24, start, stop, color="#000000", alpha=0.25, linewidth=0))
    pairs, _ = rope(np.tile([1.0] * 4 + [0.0] * 4, (len(columns), 1)), positions=columns, base=100.0)
    for m in range(4):
        hands(clocks, columns, -m, pairs[:, [m, m + 4]], "C2")
    for ax, rows in ((meet, 1), (clocks, 4)):
        ax.set(aspect="equal", xlim=(-0.5, 6.5), ylim=(0.5 - rows, 0.5), xticks=columns)
        ax.tick_params(length=0)
        ax.grid(False)
        ax.spines[:].set_visible(False)
    meet.set(title="query and key move along the text together", yticks=[0.22, -0.22])
    meet.set_yticklabels(["query", "key"])
    for label, colour in zip(meet.get_yticklabels(), ("C0", "C1"), strict=True):
        label.set_color(colour)
    clocks.set(title="four pairs of one vector, from fast to slow", xlabel="position", yticks=[0, -1, -2, -3])
    clocks.set_yticklabels(["ω₀ = 1", "ω₁ = 0.32", "ω₂ = 0.1", "ω₃ = 0.03"])


def hands(ax, columns, row, tips, colour):
    """A row of clocks, a column each, and in each an arrow."""
    for p in columns:
        ax.add_patch(Circle((p, row), 0.46, facecolor="none", edgecolor="#808080", linewidth=0.5))
    ax.quiver(
        columns, np.full(len(columns), row), *(0.44 * tips.T), color=colour, angles="xy", scale_units="xy", scale=1, units="xy", width=0.05,
        headwidth=4, headlength=4, headaxislength=3.5,
    )  # fmt: skip


if __name__ == "__main__":
    section.main()
