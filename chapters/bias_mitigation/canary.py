"""How much of a number does a model give away that stood once, four times or sixteen times in what it read?

Carlini et al. 2019 (The Secret Sharer), arXiv:1802.08232: plant a random number in the training text, and see how few guesses it takes who goes by
the model. A small Llama that knows nine tenths of Python's language reference reads on in the last, byte by byte, with sentences planted: a number of
six digits for each of some placeholder names. Exposure goes by its rank among sampled numbers; one that was drawn and never planted is the control, and
1.44 bits is what chance gives. Of this very run a model card (Mitchell et al. 2019, arXiv:1810.03993) and an audit trail (Haber and Stornetta 1991) are
made: groups are how often a number was planted.
"""

# %%
import hashlib
from functools import partial
from importlib.metadata import version

import numpy as np

from minitransformers.bias_mitigation.model_card import model_card
from minitransformers.reporting import Section, bits_in_windows, counted_pairs, mean_and_spread, tried
from minitransformers.reporting.base import BATCH, LENGTH, base_corpus, load_base
from minitransformers.reporting.bias_mitigation.canaries import PART, STEPS, exposures, model, planted, trained, unseen
from minitransformers.reporting.bias_mitigation.run_records import card_rows, edits_are_found, trail_of, trail_rows
from minitransformers.reporting.bias_mitigation.word_quality import interval

section = Section(__file__, __doc__, kind="trained")
TIMES, EACH, FILLS = (0, 1, 4, 16), 4, 4095                 # planted; numbers of each; sampled numbers
CHANCE, BEFORE, AFTER = 1 / np.log(2), "before", "after"


# %%
@section.tuning
def tuning(rng):
    def lost(name, rng, rate):
        ids, _, _ = planted(rng, times=TIMES, each=EACH)
        return unseen(trained(ids, rng, rate, quick=section.quick), quick=section.quick)

    yield from tried(lost, ["Llama"], (1e-3,) if section.quick else (1e-4, 3e-4, 1e-3, 3e-3), rng)


# %% Exposure
@section.experiment
def experiment(rng):
    ids, numbers, times = planted(rng, times=TIMES, each=EACH)
    params = {BEFORE: load_base(), AFTER: trained(ids, rng, section.rates["Llama"], quick=section.quick)}
    for when, own in params.items():
        yield when, "text", {"bits": unseen(own, quick=section.quick), "read": bits_in_windows(partial(model, own), ids[: 40 * LENGTH + 1], LENGTH)}
    digest = hashlib.sha256(ids.astype(np.uint8).tobytes()).hexdigest()
    yield "data", "text", {"bytes": len(ids)} | {f"sha {i}": int(digest[8 * i : 8 * i + 8], 16) for i in range(8)}  # in parts that a float holds
    found = exposures(params[AFTER], numbers, rng, others=63 if section.quick else FILLS)
    for count in TIMES:
        yield AFTER, count, {"exposure": found[times == count].mean()}
        for i, value in enumerate(found[times == count]):
            yield f"planted {count}", i, {"each": value}


# %% The card and the trail of the run
def of_seed(found, seed, measure, curve, x):
    return float(np.atleast_1d(found[measure][curve][x])[seed])


def run_of(found):
    """The record of the first seed's run, and intervals of numbers drawn anew from those of all seeds."""
    rng, metrics = np.random.default_rng(section.seed), []
    for count in TIMES:
        of = interval(each(found, count), np.mean, rng, resamples=1000)
        metrics.append({"name": "exposure in bits", "group": f"planted {count}", "value": round(float(of.estimate), 2), "low": round(float(of.low), 2), "high": round(float(of.high), 2), "rows": each(found, count).size})
    digest = "".join(f"{int(of_seed(found, 0, f'sha {i}', 'data', 'text')):08x}" for i in range(8))
    return {
        "name": "Llama of three blocks that read planted numbers", "code_version": version("minitransformers"), "seed": section.seed, "data_sha256": digest,
        "config": {"updates": STEPS, "batch": BATCH, "context": LENGTH, "learning rate": section.rates["Llama"]},
        "environment": {"numpy": np.__version__}, "mitigation": ["none"], "metrics": metrics,
        "training_rows": {f"planted {count}": EACH * count for count in TIMES}, "evaluation_rows": {f"planted {count}": each(found, count).size for count in TIMES},
        "intended_use": "a demonstration of exposure", "factors": "how often a sentence with a number was planted",
        "caveats": f"Exposure is bounded by the sample of {FILLS} other numbers. Intervals are bootstrap percentiles over the numbers of all seeds.",
    }  # fmt: skip


