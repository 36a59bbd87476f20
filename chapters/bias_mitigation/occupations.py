"""Which way to change what is read brings the pronouns of an occupation nearer to each other, and what is the price?

Lu et al. 2018, arXiv:1807.11714 (CDA): each text a second time with the words for one group exchanged for those of the other. Hall Maudslay et al.
2019, arXiv:1909.00871 (CDS): in its place, with probability one half. Words made neutral, texts filtered or balanced: what Gallegos et al. 2023,
arXiv:2309.00770, list as done before training. Keskar et al. 2019 (CTRL), arXiv:1909.05858, Dinan et al. 2020, arXiv:1911.03842: a control token. A
GPT-2 of one block reads sentences in which 20 occupations go with either of two pronouns, shares 0.1 to 0.9, and with words that are likelier after one
of them. All arms have the same updates. A gap is the mean |log p/p'| of the two pronouns over occupations. Beside it: nats of tokens that are no
pronouns, on sentences as they were found, and nats of the right pronoun where the sentence names a woman or a man, and neutral would be wrong.
"""

# %%
import numpy as np

from minitransformers.bias_mitigation.balanced_generation import balanced_texts
from minitransformers.bias_mitigation.control_tokens import control_information, with_control_token
from minitransformers.bias_mitigation.counterfactual_augmentation import augment, substitute
from minitransformers.bias_mitigation.filtering import filter_texts, lexicon_scores
from minitransformers.reporting import Section, mean_and_spread
from minitransformers.reporting.bias_mitigation import occupation_arms as arms
from minitransformers.reporting.bias_mitigation import occupations as of
from minitransformers.reporting.bias_mitigation.occupation_arms import PLAIN, SHARED, Arm, at, bought, told

section = Section(__file__, __doc__, kind="trained")
SKEWED = 0.7                                                 # log-odds from which an occupation counts as skewed
CDA, CDS, WITHOUT, BALANCED, CONTROL = "CDA", "CDS", "neutral words", "balanced texts", "control token, set to neutral"
JOBS, FITS = "filtered, skewed occupations", "filtered, pronouns that fit the odds"


# %% What is read
def filtered(name, texts):
    """Sentences that stay, and what share of those of each group does not."""
    skew = dict(zip(of.JOBS, of.log_odds(texts), strict=True))
    scores = lexicon_scores(texts.tokens, lexicon=skew) * [len(text) for text in texts.tokens]
    if name == FITS:
        scores = np.maximum(np.where(texts.groups == 0, scores, -scores), 0)
    return filter_texts(scores, groups=texts.groups, threshold=SKEWED)


def filtering(name):
    return Arm(lambda texts, rng: [text for text, stays in zip(texts.tokens, filtered(name, texts).kept, strict=True) if stays])


def balanced(texts, rng):
    """As many about occupations as were found; those about persons stay."""
    made = []
    for pair, first in of.FIRST.items():
        templates = [of.filled(["{job}" if token == "{word}" else token for token in one], "", "{who}", "{word}") for one in first]
        made += balanced_texts(templates, slots={"job": of.JOBS, "who": list(pair), "word": of.WORDS}).texts
    chosen = rng.permutation(len(made))[: texts.about_jobs.sum()]
    return [made[i] for i in chosen] + [text for text, job in zip(texts.tokens, texts.about_jobs, strict=True) if not job]


def controlled(texts, rng):
    """One half with the tokens that they call for, one half balanced and behind the neutral one."""
    half = len(texts.tokens) // 2
    both = augment(texts.tokens[half:], texts.tags[half:], swaps=of.SWAPS).texts
    first = [with_control_token(text, words=of.CONTROLS) for text in texts.tokens[:half]]
    return first + [with_control_token(text, words=of.CONTROLS, force=of.NEUTRAL) for text in both]


