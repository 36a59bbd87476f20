"""What does a long step do to what was there before it, forwards and backwards?

Gu and Dao 2023, arXiv:2312.00752, section 3.5.2: a large step resets the state and takes the input in, a small one lets the input pass by
and keeps the state. One channel with one state reads twelve inputs, two of them with long steps. True by construction.
"""

# %%
import numpy as np

from minitransformers import selective_scan
from minitransformers.reporting import Section

section = Section(__file__, __doc__, kind="exact")
LENGTH, SHORT, READS = 12, 0.12, (4, 11)
LONG, INPUT = {2: 1.0, 7: 2.5}, {2: 1.4, 7: 0.6}              # long steps by their places, and the input there; 0.5 elsewhere
STATE, ADJOINT = "state, from left to right", "adjoint, from right to left"


# %%
@section.experiment
def experiment(rng):
    delta, u, A, C = np.full((LENGTH, 1), SHORT), np.full((LENGTH, 1), 0.5), np.array([[-1.0]]), np.zeros((LENGTH, 1))
    delta[list(LONG), 0], u[list(INPUT), 0], C[list(READS)] = list(LONG.values()), list(INPUT.values()), 1.0
    ones = np.ones((LENGTH, 1, 1))                           # one group, one state
    (h, _), _ = selective_scan(u, delta, A, ones, ones)      # read everywhere, to see the states
    _, backward = selective_scan(u, delta, A, ones, C[:, None])
    written = delta * u
    adjoint = backward((np.ones_like(u), np.zeros((1, 1))))[3][:, 0] / written  # dB = adjoint delta u
    for t in range(LENGTH):
        yield STATE, t, {"all": h[t, 0], "new": written[t, 0], "left": (h[t] - written[t])[0] / h[t - 1, 0] if t else 1.0}
        yield ADJOINT, t, {"all": adjoint[t, 0], "new": C[t, 0], "left": (adjoint[t - 1] - C[t - 1])[0] / adjoint[t, 0] if t else 1.0}


def kept(found, curve, t):
    """What is left of what crosses the step into t."""
    return float(np.ravel(found["left"][curve][t])[0])


# %%
@section.claim(
    "A long step fades what it crosses, and its gradient by as much",
    paper="Gu and Dao 2023, arXiv:2312.00752, section 3.5.2: a large step resets the state, a small one keeps it",
    measured=lambda found: "; ".join(f"into {t} {kept(found, STATE, t):.2f} of the state and {kept(found, ADJOINT, t):.2f} of the adjoint" for t in (6, 7)),
)
def fades(found):
    """Of state and adjoint alike e^-step is left, to 1e-12: less than a tenth over the step of 2.5, more than 0.88 over those of 0.12."""
    exact = all(abs(kept(found, curve, t) - np.exp(-LONG.get(t, SHORT))) < 1e-12 for curve in (STATE, ADJOINT) for t in range(1, LENGTH))
    return exact and kept(found, STATE, 7) < 0.1 and kept(found, STATE, 6) > 0.88


@section.figure("selective_scan", size=(4.8, 4.4), nrows=3, sharex=True, gridspec_kw={"height_ratios": (2, 3, 3)})
def picture(axes, found):
    steps, states, adjoints = axes
    places = np.arange(LENGTH)
    steps.bar(places - 0.5, [LONG.get(t, SHORT) for t in places], width=0.3, color="C5")
    steps.set(title="step Δ into each position", yticks=[0, 1, 2])
    everything, new = ({curve: np.ravel(list(of.values())) for curve, of in found[measure].items()} for measure in ("all", "new"))
    h, adjoint = everything[STATE], everything[ADJOINT]
    stacks = ((states, h - new[STATE], new[STATE], ("C0", "kept"), ("C1", "written")),
              (adjoints, adjoint - new[ADJOINT], new[ADJOINT], ("C3", "from later"), ("C2", "from here")))  # fmt: skip
    for ax, low, high, *named in stacks:
        for height, base, (colour, label) in zip((low, high), (0 * low, low), named, strict=True):
            ax.bar(places, height, bottom=base, width=0.5, color=colour, label=label)
    states.plot(list(READS), h[list(READS)] + 0.15, "v", color="C2", label="read")
    states.set(title="state h, from left to right", ylim=(0, 1.8), yticks=[0, 1])
    adjoints.set(title="adjoint λ, from right to left", xlabel="position", xticks=places, ylim=(0, 1.1), yticks=[0, 1])
    for ax in axes:
        ax.grid(False)
        for t in LONG:
            ax.axvline(t - 0.5, color="#808080", linewidth=0.8, linestyle=":", zorder=0)
    for ax in axes[1:]:
        ax.legend(ncols=3, loc="lower right", bbox_to_anchor=(1.02, 0.97), handlelength=0.8, handletextpad=0.4, columnspacing=0.9, borderaxespad=0)


if __name__ == "__main__":
    section.main()
