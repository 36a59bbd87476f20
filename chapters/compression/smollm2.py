"""How much smaller can SmolLM2 be made without training it?

Frantar et al. 2022 (GPTQ), arXiv:2210.17323, and Lin et al. 2023 (AWQ), arXiv:2306.00978: with a look at what each matrix is multiplied with, four
bits a weight lose next to nothing, and three lose less than rounding. Sun et al. 2023 (Wanda), arXiv:2306.11695: the same look finds the half of the
weights that are not missed. SmolLM2-135M comes out of a file that has four bits a weight already (llama.cpp's Q4_1: blocks of 32 with a least value
each); what is made smaller here is what that file says, in other formats. Each seed has calibration texts of its own, and texts to be asked about.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.compression.calibration import least_error_magnitude
from minitransformers.models.llama import llama
from minitransformers.models.llama_gguf import load_llama_gguf
from minitransformers.models.published import published_file
from minitransformers.models.tokenizers.byte_pair_encoding import byte_pair_encode
from minitransformers.reporting import Section, bits, dots, matrices, mean_and_spread
from minitransformers.reporting.compression.smaller import side_by_side
from minitransformers.reporting.needs import missing_smollm2
from minitransformers.reporting.observed import observed

section = Section(__file__, __doc__, kind="trained", needs=missing_smollm2)
GROUP, WINDOW, READ, ASKED = 64, 256, 8, 2                   # weights that share a step; tokens; windows to calibrate with; windows to ask about
FILE = "as its file has it"
ROUNDED, FITTED, GPTQ, AWQ, NF4 = "rounded", "rounded, least error", "GPTQ", "AWQ", "NF4"
MAGNITUDE, WANDA, HALF, PAIRS = "magnitude", "Wanda", "half", "2 of 4"
MASKS = {
    (MAGNITUDE, HALF): matrices.half, (WANDA, HALF): matrices.wanda_half, (MAGNITUDE, PAIRS): matrices.pairs, (WANDA, PAIRS): matrices.wanda_pairs,
}  # fmt: skip
WAYS = {  # make(weight, inputs), where weight is all that is multiplied with the same inputs, side by side
    ROUNDED: partial(matrices.rounded, group=GROUP), FITTED: partial(matrices.rounded, group=GROUP, clip=least_error_magnitude),
    GPTQ: partial(matrices.by_gptq, group=GROUP), AWQ: partial(matrices.by_awq, group=GROUP, candidates=8),
}  # fmt: skip
ARMS = {(ROUNDED, "8 bits"): partial(WAYS[ROUNDED], bits=8), (NF4, "4 bits"): matrices.in_nf4}
ARMS |= {(name, f"{bits} bits"): partial(make, bits=bits) for bits in (4, 3) for name, make in WAYS.items()}
ARMS |= {name: partial(matrices.masked, mask=mask) for name, mask in MASKS.items()}
SIZE = {"8 bits": 8 + 32 / GROUP, "4 bits": 4 + 32 / GROUP, "3 bits": 3 + 32 / GROUP, HALF: 16 / 2 + 1, PAIRS: 16 / 2 + 1}  # bits a weight; what is not rounded in 16


# %% What is read, and what is asked
def windows(text, count, rng):
    starts = rng.integers(len(text) - WINDOW, size=count)
    return [text[None, start : start + WINDOW + 1] for start in starts]


def bits_a_token(params, settings, asked):
    """Of the second half of each window."""
    nats = [cross_entropy(llama(params, ids=ids[:, :-1], **settings)[0][:, WINDOW // 2 :], targets=ids[:, WINDOW // 2 + 1 :])[0] for ids in asked]
    return bits(np.mean(nats))


@section.experiment
def experiment(rng):
    from pydoc_data.topics import topics

    model = load_llama_gguf(published_file("smollm2"))
    base, settings, text = model.params, model.settings, "\n".join(topics[name] for name in sorted(topics))
    cut = len(text) * 9 // 10
    known, unknown = (byte_pair_encode(part, vocabulary=model.vocabulary) for part in (text[:cut], text[cut:]))
    inputs = observed(base, (ids[:, :-1] for ids in windows(known, READ, rng)), **settings)
    asked = windows(unknown, ASKED, rng)
    yield FILE, "4 bits", {"bits": bits_a_token(base, settings, asked)}
    for (name, size), make in ARMS.items():
        yield name, size, {"bits": bits_a_token(side_by_side(make, base, inputs), settings, asked)}


# %%
def whole(found):
    return found["bits"][FILE]["4 bits"]


def cost(found, name, size):
    """Bits a token more than the model out of its file."""
    return found["bits"][name][size] - whole(found)


def told(found, size, *names):
    return f"{size}: " + ", ".join(f"{name} {mean_and_spread(cost(found, name, size), '+.3f')}" for name in names)


@section.claim(
    "Do four bits lose less with a look at the inputs?",
    paper="Frantar et al. 2022, arXiv:2210.17323, table 3; Lin et al. 2023, arXiv:2306.00978, table 4",
    measured=lambda found: f"bits a token more than {mean_and_spread(whole(found), '.2f')}; {told(found, '4 bits', ROUNDED, FITTED, GPTQ, AWQ, NF4)}",
)
def four(found):
    """GPTQ and AWQ cost at most 0.8 of what rounding costs."""
    return max(cost(found, name, "4 bits") for name in (GPTQ, AWQ)) <= 0.8 * cost(found, ROUNDED, "4 bits")


@section.claim(
    "And do three bits lose much less?",
    paper="Frantar et al. 2022, arXiv:2210.17323, table 3: rounding to three bits breaks the model, GPTQ does not",
    measured=lambda found: told(found, "3 bits", ROUNDED, FITTED, GPTQ, AWQ),
)
def three(found):
    """GPTQ and AWQ cost at most half of what rounding costs."""
    return max(cost(found, name, "3 bits") for name in (GPTQ, AWQ)) <= 0.5 * cost(found, ROUNDED, "3 bits")


@section.claim(
    "Inputs tell which half of the weights is not missed",
    paper="Sun et al. 2023, arXiv:2306.11695, table 2: magnitude ruins what Wanda keeps",
    measured=lambda found: "; ".join(told(found, size, MAGNITUDE, WANDA) for size in (HALF, PAIRS)),
)
def half(found):
    """Half of the weights, and two of each four, taken out by Wanda cost at most 0.6 of what they cost by magnitude."""
    return all(cost(found, WANDA, size) <= 0.6 * cost(found, MAGNITUDE, size) for size in (HALF, PAIRS))


@section.claim(
    "Does half of the weights at 16 bits lose less than all of them at four?",
    paper="Kuzmin et al. 2023, arXiv:2307.02973, asked the other way round: quantisation is better than pruning",
    measured=lambda found: f"{told(found, '4 bits', GPTQ, AWQ)}; {told(found, HALF, WANDA)}",
)
def prune_or_round(found):
    """The better half costs no more than the better four bits."""
    return cost(found, WANDA, HALF) <= min(cost(found, name, "4 bits") for name in (GPTQ, AWQ))


@section.report
def report(found):
    rows = [[FILE, "5", mean_and_spread(whole(found), ".3f"), ""]]
    for name, size in ARMS:
        rows.append([f"{name}, {size}", f"{SIZE[size]:g}", mean_and_spread(found["bits"][name][size], ".3f"), mean_and_spread(cost(found, name, size), "+.3f")])
    section.table("smollm2_smaller", ["210 matrices", "bits a weight", "bits a token", "more"], rows)
    keys = {ROUNDED: "rounded", FITTED: "fitted", GPTQ: "gptq", AWQ: "awq", NF4: "nf4", MAGNITUDE: "magnitude", WANDA: "wanda"}
    for name, size in ARMS:
        section.value(f"smollm2.{keys[name]}.{size.replace(' ', '_')}", cost(found, name, size).mean())
    section.values("smollm2", {"before": whole(found).mean(), "read": READ * WINDOW, "asked": ASKED * WINDOW // 2, "group": GROUP})


@section.figure("smollm2_smaller", size=(6, 4))
def picture(ax, found):
    rows = {f"{name}, {size}": found["bits"][name][size] for name, size in ARMS}
    dots(ax, rows, at=float(np.mean(whole(found))), xlabel="bits a token")


if __name__ == "__main__":
    section.main()
