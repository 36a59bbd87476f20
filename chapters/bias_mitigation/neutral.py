"""Can the group be read from sentences whose words for it were made neutral?

Gallegos et al. 2023, arXiv:2309.00770, list neutral words among what is done before training. In sentences about 20 occupations "she" and "he" become
"they". The occupations go with either pronoun, shares 0.1 to 0.9, and the last words are likelier after one of them. A linear probe sees the words of
a neutral sentence, in any order, and names the group of the pronoun that stood there; beside it, whoever names the larger group every time.
"""

# %%
import numpy as np

from minitransformers.bias_mitigation.inlp import fit_linear
from minitransformers.reporting import Section, mean_and_spread
from minitransformers.reporting.bias_mitigation import occupations as of
from minitransformers.reporting.bias_mitigation.occupation_arms import drawn, neutral_words

section = Section(__file__, __doc__, kind="trained")
WITHOUT = "neutral words"


# %%
def bags(texts):
    """How often each word stands in each neutral sentence."""
    return np.array([np.bincount([of.IDS[token] for token in text], minlength=len(of.IDS)) for text in neutral_words(texts)], float)


@section.experiment
def experiment(rng):
    texts, asked = drawn(rng, quick=section.quick)
    weight, intercept = fit_linear(bags(texts), texts.groups, l2=0.01)
    readable = np.mean(((bags(asked) @ weight + intercept)[:, 0] > 0) == asked.groups)
    yield WITHOUT, "left", {"readable": readable, "most": max(np.mean(asked.groups), 1 - np.mean(asked.groups))}


# %%
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
    section.values("neutral", {measure: found[measure][WITHOUT]["left"].mean() for measure in ("readable", "most")})


if __name__ == "__main__":
    section.main()
