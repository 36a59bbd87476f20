"""What does cross-entropy in one piece save?

No paper: log-softmax, then the choice of one number a row, gives the same loss. But the gradient of the choice is an array of zeros with one
number a row, which log-softmax's backward reads in full. In one piece it is never built. Forward and backward, in float32.
"""

# %%
import numpy as np

from minitransformers import cross_entropy, log_softmax
from minitransformers.reporting import Section, paired_times

section = Section(__file__, __doc__, kind="timed")
SIZES = {"characters": (768, 65), "words": (128, 50_257)}    # rows and classes
ONE_PIECE, IN_PARTS = "one piece", "in parts"


# %%
def one_piece(logits, targets):
    loss, backward = cross_entropy(logits, targets=targets)
    return loss, backward(np.float32(1))


def in_parts(logits, targets):
    log_probabilities, backward = log_softmax(logits)
    rows = np.arange(len(targets))
    dlog_probabilities = np.zeros_like(logits)
    dlog_probabilities[rows, targets] = -1 / np.float32(len(targets))
    return -log_probabilities[rows, targets].mean(), backward(dlog_probabilities)


@section.experiment
def experiment(rng):
    for name, (rows, classes) in SIZES.items():
        rows = 32 if section.quick else rows
        logits, targets = rng.standard_normal((rows, classes), np.float32), rng.integers(0, classes, size=rows)
        apart = [np.abs(a - b).max() for a, b in zip(one_piece(logits, targets), in_parts(logits, targets), strict=True)]
        yield "apart", name, {"loss": apart[0], "gradient": apart[1]}
        forms = {ONE_PIECE: lambda: one_piece(logits, targets), IN_PARTS: lambda: in_parts(logits, targets)}
        ratio = paired_times(forms, rounds=2 if section.quick else 50)[IN_PARTS]
        yield IN_PARTS, name, {"low": ratio.low, "median": ratio.median}


# %%
def of(found, measure, name):
    curve = "apart" if measure in ("loss", "gradient") else IN_PARTS
    return float(np.ravel(found[measure][curve][name])[0])


@section.claim(
    "Cross-entropy in one piece gives what log-softmax and a choice give",
    paper="no paper: the same numbers with fewer passes over the scores",
    kind="exact",
    measured=lambda found: f"gradients {max(of(found, 'gradient', name) for name in SIZES):.0e} apart, losses {max(of(found, 'loss', name) for name in SIZES):.0e}",
)
def same(found):
    """In float32 gradients are at most 1e-8 apart, losses 1e-5."""
    return all(of(found, "gradient", name) <= 1e-8 and of(found, "loss", name) <= 1e-5 for name in SIZES)


@section.claim(
    "Cross-entropy in one piece is faster than log-softmax followed by a choice",
    paper="no paper: the gradient of the choice, zero almost everywhere, is never built",
    measured=lambda found: " and ".join(f"{of(found, 'median', name):.1f} times as long in parts with {SIZES[name][1]:,} classes" for name in SIZES),
)
def faster(found):
    """At 65 and at 50,257 classes the parts take at least 1.2 times as long in three rounds of four."""
    return all(of(found, "low", name) >= 1.2 for name in SIZES)


@section.report
def report(found):
    for name in SIZES:
        section.values("cross_entropy", {f"times_faster_{name}": of(found, "median", name), f"gap_{name}": of(found, "gradient", name)})


if __name__ == "__main__":
    section.main()
