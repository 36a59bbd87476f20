"""What does float32 leave of the gradient of a decay?

No paper: on paper the gradients of all decays of a recurrence collapse to one line, the balance of what reads the state and what writes it,
summed from the end. The authors' code calls the line not stable. Term by term every summand holds the decay as a factor; by the balance it
is a difference of large numbers. The gradient of SSD's A in float32 against float64, with steps as Mamba-2 starts them and with one reset.
"""

# %%
from functools import partial

import numpy as np

from minitransformers import ssd_chunked, ssd_recurrent
from minitransformers.reporting import Section

section = Section(__file__, __doc__, kind="arithmetic")
LENGTH, HEADS, SIZE, RESET = 2048, 2, 64, 20
LOOP, CHUNKS, ONE, BALANCE = "recurrent", "chunks of 32", f"chunks of {LENGTH}", "the balance over the whole sequence"
FORMS = {LOOP: ssd_recurrent, CHUNKS: partial(ssd_chunked, chunk=32), ONE: partial(ssd_chunked, chunk=LENGTH), BALANCE: ssd_chunked}
START, WITH_RESET = "steps as Mamba-2 starts", "and one reset"


# %%
@section.experiment
def experiment(rng):
    n = LENGTH                                               # rounding adds up along the text: a shorter one says nothing
    x, (B, C) = rng.normal(size=(n, HEADS, SIZE)), rng.normal(size=(2, n, 1, SIZE))
    A, steps = -rng.uniform(1, 16, HEADS), np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), (n, HEADS)))
    dout, reset = (rng.normal(size=x.shape), np.zeros((HEADS, SIZE, SIZE))), steps.copy()
    reset[RESET] = 1e6                                       # after it nothing is left of what was before

    def gradient(name, delta, dtype):
        """dA: the gradients of the exponents, weighed by the steps."""
        call = [a.astype(dtype) for a in (delta[..., None] * x, delta * A, B, C)]
        (y, _), backward = FORMS[name](*call)
        dy, dstate = (d.astype(dtype) for d in dout)
        dinput, dexponent, *_ = backward((dy, dstate))
        if name == BALANCE:
            dexponent = np.cumsum((np.vecdot(dy, y) - np.vecdot(dinput, call[0]))[::-1], axis=0)[::-1]
        return (delta.astype(dtype) * dexponent).sum(0)

    for where, delta in ((START, steps), (WITH_RESET, reset)):
        exact = gradient(LOOP, delta, np.float64)
        for name in FORMS:
            yield name, where, {"error": np.abs(gradient(name, delta, np.float32) - exact).max() / np.abs(exact).max()}
        yield BALANCE, where, {"in float64": np.abs(gradient(BALANCE, delta, np.float64) - exact).max() / np.abs(exact).max()}


def errors(found, name, where):
    return ", ".join(f"{error:.0e}" for error in np.atleast_1d(found["error"][name][where]))


# %%
@section.claim(
    "Term by term the gradients of the decays keep their digits in float32",
    paper="no statement in a paper",
    measured=lambda found: f"in chunks of 32 {errors(found, CHUNKS, START)}; with a reset {errors(found, CHUNKS, WITH_RESET)}",
)
def terms(found):
    """In chunks of 32 dA is right to 1e-5, with a reset and without."""
    return max(found["error"][CHUNKS][where] for where in (START, WITH_RESET)) < 1e-5


@section.claim(
    "Does the balance in one line lose them?",
    paper="no statement in a paper; a comment in the authors' code calls the line not stable",
    measured=lambda found: f"{errors(found, BALANCE, START)}; with a reset {errors(found, BALANCE, WITH_RESET)}; in float64 at most "
    f"{np.max(found['in float64'][BALANCE][START]):.0e} and {np.max(found['in float64'][BALANCE][WITH_RESET]):.0e}",
)
def balance(found):
    """In float64 the line is right to 1e-10, without a reset. In float32 its error is more than ten times that of the terms, and with a reset
    more than 1 % of the gradient.
    """
    error = found["error"]
    if found["in float64"][BALANCE][START] > 1e-10:
        return False
    return error[BALANCE][START] > 10 * error[CHUNKS][START] and error[BALANCE][WITH_RESET] > 1e-2


@section.report
def report(found):
    rows = [[name, *(float(np.mean(found["error"][name][where])) for where in (START, WITH_RESET))] for name in FORMS]
    section.table("ssd-float32", ["dA in float32 against float64", START, WITH_RESET], rows)
    worst = max(np.max(found["error"][CHUNKS][where]) for where in (START, WITH_RESET))
    reset = np.max(found["error"][BALANCE][WITH_RESET])
    section.values("duality.float32", {"length": LENGTH, "worst": worst, "balance": np.mean(found["error"][BALANCE][START]), "balance_reset": reset})


if __name__ == "__main__":
    section.main()
