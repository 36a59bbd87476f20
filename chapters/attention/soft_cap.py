"""Can a score that has run off come back from under a cap?

Gemma Team 2024, arXiv:2408.00118, section 2: scores are capped by cap · tanh(score / cap). A clip bounds them as well, but where it
clips its gradient is zero. One score stands at three caps, and its loss pushes it down.
"""

# %%
import numpy as np

from minitransformers import soft_cap
from minitransformers.reporting import Section

section = Section(__file__, __doc__, kind="exact")
SOFT, HARD = "soft cap", "clip"
CAP, FAR, SMALL, UPDATES = 50.0, 200.0, 5.0, 5000            # Gemma's cap and four of it; a cap for the race back


def clip(x, *, cap):
    return np.clip(x, -cap, cap), lambda dout: dout * (np.abs(x) < cap)


SQUASHES = {SOFT: soft_cap, HARD: clip}


@section.experiment
def experiment(rng):
    for name, squash in SQUASHES.items():
        out, backward = squash(np.array([FAR]), cap=CAP)
        yield name, FAR, {"out": out[0], "slope": backward(np.ones(1))[0]}
        score, updates = 3 * SMALL, 0
        while score >= 0 and updates < UPDATES:              # gradient descent on -log of the weight of a key that stands at 0
            out, backward = squash(np.array([score]), cap=SMALL)
            score, updates = score - backward(1 / (1 + np.exp(-out)))[0], updates + 1
        yield name, "back", {"score": score, "updates": updates}


# %%
@section.claim(
    "A soft cap keeps a gradient where a clip has none",
    paper="Gemma Team 2024, arXiv:2408.00118, section 2: logits are capped by soft_cap · tanh(logits / soft_cap)",
    measured=lambda found: f"slope at 200 with cap 50: {found['slope'][SOFT][FAR][0]:.1e} against {found['slope'][HARD][FAR][0]:g}; from three caps "
    f"back below zero in {found['updates'][SOFT]['back'][0]:.0f} updates, clipped at {found['score'][HARD]['back'][0]:g} after {UPDATES}",
)
def rule(found):
    """At four caps the output is below the cap with a slope above 0, a clip's slope is 0; from three caps a score returns below zero, and
    a clipped one stays where it is.
    """
    bounded = found["out"][SOFT][FAR] < CAP and found["slope"][SOFT][FAR] > 0 and found["slope"][HARD][FAR] == 0
    return bounded and found["score"][SOFT]["back"] < 0 and found["score"][HARD]["back"] == 3 * SMALL


@section.report
def report(found):
    section.values("soft_cap", {"slope_at_200": found["slope"][SOFT][FAR][0], "steps_back": int(found["updates"][SOFT]["back"][0])})


@section.figure("soft_cap", size=(6.4, 2.8), ncols=2)
def picture(axes, found):
    x = np.linspace(0, FAR, 401)
    for name, style in ((HARD, "--"), (SOFT, "-")):
        out, backward = SQUASHES[name](x, cap=CAP)
        slope = backward(np.ones_like(x))
        axes[0].plot(x, out, style, label=name)
        axes[1].semilogy(x[slope > 0], slope[slope > 0], style)
    axes[0].set(xlabel="score", title=f"what goes on (cap {CAP:.0f})")
    axes[0].legend()
    axes[1].set(xlabel="score", title="gradient (the clip's ends)", ylim=(1e-3, 1.5))


if __name__ == "__main__":
    section.main()