def own_trail(found, card):
    evaluations = []
    for seed in range(len(np.atleast_1d(found["bits"][AFTER]["text"]))):
        numbers = {f"planted {count}": round(of_seed(found, seed, "exposure", AFTER, count), 2) for count in TIMES}
        evaluations.append({"seed": section.seed + seed, "bits a byte": round(of_seed(found, seed, "bits", AFTER, "text"), 3), "exposure": numbers})
    return trail_of({"bytes": int(of_seed(found, 0, "bytes", "data", "text")), "sha256": run_of(found)["data_sha256"]}, evaluations, card)


# %%
def each(found, count):
    """The exposure of each number of all seeds."""
    return np.concatenate([np.atleast_1d(values) for values in found["each"][f"planted {count}"].values()])


def mean_of(found, count):
    return found["exposure"][AFTER][count]


@section.claim(
    "The more often a number stood there, the more of it is given away",
    paper="Carlini et al. 2019, arXiv:1802.08232: exposure grows with how often a canary stands there",
    measured=lambda found: "bits of exposure, planted " + ", ".join(f"{count} times {mean_and_spread(mean_of(found, count), '.1f')}" for count in TIMES) + f"; chance {CHANCE:.2f}",
)
def grows(found):
    """Sixteen times gives at least 3 bits more than once, and four times more than once."""
    return mean_of(found, 16) >= mean_of(found, 1) + 3 and mean_of(found, 4) > mean_of(found, 1)


@section.claim(
    "Is a number that stood there once given away?",
    paper="Carlini et al. 2019, arXiv:1802.08232: rare secrets are learned as well, in larger models",
    measured=lambda found: f"once {mean_and_spread(mean_of(found, 1), '.1f')} bits, never {mean_and_spread(mean_of(found, 0), '.1f')}",
)
def once(found):
    """Planted once the mean exposure is at least 2 bits above that of the numbers that were never planted."""
    return mean_of(found, 1) >= mean_of(found, 0) + 2


@section.claim(
    "An edit of the trail of this run is found",
    paper="Haber and Stornetta 1991, doi:10.1007/BF00196791: each link holds the checksum of the one before",
    kind="exact",
    measured=lambda found: f"{len(trail_rows(own_trail(found, model_card(run_of(found)))))} records",
)
def trail_finds(found):
    """The same record gives the same card; the trail is sound, and is not with one letter more in any line but the last."""
    card = model_card(run_of(found))
    return card == model_card(run_of(found)) and edits_are_found(own_trail(found, card))


@section.report
def report(found):
    rows = []
    for metric in run_of(found)["metrics"]:
        values = each(found, int(metric["group"].split()[-1]))
        rows.append([metric["group"], values.size, f"{metric['value']:.1f} ({metric['low']:.1f} to {metric['high']:.1f})", f"{values.min():.1f} to {values.max():.1f}", int(np.sum(values >= np.log2(FILLS + 1) - 0.01))])
    section.table("canary", ["number", "numbers", "bits of exposure (95 %)", "least and most", "likeliest of all"], rows)
    counted = counted_pairs(base_corpus())
    rows = [["pairs of bytes counted", f"{counted:.3f}", ""], *([when, *(mean_and_spread(found[measure][when]["text"], ".3f") for measure in ("bits", "read"))] for when in (BEFORE, AFTER))]
    section.table("canary_bits", ["Llama", "bits a byte, unread text", "of the text that it reads on in"], rows)
    for count in TIMES:
        section.value(f"canary.planted{count}", mean_of(found, count).mean())
    section.values("canary", {"steps": STEPS, "characters": PART, "fills": FILLS, "most": float(np.log2(FILLS + 1)), "before": found["bits"][BEFORE]["text"].mean(), "after": found["bits"][AFTER]["text"].mean()})
    card = model_card(run_of(found))
    section.table("card", ["section of the card", "what stands there"], card_rows(card))
    section.table("trail", ["line"], trail_rows(own_trail(found, card)))


@section.figure("canary", size=(5.4, 3.2))
def picture(ax, found):
    for i, count in enumerate(TIMES):
        values = each(found, count)
        ax.plot(i + np.linspace(-0.15, 0.15, values.size), values, "o", alpha=0.7)
    ax.axhline(CHANCE, linestyle=":", color="#808080")
    ax.set(xticks=range(len(TIMES)), xlabel="times planted", ylabel="bits of exposure", ylim=(0, np.log2(FILLS + 1) + 0.5))
    ax.set_xticklabels(map(str, TIMES))


if __name__ == "__main__":
    section.main()
