"""How small can MiniLM be made before texts look alike that are not?

Nagel et al. 2021, arXiv:2106.08295: eight bits lose nothing, four a little. MiniLM-L6, as it was published in floats, turns a text into a vector;
texts that mean the same have vectors that point the same way. Its 36 matrices are rounded, pruned or made thin, without any training. What is
measured is what people use it for: how far the cosines between 64 texts move, and whether the nearest text stays the nearest. The texts are lines of
Python's language reference, others for each seed.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.compression.calibration import least_error_magnitude
from minitransformers.compression.low_rank_linear import break_even_rank, low_rank_weight, svd_factors
from minitransformers.compression.magnitude_pruning import magnitude_mask
from minitransformers.compression.n_m_sparsity import n_m_mask
from minitransformers.compression.quantize import dequantize_symmetric, largest_magnitude, quantize_symmetric
from minitransformers.foundation import trees
from minitransformers.models.minilm import load_minilm, minilm_vectors
from minitransformers.models.published import published_file
from minitransformers.peft.nf4 import dequantize_nf4, quantize_nf4
from minitransformers.peft.targets import targets
from minitransformers.reporting import Section, lines, mean_and_spread

TEXTS, MATRICES = 64, ["attention.*.weight", "feed_forward.*.weight"]


def missing(quick):
    """Why it cannot run here, or None."""
    try:
        published_file("minilm", "weights")
    except ValueError as error:
        return str(error)
    return "loading MiniLM takes longer than a quick run may last" if quick else None


section = Section(__file__, __doc__, kind="trained", needs=missing)


# %% Smaller matrices
def rounded(weight, *, bits, clip):
    return dequantize_symmetric(quantize_symmetric(weight, bits=bits, clip=clip))


def in_nf4(weight):
    return dequantize_nf4(quantize_nf4(weight))


def pruned(weight, *, sparsity):
    return np.where(magnitude_mask(weight, sparsity=sparsity), weight, 0)


def pairs(weight):
    return np.where(n_m_mask(weight, n=2, m=4), weight, 0)


def thin(weight, *, share):
    return low_rank_weight(svd_factors(weight, rank=int(share * break_even_rank(*weight.shape))), base=weight)[0]


LARGEST, ERROR, NF4, MAGNITUDE, PAIRS, THIN = "rounded, largest weight", "rounded, least error", "NF4", "pruned by magnitude", "2 of 4 by magnitude", "thin"
WAYS = {(LARGEST, bits): partial(rounded, bits=bits, clip=largest_magnitude) for bits in (8, 4, 3, 2)}  # x is bits a weight, a mask's and a scale's among them
WAYS |= {(ERROR, bits): partial(rounded, bits=bits, clip=least_error_magnitude) for bits in (8, 4, 3, 2)}
WAYS |= {(NF4, 4.5): in_nf4, (PAIRS, 17.0): pairs}
WAYS |= {(MAGNITUDE, 32 * (1 - share) + 1): partial(pruned, sparsity=share) for share in (0.3, 0.5, 0.7)}
WAYS |= {(THIN, 32 * share): partial(thin, share=share) for share in (0.75, 0.5)}


def lines_of_reference(rng):
    """Texts of a line, between 40 and 120 characters, no two alike."""
    from pydoc_data.topics import topics

    found = sorted({line.strip() for text in topics.values() for line in text.splitlines() if 40 <= len(line.strip()) <= 120})
    return [found[i] for i in rng.choice(len(found), TEXTS, replace=False)]


@section.experiment
def experiment(rng):
    model, texts = load_minilm(), lines_of_reference(rng)
    chosen, others = set(targets(model.params, MATRICES)), ~np.eye(TEXTS, dtype=bool)
    vectors = minilm_vectors(texts, model=model)
    whole = vectors @ vectors.T
    yield "whole", 32.0, {"spread": whole[others].std()}
    for (name, bits), make in WAYS.items():
        params = trees.unflatten(model.params, [make(leaf) if path in chosen else leaf for path, leaf in trees.leaves(model.params)])
        vectors = minilm_vectors(texts, model=model._replace(params=params))
        cosines = vectors @ vectors.T
        nearest = [np.where(others, own, -2).argmax(axis=1) for own in (whole, cosines)]
        yield name, bits, {"apart": np.abs(cosines - whole)[others].mean(), "nearest": (nearest[0] == nearest[1]).mean()}


# %%
def told(found, *places):
    return "; ".join(f"{name}, {bits:g} bits: {mean_and_spread(found['apart'][name][bits], '.4f')}, nearest {mean_and_spread(100 * found['nearest'][name][bits], '.0f')} %" for name, bits in places)


@section.claim(
    "Do eight bits a weight move cosines by less than a fiftieth of their deviation?", paper="Nagel et al. 2021, arXiv:2106.08295, section 3.5: within a percent",
    measured=lambda found: f"the cosines' deviation is {mean_and_spread(found['spread']['whole'][32.0], '.3f')}; {told(found, (LARGEST, 8))}",
)  # fmt: skip
def eight(found):
    """They move by at most a fiftieth of their deviation, and at least 95 % of the nearest texts stay."""
    return found["apart"][LARGEST][8] <= 0.02 * found["spread"]["whole"][32.0] and found["nearest"][LARGEST][8] >= 0.95


@section.claim(
    "Below four bits a bound of least error is better", paper="Nagel et al. 2021, arXiv:2106.08295, section 3.1",
    measured=lambda found: told(found, *((name, bits) for bits in (4, 3, 2) for name in (LARGEST, ERROR))),
)  # fmt: skip
def least_error(found):
    """At 3 and at 2 bits cosines move by at most 0.8 of what they move with the largest weight's."""
    return all(found["apart"][ERROR][bits] <= 0.8 * found["apart"][LARGEST][bits] for bits in (3, 2))


@section.claim(
    "Four bits for all weights are better than half of the weights", paper="Kuzmin et al. 2023, arXiv:2307.02973, abstract: quantisation is better than pruning",
    measured=lambda found: told(found, (ERROR, 4), (NF4, 4.5), (MAGNITUDE, 17.0), (PAIRS, 17.0), (THIN, 16.0)),
)  # fmt: skip
def bits_first(found):
    """With four bits cosines move by at most half of what they move with half of the weights, or with matrices as thin."""
    return max(found["apart"][ERROR][4], found["apart"][NF4][4.5]) <= 0.5 * min(found["apart"][MAGNITUDE][17.0], found["apart"][PAIRS][17.0], found["apart"][THIN][16.0])


@section.report
def report(found):
    rows = [[name, f"{bits:g}", mean_and_spread(found["apart"][name][bits], ".4f"), mean_and_spread(100 * found["nearest"][name][bits], ".0f")] for name, bits in WAYS]
    section.table("minilm_smaller", ["36 matrices", "bits a weight", "cosines move by", "% of the nearest that stay"], rows)
    section.values("minilm", {"spread": found["spread"]["whole"][32.0].mean(), "texts": TEXTS, "eight": found["apart"][LARGEST][8].mean(), "four": found["apart"][ERROR][4].mean()})


@section.figure("minilm_smaller", size=(6, 3.4))
def picture(ax, found):
    lines(ax, found["apart"], xlabel="bits a weight", ylabel="cosines move by", xscale="log", yscale="log")
    ax.axhline(float(np.mean(found["spread"]["whole"][32.0])), color="0.5", linestyle=":")
    ax.legend()


if __name__ == "__main__":
    section.main()
