"""How far back does a stack of windows see, and with one recurrence in it?

Ren et al. 2024, arXiv:2406.07522, section 1: a window of attention sees no further than its edge, and layers of them as far as their
edges add up to; the state of a recurrence has no edge. The first token is changed, and nothing else. Where does the output
change? True by construction: no weight is trained, and none could bring back what no layer reads.
"""

# %%
import numpy as np

from minitransformers.hybrids.samba import init_samba, samba
from minitransformers.reporting import Section

section = Section(__file__, __doc__, kind="exact")
WINDOW, LENGTH, WIDTH, HEADS = 8, 128, 16, 2
EDGE = 3 * (WINDOW - 1)                                      # each of three windows sees so many positions before its own
WINDOWS, BELOW, ABOVE, SAMBA, MAMBA = "3 windows", "Mamba below 3 windows", "Mamba above 3 windows", "Samba, 6 layers", "3 Mamba"


# %%
@section.experiment
def experiment(rng):
    layers = init_samba(rng, WIDTH, num_layers=6, num_heads=HEADS, dtype=np.float64)
    recurrences, windows = layers[0::2], layers[1::2]
    stacks = {WINDOWS: windows, BELOW: [recurrences[0], *windows], ABOVE: [*windows, recurrences[0]], SAMBA: layers, MAMBA: recurrences}
    text = rng.normal(size=(LENGTH, WIDTH))
    other = text.copy()
    other[0] += 1.0
    for name, stack in stacks.items():
        before, after = (samba(stack, x, num_heads=HEADS, window=WINDOW)[0] for x in (text, other))
        for distance, change in enumerate(np.linalg.norm(after - before, axis=-1)):
            yield name, distance, {"change": change}


def reached(found, name):
    """The furthest position whose output is not the same to the bit."""
    return max(distance for distance, change in found["change"][name].items() if np.all(change > 0))


@section.claim(
    "A change in the input passes through windows as far as they reach and no further; one recurrence carries it to the end",
    paper="Ren et al. 2024, arXiv:2406.07522, section 1: a window's reach is its size times the depth, a state's has no bound",
    measured=lambda found: ", ".join(f"{name} {reached(found, name)} positions" for name in found["change"]),
)
def edges(found):
    """Three windows of 8: some change at every distance up to 21, and exactly none beyond. With Mamba anywhere in the stack: some change
    at every distance up to 127, the last.
    """
    apart = {name: np.array(list(of.values())) > 0 for name, of in found["change"].items()}
    return np.array_equal(apart.pop(WINDOWS), np.arange(LENGTH) <= EDGE) and all(np.all(everywhere) for everywhere in apart.values())


@section.report
def report(found):
    shown = (1, EDGE, EDGE + 1, LENGTH - 1)
    rows = [[name, reached(found, name), *(float(of[distance][0]) for distance in shown)] for name, of in found["change"].items()]
    section.table("reach", ["stack", "changes how far", "change at 1", *(f"at {distance}" for distance in shown[1:])], rows)
    section.values("reach", {"window": WINDOW, "edge": EDGE})


@section.figure("reach")
def picture(ax, found):
    for name, of in found["change"].items():
        points = {distance: change[0] for distance, change in of.items() if distance and change[0] > 0}
        ax.semilogy(list(points), list(points.values()), label=name)
    ax.axvline(EDGE, color="#808080", linewidth=0.8, linestyle=":")
    ax.set(xlabel="positions after the change", ylabel="change of the output")
    ax.legend(loc="upper right")


if __name__ == "__main__":
    section.main()
