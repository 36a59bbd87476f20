"""What does a byte buy when a model is small already?

Dettmers et al. 2023, arXiv:2305.14314: LoRA beside a base in four bits does as well as beside the base itself. Zimmer et al. 2023,
arXiv:2312.15230: LoRA under the mask of a pruned base, whose zeros stay. The reader of the shifting language, its twelve matrices as they are, in
NF4, half of them zero, or two of each four; each learns the new table by LoRA of rank 4. Bytes are counted: 16 bits a number, NF4 half a byte and
a scale of four for 64, and a bit of mask for each place of a pruned matrix.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.foundation import reparameterize, trees
from minitransformers.peft.lora import lora
from minitransformers.peft.masked_lora import masked_lora
from minitransformers.peft.targets import at_targets, targets
from minitransformers.reporting import Section, matrices, mean_and_spread, tried
from minitransformers.reporting import adaptation as at
from minitransformers.reporting.peft import fine_tuning as tuned

section = Section(__file__, __doc__, kind="trained")
RANK = 4
NONE, HEAD, FULL, LORA, NF4 = "nothing", "head alone", "all weights", "LoRA", "NF4 + LoRA"
HALF, HALF_PLAIN, PAIRS = "half + masked LoRA", "half + LoRA, dense again", "2 of 4 + masked LoRA"


# %% The base, smaller
def smaller(base, make):
    """The base with its twelve matrices made smaller."""
    made = at_targets(make, base, tuned.EVERYWHERE)
    return reparameterize(made, base=base)[0]


larger_half, two_of_four = (partial(matrices.masked, mask=mask) for mask in (matrices.half, matrices.pairs))
BITS = {"float": 16, NF4: 4 + 32 / 64, HALF: 8 + 1, PAIRS: 8 + 1}   # of a number in the twelve matrices
ARMS = {
    HEAD: (None, "float", None), FULL: (None, "float", None), LORA: (None, "float", lora), NF4: (matrices.in_nf4, NF4, lora),
    HALF: (larger_half, HALF, masked_lora), HALF_PLAIN: (larger_half, HALF, lora), PAIRS: (two_of_four, PAIRS, masked_lora),
}  # fmt: skip
KEYS = {"head": HEAD, "all": FULL, "lora": LORA, "nf4": NF4, "half": HALF, "dense": HALF_PLAIN, "pairs": PAIRS}
RATES = {FULL: (3e-4, 1e-3, 3e-3, 1e-2)}


# %%
def begun(name, rng, base):
    """What is trained, and the model that it makes."""
    change = ARMS[name][2]
    if change is not None:
        return tuned.low_rank(rng, base, rank=RANK, change=change)
    return tuned.all_weights(rng, base) if name == FULL else tuned.head_alone(rng, base)


def prepared(name):
    make = ARMS[name][0]
    return at.load_reader() if make is None else smaller(at.load_reader(), make)


def lost(name, rng, language, peak):
    trained, run = begun(name, rng, prepared(name))
    return at.left(at.fine_tuned(trained, run, language, rng, steps=10 if section.quick else 150, peak=peak), run, language), trained


@section.tuning
def tuning(rng):
    language = at.shifted(at.language(), rng)
    rates = {name: RATES.get(name, (1e-2, 3e-2, 1e-1, 3e-1)) for name in ARMS}
    yield from tried(lambda name, rng, rate: lost(name, rng, language, rate)[0], ARMS, rates, rng)


@section.experiment
def experiment(rng):
    language = at.shifted(at.language(), rng)
    yield NONE, 0, {"excess": at.left(at.load_reader(), at.reader, language), "old": at.left(at.load_reader(), at.reader, at.language())}
    for name in ARMS:
        excess, trained = lost(name, rng, language, section.rates[name])
        yield name, 0, {"excess": excess, "old": at.left(prepared(name), at.reader, at.language()), "numbers": trees.count_parameters(trained)}


def bytes_of(name, trained):
    """Of the base and what is beside it; and with Adam's two moments, four bytes each."""
    base = at.load_reader()
    chosen = set(targets(base, tuned.EVERYWHERE))
    matrices = sum(leaf.size for path, leaf in trees.leaves(base) if path in chosen)
    stored = matrices * BITS[ARMS[name][1] if name in ARMS else "float"] / 8 + 2 * (trees.count_parameters(base) - matrices)
    stored += 2 * trained if name not in (NONE, HEAD, FULL) else 0
    return stored, stored + 8 * trained


# %%
@section.report
def report(found):
    rows = []
    for name, of in found["excess"].items():
        trained = float(np.mean(found["numbers"][name][0])) if name in found["numbers"] else 0
        stored, with_adam = bytes_of(name, trained)
        old = mean_and_spread(found["old"][name][0], ".3f")
        rows.append([name, f"{trained:,.0f}", f"{stored:,.0f}", f"{with_adam:,.0f}", old, mean_and_spread(of[0], ".3f")])
    section.table("bytes", ["base and what is trained", "numbers", "bytes stored", "with Adam's moments", "old table, nats too many", "new table"], rows)
    section.values("bytes.stored", {key: bytes_of(name, np.mean(found["numbers"][name][0]))[0] for key, name in KEYS.items()})
    section.values("bytes.lost", {key: np.mean(found["excess"][name][0]) for key, name in KEYS.items()})


def told(*names):
    return lambda found: "; ".join(f"{name} {mean_and_spread(found['excess'][name][0], '.3f')}" for name in names)


@section.claim(
    "LoRA beside a base in four bits loses little beside LoRA on the base itself, at three fifths of the bytes",
    paper="Dettmers et al. 2023, arXiv:2305.14314, section 4: recovers the performance of 16 bits", measured=told(LORA, NF4),
)
def four_bits_do(found):
    """At most 1.25 times the loss, at less than 0.6 of the bytes."""
    fewer = bytes_of(NF4, found["numbers"][NF4][0])[0] < 0.6 * bytes_of(LORA, found["numbers"][LORA][0])[0]
    return fewer and found["excess"][NF4][0] <= 1.25 * found["excess"][LORA][0]


@section.claim(
    "Masked LoRA on half of the weights beats the head alone, and does not reach LoRA on all",
    paper="Zimmer et al. 2023, arXiv:2312.15230, section 3: close to full retraining", measured=told(HEAD, HALF, PAIRS, LORA),
)
def masked_between(found):
    """Both masks lose at most 0.9 of the head alone, and at least 1.05 times LoRA on the whole base."""
    both = [found["excess"][name][0] for name in (HALF, PAIRS)]
    return max(both) <= 0.9 * found["excess"][HEAD][0] and min(both) >= 1.05 * found["excess"][LORA][0]


@section.claim(
    "Does the mask cost anything, beside LoRA that fills the zeros?",
    paper="no paper: what is bought with a dense merge", measured=told(HALF, HALF_PLAIN),
)
def the_mask_costs(found):
    """Plain LoRA on the half loses at most 0.95 of what masked LoRA loses."""
    return found["excess"][HALF_PLAIN][0] <= 0.95 * found["excess"][HALF][0]


@section.figure("bytes", size=(6.4, 3.2))
def bytes_against_loss(axes, found):
    for name in ARMS:
        x, y = bytes_of(name, float(np.mean(found["numbers"][name][0])))[0], found["excess"][name][0]
        axes.plot([x] * np.size(y), np.atleast_1d(y), "o", label=name)
    axes.set(xlabel="bytes stored", ylabel="nats too many")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


if __name__ == "__main__":
    section.main()
