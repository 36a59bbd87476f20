"""Do associations of words with gender stand in MiniLM's sentence vectors, whatever sentence the words are put into?

May et al. 2019, arXiv:1903.10561 (SEAT): the words of a test of association stand in sentences that say nothing, and a sentence encoder takes the place
of word vectors. Words are those of Caliskan et al. 2017, flowers and insects beside three tests of gender, binary as they are published; a test is asked
in each template alone and over all. What the vectors are good for is how well cosines of single words go with people's judgement (MEN).
"""

# %%
import numpy as np

from minitransformers.bias_mitigation.weat import seat, template_vectors, weat
from minitransformers.models.minilm import load_minilm, minilm_vectors
from minitransformers.reporting import Section
from minitransformers.reporting.bias_mitigation.word_quality import interval, relatedness, span
from minitransformers.reporting.bias_mitigation.word_vectors import association_tests, similarity_pairs
from minitransformers.reporting.needs import needs_data

section = Section(__file__, __doc__, kind="arithmetic", needs=needs_data(("minilm", "weights"), ("fairness", "weat"), ("fairness", "similarity")))
TEMPLATES = ("This is {}.", "Here is {}.", "They spoke of {}.", "The word is {}.", "{} was mentioned.")
TESTS, GENDER = (0, 5, 6, 7), (5, 6, 7)                      # flowers and insects, and the three of gender


# %% Tests in sentences
def encoded(lists, model):
    """Vectors of each list of words in each template."""
    texts = sorted({template.replace("{}", word) for words in lists for word in words for template in TEMPLATES})
    vectors = dict(zip(texts, minilm_vectors(texts, model=model), strict=True))
    return [template_vectors(words, templates=TEMPLATES, encode=vectors.__getitem__) for words in lists]


def effects(sets, rng):
    """d as the mean of the templates, with an interval of words drawn anew within each list."""
    rows, groups = np.concatenate(sets, axis=1).swapaxes(0, 1), np.repeat(np.arange(4), [of.shape[1] for of in sets])

    def effect(drawn):
        each = [rows[drawn[groups[drawn] == group]] for group in range(4)]
        return np.mean([weat(*(of[:, t] for of in each), splits=0).effect_size for t in range(len(TEMPLATES))])

    return interval(np.arange(len(rows)), effect, rng, groups=groups, resamples=100 if section.quick else 200)


@section.experiment
def experiment(rng):
    model, quick = load_minilm(), section.quick
    for number in TESTS:
        test = association_tests()[number]
        sets = encoded([list(words) for words in test[1:5]], model)
        found, d = seat(*sets, splits=100 if quick else 10_000, rng=rng), effects(sets, rng)
        numbers = {"d": d.estimate, "d low": d.low, "d high": d.high, "least": found.effect_sizes.min(), "most": found.effect_sizes.max()}
        yield "SEAT", test.name, numbers | {"p": found.p_of_words, "largest p": found.p_values.max(), "words": sum(of.shape[1] for of in sets)}
    if not quick:
        words = sorted({word for pair in similarity_pairs() for word in pair[:2]})
        yield "MEN", "MiniLM", relatedness(words, {"MiniLM": minilm_vectors(words, model=model)}, rng, resamples=200)["MiniLM"]


# %%
def asked(found, numbers=TESTS):
    """The tests that were asked, and what was found."""
    names = [association_tests()[number].name for number in numbers]
    return {name: {measure: values["SEAT"][name] for measure, values in found.items() if "SEAT" in values} for name in names}


@section.claim(
    "Do the associations with gender stand in MiniLM's sentence vectors, whatever the template?",
    paper="May et al. 2019, arXiv:1903.10561, abstract: mixed results, and patterns that make the test itself doubtful",
    measured=lambda found: "; ".join(f"{name}: d {np.mean(of['least']):.2f} to {np.mean(of['most']):.2f}" for name, of in asked(found, GENDER).items()),
)
def in_sentences(found):
    """In tests 6, 7 and 8 d is above 0 in every template, and p of the words below 0.05."""
    return all(of["least"] > 0 and of["p"] < 0.05 for of in asked(found, GENDER).values())


@section.report
def report(found):
    rows = []
    for name, of in asked(found).items():
        from_to = f"{np.mean(of['least']):.2f} to {np.mean(of['most']):.2f}"
        rows.append([name, int(np.mean(of["words"])), span(of, "d"), from_to, np.mean(of["p"]), np.mean(of["largest p"])])
    section.table("seat", ["test", "words", "d, mean of templates (95 %)", "d, from template to template", "p of words", "largest p of a template"], rows)
    for number, of in zip(TESTS, asked(found).values(), strict=True):
        section.values(f"sentences.test{number + 1}", {measure: np.mean(of[measure]) for measure in ("d", "least", "most", "p")})
    section.value("sentences.templates", len(TEMPLATES))
    if not section.quick:
        section.value("sentences.related", found["similarity"]["MEN"]["MiniLM"].mean())


if __name__ == "__main__":
    section.main()