ARMS = {
    PLAIN: Arm(), CDA: Arm(lambda texts, rng: augment(texts.tokens, texts.tags, swaps=of.SWAPS).texts),
    CDS: Arm(lambda texts, rng: substitute(texts.tokens, texts.tags, swaps=of.SWAPS, rng=rng)), WITHOUT: Arm(lambda texts, rng: arms.neutral_words(texts)),
    JOBS: filtering(JOBS), FITS: filtering(FITS), BALANCED: Arm(balanced), CONTROL: Arm(controlled, control=of.NEUTRAL),
}  # fmt: skip
KEYS = dict(zip(("plain", "cda", "cds", "without", "jobs", "fits", "balanced", "control", "shared"), (*ARMS, SHARED), strict=True))


# %% What is measured
@section.tuning
def tuning(rng):
    yield from arms.losses(ARMS, rng, quick=section.quick)


@section.experiment
def experiment(rng):
    texts, asked = arms.drawn(rng, quick=section.quick)
    yield "counted", 0, {"gap": np.abs(of.log_odds(texts)).mean()}
    for name, params, numbers in arms.learned(ARMS, texts, asked, section.rates, rng, quick=section.quick):
        yield name, 0, numbers
        if name == CONTROL:
            yield CONTROL, "used", used(params, asked)
        if name in (JOBS, FITS):
            yield name, "dropped", dict(zip(("dropped 0", "dropped 1"), filtered(name, texts).dropped, strict=True))


def used(params, asked):
    """What the control token tells, and the gap when it is set to a group."""
    tokens = (*of.CONTROLS, of.NEUTRAL)
    first = [[token, "the", job, "said", "that"] for job in of.JOBS for token in tokens]
    logits = of.model(params, ids=of.encoded(first)[0])[0][:, 4].reshape(len(of.JOBS), len(tokens), -1)
    forced = [of.expected(of.reader(params, control=token), asked).gaps.mean() for token in of.CONTROLS]
    return {"information": control_information(logits).mean(), "forced": np.mean(forced)}


# %%
@section.claim(
    "Texts with the groups exchanged bring the pronouns near to each other",
    paper="Lu et al. 2018, arXiv:1807.11714, abstract: bias is lowered and the model does as well",
    measured=lambda found: f"gap {told(found, 'gap', PLAIN, CDA, CDS)}; nats a token {told(found, 'nats', PLAIN, CDA, CDS, form='.3f')}",
)
def exchange(found):
    """With CDA and with CDS the gap is at most 0.3 of what it is as found, and a token costs at most 0.05 nats more."""
    return bought(found, CDA, 0.3) and bought(found, CDS, 0.3)


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


@section.report
def report(found):
    rows = [["counted in the text", mean_and_spread(at(found, "gap", "counted")), *[""] * 5]]
    for key, name in KEYS.items():
        rows.append([name, *arms.row(found, name)])
        section.values(f"occupations.{key}", arms.means(found, name))
    section.table("occupations", ["arm", *arms.HEADS], rows)
    for key, name in (("jobs", JOBS), ("fits", FITS)):
        section.values(f"occupations.dropped.{key}", {f"g{group + 1}": np.mean(found[f"dropped {group}"][name]["dropped"]) for group in (0, 1)})
    section.values("occupations.token", {measure: np.mean(found[measure][CONTROL]["used"]) for measure in ("information", "forced")})
    section.values("occupations", {"texts": arms.TEXTS, "asked": arms.ASKED, "steps": arms.STEPS, "counted": np.mean(at(found, "gap", "counted"))})


@section.figure("occupations", size=(8.5, 4), ncols=3, sharey=True)
def picture(axes, found):
    names = list(KEYS.values())
    for ax, measure, label in zip(axes, ("gap", "nats", "told"), ("gap, mean |log p/p'|", "nats a token, no pronouns", "nats, right pronoun"), strict=True):
        for row, name in enumerate(reversed(names)):
            ax.plot(np.atleast_1d(at(found, measure, name)), [row] * np.size(at(found, measure, name)), "o", color="C0", alpha=0.8)
        ax.axvline(float(np.mean(at(found, measure, PLAIN))), linestyle=":", color="#808080")
        ax.set(xlabel=label, yticks=range(len(names)))
        ax.set_yticklabels(names[::-1])


if __name__ == "__main__":
    section.main()
