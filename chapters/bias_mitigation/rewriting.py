"""Which words does a rewriter change that it should change, and which that it should not: rules, a network for each token, a sequence to sequence model?

Pryzant et al. 2019, arXiv:1911.09709: biased text and neutral text side by side are enough to learn rewriting from. Rules are a lexicon. Sentences have
eight placeholder words. Twelve words have a neutral form, nine of them are in the lexicon and in the training text. In half of the templates a title
stands before the slot: there the word is a name, and must stay. Rewriters that learn have the same updates, from 10 to 1000 templates. Asked are
sentences of templates and words that were seen, of new templates, of new words, and sentences with nothing to change. Reranking trains nothing of
its own: it has the source and what the rule makes of it, and takes the one that the sequence to sequence model finds likelier.
"""

# %%
import re

import numpy as np

from minitransformers.bias_mitigation.neural_rewriting import greedy_rewriting, init_neural_rewriting, neural_rewriting
from minitransformers.bias_mitigation.reranking import rerank
from minitransformers.bias_mitigation.rule_rewriting import rewrite
from minitransformers.bias_mitigation.token_rewriter import init_token_rewriter, token_rewriter
from minitransformers.reporting import Section, mean_and_spread, nats, tried
from minitransformers.reporting.word_quality import interval, span
from minitransformers.training.fit import fit
from minitransformers.training.task import Labelled

section = Section(__file__, __doc__, kind="trained")
LENGTH, FILLERS, LISTED, SEEN, STEPS, BATCH, ASKED = 8, 40, 12, 9, 600, 32, 240
WORDS = ["start", "title", *(f"other{i}" for i in range(FILLERS)), *(f"noun{i}" for i in range(LISTED)), *(f"neutral{i}" for i in range(LISTED))]
IDS = {word: i for i, word in enumerate(WORDS)}
START, TITLE, OTHER, NOUN, NEUTRAL = (IDS[word] for word in ("start", "title", "other0", "noun0", "neutral0"))
LEXICON = {f"noun{i}": f"neutral{i}" for i in range(SEEN)}
RULE, EXCEPTION, RERANKED = "rule", "rule, not behind a title", "reranked: source or rule"
TOKEN, SEQUENCE = "each token, {} templates", "sequence to sequence, {} templates"
COUNTS, MOST = {TOKEN: (10, 100, 1000), SEQUENCE: (100, 1000)}, 1000
ARMS = {way.format(count): (way, count) for way, counts in COUNTS.items() for count in counts}
LARGEST = [way.format(MOST) for way in COUNTS]
ALL = (RULE, EXCEPTION, *ARMS, RERANKED)
KEYS = dict(zip(("rule", "exception", "token10", "token100", "token1000", "sequence100", "sequence1000", "reranked"), ALL, strict=True))
KNOWN, NEW, WORD, NONE = "seen templates, seen words", "new templates, seen words", "new templates, new words", "new templates, nothing to change"
SETS = (KNOWN, NEW, WORD, NONE)
SIZES = {"d_model": 32, "num_layers": 1, "num_heads": 4, "d_hidden": 64}


# %% Sentences
def templates(rng, count):
    """Ids with a slot at a place, behind a title in half of them: ids (count, LENGTH), places."""
    ids = rng.integers(OTHER, OTHER + FILLERS, size=(count, LENGTH))
    places = rng.integers(1, LENGTH, size=count)
    titled = np.arange(0, count, 2)
    ids[titled, places[titled] - 1] = TITLE
    return ids, places


def sentences(known, rng, count, low, high):
    """Sources, targets, and the numbers of their templates; slots hold the words from low to below high, or, of those below NOUN, any that stays."""
    ids, places = known
    rows = rng.integers(len(ids), size=count)
    words = rng.integers(low, high, size=count)
    source, at = ids[rows], (np.arange(count), places[rows])
    source[at] = words
    target = source.copy()
    named = source[at[0], at[1] - 1] == TITLE
    target[at] = np.where(named | (words < NOUN), words, words - NOUN + NEUTRAL)
    return source, target, rows


def asked(seen, new, rng):
    ranges = {KNOWN: (seen, NOUN, NOUN + SEEN), NEW: (new, NOUN, NOUN + SEEN), WORD: (new, NOUN + SEEN, NEUTRAL), NONE: (new, OTHER, NOUN)}
    return {name: sentences(known, rng, ASKED, low, high) for name, (known, low, high) in ranges.items()}


# %% Rewriters
def by_rule(source, *, exception):
    made = []
    for row in source:
        text = " ".join(WORDS[i] for i in row)
        if exception:                                        # what stands in quotation marks is left alone
            text = re.sub(r"title (\w+)", r'title "\1"', text)
        made.append([IDS[word] for word in rewrite(text, lexicon=LEXICON).text.replace('"', "").split()])
    return np.array(made)


