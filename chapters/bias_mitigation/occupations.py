"""Which way of training brings the pronouns of an occupation nearer to each other, and what is the price?

Lu et al. 2018, arXiv:1807.11714 (CDA): each text a second time with the words for one group exchanged for those of the other. Hall Maudslay et al.
2019, arXiv:1909.00871 (CDS): in its place, with probability one half. Words made neutral, texts filtered or balanced: what Gallegos et al. 2023,
arXiv:2309.00770, list as done before training. Keskar et al. 2019 (CTRL), arXiv:1909.05858, Dinan et al. 2020, arXiv:1911.03842: a control token. Qian
et al. 2019, arXiv:1905.12801: a loss that makes the words of a pair equally likely. Guo et al. 2022 (Auto-Debias, ACL): a divergence of the predictions
for a text and its counterfactual. A GPT-2 of one block reads sentences in which 20 occupations go with either of two pronouns, shares 0.1 to 0.9, and
with words that are likelier after one of them. All arms have the same updates; the divergence reads two sentences in each. A gap is the mean
|log p/p'| of the two pronouns over occupations. Beside it: nats of tokens that are no pronouns, on sentences as they were found, and nats of the
right pronoun where the sentence names a woman or a man, and neutral would be wrong.
"""

# %%
import numpy as np

from minitransformers.bias_mitigation.balance_pairs import balance_pairs
from minitransformers.bias_mitigation.balanced_generation import balanced_texts
from minitransformers.bias_mitigation.control_tokens import control_information, with_control_token
from minitransformers.bias_mitigation.counterfactual_augmentation import augment, substitute
from minitransformers.bias_mitigation.equalization_loss import equalization_loss, squared_equalization_loss
from minitransformers.bias_mitigation.filtering import filter_texts, lexicon_scores
from minitransformers.bias_mitigation.inlp import fit_linear
from minitransformers.bias_mitigation.neutralising import NEUTRAL, NEUTRAL_TAGGED, neutral_map, neutralise_words
from minitransformers.reporting import Section, mean_and_spread, tried
from minitransformers.reporting import occupations as of
from minitransformers.reporting.word_quality import interval, span
from minitransformers.training.fit import fit

section = Section(__file__, __doc__, kind="trained")
TEXTS, ASKED, STEPS, BATCH, SKEWED = 3000, 600, 300, 64, 0.7  # sentences; those asked about; log-odds from which an occupation counts as skewed
PLAIN, CDA, CDS, WITHOUT = "as found", "CDA", "CDS", "neutral words"
JOBS, FITS, BALANCED, CONTROL = "filtered, skewed occupations", "filtered, pronouns that fit the odds", "balanced texts", "control token, set to neutral"
ABSOLUTE, SQUARED, LIGHT, EVERYWHERE = "equalised", "equalised, squared", "equalised, squared, a tenth of the weight", "equalised, squared, everywhere"
DIVERGENCE, SHARED = "paired divergence", "shared evenly at decoding"
TERMS = {
    ABSOLUTE: of.equalised(equalization_loss), SQUARED: of.equalised(squared_equalization_loss), LIGHT: of.equalised(squared_equalization_loss, weight=0.1),
    EVERYWHERE: of.equalised(squared_equalization_loss, everywhere=True), DIVERGENCE: of.diverging,
}  # fmt: skip
ARMS = (PLAIN, CDA, CDS, WITHOUT, JOBS, FITS, BALANCED, CONTROL, *TERMS)
KEYS = dict(zip(("plain", "cda", "cds", "without", "jobs", "fits", "balanced", "control", "absolute", "squared", "light", "everywhere", "divergence", "shared"), (*ARMS, SHARED), strict=True))
MEASURES = ("gap", "nats", "told", "behind", "mass")


