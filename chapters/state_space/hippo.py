"""Is HiPPO's state the best polynomial of everything that was read?

Gu et al. 2020 (HiPPO), arXiv:2008.07669, theorem 2: the state of the scaled system holds the Legendre coefficients of the best
polynomial approximation of the whole past. The theorem is about continuous time; here the system takes one bilinear step a sample.
Signals of seven random harmonics are read at once, and beside each state stands the polynomial of its degree that fits best. Signals
differ much in how well any polynomial fits them, so nothing is said of the size of an error, only of what the state adds to it.
"""

# %%
import numpy as np
from numpy.polynomial import legendre

from minitransformers.reporting import Section, lines
from minitransformers.state_space.hippo import hippo_legs

section = Section(__file__, __doc__, kind="arithmetic")
HARMONICS, SIGNALS, SIZES, ASKED = 7, 10, (8, 12, 16, 20, 24, 28, 32, 48), (8, 16, 24, 32)
SAMPLES = COARSE, FINE = 1000, 4000
BEST = "best polynomial"


# %%
def signals(rng, samples):
    """(samples, SIGNALS): harmonics with random sizes and phases, at the middle of each of the samples of [0, 1]."""
    s, waves = (np.arange(samples) + 0.5) / samples, np.arange(1, HARMONICS + 1)
    sizes, phases = rng.normal(size=(SIGNALS, HARMONICS)), rng.uniform(0, 2 * np.pi, size=(SIGNALS, HARMONICS))
    return np.sum(sizes * np.sin(2 * np.pi * waves * s[:, None, None] + phases), axis=-1)


def read(signal, d_state):
    """The scaled system t dc/dt = A c + B f, a sample at a time by the bilinear rule: what its last state says that was read."""
    A, B = hippo_legs(d_state)
    identity, state = np.eye(d_state), np.zeros((d_state, SIGNALS))
    for k, sample in enumerate(signal):
        half = A / (2 * (k + 1))
        state = np.linalg.solve(identity - half, state + half @ state + B[:, None] * sample / (k + 1))
    return legendre.legval(along(signal), state * np.sqrt(2 * np.arange(d_state) + 1)[:, None]).T


def along(signal):
    """The places of the samples in [-1, 1]."""
    return 2 * (np.arange(len(signal)) + 0.5) / len(signal) - 1


def away(one, other, signal):
    """The distance of each pair of signals, relative to the size of the signal."""
    return np.linalg.norm(one - other, axis=0) / np.linalg.norm(signal, axis=0)


@section.experiment
def experiment(rng):
    seed = rng.integers(2**32)
    for samples in SAMPLES:
        signal = signals(np.random.default_rng(seed), samples)
        for d_state in ASKED if section.quick else SIZES:
            best = legendre.legval(along(signal), legendre.legfit(along(signal), signal, d_state - 1)).T
            state = read(signal, d_state)
            error, least = away(state, signal, signal), away(best, signal, signal)
            yield f"{samples:,} samples", d_state, {"error": np.median(error), "beyond": np.median(away(state, best, signal)),
                                                    "smallest": error.min(), "largest": error.max(), "as good": np.sum(error <= 1.02 * least + 0.01)}  # fmt: skip
            if samples == FINE:
                yield BEST, d_state, {"error": np.median(least)}


# %%
def fewest(found, samples=COARSE):
    """How many of the signals are told as well as the best polynomial does, at the size that does worst."""
    return np.min([found["as good"][f"{samples:,} samples"][d] for d in ASKED if d <= 24], axis=0)


@section.claim(
    "HiPPO's state is the best polynomial of the past",
    paper="Gu et al. 2020 (HiPPO), arXiv:2008.07669, theorem 2: the coefficients of the best approximation of all that was read",
    measured=lambda found: f"at the size that does worst {', '.join(f'{n:.0f}' for n in np.atleast_1d(fewest(found)))} of {SIGNALS} signals with "
    f"{COARSE:,} samples, {', '.join(f'{n:.0f}' for n in np.atleast_1d(fewest(found, FINE)))} with {FINE:,}",
)
def as_good(found):
    """With 8, 16 and 24 numbers and 1,000 samples, at least nine of ten signals: an error of at most 1.02 times the best polynomial's and 0.01."""
    return fewest(found) >= 9


def smaller(found, d_state):
    """What four times as many samples leave of the distance between the state and the best polynomial."""
    fine, coarse = (found["beyond"][f"{samples:,} samples"][d_state] for samples in (FINE, COARSE))
    return fine / coarse


@section.claim(
    "What the state adds to the error of the best polynomial is the error of the steps",
    paper="Gu et al. 2020, arXiv:2008.07669: theorem 2 is about continuous time; section 2.4 discretises it",
    measured=lambda found: "of the distance to the best polynomial four times as many samples leave "
    + ", ".join(f"{np.mean(smaller(found, d)):.2f} with {d}" for d in ASKED) + " numbers",
)  # fmt: skip
def of_the_steps(found):
    """Four times as many samples leave at most 0.3 of the distance between state and best polynomial, with 8, 16, 24 and 32 numbers."""
    return all(smaller(found, d) <= 0.3 for d in ASKED)


@section.report
def report(found):
    curves = [f"{samples:,} samples" for samples in SAMPLES]
    rows = [[d, *(float(found["error"][name][d].mean()) for name in curves), float(best.mean())] for d, best in found["error"][BEST].items()]
    section.values("hippo", {"left": np.mean(smaller(found, 32)), "signals": SIGNALS})
    coarse = curves[0]
    section.values("hippo.at_16", {"smallest": found["smallest"][coarse][16].min(), "largest": found["largest"][coarse][16].max()})
    section.table("hippo", ["d_state", *(f"error, {name}" for name in curves), BEST], [[*row[:3], row[3] if row[3] > 1e-12 else 0.0] for row in rows])


@section.figure("hippo", size=(7, 3), ncols=2)
def picture(axes, found):
    left, right = axes
    lines(left, {name: of for name, of in found["error"].items() if name != BEST}, xlabel="numbers in the state", ylabel="relative error", yscale="log", ylim=(1e-4, 2))
    left.plot(list(found["error"][BEST]), [of.mean() for of in found["error"][BEST].values()], "--", color="#808080", label=BEST)
    left.axvline(HARMONICS * np.pi, color="#808080", linewidth=0.8)
    left.legend(loc="lower left")
    signal = signals(np.random.default_rng(np.random.default_rng(section.seed).integers(2**32)), COARSE)
    time = (along(signal) + 1) / 2
    right.plot(time, signal[:, 0], color="#808080", linewidth=3, alpha=0.5, label="what was read")
    for d_state in (16, 32):
        right.plot(time, read(signal, d_state)[:, 0], linewidth=1.3, label=f"{d_state} numbers")
    right.set(xlabel="time")
    right.legend(loc="upper center", ncols=3, bbox_to_anchor=(0.5, 1.15), columnspacing=1, handlelength=1.2)


if __name__ == "__main__":
    section.main()
