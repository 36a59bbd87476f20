"""Which start of S4D can learn to wait?

Gu et al. 2022 (S4D), arXiv:2206.11893, section 4: the imaginary parts of A are the frequencies in which a state keeps the past. S4D-Lin
spaces them evenly, S4D-LegS and S4D-Inv as HiPPO does, and S4D-Real has none. The task: give back white noise 48 positions later. Every
channel is a run of its own, with one system of 32 modes and a step of its own, and the best step of each start is what is compared; each
start has the learning rate that suits it best. A loss of 1 is an output of zeros.
"""

# %%
import numpy as np

from minitransformers import init_s4d, s4d
from minitransformers.reporting import Section, mean_and_spread
from minitransformers.training.fit import fit
from minitransformers.training.task import Task

section = Section(__file__, __doc__, kind="trained")
DELAY, LENGTH, UPDATES = 48, 128, 400
STEPS = np.geomspace(0.01, 0.1, 10)
LIN, LEGS, INV, REAL, DOUBLE = "S4D-Lin", "S4D-LegS", "S4D-Inv", "S4D-Real", "S4D-Real, twice the modes"
STARTS = {LIN: ("lin", 64), LEGS: ("legs", 64), INV: ("inv", 64), REAL: ("real", 64), DOUBLE: ("real", 128)}


# %%
class Delayed(Task):
    """Each channel gives back its own noise, DELAY positions later. Before that nothing can be given back, and nothing is asked."""

    def batch(self, rng):
        return rng.standard_normal((4, LENGTH, len(STEPS)), np.float32)

    def loss(self, params, batch, *, rng):
        out, backward = s4d(params, batch)
        miss = out[:, DELAY:] - batch[:, :-DELAY]

        def both(dloss):
            dout = np.zeros_like(out)
            dout[:, DELAY:] = 2 * dloss[0] * miss
            return backward(dout)[0]

        return (np.square(miss).sum(), miss[..., 0].size), both


def trained(start, rng, *, rate):
    kind, d_state = STARTS[start]
    params = init_s4d(rng, len(STEPS), d_state=d_state, kind=kind)
    params = params._replace(log_step=np.log(STEPS).astype(np.float32), D=np.zeros(len(STEPS), np.float32))
    # No norm of all gradients together is limited: it would tie the runs to each other.
    return fit(params, Delayed(), steps=5 if section.quick else UPDATES, peak=rate, rng=rng, warmup=0.05, clip=None)


def losses(params, rng):
    """Of each channel, on new noise."""
    x = rng.standard_normal((4 if section.quick else 64, LENGTH, len(STEPS)), np.float32)
    return np.square(s4d(params, x)[0][:, DELAY:] - x[:, :-DELAY]).mean((0, 1))


@section.tuning
def tuning(rng):
    for start in STARTS:
        for rate in (1e-2,) if section.quick else (5e-3, 1e-2, 2e-2, 4e-2, 8e-2, 1.6e-1):
            own = np.random.default_rng(rng.integers(2**32))
            yield start, rate, {"loss": losses(trained(start, own, rate=rate), own).min()}


@section.experiment
def experiment(rng):
    pulse = np.zeros((LENGTH, len(STEPS)), np.float32)
    pulse[0] = 1
    for start in STARTS:
        params = trained(start, rng, rate=section.rates[start])
        of = losses(params, rng)
        for step, loss in zip(STEPS, of, strict=True):
            yield start, float(step), {"loss": loss}
        if start in (LIN, REAL):
            for after, response in enumerate(s4d(params, pulse)[0][:, of.argmin()]):
                yield start, after, {"kernel": response}


# %%
def best(found, start):
    return np.min(list(found["loss"][start].values()), axis=0)


def told(found, *starts):
    return ", ".join(f"{start} {mean_and_spread(best(found, start))}" for start in starts)


@section.claim(
    "Waves can wait, plain decays cannot",
    paper="Gu et al. 2022 (S4D), arXiv:2206.11893, section 4: the imaginary parts of A are the frequencies in which a state keeps the past",
    measured=lambda found: f"best of {len(STEPS)} steps: {told(found, LIN, REAL, DOUBLE)}",
)
def waves(found):
    """At its best step S4D-Lin loses less than 0.3, and S4D-Real more than 0.8, with as many modes and with twice as many."""
    return best(found, LIN) < 0.3 and min(best(found, REAL), best(found, DOUBLE)) > 0.8


@section.claim(
    "Of the complex starts the evenly spaced one keeps a delay best",
    paper="Gu et al. 2022, arXiv:2206.11893, section 4: which start is best for a delay is not said. A pulse is flat over all frequencies",
    measured=lambda found: told(found, LIN, LEGS, INV),
)
def evenly(found):
    """At the best step of each S4D-Lin loses at least 0.05 less than S4D-LegS and S4D-Inv."""
    return best(found, LIN) <= min(best(found, LEGS), best(found, INV)) - 0.05


@section.report
def report(found):
    rows = []
    for start in STARTS:
        of = np.array([np.mean(loss) for loss in found["loss"][start].values()])
        rows.append([start, section.rates[start], float(np.mean(best(found, start))), float(np.median(of)), float(of.max())])
    section.table("delay", ["start", "rate", "loss at the best step", "at the median step", "at the worst step"], rows)
    section.value("delay.delay", DELAY)
    section.values("delay.best", {"lin": np.mean(best(found, LIN)), "real": min(np.mean(best(found, REAL)), np.mean(best(found, DOUBLE)))})


@section.figure("delay", size=(7, 3), ncols=2)
def picture(axes, found):
    left, right = axes
    for start in (LIN, LEGS, INV, REAL):
        ys = np.array([np.atleast_1d(loss) for loss in found["loss"][start].values()])
        (line,) = left.semilogx(STEPS, ys.mean(1), "o-", label=start)
        left.fill_between(STEPS, ys.min(1), ys.max(1), color=line.get_color(), alpha=0.15, linewidth=0)
    left.set(xlabel="step at the start", ylabel="loss", ylim=(0, 1.1), xticks=[0.01, 0.02, 0.05, 0.1], xticklabels=["0.01", "0.02", "0.05", "0.1"])
    left.minorticks_off()
    left.legend(loc="lower center", ncols=2, bbox_to_anchor=(0.5, 1.0))
    for start, colour in ((LIN, 0), (REAL, 3)):
        right.plot([np.atleast_1d(response)[0] for response in found["kernel"][start].values()], color=f"C{colour}", label=start)
    right.axvline(DELAY, color="#808080", linewidth=0.8)
    right.set(xlabel="positions after a pulse", ylabel="output of the best run")
    right.legend()


if __name__ == "__main__":
    section.main()
