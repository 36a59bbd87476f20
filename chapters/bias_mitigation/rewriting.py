"""Which words does a rewriter change that it should change, and which that it should not: rules, a network for each token, a sequence to sequence model?

Pryzant et al. 2019, arXiv:1911.09709: biased text and neutral text side by side are enough to learn rewriting from. Rules are a lexicon. Sentences have
eight placeholder words. Twelve words have a neutral form, nine of them are in the lexicon and in the training text. In half of the templates a title
stands before the slot: there the word is a name, and must stay. Rewriters that learn have the same updates, from 10 to 1000 templates. Asked are
sentences of templates and words that were seen, of new templates, of new words, and sentences with nothing to change.
"""

# %%
import numpy as np

from minitransformers.reporting import Section, mean_and_spread, tried
from minitransformers.reporting.bias_mitigation import rewriters as of
from minitransformers.reporting.bias_mitigation.rewriters import NEW, NONE, SEQUENCE, SETS, TOKEN, WORD, measured
from minitransformers.reporting.bias_mitigation.word_quality import span

section = Section(__file__, __doc__, kind="trained")
RULE, EXCEPTION = "rule", "rule, not behind a title"
COUNTS, MOST = {TOKEN: (10, 100, 1000), SEQUENCE: (100, 1000)}, 1000
ARMS = {way.format(count): (way, count) for way, counts in COUNTS.items() for count in counts}
LARGEST = [way.format(MOST) for way in COUNTS]
KEYS = dict(zip(("rule", "exception", "token10", "token100", "token1000", "sequence100", "sequence1000"), (RULE, EXCEPTION, *ARMS), strict=True))


# %%
@section.tuning
def tuning(rng):
    few, many = (1e-4, 3e-4, 1e-3, 3e-3), (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    rates = dict(zip(ARMS, (few, many, many, many, many), strict=True))
    if section.quick:
        rates = dict.fromkeys(ARMS, (3e-3,))
    yield from tried(lambda name, rng, rate: of.lost(*ARMS[name], rng, rate, quick=section.quick), ARMS, rates, rng)


@section.experiment
def experiment(rng):
    seen = {count: of.templates(rng, count) for count in COUNTS[TOKEN]}
    new = of.templates(rng, of.UNREAD)
    tests = {count: of.to_be_asked(seen[count], new, rng) for count in seen}
    for name, (way, count) in ARMS.items():
        params = of.trained(way, seen[count], rng, section.rates[name], quick=section.quick)
        for which, asked in tests[count].items():
            yield name, which, measured(of.written(way, params, asked[0]), asked, rng, quick=section.quick)
    for which, asked in tests[MOST].items():
        for name, exception in ((RULE, False), (EXCEPTION, True)):
            yield name, which, measured(of.by_rule(asked[0], exception=exception), asked, rng, quick=section.quick)


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
    "Are few templates too few for either kind of network?",
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


@section.report
def report(found):
    for measure, head in (("exact", "sentences right"), ("right", "words to change that became the right ones"), ("over", "words to stay that were changed")):
        shown = [which for which in SETS if (measure, which) != ("right", NONE)]
        form = ".3f" if measure == "over" else ".2f"
        rows = [[name, *(span({m: values[name][which] for m, values in found.items()}, measure, form) for which in shown)] for name in KEYS.values()]
        section.table(f"rewriting_{measure}", [f"{head} (95 %)", *shown], rows)
    for key, name in KEYS.items():
        section.values(f"rewriting.{key}", {f"{measure}_{short}": np.mean(found[measure][name][which]) for measure in ("exact", "over") for which, short in SETS.items()})
    section.values("rewriting", {"steps": of.STEPS, "asked": of.ASKED})


if __name__ == "__main__":
    section.main()