# %% What is read
def drawn(language, rng):
    return [language(rng, count // 10 if section.quick else count) for count in (TEXTS, ASKED)]


def log_odds(texts):
    """Of each occupation, from counts with a half added to each."""
    counts = np.full((len(of.JOBS), 2), 0.5)
    for tokens, group in zip(texts.tokens, texts.groups, strict=True):
        for token in set(tokens) & set(of.JOBS):
            counts[of.JOBS.index(token), group] += 1
    return np.log(counts[:, 0] / counts[:, 1])


def filtered(name, texts):
    """Sentences that stay, and what share of those of each group does not."""
    skew = dict(zip(of.JOBS, log_odds(texts), strict=True))
    scores = lexicon_scores(texts.tokens, lexicon=skew) * [len(text) for text in texts.tokens]
    if name == FITS:
        scores = np.maximum(np.where(texts.groups == 0, scores, -scores), 0)
    return filter_texts(scores, groups=texts.groups, threshold=SKEWED)


def without_groups(texts):
    table = neutral_map(NEUTRAL, tagged=NEUTRAL_TAGGED)
    return [neutralise_words(text, tags, neutral=table) for text, tags in zip(texts.tokens, texts.tags, strict=True)]


def read(name, texts, rng):
    """The sentences that an arm learns from."""
    if name == CDA:
        return augment(texts.tokens, texts.tags, swaps=of.SWAPS).texts
    if name == CDS:
        return substitute(texts.tokens, texts.tags, swaps=of.SWAPS, rng=rng)
    if name == WITHOUT:
        return without_groups(texts)
    if name in (JOBS, FITS):
        return [text for text, stays in zip(texts.tokens, filtered(name, texts).kept, strict=True) if stays]
    if name == BALANCED:                                     # as many about occupations as were found; those about persons stay
        made = []
        for pair, first in of.FIRST.items():
            templates = [of.filled(["{job}" if token == "{word}" else token for token in one], "", "{who}", "{word}") for one in first]
            made += balanced_texts(templates, slots={"job": of.JOBS, "who": list(pair), "word": of.WORDS}).texts
        chosen = rng.permutation(len(made))[: texts.about_jobs.sum()]
        return [made[i] for i in chosen] + [text for text, job in zip(texts.tokens, texts.about_jobs, strict=True) if not job]
    if name == CONTROL:                                      # one half with the tokens that they call for, one half balanced and behind the neutral one
        half = len(texts.tokens) // 2
        both = augment(texts.tokens[half:], texts.tags[half:], swaps=of.SWAPS).texts
        return [with_control_token(text, words=of.CONTROLS) for text in texts.tokens[:half]] + [with_control_token(text, words=of.CONTROLS, force=of.NEUTRAL) for text in both]
    return texts.tokens


def task_of(name, texts, rng):
    return of.Reading(read(name, texts, rng), batch=BATCH, term=TERMS.get(name), others=of.after_swap(texts) if name == DIVERGENCE else None)


def trained(name, texts, rng, rate):
    return fit(of.fresh(rng), task_of(name, texts, rng), steps=5 if section.quick else STEPS, peak=rate, rng=rng)


def model_of(name, params):
    return of.reader(params, control=of.NEUTRAL if name == CONTROL else None)


@section.tuning
def tuning(rng):
    def lost(name, rng, rate):                               # an arm's own loss, on unread sentences that it is given as it was given those it read
        texts, asked = drawn(of.language(rng), rng)
        params, task = trained(name, texts, rng, rate), task_of(name, asked, rng)
        (total, count), _ = task.loss(params, (task.ids, task.targets, task.others), rng=rng)
        return total / count

    yield from tried(lost, ARMS, (1e-2,) if section.quick else (1e-3, 3e-3, 1e-2, 3e-2, 1e-1), rng)


# %% What is measured
def measured(found, plain, rng):
    resamples = 100 if section.quick else 500
    gaps = interval(found.gaps, lambda drawn: drawn.mean(), rng, resamples=resamples)
    rows = np.stack([*found.nats.T, plain.nats[:, 0]], axis=1)
    nats = interval(rows, lambda drawn: np.array([drawn[:, 0].sum(), (drawn[:, 0] - drawn[:, 2]).sum()]) / drawn[:, 1].sum(), rng, resamples=resamples)
    ends = [(end, getattr(gaps, field), *getattr(nats, field)) for end, field in (("", "estimate"), (" low", "low"), (" high", "high"))]
    each = {name + end: values[i] for end, *values in ends for i, name in enumerate(("gap", "nats", "nats more"))}
    return each | {"told": found.told, "behind": found.behind, "mass": found.mass}


@section.experiment
def experiment(rng):
    texts, asked = drawn(of.language(rng), rng)
    yield "counted", 0, {"gap": np.abs(log_odds(texts)).mean()}
    plain = None
    for name in ARMS:
        params = trained(name, texts, rng, section.rates[name])
        found = of.expected(model_of(name, params), asked)
        plain = plain or found
        yield name, 0, measured(found, plain, rng)
        if name == PLAIN:
            log_probs = of.reader(params)
            yield SHARED, 0, measured(of.expected(lambda some: balance_pairs(log_probs(some), sets=of.PAIR_IDS.tolist()), asked), plain, rng)
        if name == CONTROL:
            tokens = (*of.CONTROLS, of.NEUTRAL)
            forced = {token: of.expected(of.reader(params, control=token), asked).gaps.mean() for token in tokens}
            first = [[token, "the", job, "said", "that"] for job in of.JOBS for token in tokens]
            logits = of.model(params, ids=of.encoded(first)[0])[0][:, 4].reshape(len(of.JOBS), len(tokens), -1)
            yield CONTROL, "used", {"information": control_information(logits).mean(), "forced": np.mean([forced[token] for token in of.CONTROLS])}
        if name in (JOBS, FITS):
            yield name, "dropped", dict(zip(("dropped 0", "dropped 1"), filtered(name, texts).dropped, strict=True))
    yield WITHOUT, "left", {"readable": readable(texts, asked), "most": max(np.mean(asked.groups), 1 - np.mean(asked.groups))}


def readable(texts, asked):
    """How often a linear probe on the words of a neutral sentence, in any order, names the group of the pronoun that stood there."""
    x, y = (np.array([np.bincount([of.IDS[token] for token in text], minlength=len(of.IDS)) for text in without_groups(some)], float) for some in (texts, asked))
    weight, intercept = fit_linear(x, texts.groups, l2=0.01)
    return np.mean(((y @ weight + intercept)[:, 0] > 0) == asked.groups)


# %%
def at(found, measure, name):
    return found[measure][name][0]


def told(found, measure, *names, form=".2f"):
    return ", ".join(f"{name} {mean_and_spread(at(found, measure, name), form)}" for name in names)


def bought(found, name, part):
    """Whether the gap is at most this part of what it is as found, for at most 0.05 nats a token."""
    return at(found, "gap", name) <= part * at(found, "gap", PLAIN) and at(found, "nats more", name) <= 0.05


@section.claim(
    "Texts with the groups exchanged bring the pronouns near to each other",
    paper="Lu et al. 2018, arXiv:1807.11714, abstract: bias is lowered and the model does as well",
    measured=lambda found: f"gap {told(found, 'gap', PLAIN, CDA, CDS)}; nats a token {told(found, 'nats', PLAIN, CDA, CDS, form='.3f')}",
)
def exchange(found):
    """With CDA and with CDS the gap is at most 0.3 of what it is as found, and a token costs at most 0.05 nats more."""
    return bought(found, CDA, 0.3) and bought(found, CDS, 0.3)


@section.claim(
    "The losses that name the gap lower it",
    paper="Qian et al. 2019, arXiv:1905.12801, abstract: lower bias without a higher perplexity",
    measured=lambda found: f"gap {told(found, 'gap', PLAIN, ABSOLUTE, SQUARED)}; nats a token {told(found, 'nats', PLAIN, ABSOLUTE, SQUARED, form='.3f')}",
)
def equalise(found):
    """Equalised, in both forms, the gap is at most 0.3 of what it is as found, and a token costs at most 0.05 nats more."""
    return bought(found, ABSOLUTE, 0.3) and bought(found, SQUARED, 0.3)


@section.claim(
    "Does a mask keep what the loss must not touch, the pronoun of a woman or a man who was named?",
    paper="no paper: the mask says where neither word has a claim to be likelier",
    measured=lambda found: "nats of the right pronoun " + told(found, "told", PLAIN, SQUARED, LIGHT, EVERYWHERE, SHARED),
)
def mask_matters(found):
    """Without the mask the right pronoun costs at least 0.2 nats more than as found; with it at most 0.05 more."""
    return at(found, "told", EVERYWHERE) >= at(found, "told", PLAIN) + 0.2 and at(found, "told", SQUARED) <= at(found, "told", PLAIN) + 0.05


@section.claim(
    "A tenth of the weight keeps it, and still lowers the gap",
    paper="Qian et al. 2019, arXiv:1905.12801, choose the weight of the loss by experiment",
    measured=lambda found: f"gap {told(found, 'gap', PLAIN, SQUARED, LIGHT)}; nats of the right pronoun {told(found, 'told', PLAIN, SQUARED, LIGHT)}",
)
def lighter(found):
    """The gap is at most 0.3 of what it is as found, a token costs at most 0.05 nats more, and so does the right pronoun."""
    return bought(found, LIGHT, 0.3) and at(found, "told", LIGHT) <= at(found, "told", PLAIN) + 0.05


@section.claim(
    "A way lowers the gap that it names, and not the other one",
    paper="no paper: one compares two pronouns behind an occupation, the other what comes behind two pronouns",
    measured=lambda found: f"gap {told(found, 'gap', PLAIN, SQUARED, DIVERGENCE, CDA)}; divergence behind {told(found, 'behind', PLAIN, SQUARED, DIVERGENCE, CDA, form='.4f')}",
)
def named_gap(found):
    """The squared loss leaves at least 0.7 of the divergence behind a pronoun, paired divergence at most 0.3; and of the gap it is the other way round."""
    left = {name: [at(found, measure, name) / at(found, measure, PLAIN) for measure in ("gap", "behind")] for name in (SQUARED, DIVERGENCE)}
    return max(left[SQUARED][0], left[DIVERGENCE][1]) <= 0.3 and min(left[SQUARED][1], left[DIVERGENCE][0]) >= 0.7


@section.claim(
    "The neutral control token is a way to lower the gap",
    paper="Dinan et al. 2020, arXiv:1911.03842, abstract: generation that can be controlled",
    measured=lambda found: f"gap {told(found, 'gap', PLAIN, CONTROL)}, forced to a group {mean_and_spread(found['forced'][CONTROL]['used'])}; "
    f"the token tells {mean_and_spread(found['information'][CONTROL]['used'])} nats",
)
def control(found):
    """Set to neutral the gap is at most 0.3 of what it is as found, and a token costs at most 0.05 nats more; set to a group it is larger than as found."""
    return bought(found, CONTROL, 0.3) and found["forced"][CONTROL]["used"] > at(found, "gap", PLAIN)


@section.claim(
    "Does a filter lower the gap?",
    paper="Gallegos et al. 2023, arXiv:2309.00770: filtering among what is done before training, and what it may leave out",
    measured=lambda found: f"gap {told(found, 'gap', PLAIN, JOBS, FITS)}; dropped of either group "
    + "; ".join(f"{name} " + ", ".join(mean_and_spread(found[f"dropped {group}"][name]["dropped"]) for group in (0, 1)) for name in (JOBS, FITS)),
)
def filters(found):
    """One of the two filters leaves at most 0.7 of the gap."""
    return min(at(found, "gap", name) for name in (JOBS, FITS)) <= 0.7 * at(found, "gap", PLAIN)


@section.claim(
    "From neutral sentences the group can still be read",
    paper="no paper: the occupation and the last word go with the group that is no longer named",
    measured=lambda found: f"a linear probe {mean_and_spread(found['readable'][WITHOUT]['left'])}, the larger group {mean_and_spread(found['most'][WITHOUT]['left'])}",
)
def still_there(found):
    """A linear probe names it in at least 0.15 more of the sentences than naming the larger group does."""
    return found["readable"][WITHOUT]["left"] >= found["most"][WITHOUT]["left"] + 0.15


@section.report
def report(found):
    rows = [["counted in the text", mean_and_spread(at(found, "gap", "counted")), *[""] * 5]]
    for key, name in KEYS.items():
        of_arm = {measure: values[name][0] for measure, values in found.items() if name in values and 0 in values[name]}
        rows.append([name, span(of_arm, "gap"), span(of_arm, "nats", ".3f"), span(of_arm, "nats more", "+.3f"), *(mean_and_spread(of_arm[m], form) for m, form in (("told", ".2f"), ("behind", ".4f"), ("mass", ".2f")))])
        section.values(f"occupations.{key}", {m.replace(" ", "_"): np.mean(of_arm[m]) for m in (*MEASURES, "nats more")})
    section.table("occupations", ["arm", "gap (95 %)", "nats a token (95 %)", "more than as found (95 %)", "nats, right pronoun", "divergence behind", "mass of both"], rows)
    for key, name in (("jobs", JOBS), ("fits", FITS)):
        section.values(f"occupations.dropped.{key}", {f"g{group + 1}": np.mean(found[f"dropped {group}"][name]["dropped"]) for group in (0, 1)})
    section.values("occupations.left", {measure: np.mean(found[measure][WITHOUT]["left"]) for measure in ("readable", "most")})
    section.values("occupations.token", {measure: np.mean(found[measure][CONTROL]["used"]) for measure in ("information", "forced")})
    section.values("occupations", {"texts": TEXTS, "asked": ASKED, "steps": STEPS, "counted": np.mean(at(found, "gap", "counted"))})


@section.figure("occupations", size=(6.4, 4))
def picture(ax, found):
    for i, name in enumerate((*ARMS, SHARED)):
        ax.plot(np.mean(at(found, "nats", name)), np.mean(at(found, "gap", name)), "o" if i < 8 else "s", color=f"C{i % 8}", label=name)
    ax.set(xlabel="nats a token that is no pronoun", ylabel="gap, mean |log p/p'|", ylim=(0, None))
    ax.legend(fontsize=7, ncols=2)


if __name__ == "__main__":
    section.main()
