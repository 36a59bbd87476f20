"""How large can a score be, and how sharp attention, where queries and keys are normed?

Dehghani et al. 2023, arXiv:2302.05442, section 2: without a norm scores grew until attention had almost no entropy. Queries and keys are
drawn at random and made longer and longer. The bound is true by construction; what happens without it is shown beside it.
"""

# %%
import numpy as np

from minitransformers import init_qk_norm, qk_norm, softmax
from minitransformers.reporting import Section

section = Section(__file__, __doc__, kind="exact")
TOKENS, WIDTH, SIZES, PLAIN, NORMED = 256, 64, (1, 3, 10, 100), "plain", "QK-norm"


@section.experiment
def experiment(rng):
    q, k = rng.normal(size=(2, TOKENS, WIDTH))
    params = init_qk_norm(rng, WIDTH, dtype=np.float64)
    for size in SIZES:
        for name, (query, key) in {PLAIN: (size * q, size * k), NORMED: qk_norm(params, size * q, size * k)[0]}.items():
            scores = query @ key.T / WIDTH**0.5
            yield name, size, {"score": np.abs(scores).max(), "weight": softmax(scores)[0].max(axis=-1).mean()}


# %%
@section.claim(
    "QK-norm bounds the scores, and with them how sharp attention can be",
    paper="Dehghani et al. 2023, arXiv:2302.05442, section 2: without it, scores grow until the weights have almost no entropy",
    measured=lambda found: "queries and keys times a hundred: "
    + "; ".join(f"{name} scores to {np.mean(found['score'][name][100]):,.1f}, mean largest weight {np.mean(found['weight'][name][100]):.3f}"
                for name in (PLAIN, NORMED)),
)  # fmt: skip
def bounded(found):
    """With gains of one no score is above √64 = 8, and the mean largest weight below 0.2, however large queries and keys are. Without, at a
    hundred times the size, scores exceed 1,000 and the largest weight is above 0.95.
    """
    score, weight = found["score"], found["weight"]
    held = max(score[NORMED].values()) <= WIDTH**0.5 and max(weight[NORMED].values()) < 0.2
    return held and score[PLAIN][100] > 1000 and weight[PLAIN][100] > 0.95


@section.report
def report(found):
    columns = ["queries and keys times", "largest score", "mean largest weight", "largest score, QK-norm", "mean largest weight, QK-norm"]
    rows = [[n, *(float(np.mean(found[what][name][n])) for name in (PLAIN, NORMED) for what in ("score", "weight"))] for n in SIZES]
    section.table("scores", columns, rows)


if __name__ == "__main__":
    section.main()
