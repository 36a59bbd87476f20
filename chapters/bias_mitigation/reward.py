"""What does a policy trained to avoid flagged symbols give up, with and without a price for leaving its reference?

Williams 1992, doi:10.1007/BF00992696: the gradient of a mean reward. Stiennon et al. 2020, arXiv:2009.01325: a price for the
divergence from a reference keeps a policy from what rewards leave out; Gao et al. 2022, arXiv:2210.10760, measure how far it then
goes wrong. A policy writes twelve of 20 symbols, each by the one before it, two of them flagged. The reward is -1 for each that
is flagged; a second reward has besides a score for every other symbol, as a careless lexicon would. Texts are drawn in training
alone: what stands in the table are exact sums over all texts. Masking the two symbols while writing is the trivial way: it trains
nothing.
"""

# %%
import numpy as np

from minitransformers.reporting import Section, lines, mean_and_spread, ticks_at, tried
from minitransformers.reporting.bias_mitigation.rewarded import (
    FLAGGED,
    SYMBOLS,
    Rewarded,
    drawn_reference,
    earned,
    judged,
    learned,
    masked,
)

section = Section(__file__, __doc__, kind="trained")
FLAGS, LEXICON = "flags", "flags and a lexicon"
ADAM, PLAIN = "Adam", "plain steps"
PRICES = (0, 0.1, 0.3, 1, 3)
ARMS = {f"{optimizer}, {reward}, {price:g}": (optimizer, reward, price)
        for optimizer, reward, prices in ((ADAM, FLAGS, PRICES), (ADAM, LEXICON, (0, 0.1, 0.3)), (PLAIN, FLAGS, (0, 0.1)), (PLAIN, LEXICON, (0, 0.1)))
        for price in prices}  # fmt: skip
REFERENCE, MASKED = "reference", "masked by hand"


# %% The two rewards, and how a policy is trained
def drawn_language(rng):
    """A reference, and what each symbol is worth by each reward."""
    reference, flags = drawn_reference(rng), np.where(np.arange(SYMBOLS) < FLAGGED, -1.0, 0.0)
    return reference, {FLAGS: flags, LEXICON: flags + np.where(flags < 0, 0, rng.uniform(0, 0.3, size=SYMBOLS))}


def trained(name, reference, worths, rng, rate):
    optimizer, reward, price = ARMS[name]
    return learned(Rewarded(reference, worths[reward], price), rng, steps=10 if section.quick else 600, rate=rate, plain=optimizer == PLAIN)


@section.tuning
def tuning(rng):
    def lost(name, rng, rate):
        reference, worths = drawn_language(rng)
        table, (_, reward, price) = trained(name, reference, worths, rng, rate), ARMS[name]
        return price * judged(table, reference)["divergence"] - earned(table, worths[reward])

    def few(optimizer, reward, price):                       # without a price the largest is best, however large: the loss only comes nearer to its end
        if optimizer == PLAIN:
            return (3.0, 10.0, 30.0, 100.0, 300.0)
        return (1e-3, 3e-3, 1e-2, 3e-2, 0.1) if price >= 1 else (0.03, 0.1, 0.3, 1.0, 3.0)

    yield from tried(lost, ARMS, {name: few(*arm)[1:3] if section.quick else few(*arm) for name, arm in ARMS.items()}, rng)


@section.experiment
def experiment(rng):
    reference, worths = drawn_language(rng)
    yield REFERENCE, "all", judged(reference, reference)
    yield MASKED, "all", judged(masked(reference), reference)
    start = rng.integers(2**32)
    for name, (optimizer, reward, price) in ARMS.items():
        yield f"{optimizer}, {reward}", price, judged(trained(name, reference, worths, np.random.default_rng(start), section.rates[name]), reference)


# %%
BY_FLAGS = f"{ADAM}, {FLAGS}"


def told(found, measure, curve=BY_FLAGS, form=".2f"):
    return f"{curve}: " + ", ".join(f"{mean_and_spread(values, form)} at a price of {price:g}" for price, values in found[measure][curve].items())


@section.claim(
    "With a small price few symbols are flagged and nearly all are still written",
    paper="Stiennon et al. 2020, arXiv:2009.01325, section 3.4: the price keeps the policy near its reference",
    measured=lambda found: f"flagged: {mean_and_spread(found['flagged'][REFERENCE]['all'], '.3f')} before; {told(found, 'flagged', form='.3f')}. "
    f"Effective symbols: {mean_and_spread(found['effective'][REFERENCE]['all'], '.1f')} before; {told(found, 'effective', form='.1f')}",
)
def small_price(found):
    """At a price of 0.1 at most 0.02 of all symbols are flagged, and the effective number of symbols is at least 15."""
    return found["flagged"][BY_FLAGS][0.1] <= 0.02 and found["effective"][BY_FLAGS][0.1] >= 15


