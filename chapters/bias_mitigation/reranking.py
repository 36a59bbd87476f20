"""Does a choice between a sentence and what a rule makes of it have the best of a rule and a network?

Reranking is among what Gallegos et al. 2023, arXiv:2309.00770, list as done after the model. Sentences are those of rewriting: words with a neutral form,
which are to change unless a title makes them a name. A rule with a lexicon changes names as well, and a sequence to sequence model, which learned to
rewrite from 1000 templates, does damage to words that it has not read. Here nothing is written: the model says which is likelier, the source or the
rule's text. With a price of 20 nats for each word of the lexicon, it has little left to say.
"""

# %%
import numpy as np

from minitransformers.bias_mitigation.reranking import rerank
from minitransformers.reporting import Section, mean_and_spread, tried
from minitransformers.reporting.bias_mitigation import rewriters as of
from minitransformers.reporting.bias_mitigation.rewriters import NEW, SEQUENCE, SETS, WORD, measured
from minitransformers.reporting.bias_mitigation.word_quality import span

section = Section(__file__, __doc__, kind="trained")
TEMPLATES, PRICE = 1000, 20.0                                # nats that a word of the lexicon is worth
MODEL, RULE, RERANKED, PRICED = SEQUENCE.format(TEMPLATES), "rule", "reranked: source or rule", "reranked, with a price"
KEYS = {"alone": MODEL, "rule": RULE, "choice": RERANKED, "priced": PRICED}


# %%
def reranked(params, source, *, price):
    """Of the source and what the rule makes of it, the likelier one less a price for each word of the lexicon."""
    candidates = np.stack([source, of.by_rule(source, exception=False)])
    log_p = np.stack([of.logits(SEQUENCE, params, (source, of.shifted(target)))[0] for target in candidates])
    each = np.take_along_axis(log_p, candidates[..., None], axis=-1)[..., 0].sum(axis=-1).astype(np.float64)
    listed = ((candidates >= of.NOUN) & (candidates < of.NOUN + of.SEEN)).sum(axis=-1).astype(np.float64)
    best = [rerank(each[:, i], listed[:, i], price=price).order[0] for i in range(len(source))]
    return candidates[best, np.arange(len(source))]


@section.tuning
def tuning(rng):
    rates = (3e-3,) if section.quick else (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    yield from tried(lambda name, rng, rate: of.lost(SEQUENCE, TEMPLATES, rng, rate, quick=section.quick), [MODEL], rates, rng)


@section.experiment
def experiment(rng):
    seen, new = of.templates(rng, TEMPLATES), of.templates(rng, of.UNREAD)
    tests = of.to_be_asked(seen, new, rng)
    params = of.trained(SEQUENCE, seen, rng, section.rates[MODEL], quick=section.quick)
    for which, asked in tests.items():
        source = asked[0]
        made = {
            MODEL: of.written(SEQUENCE, params, source), RULE: of.by_rule(source, exception=False),
            RERANKED: reranked(params, source, price=0.0), PRICED: reranked(params, source, price=PRICE),
        }  # fmt: skip
        for name, texts in made.items():
            yield name, which, measured(texts, asked, rng, quick=section.quick)


# %%
def told(found, measure, which, *names):
    return ", ".join(f"{name} {mean_and_spread(found[measure][name][which])}" for name in names)


@section.claim(
    "Does a choice between the source and the rule's text combine both?",
    paper="Gallegos et al. 2023, arXiv:2309.00770: reranking among what is done after the model",
    measured=lambda found: f"sentences right, new templates: {told(found, 'exact', NEW, RULE, RERANKED, PRICED)}; "
    f"words changed that should stay, new words: {told(found, 'over', WORD, MODEL, RERANKED)}",
)
def choice(found):
    """Of new templates at least 0.95 of the sentences are right, and of new words no word that should stay is changed."""
    return found["exact"][RERANKED][NEW] >= 0.95 and found["over"][RERANKED][WORD] == 0


@section.report
def report(found):
    rows = []
    for key, name in KEYS.items():
        each = {which: {measure: values[name][which] for measure, values in found.items()} for which in SETS}
        rows.append([name, *(span(each[which], "exact") for which in SETS), span(each[WORD], "over", ".3f")])
        numbers = {f"{measure}_{short}": each[which][measure].mean() for measure in ("exact", "over") for which, short in SETS.items()}
        section.values(f"reranking.{key}", numbers)
    section.table("reranking", ["sentences right (95 %)", *SETS, "new words: words to stay that were changed"], rows)


if __name__ == "__main__":
    section.main()
