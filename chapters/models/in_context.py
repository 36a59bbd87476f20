"""What does SmolLM2 know without an example, and what do examples in its prompt add?

Brown et al. 2020, arXiv:2005.14165, section 2 (zero-, one- and few-shot) and section 3: what a model is shown in its prompt it can use, without
any update. The questions are the status codes of HTTP, whose phrases Python's standard library knows: four phrases stand to choose from. Asked in
two ways: as a sentence to go on with, whose phrase is scored (cloze, per token), and as a list of A to D, whose letter is scored. SmolLM2-135M runs
in plain NumPy, out of its 4-bit file.
"""

# %%
import http
from functools import partial

import numpy as np

from minitransformers.basics.log_softmax import log_softmax
from minitransformers.models.llama import llama_step
from minitransformers.models.llama_gguf import load_llama_gguf
from minitransformers.models.published import published_file
from minitransformers.models.tokenizers.byte_pair_encoding import byte_pair_encode
from minitransformers.reporting import Section, level, lines, mean_and_spread
from minitransformers.reporting.needs import missing_smollm2

section = Section(__file__, __doc__, kind="trained", needs=missing_smollm2)
SHOTS, QUESTIONS, LETTERS, CLOZE, CHOICE = (0, 1, 2, 4, 8), 20, "ABCD", "a sentence to go on with", "a letter of four"
STATUSES = [(status.value, status.phrase) for status in http.HTTPStatus]


# %% Prompts
def question(code, options, way):
    if way == CLOZE:
        return f"HTTP status {code} means:"
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True))
    return f"What does HTTP status {code} mean?\n{listed}\nAnswer:"


def answers(options, way):
    return [f" {option}" for option in options] if way == CLOZE else [f" {letter}" for letter in LETTERS]


def drawn(rng, statuses):
    """For each status four phrases in any order, and which of them is right."""
    asked = []
    for code, phrase in statuses:
        others = [STATUSES[i][1] for i in rng.permutation(len(STATUSES)) if STATUSES[i][1] != phrase][:3]
        options = [phrase, *others]
        order = rng.permutation(4)
        asked.append((code, [options[i] for i in order], int(np.argmin(order))))
    return asked


# %% Scores
class Scorer:
    """SmolLM2, and what it says of a text given another."""

    def __init__(self):
        self.model = load_llama_gguf(published_file("smollm2"))
        self.step = partial(llama_step, self.model.params, **self.model.settings)

    def ids(self, text):
        return byte_pair_encode(text, vocabulary=self.model.vocabulary)[None]

    def read(self, text, state=None):
        """What is expected behind a text, and the state of having read it."""
        logits, state = self.step(self.ids(text), state)
        return logits[0, -1], state

    def mean_log_probability(self, answer, expected, state):
        """Of the tokens of an answer, given what was read."""
        ids = self.ids(answer)
        rest = self.step(ids[:, :-1], state)[0][0] if ids.shape[1] > 1 else np.zeros((0, len(expected)), expected.dtype)
        log_p, _ = log_softmax(np.concatenate([expected[None], rest]))
        return log_p[np.arange(ids.shape[1]), ids[0]].mean()

    def right(self, shown, asked, way):
        """How often the right answer has the best score. What is shown is read once; each question goes on from there."""
        examples = "".join(f"{question(code, options, way)}{answers(options, way)[best]}\n\n" for code, options, best in shown)
        start = self.read(examples)[1] if examples else None
        found = []
        for code, options, best in asked:
            expected, state = self.read(question(code, options, way), start)
            scores = [self.mean_log_probability(answer, expected, state) for answer in answers(options, way)]
            found.append(int(np.argmax(scores)) == best)
        return np.mean(found)


@section.experiment
def experiment(rng):
    scorer = Scorer()
    order = rng.permutation(len(STATUSES))
    shown, asked = (drawn(rng, [STATUSES[i] for i in some]) for some in (order[: max(SHOTS)], order[max(SHOTS) : max(SHOTS) + QUESTIONS]))
    for way in (CLOZE, CHOICE):
        for shots in SHOTS:
            yield way, shots, {"right": scorer.right(shown[:shots], asked, way)}


# %%
def told(found, way):
    return f"{way}: {', '.join(mean_and_spread(found['right'][way][shots]) for shots in SHOTS)}"


@section.claim(
    "Does it know status codes without an example?",
    paper="Brown et al. 2020, arXiv:2005.14165, section 2: zero-shot, no demonstrations",
    measured=lambda found: f"right with {', '.join(map(str, SHOTS))} examples, of four: {told(found, CLOZE)}",
)
def knows(found):
    """As a sentence to go on with it is right in at least 0.15 more than a guess among four."""
    return found["right"][CLOZE][0] >= 0.25 + 0.15


@section.claim(
    "Do examples in the prompt help a model of this size?",
    paper="Brown et al. 2020, arXiv:2005.14165, section 3 and figure 1.2: larger models use examples better",
    measured=lambda found: told(found, CLOZE),
)
def examples_help(found):
    """With 8 examples it is right in at least 0.1 more than with none, as a sentence to go on with."""
    return found["right"][CLOZE][8] >= found["right"][CLOZE][0] + 0.1


@section.claim(
    "Is it easier to go on with a sentence than to name a letter?",
    paper="no paper: a letter takes two look-ups, from the question to the phrase and from the phrase to its letter",
    measured=lambda found: f"right with {', '.join(map(str, SHOTS))} examples: {told(found, CLOZE)}; {told(found, CHOICE)}",
)
def sentence_is_easier(found):
    """With 8 examples at least 0.15 more are right as a sentence to go on with than as a letter."""
    return found["right"][CLOZE][8] >= found["right"][CHOICE][8] + 0.15


@section.report
def report(found):
    rows = [[way, *(mean_and_spread(100 * found["right"][way][shots], ".0f") for shots in SHOTS)] for way in (CLOZE, CHOICE)]
    section.table("in_context", ["asked as", *(f"{shots} examples, %" for shots in SHOTS)], [*rows, ["a guess", *["25"] * len(SHOTS)]])
    for key, way in {"cloze": CLOZE, "choice": CHOICE}.items():
        section.values(f"in_context.{key}", {f"n{shots}": 100 * np.mean(found["right"][way][shots]) for shots in SHOTS})
    section.value("in_context.questions", QUESTIONS)


@section.figure("in_context", size=(5.6, 3))
def picture(ax, found):
    lines(ax, found["right"], xlabel="examples in the prompt", ylabel="right", ylim=(0, 1.02))
    level(ax, 0.25, "a guess")
    ax.legend()


if __name__ == "__main__":
    section.main()
