"""Does LoRA's first step depend on its rank?

Kalajdzievski 2023, arXiv:2312.03732: with a scale of alpha / rank what the adapter adds shrinks as the rank grows, and with alpha / sqrt(rank) it
stays. One step of gradient descent from the start, with the same rate: how far does the output of one map move? Inputs and the gradient of the
outputs are random, for one position and for a batch of 256. The theorem is about one input. What a batch does stands beside it.
"""

# %%
import numpy as np

from minitransformers.basics.linear import Linear
from minitransformers.peft.lora_linear import Lora, init_lora, lora_linear, lora_scale, rank_stabilised_scale
from minitransformers.reporting import Section, fitted_exponent, lines, mean_and_spread, ticks_at

section = Section(__file__, __doc__, kind="arithmetic")
RANKS, WIDTH, ALPHA, RATE = (1, 2, 4, 8, 16, 32, 64), 256, 8.0, 1e-3
SCALES = {"α / r": lora_scale, "α / √r": rank_stabilised_scale}
COUNTS = {"one position": (1, 64), "a batch": (256, 1)}         # positions, and starts over which the square is a mean


# %%
@section.experiment
def experiment(rng):
    base = Linear(np.zeros((WIDTH, WIDTH)), None)
    for batch, (count, starts) in COUNTS.items():
        x, dout = rng.normal(size=(2, starts, count, WIDTH))
        for rank in RANKS:
            begun = [init_lora(rng, WIDTH, WIDTH, rank=rank, dtype=np.float64) for _ in range(starts)]
            for name, scale_of in SCALES.items():
                squares = [first_step(*own, base=base, scale=scale_of(ALPHA, rank)) for own in zip(begun, x, dout, strict=True)]
                yield f"{name}, {batch}", rank, {"moved": np.mean(squares) ** 0.5}


def first_step(start, x, dout, **settings):
    """The mean square of what one step of gradient descent adds to the output."""
    before, backward = lora_linear(start, x, **settings)
    dparams, _ = backward(dout)
    after, _ = lora_linear(Lora(*(own - RATE * d for own, d in zip(start, dparams, strict=True))), x, **settings)
    return np.mean((after - before) ** 2)


def power(found, curve):
    """Of the rank, by which the output moves."""
    return fitted_exponent(RANKS, [np.mean(found["moved"][curve][rank]) for rank in RANKS])


def powers(found, batch):
    return {name: power(found, f"{name}, {batch}") for name in SCALES}


def told(batch):
    return lambda found: ", ".join(f"with {name} the rank to the power {power:.2f}" for name, power in powers(found, batch).items())


# %%
@section.report
def report(found):
    rows = [[curve, *(mean_and_spread(found["moved"][curve][rank], ".3f") for rank in RANKS), f"{power(found, curve):.2f}"] for curve in found["moved"]]
    section.table("scale", ["the output moves by", *(f"rank {rank}" for rank in RANKS), "power of the rank"], rows)
    for key, batch in (("one", "one position"), ("batch", "a batch")):
        section.values(f"scale.{key}", dict(zip(("plain", "rooted"), powers(found, batch).values(), strict=True)))


@section.claim(
    "For one position the first step is the same for every rank with α / √r, and shrinks as 1 / r with α / r",
    paper="Kalajdzievski 2023, arXiv:2312.03732, theorem 3.2", measured=told("one position"),
)
def level_for_one(found):
    """The fitted power of the rank is within 0.15 of 0 with the root, and within 0.15 of -1 without."""
    plain, rooted = powers(found, "one position").values()
    return abs(rooted) <= 0.15 and abs(plain + 1) <= 0.15


@section.claim(
    "Is it so for a batch as well?",
    paper="Kalajdzievski 2023, arXiv:2312.03732, section 3: the theorem is stated for each input", measured=told("a batch"),
)
def level_for_a_batch(found):
    """The fitted power of the rank is within 0.15 of 0 with the root, and within 0.15 of -1 without, for all 256 positions together."""
    plain, rooted = powers(found, "a batch").values()
    return abs(rooted) <= 0.15 and abs(plain + 1) <= 0.15


@section.figure("scale", size=(6, 2.8))
def moved(axes, found):
    lines(axes, found["moved"], xscale="log", yscale="log", xlabel="rank", ylabel="the output moves by")
    ticks_at(axes, list(RANKS))
    axes.legend(fontsize="small")


if __name__ == "__main__":
    section.main()
