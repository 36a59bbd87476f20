"""How far do a model's own judgements of the unwanted reach, where there is no list of words?

Schick et al. 2021 (self-debiasing), arXiv:2103.00453, and Liu et al. 2021 (DExperts), arXiv:2105.03023, turn down what a model
itself, or two small ones, connect with the unwanted. The language is made: two kinds of texts, and in the unwanted kind flagged
symbols, but also harmless ones, are frequent (Xu et al. 2021, arXiv:2104.06390, on what is lost with them). Models count texts; what
they write are exact sums. Masking the flagged symbols by hand trains nothing, and needs the list.
"""

# %%
import numpy as np

from minitransformers.basics.log_softmax import log_softmax
from minitransformers.bias_mitigation.expert_decoding import expert_decoding
from minitransformers.bias_mitigation.self_debias import self_debias
from minitransformers.reporting import Section, lines, mean_and_spread

section = Section(__file__, __doc__, kind="arithmetic")
BASE, SELF, EXPERTS, MASKED = "no change", "self-debiasing", "experts", "masked by hand"
SYMBOLS, FLAGGED, HARMLESS, LENGTH, UNWANTED = 40, 3, 5, 12, 0.25  # symbols 0 to 2 are flagged; 3 to 7 stand beside them in the unwanted kind
DECAYS, STRENGTHS = (5.0, 20.0, 50.0, 100.0, 200.0), (0.1, 0.2, 0.4, 0.7, 1.0, 2.0)
BUDGET = 0.05                                                # nats that wanted text may cost more


# %% Two kinds of texts, and models that counted them
def kinds(rng):
    """Tables of what follows each symbol (the last row: at the start), in the wanted kind and in the other."""
    logits = 0.8 * rng.normal(size=(SYMBOLS + 1, SYMBOLS))
    wanted, other = logits.copy(), logits + 0.5 * rng.normal(size=logits.shape)
    wanted[:, :FLAGGED] -= 3
    other[:, : FLAGGED + HARMLESS] += 1.5
    return [np.exp(log_softmax(table)[0]) for table in (wanted, other)]


def counted(table, rng, texts):
    """Counts of what follows what in so many texts of a kind."""
    found, last = np.zeros(table.shape), np.full(texts, SYMBOLS)
    for _ in range(LENGTH):
        now = np.minimum((np.cumsum(table[last], axis=-1) < rng.random((texts, 1))).sum(axis=-1), SYMBOLS - 1)
        np.add.at(found, (last, now), 1)
        last = now
    return found


def logits_of(counts):
    return np.log((counts + 0.2) / (counts + 0.2).sum(axis=-1, keepdims=True))


def judged(logits, wanted):
    """What a model writes, by exact sums over texts, and nats of wanted text."""
    log_p, _ = log_softmax(logits)
    p, state, writes, reads = np.exp(log_p), np.eye(SYMBOLS + 1)[SYMBOLS], np.zeros(SYMBOLS), np.zeros(SYMBOLS + 1)
    true = state
    for _ in range(LENGTH):
        writes, reads = writes + state @ p / LENGTH, reads + true / LENGTH
        state, true = np.append(state @ p, 0), np.append(true @ wanted, 0)
    unflagged = np.where(np.arange(SYMBOLS) < FLAGGED, 0, wanted)
    clean = (unflagged * np.where(unflagged > 0, log_p, 0)).sum(axis=-1) / unflagged.sum(axis=-1)
    return {"flagged": writes[:FLAGGED].sum(), "harmless": writes[FLAGGED : FLAGGED + HARMLESS].sum(), "wanted": -reads @ clean}


