"""What does it cost to keep words out of a text while it is written?

Post and Vilar 2018, arXiv:1804.06609, and Anderson et al. 2017, arXiv:1612.00576: limits on what a beam may write. A trigram
model of one half of Python's reference writes, and one of the other half judges. Banned are words and sequences of it, drawn
among the frequent ones. Drawing whole texts again until one is clean needs no automaton, and is what the model would write if it
is clean.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.bias_mitigation.constrained_decoding import ban
from minitransformers.models.beam_search import beam_search
from minitransformers.models.decoding import next_token_probabilities
from minitransformers.reporting import Section, mean_and_spread
from minitransformers.reporting.bias_mitigation.trigrams import VOCABULARY, Trigrams, drawn_bans, halves, violated
from minitransformers.reporting.bias_mitigation.word_quality import interval

section = Section(__file__, __doc__, kind="arithmetic")
WORDS = 20                                                   # of each text
PLAIN, BANNED, AGAIN = "as it writes", "banned while writing", "drawn again until clean"
BEAM, BEAM_BANNED = "beam of 4", "beam of 4, banned while writing"


# %% Texts, as they are written and with bans
def written(model, starts, rng, processors=()):
    texts = starts
    for _ in range(WORDS):
        p = next_token_probabilities(model.log_probabilities(texts[:, -2:]), texts, processors=processors, top_p=0.95)
        chosen = (np.cumsum(p, axis=-1) < rng.random((len(p), 1))).sum(axis=-1)
        texts = np.concatenate([texts, np.minimum(chosen, VOCABULARY - 1)[:, None]], axis=1)
    return texts


@section.experiment
def experiment(rng):
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


# %%
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


if __name__ == "__main__":
    section.main()
