"""How low can a label-smoothed loss get?

Szegedy et al. 2015, arXiv:1512.00567, section 7: a target of one class alone asks for a score that is infinitely larger than all others;
smoothing asks for a finite one. The loss cannot fall below the entropy of the smoothed target. Gradient descent on ten free scores.
"""

# %%
import numpy as np

from minitransformers import cross_entropy
from minitransformers.reporting import Section, level

section = Section(__file__, __doc__, kind="exact")
CLASSES, SMOOTHING, STEPS, TARGET = 10, 0.1, 400, 3
smoothed = SMOOTHING / CLASSES + (1 - SMOOTHING) * np.eye(CLASSES)[TARGET]
ENTROPY, GAP = float(-np.sum(smoothed * np.log(smoothed))), float(np.log(smoothed[TARGET] / smoothed[0]))
PLAIN, SMOOTH = "no label smoothing", f"label smoothing {SMOOTHING}"


@section.experiment
def experiment(rng):
    for name, label_smoothing in ((PLAIN, 0.0), (SMOOTH, SMOOTHING)):
        scores = np.zeros((1, CLASSES))
        for step in range(1, STEPS + 1):
            loss, backward = cross_entropy(scores, targets=np.array([TARGET]), label_smoothing=label_smoothing)
            yield name, step, {"loss": loss, "gap": scores[0, TARGET] - scores[0, 0]}
            scores = scores - 4.0 * backward(np.float64(1))


# %%
def last(found, measure, name):
    return float(np.ravel(found[measure][name][STEPS])[0])


@section.claim(
    "The smallest label-smoothed loss is the entropy of the smoothed target",
    paper="Szegedy et al. 2015, arXiv:1512.00567, section 7: smoothing keeps the largest logit from becoming much larger than all others",
    measured=lambda found: f"{last(found, 'loss', SMOOTH):.4f} nats and a distance of {last(found, 'gap', SMOOTH):.2f}; the entropy is {ENTROPY:.4f}, the logarithm {GAP:.2f}",
)
def ends(found):
    """To 1e-6 the loss ends at the entropy, and the distance of the right score from the others at the logarithm of their targets' ratio."""
    return abs(last(found, "loss", SMOOTH) - ENTROPY) <= 1e-6 and abs(last(found, "gap", SMOOTH) - GAP) <= 1e-6


@section.claim(
    "Without smoothing the loss falls on, and the right score grows",
    paper="Szegedy et al. 2015, arXiv:1512.00567, section 7: the maximum is not achievable for finite logits, but is approached",
    measured=lambda found: f"{last(found, 'loss', PLAIN):.1e} nats, a distance of {last(found, 'gap', PLAIN):.1f}, after {STEPS} steps",
)
def goes_on(found):
    """At every step the loss is lower than before and the right score farther from the others; at the end the loss is below 0.01 nats."""
    losses, gaps = (np.ravel([np.ravel(y)[0] for y in found[measure][PLAIN].values()]) for measure in ("loss", "gap"))
    return np.all(np.diff(losses) < 0) and np.all(np.diff(gaps) > 0) and losses[-1] < 0.01


@section.report
def report(found):
    section.values("cross_entropy", {"floor": ENTROPY, "best_gap": GAP, "smoothed": last(found, "loss", SMOOTH), "logit_gap": last(found, "gap", SMOOTH),
                                     "plain": last(found, "loss", PLAIN), "plain_gap": last(found, "gap", PLAIN)})  # fmt: skip


@section.figure("smoothing_floor")
def picture(ax, found):
    for name, of in found["loss"].items():
        ax.loglog(list(of), [np.ravel(loss)[0] for loss in of.values()], label=name)
    ax.set(xlabel="steps of gradient descent on free scores", ylabel="loss in nats")
    level(ax, ENTROPY, "entropy of the smoothed target")
    ax.legend(loc="lower left")


if __name__ == "__main__":
    section.main()