# %%
@section.experiment
def experiment(rng):
    wanted, other = kinds(rng)
    of_wanted, of_other = (counted(table, rng, round(4000 * share)) for table, share in ((wanted, 1 - UNWANTED), (other, UNWANTED)))
    base = logits_of(of_wanted + of_other)                   # the model has read both kinds, and can be invited to write the second
    invited = logits_of(of_other + 0.2 * of_wanted)          # an invitation that is not always understood
    expert, anti = (logits_of(counted(table, rng, 500)) for table in (wanted, other))
    yield BASE, 0.0, judged(base, wanted)
    yield MASKED, 0.0, judged(np.where(np.arange(SYMBOLS) < FLAGGED, -np.inf, base), wanted)
    for decay in DECAYS:
        yield SELF, decay, judged(self_debias(base, invited=invited[None], decay=decay), wanted)
    for strength in STRENGTHS:
        yield EXPERTS, strength, judged(expert_decoding(base, expert=expert, anti_expert=anti, strength=strength, p=1.0), wanted)


# %%
def told(found, measure, curve, form=".3f"):
    return f"{curve} " + ", ".join(f"{mean_and_spread(values, form)} at {x:g}" for x, values in found[measure][curve].items())


@section.claim(
    "Without a list, self-debiasing and experts halve what is flagged",
    paper="Schick et al. 2021, arXiv:2103.00453, table 2; Liu et al. 2021, arXiv:2105.03023, table 2",
    measured=lambda found: f"flagged: {BASE} {mean_and_spread(found['flagged'][BASE][0.0], '.3f')}; {told(found, 'flagged', SELF)}; {told(found, 'flagged', EXPERTS)}. "
    f"Nats of wanted text: {BASE} {mean_and_spread(found['wanted'][BASE][0.0], '.3f')}; {told(found, 'wanted', SELF)}; {told(found, 'wanted', EXPERTS)}",
)
def halved(found):
    """Each way has a setting at which wanted text costs at most 0.05 nats more and at most half of the flagged symbols are left."""
    return all(found["flagged"][way][affordable(found, way)] <= 0.5 * found["flagged"][BASE][0.0] for way in (SELF, EXPERTS))


@section.claim(
    "Harmless symbols that stand beside the flagged ones are turned down with them",
    paper="Xu et al. 2021, arXiv:2104.06390: texts of minorities become less likely after detoxification",
    measured=lambda found: f"{BASE} {mean_and_spread(found['harmless'][BASE][0.0], '.3f')}, {MASKED} {mean_and_spread(found['harmless'][MASKED][0.0], '.3f')}; "
    f"{told(found, 'harmless', SELF)}; {told(found, 'harmless', EXPERTS)}",
)
def collateral(found):
    """Both ways, at those settings, leave at most 0.8 of their share, and masking by hand at least 0.95."""
    before = found["harmless"][BASE][0.0]
    fell = all(found["harmless"][way][affordable(found, way)] <= 0.8 * before for way in (SELF, EXPERTS))
    return fell and found["harmless"][MASKED][0.0] >= 0.95 * before


def affordable(found, way):
    """The setting with least that is flagged of those that cost at most the budget; the mildest where none does."""
    within = [x for x in found["wanted"][way] if found["wanted"][way][x] <= found["wanted"][BASE][0.0] + BUDGET]
    return min(within, key=found["flagged"][way].get, default=min(found["wanted"][way]))


@section.report
def report(found):
    rows = []
    for way, key in ((BASE, "base"), (MASKED, "masked"), (SELF, "self"), (EXPERTS, "experts")):
        for x in found["flagged"][way]:
            of = {measure: found[measure][way][x] for measure in ("flagged", "harmless", "wanted")}
            rows.append([way, f"{x:g}" if x else "–", *(mean_and_spread(values, ".3f") for values in of.values())])
            section.values(f"redistribution.{key}.s{10 * x:.0f}", {measure: values.mean() for measure, values in of.items()})
    section.table("redistribution", ["way", "decay or strength", "flagged share", "share of harmless ones beside them", "nats of wanted text"], rows)


@section.figure("redistribution", size=(6, 3.2))
def picture(ax, found):
    flagged = {way: found["flagged"][way] for way in (BASE, MASKED, SELF, EXPERTS)}
    curves = {way: {float(np.mean(found["wanted"][way][x])): values for x, values in of.items()} for way, of in flagged.items()}
    lines(ax, curves, xlabel="nats of wanted text", ylabel="flagged share", ylim=(0, None))
    ax.legend()


if __name__ == "__main__":
    section.main()