@section.claim(
    "Does the policy collapse without a price, though nothing in the reward asks for it?",
    paper="no paper: a reward that is 0 for every clean text prefers none of them",
    measured=lambda found: "effective symbols without a price: " + ", ".join(
        f"{optimizer}, {reward} {mean_and_spread(found['effective'][f'{optimizer}, {reward}'][0], '.1f')}" for optimizer in (ADAM, PLAIN) for reward in (FLAGS, LEXICON)),
)  # fmt: skip
def collapse(found):
    """With flags alone and Adam, the effective number of symbols is at most 5."""
    return found["effective"][BY_FLAGS][0] <= 5


@section.claim(
    "A lexicon in the reward is hacked where nothing stops it",
    paper="Gao et al. 2022, arXiv:2210.10760: what is rewarded goes up, what was meant goes down",
    measured=lambda found: told(found, "effective", f"{ADAM}, {LEXICON}", ".1f") + "; " + told(found, "effective", f"{PLAIN}, {LEXICON}", ".1f"),
)
def hacked(found):
    """Without a price the effective number of symbols is at most 5 with Adam and with plain steps, and at a price of 0.3 with Adam at least 10."""
    adam, plain = (found["effective"][f"{optimizer}, {LEXICON}"] for optimizer in (ADAM, PLAIN))
    return adam[0] <= 5 and plain[0] <= 5 and adam[0.3] >= 10


@section.claim(
    "A high price keeps the flagged symbols",
    paper="Stiennon et al. 2020, arXiv:2009.01325, section 3.4: the price is traded against the reward",
    measured=lambda found: told(found, "flagged", form=".3f"),
)
def high_price(found):
    """At a price of 3 at least 0.05 of all symbols are flagged."""
    return found["flagged"][BY_FLAGS][3] >= 0.05


@section.claim(
    "Does training come near to masking by hand?",
    paper="no paper: where what is unwanted can be listed, it need not be learned",
    measured=lambda found: f"masked: flagged {mean_and_spread(found['flagged'][MASKED]['all'], '.3f')}, nats of clean text {mean_and_spread(found['clean'][MASKED]['all'], '.3f')}; "
    f"nats of clean text, {told(found, 'clean', form='.3f')}",
)
def near_mask(found):
    """At a price of 0.1 at most 0.005 of all symbols are flagged, and clean text costs at most 0.05 nats more than with the mask.

    Nothing can cost less than the mask there.
    """
    return found["flagged"][BY_FLAGS][0.1] <= 0.005 and found["clean"][BY_FLAGS][0.1] <= found["clean"][MASKED]["all"] + 0.05


@section.report
def report(found):
    rows = []
    names = [(REFERENCE, "all", "reference"), (MASKED, "all", "masked")]
    keys = {ADAM: "adam", PLAIN: "plain", FLAGS: "flags", LEXICON: "lexicon"}
    names += [(f"{optimizer}, {reward}", price, f"{keys[optimizer]}_{keys[reward]}.p{100 * price:.0f}") for optimizer, reward, price in ARMS.values()]
    for curve, x, key in names:
        of = {measure: curves[curve][x] for measure, curves in found.items()}
        forms = {"flagged": ".3f", "divergence": ".3f", "entropy": ".2f", "effective": ".1f", "clean": ".3f"}
        rows.append([curve, f"{x:g}" if x != "all" else "–", *(mean_and_spread(of[measure], form) for measure, form in forms.items())])
        section.values(f"reward.{key}", {measure: of[measure].mean() for measure in forms})
    columns = ["policy", "price", "flagged share", "divergence, nats", "entropy, nats", "effective symbols", "nats of clean text"]
    section.table("reward", columns, rows)


@section.figure("reward", size=(7, 3.2), ncols=2)
def picture(axes, found):
    for ax, measure, label in zip(axes, ("flagged", "effective"), ("flagged share", "effective symbols"), strict=True):
        trained = {curve: points for curve, points in found[measure].items() if "all" not in points}
        curves = {curve: {max(price, 0.03): values for price, values in points.items()} for curve, points in trained.items()}
        lines(ax, curves, xlabel="price of a nat (leftmost: 0)", ylabel=label, xscale="log", ylim=(0, None))
        ax.axhline(float(np.mean(found[measure][REFERENCE]["all"])), color="#808080", linestyle=":")
        ticks_at(ax, [0.1, 0.3, 1, 3])
    axes[1].legend(fontsize=7)


if __name__ == "__main__":
    section.main()
