"""What does it cost to keep words out of a text while it is written, and how far do a model's own judgements of them reach?

Post and Vilar 2018, arXiv:1804.06609, and Anderson et al. 2017, arXiv:1612.00576: limits on what a beam may write. A trigram
model of one half of Python's reference writes, and one of the other half judges. Banned are words and sequences of it, drawn
among the frequent ones. Drawing whole texts again until one is clean needs no automaton, and is what the model would write if it
is clean. Then the lists are taken away: Schick et al. 2021 (self-debiasing), arXiv:2103.00453, and Liu et al. 2021 (DExperts),
arXiv:2105.03023, turn down what a model itself, or two small ones, connect with the unwanted. There the language is made: two
kinds of texts, and in the unwanted kind flagged symbols, but also harmless ones, are frequent (Xu et al. 2021, arXiv:2104.06390,
on what is lost with them). Last, tokens of a set are given equal shares, which is exact.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.basics.log_softmax import log_softmax
from minitransformers.bias_mitigation.balance_pairs import balance_pairs
from minitransformers.bias_mitigation.constrained_decoding import ban
from minitransformers.bias_mitigation.expert_decoding import expert_decoding
from minitransformers.bias_mitigation.self_debias import self_debias
from minitransformers.models.beam_search import beam_search
from minitransformers.models.decoding import next_token_probabilities
from minitransformers.reporting import Section, lines, mean_and_spread
from minitransformers.reporting.trigrams import VOCABULARY, Trigrams, drawn_bans, halves, violated
from minitransformers.reporting.word_quality import interval

section = Section(__file__, __doc__, kind="arithmetic")
WORDS = 20                                                   # of each text
PLAIN, BANNED, AGAIN = "as it writes", "banned while writing", "drawn again until clean"
BEAM, BEAM_BANNED = "beam of 4", "beam of 4, banned while writing"
BASE, SELF, EXPERTS, MASKED = "no change", "self-debiasing", "experts", "masked by hand"
EQUAL = "equal shares"


# %% Bans while writing
def written(model, starts, rng, processors=()):
    texts = starts
    for _ in range(WORDS):
        p = next_token_probabilities(model.log_probabilities(texts[:, -2:]), texts, processors=processors, top_p=0.95)
        chosen = (np.cumsum(p, axis=-1) < rng.random((len(p), 1))).sum(axis=-1)
        texts = np.concatenate([texts, np.minimum(chosen, VOCABULARY - 1)[:, None]], axis=1)
    return texts


def bans(rng):
    first, second, words = halves(20_000 if section.quick else None)
    model, judge = Trigrams(first), Trigrams(second)
    banned = drawn_bans(rng, first, words)
    process = partial(ban, banned=banned)
    places = rng.integers(len(first) - 2, size=60 if section.quick else 800)
    starts = np.stack([first[places], first[places + 1]], axis=1)
    starts = starts[~violated(starts, banned)]               # what a prompt holds is not undone
    plain, limited = written(model, starts, rng), written(model, starts, rng, (process,))
    clean, draws = plain.copy(), len(plain)
    while (again := violated(clean, banned)).any():
        clean[again], draws = written(model, starts[again], rng), draws + again.sum()
    texts = {PLAIN: plain, BANNED: limited, AGAIN: clean}
    few = starts[: 3 if section.quick else 30]
    for name, processors in ((BEAM, ()), (BEAM_BANNED, (process,))):
        beams = [beam_search(model.step, start, num_tokens=WORDS, num_beams=4, processors=processors)[0] for start in few]
        texts[name] = np.stack([[*start, *beam.ids] for start, beam in zip(few, beams, strict=True)])
    for name, of in texts.items():
        rows = judge.nats(of)
        found = interval(rows, lambda drawn: drawn.mean(), rng, resamples=100 if section.quick else 500)
        ends = {"nats": found.estimate, "nats low": found.low, "nats high": found.high}
        words = len(np.unique(of[:, 2:])) / np.sqrt(of[:, 2:].size)
        yield name, "all", ends | {"violated": violated(of, banned).mean(), "texts": len(of), "words": words, "draws": draws / len(plain) if name == AGAIN else 1}
    more = interval(judge.nats(limited) - judge.nats(clean), lambda drawn: drawn.mean(), rng, resamples=100 if section.quick else 500)
    yield BANNED, "all", {"more": more.estimate, "more low": more.low, "more high": more.high}
    yield from shared_equally(model, second[: 3000 if section.quick else 20_000], rng)


def shared_equally(model, ids, rng):
    """Four sets of two or three frequent words with equal shares, at every place of held-out text."""
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


# %% Two kinds of texts, and models that counted them
SYMBOLS, FLAGGED, HARMLESS, LENGTH, UNWANTED = 40, 3, 5, 12, 0.25  # symbols 0 to 2 are flagged; 3 to 7 stand beside them in the unwanted kind
DECAYS, STRENGTHS = (5.0, 20.0, 50.0, 100.0, 200.0), (0.1, 0.2, 0.4, 0.7, 1.0, 2.0)
BUDGET = 0.05                                                # nats that wanted text may cost more


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


def lists_taken_away(rng):
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


@section.experiment
def experiment(rng):
    yield from bans(rng)
    yield from lists_taken_away(rng)


# %%
def told(found, measure, curve, form=".3f"):
    return f"{curve} " + ", ".join(f"{mean_and_spread(values, form)} at {x:g}" for x, values in found[measure][curve].items())


@section.claim(
    "What is banned does not come up, in samples or in beams",
    paper="Aho and Corasick 1975, doi:10.1145/360825.360855: all sequences are found, however they overlap",
    measured=lambda found: "share of texts with a banned sequence: "
    + ", ".join(f"{name} {mean_and_spread(found['violated'][name]['all'])}" for name in (PLAIN, BANNED, BEAM, BEAM_BANNED)),
)
def none_left(found):
    """No text has a banned sequence where they were banned; of those as the model writes at least 0.3 have one."""
    return found["violated"][BANNED]["all"] == found["violated"][BEAM_BANNED]["all"] == 0 and found["violated"][PLAIN]["all"] >= 0.3


@section.claim(
    "Does a ban while writing cost more fluency than drawing again until a text is clean?",
    paper="no paper: a ban at the last word of a sequence keeps what led there",
    measured=lambda found: f"{mean_and_spread(found['nats'][BANNED]['all'])} and {mean_and_spread(found['nats'][AGAIN]['all'])} nats a word, difference "
    f"{np.mean(found['more'][BANNED]['all']):.3f} ({np.mean(found['more low'][BANNED]['all']):.3f} to {np.mean(found['more high'][BANNED]['all']):.3f}); "
    f"{mean_and_spread(found['draws'][AGAIN]['all'], '.1f')} texts drawn for one",
)
def costs_more(found):
    """The interval of the difference, in nats a word from the same beginnings, lies above 0."""
    return found["more low"][BANNED]["all"] > 0


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
    for name, key in ((PLAIN, "plain"), (BANNED, "banned"), (AGAIN, "again"), (BEAM, "beam"), (BEAM_BANNED, "beam_banned")):
        of = {measure: curves[name]["all"] for measure, curves in found.items() if "all" in curves.get(name, {})}
        ends = f"{of['nats low'].mean():.2f} to {of['nats high'].mean():.2f}"
        cells = [mean_and_spread(of["violated"]), mean_and_spread(of["nats"]), ends, mean_and_spread(of["words"]), mean_and_spread(of["draws"], ".1f")]
        rows.append([name, int(of["texts"].mean()), *cells])
        section.values(f"bans.{key}", {"violated": of["violated"].mean(), "nats": of["nats"].mean(), "draws": of["draws"].mean()})
    columns = ["text", "texts", "with a banned sequence", "nats a word, by a judge", "95 %", "different words / √words", "texts drawn for one"]
    section.table("bans", columns, rows)
    section.values("bans.more", {end or "mean": found[f"more{' ' * bool(end)}{end}"][BANNED]["all"].mean() for end in ("", "low", "high")})
    rows = []
    for way, key in ((BASE, "base"), (MASKED, "masked"), (SELF, "self"), (EXPERTS, "experts")):
        for x in found["flagged"][way]:
            of = {measure: found[measure][way][x] for measure in ("flagged", "harmless", "wanted")}
            rows.append([way, f"{x:g}" if x else "–", *(mean_and_spread(values, ".3f") for values in of.values())])
            section.values(f"redistribution.{key}.s{10 * x:.0f}", {measure: values.mean() for measure, values in of.items()})
    section.table("redistribution", ["way", "decay or strength", "flagged share", "share of harmless ones beside them", "nats of wanted text"], rows)
    section.values("equal", {measure: found[measure][EQUAL]["all"].mean() for measure in ("before", "after")})


@section.figure("redistribution", size=(6, 3.2))
def picture(ax, found):
    flagged = {way: found["flagged"][way] for way in (BASE, MASKED, SELF, EXPERTS)}
    curves = {way: {float(np.mean(found["wanted"][way][x])): values for x, values in of.items()} for way, of in flagged.items()}
    lines(ax, curves, xlabel="nats of wanted text", ylabel="flagged share", ylim=(0, None))
    ax.legend()


if __name__ == "__main__":
    section.main()
