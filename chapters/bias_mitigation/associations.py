"""Do word vectors hold the associations that people have?

Caliskan, Bryson and Narayanan 2017, arXiv:1608.07187: ten tests with lists of words (WEAT), eight of them after tests with people. Here they are
asked of GloVe with 50 numbers a word. Intervals are of words drawn anew within each list.
"""

# %%
import numpy as np

from minitransformers.reporting import Section
from minitransformers.reporting.bias_mitigation.tested_words import associations, sets_of, tested_words
from minitransformers.reporting.bias_mitigation.word_quality import span
from minitransformers.reporting.bias_mitigation.word_vectors import association_tests
from minitransformers.reporting.needs import needs_data

section = Section(__file__, __doc__, kind="arithmetic", needs=needs_data(("glove", "words"), ("fairness", "weat")))
PUBLISHED = "as published"


@section.experiment
def experiment(rng):
    words, vectors = tested_words(0)
    resamples, splits = (100, 1000) if section.quick else (1000, 20_000)
    for test in association_tests():
        yield test.name, PUBLISHED, associations(sets_of(test, words), {PUBLISHED: vectors}, rng, resamples=resamples, splits=splits)[PUBLISHED]


# %%
def of(found, test):
    return {measure: curves[test.name][PUBLISHED] for measure, curves in found.items()}


@section.claim(
    "The associations that people have stand in the vectors",
    paper="Caliskan et al. 2017, arXiv:1608.07187, table 1: every test of ten, in GloVe with 300 numbers",
    measured=lambda found: "; ".join(f"{test.name} {span(of(found, test), 'd')}" for test in association_tests()),
)
def in_vectors(found):
    """In all ten tests d is above 0, and p below 0.05."""
    return all(of(found, test)["d"] > 0 and of(found, test)["p"] < 0.05 for test in association_tests())


@section.report
def report(found):
    glove = set(tested_words(0).words)
    rows = []
    for number, test in enumerate(association_tests(), start=1):
        known = ", ".join(f"{sum(word in glove for word in words)} of {len(words)}" for words in test[1:5])
        numbers = of(found, test)
        people = "–" if test.people is None else f"{test.people:.2f}"
        rows.append([test.name, known, span(numbers, "d"), np.mean(numbers["p"]), people])
        section.values(f"associations.test{number}", {name: np.mean(numbers[name]) for name in ("d", "p", "apart")})
    section.table("weat", ["test", "words found: X, Y, A, B", "d, and 95 %", "p", "d in people"], rows)


if __name__ == "__main__":
    section.main()