def shifted(target):
    return np.concatenate([np.full((len(target), 1), START), target[:, :-1]], axis=1)


def tokens(params, inputs):
    return token_rewriter(params, ids=inputs[0], start=START)


def sequences(params, inputs):
    return neural_rewriting(params, source=inputs[0], target=inputs[1], num_heads=SIZES["num_heads"])


def trained(name, seen, rng, rate):
    way, _ = ARMS[name]
    if way == TOKEN:
        params, model = init_token_rewriter(rng, vocabulary=len(WORDS), d_model=24, d_hidden=64), tokens
    else:
        params, model = init_neural_rewriting(rng, vocabulary=len(WORDS), **SIZES), sequences

    def draw(rng):
        source, target, _ = sentences(seen, rng, BATCH, NOUN, NOUN + SEEN)
        return (source, shifted(target)), target

    return fit(params, Labelled(model, draw), steps=10 if section.quick else STEPS, peak=rate, rng=rng), model


def written(name, params, source):
    if ARMS[name][0] == TOKEN:
        return tokens(params, (source,))[0].argmax(-1)
    return greedy_rewriting(params, source, start=START, num_tokens=LENGTH, num_heads=SIZES["num_heads"])


def reranked(params, source, *, price):
    """Of the source and what the rule makes of it, the likelier one less a price for each word of the lexicon."""
    candidates = np.stack([source, by_rule(source, exception=False)])
    log_p = np.stack([sequences(params, (source, shifted(target)))[0] for target in candidates])
    each = np.take_along_axis(log_p, candidates[..., None], axis=-1)[..., 0].sum(axis=-1).astype(np.float64)
    listed = ((candidates >= NOUN) & (candidates < NOUN + SEEN)).sum(axis=-1).astype(np.float64)
    best = [rerank(each[:, i], listed[:, i], price=price).order[0] for i in range(len(source))]
    return candidates[best, np.arange(len(source))]


