"""What do equal shares for the words of a set cost, where the text says which of them is meant?

Qian et al. 2019, arXiv:1905.12801: words that belong together are equally likely. Here each member of a set gets the same share of the
set's mass at decoding, which is exact and trains nothing. In a trigram model of one half of Python's reference some sets of frequent words
have equal shares at every place of the other half.
"""

# %%
import numpy as np

from minitransformers.bias_mitigation.balance_pairs import balance_pairs
from minitransformers.reporting import Section, mean_and_spread
from minitransformers.reporting.bias_mitigation.trigrams import VOCABULARY, Trigrams, halves

section = Section(__file__, __doc__, kind="arithmetic")
EQUAL = "equal shares"


# %% What changes, and what a held-out word costs
@section.experiment
def experiment(rng):
    """Four sets of two or three frequent words with equal shares, at every place of held-out text."""
    first, second, _ = halves(20_000 if section.quick else None)
    model, ids = Trigrams(first), second[: 3000 if section.quick else 20_000]
    sets = np.split(rng.permutation(np.arange(1, 61))[:10], [2, 4, 7])
    nats, after, worst = [], [], np.zeros(3)
    for some in np.array_split(np.arange(2, len(ids)), max(1, len(ids) // 500)):
        log_p = model.log_probabilities(np.stack([ids[some - 2], ids[some - 1]], axis=1))
        out = balance_pairs(log_p, sets=[each.tolist() for each in sets])
        p, q, rest = np.exp(log_p), np.exp(out), np.setdiff1d(np.arange(VOCABULARY), np.concatenate(sets))
        apart = max(np.abs(q[:, each] - q[:, each[:1]]).max() for each in sets)
        moved = max(np.abs(q[:, each].sum(axis=1) - p[:, each].sum(axis=1)).max() for each in sets)
        worst = np.maximum(worst, [apart, moved, np.abs(q[:, rest] - p[:, rest]).max()])
        for kept, of in ((nats, log_p), (after, out)):
            kept.append(-of[np.arange(len(some)), ids[some]])
    exact = dict(zip(("apart", "moved", "others"), worst, strict=True))
    yield EQUAL, "all", exact | {"before": np.concatenate(nats).mean(), "after": np.concatenate(after).mean()}


# %%
@section.claim(
    "Equal shares are exact, and cost nats where the text says which word is meant",
    paper="Qian et al. 2019, arXiv:1905.12801: equal where the text does not say",
    measured=lambda found: f"members apart by {np.max(found['apart'][EQUAL]['all']):.0e}, a set's mass moved by {np.max(found['moved'][EQUAL]['all']):.0e}, that of other words by "
    f"{np.max(found['others'][EQUAL]['all']):.0e}; nats a word {mean_and_spread(found['before'][EQUAL]['all'], '.3f')}, after {mean_and_spread(found['after'][EQUAL]['all'], '.3f')}",
)
def equal(found):
    """Members of a set differ, sets and other words move, by at most 1e-12; and a held-out word costs more nats than before."""
    small = max(found[measure][EQUAL]["all"] for measure in ("apart", "moved", "others")) <= 1e-12
    return small and found["after"][EQUAL]["all"] > found["before"][EQUAL]["all"]


@section.report
def report(found):
    section.values("equal", {measure: found[measure][EQUAL]["all"].mean() for measure in ("before", "after")})


if __name__ == "__main__":
    section.main()