@section.tuning
def tuning(rng):
    def lost(name, rng, rate):
        seen, new = templates(rng, ARMS[name][1]), templates(rng, 60)
        params, model = trained(name, seen, rng, rate)
        tests = [sentences(new, rng, ASKED, low, high) for low, high in ((NOUN, NOUN + SEEN), (OTHER, NOUN))]  # with something to change, and nothing
        return np.mean([nats(model(params, (source, shifted(target)))[0], target) for source, target, _ in tests])

    few, many = (1e-4, 3e-4, 1e-3, 3e-3), (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    rates = dict(zip(ARMS, (few, many, many, many, many), strict=True))
    yield from tried(lost, ARMS, dict.fromkeys(ARMS, (3e-3,)) if section.quick else rates, rng)


# %% What is measured
def measured(made, source, target, rows, rng):
    """Shares of sentences that are as they should be, of words to change that became the right ones, of words to stay that did not."""
    columns = np.stack([(made == target).all(-1), ((source != target) & (made == target)).sum(-1), (source != target).sum(-1),
                        ((source == target) & (made != target)).sum(-1), (source == target).sum(-1)], axis=1).astype(float)  # fmt: skip

    def shares(drawn):
        exact, right, change, over, stay = drawn.sum(axis=0)
        return np.array([exact / len(drawn), right / max(change, 1), over / stay])

    of = interval(columns, shares, rng, resamples=100 if section.quick else 500, clusters=rows)
    return {name + end: values[i] for i, name in enumerate(("exact", "right", "over")) for end, values in (("", of.estimate), (" low", of.low), (" high", of.high))}


@section.experiment
def experiment(rng):
    seen = {count: templates(rng, count) for count in COUNTS[TOKEN]}
    new, price = templates(rng, 60), 20.0                    # nats that a word of the lexicon is worth
    tests = {count: asked(seen[count], new, rng) for count in seen}
    for name, (_, count) in ARMS.items():
        params, _ = trained(name, seen[count], rng, section.rates[name])
        for which, (source, target, rows) in tests[count].items():
            yield name, which, measured(written(name, params, source), source, target, rows, rng)
    for which, (source, target, rows) in tests[MOST].items():  # the last to be trained is the sequence to sequence model with most templates
        for name, exception in ((RULE, False), (EXCEPTION, True)):
            yield name, which, measured(by_rule(source, exception=exception), source, target, rows, rng)
        yield RERANKED, which, measured(reranked(params, source, price=0.0), source, target, rows, rng)
        yield RERANKED, f"{which}, priced", measured(reranked(params, source, price=price), source, target, rows, rng)


# %%
def told(found, measure, which, *names):
    return ", ".join(f"{name} {mean_and_spread(found[measure][name][which])}" for name in names)


@section.claim(
    "A network that reads the word before leaves names alone, and a rule that does not read it changes them",
    paper="no paper: the title stands in front of the word",
    measured=lambda found: "sentences right, new templates: " + told(found, "exact", NEW, RULE, TOKEN.format(100), TOKEN.format(1000)),
)
def reads_the_title(found):
    """From 100 templates at least 0.95 of the sentences of new templates are right, by the rule at most 0.7."""
    return found["exact"][TOKEN.format(100)][NEW] >= 0.95 and found["exact"][RULE][NEW] <= 0.7


@section.claim(
    "A rule with one exception does as well",
    paper="no paper: whoever knows what the network is to learn can write it down",
    measured=lambda found: "sentences right, new templates: " + told(found, "exact", NEW, EXCEPTION, *LARGEST) + "; words changed that should stay, new words: " + told(found, "over", WORD, EXCEPTION, *LARGEST),
)
def an_exception(found):
    """Of new templates it has every sentence right, and in no set does it change a word that should stay."""
    return found["exact"][EXCEPTION][NEW] == 1 and max(found["over"][EXCEPTION][which] for which in SETS) == 0


@section.claim(
    "Few templates are not enough",
    paper="Pryzant et al. 2019, arXiv:1911.09709, learn from 180,000 pairs",
    measured=lambda found: "sentences right, new templates: " + told(found, "exact", NEW, *ARMS),
)
def few(found):
    """With the most templates each kind of network has at least 0.2 more of the sentences right than with the fewest."""
    return all(found["exact"][way.format(counts[-1])][NEW] >= found["exact"][way.format(counts[0])][NEW] + 0.2 for way, counts in COUNTS.items())


@section.claim(
    "Does a sequence to sequence model do as well as a network for each token?",
    paper="Pryzant et al. 2019, arXiv:1911.09709: a sequence to sequence model and a tagger for each token, both begun with BERT",
    measured=lambda found: "sentences right, new templates: " + told(found, "exact", NEW, *LARGEST) + "; nothing to change: " + told(found, "exact", NONE, *LARGEST),
)
def as_well(found):
    """With as many templates it has at most 0.05 fewer of the sentences right, of new templates and of those with nothing to change."""
    return all(found["exact"][LARGEST[1]][which] >= found["exact"][LARGEST[0]][which] - 0.05 for which in (NEW, NONE))


@section.claim(
    "Where a rule does nothing about a new word, networks do damage",
    paper="no paper: a word without training has to become something",
    measured=lambda found: "words changed that should stay, new words: " + told(found, "over", WORD, RULE, *LARGEST),
)
def damage(found):
    """Of the words that should stay networks change some, by an interval above 0; the rule none."""
    return found["over"][RULE][WORD] == 0 and all(found["over low"][name][WORD] > 0 for name in LARGEST)


@section.claim(
    "Does a choice between the source and the rule's text combine both?",
    paper="Gallegos et al. 2023, arXiv:2309.00770: reranking among what is done after the model",
    measured=lambda found: f"sentences right, new templates: {told(found, 'exact', NEW, RULE, RERANKED)}, with a price "
    f"{mean_and_spread(found['exact'][RERANKED][f'{NEW}, priced'])}; words changed that should stay, new words: {told(found, 'over', WORD, RERANKED)}",
)
def choice(found):
    """Of new templates at least 0.95 of the sentences are right, and of new words no word that should stay is changed."""
    return found["exact"][RERANKED][NEW] >= 0.95 and found["over"][RERANKED][WORD] == 0


@section.report
def report(found):
    for measure, head in (("exact", "sentences right"), ("right", "words to change that became the right ones"), ("over", "words to stay that were changed")):
        shown = SETS[:-1] if measure == "right" else SETS
        form = ".3f" if measure == "over" else ".2f"
        rows = [[name, *(span({m: values[name][which] for m, values in found.items()}, measure, form) for which in shown)] for name in ALL]
        section.table(f"rewriting_{measure}", [f"{head} (95 %)", *shown], rows)
    for key, name in KEYS.items():
        section.values(f"rewriting.{key}", {f"{measure}_{short}": np.mean(found[measure][name][which]) for measure in ("exact", "over") for short, which in zip(("known", "new", "word", "none"), SETS, strict=True)})
    section.values("rewriting", {"steps": STEPS, "asked": ASKED, "priced": np.mean(found["exact"][RERANKED][f"{NEW}, priced"])})


if __name__ == "__main__":
    section.main()
